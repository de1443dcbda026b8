"""Rebuild warm starts that this release cannot read, from the data version in the workspace.

A release that changes a feature or a signal changes the catalogue, and refuses the state that an earlier one published.
`bellwether up` checks before it starts the decision service, so that an upgrade needs no manual step.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from flows.support import processes
from flows.support.installation import WORKSPACE, Installation, hold_lease, now
from flows.support.processes import Progress, silent
from flows.support.promotion import promotion_lease
from pipelines import versioning
from pipelines.contracts import JsonObject
from pipelines.data.symbols import slug_of
from pipelines.errors import BellwetherError, LeaseHeld, StateError
from pipelines.settings import ROOT, Settings, load_params
from serving.inference.generation import GENERATION_FILE, read_generation, write_generation
from serving.service.home_store import open_store


def refused(installation: Installation) -> str | None:
    """Return why this release cannot use a published warm start; None if it can use all, or if none is published.

    Raises  StateError if the generation file is damaged
    """
    served = read_generation(installation.settings.serving_dir)
    published = (served or {"warm_starts": {}})["warm_starts"]
    if not published:
        return None
    from pipelines.warm_start import read_warm_start  # it imports all kernels: only this check should wait for them

    for symbol, named in published.items():
        try:
            read_warm_start(Path(named["path"]), named["digest"])
        except (BellwetherError, LookupError, OSError, TypeError, ValueError) as error:  # another layout raises any
            return f"{symbol}: {type(error).__name__}: {error}"
    return None


def before_start(settings: Settings, progress: Progress = silent) -> None:
    """Rebuild a published warm start that this release refuses, and report it, or why it cannot be rebuilt.

    The services start all the same: without live state the decision service is not ready, and its alarm explains it.
    Does nothing if nothing was ever published, or while the decision service answers.
    """
    if not (settings.serving_dir / GENERATION_FILE).is_file() or processes.is_responding(settings, "decision"):
        return
    installation = Installation(settings, load_params(settings.params_file), open_store(settings))
    try:
        if (why := refused(installation)) is not None:
            progress(f"the published warm start is refused ({why}); folding it again")
            progress(f"warm start folded again: generation {rebuild(installation)}")
    except (StateError, LeaseHeld) as error:
        progress(str(error))
    finally:
        installation.store.close()


def rebuild(installation: Installation) -> int:
    """Fold the workspace's data again, publish every symbol's result to serving, and return the new generation.

    What was observed since is in the store, and the service folds it on top.
    Raises  StateError without a workspace that holds data and labels, with the command that makes them
    """
    remedy, workspace = "`bellwether run --once` trains and publishes a new one", installation.workspace
    for wanted in (workspace / "data" / "manifest.json", workspace / "data.dvc"):
        if not wanted.is_file():
            raise StateError(f"the warm start cannot be folded again: {wanted} is missing; {remedy}")
    records = _records(workspace, remedy)
    lease = timedelta(minutes=installation.params.retrain.lease_minutes)
    with (
        hold_lease(installation, WORKSPACE, lease, timeout_s=60.0),
        tempfile.TemporaryDirectory(dir=installation.settings.home) as scratch,
    ):
        folder = Path(scratch)
        (folder / "data").symlink_to(workspace / "data")
        shutil.copy2(workspace / "data.dvc", folder / "data.dvc")
        shutil.copy2(installation.settings.params_file, folder / "params.yaml")
        _fold(folder, remedy)
        published = _publish(folder, installation.settings.serving_dir / "warm", records)
    with promotion_lease(installation):
        served = read_generation(installation.settings.serving_dir)
        families = served["families"] if served else {}
        return write_generation(installation.settings.serving_dir, families, published, now())


def _records(workspace: Path, remedy: str) -> dict[str, JsonObject]:
    """Return symbol → the record of the traditional consensus, of every symbol of the workspace's data version."""
    found, manifest = {}, json.loads((workspace / "data" / "manifest.json").read_text())
    for symbol in manifest.get("markets") or [manifest["symbol"]]:
        labels = workspace / "artifacts" / "labels"
        file, old = labels / slug_of(symbol) / "traditional.json", labels / "traditional.json"
        file = old if old.is_file() and not file.is_file() else file  # up to release 0.10: one symbol
        if not file.is_file():
            raise StateError(f"the warm start cannot be folded again: {file} is missing; {remedy}")
        found[symbol] = json.loads(file.read_text())
    return found


def _publish(folder: Path, into: Path, records: Mapping[str, JsonObject]) -> dict[str, dict[str, str]]:
    """Publish the warm starts that the features stage left in `folder`; return symbol → its entry."""
    from pipelines.warm_start import publish_warm_start

    into.mkdir(parents=True, exist_ok=True)
    features, data_hash, published = folder / "artifacts" / "features", versioning.data_hash(folder), {}
    for symbol, record in records.items():
        stage = features / slug_of(symbol) / "warm"
        stage = stage if stage.is_dir() else features / "warm"  # of a workspace up to release 0.10
        published[symbol] = publish_warm_start(stage, into, data_hash=data_hash, **record)
    return published


def _fold(folder: Path, remedy: str) -> None:
    """Run the features stage in a process of its own, as dvc.yaml does: it reads and writes its current folder."""
    words = [sys.executable, "-P", "-m", "pipelines.training.stages", "features"]
    done = subprocess.run(
        words, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        last_line = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise StateError(f"the warm start cannot be folded again: {' '.join(last_line)[:300]}; {remedy}")
