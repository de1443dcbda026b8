"""Inputs of the regime detector that no other family makes: volatility percentile, persistence, a spread proxy, and how
the market moves with the reference symbol."""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, CONTEXT_INDEX, HIGH, LOW
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import mean, mid_rank, push, root_mean_square

REFERENCE = CONTEXT_INDEX["reference_close"]


@kernel
def persistence(returns):  # type: ignore[no-untyped-def]
    """Lag-1 autocorrelation of a window of returns, one mean and one variance for both ends."""
    centre = mean(returns)
    both = 0.0
    own = (returns[0] - centre) * (returns[0] - centre)
    for i in range(1, returns.shape[0]):
        here = returns[i] - centre
        both += here * (returns[i - 1] - centre)
        own += here * here
    return both / own


@kernel
def with_reference(returns, references):  # type: ignore[no-untyped-def]
    """Correlation and beta of two windows of returns. The reference beside itself says nothing: missing, not 1."""
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
def spread_of_ranges(high, low, last_high, last_low):  # type: ignore[no-untyped-def]
    """Spread as a fraction of price from the ranges of two bars; a negative estimate counts as nought."""
    k = 3.0 - 2.0 * math.sqrt(2.0)
    here, before = math.log(high / low), math.log(last_high / last_low)
    beta = here * here + before * before
    both = math.log(max(high, last_high) / min(low, last_low))
    alpha = (math.sqrt(2.0 * beta) - math.sqrt(beta)) / k - both / math.sqrt(k)
    if alpha < 0.0:
        return 0.0
    return 2.0 * (math.exp(alpha) - 1.0) / (1.0 + math.exp(alpha))


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Five values.

    reads    bar high, low, close; context reference_close (quote currency)
    state    last high, low, close (3); windows: log returns 60, volatilities 480, spreads 20; last reference close (1);
             its log returns 60 (window); all NaN when fresh
    """
    last, returns, volatilities, spreads = state[0:3], state[3:63], state[63:543], state[543:563]
    references = state[564:624]
    high, low, close, reference = bar[HIGH], bar[LOW], bar[CLOSE], context[REFERENCE]
    push(references, math.log(reference / state[563]))
    state[563] = reference
    push(returns, math.log(close / last[2]))
    push(spreads, spread_of_ranges(high, low, last[0], last[1]))
    last[0], last[1], last[2] = high, low, close
    volatility = root_mean_square(returns[40:60])
    push(volatilities, volatility)
    out[0] = mid_rank(volatilities, volatility)
    out[1] = persistence(returns)
    out[2] = mean(spreads)
    out[3], out[4] = np.nan, np.nan
    if references[59] == references[59]:
        out[3], out[4] = with_reference(returns, references)


INF = math.inf
BESIDE = "context:reference_close"
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
            "definition", needs=BESIDE,
        ),
        Column(
            "cross_beta", "regime", "ratio", -INF, INF, 61,
            "slope of 60 log returns on the reference symbol's; missing for the reference itself",
            "definition", needs=BESIDE,
        ),
    ),
    np.full(624, np.nan),
)  # fmt: skip
