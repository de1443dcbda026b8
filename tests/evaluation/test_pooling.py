"""Pooling: vectors by hand, redundant evidence counts once, held-out evidence ignores its own outcomes."""

import numpy as np
import pytest

from pipelines.errors import BadShape, BadValues, NotEnoughData
from pipelines.evaluation.pooling import LEAST, Pool, agreement, correlation, fit_pool, held_out_evidence

NAN = float("nan")


def pool(correlation=None, slope=(2.0, 1.0), shift=(0.0, 0.1), base=-0.4):
    return Pool(base, np.array(slope), np.array(shift), np.eye(len(slope)) if correlation is None else correlation)


def together(rho, n=2):
    return np.full((n, n), rho) + (1.0 - rho) * np.eye(n)


def planted(seed, n, strength=1.5, extra=()):
    """Return events that the first category predicts and the second does not; `extra` are functions of the two."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.0, 1.0, (n, 2))
    label = (rng.random(n) < 1.0 / (1.0 + np.exp(0.4 - strength * x[:, 0]))).astype(float)
    side = rng.choice([-1.0, 1.0], n)
    return np.column_stack([x, *[make(x) for make in extra]]) * side[:, None], side, label


def test_evidence_and_pool_by_hand():
    """Scores .5 with the event and .3 against it: 2 · .5 = 1 and -.3 + .1 = -.2; equal weights add them to the base."""
    scores, side = np.array([[0.5, -0.3], [-0.5, 0.3], [NAN, 0.0]]), np.array([1.0, -1.0, 1.0])
    evidence = pool().evidence(scores, side)
    assert evidence == pytest.approx(np.array([[1.0, -0.2], [1.0, -0.2], [0.0, 0.0]]))
    assert pool().pooled(evidence, np.array([0.5, 0.5])) == pytest.approx([0.4, 0.4, -0.4])
    assert pool().pooled(evidence, np.array([0.75, 0.25])) == pytest.approx([1.0, 1.0, -0.4])  # -.4 + 1.5 - .1
    each = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert pool().pooled(evidence, each) == pytest.approx([1.6, -0.8, -0.4])


def test_two_identical_categories_count_once_and_similar_ones_in_between():
    twins = np.array([[0.6, 0.6]])
    equal = np.array([0.5, 0.5])
    for rho, counted in ((0.0, 1.2), (0.5, 0.8), (1.0, 0.6), (-0.9, 1.2)):
        assert pool(together(rho)).pooled(twins, equal) == pytest.approx([-0.4 + counted])


def test_the_weight_of_an_unfitted_category_goes_to_the_others():
    three = pool(slope=(2.0, 1.0, NAN), shift=(0.0, 0.1, NAN))
    evidence = three.evidence(np.array([[0.5, -0.3, 0.9]]), np.array([1.0]))
    assert three.pooled(evidence, np.array([0.25, 0.25, 0.5])) == pytest.approx([0.4])
    assert three.pooled(evidence, np.array([[0.0, 0.0, 1.0]])) == pytest.approx([-0.4])


def test_no_category_is_redundant_to_a_neutral_one():
    assert pool(together(1.0)).discount_redundancy(np.array([[0.6, 0.0]])) == pytest.approx(np.array([[0.6, 0.0]]))


def test_the_optimum_of_a_linear_discriminant_at_equal_correlations():
    rho, n = together(0.3, 4), 4
    even = pool(rho, slope=(1.0,) * n, shift=(0.0,) * n)
    assert even.discount_redundancy(np.ones((1, n)))[0] == pytest.approx(np.linalg.solve(rho, np.ones(n)))


def test_a_line_finds_what_was_planted_and_a_copy_adds_nothing():
    scores, side, label = planted(1, 20_000, extra=(lambda x: x[:, 0],))
    fitted = fit_pool(scores, side, label)
    assert fitted.slope[0] == pytest.approx(1.5, abs=0.1)
    assert fitted.slope[1] == pytest.approx(0.0, abs=0.08)
    assert fitted.correlation[0, 2] == pytest.approx(1.0, abs=0.01)
    assert fitted.correlation[0, 1] == pytest.approx(0.0, abs=0.03)
    third = np.array([1.0, 1.0, 1.0]) / 3.0
    p = 1.0 / (1.0 + np.exp(-fitted.pooled(fitted.evidence(scores, side), third)))
    for low, high in ((0.2, 0.35), (0.45, 0.6)):
        rows = (p > low) & (p < high)
        assert p[rows].mean() == pytest.approx(label[rows].mean(), abs=0.03)


def test_correlation_is_within_an_outcome_and_shrinks_with_few_rows():
    rng = np.random.default_rng(2)
    label = (rng.random(4000) < 0.5).astype(float)
    both_right = np.column_stack([label, label]) + 0.2 * rng.normal(size=(4000, 2))
    assert abs(correlation(both_right, label)[0, 1]) < 0.05
    once = rng.normal(size=(4000, 1))
    same = np.column_stack([once, once + 0.5 * rng.normal(size=(4000, 1)), np.zeros(4000)])
    many, few = correlation(same, label), correlation(same[:12], label[:12])
    assert many[0, 1] == pytest.approx(1.0 / np.sqrt(1.25), abs=0.02)
    assert few[0, 1] < np.corrcoef(same[:12, :2], rowvar=False)[0, 1]
    assert (many[2] == [0.0, 0.0, 1.0]).all()


def test_a_category_with_few_scores_is_not_fitted_and_one_with_a_constant_score_has_its_hit_rate():
    scores, side, label = planted(3, 1000, extra=(lambda x: np.full(len(x), NAN), lambda x: np.full(len(x), 0.5)))
    scores[: -LEAST + 1, 1] = 0.0
    fitted = fit_pool(scores, side, label)
    assert np.isnan(fitted.slope[1:3]).all()
    assert (fitted.slope[3], fitted.shift[3]) == (0.0, pytest.approx(0.0, abs=1e-9))
    assert (fitted.evidence(scores, side)[:, 1:3] == 0.0).all()


def test_held_out_evidence_of_an_event_does_not_depend_on_its_outcome():
    scores, side, label = planted(4, 800)
    known = 900.0 * np.arange(800)
    ended = known + 4 * 900.0
    evidence, base = held_out_evidence(scores, side, label, known, ended, 3600.0)
    assert np.isfinite(evidence).all()
    changed = label.copy()
    changed[:200] = 1.0 - changed[:200]
    again, other = held_out_evidence(scores, side, changed, known, ended, 3600.0)
    assert (again[:200] == evidence[:200]).all()
    assert (other[:200] == base[:200]).all()
    assert (again[200:] != evidence[200:]).any()


def test_what_cannot_be_pooled_is_refused():
    scores, side, label = planted(5, 100)
    with pytest.raises(NotEnoughData, match="single outcome"):
        fit_pool(scores, side, np.ones(100))
    with pytest.raises(BadValues):
        fit_pool(scores, side, np.full(100, NAN))
    with pytest.raises(BadValues):
        fit_pool(2.0 * scores + side[:, None], side, label)
    with pytest.raises(BadShape):
        agreement(scores, side[:-1])
