"""The traditional indicator set (F3), beside the core's nine: averages, oscillators, bands, volume. No model family
reads it; rules, charts and new families do. Conventions and seeds are TA-Lib's where TA-Lib has the indicator; where it
answers nought for something undefined, the value here is missing. Prices are told relative to the close."""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, VOLUME
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import adx, atr, deviation, ema, highest, lowest, macd, mean, push, rsi, true_range

LONG = 200  # closes kept: the longest average


@kernel
def _tail(window, n):  # type: ignore[no-untyped-def]
    """The newest n values of a window."""
    return window[window.shape[0] - n :]


@kernel
def _total(window):  # type: ignore[no-untyped-def]
    total = 0.0
    for value in window:
        total += value
    return total


@kernel
def _chain(state, value, period, length):  # type: ignore[no-untyped-def]
    """`length` exponential averages, each of the one before; state (3·length,): two of `ema`, then the last value."""
    for i in range(length):
        if value == value:
            value = ema(state[3 * i : 3 * i + 2], value, period)
        state[3 * i + 2] = value


@kernel
def _line(window):  # type: ignore[no-untyped-def]
    """(value at the newest point, slope a bar) of the least-squares line through a window."""
    n = window.shape[0]
    centre, middle = (n - 1) / 2.0, mean(window)
    over, under = 0.0, 0.0
    for i in range(n):
        over += (i - centre) * (window[i] - middle)
        under += (i - centre) * (i - centre)
    slope = over / under
    return middle + slope * (n - 1 - centre), slope


@kernel
def _kama(state, closes):  # type: ignore[no-untyped-def]
    """Kaufman's average over ten bars; state (1,): the average before, NaN when fresh. closes: the newest eleven."""
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
    return state[0]


@kernel
def _parabolic(state, high, low):  # type: ignore[no-untyped-def]
    """Parabolic stop, .02 to .2; state (7,), zeros when fresh: bars, side, stop, extreme, rate, high, low."""
    state[0] += 1.0
    if state[0] == 1.0:
        state[5], state[6] = high, low
        return np.nan
    if state[0] == 2.0:
        fell = state[6] - low > 0.0 and state[6] - low > high - state[5]
        state[1] = -1.0 if fell else 1.0
        state[2] = state[5] if fell else state[6]
        state[3] = low if fell else high
        state[4] = 0.02
        state[5], state[6] = high, low
    side, stop = state[1], state[2]
    inner = max(state[5], high) if side < 0.0 else min(state[6], low)  # the stop stays outside the last two bars
    outer = min(state[6], low) if side < 0.0 else max(state[5], high)
    if (side > 0.0 and low <= stop) or (side < 0.0 and high >= stop):
        stop = max(state[3], outer) if side > 0.0 else min(state[3], outer)
        told = stop
        state[1], state[4] = -side, 0.02
        state[3] = low if side > 0.0 else high
        stop += state[4] * (state[3] - stop)
        state[2] = max(stop, outer) if side > 0.0 else min(stop, outer)
    else:
        told = stop
        further = high > state[3] if side > 0.0 else low < state[3]
        if further:
            state[3] = high if side > 0.0 else low
            state[4] = min(state[4] + 0.02, 0.2)
        stop += state[4] * (state[3] - stop)
        state[2] = min(stop, inner) if side > 0.0 else max(stop, inner)
    state[5], state[6] = high, low
    return told


@kernel
def _since(window, sign):  # type: ignore[no-untyped-def]
    """Bars since the greatest (sign 1) or least (sign -1) value of a window, the later of equals; NaN in warm-up."""
    if window[0] != window[0]:
        return np.nan
    best, at = window[0], 0
    for i in range(window.shape[0]):
        if sign * window[i] >= sign * best:
            best, at = window[i], i
    return window.shape[0] - 1.0 - at


