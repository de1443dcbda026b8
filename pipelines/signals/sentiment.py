"""D7 sentiment: extreme funding and extreme fear or greed, both read against the crowd.

Both signals stand on every bar of the extreme, not only on its first: a category score adds up the signals of one bar,
and a decision falls on the bar of an ICT event, so a signal that came once on entering would be 0 on nearly every bar
that is decided. Neither raises events, so standing repeats nothing.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import Floats
from pipelines.features.fold import FeatureGroup
from pipelines.features.kernels import mean, mid_rank, push
from pipelines.features.sentiment import INTEREST
from pipelines.signals.columns import DIRECTION, SIGNAL_PARTS, STRENGTH, signal_columns

BARS = 288  # three days of 15 minutes: nine funding periods of 8 h
HIGH_RANK, LOW_RANK = 0.9, 0.1
FEAR, GREED = 25.0, 75.0  # the publisher's own bands of extreme fear and extreme greed
FUNDING, FEAR_GREED = CONTEXT_INDEX["funding_rate"], CONTEXT_INDEX["fear_greed"]
SECOND = len(SIGNAL_PARTS)  # where the columns of fear_greed start


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write two signals.

    arrays   float64: state (288,), bar and book unread, context (CONTEXT_WIDTH,), out (8,)
    reads    context funding_rate (fraction of 8 h), fear_greed (0..100)
    state    funding rates 288 (window, NaN when fresh)
    """
    rate, index = context[FUNDING], context[FEAR_GREED]
    push(state, rate)
    out[:] = np.nan
    mood = out[SECOND:]
    whole = mean(state)  # NaN while a missing value is in the window
    if whole == whole:
        rank, excess = mid_rank(state, rate), rate - INTEREST
        out[DIRECTION] = 0.0
        if rank >= HIGH_RANK and excess > 0.0:
            out[DIRECTION] = -1.0
        elif rank <= LOW_RANK and excess < 0.0:
            out[DIRECTION] = 1.0
        if out[DIRECTION] != 0.0:
            out[STRENGTH] = abs(excess) / (abs(excess) + INTEREST)
    if index == index:
        mood[DIRECTION] = 0.0
        if index <= FEAR or index >= GREED:
            mood[DIRECTION] = 1.0 if index <= FEAR else -1.0
            mood[STRENGTH] = abs(index - 50.0) / 50.0


GROUP = FeatureGroup(
    "sentiment",
    step,
    (
        *signal_columns(
            "funding", "sentiment", BARS, "fraction",
            "short where the rate is at or above its 90 % mid-rank of 288 bars and above 0.01 %, long at or below its "
            "10 % mid-rank and below 0.01 %; |d| / (|d| + 0.01 %), d = rate - 0.01 %",
            "ruling D7; 0.01 % is Binance's interest a funding period", high=1.0, needs="context:funding_rate",
            levels="none",
        ),
        *signal_columns(
            "fear_greed", "sentiment", 1, "fraction of the scale",
            "long at or below 25 (extreme fear), short at or above 75 (extreme greed); |index - 50| / 50",
            "Crypto Fear and Greed Index, alternative.me: its bands; ruling D7", high=1.0, needs="context:fear_greed",
            levels="none",
        ),
    ),
    np.full(BARS, np.nan),
)  # fmt: skip
