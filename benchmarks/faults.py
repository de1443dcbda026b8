"""The fault matrix: what breaks, who says so and when, when it is well again, and what is lost. `FAULTS` is the table.

Each fault is caused on real processes under the feeder and clients of `hardship`, ended, and watched by a `Probe`.
`observe_fault` measures one on a running installation; `case` starts what it needs. A fault that the product does not
come through is recorded as it was seen, with what a person did then.

Run: python -m benchmarks.evidence faults
"""

import atexit
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import psutil

from bellwether.operations import start_stop
from bellwether.operations.warm_starts import before_start
from benchmarks import hardship
from benchmarks.fixture import FAMILY, Stand, arm_of
from benchmarks.hardship import DECISION, Load, load_of, warm_in
from benchmarks.postgres import postgresql
from benchmarks.probes import CALLS, READS, Log, Probe, ailments, detected, in_short, recorder
from benchmarks.services import service_processes
from flows.support import processes
from pipelines.errors import BellwetherError
from pipelines.settings import Settings
from pipelines.store import Store
from serving.client import Client
from serving.inference.generation import GENERATION_FILE, write_generation

Figures = dict[str, Any]

PACE_S = 0.1  # between the pieces of a decision bar: one bar takes about half a second, a month of them lasts a case
LOOK_AGAIN_S = 1.0  # what was asked sooner after the end of a fault says nothing of it
NOTICE_S = 3.0  # the same for a kill: who restarts a process has to see first that it is gone
LISTENED = (*READS, *CALLS, "services", "up", "the new key")
CALM_S = 1.0  # everything has to be well for so long before a fault is caused
HEAL_S = 45.0  # a fault that is not over by itself after this waits for a person
LOAD_PATIENCE_S = 900.0  # the feeder outlasts every fault: what it is told is part of the finding
MB = 2**20
TMPFS_MB = 64
LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
STACK = ("mlflow", "prefect", "decision", "flows", "models", "evidently")
REPAIRED = "was done by a person"


@dataclass
class House:
    """A running installation: the stand it is made of, its settings, which services run, a folder beside its home."""

    at: Stand
    settings: Settings
    names: tuple[str, ...]
    load: Load
    log: Log
    scratch: Path

    @property
    def generation_file(self) -> Path:
        return self.settings.serving_dir / GENERATION_FILE

    def member(self, name: str) -> psutil.Process:
        """A process by its name in `benchmarks.services.service_processes`, such as `decision, worker`."""
        return service_processes(self.settings, self.names)[name]

    def parent(self, service: str) -> psutil.Process:
        return psutil.Process(processes.services(self.settings)[service]["pid"])

    def serve_again(self) -> None:
        """Name the house's model and warm start in a new generation, as `bellwether promote` does."""
        arms = {"champion": arm_of(self.at.digests[0], "1")} if "mlflow" not in self.names else {"champion": None}
        warm = warm_in(self.at, self.settings.serving_dir)
        write_generation(self.settings.serving_dir, {FAMILY: arms}, warm, datetime.now(UTC))

    def up(self) -> None:
        start_stop.up(self.settings, self.names)


@dataclass(frozen=True)
class Fault:
    """One row of the matrix.

    cause     starts the fault and ends it
    lasts_s   how long it is held; 0 = it is over as soon as it is caused, as a kill is
    person    what a person has to do, where it is known beforehand that nothing else helps; empty = nothing
    repair    does that, or what the runbook would have a person try if it does not heal by itself
    where     house: the decision service alone; postgresql: with its store there; remote: with the model service asked;
              tmpfs: in a home of TMPFS_MB; faketime: with a clock that can be moved; file_key: its key in a file;
              stack: all six services, one installation for all such faults
    needs     says why it cannot be caused on this machine; empty = it can
    """

    told: str
    cause: Callable[[House], AbstractContextManager[None]]
    lasts_s: float = 0.0
    person: str = ""
    repair: Callable[[House], None] = House.up
    tried: str = "`bellwether up`"
    where: Literal["house", "postgresql", "remote", "tmpfs", "faketime", "file_key", "stack"] = "house"
    needs: Callable[[], str] = lambda: ""


