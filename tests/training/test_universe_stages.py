"""The stages of a universe of two markets: what each of them writes, from features to figures, gate and backtest."""

import contextlib
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.fixture import MINUTES, simulated, universe
from benchmarks.markets import page, panel_figures
from flows.support import backtest
from pipelines.contracts import OPEN_TIME
from pipelines.errors import NotEnoughData, UnknownName
from pipelines.evaluation.backtest import T_NET, T_PNL, T_SIZE, pooled
from pipelines.evaluation.gates import evidence_of, judge
from pipelines.evaluation.report import figure_rows, write_page
from pipelines.features.catalog import FEATURES
from pipelines.models.reference import has_reference, read_reference
from pipelines.models.runtime import load_bundle
from pipelines.models.snapshot import read_history
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.stage_outputs import facts_of, features_of, labels_of, read_meta, symbols_in
from pipelines.training import stages
from pipelines.warm_start import read_warm_start

SYMBOLS = ("AAA/USDT", "BBB/USDT")
DAYS = 60


def quick():
    """Return parameters of a small validator whose gate takes what 60 days give."""
    params = load_params()
    changes = {
        "validator": {"trees": 20, "depth": 3, "decay_half_lives_events": [8000]},
        "splits": {"folds": 2, "calibration_stretches": 2}, "importance": {"repeats": 1}, "gate": {"min_events": 100},
        "drift": {"block_bars": 96},
    }  # fmt: skip
    return params.model_copy(
        update={name: getattr(params, name).model_copy(update=update) for name, update in changes.items()}
    )


