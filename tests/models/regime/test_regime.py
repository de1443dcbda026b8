"""M3 end to end: a pure function of its window; true regimes found, an oracle used, no gain on noise."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.earlier_bundle import as_release_0_5
from support.regime_market import SMALL, dataset_of, history_of, steady

from pipelines.contracts import REGIMES, RETAINED_BARS
from pipelines.errors import NotEnoughData
from pipelines.evaluation.metrics import mean_estimate
from pipelines.features.catalog import FEATURES
from pipelines.labels.returns import HALF_LIVES
from pipelines.models.regime.density import density_from_dict, fit_density
from pipelines.models.regime.inputs import STEPS
from pipelines.models.regime.model_family import REGIME, non_overlapping_rows
from pipelines.models.runtime import check_golden, load_bundle
from pipelines.models.views import VIEWS
from pipelines.settings import ROOT
from pipelines.signals.regimes import rule_regime
from pipelines.stage_outputs import read_timings
from pipelines.training.fit import train
from pipelines.training.walk import out_of_fold

EMBARGO_S = 500 * 900.0


def quiet(line):
    pass


@pytest.fixture(scope="module")
def bundle(simulated, tmp_path_factory):
    data, _ = simulated
    out = tmp_path_factory.mktemp("regime")
    digest = train(REGIME, data, out, SMALL, {"symbol": "SIM/USDT"}, EMBARGO_S, quiet)
    with np.load(out / "oof.npz") as f:
        return load_bundle(out / "bundle", digest), json.loads((out / "fit.json").read_text()), dict(f), out


def gain(oof, baseline):
    return mean_estimate(oof.baselines[baseline].loss - oof.loss)


def test_the_true_regime_is_found_far_more_often_than_by_chance_or_by_the_rule(simulated, bundle):
    data, truth = simulated
    oof = bundle[2]
    rows = oof["row"]
    found, true = oof["label"], np.array(REGIMES)[truth[rows]]
    newest = data.select_rows(rows).newest()
    at = [data.columns.index(name) for name in ("volatility_regime", "adx_14")]
    rule = np.array(REGIMES)[rule_regime(newest[:, at[0]], newest[:, at[1]], np.zeros(len(rows))).astype(int)]
    chance = sum((found == r).mean() * (true == r).mean() for r in REGIMES)
    assert (found == true).mean() > chance + 0.4
    better = mean_estimate((found == true).astype(float) - (rule == true))
    assert better.low > 0.1


def test_the_regimes_of_the_simulator_beat_an_ewma_volatility_with_the_same_tail(bundle):
    oof = bundle[2]
    for baseline in ("ewma", "ewma_student", "constant"):
        assert mean_estimate(oof[f"loss_{baseline}"] - oof["loss"]).low > 0, baseline


def test_a_market_without_regimes_gains_nothing():
    oof = out_of_fold(REGIME, dataset_of(steady()), SMALL, EMBARGO_S, quiet)
    assert gain(oof, "ewma_student").low <= 0


def test_a_range_that_predicts_the_coming_volatility_is_exploited():
    data = dataset_of(steady())
    loud = np.repeat(np.random.default_rng(1).random(len(data) // 50 + 1) < 0.5, 50)[: len(data)]
    read, known = data.inputs, np.where(loud, 3.0, 1.0)

    def inputs(rows):
        window = read(rows).copy()
        back = np.maximum(rows[:, None] + np.arange(1 - STEPS, 1), 0)
        window[:, :, 0] *= known[back]
        return window

    oracle = replace(data, inputs=inputs, y=data.y * known)
    oof = out_of_fold(REGIME, oracle, SMALL, EMBARGO_S, quiet)
    assert gain(oof, "ewma_student").low > 0.1


def test_the_export_predicts_what_the_native_model_predicts_and_its_golden_rows_match(bundle):
    model, fit, _, _ = bundle
    assert fit["parity_gap"] <= 1e-5
    assert check_golden(model) == 0.0
    assert (model.steps, model.classes, model.schema["regime"]["unavailable"]) == (
        STEPS, REGIMES, {"sentiment": "MISSING_FEATURE:market_sentiment"},
    )  # fmt: skip


def test_a_row_alone_and_among_others_has_the_same_bytes(simulated, bundle):
    data, model = simulated[0], bundle[0]
    rows = data.inputs(np.arange(500, 540))
    together = model.predict(rows)
    for i in (0, 17, 39):
        single = model.predict(rows[i : i + 1])
        assert single.p[0].tobytes() == together.p[i].tobytes()
        assert single.label[0] == together.label[i]
        assert all(single.members[name][0].tobytes() == together.members[name][i].tobytes() for name in single.members)


def test_the_live_window_is_the_training_window():
    history = history_of(steady(900))
    retained = type(history)(*(getattr(history, part)[-RETAINED_BARS:] for part in history.__slots__))
    build = VIEWS["regime"].build
    assert build(history, np.array([899])).tobytes() == build(retained, np.array([RETAINED_BARS - 1])).tobytes()


def test_the_window_is_long_enough_to_forget_the_start_of_the_filter(simulated, bundle):
    data, ensemble = simulated[0], bundle[0].ensemble
    rows = data.select_rows(np.arange(2000))
    endless = ensemble.detector_probabilities(rows.newest()[np.newaxis])["hmm"][0]
    inside = ensemble.predict(rows.inputs(np.arange(500, 2000))).members["hmm"]
    assert np.abs(endless[500:] - inside).max() < 1e-6
    short = ensemble.predict(rows.inputs(np.arange(500, 2000))[:, -8:]).members["hmm"]
    assert np.abs(endless[500:] - short).max() > 0.01


def test_the_members_have_their_own_labels_and_a_probability_of_change(simulated, bundle):
    data, model = simulated[0], bundle[0]
    predicted = model.predict(data.inputs(np.arange(300, 400)))
    assert {name: p.shape[1:] for name, p in predicted.members.items()} == {
        "hmm": (5,), "volatility": (3,), "trend": (3,), "clustering": (4,), "momentum": (3,), "volume": (3,),
        "change": (),
    }  # fmt: skip
    assert 0 <= predicted.members["change"].min() <= predicted.members["change"].max() <= 1
    np.testing.assert_allclose(predicted.p.sum(axis=1), 1.0)
    assert np.isnan(predicted.p_low).all()


def test_it_abstains_on_a_missing_value_a_novel_bar_and_a_short_history(simulated, bundle):
    data, model = simulated[0], bundle[0]
    rows = data.inputs(np.full(4, 600)).copy()
    rows[0, -1, 3] = np.nan
    rows[1, -1, 0] = 5.0
    rows[2, :80] = np.nan
    rows[3, 20] = np.nan
    predicted = model.predict(rows)
    assert predicted.status == ["ABSTAIN", "ABSTAIN", "ABSTAIN", "OK"]
    assert [reason and reason.split(":")[0] for reason in predicted.reason] == [
        "MISSING_FEATURE", "NOVEL", "WARMING_UP", None,
    ]  # fmt: skip
    assert predicted.label[:3] == [None] * 3
    assert np.isnan(predicted.p[:3]).all()
    assert np.isnan(predicted.members["change"][:3]).all()


def test_no_regime_changes_within_the_dwell_inside_a_window(simulated, bundle):
    data, ensemble = simulated[0], bundle[0].ensemble
    codes = ensemble.predict(data.inputs(np.arange(3000))).code
    stays = np.diff(np.flatnonzero(np.concatenate([[True], codes[1:] != codes[:-1], [True]])))
    assert np.mean(stays[1:-1] < SMALL.regime.min_dwell_bars) < 0.02


def test_the_transition_matrix_in_the_schema_is_inside_its_interval(bundle):
    transition = bundle[0].schema["regime"]["transition"]
    value, low, high = (np.array(transition[name]) for name in ("value", "low", "high"))
    assert (np.diag(low) < np.diag(value)).all()
    assert (np.diag(value) < np.diag(high)).all()
    np.testing.assert_allclose(value.sum(axis=1), 1.0, atol=1e-4)


def test_another_bundle_is_scored_by_its_own_loss_params(simulated, bundle):
    data, model = simulated[0], bundle[0]
    rows = data.select_rows(np.arange(2000))
    p = model.predict(rows.all_inputs()).p
    own = REGIME.loss(p, rows, json.loads(json.dumps(model.schema["loss_params"])))
    loss_params = model.schema["loss_params"]
    wider = dict(loss_params) | {"shifts": [shift + 1.0 for shift in loss_params["shifts"]]}
    assert np.isnan(own[~np.isfinite(p[:, 0])]).all()
    assert np.nanmean(REGIME.loss(p, rows, wider)) > np.nanmean(own) + 0.1


def test_a_bundle_of_release_0_5_loads_and_gives_its_golden_predictions(bundle, tmp_path):
    today, out = bundle[0], bundle[3]
    shutil.copytree(out / "bundle", tmp_path / "bundle")
    model = load_bundle(tmp_path / "bundle", as_release_0_5(tmp_path / "bundle", "regime"))
    assert {"words", "silent"} < set(json.loads((tmp_path / "bundle" / "schema.json").read_text())["regime"])
    assert model.schema["loss_params"] == today.schema["loss_params"]
    assert check_golden(model) == 0.0


def test_the_same_rows_give_the_same_output_on_one_machine_and_what_the_fit_took_is_none_of_it(
    simulated, bundle, tmp_path
):
    out = tmp_path / "regime"
    out.mkdir()
    again = train(REGIME, simulated[0], out, SMALL, {"symbol": "SIM/USDT"}, EMBARGO_S, quiet)
    assert again == bundle[0].digest
    assert contents(out) == contents(bundle[3])
    took = read_timings(out)
    assert took["seconds"] > 0.0
    assert took["latency_ms"] > 0.0


def contents(folder):
    """Return name → bytes of all files under a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_too_short_a_history_is_refused(simulated):
    with pytest.raises(NotEnoughData, match="needs 500"):
        REGIME.fit(simulated[0].select_rows(np.arange(300)), SMALL, 0.0, quiet)


