"""The store: what it returns, what it refuses, and that no write is partial."""

import multiprocessing
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from support.legacy_store import alembic_to, contents, release_010

from pipelines import migrations
from pipelines.context_layout import TAPE_WIDTH, tape_of
from pipelines.contracts import BAR_FIELDS, BOOK_LEVELS, HALF_SPREAD, Books, ContextFeed, Decision, ModelAnswer, Outcome
from pipelines.errors import BadTimes, BadValues, LeaseHeld, StateError, UnknownName
from pipelines.migrations import tables
from pipelines.migrations.tables import EMITTED, METADATA, SCHEMA
from pipelines.store import (
    BarBatch,
    DecisionRecord,
    Fill,
    Promotion,
    ReceivedOutcome,
    Store,
    decision_of,
    decision_payload,
    packed,
)
from pipelines.store.engine import LOG_BYTES, PAGE_BYTES

T0 = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def store(url):
    opened = Store.open(url)
    yield opened
    opened.close()


def batch(n=3, start=T0, symbol="BTC/USDT"):
    times = start.timestamp() + 60.0 * np.arange(n)
    rows = np.column_stack([times, *np.full((4, n), 100.0), np.full(n, 7.0), np.full((3, n), np.nan).T])
    return BarBatch(symbol, rows, times + 60.0, start + HOUR)


def decision(id="d1", **changes):
    made = Decision(
        id=id, symbol="BTC/USDT", as_of=T0, known_at=T0, ingested_at=T0 + HOUR, action="BUY", direction=1,
        confidence=0.8, entry=100.0, stop=99.0, take_profits=(101.0, 102.0), size=0.05,
        expiry=T0 + 4 * HOUR, edge_bps=3.5, p=0.6,
        regime=None, tier=2, arm="champion", event="fvg", weights={"ict": 1.0}, reasons=("because",), generation=3,
        models={"validator": {"champion": ModelAnswer("validator", p=0.6)}}, lineage={"data_hash": "abc"},
    )  # fmt: skip
    return replace(made, **changes)


def record(id="d1", **changes):
    return DecisionRecord(decision(id, **changes), b"\x00\x01", b"\x02")


def outcome(id="d1", **changes):
    return replace(Outcome(id, T0 + HOUR, 1, "target", 150.0, 145.0, 5.0), **changes)


def test_opening_makes_the_folder_and_opening_again_finds_what_was_stored(url, store):
    store.add_decisions([record()])
    again = Store.open(url, durability="power")
    assert again.decision("d1") == record()
    again.close()


@pytest.mark.parametrize(("existing", "expected"), [(None, PAGE_BYTES), (4096, 4096)])
def test_a_new_file_has_small_pages_and_one_that_exists_keeps_its_own(tmp_path, existing, expected):
    file = tmp_path / "store.db"
    if existing:
        with closing(sqlite3.connect(file)) as earlier:
            earlier.execute(f"PRAGMA page_size={existing}")
            earlier.execute("CREATE TABLE kept (x)")
    opened = Store.open(f"sqlite:///{file}")
    opened.add_decisions([record()])
    with opened._engine.connect() as connection:
        pages = connection.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar_one()
    assert pages * expected == LOG_BYTES
    opened.close()
    with closing(sqlite3.connect(file)) as found:
        assert found.execute("PRAGMA page_size").fetchone() == (expected,)


def test_the_migrations_lead_exactly_to_the_tables_of_the_code(url, store):
    with sa.create_engine(url, poolclass=sa.NullPool).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_decisions_that_opened_something_are_counted_and_listed_from_an_index_of_their_own(store):
    store.add_decisions([record("d1", action="NO_TRADE"), record("d2"), record("d3", action="SELL", as_of=T0 + HOUR)])
    assert store.count_decisions() == (3, 2)
    assert [r.decision.id for r in store.decisions(emitted_only=True)] == ["d2", "d3"]
    count = sa.select(sa.func.count()).select_from(METADATA.tables["decisions"]).where(EMITTED)
    with store.writing() as connection:
        if connection.dialect.name == "sqlite":
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {count.compile(connection)}").all()
            assert "INDEX decisions_emitted" in str(plan)


def test_schema_names_the_newest_migration():
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    assert ScriptDirectory.from_config(config).get_heads() == [SCHEMA]


