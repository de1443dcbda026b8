"""Books, trades and context as frames: typed, versioned, three UTC stamps each (law L8), and their compiled forms.

Prices in quote currency, sizes and flows in base asset. `event_time` = when it happened, `known_at` = when it could
first be known (never before), `ingested_at` = when it was stored. Rows ascend by known_at. NaN means "not recorded":
allowed in book levels beyond the first, order counts and the tape; never in a trade or a context value.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet as parquet

from pipelines.context_layout import CONTEXT_FIELDS, CONTEXT_INDEX, TAPE_FIELDS
from pipelines.contracts import BOOK_LEVELS, Books, ContextFeed, Floats, Ints, Trades
from pipelines.data.alignment import book_fault
from pipelines.data.schemas import STAMP, constant_stamp, epoch_seconds, stamps_of, wrong_columns
from pipelines.errors import BadColumns, BadTimes, BadValues, UnreadableFile

TIMES = ("event_time", "known_at", "ingested_at")
SIDES = ("bid", "ask")
LEVEL_COLUMNS = tuple(
    f"{side}_{what}_{level}"
    for side in SIDES
    for level in range(1, BOOK_LEVELS + 1)
    for what in ("price", "size", "orders")
)
Columns = dict[str, pd.DatetimeIndex | Floats]


@dataclass(frozen=True)
class Kind:
    """Describe one kind of record: its version, its columns after the three stamps, and the rule of a frame."""

    version: str
    columns: tuple[str, ...]
    rule: Callable[[pd.DataFrame], str | None]  # returns the first fault, None without one
    words: tuple[str, ...] = ()  # columns that hold a string
    before: tuple[str, ...] = ()  # versions that are still read; columns they lack are NaN


def _book_rule(frame: pd.DataFrame) -> str | None:
    """Return the first fault of a frame of books, None without one."""
    return book_fault(to_books(frame).levels)


def _trade_rule(frame: pd.DataFrame) -> str | None:
    """Return the first fault of a frame of trades, None without one."""
    for name in ("price", "size"):
        values = frame[name].to_numpy()
        if not (np.isfinite(values) & (values > 0)).all():
            return f"{name} must be finite and above 0"
    return None if frame["side"].isin((1.0, -1.0)).all() else "side must be +1 (buyer was the aggressor) or -1"


def _context_rule(frame: pd.DataFrame) -> str | None:
    """Return the first fault of a frame of context, None without one."""
    if unknown := sorted(set(frame["field"]) - set(CONTEXT_FIELDS)):
        return f"unknown context {', '.join(map(repr, unknown))}; known: {', '.join(CONTEXT_FIELDS)}"
    return None if np.isfinite(frame["value"].to_numpy()).all() else "a context value must be finite"


BOOK = Kind("book/2", (*LEVEL_COLUMNS, *TAPE_FIELDS), _book_rule, before=("book/1",))
TRADES = Kind("trades/1", ("price", "size", "side"), _trade_rule)
CONTEXT = Kind("context/1", ("field", "value"), _context_rule, words=("field",))


def _types(kind: Kind) -> dict[str, object]:
    """Return name → dtype of the columns of a kind, in order."""
    values = {name: str if name in kind.words else np.dtype(np.float64) for name in kind.columns}
    return dict.fromkeys(TIMES, STAMP) | values


def check(frame: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Return `frame` unchanged if it is of this kind. Raises BadColumns, BadTimes or BadValues."""
    wrong = wrong_columns(frame, _types(kind))
    for name in TIMES if wrong is None else ():
        if frame[name].isna().any():
            wrong = f"{name} is missing in row {frame[name].isna().to_numpy().argmax()}"
    if wrong is not None:
        columns = ", ".join((*TIMES, *kind.columns))
        raise BadColumns(f"{kind.version} refused: columns must be {columns}, in this order; {wrong}")
    known = frame["known_at"].to_numpy("datetime64[us]")
    early = np.flatnonzero(known < frame["event_time"].to_numpy("datetime64[us]"))
    if len(early):
        raise BadTimes(f"{kind.version} refused: row {early[0]} was known before it happened; correct its stamps")
    back = np.flatnonzero(np.diff(known) < np.timedelta64(0, "us"))
    if len(back):
        raise BadTimes(f"{kind.version} refused: known_at goes back at row {back[0] + 1}; sort the rows by known_at")
    if len(frame) and (fault := kind.rule(frame)) is not None:
        raise BadValues(f"{kind.version} refused: {fault}. Nothing was written.")
    return frame


def _stamped(event: Floats, known: Floats, ingested_at: datetime | None) -> Columns:
    """Return the three stamp columns of rows with these times (n,), epoch seconds."""
    columns: Columns = {
        "event_time": stamps_of(np.rint(event * 1e6).astype(np.int64)),
        "known_at": stamps_of(np.rint(known * 1e6).astype(np.int64)),
    }
    columns["ingested_at"] = columns["known_at"] if ingested_at is None else constant_stamp(ingested_at, len(known))
    return columns


