"""Outcomes of families in the store: in the order of each market's decisions, each once, and gone with retention."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from support.legacy_store import alembic_to, contents

from pipelines.contracts import Decision
from pipelines.errors import BadValues
from pipelines.migrations.tables import SCHEMA
from pipelines.store import DecisionRecord, FamilyOutcome, Store, open_dump
from pipelines.store.dump import load

T0 = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def store(url):
    opened = Store.open(url)
    yield opened
    opened.close()


def decide(store, hour, symbol="BTC/USDT"):
    """Store the decision of this hour."""
    at = T0 + hour * HOUR
    made = Decision(
        id=f"{symbol[0]}{hour}", symbol=symbol, as_of=at, known_at=at, ingested_at=at, action="NO_TRADE", direction=0,
        confidence=None, entry=None, stop=None, take_profits=(), size=0.0, expiry=None, edge_bps=None, p=None,
        regime=None, tier=3, arm="traditional", event=None,
    )  # fmt: skip
    store.add_decisions([DecisionRecord(made, b"", b"")])
    return FamilyOutcome(made.id, "regime", symbol, at, at + HOUR, 0.1 + 0.2, {"a" * 64: 1 / 3})


def test_outcomes_come_back_as_they_were_stored_and_a_run_goes_on_where_the_last_one_ended(store):
    one, two, three = (decide(store, hour) for hour in range(3))
    classes = replace(two, family="pattern", label={"fvg": 1.0, "crt": 0.0}, losses={"a" * 64: 0.25, "b" * 64: 0.5})
    assert store.family_outcomes_through("BTC/USDT") is None
    assert store.add_family_outcomes("BTC/USDT", [one, two, classes], two.as_of, T0 + 9 * HOUR) == 3
    assert store.family_outcomes_through("BTC/USDT") == two.as_of
    assert store.add_family_outcomes("BTC/USDT", [one, two, classes], two.as_of, T0 + 9 * HOUR) == 0
    assert store.add_family_outcomes("BTC/USDT", [two, three], T0 + 5 * HOUR, T0 + 9 * HOUR) == 1
    assert store.family_outcomes("regime") == [one, two, three]
    assert store.family_outcomes("regime", since=two.as_of, until=three.as_of) == [two]
    assert store.family_outcomes("pattern") == [classes]
    assert store.add_family_outcomes("BTC/USDT", [], T0 + 8 * HOUR, T0 + 9 * HOUR) == 0  # looked at, no label
    assert store.family_outcomes_through("BTC/USDT") == T0 + 8 * HOUR


def test_each_market_has_its_own_place_and_their_outcomes_are_pooled(store):
    one, other = decide(store, 1), decide(store, 0, "ETH/USDT")
    store.add_family_outcomes("BTC/USDT", [one], one.as_of, T0 + 9 * HOUR)
    store.add_family_outcomes("ETH/USDT", [other], other.as_of, T0 + 9 * HOUR)
    assert store.family_outcomes("regime") == [other, one]
    with pytest.raises(BadValues, match="not a decision on ETH/USDT"):
        store.add_family_outcomes("ETH/USDT", [one], T0 + 5 * HOUR, T0 + 9 * HOUR)
    with pytest.raises(BadValues, match="are numbers"):
        store.add_family_outcomes(
            "BTC/USDT", [replace(one, as_of=T0 + 2 * HOUR, label=float("nan"))], T0 + 2 * HOUR, T0
        )
    assert store.family_outcomes_through("BTC/USDT") == one.as_of


def test_old_outcomes_go_before_the_decisions_they_are_of(store):
    outcomes = [decide(store, hour) for hour in range(4)]
    store.add_family_outcomes("BTC/USDT", outcomes, outcomes[-1].as_of, T0 + 9 * HOUR)
    assert store.prunable(T0 + 2 * HOUR)["family_outcomes"] == (2, T0)
    removed = store.prune(T0 + 2 * HOUR)
    assert (removed["family_outcomes"], removed["decisions"]) == (2, 2)
    assert store.family_outcomes("regime") == outcomes[2:]


def test_a_dump_holds_them_and_a_downgrade_drops_what_can_be_computed_again(url, tmp_path):
    store = Store.open(url)
    one = decide(store, 0)
    store.add_family_outcomes("BTC/USDT", [one], one.as_of, T0 + 9 * HOUR)
    store.close()
    into = f"sqlite:///{tmp_path / 'restored.db'}"
    with open_dump(url) as dump:
        load(into, SCHEMA, dump.rows, lambda _: None)
    restored = Store.open(into)
    assert restored.family_outcomes("regime") == [one]
    assert restored.family_outcomes_through("BTC/USDT") == one.as_of
    restored.close()
    alembic_to(url, "0010", downgrade=True)
    assert "family_outcomes" not in contents(url)
    assert len(contents(url)["decisions"]) == 1
    alembic_to(url, SCHEMA)
    assert contents(url)["family_outcomes"] == []


def test_outcomes_belong_to_decisions(store):
    one = decide(store, 0)
    with pytest.raises(sa.exc.IntegrityError):
        store.add_family_outcomes("BTC/USDT", [replace(one, decision_id="none")], one.as_of, T0 + 9 * HOUR)
    assert store.family_outcomes_through("BTC/USDT") is None
