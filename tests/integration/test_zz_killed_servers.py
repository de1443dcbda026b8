"""Every server is killed and starts again by itself, with an alarm; the key of all is rotated, which comes last."""

import httpx
import psutil
import pytest
from support.servers import CALLS, url_of
from support.stack import until

from bellwether.operations import start_stop
from flows.support import processes
from pipelines.families import FAMILIES

pytestmark = pytest.mark.stack
KILLED = ("mlflow", "prefect", "flows", "evidently")


def test_every_server_that_is_killed_is_started_again_by_itself_while_decisions_go_on_and_an_alarm_names_it(stack):
    before = processes.services(stack.settings)
    known = {alarm.id for alarm in stack.store.alarms(open_only=False)}
    supervisor = processes.supervisor_of(stack.settings)
    supervisor.suspend()  # else a server may be back before anybody looks, as on a busy machine
    try:
        for name in KILLED:
            psutil.Process(before[name]["pid"]).kill()
        decision = stack.json("decide")  # goes on without registry, Prefect and Evidently
        assert decision["id"]
        assert set(decision["models"]) <= set(FAMILIES)
        assert stack.json("status")["services"]["mlflow"]["state"] in ("down", "starting")
    finally:
        supervisor.resume()

    def back() -> bool:
        now = processes.services(stack.settings)
        return all(now[name]["state"] == "up" and now[name]["pid"] != before[name]["pid"] for name in KILLED)

    until(back, 180.0, "the supervisor to start what was killed")
    assert processes.services(stack.settings)["decision"]["pid"] == before["decision"]["pid"]
    details = [alarm.detail for alarm in stack.store.alarms(open_only=False) if alarm.id not in known]
    for name in KILLED:
        assert any(name in detail for detail in details), (name, details)
    children = [process.cmdline() for process in processes.home_processes(stack.settings)]
    assert len([line for line in children if "flows.deployments" in line]) == 1, "no second one next to an orphan"
    assert start_stop.up(stack.settings) == []  # there is nothing left to start
    assert {service["state"] for service in processes.services(stack.settings).values()} == {"up"}


def test_a_rotated_key_is_the_only_one_that_every_server_takes_and_all_are_back(stack):
    before, old = processes.services(stack.settings), stack.key
    session = stack.json("open", "prefect")["url"]
    with httpx.Client() as browser:
        assert browser.get(session, follow_redirects=True).status_code == 200
        bars = stack.counts()["bars"]
        states = stack.json("key", "rotate")
        assert {name: state["state"] for name, state in states.items()} == dict.fromkeys(before, "up")
        assert all(states[name]["pid"] != before[name]["pid"] for name in before)
        assert stack.key != old
        for tool, (reads, _, _) in CALLS.items():
            url = url_of(stack, tool) + (reads if tool not in ("decision", "models") else "/livez")
            assert httpx.get(url, headers=stack.key, timeout=30).status_code in (200, 405), tool
        for tool, (_, writes, _) in CALLS.items():
            assert httpx.post(url_of(stack, tool) + writes, json={}, headers=old, timeout=30).status_code == 401, tool
        assert browser.get(f"{stack.settings.prefect_url}/session").status_code == 401  # sessions end with their key
    assert stack.json("decide")["id"]
    assert stack.counts()["bars"] == bars
    assert all(one["differences"] == [] for one in stack.json("schedules"))
