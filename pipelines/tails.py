"""The worst of a sample: value at risk, expected shortfall, and each position's part. Losses are positive fractions of
value.

Both the tests of forecasts (`evaluation.tail_risk`) and the risk engine's budgets use them.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Floats
from pipelines.errors import BadShape, BadValues

VOLATILITY_BARS, BURN_IN = 128, 20  # returns that a volatility rests on, and the fewest it is given for


@kernel
def newest_volatility(prices: Floats, decay: float, i: int) -> float:
    """Return `ewma_volatility` at price `i` alone; NaN under BURN_IN returns."""
    if i < BURN_IN:
        return np.nan
    total, weights, weight = 0.0, 0.0, 1.0
    for j in range(i, max(i - VOLATILITY_BARS, 0), -1):
        total += weight * (prices[j] / prices[j - 1] - 1.0) ** 2
        weights += weight
        weight *= decay
    return math.sqrt(total / weights)


@kernel
def ewma_volatility(prices: Floats, decay: float) -> Floats:
    """Return (n,) volatility known at each price: root of the weighted mean square of the returns up to it, a fraction.

    prices  (n,) float64, above 0, in time order; decay  float64 in (0, 1): the weight of a return against the next one
    It rests on the newest VOLATILITY_BARS returns, so that a service that holds these prices and a run over the whole
    history give the same bytes. NaN under BURN_IN returns, and where a price among them is NaN.
    Source: RiskMetrics 1996, sec. 5.2
    """
    n = prices.shape[0]
    found = np.full(n, np.nan)
    for i in range(n):
        found[i] = newest_volatility(prices, decay, i)
    return found


@kernel
def tail_losses(values: Floats, tail: float) -> tuple[float, float]:
    """Return (VaR, ES) of equally likely returns, as positive fractions; NaN if one is not finite or n · tail < 1.

    values  (n,) float64 returns; tail  float64 in (0, 1)
    VaR is the loss of rank (n + 1) tail, between two by interpolation: where that is whole, the next of independent
    returns exceeds it with chance `tail`; the empirical distribution's own quantile would be exceeded too often. ES is
    the mean of the n · tail worst, the last one in part (Acerbi & Tasche 2002), so it is never under the VaR.
    """
    n = values.shape[0]
    if n * tail < 1.0 - 1e-9:
        return np.nan, np.nan
    rank, share = (n + 1) * tail, n * tail
    k, m = int(rank), int(share)
    worst, filled = np.empty(k + 1), 0  # in order; by insertion, as numpy's partition takes half a minute to compile
    for value in values:
        if not np.isfinite(value):
            return np.nan, np.nan
        if filled <= k:
            filled += 1
        elif value >= worst[k]:
            continue
        j = filled - 1
        while j > 0 and worst[j - 1] > value:
            worst[j] = worst[j - 1]
            j -= 1
        worst[j] = value
    var = -(worst[k - 1] + (rank - k) * (worst[k] - worst[k - 1]))
    es = -(worst[:m].sum() + (share - m) * worst[m]) / share
    return var, es


def tail_probability(level: float) -> float:
    """Return 1 - level. Raises BadValues unless .5 < level < 1."""
    if not 0.5 < level < 1.0:
        raise BadValues(f"level {level} of a VaR is not between .5 and 1. Write 99 % as 0.99.")
    return 1.0 - level


def refuse_missing(values: Floats, what: str = "return") -> None:
    """Raise BadValues naming the first row of `values`, (n,) or (n, k), that is not finite."""
    fine = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
    if not fine.all():
        at = int(np.argmin(fine))
        raise BadValues(
            f"{what} {values[at]} of row {at} is not finite, as {(~fine).sum()} of {len(values)} are not. Leave such "
            "rows out; the return over a gap is the one between the prices on either side."
        )


def euler_es(returns: Floats, weights: Floats, level: float) -> Floats:
    """Return (k,) the part of each of k positions in the portfolio's historical ES (positive fraction); they sum to it.

    returns  (n, k) simple returns of the assets in the same rows; weights (k,) of value, negative if short
    A position's part is its mean loss over the portfolio's worst n (1 - level) rows, the last in part: the derivative
    of the ES in the position's size, times that size. Negative where it hedges. NaN under 1 / (1 - level) rows.
    Raises   BadShape if widths differ; BadValues for a row or a weight that is not finite
    Source   Tasche 1999, "Risk contributions and performance measurement"
    """
    tail = tail_probability(level)
    if returns.ndim != 2 or weights.shape != returns.shape[1:]:
        raise BadShape(f"returns {returns.shape} and weights {weights.shape}; expected (n, k) and (k,).")
    refuse_missing(returns)
    refuse_missing(weights, "weight")
    share = len(returns) * tail
    if share < 1.0 - 1e-9:
        return np.full(len(weights), np.nan)
    order = np.argsort(returns @ weights, kind="stable")[: int(share) + 1]
    counted = np.minimum(1.0, share - np.arange(len(order)))
    return np.asarray(-(counted @ returns[order]) * weights / share, dtype=np.float64)
