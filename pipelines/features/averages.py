"""The traditional averages (F3): fifteen averages and levels, as the log distance of the close from each.

No decision reads them (docs/results/columns.md). Conventions and seeds are TA-Lib's where TA-Lib has the
indicator.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import CHAIN_STATE, EMA_STATE, chain, ema, highest, lowest, mean, push, tail
from pipelines.layout import lay_out, window, zeros

LONG = 200  # closes in the window: the longest average

_SAR = ("bars", "side", "stop", "extreme", "rate", "high", "low")
_BARS, _SIDE, _STOP, _EXTREME, _RATE, _HIGH, _LOW = range(len(_SAR))

(A_CLOSES, A_HIGHS, A_LOWS, A_KAMA, A_EMA_12, A_EMA_26, A_THREE, A_SIX, A_SAR), FRESH = lay_out(
    closes=window(LONG), highs=window(14), lows=window(14), kama=window(1), ema_12=zeros(EMA_STATE),
    ema_26=zeros(EMA_STATE), three=zeros(3 * CHAIN_STATE), six=zeros(6 * CHAIN_STATE), sar=zeros(len(_SAR)),
)  # fmt: skip


@kernel
def _line(window: Floats) -> tuple[float, float]:
    """Return (value at the newest point, slope a bar) of the least-squares line through a window (w,) float64."""
    n = window.shape[0]
    centre, middle = (n - 1) / 2.0, mean(window)
    over, under = 0.0, 0.0
    for i in range(n):
        over += (i - centre) * (window[i] - middle)
        under += (i - centre) * (i - centre)
    slope = over / under
    return middle + slope * (n - 1 - centre), slope


@kernel
def _kama(state: Floats, closes: Floats) -> float:
    """Return Kaufman's average over ten bars, in price units.

    state (1,) float64: the average before, NaN when fresh. closes (11,): the newest eleven.
    """
    moved = 0.0
    for i in range(1, 11):
        moved += abs(closes[i] - closes[i - 1])
    if moved != moved:
        return np.nan
    share = 1.0
    if moved > 0.0:
        share = abs(closes[10] - closes[0]) / moved
    slow = 2.0 / 31.0
    speed = share * (2.0 / 3.0 - slow) + slow
    before = state[0] if state[0] == state[0] else closes[9]
    state[0] = before + (closes[10] - before) * speed * speed
    average: float = state[0]
    return average


@kernel
def _parabolic(state: Floats, high: float, low: float) -> float:
    """Return the parabolic stop, .02 to .2, in price units; state (7,) float64 of _SAR, zeros when fresh."""
    state[_BARS] += 1.0
    if state[_BARS] == 1.0:
        state[_HIGH], state[_LOW] = high, low
        return np.nan
    if state[_BARS] == 2.0:
        fell = state[_LOW] - low > 0.0 and state[_LOW] - low > high - state[_HIGH]
        state[_SIDE] = -1.0 if fell else 1.0
        state[_STOP] = state[_HIGH] if fell else state[_LOW]
        state[_EXTREME] = low if fell else high
        state[_RATE] = 0.02
        state[_HIGH], state[_LOW] = high, low
    side, stop = state[_SIDE], state[_STOP]
    inner = max(state[_HIGH], high) if side < 0.0 else min(state[_LOW], low)  # the stop stays outside the last two bars
    outer = min(state[_LOW], low) if side < 0.0 else max(state[_HIGH], high)
    if (side > 0.0 and low <= stop) or (side < 0.0 and high >= stop):
        stop = max(state[_EXTREME], outer) if side > 0.0 else min(state[_EXTREME], outer)
        value = stop
        state[_SIDE], state[_RATE] = -side, 0.02
        state[_EXTREME] = low if side > 0.0 else high
        stop += state[_RATE] * (state[_EXTREME] - stop)
        state[_STOP] = max(stop, outer) if side > 0.0 else min(stop, outer)
    else:
        value = stop
        further = high > state[_EXTREME] if side > 0.0 else low < state[_EXTREME]
        if further:
            state[_EXTREME] = high if side > 0.0 else low
            state[_RATE] = min(state[_RATE] + 0.02, 0.2)
        stop += state[_RATE] * (state[_EXTREME] - stop)
        state[_STOP] = min(stop, inner) if side > 0.0 else max(stop, inner)
    state[_HIGH], state[_LOW] = high, low
    level: float = value
    return level


@kernel
def averages(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write fifteen averages and levels: log distance of the close from each (the slope: a fraction of price a bar).

    arrays   float64: state (267,), bar (9,), book and context unread, out (15,)
    state    windows, NaN when fresh: closes 200, highs 14, lows 14, average of Kaufman 1;
             zeros when fresh: EMA 12 (2), EMA 26 (2), chain of three of 20 (9), chain of six of 5 (18), parabolic 7
    """
    closes, highs, lows = state[A_CLOSES], state[A_HIGHS], state[A_LOWS]
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    push(closes, close)
    push(highs, high)
    push(lows, low)

    out[0] = math.log(close / mean(tail(closes, 50)))
    out[1] = math.log(close / mean(closes))
    out[2] = math.log(close / ema(state[A_EMA_12], close, 12.0))
    out[3] = math.log(close / ema(state[A_EMA_26], close, 26.0))

    twenty = tail(closes, 20)
    rising, triangle = 0.0, 0.0
    for i in range(20):
        rising += (i + 1.0) * twenty[i]
        triangle += min(i + 1.0, 20.0 - i) * twenty[i]
    out[4] = math.log(close / (rising / 210.0))
    out[5] = math.log(close / (triangle / 110.0))

    three = state[A_THREE]
    chain(three, close, 20.0, 3)
    out[6] = math.log(close / (2.0 * three[2] - three[5]))
    out[7] = math.log(close / (3.0 * three[2] - 3.0 * three[5] + three[8]))

    six, v = state[A_SIX], 0.7
    chain(six, close, 5.0, 6)
    out[8] = math.log(
        close
        / (
            -v * v * v * six[17]
            + (3.0 * v * v + 3.0 * v * v * v) * six[14]
            - (6.0 * v * v + 3.0 * v + 3.0 * v * v * v) * six[11]
            + (1.0 + 3.0 * v + v * v * v + 3.0 * v * v) * six[8]
        )
    )

    out[9] = math.log(close / _kama(state[A_KAMA], tail(closes, 11)))
    value, slope = _line(tail(closes, 14))
    out[10] = math.log(close / value)
    out[11] = slope / close
    fourteen = tail(closes, 14)
    out[12] = math.log(close / ((highest(fourteen) + lowest(fourteen)) / 2.0))
    out[13] = math.log(close / ((highest(highs) + lowest(lows)) / 2.0))
    out[14] = math.log(close / _parabolic(state[A_SAR], high, low))


