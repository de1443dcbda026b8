"""Splits, figures and their intervals, luck: against values worked by hand or known in closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from benchmarks.gate_scenarios import binary
from pipelines.errors import BadShape, BadValues, NotEnoughData
from pipelines.evaluation.calibration import calibration_error
from pipelines.evaluation.deflation import (
    best_by_luck,
    deflated_sharpe,
    expected_best_sharpe,
    overfitting_probability,
    probabilistic_sharpe,
    sharpe_of,
)
from pipelines.evaluation.metrics import auc, auc_of, chosen, lift_of, ranks_within
from pipelines.labels.splits import combinatorial, walk_forward
from pipelines.models.losses import brier_losses, log_losses

events = st.lists(st.floats(0.1, 50.0), min_size=60, max_size=200)


@given(gaps=events, life=st.floats(0.0, 30.0), embargo=st.floats(0.0, 40.0))
def test_no_training_label_touches_the_test_window_or_its_embargo(gaps, life, embargo):
    known = np.cumsum(gaps)
    try:
        splits = walk_forward(known, known + life, 4, 0.4, embargo)
    except NotEnoughData:
        return
    for split in splits:
        assert (known[split.train] + life + embargo < known[split.test[0]]).all()


def test_walk_forward_scores_every_later_event_once():
    known = np.arange(100.0)
    splits = walk_forward(known, known + 1, 5, 0.4, 0.5)
    np.testing.assert_array_equal(np.concatenate([s.test for s in splits]), np.arange(40, 100))


def test_combinatorial_training_rows_stay_clear_of_every_test_group():
    known, ended = np.arange(120.0), np.arange(120.0) + 3
    splits = combinatorial(known, ended, groups=6, test_groups=2, embargo_s=5.0)
    assert len(splits) == 15
    for split in splits:
        for group in np.split(split.test, np.flatnonzero(np.diff(split.test) > 1) + 1):
            near = (ended[split.train] + 5 >= known[group[0]]) & (known[split.train] <= ended[group].max() + 5)
            assert not near.any()


def test_losses_and_ranking_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    y = (rng.random(500) < 0.4).astype(float)
    p = np.round(np.clip(0.4 + 0.2 * (y - 0.4) + rng.normal(0, 0.2, 500), 0.01, 0.99), 2)  # rounded: ties happen
    assert log_losses(p, y).mean() == pytest.approx(log_loss(y, p))
    assert brier_losses(p, y).mean() == pytest.approx(brier_score_loss(y, p))
    assert auc(p, y) == pytest.approx(roc_auc_score(y, p))


def test_a_nan_probability_is_refused_not_scored():
    with pytest.raises(BadValues, match="1 probabilities"):
        log_losses(np.array([0.5, np.nan]), np.array([0.0, 1.0]))
    with pytest.raises(BadShape):
        auc(np.array([0.5]), np.array([0.0, 1.0]))


def test_a_lift_is_what_the_taken_rows_earned_over_everything_with_the_error_of_both():
    rng = np.random.default_rng(7)
    gross, taken = rng.normal(0.0, 40.0, 4000), rng.random(4000) < 0.2
    found = lift_of(taken, gross)
    assert found.value == pytest.approx(gross[taken].mean() - gross.mean())
    expected = gross.std() * np.sqrt(1 / taken.sum() - 1 / 4000)  # the rows taken are among all rows
    errors = [lift_of(rng.random(4000) < 0.2, rng.normal(0.0, 40.0, 4000)).error for _ in range(100)]
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(expected, rel=0.05)


def test_an_auc_is_over_pairs_of_one_fold_so_folds_calibrated_apart_add_nothing():
    rng = np.random.default_rng(8)
    fold, y = np.repeat([1, 2], 1000), np.concatenate([rng.random(1000) < 0.3, rng.random(1000) < 0.7]).astype(float)
    p = np.where(fold == 1, 0.3, 0.7) + rng.normal(0, 0.01, 2000)  # knows the fold and nothing else
    pooled, within = auc_of(p, y), auc_of(p, y, fold)
    assert pooled.estimate().low > 0.6  # what was read as skill before
    assert within.estimate().low < 0.5 < within.estimate().high
    assert within.value == pytest.approx((auc(p[:1000], y[:1000]) * pairs(y[:1000]) + auc(p[1000:], y[1000:])
                                          * pairs(y[1000:])) / (pairs(y[:1000]) + pairs(y[1000:])))  # fmt: skip


def pairs(y):
    return y.sum() * (1 - y).sum()


def test_the_error_of_an_auc_is_delongs_where_rows_are_independent():
    rng = np.random.default_rng(9)
    found = []
    for _ in range(200):
        y = (rng.random(600) < 0.4).astype(float)
        found.append(auc_of(1 / (1 + np.exp(-rng.normal(size=600) - 0.3 * y)), y))
    spread = np.std([each.value for each in found])
    assert np.sqrt(np.mean([each.error**2 for each in found])) == pytest.approx(spread, rel=0.15)
    covered = [each.estimate().low <= 0.584 <= each.estimate().high for each in found]  # Φ(.3 / √2)
    assert np.mean(covered) > 0.91


def test_the_error_of_an_auc_within_folds_is_not_widened_by_what_folds_differ_by():
    """Counted by winners and by losers, the folds' own AUC made the error a quarter too large."""
    found = []
    for seed in range(250):
        e = binary("validator", 1500, 0.58, np.random.default_rng([12, seed]))
        found.append(auc_of(e.p, e.y, e.fold))
    spread = np.std([each.value for each in found])
    assert np.sqrt(np.mean([each.error**2 for each in found])) == pytest.approx(spread, rel=0.12)


