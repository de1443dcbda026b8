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

from pipelines.errors import StateError, UnreadableFile, WouldOverwrite
from pipelines.store.dump import TRANSIENT, Dump, Row, load, open_dump

FORMAT = 1  # of the file; a release refuses one above its own
MANIFEST = "manifest.json"
CHUNK = 1 << 20  # bytes read at once
_JSON = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
_FASTEST = 1  # zlib level: higher levels compress prices little more


@dataclass(frozen=True, slots=True)
class Table:
    """Describe one table of a backup: columns, number of rows, and sha256 of its lines."""

    columns: tuple[str, ...]
    rows: int
    sha256: str


@dataclass(frozen=True, slots=True)
class File:
    """Describe one file of a backup: size and sha256."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Backup:
    """Hold the manifest of a backup. `made_at` is when it was started, aware UTC."""

    schema: str
    made_at: datetime
    tables: dict[str, Table]
    files: dict[str, File]

    def rows(self) -> dict[str, int]:
        """Return table → number of rows."""
        return {name: table.rows for name, table in self.tables.items()}


# ---- write ----------------------------------------------------------------------------------------------------------


def back_up(url: str, to: Path, at: datetime, files: Callable[[], Mapping[str, bytes]]) -> Backup:
    """Write the store at `url`, as it is at one moment, to a new file; services may go on writing.

    files   returns path → content of the files that belong to the store; called after the tables were read, so that
            every file the store names is there
    Raises  WouldOverwrite if `to` exists, StateError without a store
    """
    refuse_existing(to)
    to.parent.mkdir(parents=True, exist_ok=True)
    draft = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        with draft.open("wb") as raw:
            with (
                open_dump(url) as dump,
                zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=_FASTEST) as archive,
            ):
                tables = {name: _write_table(archive, dump, name) for name in dump.columns}
                backup = Backup(dump.schema, at, tables, _write_files(archive, files()))
                manifest = {"format": FORMAT, **asdict(backup), "made_at": at.isoformat(), "left_out": TRANSIENT}
                archive.writestr(MANIFEST, json.dumps(manifest, indent=1))
            raw.flush()
            os.fsync(raw.fileno())
        refuse_existing(to)
        draft.rename(to)
    finally:
        draft.unlink(missing_ok=True)
    return backup


def refuse_existing(file: Path) -> None:
    """Raise WouldOverwrite if the file exists."""
    if file.exists():
        raise WouldOverwrite(f"{file} is there already and stays as it is. Name another with --to.")


def encode_row(row: Row) -> bytes:
    """Return a row as one line of JSON."""
    return _JSON.encode(row).encode() + b"\n"


def summarise(columns: tuple[str, ...], lines: Iterable[bytes]) -> Table:
    """Return count and sha256 of the lines, which are consumed."""
    digest, rows = hashlib.sha256(), 0
    for line in lines:
        digest.update(line)
        rows += 1
    return Table(columns, rows, digest.hexdigest())


def _write_table(archive: zipfile.ZipFile, dump: Dump, name: str) -> Table:
    """Write one table into the archive and return its line of the manifest."""
    with archive.open(f"tables/{name}.jsonl", "w", force_zip64=True) as member:

        def written() -> Iterator[bytes]:
            """Write each row and yield its line."""
            for row in dump.rows(name):
                line = encode_row(row)
                member.write(line)
                yield line

        return summarise(dump.columns[name], written())


def _write_files(archive: zipfile.ZipFile, files: Mapping[str, bytes]) -> dict[str, File]:
    """Write the files into the archive and return their lines of the manifest."""
    for name, content in files.items():
        archive.writestr(f"files/{name}", content)
    return {name: File(len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}


# ---- read -----------------------------------------------------------------------------------------------------------


def examine(file: Path) -> Backup:
    """Read a whole backup, compare every byte with its manifest and return the manifest.

    Raises UnreadableFile if it is no backup, damaged or cut short; StateError if a newer release made it.
    """
    with _opened(file) as archive:
        backup = _manifest(archive)
        promised = {f"tables/{name}.jsonl": table.sha256 for name, table in backup.tables.items()}
        promised |= {f"files/{name}": entry.sha256 for name, entry in backup.files.items()}
        for member, sha256 in promised.items():
            digest = hashlib.sha256()
            with archive.open(member) as content:
                while chunk := content.read(CHUNK):
                    digest.update(chunk)
            if digest.hexdigest() != sha256:
                raise UnreadableFile(f"{file}: {member} is not what its manifest says. Use another backup.")
    return backup


def restore(url: str, file: Path) -> tuple[Backup, dict[str, bytes]]:
    """Load a backup into an empty store in one transaction, and verify what was stored before it is committed.

    Returns (the manifest, path → content of the files, for the caller to put in place)
    Raises  what `examine` and `load` raise; the store is then as it was
    """
    backup = examine(file)
    with zipfile.ZipFile(file) as archive:

        def rows(table: str) -> Iterator[Row]:
            """Yield the rows of a table of the backup."""
            if table in backup.tables:
                with archive.open(f"tables/{table}.jsonl") as lines:
                    for line in lines:
                        yield json.loads(line)

        def check(dump: Dump) -> None:
            """Compare what the database returns with the manifest, digest by digest, whichever database it is."""
            for name, columns in dump.columns.items():
                stored = summarise(columns, map(encode_row, dump.rows(name)))
                if stored != backup.tables.get(name):
                    raise UnreadableFile(
                        f"{file}: {name} reads {stored.rows:,} rows back, digest {stored.sha256[:12]}, the manifest "
                        f"says {backup.tables.get(name)}. Nothing was restored."
                    )

        load(url, backup.schema, rows, check)
        return backup, {name: archive.read(f"files/{name}") for name in backup.files}


@contextmanager
def _opened(file: Path) -> Iterator[zipfile.ZipFile]:
    """Open a backup for reading; anything wrong with its bytes raises UnreadableFile."""
    if not file.is_file():
        raise UnreadableFile(f"{file}: no such file. Check the path; `bellwether backup` makes one.")
    try:
        with zipfile.ZipFile(file) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:  # RuntimeError: "is encrypted"
        raise UnreadableFile(f"{file} is no backup, damaged or cut short ({error}). Use another backup.") from error


def _manifest(archive: zipfile.ZipFile) -> Backup:
    """Read the manifest and compare it with the members of the archive. Raises UnreadableFile, StateError."""
    try:
        manifest: Any = json.loads(archive.read(MANIFEST))
        if manifest["format"] > FORMAT:
            raise StateError(
                f"{archive.filename} is a backup of format {manifest['format']}, this release reads {FORMAT}. "
                "Install the newer release."
            )
        backup = Backup(
            schema=str(manifest["schema"]),
            made_at=datetime.fromisoformat(manifest["made_at"]),
            tables={name: Table(**{**t, "columns": tuple(t["columns"])}) for name, t in manifest["tables"].items()},
            files={name: File(**f) for name, f in manifest["files"].items()},
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UnreadableFile(f"{archive.filename} is no backup of a store: {error!r} in its {MANIFEST}") from error
    present = set(archive.namelist())
    promised = {f"tables/{name}.jsonl" for name in backup.tables} | {f"files/{name}" for name in backup.files}
    if odd := sorted(present ^ (promised | {MANIFEST})):
        raise UnreadableFile(f"{archive.filename}: {odd[0]} is in the file or its manifest, and not in both")
    if outside := [n for n in backup.files if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]:
        raise UnreadableFile(f"{archive.filename}: {outside[0]} would be written outside of the home folder")
    return backup
