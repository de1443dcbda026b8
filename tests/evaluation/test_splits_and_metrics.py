"""Splits, figures and their intervals, luck: against values worked by hand or known in closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from pipelines.errors import BadShape, BadValues, NotEnoughData
from pipelines.evaluation.deflation import (
    deflated_sharpe,
    expected_best_sharpe,
    overfitting_probability,
    probabilistic_sharpe,
)
from pipelines.evaluation.metrics import (
    auc,
    auc_estimate,
    block_indices,
    default_block,
    expected_calibration_error,
    lift_estimate,
    mean_estimate,
    most_confident,
    resampled,
)
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


def test_the_interval_of_a_mean_covers_it_about_as_often_as_stated():
    rng = np.random.default_rng(1)
    inside = 0
    for seed in range(200):
        got = mean_estimate(rng.normal(0.3, 1.0, 200), 300, seed)
        inside += got.low <= 0.3 <= got.high
    assert 176 <= inside <= 199  # 95 % nominal; blocks cost a little coverage


def test_lift_is_what_the_chosen_share_earned_over_everything():
    p, gross = np.array([0.9, 0.1, 0.8, 0.2]), np.array([10.0, -10.0, 20.0, 0.0])
    assert most_confident(p, 0.5).tolist() == [0, 2]
    assert lift_estimate(p, gross, 0.5, 100, 0).value == pytest.approx(15.0 - 5.0)


def test_the_fast_resampling_gives_the_intervals_of_drawing_the_rows_themselves():
    rng = np.random.default_rng(5)
    p, gross = rng.random(517), rng.normal(size=517)
    y = (rng.random(517) < p).astype(float)
    drawn = block_indices(517, default_block(517), 200, 1)
    for counts, rows in zip(resampled(517, 200, 1), drawn, strict=True):
        np.testing.assert_array_equal(counts, np.bincount(rows, minlength=517))

    def ends(samples):
        return pytest.approx(np.quantile(samples, [0.025, 0.975]).tolist(), abs=1e-9)

    found = mean_estimate(gross, 200, 1)
    assert [found.low, found.high] == ends(gross[drawn].mean(axis=1))
    found = auc_estimate(np.round(p, 2), y, 200, 1)  # with ties
    assert [found.low, found.high] == ends([auc(np.round(p, 2)[rows], y[rows]) for rows in drawn])
    lifts = [gross[rows][most_confident(p[rows], 0.2)].mean() - gross[rows].mean() for rows in drawn]
    found = lift_estimate(p, gross, 0.2, 200, 1)
    assert [found.low, found.high] == ends(lifts)


def test_calibration_error_is_zero_for_the_truth_and_large_for_an_overconfident_model():
    rng = np.random.default_rng(2)
    p = rng.uniform(0.2, 0.8, 20_000)
    y = (rng.random(20_000) < p).astype(float)
    assert expected_calibration_error(p, y) < 0.02
    assert expected_calibration_error(np.where(p > 0.5, 0.99, 0.01), y) > 0.3


def test_probabilistic_sharpe_of_normal_returns_is_its_t_test():
    x = np.random.default_rng(3).normal(0.1, 1.0, 4000)
    from scipy.stats import norm

    expected = norm.cdf(x.mean() / x.std(ddof=1) * np.sqrt(3999) / np.sqrt(1 + 0.5 * (x.mean() / x.std(ddof=1)) ** 2))
    assert probabilistic_sharpe(x) == pytest.approx(expected, abs=0.01)


def test_more_trials_deflate_the_same_sharpe():
    x = np.random.default_rng(4).normal(0.08, 1.0, 1000)
    assert deflated_sharpe(x, 1) > deflated_sharpe(x, 10) > deflated_sharpe(x, 1000)
    best = [np.random.default_rng(k).normal(size=(50, 400)) for k in range(200)]
    observed = np.mean([(b.mean(axis=1) / b.std(axis=1, ddof=1)).max() for b in best])
    assert expected_best_sharpe(400, 50) == pytest.approx(observed, rel=0.1)


def test_overfitting_is_found_on_noise_and_absent_with_a_real_edge():
    rng = np.random.default_rng(5)
    noise = np.mean([overfitting_probability(rng.normal(size=(400, 8))) for _ in range(20)])
    assert 0.35 < noise < 0.65
    edge = rng.normal(size=(400, 8))
    edge[:, 3] += 0.5
    assert overfitting_probability(edge) < 0.05
