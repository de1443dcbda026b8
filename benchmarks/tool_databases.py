"""Prefect and MLflow on SQLite and on PostgreSQL: a map of 100 tasks, writers at once, lock errors, write-ahead log.

The servers are those of a home, started as `bellwether up` starts them, in both profiles.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import psycopg2

from bellwether.operations import start_stop
from bellwether.operations.launch import postgres
from benchmarks.ports import free_ports
from benchmarks.results import machines, table
from benchmarks.serving_page import shown
from flows.support import processes, stores
from pipelines.contracts import JsonObject
from pipelines.errors import ServiceDown
from pipelines.settings import POSTGRES_USER, Settings

PROFILES = {"SQLite": "machine", "PostgreSQL": "cluster"}
TASKS, WRITERS, RUNS = 100, 4, 10  # tasks of a map; processes that log runs to MLflow at once, runs of each
TINY = (5, 2, 1)
MAPS = """
import sys, time
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner

@task
def one(i):
    return i

@flow(task_runner=ThreadPoolTaskRunner(max_workers=100))
def many(n):
    return sum(one.map(range(n)).result())

n, began = int(sys.argv[1]), time.perf_counter()
assert many(n) == sum(range(n))
print("seconds", time.perf_counter() - began)
"""
LOGS = """
import sys, time, mlflow
mlflow.set_experiment(f"writer {sys.argv[2]}")
n, began = int(sys.argv[1]), time.perf_counter()
for _ in range(n):
    with mlflow.start_run():
        mlflow.log_metrics({f"m{i}": float(i) for i in range(10)})
        mlflow.log_params({f"p{i}": i for i in range(10)})
print("seconds", (time.perf_counter() - began) / n)
"""


class Connections:
    """Count the connections to each database of a server, in a thread, until `close`; `most` is the highest."""

    def __init__(self, settings: Settings) -> None:
        """Begin to count."""
        self.most: dict[str, int] = {}
        self._connection = connect(settings)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop counting."""
        self._ended.set()
        self._thread.join()
        self._connection.close()

    def _count(self) -> None:
        """Count ten times a second."""
        cursor = self._connection.cursor()
        while not self._ended.wait(0.1):
            cursor.execute("SELECT datname, count(*) FROM pg_stat_activity WHERE datname IS NOT NULL GROUP BY 1")
            for name, count in cursor.fetchall():
                self.most[name] = max(count, self.most.get(name, 0))


def connect(settings: Settings) -> Any:
    """Return a connection to the home's PostgreSQL."""
    made = psycopg2.connect(
        host=settings.host, port=settings.postgres_port, user=POSTGRES_USER, dbname="postgres",
        passfile=str(stores.password_file(settings)),
    )  # fmt: skip
    made.autocommit = True
    return made


def wal_bytes(settings: Settings) -> int:
    """Return the bytes that were ever written to the write-ahead log."""
    connection = connect(settings)
    try:
        cursor = connection.cursor()
        cursor.execute("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')")
        return int(cursor.fetchone()[0])
    finally:
        connection.close()


@contextmanager
def servers(profile: str) -> Iterator[Settings]:
    """Run MLflow and Prefect of a new home, on its PostgreSQL where the profile is `cluster`; artifacts in a folder."""
    root = Path(tempfile.mkdtemp(prefix="bellwether-databases-"))
    mlflow, prefect, postgres_port = free_ports(3)
    settings = Settings.model_validate({
        "home": root / "home", "profile": profile, "mlflow_port": mlflow, "prefect_port": prefect,
        "postgres_port": postgres_port, "remote_url": str(root / "dvc"),
        "mlflow_artifacts_url": str(root / "home" / "mlflow" / "artifacts"),
    })  # fmt: skip
    names = ["postgres"] if settings.runs_postgres else []
    try:
        start_stop.up(settings, [*names, "mlflow", "prefect"])
        yield settings
    finally:
        start_stop.down(settings)
        if settings.runs_postgres:
            shutil.rmtree(postgres.data_folder(settings), ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)


