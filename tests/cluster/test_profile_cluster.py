"""Profile `cluster` on one machine: results as on SQLite and folders, stores closed to others, faults survived."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import psutil
import psycopg2
import pytest
from support.stack import until

from bellwether.operations.launch import postgres
from flows.support import processes, stores
from pipelines.models.runtime import load_bundle
from pipelines.settings import BUCKET, DATABASES, POSTGRES_USER

pytestmark = pytest.mark.stack
FAMILIES = ("validator", "pattern", "regime", "predictor")
MAP = """
import sys
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

@task
def one(i):
    return i

@flow(task_runner=ThreadPoolTaskRunner(max_workers=100))
def many():
    return sum(one.map(range(100)).result())

sys.exit(many() != sum(range(100)))
"""


def decided(stack):
    """Return each decision of a home, in order: its id, what it decides, and the bytes of the rows it was made from."""
    found = []
    for record in stack.store.decisions():
        decision = record.decision.to_dict()
        names = ("id", "symbol", "as_of", "action", "tier", "p", "size", "reasons", "lineage")
        found.append(({name: decision[name] for name in names}, record.features, record.signals))
    return sorted(found, key=lambda one: (one[0]["as_of"], one[0]["symbol"]))


def judged(stack):
    """Return family → each line of the promotion ledger: action, digest of the bundle, data, figures of its checks."""
    return {
        family: [
            (line.action, line.digest, line.data_hash, line.verdict_passed,
             [(c["name"], c["passed"], c["value"], c["low"], c["high"])
              for c in (line.evidence or {}).get("checks", []) if c["name"] != "latency_ms"])
            for line in stack.store.promotions(family)
        ]
        for family in FAMILIES
    }  # fmt: skip


def test_a_turn_learns_judges_and_decides_the_same_as_on_one_machine(machine, cluster):
    assert cluster.settings.store.startswith("postgresql://")
    assert judged(cluster) == judged(machine)
    assert any(line[3] for lines in judged(machine).values() for line in lines), "nothing passed: nothing compared"
    ours, theirs = decided(cluster), decided(machine)
    assert len(ours) > 100
    assert ours == theirs


def test_models_and_data_versions_are_in_the_bucket_and_nowhere_in_the_home(cluster):
    import boto3

    names = [one.key for one in boto3.session.Session().resource("s3").Bucket(BUCKET).objects.all()]
    assert any(name.startswith("mlflow/") for name in names)
    assert any(name.startswith("dvc/files/md5/") for name in names)
    home = cluster.settings.home
    for gone in ("store.db", "mlflow/mlflow.db", "mlflow/artifacts", "prefect/prefect.db", "dvc-remote"):
        assert not (home / gone).exists(), gone
    line = cluster.slots("regime").champion
    found = cluster.installation.tracking.version("regime", line.to_version)
    assert load_bundle(cluster.settings.bundles / found.digest, found.digest)


def test_the_stores_take_nobody_without_the_credentials_of_the_home(cluster):
    at = cluster.settings
    for name in DATABASES:
        with pytest.raises(psycopg2.OperationalError, match="password"):
            psycopg2.connect(host=at.host, port=at.postgres_port, user=POSTGRES_USER, dbname=name, passfile=os.devnull)
    assert httpx.get(f"http://{at.host}:{at.s3_port}/{BUCKET}").status_code == 403
    assert httpx.put(f"http://{at.host}:{at.s3_port}/{BUCKET}/x", content=b"x").status_code == 403
    for port in range(at.s3_port + 1, at.s3_port + 8):  # its parts: nothing is stored or listed without a token
        try:
            answer = httpx.get(f"http://{at.host}:{port}/buckets/{BUCKET}/", headers={"Accept": "application/json"})
        except httpx.HTTPError:  # gRPC, or nothing there
            continue
        assert BUCKET not in answer.text or answer.status_code >= 400, (port, answer.text[:300])
    secrets = [stores.password(at), stores.credentials_file(at).read_text().split(" = ")[-1].strip()]
    for process in processes.home_processes(at):
        shown = " ".join(process.cmdline())
        assert not [secret for secret in secrets if secret in shown], shown
    for log in (at.home / "logs").glob("*"):
        assert not [secret for secret in secrets if secret in log.read_text(errors="replace")], log
    for file in (stores.password_file(at), stores.credentials_file(at), stores.folder(at) / "s3_identities.json"):
        assert file.stat().st_mode & 0o077 == 0


def test_listening_is_on_our_host_alone(cluster):
    ours = {process.pid for process in processes.home_processes(cluster.settings)}
    listening = [c for c in psutil.net_connections("inet") if c.pid in ours and c.status == psutil.CONN_LISTEN]
    assert listening
    assert {one.laddr.ip for one in listening} == {cluster.settings.host}


def test_a_map_of_a_hundred_tasks_runs_without_a_lock_error(cluster, tmp_path):
    file = tmp_path / "many.py"
    file.write_text(MAP)
    at = cluster.settings
    log = processes.log_file(at, "prefect")  # there once it wrote a line
    before = log.read_text(errors="replace") if log.exists() else ""
    env = os.environ | processes.environment(at)
    for _ in range(2):
        done = subprocess.run([sys.executable, file], env=env, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "locked" not in done.stderr
    after = log.read_text(errors="replace") if log.exists() else ""
    assert "locked" not in after.removeprefix(before)


def killed(stack, name):
    """Kill a store with all its processes; return what was up before."""
    before = processes.services(stack.settings)
    for process in processes.home_processes(stack.settings, name):
        process.send_signal(signal.SIGKILL)
    return before


@pytest.mark.parametrize("name", ["postgres", "s3"])
def test_a_store_that_is_killed_comes_back_by_itself_with_an_alarm_and_everything_works(cluster, name):
    known = {alarm.id for alarm in cluster.store.alarms(open_only=False)}
    decisions = len(decided(cluster))
    before = killed(cluster, name)

    def back() -> bool:
        now = processes.services(cluster.settings)
        return now[name]["pid"] not in (None, before[name]["pid"]) and all(s["state"] == "up" for s in now.values())

    until(back, 180.0, f"everything to work again after {name} was killed")
    now = processes.services(cluster.settings)
    others = [one for one in now if one != name]
    assert {one: now[one]["pid"] for one in others} == {one: before[one]["pid"] for one in others}, "restarted"

    def alarmed() -> bool:
        return any(name in a.detail for a in cluster.store.alarms(open_only=False) if a.id not in known)

    until(alarmed, 60.0, f"an alarm that names {name}")
    assert len(decided(cluster)) >= decisions
    assert cluster.json("decide")["id"]
    assert cluster.json("verify")["intact"] is True
    run = cluster.start("report", {})
    cluster.wait(run, "COMPLETED")
    found = cluster.installation.tracking.version("regime", cluster.slots("regime").champion.to_version)
    assert cluster.installation.tracking.metrics(found.run_id)


def test_down_ends_the_stores_last_and_up_finds_everything_again(cluster):
    before = decided(cluster)
    cluster.store.close()
    cluster.cli("down")
    assert processes.home_processes(cluster.settings) == []
    log = processes.log_file(cluster.settings, "supervisor").read_text()
    ended = [line for line in log.splitlines() if " ended" in line or " exited" in line]
    order = [name for line in ended for name in ("flows", "mlflow", "prefect", "postgres") if f'"{name} ' in line]
    assert order[-1] == "postgres", order
    with pytest.raises(OSError), socket.create_connection((cluster.settings.host, cluster.settings.postgres_port), 1):
        pass
    done = cluster.cli("up")
    assert done.returncode == 0, done.stdout + done.stderr
    assert decided(cluster) == before
    assert postgres.data_folder(cluster.settings).is_dir()
