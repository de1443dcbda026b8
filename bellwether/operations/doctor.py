"""Check this installation: what is wrong, and what to do about it."""

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from bellwether.operations.launch import postgres
from flows.support import ports, processes, service_table
from pipelines import compiled, disk
from pipelines.errors import BellwetherError, StateError
from pipelines.permissions import is_loose
from pipelines.settings import ROOT, Settings
from serving.service import client_keys

if TYPE_CHECKING:
    from pipelines.store import Store

GIB = 1024**3
SOON_DAYS = 3.0  # a disk that is full by then is a warning today
WRITE_SECONDS = 2.0  # a store that needs longer for the smallest write is locked
ENDS_DAYS = 14  # a client's key that ends by then is a warning today
FREE_MEMORY = 4 * GIB  # the seven services take about 2.5 GiB, a training run about 1 GiB more
INSTALL_CLUSTER = ".venv/bin/uv pip install -r requirements-cluster.txt -c requirements.lock"


@dataclass(frozen=True)
class Finding:
    """Report one check. `remedy` is empty when `state` is ok."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Check everything a run needs; change nothing. `fail` would stop a run, `warn` would slow or confuse it."""
    return [
        python_version(sys.version_info[:2]),
        packages(ROOT / "requirements.lock"),
        git(ROOT),
        mlflow_library(ROOT),
        writable(settings.home),
        home_permissions(settings.home),
        *keys_of_clients(settings, client_keys.now_utc()),
        disk_space(settings),
        data_versions(settings),
        memory(settings),
        kernels(),
        *open_ports(settings),
        *own_stores(settings),
        supervisor_running(settings),
        old_runs(settings),
        *store(settings),
        *services(settings),
    ]


def python_version(found: tuple[int, ...]) -> Finding:
    """Check the version of Python: (major, minor)."""
    detail = ".".join(map(str, found))
    if (3, 11) <= found < (3, 14):
        return Finding("python", "ok", detail)
    return Finding(
        "python", "fail", f"{detail}, wanted 3.11, 3.12 or 3.13", "rm -rf .venv && make setup PYTHON=python3.12"
    )


def packages(lock: Path) -> Finding:
    """Compare installed versions with the lock; a local build tag (`+cpu`) is no difference."""
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(), flags=re.MULTILINE)
    wrong = [f"{name} {has}, locked {wanted}" for name, wanted in pinned if (has := _installed(name)) != wanted]
    if wrong:
        return Finding("packages", "fail", f"{len(wrong)} differ: {'; '.join(wrong[:3])}", "make setup")
    return Finding("packages", "ok", f"{len(pinned)} as in {lock.name}")