def run(case: str, tiny: bool = False) -> JsonObject:
    """Measure one database, "SQLite" or "PostgreSQL".

    Returns seconds of a map of TASKS tasks, seconds a run of WRITERS writers at once, seconds of both at once, errors
    and lock errors in all of them, and for PostgreSQL the most connections and the bytes of its write-ahead log.
    """
    tasks, writers, runs = TINY if tiny else (TASKS, WRITERS, RUNS)
    with servers(PROFILES[case]) as settings, tempfile.TemporaryDirectory() as scratch:
        maps, logs = Path(scratch) / "maps.py", Path(scratch) / "logs.py"
        maps.write_text(MAPS)
        logs.write_text(LOGS)
        env = os.environ | processes.environment(settings)
        outputs: list[str] = []

        def at_once(words: list[list[str]]) -> list[float]:
            """Run programs at once; return the seconds that each prints. Raises ServiceDown if one fails."""
            started = [
                subprocess.Popen([sys.executable, *each], env=env, text=True, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT) for each in words
            ]  # fmt: skip
            printed = [process.communicate()[0] for process in started]
            outputs.extend(printed)
            if failed := [text for text, process in zip(printed, started, strict=True) if process.returncode]:
                raise ServiceDown(f"a program of the measurement failed: {failed[0][-1000:]}")
            lines = [line.split() for text in printed for line in text.splitlines()]
            return [float(line[1]) for line in lines if line and line[0] == "seconds"]

        a_map = [str(maps), str(tasks)]
        writing = [[str(logs), str(runs), str(number)] for number in range(writers)]
        counted = Connections(settings) if settings.runs_postgres else None
        before = wal_bytes(settings) if counted else 0
        found: JsonObject = {"database": case, "tasks": tasks, "writers": writers}
        found["map_s"] = sorted(at_once([a_map])[0] for _ in range(1 if tiny else 5))
        if counted:
            found["map_wal_bytes"] = (wal_bytes(settings) - before) // len(found["map_s"])
            before = wal_bytes(settings)
        found["run_s"] = at_once(writing)
        if counted:
            found["run_wal_bytes"] = (wal_bytes(settings) - before) // (writers * runs)
        began = time.perf_counter()
        at_once([*writing, a_map, a_map])
        found["both_s"] = time.perf_counter() - began
        found["locked"] = sum(text.count("locked") for text in outputs)
        found["server_errors"] = sum(
            line.count("locked") + line.count("deadlock")
            for log in (processes.log_file(settings, name) for name in ("mlflow", "prefect"))
            for line in (log.read_text(errors="replace").splitlines() if log.exists() else ())
        )
        if counted:
            counted.close()
            found["connections"] = {name: counted.most.get(name, 0) for name in ("mlflow", "prefect")}
    return found


def figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return the figures of each database: the median of several, with the least and the most in place of bounds."""
    made: dict[str, JsonObject] = {}
    for one in found:
        name, n = one["database"], int(one["tasks"])
        spread = {
            f"seconds of a map of {n} tasks": one["map_s"],
            f"seconds a run, {one['writers']} processes that log to MLflow at once": one["run_s"],
        }
        for what, values in spread.items():
            made[f"{name}: {what}"] = {
                "value": median(values), "low": min(values), "high": max(values), "n": len(values)
            }  # fmt: skip
        single = {
            "seconds of both at once, with two maps": one["both_s"],
            "lock errors of a client": one["locked"],
            "lock errors in the servers' logs": one["server_errors"],
        }
        if "connections" in one:
            single |= {
                f"MB of write-ahead log, a map of {n} tasks": one["map_wal_bytes"] / 1e6,
                "kB of write-ahead log, a run of MLflow": one["run_wal_bytes"] / 1e3,
                "most connections of MLflow": one["connections"]["mlflow"],
                "most connections of Prefect": one["connections"]["prefect"],
            }
        made |= {f"{name}: {w}": {"value": float(v), "low": None, "high": None, "n": 1} for w, v in single.items()}
    return made


def page_of(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of what was stored: a row a figure, a column a database."""
    made = found["tool_databases"]["figures"]
    rows = [
        [what, *(shown(made[key]) if (key := f"{name}: {what}") in made else "–" for name in PROFILES)]
        for what in dict.fromkeys(key.partition(": ")[2] for key in made)
    ]
    blocks = [
        "# Prefect and MLflow on SQLite and on PostgreSQL",
        "Made by `python -m benchmarks.evidence --write` from what `python -m benchmarks.evidence tool_databases` "
        "stored; nothing here was typed in.",
        *machines(found),
        "The servers of a home, started as `bellwether up` starts them, in profile `machine` and in profile `cluster`. "
        "A map runs on 100 threads of one process; a run of MLflow logs ten metrics and ten parameters. In brackets "
        "the least and the most.",
        table(["figure", *PROFILES], rows),
    ]
    if incomplete:
        blocks.insert(3, f"**Not run, or not to its end: {', '.join(incomplete)}.**")
    return "\n\n".join(block if block[0] in "#|-" else fill(block, 120) for block in blocks) + "\n"
