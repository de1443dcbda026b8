"""Settings of a fit that moved from the code to params.yaml: another value gives another fit."""

import numpy as np

from pipelines.family_params import BoostedParams, ForestParams
from pipelines.models.base import Dataset
from pipelines.models.trees import fit_boosted, fit_forest
from pipelines.models.validator import VALIDATOR, fit, half_life
from pipelines.settings import load_params
from pipelines.training.fit import _novel_share

PARAMS = load_params()
N = 600


def with_settings(section, **values):
    """Return quick settings of the validator with these values of a section."""
    quick = PARAMS.model_copy(update={"validator": PARAMS.validator.model_copy(update={"trees": 5, "depth": 2})})
    return quick.model_copy(update={section: getattr(quick, section).model_copy(update=values)})


def market():
    rng = np.random.default_rng(6)
    rows, known = rng.normal(size=(N, 2)), 3600.0 * np.arange(N)
    y = (rng.random(N) < 1 / (1 + np.exp(-rows[:, 0]))).astype(float)
    return Dataset(("a", "b"), lambda at: rows[at], y, np.ones(N), np.ones(N), known, known + 3600.0, np.arange(N))


def test_trees_have_the_size_that_is_stated():
    data, ones = market(), np.ones(N)
    rows, y = data.all_inputs(), data.y.astype(int)
    forest = fit_forest(rows, y, ones, float(N), ForestParams(trees=3, depth=2, leaf_events=5), seed=1)
    assert (len(forest.estimators_), max(tree.get_depth() for tree in forest.estimators_)) == (3, 2)
    settings = BoostedParams(trees=4, depth=2, learning_rate=0.1, leaf_events=5, subsample=1.0, reg_lambda=1.0)
    assert fit_boosted(rows, y, ones, float(N), settings, seed=1).get_booster().num_boosted_rounds() == 4


def test_the_tail_on_which_half_lives_are_compared_is_the_one_stated():
    data = market()
    tried = [dict(half_life(data, with_settings("validator", half_life_tail=s), 0.0).tried) for s in (0.25, 0.5)]
    assert tried[0].keys() == tried[1].keys()
    assert tried[0] != tried[1]


def test_a_fit_is_calibrated_on_as_many_stretches_as_stated():
    data = market()
    scored = [
        fit(data, with_settings("splits", calibration_stretches=stretches), 36_000.0, print).calibration_p[0]
        for stretches in (2, 5)
    ]
    assert not np.array_equal(*scored)


def test_the_newest_rows_that_may_be_novel_are_the_share_stated():
    rows = np.random.default_rng(2).normal(size=(1_000, 2))
    rows[-100:] += 100.0
    found = [_novel_share(VALIDATOR, rows, with_settings("splits", recent_share=s)) for s in (0.1, 0.5)]
    assert found[0] == 1.0
    assert abs(found[1] - 0.2) < 0.02
