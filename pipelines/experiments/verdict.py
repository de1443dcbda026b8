"""The verdict of an experiment after each block: won, stopped for futility, expired, or running on.

Pure functions of stored block means and of the rules that were fixed before the first block, so that anybody with the
ledger computes the same verdict again.
"""

from dataclasses import dataclass
from math import floor, log10
from typing import Literal

import numpy as np

from pipelines.contracts import Bools, Floats
from pipelines.errors import BadValues
from pipelines.experiments.confidence import confidence_sequence
from pipelines.experiments.eprocess import e_process, rejected_at

State = Literal["running", "won", "stopped", "expired"]
# Shares of the largest bet, as `e_process` takes them. A gain that 120 blocks show needs a large one; the second finds
# it where blocks spread twice as far as on the rows that set the bound. Four bets need a fifth more blocks.
WIN_BETS = (0.9, 0.45)
FUTILITY_BETS = (0.9,)  # one large bet: what is stopped early is harm, and a small one costs little until it expires
# of the bound, 2.5 deviations: larger gains count as so much for futility, so that the bet can be larger. This takes
# .002 deviations off the mean of a normal gain; wrong stops are measured in docs/results/ab.md, of skewed gains too
FUTILITY_CLIP = 0.5
SHOWN_LEVEL = 0.05  # of the confidence sequence that people see
CLIPPED_FLAG = 0.01  # share of clipped blocks above which the page says that the bound was too small


@dataclass(frozen=True, slots=True)
class Rules:
    """Hold what was fixed at the start of an experiment; gains are losses of the champion less the challenger's.

    alpha           chance of a false promotion, spent at the start; 0 for an arm that can win nothing
    bound           block means are clipped to -bound … bound
    least_gain      the gain that the experiment is made to find; under it a challenger is not worth promoting
    futility_alpha  chance of stopping a challenger that has this gain
    max_blocks      after so many the experiment expires; 0 = never
    """

    alpha: float
    bound: float
    least_gain: float
    futility_alpha: float
    max_blocks: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Hold the test after each of b blocks.

    e_values       (b,) evidence that the mean gain is above zero; 1 / alpha or more wins
    futility       (b,) evidence that it is below `least_gain`; 1 / futility_alpha or more stops
    low, high      (b,) confidence sequence of the mean gain at SHOWN_LEVEL
    clipped        (b,) whether the block's mean was clipped
    state          after the last block; decided_at: index of the block that ended it, None while it runs
    """

    e_values: Floats
    futility: Floats
    low: Floats
    high: Floats
    clipped: Bools
    state: State
    decided_at: int | None

    @property
    def clipped_share(self) -> float:
        """Return the share of blocks that were clipped; 0 without a block."""
        return float(self.clipped.mean()) if len(self.clipped) else 0.0


def progress_of(means: Floats, rules: Rules, void: int = 0) -> Progress:
    """Return the test of these block means, (b,) in time order and not clipped, under the rules.

    A block after the one that decides changes nothing: it is not among those that are compared.

    void    blocks that do not count, but pass: `max_blocks` are of both together
    Raises  BadValues for a mean that is not finite
    """
    means = np.asarray(means, dtype=np.float64)
    if not np.isfinite(means).all():
        raise BadValues(f"{int((~np.isfinite(means)).sum())} of {len(means)} block means are not finite")
    clipped = np.clip(means, -rules.bound, rules.bound)
    e_values = win_evidence(clipped, rules.bound)
    futility = futility_evidence(clipped, rules.bound, rules.least_gain)
    state, decided_at = _decision(e_values, futility, rules, void)
    low, high = confidence_sequence(clipped, rules.bound, SHOWN_LEVEL)
    return Progress(e_values, futility, low, high, np.abs(means) > rules.bound, state, decided_at)


def win_evidence(clipped: Floats, bound: float) -> Floats:
    """Return (..., b) e-values that the mean gain is above zero, of gains within -bound … bound in time order."""
    return e_process(clipped, bound, WIN_BETS)


def futility_evidence(clipped: Floats, bound: float, least_gain: float) -> Floats:
    """Return (..., b) e-values that the mean gain is below `least_gain`; zeros where no gain can be so large."""
    largest = FUTILITY_CLIP * bound
    if least_gain >= largest:
        return np.zeros(np.shape(clipped))
    return e_process(least_gain - np.minimum(clipped, largest), largest - least_gain, FUTILITY_BETS)


def _decision(e_values: Floats, futility: Floats, rules: Rules, void: int) -> tuple[State, int | None]:
    """Return the state, and the block that decided; of two at once the win, which is the rarer."""
    if rules.alpha <= 0.0:
        return "running", None
    ends: list[tuple[int, int, State]] = []
    if (at := rejected_at(e_values, rules.alpha)) is not None:
        ends.append((at, 0, "won"))
    if rules.futility_alpha > 0.0 and (at := rejected_at(futility, rules.futility_alpha)) is not None:
        ends.append((at, 1, "stopped"))
    if rules.max_blocks and len(e_values) + void >= rules.max_blocks:
        ends.append((max(rules.max_blocks - void, 0) - 1, 2, "expired"))
    if not ends:
        return "running", None
    at, _, state = min(ends)
    return state, at


def clip_bound(block_means: Floats, deviations: float) -> float:
    """Return the bound of block means: so many of their standard deviations, rounded up to two digits.

    Raises  BadValues where there is no deviation to take
    """
    spread = float(np.std(block_means, ddof=1)) if len(block_means) > 1 else float("nan")
    if not (np.isfinite(spread) and spread > 1e-12 * np.abs(block_means).max()):  # equal means spread by rounding
        raise BadValues(f"{len(block_means)} block means have no spread: the two arms answer the same")
    return round_up(deviations * spread)


def round_up(value: float) -> float:
    """Return a positive number rounded up to two significant digits."""
    unit = 10.0 ** (floor(log10(value)) - 1)
    return float(f"{np.ceil(value / unit * (1.0 - 1e-12)) * unit:.2g}")
