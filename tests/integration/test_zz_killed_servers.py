"""kill -9 of every server beside the decision service: each is started again by itself, with an alarm. Runs last."""

import psutil
import pytest
from live_stack import until

from flows import supervisor

pytestmark = pytest.mark.stack
KILLED = ("mlflow", "prefect", "flows", "evidently")


def test_every_server_that_is_killed_is_started_again_by_itself_and_an_alarm_names_it(stack):
    before = supervisor.services(stack.settings)
    known = {alarm.id for alarm in stack.store.alarms(open_only=False)}
    for name in KILLED:
        psutil.Process(before[name]["pid"]).kill()
    decision = stack.json("decide")  # goes on without them
    assert decision["id"]

    def back() -> bool:
        now = supervisor.services(stack.settings)
        return all(now[name]["state"] == "up" and now[name]["pid"] != before[name]["pid"] for name in KILLED)

    until(back, 180.0, "the supervisor to start what was killed")
    assert supervisor.services(stack.settings)["decision"]["pid"] == before["decision"]["pid"]
    told = [alarm.detail for alarm in stack.store.alarms(open_only=False) if alarm.id not in known]
    for name in KILLED:
        assert any(name in detail for detail in told), (name, told)
    children = [process.cmdline() for process in supervisor.members(stack.settings)]
    assert len([line for line in children if "flows.deploy" in line]) == 1, "no second one beside an orphan"
