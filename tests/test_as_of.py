"""As of a moment: what was stored later is left out, however early it was meant, and nothing else is."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import sqlalchemy as sa
from support.command_line import bellwether
from support.legacy_store import alembic_to
from typer.testing import CliRunner

from bellwether.cli import output
from bellwether.cli.main import app
from bellwether.cli.options import day_or_moment, past_moment
from bellwether.operations.history import context_known, decisions_known
from bellwether.operations.lineage import trace
from pipelines.context_layout import CONTEXT_INDEX, TAPE_WIDTH
from pipelines.contracts import BOOK_LEVELS, CLOSE, OPEN_TIME, Books, ContextFeed, Decision, ModelAnswer, Outcome
from pipelines.errors import BadTimes, UnknownName
from pipelines.migrations import tables as t
from pipelines.settings import Settings
from pipelines.store import BarBatch, Change, DecisionRecord, Fill, Promotion, Signed, Store
from serving.service.home_store import open_store

KEY = b"k" * 32
SYMBOL, DIGEST = "BTC/USDT", "ab" * 32
MONDAY = datetime(2024, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
TUESDAY, WEDNESDAY, THURSDAY = (MONDAY + n * DAY for n in (1, 2, 3))
T = MONDAY.timestamp()


@pytest.fixture
def store(url):
    opened = Store.open(url, chain_key=KEY)
    yield opened
    opened.close()


def decided(id="d1", at=MONDAY, **changes):
    made = Decision(
        id=id, symbol=SYMBOL, as_of=at, known_at=at, ingested_at=at, action="BUY", direction=1, confidence=0.8,
        entry=100.0, stop=99.0, take_profits=(101.0,), size=0.05, expiry=None, edge_bps=3.5, p=0.6, regime=None,
        tier=2, arm="champion", event="fvg",
        models={"validator": {"champion": ModelAnswer("validator", version="1", digest=DIGEST, p=0.6)}},
    )  # fmt: skip
    return DecisionRecord(replace(made, **changes), b"\x00\x01", b"\x02")


def ended(id="d1", at=MONDAY + 4 * HOUR, net=145.0):
    return Outcome(id, at, 1, "target", net + 5.0, net, 5.0)


def moved(action, at, version="1", **changes):
    made = Promotion(at, "policy", action, "validator", "champion", None, version, DIGEST, "run", "data", "commit",
                     True, f"{action} of {version}")  # fmt: skip
    return replace(made, **changes)


def bars(n=3, first=0, ingested_at=MONDAY + HOUR, **records):
    opens = T + 60.0 * np.arange(first, first + n)
    rows = np.column_stack([opens, *np.full((4, n), 100.0), np.full(n, 7.0), np.full((3, n), np.nan).T])
    return BarBatch(SYMBOL, rows, opens + 60.0, ingested_at, **records)


def context(ingested_at, *values, kind="funding_rate"):
    """Return a batch of context values (minute of Monday, value) without bars."""
    at, value = np.array(values, dtype=np.float64).reshape(-1, 2).T
    feed = ContextFeed(T + 60.0 * at, np.full(len(at), CONTEXT_INDEX[kind]), value)
    return bars(0, ingested_at=ingested_at, feed=feed)


def ids(records):
    return [record.decision.id for record in records]


# ---- decisions, outcomes, fills


def test_an_outcome_of_monday_that_came_on_wednesday_is_not_known_on_tuesday(store):
    store.add_decisions([decided()])
    store.add_outcome(ended(), WEDNESDAY)
    for moment, known in ((TUESDAY, []), (WEDNESDAY - MINUTE, []), (WEDNESDAY, [ended()]), (None, [ended()])):
        assert store.outcomes_of(["d1"], moment) == known
        assert [outcome for _, outcome in store.resolved(known_by=moment)] == known
    assert store.received_outcomes(["d1"]) == [(ended(), WEDNESDAY)]


def test_the_same_outcome_again_keeps_the_moment_it_came_first(store):
    store.add_decisions([decided()])
    assert store.add_outcome(ended(), TUESDAY)
    assert not store.add_outcome(ended(), THURSDAY)
    assert store.received_outcomes(["d1"])[0].ingested_at == TUESDAY
    assert store.verify_chain().faults == ()


def test_a_moment_of_another_zone_is_the_same_moment(store):
    store.add_decisions([decided()])
    store.add_outcome(ended(), WEDNESDAY)
    local = WEDNESDAY.astimezone(datetime.strptime("+05:30", "%z").tzinfo)
    assert store.outcomes_of(["d1"], local) == [ended()]
    assert store.outcomes_of(["d1"], local - MINUTE) == []


def test_a_decision_that_arrived_late_is_not_known_before_and_neither_is_its_outcome(store):
    store.add_decisions([decided(), decided("late", MONDAY - HOUR, ingested_at=WEDNESDAY)])
    store.add_outcome(ended("late"), WEDNESDAY)
    assert ids(store.decisions(known_by=TUESDAY)) == ["d1"]
    assert ids(store.decisions(known_by=WEDNESDAY)) == ids(store.decisions()) == ["late", "d1"]
    assert ids(store.decisions(last=1, until=MONDAY, known_by=TUESDAY)) == []
    assert store.resolved(known_by=TUESDAY) == []
    assert store.decision("late", WEDNESDAY) == store.decision("late")
    with pytest.raises(UnknownName, match=r"was not known at 2024-01-02.* it was stored at 2024-01-03T00:00:00"):
        store.decision("late", TUESDAY)


def test_fills_are_known_from_their_arrival_on(store):
    store.add_decisions([decided()])
    store.add_fill(Fill("f1", "d1", MONDAY, TUESDAY, "filled", 100.1, 10.0))
    store.add_fill(Fill("f2", "d1", MONDAY, THURSDAY, "filled", 100.2, 20.0))
    assert [fill.id for fill in store.fills(known_by=WEDNESDAY)] == ["f1"]
    assert [fill.id for fill in store.fills(last=1, known_by=WEDNESDAY)] == ["f1"]
    assert len(store.fills()) == 2


# ---- the ledger


def test_promotions_after_the_moment_count_neither_for_slots_nor_for_the_ledger(store):
    for action, at, version in (("challenge", MONDAY, "1"), ("promote", TUESDAY, "1"), ("challenge", WEDNESDAY, "2")):
        store.add_promotion(moved(action, at, version))
    expected = {MONDAY - DAY: (None, None), MONDAY: (None, "1"), TUESDAY: ("1", None), None: ("1", "2")}
    for moment, versions in expected.items():
        slots = store.slots("validator", moment)
        assert tuple(line and line.to_version for line in (slots.champion, slots.challenger)) == versions
    assert [line.to_version for line in store.promotions("validator", known_by=TUESDAY)] == ["1", "1"]
    assert [line.action for line in store.promotions(last=1, known_by=TUESDAY)] == ["promote"]


# ---- bars


def corrected(store, minute, close, at):
    """Correct the close of a bar; None takes it out."""
    opened = T + 60.0 * minute
    after = None if close is None else bars(1, minute).bars[0].copy()
    if after is not None:
        after[CLOSE] = close
    return store.correct(SYMBOL, [Change(opened, opened + 60.0, after)], Signed("ann", at, "the venue republished"))


def test_a_corrected_bar_is_as_observed_before_and_as_corrected_after(store):
    store.add_bars(bars())
    corrected(store, 1, 99.5, TUESDAY)
    corrected(store, 1, 99.0, THURSDAY)
    closes = {
        moment: float(store.bars(SYMBOL, known_by=moment)[1, CLOSE])
        for moment in (MONDAY + HOUR, TUESDAY, WEDNESDAY, THURSDAY, None)
    }
    assert list(closes.values()) == [100.0, 99.5, 99.5, 99.0, 99.0]
    assert len(store.corrections(SYMBOL, WEDNESDAY)) == 1
    assert store.bars(SYMBOL, reading=TUESDAY, known_by=THURSDAY)[1, CLOSE] == 99.5  # the earlier of the two limits


def test_a_bar_set_aside_is_there_until_then(store):
    store.add_bars(bars())
    store.set_aside(SYMBOL, bars().bars[1], T + 120.0, "BY_HAND", Signed("ann", TUESDAY, "cancelled trades"))
    assert [len(store.bars(SYMBOL, known_by=moment)) for moment in (MONDAY + HOUR, TUESDAY, None)] == [3, 2, 2]


def test_bars_that_came_later_are_left_out_and_one_put_in_by_hand_is_not(store):
    store.add_bars(bars(2))
    store.add_bars(bars(2, first=3, ingested_at=WEDNESDAY))
    corrected(store, 2, 101.0, TUESDAY)
    opens = {
        moment: ((store.bars(SYMBOL, known_by=moment)[:, OPEN_TIME] - T) / 60.0).tolist()
        for moment in (MONDAY, MONDAY + HOUR, TUESDAY, WEDNESDAY, None)
    }
    assert list(opens.values()) == [[], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


# ---- books and context


def test_context_is_known_from_its_arrival_on_whatever_time_it_is_of(store):
    store.add_bars(context(TUESDAY, (1, 1e-4)))
    store.add_bars(context(THURSDAY, (0, 2e-4), (2, 3e-4)))
    found = store.records(SYMBOL, known_by=WEDNESDAY)[1]
    assert ((found.known - T).tolist(), found.value.tolist()) == ([60.0], [1e-4])
    assert store.records(SYMBOL, known_by=MONDAY) == (None, None)
    assert store.records(SYMBOL)[1].value.tolist() == [2e-4, 1e-4, 3e-4]
    assert store.context(SYMBOL, known_by=WEDNESDAY) == [("funding_rate", 1e-4, T + 60.0, TUESDAY)]
    assert [(one.value, one.ingested_at) for one in store.context(SYMBOL, last=2)] == [
        (1e-4, TUESDAY),
        (3e-4, THURSDAY),
    ]


def test_books_are_records_too_and_no_context(store):
    books = Books(np.array([T]), np.full((1, 2, BOOK_LEVELS, 3), 1.0), np.full((1, TAPE_WIDTH), np.nan))
    store.add_bars(bars(0, ingested_at=WEDNESDAY, books=books))
    assert store.records(SYMBOL, known_by=TUESDAY) == (None, None)
    assert store.records(SYMBOL, known_by=WEDNESDAY)[0].known.tolist() == [T]
    assert store.context(SYMBOL) == []


# ---- rows of earlier releases, and the chain


def old_outcome(url):
    """Store a decision and its outcome as release 0.9.0 did: without the moment the outcome came."""
    alembic_to(url, "0008")
    record = decided(ingested_at=MONDAY + MINUTE).decision
    names = ("id", "symbol", "as_of", "known_at", "ingested_at", "action", "direction", "event", "tier", "arm",
             "generation")  # fmt: skip
    row = {name: getattr(record, name) for name in names}
    of_0008 = [column for column in t.outcomes.columns if column.name != "ingested_at"]
    outcomes = sa.Table("outcomes", sa.MetaData(), *(sa.Column(c.name, c.type) for c in of_0008))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        stored = {"payload": record.to_dict(), "features": b"", "signals": b""}
        connection.execute(sa.insert(t.decisions), [row | stored])
        connection.execute(sa.insert(outcomes), [{c.name: getattr(ended(), c.name) for c in of_0008}])
    engine.dispose()


def test_an_outcome_of_an_earlier_release_was_known_when_it_was_resolved(url):
    old_outcome(url)
    store = Store.open(url, chain_key=KEY)
    assert store.outcomes_of(["d1"], MONDAY + 3 * HOUR) == []
    assert store.received_outcomes(["d1"], MONDAY + 4 * HOUR) == [(ended(), MONDAY + 4 * HOUR)]
    assert not store.add_outcome(ended(), THURSDAY)  # sent again, it stays without a moment of its own
    with store._engine.connect() as connection:
        assert connection.scalar(sa.select(t.outcomes.c.ingested_at)) is None
    store.close()


def test_the_chain_covers_the_moment_and_rows_from_before_it(url):
    old_outcome(url)
    store = Store.open(url, chain_key=KEY)
    store.add_decisions([decided("d2")])
    store.add_outcome(ended("d2"), WEDNESDAY)  # the chain begins here, over the old row too
    found = store.verify_chain()
    assert (found.faults, found.rows) == ((), 2)
    for id, what in (("d2", "NULL"), ("d1", "resolved_at")):
        with store._engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE outcomes SET ingested_at = {what} WHERE decision_id = '{id}'"))
    assert [(fault.ref, fault.what) for fault in store.verify_chain().faults] == [
        ("outcomes d1", "was edited"),
        ("outcomes d2", "was edited"),
    ]
    store.close()


def test_a_downgrade_that_would_lose_when_outcomes_came_is_refused(url):
    store = Store.open(url)  # without a key, so without a chain
    store.add_decisions([decided()])
    store.add_outcome(ended(), TUESDAY)
    store.close()
    with pytest.raises(NotImplementedError, match="when outcomes came would be lost"):
        alembic_to(url, "0008", downgrade=True)


def test_a_downgrade_and_an_upgrade_leave_old_rows_as_they_were(url):
    old_outcome(url)
    Store.open(url).close()
    alembic_to(url, "0008", downgrade=True)
    store = Store.open(url)
    assert store.outcomes_of(["d1"]) == [ended()]
    store.close()


# ---- lineage


@pytest.fixture
def installation(store, tmp_path):
    return SimpleNamespace(store=store, settings=Settings(home=tmp_path), versions=tmp_path / "versions")


def test_lineage_shows_outcome_corrections_and_ledger_lines_that_were_known_by_then(store, installation):
    store.add_bars(bars())
    store.add_promotion(moved("challenge", MONDAY))
    store.add_decisions([decided(at=MONDAY + 2 * MINUTE, ingested_at=MONDAY + HOUR)])
    store.add_outcome(ended(), WEDNESDAY)
    store.add_promotion(moved("promote", WEDNESDAY))
    corrected(store, 1, 99.0, WEDNESDAY)
    corrected(store, 2, 99.0, WEDNESDAY)  # a bar after the decision: it could not have read it
    earlier, later = (trace(installation, "d1", moment) for moment in (TUESDAY, WEDNESDAY))
    names = ("outcome", "outcome.net_bps", "outcome.ingested_at", "corrections_since", "validator.champion.ledger_line")
    assert [earlier["links"].get(name) for name in names] == [
        None,
        None,
        None,
        0,
        "1: challenge by policy, challenge of 1",
    ]
    assert [later["links"].get(name) for name in names] == [
        "target", 145.0, WEDNESDAY.isoformat(), 1, "2: promote by policy, promote of 1"
    ]  # fmt: skip
    assert (earlier["known_by"], trace(installation, "d1")["known_by"]) == (TUESDAY.isoformat(), None)
    assert trace(installation, "d1")["links"] == later["links"]
    before = trace(installation, None, MONDAY + HOUR)
    assert (before["decision"]["id"], before["links"]["bars_corrected_until"]) == ("d1", None)


def test_corrections_that_the_decision_already_read_are_not_counted(store, installation):
    store.add_bars(bars())
    corrected(store, 0, 99.0, TUESDAY)
    store.add_decisions([decided(at=TUESDAY, ingested_at=TUESDAY, lineage={"reading": TUESDAY.isoformat()})])
    corrected(store, 1, 99.0, THURSDAY)
    links = trace(installation, "d1")["links"]
    assert (links["bars_corrected_until"], links["corrections_since"]) == (TUESDAY.isoformat(), 1)
    assert trace(installation, "d1", WEDNESDAY)["links"]["corrections_since"] == 0


def test_a_model_whose_ledger_line_came_later_had_none_then(store, installation):
    store.add_decisions([decided()])
    store.add_promotion(moved("promote", WEDNESDAY))
    assert any("no ledger line" in gap for gap in trace(installation, "d1", TUESDAY)["broken"])
    assert not any("no ledger line" in gap for gap in trace(installation, "d1", WEDNESDAY)["broken"])


def test_the_newest_decision_is_the_newest_that_was_known(store, installation):
    store.add_decisions([decided(), decided("d2", WEDNESDAY)])
    assert trace(installation, None, TUESDAY)["decision"]["id"] == "d1"
    with pytest.raises(UnknownName, match="no decision was known at 2023"):
        trace(installation, None, MONDAY - DAY)


# ---- lists


def test_decisions_are_listed_with_the_outcomes_known_by_then(store):
    store.add_decisions([decided(), decided("d2", MONDAY + HOUR), decided("late", MONDAY, ingested_at=THURSDAY)])
    store.add_outcome(ended(), TUESDAY)
    store.add_outcome(ended("d2"), THURSDAY)
    found = decisions_known(store, SYMBOL, MONDAY, None, 5, WEDNESDAY)
    assert [(one["id"], one["outcome"] and one["outcome"]["ingested_at"]) for one in found] == [
        ("d1", TUESDAY.isoformat()),
        ("d2", None),
    ]
    assert len(decisions_known(store, None, None, None, 5, None)) == 3


def test_context_of_a_symbol_of_which_nothing_was_observed_is_refused(store):
    with pytest.raises(UnknownName, match="run `bellwether run --once`"):
        context_known(store, SYMBOL, 5, None)
    store.add_bars(bars(feed=ContextFeed(np.array([T]), np.array([CONTEXT_INDEX["fear_greed"]]), np.array([np.nan]))))
    with pytest.raises(UnknownName, match="the store holds BTC/USDT"):
        context_known(store, "ETH/USDT", 5, None)
    assert context_known(store, SYMBOL, 5, MONDAY) == []
    assert [one["value"] for one in context_known(store, SYMBOL, 5, None)] == [None]


# ---- commands


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home with a decision whose outcome came two days late, one that came late itself, and late context."""
    folder = tmp_path_factory.mktemp("home")
    opened = open_store(Settings(home=folder))
    opened.add_bars(bars())
    opened.add_bars(context(THURSDAY, (1, 1e-4)))
    opened.add_decisions([decided(), decided("late", MONDAY + HOUR, ingested_at=THURSDAY, action="NO_TRADE")])
    opened.add_outcome(ended(), WEDNESDAY)
    opened.add_promotion(moved("promote", MONDAY))
    opened.close()
    return folder


