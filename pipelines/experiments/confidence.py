"""A confidence sequence: an interval of the mean of bounded block means that holds after every block at once.

It is the set of means that `e_process` has not rejected so far, in either direction at half the level.

Source  Waudby-Smith and Ramdas 2024, J. R. Stat. Soc. B 86(1), section 4: betting confidence sequences
"""

import numpy as np

from pipelines.contracts import Floats
from pipelines.errors import BadValues
from pipelines.experiments.eprocess import BET_SHARES

TOLERANCE = 1e-13  # of the bound: a step of the search that is smaller ends it
STEPS = 100  # of the search, at most; it takes about six


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
    return _lower(means, float(bound), alpha / 2.0), -_lower(-means, float(bound), alpha / 2.0)


def _lower(means: Floats, bound: float, alpha: float) -> Floats:
    """Return (b,) the largest mean that has been rejected as "at most so much" at level alpha, after each block."""
    found, low = np.full(len(means), -bound), 0.0
    for last in range(len(means)):
        low = _rejected_up_to(means[: last + 1] + bound, low, bound, alpha)
        found[last] = low - bound
    return found


def _rejected_up_to(heights: Floats, low: float, bound: float, alpha: float) -> float:
    """Return the largest height whose bet has won 1 / alpha at the last block, or `low` if that is larger.

    Heights are means plus the bound, 0 to 2 bounds. The logarithm of the wealth falls with the height and is convex, so
    that Newton's steps from below never pass the height at which it is log(1 / alpha): the bound is never too high.
    """
    height = low + 1e-9 * bound
    for step in range(STEPS):
        excess, slope = _log_wealth(heights, height)
        excess += np.log(alpha)
        if excess < 0.0 and step == 0:
            return low  # not even a hair above the bound of the block before
        if excess <= 0.0 or excess < -slope * TOLERANCE * bound:
            break
        height -= excess / slope
    return height


def _log_wealth(heights: Floats, height: float) -> tuple[float, float]:
    """Return the logarithm of the last wealth of `e_process` against a mean of `height`, and its slope in `height`."""
    shares = np.array(BET_SHARES)[:, np.newaxis]
    kept = (1.0 - shares) * height + shares * heights
    logs = np.log(kept / height).sum(axis=1)
    slopes = ((1.0 - shares) / kept - 1.0 / height).sum(axis=1)
    parts = np.exp(logs - logs.max())
    return float(logs.max() + np.log(parts.mean())), float(parts @ slopes / parts.sum())
