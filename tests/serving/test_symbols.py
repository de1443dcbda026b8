"""Live state: bit for bit what a batch fold over the whole history gives, and nothing doubtful gets in."""

import json
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pytest
from support.serving_fixture import HISTORY, SYMBOL, T0

from pipelines.context_layout import CONTEXT_INDEX, TAPE_WIDTH
from pipelines.contracts import (
    BAR_FIELDS,
    BAR_WIDTH,
    BOOK_LEVELS,
    CLOSE,
    HALF_SPREAD,
    HIGH,
    LOW,
    OPEN,
    OPEN_TIME,
    RETAINED_BARS,
    Books,
    ContextFeed,
    History,
    utc,
)
from pipelines.data.alignment import align, merge_records
from pipelines.data.calendars import DAYS, Calendar
from pipelines.data.series import Series, ages_of
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import BadShape, BadTimes, BadValues, DigestMismatch, StateError, UnknownName
from pipelines.features.catalog import FEATURES
from pipelines.labels.barriers import triple_barrier
from pipelines.labels.weights import average_uniqueness
from pipelines.models.gaps import DECISIONS, READERS, broken
from pipelines.sealed_folder import seal
from pipelines.settings import load_params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.category_scores import CategoryScores
from pipelines.store import BarBatch, Store
from pipelines.warm_start import hit_rate, publish_warm_start, read_warm_start, write_warm_start
from serving.inference.model_slots import Snapshot
from serving.policy.decide import age_in_bars, decide
from serving.policy.decision_row import policy_of
from serving.risk.breaker_monitor import outage_inputs
from serving.state.account import Account
from serving.state.recent_bars import OpenBars
from serving.state.symbols import Symbol, Symbols, restore_symbol
from serving.state.tiers import Tier

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

NOW = datetime(2025, 1, 1, tzinfo=UTC)
CLOSED = HISTORY // 15  # decision bars the warm start has already closed


@pytest.fixture
def warm(stand):
    return read_warm_start(stand.stage)


@pytest.fixture
def symbol(warm):
    return Symbol(warm)


def nothing(after, until):
    return np.empty((0, BAR_WIDTH))


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


@pytest.mark.parametrize(
    ("where", "cost_bps", "row"),
    [
        ({}, 5.0, "simulator spot taker"),
        ({"venue": "binance", "market": "perpetual"}, 11.0, "binance perpetual taker"),
        ({"venue": None, "market": None}, 21.0, "default row (venue not stated) taker"),  # written before 0.6.0
    ],
)
def test_a_live_symbol_pays_what_its_data_version_says_and_the_spread_of_its_newest_bar(warm, where, cost_bps, row):
    symbol, costs = Symbol(replace(warm, **where)), load_params().costs
    assert symbol.costs(costs).row == row
    quoted = symbol.closed.bar.copy()
    for half_spread, expected in ((np.nan, cost_bps), (2e-4 * quoted[CLOSE], cost_bps - 1.0 + 2.0)):
        quoted[HALF_SPREAD] = half_spread
        symbol.closed = replace(symbol.closed, bar=quoted)
        assert symbol.target_cost_bps(costs) == pytest.approx(expected)


def test_a_restart_replays_the_store_to_the_same_state(stand, warm, symbol, tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 's.db'}")
    store.add_bars(BarBatch(SYMBOL, stand.live, stand.live[:, OPEN_TIME] + 60, NOW))
    symbol.advance(stand.live)
    again = restore_symbol(warm, store.bars(SYMBOL))
    assert again.closed.features.tobytes() == symbol.closed.features.tobytes()
    assert again.last_open_time == symbol.last_open_time
    store.close()


def test_decision_bars_close_exactly_when_resample_says_so(stand, symbol):
    holes = np.delete(stand.live, [3, 7, 8, *range(60, 100)], axis=0)
    whole = np.vstack([stand.base[:HISTORY], holes])
    got = [c.bar for row in holes for c in symbol.advance(row[np.newaxis])]
    np.testing.assert_array_equal(got, resample(whole, MINUTES, QUARTERS)[CLOSED:])


def test_base_bars_of_a_long_open_bar_are_held_in_order_beyond_the_room_for_them(stand):
    waiting, at = OpenBars(stand.live[:0]), 0
    for n in (1, 0, 70, 3, 200):
        waiting.extend(stand.live[at : at + n])
        at += n
        assert waiting.rows.tobytes() == stand.live[:at].tobytes()
    waiting.restart(stand.live[5:7])
    assert waiting.rows.tobytes() == stand.live[5:7].tobytes()


