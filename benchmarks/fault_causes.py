"""Causes of faults on a running installation: kills, locks, a full disk, damaged files, a wrong clock, a lost key.

A cause is a context manager over a `Target`: entering starts the fault, leaving ends it. `benchmarks.faults` has the
table of faults and measures them.
"""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path

import psutil

from bellwether.operations import start_stop
from bellwether.operations.warm_starts import before_start
from benchmarks.fixture import FAMILY, Fixture, arm_of, by_symbol
from benchmarks.hardship import Load, warm_in
from benchmarks.probes import Log, shorten
from benchmarks.services import service_processes
from flows.support import processes
from pipelines.contracts import JsonObject
from pipelines.errors import BellwetherError
from pipelines.settings import Settings
from serving.client import Client
from serving.inference.generation import GENERATION_FILE, write_generation

MB = 2**20
LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
Cause = Callable[["Target"], AbstractContextManager[None]]
Pick = Callable[["Target"], list[psutil.Process]]


@dataclass
class Target:
    """Describe a running installation: its fixture, settings and services, its load and log, and a scratch folder next
    to its home.
    """

    at: Fixture
    settings: Settings
    names: tuple[str, ...]
    load: Load
    log: Log
    scratch: Path

    @property
    def generation_file(self) -> Path:
        """Return the path of the generation file."""
        return self.settings.serving_dir / GENERATION_FILE

    def member(self, name: str) -> psutil.Process:
        """Return a process by its name in `benchmarks.services.service_processes`, such as `decision, worker`."""
        return service_processes(self.settings, self.names)[name]

    def parent(self, service: str) -> psutil.Process:
        """Return the process that the supervisor started for a service."""
        return psutil.Process(processes.services(self.settings)[service]["pid"])

    def serve_again(self) -> None:
        """Name its model and warm start in a new generation, as `bellwether promote` does."""
        arms = {"champion": arm_of(self.at.digests[0], "1")} if "mlflow" not in self.names else {"champion": None}
        warm = warm_in(self.at, self.settings.serving_dir)
        write_generation(self.settings.serving_dir, {FAMILY: arms}, by_symbol(warm), datetime.now(UTC))

    def up(self) -> None:
        """Start its services, as `bellwether up` does."""
        start_stop.up(self.settings, self.names)


# ---- causes ---------------------------------------------------------------------------------------------------------


def kill(pick: Pick) -> Cause:
    """Return a cause that kills the processes picked; the fault is over at once."""

    @contextmanager
    def cause(target: Target) -> Iterator[None]:
        """Kill each process that is still there."""
        for process in pick(target):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        yield

    return cause


def freeze(pick: Pick) -> Cause:
    """Return a cause that sends SIGSTOP, later SIGCONT.

    The process is there, its sockets accept, and nothing answers.
    """

    @contextmanager
    def cause(target: Target) -> Iterator[None]:
        """Stop the processes, and continue them at the end."""
        frozen = pick(target)
        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in frozen:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    return cause


def worker(target: Target) -> list[psutil.Process]:
    """Pick the worker of the decision service."""
    return [target.member("decision, worker")]


def decision_parent(target: Target) -> list[psutil.Process]:
    """Pick the parent of the decision service."""
    return [target.member("decision, parent")]


def parent_of(service: str) -> Pick:
    """Return a function that picks the parent process of a service."""
    return lambda target: [target.parent(service)]


def whole(service: str) -> Pick:
    """Return a function that picks all processes of a service."""

    def pick(target: Target) -> list[psutil.Process]:
        """Return the parent and its descendants."""
        parent = target.parent(service)
        return [parent, *parent.children(recursive=True)]

    return pick


def supervisors(target: Target) -> list[psutil.Process]:
    """Pick the supervisor's processes."""
    return [p for name, p in service_processes(target.settings, target.names).items() if name.startswith("supervisor")]


def database(target: Target) -> list[psutil.Process]:
    """Pick the processes of the target's PostgreSQL."""
    port = target.settings.store.rsplit(":", 1)[1].split("/")[0]
    found = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] and _listens(p.info["cmdline"], port)]
    return [process for parent in found for process in (parent, *parent.children(recursive=True))]


