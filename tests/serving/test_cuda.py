"""The torch path of networks, on torch's CPU device: against ONNX Runtime, short of memory, with a CUDA error."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from support.serving_fixture import slot_entry
from torch import nn

from pipelines.errors import BundleError
from pipelines.models.base import Export
from pipelines.models.calibration_and_novelty import Calibration, as_json
from pipelines.models.export import json_bytes, write_bundle
from pipelines.models.networks import RecurrentNetwork
from pipelines.models.novelty import fit_novelty
from pipelines.models.pattern_network import PatternNetwork
from pipelines.models.pattern_onnx import network_to_onnx
from pipelines.models.recurrent_onnx import recurrent_to_onnx
from pipelines.models.runtime import check_golden, load_bundle, tolerance_of
from pipelines.models.views import VIEWS
from serving.inference.cuda import Card, TorchSession
from serving.inference.device import Device
from serving.inference.generation import write_generation
from serving.inference.model_client import packed, run_inference, unpacked
from serving.inference.model_slots import ModelSlots
from serving.service.schemas import Packed, PredictBatchRequest

STEPS, MARKET, CLASSES = 12, 5, 3


class Lost(Exception):
    """What a test does instead of ending the process."""


def lost(why):
    raise Lost(why)


def card(precision="fp32"):
    return Card(Device(f"cpu {precision}", "a test"), 0.5, lost)


def network_bundle(folder, graph, inputs, columns, classes):
    """Write a bundle of one network under its digest and return its folder; nothing is calibrated away."""
    columns, draft = list(columns), folder / "draft"
    member = {"name": "network", "file": "network.onnx", "reads": "window", "columns": columns, "weight": 1.0}
    lines = [as_json(Calibration(1.0, 0.0, np.eye(2) * 1e-6))] * classes
    digest = write_bundle(
        draft,
        family="predictor",
        export=Export(
            "ensemble",
            {"network.onnx": graph, "calibration.json": json_bytes({"network": lines})},
            {"classes": [f"k{i}" for i in range(classes)], "steps": inputs.shape[1], "members": [member]},
        ),
        novelty=fit_novelty(inputs[:, -1], 0.999),
        schema={"columns": columns, "dropped": {}},
        card="# a network\n",
        inputs=inputs,
    )
    return draft.rename(folder / digest)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A recurrent and a convolutional network of random, far from zero weights, in bundles: kind → (folder, rows)."""
    torch.manual_seed(3)
    folder, rng = tmp_path_factory.mktemp("bundles"), np.random.default_rng(3)
    rows = rng.normal(size=(400, STEPS, MARKET + CLASSES))
    rows[:, :, MARKET:] = rng.integers(-1, 2, size=(400, STEPS, CLASSES))
    recurrent = RecurrentNetwork(MARKET, (16, 8), (4,))
    pattern = PatternNetwork((1, 0, 2, 3, 4), (1.0, 1.0, -1.0, 1.0, -1.0), CLASSES, 6, 0.2)
    for network in (recurrent, pattern):
        network.standardise((rows * 2.0 + 0.3)[:, :, :MARKET].astype(np.float32))
        for weights in network.parameters():
            nn.init.normal_(weights, std=0.6)
    graphs = {"recurrent": recurrent_to_onnx(recurrent, STEPS, "n"), "pattern": network_to_onnx(pattern, STEPS, "n")}
    found = {}
    for kind, graph in graphs.items():
        width, classes = (MARKET, 1) if kind == "recurrent" else (MARKET + CLASSES, CLASSES)
        inputs = rows[:, :, :width]
        found[kind] = network_bundle(folder, graph, inputs, [f"c{i}" for i in range(width)], classes), inputs
    return found


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["recurrent", "pattern"])
def test_a_network_through_torch_is_that_of_onnx_runtime_and_its_answers_name_the_device(bundles, kind, precision):
    folder, rows = bundles[kind]
    here = load_bundle(folder, None)
    there = card(precision).place(here, folder)
    ours, theirs = here.predict(rows), there.predict(rows)
    assert (ours.device, theirs.device) == ("cpu", f"cpu {precision}")
    assert (theirs.status, theirs.digest) == (ours.status, ours.digest)
    gap = np.nanmax(np.abs(ours.p - theirs.p))
    assert np.nanstd(ours.p) > 0.1
    assert gap <= {"fp32": 1e-5, "bf16": 0.02}[precision] == tolerance_of(theirs.device)
    if kind == "pattern":
        assert (theirs.p[(rows[:, -1, MARKET:] == 0) & np.isfinite(theirs.p)] < 1e-6).all()
    check_golden(there)


