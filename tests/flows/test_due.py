"""What is due in market time: a run an occurrence where there is time for it, else the newest, the others counted."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from flows.support.due import APART, Progress, after_start, begin, brought_up, due, missed, next_occurrence, waiting

HALF_HOUR, DAY, WEEK = timedelta(minutes=30), timedelta(days=1), timedelta(days=7)
PLAN = {"ingest": DAY, "monitor": HALF_HOUR, "retrain": WEEK}
MARKET, WALL = datetime(2024, 6, 5, 10, 10, tzinfo=UTC), datetime(2026, 11, 30, 20, 0, tzinfo=UTC)


def lived(speed, seconds, plan=PLAN, poll_s=2, busy_s=0):
    """Poll as the reconciler does while a market runs; return the starts as (deployment, wall, occurrence, stands for).

    busy_s  how long each run takes
    """
    known, starts, until = brought_up(plan, {}, MARKET), [], {}
    for second in range(0, seconds + 1, poll_s):
        wall, market = WALL + timedelta(seconds=second), MARKET + timedelta(seconds=second * speed)
        known = brought_up(plan, known, market)
        for run in due(plan, known, market, wall, {name for name, end in until.items() if wall < end}):
            known[run.deployment] = after_start(known[run.deployment], run, wall)
            until[run.deployment] = wall + timedelta(seconds=busy_s)
            starts.append((run.deployment, wall, run.occurrence, run.coalesced))
    return known, starts


def test_at_first_sight_nothing_is_due_and_the_next_occurrences_lie_on_whole_intervals_of_the_day():
    known = brought_up(PLAN, {}, MARKET)
    assert due(PLAN, known, MARKET, WALL) == []
    assert {name: next_occurrence(known[name], every) for name, every in PLAN.items()} == {
        "ingest": datetime(2024, 6, 6, tzinfo=UTC),
        "monitor": datetime(2024, 6, 5, 10, 30, tzinfo=UTC),
        "retrain": datetime(2024, 6, 12, tzinfo=UTC),
    }
    assert [known[name].missed for name in PLAN] == [0, 0, 0]


def test_a_slow_market_gets_a_run_an_occurrence_and_none_is_missed():
    known, starts = lived(speed=10, seconds=3600, plan={"monitor": HALF_HOUR})
    assert [start[3] for start in starts] == [1] * 20
    assert [start[2] for start in starts] == [
        datetime(2024, 6, 5, 10, 30, tzinfo=UTC) + i * HALF_HOUR for i in range(20)
    ]
    assert known["monitor"].missed == 0


@pytest.mark.parametrize("speed", [900, 3600])
def test_runs_of_a_fast_market_start_a_minute_apart_and_what_coalesces_is_counted(speed):
    known, starts = lived(speed, seconds=1800)
    for name, every in PLAN.items():
        mine = [start for start in starts if start[0] == name]
        assert all(later[1] - first[1] >= APART for first, later in pairwise(mine))
        passed = sum(start[3] for start in mine)
        assert known[name].missed == passed - len(mine)
        through = MARKET + timedelta(seconds=1800 * speed)
        assert (
            passed + waiting(known[name], every, through) == (through - begin(every, MARKET).through) // every
        )  # every occurrence is a run, part of one, or waits
    assert len([start for start in starts if start[0] == "monitor"]) == 30


def test_a_deployment_with_a_run_under_way_starts_no_second_one_while_others_do():
    _, starts = lived(speed=900, seconds=1200, plan={"monitor": HALF_HOUR, "ingest": DAY}, busy_s=290)
    monitors = [start[1] for start in starts if start[0] == "monitor"]
    assert [later - first for first, later in pairwise(monitors)] == [timedelta(seconds=290)] * 4
    known = brought_up(PLAN, {}, MARKET)
    assert [run.deployment for run in due(PLAN, known, MARKET + WEEK, WALL, {"monitor"})] == ["ingest", "retrain"]


def test_after_a_night_off_one_run_starts_for_the_newest_occurrence():
    known = {"monitor": Progress(MARKET.replace(minute=0), WALL, 2)}
    later = MARKET + timedelta(hours=9)
    plan = {"monitor": HALF_HOUR}
    assert missed(known["monitor"], HALF_HOUR, later) == 2 + 17
    (run,) = due(plan, known, later, WALL + timedelta(hours=9))
    assert (run.occurrence, run.coalesced) == (datetime(2024, 6, 5, 19, 0, tzinfo=UTC), 18)
    known["monitor"] = after_start(known["monitor"], run, WALL + timedelta(hours=9))
    assert due(plan, known, later, WALL + timedelta(hours=10)) == []
    assert missed(known["monitor"], HALF_HOUR, later) == 19


def test_a_change_of_speed_starts_nothing_by_itself_and_loses_nothing():
    known, _ = lived(speed=900, seconds=300)
    market = MARKET + timedelta(seconds=300 * 900)
    assert brought_up(PLAN, known, market) == known  # progress is in market time, so another speed leaves it
    resumed = brought_up(PLAN, known, market + 30 * DAY, resumed=True)  # a month in which Prefect's schedules ran
    assert due(PLAN, resumed, market + 30 * DAY, WALL + DAY) == []
    assert [resumed[name].missed for name in PLAN] == [known[name].missed for name in PLAN]


def test_a_market_that_went_back_begins_again_and_one_that_is_new_in_the_plan_is_not_due():
    known, _ = lived(speed=900, seconds=300)
    back = MARKET - 365 * DAY
    again = brought_up(PLAN, known, back)
    assert due(PLAN, again, back, WALL + DAY) == []
    assert again["monitor"].missed == known["monitor"].missed
    assert due({**PLAN, "report": DAY}, brought_up({**PLAN, "report": DAY}, again, back), back, WALL + DAY) == []
