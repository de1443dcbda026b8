"""Inputs of the regime detector that no other family makes: volatility percentile, persistence, a spread proxy."""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW
from pipelines.features.fold import AWAITS, Column, StepFamily
from pipelines.features.kernels import mean, mid_rank, push, root_mean_square


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

    reads    bar high, low, close
    state    last high, low, close (3); windows: log returns 60, volatilities 480, spreads 20; all NaN when fresh
    """
    last, returns, volatilities, spreads = state[0:3], state[3:63], state[63:543], state[543:563]
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    push(returns, math.log(close / last[2]))
    push(spreads, spread_of_ranges(high, low, last[0], last[1]))
    last[0], last[1], last[2] = high, low, close
    volatility = root_mean_square(returns[40:60])
    push(volatilities, volatility)
    out[0] = mid_rank(volatilities, volatility)
    out[1] = persistence(returns)
    out[2] = mean(spreads)
    out[3] = np.nan
    out[4] = np.nan


INF = math.inf
SECOND = f"{AWAITS}: a second symbol"
FAMILY = StepFamily(
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
        Column("cross_correlation", "regime", "correlation", -1.0, 1.0, 1, "correlation of returns with BTC", SECOND),
        Column("cross_beta", "regime", "ratio", -INF, INF, 1, "beta of returns to BTC", SECOND),
    ),
    np.full(563, np.nan),
)  # fmt: skip
