"""What the feed says of itself, and how old data are by it: a dead feed is stale within two bars, a held one is not."""

import json
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.decision_service import running_service
from support.service_probes import alarms, eventually, status
from support.serving_fixture import SYMBOL, slot_entry

from pipelines.clock import Clock, data_age_s
from serving.state.feed_state import (
    ALIVE_S,
    FEED_FILE,
    LONGEST_STEP_S,
    FeedState,
    FeedWatch,
    read_feed_state,
    write_feed_state,
)

T0 = datetime(2026, 3, 1, tzinfo=UTC)
BAR_S = 900.0
RUNNING = FeedState(7, T0, "simulator", 900.0, market_time=T0, bars_s=1.0, lag_bars=0.0)


def after(seconds):
    return T0 + timedelta(seconds=seconds)


def says(folder, at=0.0, **changes):
    """Write what the feed says at this second."""
    write_feed_state(folder, replace(RUNNING, at=after(at), **changes))


def looked(watch, until_s, first_s=0.0):
    """Look every quarter of a second, as the service does."""
    for quarter in range(int(first_s * 4), int(until_s * 4) + 1):
        watch.look(after(quarter / 4))


# ---- the file


def test_a_state_is_read_as_it_was_written_and_none_where_no_feed_ever_ran(tmp_path):
    assert read_feed_state(tmp_path) is None
    write_feed_state(tmp_path, replace(RUNNING, held="a retrain runs"))
    assert read_feed_state(tmp_path) == replace(RUNNING, held="a retrain runs")
    assert [file.name for file in tmp_path.iterdir()] == [FEED_FILE]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "7",
        '{"speed": 900}',
        {"speed": "fast"},
        {"speed": float("nan")},
        {"speed": -1.0},
        {"speed": None},
        {"at": "yesterday"},
        {"at": "2026-03-01T00:00:00"},
        {"at": None},
        {"held": 3},
        {"pid": "me"},
        {"stopped": "no"},
        {"more": 1},
    ],
)
def test_a_damaged_file_is_a_feed_that_is_not_alive_and_says_why(tmp_path, damage):
    says(tmp_path)
    if isinstance(damage, dict):
        damage = json.dumps(json.loads((tmp_path / FEED_FILE).read_text()) | damage)
    (tmp_path / FEED_FILE).write_text(damage)
    found = read_feed_state(tmp_path)
    assert (found.is_alive(T0), found.stands(T0)) == (False, False)
    assert "feed.json cannot be read" in found.condition(T0)


@pytest.mark.parametrize("change", [{"speed": -1.0}, {"at": T0.replace(tzinfo=None)}, {"lag_bars": float("inf")}])
def test_a_state_that_says_nothing_sensible_is_not_written(tmp_path, change):
    with pytest.raises(ValueError, match=r"negative|time zone"):
        write_feed_state(tmp_path, replace(RUNNING, **change))


def test_a_feed_is_alive_for_five_seconds_after_it_wrote_and_not_once_it_was_stopped():
    assert RUNNING.is_alive(after(ALIVE_S - 0.1))
    assert not RUNNING.is_alive(after(ALIVE_S))
    assert "dead" in RUNNING.condition(after(ALIVE_S))
    stopped = replace(RUNNING, stopped=True)
    assert (stopped.is_alive(T0), "no feed runs" in stopped.condition(T0)) == (False, True)
    held = replace(RUNNING, held="a retrain runs")
    assert (held.stands(after(1.0)), held.stands(after(ALIVE_S))) == (True, False)


# ---- market time


@pytest.mark.parametrize(("arrived", "since", "speed", "age"), [
    (30.0, 2.0, 900.0, 1830.0), (0.0, 2.0, 1.0, 2.0), (5.0, 100.0, 0.0, 5.0), (-3.0, 1.0, 1.0, 1.0),
    (4.0, -1.0, 900.0, 4.0),
])  # fmt: skip
def test_the_age_of_data_is_the_wall_time_since_they_arrived_at_speed_and_their_age_at_arrival(
    arrived, since, speed, age
):
    assert data_age_s(arrived, since, speed) == age


def test_now_of_a_market_is_its_position_and_what_passed_since_and_a_wall_clock_knows_better():
    assert Clock("market").now(T0, after(1e6), 1800.0) == after(1800.0)
    assert Clock("wall").now(T0, after(60.0), 1800.0) == after(60.0)


def test_without_a_feed_no_time_passes_between_two_bars(tmp_path):
    watch = FeedWatch(tmp_path, 900.0)
    looked(watch, 100.0)
    assert watch.passed_s(SYMBOL, after(200.0)) == 0.0
    assert FeedWatch(None, 900.0).passed_s(SYMBOL, T0) == 0.0


@pytest.mark.parametrize("speed", [1.0, 900.0, 3600.0])
@pytest.mark.parametrize("end", ["dead", "stopped"])
def test_data_of_a_dead_or_stopped_feed_pass_two_bars_two_bars_after_the_last_one_arrived(tmp_path, speed, end):
    watch = FeedWatch(tmp_path, 900.0)
    says(tmp_path, speed=speed)
    watch.look(T0)
    watch.record_arrival(SYMBOL, T0)
    says(tmp_path, speed=speed, stopped=end == "stopped")
    two_bars = 2 * BAR_S / speed
    step, at = min(two_bars / 8, LONGEST_STEP_S), 0.0
    while at < two_bars - step:
        at += step
        watch.look(after(at))
    assert watch.passed_s(SYMBOL, after(at)) <= 2 * BAR_S
    watch.look(after(at + step))
    watch.look(after(at + 2 * step))
    assert watch.passed_s(SYMBOL, after(at + 2 * step)) > 2 * BAR_S


