"""A data version: the market data of a universe, one Parquet a symbol and month, and a manifest of what it holds.

    data/manifest.json                    format, markets (symbol → facts), left_out (symbol → why)
    data/<symbol>/<YYYY-MM>.parquet       bars, books and context of a month, each row of one kind
    data/quarantine/<symbol>.parquet      rows that were held back, with their reason

A day adds at most one changed file a symbol, the newest month's. Versions up to release 0.10 hold one symbol in files
of a kind; they are read as a universe of one.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow

from pipelines.contracts import JsonObject
from pipelines.data import records, schemas
from pipelines.data.sources import Records
from pipelines.data.symbols import slug_of
from pipelines.errors import BadColumns, StateError, UnknownName, UnreadableFile

MANIFEST = "manifest.json"
FORMAT = 2  # of the manifest; 1 = up to release 0.10, one symbol
VERSION = "market/1"  # of a month's file
BAR, BOOK, CONTEXT = "bar", "book", "context"  # kinds of row
_KINDS: dict[str, tuple[str, ...]] = {
    BAR: schemas.COLUMNS,
    BOOK: (*records.TIMES, *records.BOOK.columns),
    CONTEXT: (*records.TIMES, *records.CONTEXT.columns),
}
_STAMPS = ("open_time", "event_time", "known_at", "ingested_at")
_WORDS = ("kind", "field")
_NUMBERS = tuple(dict.fromkeys(name for names in _KINDS.values() for name in names if name not in (*_STAMPS, *_WORDS)))
_SCHEMA = pyarrow.schema(
    [("kind", pyarrow.string())]
    + [(name, pyarrow.timestamp("us", tz="UTC")) for name in _STAMPS]
    + [("field", pyarrow.string())]
    + [(name, pyarrow.float64()) for name in _NUMBERS],
    metadata={"bellwether.schema": VERSION},
)
_ENCODING = dict.fromkeys(_STAMPS, "DELTA_BINARY_PACKED") | dict.fromkeys(_NUMBERS, "BYTE_STREAM_SPLIT")


@dataclass(frozen=True, slots=True)
class DataVersion:
    """Hold the manifest of a data version.

    markets   symbol → its facts: symbol, timeframe, grid, files, rows, first, last, source, clock, venue, market,
              quality, has_book, has_context
    left_out  symbol → why this version does not hold it
    """

    markets: Mapping[str, JsonObject] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return the symbols it holds, in the order of the manifest."""
        return tuple(self.markets)

    def market(self, symbol: str | None = None) -> JsonObject:
        """Return the facts of one market; None = the first. Raises UnknownName with the symbols it holds."""
        name = next(iter(self.markets), None) if symbol is None else symbol
        if name is None or name not in self.markets:
            raise UnknownName(f"this data version holds no {symbol}; it holds {', '.join(self.markets) or 'nothing'}")
        return dict(self.markets[name])


