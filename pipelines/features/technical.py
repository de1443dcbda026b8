"""The nine technical features of the core, the validator's momentum and ADX.

Conventions and seeds are TA-Lib's; where TA-Lib returns 0 for something undefined (a flat window), it is missing.
"""

import math

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import (
    ADX_STATE,
    ATR_STATE,
    MACD_STATE,
    RSI_STATE,
    adx,
    atr,
    deviation,
    highest,
    lowest,
    macd,
    mean,
    push,
    rsi,
)
from pipelines.layout import lay_out, window, zeros

WINDOW, RANGE_BARS = 20, 14
TEN_AGO = WINDOW - 1 - 10  # position in the closes of the close ten bars ago
(CLOSES, TYPICAL, HIGHS, LOWS, RSI, MACD, ATR, ADX), FRESH = lay_out(
    closes=window(WINDOW), typical=window(WINDOW), highs=window(RANGE_BARS), lows=window(RANGE_BARS),
    rsi=zeros(RSI_STATE), macd=zeros(MACD_STATE), atr=zeros(ATR_STATE), adx=zeros(ADX_STATE),
)  # fmt: skip


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write eleven values.

    arrays   float64: state (90,), bar (9,), book and context unread, out (11,)
    reads    bar high, low, close
    state    windows, NaN when fresh: closes 20, typical prices 20, highs 14, lows 14;
             recursions, zeros when fresh: RSI 4, MACD 7, ATR 3, ADX 8
    """
    closes, typical, highs, lows = state[CLOSES], state[TYPICAL], state[HIGHS], state[LOWS]
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    push(closes, close)
    push(typical, (high + low + close) / 3.0)
    push(highs, high)
    push(lows, low)

    out[0] = rsi(state[RSI], close)
    line, _ = macd(state[MACD], close)
    out[1] = line / close

    width = 2.0 * deviation(closes, 0)
    out[2] = (close - mean(closes) + width) / (2.0 * width)

    top, bottom = highest(highs), lowest(lows)
    out[3] = 100.0 * ((close - bottom) / (top - bottom))
    out[4] = out[3] - 100.0

    centre = mean(typical)
    spread = 0.0
    for price in typical:
        spread += abs(price - centre)
    out[5] = (typical[-1] - centre) / (0.015 * (spread / WINDOW))

    reach = atr(state[ATR], high, low, close)
    out[6] = reach / close
    out[7] = (close - closes[TEN_AGO]) / closes[TEN_AGO]
    out[8] = 100.0 * (close / closes[TEN_AGO] - 1.0)
    out[9] = (close - closes[TEN_AGO]) / reach
    out[10] = adx(state[ADX], high, low, close)


INF = math.inf
WILDER = "Wilder 1978, New Concepts in Technical Trading Systems; seeds as TA-Lib"
GROUP = FeatureGroup(
    "technical",
    step,
    (
        Column("rsi_14", "technical", "points", 0.0, 100.0, 15, "100 gain / (gain + loss), Wilder 14", WILDER),
        Column(
            "macd_12_26", "technical", "fraction of price", -INF, INF, 26, "(EMA 12 - EMA 26) / close",
            "Appel 1979; seeds as TA-Lib",
        ),
        Column(
            "bollinger_b_20", "technical", "fraction of band", -INF, INF, 20,
            "(close - lower) / (upper - lower), mean 20 -+ 2 standard deviations (ddof 0)", "Bollinger 2001; TA-Lib",
        ),
        Column(
            "stoch_k_14", "technical", "points", 0.0, 100.0, 14, "100 (close - low 14) / (high 14 - low 14)",
            "Lane 1984; TA-Lib STOCHF",
        ),
        Column(
            "williams_r_14", "technical", "points", -100.0, 0.0, 14, "%K - 100", "Williams 1979; TA-Lib",
            copy_of="stoch_k_14",
        ),
        Column(
            "cci_20", "technical", "points", -INF, INF, 20,
            "(typical price - mean 20) / (0.015 mean absolute deviation)", "Lambert 1980; TA-Lib",
        ),
        Column("atr_14", "technical", "fraction of price", 0.0, INF, 15, "ATR (Wilder 14) / close", WILDER),
        Column(
            "momentum_10", "technical", "fraction of price", -1.0, INF, 11,
            "(close - close 10 bars ago) / close 10 bars ago",
            "TA-Lib MOM as a fraction",
        ),
        Column(
            "roc_10", "technical", "per cent", -100.0, INF, 11, "100 (close / close 10 bars ago - 1)", "TA-Lib ROC",
            copy_of="momentum_10",
        ),
        Column(
            "price_momentum", "validator", "ATR", -INF, INF, 15, "(close - close 10 bars ago) / ATR (Wilder 14)",
            "ruling: momentum in units of ATR",
        ),
        Column("adx_14", "regime", "points", 0.0, 100.0, 28, "Wilder 14 average of DX", WILDER),
    ),
    FRESH,
)  # fmt: skip
