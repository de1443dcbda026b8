"""A whole home, moved to PostgreSQL and an S3 store and back, with the real servers: killed in between, and resumed."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import environment
from support.legacy_store import release_010

from bellwether.operations import migrate, migrate_files, start_stop
from bellwether.operations.launch import postgres
from bellwether.operations.migrate_files import Folder
from benchmarks.ports import free_ports
from flows.support import processes
from flows.support.installation import now
from pipelines.errors import ServiceDown
from pipelines.settings import ROOT, Settings
from pipelines.store import Anchor, tool_tables
from serving.service.home_store import add_anchor, open_store

BIN = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
TOOLS = ["mlflow", "prefect"]
# what a run leaves in both tools: metrics, artifacts, a model; flow and task runs, logs, a schedule that is paused
USE = """
import sys
import mlflow
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule

with mlflow.start_run() as run:
    mlflow.log_metrics({"loss": 0.1, "nothing": float("nan")}, step=3)
    mlflow.log_params({"depth": 4})
    mlflow.log_text("a plot " * 50_000, "evidence/plot.txt")
client = mlflow.MlflowClient()
client.create_registered_model("validator")
client.create_model_version("validator", f"runs:/{run.info.run_id}/evidence", run.info.run_id)

@task
def one(x):
    return x + 1

@flow(log_prints=True)
def small(x: int = 1):
    print("a line of the log")
    return one(x)

small()
with get_client(sync_client=True) as prefect:
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), active=False)
    prefect.create_deployment(
        prefect.create_flow(small), "nightly", entrypoint="none.py:small", schedules=[schedule],
        parameters={"x": 1}, tags=["kept"],
    )
print(run.info.run_id)
"""


def lacking():
    """Return what is not installed here, of what profile `cluster` requires."""
    missing = [name for name in ("boto3", "dvc_s3") if importlib.util.find_spec(name) is None]
    missing += ["weed"] * (shutil.which("weed", path=BIN) is None)
    try:
        postgres.programs()
    except ServiceDown:
        missing.append("PostgreSQL")
    return missing


pytestmark = [
    pytest.mark.stack,
    pytest.mark.skipif(bool(lacking()), reason=f"not installed: {', '.join(lacking())} (requirements-cluster.txt)"),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Settings of a home on one machine, with a ledger, runs of both tools and data versions; nothing of it runs."""
    fields = ["mlflow_port", "prefect_port", "decision_port", "model_port", "evidently_port", "postgres_port"]
    *ports, s3 = free_ports(len(fields) + 1)
    settings = Settings(home=tmp_path / "home", s3_port=s3, **dict(zip(fields, ports, strict=True)))
    monkeypatch.setenv("PATH", BIN)
    release_010(settings.store)
    ledger = open_store(settings)
    ledger.seal_decisions(now())
    ledger.close()
    for i in range(30):
        file = settings.home / "dvc-remote" / "files" / "md5" / f"{i:02x}" / "rest"
        file.parent.mkdir(parents=True)
        file.write_bytes(os.urandom(1000 * i))
    yield settings
    start_stop.down(settings)
    assert processes.home_processes(settings) == []
    shutil.rmtree(postgres.data_folder(settings), ignore_errors=True)


def variables(settings):
    """Return the environment of a command on this home."""
    ports = {name.upper(): str(value) for name, value in settings.model_dump().items() if name.endswith("_port")}
    own = {f"BELLWETHER_{name}": value for name, value in ports.items()}
    path = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PATH": BIN}
    return {**environment(settings.home), **own, **path}