# ---- causes ---------------------------------------------------------------------------------------------------------


def kill(pick: Callable[[House], list[psutil.Process]]) -> Callable[[House], AbstractContextManager[None]]:
    @contextmanager
    def cause(house: House) -> Iterator[None]:
        for process in pick(house):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        yield

    return cause


def freeze(pick: Callable[[House], list[psutil.Process]]) -> Callable[[House], AbstractContextManager[None]]:
    """SIGSTOP, later SIGCONT: the process is there, its sockets accept, and nothing answers."""

    @contextmanager
    def cause(house: House) -> Iterator[None]:
        frozen = pick(house)
        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in frozen:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    return cause


def worker(house: House) -> list[psutil.Process]:
    return [house.member("decision, worker")]


def decision_parent(house: House) -> list[psutil.Process]:
    return [house.member("decision, parent")]


def parent_of(service: str) -> Callable[[House], list[psutil.Process]]:
    return lambda house: [house.parent(service)]


def whole(service: str) -> Callable[[House], list[psutil.Process]]:
    def pick(house: House) -> list[psutil.Process]:
        parent = house.parent(service)
        return [parent, *parent.children(recursive=True)]

    return pick


def supervisors(house: House) -> list[psutil.Process]:
    return [p for name, p in service_processes(house.settings, house.names).items() if name.startswith("supervisor")]


def database(house: House) -> list[psutil.Process]:
    """The processes of this house's PostgreSQL."""
    port = house.settings.store.rsplit(":", 1)[1].split("/")[0]
    found = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] and _listens(p.info["cmdline"], port)]
    return [process for parent in found for process in (parent, *parent.children(recursive=True))]


def _listens(cmdline: list[str], port: str) -> bool:
    return "postgres" in cmdline[0] and any(pair == ("-p", port) for pair in pairwise(cmdline))


