"""What a person changed in Prefect outlives restarts; what was written is readable by no other user."""

import json
import os
import shutil
import signal
import stat

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CUSTOM_HEADERS, temporary_settings
from support.stack import until

from bellwether.operations import start_stop
from flows.support import market_runs, processes
from flows.support.installation import Installation, now
from flows.support.pacing import read_pacing
from flows.support.schedules import deployment_statuses
from serving.state.feed_state import FeedState, write_feed_state

pytestmark = pytest.mark.stack
DAILY = {"cron": "5 5 * * *", "timezone": "Europe/Paris"}
WEEKLY = {"interval": 14 * 86400}


def patch(stack, path, body):
    stack.prefect(path, body, "PATCH")


def deployment(stack, name):
    return stack.prefect(f"deployments/name/{name}/{name}")


def triggers(stack):
    return stack.prefect("automations/filter", {})


def listed(stack, *names):
    """Return what `schedules list` shows of these deployments."""
    return {one["deployment"]: one for one in stack.json("schedules", "list") if one["deployment"] in names}


def put_back_to_release_0_6(stack, automation_id):
    """Give the drift automation the name and event it had in releases 0.5.0 and 0.6.0."""
    (found,) = triggers(stack)
    content = {n: found[n] for n in ("description", "enabled", "tags", "actions", "trigger")}
    content["trigger"] |= {"expect": ["bellwether.retrain-asked"]}
    content |= {"name": "bellwether-drift-asks-for-retrain"}
    text = {"family": "{{ event.payload.family }}", "reason": "{{ event.payload.reason }}"}
    content["actions"] = [content["actions"][0] | {"parameters": text}]
    stack.prefect(f"automations/{automation_id}", content, "PUT")


def flows_killed_and_back(stack):
    """Kill the process of the flows and start it again."""
    pid = processes.services(stack.settings)["flows"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: processes.services(stack.settings)["flows"]["pid"] != pid, 20.0, "flows to be gone")
    start_stop.up(stack.settings, ["flows"])


def test_schedules_that_were_edited_paused_or_added_outlive_a_kill_and_reset_restores_the_plan(stack):
    assert all(one["differences"] == [] for one in stack.json("schedules"))
    monitor, retrain, reconcile = (deployment(stack, name) for name in ("monitor", "retrain", "reconcile"))
    patch(stack, f"deployments/{monitor['id']}/schedules/{monitor['schedules'][0]['id']}", {"active": False})
    stack.prefect(f"deployments/{monitor['id']}/schedules", [{"schedule": DAILY, "active": True}])
    patch(stack, f"deployments/{retrain['id']}/schedules/{retrain['schedules'][0]['id']}", {"schedule": WEEKLY})
    patch(stack, f"deployments/{retrain['id']}", {"parameters": {"families": ["validator"], "reason": "mine"}})
    patch(stack, f"deployments/{reconcile['id']}", {"paused": True})
    (automation,) = triggers(stack)
    patch(stack, f"automations/{automation['id']}", {"enabled": False})
    before = listed(stack, "monitor", "retrain", "reconcile")
    form_of_old = {"parameter_openapi_schema": {"type": "object", "properties": {"family": {"type": "string"}}}}
    patch(
        stack, f"deployments/{retrain['id']}", {"parameters": {"family": "validator", "reason": "mine"}} | form_of_old
    )
    put_back_to_release_0_6(stack, automation["id"])
    waits = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    of_old = {"parameters": {"family": "validator,regime", "reason": "before"}, "state": waits}
    requested = stack.prefect(f"deployments/{retrain['id']}/create_flow_run", of_old)
    ids = {name: sorted(s["id"] for s in deployment(stack, name)["schedules"]) for name in before}

    flows_killed_and_back(stack)

    assert listed(stack, *before) == before
    assert {name: sorted(s["id"] for s in deployment(stack, name)["schedules"]) for name in before} == ids
    (renamed,) = triggers(stack)
    assert (renamed["id"], renamed["enabled"]) == (automation["id"], False)
    assert (renamed["name"], renamed["trigger"]["expect"]) == (automation["name"], automation["trigger"]["expect"])
    assert renamed["actions"] == automation["actions"]
    waiting = stack.prefect(f"flow_runs/{requested['id']}")
    assert waiting["parameters"] == {"families": ["validator", "regime"], "reason": "before"}
    stack.prefect(f"flow_runs/{requested['id']}", method="DELETE")
    assert before["monitor"]["differences"] == [
        "schedule not planned: cron 5 5 * * * Europe/Paris",
        "schedule not planned: cron */30 * * * * UTC (paused)",
        "schedule missing: cron */30 * * * * UTC",
    ]
    assert "schedule not planned: every 14 d" in before["retrain"]["differences"]
    assert before["reconcile"]["differences"] == ["paused as a whole"]

    shown = stack.json("schedules", "reset", "--dry-run")
    assert {one["deployment"] for one in shown} == set(before)
    assert stack.json("schedules", "reset") == shown  # the dry run changed nothing
    assert all(one["differences"] == [] for one in stack.json("schedules"))
    assert [a["enabled"] for a in triggers(stack)] == [True]


@pytest.fixture
def prefect_of(stack):
    """Point the Prefect client of this process at the stack's server."""
    given = processes.environment(stack.settings)
    wanted = {PREFECT_API_URL: given["PREFECT_API_URL"]}
    with temporary_settings(
        wanted | {PREFECT_CLIENT_CUSTOM_HEADERS: json.loads(given["PREFECT_CLIENT_CUSTOM_HEADERS"])}
    ):
        yield


def test_at_another_speed_the_schedules_of_what_follows_the_market_are_held_and_then_given_back(
    stack, prefect_of, tmp_path
):
    home = stack.settings.model_copy(update={"home": tmp_path})  # with a feed; that of the stack is idle
    installation = Installation(home, stack.installation.params, stack.store)
    (installation.workspace / "data").mkdir(parents=True)
    shutil.copy(stack.installation.workspace / "data" / "manifest.json", installation.workspace / "data")

    def poll(speed):
        write_feed_state(home.serving_dir, FeedState(os.getpid(), now(), "simulator", speed))
        assert market_runs.poll(installation, now()) == []  # market time stands, so nothing is due
        return {name: [each["active"] for each in deployment(stack, name)["schedules"]] for name in names}

    names = ("ingest", "monitor", "retrain", "report", "retention", "reconcile", "verify")
    assert poll(900.0) == {name: [name in ("reconcile", "verify")] for name in names}
    held = read_pacing(home).held
    assert sorted(held) == ["ingest", "monitor", "report", "retention", "retrain"]
    found = deployment_statuses(installation.params, held)
    assert all(one.differences == () for one in found)
    assert sorted(one.deployment for one in found if one.held) == sorted(held)
    assert poll(1.0) == {name: [True] for name in names}


def test_nothing_under_a_used_home_is_open_to_other_users(stack):
    loose = [
        f"{stat.S_IMODE(path.lstat().st_mode):04o} {path}"
        for path in (stack.settings.home, *stack.settings.home.rglob("*"))
        if not path.is_symlink() and stat.S_IMODE(path.lstat().st_mode) & 0o077
    ]
    assert loose == [], json.dumps(loose[:20], indent=1)