def test_a_bar_that_arrives_is_fresh_and_each_symbol_has_its_own_age(tmp_path):
    watch = FeedWatch(tmp_path, 900.0)
    says(tmp_path)
    looked(watch, 1.0)
    watch.record_arrival("A", after(1.0))
    watch.look(after(1.25))
    assert (watch.passed_s("A", after(1.25)), watch.passed_s("B", after(1.25))) == (225.0, 1125.0)


def test_while_the_feed_holds_market_time_no_data_grow_older(tmp_path):
    watch = FeedWatch(tmp_path, 900.0)
    says(tmp_path)
    watch.look(T0)
    watch.record_arrival(SYMBOL, T0)
    for second in range(60):
        says(tmp_path, at=second, held="a retrain runs")
        looked(watch, second + 0.75, second)
    assert watch.passed_s(SYMBOL, after(59.75)) == 0.0
    says(tmp_path, at=60.0)  # released: the hour that it stood does not count
    watch.look(after(60.0))
    watch.look(after(60.5))
    assert watch.passed_s(SYMBOL, after(60.5)) == 450.0


def test_a_feed_that_died_while_it_held_market_time_holds_it_no_longer(tmp_path):
    watch = FeedWatch(tmp_path, 900.0)
    says(tmp_path, held="a retrain runs")
    looked(watch, 10.0)
    assert watch.passed_s(SYMBOL, after(10.0)) == pytest.approx(BAR_S * (10.0 - ALIVE_S), abs=BAR_S / 2)


def test_a_process_that_was_busy_itself_does_not_call_the_feed_silent(tmp_path):
    watch = FeedWatch(tmp_path, 900.0)
    says(tmp_path)
    watch.look(T0)
    watch.record_arrival(SYMBOL, T0)
    assert watch.passed_s(SYMBOL, after(30.0)) == LONGEST_STEP_S * 900.0


def test_after_a_restart_data_are_as_old_as_the_dead_feed_and_fresh_where_it_lives(tmp_path):
    says(tmp_path)
    dead, alive = FeedWatch(tmp_path, 900.0), FeedWatch(tmp_path, 900.0)
    dead.look(after(60.0))
    assert dead.passed_s(SYMBOL, after(60.0)) == 60.0 * 900.0
    alive.look(after(1.0))
    assert alive.passed_s(SYMBOL, after(1.0)) == 0.0


def test_by_a_damaged_file_time_passes_at_the_speed_of_the_parameters(tmp_path):
    watch = FeedWatch(tmp_path, 3600.0)
    (tmp_path / FEED_FILE).write_text("{")
    looked(watch, 1.0)
    assert watch.passed_s(SYMBOL, after(1.0)) == 3600.0


# ---- the service


@pytest.mark.parametrize("speed", [900.0, 3600.0])
def test_a_dead_feed_is_tier_4_with_an_alarm_within_two_bars_and_the_next_bars_bring_it_back(stand, home, speed):
    folder = home / "serving"
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        write_feed_state(folder, replace(RUNNING, at=datetime.now(UTC), speed=speed))
        eventually(lambda: status(client)["feed"] is not None)
        client.observe(8)
        began = time.monotonic()
        assert client.decide()["tier"] == 2
        eventually(lambda: status(client)["tier"] == 4)
        waited = time.monotonic() - began
        assert waited >= 2 * BAR_S / speed - 0.3  # s: two bars, as far as a look lies before
        shown = status(client)
        # at speed 3600 a bar passes in a quarter of a second, and a busy machine looks a bar later
        bars = "2" if speed == 900.0 else "[2-9]"
        assert re.search(rf"data stale: last closed bar is {bars} bars old, limit 2", shown["tier_reason"])
        assert shown["symbols"][SYMBOL]["age_bars"] > 2.0
        decision = client.decide()
        assert (decision["tier"], decision["action"]) == (4, "NO_TRADE")
        assert {"TIER_CLOSED", "STALE_DATA"} <= {reason.split(":")[0] for reason in decision["reasons"]}
        known_at, as_of = (datetime.fromisoformat(decision[name]) for name in ("known_at", "as_of"))
        age = f"age_bars={(known_at - as_of).total_seconds() / BAR_S:.2f}"  # a replay knows as much as was known
        assert any(age in reason for reason in decision["reasons"])
        eventually(lambda: any("data stale" in alarm.detail for alarm in alarms(client, "tier_changed")))
        assert status(client)["breakers"] == []  # market time that is played again is no outage
        write_feed_state(folder, replace(RUNNING, at=datetime.now(UTC), speed=1.0))
        eventually(lambda: status(client)["feed"]["speed"] == 1.0)
        for _ in range(9):  # four good bars a tier
            client.observe(15)
            client.decide()
        assert (status(client)["tier"], client.decide()["tier"]) == (2, 2)


def test_while_the_feed_holds_market_time_decisions_are_made_as_if_no_time_had_passed(stand, home):
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        held = replace(RUNNING, at=datetime.now(UTC), speed=3600.0, held="a retrain runs")
        write_feed_state(home / "serving", held)
        eventually(lambda: status(client)["feed"] is not None)
        client.observe(8)
        for _ in range(4):
            time.sleep(0.3)
            write_feed_state(home / "serving", replace(held, at=datetime.now(UTC)))
        decision = client.decide()
        assert (decision["tier"], decision["known_at"]) == (2, decision["as_of"])
        assert status(client)["feed"]["condition"] == "the feed holds market time: a retrain runs"
