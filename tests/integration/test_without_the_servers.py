"""What the loop survives: a registry that is gone, a retrain killed half-way. Runs last: it breaks things."""

import subprocess
import time

import psutil
import pytest
from support.stack import COMMAND, until

from bellwether.operations import start_stop
from flows.reconciler import REGISTRY_DOWN
from flows.support import processes, promotion
from flows.support.installation import is_gone
from pipelines.settings import ROOT

pytestmark = pytest.mark.stack


def kill(process):
    """SIGKILL to a process and everything it started."""
    for one in [*process.children(recursive=True), process]:
        one.kill()
    process.wait(10)


def open_alarms(stack, kind):
    return [alarm for alarm in stack.store.alarms() if alarm.kind == kind]


def test_a_retrain_killed_half_way_leaves_no_half_candidate_and_is_started_once_more(stack):
    before = stack.installation.tracking.versions("validator")
    served = promotion.live(stack.installation)
    worker = subprocess.Popen([COMMAND, "retrain", "--force", "--reason", "to be killed"], cwd=ROOT, env=stack.env)
    request = until(lambda: running(stack), 60.0, "the retrain to be claimed")
    time.sleep(5.0)  # in the middle of the snapshot or of a fit
    assert running(stack), "it ended before it could be killed"
    kill(psutil.Process(worker.pid))
    worker.wait()
    assert is_gone(request.holder)
    assert promotion.live(stack.installation) == served
    until(lambda: last(stack).state in ("done", "failed"), 180.0, "the second attempt to end")
    ended = last(stack)
    assert (ended.id, ended.state, ended.attempts) == (request.id, "done", 2), ended
    assert "the gate" in ended.detail
    known = {version.version for version in before}
    made = [version for version in stack.installation.tracking.versions("validator") if version.version not in known]
    assert len(made) <= 1  # the same rows may give the same bytes, which are registered already
    assert all(version.digest and version.verdict in ("passed", "refused") for version in made)
    assert stack.store.slots("validator").champion.to_version == served["validator"]["champion"]["version"]
    assert stack.installation.store.retrain_requests("validator")[0].id == request.id


def last(stack):
    return stack.store.retrain_requests("validator", last=1)[0]


def running(stack):
    found = last(stack)
    return found if found.state == "running" and found.reason == "to be killed" else None


def test_a_registry_that_dies_is_alarmed_serving_goes_on_and_the_alarm_ends_with_it(stack):
    kill(psutil.Process(processes.services(stack.settings)["mlflow"]["pid"]))
    until(lambda: open_alarms(stack, REGISTRY_DOWN), 20.0, "the alarm")
    decision = stack.json("decide")
    assert decision["models"]["validator"]["champion"]["version"]
    assert stack.champion()
    start_stop.up(stack.settings)
    until(lambda: not open_alarms(stack, REGISTRY_DOWN), 20.0, "the alarm to be cleared")


def test_every_decision_of_the_turn_is_replayed_bit_for_bit(stack):
    found = stack.json("replay")
    assert found == found | {"different": 0, "not_replayable": {}, "bit_for_bit": True}
    assert found["decisions"] > 1000
