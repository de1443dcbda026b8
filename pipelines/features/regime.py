"""Inputs of the regime detector that no other group makes.

Volatility percentile, persistence, a spread proxy, and how the market moves with the reference symbol.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import CLOSE, HIGH, LOW, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import mean, mid_rank, push, root_mean_square
from pipelines.layout import lay_out, window

REFERENCE = CONTEXT_INDEX["reference_close"]
RETURN_BARS, RANK_BARS, SPREAD_BARS = 60, 480, 20
(LAST, RETURNS, VOLATILITIES, SPREADS, LAST_REFERENCE, REFERENCE_RETURNS), FRESH = lay_out(
    last=window(3), returns=window(RETURN_BARS), volatilities=window(RANK_BARS), spreads=window(SPREAD_BARS),
    last_reference=window(1), reference_returns=window(RETURN_BARS),
)  # fmt: skip


@kernel
def persistence(returns: Floats) -> float:
    """Return the lag-1 autocorrelation of a window of returns (w,) float64, one mean and one variance for both ends."""
    centre = mean(returns)
    both = 0.0
    own = (returns[0] - centre) * (returns[0] - centre)
    for i in range(1, returns.shape[0]):
        here = returns[i] - centre
        both += here * (returns[i - 1] - centre)
        own += here * here
    correlation: float = both / own
    return correlation


@kernel
def with_reference(returns: Floats, references: Floats) -> tuple[float, float]:
    """Return correlation and beta of two windows of returns (w,) float64.

    The reference compared with itself carries no information: (NaN, NaN), not 1.
    """
    centre, middle = mean(returns), mean(references)
    both, own, theirs, same = 0.0, 0.0, 0.0, True
    for i in range(returns.shape[0]):
        here, there = returns[i] - centre, references[i] - middle
        both += here * there
        own += here * here
        theirs += there * there
        same = same and returns[i] == references[i]
    if same:
        return np.nan, np.nan
    return both / math.sqrt(own * theirs), both / theirs


@kernel
def spread_of_ranges(high: float, low: float, last_high: float, last_low: float) -> float:
    """Return the spread as a fraction of price (float64) from the ranges of two bars; a negative estimate is 0."""
    k = 3.0 - 2.0 * math.sqrt(2.0)
    here, before = math.log(high / low), math.log(last_high / last_low)
    beta = here * here + before * before
    both = math.log(max(high, last_high) / min(low, last_low))
    alpha = (math.sqrt(2.0 * beta) - math.sqrt(beta)) / k - both / math.sqrt(k)
    if alpha < 0.0:
        return 0.0
    return 2.0 * (math.exp(alpha) - 1.0) / (1.0 + math.exp(alpha))


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write five values: volatility percentile, persistence, spread proxy, correlation and beta with the reference.

    arrays   float64: state (624,), bar (9,), book unread, context (CONTEXT_WIDTH,), out (5,)
    reads    bar high, low, close; context reference_close (quote currency)
    state    last high, low, close (3); windows: log returns 60, volatilities 480, spreads 20; last reference close (1);
             its log returns 60 (window); all NaN when fresh
    """
    last, returns, volatilities, spreads = state[LAST], state[RETURNS], state[VOLATILITIES], state[SPREADS]
    last_reference, references = state[LAST_REFERENCE], state[REFERENCE_RETURNS]
    high, low, close, reference = bar[HIGH], bar[LOW], bar[CLOSE], context[REFERENCE]
    push(references, math.log(reference / last_reference[0]))
    last_reference[0] = reference
    push(returns, math.log(close / last[2]))
    push(spreads, spread_of_ranges(high, low, last[0], last[1]))
    last[0], last[1], last[2] = high, low, close
    volatility = root_mean_square(returns[RETURN_BARS - SPREAD_BARS :])
    push(volatilities, volatility)
    out[0] = mid_rank(volatilities, volatility)
    out[1] = persistence(returns)
    out[2] = mean(spreads)
    out[3], out[4] = np.nan, np.nan
    if references[-1] == references[-1]:
        out[3], out[4] = with_reference(returns, references)


INF = math.inf
NEEDS = "context:reference_close"
GROUP = FeatureGroup(
    "regime",
    step,
    (
        Column(
            "volatility_regime", "validator", "percentile", 0.0, 1.0, 500,
            "mid-rank of the 20-bar volatility among its last 480 values",
            "ruling: trailing percentile, five days of 15m",
        ),
        Column(
            "persistence_60", "regime", "correlation", -1.0, 1.0, 61, "lag-1 autocorrelation of 60 log returns",
            "definition",
        ),
        Column(
            "spread_proxy_20", "regime", "fraction of price", 0.0, 2.0, 21,
            "mean of 20 two-bar range estimates of the spread",
            "Corwin and Schultz 2012, J. Finance 67(2) 719-760, eq. 14 and 18; negative = 0",
        ),
        Column(
            "cross_correlation", "regime", "correlation", -1.0, 1.0, 61,
            "correlation of 60 log returns with the reference symbol's; missing for the reference itself",
            "definition", needs=NEEDS,
        ),
        Column(
            "cross_beta", "regime", "ratio", -INF, INF, 61,
            "slope of 60 log returns on the reference symbol's; missing for the reference itself",
            "definition", needs=NEEDS,
        ),
    ),
    FRESH,
)  # fmt: skip