def _installed(name: str) -> str:
    """Return the installed version of a package without its local build tag; "missing" if there is none."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "missing"


def git(root: Path) -> Finding:
    """Check that git can name a commit: every training run records the one it came from."""
    if shutil.which("git") is None:
        return Finding("git", "fail", "not found", "install git, with apt-get install git for instance")
    if not (root / ".git").exists():
        return Finding("git", "warn", f"{root} is no clone: runs cannot name their commit", "git clone the project")
    return Finding("git", "ok", "present")


def mlflow_library(root: Path) -> Finding:
    """Check that our folder mlflow/, with files of the server, does not hide the library of that name."""
    modules = sorted(str(file.relative_to(root)) for file in (root / "mlflow").rglob("*.py"))
    spec = find_spec("mlflow")
    if modules or spec is None or spec.origin is None or Path(spec.origin).is_relative_to(root / "mlflow"):
        detail = f"hidden by {', '.join(modules)}" if modules else "not installed"
        return Finding("mlflow library", "fail", detail, "delete every .py under mlflow/, then make setup")
    return Finding("mlflow library", "ok", spec.origin)


def writable(home: Path) -> Finding:
    """Check that this user may write in the home, or in the folder that will contain it."""
    folder = _existing(home)
    if os.access(folder, os.W_OK | os.X_OK):
        return Finding("write access", "ok", str(home))
    return Finding("write access", "fail", f"cannot write in {folder}", "chown it, or set BELLWETHER_HOME elsewhere")


def home_permissions(home: Path) -> Finding:
    """Check that other users cannot open the home."""
    if is_loose(home):
        return Finding("closed to others", "warn", f"other users can open {home}", "bellwether up")
    return Finding("closed to others", "ok", str(home))


def keys_of_clients(settings: Settings, now: datetime) -> Iterator[Finding]:
    """Check that the keys of clients can be read, and which of them end within ENDS_DAYS or have ended."""
    try:
        clients = client_keys.client_keys(settings)
    except StateError as error:
        yield Finding("keys of clients", "fail", str(error), "see the detail")
        return
    ending = [c for c in clients if c.has_ended(now + timedelta(days=ENDS_DAYS))]
    for client in ending:
        word = "ended" if client.has_ended(now) else "ends"
        remedy = f"`bellwether key revoke {client.name}`, and `bellwether key add` if it is still needed"
        yield Finding(f"key of {client.name}", "warn", f"{word} at {client.ends:%F %H:%M} UTC", remedy)
    if not ending:
        yield Finding("keys of clients", "ok", f"{len(clients)} clients, none ends within {ENDS_DAYS} days")


def disk_space(settings: Settings) -> Finding:
    """Compare free bytes with the two limits, and forecast in days when the disk is full at the last day's pace."""
    found = disk.check_space(settings.home, settings.disk_warn_mb * disk.MB, settings.disk_stop_mb * disk.MB)
    now_s = time.time()
    ahead = disk.forecast([*processes.disk_samples(settings), (now_s, found.free_bytes)], now_s)
    detail = found.detail
    if ahead is not None:
        pace = disk.format_bytes(int(ahead.bytes_an_hour))
        detail += f"; at the pace of the last day, {pace} an hour, full in {ahead.days:.1f} days"
    remedy = "free some (`bellwether prune` shows what may go), or set BELLWETHER_HOME elsewhere"
    if found.level == "stop":
        return Finding("disk", "fail", f"{detail}: no position is opened", remedy)
    if found.level == "warn" or (ahead is not None and ahead.days < SOON_DAYS):
        return Finding("disk", "warn", detail, remedy)
    return Finding("disk", "ok", detail)


def data_versions(settings: Settings) -> Finding:
    """Report how many data versions are kept, and what they and their outputs take on disk."""
    kept = sum(1 for folder in (settings.home / "versions").glob("*") if (folder / "data.dvc").is_file())
    size = sum(
        file.stat().st_size
        for name in ("dvc-cache", "dvc-remote")
        for file in (settings.home / name).rglob("*")
        if file.is_file()
    )
    return Finding("data versions", "ok", f"{kept} kept, {disk.format_bytes(size)} in cache and remote")


def memory(settings: Settings) -> Finding:
    """Check the memory available to us, what our own services use already included."""
    free = psutil.virtual_memory().available
    for process in processes.home_processes(settings):
        with suppress(psutil.NoSuchProcess):  # it ended just now
            free += process.memory_info().rss
    detail = f"{free / GIB:.1f} GiB available"
    if free >= FREE_MEMORY:
        return Finding("memory", "ok", detail)
    return Finding("memory", "warn", f"{detail}, wanted {FREE_MEMORY / GIB:.0f}", "close something large")


def kernels() -> Finding:
    """Check that the machine code of the kernels is compiled and matches its seals."""
    folder = compiled.configured_dir()
    if reason := compiled.untrusted_reason(folder):
        return Finding("kernels", "warn", f"{reason}: every process compiles for itself", "make setup")
    if compiled.kernels_are_warm():
        return Finding("kernels", "ok", f"compiled and sealed in {folder}")
    if bad := compiled.invalid_files(folder):
        return Finding("kernels", "warn", f"{len(bad)} files do not match their seal, {bad[0]} first", "make setup")
    return Finding("kernels", "warn", "not compiled: the first turn and each service will do it", "make setup")


