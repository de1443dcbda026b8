"""One installation, opened: where it runs, what it runs, its store, and (when asked for) its registry."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil

from pipelines import versioning
from pipelines.errors import LeaseHeld, StateError, UnreadableFile
from pipelines.params import Params
from pipelines.settings import ROOT, Settings, load_params, settings
from pipelines.store import Store
from pipelines.tracking import Tracking

log = logging.getLogger("bellwether.site")
WORKSPACE = "workspace"  # name of the lease: one writer of market data and models at a time


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Installation:
    settings: Settings
    params: Params
    store: Store

    @cached_property
    def tracking(self) -> Tracking:
        return Tracking(self.settings.mlflow_url)

    @property
    def workspace(self) -> Path:
        return self.settings.workspace

    @property
    def versions(self) -> Path:
        return self.settings.home / "versions"

    def meta(self) -> dict[str, Any]:
        """What the last `features` stage says of its data. Raises StateError before the first ingest."""
        return self._read(self.workspace / "artifacts" / "features" / "meta.json")

    def manifest(self) -> dict[str, Any]:
        path = self.workspace / "data" / "manifest.json"
        found = self._read(path)
        if lacking := {"symbol", "timeframe"} - set(found):
            raise UnreadableFile(
                f"{path} is damaged: no {', '.join(sorted(lacking))}. `bellwether run --once` writes it again."
            )
        return found

    def _read(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise StateError(f"{path} is not there yet; run `bellwether run --once` first")
        try:
            return dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:  # cut off, no text at all, or JSON of another shape
            raise UnreadableFile(f"{path} is damaged: {error}. `bellwether run --once` writes it again.") from error


def open_installation() -> Installation:
    where = settings()
    return Installation(where, load_params(where.params_file), Store.open(where.store, where.durability))


def holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def is_gone(holder: str) -> bool:
    """True if the process that held something ran on this machine and has ended; it cannot give anything back."""
    host, _, pid = holder.rpartition(":")
    return host == socket.gethostname() and pid.isdigit() and not psutil.pid_exists(int(pid))


@contextmanager
def run_periodically(act: Callable[[], object], every_s: float, name: str) -> Iterator[None]:
    """Call `act` every `every_s` seconds, in a thread of its own, until the block ends.

    A fault is not the end: it is logged, once as long as it says the same, and the next call may find it gone.
    """
    ended = threading.Event()

    def keep() -> None:
        said = ""
        while not ended.wait(every_s):
            try:
                act()
                said = ""
            except Exception as fault:
                if repr(fault) != said:
                    log.exception("%s: in vain this time, again in %g s", name, every_s)
                said = repr(fault)

    thread = threading.Thread(target=keep, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10.0)


def renew_periodically(renew: Callable[[], object], duration: timedelta) -> AbstractContextManager[None]:
    """Call `renew` three times a `duration` until the block ends: only who died loses what he holds."""
    return run_periodically(renew, duration.total_seconds() / 3, "lease")


@contextmanager
def hold_lease(installation: Installation, name: str, duration: timedelta, timeout_s: float) -> Iterator[None]:
    """Hold a lease, waiting up to `timeout_s` for whoever has it. Raises LeaseHeld naming the holder."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            installation.store.acquire_lease(name, holder(), now(), duration)
            break
        except LeaseHeld as held:
            if is_gone(held.holder):
                installation.store.release_lease(name, held.holder)
                continue
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
    try:
        with renew_periodically(lambda: installation.store.renew_lease(name, holder(), now(), duration), duration):
            yield
    finally:
        installation.store.release_lease(name, holder())


@contextmanager
def workspace_lease(installation: Installation) -> Iterator[None]:
    """Hold the workspace: DVC takes one writer."""
    with hold_lease(
        installation, WORKSPACE, timedelta(minutes=installation.params.retrain.lease_minutes), timeout_s=60.0
    ):
        versioning.prepare(
            installation.workspace, ROOT, installation.settings.params_file, installation.settings.remote
        )
        yield
