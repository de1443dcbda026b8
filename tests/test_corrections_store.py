"""Quarantine and corrections in the store: what was observed stays, and every earlier reading can be had again."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from support.legacy_store import alembic_to

from pipelines.contracts import CLOSE, HIGH, OPEN_TIME
from pipelines.errors import BadValues, StateError, UnknownName
from pipelines.store import BarBatch, Change, HeldBar, Signed, Store

T0 = datetime(2024, 1, 1, tzinfo=UTC)
EARLIER = datetime(1970, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SYMBOL = "BTC/USDT"
ANN = Signed("ann", T0 + timedelta(hours=2), "the venue corrected it")


@pytest.fixture
def store(url):
    opened = Store.open(url)
    opened.add_bars(batch())
    yield opened
    opened.close()


def rows(n=5):
    times = T0.timestamp() + 60.0 * np.arange(n)
    return np.column_stack([times, *np.full((4, n), 100.0), np.full(n, 7.0), np.full((3, n), np.nan).T])


def batch(n=5, held=()):
    bars = rows(n)
    return BarBatch(SYMBOL, bars, bars[:, OPEN_TIME] + 60.0, T0 + timedelta(hours=1), held=held)


def changed(row, **values):
    bar = rows(row + 1)[row].copy()
    for field, value in values.items():
        bar[{"close": CLOSE, "high": HIGH}[field]] = value
    return bar


def change(row, after):
    opened = T0.timestamp() + 60.0 * row
    return Change(opened, opened + 60.0, after)


def spike(row=5):
    bar = rows(row + 1)[row].copy()
    bar[HIGH] = 1e8
    return HeldBar(bar, bar[OPEN_TIME] + 60.0, "COLLAR", "high 1e+08")


def test_a_correction_is_read_from_its_moment_on_and_what_was_observed_stays(store):
    (made,) = store.correct(SYMBOL, [change(1, changed(1, close=99.5))], ANN)
    assert (made.by, made.at, made.reason) == ("ann", ANN.at, ANN.reason)
    assert store.bars(SYMBOL)[1, CLOSE] == 99.5
    np.testing.assert_array_equal(store.bars(SYMBOL, reading=EARLIER), rows())
    np.testing.assert_array_equal(store.bars(SYMBOL, reading=ANN.at - MINUTE), rows())
    assert store.bars(SYMBOL, reading=made.at)[1, CLOSE] == 99.5
    assert len(store.bars(SYMBOL, after=T0.timestamp() + 60.0)) == 3
    assert store.newest_corrections() == {SYMBOL: made.at}
    np.testing.assert_array_equal(store.bar_readings(SYMBOL)[:, CLOSE], [100.0] * 5 + [99.5])


def test_a_bar_is_taken_out_and_put_in_and_each_reading_has_a_moment_of_its_own(store):
    (out,) = store.correct(SYMBOL, [change(2, None)], ANN)
    (back,) = store.correct(SYMBOL, [change(2, changed(2, close=98.0))], ANN)  # the same moment by a coarse clock
    (put_in,) = store.correct(SYMBOL, [change(6, changed(6))], ANN)
    assert out.at < back.at < put_in.at
    assert len(store.bars(SYMBOL, reading=out.at)) == 4
    assert store.bars(SYMBOL, reading=back.at)[2, CLOSE] == 98.0
    assert store.bars(SYMBOL)[:, OPEN_TIME].tolist() == [T0.timestamp() + 60.0 * i for i in (0, 1, 2, 3, 4, 6)]
    assert [one.before is None for one in store.corrections(SYMBOL)] == [False, True, True]


def test_an_equal_bar_makes_no_correction_and_no_reason_is_no_correction(store):
    assert store.correct(SYMBOL, [change(1, changed(1))], ANN) == []
    assert store.corrections(SYMBOL) == []
    with pytest.raises(BadValues, match="needs a reason"):
        Signed("ann", T0, " ")


def test_corrections_cannot_be_changed_or_deleted(store):
    store.correct(SYMBOL, [change(1, None)], ANN)
    for statement in ("DELETE FROM corrections", "UPDATE corrections SET reason = 'x'"):
        with pytest.raises(Exception, match="append-only"), store.writing() as connection:
            connection.exec_driver_sql(statement)


def test_a_held_bar_counts_for_nothing_and_comes_in_when_it_is_released(store):
    held = spike()
    store.add_bars(batch(held=[held]))
    store.add_bars(batch(held=[held]))  # sent again
    assert len(store.bars(SYMBOL)) == 5
    assert store.withheld(SYMBOL, T0.timestamp()) == {held.bar[OPEN_TIME]: "COLLAR"}
    (found,) = store.quarantined(SYMBOL)
    assert (found.code, found.by, found.state, found.detail) == ("COLLAR", "admission", "held", "high 1e+08")
    np.testing.assert_array_equal(found.bar, held.bar)
    (made,) = store.release([found.id], ANN)
    np.testing.assert_array_equal(store.bars(SYMBOL)[5], held.bar)
    assert len(store.bars(SYMBOL, reading=made.at - MINUTE)) == 5
    assert store.withheld(SYMBOL, T0.timestamp()) == {}
    assert store.quarantined(SYMBOL) == []
    closed = store.quarantined_bar(found.id)
    assert (closed.state, closed.closed_by, closed.closed_reason) == ("released", "ann", ANN.reason)
    with pytest.raises(StateError, match="was released by ann"):
        store.drop([found.id], ANN)


def test_a_dropped_bar_stays_out_until_another_takes_its_place(store):
    store.add_bars(batch(held=[spike()]))
    (found,) = store.drop([store.quarantined(SYMBOL)[0].id], ANN)
    assert store.quarantined(SYMBOL) == []
    assert len(store.bars(SYMBOL)) == 5
    assert store.withheld(SYMBOL, 0.0) == {found.open_time: "COLLAR"}
    store.correct(SYMBOL, [change(5, changed(5))], ANN)
    assert store.withheld(SYMBOL, 0.0) == {}
    assert len(store.bars(SYMBOL)) == 6


def test_a_correction_takes_the_place_of_a_held_bar(store):
    store.add_bars(batch(held=[spike()]))
    store.correct(SYMBOL, [change(5, changed(5))], ANN)
    assert store.quarantined(SYMBOL) == []
    assert store.bars(SYMBOL)[5, HIGH] == 100.0


def test_an_accepted_bar_is_set_aside_once_and_can_come_back(store):
    bar = store.bars(SYMBOL)[3]
    assert len(store.set_aside(SYMBOL, bar, bar[OPEN_TIME] + 60.0, "SET_ASIDE", ANN)) == 1
    assert store.set_aside(SYMBOL, bar, bar[OPEN_TIME] + 60.0, "SET_ASIDE", ANN) == []
    assert store.withheld(SYMBOL, 0.0) == {bar[OPEN_TIME]: "SET_ASIDE"}
    assert len(store.bars(SYMBOL)) == 4
    store.release([store.quarantined(SYMBOL)[0].id], ANN)
    np.testing.assert_array_equal(store.bars(SYMBOL), rows())


def test_several_are_released_or_none(store):
    store.add_bars(batch(held=[spike(5), spike(6)]))
    numbers = [one.id for one in store.quarantined()]
    with pytest.raises(UnknownName, match="no bar 99"):
        store.release([*numbers, 99], ANN)
    assert len(store.quarantined()) == 2
    assert store.corrections(SYMBOL) == []
    assert len({one.at for one in store.release(numbers, ANN)}) == 1


def test_bars_held_while_the_clock_was_ahead_are_withdrawn_with_the_others(store):
    store.add_bars(batch(held=[spike()]))
    assert len(store.withdraw_bars(SYMBOL, T0.timestamp() + 150.0)) == 3
    assert store.quarantined(SYMBOL) == []
    assert store.withheld(SYMBOL, 0.0) == {}


def test_a_downgrade_that_would_lose_what_people_decided_is_refused(url, store):
    store.close()
    alembic_to(url, "0006", downgrade=True)
    again = Store.open(url)
    again.correct(SYMBOL, [change(1, None)], ANN)
    again.close()
    with pytest.raises(NotImplementedError, match="corrections would be lost"):
        alembic_to(url, "0006", downgrade=True)
