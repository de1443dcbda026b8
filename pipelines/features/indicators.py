"""The traditional indicator set (F3), next to the core's nine: averages, oscillators, bands, volume.

No model family reads it; rules, charts and new families do. Conventions and seeds are TA-Lib's where TA-Lib has the
indicator; where it returns 0 for something undefined, the value is missing. Prices are relative to the close.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, VOLUME, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import (
    ADX_STATE,
    ATR_STATE,
    MACD_STATE,
    MINUS_DM,
    PLUS_DM,
    RSI_STATE,
    TRUE_RANGE,
    adx,
    atr,
    deviation,
    ema,
    highest,
    lowest,
    macd,
    mean,
    push,
    rsi,
    true_range,
)
from pipelines.layout import lay_out, window, zeros

LONG = 200  # closes in the window: the longest average

_SAR = ("bars", "side", "stop", "extreme", "rate", "high", "low")
_BARS, _SIDE, _STOP, _EXTREME, _RATE, _HIGH, _LOW = range(len(_SAR))
EMA_STATE, CHAIN_STATE = 2, 3  # of one average, and of one average of a chain

(A_CLOSES, A_HIGHS, A_LOWS, A_KAMA, A_EMA_12, A_EMA_26, A_THREE, A_SIX, A_SAR), AVERAGES_FRESH = lay_out(
    closes=window(LONG), highs=window(14), lows=window(14), kama=window(1), ema_12=zeros(EMA_STATE),
    ema_26=zeros(EMA_STATE), three=zeros(3 * CHAIN_STATE), six=zeros(6 * CHAIN_STATE), sar=zeros(len(_SAR)),
)  # fmt: skip
(
    O_HIGHS, O_LOWS, O_RANGES, O_PRESSURES, O_FAST, O_SLOW, O_STRENGTHS, O_TRENDS, O_MACD, O_EMA_26, O_CHAIN,
    O_LAST_OF_CHAIN, O_RSI, O_ADX, O_LAST_CLOSE, O_BARS, O_EMA_12,
), OSCILLATORS_FRESH = lay_out(
    highs=window(26), lows=window(26), ranges=window(28), pressures=window(28), fast=window(3), slow=window(3),
    strengths=window(14), trends=window(14), macd=zeros(MACD_STATE), ema_26=zeros(EMA_STATE),
    chain=zeros(3 * CHAIN_STATE), last_of_chain=zeros(1), rsi=zeros(RSI_STATE), adx=zeros(ADX_STATE),
    last_close=zeros(1), bars=zeros(1), ema_12=zeros(EMA_STATE),
)  # fmt: skip
(
    B_CLOSES, B_HIGHS, B_LOWS, B_RANGES, B_UPS, B_DOWNS, B_RATIOS, B_FALLS, B_VOLUMES, B_SIGNED, B_PLACED, B_VALUES,
    B_INFLOWS, B_OUTFLOWS, B_MIDDLES, B_EMA_20, B_EMA_13, B_ATR, B_NINE, B_CHANGE, B_MAGNITUDE, B_HEIKIN_ASHI, B_LAST,
), BANDS_FRESH = lay_out(
    closes=window(LONG), highs=window(50), lows=window(50), ranges=window(14), ups=window(14), downs=window(14),
    ratios=window(25), falls=window(14), volumes=window(20), signed=window(20), placed=window(20), values=window(20),
    inflows=window(14), outflows=window(14), middles=window(34), ema_20=zeros(EMA_STATE), ema_13=zeros(EMA_STATE),
    atr=zeros(ATR_STATE), nine=zeros(2 * CHAIN_STATE), change=zeros(2 * EMA_STATE), magnitude=zeros(2 * EMA_STATE),
    heikin_ashi=zeros(2), last=zeros(5),
)  # fmt: skip


@kernel
def _tail(window: Floats, n: int) -> Floats:
    """Return the newest n values of a window (w,) float64, a view."""
    return window[window.shape[0] - n :]


@kernel
def _total(window: Floats) -> float:
    """Return the sum of a window (w,) float64, added in time order."""
    total = 0.0
    for value in window:
        total += value
    return total


@kernel
def _chain(state: Floats, value: float, period: float, length: int) -> None:
    """Update `length` exponential averages, each of the one before.

    state  (3·length,) float64: for each average the two of `ema`, then its last value
    """
    for i in range(length):
        if value == value:
            value = ema(state[3 * i : 3 * i + 2], value, period)
        state[3 * i + 2] = value


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
def _since(window: Floats, sign: float) -> float:
    """Return the bars since the greatest (sign 1) or least (sign -1) value of a window (w,) float64.

    The later of equals counts; NaN in warm-up.
    """
    if window[0] != window[0]:
        return np.nan
    best, at = window[0], 0
    for i in range(window.shape[0]):
        if sign * window[i] >= sign * best:
            best, at = window[i], i
    bars: float = window.shape[0] - 1.0 - at
    return bars


@kernel
def averages(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write fifteen averages and levels: log distance of the close from each (the slope: a fraction of price a bar).

    arrays   float64: state (267,), bar (8,), book and context unread, out (15,)
    state    windows, NaN when fresh: closes 200, highs 14, lows 14, average of Kaufman 1;
             zeros when fresh: EMA 12 (2), EMA 26 (2), chain of three of 20 (9), chain of six of 5 (18), parabolic 7
    """
    closes, highs, lows = state[A_CLOSES], state[A_HIGHS], state[A_LOWS]
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    push(closes, close)
    push(highs, high)
    push(lows, low)

    out[0] = math.log(close / mean(_tail(closes, 50)))
    out[1] = math.log(close / mean(closes))
    out[2] = math.log(close / ema(state[A_EMA_12], close, 12.0))
    out[3] = math.log(close / ema(state[A_EMA_26], close, 26.0))

    twenty = _tail(closes, 20)
    rising, triangle = 0.0, 0.0
    for i in range(20):
        rising += (i + 1.0) * twenty[i]
        triangle += min(i + 1.0, 20.0 - i) * twenty[i]
    out[4] = math.log(close / (rising / 210.0))
    out[5] = math.log(close / (triangle / 110.0))

    three = state[A_THREE]
    _chain(three, close, 20.0, 3)
    out[6] = math.log(close / (2.0 * three[2] - three[5]))
    out[7] = math.log(close / (3.0 * three[2] - 3.0 * three[5] + three[8]))

    six, v = state[A_SIX], 0.7
    _chain(six, close, 5.0, 6)
    out[8] = math.log(
        close
        / (
            -v * v * v * six[17]
            + (3.0 * v * v + 3.0 * v * v * v) * six[14]
            - (6.0 * v * v + 3.0 * v + 3.0 * v * v * v) * six[11]
            + (1.0 + 3.0 * v + v * v * v + 3.0 * v * v) * six[8]
        )
    )

    out[9] = math.log(close / _kama(state[A_KAMA], _tail(closes, 11)))
    value, slope = _line(_tail(closes, 14))
    out[10] = math.log(close / value)
    out[11] = slope / close
    fourteen = _tail(closes, 14)
    out[12] = math.log(close / ((highest(fourteen) + lowest(fourteen)) / 2.0))
    out[13] = math.log(close / ((highest(highs) + lowest(lows)) / 2.0))
    out[14] = math.log(close / _parabolic(state[A_SAR], high, low))


