"""S8 Hawkes intensity: trades come in a burst that earlier trades caused; the signal is the side that excites it.

Arrivals are fitted outside the fold (an exponential kernel, by maximum likelihood). This step reads of a bar
how far the intensity stands above its base rate, which side's trades excite it, and the branching ratio.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import mean, mid_rank, push
from pipelines.signals.columns import DIRECTION, SIGNAL_PARTS, STRENGTH, signal_columns

BARS = 60
HIGH_RANK = 0.9  # of the excess among the last 60
MIN_SIDE = 0.2  # buyers' part of the excitement less sellers': at 0.2 one side made three fifths of it
BRANCHING, EXCESS, SIDE = (
    CONTEXT_INDEX["hawkes_branching"],
    CONTEXT_INDEX["hawkes_excess"],
    CONTEXT_INDEX["hawkes_side"],
)
MORE = ("hawkes.branching", "hawkes.excess")
BRANCHING_OUT, EXCESS_OUT = range(len(SIGNAL_PARTS), len(SIGNAL_PARTS) + len(MORE))


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write one signal from the last 60 bars, and two numbers of the fit as recorded.

    arrays   float64: state (60,), bar and book unread, context (CONTEXT_WIDTH,), out (6,)
    reads    context hawkes_branching, hawkes_excess, hawkes_side
    state    excess 60 (window, NaN when fresh)
    """
    excess, side = context[EXCESS], context[SIDE]
    push(state, excess)
    out[:] = np.nan
    whole = mean(state)  # NaN while a missing value is in the window
    if whole == whole and side == side:
        out[DIRECTION] = 0.0
        if excess > 0.0 and abs(side) >= MIN_SIDE and mid_rank(state, excess) >= HIGH_RANK:
            out[DIRECTION] = np.sign(side)
            out[STRENGTH] = excess * abs(side)
    out[BRANCHING_OUT], out[EXCESS_OUT] = context[BRANCHING], excess


SOURCE = "Hawkes 1971, Biometrika 58(1) 83-90; ruling S8"
GROUP = FeatureGroup(
    "hawkes",
    step,
    (
        *signal_columns(
            "hawkes", "order_flow", BARS, "base rates",
            "side that excites where the excess intensity is above 0 and at or above its 90 % mid-rank of 60 "
            "bars and |side| at least 0.2; excess times |side|",
            SOURCE, needs="context:hawkes_excess and context:hawkes_side", levels="none",
        ),
        Column(
            "hawkes.branching", "order_flow", "trades a trade causes", 0.0, math.inf, 1, "branching ratio of the fit",
            SOURCE, needs="context:hawkes_branching",
        ),
        Column(
            "hawkes.excess", "order_flow", "base rates", -1.0, math.inf, 1, "intensity over its base rate, less one",
            SOURCE, needs="context:hawkes_excess",
        ),
    ),
    np.full(BARS, np.nan),
)  # fmt: skip
