"""Snapshots with books and context: what is in them, what is kept of the one before, and that the same data has one
hash."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from flows.ingest import observed, write_snapshot
from pipelines.contracts import BOOK_LEVELS, OPEN_TIME, Books, ContextFeed, tape_of
from pipelines.data import records, schemas
from pipelines.data.quality import assess
from pipelines.settings import settings
from pipelines.store import BarBatch, Store

SYMBOL = "BTC/USDT"
START = datetime(2024, 1, 1, tzinfo=UTC)
T0 = START.timestamp()
TAKEN = START + timedelta(days=9)
ORIGIN = {"source": "files", "timeframe": "1m"}


def minutes(first, n):
    rows = np.full((n, 8), 100.0)
    rows[:, OPEN_TIME] = T0 + 60.0 * (first + np.arange(n))
    rows[:, 4] += np.arange(first, first + n) * 0.01
    rows[:, 2] = rows[:, 4] + 1.0
    rows[:, 7] = 50.0
    return rows


def report(n=300):
    return assess(schemas.to_frame(minutes(0, n), "1m", TAKEN), "1m", TAKEN)


def books_at(*known, bid=99.0):
    levels = np.full((len(known), 2, BOOK_LEVELS, 3), np.nan)
    levels[:, 0, 0], levels[:, 1, 0] = (bid, 1.0, 2.0), (101.0, 3.0, np.nan)
    return Books(T0 + np.array(known, dtype=float), levels, tape_of(len(known), order_flow=1.0))


def feed_at(*known, field=3):
    n = len(known)
    return ContextFeed(T0 + np.array(known, dtype=float), np.full(n, field), np.arange(n, dtype=float))


def content(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_snapshot_holds_the_books_and_context_its_manifest_names(tmp_path):
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, (books_at(60, 120), feed_at(30)), TAKEN)
    assert {"book/BTC-USDT.parquet", "context/BTC-USDT.parquet"} <= content(tmp_path).keys()
    books = records.read_book(tmp_path / "book/BTC-USDT.parquet")
    assert (books["ingested_at"] == TAKEN).all()
    described = {"book": "book/BTC-USDT.parquet", "context": "context/BTC-USDT.parquet"}
    found, told = records.read_snapshot(tmp_path, described)
    np.testing.assert_array_equal(found.known, books_at(60, 120).known)
    assert told.value.tolist() == [0.0]


def test_a_snapshot_of_bars_alone_names_none_and_leaves_none_behind(tmp_path):
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, (books_at(60), feed_at(30)), TAKEN)
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, (None, None), TAKEN)
    assert content(tmp_path).keys() == {"manifest.json", "bars/BTC-USDT/1m.parquet"}
    assert b'"book": null' in content(tmp_path)["manifest.json"]


def test_the_same_data_taken_in_again_later_gives_the_same_bytes(tmp_path):
    told = books_at(60, 120), feed_at(30, 40)
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, told, TAKEN)
    before = content(tmp_path)
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, told, TAKEN + timedelta(days=1))
    assert content(tmp_path) == before


def test_only_a_record_that_is_new_has_the_later_time_of_ingestion(tmp_path):
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, (books_at(60), feed_at(30, field=3)), TAKEN)
    later = TAKEN + timedelta(days=1)
    both = ContextFeed(
        T0 + np.array([30.0, 30.0]), np.array([3, 2]), np.array([0.0, 1.0])
    )  # another field, same moment
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, (books_at(60, 120), both), later)
    books = records.read_book(tmp_path / "book/BTC-USDT.parquet")
    assert books["ingested_at"].tolist() == [TAKEN, later]
    told = records.read_context(tmp_path / "context/BTC-USDT.parquet").set_index("field")["ingested_at"]
    assert (told["fear_greed"], told["funding_rate"]) == (TAKEN, later)


# ---- what the service saw since


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path))
    settings.cache_clear()
    yield tmp_path
    settings.cache_clear()


@pytest.fixture
def store(home):
    opened = Store.open(settings().store)
    yield opened
    opened.close()


def snapshot(told):
    write_snapshot(settings().workspace / "data", SYMBOL, report(), ORIGIN, told, TAKEN)
    return content(settings().workspace / "data")


def saw(store, first, n, books=None, feed=None):
    rows = minutes(first, n)
    store.add_bars(BarBatch(SYMBOL, rows, rows[:, OPEN_TIME] + 60.0, TAKEN, books, feed))


def again():
    """The snapshot of what `observed` gives, as the ingest flow writes it."""
    frame, told, origin = observed.fn(SYMBOL)
    write_snapshot(settings().workspace / "data", SYMBOL, assess(frame, "1m", TAKEN), origin, told, None)
    return told, content(settings().workspace / "data")


def test_what_the_service_heard_since_follows_what_the_snapshot_holds(home, store):
    snapshot((books_at(60, 120), feed_at(30)))
    saw(store, 300, 15, books_at(18_100, 18_200), feed_at(18_150, field=2))
    (books, feed), _ = again()
    assert (books.known - T0).tolist() == [60.0, 120.0, 18_100.0, 18_200.0]
    assert (feed.known - T0).tolist() == [30.0, 18_150.0]
    assert feed.field.tolist() == [3, 2]


def test_nothing_new_gives_the_same_snapshot(home, store):
    told = books_at(60, 120), ContextFeed(T0 + np.array([30.0, 30.0]), np.array([3, 2]), np.array([0.0, 1.0]))
    before = snapshot(told)
    assert again()[1] == before
    saw(store, 300, 15, books_at(18_100))
    first = again()[1]
    assert first != before
    assert again()[1] == first


def test_of_a_record_in_both_the_snapshots_stands(home, store):
    snapshot((books_at(60), None))
    saw(store, 300, 1, books_at(60, bid=98.0))
    (books, feed), _ = again()
    assert books.levels[:, 0, 0, 0].tolist() == [99.0]
    assert feed is None


def test_a_market_of_bars_alone_gains_the_books_the_service_heard(home, store):
    snapshot((None, None))
    saw(store, 300, 15, books_at(18_100))
    (books, _), files = again()
    assert books.known.tolist() == [T0 + 18_100.0]
    assert b'"book": "book/BTC-USDT.parquet"' in files["manifest.json"]