def test_a_store_of_a_newer_release_is_refused(url, store):
    with sa.create_engine(url, poolclass=sa.NullPool).begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StateError, match="9999"):
        Store.open(url)


def _open_and_add(url, worker):
    store = Store.open(url)
    for i in range(20):
        store.add_decisions([record(f"{worker}-{i}")])
    store.close()


def test_three_processes_may_open_a_new_store_and_write_at_once(url):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_open_and_add, args=(url, w)) for w in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0] * 3
    with closing(Store.open(url)) as store:
        assert len(store.decisions()) == 60


# ---- bars


def test_bars_come_back_bit_for_bit_with_their_gaps(store):
    assert store.add_bars(batch()) == 3
    np.testing.assert_array_equal(store.bars("BTC/USDT"), batch().bars)
    assert len(store.bars("BTC/USDT", after=T0.timestamp())) == 2
    assert store.newest_bar("BTC/USDT") == batch().bars[-1, 0]
    assert store.newest_bar("ETH/USDT") is None
    assert store.symbols() == ("BTC/USDT",)


def test_bars_are_stored_as_sqlalchemy_would_store_them(store, url):
    odd = [-0.0, 5e-324, 1e18, 0.1 + 0.2, np.nan, 3.0, np.nan, np.nan]
    sent = replace(batch(1), bars=np.array([[T0.timestamp() + 1e-6, *odd]]), ingested_at=T0.astimezone(timezone(HOUR)))
    store.add_bars(sent)
    stamps = {"known_at": sent.known_at[0].item(), "ingested_at": sent.ingested_at}
    values = {name: None if np.isnan(v) else v for name, v in zip(BAR_FIELDS, sent.bars[0].tolist(), strict=True)}
    everything = sa.text("SELECT * FROM bars ORDER BY symbol")
    with closing(store._engine.connect()) as connection:
        connection.execute(sa.insert(tables.bars), [{"symbol": "same", **values, **stamps}])
        ours, theirs = connection.execute(everything).all()
    assert repr(ours[1:]) == repr(theirs[1:])


def test_decisions_are_stored_as_sqlalchemy_would_store_them(store, url):
    """Rows of decisions go to SQLite's driver as they are, past SQLAlchemy."""
    store.add_decisions([record("ours", event="fvg", as_of=T0.astimezone(timezone(HOUR)))])
    with closing(Store.open(url)) as other, other.writing() as connection:
        theirs = [dict(row) for row in connection.execute(sa.select(tables.decisions)).mappings()]
        connection.execute(sa.insert(tables.decisions), [row | {"id": "theirs", "seq": 2} for row in theirs])
        query = sa.text("SELECT * FROM decisions ORDER BY seq")
        ours, theirs = (dict(row) for row in connection.execute(query).mappings())
    assert ours | {"id": None, "seq": None} == theirs | {"id": None, "seq": None}
    assert {name: type(value) for name, value in ours.items()} == {name: type(value) for name, value in theirs.items()}


def test_sending_bars_again_changes_nothing_and_adds_only_what_is_new(store):
    store.add_bars(batch(3))
    assert store.add_bars(batch(3)) == 0
    assert store.add_bars(batch(5)) == 2


def test_a_conflicting_bar_is_refused_by_name_and_nothing_of_its_batch_is_stored(store):
    store.add_bars(batch(3))
    other = batch(5)
    other.bars[1, 4] = 101.0
    with pytest.raises(BadValues, match=r"close=100\.0, now close=101\.0"):
        store.add_bars(other)
    np.testing.assert_array_equal(store.bars("BTC/USDT"), batch(3).bars)


def test_bars_out_of_order_are_refused(store):
    shuffled = batch(3)
    with pytest.raises(BadTimes, match="not after"):
        store.add_bars(replace(shuffled, bars=shuffled.bars[::-1].copy()))
    assert len(store.bars("BTC/USDT")) == 0


# ---- time


@pytest.mark.parametrize(
    "write",
    [
        lambda s, at: s.add_decisions([record(as_of=at)]),
        lambda s, at: s.add_bars(replace(batch(), ingested_at=at)),
        lambda s, at: s.raise_alarm("x", "low", "y", at),
        lambda s, at: s.trip("daily_loss", at, "y"),
        lambda s, at: s.add_trial("validator", "r", "h", at),
        lambda s, at: s.acquire_lease("a", "me", at, HOUR),
        lambda s, at: s.request_retrain("validator", "age", at, HOUR),
        lambda s, at: s.decisions(since=at),
        lambda s, at: s.decisions(known_by=at),
        lambda s, at: s.resolved(known_by=at),
    ],
)
def test_a_naive_time_is_refused_everywhere(store, write):
    with pytest.raises(BadTimes, match="no time zone"):
        write(store, T0.replace(tzinfo=None))


