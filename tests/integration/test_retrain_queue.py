"""Y5 on the real queue: one retrain at a time, and none within the cool-down of the last."""

import json
from datetime import timedelta

import pytest

from flows.support.installation import now

pytestmark = pytest.mark.stack


def versions(stack):
    return [version.version for version in stack.installation.tracking.versions("validator")]


def test_within_the_cool_down_a_second_retrain_starts_nothing_and_names_the_end(stack):
    before, requests = versions(stack), stack.store.retrain_requests("validator")
    done = stack.cli("retrain", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"versions": {}})
    assert "cooling down until" in " ".join(done.stderr.split())
    assert versions(stack) == before
    assert stack.store.retrain_requests("validator") == requests


def test_while_one_is_running_even_a_forced_one_starts_nothing(stack):
    before = versions(stack)
    answer = stack.store.request_retrain("validator", "test", now(), timedelta(0))
    assert answer.state == "queued"
    running = stack.store.claim_retrain("another worker", now(), timedelta(minutes=5), "validator")
    try:
        done = stack.cli("retrain", "--force", "--json")
        assert (done.returncode, json.loads(done.stdout)) == (0, {"versions": {}})
        assert f"duplicate): request {running.id} is running" in " ".join(done.stderr.split())
    finally:
        stack.store.finish_retrain(running.id, "another worker", now(), False, "test")
    assert versions(stack) == before
    assert stack.store.retrain_requests("validator", last=1)[0].id == running.id