# ---- gaps


def test_a_missing_decision_bar_means_warming_up_until_it_has_left_the_windows_it_breaks(stand, symbol):
    symbol.advance(stand.live[:8])  # closes the bar the history left open
    assert symbol.reason is None
    symbol.advance(stand.live[8 + 15 : 8 + 30])  # one decision bar never came
    waited = {reader: symbol.waits_of(reader) for reader in READERS}
    assert all(why.startswith("WARMING_UP: ") and "after 1 missing bar" in why for why in waited.values())
    assert symbol.reason == waited[DECISIONS]
    assert max(symbol.waiting.values()) < 160  # of the regime: its 128 bars and a window of less than 20, not 500
    left = symbol.waiting[DECISIONS]
    assert left < 20
    for bar in range(left):
        assert symbol.reason is not None
        symbol.advance(stand.live[8 + 30 + 15 * bar : 8 + 45 + 15 * bar])
    assert symbol.reason is None
    assert symbol.waits_of("regime") is not None


def test_live_and_training_leave_out_the_same_bars(stand, warm):
    """L2: at every close a reader waits if, and only if, training would leave the row out."""
    base = np.delete(stand.base, slice(HISTORY + 8 + 15 * 3, HISTORY + 8 + 15 * 6), axis=0)  # three bars never came
    base = np.delete(base, slice(HISTORY + 8 + 15 * 20, HISTORY + 8 + 15 * 21), axis=0)  # and one more later
    symbol = Symbol(warm)
    waiting = [symbol.waiting for row in base[HISTORY:] for _ in symbol.advance(row[np.newaxis])]
    decision = resample(base, MINUTES, QUARTERS)
    missing = np.concatenate([[0], QUARTERS.missing(decision[:, OPEN_TIME])])
    assert missing.sum() == 4
    for reader in READERS:
        live = np.array([reader in each for each in waiting])
        np.testing.assert_array_equal(live, broken(missing, reader)[CLOSED:], err_msg=reader)
        assert live.sum() > 0


def test_a_gap_at_the_end_of_the_history_is_waited_for_too(stand, warm):
    closes = np.delete(warm.closes, -3, axis=0)  # a bar before the newest two is missing
    symbol = Symbol(replace(warm, closes=closes))
    assert symbol.reason.endswith("bars to go after missing bars in its history")
    assert symbol.waiting[DECISIONS] < 20


def test_where_no_bar_means_no_trade_a_silent_slot_is_no_gap(stand, warm):
    silent = Symbol(replace(warm, base_grid=Grid("1m", no_trade=True), grid=Grid("15m", no_trade=True)))
    silent.advance(stand.live[:8])
    silent.advance(stand.live[8 + 15 * 40 : 8 + 15 * 41])
    assert (silent.reason, silent.waiting) == (None, {})
    assert outage_inputs(silent, NOW).missing_bars == 0.0


def test_a_missing_minute_inside_a_decision_bar_is_no_gap(stand, symbol):
    symbol.advance(np.delete(stand.live[:60], 20, axis=0))
    assert symbol.reason is None


# ---- what is refused, before anything is stored


def test_bars_seen_before_are_dropped_if_identical(stand, symbol):
    symbol.advance(stand.live[:20])
    assert len(symbol.validate_new(stand.live[:30], NOW, lambda a, u: stand.live[:20])) == 10
    assert len(symbol.validate_new(stand.live[:20], NOW, lambda a, u: stand.live[:20])) == 0


def test_a_bar_seen_before_with_another_value_is_refused_by_field(stand, symbol):
    symbol.advance(stand.live[:20])
    changed = stand.live[:20].copy()
    changed[4, CLOSE + 1] *= 2  # volume
    with pytest.raises(BadValues, match="volume="):
        symbol.validate_new(changed, NOW, lambda a, u: stand.live[:20])


def test_a_half_spread_that_a_later_sending_adds_is_accepted_and_another_one_is_refused(stand, symbol):
    """The stored bar stays as it was folded: without one."""
    symbol.advance(stand.live[:20])
    stored, again, wider = (stand.live[:20].copy() for _ in range(3))
    stored[:, HALF_SPREAD], again[:, HALF_SPREAD], wider[:, HALF_SPREAD] = np.nan, 0.02, 0.03
    assert len(symbol.validate_new(again, NOW, lambda a, u: stored)) == 0
    for sent, before in ((wider, again), (stored, again)):
        with pytest.raises(BadValues, match=r"half_spread=0\.02, now half_spread"):
            symbol.validate_new(sent, NOW, lambda a, u, before=before: before)
    again[3, CLOSE] *= 1.0001
    with pytest.raises(BadValues, match="close="):
        symbol.validate_new(again, NOW, lambda a, u: stored)


