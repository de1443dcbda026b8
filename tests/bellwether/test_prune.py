"""Retention: what is old and unreferenced goes, everything else stays, and nothing goes without --yes."""

import json
import os
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from support.command_line import bellwether
from support.legacy_store import add_json_decision, contents, release_010

from flows.support.installation import Installation
from flows.support.records_retention import cutoff, idle_bundles, plan, prune
from pipelines.contracts import Decision, ModelAnswer, Outcome
from pipelines.errors import StateError
from pipelines.settings import Settings, load_params
from pipelines.store import DecisionRecord, Promotion, Store
from serving.inference.generation import write_generation

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
BEFORE = NOW - 365 * DAY
OLD, YOUNG = BEFORE - DAY, BEFORE + DAY


@pytest.fixture
def installation(url, tmp_path):
    opened = Installation(Settings(home=tmp_path / "home", store_url=url), load_params(), Store.open(url))
    yield opened
    opened.store.close()


def decide(installation, id, as_of=OLD, action="NO_TRADE", event=None, digest=None):
    models = {"validator": {"champion": ModelAnswer("validator", digest=digest)}} if digest else {}
    made = Decision(
        id=id, symbol="BTC/USDT", as_of=as_of, known_at=as_of, ingested_at=as_of, action=action, direction=0,
        confidence=0.0, entry=None, stop=None, take_profits=(), size=0.0, expiry=None, edge_bps=None, p=None,
        regime=None, tier=3, arm="champion", event=event, weights={}, reasons=("NO_EVENT",), generation=1,
        models=models, lineage={},
    )  # fmt: skip
    installation.store.add_decisions([DecisionRecord(made, b"\x00", b"\x01")])


def bundle(installation, letter, modified=OLD):
    folder = installation.settings.bundles / (letter * 64)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"12345678")
    os.utime(folder, (modified.timestamp(),) * 2)
    return folder


def ledger(installation, action, version, digest, family="validator"):
    arm = "challenger" if action == "challenge" else "champion"
    installation.store.add_promotion(
        Promotion(OLD, "policy", action, family, arm, None, version, digest * 64, "r", "h", "c", True, "gate")
    )


def left(installation):
    return [r.decision.id for r in installation.store.decisions()]


def counts(removals):
    return {r.what: r.n for r in removals}


def test_only_old_decisions_without_trade_event_or_outcome_go(installation):
    decide(installation, "old")
    decide(installation, "young", as_of=YOUNG)
    decide(installation, "emitted", action="BUY")
    decide(installation, "on an event", event="fvg")
    decide(installation, "resolved")
    installation.store.add_outcome(Outcome("resolved", OLD, 1, "target", 1.0, 1.0, 0.0), OLD)
    assert counts(plan(installation, BEFORE))["decisions"] == 1
    assert counts(prune(installation, BEFORE))["decisions"] == 1
    assert sorted(left(installation)) == ["emitted", "on an event", "resolved", "young"]


def test_a_plan_names_the_oldest_and_changes_nothing(installation):
    decide(installation, "a", as_of=OLD - DAY)
    decide(installation, "b")
    decide(installation, "newest")
    before = contents(installation.settings.store)
    shown = {r.what: (r.n, r.oldest) for r in plan(installation, BEFORE)}
    assert shown["decisions"] == (2, OLD - DAY)
    assert shown["alarms"] == shown["bundles"] == (0, None)
    assert contents(installation.settings.store) == before


def test_more_decisions_than_one_transaction_takes_are_all_removed_up_to_the_newest(installation, monkeypatch):
    monkeypatch.setattr("pipelines.store.retention.ROWS_PER_TRANSACTION", 4)
    for i in range(10):
        decide(installation, f"d{i}", as_of=OLD - i * DAY)
    assert counts(prune(installation, BEFORE))["decisions"] == 9
    assert left(installation) == ["d9"]


def test_open_alarms_and_the_newest_stay(installation):
    still_open = installation.store.raise_alarm("a", "low", "still so", OLD)
    cleared, recent, newest = (installation.store.raise_alarm(kind, "low", "x", OLD) for kind in "bcd")
    for alarm, at in ((cleared, OLD), (recent, YOUNG), (newest, OLD)):
        installation.store.clear_alarm(alarm, at)
    assert counts(prune(installation, BEFORE))["alarms"] == 1
    assert [a.id for a in installation.store.alarms(open_only=False)] == [still_open, recent, newest]


