"""Compiled trees: the sums of XGBoost and scikit-learn bit for bit, and no kernel reads outside its arrays."""

import json

import numpy as np
import pytest
from support.serving_fixture import make_bundle
from xgboost import DMatrix, XGBClassifier

from benchmarks.trees import boosted_session, forest_session
from pipelines.errors import BadShape, BundleError
from pipelines.family_params import ForestParams
from pipelines.models.calibration_and_novelty import probabilities_of
from pipelines.models.compiled_trees import QUICK_SCORER_FROM, compiled_trees, mirrored, read_trees, walk
from pipelines.models.export import npz_bytes, seal_bundle
from pipelines.models.pattern_rows import MirrorLayout
from pipelines.models.runtime import load_bundle
from pipelines.models.scorers import RUNTIMES
from pipelines.models.trees import fit_forest
from pipelines.models.trees_export import boosted_arrays, forest_arrays

K = 8


def learnt_from(n=6_000, missing=0.05):
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(n, K))
    odds = 2.0 * rows[:, 0] * rows[:, 1] + rows[:, 2] - 0.3
    rows[rng.random(rows.shape) < missing] = np.nan
    rows[(odds > 0) & (rng.random(n) < 0.3), 3] = np.nan  # missing says something: both directions occur
    return rows, (rng.random(n) < 1 / (1 + np.exp(-odds))).astype(int)


@pytest.fixture(scope="module")
def boosted():
    rows, y = learnt_from()
    return XGBClassifier(n_estimators=60, max_depth=5, min_child_weight=5, n_jobs=1, random_state=7).fit(rows, y)


@pytest.fixture(scope="module")
def forest():
    rows, y = learnt_from(missing=0.0)
    return fit_forest(rows, y, np.ones(len(y)), 4_000.0, ForestParams(trees=12, depth=9, leaf_events=20), 7)


@pytest.fixture(scope="module")
def arrays(boosted):
    return boosted_arrays(boosted)


def adversarial(arrays, n):
    """Return (n, K) float32: ordinary values, thresholds and the next on either side, NaN, infinities and zeros."""
    rng = np.random.default_rng(4)
    feature = arrays["feature"]
    thresholds = np.where(feature < K, arrays["threshold"], -arrays["threshold"])[feature >= 0]
    near = rng.choice(thresholds, (n, K))
    away = [np.nextafter(near, np.float32(side)) for side in (np.inf, -np.inf)]
    choices = [near, *away, *(np.float32(x) for x in (np.nan, np.inf, -np.inf, 0.0, -0.0))]
    ordinary = rng.normal(size=(n, K)).astype(np.float32)
    which = rng.integers(0, 14, (n, K))
    return np.select([which == i for i in range(len(choices))], choices, ordinary)


def test_margins_are_those_of_xgboost_bit_for_bit_on_a_hundred_thousand_adversarial_rows(boosted, arrays):
    trees, rows = compiled_trees(arrays, K), adversarial(arrays, 100_000)
    assert {f < K for f in arrays["feature"][arrays["feature"] >= 0]} == {True, False}  # missing goes either way
    native = boosted.get_booster().inplace_predict(rows, predict_type="margin")
    scored = trees.sums(rows.astype(np.float64))[:, 0]
    np.testing.assert_array_equal(scored, native.astype(np.float64))
    walked = walk(rows[:20_000].astype(np.float64), *trees.walked, 0)[:, 0]
    np.testing.assert_array_equal(walked, native[:20_000].astype(np.float64))
    finite = rows[~np.isinf(rows).any(axis=1)][:5_000]  # predict refuses infinities, which inplace_predict takes
    through_matrix = boosted.get_booster().predict(DMatrix(finite), output_margin=True)
    np.testing.assert_array_equal(trees.sums(finite.astype(np.float64))[:, 0], through_matrix.astype(np.float64))


