"""One installation, opened: its settings, parameters and store, and (once it is used) its registry; leases on it."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from flows.support.processes import is_alive
from pipelines import versioning
from pipelines.data.symbols import slug_of
from pipelines.data.timeframes import Grid
from pipelines.errors import LeaseHeld, StateError, UnreadableFile
from pipelines.params import Params
from pipelines.settings import ROOT, Settings, load_params, settings
from pipelines.stage_outputs import facts_of
from pipelines.store import Store
from pipelines.tracking import Tracking
from serving.service.home_store import open_store

if TYPE_CHECKING:  # what reads market data needs pandas, half a second that most commands do not wait for
    from pipelines.data.data_version import DataVersion

log = logging.getLogger("bellwether.installation")
WORKSPACE = "workspace"  # name of the lease: one writer of market data and models at a time


def now() -> datetime:
    """Return the current time, in UTC."""
    return datetime.now(UTC)


@dataclass
class Installation:
    """Hold what every flow and command needs: settings, parameters and the open store."""

    settings: Settings
    params: Params
    store: Store

    @cached_property
    def tracking(self) -> Tracking:
        """Return the model registry, connected at first use."""
        return Tracking(self.settings.mlflow_url)

    @property
    def workspace(self) -> Path:
        """Return the folder where DVC builds snapshots and models."""
        return self.settings.workspace

    @property
    def versions(self) -> Path:
        """Return the folder with the files of each data version."""
        return self.settings.home / "versions"

    @property
    def data(self) -> Path:
        """Return the folder of the newest data version."""
        return self.workspace / "data"

    @property
    def features(self) -> Path:
        """Return the folder that the `features` stage writes."""
        return self.workspace / "artifacts" / "features"

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return the symbols of the newest data version, in its order. Raises as `data_version`."""
        return self.data_version().symbols

    def data_version(self) -> "DataVersion":
        """Return what the newest data version holds. Raises StateError before the first, UnreadableFile if damaged."""
        from pipelines.data.data_version import read_manifest

        return read_manifest(self.data)

    def manifest(self, symbol: str | None = None) -> Mapping[str, Any]:
        """Return the facts of one market of the newest data version; None = the first.

        Raises  as `data_version`, and UnknownName for a symbol it does not hold
        """
        return self.data_version().market(symbol)

    def base_grid(self, symbol: str | None = None) -> Grid:
        """Return where the base bars of a market open and close. Raises as `manifest`."""
        from flows.support.holdings import grid_in

        return grid_in(self.data, self.manifest(symbol))

    def meta(self) -> Mapping[str, Any]:
        """Return what the last `features` stage wrote of its data. Raises StateError before the first ingest."""
        return self._read(self.features / "meta.json")

    def meta_of(self, symbol: str | None = None) -> Mapping[str, Any]:
        """Return what the last `features` stage wrote of one market, with what it wrote of all; None = the first.

        Raises  as `meta`, and UnknownName for a symbol without features
        """
        return facts_of(self.meta(), symbol)

    def features_of(self, symbol: str) -> Path:
        """Return the folder with one market's arrays; up to release 0.10 they lie in that of the stage."""
        own = self.features / slug_of(symbol)
        return own if own.is_dir() else self.features

    def _read(self, path: Path) -> Mapping[str, Any]:
        """Return the JSON object in a file. Raises StateError without one, UnreadableFile if damaged."""
        if not path.is_file():
            raise StateError(f"{path} is not there yet; run `bellwether run --once` first")
        try:
            return dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:  # cut off, no text at all, or JSON of another shape
            raise UnreadableFile(f"{path} is damaged: {error}. `bellwether run --once` writes it again.") from error


def open_installation() -> Installation:
    """Open the installation that the environment names."""
    found = settings()
    return Installation(found, load_params(found.params_file), open_store(found))


def holder() -> str:
    """Return the name under which this process holds leases: `host:pid`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def is_gone(holder: str) -> bool:
    """Return whether this holder ran on this machine and has ended; it cannot release its leases any more.

    One that was killed has ended before its parent takes note; where the parent was killed too, perhaps nobody does.
    """
    host, _, pid = holder.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    with suppress(psutil.NoSuchProcess):
        return not (psutil.pid_exists(int(pid)) and is_alive(psutil.Process(int(pid))))
    return True  # it ended between the two


@contextmanager
def run_periodically(act: Callable[[], object], every_s: float, name: str) -> Iterator[None]:
    """Call `act` every `every_s` seconds, in a thread of its own, until the block ends.

    An error does not end it: the same error in a row is logged once, and the next call may find it gone.
    """
    ended = threading.Event()

    def repeat() -> None:
        """Call `act` until the block ends; log each new error."""
        logged = ""
        while not ended.wait(every_s):
            try:
                act()
                logged = ""
            except Exception as fault:
                if repr(fault) != logged:
                    log.exception("%s failed; next attempt in %g s", name, every_s)
                logged = repr(fault)

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=10.0)


def renew_periodically(renew: Callable[[], object], duration: timedelta) -> AbstractContextManager[None]:
    """Call `renew` three times a `duration` until the block ends: only a process that died loses its lease."""
    return run_periodically(renew, duration.total_seconds() / 3, "lease")


@contextmanager
def hold_lease(installation: Installation, name: str, duration: timedelta, timeout_s: float) -> Iterator[None]:
    """Hold a lease, waiting up to `timeout_s` for its holder. Raises LeaseHeld naming the holder."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            installation.store.acquire_lease(name, holder(), now(), duration)
            break
        except LeaseHeld as refusal:
            if is_gone(refusal.holder):
                installation.store.release_lease(name, refusal.holder)
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
    """Hold the workspace, prepared: DVC takes one writer. Left settled, so that `dvc status` there is clean."""
    own = f"{WORKSPACE} {installation.settings.worker}".strip()  # a worker of the pool has a workspace to itself
    with hold_lease(installation, own, timedelta(minutes=installation.params.retrain.lease_minutes), timeout_s=60.0):
        versioning.prepare(
            installation.workspace, ROOT, installation.settings.params_file, installation.settings.remote
        )
        yield
        versioning.settle(installation.workspace)
