"""S9 heatmap of the book: 100 levels x 50 snapshots, which side of it is heavier, and where its walls stand.

The signal is the heavier side where the imbalance is large for this book. Persistent walls are its levels: the one
below is support, the one above resistance; a side may have none.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import CLOSE, HIGH, LOW, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, mean, mid_rank, push
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, SIGNAL_PARTS, STRENGTH, signal_columns

BARS = 60
HIGH_RANK = 0.8  # of |imbalance| among the last 60
IMBALANCE = CONTEXT_INDEX["heat_imbalance"]
CONCENTRATION, LIQUIDITY = CONTEXT_INDEX["heat_concentration"], CONTEXT_INDEX["heat_liquidity"]
WALL_BID, WALL_ASK = CONTEXT_INDEX["wall_bid"], CONTEXT_INDEX["wall_ask"]
(ATR, SIZES), FRESH = lay_out(atr=zeros(ATR_STATE), sizes=window(BARS))
MORE = ("heatmap.concentration", "heatmap.liquidity", "heatmap.wall_distance")
CONCENTRATION_OUT, LIQUIDITY_OUT, DISTANCE_OUT = range(len(SIGNAL_PARTS), len(SIGNAL_PARTS) + len(MORE))


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write one signal from the last 60 bars, and the map's shape at this close.

    arrays   float64: state (63,), bar (9,), book unread, context (CONTEXT_WIDTH,), out (7,)
    reads    bar high, low, close; context heat_imbalance, heat_concentration, heat_liquidity, wall_bid, wall_ask
    state    ATR 3; |imbalance| 60 (window, NaN when fresh)
    """
    sizes = state[SIZES]
    imbalance, below, above = context[IMBALANCE], context[WALL_BID], context[WALL_ASK]
    push(sizes, abs(imbalance))
    reach = atr(state[ATR], bar[HIGH], bar[LOW], bar[CLOSE])
    out[:] = np.nan
    whole = mean(sizes)  # NaN while a missing value is in the window
    if whole == whole:
        out[DIRECTION] = 0.0
        if imbalance != 0.0 and mid_rank(sizes, abs(imbalance)) >= HIGH_RANK:
            out[DIRECTION] = np.sign(imbalance)
            out[STRENGTH] = abs(imbalance)
            out[LOW_LEVEL], out[HIGH_LEVEL] = below, above
    out[CONCENTRATION_OUT], out[LIQUIDITY_OUT] = context[CONCENTRATION], context[LIQUIDITY]
    down, up = (below - bar[CLOSE]) / reach, (above - bar[CLOSE]) / reach
    out[DISTANCE_OUT] = up if abs(up) < abs(down) or down != down else down  # of two as near, the support


SOURCE = "ruling S9: 100 price levels, 50 snapshots"
GROUP = FeatureGroup(
    "heatmap",
    step,
    (
        *signal_columns(
            "heatmap", "fpdom", BARS, "fraction of the map",
            "heavier side of the map where |bid - ask| / both is at or above its 80 % mid-rank of 60 bars; that share",
            SOURCE, high=1.0, needs="context:heat_imbalance", levels="walls: nearest below, nearest above",
        ),
        Column(
            "heatmap.concentration", "fpdom", "Herfindahl-Hirschman", 0.0, 1.0, 1,
            "sum of squared shares of the levels", SOURCE, needs="context:heat_concentration",
        ),
        Column(
            "heatmap.liquidity", "fpdom", "score", 0.0, 1.0, 1, "liquidity score of the map", SOURCE,
            needs="context:heat_liquidity",
        ),
        Column(
            "heatmap.wall_distance", "fpdom", "ATR", -math.inf, math.inf, 15, "(nearest wall - close) / ATR 14", SOURCE,
            needs="context:wall_bid or context:wall_ask", sparse=True,
        ),
    ),
    FRESH,
)  # fmt: skip