def test_probabilities_are_those_of_xgboost_and_of_its_onnx_graph(boosted, arrays):
    rows = learnt_from(500, missing=0.0)[0]
    rows = rows[np.isfinite(rows).all(axis=1)]
    p = compiled_trees(arrays, K).probabilities(rows)
    assert p.shape == (len(rows), 1)
    np.testing.assert_allclose(p[:, 0], boosted.predict_proba(rows)[:, 1], atol=1e-7, rtol=0)
    np.testing.assert_allclose(p[:, 0], probabilities_of(boosted_session(boosted, K), rows)[:, 1], atol=1e-6, rtol=0)


def test_a_forest_gives_the_mean_of_scikit_learn_bit_for_bit_also_with_trees_of_many_leaves(forest):
    arrays = forest_arrays(forest)
    trees, rows = compiled_trees(arrays, K), adversarial(arrays, 2_000)
    assert trees.quick is None  # a tree has more than 64 leaves
    assert np.isinf(arrays["threshold"]).any()  # missing or not
    rows[np.isinf(rows)] = np.float32(3.4e38)  # scikit-learn refuses infinities
    np.testing.assert_array_equal(trees.probabilities(rows)[:, 0], forest.predict_proba(rows)[:, 1])
    ordinary = np.random.default_rng(1).normal(size=(500, K))
    graph = probabilities_of(forest_session(forest, K), ordinary)[:, 1]
    np.testing.assert_allclose(trees.probabilities(ordinary)[:, 0], graph, atol=1e-6, rtol=0)


def test_a_tree_of_a_single_leaf_adds_it(boosted):
    rows, y = learnt_from(300)
    one = XGBClassifier(n_estimators=3, max_depth=2, min_child_weight=1e9, n_jobs=1).fit(rows, y)
    stump, alone = XGBClassifier(n_estimators=2, max_depth=1, n_jobs=1).fit(rows, y), boosted_arrays(one)
    assert (alone["feature"] < 0).all()
    for model, arrays in ((one, alone), (stump, boosted_arrays(stump))):
        trees = compiled_trees(arrays, K)
        native = model.get_booster().inplace_predict(rows, predict_type="margin").astype(np.float64)
        for size in (1, 300):
            np.testing.assert_array_equal(trees.sums(rows[:size])[:, 0], native[:size])


def test_an_answer_is_the_same_whichever_rows_come_with_it(arrays):
    trees = compiled_trees(arrays, K)
    rows = np.random.default_rng(5).normal(size=(QUICK_SCORER_FROM + 70, K))
    together = trees.probabilities(rows)
    one_by_one = np.concatenate([trees.probabilities(row[np.newaxis]) for row in rows])
    np.testing.assert_array_equal(together, one_by_one)
    np.testing.assert_array_equal(trees.probabilities(np.asfortranarray(rows)), together)
    assert trees.probabilities(rows[:0]).shape == (0, 1)
    with pytest.raises(BadShape, match="8 columns"):
        trees.probabilities(rows[:, :7])


def test_mirrored_rows_are_those_of_the_fit():
    layout = MirrorLayout(
        even=np.array([4, 0]), odd=np.array([1]), centres=np.array([0.3], np.float32), sides=np.array([2, 3])
    )
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(50, 5))
    rows[:, 2:4] = rng.integers(-1, 2, (50, 2))
    turned, places = mirrored(rows, layout.even, layout.odd, layout.centres, layout.sides)
    present = rows[:, layout.sides] != 0.0
    np.testing.assert_array_equal(turned, layout.rows(rows)[present].astype(np.float64))
    np.testing.assert_array_equal(places, np.flatnonzero(present))


def spoilt(name, at, value):
    """Return a function that changes one entry of an array."""

    def change(arrays):
        changed = arrays[name].copy()
        changed[at] = value
        return {name: changed}

    return change


