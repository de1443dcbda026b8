"""One close through the service: nothing lost and nothing doubled, whatever the service does."""

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from support.feed_service import MINUTES, QUARTERS, StoringService, minutes
from support.records import DECISION

from bellwether.operations.feed_delivery import Delivery, Stopped
from bellwether.operations.feed_report import FeedReport
from pipelines.contracts import OPEN_TIME, Outcome, utc
from pipelines.costs import costs_of
from pipelines.data.feeds import FeedMarket, Sent
from pipelines.errors import InputError
from pipelines.record_codec import DecisionRecord
from pipelines.settings import load_params
from pipelines.store import Store

T = 1_704_067_200.0
A, B = "SIM/USDT", "SIMB/USDT"


@pytest.fixture
def store(tmp_path):
    opened = Store.open(f"sqlite:///{tmp_path}/store.db")
    yield opened
    opened.close()


@pytest.fixture
def service(store):
    return StoringService(store)


@pytest.fixture
def delivery(store, service, tmp_path):
    return delivering(store, service, tmp_path)


def delivering(store, service, tmp_path, wait=lambda seconds: None):
    """Return a delivery of two markets after `T`; it waits for nothing."""
    markets = {symbol: FeedMarket(symbol, MINUTES, QUARTERS, T - 60.0) for symbol in (A, B)}
    costs = dict.fromkeys(markets, costs_of(load_params().costs, "simulator", "spot"))
    report = FeedReport(tmp_path / "serving")
    report.begin("simulator", 900.0, paced=True, longest_call_s=1.0)
    return Delivery(service, store, markets, costs, report, wait)


def close(i, symbols=(A, B)):
    """Return the i-th close after `T`, of these symbols."""
    return T + 900.0 * (i + 1), {symbol: Sent(minutes(T + 900.0 * i, 15, seed=i)) for symbol in symbols}


def closes(n):
    """Return the times of the first n closes after `T`."""
    return [T + 900.0 * (i + 1) for i in range(n)]


def test_every_symbol_is_sent_in_one_call_and_decided_in_one(delivery, service):
    for i in range(3):
        delivery.deliver(close(i))
    assert service.calls == [("observe", [A, B]), ("decide", [A, B])] * 3
    assert service.decided(A) == service.decided(B) == closes(3)
    assert (delivery.counts.closes, delivery.counts.bars, delivery.counts.decisions) == (3, 90, 6)


@pytest.mark.parametrize(
    "faults", [["before"] * 3, ["after"], [None, "before"], [None, "after"], ["after", None, "after"]]
)
def test_a_service_that_fails_before_or_after_it_has_stored_loses_and_doubles_nothing(delivery, service, faults):
    delivery.deliver(close(0))
    service.faults = list(faults)
    delivery.deliver(close(1))
    delivery.deliver(close(2))
    assert service.decided(A) == service.decided(B) == closes(3)
    assert service.store.bars(A)[:, OPEN_TIME].tolist() == (T + 60.0 * np.arange(45)).tolist()
    assert delivery.counts.decisions == 6
    assert delivery.outages == sum(fault is not None for fault in faults)


def test_a_service_that_has_loaded_no_symbol_yet_is_waited_for(delivery, service):
    delivery.deliver(close(0))
    service.faults = ["unknown"] * 5
    delivery.deliver(close(1))
    assert service.decided(A) == service.decided(B) == closes(2)


def test_the_delay_between_attempts_doubles_and_market_time_stands(store, service, tmp_path):
    waits = []
    delivery = delivering(store, service, tmp_path, waits.append)
    service.faults = ["before"] * 7
    delivery.deliver(close(0))
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert delivery._report.held is None


def test_a_feed_that_is_stopped_while_the_service_is_down_ends(store, service, tmp_path):
    def stop(seconds):
        raise Stopped

    service.faults = ["before"]
    with pytest.raises(Stopped):
        delivering(store, service, tmp_path, stop).deliver(close(0))


def test_bad_data_of_one_symbol_is_its_own(delivery, service):
    delivery.deliver(close(0))
    delivery.deliver(close(1))
    other = minutes(T + 900.0, 15, seed=9)  # stored otherwise
    delivery.deliver((T + 2700.0, {A: Sent(other), B: close(2)[1][B]}))
    assert service.decided(A) == closes(2)
    assert service.decided(B) == closes(3)


def test_a_symbol_that_is_not_served_yet_lacks_nothing_once_it_is(delivery, service):
    service.unknown = {B}
    for i in range(3):
        delivery.deliver(close(i))
    assert (service.decided(A), service.decided(B)) == (closes(3), [])
    service.unknown = set()
    delivery.deliver(close(3))
    delivery.deliver(close(4))
    assert service.store.bars(B)[:, OPEN_TIME].tolist() == (T + 60.0 * np.arange(75)).tolist()
    assert service.decided(B) == closes(5)[3:]
    assert service.decided(A) == closes(5)


def test_a_decision_bar_that_lacks_its_last_minute_is_decided_when_a_later_one_closes_it(delivery, service):
    delivery.deliver(close(0, [A]))
    delivery.deliver((T + 1800.0, {A: Sent(minutes(T + 900.0, 15, seed=1)[:-1])}))
    assert service.decided(A) == closes(1)
    delivery.deliver(close(2, [A]))
    assert service.decided(A) == [T + 900.0, T + 2700.0]


