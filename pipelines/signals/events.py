"""Events: the bars on which the validator makes a prediction, and its input rows.

Every function reads one row at a time, so a live row gives the same result as in a batch.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from pipelines.compiled import kernel
from pipelines.contracts import Floats, Ints
from pipelines.errors import BadShape
from pipelines.features.catalog import FEATURES
from pipelines.signals.catalog import PRODUCERS, SIGNALS
from pipelines.signals.validator_schema import SIDED_COLUMNS, VALIDATOR_COLUMNS

TRADITIONAL = ("consensus",)
EVENT_SIGNALS = (*PRODUCERS["ict"], *TRADITIONAL)  # all that raise events, in order
_ATR = FEATURES.index["atr_14"]
# position of each of the validator's columns in features and signals, concatenated
_ROW = np.array([{**SIGNALS.index, **FEATURES.index}[name] for name in VALIDATOR_COLUMNS])
_ROW[[name not in FEATURES.index for name in VALIDATOR_COLUMNS]] += len(FEATURES.columns)
_SIDED = np.array([name in SIDED_COLUMNS for name in VALIDATOR_COLUMNS])


@dataclass(frozen=True, slots=True)
class Events:
    """Hold m events in time order, each known at the close of its bar. All arrays (m,).

    index      row of the bar
    direction  1 long, -1 short
    kind       name of the signal that raised it (the first in order if several agree)
    atr        ATR 14 at that close, as a fraction of price; finite and above 0
    """

    index: Ints
    direction: Ints
    kind: npt.NDArray[np.str_]
    atr: Floats

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.index)


def events(features: Floats, signals: Floats) -> Events:
    """Return the ICT events (S1–S5) of features (n, kf) and signals (n, ks) of the same bars.

    Opposite signals on a bar make no event. Raises BadShape.
    """
    return _events(features, signals, PRODUCERS["ict"])


def traditional_events(features: Floats, signals: Floats) -> Events:
    """Return the events of the S16 consensus, in the same form."""
    return _events(features, signals, TRADITIONAL)


def event_rows(features: Floats, signals: Floats, raised: Events) -> Floats:
    """Return (m, columns) in VALIDATOR_COLUMNS order; sided columns read in the event's direction; NaN = missing."""
    rows = validator_columns(features[raised.index], signals[raised.index])
    return np.where(_SIDED, rows * raised.direction[:, np.newaxis], rows)


def event_row(features_row: Floats, signals_row: Floats, direction: int) -> Floats:
    """Return (columns,) of one live row (kf,) and (ks,): the same numbers as `event_rows`, hence the same bytes."""
    row = validator_columns(features_row[np.newaxis], signals_row[np.newaxis])[0]
    return np.asarray(np.where(_SIDED, row * direction, row))


def validator_columns(features: Floats, signals: Floats) -> Floats:
    """Return (n, columns) of VALIDATOR_COLUMNS at n bars: features (n, kf), signals (n, ks), no direction applied."""
    return np.asarray(np.concatenate([features, signals], axis=1)[:, _ROW])


def _events(features: Floats, signals: Floats, names: tuple[str, ...]) -> Events:
    """Return the events raised by the named signals. Raises BadShape."""
    if features.shape != (len(signals), len(FEATURES.columns)) or signals.shape[1] != len(SIGNALS.columns):
        raise BadShape(
            f"features {features.shape} and signals {signals.shape}, wanted (n, {len(FEATURES.columns)}) and "
            f"(n, {len(SIGNALS.columns)}) of the same bars"
        )
    side_columns, kinds = _columns(names)
    found = np.empty((2, len(features)), np.int64)
    direction = np.empty(len(features), np.int64)
    m = _find(features, signals, side_columns, _ATR, found[0], found[1], direction)
    index = found[0, :m]
    return Events(index=index, direction=direction[:m], kind=kinds[found[1, :m]], atr=features[index, _ATR])


@cache
def _columns(names: tuple[str, ...]) -> tuple[Ints, npt.NDArray[np.str_]]:
    """Return the positions (k,) of the signals' directions in a row, and the names (k,)."""
    return np.array([SIGNALS.index[f"{name}.direction"] for name in names], dtype=np.int64), np.array(names)


@kernel
def _find(features: Floats, signals: Floats, sides: Ints, atr: int, index: Ints, first: Ints, direction: Ints) -> int:
    """Fill index, first, direction (n,) int64 with the events of n rows; return how many there are.

    features (n, kf), signals (n, ks) float64; sides (k,) int64 columns of signals; first: which of the k raised it
    """
    m = 0
    for i in range(signals.shape[0]):
        total, size, kind = 0.0, 0.0, -1
        for k in range(sides.shape[0]):
            side = signals[i, sides[k]]
            if side == side and side != 0.0:
                total += side
                size += abs(side)
                if kind < 0:
                    kind = k
        if kind >= 0 and abs(total) == size and features[i, atr] > 0.0:
            index[m], first[m], direction[m] = i, kind, np.sign(total)
            m += 1
    return m