@kernel
def oscillators(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write fifteen oscillators.

    arrays   float64: state (177,), bar (8,), book and context unread, out (15,)
    state    windows, NaN when fresh: highs 26, lows 26, true ranges 28, buying pressures 28, fast %K 3, slow %K 3,
             RSI 14, ADX 14; zeros when fresh: MACD 7, EMA 26 (2), chain of three of 15 (9), last of the chain 1, RSI 4,
             ADX 8, last close 1, bars 1, EMA 12 (2)
    """
    highs, lows, reaches, pressures = state[O_HIGHS], state[O_LOWS], state[O_RANGES], state[O_PRESSURES]
    fast, slow, strengths, trends = state[O_FAST], state[O_SLOW], state[O_STRENGTHS], state[O_TRENDS]
    last_of_chain, last_close, bars = state[O_LAST_OF_CHAIN], state[O_LAST_CLOSE], state[O_BARS]
    high, low, close, last = bar[HIGH], bar[LOW], bar[CLOSE], last_close[0]
    last_close[0] = close
    bars[0] += 1.0
    push(highs, high)
    push(lows, low)

    line, signal = macd(state[O_MACD], close)
    out[0] = signal / close
    out[1] = (line - signal) / close
    long = ema(state[O_EMA_26], close, 26.0)  # each average from its own first bars, unlike MACD's
    out[2] = 100.0 * ((ema(state[O_EMA_12], close, 12.0) - long) / long)

    chain, before = state[O_CHAIN], last_of_chain[0]
    _chain(chain, close, 15.0, 3)
    out[3] = 100.0 * (chain[8] / before - 1.0) if before > 0.0 else np.nan
    last_of_chain[0] = chain[8] if chain[8] == chain[8] else 0.0

    if bars[0] > 1.0:
        floor = min(low, last)
        push(pressures, close - floor)
        push(reaches, max(high, last) - floor)
    short = _total(_tail(pressures, 7)) / _total(_tail(reaches, 7))
    middle = _total(_tail(pressures, 14)) / _total(_tail(reaches, 14))
    out[4] = 100.0 * (4.0 * short + 2.0 * middle + _total(pressures) / _total(reaches)) / 7.0

    top, bottom = highest(_tail(highs, 14)), lowest(_tail(lows, 14))
    push(fast, 100.0 * ((close - bottom) / (top - bottom)))
    out[5] = mean(fast)
    push(slow, out[5])
    out[6] = mean(slow)

    push(strengths, rsi(state[O_RSI], close))
    weakest = lowest(strengths)
    out[7] = 100.0 * ((strengths[-1] - weakest) / (highest(strengths) - weakest))

    out[8] = (close - bar[OPEN]) / (high - low)
    out[9] = 100.0 * (25.0 - _since(highs, 1.0)) / 25.0
    out[10] = 100.0 * (25.0 - _since(lows, -1.0)) / 25.0

    moves = state[O_ADX]
    push(trends, adx(moves, high, low, close))
    if moves[0] > 14.0:
        plus, minus = moves[PLUS_DM], moves[MINUS_DM]
        out[11] = 100.0 * plus / moves[TRUE_RANGE]
        out[12] = 100.0 * minus / moves[TRUE_RANGE]
        out[13] = 100.0 * abs(plus - minus) / (plus + minus)
    else:
        out[11], out[12], out[13] = np.nan, np.nan, np.nan
    out[14] = (trends[-1] + trends[0]) / 2.0


@kernel
def bands(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write 23 bands, ranges, levels and measures of volume.

    arrays   float64: state (551,), bar (8,), book and context unread, out (23,)
    state    windows, NaN when fresh: closes 200, highs 50, lows 50, true ranges 14, up moves 14, down moves 14,
             ratios 25, squared drawdowns 14, volumes 20, signed volumes 20, placed volumes 20, traded values 20,
             inflows 14, outflows 14, middles 34; zeros when fresh: EMA 20 (2), EMA 13 (2), ATR 3, chain of two (6),
             chains of 25 then 13 of change (4) and of its size (4), Heikin-Ashi open and close 2, bars 1,
             last high, low, close, typical price 4
    """
    closes, highs, lows = state[B_CLOSES], state[B_HIGHS], state[B_LOWS]
    reaches, ups, downs = state[B_RANGES], state[B_UPS], state[B_DOWNS]
    ratios, falls = state[B_RATIOS], state[B_FALLS]
    volumes, signed, placed, values = state[B_VOLUMES], state[B_SIGNED], state[B_PLACED], state[B_VALUES]
    inflows, outflows, middles = state[B_INFLOWS], state[B_OUTFLOWS], state[B_MIDDLES]
    heikin, before = state[B_HEIKIN_ASHI], state[B_LAST]
    opened, high, low, close, volume = bar[OPEN], bar[HIGH], bar[LOW], bar[CLOSE], bar[VOLUME]
    typical = (high + low + close) / 3.0
    bars, last_high, last_low, last, last_typical = before[0], before[1], before[2], before[3], before[4]
    before[0] += 1.0
    before[1], before[2], before[3], before[4] = high, low, close, typical
    push(closes, close)
    push(highs, high)
    push(lows, low)
    push(middles, (high + low) / 2.0)
    push(volumes, volume)
    push(values, typical * volume)
    push(placed, volume * (((close - low) - (high - close)) / (high - low)) if high > low else volume * 0.0)
    if bars > 0.0:
        push(reaches, true_range(high, low, last))
        push(ups, abs(high - last_low))
        push(downs, abs(low - last_high))
        push(signed, volume * np.sign(close - last))
        moved, noise = typical - last_typical, 1e-12 * typical  # a sum of three prices rounds: that is no change
        push(inflows, typical * volume if moved > noise else volume * 0.0)
        push(outflows, typical * volume if moved < -noise else volume * 0.0)

    twenty = _tail(closes, 20)
    centre, sd = mean(twenty), deviation(twenty, 0)
    out[0] = 4.0 * sd / centre
    out[1] = reaches[-1] / close
    into = _total(inflows)
    out[2] = 100.0 * (into / (into + _total(outflows)))
    traded = _total(volumes)
    out[3] = _total(signed) / traded
    out[4] = _total(placed) / traded
    out[5] = math.log(close / (_total(values) / traded))

    reach = atr(state[B_ATR], high, low, close)
    out[6] = (close - ema(state[B_EMA_20], close, 20.0)) / (2.0 * reach)
    out[7] = 1.0 if 2.0 * sd < 1.5 * reach else 0.0
    if sd != sd or reach != reach:
        out[7] = np.nan
    bottom = lowest(_tail(lows, 20))
    out[8] = (close - bottom) / (highest(_tail(highs, 20)) - bottom)

    body = (opened + high + low + close) / 4.0
    start = (opened + close) / 2.0 if bars == 0.0 else (heikin[0] + heikin[1]) / 2.0
    heikin[0], heikin[1] = start, body
    out[9] = (body - start) / close
    out[10] = (close - lowest(lows)) / reach
    out[11] = (highest(highs) - close) / reach
    signs = np.sign(close - centre) + np.sign(close - mean(_tail(closes, 50))) + np.sign(close - mean(closes))
    out[12] = signs / 3.0

    ranged = _total(reaches)
    out[13] = 100.0 * math.log10(ranged / (highest(_tail(highs, 14)) - lowest(_tail(lows, 14)))) / math.log10(14.0)
    out[14] = _total(ups) / ranged
    out[15] = _total(downs) / ranged
    thirteen = ema(state[B_EMA_13], close, 13.0)
    out[16] = (high - thirteen) / reach
    out[17] = (low - thirteen) / reach
    out[18] = (mean(_tail(middles, 5)) - mean(middles)) / close

    nine = state[B_NINE]
    _chain(nine, high - low, 9.0, 2)
    push(ratios, nine[2] / nine[5] if nine[5] > 0.0 else np.nan)
    out[19] = _total(ratios)
    peak = highest(_tail(closes, 14))
    push(falls, (100.0 * (close / peak - 1.0)) ** 2)
    out[20] = math.sqrt(mean(falls))

    change, magnitude = state[B_CHANGE], state[B_MAGNITUDE]
    if bars > 0.0:
        step, size = ema(change[0:2], close - last, 25.0), ema(magnitude[0:2], abs(close - last), 25.0)
        if step == step:
            out[21] = 100.0 * (ema(change[2:4], step, 13.0) / ema(magnitude[2:4], size, 13.0))
        else:
            out[21] = np.nan
    else:
        out[21] = np.nan
    out[22] = (twenty[8] - centre) / close


INF = math.inf
APPEL, WILDER, TALIB = "Appel 1979; TA-Lib", "Wilder 1978; TA-Lib", "TA-Lib"


def _distance(name: str, of: str, warmup: int, source: str) -> Column:
    """Return the column of the log distance of the close from `of`."""
    return Column(name, "traditional", "log", -INF, INF, warmup, f"log(close / {of})", source)


def _points(name: str, warmup: int, formula: str, source: str, low: float = 0.0, needs: str | None = None) -> Column:
    """Return a column in points, at most 100."""
    return Column(name, "traditional", "points", low, 100.0, warmup, formula, source, needs=needs)


AVERAGES = FeatureGroup(
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
    AVERAGES_FRESH,
)  # fmt: skip

OSCILLATORS = FeatureGroup(
    "oscillators",
    oscillators,
    (
        Column("macd_signal_9", "traditional", "fraction of price", -INF, INF, 34, "EMA 9 of MACD / close", APPEL),
        Column(
            "macd_histogram", "traditional", "fraction of price", -INF, INF, 34, "(MACD - signal) / close", APPEL,
            copy_of="macd_12_26 and macd_signal_9",
        ),
        Column("ppo_12_26", "traditional", "per cent", -INF, INF, 26, "100 (EMA 12 - EMA 26) / EMA 26", TALIB),
        Column(
            "trix_15", "traditional", "per cent", -INF, INF, 44,
            "100 (x / x one bar ago - 1), x = EMA 15 three times over", "Hutson 1983; TA-Lib",
        ),
        _points("ultimate_7_14_28", 29, "buying pressure over range of 7, 14, 28 bars, weighted 4 : 2 : 1",
                "Williams 1985; TA-Lib"),
        _points("stoch_slow_k_14", 16, "mean of three fast %K 14", "Lane 1984; TA-Lib"),
        _points("stoch_d_14", 18, "mean of three slow %K 14", "Lane 1984; TA-Lib"),
        _points("stoch_rsi_14", 28, "100 (RSI - least of 14) / (greatest - least)", "Chande, Kroll 1994; TA-Lib"),
        Column("balance_of_power", "traditional", "fraction of range", -1.0, 1.0, 1, "(close - open) / (high - low)",
               "Livshin 2001; TA-Lib"),
        _points("aroon_up_25", 26, "100 (25 - bars since the highest of 26 highs) / 25", "Chande 1995; TA-Lib"),
        _points("aroon_down_25", 26, "100 (25 - bars since the lowest of 26 lows) / 25", "Chande 1995; TA-Lib"),
        _points("plus_di_14", 15, "100 (+DM / TR), Wilder 14", WILDER),
        _points("minus_di_14", 15, "100 (-DM / TR), Wilder 14", WILDER),
        _points("dx_14", 15, "100 |+DM - -DM| / (+DM + -DM), Wilder 14", WILDER),
        _points("adxr_14", 41, "mean of ADX 14 now and 13 bars ago", WILDER),
    ),
    OSCILLATORS_FRESH,
)  # fmt: skip

BANDS = FeatureGroup(
    "bands",
    bands,
    (
        Column("bollinger_width_20", "traditional", "fraction of mean", 0.0, INF, 20, "4 sd 20 / mean 20",
               "Bollinger 2001; TA-Lib"),
        Column("true_range", "traditional", "fraction of price", 0.0, INF, 2,
               "max(high - low, |high - last close|, |low - last close|) / close", WILDER),
        _points("mfi_14", 15, "100 of typical price × volume on rises / on rises and falls, 14 bars",
                "Quong, Soudack 1989; TA-Lib", needs="volume"),
        Column("obv_20", "traditional", "fraction of volume", -1.0, 1.0, 21,
               "sum of volume × sign of the close's change / sum of volume, 20 bars", "Granville 1963, over a window",
               needs="volume"),
        Column("cmf_20", "traditional", "fraction of volume", -1.0, 1.0, 20,
               "sum of volume × ((close - low) - (high - close)) / (high - low) / sum of volume, 20 bars",
               "Chaikin 1982; a bar without range counts 0", needs="volume"),
        Column("close_to_vwap_20", "traditional", "log", -INF, INF, 20,
               "log(close / volume-weighted typical price of 20 bars)", "ruling: a window, no session", needs="volume"),
        Column("keltner_20", "traditional", "half band", -INF, INF, 20, "(close - EMA 20) / (2 ATR 14)",
               "Keltner 1960 as by Raschke"),
        Column("squeeze_20", "traditional", "yes or no", 0.0, 1.0, 20,
               "2 sd 20 < 1.5 ATR 14: Bollinger inside Keltner", "Carter 2005"),
        Column("donchian_20", "traditional", "fraction of band", 0.0, 1.0, 20,
               "(close - lowest low 20) / (highest high 20 - lowest low 20)", "Donchian 1960"),
        Column("heikin_ashi_body", "traditional", "fraction of price", -INF, INF, 1,
               "(mean of open, high, low, close - middle of the body before) / close", "Valcu 2004"),
        Column("support_50", "traditional", "ATR", 0.0, INF, 50, "(close - lowest low 50) / ATR 14", "ruling"),
        Column("resistance_50", "traditional", "ATR", 0.0, INF, 50, "(highest high 50 - close) / ATR 14", "ruling"),
        Column("trend_agreement", "traditional", "mean sign", -1.0, 1.0, 200,
               "mean of the signs of close - mean of 20, 50 and 200 closes", "ruling"),
        Column("choppiness_14", "traditional", "points", -INF, INF, 15,
               "100 log10(sum of true ranges 14 / (highest - lowest of 14)) / log10 14", "Dreiss 1993"),
        Column("vortex_plus_14", "traditional", "fraction of range", 0.0, INF, 15,
               "sum of |high - last low| / sum of true ranges, 14 bars", "Botes, Siepman 2010"),
        Column("vortex_minus_14", "traditional", "fraction of range", 0.0, INF, 15,
               "sum of |low - last high| / sum of true ranges, 14 bars", "Botes, Siepman 2010"),
        Column("bull_power_13", "traditional", "ATR", -INF, INF, 15, "(high - EMA 13) / ATR 14", "Elder 1993"),
        Column("bear_power_13", "traditional", "ATR", -INF, INF, 15, "(low - EMA 13) / ATR 14", "Elder 1993"),
        Column("awesome_5_34", "traditional", "fraction of price", -INF, INF, 34,
               "(mean of 5 - mean of 34 middles) / close", "Williams 1998"),
        Column("mass_25", "traditional", "sum of ratios", 0.0, INF, 41,
               "sum over 25 bars of EMA 9 of high - low / EMA 9 of it", "Dorsey 1992"),
        Column("ulcer_14", "traditional", "per cent", 0.0, INF, 27,
               "root mean square over 14 bars of 100 (close / highest close of 14 - 1)", "Martin 1987"),
        _points("tsi_25_13", 38, "100 × EMA 13 of EMA 25 of the close's change / the same of its size", "Blau 1991",
                low=-100.0),
        Column("dpo_20", "traditional", "fraction of price", -INF, INF, 20,
               "(close 11 bars ago - mean 20) / close", "detrended price oscillator, causal"),
    ),
    BANDS_FRESH,
)  # fmt: skip
