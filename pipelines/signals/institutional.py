"""S11 institutional flow: the side of large trades, where it differs from the crowd's.

Trades above the trailing median notional are large. They carry most of any market's volume, so large and small are each
measured in their usual size. Where the two lean apart, or the large lean further, the signal takes the large side;
where both lean alike and the small further, it is a crowd's move and no signal. VPIN, how one-sided
equal volumes were, gives it weight: from once (none) to twice (all one-sided).
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import push, root_mean_square
from pipelines.layout import lay_out, window
from pipelines.signals.columns import DIRECTION, SIGNAL_PARTS, STRENGTH, signal_columns

BARS = 60
LARGE, SMALL, VPIN = CONTEXT_INDEX["cvd_large"], CONTEXT_INDEX["cvd_small"], CONTEXT_INDEX["vpin"]
(LARGES, SMALLS), FRESH = lay_out(larges=window(BARS), smalls=window(BARS))
VPIN_OUT = len(SIGNAL_PARTS)


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write one signal from the last 60 bars, and VPIN as recorded.

    arrays   float64: state (120,), bar and book unread, context (CONTEXT_WIDTH,), out (5,)
    reads    context cvd_large, cvd_small (base asset, buys less sells of the bar), vpin (0..1)
    state    windows of 60, NaN when fresh: cvd_large, cvd_small (base asset)
    """
    large, small, vpin = context[LARGE], context[SMALL], context[VPIN]
    push(state[LARGES], large)
    push(state[SMALLS], small)
    usual, usual_small = root_mean_square(state[LARGES]), root_mean_square(state[SMALLS])
    out[:] = np.nan
    if usual == usual and usual_small == usual_small and vpin == vpin:
        out[DIRECTION] = 0.0
        further = abs(large) * usual_small > abs(small) * usual  # each over its own usual, without dividing by 0
        if large != 0.0 and (large * small < 0.0 or further or small == 0.0):
            out[DIRECTION] = np.sign(large)
            out[STRENGTH] = abs(large) / usual * (1.0 + vpin)
    out[VPIN_OUT] = vpin


SOURCE = "Easley, Lopez de Prado and O'Hara 2012, Review of Financial Studies 25(5) 1457-1493 (VPIN); ruling S11"
GROUP = FeatureGroup(
    "institutional",
    step,
    (
        *signal_columns(
            "institutional", "order_flow", BARS, "usual flows",
            "side of the large trades' delta where the small ones' is opposite or, each over its root mean square of "
            "60 bars, smaller; its size so measured, times 1 + VPIN",
            SOURCE, high=2.0 * BARS**0.5, needs="context:cvd_large and context:cvd_small and context:vpin",
            levels="none",
        ),
        Column(
            "institutional.vpin", "order_flow", "fraction of volume", 0.0, 1.0, 1,
            "mean one-sidedness of equal volumes", SOURCE, needs="context:vpin",
        ),
    ),
    FRESH,
)  # fmt: skip
