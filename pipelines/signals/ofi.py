"""S6 order-flow imbalance of the book: which side the events of the bar pressed, by how much of its usual size.

Cont, Kukanov and Stoikov add up what arrives at and leaves the best bid less the same at the best ask. Without a
recorded book it is missing, and the order-flow category rests on the cumulative delta alone.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import Floats
from pipelines.features.fold import FeatureGroup
from pipelines.features.kernels import push, root_mean_square
from pipelines.signals.columns import DIRECTION, STRENGTH, signal_columns

BARS = 60
FLOW = CONTEXT_INDEX["order_flow"]


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write one signal from the last 60 bars.

    arrays   float64: state (60,), bar and book unread, context (CONTEXT_WIDTH,), out (4,)
    reads    context order_flow (base asset, summed over the bar)
    state    flows 60 (window, NaN when fresh)
    """
    flow = context[FLOW]
    push(state, flow)
    out[:] = np.nan
    usual = root_mean_square(state) if flow == flow else np.nan
    if usual == usual:
        out[DIRECTION] = np.sign(flow)
        if flow != 0.0:
            out[STRENGTH] = abs(flow) / usual


GROUP = FeatureGroup(
    "ofi",
    step,
    signal_columns(
        "ofi", "order_flow", BARS, "usual flows", "side of the bar's order-flow imbalance; its size over the root mean "
        "square of 60 bars", "Cont, Kukanov and Stoikov 2014, J. Financial Econometrics 12(1) 47-88; ruling S6",
        high=BARS**0.5, needs="context:order_flow", levels="none",
    ),
    np.full(BARS, np.nan),
)  # fmt: skip