def test_a_backfill_is_stored_whole_and_decides_nothing(delivery, service):
    delivery.backfill(A, Sent(minutes(T, 2_500)))
    assert len(service.store.bars(A)) == 2_500
    assert [kind for kind, _ in service.calls] == ["observe"] * 3
    assert service.decided(A) == []


def test_a_long_backfill_of_a_symbol_that_is_not_served_yet_loses_nothing(delivery, service):
    service.unknown = {A}
    delivery.backfill(A, Sent(minutes(T, 2_505)))
    assert len(service.store.bars(A)) == 0
    service.unknown = set()
    delivery.deliver((T + 60.0 * 2_520, {A: Sent(minutes(T + 60.0 * 2_505, 15))}))
    assert service.store.bars(A)[:, OPEN_TIME].tolist() == (T + 60.0 * np.arange(2_520)).tolist()


def test_a_symbol_whose_warm_start_is_refused_holds_up_no_other(delivery, service):
    service.refused = {B: "StateError"}
    for i in range(3):
        delivery.deliver(close(i))
    assert (service.decided(A), service.decided(B)) == (closes(3), [])
    service.refused = {}
    delivery.deliver(close(3))
    assert service.store.bars(B)[:, OPEN_TIME].tolist() == (T + 60.0 * np.arange(60)).tolist()


def test_bad_data_that_waited_for_a_symbol_are_dropped_and_those_after_them_are_sent(delivery, service):
    delivery.deliver(close(0))
    service.unknown = {B}
    other = minutes(T, 15, seed=9)  # of minutes that are stored otherwise
    delivery.deliver((T + 1800.0, {A: close(1)[1][A], B: Sent(other)}))
    service.unknown = set()
    for i in (2, 3):
        delivery.deliver(close(i))
    assert service.store.bars(B)[:, OPEN_TIME][-1] == T + 60.0 * 59


def emitted(store, as_of, **changes):
    """Store a long decision with a target and a stop a unit away and four bars to live; return it."""
    decision = replace(
        DECISION, as_of=utc(as_of), known_at=utc(as_of), ingested_at=utc(as_of),
        action="BUY", direction=1, entry=100.0, stop=99.0, take_profits=(101.0,), size=0.1, p=0.6, event="breakout",
        **({"id": f"e{as_of:.0f}", "symbol": A, "expiry": utc(as_of) + timedelta(hours=1)} | changes),
    )  # fmt: skip
    store.add_decisions([DecisionRecord(decision, b"", b"")])
    return decision


def test_the_outcome_of_a_decision_is_reported_before_the_next_decision_also_by_a_later_process(
    store, service, tmp_path
):
    delivering(store, service, tmp_path).deliver(close(0, [A]))
    made = emitted(store, T + 900.0)
    later = delivering(store, service, tmp_path)
    later._markets[A] = replace(later._markets[A], newest=T + 840.0)
    later = Delivery(service, store, later._markets, later._costs, later._report, lambda seconds: None)
    for i in range(1, 6):
        later.deliver(close(i, [A]))
    (outcome,) = store.outcomes_of([made.id])
    assert outcome.resolved_at == utc(T + 900.0) + timedelta(hours=1)
    assert (outcome.barrier, later.counts.outcomes) == ("time", 1)
    at = service.calls.index(("outcome", [made.id]))
    assert service.calls[at - 1][0] == "observe"
    assert service.calls[at + 1][0] == "decide"


def test_the_outcomes_of_a_close_are_one_request_in_order_of_time_and_a_refused_one_costs_no_other(
    store, service, tmp_path
):
    """Three decisions end by one close; of the first of them to end the service has another outcome."""
    delivering(store, service, tmp_path).deliver(close(0))
    made = [
        emitted(store, T + 900.0, id=f"{symbol} {life}", symbol=symbol, expiry=utc(T + 900.0 + 60.0 * life))
        for symbol, life in ((A, 58), (B, 56), (A, 57))
    ]
    in_time = sorted(made, key=lambda decision: decision.expiry)
    store.add_outcome(Outcome(in_time[0].id, utc(T + 1000.0), 1, "target", 60.0, 56.0, 4.0), utc(T + 1000.0))
    reporting = delivering(store, service, tmp_path)
    for decision in made:
        reporting._remember(decision)
    service.faults = [None] * 7 + ["before", "after"]  # three closes, and the bars of the fourth
    for i in range(1, 6):
        reporting.deliver(close(i))
    reported = [ids for call, ids in service.calls if call == "outcome"]
    assert reported == [[decision.id for decision in in_time]] * 3
    assert reporting.counts.outcomes == 2
    assert store.outcome_count() == 3
    assert not any(reporting._pending.values())


def test_outcomes_that_are_refused_as_a_whole_are_left_to_the_monitor(store, service, tmp_path, monkeypatch):
    delivering(store, service, tmp_path).deliver(close(0, [A]))
    reporting = delivering(store, service, tmp_path)
    reporting._remember(emitted(store, T + 900.0))

    def refuse(outcomes):
        raise InputError("outcome was refused (400): no such field")

    monkeypatch.setattr(service, "outcome_all", refuse)
    for i in range(1, 7):
        reporting.deliver(close(i, [A]))
    assert (reporting.counts.outcomes, reporting.counts.decisions) == (0, 6)
    assert not any(reporting._pending.values())