@pytest.fixture
def shown(home, monkeypatch):
    """Run a command on that home, 80 columns wide, in this process; return what it prints."""
    opened = open_store(Settings(home=home))
    installation = SimpleNamespace(store=opened, settings=Settings(home=home), versions=home / "versions")
    monkeypatch.setattr("flows.support.installation.open_installation", lambda: installation)
    monkeypatch.setattr(output.out, "width", 80)

    def run(*words):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
        return done.stdout

    yield run
    opened.close()


def test_the_commands_show_what_was_known_then(shown):
    found = json.loads(shown("decisions", "--as-of", "2024-01-02T00:00Z", "--json"))
    assert [(one["id"], one["outcome"]) for one in found["decisions"]] == [("d1", None)]
    assert found["known_by"] == TUESDAY.isoformat()
    traced = json.loads(shown("lineage", "d1", "--as-of", "2024-01-02T00:00Z", "--json"))
    assert (traced["known_by"], traced["links"]["outcome"]) == (TUESDAY.isoformat(), None)
    assert json.loads(shown("context", SYMBOL, "--as-of", "2024-01-02T00:00Z", "--json"))["context"] == []
    assert json.loads(shown("context", "btcusdt", "--json"))["context"] == [
        {"kind": "funding_rate", "value": 1e-4, "known_at": "2024-01-01T00:01:00+00:00",
         "ingested_at": THURSDAY.isoformat()}
    ]  # fmt: skip