def from_books(books: Books, ingested_at: datetime | None) -> pd.DataFrame:
    """Return n books as a frame; a book happened when it was known. `ingested_at` None = the moment it was known."""
    columns = _stamped(books.known, books.known, ingested_at)
    flat = books.levels.reshape(len(books.known), len(LEVEL_COLUMNS))
    columns |= {name: flat[:, j].copy() for j, name in enumerate(LEVEL_COLUMNS)}
    columns |= {name: books.tape[:, j].copy() for j, name in enumerate(TAPE_FIELDS)}
    return pd.DataFrame(columns)


def to_books(frame: pd.DataFrame) -> Books:
    """Return the books of a frame."""
    flat = frame[list(LEVEL_COLUMNS)].to_numpy(np.float64)
    return Books(
        known=epoch_seconds(frame["known_at"]),
        levels=np.ascontiguousarray(flat).reshape(len(frame), 2, BOOK_LEVELS, 3),
        tape=np.ascontiguousarray(frame[list(TAPE_FIELDS)].to_numpy(np.float64)),
    )


def from_trades(trades: Trades, ingested_at: datetime | None) -> pd.DataFrame:
    """Return n trades as a frame; a trade was known when it happened."""
    columns = _stamped(trades.time, trades.time, ingested_at)
    return pd.DataFrame(columns | {"price": trades.price, "size": trades.size, "side": trades.side})


def to_trades(frame: pd.DataFrame) -> Trades:
    """Return the trades of a frame."""
    values = (frame[name].to_numpy(np.float64).copy() for name in ("price", "size", "side"))
    return Trades(epoch_seconds(frame["event_time"]), *values)


def from_feed(feed: ContextFeed, ingested_at: datetime | None) -> pd.DataFrame:
    """Return n values of context as a frame; a value happened when it was known."""
    columns = _stamped(feed.known, feed.known, ingested_at)
    return pd.DataFrame(columns | {"field": np.array(CONTEXT_FIELDS, dtype=object)[feed.field], "value": feed.value})


def to_feed(frame: pd.DataFrame) -> ContextFeed:
    """Return the context of a frame."""
    field: Ints = frame["field"].map(CONTEXT_INDEX).to_numpy(np.int64).astype(np.int64)
    return ContextFeed(epoch_seconds(frame["known_at"]), field, frame["value"].to_numpy(np.float64).copy())


def _write(frame: pd.DataFrame, path: Path, kind: Kind) -> None:
    """Write Parquet (zstd); the same frame gives the same bytes. The file is never partial. Raises as `check`."""
    check(frame, kind)
    fields = [(name, pyarrow.timestamp("us", tz="UTC")) for name in TIMES]
    fields += [(name, pyarrow.string() if name in kind.words else pyarrow.float64()) for name in kind.columns]
    schema = pyarrow.schema(fields, metadata={"bellwether.schema": kind.version})
    arrays = [pyarrow.array(frame[field.name], type=field.type, from_pandas=False) for field in schema]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        parquet.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), draft, compression="zstd")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _read(path: Path, kind: Kind) -> pd.DataFrame:
    """Read what `_write` wrote and check it again. Raises UnreadableFile or BadColumns."""
    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:  # in this thread, as `readers.sheets.arrow_table`
            table = file.read(use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableFile(
            f"{path}: not a whole Parquet file ({error}). Fetch it again, e.g. with `dvc pull`."
        ) from error
    version = (table.schema.metadata or {}).get(b"bellwether.schema", b"none").decode()
    frame = table.to_pandas()
    if version in kind.before:
        lacking = [name for name in kind.columns if name not in frame]
        frame = frame.reindex(columns=[*frame.columns, *lacking])
    elif version != kind.version:
        raise BadColumns(f"{path}: schema {version!r}, expected {kind.version!r}. Ingest it again.")
    return check(frame, kind)


def write_book(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame of books; see `_write`."""
    _write(frame, path, BOOK)


def read_book(path: Path) -> pd.DataFrame:
    """Read a frame of books; see `_read`."""
    return _read(path, BOOK)


def write_trades(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame of trades; see `_write`."""
    _write(frame, path, TRADES)


def read_trades(path: Path) -> pd.DataFrame:
    """Read a frame of trades; see `_read`."""
    return _read(path, TRADES)


def write_context(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame of context; see `_write`."""
    _write(frame, path, CONTEXT)


def read_context(path: Path) -> pd.DataFrame:
    """Read a frame of context; see `_read`."""
    return _read(path, CONTEXT)


def read_snapshot(data: Path, described: Mapping[str, Any]) -> tuple[Books | None, ContextFeed | None]:
    """Read books and context of the snapshot in `data`; None where its manifest `described` names no file."""
    book, context = described.get("book"), described.get("context")
    return (
        to_books(read_book(data / book)) if book else None,
        to_feed(read_context(data / context)) if context else None,
    )
