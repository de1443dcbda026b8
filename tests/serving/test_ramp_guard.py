"""Who decides in a canary or split, in the real service, and the guardrails that act at the same close."""

from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from support.decision_service import running_service
from support.service_probes import alarms, bar_with_event, eventually, next_decision
from support.serving_fixture import make_bundle, slot_entry

from benchmarks.fixture import serve_arms
from pipelines.contracts import ModelAnswer
from pipelines.experiments.assignment import Assignment, Stage
from pipelines.experiments.guardrails import LATENCY_ANSWERS
from pipelines.params import GuardrailParams
from pipelines.settings import Settings, settings
from pipelines.store import Experiment, Transition
from serving.inference.model_slots import Snapshot
from serving.service.alarm_queue import AlarmQueue
from serving.service.home_store import open_store
from serving.service.ramp_guard import RampGuard

AT = datetime(2024, 1, 1, tzinfo=UTC)
BAR_S = 900.0


@pytest.fixture
def client(stand, home):
    with running_service(stand, home) as client:
        yield client


def ledger(client):
    """Return the store with the key of the home's chain, on a connection of the test's own."""
    return open_store(Settings(home=client.home, store_url=""))


def split(client, champion, challenger, weight=0.5, states=("canary",)):
    """Begin an experiment whose blocks are decision bars and serve it; return its assignment."""
    store, origin_s = ledger(client), client.close() - 100 * BAR_S
    found = store.begin_experiment(
        Experiment(AT, "validator", "1", champion, "2", challenger, "nats", origin_s, BAR_S / 6, 5, 0.02, 0.1, 0.0,
                   0.2, 120, {"key": "ab" * 32}),
        "policy", "it passed",
    )  # fmt: skip
    for state in states:
        stage = {"from_block": 0, "until_block": 999, "weight": weight}
        store.move_experiment(Transition(found.number, AT, 0.0, state, "policy", "won", {"stage": stage}))
    assignment = store.assignment("validator")
    client.serve(slot_entry("1", champion), slot_entry("2", challenger), {"validator": assignment.to_dict()})
    return assignment


def test_the_arm_that_a_close_is_assigned_to_decides_it_and_the_record_says_so(client):
    assignment = split(client, client.champion, client.challenger)
    arms = Counter()
    for _ in range(12):
        decision = bar_with_event(client)
        block = assignment.block(datetime.fromisoformat(decision["as_of"]).timestamp())
        arm = assignment.arm(decision["symbol"], block)
        answers = decision["models"]["validator"]
        assert decision["arm"] == arm
        assert decision["p"] == answers[arm]["p"]
        assert {name: answer["role"] for name, answer in answers.items()} == {
            name: "active" if name == arm else "shadow" for name in ("champion", "challenger")
        }
        assert decision["lineage"]["arm of validator"] == f"experiment 1 block {block} {arm}"
        assert decision["lineage"]["run_id"] == answers[arm].get("run_id", decision["lineage"]["run_id"])
        arms[arm] += 1
    assert set(arms) == {"champion", "challenger"}


def test_before_a_stage_begins_the_champion_decides_everything(client):
    split(client, client.champion, client.challenger, states=())
    for _ in range(4):
        decision = bar_with_event(client)
        assert decision["arm"] == "champion"
        assert not any(name.startswith("arm of") for name in decision["lineage"])


def test_a_challenger_that_fails_decides_nothing_from_the_same_close_on_and_no_request_fails(client):
    broken = make_bundle(client.home / "bundles", client.stand.columns, client.stand.rows, 0.4, broken=True)
    assignment = split(client, client.champion, broken, weight=0.99)
    decisions = [bar_with_event(client) for _ in range(4)]  # each of them was answered
    assert {decision["arm"] for decision in decisions} == {"champion"}
    assert any(
        assignment.arm(d["symbol"], int(d["lineage"]["arm of validator"].split()[3])) == "challenger" for d in decisions
    )
    assert all(decision["lineage"]["arm of validator"].endswith("champion") for decision in decisions)
    assert eventually(lambda: alarms(client, "guardrail"))
    (alarm,) = alarms(client, "guardrail")
    assert alarm.detail.startswith("experiment 1: validator challenger version 2: ")
    assert "MODEL_FAULT" in alarm.detail


def test_a_file_that_no_experiment_of_the_ledger_bears_out_is_not_served(client):
    assignment = split(client, client.champion, client.challenger)
    ledger(client).move_experiment(Transition(1, AT, 0.0, "stopped", "ann", "enough"))
    arms = {"champion": slot_entry("1", client.champion), "challenger": slot_entry("2", client.challenger)}
    serve_arms(settings(), {"validator": arms}, client.warm, AT, {"validator": assignment.to_dict()})
    assert eventually(lambda: alarms(client, "generation_refused"))
    assert next_decision(client)["lineage"]["arm of validator"].startswith("experiment 1")  # what was served, goes on
    assert "does not say so" in alarms(client, "generation_refused")[0].detail


@pytest.fixture
def guarded():
    """A guard of a split with an account, and what it is called with."""
    assignment = Assignment(7, "cd" * 32, 0.0, BAR_S, "a" * 64, "b" * 64, stages=(Stage(0, 0.5),))
    account, queue = SimpleNamespace(equity=1.0), AlarmQueue()
    snapshot = Snapshot(assignments={"validator": assignment})
    symbol = SimpleNamespace(name="SIM/USDT", closed=SimpleNamespace(close_time=10 * BAR_S))
    guard = RampGuard(GuardrailParams(latency_ms=25.0, drawdown=0.02), account, queue)
    answers = {"validator": {"challenger": ModelAnswer("validator", status="OK", p=0.5)}}
    return SimpleNamespace(
        guard=guard, account=account, queue=queue, look=lambda: guard.look(snapshot, symbol, answers),
        time=lambda champion, challenger: [guard.time(snapshot, "validator", "champion", champion),
                                           guard.time(snapshot, "validator", "challenger", challenger)],
        ended=lambda: guard.look(Snapshot(), symbol, {}),
    )  # fmt: skip


def raised(guarded):
    return [alarm.detail for alarm in guarded.queue._waiting]


def test_slow_answers_stop_a_challenger_and_a_slow_machine_does_not(guarded):
    for _ in range(LATENCY_ANSWERS):
        guarded.time(90.0, 95.0)  # both are slow: not the challenger's doing
        guarded.look()
    assert raised(guarded) == []
    for _ in range(LATENCY_ANSWERS):
        guarded.time(2.0, 95.0)
        guarded.look()
    (detail,) = raised(guarded)
    assert "95 ms" in detail


def test_a_loss_of_the_account_from_its_highest_equity_stops_a_challenger_that_acts(guarded):
    for equity in (1.0, 1.05, 1.04):
        guarded.account.equity = equity
        guarded.look()
    assert raised(guarded) == []
    guarded.account.equity = 1.02
    guarded.look()
    guarded.look()  # once
    (detail,) = raised(guarded)
    assert detail.startswith("experiment 7: ")
    assert "2.86%" in detail
    guarded.ended()
    guarded.look()  # what ended is forgotten: a later experiment starts without it
    assert len(raised(guarded)) == 1
