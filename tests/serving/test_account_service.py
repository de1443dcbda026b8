"""The account of a running service: what it fills by itself, what a venue reports, and what a mismatch stops."""

import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from support.decision_service import running_service
from support.records import DECISION
from support.service_probes import alarms, eventually, next_decision, status
from support.serving_fixture import SYMBOL, slot_entry

from bellwether.operations.breakers import reset
from pipelines.contracts import OPEN, Outcome
from pipelines.costs import costs_of
from pipelines.settings import Settings, load_params
from pipelines.store import DecisionRecord, Store

LIVE = datetime(2024, 1, 9, 8, 15, tzinfo=UTC)  # the first close of a decision bar that is observed
COSTS = costs_of(load_params().costs, "simulator", "spot")


def emitted(home, *ids, action="BUY"):
    """Store decisions that were emitted at this close: 10 % of the equity each."""
    store = Store.open(f"sqlite:///{home / 'store.db'}")
    store.add_decisions([
        DecisionRecord(replace(
            DECISION, id=id, symbol=SYMBOL, action=action, direction=1, size=0.1, entry=100.0, stop=99.0,
            take_profits=(101.0,), event="fvg", as_of=(at := LIVE + i * timedelta(minutes=15)), known_at=at,
            expiry=LIVE + timedelta(hours=4),
        ), b"", b"")
        for i, id in enumerate(ids)
    ])  # fmt: skip
    store.close()


def by_reports(tmp_path):
    """Return a file of parameters by which the account rests on what a venue reports."""
    content = yaml.safe_load(Settings().params_file.read_text()) | {"account": {"source": "reported"}}
    file = tmp_path / "by-reports.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)


def shown(client):
    return client.call("/account").json()


def fill(client, id, of, price=100.0, **changes):
    body = {"id": id, "decision_id": of, "at": LIVE.isoformat(), "status": "filled", "price": price}
    return client.call("/fill", body | changes)


def test_an_emitted_decision_is_filled_by_the_next_bar_and_leaves_by_its_outcome_also_after_a_restart(stand, home):
    emitted(home, "a")
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8)  # to the close it was decided on
        (waits,) = shown(client)["positions"]
        assert (waits["id"], waits["filled_at"]) == ("a", None)
        client.observe(1)
        (position,) = shown(client)["positions"]
        opened = float(stand.live[8, OPEN])
        assert position["entry"] == pytest.approx(opened * (1.0 + COSTS.half_spread_bps / 1e4))
        assert (position["filled_at"], position["size"], position["fee_bps"]) == (LIVE.isoformat(), 0.1, COSTS.fee_bps)
        assert isinstance(position["unrealised"], float)
        (entry,) = client.store().fills()
        assert (entry.id, entry.quantity, entry.source) == ("a-entry", 0.1, "ledger")
        client.observe(15)
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        assert shown(client)["positions"][0]["entry"] == position["entry"]
        assert client.http.get("/account").json()["source"] == "ledger"
        outcome = {"decision_id": "a", "resolved_at": (LIVE + timedelta(hours=1)).isoformat(), "label": 1,
                   "barrier": "target", "gross_bps": 64.0, "net_bps": 60.0, "cost_bps": 4.0}  # fmt: skip
        assert client.call("/outcome", outcome).status_code == 200
        account = shown(client)
        assert (account["positions"], account["equity"]) == ([], pytest.approx(1.0006))
        assert account["daily_pnl"] == pytest.approx(0.0006)
        assert [(one.id, one.is_exit, one.reason) for one in client.store().fills()] == [
            ("a-entry", False, "open of the next bar"), ("a-exit", True, "target")
        ]  # fmt: skip
        assert status(client)["account"]["source"] == client.call("/risk").json()["account"] == "ledger"
        assert status(client)["breakers"] == []


def ended(id, net_bps, hours, **changes):
    """Return the body of an outcome, so many hours after the decision was made."""
    at = (LIVE + timedelta(hours=hours)).isoformat()
    figures = {"gross_bps": net_bps + 4.0, "net_bps": net_bps, "cost_bps": 4.0}
    label, barrier = (1, "target") if net_bps > 0.0 else (0, "stop")
    return {"decision_id": id, "resolved_at": at, "label": label, "barrier": barrier} | figures | changes