@contextmanager
def store_locked(house: House) -> Iterator[None]:
    """Somebody holds the write lock: a report of another program, a backup that hangs."""
    with closing(sqlite3.connect(house.settings.home / "store.db", isolation_level=None, timeout=30.0)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


@contextmanager
def disk_full(house: House) -> Iterator[None]:
    """The last byte of the home's file system is taken, and kept taken."""
    ballast = house.settings.home / "ballast"
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
def read_only(house: House) -> Iterator[None]:
    with read_only_folder(house.settings.home):
        yield


@contextmanager
def read_only_folder(folder: Path) -> Iterator[None]:
    """A folder mounted over itself, read-only: what is opened from now on cannot be written, open files can."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def read_only_at_start(house: House) -> Iterator[None]:
    start_stop.down(house.settings)
    with read_only(house):
        began = time.monotonic()
        try:
            house.up()
            words = "started"
        except BellwetherError as error:
            words = type(error).__name__
        except OSError as error:
            words = f"traceback {type(error).__name__}"
        house.log.add("up", words, time.monotonic() - began)
        yield


@contextmanager
def page_flipped(house: House) -> Iterator[None]:
    """A page in the middle of store.db is overwritten while nothing runs; a backup of just before lies beside it."""
    start_stop.down(house.settings)
    file = house.settings.home / "store.db"
    with closing(sqlite3.connect(file)) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (size,) = store.execute("PRAGMA page_size").fetchone()
        page = _leaf(store)
    shutil.copy2(file, house.scratch / "backup.db")
    with file.open("r+b") as handle:
        handle.seek((page - 1) * size)
        handle.write(os.urandom(size))
    with suppress(BellwetherError):  # a store that is known to be broken may stop the start
        house.up()
    yield


def _leaf(store: sqlite3.Connection) -> int:
    """A page with the oldest decisions: nothing reads it at a start, so that only somebody who checks can know."""
    wanted = "SELECT min(pageno) FROM dbstat WHERE name = 'decisions' AND pagetype = 'leaf'"
    return int(store.execute(wanted).fetchone()[0])


def restore_store(house: House) -> None:
    start_stop.down(house.settings)
    for file in house.settings.home.glob("store.db*"):
        file.unlink()
    shutil.copy2(house.scratch / "backup.db", house.settings.home / "store.db")
    house.up()


def generation_replaced(change: Callable[[dict[str, Any]], str]) -> Callable[[House], AbstractContextManager[None]]:
    """The generation file is replaced by what `change` makes of it, by rename; the fault ends with a right one."""

    @contextmanager
    def cause(house: House) -> Iterator[None]:
        content = json.loads(house.generation_file.read_text())
        draft = house.generation_file.with_name(".by_hand")
        draft.write_text(change({**content, "generation": content["generation"] + 1}))
        draft.replace(house.generation_file)
        try:
            yield
        finally:
            house.serve_again()

    return cause


def without_warm_start(content: dict[str, Any]) -> str:
    return json.dumps({name: value for name, value in content.items() if name != "warm_start"})


def naming_no_bundle(content: dict[str, Any]) -> str:
    arms = {"champion": arm_of("0" * 64, "9"), "challenger": None}
    return json.dumps(content | {"families": {FAMILY: arms}})


def flipped(pick: Callable[[House], Path]) -> Callable[[House], AbstractContextManager[None]]:
    """One byte of a file is flipped, and the worker has to read it again."""

    @contextmanager
    def cause(house: House) -> Iterator[None]:
        file = pick(house)
        whole = file.read_bytes()
        file.chmod(0o600)
        broken = bytearray(whole)
        broken[len(broken) // 2] ^= 0xFF
        file.write_bytes(bytes(broken))
        house.member("decision, worker").kill()
        try:
            yield
        finally:
            file.write_bytes(whole)

    return cause


def of_bundle(house: House) -> Path:
    return max((house.settings.bundles / house.at.digests[0]).rglob("*.onnx"))


@contextmanager
def warm_start_flipped(house: House) -> Iterator[None]:
    """One byte of the warm start is flipped and the worker has to read it again; the workspace is that of a turn."""
    mine = house.settings.serving_dir / "warm" / house.at.warm["digest"]  # of this house: others use the stand's
    house.at = replace(house.at, warm=house.at.warm | {"path": str(mine)})
    trained = house.at.home.parent / f"seed-{house.at.params.seed + 1}"  # whose warm start the stand published
    labels = Path("artifacts") / "labels"
    shutil.copytree(trained / "data", house.settings.workspace / "data")
    shutil.copytree(trained / labels, house.settings.workspace / labels)
    pointer = json.dumps({"outs": [{"md5": house.at.warm["data_hash"]}]})
    (house.settings.workspace / "data.dvc").write_text(pointer)
    house.serve_again()
    time.sleep(1.0)
    file = mine / "features.state"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 0xFF]))
    house.member("decision, worker").kill()
    yield


def down_and_up(house: House) -> None:
    """What `bellwether down` and `bellwether up` do, for the services of this house."""
    start_stop.down(house.settings)
    before_start(house.settings)
    house.up()


def again_with_the_worker(house: House) -> None:
    house.serve_again()
    house.member("decision, worker").kill()


@contextmanager
def clock_ahead(house: House) -> Iterator[None]:
    """The wall clock of the service runs a day ahead, then right again; its monotonic clock is left alone."""
    file = house.scratch / "clock"
    file.write_text("+1d\n")
    try:
        yield
    finally:
        file.write_text("+0\n")


@contextmanager
def key_gone(house: House) -> Iterator[None]:
    file = house.settings.home / "write_key"
    aside = file.with_name("write_key.aside")
    file.rename(aside)
    try:
        yield
    finally:
        aside.replace(file)


@contextmanager
def key_replaced(house: House) -> Iterator[None]:
    """Somebody writes another key into the file and restarts nothing."""
    file = house.settings.home / "write_key"
    before = file.read_text()
    file.write_text("0" * 48)
    try:
        words = "200"
        with Client(house.settings) as other:  # with the new key, beside the feeder with the old one
            try:
                other.observe(house.load.symbol, house.load.groups[0][:1])
            except BellwetherError as error:
                words = in_short(str(error))
        house.log.add("the new key", words)
        yield
    finally:
        file.write_text(before)


# ---- what the machine has to have -----------------------------------------------------------------------------------


@cache
def no_mount() -> str:
    """Why a tmpfs cannot be mounted here; empty if it can."""
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
    return "" if LIBFAKETIME.is_file() else f"{LIBFAKETIME} is not there; Debian's package is faketime"


FAULTS: dict[str, Fault] = {
    "decision_parent_killed": Fault("kill -9: decision, parent", kill(decision_parent)),
    "decision_worker_killed": Fault("kill -9: decision, worker", kill(worker)),
    "supervisor_killed": Fault("kill -9: supervisor, then `up`", kill(supervisors), person="`bellwether up`"),
    "decision_worker_frozen": Fault("SIGSTOP 10 s: decision, worker", freeze(worker), 10.0),
    "store_locked": Fault("store locked by another, 20 s", store_locked, 20.0),
    "postgresql_frozen": Fault("SIGSTOP 20 s: PostgreSQL", freeze(database), 20.0, where="postgresql"),
    "disk_full": Fault("disk full, 10 s", disk_full, 10.0, person="free space", where="tmpfs", needs=no_mount),
    "home_read_only": Fault("home read-only, 10 s", read_only, 10.0, person="make it writable", needs=no_mount),
    "home_read_only_at_start": Fault("home read-only at start", read_only_at_start, 1.0, needs=no_mount,
                                     person="make it writable, `bellwether up`"),
    "store_page_flipped": Fault("one page of store.db overwritten", page_flipped, 20.0, repair=restore_store,
                                person="`bellwether restore FILE`, the newest backup"),
    "generation_garbage": Fault("generation.json: garbage, 5 s", generation_replaced(lambda _: "}{ \0"), 5.0),
    "generation_empty": Fault("generation.json: empty, 5 s", generation_replaced(lambda _: ""), 5.0),
    "generation_without_warm_start": Fault("generation.json: no warm_start, 5 s",
                                           generation_replaced(without_warm_start), 5.0),
    "generation_names_no_bundle": Fault("generation.json: a bundle that is missing, 5 s",
                                        generation_replaced(naming_no_bundle), 5.0),
    "bundle_flipped": Fault("one byte of the champion's bundle", flipped(of_bundle), 15.0, repair=again_with_the_worker,
                            person="`bellwether promote FAMILY VERSION`: it is fetched anew"),
    "warm_start_flipped": Fault("one byte of the warm start", warm_start_flipped, 15.0, repair=down_and_up,
                                person="`bellwether down`, `bellwether up`: it is folded anew"),
    "clock_a_day_ahead": Fault("clock a day ahead, 10 s, and back", clock_ahead, 10.0, where="faketime",
                               needs=no_faketime),
    "model_service_killed": Fault("kill -9: models, parent; remote mode", kill(whole("models")), where="remote"),
    "key_file_gone": Fault("key file gone, 5 s", key_gone, 5.0, where="file_key"),
    "key_file_replaced": Fault("key file replaced, 5 s", key_replaced, 5.0, where="file_key"),
    "models_killed": Fault("kill -9: models, parent", kill(parent_of("models")), where="stack"),
    "mlflow_killed": Fault("kill -9: MLflow", kill(parent_of("mlflow")), where="stack"),
    "prefect_killed": Fault("kill -9: Prefect", kill(parent_of("prefect")), where="stack"),
    "flows_killed": Fault("kill -9: flows", kill(parent_of("flows")), where="stack"),
    "evidently_killed": Fault("kill -9: Evidently", kill(parent_of("evidently")), where="stack"),
    "mlflow_frozen": Fault("SIGSTOP 20 s: MLflow", freeze(whole("mlflow")), 20.0, where="stack"),
}  # fmt: skip


# ---- one fault, measured --------------------------------------------------------------------------------------------


def observe_fault(house: House, fault: Fault, compare: bool = True) -> Figures:
    """Cause `fault` on a running house under its load, end it, wait until all is as before, compare what is stored.

    Returns detected_s and by; said: endpoint → words during the fault; slowest_s of each; alarms; doctor: what it found
    during the fault and not before; heals: "by itself", REPAIRED or "not in time"; answers_s and healed_s after the end
    of the fault; person: what had to be done; lost, doubled, lost_bars and the rest of hardship's comparison.
    """
    before = set(ailments(house.settings))
    with Probe(house.settings, house.names, house.log) as probe:
        healthy = _calm(house, probe)
        began = time.monotonic()
        found: set[str] = set()
        with fault.cause(house):
            if fault.lasts_s:
                time.sleep(fault.lasts_s / 2)
                found = set(ailments(house.settings))
                time.sleep(max(0.0, began + fault.lasts_s - time.monotonic()))
            during = time.monotonic()
        ended, look_s = (during, LOOK_AGAIN_S) if fault.lasts_s else (began, NOTICE_S)
        heals, person = "by itself", fault.person
        if fault.person and fault.repair is not House.up:
            fault.repair(house)  # known not to heal by itself: what the person does is part of the case
            heals, ended = REPAIRED, time.monotonic()
        elif fault.person.endswith("`bellwether up`"):
            house.up()
        healed = _until_as_before(house, probe, healthy, ended, look_s)
        if not fault.lasts_s:
            found = set(ailments(house.settings)) if healed is None else found
        if healed is None:
            with suppress(BellwetherError, OSError):
                fault.repair(house)
            heals, person, ended = REPAIRED, person or fault.tried, time.monotonic()
            healed = _until_as_before(house, probe, healthy, ended, look_s)
        if healed is None:
            heals = "not in time"
        until = max(during, ended) if heals != "by itself" else during + (healed or 0.0)
        seen_s, by = detected(probe, healthy, began)
        figures: Figures = {
            "told": fault.told, "detected_s": seen_s, "by": by, "heals": heals, "person": person,
            "answers_s": _answers_again(house.log, ended), "healed_s": healed,
            "said": {name: house.log.of(name).between(began, until) for name in LISTENED},
            "slowest_s": {name: house.log.of(name).slowest_s(began, until) for name in (*READS, *CALLS)},
            "alarms": sorted({kind for _, kind in probe.new_alarms(began)}), "doctor": sorted(found - before),
        }  # fmt: skip
    if compare:
        figures |= compared(house)
    if house.load.over:
        figures["faults"] = [*figures.get("faults", []), "the load ran out of bars or ended before this fault did"]
    return figures


def compared(house: House) -> Figures:
    """hardship's comparison of what is stored with what was acknowledged, for the load so far."""
    acknowledged, faults = dict(house.load.acknowledged), list(house.load.faults)
    so_far = replace(house.load, acknowledged=acknowledged, faults=faults)
    so_far.fed = house.load.fed
    store = Store.open(house.settings.store)
    try:
        return {"acknowledged": len(acknowledged)} | hardship.compare(house.at, house.settings, store, so_far)
    finally:
        store.close()


def _calm(house: House, probe: Probe) -> dict[str, str]:
    """Wait until everything was well for CALM_S; returns what everything says then. Goes on with what there is after a
    while: a fault on top of one that does not heal is measured too."""
    deadline, since, well = time.monotonic() + HEAL_S, time.monotonic(), probe.healthy()
    while time.monotonic() - since < CALM_S and time.monotonic() < deadline:
        time.sleep(0.1)
        now = probe.healthy()
        if now != well or not all(now.values()) or now["services"] != "up" or house.load.fed < 1:
            since, well = time.monotonic(), now
    return well


def _until_as_before(house: House, probe: Probe, healthy: dict[str, str], ended: float, look_s: float) -> float | None:
    """Seconds after `ended` until every endpoint and service says what it said before and the feeder gets answers."""
    deadline = ended + HEAL_S
    while time.monotonic() < deadline:
        calls, everyone = [house.log.of(name) for name in CALLS], [house.log.of(name) for name in (*CALLS, *healthy)]
        well = probe.healthy() == healthy and all(call.now().startswith("200") for call in calls)
        if well and min(said.asked for said in everyone) > ended + look_s:
            return max(0.0, max(said.changes[-1][0] for said in everyone) - ended)
        time.sleep(0.1)
    return None


def _answers_again(log: Log, ended: float) -> float | None:
    """Seconds after `ended` until the feeder's calls are answered with 200; 0 if they always were."""
    calls = [log.of(name) for name in CALLS]
    if not all(call.now().startswith("200") for call in calls):
        return None
    last = [
        at
        for call in calls
        for (at, words), (_, earlier) in zip(call.changes[1:], call.changes, strict=False)
        if words.startswith("200") and not earlier.startswith("200")
    ]
    return max(0.0, max(last) - ended) if last else 0.0


# ---- the installations ----------------------------------------------------------------------------------------------


@contextmanager
def running(
    fault: Fault, tiny: bool = False, pace_s: float = PACE_S, inside: Path | None = None, store_url: str = ""
) -> Iterator[House]:
    """A house as `fault` needs it, with its load started."""
    with ExitStack() as held:
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="bellwether-fault-")))
        names, variables = DECISION, {}
        if fault.where == "postgresql":
            store_url = held.enter_context(postgresql())
        elif fault.where == "tmpfs":
            inside = held.enter_context(tmpfs(scratch / "disk"))
            variables = {"BELLWETHER_DISK_WARN_MB": "8", "BELLWETHER_DISK_STOP_MB": "2"}
        elif fault.where == "remote":
            names = (*DECISION, "models")
            variables = {"BELLWETHER_MODELS": "remote"}
        elif fault.where == "faketime":
            (scratch / "clock").write_text("+0\n")
            variables = {
                "LD_PRELOAD": str(LIBFAKETIME), "FAKETIME_TIMESTAMP_FILE": str(scratch / "clock"),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1", "DONT_FAKE_MONOTONIC": "1",
            }  # fmt: skip
        elif fault.where == "file_key":
            variables = {"BELLWETHER_WRITE_KEY": ""}
        at, settings = held.enter_context(hardship.house(tiny, store_url, names, inside=inside, **variables))
        house = _loaded(at, settings, names, scratch, pace_s)
        held.callback(_stopped, house.load)
        yield house


