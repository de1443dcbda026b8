"""Figures with their intervals (law L9). Rows are in time order; intervals come from a moving-block bootstrap, since
neighbouring events share bars. NaN is refused everywhere: abstentions are counted before, never scored."""

from collections.abc import Callable

import numpy as np

from pipelines.contracts import Estimate, Floats, Ints
from pipelines.models.losses import checked


def auc(p: Floats, y: Floats) -> float:
    """Chance that a random winner is ranked above a random loser; ties count half. NaN with a single class."""
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
    """Mean |hit rate − mean p| over equal-count bins, weighted by count."""
    checked(p, y)
    parts = np.array_split(np.argsort(p, kind="stable"), bins)
    return float(sum(len(part) * abs(p[part].mean() - y[part].mean()) for part in parts if len(part)) / len(p))


def block_indices(n: int, block: int, draws: int, seed: int) -> Ints:
    """(draws, n) row numbers of a moving-block bootstrap (Künsch 1989); blocks of `block` neighbouring rows."""
    block = max(1, min(block, n))
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, n - block + 1, size=(draws, -(-n // block)))
    rows = (starts[:, :, None] + np.arange(block)).reshape(draws, -1)
    return np.asarray(rows[:, :n])


def default_block(n: int) -> int:
    """n^(1/3) rows, the usual rate for a mean, and never under 10 because labels overlap that far."""
    return int(max(10, round(n ** (1 / 3))))


def mean_estimate(values: Floats, draws: int, seed: int, cost_bps: float | None = None) -> Estimate:
    """Mean with a 95 % moving-block bootstrap interval."""
    n = len(values)
    if n == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0, cost_bps)
    means = values[block_indices(n, default_block(n), draws, seed)].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), n, cost_bps)


def statistic_estimate(
    statistic: Callable[[Ints], float], n: int, draws: int, seed: int, cost_bps: float | None = None
) -> Estimate:
    """Any statistic of row numbers, with a 95 % moving-block bootstrap interval; draws it cannot score are left out."""
    samples = np.array([statistic(rows) for rows in block_indices(n, default_block(n), draws, seed)])
    finite = samples[np.isfinite(samples)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    return Estimate(float(statistic(np.arange(n))), float(low), float(high), n, cost_bps)


def most_confident(p: Floats, coverage: float) -> Ints:
    """Row numbers of the `coverage` share with the highest p, in time order."""
    count = max(1, round(len(p) * coverage))
    return np.sort(np.argsort(-p, kind="stable")[:count])


def lift_bps(p: Floats, gross_bps: Floats, coverage: float) -> Callable[[Ints], float]:
    """Mean gross bps of the most confident share minus that of all rows: what the model adds to taking every signal.

    Cost is the same for each trade, so it cancels here; net figures are reported beside it.
    """

    def statistic(rows: Ints) -> float:
        chosen = most_confident(p[rows], coverage)
        return float(gross_bps[rows][chosen].mean() - gross_bps[rows].mean())

    return statistic
