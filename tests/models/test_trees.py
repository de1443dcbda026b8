"""Leaves hold the stated number of events, whatever the base rate and the decay: counted in fitted trees."""

import numpy as np
import pytest

from pipelines.family_params import BoostedParams, ForestParams
from pipelines.labels.weights import effective_rows, event_decay
from pipelines.models import predictor, validator
from pipelines.models.base import Dataset
from pipelines.models.baselines import logistic
from pipelines.models.trees import fit_boosted, fit_forest, least_hessian
from pipelines.settings import load_params

PARAMS = load_params()
BOOSTED = BoostedParams(trees=30, depth=6, learning_rate=0.1, leaf_events=250, subsample=1.0, reg_lambda=5.0)
FOREST = ForestParams(trees=20, depth=7, leaf_events=60)
N = 8_000


def events(rate, seed=3):
    """Return (rows, y) of N events of a weak signal around a base rate."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(N, 5))
    odds = np.log(rate / (1 - rate)) + 0.2 * rows[:, 0]
    return rows, (rng.random(N) < 1 / (1 + np.exp(-odds))).astype(int)


def smallest_leaves(model, rows, weight):
    """Return (trees,) the least sum of weights of a leaf of each tree."""
    leaves = model.apply(rows).astype(int)
    return np.array([min(total for total in np.bincount(tree, weight) if total > 0) for tree in leaves.T])


@pytest.mark.parametrize("rate", [0.05, 0.15, 0.4, 0.5])
def test_a_boosted_leaf_holds_the_stated_events_at_any_base_rate(rate):
    rows, y = events(rate)
    model = fit_boosted(rows, y, np.ones(N), float(N), BOOSTED, seed=7)
    smallest = smallest_leaves(model, rows, np.ones(N))
    assert (
        smallest.min() >= 0.7 * BOOSTED.leaf_events
    )  # a leaf of more outcomes than the base rate has a larger hessian
    assert smallest.min() <= 1.4 * BOOSTED.leaf_events  # and the trees do use what they are allowed


def test_the_validators_leaves_are_those_of_the_hessian_sum_of_60_at_a_base_rate_of_two_fifths():
    y = np.repeat([0, 1], [60, 40])
    assert least_hessian(PARAMS.validator.leaf_events, y, np.ones(100)) == pytest.approx(60.0)
    assert least_hessian(PARAMS.predictor.boosted.leaf_events, y[:80:2] * 0 + np.tile([0, 1], 20), np.ones(40)) == 60.0


def test_forgotten_events_fill_no_leaf_of_the_validator():
    """Under a half-life of 500 a leaf of the newest events alone holds a few hundred: their decay is near 1."""
    rows, y = events(0.4)
    rows[:, 0] = np.arange(N) / N  # time: the trees can cut off the newest events
    rng = np.random.default_rng(1)
    y[-1_000:] = rng.random(1_000) < np.linspace(0.1, 0.9, 1_000)
    weight = event_decay(np.arange(N, dtype=float), 500.0)
    model = validator.fit_trees(rows, y, weight, PARAMS)
    counted = smallest_leaves(model, rows, np.ones(N))
    assert counted.min() >= 0.4 * PARAMS.validator.leaf_events


@pytest.mark.parametrize("scale", [1.0, 1e-3, 50.0])
def test_a_forests_tree_draws_the_effective_rows_and_a_leaf_holds_its_events_of_them(scale):
    rows, y = events(0.5)
    rows[:, 0] = np.arange(N) / N
    decay = event_decay(np.arange(N, dtype=float), 500.0)
    total = effective_rows(np.full(N, 0.5), decay)
    forest = fit_forest(rows, y, scale * decay, total, FOREST, seed=7)
    for tree in (each.tree_ for each in forest.estimators_):
        assert tree.weighted_n_node_samples[0] == round(total)  # every draw of a row counts one
        assert tree.n_node_samples[tree.children_left == -1].min() >= FOREST.leaf_events


def test_both_trees_of_the_predictor_count_overlapping_labels_once():
    rows, y = events(0.5)
    share = np.full(N, 0.25)
    data = Dataset(
        columns=tuple("abcde"), inputs=lambda at: rows[at], y=y.astype(float), weight=share, uniqueness=share,
        known=np.arange(N, dtype=float), ended=np.arange(N) + 4.0, at=np.arange(N),
    )  # fmt: skip
    members = predictor.fit_others(rows.astype(np.float32), data, PARAMS)
    boosted = smallest_leaves(members["xgboost"], rows.astype(np.float32), share)
    assert boosted.min() >= 0.9 * PARAMS.predictor.boosted.leaf_events
    forest = [each.tree_ for each in members["random_forest"].estimators_]
    assert min(t.n_node_samples[t.children_left == -1].min() for t in forest) >= PARAMS.predictor.forest.leaf_events


def test_the_penalty_of_the_logistic_baselines_is_a_parameter():
    rows, y = events(0.4)

    def spread(c):
        chosen = PARAMS.model_copy(update={"baselines": PARAMS.baselines.model_copy(update={"logistic_c": c})})
        return logistic(rows, y, np.ones(N), rows, chosen).std()

    assert spread(1e-6) < 0.01 < spread(PARAMS.baselines.logistic_c)
