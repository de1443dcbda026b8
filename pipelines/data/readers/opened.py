"""Paths → the members in them: bytes and their kind. The content decides what a file is, never its name alone.

A member is one table: a file, or one file inside an archive, named `archive.zip!inner.csv`. A folder and an archive of
several files are read in the order of their names; hidden files, `__MACOSX` and files of other kinds are left out by
name.
"""

import bz2
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from pipelines.errors import UnreadableFile

Kind = Literal["text", "parquet", "feather"]

EXTENSIONS = (".csv", ".txt", ".tsv", ".gz", ".zip", ".parquet", ".feather")  # what messages name; content decides
TABLES = (".csv", ".tsv", ".tab", ".parquet", ".pq", ".feather", ".arrow", ".ipc")
PACKED = (".gz", ".zip", ".bz2", ".xz")
TEXTS = (".txt", ".dat", ".prn", ".asc")  # data only where nothing above lies next to it: archives add reports as .txt
OTHERS = (".md", ".py", ".ipynb", ".yaml", ".yml", ".toml")
NESTED = 4  # archives within archives
LIMIT_BYTES = 8 * 2**30  # unpacked: a file of a few bytes may unpack to any size
CHUNK = 2**24
PREFIXES = {
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"SQLite format 3": "an SQLite database",
    b"\x89HDF": "an HDF5 file",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x80\x04\x95": "a pickle",
}
CURE = "Save it as CSV or Parquet and give that file."


@dataclass(frozen=True, slots=True)
class Member:
    """Hold one table's bytes. name: without folders above the path given, `archive!inner` inside an archive."""

    name: str
    path: Path
    kind: Kind
    data: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """Hold what was found in some paths; left_out: names of files that are no data."""

    members: tuple[Member, ...]
    left_out: tuple[str, ...]


def open_paths(paths: Sequence[Path]) -> Opened:
    """Return the members of files, archives and folders, path by path, each in the order of its names.

    Raises UnreadableFile: missing, empty, cut off, encrypted, or without a table
    """
    found: list[Member] = []
    left_out: list[str] = []
    for path in paths:
        check_path(path)
        before = len(found)
        for name, file in _files(path, left_out):
            found.extend(_unpacked(name, file, _content(file), left_out, 0))
        if len(found) == before:
            raise UnreadableFile(
                f"{path}: saw: {_listed(left_out) or 'an empty folder'}; still missing: a table; for example: a folder "
                f"or archive with one {', '.join(TABLES[:3])} or .parquet file a month."
            )
    return Opened(tuple(found), tuple(left_out))


def check_path(path: Path) -> None:
    """Raise UnreadableFile if `path` is missing, an empty file, or by its name a text that is no table."""
    try:
        if path.is_dir():
            return
        if not path.is_file():
            raise UnreadableFile(f"{path}: no such file. Check the path.")
        if path.suffix.lower() in OTHERS:
            raise UnreadableFile(f"{path}: cannot read {path.suffix}; known: {', '.join(EXTENSIONS)}.")
        if path.stat().st_size == 0:
            raise UnreadableFile(f"{path}: the file is empty. Fetch it again.")
    except (OSError, ValueError) as error:  # a name too long, or with a NUL
        raise UnreadableFile(f"{path}: cannot be opened ({error}). Check the path.") from error


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Return the files that `paths` stand for, a folder by its data files in the order of their names."""
    return [file for path in paths for _, file in _files(path, [])]


def _files(path: Path, left_out: list[str]) -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of a path: itself, or the data files below a folder; adds what is no data to `left_out`."""
    if not path.is_dir():
        yield path.name, path
        return
    inside = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    for name in _data_names(sorted(inside), left_out):
        yield name, inside[name]


def _data_names(names: Sequence[str], left_out: list[str]) -> list[str]:
    """Return the names that are data, in order; the others, except hidden ones, are added to `left_out`."""
    seen = [name for name in names if not _hidden(name)]
    data = [name for name in seen if PurePosixPath(name.lower()).suffix in (*TABLES, *PACKED)]
    data = data or [name for name in seen if PurePosixPath(name.lower()).suffix in TEXTS]
    if not data and len(seen) == 1:
        data = seen  # one file under any name: its content decides
    left_out.extend(name for name in seen if name not in set(data))
    return data


