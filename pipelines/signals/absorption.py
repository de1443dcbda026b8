"""S6 absorption: takers press hard one way and price hardly follows, so a resting order absorbs them.

The signal points against the aggressor. It needs taker volume, not the trades themselves: the delta of a bar is twice
the volume that takers bought less the volume.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, TAKER_BUY, VOLUME, Floats
from pipelines.features.fold import FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, mid_rank, push, root_mean_square
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, STRENGTH, signal_columns

BARS = 60
HIGH_RANK = 0.9  # of |delta| among the last 60: aggressive volume from here on is high
SMALL_MOVE = 0.25  # ATR 14: a move of the body the aggressor's way up to here is small
(ATR, SIZES), FRESH = lay_out(atr=zeros(ATR_STATE), sizes=window(BARS))


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write one signal from the last 60 bars.

    arrays   float64: state (63,), bar (9,), book and context unread, out (4,)
    reads    bar open, high, low, close, volume, taker_buy_volume
    state    ATR 3; |delta| 60 (window in base asset, NaN when fresh)
    """
    sizes = state[SIZES]
    delta = 2.0 * bar[TAKER_BUY] - bar[VOLUME]
    push(sizes, abs(delta))
    reach = atr(state[ATR], bar[HIGH], bar[LOW], bar[CLOSE])
    usual = root_mean_square(sizes)
    out[:] = np.nan
    if usual == usual and reach == reach:
        out[DIRECTION] = 0.0
        aggressor = np.sign(delta)
        move = aggressor * (bar[CLOSE] - bar[OPEN]) / reach
        if aggressor != 0.0 and mid_rank(sizes, abs(delta)) >= HIGH_RANK and move <= SMALL_MOVE:
            out[DIRECTION] = -aggressor
            out[STRENGTH] = abs(delta) / usual * (1.0 - max(move, 0.0))
            out[LOW_LEVEL], out[HIGH_LEVEL] = bar[LOW], bar[HIGH]


GROUP = FeatureGroup(
    "absorption",
    step,
    signal_columns(
        "absorption", "order_flow", BARS, "usual deltas",
        "against takers whose |2 taker - volume| is at or above its 90 % mid-rank of 60 bars while close - open went "
        "at most 0.25 ATR 14 their way; |delta| over its root mean square of 60 bars, times 1 - that move in ATR",
        "ruling S6: high aggressive volume with small move", high=BARS**0.5, needs="taker",
        levels="low and high of the bar",
    ),
    FRESH,
)  # fmt: skip
