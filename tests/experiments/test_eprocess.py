"""E-processes on block means: their size on outcomes that overlap, and what they find."""

import numpy as np
import pytest
from scipy import stats

from pipelines.errors import BadShape, BadValues
from pipelines.experiments.eprocess import (
    BET_SHARES,
    LEAST_BLOCKS,
    anytime_p,
    block_means,
    e_process,
    rejected_at,
)

HORIZON, ALPHA = 12, 0.05


@pytest.fixture(scope="module")
def null_runs() -> np.ndarray:
    """Return 4,000 runs of 2,000 outcomes in {-1, 1} of mean zero, each the sign of the next twelve steps together."""
    steps = np.cumsum(np.random.default_rng(0).standard_normal((4000, 2000 + HORIZON), dtype=np.float32), axis=1)
    return np.sign(steps[:, HORIZON:] - steps[:, :-HORIZON])


def blocks_of(runs: np.ndarray, horizons: int, gap: int) -> np.ndarray:
    """Return block means of every run, on the grid of `block_means`; a gap of 0 is what must not be done."""
    period = (horizons + gap) * HORIZON
    whole = runs[:, : runs.shape[1] // period * period].reshape(len(runs), -1, period)
    return whole[:, :, : horizons * HORIZON].mean(axis=2, dtype=np.float64)


def false_share(means: np.ndarray) -> float:
    """Return the share of runs that are ever rejected, in either direction at half the level."""
    up, down = (np.max(e_process(sign * means, 1.0), axis=1) >= 2 / ALPHA for sign in (1, -1))
    return float((up | down).mean())


def test_a_bet_on_every_overlapping_outcome_is_wrong_and_blocks_with_a_gap_keep_the_level(null_runs) -> None:
    every = false_share(null_runs[:1000].astype(np.float64))
    one, one_with_gap = false_share(blocks_of(null_runs, 1, 0)), false_share(blocks_of(null_runs, 1, 1))
    five, five_with_gap = false_share(blocks_of(null_runs, 5, 0)), false_share(blocks_of(null_runs, 5, 1))
    assert every > 0.5
    assert one > ALPHA
    assert five_with_gap <= five <= one_with_gap + 0.005 <= ALPHA + 0.005 < one
    assert five_with_gap <= 0.02


def test_block_means_are_those_of_the_grid_with_a_gap_of_one_horizon() -> None:
    at = np.arange(40.0)
    found = block_means(at, at, origin_s=2.0, until_s=32.0, horizon_s=2.0, horizons=4)
    assert found.start_s.tolist() == [2.0, 12.0, 22.0]
    assert found.mean.tolist() == [np.arange(2, 10).mean(), np.arange(12, 20).mean(), np.arange(22, 30).mean()]
    assert found.n.tolist() == [8, 8, 8]
    assert found.since(12.0).start_s.tolist() == [12.0, 22.0]


def test_a_block_waits_for_its_last_outcome_and_no_later_score_changes_an_earlier_block() -> None:
    at, scores = np.arange(40.0), np.random.default_rng(1).standard_normal(40)
    early = block_means(at, scores, origin_s=0.0, until_s=19.9, horizon_s=2.0, horizons=4)
    later = block_means(at, np.where(at < 20, scores, 9.0), origin_s=0.0, until_s=40.0, horizon_s=2.0, horizons=4)
    assert len(early.mean) == 1  # the second block ends at 18, its last outcome at 20
    assert later.mean[0] == early.mean[0]
    shuffled = np.random.default_rng(2).permutation(40)
    again = block_means(at[shuffled], scores[shuffled], origin_s=0.0, until_s=40.0, horizon_s=2.0, horizons=4)
    assert again.mean[0] == pytest.approx(early.mean[0], rel=1e-12)


def test_blocks_without_a_score_are_left_out_and_bet_on_nothing() -> None:
    at = np.array([1.0, 25.0])
    found = block_means(at, at, origin_s=0.0, until_s=100.0, horizon_s=2.0, horizons=4)
    assert found.start_s.tolist() == [0.0, 20.0]
    assert found.n.tolist() == [1, 1]


def test_wealth_is_the_average_of_fixed_bets_worked_by_hand() -> None:
    excess = np.array([0.5, -0.25])
    by_hand = np.mean([[1 + s * 0.5, (1 + s * 0.5) * (1 - s * 0.25)] for s in BET_SHARES], axis=0)
    assert e_process(excess, 1.0) == pytest.approx(by_hand)
    assert anytime_p(np.array([0.5, 4.0, 2.0])).tolist() == [1.0, 0.25, 0.25]
    assert rejected_at(np.array([1.0, 21.0, 3.0]), 0.05) == 1
    assert rejected_at(np.array([1.0, 19.9]), 0.05) is None


@pytest.mark.parametrize("skew", [False, True])
def test_a_null_whose_spread_follows_its_own_past_keeps_the_level(skew: bool) -> None:
    rng = np.random.default_rng(3)
    noise = (rng.exponential(1.0, (4000, 300)) - 1.0 if skew else rng.standard_t(4, (4000, 300))) * 0.05
    means = np.zeros_like(noise)
    for t in range(noise.shape[1]):  # a losing run doubles the next stake of the market
        means[:, t] = np.clip(noise[:, t] * (1.0 + (means[:, t - 1] < 0 if t else 0)), -1.0, 1.0)
    assert (e_process(means - means.mean(), 1.1) >= 1 / ALPHA).any(axis=1).mean() <= ALPHA


def test_an_effect_is_found_and_the_opposite_one_is_not() -> None:
    means = np.clip(0.02 + 0.04 * np.random.default_rng(4).standard_normal((200, 200)), -0.2, 0.2)
    assert (e_process(means, 0.2) >= 1 / ALPHA).any(axis=1).mean() > 0.99
    assert (e_process(-means, 0.2) >= 1 / ALPHA).any(axis=1).mean() == 0.0


def test_a_bound_that_was_not_one_is_refused() -> None:
    with pytest.raises(BadValues, match=r"under the bound of -0\.1"):
        e_process(np.array([0.0, -0.11]), 0.1)
    with pytest.raises(BadValues, match="room"):
        e_process(np.zeros(2), 0.0)
    with pytest.raises(BadShape, match="one score a decision"):
        block_means(np.zeros(3), np.zeros(2), origin_s=0.0, until_s=1.0, horizon_s=1.0)
    with pytest.raises(BadValues, match="1 of 2 scores"):
        block_means(np.zeros(2), np.array([0.0, np.nan]), origin_s=0.0, until_s=1.0, horizon_s=1.0)


@pytest.mark.parametrize("blocks", [LEAST_BLOCKS, 30, 200])
def test_the_interval_is_students_and_too_few_blocks_have_none(blocks: int) -> None:
    at, values = np.arange(blocks) * 6.0, np.random.default_rng(5).standard_normal(blocks)
    found = block_means(at, values, origin_s=0.0, until_s=1e9, horizon_s=1.0).interval()
    low, high = stats.t.interval(0.95, blocks - 1, values.mean(), stats.sem(values))
    assert (found.low, found.high, found.n) == pytest.approx((low, high, blocks), abs=1e-4)
    few = block_means(at[: LEAST_BLOCKS - 1], values[: LEAST_BLOCKS - 1], origin_s=0.0, until_s=1e9, horizon_s=1.0)
    assert np.isnan(few.interval().low)