def read_manifest(folder: Path) -> DataVersion:
    """Return the data version in `folder`. Raises StateError before the first ingest, UnreadableFile if damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        raise StateError(f"{path} is not there yet; run `bellwether run --once` first")
    return manifest_of(path.read_text(errors="replace"), str(path))


def manifest_of(text: str, where: str) -> DataVersion:
    """Return the data version that a manifest's text describes; `where` names it. Raises UnreadableFile if damaged."""
    try:
        content = dict(json.loads(text))
        if "markets" not in content:  # up to release 0.10
            content = {"markets": {str(content["symbol"]): content}}
        for symbol, facts in content["markets"].items():
            if lacking := {"timeframe"} - set(facts):
                raise ValueError(f"{symbol}: no {', '.join(sorted(lacking))}")
        return DataVersion(content["markets"], content.get("left_out", {}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnreadableFile(f"{where} is damaged: {error}. `bellwether run --once` writes it again.") from error


def write_manifest(folder: Path, version: DataVersion) -> None:
    """Write the manifest; the same markets in the same order give the same bytes. The first is who is meant by none."""
    content = {"format": FORMAT, "markets": dict(version.markets), "left_out": dict(version.left_out)}
    draft = folder / f".{MANIFEST}.{os.getpid()}"
    draft.write_text(json.dumps(content, indent=1, default=str) + "\n")
    draft.replace(folder / MANIFEST)


def read_bars(folder: Path, facts: Mapping[str, Any]) -> pd.DataFrame:
    """Return the bars frame (schemas.BARS) of one market in `folder`. Raises UnreadableFile, BadColumns."""
    if "files" not in facts:
        return schemas.read_bars(folder / facts["file"])
    return schemas.check(_rows(folder, facts, BAR))


def read_records(folder: Path, facts: Mapping[str, Any]) -> Records:
    """Return books and context of one market; None where the version holds no such record."""
    if "files" not in facts:
        return records.read_snapshot(folder, facts)
    book = records.check(_rows(folder, facts, BOOK), records.BOOK) if facts.get("has_book") else None
    context = records.check(_rows(folder, facts, CONTEXT), records.CONTEXT) if facts.get("has_context") else None
    return (
        None if book is None else records.to_books(book),
        None if context is None else records.to_feed(context),
    )


def read_kind(folder: Path, facts: Mapping[str, Any], kind: str) -> pd.DataFrame:
    """Return the rows of one kind of a market as a frame; empty where it holds none."""
    return _rows(folder, facts, kind)


def write_market(
    folder: Path, symbol: str, bars: pd.DataFrame, book: pd.DataFrame | None, context: pd.DataFrame | None
) -> list[str]:
    """Write a market's months; return their names relative to `folder`, oldest first. Same rows, same bytes.

    bars, book, context  clean frames (schemas.BARS, records.BOOK, records.CONTEXT), ascending; None = not recorded
    A month whose rows are those of its file is not written again. Months that no row falls into are removed.
    """
    schemas.check(bars)
    parts = {BAR: bars, BOOK: book, CONTEXT: context}
    months: dict[str, dict[str, pd.DataFrame]] = {}
    for kind, frame in parts.items():
        if frame is None:
            continue
        stamp = frame["open_time" if kind == BAR else "known_at"]
        names = stamp.to_numpy(dtype="datetime64[M]")  # `dt.strftime` takes seconds for a year of minutes
        edges = np.flatnonzero(names[1:] != names[:-1]) + 1
        for first, last in zip(np.r_[0, edges], np.r_[edges, len(names)], strict=True):
            if last > first:
                months.setdefault(str(names[first]), {})[kind] = frame.iloc[first:last]
    into = folder / slug_of(symbol)
    into.mkdir(parents=True, exist_ok=True)
    written = []
    for month, rows in sorted(months.items()):
        path = into / f"{month}.parquet"
        if not _holds(path, rows):
            _write(path, rows)
        written.append(str(path.relative_to(folder)))
    for stale in set(into.glob("*.parquet")) - {folder / name for name in written}:
        stale.unlink()
    return written


def remove_others(folder: Path, symbols: Iterable[str]) -> None:
    """Delete what `folder` holds of markets other than these symbols, and files of releases up to 0.10."""
    slugs = {slug_of(symbol) for symbol in symbols}
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir() and path.name not in {*slugs, "quarantine"}:
            shutil.rmtree(path)
    for file in (folder / "quarantine").glob("*.parquet"):
        if file.stem not in slugs:
            file.unlink()


def _write(path: Path, rows: Mapping[str, pd.DataFrame]) -> None:
    """Write one month, a kind after the other. The file appears whole or not at all."""
    from pyarrow import parquet  # only where bars are stored: a look at a file does not wait for it

    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with parquet.ParquetWriter(
            draft, _SCHEMA, compression="zstd", compression_level=3, use_dictionary=["kind", "field"],
            column_encoding=_ENCODING,
        ) as writer:  # fmt: skip
            for kind, frame in rows.items():
                writer.write_table(_table(kind, frame), row_group_size=131_072)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _table(kind: str, frame: pd.DataFrame) -> pyarrow.Table:
    """Return the rows of one kind in the schema of all kinds; columns of the others are null."""
    n, arrays = len(frame), []
    for each in _SCHEMA:
        if each.name == "kind":
            arrays.append(pyarrow.array([kind] * n, type=each.type))
        elif each.name in _KINDS[kind]:
            arrays.append(pyarrow.array(frame[each.name], type=each.type, from_pandas=False))
        else:
            arrays.append(pyarrow.nulls(n, each.type))
    return pyarrow.Table.from_arrays(arrays, schema=_SCHEMA)


def _rows(folder: Path, facts: Mapping[str, Any], kind: str) -> pd.DataFrame:
    """Return all rows of a kind of one market, in the order of its months."""
    frames = [_read(folder / name, kind) for name in facts["files"]]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(_KINDS[kind]))


def _read(path: Path, kind: str) -> pd.DataFrame:
    """Return the rows of a kind in one month's file. Raises UnreadableFile, BadColumns for another schema version."""
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, columns=list(_KINDS[kind]), filters=[("kind", "==", kind)], use_threads=False)
        version = (parquet.read_schema(path).metadata or {}).get(b"bellwether.schema", b"none").decode()
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableFile(
            f"{path}: not a whole Parquet file ({error}). Fetch it again, e.g. with `dvc pull`."
        ) from error
    if version != VERSION:
        raise BadColumns(f"{path}: schema {version!r}, expected {VERSION!r}. Ingest it again.")
    return table.to_pandas()


def _holds(path: Path, rows: Mapping[str, pd.DataFrame]) -> bool:
    """Return whether a file holds exactly these rows."""
    if not path.is_file():
        return False
    try:
        return all(
            _read(path, kind).equals(rows[kind].reset_index(drop=True)) if kind in rows else not len(_read(path, kind))
            for kind in _KINDS
        )
    except (UnreadableFile, BadColumns):
        return False