INF = math.inf
WILDER, TALIB = "Wilder 1978; TA-Lib", "TA-Lib"


def _distance(name: str, of: str, warmup: int, source: str) -> Column:
    """Return the column of the log distance of the close from `of`."""
    return Column(name, "traditional", "log", -INF, INF, warmup, f"log(close / {of})", source)


GROUP = FeatureGroup(
    "averages",
    averages,
    (
        _distance("close_to_sma_50", "mean of 50 closes", 50, TALIB),
        _distance("close_to_sma_200", "mean of 200 closes", 200, TALIB),
        _distance("close_to_ema_12", "EMA 12 of the close", 12, TALIB),
        _distance("close_to_ema_26", "EMA 26 of the close", 26, TALIB),
        _distance("close_to_wma_20", "mean of 20 closes weighted 1 to 20", 20, TALIB),
        _distance("close_to_trima_20", "mean of 20 closes weighted 1 to 10 to 1", 20, TALIB),
        _distance("close_to_dema_20", "2 EMA 20 - EMA 20 of it", 39, "Mulloy 1994; TA-Lib"),
        _distance("close_to_tema_20", "3 EMA 20 - 3 EMA 20 of it + EMA 20 of that", 58, "Mulloy 1994; TA-Lib"),
        _distance("close_to_t3_5", "Tillson's T3 of 5 bars, factor .7", 25, "Tillson 1998; TA-Lib"),
        _distance("close_to_kama_10", "Kaufman's adaptive average of 10 bars", 11, "Kaufman 1995; TA-Lib"),
        _distance("close_to_linreg_14", "end of the least-squares line through 14 closes", 14, TALIB),
        Column(
            "linreg_slope_14", "traditional", "fraction of price a bar", -INF, INF, 14,
            "slope of the least-squares line through 14 closes / close", TALIB,
        ),
        _distance("close_to_midpoint_14", "middle of the 14 closes' range", 14, TALIB),
        _distance("close_to_midprice_14", "middle of high and low of 14 bars", 14, TALIB),
        _distance("close_to_sar", "parabolic stop, .02 to .2", 2, WILDER),
    ),
    FRESH,
)  # fmt: skip