def open_ports(settings: Settings) -> Iterator[Finding]:
    """Check each configured port: free, of our service, or of another process."""
    states = processes.services(settings)
    for name, service in service_table.services_of(settings).items():
        field = service.port_field
        if field is None:
            continue
        port = int(getattr(settings, field))
        if states[name]["state"] == "key refused":
            yield Finding(f"port {port}", "fail", f"{name} refuses our key", str(states[name]["detail"]))
        elif states[name]["pid"] is not None:
            yield Finding(f"port {port}", "ok", f"{name} is {states[name]['state']}")
        elif ports.is_free(settings.host, port):
            yield Finding(f"port {port}", "ok", f"free for {name}")
        else:
            yield Finding(
                f"port {port}",
                "fail",
                f"needed by {name}, used by {ports.holder(port)}",
                f"stop it, or set {ports.variable(field)} to another port",
            )


def own_stores(settings: Settings) -> Iterator[Finding]:
    """Check that what the home's own stores and their clients need is installed; nothing in profile `machine`."""
    if settings.runs_postgres:
        try:
            yield Finding(
                "PostgreSQL", "ok", f"programs in {postgres.programs()}, files in {postgres.data_folder(settings)}"
            )
        except BellwetherError as error:
            yield Finding("PostgreSQL", "fail", "not installed", str(error))
    remotes = (settings.remote, settings.mlflow_artifacts)
    if any(url.startswith("s3://") for url in remotes):
        lacking = [name for name in ("boto3", "dvc_s3") if find_spec(name) is None]
        lacking += ["weed"] if settings.runs_s3 and shutil.which("weed") is None else []
        remedy = INSTALL_CLUSTER if lacking else ""
        detail = f"not installed: {', '.join(lacking)}" if lacking else f"data versions go to {settings.remote}"
        yield Finding("S3", "fail" if lacking else "ok", detail, remedy)
    if settings.dask != "local":
        lacking = [name for name in ("distributed", "prefect_dask") if find_spec(name) is None]
        remedy = f"{INSTALL_CLUSTER}, or BELLWETHER_DASK_URL=local" if lacking else ""
        detail = f"not installed: {', '.join(lacking)}" if lacking else f"stages are computed through {settings.dask}"
        yield Finding("Dask", "fail" if lacking else "ok", detail, remedy)


def supervisor_running(settings: Settings) -> Finding:
    """Check that what runs has a supervisor: without one nothing is restarted, and logs end."""
    found = processes.supervisor_of(settings)
    if found is None:
        living = processes.home_processes(settings)
        if living:
            return Finding("supervisor", "fail", f"gone; {len(living)} processes run without it", "bellwether up")
        return Finding("supervisor", "ok", "nothing runs")
    with suppress(psutil.NoSuchProcess):
        if found.status() == psutil.STATUS_STOPPED:
            remedy = f"kill -CONT {found.pid}, or bellwether down and bellwether up"
            return Finding("supervisor", "fail", f"process {found.pid} is stopped", remedy)
    return Finding("supervisor", "ok", f"process {found.pid}")


def store(settings: Settings) -> Iterator[Finding]:
    """Check that the store can be read and written, and report open alarms and tripped breakers."""
    from bellwether import error_messages  # only here and below: what follows loads the database's library
    from pipelines.store import Store, StoreFault, damage, exists

    try:
        if not exists(settings.store):
            yield Finding("store", "ok", "none yet")
            return
        opened = Store.open(settings.store, settings.durability)
    except (BellwetherError, StoreFault, OSError, ValueError) as error:
        yield Finding("store", "fail", error_messages.describe_known_error(error) or str(error), "see the detail")
        return
    try:
        fault, damaged = _write_fault(opened), damage(settings.store)
        if damaged is not None:
            yield Finding("store", "fail", f"damaged: {damaged}", "bellwether down, then restore the newest backup")
        elif fault is None:
            yield Finding("store", "ok", "can be read and written, no page damaged")
        else:
            yield Finding("store", "fail", fault, "end what holds it (bellwether down ends all of ours), then repeat")
        alarms = [f"{a.kind}: {a.detail}" for a in opened.alarms() if a.severity in ("critical", "high")]
        if alarms:
            yield Finding("alarms", "warn", f"{len(alarms)} open, newest: {alarms[-1][:200]}", "bellwether alarms")
        else:
            yield Finding("alarms", "ok", "none open")
        tripped = [f"{trip.name} ({trip.reason})" for trip in opened.breaker_trips()]
        if tripped:
            yield Finding("breakers", "warn", "; ".join(tripped), "bellwether breaker reset NAME --by YOU --reason WHY")
        else:
            yield Finding("breakers", "ok", "none tripped")
    except (BellwetherError, StoreFault, OSError) as error:
        yield Finding("store", "fail", error_messages.describe_known_error(error) or str(error), "see the detail")
    finally:
        opened.close()


