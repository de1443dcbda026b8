"""Back up and restore one installation: its store, and the small files under its home that the ledger relies on.

The files are the generation file with the warm start it names, and the pointers of every stored data version. Models
belong to MLflow and data to DVC: their own stores are backed up by their own means (see `NOT_INCLUDED`).
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from flows.support import processes
from pipelines import store
from pipelines.backup import Backup, back_up, examine, refuse_existing, restore
from pipelines.errors import LeaseHeld, StateError
from pipelines.settings import Settings
from pipelines.versioning import PROVENANCE
from serving.inference.generation import GENERATION_FILE, read_generation

NOT_INCLUDED = {
    "MLflow": "runs, registered models and their bundles: its database and artifacts, <home>/mlflow by default. Stop "
    "the services and copy the folder, or use your database's own backup",
    "DVC": "the bytes of every data version: its remote, BELLWETHER_REMOTE_URL or <home>/dvc-remote. Its files never "
    "change, so any copy of the folder will do",
    "the chain's key": "<home>/chain_key, without which `bellwether verify` cannot prove the ledger. Keep a copy apart "
    "from the backups: with both anyone can forge",
    "not needed": "Prefect's database (history of runs), <home>/bundles (fetched from MLflow again), reports and logs",
}


@dataclass(frozen=True, slots=True)
class Placed:
    """Name a file of a backup put under the home folder; `moved_to` is the new path of the file it replaced."""

    path: Path
    moved_to: Path | None


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file, as 64 hexadecimal digits."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def default_file(settings: Settings, at: datetime) -> Path:
    """Return the path of a backup made at `at` (UTC), if none is given."""
    return settings.home / "backups" / f"bellwether-{at:%Y%m%dT%H%M%SZ}.zip"


def make(settings: Settings, to: Path, at: datetime) -> Backup:
    """Write a backup to `to`; services may run meanwhile. Raises WouldOverwrite, StateError."""
    return back_up(settings.store, to, at, files_of(settings))


def preview(settings: Settings, to: Path) -> dict[str, int]:
    """Return table → number of rows a backup would hold now. Raises what `make` would raise."""
    refuse_existing(to)
    with store.open_dump(settings.store) as dump:
        rows = store.nonempty_tables(settings.store)
        return {name: rows.get(name, 0) for name in dump.columns}


def files_of(settings: Settings) -> Callable[[], dict[str, bytes]]:
    """Read the generation file and its warm starts now; return a function that adds the rest and returns name → bytes.

    Read first, they name nothing younger than the ledger. A damaged generation file is left out: the next promotion or
    rollback writes it again from the ledger.
    """
    home, found = settings.home, list[Path]()
    try:
        generation = read_generation(settings.serving_dir)
    except StateError:
        generation = None
    early = {} if generation is None else {f"serving/{GENERATION_FILE}": json.dumps(generation, indent=1).encode()}
    for named in (generation or {"warm_starts": {}})["warm_starts"].values():
        found += [file for file in Path(named["path"]).glob("*") if file.is_file()]
    early |= {f"serving/warm/{file.parent.name}/{file.name}": file.read_bytes() for file in sorted(found)}

    def read() -> dict[str, bytes]:
        """Return name → bytes of every file of a backup."""
        pointers = sorted(file for name in PROVENANCE for file in (home / "versions").glob(f"*/{name}"))
        return early | {str(file.relative_to(home)): file.read_bytes() for file in pointers}

    return read


def refuse_running(settings: Settings) -> None:
    """Raise LeaseHeld while any process that `up` started under this home lives."""
    if living := processes.home_processes(settings):
        raise LeaseHeld(
            f"services of {settings.home} run (processes {', '.join(str(p.pid) for p in living[:6])}) and would write "
            "into the store while it is restored. Stop them with `bellwether down`."
        )


def verify(settings: Settings, file: Path) -> Backup:
    """Check all that `restore_installation` checks before it writes; return the backup. Raises what it would raise."""
    refuse_running(settings)
    made = examine(file)
    store.refuse_unknown(made.schema)
    store.refuse_nonempty(store.nonempty_tables(settings.store))
    return made


def restore_installation(settings: Settings, file: Path) -> tuple[Backup, list[Placed]]:
    """Restore the store from a backup, then the files; a file that differs is first moved to another name.

    Raises  LeaseHeld while services run, WouldOverwrite if the store holds anything, UnreadableFile and StateError for
            the backup; in each case nothing was changed
    """
    verify(settings, file)
    made, files = restore(settings.store, file)
    return made, [placed for name, content in files.items() if (placed := _place(settings, name, content)) is not None]


def _place(settings: Settings, name: str, content: bytes) -> Placed | None:
    """Write one file; return None if it is already there with the same bytes."""
    target = settings.home / name
    if target == settings.serving_dir / GENERATION_FILE:
        content = _generation_at_home(settings, content)
    moved_to = None
    if target.is_file():
        if target.read_bytes() == content:
            return None
        moved_to = target.with_name(f"{target.name}.before-restore")
        target.replace(moved_to)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.restoring")
    draft.write_bytes(content)
    draft.replace(target)
    return Placed(target, moved_to)


def _generation_at_home(settings: Settings, content: bytes) -> bytes:
    """Return the generation file, also one up to release 0.10, with the paths its warm starts have under this home."""
    generation = json.loads(content)
    old = generation.get("warm_start")
    for named in (*generation.get("warm_starts", {}).values(), *([old] if old else [])):
        named["path"] = str(settings.serving_dir / "warm" / named["digest"])
    return json.dumps(generation, indent=1).encode()
