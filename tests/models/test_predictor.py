"""M4: both networks, one trainer, the export; fits on an oracle, on noise and on a market."""

import copy
import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from support.stage_folders import stage_folders
from torch import nn

from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import NoDevice, NotEnoughData
from pipelines.evaluation.metrics import auc, mean_estimate
from pipelines.features.catalog import COPIES, CORE_COLUMNS, FEATURES
from pipelines.labels.horizon import horizon_labels
from pipelines.models import predictor
from pipelines.models.base import Dataset
from pipelines.models.networks import (
    CORE,
    FOUR,
    Plan,
    RecurrentNetwork,
    adam_of,
    logits_of,
    parameter_count,
    probabilities_of,
    repeatable,
    train_network,
    training_device,
)
from pipelines.models.predictor import PREDICTOR, last_sign, systematic_sample
from pipelines.models.recurrent_onnx import recurrent_to_onnx
from pipelines.models.runtime import check_golden, load_bundle
from pipelines.models.views import VIEWS
from pipelines.settings import ROOT, load_params
from pipelines.training.fit import train
from pipelines.training.walk import fit_window

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

PARAMS = load_params()
STEPS = 8
COLUMNS = ("log_return_1", "volatility_20", "volume_to_median", "depth_ratio")


def params(**changes):
    forest, boosted = (
        each.model_copy(update={"trees": 20}) for each in (PARAMS.predictor.forest, PARAMS.predictor.boosted)
    )
    small = {
        "folds": 1, "max_windows": 600, "epochs": 5, "patience": 2, "forest": forest, "boosted": boosted
    } | changes  # fmt: skip
    return PARAMS.model_copy(update={"predictor": PARAMS.predictor.model_copy(update=small)})


def rows(oracle=0.0, m=2000, seed=0):
    """Return m rows of noise, one decision bar apart; the newest return predicts the outcome if `oracle` is above 0."""
    rng = np.random.default_rng(seed)
    y = (rng.random(m) < 0.5).astype(float)
    windows = rng.normal(size=(m, STEPS, len(COLUMNS)))
    windows[:, -1, 0] += oracle * (2 * y - 1)
    known = 900.0 * np.arange(m)
    return Dataset(
        columns=COLUMNS, inputs=lambda at: windows[at], y=y, weight=np.ones(m), uniqueness=np.ones(m), known=known,
        ended=known + 900.0, at=np.arange(m), extras={"last_return": windows[:, -1, 0], "cost_bps": np.full(m, 5.0)},
    )  # fmt: skip


def trained(data, out, **changes):
    digest = train(PREDICTOR, data, out, params(**changes), {"symbol": "TEST"}, 900.0, lambda line: None)
    with np.load(out / "oof.npz") as f:
        return load_bundle(out / "bundle", digest), {name: f[name] for name in f.files}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    out = tmp_path_factory.mktemp("oracle")
    return rows(oracle=1.8), *trained(rows(oracle=1.8), out), out


# ---- the networks and their trainer ------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "count"), [(FOUR, 130_849), (CORE, 58_689)])
def test_both_configurations_have_their_stated_number_of_parameters(network, count):
    inputs, layers, head = network
    assert parameter_count(RecurrentNetwork(inputs, layers, head)) == count
    names = {4: "four", 25: "core"}[inputs]
    assert len(predictor.WINDOW_COLUMNS[names]) == inputs


@pytest.mark.parametrize(("inputs", "layers", "head"), [FOUR, CORE])
def test_the_export_predicts_what_torch_predicts_for_a_row_and_a_batch_and_has_the_same_bytes(inputs, layers, head):
    with repeatable(1):
        network = RecurrentNetwork(inputs, layers, head)
        with torch.no_grad():
            for weights in network.parameters():
                weights.mul_(3.0)  # probabilities that differ
    windows = np.random.default_rng(1).normal(3.0, 5.0, size=(64, 60, inputs)).astype(np.float32)
    network.standardise(windows)
    exported = recurrent_to_onnx(network, 60, "lstm")
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    native = probabilities_of(network, windows)
    assert np.ptp(native) > 0.05
    for n in (1, 64):
        exported_p = session.run(["probabilities"], {"rows": windows[:n]})[0]
        assert exported_p.shape == (n, 1)
        assert np.abs(exported_p - native[:n]).max() < 1e-5
    assert recurrent_to_onnx(network, 60, "lstm") == exported


