"""Snapshots with books and context: their content, what they retain of the one before; same data, same hash."""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from flows.ingest import artifact_slug, bars_left_out, check, observed, require_quality
from flows.support.data_writer import write_snapshot
from flows.support.market_access import resolved_sessions
from pipelines.context_layout import tape_of
from pipelines.contracts import (
    BAR_FIELDS,
    BAR_WIDTH,
    BOOK_LEVELS,
    CLOSE,
    HALF_SPREAD,
    HIGH,
    OPEN_TIME,
    Books,
    ContextFeed,
)
from pipelines.data import schemas
from pipelines.data.data_version import BOOK, CONTEXT, read_kind, read_manifest, read_records
from pipelines.data.quality import assess
from pipelines.data.timeframes import Grid
from pipelines.errors import QualityBlocked, UnknownName
from pipelines.settings import settings
from pipelines.store import BarBatch, Change, Signed, Store

MINUTES = Grid("1m")

SYMBOL = "BTC/USDT"
START = datetime(2024, 1, 1, tzinfo=UTC)
T0 = START.timestamp()
INGESTED = START + timedelta(days=9)
ORIGIN = {"source": "files", "timeframe": "1m"}


def minutes(first, n):
    rows = np.full((n, BAR_WIDTH), 100.0)
    rows[:, HALF_SPREAD] = np.nan
    rows[:, OPEN_TIME] = T0 + 60.0 * (first + np.arange(n))
    rows[:, 4] += np.arange(first, first + n) * 0.01
    rows[:, 2] = rows[:, 4] + 1.0
    rows[:, 7] = 50.0
    return rows


def report(n=300):
    return assess(schemas.to_frame(minutes(0, n), MINUTES, INGESTED), MINUTES, INGESTED)


def books_at(*known, bid=99.0):
    levels = np.full((len(known), 2, BOOK_LEVELS, 3), np.nan)
    levels[:, 0, 0], levels[:, 1, 0] = (bid, 1.0, 2.0), (101.0, 3.0, np.nan)
    return Books(T0 + np.array(known, dtype=float), levels, tape_of(len(known), order_flow=1.0))


def feed_at(*known, field=3):
    n = len(known)
    return ContextFeed(T0 + np.array(known, dtype=float), np.full(n, field), np.arange(n, dtype=float))


