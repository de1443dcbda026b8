"""Test sequentially, on means of blocks of outcomes, so that looking after each block costs nothing.

Outcomes overlap: neighbours share bars, so a bet on every decision doubles one accident a dozen times. Bets are
therefore on means of blocks of `horizons` horizons. Decisions of the horizon after a block are left out: every
outcome of a block is then known before the next block starts. All here are pure functions of stored scores, so a
verdict can be computed again from the ledger.

Source  Ville 1939; Waudby-Smith and Ramdas 2024, J. R. Stat. Soc. B 86(1), bets on means of bounded variables
"""

from dataclasses import dataclass
from math import sqrt

import numpy as np

from pipelines.contracts import Estimate, Floats, Ints
from pipelines.errors import BadShape, BadValues

GAP_HORIZONS = 1  # between two blocks: an outcome of one block ends before the next block starts
# Shares of the largest bet that cannot ruin. The stake is split evenly between them, fixed before the first block:
# a large effect is found by the large bets, a small one by the small bets, at a price of log 4.
BET_SHARES = (0.9, 0.45, 0.225, 0.1125)
LEAST_BLOCKS = 15  # under this an interval of a mean of blocks is not stated


@dataclass(frozen=True, slots=True)
class BlockScores:
    """Hold (b,) blocks in time order: `start_s` epoch seconds, `mean` of the scores, `n` scores."""

    start_s: Floats
    mean: Floats
    n: Ints

    def since(self, at_s: float) -> "BlockScores":
        """Return the blocks that start at or after `at_s`, epoch seconds."""
        later = self.start_s >= at_s
        return BlockScores(self.start_s[later], self.mean[later], self.n[later])

    def interval(self) -> Estimate:
        """Return the mean of the blocks with its 95 % t interval; NaN bounds under LEAST_BLOCKS. n counts blocks."""
        count = len(self.mean)
        value = float(self.mean.mean()) if count else float("nan")
        if count < LEAST_BLOCKS:
            return Estimate(value, float("nan"), float("nan"), count)
        half = _t975(count - 1) * float(self.mean.std(ddof=1)) / sqrt(count)
        return Estimate(value, value - half, value + half, count)


def block_means(
    at_s: Floats, scores: Floats, *, origin_s: float, until_s: float, horizon_s: float, horizons: int = 5
) -> BlockScores:
    """Return the means of the scores of each whole block from `origin_s` on; blocks without a score are left out.

    at_s       (n,) epoch seconds of the decisions, any order; scores (n,) of their outcomes; NaN refused
    origin_s   start of the first block, chosen before any score; decisions before it are left out
    until_s    epoch seconds up to which outcomes are known: a block whose last outcome may come later waits
    horizon_s  longest time from a decision to its outcome, seconds; horizons: length of a block in horizons
    Raises     BadShape, BadValues
    """
    at_s, scores = np.asarray(at_s, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if at_s.shape != scores.shape or at_s.ndim != 1:
        raise BadShape(f"{at_s.shape} times but {scores.shape} scores; pass one score a decision")
    if not np.isfinite(scores).all():
        raise BadValues(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite; pass resolved ones"
        )
    if not (horizon_s > 0 and horizons >= 1):
        raise BadValues(f"horizon_s={horizon_s}, horizons={horizons}: both must be positive")
    period = (horizons + GAP_HORIZONS) * horizon_s
    number = np.floor((at_s - origin_s) / period).astype(np.int64)
    inside = at_s - origin_s - number * period < horizons * horizon_s
    whole = origin_s + (number + 1) * period <= until_s
    chosen = (number >= 0) & inside & whole
    blocks, place = np.unique(number[chosen], return_inverse=True)
    counts = np.bincount(place, minlength=len(blocks))
    sums = np.bincount(place, weights=scores[chosen], minlength=len(blocks))
    means: Floats = np.asarray(sums / np.maximum(counts, 1), dtype=np.float64)
    return BlockScores(np.asarray(origin_s + blocks * period, dtype=np.float64), means, counts)


def e_process(excess: Floats, room: float, shares: tuple[float, ...] = BET_SHARES) -> Floats:
    """Return the e-value after each block of the test that the mean excess is at most zero, whatever came before.

    excess   (..., b) block means minus the largest mean that the hypothesis allows, in time order
    room     how far below zero an excess can lie, fixed before the first block (never estimated from the scores)
    shares   of the largest bet that cannot ruin, fixed before the first block; the stake is split evenly between them
    Returns  (..., b) wealth of one unit of money betted on a positive excess; 1 / alpha or more at any time rejects
             at level alpha, and a hypothesis that holds is rejected with a chance of at most alpha
    Raises   BadValues if an excess lies below -room: the bound was not one
    """
    if not room > 0:
        raise BadValues(f"room is {room}, must be positive: the hypothesis allows every possible mean")
    if excess.size and not excess.min() >= -room * (1.0 + 1e-12):
        raise BadValues(f"an excess is {excess.min():.4g}, under the bound of {-room:.4g} fixed beforehand")
    wealth = np.zeros(excess.shape)
    for share in shares:
        wealth += np.exp(np.cumsum(np.log1p(share / room * excess), axis=-1)) / len(shares)
    return wealth


def anytime_p(e_values: Floats) -> Floats:
    """Return (..., b) p-values valid after every block: 1 over the largest e-value so far, at most 1."""
    return np.asarray(1.0 / np.maximum(1.0, np.maximum.accumulate(e_values, axis=-1)))


def rejected_at(e_values: Floats, alpha: float) -> int | None:
    """Return the index of the first block after which a hypothesis is rejected at level alpha; None if it never is."""
    over = np.flatnonzero(e_values >= 1.0 / alpha)
    return int(over[0]) if len(over) else None


def _t975(freedom: int) -> float:
    """Return the .975 quantile of Student's t, to 1e-3 from 14 degrees of freedom on.

    Source  Cornish-Fisher expansion, Abramowitz and Stegun 1972, eq. 26.7.5; SciPy is not imported in serving
    """
    z, v = 1.959963984540054, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )
