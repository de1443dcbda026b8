"""feed start, stop and status, and watch: what a person orders and sees."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.records import DECISION
from typer.testing import CliRunner

from bellwether.cli.main import app
from bellwether.operations import feed_live
from bellwether.operations.feed_wanted import FeedOrder, read_order, write_order
from bellwether.operations.feed_watch import sample, text_of, word_of
from pipelines.errors import UnknownName
from pipelines.record_codec import DecisionRecord
from pipelines.settings import settings
from serving.service.home_store import open_store
from serving.state.feed_state import FeedState, write_feed_state

NOW = datetime.now(UTC)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The settings of a home of its own, whose store is open."""
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path))
    settings.cache_clear()
    yield settings()
    settings.cache_clear()


def typed(*words):
    """Run a command; return the finished one."""
    return CliRunner().invoke(app, list(words))


def state(**changes):
    """Return the state of a feed that runs."""
    running = FeedState(
        pid=1, at=datetime.now(UTC), source="simulator", speed=900.0, bars_s=58.9, lag_bars=0.0,
        market_time=datetime(2024, 12, 31, 12, 15, tzinfo=UTC),
    )  # fmt: skip
    return replace(running, **changes)


def test_a_feed_is_ordered_and_stopped_by_a_person(home):
    started = typed("feed", "start", "--source", "push", "--json")
    assert started.exit_code == 0
    assert json.loads(started.stdout) | {"wanted": True, "source": None, "process": "down"} == json.loads(
        started.stdout
    )
    assert read_order(home) == FeedOrder(True, "push")
    assert "bellwether up" in typed("feed", "start").stdout
    assert read_order(home) == FeedOrder(True, None)
    assert "the feed is stopped" in typed("feed", "stop").stdout
    assert read_order(home) == FeedOrder(False, None, "a person stopped it: `feed stop`")
    assert json.loads(typed("feed", "status", "--json").stdout)["wanted"] is False


def test_an_unknown_feed_is_refused_before_anything_is_ordered(home):
    refused = typed("feed", "start", "--source", "fax")
    assert isinstance(refused.exception, UnknownName)
    assert read_order(home) == FeedOrder()


def test_a_sample_shows_the_feed_and_what_is_in_the_ledger(home):
    store = open_store(home)
    store.add_decisions(
        [
            DecisionRecord(replace(DECISION, id=f"d{i}", action=action), b"", b"")
            for i, action in enumerate(("BUY", "NO_TRADE"))
        ]
    )
    store.raise_alarm("x", "high", "something", NOW)
    write_feed_state(home.serving_dir, state())
    found = sample(home, store)
    assert (found["state"], found["decisions"], found["trades"], found["alarms"]) == ("running", 2, 1, 1)
    assert text_of(found) == ("2024-12-31 12:15 UTC; 58.9 bars/s; 2 decisions; 1 trades; 1 alarms; no champion")
    write_feed_state(home.serving_dir, state(held="a retrain of validator runs", lag_bars=2.5))
    assert text_of(sample(home, store)).startswith(
        "held: the feed holds market time: a retrain of validator runs; 2024-12-31 12:15 UTC; "
    )
    store.close()
    shown = typed("watch", "--once", "--json")
    assert json.loads(shown.stdout)["market_time"] == "2024-12-31T12:15:00+00:00"
    assert len(shown.stdout.splitlines()) == 1


def test_a_feed_is_none_running_held_stopped_or_dead():
    assert word_of(None, NOW) == "none"
    assert word_of(state(), datetime.now(UTC)) == "running"
    assert word_of(state(held="x"), datetime.now(UTC)) == "held"
    assert word_of(state(stopped=True), datetime.now(UTC)) == "stopped"
    assert word_of(state(at=NOW - timedelta(seconds=60.0)), NOW) == "dead"


def test_a_run_pauses_the_feed_orders_it_and_puts_back_what_was_ordered(home):
    write_order(home, FeedOrder(True, "push"))
    before = feed_live.pause(home)
    assert not read_order(home).wanted
    shown = []

    def show(one):
        shown.append(read_order(home))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        feed_live.live(home, show, "files")
    assert shown == [FeedOrder(True, "files")]
    feed_live.restore(home, before)
    assert read_order(home) == FeedOrder(True, "push")
