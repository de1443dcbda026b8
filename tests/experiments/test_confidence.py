"""The confidence sequence is the set of means that the bets have not rejected, at all blocks together."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import BadValues
from pipelines.experiments import confidence
from pipelines.experiments.confidence import confidence_sequence
from pipelines.experiments.eprocess import e_process

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/confseq_betting.json").read_text())
CASES = pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
BOUND, ALPHA = 0.25, 0.05


def a_run(seed: int, blocks: int = 60, mean: float = 0.02, spread: float = 0.05) -> np.ndarray:
    return np.clip(mean + spread * np.random.default_rng(seed).standard_normal(blocks), -BOUND, BOUND)


@CASES
def test_wealth_is_that_of_confseq(case) -> None:
    values, bound = np.array(case["values"]), GOLDEN["bound"]
    for one in case["wealth"]:
        ours = e_process(values - one["mean"], bound + one["mean"], (one["share"],))
        assert ours == pytest.approx(one["wealth"], rel=1e-10)
    for mean, theirs in zip(GOLDEN["means"], case["mixture"], strict=True):
        assert e_process(values - mean, bound + mean, tuple(GOLDEN["shares"])) == pytest.approx(theirs, rel=1e-10)


@CASES
@pytest.mark.parametrize(("name", "shares"), [("interval", 4), ("interval_of_one", 1)])
def test_the_interval_is_that_of_confseq_to_its_grid(case, name, shares, monkeypatch) -> None:
    """confseq tries means on a grid and states the one a step outside of the last that is not rejected."""
    monkeypatch.setattr(confidence, "BET_SHARES", tuple(GOLDEN["shares"][:shares]))
    low, high = confidence_sequence(np.array(case["values"]), GOLDEN["bound"], GOLDEN["alpha"])
    theirs_low, theirs_high = np.array(case[name])
    assert high[-1] - low[-1] < 1.2 * GOLDEN["bound"]  # of 2 bounds before anything is known
    for inside, outside in ((low, theirs_low), (-high, -theirs_high)):
        assert np.all(outside <= inside + 1e-9)
        assert np.all(inside - outside <= 2.0 * GOLDEN["grid"] + 1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_a_mean_is_outside_exactly_when_a_bet_against_it_has_won(seed) -> None:
    means = a_run(seed)
    low, high = confidence_sequence(means, BOUND, ALPHA)
    for mean in np.linspace(-0.9 * BOUND, 0.9 * BOUND, 37):
        above = np.maximum.accumulate(e_process(means - mean, BOUND + mean)) >= 2.0 / ALPHA
        below = np.maximum.accumulate(e_process(mean - means, BOUND - mean)) >= 2.0 / ALPHA
        assert ((mean <= low) == above).all()
        assert ((mean >= high) == below).all()


def test_the_mean_is_inside_at_all_blocks_together() -> None:
    """Two points are the bounded values on which bets win most; a rare large one is where a normal interval fails."""
    rng, alpha, runs = np.random.default_rng(0), 0.2, 60
    missed = {}
    for chance in (0.5, 0.1):
        mean = BOUND * (2.0 * chance - 1.0)
        outside = 0
        for _ in range(runs):
            low, high = confidence_sequence(np.where(rng.random(30) < chance, BOUND, -BOUND), BOUND, alpha)
            outside += bool((low > mean).any() or (high < mean).any())
        missed[chance] = outside / runs
    assert max(missed.values()) <= alpha
    assert min(missed.values()) > 0.0  # the level is used: an interval that never misses would pass the line above


@pytest.mark.parametrize("seed", range(3))
def test_bounds_only_come_closer_and_no_later_block_changes_an_earlier_bound(seed) -> None:
    means = a_run(seed)
    low, high = confidence_sequence(means, BOUND, ALPHA)
    assert (np.diff(low) >= 0.0).all()
    assert (np.diff(high) <= 0.0).all()
    assert -BOUND <= low[0] < -0.9 * BOUND  # one block says next to nothing
    assert low[-1] > -0.2 * BOUND
    early = confidence_sequence(means[:25], BOUND, ALPHA)
    assert early[0].tolist() == low[:25].tolist()
    assert early[1].tolist() == high[:25].tolist()


def test_it_is_the_same_in_either_direction_and_in_any_unit() -> None:
    means = a_run(5)
    low, high = confidence_sequence(means, BOUND, ALPHA)
    other_low, other_high = confidence_sequence(-means, BOUND, ALPHA)
    assert (-other_high).tolist() == low.tolist()
    assert (-other_low).tolist() == high.tolist()
    in_bps = confidence_sequence(1e4 * means, 1e4 * BOUND, ALPHA)
    assert in_bps[0] == pytest.approx(1e4 * low, rel=1e-9)
    whole = confidence_sequence(means / BOUND, 1, ALPHA)  # a bound without a point is no reason to cut off decimals
    assert whole[0] == pytest.approx(low / BOUND, rel=1e-9)
    assert whole[1] == pytest.approx(high / BOUND, rel=1e-9)


def test_every_block_at_the_bound_is_no_division_by_zero() -> None:
    low, high = confidence_sequence(np.full(40, BOUND), BOUND, ALPHA)
    assert 0.5 * BOUND < low[-1] < BOUND
    assert (high == BOUND).all()


def test_nothing_is_known_before_the_first_block_and_bad_values_are_refused() -> None:
    low, high = confidence_sequence(np.array([]), BOUND, ALPHA)
    assert (len(low), len(high)) == (0, 0)
    with pytest.raises(BadValues, match="bound must be positive"):
        confidence_sequence(np.zeros(3), 0.0, ALPHA)
    with pytest.raises(BadValues, match="alpha between 0 and 1"):
        confidence_sequence(np.zeros(3), BOUND, 1.0)
    with pytest.raises(BadValues, match=r"outside of -0\.25 to 0\.25"):
        confidence_sequence(np.array([0.0, 0.26]), BOUND, ALPHA)
    with pytest.raises(BadValues, match="nan"):
        confidence_sequence(np.array([0.0, np.nan]), BOUND, ALPHA)
