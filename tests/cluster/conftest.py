"""One home of profile `cluster` after a turn, and one of profile `machine` after the same, for `make cluster-test`."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.stack import COMMAND, TURN_SECONDS, Stack, environment

from bellwether.operations.launch import postgres
from benchmarks.ports import free_ports
from benchmarks.postgres import programs
from flows.support import processes
from pipelines.permissions import restrict
from pipelines.settings import ROOT, Settings

LACKING = [
    name for name in ("boto3", "dvc_s3", "distributed", "prefect_dask") if importlib.util.find_spec(name) is None
]
LACKING += ["weed"] if shutil.which("weed", path=f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}") is None else []
LACKING += ["PostgreSQL"] if programs() is None else []


class ClusterStack(Stack):
    """Drive a running installation whose stores are PostgreSQL and S3."""

    @property
    def settings(self) -> Settings:
        """Return its settings, read from its environment."""
        names = {name.removeprefix("BELLWETHER_").lower(): value for name, value in self.env.items()}
        return Settings(_env_file=None, **{name: names[name] for name in Settings.model_fields if name in names})


def command(env: dict[str, str], *words: str) -> str:
    """Run a command of ours to its end and return what it printed. Fails with that if it fails."""
    done = subprocess.run(
        [COMMAND, *words], cwd=ROOT, env=env, text=True, timeout=TURN_SECONDS, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@contextmanager
def stopped(running: Stack) -> Iterator[Stack]:
    """Yield a stack; at the end nothing of it runs or is left."""
    try:
        yield running
    finally:
        running.stop()
        if running.settings.profile == "cluster":
            shutil.rmtree(postgres.data_folder(running.settings), ignore_errors=True)
        shutil.rmtree(running.settings.home, ignore_errors=True)


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Yield the stack of one machine after a turn; nothing of it runs any more."""
    restrict()
    folder = tmp_path_factory.mktemp("machine")
    with stopped(Stack(environment(folder / "home"), folder / "run.log")) as one:
        command(one.env, "run", "--once")
        yield one


@pytest.fixture(scope="session")
def cluster(machine: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterStack]:
    """Yield the stack of profile `cluster` after the same turn, still serving."""
    if LACKING:
        pytest.skip(f"not installed: {', '.join(LACKING)} (apt install postgresql; requirements-cluster.txt)")
    folder = tmp_path_factory.mktemp("cluster")
    while any((postgres_port := free_ports(1)[0]) + number > 31_000 for number in range(10)):
        pass
    named = ("S3_PORT", "DASK_PORT", "DASK_WORKER_1_PORT", "DASK_WORKER_2_PORT")
    own = {"PROFILE": "cluster", "POSTGRES_PORT": str(postgres_port)}
    own |= dict(zip(named, map(str, free_ports(len(named))), strict=True))
    env = environment(folder / "home") | {f"BELLWETHER_{name}": value for name, value in own.items()}
    with stopped(ClusterStack(env, folder / "run.log")) as one, pytest.MonkeyPatch.context() as patch:
        command(env, "up")
        for name, value in processes.environment(one.settings).items():
            patch.setenv(name, value)
        command(env, "run", "--once")
        yield one
