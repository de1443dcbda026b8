"""The pattern recogniser's inputs at a closed bar: 32 candles in units of ATR, features, and the setups present."""

from collections.abc import Sequence

import numpy as np

from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, TAKER_BUY, VOLUME, Floats, History, Ints
from pipelines.features.catalog import FEATURES
from pipelines.signals.setups import PATTERNS, setups

STEPS = 32
CANDLE = ("candle_open", "candle_high", "candle_low", "candle_close")  # distance from the newest bar's middle, ATR
TAKER = "taker_share"  # (2 taker buys - volume) / volume of the bar
DIRECTIONS = tuple(f"{name}.direction" for name in PATTERNS)  # 1, -1; 0 = absent. Newest bar only, 0 before it

# Columns of the catalogue that mirroring the market leaves unchanged …
EVEN = (
    "atr_14", "volatility_20", "range_20", "volatility_regime", "adx_14", "persistence_60", "spread_proxy_20",
    "volume_to_median", "volume_ma5", "volume_ma60", "volume_volatility_20", "spread", "time_of_day_sin",
    "time_of_day_cos", "session_asia", "session_london", "session_newyork",
)  # fmt: skip
# … and those it reverses around their centre
ODD = {
    "log_return_1": 0.0, "close_to_ma5": 0.0, "close_to_ma20": 0.0, "macd_12_26": 0.0, "rsi_14": 50.0,
    "bollinger_b_20": 0.5, "stoch_k_14": 50.0, "cci_20": 0.0, "price_momentum": 0.0, "order_flow_imbalance": 0.0,
    "book_imbalance": 0.0, "depth_ratio": 0.0, "order_flow_ratio": 0.0, "hft_oci_signal": 0.0,
    "book_skew_strength": 0.0,
}  # fmt: skip
COLUMNS = (*CANDLE, TAKER, *EVEN, *ODD, *DIRECTIONS)
_ATR = EVEN.index("atr_14")  # a fraction of the close
_FEATURES = np.array([FEATURES.index[name] for name in (*EVEN, *ODD)])


def build(history: History, at: Ints) -> Floats:
    """Return (n, 32, len(COLUMNS)) of bars `at`, oldest first; NaN where a value is missing or the history too short.

    Candles are (price - middle of the newest bar) / ATR 14 at the newest bar. Measured from its close, one column of
    that bar would always be zero.
    """
    rows = at[:, np.newaxis] + np.arange(1 - STEPS, 1)
    short, rows = rows < 0, np.maximum(rows, 0)
    out = _windows(history.bars[rows], history.features[rows[:, :, np.newaxis], _FEATURES], history.signals[at])
    out[short] = np.nan
    return out


def whole(histories: Sequence[History]) -> Floats:
    """Return what `build` returns of the newest bars of n histories of at least 32 bars."""
    return _windows(
        np.stack([history.bars[-STEPS:] for history in histories]),
        np.stack([history.features[-STEPS:, _FEATURES] for history in histories]),
        np.stack([history.signals[-1] for history in histories]),
    )


def _windows(bars: Floats, features: Floats, signals: Floats) -> Floats:
    """Return (n, 32, len(COLUMNS)) of bars (n, 32, 9), features (n, 32, EVEN and ODD), signals of the newest bars."""
    out = np.zeros((len(bars), STEPS, len(COLUMNS)))
    middle = 0.5 * (bars[:, -1, HIGH] + bars[:, -1, LOW])
    reach = features[:, -1, _ATR] * bars[:, -1, CLOSE]
    scale = np.where(reach > 0.0, reach, np.nan)
    out[:, :, :4] = (bars[:, :, [OPEN, HIGH, LOW, CLOSE]] - middle[:, None, None]) / scale[:, None, None]
    # a bar without trades has no share: zero over zero is missing, as everywhere
    with np.errstate(invalid="ignore", divide="ignore"):
        out[:, :, 4] = 2.0 * bars[:, :, TAKER_BUY] / bars[:, :, VOLUME] - 1.0
    out[:, :, 5 : 5 + len(_FEATURES)] = features
    out[:, -1, -len(DIRECTIONS) :] = setups(signals)
    return out
