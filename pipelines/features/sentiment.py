"""Market sentiment from two published series: the fear-and-greed index and the perpetual's funding rate."""

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import Floats
from pipelines.features.fold import Column, FeatureGroup

FUNDING, FEAR_GREED = CONTEXT_INDEX["funding_rate"], CONTEXT_INDEX["fear_greed"]
INTEREST = 1e-4  # funding where longs and shorts pay each other nothing but interest: Binance, 0.01 % a period of 8 h


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write the market sentiment; no state. Positive = greedy (the crowd is long), negative = fearful.

    arrays   float64: state (0,), bar and book unread, context (CONTEXT_WIDTH,), out (1,)
    reads    context fear_greed (0..100), funding_rate (fraction of 8 h)
    rule     mean of the parts that are known: (index - 50) / 50, and d / (|d| + interest) with d = funding - interest,
             which is 0 where funding is plain interest and a half at twice that
    """
    total, parts = 0.0, 0.0
    index, excess = context[FEAR_GREED], context[FUNDING] - INTEREST
    if index == index:
        total += (index - 50.0) / 50.0
        parts += 1.0
    if excess == excess:
        total += excess / (abs(excess) + INTEREST)
        parts += 1.0
    out[0] = total / parts  # none known: 0 / 0, missing


GROUP = FeatureGroup(
    "sentiment",
    step,
    (
        Column(
            "market_sentiment", "validator", "score", -1.0, 1.0, 1,
            "mean of those known: (fear and greed - 50) / 50; d / (|d| + 0.01 %), d = funding - 0.01 %",
            "ruling: greed is positive; 0.01 % is Binance's interest a funding period",
            needs="context:fear_greed or context:funding_rate",
        ),
    ),
    np.empty(0),
)  # fmt: skip