def test_the_tables_fit_80_columns(shown):
    lines = shown("decisions", "--since", "2024-01-01", "--until", "2024-01-02").splitlines()
    assert lines[0] == "2 newest decisions"
    assert lines[3].split() == ["2024-01-01", "00:00", "BTC/USDT", "BUY", "fvg", "0.600", "0.0500", "target", "145.0"]
    context_lines = shown("context", SYMBOL).splitlines()
    assert any("2024-01-01 00:01:00" in line for line in context_lines)
    title, *_ = shown("lineage", "d1", "--as-of", "2024-01-03T00:00Z").splitlines()
    assert title == "lineage of d1, as known at 2024-01-03T00:00:00+00:00"
    assert max(map(len, [*lines, *context_lines])) <= 80


def test_a_decision_that_was_not_known_then_is_refused_with_when_it_was(home):
    done = bellwether(home, "lineage", "late", "--as-of", "2024-01-02T00:00Z")
    assert (done.returncode, done.stdout) == (1, "")
    assert "it was stored at 2024-01-04T00:00:00+00:00. Give that moment or a later one" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2024-01-02T00:00", "--as-of 2024-01-02T00:00 has no time zone; write 2024-01-02T00:00+00:00 for UTC"),
        ("2024-01-02", "--as-of 2024-01-02 has no time zone; write 2024-01-02T00:00+00:00 for UTC"),
        ("Tuesday", "--as-of Tuesday is no moment"),
        ("2999-01-01T00:00Z", "--as-of 2999-01-01T00:00Z is still to come"),
    ],
)
def test_an_impossible_moment_is_refused_with_its_option_and_the_remedy(text, message):
    with pytest.raises(BadTimes) as refused:
        past_moment(text)
    assert str(refused.value).startswith(message)


def test_a_day_is_its_midnight_and_the_option_is_named():
    assert day_or_moment("2024-01-02", "--until") == TUESDAY
    with pytest.raises(BadTimes, match="--until soon is no day or moment"):
        day_or_moment("soon", "--until")
