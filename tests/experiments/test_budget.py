"""The yearly budget of false promotions: never reached, never given back, full again with the market year."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import BadValues
from pipelines.experiments.budget import alpha_left, next_alpha

NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)


def a_year(count: int, budget: float, share: float) -> list[tuple[datetime, float]]:
    """Return the experiments of a year that begin one after the other."""
    spent: list[tuple[datetime, float]] = []
    for number in range(count):
        at = NEW_YEAR + timedelta(days=365.0 * number / count)
        spent.append((at, next_alpha(spent, at, budget, share)))
    return spent


@given(count=st.integers(1, 150), budget=st.floats(0.01, 5.0), share=st.floats(0.001, 0.9))
def test_however_many_begin_in_a_year_their_alphas_stay_under_the_budget(count, budget, share) -> None:
    alphas = [alpha for _, alpha in a_year(count, budget, share)]
    assert sum(alphas) <= budget * (1.0 + 1e-12)
    assert all(later <= earlier for earlier, later in pairwise(alphas))


def test_an_experiment_takes_a_share_of_what_is_left() -> None:
    alphas = [alpha for _, alpha in a_year(3, 1.0, 0.02)]
    assert alphas == pytest.approx([0.02, 0.02 * 0.98, 0.02 * 0.98**2], rel=1e-12)
    assert sum(alpha for _, alpha in a_year(365, 1.0, 0.02)) == pytest.approx(1.0 - 0.98**365, rel=1e-9)


def test_the_budget_is_full_again_with_the_market_year_and_what_was_spent_before_stays_spent() -> None:
    spent = a_year(200, 1.0, 0.02)
    last_moment = NEW_YEAR.replace(year=2028) - timedelta(seconds=1)
    assert next_alpha(spent, last_moment, 1.0, 0.02) < 0.001
    assert next_alpha(spent, NEW_YEAR.replace(year=2028), 1.0, 0.02) == 0.02
    assert alpha_left(spent, NEW_YEAR, 1.0) == pytest.approx(0.98**200, rel=1e-9)
    later = [*spent, (NEW_YEAR.replace(year=2028), 0.3)]
    assert alpha_left(later, NEW_YEAR, 1.0) == alpha_left(spent, NEW_YEAR, 1.0)


def test_a_budget_that_was_lowered_under_what_is_spent_leaves_nothing() -> None:
    spent = [(NEW_YEAR, 0.5)]
    assert alpha_left(spent, NEW_YEAR, 0.4) == 0.0
    assert next_alpha(spent, NEW_YEAR, 0.4, 0.02) == 0.0
    assert alpha_left([], NEW_YEAR, 0.4) == 0.4


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_of_nothing_or_of_all_is_refused(share) -> None:
    with pytest.raises(BadValues, match="must be between 0 and 1"):
        next_alpha([], NEW_YEAR, 1.0, share)