def test_times_of_any_zone_come_back_as_the_same_instant_in_utc(store):
    local = T0.astimezone(datetime.strptime("+05:30", "%z").tzinfo)
    store.raise_alarm("x", "low", "y", local)
    (alarm,) = store.alarms()
    assert alarm.at == T0
    assert alarm.at.utcoffset() == timedelta(0)


# ---- decisions and outcomes


def test_a_decision_id_is_never_reused(store):
    store.add_decisions([record()])
    with pytest.raises(BadValues, match="never reused"):
        store.add_decisions([record("d2"), record()])
    assert len(store.decisions()) == 1


def test_a_figure_that_is_not_finite_cannot_enter_a_decision(store):
    with pytest.raises(BadValues, match="JSON"):
        store.add_decisions([record(p=float("nan"))])
    assert store.decisions() == []


def test_an_outcome_is_stored_once_and_only_for_a_decision_we_made(store):
    store.add_decisions([record()])
    assert [r.decision.id for r in store.unresolved(T0)] == ["d1"]
    assert store.add_outcome(outcome(), T0 + HOUR) is True
    assert store.add_outcome(outcome(), T0 + 2 * HOUR) is False  # sent again later
    assert store.unresolved(T0) == []
    assert store.resolved() == [(record(), outcome())]
    with pytest.raises(BadValues, match="kept the first"):
        store.add_outcome(outcome(label=0), T0 + HOUR)
    with pytest.raises(UnknownName):
        store.add_outcome(outcome("never"), T0 + HOUR)


def test_outcomes_of_one_transaction_are_stored_together_or_not_at_all(store):
    store.add_decisions([record(), record("d2"), record("d3")])
    came = T0 + HOUR
    ended = [ReceivedOutcome(outcome(id), came) for id in ("d1", "d2", "d1")]
    assert store.add_outcomes(ended) == [True, True, False]
    assert store.received_outcomes(["d1", "d2"]) == ended[:2]
    for refused in (outcome("never"), outcome("d2", label=0)):
        with pytest.raises((UnknownName, BadValues)):
            store.add_outcomes([ReceivedOutcome(outcome("d3"), came), ReceivedOutcome(refused, came)])
    assert store.outcome_count() == 2
    assert store.add_outcomes([]) == []


def test_one_transaction_is_all_or_nothing(store):
    def fail_half_way():
        with store.writing() as connection:
            store.add_decisions([record()], within=connection)
            store.add_bars(batch(), within=connection)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert store.decisions() == []
    assert store.symbols() == ()


# ---- promotions and trials


def promotion(**changes):
    made = Promotion(
        T0, "policy", "promote", "validator", "champion", None, "1", "d", "r", "h", "c", True, "gate", {"auc": 0.53}
    )  # fmt: skip
    return replace(made, **changes)


def test_the_promotion_ledger_only_grows(url, store):
    first = store.add_promotion(promotion())
    store.add_promotion(promotion(action="rollback", family="regime"))
    assert store.promotions("validator") == [promotion(id=first)]
    assert [p.action for p in store.promotions(last=1)] == ["rollback"]
    truncate = ["TRUNCATE promotions"] if url.startswith("postgresql") else []
    for statement in ("UPDATE promotions SET actor = 'x'", "DELETE FROM promotions", *truncate):
        with (
            pytest.raises(sa.exc.DBAPIError, match="append-only"),
            sa.create_engine(url, poolclass=sa.NullPool).begin() as connection,
        ):
            connection.exec_driver_sql(statement)
    assert len(store.promotions()) == 2


def test_two_writers_of_the_same_bars_at_once_store_them_once(url, store):
    together, other = threading.Barrier(2), Store.open(url)

    def write(opened):
        together.wait()
        return sum(opened.add_bars(batch(n)) for n in range(1, 20))

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(write, (store, other))) == 19
    other.close()


def test_trials_are_counted_by_family(store):
    assert store.add_trial("validator", "r1", "h", T0) == 1
    assert store.add_trial("validator", "r2", "h", T0) == 2
    assert store.count_trials("regime") == 0


