"""`bellwether breaker`: what is tripped and why, who reset it, and what is refused."""

import json
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from bellwether.cli.main import app
from flows.support.installation import open_installation
from pipelines.errors import BadValues, UnknownName
from pipelines.settings import settings
from serving.risk.breakers import BREAKER_NAMES
from serving.state.tiers import EMERGENCY_BREAKER

AT = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
def store(tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("BELLWETHER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USER", "bob")
    settings.cache_clear()
    yield open_installation().store
    settings.cache_clear()


def breaker(*words):
    return CliRunner().invoke(app, ["breaker", *words])


def run_json(*words):
    done = breaker(*words, "--json")
    assert done.exit_code == 0, done.exception
    return json.loads(done.stdout)


def tripped(found):
    return {b["name"]: b["reason"] for b in found["breakers"] if b["tripped"]}


def test_the_list_has_every_breaker_tripped_or_not(store):
    store.trip("daily_loss", AT, "-2.3 %")
    found = run_json("list")
    assert [b["name"] for b in found["breakers"]] == list(BREAKER_NAMES)
    assert tripped(found) == {"daily_loss": "-2.3 %"}
    assert "armed" in breaker("list").stdout


def test_the_emergency_breaker_is_tripped_and_reset_by_hand(store):
    assert tripped(run_json("trip", EMERGENCY_BREAKER, "--reason", "the venue halted")) == {
        "emergency": "bob: the venue halted"
    }
    assert tripped(run_json("reset", EMERGENCY_BREAKER, "--reason", "it trades again")) == {}


def test_the_history_names_who_reset_what_and_why(store):
    store.trip("drawdown", AT, "8.2 %")
    run_json("reset", "drawdown", "--reason", "a smaller size from now on", "--by", "ann")
    (line,) = run_json("list", "--all")["trips"]
    assert (line["name"], line["reason"], line["tripped_at"]) == ("drawdown", "8.2 %", AT.isoformat())
    assert (line["reset_by"], line["reset_reason"]) == ("ann", "a smaller size from now on")
    assert "ann" in breaker("list", "--all").stdout


@pytest.mark.parametrize("word", ["trip", "reset"])
@pytest.mark.parametrize("reason", [(), ("--reason", "  ")])
def test_nothing_is_tripped_or_reset_without_a_reason(store, word, reason):
    if word == "reset":
        store.trip("daily_loss", AT, "-2.3 %")
    before = store.breaker_trips(tripped_only=False)
    assert isinstance(breaker(word, "daily_loss", *reason).exception, BadValues)
    assert store.breaker_trips(tripped_only=False) == before


@pytest.mark.parametrize("word", ["trip", "reset"])
def test_an_unknown_name_is_answered_with_the_known_ones(store, word):
    error = breaker(word, "weather", "--reason", "rain").exception
    assert isinstance(error, UnknownName)
    assert all(name in str(error) for name in BREAKER_NAMES)


def test_a_breaker_that_is_not_tripped_cannot_be_reset(store):
    assert isinstance(breaker("reset", "model", "--reason", "why not").exception, UnknownName)


def test_a_name_of_another_release_can_still_be_reset(store):
    store.trip("weather", AT, "rain")
    assert tripped(run_json("list")) == {"weather": "rain"}
    assert tripped(run_json("reset", "weather", "--reason", "sun")) == {}


def test_a_reset_clears_the_alarm_of_its_breaker_and_no_other(store):
    for name in ("model", "drawdown"):
        store.trip(name, AT, "why")
        store.raise_alarm("breaker_tripped", "critical", f"{name}: why", AT)
    run_json("reset", "model", "--reason", "rolled back")
    assert [alarm.detail for alarm in store.alarms()] == ["drawdown: why"]