def test_confident_rows_are_those_above_a_threshold_of_earlier_predictions():
    assert chosen(np.array([0.79, 0.8, 0.95, np.nan]), 0.2).tolist() == [False, True, True, False]
    fold = np.repeat([0, 1], 500)
    p = np.where(fold == 0, 0.2, 0.6) + np.tile(np.linspace(0, 0.1, 500), 2)
    taken = chosen(ranks_within(p, fold), 0.2)
    assert [taken[fold == k].mean() for k in (0, 1)] == [0.2, 0.2]  # pooled: none of the first fold, 40 % of the second


def test_calibration_error_is_zero_for_the_truth_and_large_for_an_overconfident_model():
    rng = np.random.default_rng(2)
    p = rng.uniform(0.2, 0.8, 20_000)
    y = (rng.random(20_000) < p).astype(float)
    assert calibration_error(p, y).error.value < 0.012
    wrong = calibration_error(np.where(p > 0.5, 0.99, 0.01), y)
    assert wrong.error.low > 0.3
    assert wrong.chance < 1e-6


def test_probabilistic_sharpe_of_normal_returns_is_its_t_test():
    x = np.random.default_rng(3).normal(0.05, 1.0, 4000)
    from scipy.stats import norm

    naive = norm.cdf(x.mean() / x.std(ddof=1) * np.sqrt(3999) / np.sqrt(1 + 0.5 * (x.mean() / x.std(ddof=1)) ** 2))
    assert probabilistic_sharpe(x) == pytest.approx(naive, abs=0.01)


def test_more_trials_deflate_the_same_sharpe():
    x = np.random.default_rng(4).normal(0.08, 1.0, 1000)
    found = sharpe_of(x)
    assert deflated_sharpe(found, 1) > deflated_sharpe(found, 10) > deflated_sharpe(found, 1000)
    best = [np.random.default_rng(k).normal(size=(50, 400)) for k in range(200)]
    observed = np.mean([(b.mean(axis=1) / b.std(axis=1, ddof=1)).max() for b in best])
    assert expected_best_sharpe(50, 1 / np.sqrt(399)) == pytest.approx(observed, rel=0.1)
    same = [found.value] * 2000  # trials that do not differ are one trial
    assert deflated_sharpe(found, 10, same) == pytest.approx(deflated_sharpe(found, 1), abs=0.01)
    assert deflated_sharpe(found, 10, [*np.linspace(-0.3, 0.3, 9), found.value]) < deflated_sharpe(found, 10)


def test_each_stored_trial_moves_the_luck_of_the_best_by_its_share():
    """The fifth stored trial put their deviation in the place of the error: half the luck was gone at once."""
    found = sharpe_of(np.random.default_rng(4).normal(0.08, 1.0, 1000))
    ratios = found.value + 0.2 * found.error * np.random.default_rng(5).standard_normal(40)
    luck = np.array([best_by_luck(found, 40, ratios[:k]) for k in range(41)])
    assert luck[0] == luck[1] == pytest.approx(expected_best_sharpe(40, found.error))
    assert np.abs(np.diff(luck) / luck[:-1]).max() < 0.12
    assert luck[40] < 0.4 * luck[0]


def test_the_best_of_ten_overlapping_noise_strategies_passes_no_oftener_than_stated():
    """Taken as independent, trades that share six bars passed in 12 to 20 % of cases at a nominal 5 %."""
    passed = old = 0
    for seed in range(250):
        rng = np.random.default_rng([11, seed])
        trials = [np.convolve(rng.standard_normal(405), np.ones(6), "valid") for _ in range(10)]
        found = [sharpe_of(each) for each in trials]
        best = max(found, key=lambda each: each.value)
        passed += deflated_sharpe(best, 10, [each.value for each in found]) >= 0.95
        independent = best.value * np.sqrt(399) - expected_best_sharpe(10, 1.0)
        old += independent > 1.645
    assert old / 250 > 0.12
    assert passed / 250 <= 0.05


def test_a_choice_among_noise_is_overfitted_and_one_among_equals_that_earn_is_not():
    rng = np.random.default_rng(5)
    noise = np.mean([overfitting_probability(rng.normal(size=(400, 20))) for _ in range(20)])
    assert 0.3 < noise < 0.7
    shared = rng.normal(0.3, 1.0, (400, 1))
    assert overfitting_probability(shared + rng.normal(0.0, 0.2, (400, 3))) < 0.02
    with pytest.raises(BadShape, match="2 configurations"):
        overfitting_probability(shared)
