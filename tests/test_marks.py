"""What the poll of a service reads of the store: marks that move with everything it follows, and with nothing else."""

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import sqlalchemy as sa

from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Decision, Outcome
from pipelines.migrations import tables
from pipelines.store import BarBatch, Change, DecisionRecord, Marks, Signed, Store

T0, HOUR = datetime(2026, 1, 2, tzinfo=UTC), timedelta(hours=1)
ANN = Signed("ann", T0 + HOUR, "a test")


@pytest.fixture
def store(url):
    with closing(Store.open(url)) as opened:
        yield opened


def bars(n=3):
    rows = np.full((n, BAR_WIDTH), 100.0)
    rows[:, OPEN_TIME] = T0.timestamp() + 60.0 * np.arange(n)
    return rows


def decide(store, id):
    decision = Decision(
        id=id, symbol="A", as_of=T0, known_at=T0, ingested_at=T0, action="NO_TRADE", direction=1, confidence=0.5,
        entry=None, stop=None, take_profits=(), size=0.0, expiry=None, edge_bps=None, p=None, regime=None, tier=1,
        arm="champion", event="fvg",
    )  # fmt: skip
    store.add_decisions([DecisionRecord(decision, b"", b"")])


def outcome(id, at):
    return Outcome(id, at, 1, "target", 10.0, 5.0, 5.0)


def test_an_empty_store_has_marks_and_they_stay_where_nothing_that_is_followed_is_written(store):
    before = store.marks(None)
    assert before == Marks(0, (0, 0), (None, 0))
    store.add_bars(BarBatch("A", bars(), bars()[:, OPEN_TIME] + 60.0, T0))
    decide(store, "a")
    store.raise_alarm("stale", "high", "no bar", T0)
    assert store.marks(None) == before


def test_each_trip_and_each_reset_moves_the_marks(store):
    seen = [store.marks(None).trips]
    for write in (
        lambda: store.trip("volatility", T0, "wide"),
        lambda: store.trip("spread", T0, "wide"),
        lambda: store.reset("spread", T0 + HOUR, "ann", "looked at it"),
        lambda: store.trip("spread", T0 + 2 * HOUR, "wide again"),
    ):
        write()
        seen.append(store.marks(None).trips)
    assert len(set(seen)) == len(seen)


def test_a_trip_with_a_lower_number_than_one_that_was_seen_moves_the_marks(store):
    """PostgreSQL gives numbers before a transaction ends: the lower one of two may become durable last."""
    seen = [store.marks(None).trips]
    for number, name in ((2, "volatility"), (1, "spread")):
        with store.writing() as connection:
            connection.execute(sa.insert(tables.latches), {"id": number, "name": name, "tripped_at": T0, "reason": ""})
        seen.append(store.marks(None).trips)
    assert len(set(seen)) == 3


def test_each_correction_moves_the_marks_and_one_that_changes_nothing_does_not(store):
    store.add_bars(BarBatch("A", bars(), bars()[:, OPEN_TIME] + 60.0, T0))
    changed = bars()[1].copy()
    changed[4] = 99.0
    opened = float(changed[OPEN_TIME])
    seen = [store.marks(None).corrections]
    for after in (changed, None):
        store.correct("A", [Change(opened, opened + 60.0, after)], ANN)
        seen.append(store.marks(None).corrections)
    assert len(set(seen)) == 3
    store.correct("A", [Change(opened, opened + 60.0, None)], ANN)
    assert store.marks(None).corrections == seen[-1]


def test_outcomes_are_counted_from_the_moment_that_is_stated(store):
    for id in "abc":
        decide(store, id)
    assert store.marks(None).outcomes == (None, 0)
    store.add_outcome(outcome("a", T0 + HOUR), T0 + HOUR)
    assert store.marks(None).outcomes == (None, 1)
    assert store.marks(T0 + HOUR).outcomes == (T0 + HOUR, 1)
    later = T0 + HOUR + timedelta(microseconds=1)
    assert store.marks(later).outcomes == (later, 0)
    store.add_outcome(outcome("b", T0 + HOUR), T0 + 2 * HOUR)  # resolved at the same moment, received later
    store.add_outcome(replace(outcome("c", T0), barrier="stop"), T0 + 2 * HOUR)  # before it: not counted
    assert store.marks(T0 + HOUR).outcomes == (T0 + HOUR, 2)
