"""S16 technical strategies: the rules any model must beat after cost. Five stances, and their consensus as an event."""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, TAKER_BUY, VOLUME, Floats
from pipelines.features.fold import FeatureGroup
from pipelines.features.kernels import ADX_STATE, MACD_STATE, RSI_STATE, adx, macd, mean, push, rsi
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.columns import DIRECTION, SIGNAL_PARTS, STRENGTH, signal_columns

OVERSOLD, OVERBOUGHT = 30.0, 70.0  # RSI points, Wilder's
TREND_ADX = 25.0  # Wilder's line between trend and none
FLOW_BARS = 5
MIN_FLOW = 0.1  # of volume: a smaller imbalance is no stance
MAJORITY = 3.0  # votes by which one side must lead for a consensus
LONG, SHORT = 50, 20  # closes of the two means
(CLOSES, VOLUMES, TAKERS, RSI, MACD, ADX, LAST_SIDE), FRESH = lay_out(
    closes=window(LONG), volumes=window(FLOW_BARS), takers=window(FLOW_BARS), rsi=zeros(RSI_STATE),
    macd=zeros(MACD_STATE), adx=zeros(ADX_STATE), last_side=window(1),
)  # fmt: skip
STANCES = ("ma_cross", "rsi", "macd", "regime_ma", "market_imbalance", "consensus")
MA_CROSS, RSI_OUT, MACD_OUT, REGIME_MA, FLOW_OUT, CONSENSUS = (len(SIGNAL_PARTS) * k for k in range(len(STANCES)))


@kernel
def _write_stance(out: Floats, value: float, strength: float) -> None:
    """Write the sign of `value` (missing stays missing) and, if it has one, its strength into out (4,) float64."""
    out[DIRECTION] = np.sign(value)
    if abs(value) > 0.0:
        out[STRENGTH] = strength


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write six signals: five stances on every bar, and the consensus on the bar on which a majority forms.

    arrays   float64: state (80,), bar (9,), book and context unread, out (24,)
    reads    bar high, low, close, volume, taker_buy_volume
    state    windows, NaN when fresh: closes 50, volumes 5, taker volumes 5; recursions: RSI 4, MACD 7, ADX 8;
             side of the consensus at the last bar 1 (NaN when fresh: no majority can begin yet)
    """
    closes, volumes, takers, last_side = state[CLOSES], state[VOLUMES], state[TAKERS], state[LAST_SIDE]
    close = bar[CLOSE]
    push(closes, close)
    push(volumes, bar[VOLUME])
    push(takers, bar[TAKER_BUY])
    out[:] = np.nan

    lead = (mean(closes[LONG - SHORT :]) - mean(closes)) / close
    _write_stance(out[MA_CROSS:], lead, abs(lead))

    strength = rsi(state[RSI], close)
    beyond = strength - strength + (strength < OVERSOLD) - (strength > OVERBOUGHT)
    _write_stance(out[RSI_OUT:], beyond, abs(strength - 50.0))

    line, signal = macd(state[MACD], close)
    _write_stance(out[MACD_OUT:], line - signal, abs(line - signal) / close)

    trend = adx(state[ADX], bar[HIGH], bar[LOW], close)
    stance = lead if trend >= TREND_ADX else (lead - lead) + (trend - trend)
    _write_stance(out[REGIME_MA:], stance, abs(stance))

    flow = 2.0 * mean(takers) / mean(volumes) - 1.0
    _write_stance(out[FLOW_OUT:], flow if abs(flow) >= MIN_FLOW else flow - flow, abs(flow))

    votes = out[MA_CROSS] + out[RSI_OUT] + out[MACD_OUT] + out[REGIME_MA]
    if out[FLOW_OUT] == out[FLOW_OUT]:
        votes += out[FLOW_OUT]
    if votes == votes:
        side = np.sign(votes) if abs(votes) >= MAJORITY else 0.0
        begins = side != 0.0 and side != last_side[0] and last_side[0] == last_side[0]
        out[CONSENSUS] = side if begins else 0.0
        if begins:
            out[CONSENSUS + STRENGTH] = abs(votes)
        last_side[0] = side


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
    FRESH,
)  # fmt: skip