def command(settings, *words):
    """Start a `bellwether` command and return its process."""
    return subprocess.Popen(
        [sys.executable, "-m", "bellwether.cli.main", *words], cwd=ROOT, env=variables(settings), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finished(settings, *words):
    """Run a command and return its output; it succeeds."""
    running = command(settings, *words)
    shown, _ = running.communicate()
    assert running.returncode == 0, shown
    return shown


def use_tools(settings):
    """Leave runs in MLflow and Prefect; return the run of MLflow."""
    start_stop.up(settings, only=TOOLS)
    env = {**os.environ, **processes.environment(settings)}
    done = subprocess.run([sys.executable, "-c", USE], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    start_stop.down(settings)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()[-1]


def read_artifact(settings, run):
    """Return an artifact of a run as MLflow's server gives it, and the paused schedules of Prefect."""
    script = (
        "import sys, mlflow\n"
        "from prefect.client.orchestration import get_client\n"
        "print(len(mlflow.artifacts.load_text(f'mlflow-artifacts:/0/{sys.argv[1]}/artifacts/evidence/plot.txt')))\n"
        "with get_client(sync_client=True) as prefect:\n"
        "    found = prefect.read_deployment_by_name('small/nightly')\n"
        "    print(found.schedules[0].schedule.cron, found.schedules[0].active, found.tags)\n"
    )
    env = {**os.environ, **processes.environment(settings)}
    done = subprocess.run(
        [sys.executable, "-c", script, run], env=env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("\n")[:2]


def test_a_home_moves_to_the_cluster_killed_and_resumed_and_back(home, tmp_path):
    run = use_tools(home)
    before = {name: tool_tables.row_counts(url) for name, url in tools(home).items()}
    decisions = open_store(home).decisions()
    assert {"runs", "metrics", "model_versions", "experiments"} <= before["mlflow"].keys()
    assert {"flow_run", "task_run", "flow_run_state", "deployment_schedule", "log"} <= before["prefect"].keys()

    moving = command(home, "migrate", "--to", "cluster")
    seen = next((text for text in moving.stdout if text.startswith("ledger: moved")), None)
    assert seen is not None
    moving.send_signal(signal.SIGKILL)
    moving.communicate()
    assert {name: tool_tables.row_counts(url) for name, url in tools(home).items()} == before
    assert open_store(home).decisions() == decisions
    shown = finished(home, "migrate", "--to", "cluster")
    assert "ledger: there already" in shown
    assert "mlflow: to move" in shown
    assert "BELLWETHER_PROFILE=cluster" in re.sub(r"\s+", " ", shown)
    start_stop.down(home)

    cluster = migrate.side(home, "cluster")
    start_stop.up(cluster, only=["postgres", "s3", *TOOLS])
    assert read_artifact(cluster, run) == ["350000", "0 3 * * * False ['kept']"]
    start_stop.down(cluster)
    refused = command(home, "migrate", "--to", "cluster")  # Prefect wrote while it ran
    assert "holds other data" in refused.communicate()[0]
    assert refused.returncode == 1

    aside = tmp_path / "aside"
    aside.mkdir()
    for name in ("store.db", "mlflow", "prefect", "dvc-remote"):
        shutil.move(home.home / name, aside / name)
    record = json.loads(finished(home, "migrate", "--to", "machine", "--json"))
    assert record["addresses_elsewhere"] == {}  # no row of MLflow names where its server keeps artifacts
    assert record["parts"]["mlflow"]["rows"] == before["mlflow"]
    assert not [name for name in processes.read_entries(cluster) if name in ("postgres", "s3")]
    ledger = open_store(home)
    assert ledger.decisions() == decisions
    assert ledger.verify_chain().faults == ()
    after = tool_tables.row_counts(home.mlflow_store)
    assert after == before["mlflow"]
    assert tool_tables.row_counts(home.prefect_store)["flow_run"] == before["prefect"]["flow_run"]
    for name in ("dvc-remote", "mlflow/artifacts"):
        old, new = Folder(str(aside / name)), Folder(str(home.home / name))
        assert new.sizes() == old.sizes()
        assert all(new.md5(file) == old.md5(file) for file in new.sizes())
    start_stop.up(home, only=TOOLS)
    assert read_artifact(home, run) == ["350000", "0 3 * * * False ['kept']"]


def tools(settings):
    """Return tool → URL of its database."""
    return {"mlflow": settings.mlflow_store, "prefect": settings.prefect_store}


def test_a_chain_that_is_broken_does_not_move(home):
    ledger = open_store(home)
    head = ledger.chain_head()
    ledger.close()
    add_anchor(home.home, Anchor(head.seq + 1, "0" * 64, now().isoformat(), "this home"))
    refused = command(home, "migrate", "--to", "cluster")
    assert "not as it was written" in re.sub(r"\s+", " ", refused.communicate()[0])
    assert refused.returncode == 1
    assert not migrate.record_file(home, "cluster").exists()


def test_files_come_to_a_bucket_and_back_and_other_bytes_are_found(home, tmp_path):
    cluster, copied = migrate.side(home, "cluster"), []
    start_stop.up(cluster, only=["s3"])
    with migrate.reaching(cluster):
        folder, bucket = migrate_files.place(home.remote), migrate_files.place(cluster.remote)
        back = migrate_files.place(str(tmp_path / "back"))
        first = migrate_files.copy(folder, bucket, lambda n, of: copied.append(n))
        assert first == {"files": 30, "bytes": 1000 * sum(range(30)), "copied": 30}
        assert copied == list(range(1, 31))
        assert migrate_files.copy(folder, bucket, print)["copied"] == 0
        migrate_files.copy(bucket, back, lambda n, of: None)
        assert migrate_files.other_data(bucket, back) == []
        odd = back.root / "files" / "md5"
        (odd / "02" / "rest").write_bytes(b"1" * 2000)
        (odd / "further").touch()
        assert migrate_files.other_data(bucket, back) == ["files/md5/02/rest", "files/md5/further"]
