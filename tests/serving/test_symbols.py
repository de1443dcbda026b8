"""Live state: bit for bit what a batch fold over the whole history gives, and nothing doubtful gets in."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from serving_stand import HISTORY, SYMBOL, T0

from pipelines.contracts import (
    BAR_FIELDS,
    BOOK_LEVELS,
    CLOSE,
    CONTEXT_INDEX,
    OPEN_TIME,
    Books,
    ContextFeed,
    History,
)
from pipelines.data.alignment import align
from pipelines.data.timeframes import resample
from pipelines.errors import BadShape, BadTimes, BadValues, DigestMismatch, StateError, UnknownName
from pipelines.features.catalog import FEATURES
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.voices import Voices
from pipelines.store import BarBatch, Store
from pipelines.training.warm import hit_rate, publish_warm_start, read_warm_start, weekly_closures, write_warm_start
from serving.symbols import WARMUP_BARS, Symbol, Symbols, replay

NOW = datetime(2025, 1, 1, tzinfo=UTC)
CLOSED = HISTORY // 15  # decision bars the warm start has already closed


@pytest.fixture
def warm(stand):
    return read_warm_start(stand.stage)


@pytest.fixture
def symbol(warm):
    return Symbol(warm)


def nothing(after, until):
    return np.empty((0, 8))


# ---- parity with training (L2)


@pytest.mark.parametrize("sizes", [(1,), (7, 1, 40), (2000,)])
def test_live_rows_equal_the_batch_rows_bit_for_bit_however_bars_arrive(stand, symbol, sizes):
    got, at, turn = [], 0, 0
    while at < len(stand.live):
        size = sizes[turn % len(sizes)]
        got += symbol.advance(stand.live[at : at + size])
        at, turn = at + size, turn + 1
    assert np.array([c.bar for c in got]).tobytes() == stand.decision[CLOSED:].tobytes()
    assert np.array([c.features for c in got]).tobytes() == stand.features[CLOSED:].tobytes()
    assert np.array([c.signals for c in got]).tobytes() == stand.signals[CLOSED:].tobytes()


def test_the_warm_start_holds_the_last_closed_bar_and_its_rows(stand, symbol):
    assert symbol.closed.bar.tobytes() == stand.decision[CLOSED - 1].tobytes()
    assert symbol.closed.features.tobytes() == stand.features[CLOSED - 1].tobytes()


def test_a_restart_replays_the_store_to_the_same_state(stand, warm, symbol, tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 's.db'}")
    store.add_bars(BarBatch(SYMBOL, stand.live, stand.live[:, OPEN_TIME] + 60, NOW))
    symbol.advance(stand.live)
    again = replay(warm, store.bars(SYMBOL))
    assert again.closed.features.tobytes() == symbol.closed.features.tobytes()
    assert again.last_open_time == symbol.last_open_time
    store.close()


def test_decision_bars_close_exactly_when_resample_says_so(stand, symbol):
    holes = np.delete(stand.live, [3, 7, 8, *range(60, 100)], axis=0)
    whole = np.vstack([stand.base[:HISTORY], holes])
    got = [c.bar for row in holes for c in symbol.advance(row[np.newaxis])]
    np.testing.assert_array_equal(got, resample(whole, 60, 900)[CLOSED:])


# ---- gaps


def test_a_missing_decision_bar_means_warming_up_until_every_window_has_passed(stand, symbol):
    symbol.advance(stand.live[:8])  # closes the bar the history left open
    assert symbol.reason is None
    symbol.advance(stand.live[8 + 15 : 8 + 30])  # one decision bar never came
    assert symbol.reason.startswith(f"WARMING_UP: {WARMUP_BARS - 1} of {WARMUP_BARS} bars to go after 1 missing bar")
    symbol.warming_up = 1
    symbol.advance(stand.live[8 + 30 : 8 + 45])
    assert symbol.reason is None


def test_a_missing_minute_inside_a_decision_bar_is_no_gap(stand, symbol):
    symbol.advance(np.delete(stand.live[:60], 20, axis=0))
    assert symbol.reason is None


# ---- what is refused, before anything is stored


def test_bars_seen_before_are_dropped_if_identical(stand, symbol):
    symbol.advance(stand.live[:20])
    assert len(symbol.admit(stand.live[:30], NOW, lambda a, u: stand.live[:20])) == 10
    assert len(symbol.admit(stand.live[:20], NOW, lambda a, u: stand.live[:20])) == 0


def test_a_bar_seen_before_with_another_value_is_refused_by_field(stand, symbol):
    symbol.advance(stand.live[:20])
    changed = stand.live[:20].copy()
    changed[4, CLOSE + 1] *= 2  # volume
    with pytest.raises(BadValues, match="volume="):
        symbol.admit(changed, NOW, lambda a, u: stand.live[:20])


def test_a_bar_from_before_the_last_one_that_was_never_stored_is_refused(stand, symbol):
    with pytest.raises(BadTimes, match="comes late"):
        symbol.admit(stand.base[HISTORY - 5 : HISTORY], NOW, nothing)


@pytest.mark.parametrize(
    ("field", "value", "error", "why"),
    [
        ("open", np.nan, BadValues, "finite price"),
        ("close", 0.0, BadValues, "above 0"),
        ("low", -1.0, BadValues, "above 0"),
        ("close", np.inf, BadValues, "finite price"),
        ("high", 1.0, BadValues, "below low"),
        ("low", 1e9, BadValues, "below low"),
        ("volume", -1.0, BadValues, "not negative"),
        ("taker_buy_volume", 1e12, BadValues, "more than volume"),
        ("open_time", np.nan, BadTimes, "not a time"),
        ("open_time", 1.0, BadTimes, "grid"),
        ("open_time", 60.0, BadTimes, "not after"),
    ],
)
def test_an_impossible_bar_is_refused_naming_row_and_field(stand, symbol, field, value, error, why):
    rows = stand.live[:5].copy()
    rows[3, BAR_FIELDS.index(field)] = value
    with pytest.raises(error, match=rf"bars\.3\.\w+: .*{why}"):
        symbol.admit(rows, NOW, nothing)


def test_a_bar_is_refused_until_it_has_closed_give_or_take_five_seconds(stand, symbol):
    closes = datetime.fromtimestamp(stand.live[0, OPEN_TIME] + 60, tz=UTC)
    with pytest.raises(BadTimes, match="has not closed"):
        symbol.admit(stand.live[:1], closes - timedelta(seconds=6), nothing)
    assert len(symbol.admit(stand.live[:1], closes - timedelta(seconds=4), nothing)) == 1


def test_rows_of_another_shape_are_refused(symbol):
    with pytest.raises(BadShape):
        symbol.admit(np.ones((3, 7)), NOW, nothing)


def test_an_unknown_symbol_is_refused_naming_the_known_ones(symbol):
    with pytest.raises(UnknownName, match=SYMBOL):
        Symbols({SYMBOL: symbol})["DOGE/USDT"]


# ---- warm starts


def test_publishing_adds_the_data_version_and_the_traditional_record_under_a_new_digest(stand, tmp_path):
    told = publish_warm_start(stand.stage, tmp_path, data_hash="abc", hits=230, n=500)
    warm = read_warm_start(tmp_path / told["digest"], told["digest"])
    assert warm.data_hash == "abc"
    assert (warm.traditional.value, warm.traditional.n) == (0.46, 500)
    assert publish_warm_start(stand.stage, tmp_path, data_hash="abc", hits=230, n=500) == told


def test_a_tampered_or_absent_warm_start_is_refused(stand, tmp_path):
    told = publish_warm_start(stand.stage, tmp_path, data_hash="abc", hits=1, n=2)
    state = tmp_path / told["digest"] / "features.state"
    state.write_bytes(state.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(DigestMismatch, match=r"features\.state"):
        read_warm_start(tmp_path / told["digest"])
    with pytest.raises(DigestMismatch, match="promised"):
        read_warm_start(stand.stage, "0" * 64)
    with pytest.raises(StateError, match="no warm start"):
        read_warm_start(tmp_path / "nowhere")


def test_the_hit_rate_interval_is_wilsons():
    rate = hit_rate(10, 40)  # Wilson 95 %: 0.1419 to 0.4019
    np.testing.assert_allclose([rate.value, rate.low, rate.high], [0.25, 0.14187, 0.40193], atol=5e-5)


# ---- books and context


@pytest.fixture(scope="module")
def recorded(stand, tmp_path_factory):
    """The same market with a book every five minutes and a sentiment a day, and its warm start."""
    rng = np.random.default_rng(3)
    known = stand.base[4::5, OPEN_TIME] + 60.0
    levels = np.full((len(known), 2, BOOK_LEVELS, 3), np.nan)
    mid = stand.base[4::5, CLOSE]
    for s, way in enumerate((-1.0, 1.0)):
        levels[:, s, :, 0] = mid[:, None] + way * (0.5 + np.arange(BOOK_LEVELS))
        levels[:, s, :, 1] = rng.lognormal(size=(len(known), BOOK_LEVELS))
    books = Books(known, levels, rng.normal(size=len(known)), rng.normal(size=len(known)))
    days = stand.base[::1440, OPEN_TIME]
    feed = ContextFeed(days, np.full(len(days), CONTEXT_INDEX["fear_greed"]), rng.uniform(20, 80, len(days)))
    context = align(stand.decision[:, OPEN_TIME] + 900.0, 900.0, books, feed)
    batch = FEATURES.run(stand.decision, *context), SIGNALS.run(stand.decision, *context)
    closed = stand.decision[:CLOSED]
    state, other = FEATURES.fresh(), SIGNALS.fresh()
    features = FEATURES.run(closed, context[0][:CLOSED], context[1][:CLOSED], state)
    signals = SIGNALS.run(closed, context[0][:CLOSED], context[1][:CLOSED], other)
    folder = tmp_path_factory.mktemp("recorded") / "warm"
    write_warm_start(
        folder, symbol=SYMBOL, base_timeframe="1m", decision_timeframe="15m", feature_state=state, signal_state=other,
        base=stand.base[:HISTORY], history=History(closed, features, signals, *(c[:CLOSED] for c in context)),
        voices=Voices.fit(signals), books=before(books, HISTORY), feed=before(feed, HISTORY),
    )  # fmt: skip
    return read_warm_start(folder), books, feed, batch


def before(records, minutes):
    """The part of the records that was known when `minutes` of the market had passed."""
    kept = records.known <= T0 + 60.0 * minutes
    return type(records)(**{name: getattr(records, name)[kept] for name in records.__dataclass_fields__})


def since(records, after, until):
    kept = (records.known > after) & (records.known <= until)
    return type(records)(**{name: getattr(records, name)[kept] for name in records.__dataclass_fields__})


def test_rows_with_books_and_context_are_the_batch_rows_also_after_a_restart_in_the_middle(stand, recorded, tmp_path):
    warm, books, feed, (features, signals) = recorded
    store = Store.open(f"sqlite:///{tmp_path / 's.db'}")
    symbol, heard = Symbol(warm), T0 + 60.0 * HISTORY
    for number, part in enumerate(np.array_split(stand.live, 9)):
        if number == 5:
            symbol = replay(warm, store.bars(SYMBOL), *store.records(SYMBOL))
        end = part[-1, OPEN_TIME] + 60.0
        sent = since(books, heard, end), since(feed, heard, end)
        fresh = symbol.admit_records(*sent, NOW, lambda after: store.records(SYMBOL, after))
        assert sum(len(r.known) for r in fresh if r is not None) == sum(len(r.known) for r in sent)
        store.add_bars(BarBatch(SYMBOL, part, part[:, OPEN_TIME] + 60, NOW, *fresh))
        symbol.hear(*fresh)
        symbol.advance(part)
        heard = end
        row = round((symbol.closed.close_time - T0) / 900) - 1
        assert symbol.closed.features.tobytes() == features[row].tobytes()
        assert symbol.closed.signals.tobytes() == signals[row].tobytes()
        assert symbol.history.features.tobytes() == features[row + 1 - len(symbol.history) : row + 1].tobytes()
    assert len(symbol.history) == 256
    assert np.isfinite(symbol.closed.features[FEATURES.index["spread"]])
    store.close()


def test_a_record_sent_again_is_known_and_one_that_comes_late_or_from_the_future_is_refused(stand, recorded):
    warm, books, *_ = recorded
    symbol = Symbol(warm)
    nobody = lambda after: (None, None)  # noqa: E731
    nine = since(books, symbol.closed.close_time, symbol.closed.close_time + 2700.0)
    assert symbol.admit_records(nine, None, NOW, lambda after: (nine, None)) == (None, None)
    with pytest.raises(BadTimes, match="comes late"):
        symbol.admit_records(since(books, 0.0, symbol.closed.close_time), None, NOW, nobody)
    with pytest.raises(BadTimes, match="future"):
        symbol.admit_records(nine, None, datetime(2023, 1, 1, tzinfo=UTC), nobody)


# ---- markets that close


def hourly(weeks, missing=()):
    """Hourly bars of a market closed from Friday 22:00 to Sunday 22:00, without the hours in `missing`."""
    hours = T0 + 3600.0 * np.arange(weeks * 168)  # T0 is a Monday
    open_hours = [h for i, h in enumerate(hours) if not (118 <= i % 168 < 166) and i not in missing]
    bars = np.full((len(open_hours), 8), 100.0)
    bars[:, 0] = open_hours
    return bars


def test_a_weekend_is_no_gap_and_a_missing_weekday_hour_is():
    closures = weekly_closures(hourly(12), 3600)
    assert closures.sum() == 48
    assert not weekly_closures(hourly(12, missing={500}), 3600)[500 % 168]
    assert weekly_closures(hourly(4), 3600).sum() == 0  # too few weeks to tell a closed market from an outage
