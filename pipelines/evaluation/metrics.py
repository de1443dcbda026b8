"""Figures of predictions and trades, each with its interval (law L9; `intervals` says how).

Rows are in time order; `known` (n,) are their times where rows of several markets share a moment, as of
`intervals.measure`. NaN is refused everywhere: abstentions are counted before and never scored. A walk-forward model
is a model a fold, calibrated by itself, so probabilities are compared within folds and chosen by their rank there.
"""

import numpy as np
from scipy.special import ndtri

from pipelines.contracts import Bools, Estimate, Floats, Ints
from pipelines.evaluation.intervals import LEAST_CONTRASTS, Measurement, mean_of, measure, ratio_of
from pipelines.models.losses import checked


def mean_estimate(values: Floats, cost_bps: float | None = None, known: Floats | None = None) -> Estimate:
    """Return the mean of (n,) values with its 95 % interval; NaN without values, NaN bounds with too few."""
    return mean_of(values, known).estimate(cost_bps)


def auc(p: Floats, y: Floats) -> float:
    """Return the probability that a random winner ranks above a random loser; ties count half; NaN with one class."""
    checked(p, y)
    losers = len(y) - y.sum()
    pairs = y.sum() * losers
    return float(_pairs_won(p, y)[y == 1].sum() / pairs) if pairs else float("nan")


def _pairs_won(p: Floats, y: Floats) -> Floats:
    """Return (n,) the pairs of a row that p orders rightly: losers below a winner, winners above a loser; ties half."""
    _, group = np.unique(p, return_inverse=True)
    won, lost = np.bincount(group, weights=y), np.bincount(group, weights=1.0 - y)
    losers_below, winners_above = np.cumsum(lost) - 0.5 * lost, won.sum() - np.cumsum(won) + 0.5 * won
    return np.asarray(np.where(y == 1, losers_below[group], winners_above[group]))


def auc_of(p: Floats, y: Floats, fold: Ints | None = None, known: Floats | None = None) -> Measurement:
    """Return the AUC over pairs of one fold (all rows are one without `fold`); NaN with one class in every fold.

    Its influences are the rows' placements (DeLong, DeLong & Clarke-Pearson 1988, Biometrics 44(3)), within each fold
    around the fold's own AUC. How far that is from the AUC of all is known to winners and losers alike, and is counted
    once: counted by both, as placements around the AUC of all have it, it doubles what folds differ by.
    """
    checked(p, y)
    fold = np.zeros(len(y), dtype=np.int64) if fold is None else fold
    won, pairs, expected = np.zeros(len(y)), np.zeros(len(y)), np.zeros(len(y))
    for number in np.unique(fold):
        rows = fold == number
        won[rows] = _pairs_won(p[rows], y[rows])
        winners = y[rows].sum()
        pairs[rows] = np.where(y[rows] == 1, rows.sum() - winners, winners)
        expected[rows] = pairs[rows] * (won[rows].sum() / max(pairs[rows].sum(), 1.0))
    total = pairs.sum() / 2.0  # every pair was counted by both its rows
    if total == 0.0:
        return Measurement(float("nan"), float("nan"), LEAST_CONTRASTS, len(y), "one outcome only")
    value = float(won.sum() / 2.0 / total)
    return measure(value, len(y) * (won - expected + (expected - value * pairs) / 2.0) / total, known=known)


def auc_estimate(p: Floats, y: Floats, fold: Ints | None = None, known: Floats | None = None) -> Estimate:
    """Return `auc_of` with its 95 % interval."""
    return auc_of(p, y, fold, known).estimate()


def ranks_within(p: Floats, fold: Ints) -> Floats:
    """Return (n,) the share of the row's own fold with a lower p, ties half: in (0, 1)."""
    found = np.empty(len(p))
    for number in np.unique(fold):
        rows = fold == number
        _, group, counts = np.unique(p[rows], return_inverse=True, return_counts=True)
        found[rows] = (np.cumsum(counts) - 0.5 * counts)[group] / rows.sum()
    return found


def chosen(rank: Floats, coverage: float) -> Bools:
    """Return (n,) whether a row is among the most confident `coverage` share, by its rank in [0, 1].

    rank  the share of the predictions the model made before this row that are lower: the threshold is then known when
          the row is decided, and as many rows as exceed it are chosen
    """
    return np.asarray(rank >= 1.0 - coverage)


def mean_of_chosen(
    values: Floats, taken: Bools, cost_bps: float | None = None, known: Floats | None = None
) -> Estimate:
    """Return the mean of values (n,) on the rows taken (n,), with its 95 % interval over all rows' time."""
    return ratio_of(values * taken, taken.astype(np.float64), int(taken.sum()), known).estimate(cost_bps)


def lift_of(taken: Bools, gross_bps: Floats, known: Floats | None = None) -> Measurement:
    """Return mean gross bps of the rows taken (n,) minus that of all rows; NaN if none is taken.

    It is what the model adds to taking every signal. Cost is the same for each trade, so it cancels here.
    """
    n, count = len(taken), int(taken.sum())
    if count == 0:
        return Measurement(float("nan"), float("nan"), LEAST_CONTRASTS, 0, "no row is taken")
    mean, every = float(gross_bps[taken].mean()), float(gross_bps.mean())
    influence = n * np.where(taken, gross_bps - mean, 0.0) / count - (gross_bps - every)
    return measure(mean - every, influence, count, known)


def lift_of_spread(deviation: float, coverage: float) -> float:
    """Return by how much the hit rate of the most confident `coverage` share exceeds that of all rows.

    deviation  of the true chances, taken as normal, of a model that knows them
    """
    edge = float(ndtri(coverage))
    return deviation * float(np.exp(-0.5 * edge**2) / np.sqrt(2.0 * np.pi)) / coverage


def lift_estimate(
    taken: Bools, gross_bps: Floats, cost_bps: float | None = None, known: Floats | None = None
) -> Estimate:
    """Return `lift_of` with its 95 % interval; `cost_bps` is only recorded with it."""
    return lift_of(taken, gross_bps, known).estimate(cost_bps)


# ---- resampling, for simulated paths ------------------------------------------------------------------------------


def block_starts(n: int, block: int, draws: int, seed: int) -> Ints:
    """Return (draws, ceil(n / block)) first rows of the blocks of a moving-block bootstrap (Künsch 1989)."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.integers(0, n - block + 1, size=(draws, -(-n // block))))


def block_indices(n: int, block: int, draws: int, seed: int) -> Ints:
    """Return (draws, n) row numbers of a moving-block bootstrap with blocks of `block` rows, the last one cut."""
    block = max(1, min(block, n))
    rows = (block_starts(n, block, draws, seed)[:, :, None] + np.arange(block)).reshape(draws, -1)
    return np.asarray(rows[:, :n])


def default_block(n: int) -> int:
    """Return the block length of a simulated path: n^(1/3) rows, at least 10 because labels overlap that far."""
    return int(max(10, round(n ** (1 / 3))))


def interval(samples: Floats, value: float, n: int, cost_bps: float | None = None) -> Estimate:
    """Return a value with the middle 95 % of its finite simulated samples; NaN bounds if none is finite."""
    finite = samples[np.isfinite(samples)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), n, cost_bps)
