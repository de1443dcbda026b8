"""The work pool: a retrain on a worker that shares no disk, and its faults; on the home of test_profile_cluster."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from support.stack import until

from bellwether.operations.launch.worker import home_of
from flows.support import processes, work_pool
from flows.support.clock_check import CLOCK_OFF
from pipelines.families import FAMILIES

pytestmark = pytest.mark.stack
RETRAIN_S = 420.0
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def retrain(stack, family="validator"):
    """Request a retrain of one family, as a person does in the Prefect UI; return its run."""
    return stack.start("retrain", {"families": [family], "reason": "test", "force": True})


def state(stack, run):
    """The type of the state of a run."""
    return stack.prefect(f"flow_runs/{run}")["state_type"]


def ended(stack, run, seconds=RETRAIN_S):
    """Wait until a run ended and return its state."""
    until(lambda: state(stack, run) in ENDED, seconds, f"run {run} to end")
    return state(stack, run)


def worker_of(stack):
    """Wait until a worker computes and return its name."""

    def busy():
        names = [name for name in ("worker-1", "worker-2") for p in processes.home_processes(stack.settings, name)
                 if "pipelines.training.stages" in " ".join(p.cmdline())]  # fmt: skip
        return names[0] if names else None

    return until(busy, RETRAIN_S, "a worker to fit")


def requests_done(stack, before):
    """The retrain requests later than `before`, once each has ended."""
    found = [one for one in stack.store.retrain_requests("validator") if one.id > before]
    return found if found and all(one.state in ("done", "failed") for one in found) else None


def newest_request(stack):
    """The id of the newest retrain request."""
    return max((one.id for one in stack.store.retrain_requests("validator")), default=0)


def test_a_retrain_runs_in_a_workers_own_home_and_what_it_made_is_served(cluster):
    at = cluster.settings
    shown = cluster.prefect("deployments/name/retrain/retrain")
    assert shown["work_pool_name"] == work_pool.POOL
    known = {version.version for version in cluster.installation.tracking.versions("validator")}
    run = retrain(cluster)
    assert ended(cluster, run) == "COMPLETED"
    made = [v for v in cluster.installation.tracking.versions("validator") if v.version not in known]
    assert len(made) <= 1  # none where data and code gave the same bytes as before
    homes = [folder for folder in (at.home / "workers").iterdir() if (folder / "workspace" / "artifacts").is_dir()]
    assert homes
    for folder in homes:
        assert not (folder / "serving").exists(), "a worker serves nothing"
        for secret in ("write_key", "chain_key"):
            assert (folder / secret).stat().st_mode & 0o077 == 0
    until(lambda: served(cluster) == ledger(cluster), 30.0, "the home to publish what the ledger has")
    for version in made:
        assert (cluster.installation.versions / str(version.data_hash) / "data.dvc").is_file()


def served(stack):
    """Family → digests of both arms in the generation file."""
    found = json.loads((stack.settings.serving_dir / "generation.json").read_text())["families"]
    return {f: [(arms.get(arm) or {}).get("digest") for arm in ("champion", "challenger")] for f, arms in found.items()}


def ledger(stack):
    """The same, of the promotion ledger."""
    slots = stack.store.slots_of(FAMILIES)
    return {f: [line.digest if line else None for line in (one.champion, one.challenger)] for f, one in slots.items()}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_stops_in_the_middle_is_replaced_and_its_retrain_ends_once(cluster, how):
    before = newest_request(cluster)
    known = {version.version for version in cluster.installation.tracking.versions("validator")}
    for folder in (cluster.settings.home / "workers").glob("*/workspace/artifacts/validator"):
        shutil.rmtree(folder)  # else there would be nothing to fit
    retrain(cluster)
    name = worker_of(cluster)
    for process in processes.home_processes(cluster.settings, name):
        process.send_signal(how)
    requests = until(lambda: requests_done(cluster, before), 2 * RETRAIN_S, "the retrain to end")
    assert [one.state for one in requests] == ["done"]
    until(lambda: processes.services(cluster.settings)[name]["state"] == "up", 180.0, f"{name} to work again")
    made = [v for v in cluster.installation.tracking.versions("validator") if v.version not in known]
    assert len(made) <= 1
    assert len({(v.digest, v.data_hash) for v in made}) == len(made)
    assert cluster.json("decide")["id"]


def test_a_worker_whose_clock_is_off_takes_no_run_and_says_so_by_an_alarm(cluster):
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("faketime is not installed (apt install faketime)")
    at = cluster.settings
    env = os.environ | processes.environment(at)
    own = home_of(at, "worker-9")
    code = (
        "from flows.support.clock_check import require_clock\n"
        "from flows.support.installation import open_installation\n"
        "require_clock(open_installation())\n"
    )
    env |= {"BELLWETHER_HOME": str(own), "BELLWETHER_WORKER": "worker-9"}
    ahead = [faketime, "-f", "+10m", sys.executable, "-c", code]
    off = subprocess.run(ahead, env=env, capture_output=True, text=True, check=False)
    assert "ahead of the database's" in off.stderr, off.stderr[-2000:]
    assert [a for a in cluster.store.alarms() if a.kind == CLOCK_OFF and "worker-9" in a.detail]
    right = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert right.returncode == 0, right.stderr[-2000:]
    assert not [a for a in cluster.store.alarms() if a.kind == CLOCK_OFF]
