"""Everything behind the routes of the decision service, built without HTTP: engine, alarms, memory, store, clock."""

import asyncio
import json
import time
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy.exc import OperationalError
from support.decision_service import AT, as_json
from support.serving_fixture import SYMBOL, make_bundle, publish, slot_entry

from benchmarks.fixture import serve_arms
from pipelines.clock import Clock
from pipelines.contracts import CLOSE, HIGH, OPEN_TIME, Outcome
from pipelines.data.timeframes import Grid
from pipelines.errors import ClockJumped, InputError, ServiceDown, StoredAlready, UnknownName
from pipelines.settings import Settings, load_params
from pipelines.store import Change, Signed, Store
from serving.service.alarm_queue import AlarmQueue, report_poll
from serving.service.answers import BriefDecision, brief, decisions_answer
from serving.service.decision_engine import DecisionEngine
from serving.service.decision_memory import DecisionKey, DecisionMemory, Subject, id_of, served_in
from serving.service.schemas import DecideRequest, ObserveRequest
from serving.service.store_executor import StoreExecutor
from serving.service.store_monitor import StoreMonitor
from serving.service.system_clock import ClockMonitor
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.service_level import SERVICE_LEVEL_FILE
from serving.state.tiers import TierStore

MINUTES = Grid("1m")


@pytest.fixture
def store(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield store
    store.close()


@pytest.fixture
def where(stand, home):
    """Settings of an installation whose generation file names one champion."""
    where = Settings(home=home, write_key="test-key")
    champion = make_bundle(home / "bundles", stand.columns, stand.rows, 0.1)
    families = {"validator": {"champion": slot_entry("1", champion), "challenger": None}}
    serve_arms(where, families, publish(stand, home), AT)
    return where


@asynccontextmanager
async def started(where):
    engine = DecisionEngine(where, load_params(where.params_file))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def bars(stand, first, last):
    return ObserveRequest.model_validate({"symbol": SYMBOL, "bars": [as_json(row) for row in stand.live[first:last]]})


# ---- the engine


def test_it_observes_decides_and_describes_itself_without_a_server(stand, where):
    async def run():
        async with started(where) as engine:
            assert (engine.readiness.is_ready, engine.readiness.ready()["health"]) == (True, "HEALTHY")
            observed = await engine.intake.observe(bars(stand, 0, 8))
            assert (observed["new"], len(observed["closed"])) == (8, 1)
            first, again = [(await engine.decider.decide([SYMBOL]))[0] for _ in range(2)]
            assert first == again
            assert engine.readiness.status()["symbols"][SYMBOL]["tier"] == first.tier == 2
            assert engine.risk()["equity"] == 1.0
            with pytest.raises(UnknownName, match="DOGE"):
                await engine.decider.decide(["DOGE/USDT"])
        return first

    decision = asyncio.run(run())
    store = Store.open(where.store)
    assert store.decision(decision.id).decision == decision
    store.close()


def test_the_service_level_goes_on_after_a_restart_and_counts_each_close_once(stand, where):
    async def level(engine):
        await asyncio.sleep(0.1)  # an answer does not wait until its decision is counted
        found = engine.readiness.status()["service_level"]["windows"]["day"]
        return found["met"] + found["late"], found["missed"]  # how long a restart takes is not the point

    async def run():
        async with started(where) as engine:
            await engine.intake.observe(bars(stand, 0, 8))  # before its first decision
            await engine.decider.decide([SYMBOL])
            assert await level(engine) == (0, 0)
            await engine.intake.observe(bars(stand, 8, 23))
        async with started(where) as engine:
            await engine.decider.decide([SYMBOL])
            await engine.decider.decide([SYMBOL])
            assert await level(engine) == (1, 0)
            await engine.intake.observe(bars(stand, 23, 38))
            await engine.intake.observe(bars(stand, 38, 68))  # two closes, the first without a chance
            assert await level(engine) == (1, 2)
            await engine.decider.decide([SYMBOL])
        file = where.serving_dir / SERVICE_LEVEL_FILE
        stored = json.loads(file.read_text())
        file.write_text(json.dumps(stored | {"newest": {SYMBOL: stored["newest"][SYMBOL] - 900.0}}))
        async with started(
            where
        ) as engine:  # as after a crash: the newest close was taken and nothing says how it went
            assert await level(engine) == (2, 3)

    asyncio.run(run())


def test_a_caller_that_goes_away_while_its_bars_are_written_leaves_store_and_live_state_as_one(
    stand, where, monkeypatch
):
    real, has_begun = Ledger.observe_all, asyncio.Event()

    def slow(self, batches):
        done = Future()
        done.set_running_or_notify_cancel()  # a write that has begun is not called back
        has_begun.set()
        asyncio.get_running_loop().call_later(
            0.1, lambda: real(self, batches)[0].add_done_callback(lambda written: done.set_result(written.result()))
        )
        return [done]

    monkeypatch.setattr(Ledger, "observe_all", slow)

    async def run():
        async with started(where) as engine:
            request = asyncio.ensure_future(engine.intake.observe(bars(stand, 0, 8)))
            await has_begun.wait()
            request.cancel()
            await asyncio.sleep(0.3)
            assert request.cancelled()
            return engine.readiness.status()["symbols"][SYMBOL]["last_bar"]

    last_bar = datetime.fromisoformat(asyncio.run(run())).timestamp()
    store = Store.open(where.store)
    assert last_bar == store.bars(SYMBOL)[-1, OPEN_TIME] == stand.live[7, OPEN_TIME]
    store.close()


# ---- what others write


def corrected(store, decision):
    bar = store.bars(SYMBOL)[0].copy()
    bar[CLOSE] = bar[HIGH]
    change = Change(bar[OPEN_TIME], MINUTES.next_close(bar[OPEN_TIME]), bar)
    store.correct(SYMBOL, [change], Signed("ann", datetime.now(UTC), "the venue corrected it"))


def resolved(store, decision):
    now = datetime.now(UTC)
    store.add_outcome(Outcome(decision.id, now, 1, "target", 10.0, 5.0, 5.0), now)


def tripped(store, decision):
    store.trip("emergency", datetime.now(UTC), "a test")


@pytest.mark.parametrize(
    ("write", "read"),
    [(tripped, "breaker_trips"), (corrected, "newest_corrections"), (resolved, "resolved")],
)
def test_what_others_write_is_read_where_it_moved_and_again_where_reading_failed(
    stand, where, monkeypatch, write, read
):
    real, reads, broken = getattr(Store, read), [], []

    def counted(self, *args, **kwargs):
        reads.append(read)
        if broken:
            raise broken.pop()
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Store, read, counted)

    async def run():
        async with started(where) as engine:
            await engine._watcher.stop()  # polls from here on are those of this test

            async def reads_of_a_poll():
                reads.clear()
                await engine._flows.poll()
                return len(reads)

            await engine.intake.observe(bars(stand, 0, 23))
            (decision,) = await engine.decider.decide([SYMBOL])
            await engine._flows.poll()
            assert await reads_of_a_poll() == 0
            with closing(Store.open(where.store)) as store:
                write(store, decision)
            broken.append(OperationalError("SELECT", None, Exception("gone")))
            assert await reads_of_a_poll() == 1
            assert "gone" in engine.store_monitor.fault
            assert await reads_of_a_poll() > 0
            assert engine.store_monitor.fault is None
            await engine._flows.poll()  # an outcome that was learned from is looked at once more
            assert await reads_of_a_poll() == 0
            return engine.readiness.status()

    status = asyncio.run(run())
    assert ("emergency" in status["breakers"]) == (write is tripped)