def test_the_newest_request_of_each_family_stays_since_its_cool_down_counts_from_it(installation):
    for family, times in (("validator", 3), ("regime", 1)):
        for i in range(times):
            at = OLD - (10 - i) * DAY
            request = installation.store.request_retrain(family, "age", at, timedelta(0))
            installation.store.claim_retrain("me", at, DAY, family)
            installation.store.finish_retrain(request.id, "me", at, True, "done")
    installation.store.request_retrain("pattern", "age", OLD, timedelta(0))
    assert counts(prune(installation, BEFORE))["retrain_requests"] == 2
    assert sorted(r.family for r in installation.store.retrain_requests()) == ["pattern", "regime", "validator"]
    again = installation.store.request_retrain("validator", "age", OLD - 8 * DAY, 2 * DAY)
    assert again.state == "cooling_down"


def test_promotions_trials_bars_and_breakers_are_never_touched(installation):
    ledger(installation, "promote", "1", "a")
    installation.store.add_trial("validator", "r", "h", OLD)
    installation.store.trip("daily_loss", OLD, "x")
    installation.store.reset("daily_loss", OLD, "ann", "seen")
    before = contents(installation.settings.store)
    prune(installation, NOW)
    assert contents(installation.settings.store) == before


def test_bundles_stay_that_serve_could_serve_again_or_took_part_in_a_remaining_decision(installation):
    folders = {letter: bundle(installation, letter) for letter in "abcdef0"}
    young = bundle(installation, "1", modified=YOUNG)
    ledger(installation, "promote", "1", "a")  # the previous champion
    ledger(installation, "promote", "2", "b")  # champion
    ledger(installation, "challenge", "3", "c")  # in shadow
    write_generation(
        installation.settings.serving_dir,
        {"regime": {"champion": {"version": "4", "digest": "d" * 64}, "challenger": None}},
        {},
        NOW,
    )
    decide(installation, "emitted", action="BUY", digest="e" * 64)
    decide(installation, "goes", digest="f" * 64)
    decide(installation, "newest")
    (installation.settings.bundles / ".landing-abc").mkdir()
    assert list(idle_bundles(installation, BEFORE)) == [folders["0"], folders["f"]]
    bundles = {r.what: r for r in prune(installation, BEFORE)}["bundles"]
    assert (bundles.n, bundles.bytes, bundles.oldest) == (2, 16, OLD)
    here = {folder.name for folder in installation.settings.bundles.iterdir()}
    assert here == {folders[letter].name for letter in "abcde"} | {young.name, ".landing-abc"}


def test_a_bundle_named_by_a_decision_of_an_earlier_release_stays(installation):
    folder = bundle(installation, "a")
    decide(installation, "emitted", action="BUY")
    stored = installation.store.decision("emitted")
    add_json_decision(installation.store, stored, id="x", models={"champion": {"digest": "a" * 64}})  # as 0.1.0 did
    assert list(idle_bundles(installation, BEFORE)) == []
    assert folder.exists()


def test_a_prune_that_was_interrupted_is_finished_by_the_next(installation):
    half = installation.settings.bundles / ".gone-abc"
    half.mkdir(parents=True)
    prune(installation, BEFORE)
    assert not half.exists()


def test_nothing_is_removed_while_the_generation_file_is_damaged(installation):
    folder = bundle(installation, "a")
    installation.settings.serving_dir.mkdir(parents=True)
    (installation.settings.serving_dir / "generation.json").write_text("{")
    with pytest.raises(StateError, match="not a generation file"):
        prune(installation, BEFORE)
    assert folder.exists()


def test_records_after_the_newest_data_version_stay_however_old(installation):
    assert cutoff(installation, 365, NOW) == BEFORE
    file = installation.workspace / "data" / "manifest.json"
    file.parent.mkdir(parents=True)
    for last, expected in ((OLD, OLD), (YOUNG, BEFORE)):
        span = {"first": OLD.isoformat(), "last": last.isoformat()}
        file.write_text(json.dumps({"symbol": "SIM/USDT", "timeframe": "1m", **span}))
        assert cutoff(installation, 365, NOW) == expected


def test_the_command_shows_first_and_removes_with_yes(tmp_path):
    settings = Settings(home=tmp_path / "home")
    release_010(settings.store)
    shown, done = (json.loads(bellwether(settings.home, "prune", *words, "--json").stdout) for words in ([], ["--yes"]))
    assert (shown["removed"], done["removed"]) == (False, True)
    assert shown["removals"] == done["removals"]
    assert {what: removal["n"] for what, removal in done["removals"].items()} == {
        "family_outcomes": 0, "decisions": 1, "alarms": 0, "retrain_requests": 1, "bundles": 0
    }  # fmt: skip
    with closing(Store.open(settings.store)) as store:
        assert [r.decision.id for r in store.decisions()] == ["d1"]
