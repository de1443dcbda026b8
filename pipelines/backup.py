"""One file that holds a store and the small files that belong to it, and the way back into an empty store.

The file is a zip: `tables/<table>.jsonl`, a row a line, in the order of the columns that `manifest.json` names;
`files/<path>`; and the manifest with the schema, the time, and the count and sha256 of everything. It fits either
database. The manifest is written last, so a file that was cut short has none.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from pipelines import store
from pipelines.errors import StateError, UnreadableFile, WouldOverwrite

FORMAT = 1  # of the file; a release refuses one above its own
MANIFEST = "manifest.json"
CHUNK = 1 << 20  # bytes read at once
_JSON = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
_FASTEST = 1  # of zlib: prices compress little more with patience


@dataclass(frozen=True, slots=True)
class Table:
    columns: tuple[str, ...]
    rows: int
    sha256: str  # of its lines


@dataclass(frozen=True, slots=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """What the manifest says. `made_at` is when it was begun, aware UTC."""

    schema: str
    made_at: datetime
    tables: dict[str, Table]
    files: dict[str, File]

    def rows(self) -> dict[str, int]:
        return {name: table.rows for name, table in self.tables.items()}


# ---- out ------------------------------------------------------------------------------------------------------------


def back_up(url: str, to: Path, at: datetime, files: Callable[[], Mapping[str, bytes]]) -> Backup:
    """Write the store at `url`, as it is at one moment, to a new file; services may go on writing.

    files   path → content of what goes beside the tables; asked for after the store's moment, so that it has all that
            the store names
    Raises  WouldOverwrite if `to` is there, StateError without a store
    """
    refuse_existing(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    beside = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        with beside.open("wb") as raw:
            with (
                store.open_dump(url) as dump,
                zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=_FASTEST) as archive,
            ):
                tables = {name: _write_table(archive, dump, name) for name in dump.columns}
                made = Backup(dump.schema, at, tables, _write_files(archive, files()))
                told = {"format": FORMAT, **asdict(made), "made_at": at.isoformat(), "left_out": store.TRANSIENT}
                archive.writestr(MANIFEST, json.dumps(told, indent=1))
            raw.flush()
            os.fsync(raw.fileno())
        refuse_existing(to)
        beside.rename(to)
    finally:
        beside.unlink(missing_ok=True)
    return made


def refuse_existing(file: Path) -> None:
    if file.exists():
        raise WouldOverwrite(f"{file} is there already and stays as it is. Name another with --to.")


def line(row: store.Row) -> bytes:
    return _JSON.encode(row).encode() + b"\n"


def told_of(columns: tuple[str, ...], lines: Iterable[bytes]) -> Table:
    """Count and digest lines, which are consumed."""
    digest, rows = hashlib.sha256(), 0
    for one in lines:
        digest.update(one)
        rows += 1
    return Table(columns, rows, digest.hexdigest())


def _write_table(archive: zipfile.ZipFile, dump: store.Dump, name: str) -> Table:
    with archive.open(f"tables/{name}.jsonl", "w", force_zip64=True) as member:

        def written() -> Iterator[bytes]:
            for row in dump.rows(name):
                told = line(row)
                member.write(told)
                yield told

        return told_of(dump.columns[name], written())


def _write_files(archive: zipfile.ZipFile, files: Mapping[str, bytes]) -> dict[str, File]:
    for name, content in files.items():
        archive.writestr(f"files/{name}", content)
    return {name: File(len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}


# ---- back -----------------------------------------------------------------------------------------------------------


def examine(file: Path) -> Backup:
    """Read a backup through and compare every byte with its manifest.

    Raises UnreadableFile if it is no backup, damaged or cut short; StateError if a newer release made it.
    """
    with _opened(file) as archive:
        made = _manifest(archive)
        promised = {f"tables/{name}.jsonl": table.sha256 for name, table in made.tables.items()}
        promised |= {f"files/{name}": told.sha256 for name, told in made.files.items()}
        for member, sha256 in promised.items():
            digest = hashlib.sha256()
            with archive.open(member) as content:
                while chunk := content.read(CHUNK):
                    digest.update(chunk)
            if digest.hexdigest() != sha256:
                raise UnreadableFile(f"{file}: {member} is not what its manifest says. Use another backup.")
    return made


def restore(url: str, file: Path) -> tuple[Backup, dict[str, bytes]]:
    """Put a backup into an empty store, in one transaction, and read it back before it is kept.

    Returns (what the backup is, path → content of the files beside the tables, for the caller to put in place)
    Raises  what `examine` and `store.load` raise; the store is then as it was
    """
    made = examine(file)
    with zipfile.ZipFile(file) as archive:

        def rows(table: str) -> Iterator[store.Row]:
            if table in made.tables:
                with archive.open(f"tables/{table}.jsonl") as lines:
                    for one in lines:
                        yield json.loads(one)

        def check(dump: store.Dump) -> None:
            """What the database gives back is what was backed up, digest by digest, from either kind to either."""
            for name, columns in dump.columns.items():
                held = told_of(columns, map(line, dump.rows(name)))
                if held != made.tables.get(name):
                    raise UnreadableFile(
                        f"{file}: {name} reads {held.rows:,} rows back, digest {held.sha256[:12]}, the manifest says "
                        f"{made.tables.get(name)}. Nothing was restored."
                    )

        store.load(url, made.schema, rows, check)
        return made, {name: archive.read(f"files/{name}") for name in made.files}


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """A backup for reading; whatever is wrong with its bytes is told as our own error."""
    if not file.is_file():
        raise UnreadableFile(f"{file}: no such file. Check the path; `bellwether backup` makes one.")
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:  # RuntimeError: "is encrypted"
        raise UnreadableFile(f"{file} is no backup, damaged or cut short ({error}). Use another backup.") from error


def _manifest(archive: zipfile.ZipFile) -> Backup:
    try:
        told: dict[str, Any] = json.loads(archive.read(MANIFEST))
        if told["format"] > FORMAT:
            raise StateError(
                f"{archive.filename} is a backup of format {told['format']}, this release reads {FORMAT}. "
                "Install the newer release."
            )
        made = Backup(
            schema=str(told["schema"]),
            made_at=datetime.fromisoformat(told["made_at"]),
            tables={name: Table(**{**t, "columns": tuple(t["columns"])}) for name, t in told["tables"].items()},
            files={name: File(**f) for name, f in told["files"].items()},
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableFile(f"{archive.filename} is no backup of a store: {error!r} in its {MANIFEST}") from error
    present = set(archive.namelist())
    promised = {f"tables/{name}.jsonl" for name in made.tables} | {f"files/{name}" for name in made.files} | {MANIFEST}
    if odd := sorted(present ^ promised):
        raise UnreadableFile(f"{archive.filename}: {odd[0]} is in the file or its manifest, and not in both")
    if outside := [n for n in made.files if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]:
        raise UnreadableFile(f"{archive.filename}: {outside[0]} would be written outside of the home folder")
    return made