INNER, A_LEAF = 0, -1  # the root of the first tree has a test; the last node is a leaf
TAMPERED = {
    "a column outside the row and its negative": ("feature", spoilt("feature", INNER, 2 * K)),
    "a negative column": ("feature", spoilt("feature", INNER, -2)),
    "a leaf made a test, whose children lie outside": ("feature", spoilt("feature", A_LEAF, 0)),
    "a test made a leaf: nodes that no row reaches": ("feature", spoilt("feature", INNER, -1)),
    "a child before its parent": ("feature", lambda arrays: {"feature": arrays["feature"][::-1].copy()}),
    "another type": ("feature", lambda arrays: {"feature": arrays["feature"].astype(np.int64)}),
    "a shorter array": ("threshold", lambda arrays: {"threshold": arrays["threshold"][1:]}),
    "a threshold that is no number": ("threshold", spoilt("threshold", INNER, np.nan)),
    "a leaf that is no number": ("value", spoilt("value", A_LEAF, np.nan)),
    "values of another type": ("value", lambda arrays: {"value": arrays["value"].astype(np.int32)}),
    "a base of another type": ("base", lambda arrays: {"base": np.float64(0.0)}),
    "a base that is infinite": ("base", lambda arrays: {"base": np.float32(np.inf)}),
    "a root outside": ("roots", spoilt("roots", -1, 1_000_000)),
    "roots that fall": ("roots", lambda arrays: {"roots": arrays["roots"][::-1].copy()}),
    "no tree": ("roots", lambda arrays: {"roots": arrays["roots"][:0]}),
    "another link": ("link", lambda arrays: {"link": np.array("identity")}),
    "another number of columns": ("columns", lambda arrays: {"columns": np.array(K + 1)}),
    "half a mirror": ("even", lambda arrays: {"sides": np.array([0])}),
    "objects": ("Object arrays", lambda arrays: {"roots": np.array([{}], dtype=object)}),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_arrays_that_are_no_whole_trees_are_refused_by_name(arrays, tmp_path, what):
    name, change = TAMPERED[what]
    path = tmp_path / "model.npz"
    path.write_bytes(npz_bytes(**{**arrays, **change(arrays)}))
    with pytest.raises(BundleError, match=rf"model\.npz: {name}.*bellwether retrain"):
        read_trees(path, K)


@pytest.mark.parametrize("name", ["feature", "threshold", "value", "roots", "base", "link", "columns"])
def test_an_array_that_is_missing_is_named(arrays, name):
    with pytest.raises(BundleError, match=name):
        compiled_trees({key: value for key, value in arrays.items() if key != name}, K)


def test_a_model_of_other_trees_is_not_written(forest):
    rows, y = learnt_from(300)
    for other in (XGBClassifier(n_estimators=1, booster="dart", n_jobs=1), XGBClassifier(n_estimators=1, n_jobs=1)):
        labels = y if other.booster == "dart" else np.arange(300) % 3
        with pytest.raises(BundleError, match="fit gbtree with binary:logistic"):
            boosted_arrays(other.fit(rows, labels))


def test_a_bundle_names_its_runtime_and_one_that_names_none_is_of_the_onnx_runtime(tmp_path):
    rows = np.random.default_rng(2).normal(size=(200, K))
    columns = tuple(f"c{i}" for i in range(K))
    earlier, compiled = (make_bundle(tmp_path, columns, rows, 0.1, trees=trees) for trees in (False, True))
    assert "model" not in load_bundle(tmp_path / earlier, earlier).schema
    model = load_bundle(tmp_path / compiled, compiled)
    assert model.schema["model"] == {"file": "model.npz", "runtime": "compiled-1"}
    path = tmp_path / compiled / "schema.json"
    path.write_text(json.dumps(model.schema | {"model": {"file": "model.npz", "runtime": "compiled-2"}}))
    digest = seal_bundle(tmp_path / compiled, "validator")
    with pytest.raises(BundleError, match=f"'compiled-2' of model.npz is unknown .*{', '.join(RUNTIMES)}"):
        load_bundle(tmp_path / compiled, digest)
    path.write_text(json.dumps(model.schema | {"columns": list(columns[1:])}))
    with pytest.raises(BundleError, match="columns is 8, not 7"):
        load_bundle(tmp_path / compiled, seal_bundle(tmp_path / compiled, "validator"))
    path = tmp_path / earlier / "schema.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "columns": list(columns[1:])}))
    with pytest.raises(BundleError, match="reads 8 columns, the model has 7"):
        load_bundle(tmp_path / earlier, seal_bundle(tmp_path / earlier, "validator"))
