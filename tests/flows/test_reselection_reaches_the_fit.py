"""What a version proposed to leave out reaches the next retrain, and the recipe that its fit reads."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from flows import retrain as retrain_module
from flows import train as train_module
from flows.support.checked_out import checked_out, mark
from flows.support.installation import Installation
from pipelines.errors import StateError
from pipelines.settings import Settings, load_params
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from pipelines.store import Store

META = {"symbol": "SIM/USDT", "decision_timeframe": "15m", "timeframe": "1m"}
PROPOSED = list(VALIDATOR_COLUMNS[-2:])


@pytest.fixture
def installation(tmp_path, monkeypatch):
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    made = Installation(Settings(home=tmp_path, store_url=""), load_params(), store)
    newest = SimpleNamespace(tags=META | {"left_out": "none", "reselect_without": ",".join(PROPOSED)}, verdict="passed")
    made.__dict__["tracking"] = SimpleNamespace(versions=lambda family: [newest])
    for path, content in (("artifacts/features/meta.json", META), ("data/manifest.json", META)):
        (made.workspace / path).parent.mkdir(parents=True)
        (made.workspace / path).write_text(json.dumps(content))
    for module in (retrain_module, train_module):
        monkeypatch.setattr(module, "open_installation", lambda: made)
    yield made
    store.close()


def test_a_retrain_trains_without_what_the_newest_version_proposed(installation, monkeypatch):
    asked = []
    monkeypatch.setattr(retrain_module, "ingest", lambda **_: None)
    monkeypatch.setattr(retrain_module, "train", lambda families, left_out: asked.append((families, left_out)) or {})
    shown = []
    monkeypatch.setattr(retrain_module, "create_table_artifact", lambda **artifact: shown.append(artifact["table"]))
    assert retrain_module.retrain.fn(["validator"]) == {}
    assert asked == [(["validator"], {"validator": PROPOSED})]
    rows = [{"family": "validator", "requested": "requested", "version": "–", "outcome": "could not be trained"}]
    assert shown == [rows]


def test_after_a_checkout_the_next_retrain_takes_the_older_version_as_it_is_and_says_so(installation, monkeypatch):
    mark(installation.settings, "0bb4.dir", "5d11.dir", "ann", "a bad day", datetime(2026, 12, 1, tzinfo=UTC))
    ingested, proposed = [], []
    monkeypatch.setattr(retrain_module, "ingest", lambda **of: ingested.append(of))
    monkeypatch.setattr(retrain_module, "train", lambda families, left_out: dict.fromkeys(families, "7"))
    monkeypatch.setattr(retrain_module, "evaluate", lambda name, version: True)
    monkeypatch.setattr(retrain_module, "propose", lambda name, version, reason: proposed.append(reason))
    monkeypatch.setattr(retrain_module, "create_table_artifact", lambda **_: None)
    words = (
        "on an older version of the data, 0bb4.dir, not the newest 5d11.dir: a bad day (ann, 2026-12-01T00:00:00+00:00)"
    )
    assert retrain_module.retrain.fn(["validator"], force=True) == {"validator": "7"}
    assert (ingested, proposed) == ([], [f"retrain: requested, {words}"])
    assert installation.store.retrain_requests("validator", last=1)[0].detail == f"version 7 passed the gate, {words}"
    assert checked_out(installation.settings) is None
    retrain_module.retrain.fn(["validator"], force=True)
    assert (ingested, proposed[1]) == ([{"observed": True}], "retrain: requested")


def test_the_recipe_of_the_fit_leaves_them_out(installation, monkeypatch):
    monkeypatch.setattr(train_module, "record", lambda stages: None)
    assert train_module.fit_side_by_side([], {"validator": PROPOSED}) == []
    assert load_params(installation.workspace / "params.yaml").validator.left_out == PROPOSED


def test_what_ended_a_retrain_early_is_in_the_outcome_of_its_request(installation, monkeypatch):
    def ingest(**_):
        raise StateError("the data are locked by another process\nand more lines")

    monkeypatch.setattr(retrain_module, "ingest", ingest)
    with pytest.raises(StateError):
        retrain_module.retrain.fn(["validator"])
    (request,) = installation.store.retrain_requests("validator")
    assert request.state == "failed"
    assert request.detail == "interrupted: StateError: the data are locked by another process"