def test_a_bar_from_before_the_last_one_that_was_never_stored_is_refused(stand, symbol):
    with pytest.raises(BadTimes, match="comes late"):
        symbol.validate_new(stand.base[HISTORY - 5 : HISTORY], NOW, nothing)


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
        ("half_spread", -1.0, BadValues, "must be finite and not negative"),
        ("half_spread", 1e12, BadValues, "not below low"),
        ("open_time", np.nan, BadTimes, "not a time"),
        ("open_time", 1.0, BadTimes, "opens no bar of 1m bars"),
        ("open_time", 60.0, BadTimes, "not after"),
    ],
)
def test_an_impossible_bar_is_refused_naming_row_and_field(stand, symbol, field, value, error, why):
    rows = stand.live[:5].copy()
    rows[3, BAR_FIELDS.index(field)] = value
    with pytest.raises(error, match=rf"bars\.3\.\w+: .*{why}"):
        symbol.validate_new(rows, NOW, nothing)


def test_a_bar_is_refused_until_it_has_closed_give_or_take_five_seconds(stand, symbol):
    closes = datetime.fromtimestamp(stand.live[0, OPEN_TIME] + 60, tz=UTC)
    with pytest.raises(BadTimes, match="has not closed"):
        symbol.validate_new(stand.live[:1], closes - timedelta(seconds=6), nothing)
    assert len(symbol.validate_new(stand.live[:1], closes - timedelta(seconds=4), nothing)) == 1


def test_rows_of_another_shape_are_refused(symbol):
    with pytest.raises(BadShape):
        symbol.validate_new(np.ones((3, 7)), NOW, nothing)


def test_an_unknown_symbol_is_refused_naming_the_known_ones(symbol):
    with pytest.raises(UnknownName, match=SYMBOL):
        Symbols({SYMBOL: symbol})["DOGE/USDT"]


# ---- warm starts


def test_publishing_adds_the_data_version_and_the_traditional_record_under_a_new_digest(stand, tmp_path):
    published = publish_warm_start(stand.stage, tmp_path, data_hash="abc", hits=230, n=500)
    warm = read_warm_start(tmp_path / published["digest"], published["digest"])
    assert warm.data_hash == "abc"
    assert (warm.traditional.value, warm.traditional.n) == (0.46, 500)
    assert publish_warm_start(stand.stage, tmp_path, data_hash="abc", hits=230, n=500) == published
    assert warm.traditional == hit_rate(230, 500)  # labels of release 0.5.0 did not say how far events overlap
    published = publish_warm_start(stand.stage, tmp_path, data_hash="abc", hits=230, n=500, effective=80.0)
    fewer = read_warm_start(tmp_path / published["digest"], published["digest"]).traditional
    assert fewer == hit_rate(230, 500, 80.0)
    assert fewer.value == 0.46
    assert fewer.low < warm.traditional.low


def test_a_warm_start_of_release_050_keeps_the_interval_it_had(stand, tmp_path):
    published = publish_warm_start(stand.stage, tmp_path, data_hash="abc", hits=230, n=500)
    folder = tmp_path / published["digest"]
    meta = json.loads((folder / "meta.json").read_text())
    del meta["traditional"]["effective"]
    (folder / "meta.json").write_text(json.dumps(meta))
    seal(folder, {"format": 1})
    assert read_warm_start(folder).traditional == hit_rate(230, 500)


