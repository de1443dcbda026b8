"""Which families are watched, what a run of the monitor answers, and when a lost edge trips a breaker."""

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from support.watched_home import SYMBOL, WatchedHome, feature_rows

from flows import monitor as monitor_module
from flows.monitor import request_retrains, summary_of, trip_model, watch_each, watched_families
from flows.support import promotion
from flows.support.installation import Installation
from pipelines.monitoring.triggers import TriggerReason
from pipelines.settings import Settings, load_params
from pipelines.store import Promotion, Store

TRADES = load_params().breakers.trades
FEATURES_OF_A_BAR = feature_rows(1, 1).tobytes()


def line(family, action, passed):
    return Promotion(
        at=datetime.now(UTC), actor="gate", action=action, family=family, arm="challenger", from_version=None,
        to_version="1", digest="a" * 64, run_id="r", data_hash="d", git_commit="c", verdict_passed=passed, reason="t",
    )  # fmt: skip


def test_no_retrain_is_requested_of_a_family_in_its_first_training(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    installation = Installation(Settings(home=tmp_path, store_url=""), load_params(), store)
    assert watched_families(installation) == []
    store.add_promotion(line("validator", "challenge", passed=False))
    assert watched_families(installation) == ["validator"]
    store.add_promotion(line("pattern", "promote", passed=True))
    assert watched_families(installation) == ["pattern"]
    store.close()


@pytest.fixture
def home(tmp_path, monkeypatch):
    made = WatchedHome(tmp_path, monkeypatch)
    yield made
    made.store.close()


# ---- one family's fault


def test_a_fault_of_one_family_is_alarmed_and_the_others_are_watched(home):
    families = watch_order(home)
    home.serve(feature_rows(1, 2))
    broken = home.installation.settings.bundles / ("2" * 64)
    shutil.copytree(home.installation.settings.bundles / home.digest, broken)
    watches, reasons = watch_each(home.installation, [SYMBOL])
    assert [w.model.family for w in watches] == [f for f in families if f != "pattern"]
    assert list(reasons) == [f for f in families if f != "pattern"]
    (alarm,) = [alarm for alarm in home.store.alarms() if alarm.kind == promotion.FAULT]
    assert alarm.detail.startswith("pattern watch: DigestMismatch: ")
    assert promotion.faulty(home.installation) == set()  # its alias and its bundle in the registry are not in doubt
    summary = summary_of(watches, None, ["pattern"])
    assert summary.endswith("pattern not watched: a fault, which the alarm family_fault names")
    assert summary_of([], None, ["pattern"]) == summary.rpartition("; ")[2]
    home.line("promote", "1", True, family="pattern")  # a rollback to a bundle that is whole
    watches, _ = watch_each(home.installation, [SYMBOL])
    assert [w.model.family for w in watches] == families
    assert promotion.FAULT not in home.alarms()


def watch_order(home):
    """Make three families champions, the second with a bundle that is not as it was registered."""
    home.line("promote", "2", True, family="pattern")
    home.line("promote", "1", True, family="predictor")
    assert watched_families(home.installation) == ["validator", "pattern", "predictor"]
    return ["validator", "pattern", "predictor"]


# ---- the breaker `model`


def watched(home, alarm=True):
    found = home.family_watch()
    return replace(found, loss=replace(found.loss, alarm=alarm))


def traded(home, mean_bps, n=TRADES + 30, **changes):
    """Store n trades of the champion, one every six hours, with this mean result each, in bps."""
    noise = np.random.default_rng(7).normal(0.0, 10.0, n)
    for i in range(n):
        home.at += timedelta(hours=6)
        home.store.add_decisions([home.decision(FEATURES_OF_A_BAR, **{"action": "BUY"} | changes)])
        net = float(mean_bps + noise[i] - noise.mean())
        home.resolve(int(net > 0), net)
    home.bars(home.at + timedelta(days=1))


def test_a_lost_edge_that_costs_money_trips_the_model_and_states_how_much(home):
    traded(home, -12.0)
    assert home.store.outcome_count() == TRADES + 30
    why = trip_model(home.installation, watched(home))
    (trip,) = home.store.breaker_trips()
    assert (trip.name, trip.reason) == ("model", why)
    assert "its edge over the base rate is gone, and its last" in why
    assert [alarm.kind for alarm in home.store.alarms()] == ["breaker_tripped"]


def test_a_breaker_that_is_tripped_raises_its_alarm_once(home):
    traded(home, -12.0)
    for _ in range(3):
        trip_model(home.installation, watched(home))
    assert len(home.store.alarms(open_only=False)) == 1


def test_with_its_edge_nothing_trips_however_much_is_lost(home):
    traded(home, -50.0)
    for alarm in (False, None):
        assert trip_model(home.installation, watched(home, alarm)) is None
    assert trip_model(home.installation, None) is None
    assert home.store.breaker_trips() == []


@pytest.mark.parametrize(
    "trades",
    [
        {"mean_bps": -0.2},  # its interval contains zero
        {"mean_bps": 12.0},
        {"mean_bps": -12.0, "n": TRADES - 1},
        {"mean_bps": -12.0, "action": "NO_TRADE"},
        {"mean_bps": -12.0, "arm": "traditional"},
        {"mean_bps": -12.0, "digest": "b" * 64},
    ],
)
def test_a_lost_edge_alone_requests_a_retrain_and_trips_nothing(home, trades):
    traded(home, **trades)
    assert trip_model(home.installation, watched(home)) is None
    assert home.store.breaker_trips() == []


def test_only_trades_since_a_person_reset_it_count_and_only_the_newest(home):
    traded(home, -12.0)
    trip_model(home.installation, watched(home))
    home.store.reset("model", home.at, "ann", "kept on purpose")
    assert trip_model(home.installation, watched(home)) is None
    traded(home, 12.0)
    assert trip_model(home.installation, watched(home)) is None
    traded(home, -12.0)
    assert trip_model(home.installation, watched(home)) is not None


# ---- requests for retrains


def test_one_event_names_every_family_with_a_reason(monkeypatch):
    emitted = []
    monkeypatch.setattr(monitor_module, "emit_event", lambda *args, **fields: emitted.append((args, fields)))
    drift, age = TriggerReason("drift", "far", {}), TriggerReason("age", "old", {})
    assert request_retrains({"validator": [drift, age], "pattern": [], "regime": [age]}) == ["validator", "regime"]
    ((name,), fields) = emitted[0]
    assert len(emitted) == 1
    assert name == "bellwether.retrain-requested"
    assert fields["payload"] == {"families": ["validator", "regime"], "reason": "drift: far"}


def test_without_a_reason_nothing_is_emitted(monkeypatch):
    monkeypatch.setattr(monitor_module, "emit_event", lambda *_, **__: pytest.fail("no event is due"))
    assert request_retrains({"validator": []}) == []


def test_the_summary_says_what_families_share_once(home):
    found = watched(home, alarm=None)
    other = replace(found, model=replace(found.model, line=line("pattern", "promote", passed=True)))
    assert summary_of([found, other], None).count(found.worst.drift.reason) == 1
    assert summary_of([], None) == "nothing is watched: no family was judged yet"