def test_a_card_leaves_tf32_off():
    torch.backends.cudnn.allow_tf32 = True
    card()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_a_bundle_that_finds_no_memory_is_refused_and_not_a_lost_card(bundles, monkeypatch):
    folder, _ = bundles["recurrent"]
    here = card()
    monkeypatch.setattr(here, "rows_that_fit", lambda call: Short(0)(torch.zeros(2, 3, 2)))
    with pytest.raises(BundleError, match="has no memory for it; raise BELLWETHER_DEVICE_MEMORY"):
        here.place(load_bundle(folder, None), folder)


def test_a_model_without_a_network_stays_as_it_is(bundles):
    folder, _ = bundles["recurrent"]
    model = load_bundle(folder, None)
    trees = replace(model, members=tuple(replace(member, reads="newest") for member in model.members))
    assert card().place(trees, folder) is trees


class Short(nn.Module):
    """A network with memory for so many rows at a time; `seen` are the batches tried."""

    def __init__(self, room, error=None):
        super().__init__()
        self.room, self.seen = room, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    def forward(self, windows):
        self.seen.append(len(windows))
        if len(windows) > self.room:
            raise self.error
        return windows[:, -1, :1]


def rows(n):
    return np.arange(n * 6, dtype=np.float32).reshape(n, 3, 2)


def test_more_rows_than_the_memory_takes_are_split_and_every_row_gets_its_own_answer():
    session = TorchSession(Short(100), 3, 2, card())
    session.most_rows = 7
    np.testing.assert_array_equal(session(rows(20)), rows(20)[:, -1, :1])
    assert session._network.seen == [7, 7, 6]
    assert session(rows(0)).shape == (0, 1)


def test_a_batch_without_memory_is_halved_and_tried_once_more():
    session = TorchSession(Short(5), 3, 2, card())
    np.testing.assert_array_equal(session(rows(9)), rows(9)[:, -1, :1])
    assert session._network.seen == [9, 4, 5]
    with pytest.raises(torch.OutOfMemoryError):
        session(rows(40))
    session._network.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        session(rows(1))


@pytest.mark.parametrize("words", ["CUDA error: device-side assert triggered", "cuDNN error: CUDNN_STATUS_EXECUTION"])
def test_a_cuda_error_ends_the_process_and_another_error_does_not(words):
    with pytest.raises(Lost, match="cpu fp32: "):
        TorchSession(Short(0, RuntimeError(words)), 3, 2, card())(rows(2))
    with pytest.raises(RuntimeError, match="size"):
        TorchSession(Short(0, RuntimeError("size of tensors")), 3, 2, card())(rows(2))


def test_slots_put_networks_on_the_card_and_a_batched_call_names_it(tmp_path):
    torch.manual_seed(5)
    view, rng = VIEWS["predictor"], np.random.default_rng(5)
    network, width = RecurrentNetwork(len(view.columns), (8,)), len(view.columns)
    inputs = rng.normal(size=(60, view.steps, width))
    graph = recurrent_to_onnx(network, view.steps, "n")
    folder = network_bundle(tmp_path / "bundles", graph, inputs, view.columns, 1)
    slots = ModelSlots(tmp_path / "serving", folder.parent, lambda *alarm: pytest.fail(str(alarm)), place=card().place)
    arms = {"champion": slot_entry("1", folder.name), "challenger": None}
    write_generation(tmp_path / "serving", {"predictor": arms}, {}, datetime(2024, 1, 1, tzinfo=UTC))
    slots.refresh()
    model = load_bundle(folder, None)
    one = {"family": "predictor", "columns": list(model.columns), "digests": {"champion": folder.name}}
    body = PredictBatchRequest.model_validate({"inference_requests": [one | {"rows": packed(inputs[:3])}]})
    with ThreadPoolExecutor(2) as pool:
        (answer,) = run_inference(slots.snapshot, body, each=pool.map)["predictions"]
    assert answer["champion"]["device"] == "cpu fp32"
    p = unpacked(Packed(**answer["champion"]["p"]))
    np.testing.assert_allclose(p, model.predict(inputs[:3]).p, atol=1e-5)