PARAMS = quick()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A workspace after every stage of the validator, of two simulated markets; the second starts five days later."""
    root = tmp_path_factory.mktemp("universe") / "workspace"
    one, other = simulated(PARAMS, DAYS, seed=3), simulated(PARAMS, DAYS, seed=4)[5 * 1440 :]
    universe(root, dict(zip(SYMBOLS, ((one, MINUTES), (other, MINUTES)), strict=True)), {SYMBOLS[1]: (None, None)})
    with contextlib.chdir(root):
        stages.build_features(PARAMS)
        stages.build_labels(PARAMS)
        stages.fit_family("validator", PARAMS)
        stages.evaluate("validator", PARAMS)
    return root


def test_every_market_has_a_folder_of_its_own_with_what_it_has_alone(workspace):
    artifacts = workspace / "artifacts"
    meta = read_meta(artifacts)
    assert symbols_in(meta) == SYMBOLS
    assert (meta["decision_timeframe"], len(meta["data_hash"])) == ("15m", 32)
    assert "grid" not in meta
    for symbol in SYMBOLS:
        history, facts = read_history(artifacts, symbol), facts_of(meta, symbol)
        assert history.features.tobytes() == FEATURES.run(np.asarray(history.bars)).tobytes()
        assert history.signals.tobytes() == SIGNALS.run(np.asarray(history.bars)).tobytes()
        assert (facts["symbol"], facts["data_hash"]) == (symbol, meta["data_hash"])
        assert read_warm_start(features_of(artifacts, symbol) / "warm").symbol == symbol
        assert json.loads((labels_of(artifacts, symbol) / "traditional.json").read_text())["n"] > 0
    assert (facts_of(meta)["venue"], facts_of(meta, SYMBOLS[1])["venue"]) == ("simulator", None)
    with pytest.raises(UnknownName, match="AAA/USDT, BBB/USDT, not of CCC/USDT"):
        facts_of(meta, "CCC/USDT")


def test_the_bundle_names_its_markets_and_keeps_a_drift_reference_of_each(workspace):
    bundle = workspace / "artifacts/validator/bundle"
    model = load_bundle(bundle, None)
    assert model.schema["symbols"] == list(SYMBOLS)
    assert set(model.schema["markets"]) == set(SYMBOLS)
    assert has_reference(bundle)
    bars = [read_reference(bundle, symbol).n for symbol in SYMBOLS]
    assert bars[0] - bars[1] == 5 * 96
    with pytest.raises(NotEnoughData, match="AAA/USDT, BBB/USDT, not on CCC/USDT"):
        read_reference(bundle, "CCC/USDT")
    card = (bundle / "card.md").read_text()
    assert "AAA/USDT (" in card
    assert "BBB/USDT (" in card


def test_figures_are_pooled_and_of_each_market_and_say_what_could_not_be_seen(workspace, tmp_path):
    artifacts = workspace / "artifacts"
    figures = json.loads((artifacts / "evaluation/validator.json").read_text())
    assert sum(each["n"] for each in figures["by_symbol"].values()) == figures["n"]
    assert set(figures["detectable"]) == {"bps", "loss"}
    assert figures["costs"].startswith("AAA/USDT: simulator spot taker")  # the markets pay differently
    names = [row[0] for row in figure_rows(figures, None)]
    assert {"AAA/USDT: gain over base rate", "BBB/USDT: gain over base rate"} < set(names)
    assert "smallest effect to be seen, bps" in names
    verdict = judge(evidence_of(artifacts / "validator", None, 1), PARAMS)
    assert {"not_worse:AAA/USDT", "not_worse:BBB/USDT"} < {check.name for check in verdict.checks}
    write_page(tmp_path / "page.html", verdict, figures, artifacts / "validator", "t")
    page = (tmp_path / "page.html").read_text()
    assert "rows of AAA/USDT, BBB/USDT" in page
    assert "By market" in page
    assert "Edges under" in page


def test_a_backtest_decides_every_market_and_pools_them_as_equal_parts_of_an_account(workspace):
    store = SimpleNamespace(slots=lambda family: SimpleNamespace(champion=None))
    installation = SimpleNamespace(
        workspace=workspace, params=PARAMS, store=store,
        meta_of=lambda symbol: facts_of(read_meta(workspace / "artifacts"), symbol),
    )  # fmt: skip
    found = backtest.run(installation, "validator")
    assert tuple(found) == SYMBOLS
    figures = backtest.figures(found)
    assert figures["trades"] == sum(each["trades"] for each in figures["by_symbol"].values())
    whole = pooled(list(found.values()))
    assert whole.equity[-1] == pytest.approx(np.mean([each.equity[-1] for each in found.values()]))
    trades = np.concatenate([each.trades for each in found.values()])
    assert whole.trades[:, T_PNL].sum() == pytest.approx(trades[:, T_PNL].sum() / 2)
    assert whole.trades[:, T_SIZE].sum() == pytest.approx(trades[:, T_SIZE].sum() / 2)
    np.testing.assert_allclose(np.sort(whole.trades[:, T_NET]), np.sort(trades[:, T_NET]))
    assert pooled([found[SYMBOLS[0]]]) is found[SYMBOLS[0]]


def test_out_of_fold_rows_name_their_market_and_their_time_is_cut_for_both(workspace):
    with np.load(workspace / "artifacts/validator/oof.npz") as oof:
        known, fold, symbol = oof["known"], oof["fold"], oof["symbol"]
        assert oof["symbols"].tolist() == list(SYMBOLS)
    assert (np.diff(known) >= 0).all()
    for number in np.unique(fold)[1:]:
        assert known[fold == number].min() > known[fold < number].max()
        assert set(symbol[fold == number]) == {0, 1}


def test_series_that_mean_different_things_are_not_pooled():
    meta = {"symbols": list(SYMBOLS), "markets": {
        SYMBOLS[0]: {"series": {"series_1": "insider", "series_2": "fear"}},
        SYMBOLS[1]: {"series": {"series_2": "fear"}},
    }}  # fmt: skip
    shared, unshared = stages.pooled_series(meta)
    assert shared == {"series_2": "fear"}
    assert set(unshared) == {"series_1", "series_1_change"}
    assert unshared["series_1"] == "series_1 holds insider of AAA/USDT, None of BBB/USDT"


def test_bars_of_the_data_version_are_read_by_market(workspace):
    first = [read_history(workspace / "artifacts", symbol).bars[0, OPEN_TIME] for symbol in SYMBOLS]
    assert first[1] - first[0] == 5 * 86_400.0


def test_the_figures_of_a_panel_hold_markets_never_seen_and_the_union_of_columns(workspace, tmp_path):
    """The second market lacks a column, which the pooled rows drop and the union keeps with an indicator."""
    artifacts = tmp_path / "artifacts"
    for part in ("features", "labels"):
        shutil.copytree(workspace / "artifacts" / part, artifacts / part)
    events = labels_of(artifacts, SYMBOLS[1]) / "events.npz"
    with np.load(events) as f:
        labels = dict(f)
    labels["rows"][:, 0] = np.nan
    np.savez(events, **labels)
    found = panel_figures(artifacts, "validator", PARAMS)
    assert found["dropped"][labels["columns"][0]].startswith("absent in BBB/USDT")
    assert found["union"]["columns"] == [labels["columns"][0]]
    assert found["union"]["pooled"]["n"] == found["n"] == sum(each["n"] for each in found["by_symbol"].values())
    for symbol in SYMBOLS:
        unseen = found["leave_one_out"][symbol]
        assert unseen["over_baseline"]["n"] == unseen["over_pooled"]["n"] == found["by_symbol"][symbol]["n"]
    assert found["detectable"]["bps"]["line"].startswith("edges under")
    text = page({"made": {"spans": {}, "decision": "15m", "families": {"validator": found}}})
    assert "| AAA/USDT |" in text
    assert "union of columns (1 more)" in text
