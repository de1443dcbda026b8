"""M2: the view, the mirrored network, the exports; fits on an oracle, on noise and on a market."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.stage_folders import stage_folders

from pipelines.context_layout import NO_CONTEXT
from pipelines.contracts import CLOSE, RETAINED_BARS, History
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import NotEnoughData
from pipelines.evaluation.metrics import auc, mean_estimate
from pipelines.features.catalog import FEATURES
from pipelines.labels.patterns import pattern_labels
from pipelines.models import pattern
from pipelines.models.base import Dataset
from pipelines.models.calibration_and_novelty import Calibration, combine, stacked
from pipelines.models.directional_ensemble import average
from pipelines.models.networks import probabilities_of, repeatable
from pipelines.models.pattern import PATTERN, calibrate, prevalence, shares
from pipelines.models.pattern_network import PatternNetwork
from pipelines.models.pattern_rows import mirror_layout, share_of_side
from pipelines.models.pattern_view import CANDLE, DIRECTIONS, STEPS, TAKER
from pipelines.models.runtime import check_golden, load_bundle
from pipelines.models.views import VIEWS, select
from pipelines.settings import ROOT, load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.setups import PATTERNS, setups
from pipelines.training.fit import train
from pipelines.training.walk import fit_window

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

PARAMS = load_params()
COLUMNS = (*CANDLE, TAKER, "volatility_regime", "rsi_14", *DIRECTIONS)


def params(trees=30, **changes):
    few = {"trees": trees, "leaf_events": 20}
    forest, boosted = (each.model_copy(update=few) for each in (PARAMS.pattern.forest, PARAMS.pattern.boosted))
    small = {"folds": 1, "max_windows": 1500, "epochs": 4, "forest": forest, "boosted": boosted} | changes
    return PARAMS.model_copy(update={"pattern": PARAMS.pattern.model_copy(update=small)})


def rows(oracle=0.0, m=2400, seed=0, classes=9):
    """Return m bars of noise; where `oracle` is above 0, the newest taker share predicts which side plays out."""
    rng = np.random.default_rng(seed)
    columns = COLUMNS[: len(COLUMNS) - 9 + classes]
    windows = rng.normal(size=(m, STEPS, len(columns)))
    direction = rng.choice([-1.0, 0.0, 1.0], p=[0.15, 0.7, 0.15], size=(m, classes))
    direction[~direction.any(axis=1), 0] = 1.0
    rise = np.where(rng.random(m) < 0.45, 1.0, -1.0)
    windows[:, -1, columns.index(TAKER)] += oracle * rise
    windows[:, :, -classes:] = 0.0
    windows[:, -1, -classes:] = direction
    known = 900.0 * np.arange(m)
    return Dataset(
        columns=columns, inputs=lambda at: windows[at], y=(direction == rise[:, None]).astype(float), weight=np.ones(m),
        uniqueness=np.ones(m), known=known, ended=known + 900.0, at=np.arange(m), extras={"direction": direction},
    )  # fmt: skip


def trained(data, out, **changes):
    digest = train(PATTERN, data, out, params(**changes), {"symbol": "TEST"}, 900.0, lambda line: None)
    with np.load(out / "oof.npz") as f:
        return load_bundle(out / "bundle", digest), {name: f[name] for name in f.files}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory):
    out = tmp_path_factory.mktemp("oracle")
    data = rows(oracle=2.0)
    return data, *trained(data, out), out


def history(bars):
    m = len(bars)
    return History(bars, FEATURES.run(bars), SIGNALS.run(bars), np.zeros((m, 2, 0, 3)), np.tile(NO_CONTEXT, (m, 1)))


@pytest.fixture(scope="module")
def market():
    """Return (base, history) of 70 simulated days."""
    spec = PARAMS.simulator.model_copy(update={"history_days": 70, "live_days": 0, "drift_after_live_days": None})
    base = simulate(spec, tape=False).bars
    return base, history(resample(base, MINUTES, QUARTERS))


def reach_of(past):
    """Return (m,) ATR in price units."""
    return past.features[:, FEATURES.index["atr_14"]] * past.bars[:, CLOSE]


def stage_files(folder, base, past, chosen):
    """Write the files of the features and labels stages that the family reads; return its dataset."""
    features_folder, labels_folder = stage_folders(folder)
    arrays = {
        "decision": past.bars, "features": past.features, "signals": past.signals, "books": past.levels,
        "context": past.context,
    }  # fmt: skip
    for name, array in arrays.items():
        np.save(features_folder / f"{name}.npy", array)
    labels = pattern_labels(past.bars, base, setups(past.signals), reach_of(past), QUARTERS, MINUTES, chosen)
    np.savez(labels_folder / "pattern.npz", **labels)
    return PATTERN.dataset(folder, chosen)


# ---- the view ----------------------------------------------------------------------------------------------------


def test_the_bars_that_serving_retains_give_the_bytes_of_the_whole_history(market):
    _, past = market
    view = VIEWS["pattern"]
    at = np.arange(RETAINED_BARS - 1, len(past), 61)
    whole = view.build(past, at)
    parts = (past.bars, past.features, past.signals, past.levels, past.context)
    for row, end in zip(whole, at + 1, strict=True):
        retained = History(*(part[end - RETAINED_BARS : end].copy() for part in parts))
        assert view.build(retained, np.array([RETAINED_BARS - 1]))[0].tobytes() == row.tobytes()


def test_candles_are_in_units_of_atr_and_sides_are_on_the_newest_bar(market):
    _, past = market
    at = np.arange(600, 900)
    rows, reach = VIEWS["pattern"].build(past, at), reach_of(past)[at]
    where = {name: j for j, name in enumerate(VIEWS["pattern"].columns)}
    middle = past.bars[at, 2:4].mean(axis=1)
    np.testing.assert_allclose(rows[:, 0, where["candle_low"]], (past.bars[at - 31, 3] - middle) / reach)
    np.testing.assert_allclose(rows[:, -1, where["candle_high"]], -rows[:, -1, where["candle_low"]])
    sides = [where[name] for name in DIRECTIONS]
    np.testing.assert_array_equal(rows[:, -1, sides], setups(past.signals)[at])
    assert not rows[:, :-1][:, :, sides].any()


def test_too_short_a_history_is_missing_not_guessed(market):
    _, past = market
    rows = VIEWS["pattern"].build(past, np.array([5, 12]))
    assert np.isnan(rows[0, 0]).all()
    assert np.isnan(rows[:, -1, -9:]).all()


def test_serving_the_view_needs_no_training_library_and_the_network_only_torch_and_numpy():
    def loaded(module, heavy):
        code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert loaded("pipelines.models.views", ("sklearn", "xgboost", "torch", "onnx", "mlflow")) == "[]"
    heavy = ("sklearn", "xgboost", "onnx", "onnxruntime", "pandas", "numba", "pydantic", "scipy")
    assert loaded("pipelines.models.pattern_network", heavy) == "[]"


# ---- mirrors -----------------------------------------------------------------------------------------------------


def test_the_network_answers_a_mirrored_market_with_mirrored_sides_alike():
    rng = np.random.default_rng(1)
    with repeatable(1):
        network = PatternNetwork([0, 2, 1, 3], [-1.0, -1.0, -1.0, 1.0], classes=3, channels=8, dropout=0.2)
        with torch.no_grad():
            for weights in network.parameters():
                weights.mul_(2.0)
    windows = rng.normal(1.0, 2.0, size=(40, STEPS, 7)).astype(np.float32)
    windows[:, -1, 4:] = rng.choice([-1.0, 0.0, 1.0], size=(40, 3))
    network.standardise(windows)
    mirrored = windows[:, :, [0, 2, 1, 3, 4, 5, 6]] * np.float32([-1, -1, -1, 1, -1, -1, -1])
    original, reflected = probabilities_of(network, windows), probabilities_of(network, mirrored)
    np.testing.assert_allclose(original, reflected, atol=1e-6)
    assert np.ptp(original[windows[:, -1, 4:] != 0]) > 0.05
    assert original[windows[:, -1, 4:] == 0].max() < 1e-6


def test_the_trees_read_a_falling_pattern_as_a_rising_one():
    newest = np.array([[0.0] * 4 + [0.3, 0.6, 70.0, 1.0, 0.0, -1.0]])
    sides = mirror_layout((*CANDLE, TAKER, "volatility_regime", "rsi_14", *DIRECTIONS[:3]))
    first, _, third = sides.rows(newest)[0]
    # volatility unchanged; share and RSI from each side; sides with and against; the side; the class (one-hot)
    np.testing.assert_allclose(first, [0.6, 0.3, 20.0, 1, 0, -1, 1, 1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(third, [0.6, -0.3, -20.0, -1, 0, 1, -1, 0, 0, 1], rtol=1e-6)


def test_classes_on_the_same_side_of_a_bar_share_its_one_outcome():
    np.testing.assert_allclose(
        share_of_side(np.array([[1.0, 1, -1, 0], [0, -1, 0, 0]])), [[0.5, 0.5, 1, 0], [0, 1, 0, 0]]
    )


# ---- calibration and baseline ------------------------------------------------------------------------------------


def test_a_rare_class_is_calibrated_around_its_own_share_by_the_line_of_all_classes():
    rng = np.random.default_rng(2)
    share = np.array([0.5, 0.2])
    present = np.column_stack([np.ones(3000, bool), np.arange(3000) < 6])
    z = rng.normal(size=(3000, 2))
    truth = 1 / (1 + np.exp(-(np.log(share / (1 - share)) + 0.5 * z)))
    raw = 1 / (1 + np.exp(-(np.log(share / (1 - share)) + z)))  # twice too confident
    tail = pattern._TrainingRows(
        np.empty(0), np.empty(0, np.float32), present, ((rng.random((3000, 2)) < truth) & present).astype(float),
        present.astype(float), present.astype(float),
    )  # fmt: skip
    common, rare = calibrate(np.where(present, raw, 0.0), tail, share, pooled_rows=300.0)
    assert common.slope == pytest.approx(0.5, abs=0.12)
    assert rare.slope == pytest.approx(0.5, abs=0.2)
    assert rare.calibrate(share[1:])[0][0] == pytest.approx(0.2, abs=0.06)
    assert common.calibrate(share[:1])[0][0] == pytest.approx(0.5, abs=0.03)
    ratio = rare.covariance[0, 0] / common.covariance[0, 0]
    assert ratio > 2.0  # six rows and 300 of others are less evidence than 3,000


def test_members_are_calibrated_by_their_own_lines_and_averaged_over_those_that_answer():
    rng = np.random.default_rng(3)
    lines = [
        [Calibration(rng.normal(1), rng.normal(), np.array([[0.2, 0.01], [0.01, 0.1]]) * k) for k in range(1, 4)]
        for _ in range(2)
    ]
    raw, weights, absent = rng.random((2, 20, 3)), np.array([1.0, 0.5]), np.zeros((20, 3), bool)
    raw[:, 0, 0], raw[1, 1, 1] = np.nan, np.nan
    absent[2], absent[3, 0], raw[:, 3, 0], absent[4, 2] = True, True, np.nan, True
    alone = [[line.calibrate(raw[m, :, c]) for c, line in enumerate(of)] for m, of in enumerate(lines)]
    p_each, low_each = np.moveaxis(np.array(alone), [2, 3], [0, 2])  # (members, rows, classes) each
    for values in (p_each, low_each):
        values[:, 2], values[:, 4, 2] = 0.0, 0.0  # no class, and one that is absent; without a number it stays missing
    members, p, low = np.empty_like(raw), np.empty((20, 3)), np.empty((20, 3))
    without = combine(raw, np.array([stacked(of) for of in lines]), weights, absent, members, p, low)
    np.testing.assert_array_equal(members, p_each)
    np.testing.assert_allclose(p, average(p_each, weights), rtol=1e-15)
    np.testing.assert_allclose(low, average(low_each, weights), rtol=1e-15)
    assert without == 2  # the rows 0 and 3


@pytest.mark.parametrize(("raw", "p"), [(0.5, 0.5), (0.0, 1e-7), (1.0, 1 - 1e-7), (np.nan, np.nan)])
def test_a_line_of_slope_one_changes_nothing_and_is_as_uncertain_as_its_covariance(raw, p):
    found, low = Calibration(1.0, 0.0, np.array([[0.0, 0.0], [0.0, 0.04]])).calibrate(np.array([raw]))
    assert found[0] == pytest.approx(p, rel=1e-9, nan_ok=True)
    assert low[0] == pytest.approx(1 / (1 + np.exp(-(np.log(p / (1 - p)) - 1.96 * 0.2))), rel=1e-9, nan_ok=True)


def test_prevalence_is_the_share_of_present_patterns_that_played_out_and_zero_elsewhere():
    data = rows(m=1000)
    present = data.extras["direction"] != 0
    baseline = prevalence(data, data, PARAMS)
    assert not baseline.p[~present].any()
    expected = [data.y[present[:, c], c].mean() for c in range(9)]
    np.testing.assert_allclose(baseline.p.max(axis=0), expected, atol=0.005)
    np.testing.assert_allclose(baseline.loss, ((baseline.p - data.y) ** 2).mean(axis=1))
    none = shares(np.zeros((4, 2)), np.array([[True, False]] * 4), np.ones((4, 2)))
    assert none.tolist() == [0.0, 0.0]


# ---- the family --------------------------------------------------------------------------------------------------


def test_a_column_that_predicts_the_outcome_is_exploited_by_every_member_for_every_class(oracle):
    _, _, oof, _ = oracle
    present = oof["extra_direction"] != 0
    for name in ("p", "member_forest", "member_boosted", "member_network"):
        assert auc(oof[name][present], oof["y"][present]) > 0.95, name  # the column itself reaches .977
        for c in range(9):
            assert auc(oof[name][present[:, c], c], oof["y"][present[:, c], c]) > 0.88, (name, c)
    assert oof["loss"].mean() < 0.5 * oof["loss_prevalence"].mean()


def test_pure_noise_gives_no_gain(tmp_path):
    _, oof = trained(rows(seed=4), tmp_path)
    gain = mean_estimate(oof["loss_prevalence"] - oof["loss"])
    assert gain.low < 0.0
    assert gain.value < 0.01 * oof["loss_prevalence"].mean()


def test_an_absent_pattern_is_predicted_zero_and_a_probable_one_is_named(oracle):
    data, model, oof, _ = oracle
    assert not oof["p"][oof["extra_direction"] == 0].any()
    inputs = data.inputs(np.arange(300))
    inputs[0, -1, -9:] = 0.0
    predicted = model.predict(inputs)
    accepted = np.array([word == "OK" for word in predicted.status])
    assert accepted[0]
    assert accepted.mean() > 0.95
    assert not predicted.p[accepted][inputs[accepted, -1, -9:] == 0].any()
    assert not predicted.p[0].any()
    assert predicted.label[0] is None
    for row in np.flatnonzero(accepted):
        named = [name for name, p in zip(PATTERNS, predicted.p[row], strict=True) if p >= 0.7]
        assert predicted.label[row] == ("+".join(named) or None)
    assert any(predicted.label)


def test_the_bundle_predicts_what_the_native_members_predict(oracle):
    data, model, _, out = oracle
    assert json.loads((out / "fit.json").read_text())["parity_gap"] <= 1e-5
    fitted = fit_window(PATTERN, data, params(), 900.0, lambda line: None).fitted
    inputs = data.inputs(np.arange(0, len(data), 7))
    exported, native = model.predict(inputs), fitted.predict(inputs)
    accepted = np.isfinite(exported.p).all(axis=1)
    assert accepted.mean() > 0.95
    assert np.abs(exported.p - native.p)[accepted].max() <= 1e-5
    assert np.abs(exported.p_low - native.p_low)[accepted].max() <= 1e-5
    assert set(exported.members) == {"forest", "boosted", "network"}
    for name, p in native.members.items():
        assert np.abs(exported.members[name] - p)[accepted].max() <= 1e-5, name
    present = inputs[accepted, -1, -9:] != 0
    assert (exported.p_low[accepted][present] < exported.p[accepted][present]).all()
    assert check_golden(model) == 0.0


def test_the_same_rows_and_settings_give_the_same_bundle_on_one_machine(tmp_path):
    made = [trained(rows(oracle=0.5, m=900), tmp_path / name, epochs=1, trees=5)[0].digest for name in ("a", "b")]
    assert made[0] == made[1]


def test_a_gap_in_the_window_excludes_the_network_but_not_the_trees(oracle):
    data, model, _, _ = oracle
    inputs = data.inputs(np.arange(1))
    inputs[0, 2, 1] = np.nan
    present = inputs[0, -1, -9:] != 0
    predicted = model.predict(inputs)
    assert predicted.status == ["OK"]
    assert np.isnan(predicted.members["network"][0, present]).all()
    trees = (predicted.members["forest"] + predicted.members["boosted"]) / 2
    np.testing.assert_allclose(predicted.p[0, present], trees[0, present])


def test_too_short_a_history_is_refused_with_a_remedy():
    with pytest.raises(NotEnoughData, match="longer history"):
        PATTERN.fit(rows(m=150), params(), 900.0, lambda line: None)


def test_the_tail_that_stops_and_calibrates_is_purged_of_training_labels(monkeypatch):
    selected, select_rows = [], Dataset.select_rows

    def recorded(data, chosen):
        selected.append(select_rows(data, chosen))
        return selected[-1]

    monkeypatch.setattr(Dataset, "select_rows", recorded)
    PATTERN.fit(rows(m=900), params(epochs=1, trees=5), 36_000.0, lambda line: None)
    head, tail = selected
    assert head.ended.max() + 36_000.0 < tail.known.min()


def test_a_market_is_fitted_end_to_end_and_a_class_that_never_occurs_is_left_out(market, tmp_path):
    base, past = market
    chosen = params(epochs=2, max_windows=500)
    stage_files(tmp_path, base, past, chosen)
    with np.load(tmp_path / "labels" / "SIM-USDT" / "pattern.npz") as f:
        labels = {name: f[name] for name in f.files}
    labels["direction"][:, 3] = labels["y"][:, 3] = 0.0
    np.savez(tmp_path / "labels" / "SIM-USDT" / "pattern.npz", **labels)
    data = PATTERN.dataset(tmp_path, chosen)
    assert "cisd.direction" not in data.columns
    assert data.y.shape[1] == 8
    np.testing.assert_array_equal(data.newest()[:, -8:], data.extras["direction"])  # the view sees what the labels saw

    digest = train(PATTERN, data, tmp_path / "out", chosen, {"symbol": "SIM"}, 900.0 * 60, lambda line: None)
    model = load_bundle(tmp_path / "out" / "bundle", digest)
    assert model.classes == tuple(name for name in PATTERNS if name != "cisd")
    fit = json.loads((tmp_path / "out" / "fit.json").read_text())
    assert fit["classes"] == list(model.classes)
    assert fit["parity_gap"] <= 1e-5
    assert "absent" in model.schema["dropped"]["book_imbalance"]
    assert "never occur in the snapshot: cisd" in (tmp_path / "out" / "bundle" / "card.md").read_text()
    assert check_golden(model) == 0.0
    rows = select(VIEWS["pattern"].build(past, np.arange(700, 750)), VIEWS["pattern"].columns, model.columns)
    assert model.predict(rows).p.shape == (50, 8)


def test_a_market_without_volume_is_fitted_from_its_prices(market, tmp_path):
    no_volume = market[0].copy()
    no_volume[:, 5:] = np.nan
    chosen = params(epochs=1, max_windows=300, trees=5)
    data = stage_files(tmp_path, no_volume, history(resample(no_volume, MINUTES, QUARTERS)), chosen)
    digest = train(PATTERN, data, tmp_path / "out", chosen, {"symbol": "FX"}, 900.0 * 60, lambda line: None)
    model = load_bundle(tmp_path / "out" / "bundle", digest)
    assert {TAKER, "volume_to_median", "order_flow_imbalance"} <= set(model.schema["dropped"])
    assert model.schema["training_device"] == "cpu"
    network = next(m for m in model.schema["members"] if m["name"] == "network")
    assert network["columns"] == [*CANDLE, "volatility_regime", *DIRECTIONS]
    assert check_golden(model) == 0.0
