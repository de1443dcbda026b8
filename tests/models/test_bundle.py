"""Bundles: exported = native, golden rows guard the load, and no file that could carry code is ever opened (law L6)."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from support.earlier_bundle import as_release_0_5

from pipelines.errors import BadShape, BundleError, DigestMismatch, GoldenMismatch, UnsafeBundle
from pipelines.models.base import present_columns
from pipelines.models.calibration import export_calibrated, fit_calibration, raw
from pipelines.models.export import npz_bytes, seal_bundle, write_bundle
from pipelines.models.novelty import fit_novelty
from pipelines.models.reference import read_reference, reference_files
from pipelines.models.runtime import check_golden, load_bundle
from pipelines.models.trees_export import boosted_arrays
from pipelines.models.validator import fit_trees
from pipelines.settings import load_params

COLUMNS = [f"c{i}" for i in range(6)]


def file_of(native):
    return npz_bytes(**boosted_arrays(native))


@pytest.fixture(scope="module")
def market():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2500, 6))
    p = 1 / (1 + np.exp(-(0.8 * rows[:, 0] * rows[:, 1] - 0.3)))
    return rows, (rng.random(2500) < p).astype(float), p


@pytest.fixture(scope="module")
def native(market):
    rows, y, _ = market
    return fit_trees(rows[:1500], y[:1500], np.ones(1500), load_params())


@pytest.fixture
def bundle(tmp_path, market, native):
    rows, y, _ = market
    calibration = fit_calibration(raw(native, rows[1500:]), y[1500:], np.ones(1000))
    digest = write_bundle(
        tmp_path / "b", family="validator", card="# card\n",
        export=export_calibrated("model.npz", file_of(native), calibration, ("target_first",)),
        novelty=fit_novelty(rows[:1500], 0.999), inputs=rows[:1500],
        schema={"columns": COLUMNS, "dropped": {}, "loss_params": {}},
    )  # fmt: skip
    return tmp_path / "b", digest


def test_the_export_predicts_what_the_native_model_predicts(bundle, market, native):
    model = load_bundle(*bundle)
    assert np.abs(model.raw(market[0]) - raw(native, market[0])).max() < 1e-6
    assert check_golden(model) == 0.0


def test_a_bundle_keeps_its_drift_reference_under_its_digest_and_serves_with_or_without(
    tmp_path, bundle, market, native
):
    history = np.random.default_rng(1).normal(size=(25 * 20, 2))
    params = load_params().drift.model_copy(update={"block_bars": 20})
    rows, y, _ = market
    digest = write_bundle(
        tmp_path / "with", family="validator", card="# card\n",
        export=export_calibrated(
            "model.npz", file_of(native), fit_calibration(raw(native, rows[1500:]), y[1500:], np.ones(1000)),
            ("target_first",),
        ),
        novelty=fit_novelty(rows[:1500], 0.999), inputs=rows[:1500],
        schema={"columns": COLUMNS, "dropped": {}, "loss_params": {}},
        reference=reference_files(history, ("a", "b"), params, seed=7),
    )  # fmt: skip
    assert digest != bundle[1]
    assert check_golden(load_bundle(tmp_path / "with", digest)) == check_golden(load_bundle(*bundle)) == 0.0
    assert read_reference(tmp_path / "with").columns == ("a", "b")
    (tmp_path / "with" / "drift.json").write_text("{}")
    with pytest.raises(DigestMismatch):
        load_bundle(tmp_path / "with", digest)


def test_a_model_is_served_under_the_classes_of_its_bundle(bundle):
    assert load_bundle(*bundle).classes == ("target_first",)


def test_the_same_model_exports_to_the_same_bytes(native):
    assert file_of(native) == file_of(native)


def test_a_calibrated_probability_is_close_to_the_truth_and_above_its_lower_bound(bundle, market):
    rows, _, truth = market
    predicted = load_bundle(*bundle).predict(rows[1500:])
    known = np.isfinite(predicted.p)
    assert known.mean() > 0.98
    assert (predicted.p_low[known] < predicted.p[known]).all()
    assert np.corrcoef(predicted.p[known], truth[1500:][known])[0, 1] > 0.6


def test_a_missing_feature_and_a_novel_row_abstain_with_their_reason(bundle):
    model = load_bundle(*bundle)
    rows = np.zeros((3, 6))
    rows[1, 2] = np.nan
    rows[2] = 50.0
    predicted = model.predict(rows)
    assert predicted.status == ["OK", "ABSTAIN", "ABSTAIN"]
    assert predicted.reason[1] == "MISSING_FEATURE:c2"
    assert predicted.reason[2].startswith("NOVEL:")
    assert np.isnan(predicted.p[1:]).all()
    assert np.isnan(predicted.p_low[1:]).all()
    with pytest.raises(BadShape, match="c0, c1"):
        model.predict(np.zeros((1, 5)))


def test_a_changed_byte_is_refused(bundle):
    path, digest = bundle
    weights = bytearray((path / "model.npz").read_bytes())
    weights[-1] ^= 1
    (path / "model.npz").write_bytes(bytes(weights))
    with pytest.raises(DigestMismatch, match=r"model\.npz"):
        load_bundle(path, digest)


def test_a_bundle_resealed_with_other_content_has_not_the_digest_of_the_registry(bundle):
    path, digest = bundle
    (path / "card.md").write_text("# another\n")
    seal_bundle(path, "validator")
    with pytest.raises(DigestMismatch, match="expected"):
        load_bundle(path, digest)


@pytest.mark.parametrize("listed", [True, False])
def test_a_pickle_is_refused_listed_or_not_and_never_opened(bundle, tmp_path, listed):
    path, digest = bundle

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    (path / "model.pkl").write_bytes(pickle.dumps(Trap()))
    if listed:
        digest = seal_bundle(path, "validator")
    with pytest.raises(UnsafeBundle, match=r"model\.pkl"):
        load_bundle(path, digest)
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_and_an_empty_folder_are_refused(bundle, tmp_path):
    path, digest = bundle
    (path / "novelty.npz").unlink()
    with pytest.raises(UnsafeBundle, match="missing"):
        load_bundle(path, digest)
    with pytest.raises(BundleError, match="no manifest"):
        load_bundle(tmp_path, None)


def test_a_model_that_predicts_differently_fails_its_golden_rows(bundle):
    path, _ = bundle
    with np.load(path / "golden.npz") as f:
        golden = dict(f)
    golden["p"][0] += 0.01
    np.savez(path / "golden.npz", **golden)
    with pytest.raises(GoldenMismatch):
        check_golden(load_bundle(path, seal_bundle(path, "validator")))


def test_a_bundle_of_release_0_5_loads_and_gives_its_golden_predictions(bundle):
    path, _ = bundle
    model = load_bundle(path, as_release_0_5(path, "validator"))
    assert (model.schema["kind"], model.schema["loss_params"]) == ("tabular", {})
    assert check_golden(model) == 0.0


def test_a_bundle_of_an_unknown_kind_is_refused_and_names_the_kinds_served(bundle):
    path, _ = bundle
    schema = json.loads((path / "schema.json").read_text())
    (path / "schema.json").write_text(json.dumps({**schema, "kind": "oracle"}))
    with pytest.raises(
        BundleError, match="'oracle' is unknown to this release, which serves tabular, ensemble, regime"
    ):
        load_bundle(path, seal_bundle(path, "validator"))


def test_absent_and_constant_columns_are_dropped_and_named():
    rows = np.array([[1.0, np.nan, 3.0], [2.0, np.nan, 3.0]])
    present, dropped = present_columns(rows, ("a", "b", "c"))
    assert present.tolist() == [True, False, False]
    assert "absent" in dropped["b"]
    assert "constant" in dropped["c"]


def test_the_runtime_needs_no_training_library():
    heavy = "('sklearn', 'xgboost', 'torch', 'mlflow', 'scipy.optimize', 'scipy.stats')"
    code = f"import sys, pipelines.models.runtime; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