def test_a_tampered_or_absent_warm_start_is_refused(stand, tmp_path):
    published = publish_warm_start(stand.stage, tmp_path, data_hash="abc", hits=1, n=2)
    state = tmp_path / published["digest"] / "features.state"
    state.write_bytes(state.read_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(DigestMismatch, match=r"features\.state"):
        read_warm_start(tmp_path / published["digest"])
    with pytest.raises(DigestMismatch, match="expected"):
        read_warm_start(stand.stage, "0" * 64)
    with pytest.raises(StateError, match="no warm start"):
        read_warm_start(tmp_path / "nowhere")


def test_the_hit_rate_interval_is_wilsons():
    rate = hit_rate(10, 40)  # Wilson 95 %: 0.1419 to 0.4019
    np.testing.assert_allclose([rate.value, rate.low, rate.high], [0.25, 0.14187, 0.40193], atol=5e-5)


def test_the_interval_of_overlapping_events_covers_the_true_rate_as_often_as_it_says():
    """An event every two bars: 92 % of the histories, 64 % while each counted in full, as until release 0.5."""
    runs, bars, every = 400, 600, 2
    rng = np.random.default_rng(5)
    known = np.arange(20, bars - 40, every)
    rates, intervals = [], {"overlapping": [], "as independent": []}
    for _ in range(runs):
        close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 1e-3, bars)))
        base = np.full((bars, BAR_WIDTH), np.nan)
        base[:, OPEN_TIME], base[:, CLOSE] = 60.0 * np.arange(bars), close
        base[:, OPEN] = np.r_[100.0, close[:-1]]
        base[:, HIGH], base[:, LOW] = np.maximum(base[:, OPEN], close), np.minimum(base[:, OPEN], close)
        outcome = triple_barrier(
            base, 60.0 * (known + 1), close[known], np.ones(len(known), int), np.full(len(known), 2e-3), 1.5, 1.0,
            60.0 * (known + 1) + 16 * 60.0,
        )  # fmt: skip
        hits, n = int(outcome.label.sum()), len(known)
        effective = float(average_uniqueness(outcome.start, outcome.exit, bars).sum())
        rates.append(hits / n)
        intervals["overlapping"].append(hit_rate(hits, n, effective))
        intervals["as independent"].append(hit_rate(hits, n))
    true = np.mean(rates)
    covered = {name: np.mean([e.low <= true <= e.high for e in found]) for name, found in intervals.items()}
    assert covered["overlapping"] > 0.90
    assert covered["as independent"] < 0.75


# ---- books and context


@pytest.fixture(scope="module")
def recorded(stand, tmp_path_factory):
    """The same market with a book every five minutes, a sentiment a day and a named series, and its warm start."""
    rng = np.random.default_rng(3)
    known = stand.base[4::5, OPEN_TIME] + 60.0
    levels = np.full((len(known), 2, BOOK_LEVELS, 3), np.nan)
    mid = stand.base[4::5, CLOSE]
    for s, way in enumerate((-1.0, 1.0)):
        levels[:, s, :, 0] = mid[:, None] + way * (0.5 + np.arange(BOOK_LEVELS))
        levels[:, s, :, 1] = rng.lognormal(size=(len(known), BOOK_LEVELS))
    books = Books(known, levels, rng.normal(size=(len(known), TAPE_WIDTH)))
    days = stand.base[::1440, OPEN_TIME]
    feed = ContextFeed(days, np.full(len(days), CONTEXT_INDEX["fear_greed"]), rng.uniform(20, 80, len(days)))
    series = (Series("series_2", "options_flow", "contracts", 0.0, 36 * 3600.0),)  # often older than that, and missing
    flow = stand.base[::4000, OPEN_TIME] + 7.0
    named = ContextFeed(flow, np.full(len(flow), CONTEXT_INDEX["series_2"]), rng.normal(size=len(flow)))
    feed = merge_records(feed, named)
    context = align(stand.decision[:, OPEN_TIME], QUARTERS, books, feed, ages_of(series))
    assert 0.2 < np.isnan(context[1][:, CONTEXT_INDEX["series_2"]]).mean() < 0.8
    batch = History(
        stand.decision, FEATURES.run(stand.decision, *context), SIGNALS.run(stand.decision, *context), *context
    )
    closed = stand.decision[:CLOSED]
    state, other = FEATURES.fresh(), SIGNALS.fresh()
    features = FEATURES.run(closed, context[0][:CLOSED], context[1][:CLOSED], state)
    signals = SIGNALS.run(closed, context[0][:CLOSED], context[1][:CLOSED], other)
    folder = tmp_path_factory.mktemp("recorded") / "warm"
    write_warm_start(
        folder, symbol=SYMBOL, base_grid=MINUTES, grid=QUARTERS, feature_state=state, signal_state=other,
        base=stand.base[:HISTORY], history=History(closed, features, signals, *(c[:CLOSED] for c in context)),
        category_scores=CategoryScores.fit(signals), clock="market", books=before(books, HISTORY),
        feed=before(feed, HISTORY), series=series,
    )  # fmt: skip
    return read_warm_start(folder), books, feed, batch


