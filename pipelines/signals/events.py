"""Events: the bars on which somebody asks the validator for its opinion, and the rows it is asked with.

Everything here looks at one row at a time, so a live row gives what the same row gives in a batch.
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
_ATR = FEATURES.index["atr_14"]
# where each of the validator's columns is, in features and signals laid side by side
_ROW = np.array([{**SIGNALS.index, **FEATURES.index}[name] for name in VALIDATOR_COLUMNS])
_ROW[[name not in FEATURES.index for name in VALIDATOR_COLUMNS]] += len(FEATURES.columns)
_SIDED = np.array([name in SIDED_COLUMNS for name in VALIDATOR_COLUMNS])


@dataclass(frozen=True, slots=True)
class Events:
    """m events in time order, each known at the close of its bar. All arrays (m,).

    index      row of the bar
    direction  1 long, -1 short
    kind       name of the signal that raised it (the first of those heard if several agree)
    atr        ATR 14 at that close, as a fraction of price; finite and above 0
    """

    index: Ints
    direction: Ints
    kind: npt.NDArray[np.str_]
    atr: Floats

    def __len__(self) -> int:
        return len(self.index)


def events(features: Floats, signals: Floats) -> Events:
    """ICT events (S1–S5): features (n, kf), signals (n, ks) of the same bars. Opposite signals on a bar: no event."""
    return _events(features, signals, PRODUCERS["ict"])


def traditional_events(features: Floats, signals: Floats) -> Events:
    """Events of the S16 consensus, in the same form."""
    return _events(features, signals, TRADITIONAL)


def event_rows(features: Floats, signals: Floats, raised: Events) -> Floats:
    """(m, 16) in VALIDATOR_COLUMNS order; sided columns read in the event's direction; NaN = missing."""
    rows = validator_columns(features[raised.index], signals[raised.index])
    return np.where(_SIDED, rows * raised.direction[:, np.newaxis], rows)


def event_row(features_row: Floats, signals_row: Floats, direction: int) -> Floats:
    """(16,) for one live row (kf,) and (ks,): the same numbers as `event_rows`, hence the same bytes."""
    row = validator_columns(features_row[np.newaxis], signals_row[np.newaxis])[0]
    return np.asarray(np.where(_SIDED, row * direction, row))


def validator_columns(features: Floats, signals: Floats) -> Floats:
    """(n, 16) of VALIDATOR_COLUMNS as they stand at n bars: features (n, kf), signals (n, ks), no direction read in."""
    return np.asarray(np.concatenate([features, signals], axis=1)[:, _ROW])


def _events(features: Floats, signals: Floats, names: tuple[str, ...]) -> Events:
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
    return np.array([SIGNALS.index[f"{name}.direction"] for name in names], dtype=np.int64), np.array(names)


@kernel
def _find(features, signals, sides, atr, index, first, direction):  # type: ignore[no-untyped-def]
    m = 0
    for i in range(signals.shape[0]):
        total, said, kind = 0.0, 0.0, -1
        for k in range(sides.shape[0]):
            side = signals[i, sides[k]]
            if side == side and side != 0.0:
                total += side
                said += abs(side)
                if kind < 0:
                    kind = k
        if kind >= 0 and abs(total) == said and features[i, atr] > 0.0:
            index[m], first[m], direction[m] = i, kind, np.sign(total)
            m += 1
    return m
