"""The market inside the simulated minute: one tape, one book, and bars, snapshots and truth that follow from them."""

from datetime import timedelta

import numpy as np
import pytest

from pipelines.context_layout import CONTEXT_INDEX, TAPE_INDEX
from pipelines.contracts import CLOSE, HALF_SPREAD, HIGH, LOW, OPEN, OPEN_TIME, TAKER_BUY, TRADES, VOLUME
from pipelines.data.alignment import align
from pipelines.data.orderbook import limit_order_book
from pipelines.data.simulator.book_design import PATTERNS
from pipelines.data.simulator.market import DESIGN, record, simulate
from pipelines.data.simulator.market_path import tick_of
from pipelines.data.sources import SimulatorSource
from pipelines.data.timeframes import Grid
from pipelines.errors import BadValues
from pipelines.settings import load_params

QUARTERS = Grid("15m")

SPEC = load_params().simulator.model_copy(
    update={"history_days": 60, "live_days": 0, "drift_after_live_days": None, "edge": 1.0, "book_every_minutes": 5}
)
DAY = 1440
FIRST, DAYS = 12, 3


@pytest.fixture(scope="module")
def market():
    return simulate(SPEC)


@pytest.fixture(scope="module")
def shorter():
    """The same market cut to ten days of history and three live ones."""
    return simulate(SPEC.model_copy(update={"history_days": 10, "live_days": 3}))


@pytest.fixture(scope="module")
def recording():
    return record(SPEC, FIRST, DAYS, orders=True)


@pytest.fixture(scope="module")
def replay(recording):
    """The recorded events put on an empty book one by one: best prices, sizes there and time after each event."""
    levels = ({}, {})
    rows = np.empty((len(recording.orders.time), 5))
    best = [-np.inf, np.inf]
    e = recording.orders
    for i, (time, kind, side, price, size, left) in enumerate(
        zip(e.time, e.kind, e.side, e.price, e.size, e.left, strict=True)
    ):
        s = 0 if side > 0 else 1
        had = levels[s].get(price, 0.0)
        now = had + size if kind == limit_order_book.ADD else had - size
        assert abs(now - left) < 1e-9
        assert left >= 0.0
        if left > 0:
            levels[s][price] = left
        else:
            del levels[s][price]
        if s == 0 and (price >= best[0]):
            best[0] = price if left > 0 else max(levels[0], default=-np.inf)
        if s == 1 and (price <= best[1]):
            best[1] = price if left > 0 else min(levels[1], default=np.inf)
        rows[i] = time, best[0], levels[0].get(best[0], 0.0), best[1], levels[1].get(best[1], 0.0)
    return rows


def window(market):
    return slice(FIRST * DAY, (FIRST + DAYS) * DAY)


def test_a_recording_is_the_same_path_bit_for_bit(market, recording):
    assert recording.bars.tobytes() == market.bars[window(market)].tobytes()
    opened = recording.bars[0, OPEN_TIME]
    part = (market.books.known > opened) & (market.books.known <= opened + DAYS * 86400)
    assert recording.books.known.tobytes() == market.books.known[part].tobytes()
    assert recording.books.levels.tobytes() == market.books.levels[part].tobytes()
    assert recording.books.tape[1:].tobytes() == market.books.tape[part][1:].tobytes()


def test_recording_orders_or_only_trades_changes_no_trade(recording):
    again = record(SPEC, FIRST, DAYS).trades
    assert again.price.tobytes() == recording.trades.price.tobytes()
    assert again.time.tobytes() == recording.trades.time.tobytes()


