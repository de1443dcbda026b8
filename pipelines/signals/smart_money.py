"""S10 smart money: how much of a bar looks like the work of few large hands, and which way they worked.

score = 0.4 large trades + 0.3 icebergs + 0.2 spoofing + 0.1 timing, each 0..1, so it lies in 0..1:
large     share of volume in trades beyond the trailing 99 % quantile of sizes
icebergs  share of volume filled at levels that were refilled after fills
spoofing  count of large orders withdrawn unfilled on the side opposite to where the large hands traded: a
          seller may show a bid that is not meant to trade, so a false bid serves a seller and a false ask a buyer.
          One on the same side does not count
timing    1 in the London or New York killzone, else 0
The first three count by their mid-rank among the last 60 bars (0 where there was none), so usual amounts
carry no weight. Trades weigh most, because they are done; displayed orders and the clock are circumstance.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import CLOSE, HIGH, LOW, VOLUME, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, mean, mid_rank, push
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, SIGNAL_PARTS, STRENGTH, signal_columns
from pipelines.signals.killzones import in_killzone

BARS = 60
DRIVEN = 0.7  # a score above it is smart-money driven
W_LARGE, W_ICEBERG, W_SPOOF, W_TIMING = 0.4, 0.3, 0.2, 0.1
ZONE = 0.25  # ATR 14 on each side of the mean price of their trades
TARGET = 1.5  # ATR 14 from the zone's edge, where no wall stands beyond it
LARGE_BUY, LARGE_SELL = CONTEXT_INDEX["large_buy"], CONTEXT_INDEX["large_sell"]
ICEBERG_BID, ICEBERG_ASK = CONTEXT_INDEX["iceberg_bid"], CONTEXT_INDEX["iceberg_ask"]
SPOOF_BID, SPOOF_ASK = CONTEXT_INDEX["spoof_bid"], CONTEXT_INDEX["spoof_ask"]
PRICE, WALL_BID, WALL_ASK = CONTEXT_INDEX["smart_price"], CONTEXT_INDEX["wall_bid"], CONTEXT_INDEX["wall_ask"]
(ATR, LARGES, ICEBERGS, SPOOFS), FRESH = lay_out(
    atr=zeros(ATR_STATE), larges=window(BARS), icebergs=window(BARS), spoofs=window(BARS)
)
MORE = ("smart_money.score", "smart_money.target")
SCORE_OUT, TARGET_OUT = range(len(SIGNAL_PARTS), len(SIGNAL_PARTS) + len(MORE))


@kernel
def _rank_newest(window: Floats, value: float) -> float:
    """Push `value` into window (60,) float64; return its mid-rank, 0 where it is 0; NaN unless the window is full."""
    push(window, value)
    whole = mean(window)
    if whole != whole:
        return np.nan
    return mid_rank(window, value) if value != 0.0 else 0.0


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write one signal from the last 60 bars, the score, and the target of a move from the zone.

    arrays   float64: state (183,), bar (9,), book unread, context (CONTEXT_WIDTH,), out (6,)
    reads    bar open_time, high, low, close, volume; context large_*, iceberg_* (base asset), spoof_* (counts),
             smart_price, wall_bid, wall_ask (quote currency)
    state    ATR 3; windows of 60, NaN when fresh: share in large trades, share in icebergs, spoofs that serve
    """
    bought, sold = context[LARGE_BUY] + context[ICEBERG_BID], context[LARGE_SELL] + context[ICEBERG_ASK]
    side, volume = np.sign(bought - sold), bar[VOLUME]
    large, iceberg = context[LARGE_BUY] + context[LARGE_SELL], context[ICEBERG_BID] + context[ICEBERG_ASK]
    spoofs = context[SPOOF_ASK] + 0.0 * context[SPOOF_BID]  # missing if either is
    if side < 0.0:
        spoofs = context[SPOOF_BID] + 0.0 * context[SPOOF_ASK]
    elif side == 0.0:
        spoofs *= 0.0
    if volume != 0.0:  # a bar without volume has no share to give
        large, iceberg = large / volume, iceberg / volume

    reach = atr(state[ATR], bar[HIGH], bar[LOW], bar[CLOSE])
    timed = in_killzone(bar) == 1.0
    score = W_LARGE * _rank_newest(state[LARGES], large) + W_ICEBERG * _rank_newest(state[ICEBERGS], iceberg)
    score += W_SPOOF * _rank_newest(state[SPOOFS], spoofs) + (W_TIMING if timed else 0.0)

    out[:] = np.nan
    if score == score and side == side:
        out[DIRECTION] = 0.0
        out[SCORE_OUT] = score
        if score > DRIVEN and side != 0.0:
            bottom, top = context[PRICE] - ZONE * reach, context[PRICE] + ZONE * reach
            out[DIRECTION] = side
            out[STRENGTH] = score * abs(bought - sold) / (bought + sold)
            out[LOW_LEVEL], out[HIGH_LEVEL] = bottom, top
            if side > 0.0:
                out[TARGET_OUT] = context[WALL_ASK] if context[WALL_ASK] > top else top + TARGET * reach
            else:
                out[TARGET_OUT] = context[WALL_BID] if context[WALL_BID] < bottom else bottom - TARGET * reach


NEEDS = " and ".join(
    ["volume"]
    + [
        f"context:{name}"
        for name in ("large_buy", "large_sell", "iceberg_bid", "iceberg_ask", "spoof_bid", "spoof_ask")
    ]
)
SOURCE = "ruling S10"
GROUP = FeatureGroup(
    "smart_money",
    step,
    (
        *signal_columns(
            "smart_money", "fpdom", BARS, "score times one-sidedness",
            "where the score is above 0.7: sign of large buys + bid icebergs - large sells - ask icebergs; score times "
            "|that| / their sum", SOURCE, high=1.0, needs=NEEDS,
            levels="entry zone: mean price of their trades, 0.25 ATR 14 each side; missing where that price is",
        ),
        Column(
            "smart_money.score", "fpdom", "score", 0.0, 1.0, BARS,
            "0.4 large + 0.3 icebergs + 0.2 spoofing for the other side's benefit + 0.1 killzone; the first three by "
            "mid-rank of 60 bars", SOURCE, needs=NEEDS,
        ),
        Column(
            "smart_money.target", "fpdom", "price", 0.0, math.inf, BARS,
            "wall beyond the entry zone on the side of the signal, else 1.5 ATR 14 from the zone's edge", SOURCE,
            needs=f"{NEEDS} and context:smart_price", sparse=True,
        ),
    ),
    FRESH,
)  # fmt: skip