@kernel
def averages(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Fifteen averages and levels, as the log distance of the close from each (the slope: a fraction of price a bar).

    state    windows, NaN when fresh: closes 200, highs 14, lows 14, average of Kaufman 1;
             zeros when fresh: EMA 12 (2), EMA 26 (2), chain of three of 20 (9), chain of six of 5 (18), parabolic 7
    """
    closes, highs, lows = state[0:LONG], state[200:214], state[214:228]
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    push(closes, close)
    push(highs, high)
    push(lows, low)

    out[0] = math.log(close / mean(_tail(closes, 50)))
    out[1] = math.log(close / mean(closes))
    out[2] = math.log(close / ema(state[229:231], close, 12.0))
    out[3] = math.log(close / ema(state[231:233], close, 26.0))

    twenty = _tail(closes, 20)
    rising, triangle = 0.0, 0.0
    for i in range(20):
        rising += (i + 1.0) * twenty[i]
        triangle += min(i + 1.0, 20.0 - i) * twenty[i]
    out[4] = math.log(close / (rising / 210.0))
    out[5] = math.log(close / (triangle / 110.0))

    three = state[233:242]
    _chain(three, close, 20.0, 3)
    out[6] = math.log(close / (2.0 * three[2] - three[5]))
    out[7] = math.log(close / (3.0 * three[2] - 3.0 * three[5] + three[8]))

    six, v = state[242:260], 0.7
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

    out[9] = math.log(close / _kama(state[228:229], _tail(closes, 11)))
    value, slope = _line(_tail(closes, 14))
    out[10] = math.log(close / value)
    out[11] = slope / close
    fourteen = _tail(closes, 14)
    out[12] = math.log(close / ((highest(fourteen) + lowest(fourteen)) / 2.0))
    out[13] = math.log(close / ((highest(highs) + lowest(lows)) / 2.0))
    out[14] = math.log(close / _parabolic(state[260:267], high, low))


@kernel
def oscillators(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Fifteen oscillators.

    state    windows, NaN when fresh: highs 26, lows 26, true ranges 28, buying pressures 28, fast %K 3, slow %K 3,
             RSI 14, ADX 14; zeros when fresh: MACD 7, EMA 26 (2), chain of three of 15 (9), last of the chain 1, RSI 4,
             ADX 8, last close 1, bars 1, EMA 12 (2)
    """
    highs, lows, reaches, pressures = state[0:26], state[26:52], state[52:80], state[80:108]
    fast, slow, strengths, trends = state[108:111], state[111:114], state[114:128], state[128:142]
    high, low, close, last = bar[HIGH], bar[LOW], bar[CLOSE], state[174]
    state[174] = close
    state[175] += 1.0
    push(highs, high)
    push(lows, low)

    line, signal = macd(state[142:149], close)
    out[0] = signal / close
    out[1] = (line - signal) / close
    long = ema(state[149:151], close, 26.0)  # each average from its own first bars, unlike MACD's
    out[2] = 100.0 * ((ema(state[176:178], close, 12.0) - long) / long)

    chain, before = state[151:160], state[160]
    _chain(chain, close, 15.0, 3)
    out[3] = 100.0 * (chain[8] / before - 1.0) if before > 0.0 else np.nan
    state[160] = chain[8] if chain[8] == chain[8] else 0.0

    if state[175] > 1.0:
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

    push(strengths, rsi(state[161:165], close))
    weakest = lowest(strengths)
    out[7] = 100.0 * ((strengths[13] - weakest) / (highest(strengths) - weakest))

    out[8] = (close - bar[OPEN]) / (high - low)
    out[9] = 100.0 * (25.0 - _since(highs, 1.0)) / 25.0
    out[10] = 100.0 * (25.0 - _since(lows, -1.0)) / 25.0

    moves = state[165:173]
    push(trends, adx(moves, high, low, close))
    if moves[0] > 14.0:
        out[11] = 100.0 * moves[4] / moves[6]
        out[12] = 100.0 * moves[5] / moves[6]
        out[13] = 100.0 * abs(moves[4] - moves[5]) / (moves[4] + moves[5])
    else:
        out[11], out[12], out[13] = np.nan, np.nan, np.nan
    out[14] = (trends[13] + trends[0]) / 2.0


@kernel
def bands(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Bands, ranges, levels and volume: twenty-three.

    state    windows, NaN when fresh: closes 200, highs 50, lows 50, true ranges 14, up moves 14, down moves 14,
             ratios 25, squared drawdowns 14, volumes 20, signed volumes 20, placed volumes 20, traded values 20,
             inflows 14, outflows 14, middles 34; zeros when fresh: EMA 20 (2), EMA 13 (2), ATR 3, chain of two (6),
             chains of 25 then 13 of change (4) and of its size (4), Heikin-Ashi open and close 2, bars 1,
             last high, low, close, typical price 4
    """
    closes, highs, lows = state[0:200], state[200:250], state[250:300]
    reaches, ups, downs = state[300:314], state[314:328], state[328:342]
    ratios, falls = state[342:367], state[367:381]
    volumes, signed, placed, worth = state[381:401], state[401:421], state[421:441], state[441:461]
    inflows, outflows, middles = state[461:475], state[475:489], state[489:523]
    opened, high, low, close, volume = bar[OPEN], bar[HIGH], bar[LOW], bar[CLOSE], bar[VOLUME]
    typical = (high + low + close) / 3.0
    bars, last_high, last_low, last, last_typical = state[546], state[547], state[548], state[549], state[550]
    state[546] += 1.0
    state[547], state[548], state[549], state[550] = high, low, close, typical
    push(closes, close)
    push(highs, high)
    push(lows, low)
    push(middles, (high + low) / 2.0)
    push(volumes, volume)
    push(worth, typical * volume)
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
    out[1] = reaches[13] / close
    into = _total(inflows)
    out[2] = 100.0 * (into / (into + _total(outflows)))
    traded = _total(volumes)
    out[3] = _total(signed) / traded
    out[4] = _total(placed) / traded
    out[5] = math.log(close / (_total(worth) / traded))

    reach = atr(state[527:530], high, low, close)
    out[6] = (close - ema(state[523:525], close, 20.0)) / (2.0 * reach)
    out[7] = 1.0 if 2.0 * sd < 1.5 * reach else 0.0
    if sd != sd or reach != reach:
        out[7] = np.nan
    bottom = lowest(_tail(lows, 20))
    out[8] = (close - bottom) / (highest(_tail(highs, 20)) - bottom)

    body = (opened + high + low + close) / 4.0
    start = (opened + close) / 2.0 if bars == 0.0 else (state[544] + state[545]) / 2.0
    state[544], state[545] = start, body
    out[9] = (body - start) / close
    out[10] = (close - lowest(lows)) / reach
    out[11] = (highest(highs) - close) / reach
    signs = np.sign(close - centre) + np.sign(close - mean(_tail(closes, 50))) + np.sign(close - mean(closes))
    out[12] = signs / 3.0

    ranged = _total(reaches)
    out[13] = 100.0 * math.log10(ranged / (highest(_tail(highs, 14)) - lowest(_tail(lows, 14)))) / math.log10(14.0)
    out[14] = _total(ups) / ranged
    out[15] = _total(downs) / ranged
    thirteen = ema(state[525:527], close, 13.0)
    out[16] = (high - thirteen) / reach
    out[17] = (low - thirteen) / reach
    out[18] = (mean(_tail(middles, 5)) - mean(middles)) / close

    nine = state[530:536]
    _chain(nine, high - low, 9.0, 2)
    push(ratios, nine[2] / nine[5] if nine[5] > 0.0 else np.nan)
    out[19] = _total(ratios)
    peak = highest(_tail(closes, 14))
    push(falls, (100.0 * (close / peak - 1.0)) ** 2)
    out[20] = math.sqrt(mean(falls))

    if bars > 0.0:
        step, size = ema(state[536:538], close - last, 25.0), ema(state[540:542], abs(close - last), 25.0)
        if step == step:
            out[21] = 100.0 * (ema(state[538:540], step, 13.0) / ema(state[542:544], size, 13.0))
        else:
            out[21] = np.nan
    else:
        out[21] = np.nan
    out[22] = (twenty[8] - centre) / close


INF = math.inf
APPEL, WILDER, TALIB = "Appel 1979; TA-Lib", "Wilder 1978; TA-Lib", "TA-Lib"


def _distance(name: str, of: str, warmup: int, source: str) -> Column:
    return Column(name, "traditional", "log", -INF, INF, warmup, f"log(close / {of})", source)


def _points(name: str, warmup: int, formula: str, source: str, low: float = 0.0, needs: str | None = None) -> Column:
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
    np.concatenate([np.full(229, np.nan), np.zeros(38)]),
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
    np.concatenate([np.full(142, np.nan), np.zeros(36)]),
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
               "Chaikin 1982; a bar without range counts nought", needs="volume"),
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
    np.concatenate([np.full(523, np.nan), np.zeros(28)]),
)  # fmt: skip
