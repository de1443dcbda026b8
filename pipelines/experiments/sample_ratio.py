"""The sample-ratio test: whether units fall to the challenger as often as was stated.

Where they do not, the arms differ by more than their models, and no comparison of them means anything.

A unit is one symbol in one block; it is the challenger's with the weight of its stage, whatever came before. The test
may be looked at after every unit. Nothing but `math` is needed.

Source  Lindon and Malek 2022, Adv. Neural Inf. Process. Syst. 35, anytime-valid inference for multinomial counts
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, isfinite, lgamma, log, log1p

from pipelines.errors import BadValues

# The prior of the true share is Beta(c w, c (1 - w)) with c = 1, as if one unit had been seen: its mean is the stated
# weight w, and most of it lies near no unit and all units, which is how a split breaks. At w = 1/2 it is Jeffreys'.
PRIOR_UNITS = 1.0
LARGEST_LOG = 700.0  # e-values above exp(700) are returned as that


@dataclass(frozen=True, slots=True)
class StageCount:
    """Hold what was counted in a stage: `units` in all and those in the challenger's arm, at its stated weight."""

    weight: float
    units: int
    in_challenger: int


def sample_ratio(stages: Sequence[StageCount]) -> float:
    """Return the e-value of the test that units fall to the challenger with the stated weights, whatever came before.

    stages   one or more, each with its own weight; a weight may come again, since the stages are betted on apart
    Returns  product over the stages of how much likelier a share drawn from the prior makes the counts than the stated
             weight does; 1 without a unit. 1 / alpha or more at any time: the split is broken, and one that is not is
             called so with a chance of at most alpha
    Raises   BadValues for a weight that is not between 0 and 1, or counts that are none
    """
    return exp(min(sum(_log_ratio(stage) for stage in stages), LARGEST_LOG))


def _log_ratio(stage: StageCount) -> float:
    """Return the logarithm of the Beta-binomial likelihood over the binomial one, of units in the order they came."""
    weight, hits, misses = stage.weight, stage.in_challenger, stage.units - stage.in_challenger
    if not (isfinite(weight) and 0.0 < weight < 1.0):
        raise BadValues(
            f"a stage's weight is {weight}, must be between 0 and 1: without chance there is nothing to test"
        )
    if hits < 0 or misses < 0:
        raise BadValues(f"{hits} of {stage.units} units are the challenger's: counts must be 0 or more, and of all")
    a, b = PRIOR_UNITS * weight, PRIOR_UNITS * (1.0 - weight)
    mixture = _log_beta(a + hits, b + misses) - _log_beta(a, b)
    return mixture - hits * log(weight) - misses * log1p(-weight)


def _log_beta(a: float, b: float) -> float:
    """Return the logarithm of the Beta function."""
    return lgamma(a) + lgamma(b) - lgamma(a + b)