# ---- leases and retraining


def test_a_lease_has_one_holder_until_it_expires(store):
    store.acquire_lease("dvc", "a", T0, HOUR)
    with pytest.raises(LeaseHeld, match="held by a"):
        store.acquire_lease("dvc", "b", T0 + HOUR / 2, HOUR)
    store.renew_lease("dvc", "a", T0 + HOUR / 2, HOUR)
    store.acquire_lease("dvc", "b", T0 + 2 * HOUR, HOUR)
    with pytest.raises(LeaseHeld, match="no longer"):
        store.renew_lease("dvc", "a", T0 + 2 * HOUR, HOUR)
    assert store.release_lease("dvc", "a") is False
    assert store.release_lease("dvc", "b") is True


def test_retrain_requests_are_deduplicated_leased_and_cooled_down(store):
    first = store.request_retrain("validator", "drift", T0, HOUR)
    assert first.state == "queued"
    assert store.request_retrain("validator", "age", T0, HOUR).state == "duplicate"
    assert store.request_retrain("regime", "age", T0, HOUR).state == "queued"

    claimed = store.claim_retrain("w1", T0, HOUR, "validator")
    assert (claimed.id, claimed.state, claimed.holder) == (first.id, "running", "w1")
    assert store.claim_retrain("w2", T0, HOUR, "validator") is None

    taken_over = store.claim_retrain("w2", T0 + HOUR, HOUR, "validator")  # w1 died: its lease ran out
    assert taken_over.id == first.id
    with pytest.raises(LeaseHeld):
        store.finish_retrain(first.id, "w1", T0 + HOUR, True, "late")
    store.finish_retrain(first.id, "w2", T0 + HOUR, True, "v2")

    assert store.request_retrain("validator", "drift", T0 + 1.5 * HOUR, HOUR).state == "cooling_down"
    assert store.request_retrain("validator", "drift", T0 + 2 * HOUR, HOUR).state == "queued"


# ---- alarms and breakers


def test_an_alarm_of_the_same_kind_and_detail_is_raised_once_until_cleared(store):
    first = store.raise_alarm("drift", "high", "block 7", T0)
    assert store.raise_alarm("drift", "high", "block 7", T0 + HOUR) == first
    assert store.clear_alarm(first, T0 + HOUR) is True
    assert store.alarms() == []
    assert store.raise_alarm("drift", "high", "block 7", T0 + HOUR) != first
    assert len(store.alarms(open_only=False)) == 2


def test_a_breaker_stays_tripped_over_a_restart_until_a_person_resets_it_with_a_reason(url, store):
    assert store.trip("daily_loss", T0, "-2.3 %") is True
    assert store.trip("daily_loss", T0 + HOUR, "-2.4 %") is False
    with closing(Store.open(url)) as again:
        (trip,) = again.breaker_trips()
    assert trip.reason == "-2.3 %"
    with pytest.raises(BadValues):
        store.reset("daily_loss", T0 + HOUR, "ann", " ")
    store.reset("daily_loss", T0 + HOUR, "ann", "checked the fills")
    assert store.breaker_trips() == []
    with pytest.raises(UnknownName):
        store.reset("daily_loss", T0 + HOUR, "ann", "again")


def test_a_reset_records_the_newest_event_time_of_the_ledger(store):
    store.trip("drawdown", T0, "-8 %")
    store.reset("drawdown", T0 + 9 * HOUR, "ann", "nothing was ever decided")
    store.add_decisions([record("d1"), record("d2", as_of=T0 - HOUR)])
    store.trip("drawdown", T0, "-9 %")
    store.reset("drawdown", T0 + 9 * HOUR, "ann", "seen")
    store.add_outcome(outcome(resolved_at=T0 + 3 * HOUR), T0 + 3 * HOUR)
    store.trip("drawdown", T0, "-10 %")
    store.reset("drawdown", T0 + 9 * HOUR, "ann", "seen")
    assert [trip.reset_as_of for trip in store.breaker_trips(tripped_only=False)] == [None, T0, T0 + 3 * HOUR]


def test_a_breaker_tripped_twice_in_one_transaction_leaves_the_rest_of_it(store):
    with store.writing() as connection:
        assert store.trip("model", T0, "first", within=connection) is True
        store.add_bars(batch(), within=connection)
        assert store.trip("model", T0, "second", within=connection) is False
    assert [trip.reason for trip in store.breaker_trips()] == ["first"]
    assert len(store.bars("BTC/USDT")) == 3