def test_training_stops_early_with_its_best_epoch_and_is_repeatable_on_one_machine():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(200, 4, 2)).astype(np.float32), (rng.random(200) < 0.5).astype(float)
    tail = (x[120:], y[120:], np.ones(80))

    def fitted():
        with repeatable(3):
            network = RecurrentNetwork(2, (16,))
        return network, train_network(network, x[:120], y[:120], np.ones(120), tail, Plan(50, 16, 0.02, 3, 3))

    (network, epochs), (again, _) = fitted(), fitted()
    best = min(epochs, key=lambda epoch: epoch.tail_loss)
    assert len(epochs) == best.number + 3 < 50  # noise: it overfits and the tail gets worse
    logits = logits_of(network, tail[0])[:, 0]
    assert np.mean(np.logaddexp(0, logits) - tail[1] * logits) == pytest.approx(best.tail_loss)
    assert logits.tobytes() == logits_of(again, tail[0])[:, 0].tobytes()
    assert not network.training


def test_the_trainer_fits_any_network_of_several_logits():
    class Convolution(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Conv1d(2, 16, 3), nn.Linear(16, 3)

        def forward(self, windows):
            return self.head(torch.relu(self.layer(windows.transpose(1, 2))).amax(dim=2))

    rng = np.random.default_rng(4)
    x = rng.normal(size=(900, 6, 2)).astype(np.float32)
    y = np.column_stack([x.max(axis=(1, 2)) > 2, x[:, :, 0].max(axis=1) > 1.2, x[:, :, 1].max(axis=1) > 1.2]).astype(
        float
    )
    with repeatable(5):
        network = Convolution()
    epochs = train_network(
        network, x[:600], y[:600], np.ones(600), (x[600:], y[600:], np.ones(300)), Plan(12, 32, 0.01, 3, 5)
    )
    assert probabilities_of(network, x).shape == (900, 3)
    assert min(epoch.tail_loss for epoch in epochs) < 0.6 * epochs[0].tail_loss


def test_a_row_of_weight_zero_changes_nothing():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(400, 3, 1)).astype(np.float32), np.repeat([0.0, 1.0], 200)
    x[:, -1, 0] += 3 * (2 * y - 1)
    wrong = np.concatenate([y, 1 - y])
    with repeatable(6):
        network = RecurrentNetwork(1, (8,))
    weight = np.concatenate([np.ones(400), np.zeros(400)])
    train_network(network, np.concatenate([x, x]), wrong, weight, (x, y, np.ones(400)), Plan(8, 32, 0.02, 8, 6))
    assert auc(probabilities_of(network, x)[:, 0], y) > 0.99


