"""Which families are watched, what a run of the monitor answers, and when a drifted loss trips a breaker."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from flows import monitor as monitor_module
from flows.monitor import request_retrains, trip_model, watched_families
from flows.support.installation import Installation
from pipelines.contracts import Decision, Estimate, ModelAnswer, Outcome
from pipelines.monitoring.loss import LossDrift
from pipelines.monitoring.triggers import TriggerReason
from pipelines.settings import Settings, load_params
from pipelines.store import DecisionRecord, Promotion, Store

AT, QUARTER = datetime(2024, 1, 1, tzinfo=UTC), timedelta(minutes=15)
TRADES = load_params().breakers.trades


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


# ---- the breaker `model`


@pytest.fixture
def installation(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    store.add_promotion(line("validator", "promote", passed=True))
    yield Installation(Settings(home=tmp_path, store_url=""), load_params(), store)
    store.close()


def drifted(alarm=True):
    worse = Estimate(0.2, 0.1, 0.3, 200)
    return LossDrift(alarm, "degraded", worse, 0.8, 0.67, None)


def traded(installation, mean_bps, n=TRADES, first=0, **changes):
    """Store n trades of the champion with this mean result each, in bps."""
    noise = np.random.default_rng(7).normal(0.0, 10.0, n)
    answer = ModelAnswer("validator", version="1", digest=changes.pop("digest", "a" * 64), p=0.6)
    for i in range(first, first + n):
        at = AT + i * QUARTER
        facts = {"action": "BUY", "arm": "champion"} | changes
        decision = Decision(
            id=f"d{i}", symbol="SIM/USDT", as_of=at, known_at=at, ingested_at=at, direction=1, confidence=0.8,
            entry=100.0, stop=99.0, take_profits=(101.0,), size=0.05, expiry=None, edge_bps=3.0, p=0.6, regime=None,
            tier=2, event="fvg", models={"validator": {"champion": answer}}, **facts,
        )  # fmt: skip
        installation.store.add_decisions([DecisionRecord(decision, b"", b"")])
        net = float(mean_bps + noise[i - first] - noise.mean())
        installation.store.add_outcome(Outcome(f"d{i}", at + QUARTER, int(net > 0), "time", net + 5.0, net, 5.0))


def test_a_drifted_loss_that_costs_money_trips_the_model_and_states_how_much(installation):
    traded(installation, -12.0)
    why = trip_model(installation, "SIM/USDT", drifted())
    (trip,) = installation.store.breaker_trips()
    assert (trip.name, trip.reason) == ("model", why)
    assert f"its last {TRADES} trades brought -12.0 bps each" in why
    assert [alarm.kind for alarm in installation.store.alarms()] == ["breaker_tripped"]


@pytest.mark.parametrize("loss", [None, drifted(alarm=False), drifted(alarm=None)])
def test_without_a_confirmed_drift_of_the_loss_nothing_trips_however_much_is_lost(installation, loss):
    traded(installation, -50.0)
    assert trip_model(installation, "SIM/USDT", loss) is None
    assert installation.store.breaker_trips() == []


@pytest.mark.parametrize(
    "trades",
    [
        {"mean_bps": -1.0},  # its interval contains zero
        {"mean_bps": 12.0},
        {"mean_bps": -12.0, "n": TRADES - 1},
        {"mean_bps": -12.0, "action": "NO_TRADE"},
        {"mean_bps": -12.0, "arm": "traditional"},
        {"mean_bps": -12.0, "digest": "b" * 64},
    ],
)
def test_a_drifted_loss_alone_requests_a_retrain_and_trips_nothing(installation, trades):
    traded(installation, **trades)
    assert trip_model(installation, "SIM/USDT", drifted()) is None
    assert installation.store.breaker_trips() == []


def test_only_trades_since_a_person_reset_it_count_and_only_the_newest(installation):
    traded(installation, -12.0)
    trip_model(installation, "SIM/USDT", drifted())
    installation.store.reset("model", datetime.now(UTC), "ann", "kept on purpose")
    assert trip_model(installation, "SIM/USDT", drifted()) is None
    traded(installation, 12.0, first=TRADES + 2)
    assert trip_model(installation, "SIM/USDT", drifted()) is None
    traded(installation, -12.0, first=2 * TRADES + 2)
    assert trip_model(installation, "SIM/USDT", drifted()) is not None


# ---- requests for retrains


def test_one_event_names_every_family_with_a_reason_and_each_reason_is_an_alarm(installation, monkeypatch):
    emitted = []
    monkeypatch.setattr(monitor_module, "emit_event", lambda *args, **fields: emitted.append((args, fields)))
    drift, age = TriggerReason("drift", "far", {}), TriggerReason("age", "old", {})
    found = {"validator": [drift, age], "pattern": [], "regime": [age]}
    assert request_retrains(installation, found) == ["validator", "regime"]
    ((name,), fields) = emitted[0]
    assert len(emitted) == 1
    assert name == "bellwether.retrain-requested"
    assert fields["payload"] == {"family": "validator,regime", "reason": "drift: far"}
    details = [alarm.detail for alarm in installation.store.alarms()]
    assert details == ["validator: drift: far", "validator: age: old", "regime: age: old"]


def test_without_a_reason_nothing_is_emitted(installation, monkeypatch):
    monkeypatch.setattr(monitor_module, "emit_event", lambda *_, **__: pytest.fail("no event is due"))
    assert request_retrains(installation, {"validator": []}) == []
    assert installation.store.alarms() == []