def test_two_processes_that_trip_one_breaker_at_once_record_one_trip(url, store):
    def trip(i):
        other = Store.open(url)
        try:
            return other.trip("model", T0, f"by {i}")
        finally:
            other.close()

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(trip, range(8))) == 1
    assert len(store.breaker_trips()) == 1


def fill(id="f1", **changes):
    return replace(Fill(id, "d1", T0, T0 + HOUR, "filled", 100.1, 10.0), **changes)


def test_a_fill_is_stored_once_and_only_for_a_decision_that_opened_something(store):
    store.add_decisions([record("d1"), record("d2", action="NO_TRADE")])
    assert store.add_fill(fill()) is True
    assert store.add_fill(fill(ingested_at=T0 + 2 * HOUR)) is False  # reported again later
    with pytest.raises(BadValues, match="kept the first"):
        store.add_fill(fill(price=99.0))
    with pytest.raises(BadValues, match="opened nothing"):
        store.add_fill(fill("f2", decision_id="d2"))
    with pytest.raises(UnknownName):
        store.add_fill(fill("f2", decision_id="never"))
    assert store.fills() == [fill()]


def test_fills_come_in_the_order_they_arrived_limited_to_the_newest(store):
    store.add_decisions([record("d1")])
    for i in (2, 0, 1):
        store.add_fill(fill(f"f{i}", at=T0 - i * HOUR, ingested_at=T0 + i * HOUR))
    assert [f.id for f in store.fills(last=2)] == ["f1", "f2"]
    assert [f.id for f in store.fills(since=T0)] == ["f1", "f2"]


def books_known_at(*moments):
    levels = np.full((len(moments), 2, BOOK_LEVELS, 3), np.nan)
    levels[:, 0, 0], levels[:, 1, 0] = (100.0, 1.0, 2.0), (101.0, 3.0, np.nan)
    return Books(np.array(moments), levels, tape_of(len(moments), order_flow=np.arange(len(moments))))


def test_a_book_that_an_older_release_stored_is_still_read_and_the_same_sent_again_changes_nothing(store):
    """It stored the levels and the first two numbers of the tape; the rest is missing."""
    at = T0.timestamp() + 60
    books = books_known_at(at)
    books.tape[0, :2] = 3.0, 0.5
    (name, payload), *_ = packed(books, None)
    assert len(payload) == 8 * (2 * BOOK_LEVELS * 3 + TAPE_WIDTH)
    row = {"symbol": "BTC/USDT", "kind": name[0], "known_at": at, "payload": payload[: 8 * 32], "ingested_at": T0}
    with store.writing() as connection:
        connection.execute(sa.insert(tables.records), [row])
    for _ in range(2):
        found, _ = store.records("BTC/USDT")
        for part in fields(Books):
            np.testing.assert_array_equal(getattr(found, part.name), getattr(books, part.name))
        store.add_bars(replace(batch(), books=books))
    with pytest.raises(BadValues, match="another book"):
        store.add_bars(replace(batch(), books=replace(books, tape=books.tape + 1.0)))


def test_books_and_context_come_back_as_they_were_observed_in_the_order_they_became_known(store):
    t0 = T0.timestamp()
    feed = ContextFeed(np.array([t0, t0 + 5]), np.array([2, 3]), np.array([1e-4, 40.0]))
    store.add_bars(replace(batch(), books=books_known_at(t0 + 60, t0 + 120), feed=feed))
    found, context = store.records("BTC/USDT")
    np.testing.assert_array_equal(found.levels, books_known_at(t0 + 60, t0 + 120).levels)
    np.testing.assert_array_equal(found.order_flow, [0.0, 1.0])
    assert (context.field.tolist(), context.value.tolist()) == ([2, 3], [1e-4, 40.0])
    assert store.records("BTC/USDT", after=t0 + 60)[0].known.tolist() == [t0 + 120]
    assert store.records("BTC/USDT", until=t0 + 60)[0].known.tolist() == [t0 + 60]
    assert store.records("BTC/USDT", after=t0, until=t0 + 5)[1].known.tolist() == [t0 + 5]
    assert store.records("ETH/USDT") == (None, None)