def _loaded(at: Stand, settings: Settings, names: tuple[str, ...], scratch: Path, pace_s: float) -> House:
    log = Log()
    load = load_of(at, settings, pace_s, forgiving=True)
    load.client, load.patience_s = recorder(log), LOAD_PATIENCE_S
    load.start()
    return House(at, settings, names, load, log, scratch)


def _stopped(load: Load) -> None:
    load.patience_s = 0.0
    load.stop()


@contextmanager
def tmpfs(folder: Path, megabytes: int = TMPFS_MB) -> Iterator[Path]:
    """A small file system of its own. Needs the right to mount."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


_STACK = ExitStack()  # the six services, once a process; stopped when it ends


@cache
def stack() -> House:
    """All six services on the stand's warm start. No model is registered, so the consensus decides: what is looked at
    here is the servers beside the decision service."""
    atexit.register(_STACK.close)
    scratch = Path(_STACK.enter_context(tempfile.TemporaryDirectory(prefix="bellwether-stack-")))
    at, settings = _STACK.enter_context(hardship.house(False, "", STACK, champion=False))
    house = _loaded(at, settings, STACK, scratch, PACE_S)
    _STACK.callback(_stopped, house.load)
    return house


def case(name: str) -> Figures:
    """One row of the matrix, on an installation of its own or the shared one. Never raises: what broke is found."""
    fault = FAULTS[name]
    if why := fault.needs():
        return {"told": fault.told, "not_run": why}
    try:
        if fault.where == "stack":
            return observe_fault(stack(), fault)
        with running(fault) as house:
            return observe_fault(house, fault)
    except Exception as error:  # noqa: BLE001  # a matrix with a hole says less than one with what made the hole
        return {"told": fault.told, "not_run": f"{type(error).__name__}: {str(error)[:400]}"}
