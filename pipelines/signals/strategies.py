"""S16 technical strategies: the rules any model must beat after cost. Five stances, and their consensus as an event."""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, TAKER_BUY, VOLUME
from pipelines.features.fold import FeatureGroup
from pipelines.features.kernels import ADX_STATE, MACD_STATE, RSI_STATE, adx, macd, mean, push, rsi
from pipelines.signals.columns import signal_columns

OVERSOLD, OVERBOUGHT = 30.0, 70.0  # RSI points, Wilder's
TREND_ADX = 25.0  # Wilder's line between trend and none
FLOW_BARS = 5
MIN_FLOW = 0.1  # of volume: a smaller imbalance is no stance
MAJORITY = 3.0  # votes by which one side must lead before the consensus speaks
RSI_AT = 50 + 2 * FLOW_BARS
MACD_AT = RSI_AT + RSI_STATE
ADX_AT = MACD_AT + MACD_STATE
LAST = ADX_AT + ADX_STATE


@kernel
def _say(out, value, strength):  # type: ignore[no-untyped-def]
    """Direction = sign of `value` (missing stays missing), and its strength when it has one."""
    out[0] = np.sign(value)
    if abs(value) > 0.0:
        out[1] = strength


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Six signals. The first five say where they stand on every bar; the consensus speaks when a majority forms anew.

    reads    bar high, low, close, volume, taker_buy_volume
    state    windows, NaN when fresh: closes 50, volumes 5, taker volumes 5; recursions: RSI 4, MACD 7, ADX 8;
             side the consensus was on at the last bar 1 (NaN when fresh: nothing can form anew yet)
    """
    closes, volumes, takers = state[0:50], state[50 : 50 + FLOW_BARS], state[50 + FLOW_BARS : RSI_AT]
    close = bar[CLOSE]
    push(closes, close)
    push(volumes, bar[VOLUME])
    push(takers, bar[TAKER_BUY])
    out[:] = np.nan

    lead = (mean(closes[30:50]) - mean(closes)) / close
    _say(out[0:4], lead, abs(lead))

    strength = rsi(state[RSI_AT:MACD_AT], close)
    beyond = strength - strength + (strength < OVERSOLD) - (strength > OVERBOUGHT)
    _say(out[4:8], beyond, abs(strength - 50.0))

    line, signal = macd(state[MACD_AT:ADX_AT], close)
    _say(out[8:12], line - signal, abs(line - signal) / close)

    trend = adx(state[ADX_AT:LAST], bar[HIGH], bar[LOW], close)
    held = lead if trend >= TREND_ADX else (lead - lead) + (trend - trend)
    _say(out[12:16], held, abs(held))

    flow = 2.0 * mean(takers) / mean(volumes) - 1.0
    _say(out[16:20], flow if abs(flow) >= MIN_FLOW else flow - flow, abs(flow))

    votes = out[0] + out[4] + out[8] + out[12]
    if out[16] == out[16]:
        votes += out[16]
    if votes == votes:
        side = np.sign(votes) if abs(votes) >= MAJORITY else 0.0
        anew = side != 0.0 and side != state[LAST] and state[LAST] == state[LAST]
        out[20] = side if anew else 0.0
        if anew:
            out[21] = abs(votes)
        state[LAST] = side


SOURCE = "ruling S16"
NONE = "none"
GROUP = FeatureGroup(
    "strategies",
    step,
    (
        *signal_columns(
            "ma_cross", "traditional", 50, "fraction of price", "side of mean 20 - mean 50 closes", SOURCE, levels=NONE
        ),
        *signal_columns(
            "rsi", "traditional", 15, "points from 50", "long under RSI 30, short over 70", SOURCE, high=50.0,
            levels=NONE,
        ),
        *signal_columns(
            "macd", "traditional", 34, "fraction of price", "side of MACD 12/26 - its signal 9", SOURCE, levels=NONE
        ),
        *signal_columns(
            "regime_ma", "traditional", 50, "fraction of price", "ma_cross where ADX 14 is at least 25", SOURCE,
            levels=NONE,
        ),
        *signal_columns(
            "market_imbalance", "traditional", FLOW_BARS, "fraction of volume",
            "side of (2 taker buys - volume) / volume over 5 bars, at least 0.1", SOURCE, high=1.0, needs="taker",
            levels=NONE,
        ),
        *signal_columns(
            "consensus", "traditional", 50, "votes", "the bar on which one side first leads by 3 of the five votes",
            SOURCE, high=5.0, levels=NONE,
        ),
    ),
    np.concatenate(
        [np.full(RSI_AT, math.nan), np.zeros(RSI_STATE + MACD_STATE + ADX_STATE), np.full(1, math.nan)]
    ),
)  # fmt: skip