def test_records_may_come_without_bars(store):
    assert store.add_bars(replace(batch(0), books=books_known_at(T0.timestamp()))) == 0
    assert store.records("BTC/USDT")[0].known.tolist() == [T0.timestamp()]


def test_the_same_record_again_changes_nothing_and_another_in_its_place_is_refused_whole(store):
    t0 = T0.timestamp()
    store.add_bars(replace(batch(), books=books_known_at(t0)))
    assert store.add_bars(replace(batch(), books=books_known_at(t0))) == 0
    other = books_known_at(t0)
    other.levels[0, 0, 0, 1] = 9.0
    with pytest.raises(BadValues, match="another book"):
        store.add_bars(replace(batch(4), books=other))
    assert len(store.bars("BTC/USDT")) == 3


def test_a_store_of_an_earlier_release_is_migrated_and_keeps_every_row_bit_for_bit(url):
    release_010(url)
    before = contents(url)
    assert all(before.values())
    store = Store.open(url)
    after = contents(url)
    assert set(after) - set(before) == {
        "records",
        "fills",
        "quarantine",
        "corrections",
        "record_parts",
        "chain",
        "parameters",
        "family_outcomes",
        "family_outcomes_through",
        "experiments",
        "transitions",
        "block_scores",
        "home_files",
    }
    after["retrain_requests"] = [
        row[:-1] for row in after["retrain_requests"] if row[-1] == 0
    ]  # attempts were added later
    after["bars"] = [row[:-1] for row in after["bars"] if row[-1] is None]  # no half spread was recorded then
    after["latches"] = [row[:-1] for row in after["latches"] if row[-1] is None]  # as was what a reset accepted
    # no record, JSON stays JSON; no number, a stream begins behind them
    after["decisions"] = [row[:-2] for row in after["decisions"] if row[-2:] == (None, None)]
    after["outcomes"] = [row[:-1] for row in after["outcomes"] if row[-1] is None]  # when it was stored is not known
    assert {table: after[table] for table in before} == before
    assert repr(after["bars"]) == repr(before["bars"])  # -0.0 equals 0.0, and its sign is a bit too
    assert after["records"] == []
    store.close()


def test_a_store_of_an_earlier_release_continues_where_it_was(url):
    release_010(url)
    store = Store.open(url)
    assert store.decision("d1").decision.confidence == 0.1 + 0.2
    assert [d.decision.id for d in store.decisions()] == ["d1", "d2"]
    assert store.outcomes_of(["d1"])[0].gross_bps == 150.00000000000003
    assert store.add_promotion(promotion()) == 3
    assert store.add_trial("validator", "r8", "h", T0) == 3
    assert store.request_retrain("validator", "age", T0, HOUR).state == "duplicate"
    assert [trip.reason for trip in store.breaker_trips()] == ["-2.1 %"]
    with pytest.raises(LeaseHeld, match="held by host:1"):
        store.acquire_lease("workspace", "me", T0, HOUR)
    store.add_bars(replace(batch(0), books=books_known_at(T0.timestamp())))
    assert len(store.records("BTC/USDT")[0].known) == 1
    assert np.isnan(store.bars("BTC/USDT")[:, HALF_SPREAD]).all()
    store.close()


def test_a_half_spread_is_stored_and_a_downgrade_that_would_lose_it_is_refused(url):
    store, quoted = Store.open(url), batch()
    quoted.bars[1:, HALF_SPREAD] = 0.25
    store.add_bars(quoted)
    np.testing.assert_array_equal(store.bars("BTC/USDT")[:, HALF_SPREAD], [np.nan, 0.25, 0.25])
    store.close()
    with pytest.raises(NotImplementedError, match="observed data would be lost"):
        alembic_to(url, "0005", downgrade=True)


def test_fills_of_an_earlier_release_are_entries_that_were_reported_and_a_downgrade_that_would_lose_more_is_refused(
    url,
):
    store = Store.open(url)
    store.add_decisions([record()])
    store.add_fill(fill())
    store.close()
    alembic_to(url, "0010", downgrade=True)
    store = Store.open(url)
    assert store.fills() == [fill()] == store.fills(source="reported")
    assert store.add_fill(fill("f2", quantity=0.05, fee_bps=4.0, is_exit=True, source="ledger"))
    assert store.fills(source="ledger") == [fill("f2", quantity=0.05, fee_bps=4.0, is_exit=True, source="ledger")]
    store.close()
    with pytest.raises(NotImplementedError, match="fills of the account would be lost"):
        alembic_to(url, "0010", downgrade=True)


