"""The yearly budget of false promotions: what is spent on an experiment is never given back (alpha spending)."""

from collections.abc import Sequence
from datetime import datetime

from pipelines.errors import BadValues


def alpha_left(spent: Sequence[tuple[datetime, float]], at: datetime, year_budget: float) -> float:
    """Return what is left of the budget of the market year of `at`.

    spent  (start in market time, alpha) of every experiment ever begun; those of other years do not count
    """
    used = sum(alpha for start, alpha in spent if start.year == at.year)
    return max(0.0, year_budget - used)


def next_alpha(spent: Sequence[tuple[datetime, float]], at: datetime, year_budget: float, budget_share: float) -> float:
    """Return the alpha of an experiment that begins at `at`, market time: a share of what its year has left.

    The sum over a year never reaches the budget, so that the expected number of false promotions stays below it.
    Raises  BadValues for a share that is not between 0 and 1
    """
    if not 0.0 < budget_share < 1.0:
        raise BadValues(f"budget_share is {budget_share}, must be between 0 and 1")
    return budget_share * alpha_left(spent, at, year_budget)
