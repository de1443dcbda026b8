"""Corrections for luck: probabilistic and deflated Sharpe ratio, probability of overfitting."""

from itertools import combinations

import numpy as np
from scipy.special import ndtr, ndtri

from pipelines.contracts import Floats
from pipelines.errors import BadShape

_EULER = 0.5772156649015329


def probabilistic_sharpe(returns: Floats, benchmark: float = 0.0) -> float:
    """Return P(true per-trade Sharpe > benchmark), allowing for skew and fat tails; NaN under 10 rows or no variance.

    Source: Bailey & López de Prado 2012, eq. 11. Sharpe per observation, not annualised.
    """
    n = len(returns)
    spread = returns.std(ddof=1) if n > 1 else 0.0
    if n < 10 or spread == 0.0:
        return float("nan")
    sharpe = returns.mean() / spread
    standard = (returns - returns.mean()) / returns.std()
    skew, kurtosis = (standard**3).mean(), (standard**4).mean()
    variance = 1.0 - skew * sharpe + (kurtosis - 1.0) / 4.0 * sharpe**2
    return float(ndtr((sharpe - benchmark) * np.sqrt(n - 1) / np.sqrt(max(variance, 1e-12))))


def expected_best_sharpe(n_rows: int, trials: int) -> float:
    """Return the Sharpe that the best of `trials` strategies without skill is expected to show on n_rows observations.

    Uses the null variance 1/(n−1) of a Sharpe ratio. Source: Bailey & López de Prado 2014, eq. 1.
    """
    if trials <= 1:
        return 0.0
    tail = (1 - _EULER) * ndtri(1 - 1 / trials) + _EULER * ndtri(1 - 1 / (trials * np.e))
    return float(tail / np.sqrt(n_rows - 1))


def deflated_sharpe(returns: Floats, trials: int) -> float:
    """Return the probabilistic Sharpe ratio against what the best of all counted trials would show by luck."""
    return probabilistic_sharpe(returns, expected_best_sharpe(len(returns), trials))


def overfitting_probability(performance: Floats, groups: int = 10) -> float:
    """Return PBO: how often the in-sample winner is below the median outside, by symmetric cross-validation.

    performance  (rows, strategies) per-row result of each competing strategy, in time order
    Raises       BadShape under 2 strategies or `groups` rows
    Source       Bailey, Borwein, López de Prado & Zhu 2017
    """
    rows, strategies = performance.shape
    if strategies < 2 or rows < groups:
        raise BadShape(f"PBO needs at least 2 strategies and {groups} rows, got {strategies} and {rows}")
    sums = np.array([part.sum(axis=0) for part in np.array_split(performance, groups)])
    worse = []
    for chosen in combinations(range(groups), groups // 2):
        inside = sums[list(chosen)].sum(axis=0)
        outside = sums.sum(axis=0) - inside
        winner = int(np.argmax(inside))
        rank = (outside < outside[winner]).sum() + 0.5 * ((outside == outside[winner]).sum() - 1)
        worse.append(rank / (strategies - 1) < 0.5)
    return float(np.mean(worse))