# ---- release 0.5.0

DECISION_050 = {
    "id": "d-050", "symbol": "BTC/USDT", "as_of": "2024-01-01T00:00:00+00:00",
    "known_at": "2024-01-01T00:00:00+00:00", "ingested_at": "2024-01-01T00:00:01+00:00", "action": "NO_TRADE",
    "direction": 1, "confidence": 0.4, "entry": 42283.58, "stop": 42100.0, "take_profits": [42500.5], "size": 0.0,
    "expiry": "2024-01-01T04:00:00+00:00", "edge_bps": None, "p": 0.55, "regime": "RANGING", "tier": 1,
    "arm": "champion", "event": "fvg", "weights": {"ict": 1.0}, "contributions": {"ict": 0.0}, "coverage": 0.2,
    "reasons": ["NO_VOICE: coverage=0.20, no weighted category speaks now", "STALE_DATA: age=3.0 bars, limit=2.0"],
    "generation": 3,
    "models": {"validator": {
        "champion": {"version": "1", "digest": "a" * 64, "p": 0.55, "role": "acts"},
        "challenger": {"version": "2", "digest": "b" * 64, "p": 0.5, "role": "shadow"},
    }},
    "lineage": {"data_hash": "abc", "policy": "p"}, "account": {"gross": 0.0}, "breakers": [],
    "tier_reason": "TIER_1: all good", "tier_multiplier": 1.0,
    "trail": {"data": "refused: STALE_DATA", "signal": "refused: NO_VOICE, CONFLICT", "position": "passed"},
    "said": {"ict": 0.4, "cmt": -0.1}, "validation": {"of": 0.3, "ai": 0.5}, "stage": "normal", "capped_by": None,
    "learned": {"ict": 1.0},
}  # fmt: skip


def test_a_decision_of_release_050_is_read_with_the_present_keys_and_words(store):
    with store.writing() as connection:
        names = ("id", "symbol", "action", "direction", "event", "tier", "arm", "generation")
        row = {name: DECISION_050[name] for name in names}
        times = {"as_of": T0, "known_at": T0, "ingested_at": T0}
        stored = {"payload": DECISION_050, "features": b"", "signals": b""}
        connection.execute(sa.insert(tables.decisions), [row | times | stored])  # no record: its JSON is read
    read = decision_payload(store.decision("d-050").decision)
    roles = {arm: model["role"] for arm, model in read["models"]["validator"].items()}
    assert read["category_scores"] == {"ict": 0.4, "cmt": -0.1}
    assert read["validation"] == {"combined": 0.3, "ai": 0.5}
    assert read["reasons"][0].startswith("NO_SIGNAL: coverage=0.20")
    assert read["trail"] == DECISION_050["trail"] | {"signal": "refused: NO_SIGNAL, CONFLICT"}
    assert roles == {"champion": "active", "challenger": "shadow"}
    assert read["thresholds"] == {}  # not recorded before release 0.6.0 …
    assert read["market"] == {}  # … and this not before 0.11.0
    renamed = {"said", "category_scores", "validation", "reasons", "trail", "models", "thresholds", "market"}
    assert {k: v for k, v in read.items() if k not in renamed} == {
        k: v for k, v in DECISION_050.items() if k not in renamed
    }


def test_a_decision_with_a_key_of_no_release_is_refused():
    with pytest.raises(TypeError, match="opinion"):
        decision_of(DECISION_050 | {"opinion": 1})


def test_alarms_of_release_050_take_the_present_kind_and_go_back_with_a_downgrade(url):
    release_050 = {"look_fault": T0, "drift": T0}
    alembic_to(url, "0004")
    engine = sa.create_engine(url)
    rows = [{"kind": kind, "severity": "high", "detail": "x", "at": at} for kind, at in release_050.items()]
    with engine.begin() as connection:
        connection.execute(sa.insert(tables.alarms), rows)
    store = Store.open(url)
    assert [alarm.kind for alarm in store.alarms()] == ["poll_failed", "drift"]
    store.close()
    alembic_to(url, "0004", downgrade=True)
    with engine.connect() as connection:
        assert connection.scalars(sa.select(tables.alarms.c.kind).order_by(tables.alarms.c.id)).all() == [*release_050]
    engine.dispose()