def before(records, minutes):
    """The part of the records that was known when `minutes` of the market had passed."""
    known = records.known <= T0 + 60.0 * minutes
    return type(records)(**{name: getattr(records, name)[known] for name in records.__dataclass_fields__})


def since(records, after, until):
    known = (records.known > after) & (records.known <= until)
    return type(records)(**{name: getattr(records, name)[known] for name in records.__dataclass_fields__})


def test_rows_with_books_and_context_are_the_batch_rows_also_after_a_restart_in_the_middle(stand, recorded, tmp_path):
    warm, books, feed, batch = recorded
    store = Store.open(f"sqlite:///{tmp_path / 's.db'}")
    symbol, until = Symbol(warm), T0 + 60.0 * HISTORY
    for number, part in enumerate(np.array_split(stand.live, 9)):
        if number == 5:
            symbol = restore_symbol(warm, store.bars(SYMBOL), *store.records(SYMBOL))
        end = part[-1, OPEN_TIME] + 60.0
        sent = since(books, until, end), since(feed, until, end)
        fresh = symbol.validate_new_records(*sent, NOW, lambda *span: store.records(SYMBOL, *span))
        assert sum(len(r.known) for r in fresh if r is not None) == sum(len(r.known) for r in sent)
        store.add_bars(BarBatch(SYMBOL, part, part[:, OPEN_TIME] + 60, NOW, *fresh))
        symbol.ingest_records(*fresh)
        symbol.advance(part)
        until = end
        row = round((symbol.closed.close_time - T0) / 900) - 1
        for name in ("bars", "features", "signals", "levels", "context"):
            own, whole = getattr(symbol.history, name), getattr(batch, name)
            assert own.tobytes() == whole[row + 1 - RETAINED_BARS : row + 1].tobytes()
    closed = symbol.closed
    for name in ("features", "signals", "levels", "context"):
        assert getattr(closed, name).tobytes() == getattr(batch, name)[row].tobytes()
    assert np.isfinite(closed.features[FEATURES.index["spread"]])
    store.close()


def test_a_symbol_whose_bars_close_without_a_book_goes_on_and_its_book_columns_are_missing(stand, recorded):
    symbol = Symbol(recorded[0])
    closed = symbol.advance(stand.live[:60])
    assert symbol.reason is None
    assert len(closed) == 4
    # the first of them closed over a book of the history
    assert [bool(np.isnan(c.features[FEATURES.index["spread"]])) for c in closed] == [False, True, True, True]
    assert closed[-1].levels.shape == (2, BOOK_LEVELS, 3)


def none_stored(after, until):
    return None, None


def test_a_record_sent_again_is_known_and_one_that_comes_late_or_from_the_future_is_refused(recorded):
    warm, books, *_ = recorded
    symbol = Symbol(warm)
    end = T0 + 60.0 * HISTORY
    later = since(books, end, end + 2700.0)
    assert symbol.validate_new_records(later, None, NOW, lambda *_: (later, None)) == (None, None)
    with pytest.raises(BadTimes, match="comes late"):
        symbol.validate_new_records(since(books, 0.0, symbol.closed.close_time), None, NOW, none_stored)
    with pytest.raises(BadTimes, match="future"):
        symbol.validate_new_records(later, None, datetime(2023, 1, 1, tzinfo=UTC), none_stored)


def test_records_of_the_open_bar_in_the_warm_start_are_not_added_twice(stand, recorded):
    warm, books, *_ = recorded
    symbol = Symbol(warm)
    in_open_bar = since(books, symbol.closed.close_time, T0 + 60.0 * HISTORY)
    assert len(in_open_bar.known) > 0
    assert symbol.validate_new_records(in_open_bar, None, NOW, none_stored) == (None, None)
    symbol.ingest_records(in_open_bar, None)
    np.testing.assert_array_equal(symbol.books.known, warm.books.known)


def test_another_record_in_the_place_of_one_that_is_known_is_refused(recorded):
    warm, books, *_ = recorded
    symbol, end = Symbol(warm), T0 + 60.0 * HISTORY
    known_books = since(books, symbol.closed.close_time, end)
    with pytest.raises(BadValues, match="another content"):
        symbol.validate_new_records(replace(known_books, tape=known_books.tape + 1.0), None, NOW, none_stored)
    new = since(books, end, end + 300.0)
    twice = Books(*(np.concatenate([getattr(new, f.name)] * 2) for f in fields(Books)))
    assert len(symbol.validate_new_records(twice, None, NOW, none_stored)[0].known) == 1
    twice.order_flow[1] += 1.0
    with pytest.raises(BadValues, match="two different book records"):
        symbol.validate_new_records(twice, None, NOW, none_stored)