# ---- decisions that were reported as failed


def decision(id, symbol="A"):
    return SimpleNamespace(id=id, symbol=symbol, action="NO_TRADE")


KEY = DecisionKey("A", 900.0, False, 1, "w", (), 2)
SUBJECT = Subject("A", 900.0, 1, "w")


class Stored:
    """A store that holds one decision, or none."""

    def __init__(self, stored=None):
        self.stored = stored

    def decision(self, id):
        if self.stored is None:
            raise UnknownName(id)
        return SimpleNamespace(decision=self.stored)


def remembered(stored, *outcomes, doubt=False):
    """Hand one decision to the ledger, let it end with each outcome, then find late ones."""

    async def run():
        executor = StoreExecutor()
        memory = DecisionMemory(Stored(stored), executor, Account())
        made, written = decision("d"), Future()
        memory.add_all([(KEY, SUBJECT, made, memory.stored(made, written))])
        assert memory.find(SUBJECT).decision is made
        if doubt:
            memory.mark_uncertain(["A"])
        if outcomes[0] is None:
            written.set_result(None)
        else:
            written.set_exception(outcomes[0])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await memory.find_late(["A"])
        executor.close()
        found = memory.find(SUBJECT)
        return found and found.decision, memory.made.get(KEY)

    return asyncio.run(run())


def test_a_stored_decision_is_found_by_its_key_and_no_longer_as_pending():
    found, made = remembered(None, None)
    assert (found, made.decision.id) == (None, "d")


def test_a_refused_decision_is_forgotten():
    assert remembered(decision("d"), InputError("no")) == (None, None)


def test_a_failed_write_that_was_done_all_the_same_is_found_late():
    late = decision("d")
    found, made = remembered(late, ServiceDown("locked"))
    assert (found is late, made) == (True, None)
    assert remembered(None, ServiceDown("locked")) == (None, None)


def test_the_decision_that_is_stored_already_stands_for_the_one_made_again():
    earlier = decision("d")
    found, made = remembered(earlier, StoredAlready("d"))
    assert (found, made.decision is earlier) == (None, True)


def test_a_decision_reported_as_failed_is_answered_once_it_is_stored_after_all():
    found, _ = remembered(None, None, doubt=True)
    assert found.id == "d"


