"""The watch over weeks, through the real store and triggers; only the clock is not real."""

import json
from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
from support.watched_home import BLOCK, START, SYMBOL, WatchedHome, feature_rows

from flows.support.watches import served_rows
from pipelines.errors import DigestMismatch
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.models.reference import reference_files
from pipelines.monitoring.drift import alarm_rates
from pipelines.sealed_folder import seal

VOLATILITY = FEATURES.index["volatility_20"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    made = WatchedHome(tmp_path, monkeypatch)
    yield made
    made.store.close()


def test_thirty_five_days_of_refused_challengers_are_five_retrains_and_no_critical_alarm(home):
    home.serve(feature_rows(4, 2))
    retrains = 0
    for _ in range(35):
        home.at += timedelta(days=1)
        home.bars(home.at)
        _, due = home.watch()
        retrains += bool(due) and home.retrain(due[0].kind)
    raised = home.store.alarms(open_only=False)
    assert retrains == 5  # counted from the promotion, it was 28
    assert [alarm for alarm in raised if alarm.severity == "critical"] == []  # every round raised one
    assert Counter(alarm.kind for alarm in raised) == {"schedule": 5, "age": 1}
    assert "age" in home.alarms()  # it lasts, so it stays open and is one alarm


def test_a_queue_that_stopped_is_one_critical_alarm_until_a_retrain_finishes(home):
    for _ in range(30):
        home.at += timedelta(days=1)
        home.bars(home.at)
        home.watch()
    late = [alarm for alarm in home.store.alarms(open_only=False) if alarm.kind == "overdue"]
    assert [(alarm.severity, alarm.at) for alarm in late] == [("critical", START + timedelta(days=21))]
    assert "no retrain for 30.0 days" in late[0].detail  # brought up to date in place
    home.retrain()
    home.watch()
    assert "overdue" not in home.alarms()


def drifted(blocks, seed):
    rows = feature_rows(blocks * BLOCK, seed)
    rows[:, VOLATILITY] *= 4.0
    return rows


def test_daily_snapshots_and_a_refused_retrain_do_not_absorb_a_drift(home):
    home.serve(feature_rows(BLOCK, 2))
    assert home.watch()[0].worst.drift.alarm is False
    home.serve(drifted(1, 3))
    watched, due = home.watch()
    assert [reason.kind for reason in due] == ["drift"]
    assert watched.worst.drift.onset == BLOCK
    since = home.store.alarms()[0].at
    assert home.retrain()
    for day in range(6):  # every day is a new data version, as ingest makes them
        home.serve(drifted(1, 4 + day)[: BLOCK // 3])
        home.snapshot(home.at)
        watched, due = home.watch()
        assert due == []  # one retrain has answered it
    # a watch from the newest snapshot on has nothing to judge: it forgot the drift
    assert len(served_rows(home.installation, SYMBOL, home.at).at_s) == 0
    assert watched.worst.drift.alarm is True
    assert watched.worst.drift.onset == BLOCK
    (alarm,) = home.store.alarms()
    assert (alarm.kind, alarm.at) == ("drift", since)


def test_a_drift_that_returns_after_it_was_over_is_a_new_alarm_and_a_new_retrain(home):
    home.serve(np.concatenate([feature_rows(BLOCK, 2), drifted(1, 3)]))
    assert [r.kind for r in home.watch()[1]] == ["drift"]
    home.retrain()
    home.serve(feature_rows(BLOCK, 4))
    assert home.watch()[1] == []
    assert home.alarms() == {}
    home.serve(drifted(1, 5))
    assert [r.kind for r in home.watch()[1]] == ["drift"]
    assert len(home.store.alarms(open_only=False)) == 2


def test_a_drift_that_is_seen_while_a_retrain_runs_is_not_answered_by_it(home):
    home.serve(feature_rows(BLOCK, 2))
    home.store.request_retrain("validator", "requested", home.at, timedelta(0))
    request = home.store.claim_retrain("host:1", home.at, timedelta(days=9), "validator")
    home.serve(drifted(1, 3))
    assert [r.kind for r in home.watch()[1]] == ["drift"]
    home.at += timedelta(minutes=20)
    home.line("challenge", "2", False)
    home.store.finish_retrain(request.id, "host:1", home.at, True, "was refused by the gate")
    assert [r.kind for r in home.watch()[1]] == ["drift"]  # its data ended before the drift began
    home.at += timedelta(days=2)
    home.bars(home.at)
    assert home.retrain()
    assert home.watch()[1] == []


def test_the_false_alarm_budget_is_spent_on_blocks_of_the_references_own_length(home):
    params = home.installation.params
    shorter = params.drift.model_copy(update={"block_bars": BLOCK // 4})
    home.installation.params = params.model_copy(update={"drift": shorter})
    home.serve(feature_rows(BLOCK, 2))
    watched, _ = home.watch()
    assert watched.worst.drift.blocks[0].n == BLOCK
    assert watched.worst.rates == alarm_rates(params.drift.false_alarms_a_month, BLOCK, 900.0, 1)


def test_a_column_that_vanishes_is_an_alarm_that_says_what_is_not_known(home):
    rows = feature_rows(2 * BLOCK, 2)
    rows[BLOCK:, VOLATILITY] = np.nan
    home.serve(rows)
    _, due = home.watch()
    assert [reason.kind for reason in due] == ["missing"]
    assert "volatility_20 0% → 100%" in home.alarms()["missing"]
    assert "not yet known: no whole block of outcomes since" in home.alarms()["missing"]


def resolved(home, days, follows):
    """Resolve one decision every two hours, whose outcomes follow the forecast or go against it as often."""
    rng, features, decided = np.random.default_rng(1), feature_rows(1, 9).tobytes(), []
    for _ in range(days * 12):
        home.at += timedelta(hours=2)
        p = 0.65 if rng.random() < 0.5 else 0.25
        decided.append((home.at, home.decision(features, p=p), int(rng.random() < (p if follows else 0.45))))
    home.store.add_decisions([record for _, record, _ in decided])
    for home.at, _, label in decided:
        home.resolve(label, 0.0)
    home.bars(home.at)


def test_a_vanished_edge_is_an_alarm_a_retrain_and_harmful(home):
    resolved(home, 40, follows=False)
    watched, due = home.watch()
    assert watched.loss.alarm is True
    assert "loss" in [reason.kind for reason in due]
    assert "harmful: it is the edge itself that is gone" in home.alarms()["loss"]


def test_an_edge_that_is_there_is_no_alarm(home):
    resolved(home, 40, follows=True)
    watched, due = home.watch()
    assert watched.loss.alarm is False
    assert "loss" not in [reason.kind for reason in due]


def test_a_champion_of_an_older_release_asks_for_one_retrain_and_says_why(tmp_path, monkeypatch):
    home = WatchedHome(tmp_path, monkeypatch, with_reference=False)
    home.serve(feature_rows(BLOCK, 2))
    watched, due = home.watch()
    assert watched.worst.drift.alarm is None
    assert watched.worst.drift.reason.startswith("INSUFFICIENT_DATA: champion predates 0.8")
    assert [reason.kind for reason in due] == ["predates"]
    home.retrain()
    home.at += timedelta(days=2)
    home.bars(home.at)
    assert home.watch()[1] == []
    assert list(home.alarms()) == ["predates"]
    home.store.close()


@pytest.fixture
def older_home(tmp_path, monkeypatch):
    """Return a home whose champion's bundle stores no reference."""
    made = WatchedHome(tmp_path, monkeypatch, with_reference=False)
    yield made
    made.store.close()


def test_too_short_a_history_for_an_older_champions_reference_asks_for_a_retrain_too(older_home):
    installation = older_home.installation
    kept = installation.settings.home / "references" / older_home.digest
    kept.mkdir(parents=True)
    short = np.zeros((3 * BLOCK, len(WATCHED_COLUMNS)))
    for name, content in reference_files(short, WATCHED_COLUMNS, installation.params.drift, seed=7).items():
        (kept / name).write_bytes(content)
    seal(kept, {"format": 1})
    watched, due = older_home.watch()
    assert watched.worst.drift.reason.startswith("INSUFFICIENT_DATA: champion predates 0.8, ")
    assert "3 blocks" in watched.worst.drift.reason
    assert [reason.kind for reason in due] == ["predates"]
    older_home.retrain()
    assert older_home.watch()[1] == []


def test_a_reference_that_cannot_be_computed_again_is_tried_once(older_home):
    pointer = older_home.installation.versions / "d" / "data.dvc"  # of data that are nowhere
    pointer.parent.mkdir(parents=True)
    pointer.write_text("outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  hash: md5\n  path: data\n")
    watched, due = older_home.watch()
    assert watched.worst.drift.reason.startswith(
        "INSUFFICIENT_DATA: champion predates 0.8, it could not be computed again: "
    )
    assert [reason.kind for reason in due] == ["predates"]
    kept = older_home.installation.settings.home / "references" / older_home.digest
    assert f"Delete {kept} to try again" in json.loads((kept / "drift.json").read_text())["insufficient"]
    pointer.unlink()  # with another attempt, that would be the reason
    assert older_home.watch()[0].worst.drift.reason == watched.worst.drift.reason


def test_a_changed_reference_is_refused_with_the_bundle(home):
    file = home.installation.settings.bundles / home.digest / "drift.SIM-USDT.npz"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DigestMismatch, match=r"drift\.SIM-USDT\.npz"):
        home.watch()