# ---- markets that close


def test_a_bar_missing_while_the_market_is_regularly_closed_is_no_gap(stand, warm):
    week = ["Mon 00:00-Tue 08:15", "Tue 08:30-Mon 00:00"]  # closed for the second quarter that follows the history
    calendar = Calendar.from_dict({"name": "t", "zone": "UTC", "day_starts": "00:00", "week": week})
    symbol = Symbol(replace(warm, base_grid=Grid("1m", calendar), grid=Grid("15m", calendar)))
    symbol.advance(stand.live[:8])
    symbol.advance(stand.live[8 + 15 : 8 + 30])
    assert symbol.reason is None
    symbol.advance(stand.live[8 + 45 : 8 + 60])
    assert "1 missing bar" in symbol.reason


SHORT_DAYS = Calendar.from_dict(
    {"name": "t", "zone": "UTC", "day_starts": "00:00",
     "week": [f"{day} 00:00-{day} 08:40" for day in DAYS]}
)  # fmt: skip


@pytest.mark.parametrize(
    ("minute", "error"),
    [(3, None), (8 + 14, None), (8 + 32, "opens no bar of 1m bars; t: Mon to Sun 00:00-08:40"), (3.5, "opens no bar")],
)
def test_a_bar_outside_trading_hours_or_between_two_is_refused_with_the_hours(stand, warm, minute, error):
    symbol = Symbol(replace(warm, base_grid=Grid("1m", SHORT_DAYS), grid=Grid("15m", SHORT_DAYS)))
    row = stand.live[:1].copy()
    row[:, OPEN_TIME] = T0 + 60.0 * (HISTORY + minute)
    if error is None:
        assert len(symbol.validate_new(row, NOW, nothing)) == 1
        return
    with pytest.raises(BadTimes, match=error):
        symbol.validate_new(row, NOW, nothing)


def test_the_last_bar_of_a_session_closes_with_it_and_the_next_days_first_follows_it(stand, warm):
    symbol = Symbol(replace(warm, base_grid=Grid("1m", SHORT_DAYS), grid=Grid("15m", SHORT_DAYS)))
    closed = symbol.advance(stand.live[: 8 + 25])  # to 08:40: bars of 08:00, 08:15 and the short one of 08:30
    assert [utc(bar.close_time).strftime("%H:%M") for bar in closed] == ["08:15", "08:30", "08:40"]
    assert symbol.last_bar_close == utc(closed[-1].close_time)
    assert age_in_bars(symbol, utc(closed[-1].close_time + 12 * 3600.0)) == 0.0  # the market is shut
    tomorrow = stand.live[:15].copy()
    tomorrow[:, OPEN_TIME] = np.ceil(symbol.last_open_time / 86_400.0) * 86_400.0 + 60.0 * np.arange(15)
    (bar,) = symbol.advance(tomorrow)
    assert (utc(bar.close_time).strftime("%H:%M"), symbol.reason) == ("00:15", None)


def decided(symbol, params):
    close, account = utc(symbol.closed.close_time), Account()
    return decide(
        symbol, Snapshot(), policy_of(params), partial(account.portfolio, close, SYMBOL), (), id="t",
        tier=Tier(3, "TIER_3: no model"), predictions={}, known_at=close, now=close,
    )  # fmt: skip


def test_a_decision_shortly_before_the_market_shuts_lives_as_many_bars_as_its_label(stand, warm):
    symbol, params = Symbol(warm), load_params()
    assert params.labels.horizon_bars == 16
    made, rows = None, iter(np.split(stand.live[8:], range(15, len(stand.live), 15)))
    symbol.advance(stand.live[:8])
    while made is None or made.event is None or not 1 <= made.as_of.hour < 23:
        symbol.advance(next(rows))
        made = decided(symbol, params)
    assert made.expiry == made.as_of + timedelta(hours=4)
    shuts = f"{made.as_of + timedelta(minutes=30):%H:%M}"
    week = [f"{day} 00:00-{day} {shuts}" for day in DAYS]
    symbol.grid = Grid("15m", Calendar.from_dict({"name": "t", "zone": "UTC", "day_starts": "00:00", "week": week}))
    midnight = made.as_of.replace(hour=0, minute=0) + timedelta(days=1)
    assert decided(symbol, params).expiry == midnight + timedelta(minutes=14 * 15)  # two bars today, 14 tomorrow