def _listens(cmdline: list[str], port: str) -> bool:
    """Return whether a command line is a PostgreSQL on this port."""
    return "postgres" in cmdline[0] and any(pair == ("-p", port) for pair in pairwise(cmdline))


@contextmanager
def store_locked(target: Target) -> Iterator[None]:
    """Hold the store's write lock, as a report of another program or a hanging backup would."""
    with closing(sqlite3.connect(target.settings.home / "store.db", isolation_level=None, timeout=30.0)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


@contextmanager
def disk_full(target: Target) -> Iterator[None]:
    """Fill the home's file system to its last byte."""
    ballast = target.settings.home / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with suppress(OSError):
            while file.write(b"\0" * MB):
                pass
        with suppress(OSError):
            while file.write(b"\0" * 512):
                pass
    try:
        yield
    finally:
        ballast.unlink()


@contextmanager
def read_only(target: Target) -> Iterator[None]:
    """Mount the home read-only."""
    with read_only_folder(target.settings.home):
        yield


@contextmanager
def read_only_folder(folder: Path) -> Iterator[None]:
    """Mount a folder over itself, read-only: files opened from now on cannot be written, open ones can."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def read_only_at_start(target: Target) -> Iterator[None]:
    """Stop the services, mount the home read-only, and start them on it."""
    start_stop.down(target.settings)
    with read_only(target):
        started = time.monotonic()
        try:
            target.up()
            words = "started"
        except BellwetherError as error:
            words = type(error).__name__
        except OSError as error:
            words = f"traceback {type(error).__name__}"
        target.log.add("up", words, time.monotonic() - started)
        yield


@contextmanager
def page_flipped(target: Target) -> Iterator[None]:
    """Overwrite a page in the middle of store.db while nothing runs.

    A copy made just before is in the scratch folder.
    """
    start_stop.down(target.settings)
    file = target.settings.home / "store.db"
    with closing(sqlite3.connect(file)) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = store.execute("PRAGMA page_size").fetchone()
        page = _leaf(store)
    shutil.copy2(file, target.scratch / "backup.db")
    with file.open("r+b") as handle:
        handle.seek((page - 1) * size)
        handle.write(os.urandom(size))
    with suppress(BellwetherError):  # a store that is known to be broken may stop the start
        target.up()
    yield


def _leaf(store: sqlite3.Connection) -> int:
    """Return the number of a page with the oldest decisions: nothing reads it at a start, so only a check finds the
    damage.
    """
    wanted = "SELECT min(pageno) FROM dbstat WHERE name = 'decisions' AND pagetype = 'leaf'"
    return int(store.execute(wanted).fetchone()[0])


def restore_store(target: Target) -> None:
    """Restore the copy of the store and start the services."""
    start_stop.down(target.settings)
    for file in target.settings.home.glob("store.db*"):
        file.unlink()
    shutil.copy2(target.scratch / "backup.db", target.settings.home / "store.db")
    target.up()


def generation_replaced(change: Callable[[JsonObject], str]) -> Cause:
    """Return a cause that replaces the generation file by `change` of its content, by rename; the fault ends with a
    valid one.
    """

    @contextmanager
    def cause(target: Target) -> Iterator[None]:
        """Write the changed file, and publish a valid generation at the end."""
        content = json.loads(target.generation_file.read_text())
        draft = target.generation_file.with_name(".by_hand")
        draft.write_text(change({**content, "generation": content["generation"] + 1}))
        draft.replace(target.generation_file)
        try:
            yield
        finally:
            target.serve_again()

    return cause


def without_warm_start(content: JsonObject) -> str:
    """Return the generation file's JSON without its warm starts."""
    return json.dumps({name: value for name, value in content.items() if name != "warm_starts"})


def naming_no_bundle(content: JsonObject) -> str:
    """Return the generation file's JSON with the digest of a missing bundle."""
    arms = {"champion": arm_of("0" * 64, "9"), "challenger": None}
    return json.dumps(content | {"families": {FAMILY: arms}})


def flipped(pick: Callable[[Target], Path]) -> Cause:
    """Return a cause that flips one byte of a file and makes the worker read it again."""

    @contextmanager
    def cause(target: Target) -> Iterator[None]:
        """Flip the byte in the middle and kill the worker; restore the file at the end."""
        file = pick(target)
        content = file.read_bytes()
        file.chmod(0o600)
        broken = bytearray(content)
        broken[len(broken) // 2] ^= 0xFF
        file.write_bytes(bytes(broken))
        target.member("decision, worker").kill()
        try:
            yield
        finally:
            file.write_bytes(content)

    return cause


def of_bundle(target: Target) -> Path:
    """Return the model file of the champion's bundle."""
    return target.settings.bundles / target.at.digests[0] / "model.npz"


@contextmanager
def warm_start_flipped(target: Target) -> Iterator[None]:
    """Flip one byte of the warm start and make the worker read it again; the workspace is that of a turn."""
    mine = target.settings.serving_dir / "warm" / target.at.warm["digest"]  # of this target: others use the fixture's
    target.at = replace(target.at, warm=target.at.warm | {"path": str(mine)})
    trained = target.at.home.parent / f"seed-{target.at.params.seed + 1}"  # whose warm start the fixture published
    labels = Path("artifacts") / "labels"
    shutil.copytree(trained / "data", target.settings.workspace / "data")
    shutil.copytree(trained / labels, target.settings.workspace / labels)
    pointer = json.dumps({"outs": [{"md5": target.at.warm["data_hash"]}]})
    (target.settings.workspace / "data.dvc").write_text(pointer)
    target.serve_again()
    time.sleep(1.0)
    file = mine / "features.state"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))
    target.member("decision, worker").kill()
    yield