def _write_fault(opened: "Store") -> str | None:
    """Return why the smallest write did not succeed in WRITE_SECONDS; None if it did."""
    from flows.support.installation import now

    faults = [f"a write did not get through in {WRITE_SECONDS:g} s: another process holds the lock"]

    def write() -> None:
        """Acquire and release a lease; record a fault."""
        try:
            opened.acquire_lease("doctor", "doctor", now(), timedelta(seconds=1))
            opened.release_lease("doctor", "doctor")
            faults.clear()
        except Exception as error:  # noqa: BLE001 - whatever a database raises is what is found
            faults[:] = [(str(error).splitlines() or [type(error).__name__])[0]]

    thread = threading.Thread(target=write, name="doctor", daemon=True)  # it may wait much longer than we do
    thread.start()
    thread.join(WRITE_SECONDS)
    return faults[0] if faults else None


def services(settings: Settings) -> Iterator[Finding]:
    """Report services that run and do not work, and the status of the decision service."""
    states = processes.services(settings)
    for name, state in states.items():
        if state["state"] == "up" and state["detail"] in (None, processes.UNWATCHED):  # that is a finding of its own
            continue
        if state["state"] != "down" or state["detail"]:
            detail = f"{state['state']}: {state['detail'] or 'no answer yet'}"
            level: Literal["warn", "fail"] = "warn" if state["state"] in ("starting", "up") else "fail"
            yield Finding(f"service {name}", level, detail, f"bellwether up; {processes.log_file(settings, name)}")
    if states["decision"]["state"] in ("up", "not ready"):
        yield from decisions(settings)


def decisions(settings: Settings) -> Iterator[Finding]:
    """Report tier, warm-up, symbols without data and refused models, from the decision service."""
    from serving.client import Client

    try:
        with Client(settings) as client:
            status = client.status()
    except BellwetherError as error:
        yield Finding("decisions", "fail", " ".join(str(error).split())[:300], "bellwether up")
        return
    yield from _status_findings(status)


def _status_findings(status: Mapping[str, Any]) -> Iterator[Finding]:
    """Return the findings of an answer of /status."""
    runbook = "see the reason in docs/runbook.md"
    tier, reason = status.get("tier"), str(status.get("tier_reason", ""))
    if not status.get("symbols"):
        yield Finding("decisions", "warn", reason or "no symbol yet", "bellwether run --once")
        return
    health = status.get("health", "")
    level: Literal["ok", "warn", "fail"] = "fail" if tier == 4 else "ok" if health == "HEALTHY" else "warn"
    why = str(status.get("health_reason") or reason)
    yield Finding("decisions", level, f"tier {tier}, {health}: {why}", "" if level == "ok" else runbook)
    for name, symbol in status["symbols"].items():
        if symbol.get("reason"):
            yield Finding(
                f"symbol {name}", "warn", f"warming up: {symbol['reason']}", "send it bars; warm-up ends by itself"
            )
        elif symbol.get("tier") == 4:
            yield Finding(f"symbol {name}", "fail", f"tier 4: {symbol.get('tier_reason')}", runbook)
    for refused in status.get("refused", []):
        detail = f"{refused['family']} {refused['arm']} version {refused['version']}: {refused['reason']}"
        yield Finding("model refused", "warn", detail, f"bellwether rollback {refused['family']}")


def old_runs(settings: Settings) -> Finding:
    """Check for state files that a crashed run left behind."""
    files = processes.leftovers(settings)
    if files:
        return Finding("old runs", "warn", f"{files[0]} is of a run that crashed", "bellwether down")
    return Finding("old runs", "ok", "none left behind")


def _existing(folder: Path) -> Path:
    """Return the folder itself, or the nearest parent that exists."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())
