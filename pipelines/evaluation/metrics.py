"""Figures with their intervals (law L9).

Rows are in time order. Intervals come from a moving-block bootstrap, since neighbouring events share bars. NaN is
refused everywhere: abstentions are counted before and never scored.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pipelines.contracts import Estimate, Floats, Ints
from pipelines.models.losses import checked


def auc(p: Floats, y: Floats) -> float:
    """Return the probability that a random winner ranks above a random loser; ties count half; NaN with one class."""
    checked(p, y)
    positives = int(y.sum())
    negatives = len(y) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    order = np.argsort(p, kind="stable")
    _, inverse, counts = np.unique(p[order], return_inverse=True, return_counts=True)
    rank_of_value = np.cumsum(counts) - (counts - 1) / 2.0
    ranks = rank_of_value[inverse]
    return float((ranks[y[order] == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def expected_calibration_error(p: Floats, y: Floats, bins: int = 10) -> float:
    """Return the mean |hit rate − mean p| over equal-count bins, weighted by count."""
    checked(p, y)
    parts = np.array_split(np.argsort(p, kind="stable"), bins)
    return float(sum(len(part) * abs(p[part].mean() - y[part].mean()) for part in parts if len(part)) / len(p))


def block_starts(n: int, block: int, draws: int, seed: int) -> Ints:
    """Return (draws, ceil(n / block)) first rows of the blocks of a moving-block bootstrap (Künsch 1989)."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.integers(0, n - block + 1, size=(draws, -(-n // block))))


def block_indices(n: int, block: int, draws: int, seed: int) -> Ints:
    """Return (draws, n) row numbers of a moving-block bootstrap with blocks of `block` rows, the last one cut."""
    block = max(1, min(block, n))
    rows = (block_starts(n, block, draws, seed)[:, :, None] + np.arange(block)).reshape(draws, -1)
    return np.asarray(rows[:, :n])


def resampled(n: int, draws: int, seed: int) -> Iterator[Floats]:
    """Yield for each draw (n,) how often each row was drawn: the draws of `block_indices`, with less memory."""
    block = max(1, min(default_block(n), n))
    starts = block_starts(n, block, draws, seed)
    whole, rest = n // block, n % block
    for row in starts:
        steps = np.zeros(n + 1)
        np.add.at(steps, row[:whole], 1.0)
        np.add.at(steps, row[:whole] + block, -1.0)
        if rest:
            steps[row[-1]] += 1.0
            steps[row[-1] + rest] -= 1.0
        yield np.cumsum(steps[:-1])


def default_block(n: int) -> int:
    """Return the block length: n^(1/3) rows, the usual rate for a mean, at least 10 because labels overlap that far."""
    return int(max(10, round(n ** (1 / 3))))


def block_sums(values: Floats, starts: Ints, block: int) -> Floats:
    """Return (draws,) sums of values (n,) over the blocks of each draw of `block_starts`, the last cut to n rows."""
    n = len(values)
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])  # a block's sum is a difference of two
    whole, rest = n // block, n % block
    sums = (total[starts[:, :whole] + block] - total[starts[:, :whole]]).sum(axis=1)
    if rest:
        sums += total[starts[:, -1] + rest] - total[starts[:, -1]]
    return np.asarray(sums)


def mean_estimate(values: Floats, draws: int, seed: int, cost_bps: float | None = None) -> Estimate:
    """Return the mean with a 95 % moving-block bootstrap interval; NaN without values."""
    n = len(values)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, cost_bps)
    block = max(1, min(default_block(n), n))
    means = block_sums(values, block_starts(n, block, draws, seed), block) / n
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), n, cost_bps)


def statistic_estimate(
    statistic: Callable[[Ints], float], n: int, draws: int, seed: int, cost_bps: float | None = None
) -> Estimate:
    """Return a statistic of row numbers with a 95 % moving-block bootstrap interval, without draws it cannot score."""
    samples = np.array([statistic(rows) for rows in block_indices(n, default_block(n), draws, seed)])
    return interval(samples, float(statistic(np.arange(n))), n, cost_bps)


def most_confident(p: Floats, coverage: float) -> Ints:
    """Return the row numbers of the `coverage` share with the highest p, in time order."""
    count = max(1, round(len(p) * coverage))
    return np.sort(np.argsort(-p, kind="stable")[:count])


def interval(samples: Floats, value: float, n: int, cost_bps: float | None = None) -> Estimate:
    """Return a value with the middle 95 % of its finite bootstrap samples; NaN bounds if none is finite."""
    finite = samples[np.isfinite(samples)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), n, cost_bps)


def auc_estimate(p: Floats, y: Floats, draws: int, seed: int) -> Estimate:
    """Return `auc` with its interval; ranks are computed once, and a draw only counts how often each row was drawn."""
    value = auc(p, y)
    _, group = np.unique(p, return_inverse=True)
    size = int(group.max()) + 1 if len(group) else 0
    samples = []
    for times in resampled(len(y), draws, seed):
        won = np.bincount(group, times * y, size)
        lost = np.bincount(group, times * (1.0 - y), size)
        both = won.sum() * lost.sum()
        samples.append((won * (np.cumsum(lost) - 0.5 * lost)).sum() / both if both else np.nan)
    return interval(np.array(samples), value, len(y))


def lift_estimate(
    p: Floats, gross_bps: Floats, coverage: float, draws: int, seed: int, cost_bps: float | None = None
) -> Estimate:
    """Return mean gross bps of the most confident share minus that of all rows, with its interval.

    It is what the model adds to taking every signal. Cost is the same for each trade, so it cancels here.
    """
    n = len(p)
    value = float(gross_bps[most_confident(p, coverage)].mean() - gross_bps.mean())
    order = np.argsort(-p, kind="stable")
    sorted_gross, count = gross_bps[order], max(1, round(n * coverage))
    samples = []
    for times in resampled(n, draws, seed):
        drawn = times[order]
        taken = np.clip(count - (np.cumsum(drawn) - drawn), 0.0, drawn)  # the last chosen row may count in part
        samples.append((taken * sorted_gross).sum() / count - (times * gross_bps).sum() / n)
    return interval(np.array(samples), value, n, cost_bps)
