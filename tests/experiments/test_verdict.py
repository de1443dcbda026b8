"""The verdict after each block: exact on two points, right in its order, the same again from the same blocks."""

from dataclasses import replace
from itertools import product
from math import comb

import numpy as np
import pytest

from pipelines.errors import BadValues
from pipelines.experiments.verdict import (
    FUTILITY_CLIP,
    WIN_BETS,
    Rules,
    clip_bound,
    futility_evidence,
    progress_of,
    round_up,
    win_evidence,
)

RULES = Rules(alpha=0.05, bound=1.0, least_gain=0.1, futility_alpha=0.2, max_blocks=120)
UNDECIDED = np.tile([0.45, -0.35], 250)  # mean .05, between nothing and the least gain, and spread widely
BLOCKS = 10
PATHS = np.array(list(product((-1.0, 1.0), repeat=BLOCKS)))  # every sequence of two points, each as likely


def wealth_of(wins: int, blocks: int) -> float:
    """Return the wealth of the bets after so many wins, by hand: on two points it depends on their number alone."""
    return sum((1.0 + share) ** wins * (1.0 - share) ** (blocks - wins) for share in WIN_BETS) / len(WIN_BETS)


def crossing_chance(alpha: float) -> float:
    """Return the exact chance of a false promotion within BLOCKS blocks on two points, state by state."""
    alive, crossed = {0: 1.0}, 0.0
    for block in range(1, BLOCKS + 1):
        reached: dict[int, float] = {}
        for wins, chance in alive.items():
            for more in (0, 1):
                reached[wins + more] = reached.get(wins + more, 0.0) + chance / 2.0
        alive = {wins: chance for wins, chance in reached.items() if wealth_of(wins, block) < 1.0 / alpha}
        crossed += sum(chance for wins, chance in reached.items() if wins not in alive)
    return crossed


def test_on_two_points_wealth_is_the_closed_form_and_a_fair_game() -> None:
    found = win_evidence(PATHS, 1.0)
    wins = np.cumsum(PATHS > 0, axis=1)
    by_hand = [[wealth_of(int(k), n + 1) for n, k in enumerate(row)] for row in wins]
    assert found == pytest.approx(np.array(by_hand), rel=1e-10)
    assert found.mean(axis=0) == pytest.approx(np.ones(BLOCKS), rel=1e-10)
    weights = [comb(BLOCKS, k) / 2.0**BLOCKS for k in range(BLOCKS + 1)]
    assert sum(w * wealth_of(k, BLOCKS) for k, w in enumerate(weights)) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("alpha", [0.3, 0.1, 0.05, 0.02])
def test_on_two_points_the_chance_of_a_false_promotion_is_the_exact_one_and_under_its_level(alpha) -> None:
    found = float((win_evidence(PATHS, 1.0) >= 1.0 / alpha).any(axis=1).mean())
    assert found == pytest.approx(crossing_chance(alpha), abs=1e-12)
    assert 0.0 < found <= alpha


@pytest.mark.parametrize("level", [0.05, 0.1, 0.2])
def test_a_challenger_with_the_least_gain_is_stopped_at_most_that_often(level) -> None:
    """Two points at the largest gain that futility counts and as far below the least gain: the bets' worst case."""
    least, top = 0.1, FUTILITY_CLIP
    paths = np.where(np.random.default_rng(0).random((4000, 120)) < 0.5, top, 2.0 * least - top)
    stopped = float((futility_evidence(paths, 1.0, least) >= 1.0 / level).any(axis=1).mean())
    assert 0.25 * level < stopped <= level


@pytest.mark.parametrize("level", [0.05, 0.02])
def test_looking_after_every_block_promotes_no_more_than_its_level(level) -> None:
    """The spread follows the past, as of markets: a loss doubles the next stake."""
    rng = np.random.default_rng(1)
    noise = 0.1 * rng.standard_normal((4000, 120))
    for block in range(1, noise.shape[1]):
        noise[:, block] *= 1.0 + (noise[:, block - 1] < 0.0)
    promoted = float((win_evidence(np.clip(noise, -0.5, 0.5), 0.5) >= 1.0 / level).any(axis=1).mean())
    assert 0.0 < promoted <= level


# ---- states ----------------------------------------------------------------------------------------------------------


def test_a_gain_wins_a_loss_is_stopped_and_neither_expires() -> None:
    for means, state in ((np.full(120, 0.6), "won"), (np.full(120, -0.6), "stopped"), (UNDECIDED[:120], "expired")):
        assert progress_of(means, RULES).state == state
    running = progress_of(UNDECIDED[:119], RULES)
    assert (running.state, running.decided_at) == ("running", None)


def test_the_first_to_happen_decides_and_later_blocks_change_nothing() -> None:
    won_then_lost = np.concatenate([np.full(30, 0.6), np.full(90, -0.9)])
    first = progress_of(won_then_lost, RULES)
    assert first.state == "won"
    assert first.decided_at == progress_of(won_then_lost[:30], RULES).decided_at
    lost_then_won = progress_of(-won_then_lost, RULES)
    assert (lost_then_won.state, lost_then_won.e_values.max() >= 1.0 / RULES.alpha) == ("stopped", True)
    late = np.concatenate([UNDECIDED[:120], np.full(80, 0.9)])
    found = progress_of(late, RULES)
    assert (found.state, found.decided_at) == ("expired", 119)
    assert found.e_values.max() >= 1.0 / RULES.alpha  # it would have won