def content(folder):
    """Return path → bytes of every file."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_a_snapshot_holds_the_books_and_context_its_manifest_names(tmp_path):
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, (books_at(60, 120), feed_at(30)), INGESTED)
    assert content(tmp_path).keys() == {"manifest.json", "BTC-USDT/2024-01.parquet"}
    written = json.loads((tmp_path / "manifest.json").read_text())["markets"][SYMBOL]
    assert (written["timeframe"], Grid.from_dict(written["grid"])) == ("1m", MINUTES)
    assert (written["has_book"], written["has_context"]) == (True, True)
    assert (read_kind(tmp_path, written, BOOK)["ingested_at"] == INGESTED).all()
    books, feed = read_records(tmp_path, written)
    np.testing.assert_array_equal(books.known, books_at(60, 120).known)
    assert feed.value.tolist() == [0.0]


def test_a_snapshot_of_bars_alone_names_none_and_leaves_none_behind(tmp_path):
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, (books_at(60), feed_at(30)), INGESTED)
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, (None, None), INGESTED)
    assert content(tmp_path).keys() == {"manifest.json", "BTC-USDT/2024-01.parquet"}
    assert read_records(tmp_path, read_manifest(tmp_path).market()) == (None, None)


def test_the_same_data_ingested_again_later_gives_the_same_bytes(tmp_path):
    known = books_at(60, 120), feed_at(30, 40)
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, known, INGESTED)
    before = content(tmp_path)
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, known, INGESTED + timedelta(days=1))
    assert content(tmp_path) == before


def test_only_a_record_that_is_new_has_the_later_time_of_ingestion(tmp_path):
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, (books_at(60), feed_at(30, field=3)), INGESTED)
    later = INGESTED + timedelta(days=1)
    both = ContextFeed(
        T0 + np.array([30.0, 30.0]), np.array([3, 2]), np.array([0.0, 1.0])
    )  # another field, same moment
    write_snapshot(tmp_path, SYMBOL, report(), ORIGIN, (books_at(60, 120), both), later)
    facts = read_manifest(tmp_path).market()
    assert read_kind(tmp_path, facts, BOOK)["ingested_at"].tolist() == [INGESTED, later]
    stamps = read_kind(tmp_path, facts, CONTEXT).set_index("field")["ingested_at"]
    assert (stamps["fear_greed"], stamps["funding_rate"]) == (INGESTED, later)


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


def snapshot(known):
    """Write a first snapshot with these records into the workspace. Return its files."""
    write_snapshot(settings().workspace / "data", SYMBOL, report(), ORIGIN, known, INGESTED)
    return content(settings().workspace / "data")


def service_saw(store, first, n, books=None, feed=None):
    """Store n minutes as the service does, with the records known by then."""
    rows = minutes(first, n)
    store.add_bars(BarBatch(SYMBOL, rows, rows[:, OPEN_TIME] + 60.0, INGESTED, books, feed))


def ingest_observed():
    """Write the snapshot of what `observed` gives, as the ingest flow does. Return its records and its files."""
    frame, known, origin, grid = observed.fn(SYMBOL)
    assert grid == MINUTES
    write_snapshot(settings().workspace / "data", SYMBOL, assess(frame, MINUTES, INGESTED), origin, known, None)
    return known, content(settings().workspace / "data")


def test_what_the_service_received_since_follows_what_the_snapshot_holds(home, store):
    snapshot((books_at(60, 120), feed_at(30)))
    service_saw(store, 300, 15, books_at(18_100, 18_200), feed_at(18_150, field=2))
    (books, feed), _ = ingest_observed()
    assert (books.known - T0).tolist() == [60.0, 120.0, 18_100.0, 18_200.0]
    assert (feed.known - T0).tolist() == [30.0, 18_150.0]
    assert feed.field.tolist() == [3, 2]


def test_nothing_new_gives_the_same_snapshot(home, store):
    known = books_at(60, 120), ContextFeed(T0 + np.array([30.0, 30.0]), np.array([3, 2]), np.array([0.0, 1.0]))
    before = snapshot(known)
    assert ingest_observed()[1] == before
    service_saw(store, 300, 15, books_at(18_100))
    first = ingest_observed()[1]
    assert first != before
    assert ingest_observed()[1] == first


def test_a_record_in_both_is_that_of_the_snapshot(home, store):
    snapshot((books_at(60), None))
    service_saw(store, 300, 1, books_at(60, bid=98.0))
    (books, feed), _ = ingest_observed()
    assert books.levels[:, 0, 0, 0].tolist() == [99.0]
    assert feed is None


def test_a_market_of_bars_alone_gains_the_books_the_service_received(home, store):
    snapshot((None, None))
    service_saw(store, 300, 15, books_at(18_100))
    (books, _), files = ingest_observed()
    assert books.known.tolist() == [T0 + 18_100.0]
    assert b'"has_book": true' in files["manifest.json"]


@pytest.mark.parametrize("symbol", ["BTC/USDT", "BTC/USDT:USDT-240628", "BRK.B", "币/USDT"])
def test_the_quality_of_every_symbol_has_a_key_that_prefect_takes(symbol):
    from prefect.client.schemas.actions import ArtifactCreate

    key = f"quality-{artifact_slug(symbol)}"
    assert ArtifactCreate(key=key).key == key


# ---- what is refused


def test_a_refusal_names_the_most_of_it_with_place_and_cause_and_never_says_to_lower_the_floor():
    holed = np.delete(minutes(0, 300), slice(100, 200), axis=0)
    spoilt = schemas.to_frame(holed, MINUTES, INGESTED)
    spoilt.loc[:4, "high"] = 1.0
    with pytest.raises(QualityBlocked) as refusal:
        require_quality(SYMBOL, assess(spoilt, MINUTES, INGESTED), 0.9)
    assert "Most of it: 100 GAP, first at 2024-01-01T01:40:00+00:00: bars that should have come" in str(refusal.value)
    assert "lower" not in str(refusal.value)


def test_a_split_forbids_training_whatever_the_score():
    rows = minutes(0, 300)
    rows[:, 1:5] = (100.0 + np.random.default_rng(0).normal(0, 0.1, 300))[:, np.newaxis]
    rows[150:, 1:5] /= 4.0
    rows[:, 5] = np.where(np.arange(300) < 150, 10.0, 40.0) + np.random.default_rng(1).random(300)
    rows[:, 7] = np.nan
    checked = assess(schemas.to_frame(rows, MINUTES, INGESTED), MINUTES, INGESTED)
    assert checked.score == 1.0
    with pytest.raises(QualityBlocked, match=r"4-for-1 split on 2024-01-01.*adjusted for splits"):
        require_quality(SYMBOL, checked, 0.9)


def test_stated_sessions_are_a_name_or_the_whole_path_of_a_file(tmp_path, monkeypatch):
    assert (resolved_sessions(None), resolved_sessions("forex")) == (None, "forex")
    (tmp_path / "hours.txt").write_text("zone = Europe/London\nMon-Fri 08:00-16:30\n")
    monkeypatch.chdir(tmp_path)
    assert resolved_sessions("hours.txt") == str(tmp_path / "hours.txt")
    with pytest.raises(UnknownName, match="no sessions 'lunar'"):
        resolved_sessions("lunar")


# ---- corrections and quarantine


def change(row, **values):
    """Return the change of one minute; without values it is taken out."""
    bar = minutes(row, 1)[0]
    opened = bar[OPEN_TIME]
    for name, value in values.items():
        bar[BAR_FIELDS.index(name)] = value
    return Change(opened, opened + 60.0, bar if values else None)


def signed(at=INGESTED + timedelta(days=1)):
    return Signed("ann", at, "the venue corrected it")


def test_the_next_data_version_takes_the_corrected_reading(home, store):
    snapshot((None, None))
    service_saw(store, 300, 15)
    store.correct(SYMBOL, [change(302, close=103.5), change(305)], signed())
    frame, _, _, _ = observed.fn(SYMBOL)
    rows = schemas.to_matrix(frame)
    assert len(rows) == 314
    assert rows[302, CLOSE] == 103.5
    assert T0 + 60.0 * 305 not in rows[:, OPEN_TIME]


def test_a_correction_reaches_into_a_snapshot_made_before_it_and_not_into_a_later_source(home, store):
    snapshot((None, None))
    service_saw(store, 300, 15)
    ingest_observed()  # a data version that was never served holds the bar by now
    store.correct(SYMBOL, [change(303, close=104.0), change(304)], signed())
    (_, _), files = ingest_observed()
    frame, _, _, _ = observed.fn(SYMBOL)
    assert schemas.to_matrix(frame)[303, CLOSE] == 104.0
    assert len(frame) == 314
    assert frame["ingested_at"].iloc[303] == signed().at
    assert ingest_observed()[1] == files  # the same again
    later = signed().at + timedelta(days=1)
    whole = assess(schemas.to_frame(minutes(0, 315), MINUTES, later), MINUTES, later)
    (settings().workspace / "data" / "BTC-USDT" / "2024-01.parquet").unlink()
    write_snapshot(settings().workspace / "data", SYMBOL, whole, ORIGIN, (None, None), later)
    frame, _, _, _ = observed.fn(SYMBOL)  # a person chose that source after the correction
    assert schemas.to_matrix(frame)[303, CLOSE] == minutes(303, 1)[0, CLOSE]
    assert len(frame) == 315


def test_an_observed_bar_the_rule_refuses_is_left_out_by_name_and_the_turn_goes_on(home, store):
    snapshot((None, None))
    service_saw(store, 300, 30)
    wrong = minutes(330, 1)
    wrong[0, HIGH] *= 1e6  # stored before there was a collar
    store.add_bars(BarBatch(SYMBOL, wrong, wrong[:, OPEN_TIME] + 60.0, INGESTED))
    off = minutes(331, 1)
    off[0, OPEN_TIME] += 7.0
    store.add_bars(BarBatch(SYMBOL, off, off[:, OPEN_TIME] + 60.0, INGESTED))
    service_saw(store, 333, 15)
    frame, known, origin, grid = observed.fn(SYMBOL)
    found = check.fn(frame, grid, INGESTED)
    assert found.quarantined["reason"].tolist() == ["COLLAR", "OFF_GRID"]
    assert found.score > 0.98
    line = bars_left_out(SYMBOL, found)
    assert "2 observed bar(s) of BTC/USDT are left out of this data version: 2024-01-01 05:30:00 UTC COLLAR" in line
    write_snapshot(settings().workspace / "data", SYMBOL, found, origin, known, None)
    again, _, _, _ = observed.fn(SYMBOL)
    assert len(again) == len(frame) - 2  # nor does it come back with the next one