def _hidden(name: str) -> bool:
    """Return whether any part of a name is hidden or belongs to a Mac's archive."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def _content(file: Path) -> bytes:
    """Return the bytes of a file. Raises UnreadableFile."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnreadableFile(f"{file}: cannot be opened ({error}). Check its permissions.") from error


def _unpacked(name: str, path: Path, data: bytes, left_out: list[str], depth: int) -> Iterator[Member]:
    """Yield the members in some bytes. Raises UnreadableFile."""
    if depth > NESTED:
        raise UnreadableFile(f"{name}: archives stand {depth} deep in one another. Unpack it and give the table.")
    packed = next((one for magic, one in STREAMS.items() if data.startswith(magic)), None)
    if packed is not None:
        yield from _unpacked(name, path, _stream(packed, name, data), left_out, depth + 1)
    elif data.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield from _zipped(name, path, data, left_out, depth)
    elif data.startswith(b"PAR1"):
        yield Member(name, path, "parquet", data)
    elif data.startswith((b"ARROW1", b"FEA1")):
        yield Member(name, path, "feather", data)
    else:
        yield Member(name, path, "text", _text(name, data, depth))


def _text(name: str, data: bytes, depth: int) -> bytes:
    """Return the bytes if they can be text. Raises UnreadableFile naming what they are instead."""
    if not data:
        raise UnreadableFile(f"{name}: the file is empty. Fetch it again.")
    kind = next((kind for prefix, kind in PREFIXES.items() if data.startswith(prefix)), None)
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        kind = "a web page or XML, perhaps an error page of the server"
    elif start[:1] in (b"{", b"["):
        kind = "JSON"
    if depth == 0 and PurePosixPath(name.lower()).suffix in (".parquet", ".pq", ".feather", *PACKED):
        kind = kind or f"cut off, or no {PurePosixPath(name).suffix} file"
        raise UnreadableFile(f"{name}: {kind}: its first bytes are {data[:8]!r}. Fetch it again.")
    if kind is not None:
        raise UnreadableFile(f"{name}: saw: {kind}; still missing: a table; for example: {CURE}")
    return data


def _bounded(read: Callable[[int], bytes], name: str) -> bytes:
    """Return everything `read` gives. Raises UnreadableFile beyond LIMIT_BYTES."""
    parts, size = [], 0
    while part := read(CHUNK):
        size += len(part)
        if size > LIMIT_BYTES:
            raise UnreadableFile(f"{name}: unpacks to more than {LIMIT_BYTES >> 30} GiB. Split it by months.")
        parts.append(part)
    return b"".join(parts)


STREAMS: dict[bytes, Callable[[io.BytesIO], io.BufferedIOBase]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": lambda file: bz2.BZ2File(file),
    b"\xfd7zXZ": lambda file: lzma.LZMAFile(file),  # noqa: SIM115 - its user closes it
}


def _stream(unpack: Callable[[io.BytesIO], io.BufferedIOBase], name: str, data: bytes) -> bytes:
    """Return unpacked bytes. Raises UnreadableFile."""
    try:
        with unpack(io.BytesIO(data)) as file:
            return _bounded(file.read, name)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise UnreadableFile(f"{name}: cut off or damaged ({error}). Fetch it again.") from error


def _zipped(name: str, path: Path, data: bytes, left_out: list[str], depth: int) -> Iterator[Member]:
    """Yield the members of a zip. Raises UnreadableFile."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
            if "[Content_Types].xml" in inside:
                raise UnreadableFile(
                    f"{name}: saw: an Excel workbook; still missing: a table as text; for example: {CURE}"
                )
            chosen = _data_names(sorted(set(inside)), left_out)
            if not chosen:
                raise UnreadableFile(
                    f"{name}: saw: a zip with {_listed(inside) or 'no file'}; still missing: a table; for example: "
                    "an archive of one CSV file a month."
                )
            for entry in chosen:
                with archive.open(entry) as file:  # reading to the end checks the CRC
                    content = _bounded(file.read, f"{name}!{entry}")
                yield from _unpacked(f"{name}!{entry}", path, content, left_out, depth + 1)
    except RuntimeError as error:
        raise UnreadableFile(f"{name}: {error}. Unpack it with its password and give the table.") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        NotImplementedError,
        ValueError,
        lzma.LZMAError,
    ) as error:
        raise UnreadableFile(f"{name}: cut off or not a zip ({error}). Fetch it again.") from error


def _listed(names: Sequence[str]) -> str:
    """Return up to five names for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
