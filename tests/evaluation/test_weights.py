"""Weight optimisers: the genetic search finds the convex optimum; trials are counted and splits are purged."""

import random

import numpy as np
import pytest

from pipelines.errors import BadShape
from pipelines.evaluation import weights
from pipelines.evaluation.weights import Events, Problem, convex, equal, expressed, genetic_loss, genetic_return, judge
from pipelines.models.losses import log_losses

FLOOR = 0.02


def problem(seed=0, n=1500, strength=(1.0, 0.4, 0.0)):
    """Return evidence whose columns have the given strengths in the true log-odds."""
    rng = np.random.default_rng(seed)
    evidence = rng.normal(0.0, 0.6, (n, len(strength)))
    odds = -0.4 + evidence @ np.array(strength)
    label = (rng.random(n) < 1.0 / (1.0 + np.exp(-odds))).astype(float)
    gross = np.where(label == 1.0, 45.0, -30.0)
    return Problem(evidence, np.full(n, -0.4), label, gross, np.ones(len(strength), bool), FLOOR, 0.2)


def events(seed=0, n=1200, knows=1.5):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1.0, 1.0, (n, 3))
    x[rng.random((n, 3)) < 0.3] = 0.0
    label = (rng.random(n) < 1.0 / (1.0 + np.exp(0.4 - knows * x[:, 0]))).astype(float)
    side, known = rng.choice([-1.0, 1.0], n), 900.0 * np.arange(n)
    gross = np.where(label == 1.0, 45.0, -30.0)
    return Events(x * side[:, None], side, label, gross, known, known + 3600.0)


def judged(resolved, optimisers=None, given=None):
    chosen = {"equal": equal, "convex": convex} | (optimisers or {})
    return judge(resolved, chosen, given or {}, 3, 0.4, 3600.0, FLOOR, 0.2, 7)


def test_the_gradient_is_that_of_the_loss():
    p, w, step = problem(), np.array([0.5, 0.3, 0.2]), 1e-6
    for c in range(3):
        moved = np.eye(3)[c] * step
        assert p.gradient(w)[c] == pytest.approx((p.log_loss(w + moved) - p.log_loss(w - moved)) / (2 * step), abs=1e-7)


def test_the_convex_solution_is_the_least_of_a_fine_grid_and_respects_the_floor():
    p = problem()
    found = convex(p, 0).weights
    grid = [
        np.array([a, b, 1.0 - a - b]) for a in np.linspace(FLOOR, 0.96, 60) for b in np.linspace(FLOOR, 0.96, 60)
        if 1.0 - a - b >= FLOOR
    ]  # fmt: skip
    assert p.log_loss(found) <= min(map(p.log_loss, grid)) + 1e-9
    assert found.sum() == pytest.approx(1.0)
    assert found.min() >= FLOOR - 1e-9
    assert found[0] > found[1] > found[2]


def test_the_genetic_search_finds_the_convex_solution_and_counts_its_candidates():
    p = problem()
    found, best = genetic_loss(p, 1), convex(p, 1)
    assert p.log_loss(found.weights) == pytest.approx(p.log_loss(best.weights), abs=1e-5)
    assert p.log_loss(found.weights) >= p.log_loss(best.weights) - 1e-9
    assert found.weights == pytest.approx(best.weights, abs=0.02)
    assert found.trials == weights.POPULATION * (weights.GENERATIONS + 1)


def test_a_seed_determines_the_search_and_pythons_generator_is_restored(monkeypatch):
    monkeypatch.setattr(weights, "GENERATIONS", 10)
    p = problem(n=200)
    random.seed(5)
    awaited = random.Random(5).random()
    first = genetic_return(p, 3)
    assert random.random() == awaited
    assert (genetic_return(p, 3).weights == first.weights).all()
    assert (genetic_return(p, 4).weights != first.weights).any()
    assert p.net_return(first.weights) >= p.net_return(equal(p, 0).weights)


def test_genes_become_weights_above_the_floor():
    assert expressed(np.array([1.0, 1.0, 0.0]), 0.1) == pytest.approx([0.45, 0.45, 0.1])
    assert expressed(np.zeros(4), 0.1) == pytest.approx([0.25] * 4)


def test_equal_weights_are_optimal_for_calibrated_independent_evidence_and_muting_it_loses():
    resolved = events(n=4000)
    found = judged(resolved, optimisers={"muted": weights.stated(np.array([0.02, 0.49, 0.49]))})
    assert found.weights["convex"][:, 0] == pytest.approx(1 / 3, abs=0.05)
    loss = weights.losses(found, resolved.label)
    without_evidence = log_losses(found.base_rate, resolved.label[found.rows]).mean()
    assert loss["convex"].mean() == pytest.approx(loss["equal"].mean(), abs=1e-3)
    assert loss["convex"].mean() < loss["muted"].mean() - 0.02
    assert loss["convex"].mean() < without_evidence - 0.02
    assert found.trials["equal"] == 0 < found.trials["convex"]


def test_a_category_that_is_never_available_gets_no_weight():
    resolved = events()
    resolved.category_scores[:, 2] = np.nan
    found = judged(resolved, optimisers={"stated": weights.stated(np.array([0.3, 0.2, 0.5]))})
    assert all((chosen[:, 2] == 0.0).all() for chosen in found.weights.values())
    assert found.weights["stated"][0] == pytest.approx([0.6, 0.4, 0.0])
    assert found.weights["convex"].sum(axis=1) == pytest.approx(1.0)


def test_later_outcomes_change_nothing_in_an_earlier_test_stretch():
    resolved = events()
    found = judged(resolved)
    reversed_labels = resolved.label.copy()
    reversed_labels[1000:] = 1.0 - reversed_labels[1000:]
    again = judged(
        Events(
            resolved.category_scores, resolved.side, reversed_labels, resolved.gross_bps, resolved.known, resolved.ended
        )
    )
    early = found.rows < 960  # the last of three stretches begins at 960 and trains none of the others
    assert early.any()
    for name in found.p:
        assert (again.p[name][early] == found.p[name][early]).all()


def test_weights_found_elsewhere_are_judged_on_the_same_events():
    resolved = events()
    fixed = np.tile([0.6, 0.2, 0.2], (len(resolved), 1))
    found = judged(resolved, given={"given": fixed}, optimisers={"fixed": weights.stated(fixed[0])})
    assert found.p["given"] == pytest.approx(found.p["fixed"], abs=1e-12)
    assert found.weights["given"].shape == (len(found.rows), 3)
    with pytest.raises(BadShape):
        judged(resolved, given={"given": fixed[:-1]})