def test_a_step_is_that_of_torchs_adam_bit_for_bit():
    windows = torch.from_numpy(np.random.default_rng(8).normal(size=(50, 4, 2)).astype(np.float32))
    with repeatable(8):
        ours = RecurrentNetwork(2, (6,))
    theirs = copy.deepcopy(ours)
    step, adam = adam_of(ours, 0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    for _ in range(20):
        for network in (ours, theirs):
            network.eval()
            network.zero_grad()
            network(windows).square().mean().backward()
        step()
        adam.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_missing_values_and_rows_that_do_not_match_are_refused():
    x, y = np.zeros((10, 3, 2), np.float32), np.zeros(10)
    network, plan = RecurrentNetwork(2, (4,)), Plan(1, 4, 0.01, 1, 0)
    with pytest.raises(ValueError, match="NaN"):
        train_network(network, x * np.nan, y, np.ones(10), (x, y, np.ones(10)), plan)
    with pytest.raises(ValueError, match="tail: 10 windows, 9 labels"):
        train_network(network, x, y, np.ones(10), (x, y[:9], np.ones(10)), plan)


def test_the_networks_need_torch_and_numpy_alone_and_training_loads_no_compiler():
    code = (
        "import sys, numpy as np; from pipelines.models import networks as n, pattern_network;"
        "x = np.random.default_rng(0).normal(size=(40, 5, 3)).astype('f4'); y = (x[:, -1, 0] > 0).astype(float);"
        "rows = (x, y, np.ones(40));"
        "n.train_network(n.RecurrentNetwork(3, (4,)), *rows, rows, n.Plan(1, 8, .01, 1, 0), n.training_device('cpu'));"
        "heavy = ('sklearn', 'xgboost', 'onnx', 'onnxruntime', 'pandas', 'numba', 'pydantic', 'torch._dynamo');"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a card")
def test_a_fit_takes_a_card_only_where_params_say_so_and_says_when_there_is_none():
    assert training_device("cpu") == "cpu"
    with pytest.raises(NoDevice, match=r"training.device is cuda and torch .* has no card here; set it to cpu"):
        training_device("cuda")


# ---- the family --------------------------------------------------------------------------------------------------


def test_a_column_that_predicts_the_outcome_is_exploited_by_every_member(oracle):
    _, _, oof, _ = oracle
    for name in ("lstm", "logistic", "random_forest", "xgboost"):
        assert auc(oof[f"member_{name}"], oof["y"]) > 0.95, name  # the column itself reaches .994
    assert oof["loss"].mean() < 0.15
    np.testing.assert_array_equal(oof["p"], oof["member_lstm"])


def test_pure_noise_gives_no_gain(tmp_path):
    _, oof = trained(rows(), tmp_path)
    gain = mean_estimate(oof["loss_base_rate"] - oof["loss"])
    assert gain.low < 0.0
    assert gain.value < 0.005


def test_the_bundle_predicts_what_the_native_members_predict(oracle):
    data, model, _, out = oracle
    fitted = fit_window(PREDICTOR, data, params(), 900.0, lambda line: None).fitted
    inputs = data.inputs(np.arange(0, len(data), 5))
    exported, native = model.predict(inputs), fitted.predict(inputs)
    accepted = np.isfinite(exported.p)
    assert accepted.mean() > 0.9
    assert json.loads((out / "fit.json").read_text())["parity_gap"] <= 1e-5
    assert set(exported.members) == set(native.members) == set(PARAMS.ensemble.stated)
    for name, p in native.members.items():
        assert np.abs(exported.members[name] - p)[accepted].max() <= 1e-5, name
    assert (exported.p_low[accepted] < exported.p[accepted]).all()
    assert check_golden(model) == 0.0


def test_the_ensembles_weights_are_in_the_bundle(oracle):
    _, model, _, _ = oracle
    assert model.schema["training_device"] == "cpu"
    assert model.schema["ensemble"] == PARAMS.ensemble.model_dump()
    assert [m["weight"] for m in model.schema["members"] if m["name"] == "lstm"] == [1.0]


def test_a_gap_in_the_window_excludes_the_network_but_not_the_members_that_read_the_newest_bar(oracle):
    data, model, _, _ = oracle
    inputs = data.inputs(np.arange(1))
    inputs[0, 2, 1] = np.nan
    predicted = model.predict(inputs)
    assert predicted.status == ["ABSTAIN"]
    assert predicted.reason[0].startswith("WARMING_UP")
    assert np.isnan(predicted.members["lstm"][0])
    assert np.isfinite(predicted.members["xgboost"][0])


def test_the_same_rows_and_settings_give_the_same_bundle_on_one_machine(tmp_path):
    made = [trained(rows(oracle=0.5, m=900), tmp_path / name, epochs=1)[0].digest for name in ("a", "b")]
    assert made[0] == made[1]


def test_the_tail_that_stops_and_calibrates_is_purged_of_training_labels(monkeypatch):
    passed = {}

    def recorded(train, tail, *rest):
        passed.update(train=train, tail=tail)
        raise InterruptedError

    monkeypatch.setattr(predictor, "fit_network", recorded)
    with pytest.raises(InterruptedError):
        PREDICTOR.fit(rows(), params(), 36_000.0, lambda line: None)
    assert passed["train"].ended.max() + 36_000.0 < passed["tail"].known.min()
    assert len(passed["train"]) <= 600


def test_too_short_a_history_is_refused_with_a_remedy():
    with pytest.raises(NotEnoughData, match="longer history"):
        PREDICTOR.fit(rows(m=150), params(), 900.0, lambda line: None)


def test_last_sign_is_the_training_share_after_the_same_sign():
    data = rows(m=1000)
    data.extras["last_return"][:] = np.where(np.arange(1000) % 4 == 0, 1.0, -1.0)
    data.y[:] = np.where(np.arange(1000) % 4 == 0, 1.0, 0.0)
    p = last_sign(data, data.select_rows(np.array([0, 1])), PARAMS).p
    assert p[0] == pytest.approx((250 + 0.25) / 251)
    assert p[1] == pytest.approx(0.25 / 751)


def test_chosen_windows_are_even_in_time_and_no_more_than_there_is_information():
    assert systematic_sample(np.ones(10), 100).tolist() == list(range(10))
    chosen = systematic_sample(np.full(4000, 0.25), 600)
    assert len(chosen) == 600
    assert set(np.diff(chosen)) <= {6, 7}
    assert len(systematic_sample(np.full(4000, 0.25), 20_000)) == 1000  # four overlapping labels count as one
    crowded = systematic_sample(np.concatenate([np.full(900, 0.1), np.ones(100)]), 100)
    assert (crowded >= 900).mean() > 0.5


def test_a_market_without_a_book_is_fitted_from_what_it_has(tmp_path):
    """Train on the stages' files of a short simulated market in the configuration `four`."""
    spec = PARAMS.simulator.model_copy(update={"history_days": 50, "live_days": 0, "drift_after_live_days": None})
    base = simulate(spec, tape=False).bars
    bars = resample(base, MINUTES, QUARTERS)
    features_folder, labels_folder = stage_folders(tmp_path)
    arrays = {
        "decision": bars, "features": FEATURES.run(bars), "signals": np.zeros((len(bars), 0)),
        "books": np.zeros((len(bars), 2, 0, 3)), "context": np.zeros((len(bars), 6)),
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(features_folder / f"{name}.npy", array)
    chosen = params(configuration="four", max_windows=150, epochs=1)
    np.savez(
        labels_folder / "predictor.npz",
        **horizon_labels(bars, base, QUARTERS, MINUTES, chosen, lambda spread: np.full(len(spread), 5.0)),
    )
    data = PREDICTOR.dataset(tmp_path, chosen)
    lines: list[str] = []
    digest = train(PREDICTOR, data, tmp_path / "out", chosen, {"symbol": "SIM"}, 900.0 * 60, lines.append)
    model = load_bundle(tmp_path / "out" / "bundle", digest)
    assert "absent" in model.schema["dropped"]["depth_ratio"]
    members = {m["name"]: m for m in model.schema["members"]}
    assert members["lstm"]["columns"] == ["log_return_1", "volume_to_median", "volatility_20"]
    assert not set(members["xgboost"]["columns"]) & set(COPIES)
    assert model.steps == VIEWS["predictor"].steps == 60
    assert set(model.columns) < set(CORE_COLUMNS)
    assert check_golden(model) == 0.0
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["parity_gap"] <= 1e-5
    assert any("later windows" in line for line in lines)
