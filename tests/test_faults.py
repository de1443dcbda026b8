"""Faults under load, in small and on real processes: a killed process of serving, a locked store, a full disk.

The whole matrix is `python -m benchmarks.evidence faults`. One installation on a file system of 64 MB is broken several
times, since starting one takes longer than most faults last.
"""

import re
from pathlib import Path

import httpx
import pytest
from support.stack import until

from benchmarks import faults
from benchmarks.fault_causes import no_mount
from benchmarks.faults import FAULTS, observe_fault, running
from serving.client import Client
from serving.service.metrics_folder import VARIABLE

NONE_LOST = dict.fromkeys(("lost", "doubled", "lost_bars", "state", "not_replayed"), 0)
OBSERVED = re.compile(r'request_total\{.*endpoint="/observe".*\} [1-9]')
KIND = "tmpfs" if not no_mount() else "fixture"


@pytest.fixture(scope="module")
def target():
    with running(FAULTS["disk_full"] if KIND == "tmpfs" else FAULTS["store_locked"], tiny=True) as found:
        yield found


def break_and_recover(target, name, lasts_s=None):
    """The fault's figures; it recovered by itself and nothing was lost, which every test here checks."""
    fault = FAULTS[name]
    changes = {} if lasts_s is None else {"lasts_s": lasts_s}
    found = observe_fault(target, faults.replace(fault, person="", **changes))
    assert found == found | NONE_LOST | {"faults": [], "heals": "by itself"}, found
    assert found["detected_s"] is not None
    return found


def test_requests_are_counted_in_memory(target):
    """Counters are mapped files: a hole in one that the disk cannot fill ends the process."""
    folder = Path(target.member("decision, worker").environ()[VARIABLE])
    assert not list(folder.glob("*.db")), "nothing of them is on the disk"
    with Client(target.settings) as client:
        url, headers = f"{target.settings.decision_url}/metrics", client._http.headers
        until(lambda: OBSERVED.search(httpx.get(url, headers=headers).text), 20.0, "a bar of the feeder to be counted")


@pytest.mark.parametrize("process", ["worker", "parent"])
def test_a_killed_decision_process_is_restarted_and_lost_nothing(target, process):
    found = break_and_recover(target, f"decision_{process}_killed")
    assert found["answers_s"] < 30.0
    if process == "parent":
        assert found["alarms"], "a service that died raises an alarm"


def test_a_locked_store_is_reported_within_seconds_and_no_call_hangs(target):
    """A call that waited for the lock would take most of the eight seconds."""
    found = break_and_recover(target, "store_locked", lasts_s=8.0)
    for endpoint in ("/readyz", "/ready"):
        assert any(words.startswith("503") and "store" in words for words in found["responses"][endpoint]), found[
            "responses"
        ]
    # the feeder repeats the call it was at: a bar that must be stored, or the decision on one
    assert "503" in str([found["responses"]["/observe"], found["responses"]["/decide"]])
    assert found["detected_s"] < 4.0
    assert max(found["slowest_s"].values()) < 4.0, found["slowest_s"]
    assert "200 HEALTHY" in found["responses"]["/status"][0]
    assert any("UNHEALTHY tier 4" in words for words in found["responses"]["/status"])


@pytest.mark.skipif(KIND != "tmpfs", reason=no_mount())
def test_a_full_disk_is_reported_kills_nothing_and_recovers_with_free_space(target):
    found = break_and_recover(target, "disk_full", lasts_s=3.0)
    assert set(found["responses"]["/livez"]) == {"200"}, "the service lives on"
    assert any(words.startswith("503") for words in found["responses"]["/readyz"])
    assert found["answers_s"] < 15.0
    assert "disk" in str(found["doctor"])
