"""S11 institutional flow: what large trades bought, heard where it is theirs and not the crowd's.

Trades above the trailing median notional are large. Where large and small lean apart, or the large outweigh the small,
the signal takes the large side; where both lean alike and the small weigh more, it is a crowd's move and says nothing.
VPIN, how one-sided equal volumes were, gives it weight: from once (none) to twice (all one-sided).
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CONTEXT_INDEX
from pipelines.features.fold import Column, StepFamily
from pipelines.features.kernels import push, root_mean_square
from pipelines.signals.columns import signal_columns

BARS = 60
LARGE, SMALL, VPIN = CONTEXT_INDEX["cvd_large"], CONTEXT_INDEX["cvd_small"], CONTEXT_INDEX["vpin"]


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """One signal from the last 60 bars, and VPIN as it was told.

    reads    context cvd_large, cvd_small (base asset, buys less sells of the bar), vpin (0..1)
    state    cvd_large 60 (window, NaN when fresh)
    """
    large, small, vpin = context[LARGE], context[SMALL], context[VPIN]
    push(state, large)
    usual = root_mean_square(state)
    out[:] = np.nan
    if usual == usual and small == small and vpin == vpin:
        out[0] = 0.0
        if large != 0.0 and (large * small < 0.0 or abs(large) > abs(small)):
            out[0] = np.sign(large)
            out[1] = abs(large) / usual * (1.0 + vpin)
    out[4] = vpin


SOURCE = "Easley, Lopez de Prado and O'Hara 2012, Review of Financial Studies 25(5) 1457-1493 (VPIN); ruling S11"
FAMILY = StepFamily(
    "institutional",
    step,
    (
        *signal_columns(
            "institutional", "order_flow", BARS, "usual flows",
            "side of the large trades' delta where the small ones' is opposite or smaller; its size over the root "
            "mean square of 60 bars, times 1 + VPIN",
            SOURCE, high=2.0 * BARS**0.5, needs="context:cvd_large and context:cvd_small and context:vpin",
            levels="none",
        ),
        Column(
            "institutional.vpin", "order_flow", "fraction of volume", 0.0, 1.0, 1,
            "mean one-sidedness of equal volumes", SOURCE, needs="context:vpin",
        ),
    ),
    np.full(BARS, np.nan),
)  # fmt: skip
