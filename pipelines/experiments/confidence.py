"""A confidence sequence: an interval of the mean of bounded block means that holds after every block at once.

It is the set of means that `e_process` has not rejected so far, in either direction at half the level.

Source  Waudby-Smith and Ramdas 2024, J. R. Stat. Soc. B 86(1), section 4: betting confidence sequences
"""

import numpy as np

from pipelines.contracts import Floats
from pipelines.errors import BadValues
from pipelines.experiments.eprocess import e_process

HALVINGS = 40  # of the range of possible means, for each bound: 1e-12 of it


def confidence_sequence(means: Floats, bound: float, alpha: float) -> tuple[Floats, Floats]:
    """Return the lower and the upper bound of the mean after each block; both hold after all blocks with 1 - alpha.

    means    (b,) block means in time order, within -bound … bound, NaN refused
    bound    fixed before the first block
    Returns  (b,) and (b,), lower never falls and upper never rises; -bound and bound before anything is known
    Raises   BadValues
    """
    means = np.asarray(means, dtype=np.float64)
    if not (bound > 0 and 0 < alpha < 1):
        raise BadValues(f"bound={bound}, alpha={alpha}: the bound must be positive and alpha between 0 and 1")
    if means.size and not np.abs(means).max() <= bound * (1.0 + 1e-12):
        raise BadValues(f"a block mean is {means[np.abs(means).argmax()]:.4g}, outside of -{bound:g} to {bound:g}")
    return _lower(means, bound, alpha / 2.0), -_lower(-means, bound, alpha / 2.0)


def _lower(means: Floats, bound: float, alpha: float) -> Floats:
    """Return (b,) the largest mean that has been rejected as "at most so much" at level alpha, after each block."""
    found = np.full(len(means), -bound)
    for last in range(len(means)):
        low, high = found[last - 1] if last else -bound, bound
        if not _is_rejected(means[: last + 1], low + 1e-9 * bound, bound, alpha):
            found[last] = low  # not even a hair above the bound of the block before
            continue
        for _ in range(HALVINGS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if _is_rejected(means[: last + 1], middle, bound, alpha) else (low, middle)
        found[last] = low
    return found


def _is_rejected(means: Floats, mean: float, bound: float, alpha: float) -> bool:
    """Return whether the wealth of a bet against "the mean is at most this" has reached 1 / alpha at the last block.

    The wealth falls as the mean rises: what is rejected here is rejected for every smaller mean.
    """
    if mean >= bound:
        return False
    return bool(e_process(means - mean, bound + mean)[-1] >= 1.0 / alpha)