def test_serving_a_regime_needs_no_training_library():
    heavy = "('sklearn', 'xgboost', 'torch', 'mlflow', 'scipy.optimize', 'scipy.stats', 'pipelines.labels')"
    code = f"import sys, pipelines.models.runtime; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


# ---- the density -------------------------------------------------------------------------------------------------
def planted_hours(n=6000, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(4, 0.3), n)
    ewma = np.exp(rng.normal(3.0, 0.3, (n, len(HALF_LIVES))))
    regime = (p.cumsum(axis=1) > rng.random(n)[:, None]).argmax(axis=1)
    spread = np.exp(np.array([4.0, 3.5, 5.0, 3.0])[regime] + 0.5 * (np.log(ewma[:, 2]) - 3.0))
    return rng.standard_t(6, n) * spread, ewma, p


def test_the_parameters_of_a_planted_density_are_found():
    y, ewma, p = planted_hours()
    found = fit_density(y, ewma, p, np.ones(len(y)))
    np.testing.assert_allclose(found.shifts, [4.0, 3.5, 5.0, 3.0], atol=0.15)
    assert found.half_life == HALF_LIVES[2]
    assert found.power == pytest.approx(0.5, abs=0.1)
    grid = np.linspace(-20000, 20000, 400001)
    mass = np.exp(-found.losses(grid, np.tile(ewma[:1], (len(grid), 1)), np.tile(p[:1], (len(grid), 1))))
    assert np.trapezoid(mass, grid) == pytest.approx(1.0, abs=1e-3)
    assert density_from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_one_regime_for_all_is_the_ewma_model_with_the_same_tail():
    y, ewma, p = planted_hours()
    one_regime = fit_density(y, ewma, np.ones((len(y), 1)), np.ones(len(y)))
    alike = replace(one_regime, shifts=one_regime.shifts * 4)
    np.testing.assert_allclose(alike.losses(y, ewma, p), one_regime.losses(y, ewma, np.ones((len(y), 1))), atol=1e-10)


def test_non_overlapping_rows_start_where_the_last_label_ended(simulated):
    data = simulated[0]
    rows = non_overlapping_rows(data)
    assert (data.known[rows][1:] >= data.ended[rows][:-1]).all()
    assert len(rows) == pytest.approx(len(data) / 4, rel=0.01)


def test_every_column_but_the_range_is_of_the_catalogue():
    assert [c for c in VIEWS["regime"].columns if c not in FEATURES.index] == ["log_range"]
