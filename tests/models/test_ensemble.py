"""An ensemble: members over bars and windows; a member without a prediction leaves the mean and is not replaced."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.earlier_bundle import as_release_0_5

from pipelines.errors import GoldenMismatch
from pipelines.models.base import Export
from pipelines.models.calibration_and_novelty import (
    TOGETHER,
    Calibration,
    as_json,
    equal_sizes,
    open_session,
    probabilities_of,
)
from pipelines.models.directional_ensemble import average
from pipelines.models.export import json_bytes, write_bundle
from pipelines.models.networks import RecurrentNetwork
from pipelines.models.novelty import fit_novelty
from pipelines.models.recurrent_onnx import recurrent_to_onnx
from pipelines.models.runtime import check_golden, load_bundle

COLUMNS, STEPS = ("a", "b"), 3
SHARP = Calibration(1.0, 0.0, np.eye(2) * 1e-6)


def sigmoid_of_mean(window: bool, classes: int) -> bytes:
    """Return ONNX in which class c predicts sigmoid(mean of the inputs + c)."""
    shape = [None, STEPS, 2] if window else [None, 2]
    axes = [1, 2] if window else [1]
    shift = numpy_helper.from_array(np.arange(classes, dtype=np.float32)[None], "shift")
    nodes = [
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "last"], ["column"]),
        helper.make_node("Add", ["column", "shift"], ["score"]),
        helper.make_node("Sigmoid", ["score"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "member",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, classes])],
        [shift, numpy_helper.from_array(np.array([1], dtype=np.int64), "last")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    return bytes(model.SerializeToString())


def ensemble(folder, classes=("up", "down"), sure_from=None):
    members = [("near", "newest", 1.0), ("far", "window", 3.0), ("reported", "newest", 0.0)]
    files = {f"{name}.onnx": sigmoid_of_mean(reads == "window", len(classes)) for name, reads, _ in members}
    files["calibration.json"] = json_bytes({name: [as_json(SHARP)] * len(classes) for name, *_ in members})
    schema = {
        "classes": list(classes), "steps": STEPS, "sure_from": sure_from,
        "members": [{"name": n, "file": f"{n}.onnx", "reads": r, "columns": list(COLUMNS), "weight": w}
                    for n, r, w in members],
    }  # fmt: skip
    inputs = np.random.default_rng(0).normal(size=(400, STEPS, 2))
    digest = write_bundle(
        folder, family="predictor", export=Export("ensemble", files, schema), novelty=fit_novelty(inputs[:, -1], 0.99),
        schema={"columns": list(COLUMNS), "dropped": {}}, card="# card\n", inputs=inputs,
    )  # fmt: skip
    return load_bundle(folder, digest)


def logistic(x):
    return 1 / (1 + np.exp(-x))


def test_p_is_the_weighted_mean_and_a_member_without_weight_is_only_reported(tmp_path):
    model = ensemble(tmp_path / "b")
    rows = np.random.default_rng(1).normal(size=(4, STEPS, 2)) * 0.3
    predicted = model.predict(rows)
    near, far = logistic(rows[:, -1].mean(axis=1)), logistic(rows.mean(axis=(1, 2)))
    np.testing.assert_allclose(predicted.p[:, 0], 0.25 * near + 0.75 * far, atol=1e-6)
    np.testing.assert_allclose(predicted.members["reported"][:, 0], near, atol=1e-6)
    assert (predicted.p_low < predicted.p).all()
    assert check_golden(model) == 0.0


def test_a_bundle_of_release_0_5_loads_and_gives_its_golden_predictions(tmp_path):
    today = ensemble(tmp_path / "b")
    model = load_bundle(tmp_path / "b", as_release_0_5(tmp_path / "b", "predictor"))
    assert "committee" in (tmp_path / "b" / "schema.json").read_text()
    assert model.schema["kind"] == "ensemble"
    assert model.digest != today.digest
    assert check_golden(model) == 0.0


def test_a_short_history_leaves_the_window_member_out_of_the_mean(tmp_path):
    model = ensemble(tmp_path / "b")
    rows = np.full((1, STEPS, 2), 0.2)
    rows[0, 0] = np.nan
    predicted = model.predict(rows)
    assert np.isnan(predicted.members["far"]).all()
    np.testing.assert_array_equal(predicted.p, predicted.members["near"])
    assert predicted.status == ["OK"]


def test_a_missing_newest_value_abstains_by_name(tmp_path):
    rows = np.zeros((1, STEPS, 2))
    rows[0, -1, 1] = np.nan
    predicted = ensemble(tmp_path / "b").predict(rows)
    assert predicted.reason == ["MISSING_FEATURE:b"]
    assert np.isnan(predicted.p).all()


def test_classes_are_named_from_the_stated_probability_on(tmp_path):
    model = ensemble(tmp_path / "b", sure_from=0.7)
    predicted = model.predict(np.stack([np.full((STEPS, 2), -0.5), np.full((STEPS, 2), 1.0)]))
    assert predicted.label == [None, "up+down"]
    check_golden(model)


def test_a_golden_label_may_differ_only_where_rounding_decides(tmp_path):
    with_labels = ensemble(tmp_path / "b", sure_from=0.7)
    near = with_labels.golden["p"][0, 0]
    at_threshold = replace(with_labels, label_from=near + 1e-9, schema={**with_labels.schema, "sure_from": near + 1e-9})
    at_threshold.golden["label"] = np.array(
        [label or "" for label in at_threshold.predict(at_threshold.golden["rows"]).label]
    )
    rounded_up = replace(at_threshold, label_from=near)
    assert check_golden(rounded_up) == 0.0
    with pytest.raises(GoldenMismatch, match="labels"):
        check_golden(replace(at_threshold, label_from=near - 0.05))


def test_an_ensemble_of_one_class_predicts_one_number_a_row(tmp_path):
    predicted = ensemble(tmp_path / "b", classes=("up",)).predict(np.zeros((2, STEPS, 2)))
    assert predicted.p.shape == (2,)
    assert predicted.p == pytest.approx(0.5)


def test_a_member_without_a_probability_leaves_the_mean_and_does_not_count_as_one_half():
    members = np.array([[0.9, np.nan, np.nan], [0.5, 0.2, np.nan]])
    np.testing.assert_allclose(average(members, np.array([1.0, 1.0])), [0.7, 0.2, np.nan])
    np.testing.assert_allclose(average(members, np.array([1.0, 0.0])), [0.9, np.nan, np.nan])


def test_a_class_with_a_closed_gate_is_predicted_zero_and_no_member_runs_if_all_are_closed(tmp_path):
    model = replace(ensemble(tmp_path / "b"), gates=np.array([0, 1]))
    rows = np.full((4, STEPS, 2), 0.5)
    rows[1, -1, 1] = 0.0
    rows[2, -1] = 0.0
    rows[3, -1, 0] = np.nan
    predicted = model.predict(rows)
    assert (predicted.p[0] > 0.5).all()
    assert predicted.p[1, 0] > 0.5
    assert predicted.p[1, 1] == predicted.p_low[1, 1] == predicted.members["near"][1, 1] == 0.0
    assert predicted.status == ["OK", "OK", "OK", "ABSTAIN"]
    assert not predicted.p[2].any()
    assert np.isnan(predicted.p[3]).all()  # an abstention is not zero
    rows[2, 0] = np.nan  # a window with a gap: no class is present, so no member reads it
    assert model.predict(rows).status[2] == "OK"


def session_of(content, folder):
    """Return a session of an ONNX graph."""
    (folder / "graph.onnx").write_bytes(content)
    return open_session(folder / "graph.onnx")


def test_rows_go_together_only_where_that_changes_no_bit(tmp_path):
    torch.manual_seed(3)
    network = RecurrentNetwork(4, (128, 64), (), 0.0)
    rows = np.random.default_rng(3).normal(size=(40, 20, 4))
    network.standardise(rows.astype(np.float32))
    session = session_of(recurrent_to_onnx(network, 20, "lstm"), tmp_path)
    alone = np.concatenate([probabilities_of(session, rows[i : i + 1]) for i in range(len(rows))])
    sizes = equal_sizes(session, rows[:5])
    for n in (2, 5, 16, 23, 40):
        assert probabilities_of(session, rows[:n], sizes).tobytes() == alone[:n].tobytes(), (n, sizes)
    of_all = sigmoid_of_mean(False, 1).replace(b"axes*\x02\x01\xa0", b"axes*\x02\x01\xa0")  # a mean of each row
    assert equal_sizes(session_of(of_all, tmp_path), rows[:, 0, :2]) == TOGETHER
    assert equal_sizes(session_of(less_their_mean(), tmp_path), rows[:, 0, :2]) == ()
    assert equal_sizes(session, rows[:0]) == ()


def less_their_mean():
    """Return ONNX whose answer for a row depends on the rows that come with it."""
    nodes = [
        helper.make_node("ReduceMean", ["rows"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["rows", "mean"], ["away"]),
        helper.make_node("Sigmoid", ["away"], ["probabilities"]),
    ]
    shape = [None, 2]
    graph = helper.make_graph(
        nodes, "batch", [helper.make_tensor_value_info("rows", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    return bytes(model.SerializeToString())
