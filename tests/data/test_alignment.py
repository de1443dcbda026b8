"""Records known at each bar's close: nothing later, nothing stale, and the same for one close as for all."""

from dataclasses import fields, replace

import numpy as np
import pytest
from support.market_hours import at

from pipelines.context_layout import CONTEXT_FIELDS, CONTEXT_INDEX, CONTEXT_WIDTH, TAPE, TAPE_WIDTH, tape_of
from pipelines.contracts import BOOK_LEVELS, Books, ContextFeed
from pipelines.data.alignment import MAX_AGE_S, align, known_between, merge_records, prune_records
from pipelines.data.calendars import CALENDARS, NEW_YORK
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape

QUARTERS = Grid("15m")

STEP = 900.0
OPENS = 1_700_000_100.0 + STEP * np.arange(400)
CLOSES = OPENS + STEP
FLOW, FAST = CONTEXT_INDEX["order_flow"], CONTEXT_INDEX["order_flow_fast"]


def books_at(*known):
    """Books distinguished by their best bid: 1, 2, 3, …; flow 10 each, fast flow 0.1, 0.2, …"""
    n = len(known)
    levels = np.full((n, 2, BOOK_LEVELS, 3), np.nan)
    levels[:, 0, 0, 0] = np.arange(1, n + 1)
    return Books(
        np.array(known, dtype=float), levels, tape_of(n, order_flow=10.0, order_flow_fast=0.1 * np.arange(1, n + 1))
    )


def feed_of(*rows):
    known, field, value = zip(*rows, strict=True)
    return ContextFeed(
        np.array(known, dtype=float), np.array([CONTEXT_INDEX[name] for name in field]), np.array(value, dtype=float)
    )


@pytest.fixture(scope="module")
def records():
    """Four days of made-up books and context, some bars without a book, some flows not recorded."""
    rng = np.random.default_rng(2)
    known = np.sort(rng.uniform(CLOSES[0] - STEP, CLOSES[-1], 4000))
    known = known[(known < CLOSES[50]) | (known > CLOSES[53])]
    n = len(known)
    books = Books(known, rng.lognormal(size=(n, 2, BOOK_LEVELS, 3)), rng.normal(size=(n, TAPE_WIDTH)))
    books.order_flow[rng.random(n) < 0.01] = np.nan
    moments = np.sort(rng.uniform(CLOSES[0] - STEP, CLOSES[-1], 300))
    return books, ContextFeed(moments, rng.integers(2, 6, 300), rng.normal(size=300))


def test_a_book_belongs_to_the_bar_that_closes_at_or_after_it_was_known():
    levels, context = align(OPENS[:3], QUARTERS, books_at(CLOSES[0], CLOSES[0] + 1e-3, CLOSES[1] + 1.0), None)
    assert levels[:, 0, 0, 0].tolist() == [1.0, 2.0, 3.0]
    np.testing.assert_allclose(context[:, FAST], [0.1, 0.2, 0.3])


def test_the_tape_of_a_bar_is_the_sum_over_its_books_or_the_value_of_the_newest(records):
    books, _ = records
    _, context = align(OPENS, QUARTERS, books, None)
    for i, close in enumerate(CLOSES):
        inside = books.tape[(books.known > close - STEP) & (books.known <= close)]
        for j, (name, summed) in enumerate(TAPE.items()):
            wanted = np.nan if not len(inside) else inside[:, j].sum() if summed else inside[-1, j]
            np.testing.assert_allclose(context[i, CONTEXT_INDEX[name]], wanted, rtol=1e-9, atol=1e-12)
    assert np.isnan(context[:, FLOW]).sum() > 20


def test_a_bar_in_which_no_book_became_known_has_none_not_the_last_one():
    levels, context = align(OPENS[:3], QUARTERS, books_at(CLOSES[0] - 1.0, CLOSES[2] - 1.0), None)
    assert np.isnan(levels[1]).all()
    assert np.isnan(context[1]).all()
    assert levels[2, 0, 0, 0] == 2.0


def test_a_value_is_known_from_its_moment_until_it_is_too_old():
    closes = CLOSES[0] + STEP * np.arange(400)
    feed = feed_of(*((CLOSES[0] + 1.0, name, 7.0) for name in CONTEXT_FIELDS[2:]))
    _, context = align(closes - STEP, QUARTERS, None, feed)
    for name in CONTEXT_FIELDS[2:]:
        age = closes - (CLOSES[0] + 1.0)
        known = (age >= 0.0) & (age < MAX_AGE_S.get(name, STEP))
        np.testing.assert_array_equal(context[:, CONTEXT_INDEX[name]], np.where(known, 7.0, np.nan), err_msg=name)


def test_the_newest_value_of_a_field_counts():
    feed = feed_of(
        (CLOSES[0] - 2, "fear_greed", 20), (CLOSES[0] - 1, "fear_greed", 30), (CLOSES[0] + 1, "fear_greed", 40)
    )
    _, context = align(OPENS[:2], QUARTERS, None, feed)
    assert context[:, CONTEXT_INDEX["fear_greed"]].tolist() == [30.0, 40.0]


