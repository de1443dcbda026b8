"""The traditional indicator set (F3), next to the core's nine: oscillators, bands, volume. Averages: `averages.py`.

No decision reads it (docs/results/columns.md). Conventions and seeds are TA-Lib's where TA-Lib has the
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
    CHAIN_STATE,
    EMA_STATE,
    MACD_STATE,
    MINUS_DM,
    PLUS_DM,
    RSI_STATE,
    TRUE_RANGE,
    adx,
    atr,
    chain,
    deviation,
    ema,
    highest,
    lowest,
    macd,
    mean,
    push,
    rsi,
    tail,
    total,
    true_range,
)
from pipelines.layout import lay_out, window, zeros

LONG = 200  # closes in the window: the longest average

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
def oscillators(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write fifteen oscillators.

    arrays   float64: state (177,), bar (9,), book and context unread, out (15,)
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

    triple, before = state[O_CHAIN], last_of_chain[0]
    chain(triple, close, 15.0, 3)
    newest = triple[-1]
    out[3] = 100.0 * (newest / before - 1.0) if before > 0.0 else np.nan
    last_of_chain[0] = newest if newest == newest else 0.0

    if bars[0] > 1.0:
        floor = min(low, last)
        push(pressures, close - floor)
        push(reaches, max(high, last) - floor)
    short = total(tail(pressures, 7)) / total(tail(reaches, 7))
    middle = total(tail(pressures, 14)) / total(tail(reaches, 14))
    out[4] = 100.0 * (4.0 * short + 2.0 * middle + total(pressures) / total(reaches)) / 7.0

    top, bottom = highest(tail(highs, 14)), lowest(tail(lows, 14))
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

    arrays   float64: state (551,), bar (9,), book and context unread, out (23,)
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

    twenty = tail(closes, 20)
    centre, sd = mean(twenty), deviation(twenty, 0)
    out[0] = 4.0 * sd / centre
    out[1] = reaches[-1] / close
    into = total(inflows)
    out[2] = 100.0 * (into / (into + total(outflows)))
    traded = total(volumes)
    out[3] = total(signed) / traded
    out[4] = total(placed) / traded
    out[5] = math.log(close / (total(values) / traded))

    reach = atr(state[B_ATR], high, low, close)
    out[6] = (close - ema(state[B_EMA_20], close, 20.0)) / (2.0 * reach)
    out[7] = 1.0 if 2.0 * sd < 1.5 * reach else 0.0
    if sd != sd or reach != reach:
        out[7] = np.nan
    bottom = lowest(tail(lows, 20))
    out[8] = (close - bottom) / (highest(tail(highs, 20)) - bottom)

    body = (opened + high + low + close) / 4.0
    start = (opened + close) / 2.0 if bars == 0.0 else (heikin[0] + heikin[1]) / 2.0
    heikin[0], heikin[1] = start, body
    out[9] = (body - start) / close
    out[10] = (close - lowest(lows)) / reach
    out[11] = (highest(highs) - close) / reach
    signs = np.sign(close - centre) + np.sign(close - mean(tail(closes, 50))) + np.sign(close - mean(closes))
    out[12] = signs / 3.0

    ranged = total(reaches)
    out[13] = 100.0 * math.log10(ranged / (highest(tail(highs, 14)) - lowest(tail(lows, 14)))) / math.log10(14.0)
    out[14] = total(ups) / ranged
    out[15] = total(downs) / ranged
    thirteen = ema(state[B_EMA_13], close, 13.0)
    out[16] = (high - thirteen) / reach
    out[17] = (low - thirteen) / reach
    out[18] = (mean(tail(middles, 5)) - mean(middles)) / close

    nine = state[B_NINE]
    chain(nine, high - low, 9.0, 2)
    push(ratios, nine[2] / nine[5] if nine[5] > 0.0 else np.nan)
    out[19] = total(ratios)
    peak = highest(tail(closes, 14))
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


def _points(name: str, warmup: int, formula: str, source: str, low: float = 0.0, needs: str | None = None) -> Column:
    """Return a column in points, at most 100."""
    return Column(name, "traditional", "points", low, 100.0, warmup, formula, source, needs=needs)


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
