"""What is wrong with this installation, and what to do about it."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil

from flows import ports, supervisor
from pipelines import compiled
from pipelines.permissions import is_loose
from pipelines.settings import ROOT, Settings

GIB = 1024**3
FREE_DISK = 2 * GIB  # databases, models and reports of many turns
FREE_MEMORY = 4 * GIB  # the six services take about 2.5 GiB, a training run about 1 GiB more


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `remedy` is empty when `state` is ok."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything a run needs; changes nothing. `fail` would stop a run, `warn` would slow or confuse it."""
    return [
        python_version(sys.version_info[:2]),
        packages(ROOT / "requirements.lock"),
        git(ROOT),
        mlflow_library(ROOT),
        writable(settings.home),
        closed(settings.home),
        disk(settings.home),
        memory(settings),
        kernels(),
        *open_ports(settings),
        old_runs(settings),
    ]


def python_version(found: tuple[int, ...]) -> Finding:
    detail = ".".join(map(str, found))
    if (3, 11) <= found < (3, 13):
        return Finding("python", "ok", detail)
    return Finding("python", "fail", f"{detail}, wanted 3.11 or 3.12", "rm -rf .venv && make setup PYTHON=python3.11")


def packages(lock: Path) -> Finding:
    """Installed versions against the lock; a local build tag (`+cpu`) is no difference."""
    pinned = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text(), flags=re.MULTILINE)
    wrong = [f"{name} {has}, locked {wanted}" for name, wanted in pinned if (has := _installed(name)) != wanted]
    if wrong:
        return Finding("packages", "fail", f"{len(wrong)} differ: {'; '.join(wrong[:3])}", "make setup")
    return Finding("packages", "ok", f"{len(pinned)} as in {lock.name}")


def _installed(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "missing"


def git(root: Path) -> Finding:
    """Every training run records the commit it came from."""
    if shutil.which("git") is None:
        return Finding("git", "fail", "not found", "install git, with apt-get install git for instance")
    if not (root / ".git").exists():
        return Finding("git", "warn", f"{root} is no clone: runs cannot name their commit", "git clone the project")
    return Finding("git", "ok", "present")


def mlflow_library(root: Path) -> Finding:
    """The folder mlflow/ holds files of the server. A Python file in it could hide the library of that name."""
    modules = sorted(str(file.relative_to(root)) for file in (root / "mlflow").rglob("*.py"))
    spec = find_spec("mlflow")
    if modules or spec is None or spec.origin is None or Path(spec.origin).is_relative_to(root / "mlflow"):
        detail = f"hidden by {', '.join(modules)}" if modules else "not installed"
        return Finding("mlflow library", "fail", detail, "delete every .py under mlflow/, then make setup")
    return Finding("mlflow library", "ok", spec.origin)


def writable(home: Path) -> Finding:
    folder = _existing(home)
    if os.access(folder, os.W_OK | os.X_OK):
        return Finding("write access", "ok", str(home))
    return Finding("write access", "fail", f"cannot write in {folder}", "chown it, or set BELLWETHER_HOME elsewhere")


def closed(home: Path) -> Finding:
    if is_loose(home):
        return Finding("closed to others", "warn", f"other users can open {home}", "bellwether up")
    return Finding("closed to others", "ok", str(home))


def disk(home: Path) -> Finding:
    free = shutil.disk_usage(_existing(home)).free
    detail = f"{free / GIB:.1f} GiB free"
    if free >= FREE_DISK:
        return Finding("disk", "ok", detail)
    return Finding(
        "disk", "warn", f"{detail}, wanted {FREE_DISK / GIB:.0f}", "free some, or set BELLWETHER_HOME elsewhere"
    )


def memory(settings: Settings) -> Finding:
    """What is available to us: what our own services hold already counts."""
    free = psutil.virtual_memory().available
    for process in supervisor.members(settings):
        with suppress(psutil.NoSuchProcess):  # it ended just now
            free += process.memory_info().rss
    detail = f"{free / GIB:.1f} GiB available"
    if free >= FREE_MEMORY:
        return Finding("memory", "ok", detail)
    return Finding("memory", "warn", f"{detail}, wanted {FREE_MEMORY / GIB:.0f}", "close something large")


def kernels() -> Finding:
    folder = compiled.configured_dir()
    if reason := compiled.refusal(folder):
        return Finding("kernels", "warn", f"{reason}: every process compiles for itself", "make setup")
    if compiled.kernels_are_warm():
        return Finding("kernels", "ok", f"compiled and sealed in {folder}")
    if bad := compiled.unsound(folder):
        return Finding("kernels", "warn", f"{len(bad)} files do not match their seal, {bad[0]} first", "make setup")
    return Finding("kernels", "warn", "not compiled: the first turn and each service will do it", "make setup")


def open_ports(settings: Settings) -> Iterator[Finding]:
    states = supervisor.services(settings)
    for name, service in supervisor.SERVICES.items():
        field = service.port_field
        if field is None:
            continue
        port = int(getattr(settings, field))
        if states[name]["pid"] is not None:
            yield Finding(f"port {port}", "ok", f"{name} is {states[name]['state']}")
        elif ports.is_free(settings.host, port):
            yield Finding(f"port {port}", "ok", f"free for {name}")
        else:
            yield Finding(
                f"port {port}",
                "fail",
                f"wanted by {name}, held by {ports.holder(port)}",
                f"stop it, or set {ports.variable(field)} to another port",
            )


def old_runs(settings: Settings) -> Finding:
    files = supervisor.leftovers(settings)
    if files:
        return Finding("old runs", "warn", f"{files[0]} is of a run that crashed", "bellwether down")
    return Finding("old runs", "ok", "none left behind")


def _existing(folder: Path) -> Path:
    """The folder itself, or the nearest parent that exists."""
    folder = folder.resolve()
    return next(path for path in (folder, *folder.parents) if path.exists())