def test_garbage_after_a_close_changes_nothing_before_it(records):
    books, feed = records
    late, later = books.known > CLOSES[200], feed.known > CLOSES[200]
    spoilt = Books(
        books.known, *(np.where(late.reshape(-1, *[1] * (x.ndim - 1)), 1e9, x)
                       for x in (books.levels, books.tape))
    )  # fmt: skip
    whole = align(OPENS, QUARTERS, books, feed)
    blinded = align(OPENS, QUARTERS, spoilt, ContextFeed(feed.known, feed.field, np.where(later, 1e9, feed.value)))
    for ours, theirs in zip(whole, blinded, strict=True):
        assert ours[:201].tobytes() == theirs[:201].tobytes()
        assert ours[201:].tobytes() != theirs[201:].tobytes()


def test_one_close_at_a_time_gives_the_bytes_of_the_whole_history(records):
    levels, context = align(OPENS, QUARTERS, *records)
    for i in range(0, len(CLOSES), 7):
        kept = prune_records(CLOSES[i] - STEP, STEP, *records)
        assert len(kept[0].known) < len(records[0].known) or i == 0
        one = align(OPENS[i : i + 1], QUARTERS, *kept)
        assert (one[0].tobytes(), one[1].tobytes()) == (levels[i].tobytes(), context[i].tobytes())


def test_missing_bars_take_no_flow_from_the_time_between(records):
    levels, context = align(OPENS, QUARTERS, *records)
    thinned = np.delete(np.arange(len(CLOSES)), slice(100, 140))
    some = align(OPENS[thinned], QUARTERS, *records)
    assert (some[0].tobytes(), some[1].tobytes()) == (levels[thinned].tobytes(), context[thinned].tobytes())


def test_without_records_nothing_is_known_and_a_book_has_no_levels():
    for feed in (None, ContextFeed(np.empty(0), np.empty(0, np.int64), np.empty(0))):
        levels, context = align(OPENS[:5], QUARTERS, None, feed)
        assert levels.shape == (5, 2, 0, 3)
        assert context.shape == (5, CONTEXT_WIDTH)
        assert np.isnan(context).all()
    levels, _ = align(OPENS[:5], QUARTERS, books_at(), None)
    assert levels.shape == (5, 2, BOOK_LEVELS, 3)
    assert np.isnan(levels).all()


def test_the_records_of_a_span_are_those_known_after_its_start_up_to_its_end(records):
    books, feed = records
    start, end = books.known[100], books.known[900]
    part, part_of_feed = known_between(books, feed, start, end)
    np.testing.assert_array_equal(part.known, books.known[101:901])
    np.testing.assert_array_equal(part.levels, books.levels[101:901])
    np.testing.assert_array_equal(part_of_feed.value, feed.value[(feed.known > start) & (feed.known <= end)])
    assert known_between(books, feed, end, end) == (None, None)
    assert known_between(None, None, start, end) == (None, None)


def test_two_parts_of_the_records_joined_are_the_whole_and_nothing_is_there_twice(records):
    early = known_between(*records, -np.inf, records[0].known[900])
    for part, whole in zip(early, records, strict=True):
        again = merge_records(part, whole)
        for field in fields(whole):
            np.testing.assert_array_equal(getattr(again, field.name), getattr(whole, field.name))
    late = known_between(*records, records[0].known[900], np.inf)
    for part, rest, whole in zip(early, late, records, strict=True):  # as a live feed brings them
        for field in fields(whole):
            joined = getattr(merge_records(part, rest), field.name)
            np.testing.assert_array_equal(joined, getattr(whole, field.name))
    assert merge_records(None, records[0]) is records[0]
    assert merge_records(records[1], None) is records[1]


def test_of_a_record_that_is_in_both_parts_the_earlier_one_stays(records):
    books, _ = records
    other = replace(books, tape=books.tape + 1.0)
    np.testing.assert_array_equal(merge_records(books, other).order_flow, books.order_flow)


def test_records_whose_columns_disagree_are_refused(records):
    books, feed = records
    with pytest.raises(BadShape, match="levels"):
        align(OPENS, QUARTERS, Books(books.known, books.levels[:, :, :3], books.tape), None)
    with pytest.raises(BadShape, match="tape"):
        align(OPENS, QUARTERS, Books(books.known, books.levels, books.tape[:, :2]), None)
    with pytest.raises(BadShape, match="values"):
        align(OPENS, QUARTERS, None, ContextFeed(feed.known, feed.field, feed.value[1:]))


def test_what_becomes_known_while_the_market_is_shut_is_of_no_bar_and_a_context_of_the_next():
    close = at("2024-03-08 16:00", NEW_YORK)
    opens = np.array([at("2024-03-08 15:30", NEW_YORK), at("2024-03-11 09:30", NEW_YORK)])
    books, feed = books_at(close, close + 1.0, close + 3 * 86_400.0), feed_of((close + 1.0, "fear_greed", 30))
    levels, context = align(opens, Grid("1h", CALENDARS["us-equity"]), books, feed)
    assert levels[:, 0, 0, 0].tolist()[0] == 1.0  # the last bar ends at 16:00, not at 16:30
    assert np.isnan(levels[1]).all()
    assert context[:, CONTEXT_INDEX["fear_greed"]].tolist()[1] == 30.0
    assert np.isnan(context[0, CONTEXT_INDEX["fear_greed"]])