def test_an_id_is_the_close_and_the_hash_of_everything_a_decision_rests_on():
    """The value is fixed: another process finds stored decisions by it. Ids ascend with the close."""
    snapshot = SimpleNamespace(slots={("validator", "champion"): SimpleNamespace(digest="d" * 64)})
    served = served_in(snapshot)
    same, other = id_of(KEY, served), id_of(KEY._replace(tier=3), served)
    assert (len(same), same == id_of(KEY, served), same == other) == (32, True, False)
    assert same == f"{int(KEY.close_time):08x}86d4845a397cd963ca7a3fb4"
    assert id_of(KEY._replace(close_time=KEY.close_time + 1.0), served) > max(same, other)


# ---- alarms


def raised(store):
    return [(alarm.kind, alarm.detail, alarm.cleared_at is None) for alarm in store.alarms(open_only=False)]


def test_an_alarm_replaces_the_open_one_about_the_same_subject_and_its_end_clears_it(store):
    alarms = AlarmQueue()
    report_poll(alarms, "model service", "KeyError: x")
    report_poll(alarms, "decision service", "OSError: y")
    report_poll(alarms, "decision service", "OSError: y")  # the same, still waiting
    alarms.flush(store)
    report_poll(alarms, "decision service", None)
    alarms.flush(store)
    assert [alarm.detail for alarm in store.alarms()] == ["model service: KeyError: x"]
    assert len(raised(store)) == 3


def test_an_alarm_that_the_store_refuses_waits_for_the_next_flush(store, monkeypatch):
    alarms = AlarmQueue()
    alarms.raise_alarm("model_fault", "high", "first")
    alarms.raise_alarm("model_fault", "high", "second")
    with monkeypatch.context() as broken:
        broken.setattr(Store, "raise_alarm", lambda *_: (_ for _ in ()).throw(ServiceDown("locked")))
        with pytest.raises(ServiceDown):
            alarms.flush(store)
    alarms.flush(store)
    assert {detail for _, detail, _ in raised(store)} == {"first", "second"}


# ---- store and clock


def test_a_fault_of_the_store_refuses_writes_until_a_real_write_succeeds(store, tmp_path):
    tiers = TierStore(tmp_path / "tiers.json", load_params().tiers)
    monitor = StoreMonitor(store, tiers, Settings(home=tmp_path), AlarmQueue())
    monitor.check(None)
    monitor.report(OSError("full"))
    with pytest.raises(ServiceDown, match="store not writable"):
        monitor.refuse_writes()
    monitor.report(ServiceDown(monitor.fault))  # a call refused because of it: no new fault
    assert monitor.fault == "store not writable (OSError: full)"
    monitor.check(None)
    monitor.refuse_writes()
    monitor.check_disk()
    assert monitor.disk.free_bytes > 0


def test_the_pages_are_checked_once_in_the_background(store, tmp_path):
    url = f"sqlite:///{tmp_path / 'store.db'}"
    where, alarms = Settings(home=tmp_path, store_url=url), AlarmQueue()
    monitor = StoreMonitor(store, TierStore(tmp_path / "tiers.json", load_params().tiers), where, alarms)
    assert monitor.page_state == "not checked yet"
    monitor.start_page_check()
    deadline = time.monotonic() + 10
    while monitor.page_state == "checking" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (monitor.page_state, monitor.damage) == ("whole", None)


def test_bars_are_refused_while_the_clock_is_wrong_and_two_alarms_say_when(store, monkeypatch):
    alarms, now = AlarmQueue(), datetime.now(UTC)
    clock = ClockMonitor(alarms)
    symbol = SimpleNamespace(clock=Clock("market"), base_grid=MINUTES)
    clock.check_bars(symbol, [], now)
    with pytest.raises(ClockJumped, match="Fix the clock"):
        clock.check_bars(symbol, [], now + timedelta(days=1))
    assert clock.fault is not None
    assert clock.check(datetime.now(UTC)) is None
    alarms.flush(store)
    assert [(kind, is_open) for kind, _, is_open in raised(store)] == [("clock_jumped", False)] * 2


# ---- the brief view


def test_the_brief_view_is_a_part_of_the_full_one_with_the_first_reason(stand, where):
    async def run():
        async with started(where) as engine:
            await engine.intake.observe(bars(stand, 0, 8))
            return await engine.decider.decide([SYMBOL])

    (made,) = asyncio.run(run())
    full = decisions_answer(DecideRequest(symbol=SYMBOL), [made])
    shown = decisions_answer(DecideRequest(symbol=SYMBOL, view="brief"), [made])
    assert shown.keys() == BriefDecision.model_fields.keys()
    assert {name: full[name] for name in shown if name != "reason"} | {"reason": full["reasons"][0]} == shown
    assert decisions_answer(DecideRequest(symbols=[SYMBOL], view="brief"), [made]) == {"decisions": [brief(made)]}