def test_outcomes_of_a_batch_are_booked_in_order_in_one_transaction_and_a_refused_one_is_refused_alone(
    stand, home, monkeypatch
):
    """-2.5 % and then +3 %: the loss of the day trips its breaker between the two, as one by one."""
    emitted(home, "a", "b")
    real, committed = Store.writing, []

    @contextmanager
    def counting(self, within=None):
        with real(self, within) as connection:
            yield connection
        if within is None:
            committed.append(threading.current_thread().name)

    monkeypatch.setattr(Store, "writing", counting)
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(8 + 15 + 1)
        assert [one["filled_at"] is not None for one in shown(client)["positions"]] == [True, True]
        committed.clear()
        sent = [ended("a", -2500.0, 1), ended("b", 3000.0, 2)]
        answer = client.call("/outcome", {"outcomes": sent}).json()
        assert answer == {"api": 1, "outcomes": [{"decision_id": id, "new": True} for id in "ab"]}
        account = shown(client)
        assert (account["positions"], account["equity"]) == ([], pytest.approx(0.975 * 1.03))
        assert status(client)["breakers"] == ["daily_loss"]
        assert committed.count("ledger") <= 3  # outcomes, exits, the trip; not one of each
        exits = [one.id for one in client.store().fills() if one.is_exit]
        assert sorted(exits) == ["a-exit", "b-exit"]

        again = [ended("b", 3000.0, 2), ended("never", 1.0, 2), ended("a", -2500.0, 1, label=1)]
        again += [{"decision_id": "a", "symbol": SYMBOL}, 7]
        found = client.call("/outcome", {"outcomes": again}).json()["outcomes"]
        assert [one.get("kind", one.get("new")) for one in found] == [
            False, "UnknownName", "BadValues", "BadRequest", "BadRequest",
        ]  # fmt: skip
        assert [one["decision_id"] for one in found] == ["b", "never", "a", "a", None]
        assert "resolved_at" in [field["field"] for field in found[3]["fields"]]
        assert shown(client)["equity"] == account["equity"]
        for wrong in ({"outcomes": []}, {"outcomes": sent * 129}, {"outcomes": sent, "decision_id": "a"}):
            assert client.call("/outcome", wrong).status_code == 400


def test_the_exit_of_an_outcome_that_a_flow_wrote_is_stored_by_the_service(stand, home):
    emitted(home, "a")
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(9)
        client.store().add_outcome(Outcome("a", LIVE + timedelta(hours=1), 0, "stop", -50.0, -54.0, 4.0), LIVE)
        assert eventually(lambda: len(client.store().fills()) == 2)
        assert shown(client)["equity"] == pytest.approx(1.0 - 0.1 * 54.0 / 1e4)


def test_by_reports_the_account_is_what_the_venue_said_and_the_service_books_nothing(stand, home, tmp_path):
    emitted(home, "a", "b")
    with running_service(stand, home, BELLWETHER_PARAMS_FILE=by_reports(tmp_path)) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(24)
        assert fill(client, "f1", "a", quantity=0.08, fee_bps=2.0).json()["new"] is True
        assert fill(client, "f2", "b").status_code == 200  # an old body: the whole size, at the assumed fee
        account = shown(client)
        assert account["source"] == "reported"
        assert [(p["id"], p["size"], p["fee_bps"]) for p in account["positions"]] == [
            ("a", 0.08, 2.0),
            ("b", 0.1, 10.0),
        ]
        assert fill(client, "f3", "a", 101.0, quantity=0.08, fee_bps=2.0, exit=True).json()["slippage_bps"] is None
        assert fill(client, "f3", "a", 101.0, quantity=0.08, fee_bps=2.0, exit=True).json()["new"] is False
        account = shown(client)
        assert account["equity"] == pytest.approx(1.0 + 0.08 * (0.01 - 4e-4))
        assert [p["id"] for p in account["positions"]] == ["b"]
        assert client.store().fills(source="ledger") == []
        decision = next_decision(client)
        assert decision["account"]["gross"] == pytest.approx(0.1)
        assert decision["lineage"]["account"] == "reported"


def test_a_mismatch_raises_an_alarm_and_opens_nothing_until_a_person_resets_it(stand, home):
    emitted(home, "a")
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.observe(9)
        answer = fill(client, "f1", "a", quantity=0.3).json()
        assert answer["breakers"] == ["account_mismatch"]
        assert "fill f1: 0.3000 of the equity is open" in shown(client)["mismatch"]
        assert eventually(lambda: len(alarms(client, "account_mismatch")) == 1)
        decision = next_decision(client)
        assert "BREAKER_LATCHED: account_mismatch" in decision["reasons"]
    with running_service(stand, home) as client:  # over a restart
        client.serve(slot_entry("1", client.champion), None)
        assert eventually(lambda: status(client)["breakers"] == ["account_mismatch"])
        reset(client.store(), "account_mismatch", datetime.now(UTC), "ann", "the venue's lot is larger")
        assert eventually(lambda: status(client)["breakers"] == [])
        next_decision(client)
        assert (status(client)["breakers"], shown(client)["mismatch"]) == ([], None)
        assert all(alarm.cleared_at for alarm in alarms(client, "account_mismatch"))


def test_a_quantity_and_a_fee_are_checked_like_every_number(stand, home):
    emitted(home, "a")
    with running_service(stand, home) as client:
        for wrong in ({"quantity": 0.0}, {"quantity": -0.1}, {"quantity": "0.1"}, {"fee_bps": "2"}, {"exit": "yes"}):
            assert fill(client, "f1", "a", **wrong).status_code == 400
