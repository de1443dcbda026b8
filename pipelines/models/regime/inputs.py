"""The detectors' inputs (F4): the bar's range and columns of the catalogue, each on a scale of its own."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from pipelines.contracts import HIGH, LOW, Bools, Floats, History, Ints
from pipelines.features.catalog import FEATURES

STEPS = 128  # decision bars of a window; in every bundle's schema
COLUMNS = (
    "log_range",  # log(high / low) of the bar itself; all others are of the feature catalogue
    "log_return_1",
    "volatility_20",
    "volatility_regime",
    "adx_14",
    "persistence_60",
    "price_momentum",
    "volume_ma5",
    "spread_proxy_20",
    "cross_correlation",
    "cross_beta",
    "market_sentiment",
)
_PLACES = [FEATURES.index[name] for name in COLUMNS[1:]]
_FLAT = 1e-5  # a tenth of a basis point: a bar that did not move has a range too
_TINY = 1e-8  # a volatility below a millionth of a basis point a bar is a market that does not trade

# input → (columns it is made of, how); all element by element, so an input is missing where a column is
INPUTS: dict[str, tuple[tuple[str, ...], Callable[..., Floats]]] = {
    "range": (("log_range",), lambda x: np.log(x + _FLAT)),
    "return": (("log_return_1",), lambda x: x),
    "volatility": (("volatility_20",), lambda x: np.log(x + _TINY)),
    "percentile": (("volatility_regime",), lambda x: x),
    "adx": (("adx_14",), lambda x: x),
    "persistence": (("persistence_60",), lambda x: x),
    "momentum": (("price_momentum",), lambda x: x),
    "momentum_size": (("price_momentum",), np.abs),
    "volume": (("volume_ma5",), lambda x: x),
    "spread": (("spread_proxy_20", "volatility_20"), lambda spread, vol: np.log1p(spread / (vol + _TINY))),
    "correlation": (("cross_correlation",), lambda x: x),
    "beta": (("cross_beta",), lambda x: x),
    "sentiment": (("market_sentiment",), lambda x: x),
}


def build(history: History, at: Ints) -> Floats:
    """Return (n, STEPS, len(COLUMNS)) windows of the bars up to positions `at` (n,) inclusive; NaN before the first."""
    first = max(0, int(at.min()) - STEPS + 1) if len(at) else 0
    near = slice(first, int(at.max()) + 1 if len(at) else 0)
    values = np.empty((near.stop - first, len(COLUMNS)))
    values[:, 0] = np.log(history.bars[near, HIGH] / history.bars[near, LOW])
    values[:, 1:] = history.features[near, _PLACES]
    rows = (at - first)[:, np.newaxis] + np.arange(1 - STEPS, 1)
    out: Floats = values[np.maximum(rows, 0)]
    out[rows < 0] = np.nan
    return out


def whole(histories: Sequence[History]) -> Floats:
    """Return (n, STEPS, len(COLUMNS)) windows of the newest bars of n histories of at least STEPS bars."""
    bars = np.stack([history.bars[-STEPS:] for history in histories])
    out = np.empty((len(histories), STEPS, len(COLUMNS)))
    out[:, :, 0] = np.log(bars[:, :, HIGH] / bars[:, :, LOW])
    for i, history in enumerate(histories):
        out[i, :, 1:] = history.features[-STEPS:, _PLACES]
    return out


def missing_columns(inputs: tuple[str, ...], columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the columns that these inputs need and a snapshot with `columns` lacks."""
    needed = dict.fromkeys(name for each in inputs for name in INPUTS[each][0])
    return tuple(name for name in needed if name not in columns)


def planes(rows: Floats, columns: tuple[str, ...]) -> dict[str, Floats]:
    """Return every input that the columns allow.

    rows     (n, len(columns)) or (n, steps, len(columns)); NaN = missing
    Returns  input → (n,) or (n, steps), contiguous; NaN where a column is
    """
    by_column = np.ascontiguousarray(np.moveaxis(rows, -1, 0))
    return {name: make(*(by_column[place] for place in places)) for name, places, make in _made_of(columns)}


@cache
def _made_of(columns: tuple[str, ...]) -> tuple[tuple[str, tuple[int, ...], Callable[..., Floats]], ...]:
    """Return every input that these columns allow, the places of its columns among them, and how it is made."""
    return tuple(
        (name, tuple(columns.index(each) for each in needs), make)
        for name, (needs, make) in INPUTS.items()
        if not missing_columns((name,), columns)
    )


def segment_starts(known: Floats) -> Bools:
    """Return (m,) True on the first row of every contiguous run: there is no transition across a gap.

    known  (m,) epoch seconds, ascending; their median distance is one bar
    """
    apart = np.diff(known)
    step = np.median(apart) if len(apart) else 0.0
    return np.concatenate([[True], apart > 1.5 * step])
