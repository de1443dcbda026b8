"""A champion ages by its own training, whatever snapshots came since, and one without a reference has it rebuilt."""

import json
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from support.stage_folders import stage_folders
from support.watched_home import EDGE, START, SYMBOL, WatchedHome

from flows.support.watched import WatchedModel, watched_model
from flows.support.watches import compare_loss
from pipelines import versioning
from pipelines.contracts import BAR_WIDTH, OPEN_TIME
from pipelines.data import schemas
from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.models.edge import Edge
from pipelines.models.reference import reference_files
from pipelines.sealed_folder import seal
from pipelines.settings import ROOT, load_params
from pipelines.training.stages import reference_of_history

PARAMS = load_params()
SHORT = PARAMS.model_copy(update={"drift": PARAMS.drift.model_copy(update={"block_bars": 10})})


@pytest.fixture
def home(tmp_path, monkeypatch):
    made = WatchedHome(tmp_path, monkeypatch, with_reference=False)
    yield made
    made.store.close()


def test_daily_snapshots_do_not_make_a_champion_younger(home):
    for _ in range(20):
        home.at += timedelta(days=1)
        home.bars(home.at)
        home.snapshot(home.at)
    home.watch()
    assert "newest training bar is 20.0 days old" in home.alarms()["age"]


def test_outcomes_are_watched_from_the_end_of_the_training_whatever_snapshots_came_since(home):
    for number in range(3 * 8):
        home.at += timedelta(hours=3)
        home.store.add_decisions([home.decision(b"", p=0.6)])
        home.resolve(number % 2, 0.0)
    home.bars(home.at)
    home.snapshot(home.at)
    line = home.store.slots("validator").champion
    model = WatchedModel(line, START, references={SYMBOL: "none"}, edge=Edge(**EDGE), predates=False)
    found = compare_loss(home.installation, model, [SYMBOL])
    assert found.blocks.n.sum() >= 18  # of 24: one horizon in six is left out
    assert found.blocks.start_s[0] == START.timestamp()


def test_a_reference_ends_where_the_training_ends(tmp_path):
    """Live rows in it would hide the very drift it is compared with."""
    rng, n, kept = np.random.default_rng(2), 400, 300
    features, bars = rng.normal(size=(n, len(FEATURES.columns))), np.zeros((n, BAR_WIDTH))
    features[kept:] += 50.0
    bars[:, OPEN_TIME] = 900.0 * np.arange(n)
    folder, _ = stage_folders(tmp_path, SYMBOL, base_timeframe="1m")
    np.save(folder / "features.npy", features)
    np.save(folder / "decision.npy", bars)
    watched = features[:kept, [FEATURES.index[name] for name in WATCHED_COLUMNS]]
    expected = reference_files(np.ascontiguousarray(watched), WATCHED_COLUMNS, SHORT.drift, SHORT.seed)
    assert reference_of_history(tmp_path, SYMBOL, 900.0 * kept, SHORT) == expected


def test_a_champion_of_an_older_release_is_watched_by_a_reference_of_the_data_it_was_trained_on(home):
    installation, days, rows = replace(home.installation, params=SHORT), 4, 300
    spec = PARAMS.simulator.model_copy(update={"history_days": days, "live_days": 0, "drift_after_live_days": None})
    bars = simulate(spec, tape=False).bars
    workspace, settings = home.installation.settings.home / "old", home.installation.settings
    versioning.prepare(workspace, ROOT, ROOT / "params.yaml", settings.remote)
    schemas.write_bars(schemas.to_frame(bars, Grid("1m"), None), workspace / "data" / "bars.parquet")
    described = {"symbol": spec.symbol, "timeframe": "1m", "file": "bars.parquet"}
    described |= {"first": "2024-01-01", "last": "2024-01-05"}
    (workspace / "data" / "manifest.json").write_text(json.dumps(described))
    data_hash = versioning.snapshot(workspace)
    kept = versioning.keep_version(workspace, installation.versions)
    draft = settings.bundles / "draft"
    draft.mkdir()
    (draft / "schema.json").write_text(json.dumps({"trained_through": bars[0, OPEN_TIME] + 900.0 * rows}))
    digest = seal(draft, {"family": "validator", "format": 2})
    draft.rename(draft.with_name(digest))
    line = replace(home.store.slots("validator").champion, digest=digest, data_hash=data_hash)
    model = watched_model(installation, line)
    reference = model.references[SYMBOL]
    assert model.predates  # its edge is still not known
    assert "states no gain over the base rate" in model.predated
    assert (reference.n, reference.columns) == (rows, WATCHED_COLUMNS)
    assert not (settings.home / "reference-workspace").exists()
    kept.rename(kept.with_name("gone"))  # it is computed once
    assert watched_model(installation, line).references[SYMBOL].n == rows
