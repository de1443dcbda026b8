"""S7 footprint and depth: where trades stacked up on one side, and whether resting orders were added or pulled there.

Stacked imbalances are runs of price buckets, one above the other, in which one side of the trades outdid the other.
Stacking is what was added near the best price less what was pulled, trades apart. Each is the bid's (buyers') part
less the ask's (sellers'), in units of its usual size; the signal comes where both together lean a whole unit and
neither leans against the other.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import Floats
from pipelines.features.fold import FeatureGroup
from pipelines.features.kernels import push, root_mean_square
from pipelines.layout import lay_out, window
from pipelines.signals.columns import DIRECTION, STRENGTH, signal_columns

BARS = 60
MIN_LEAN = 1.0  # mean of the two leans, each in its root mean square of 60 bars
BUYING, SELLING = CONTEXT_INDEX["stacked_buying"], CONTEXT_INDEX["stacked_selling"]
BID, ASK = CONTEXT_INDEX["stacking_bid"], CONTEXT_INDEX["stacking_ask"]
(STACKED, DEPTH), FRESH = lay_out(stacked=window(BARS), depth=window(BARS))


@kernel
def _lean(window: Floats, value: float) -> float:
    """Return `value` over the root mean square of its window (60,) float64; 0 where nothing leaned; NaN as it is."""
    usual = root_mean_square(window)
    return value / usual if usual != 0.0 else 0.0


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write one signal from the last 60 bars.

    arrays   float64: state (120,), bar and book unread, context (CONTEXT_WIDTH,), out (4,)
    reads    context stacked_buying, stacked_selling (counts of the bar), stacking_bid, stacking_ask (base asset)
    state    windows of 60, NaN when fresh: stacked buying less selling, stacking at bid less ask
    """
    stacked, depth = context[BUYING] - context[SELLING], context[BID] - context[ASK]
    push(state[STACKED], stacked)
    push(state[DEPTH], depth)
    traded, rested = _lean(state[STACKED], stacked), _lean(state[DEPTH], depth)
    lean = 0.5 * (traded + rested)
    out[:] = np.nan
    if lean == lean:
        out[DIRECTION] = 0.0
        if abs(lean) >= MIN_LEAN and traded * rested >= 0.0:
            out[DIRECTION] = np.sign(lean)
            out[STRENGTH] = abs(lean)


GROUP = FeatureGroup(
    "footprint",
    step,
    signal_columns(
        "footprint", "fpdom", BARS, "usual leans",
        "side of the mean of two leans, stacked buying - selling and stacking at bid - ask, each over its root mean "
        "square of 60 bars, where that mean is at least 1 and neither is against the other; its size",
        "ruling S7", high=BARS**0.5, levels="none",
        needs="context:stacked_buying and context:stacked_selling and context:stacking_bid and context:stacking_ask",
    ),
    FRESH,
)  # fmt: skip
