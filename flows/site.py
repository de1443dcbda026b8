"""One installation, opened: where it runs, what it runs, its store, and (when asked for) its registry."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines import versioning
from pipelines.errors import StateError
from pipelines.settings import ROOT, Params, Settings, load_params, settings
from pipelines.store import Store
from pipelines.tracking import Tracking

WORKSPACE = "workspace"  # name of the lease: one writer of market data and models at a time


def now() -> datetime:
    return datetime.now(UTC)


@dataclass
class Site:
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
        return self._read(self.workspace / "data" / "manifest.json")

    def _read(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise StateError(f"{path} is not there yet; run `bellwether run --once` first")
        return dict(json.loads(path.read_text()))


def open_site() -> Site:
    where = settings()
    return Site(where, load_params(where.params_file), Store.open(where.store, where.durability))


def holder() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def writing(site: Site) -> Iterator[None]:
    """Hold the workspace: DVC takes one writer. Raises LeaseHeld while another process has it."""
    site.store.acquire_lease(WORKSPACE, holder(), now(), timedelta(minutes=site.params.retrain.lease_minutes))
    try:
        versioning.prepare(site.workspace, ROOT, site.settings.params_file, site.settings.remote)
        yield
    finally:
        site.store.release_lease(WORKSPACE, holder())
