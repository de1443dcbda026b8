"""What of the Prefect server is reported as not planned, without one; tests/integration has the real one."""

from datetime import timedelta

import pytest
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule

from flows import deployments
from flows.support import schedules
from pipelines.settings import load_params


def test_every_deployment_has_its_plan_and_every_plan_its_deployment():
    assert {flow.name for flow, _ in deployments.DEPLOYMENTS} == schedules.plan(load_params()).keys()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (IntervalSchedule(interval=timedelta(minutes=15)), "every 15 min"),
        (IntervalSchedule(interval=timedelta(days=7)), "every 7 d"),
        (IntervalSchedule(interval=timedelta(hours=36)), "every 36 h"),
        (IntervalSchedule(interval=timedelta(seconds=90)), "every 90 s"),
        (CronSchedule(cron="*/30 * * * *"), "cron */30 * * * * UTC"),
        (CronSchedule(cron="0 9 * * 1", timezone="Europe/Paris"), "cron 0 9 * * 1 Europe/Paris"),
        (RRuleSchedule(rrule="FREQ=DAILY"), "rrule FREQ=DAILY UTC"),
    ],
)
def test_a_schedule_is_described_in_words(schedule, expected):
    assert schedules.describe_schedule(schedule) == expected
    assert schedules.describe_schedule(schedule, False, {"b": 1, "a": 2}) == f"{expected} with a = 2, b = 1 (paused)"


def test_the_creation_time_of_an_interval_is_no_difference():
    once, later = (IntervalSchedule(interval=timedelta(days=1)) for _ in range(2))
    assert once.anchor_date != later.anchor_date
    assert schedules.describe_schedule(once) == schedules.describe_schedule(later)


@pytest.mark.parametrize(
    ("has", "planned", "differences"),
    [
        ([], [], []),
        (["a"], ["a"], []),
        (["a"], [], ["x not planned: a"]),
        ([], ["a"], ["x missing: a"]),
        (["b"], ["a"], ["x not planned: b", "x missing: a"]),
        (["a", "a"], ["a"], ["x not planned: a"]),
        (["b", "a"], ["a", "b"], []),
    ],
)
def test_a_duplicate_is_a_difference_and_order_is_none(has, planned, differences):
    assert schedules.list_differences("x", has, planned) == differences