def test_bars_are_the_sum_of_their_trades(recording):
    bars, t = recording.bars, recording.trades
    assert (np.diff(t.time) >= 0).all()
    minute = ((t.time - bars[0, OPEN_TIME]) // 60).astype(int)
    start = np.searchsorted(minute, np.arange(len(bars)))
    assert np.array_equal(np.bincount(minute, minlength=len(bars)), bars[:, TRADES])
    assert np.array_equal(t.price[start], bars[:, OPEN])
    assert np.array_equal(np.maximum.reduceat(t.price, start), bars[:, HIGH])
    assert np.array_equal(np.minimum.reduceat(t.price, start), bars[:, LOW])
    assert np.array_equal(t.price[np.append(start[1:], len(t.price)) - 1], bars[:, CLOSE])
    np.testing.assert_allclose(np.add.reduceat(t.size, start), bars[:, VOLUME], rtol=1e-9)
    np.testing.assert_allclose(np.add.reduceat(t.size * (t.side > 0), start), bars[:, TAKER_BUY], rtol=1e-9)


def test_every_trade_is_a_fill_of_the_book_at_the_time(recording):
    fills = recording.orders.kind == limit_order_book.TRADE
    assert np.array_equal(recording.orders.price[fills], recording.trades.price)
    assert np.array_equal(recording.orders.side[fills], -recording.trades.side)


def test_the_book_is_never_crossed_after_any_event(replay, recording):
    opened = recording.bars[0, OPEN_TIME]
    traded = replay[np.searchsorted(replay[:, 0], opened, side="right") :]
    assert (traded[:, 1] < traded[:, 3]).all()


def test_snapshots_are_the_replayed_book_at_their_close(replay, recording):
    books = recording.books
    at = np.searchsorted(replay[:, 0], books.known, side="left") - 1
    assert np.array_equal(replay[at, 1], books.levels[:, 0, 0, 0])
    assert np.array_equal(replay[at, 3], books.levels[:, 1, 0, 0])
    np.testing.assert_allclose(replay[at, 2], books.levels[:, 0, 0, 1], atol=1e-9)
    np.testing.assert_allclose(replay[at, 4], books.levels[:, 1, 0, 1], atol=1e-9)


def test_order_flow_is_the_published_formula_over_every_event(replay, recording):
    _, bid, bid_size, ask, ask_size = replay.T
    e = np.zeros(len(replay))
    e[1:] += (bid[1:] >= bid[:-1]) * bid_size[1:] - (bid[1:] <= bid[:-1]) * bid_size[:-1]
    e[1:] -= (ask[1:] <= ask[:-1]) * ask_size[1:] - (ask[1:] >= ask[:-1]) * ask_size[:-1]
    total, known = np.cumsum(e), recording.books.known
    at = np.searchsorted(replay[:, 0], known, side="left") - 1
    before = np.searchsorted(replay[:, 0], known - 10.0, side="left") - 1
    np.testing.assert_allclose(np.diff(total[at]), recording.books.order_flow[1:], atol=1e-6)
    np.testing.assert_allclose(total[at] - total[before], recording.books.order_flow_fast, atol=1e-6)


def test_a_bars_half_spread_is_that_of_the_replayed_book_at_its_close(replay, market):
    opened = market.bars[:, OPEN_TIME]
    bars = market.bars[(opened >= replay[0, 0]) & (opened + 60 <= replay[-1, 0])]
    at = np.searchsorted(replay[:, 0], bars[:, OPEN_TIME] + 60.0, side="left") - 1
    assert len(bars) > 1_000
    np.testing.assert_allclose(bars[:, HALF_SPREAD], (replay[at, 3] - replay[at, 1]) / 2.0, atol=1e-9)


def test_books_are_ordered_positive_and_five_levels_deep(market):
    levels = market.books.levels
    assert np.isfinite(levels).all()
    assert (levels[..., 1] > 0).all()
    assert (levels[..., 2] >= 1).all()
    assert (np.diff(levels[:, 0, :, 0], axis=1) < 0).all()
    assert (np.diff(levels[:, 1, :, 0], axis=1) > 0).all()
    assert (levels[:, 0, 0, 0] < levels[:, 1, 0, 0]).all()
    tick = tick_of(SPEC) / 100
    np.testing.assert_allclose(levels[..., 0] / tick, np.rint(levels[..., 0] / tick), atol=1e-9)


def test_snapshots_come_at_every_fifth_minute_and_next_to_every_decision_bar(market):
    assert (market.books.known % 300 == 0).all()
    assert (np.diff(market.books.known) == 300).all()
    opens = market.bars[0, OPEN_TIME] + 900.0 * np.arange(60 * 96)
    levels, context = align(opens, QUARTERS, market.books, market.feed)
    assert np.isfinite(levels).all()
    flow = market.books.order_flow.reshape(-1, 3).sum(axis=1)
    np.testing.assert_allclose(context[:, CONTEXT_INDEX["order_flow"]], flow, atol=1e-6)
    assert np.isfinite(context[32:, CONTEXT_INDEX["funding_rate"]]).all()


def test_every_minute_has_at_least_thirty_book_events(market):
    assert market.events.min() >= 30
    assert np.median(market.events) > 100


def test_recorded_events_are_as_many_as_were_counted(market, recording):
    opened = recording.bars[0, OPEN_TIME]
    minute = ((recording.orders.time - opened) // 60).astype(int)
    counted = np.bincount(minute, minlength=DAYS * DAY)
    assert np.array_equal(counted[1:], market.events[window(market)][1:])  # the first also lists what rested there


def test_the_book_partly_reveals_the_pressure_but_not_much(market):
    index = np.searchsorted(market.bars[:, OPEN_TIME], market.books.known - 60.0)
    pressure, size = market.truth.pressure[index], market.books.levels[..., 1].sum(axis=2)
    assert 0.1 < np.corrcoef(np.log(size[:, 0] / size[:, 1]), pressure)[0, 1] < 0.5
    hours = len(index) // 12
    flow = market.books.order_flow[: hours * 12].reshape(hours, 12).sum(axis=1)
    assert 0.1 < np.corrcoef(flow, pressure[: hours * 12].reshape(hours, 12).mean(axis=1))[0, 1] < 0.5


def test_order_flow_moves_with_the_price(market):
    moved = np.diff(np.log(market.truth.value[4::5]))
    assert np.corrcoef(market.books.order_flow[1:], moved)[0, 1] > 0.5


def test_the_price_stays_with_the_value(market):
    apart = np.abs(np.log(market.bars[:, CLOSE] / market.truth.value)) * 1e4
    assert np.median(apart) < 0.1 * SPEC.vol_15m_bps
    moves = np.diff(np.log(market.bars[:, CLOSE]))
    assert abs(np.corrcoef(moves[1:], moves[:-1])[0, 1]) < 0.05


def test_arrivals_cluster_as_they_were_made_to(recording):
    """The variance of counts in half seconds over their mean, within minutes: 1 without excitement."""
    t = np.unique(recording.trades.time)  # one taker, one moment
    counts = np.bincount(((t - recording.bars[0, OPEN_TIME]) * 2).astype(int), minlength=DAYS * DAY * 120)
    by_minute = counts.reshape(-1, 120)
    busy = by_minute[by_minute.sum(axis=1) > 20]
    assert (busy.var(axis=1, ddof=1) / busy.mean(axis=1)).mean() > 1.2


def planted(market, name):
    p = market.truth.planted
    rows = p.kind == PATTERNS.index(name)
    return {field: getattr(p, field)[rows] for field in ("start", "end", "direction", "price", "size")}


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_planted_on_both_sides_and_end_by_themselves(market, name):
    p = planted(market, name)
    assert len(p["start"]) > 60
    assert (p["end"] > p["start"]).all()
    assert (np.diff(p["start"]) >= 0).all()
    assert 0.35 < (p["direction"] > 0).mean() < 0.65


def test_a_sweep_runs_beyond_the_extreme_of_four_hours_and_comes_back_in_its_minute(market):
    p = planted(market, "sweep")
    minute = ((p["start"] - market.bars[0, OPEN_TIME]) // 60).astype(int)
    high = p["direction"] < 0
    for rows, column, extreme, sign in ((high, HIGH, np.max, 1), (~high, LOW, np.min, -1)):
        before = np.array([extreme(market.bars[m - 240 : m, column]) for m in minute[rows]])
        assert np.array_equal(before, p["price"][rows])
        assert (sign * (market.bars[minute[rows], column] - before) > 0).all()
    value = market.truth.value[minute]
    back = np.abs(np.log(market.bars[minute, CLOSE] / value)) * 1e4
    assert np.median(back) < 0.1 * SPEC.vol_15m_bps


def test_a_sweep_adds_no_volume_and_is_small_next_to_fifteen_minutes(market):
    p = planted(market, "sweep")
    minute = ((p["start"] - market.bars[0, OPEN_TIME]) // 60).astype(int)
    column = np.where(p["direction"] < 0, HIGH, LOW)
    beyond = np.abs(np.log(market.bars[minute, column] / p["price"]))
    sd_15m = SPEC.vol_15m_bps * 1e-4 * np.array(DESIGN.vol_ratio)[market.truth.regime[minute]]
    assert (beyond / sd_15m).max() < 0.5
    bought = np.where(p["direction"] < 0, market.bars[minute, TAKER_BUY], market.bars[minute, VOLUME])
    assert (p["size"] <= bought).all()


def test_an_iceberg_trades_more_than_it_shows_and_shows_again_at_its_price(market, recording):
    p = planted(market, "iceberg")
    opened = recording.bars[0, OPEN_TIME]
    e, refills = recording.orders, []
    for i in np.flatnonzero((p["start"] >= opened) & (p["end"] < opened + DAYS * 86400)):
        here = (e.price == p["price"][i]) & (e.time >= p["start"][i]) & (e.time <= p["end"][i])
        here &= e.side == p["direction"][i]
        fills = np.flatnonzero(here & (e.kind == limit_order_book.TRADE))
        again = (e.kind[np.minimum(fills + 1, len(e.kind) - 1)] == limit_order_book.ADD) & here[fills + 1]
        assert p["size"][i] <= e.size[fills].sum() + 1e-9
        refills.append(again.sum())
    assert len(refills) >= 10
    assert np.mean(np.array(refills) >= 2) > 0.5


def test_a_fake_order_is_withdrawn_unfilled(market, recording):
    p = planted(market, "fake")
    opened = recording.bars[0, OPEN_TIME]
    inside = np.flatnonzero((p["start"] > opened) & (p["end"] < opened + DAYS * 86400))
    assert len(inside) > 20
    e, gone = recording.orders, 0
    for i in inside:
        withdrawn = (e.time == p["end"][i]) & (e.price == p["price"][i]) & (e.kind == limit_order_book.CANCEL)
        gone += np.isclose(e.size[withdrawn], p["size"][i]).any()
    assert gone / len(inside) > 0.9


def test_planted_patterns_do_not_depend_on_what_comes_after(market, shorter):
    short, long = shorter.truth.planted, market.truth.planted
    until = SPEC.start.timestamp() + 13 * 86400
    kept = long.end <= until
    inside = short.end <= until
    assert short.start[inside].tobytes() == long.start[kept].tobytes()


def test_funding_comes_every_eight_hours_and_leans_with_the_pressure(market):
    feed = market.feed
    assert (feed.field == CONTEXT_INDEX["funding_rate"]).all()
    assert (feed.known % 28_800 == 0).all()
    assert len(feed.known) == 60 * 3
    assert (np.abs(feed.value) < 0.0075).all()
    mean = market.truth.pressure.reshape(-1, 480).mean(axis=1)
    assert np.corrcoef(mean, feed.value)[0, 1] > 0.5


def test_books_and_funding_depend_neither_on_live_days_nor_on_what_comes_after(market, shorter):
    n = len(shorter.books.known)
    assert n == 13 * 288
    assert market.books.levels[:n].tobytes() == shorter.books.levels.tobytes()
    assert market.books.order_flow[:n].tobytes() == shorter.books.order_flow.tobytes()
    assert market.feed.value[: len(shorter.feed.value)].tobytes() == shorter.feed.value.tobytes()


@pytest.mark.parametrize(("first", "days"), [(-1, 1), (0, 0), (59, 2)])
def test_days_outside_the_market_are_refused(first, days):
    with pytest.raises(BadValues, match="history_days"):
        record(SPEC, first, days)


@pytest.mark.parametrize(
    ("price", "tick"), [(40_000.0, 1.0), (39_999.0, 0.5), (2_000.0, 0.05), (300.0, 0.01), (1.0, 0.01)]
)
def test_the_tick_is_a_round_quarter_of_a_basis_point(price, tick):
    assert tick_of(SPEC.model_copy(update={"start_price": price})) / 100 == tick


def test_the_source_hands_out_only_books_and_rates_that_were_known():
    source = SimulatorSource(SPEC.model_copy(update={"history_days": 3}))
    until = SPEC.start + timedelta(hours=20, minutes=2)
    books, feed = source.records(SPEC.symbol, until)
    assert books.known[-1] == SPEC.start.timestamp() + 20 * 3600
    assert len(books.levels) == len(books.order_flow) == 20 * 12
    assert list(feed.known - SPEC.start.timestamp()) == [8 * 3600.0, 16 * 3600.0]
    described = source.describe()
    assert described["spec"]["book_every_minutes"] == 5
    assert described["design"]["book"]["depth"] == DESIGN.book.depth


def detected_and_planted(market, name, kind, ended):
    """(snapshots, 2) whether the tape shows the pattern on the bid and on the ask, and whether one was planted there
    in the five minutes before: one that traded while it stood, or one that ended."""
    planted, known = market.truth.planted, market.books.known
    detected = np.stack([market.books.tape[:, TAPE_INDEX[f"{name}_{side}"]] > 0 for side in ("bid", "ask")], axis=1)
    there = np.zeros(detected.shape, bool)
    for i in np.flatnonzero((planted.kind == PATTERNS.index(kind)) & (planted.size > 0)):
        first = np.searchsorted(known, planted.end[i] if ended else planted.start[i])
        last = np.searchsorted(known, planted.end[i])
        there[first : last + 1, int(planted.direction[i] < 0)] = True
    return detected[288:], there[288:]


@pytest.mark.parametrize(
    ("name", "kind", "precise", "found"), [("iceberg", "iceberg", 0.95, 0.6), ("spoof", "fake", 0.8, 0.95)]
)
def test_the_tape_finds_planted_orders_and_of_hardly_any_other(market, name, kind, precise, found):
    detected, there = detected_and_planted(market, name, kind, ended=kind == "fake")
    assert there.sum() > 400
    assert there[detected].mean() > precise
    assert detected[there].mean() > found
