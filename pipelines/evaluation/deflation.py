"""Corrections for luck: probabilistic and deflated Sharpe ratio, probability of overfitting."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.special import ndtri, stdtr

from pipelines.contracts import Bools, Floats
from pipelines.errors import BadShape
from pipelines.evaluation.intervals import Measurement, measure

_EULER = 0.5772156649015329
PRIOR_TRIALS = 4  # the squared error of one ratio counts as so many trials that differ as trials without shared rows do


def sharpe_of(returns: Floats, taken: Bools | None = None, known: Floats | None = None) -> Measurement:
    """Return mean / deviation of the returns (n,) of the rows taken (all by default), per row, with its error.

    The error holds skew, fat tails and the dependence of overlapping trades: it is that of the rows' influences.
    NaN without variance; known as of `intervals.measure`.

    Source of the influence: Lo 2002, Financial Analysts J. 58(4), eq. 8, by rows.
    """
    taken = np.ones(len(returns), dtype=bool) if taken is None else taken
    count = int(taken.sum())
    spread = float(returns[taken].std()) if count > 1 else 0.0
    if spread == 0.0:
        return Measurement(float("nan"), float("nan"), 1, count, "no variance")
    standard = np.where(taken, (returns - returns[taken].mean()) / spread, 0.0)
    ratio = float(returns[taken].mean()) / spread
    influence = np.where(taken, standard - 0.5 * ratio * (standard**2 - 1.0), 0.0) * len(returns) / count
    return measure(ratio, influence - influence.mean(), count, known)


def probabilistic_sharpe(returns: Floats, benchmark: float = 0.0) -> float:
    """Return P(true per-row Sharpe > benchmark) of returns (n,) in time order; NaN with too few rows or no variance.

    Bailey & López de Prado 2012, eq. 11, with the error of dependent rows in the place of that of independent ones.
    """
    found = sharpe_of(returns)
    return float(stdtr(found.contrasts, (found.value - benchmark) / found.error)) if found.error > 0 else float("nan")


def expected_best_sharpe(trials: int, deviation: float) -> float:
    """Return the Sharpe that the best of `trials` strategies without skill is expected to show.

    deviation  of their Sharpe ratios. Source: Bailey & López de Prado 2014, eq. 1
    """
    if trials <= 1:
        return 0.0
    tail = (1 - _EULER) * ndtri(1 - 1 / trials) + _EULER * ndtri(1 - 1 / (trials * np.e))
    return float(tail * deviation)


def best_by_luck(found: Measurement, trials: int, known: Sequence[float] = ()) -> float:
    """Return the Sharpe ratio that the best of all counted trials is expected to show without skill.

    found   of `sharpe_of`
    trials  number of candidates ever tried, this one included
    known   Sharpe ratios of those trials whose figures are stored. The variance across trials starts as the squared
            error of one ratio, by which trials that share no rows differ, and every stored one moves it by its share:
            the mean of a scaled inverse chi-squared posterior (Gelman et al. 2013, sec. 2.6), without its shift
    """
    deviations = np.asarray(known) - np.mean(known) if len(known) else np.empty(0)
    freedom = PRIOR_TRIALS + max(len(known) - 1, 0)
    variance = (PRIOR_TRIALS * found.error**2 + float(deviations @ deviations)) / freedom
    return expected_best_sharpe(trials, float(np.sqrt(variance)))


def deflated_sharpe(found: Measurement, trials: int, known: Sequence[float] = ()) -> float:
    """Return P(the true Sharpe is above what the best of all counted trials shows by luck); NaN if not computable.

    Arguments as of `best_by_luck`.
    """
    if not found.error > 0.0:
        return float("nan")
    return float(stdtr(found.contrasts, (found.value - best_by_luck(found, trials, known)) / found.error))


def overfitting_probability(performance: Floats, groups: int = 10) -> float:
    """Return PBO: how often the in-sample winner is, outside, at or below the median of all tried and at a loss.

    Symmetric cross-validation. The loss is required as well, since equal configurations of a good model are all at
    their median, and none was overfitted.

    performance  (rows, configurations) what each row earned with each configuration tried, over the baseline
    Raises       BadShape under 2 configurations or `groups` rows
    Source       Bailey, Borwein, López de Prado & Zhu 2017, J. Computational Finance 20(4)
    """
    rows, tried = performance.shape
    if tried < 2 or rows < groups:
        raise BadShape(f"PBO needs at least 2 configurations and {groups} rows, got {tried} and {rows}")
    sums = np.array([part.sum(axis=0) for part in np.array_split(performance, groups)])
    worse = []
    for inside_groups in combinations(range(groups), groups // 2):
        inside = sums[list(inside_groups)].sum(axis=0)
        outside = sums.sum(axis=0) - inside
        winner = int(np.argmax(inside))
        rank = (outside < outside[winner]).sum() + 0.5 * ((outside == outside[winner]).sum() - 1)
        worse.append(rank / (tried - 1) <= 0.5 and outside[winner] <= 0.0)
    return float(np.mean(worse))