def test_of_two_at_one_block_the_win_comes_first_and_expiry_last() -> None:
    means = np.full(10, 0.4)
    open_rules = replace(RULES, least_gain=0.45, alpha=1e-9, futility_alpha=1e-9)
    found = progress_of(means, open_rules)
    assert (np.diff(found.e_values) > 0.0).all()
    assert (np.diff(found.futility) > 0.0).all()
    reached = {"alpha": 1.000001 / found.e_values[9], "futility_alpha": 1.000001 / found.futility[9]}
    both = replace(open_rules, **reached, max_blocks=10)
    assert (progress_of(means, both).state, progress_of(means, both).decided_at) == ("won", 9)
    no_win = replace(both, alpha=1e-9)
    assert progress_of(means, no_win).state == "stopped"
    assert progress_of(means, replace(no_win, futility_alpha=1e-9)).state == "expired"


def test_what_the_rules_leave_out_never_happens() -> None:
    better, worse = np.full(150, 0.6), np.full(150, -0.6)
    for means in (better, worse, UNDECIDED):
        assert progress_of(means, replace(RULES, alpha=0.0)).state == "running"  # a standing arm
    assert progress_of(UNDECIDED, replace(RULES, max_blocks=0)).state == "running"
    assert progress_of(worse, replace(RULES, futility_alpha=0.0)).state == "expired"
    # no block can count as such a gain, so none is evidence against it
    assert progress_of(worse, replace(RULES, least_gain=FUTILITY_CLIP)).state == "expired"


def test_the_same_blocks_give_the_same_verdict_and_fewer_blocks_its_beginning() -> None:
    means = 0.05 + 0.2 * np.random.default_rng(3).standard_normal(60)
    whole, part = progress_of(means, RULES), progress_of(means[:40], RULES)
    for name in ("e_values", "futility", "low", "high", "clipped"):
        assert getattr(part, name).tolist() == getattr(whole, name)[:40].tolist()
        assert getattr(progress_of(means.copy(), RULES), name).tolist() == getattr(whole, name).tolist()


# ---- clipping --------------------------------------------------------------------------------------------------------


def test_means_beyond_the_bound_count_as_the_bound_and_are_flagged() -> None:
    means = np.array([0.2, 3.0, -0.4, -7.0, 1.0])
    found, same = progress_of(means, RULES), progress_of(np.clip(means, -1.0, 1.0), RULES)
    assert found.clipped.tolist() == [False, True, False, True, False]
    assert found.clipped_share == 0.4
    assert same.clipped_share == 0.0
    assert found.e_values.tolist() == same.e_values.tolist()
    assert found.low.tolist() == same.low.tolist()
    assert means.tolist() == [0.2, 3.0, -0.4, -7.0, 1.0]  # the caller's numbers stay


def test_a_lucky_block_speaks_against_futility_no_more_than_three_deviations_do() -> None:
    usual = np.full(10, -0.3)
    lucky, large = usual.copy(), usual.copy()
    lucky[4], large[4] = 1.0, FUTILITY_CLIP
    assert futility_evidence(lucky, 1.0, 0.1).tolist() == futility_evidence(large, 1.0, 0.1).tolist()
    assert futility_evidence(lucky, 1.0, 0.1)[-1] < futility_evidence(usual, 1.0, 0.1)[-1]


def test_the_bound_is_so_many_deviations_rounded_up_to_two_digits() -> None:
    blocks = np.random.default_rng(4).standard_normal(60)
    exact = 5.0 * blocks.std(ddof=1)
    assert exact <= clip_bound(blocks, 5.0) < 1.1 * exact
    assert clip_bound(1e-3 * blocks, 5.0) == pytest.approx(1e-3 * clip_bound(blocks, 5.0), rel=1e-12)
    assert clip_bound(blocks + 9.0, 5.0) == clip_bound(blocks, 5.0)
    assert [round_up(x) for x in (0.01201, 0.012, 0.0991, 1.0, 123.0)] == [0.013, 0.012, 0.1, 1.0, 130.0]


@pytest.mark.parametrize("blocks", [[], [0.1], [0.1, 0.1, 0.1], [0.1, np.nan, 0.2], [0.1, np.inf]])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_bound_needs_a_spread(blocks) -> None:
    with pytest.raises(BadValues, match=f"{len(blocks)} block means have no spread"):
        clip_bound(np.array(blocks), 5.0)


def test_nothing_is_decided_before_the_first_block_and_bad_values_are_refused() -> None:
    empty = progress_of(np.array([]), RULES)
    assert (empty.state, empty.decided_at, empty.clipped_share, len(empty.low)) == ("running", None, 0.0, 0)
    with pytest.raises(BadValues, match="1 of 3 block means are not finite"):
        progress_of(np.array([0.1, np.nan, 0.2]), RULES)
    with pytest.raises(BadValues, match="must be positive"):
        progress_of(np.zeros(3), replace(RULES, bound=0.0))
    with pytest.raises(BadValues, match="must be positive"):
        progress_of(np.zeros(3), replace(RULES, bound=float("nan")))


def test_void_blocks_pass_so_that_an_experiment_that_never_counts_one_still_ends() -> None:
    assert progress_of(np.empty(0), RULES, void=119).state == "running"
    assert (progress_of(np.empty(0), RULES, void=120).state, progress_of(UNDECIDED[:20], RULES, 100).decided_at) == (
        "expired",
        19,
    )
    assert progress_of(UNDECIDED[:20], RULES, void=99).state == "running"