def down_and_up(target: Target) -> None:
    """Stop and start the target's services, as `bellwether down` and `bellwether up` do."""
    start_stop.down(target.settings)
    before_start(target.settings)
    target.up()


def again_with_the_worker(target: Target) -> None:
    """Publish a generation again and kill the worker, so that it reads everything again."""
    target.serve_again()
    target.member("decision, worker").kill()


@contextmanager
def clock_ahead(target: Target) -> Iterator[None]:
    """Move the service's wall clock a day ahead, then back; its monotonic clock stays."""
    file = target.scratch / "clock"
    file.write_text("+1d\n")
    try:
        yield
    finally:
        file.write_text("+0\n")


@contextmanager
def key_gone(target: Target) -> Iterator[None]:
    """Move the key file away, and back at the end."""
    file = target.settings.home / "write_key"
    aside = file.with_name("write_key.aside")
    file.rename(aside)
    try:
        yield
    finally:
        aside.replace(file)


@contextmanager
def key_replaced(target: Target) -> Iterator[None]:
    """Write another key into the file without a restart; log what a client with the new key gets."""
    file = target.settings.home / "write_key"
    before = file.read_text()
    file.write_text("0" * 48)
    try:
        words = "200"
        with Client(target.settings) as other:  # with the new key; the feeder has the old one
            try:
                other.observe(target.load.symbol, target.load.groups[0][:1])
            except BellwetherError as error:
                words = shorten(str(error))
        target.log.add("the new key", words)
        yield
    finally:
        file.write_text(before)


# ---- what the machine has to have -----------------------------------------------------------------------------------


@cache
def no_mount() -> str:
    """Return why a tmpfs cannot be mounted here; empty if it can."""
    with tempfile.TemporaryDirectory(prefix="bellwether-mount-") as folder:
        tried = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True, check=False
        )
        if tried.returncode:
            return f"nothing can be mounted: {tried.stderr.strip() or tried.returncode}"
        subprocess.run(["umount", folder], check=True)
    return ""


@cache
def no_faketime() -> str:
    """Return why the clock cannot be moved here; empty if it can."""
    return "" if LIBFAKETIME.is_file() else f"{LIBFAKETIME} is not there; Debian's package is faketime"
