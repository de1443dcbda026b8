"""The bars frame, typed and versioned, and its two other forms: the (n, 9) matrix of compiled code and Parquet.

Columns, in order: three UTC stamps (law L8), then prices in quote currency, volumes in base asset, trades a count.
`open_time` names the bar; `known_at` = when it could first be known (never before its close); `ingested_at` =
when it was stored. half_spread is (ask - bid) / 2 at the close, quote currency. NaN means "not recorded" and is allowed
in volume, trades, taker_buy_volume and half_spread only. Files of bars/1, the schema up to release 0.7, have no
half_spread and are read with NaN.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow

from pipelines.contracts import BAR_FIELDS, BAR_WIDTH, OPEN_TIME, Bools, Floats
from pipelines.data.timeframes import Grid
from pipelines.errors import BadColumns, BadShape, BadTimes, BadValues, InputError, UnreadableFile

BARS_VERSION = "bars/2"  # written into every Parquet file; a change of columns, units or meaning raises it
TIMES = ("open_time", "known_at", "ingested_at")
PRICES = ("open", "high", "low", "close")
BARS_BEFORE = "bars/1"  # without half_spread
AMOUNTS = ("volume", "trades", "taker_buy_volume")
SPREAD = "half_spread"
VALUES = (*PRICES, *AMOUNTS, SPREAD)
COLUMNS = (*TIMES, *VALUES)

_ARROW = pyarrow.schema(
    [(name, pyarrow.timestamp("us", tz="UTC")) for name in TIMES] + [(name, pyarrow.float64()) for name in VALUES],
    metadata={"bellwether.schema": BARS_VERSION},
)
_ENCODING = dict.fromkeys(TIMES, "DELTA_BINARY_PACKED") | dict.fromkeys(VALUES, "BYTE_STREAM_SPLIT")
STAMP = pd.DatetimeTZDtype("us", "UTC")


@dataclass(frozen=True, slots=True)
class Rule:
    """State one rule of clean bars: `kept(frame)` → (n,) whether each row keeps it, and what is raised where not."""

    kept: Callable[[pd.DataFrame], Bools]
    error: type[InputError]
    words: str


def _present(frame: pd.DataFrame) -> Bools:
    """Return (n,): whether the stamps and prices of a row are there."""
    kept = np.ones(len(frame), dtype=bool)
    for name in (*TIMES, *PRICES):
        kept &= frame[name].notna().to_numpy()
    return kept


def _ascending(frame: pd.DataFrame) -> Bools:
    """Return (n,): whether each bar opens after the one before it; the first has nothing before it."""
    opens = frame["open_time"].to_numpy("datetime64[us]")
    return np.asarray(np.r_[True, opens[1:] > opens[:-1]][: len(opens)])


def _known_after_open(frame: pd.DataFrame) -> Bools:
    """Return (n,): whether a bar was known after it opened, and not ingested before."""
    opened, known, ingested = (frame[name].to_numpy("datetime64[us]") for name in TIMES)
    return np.asarray((known > opened) & (ingested >= opened))


def _positive(frame: pd.DataFrame) -> Bools:
    """Return (n,): whether all prices are finite and above 0."""
    kept = np.ones(len(frame), dtype=bool)
    for name in PRICES:
        values = frame[name].to_numpy()
        kept &= (values > 0) & (values < np.inf)
    return kept


def _not_negative(frame: pd.DataFrame) -> Bools:
    """Return (n,): whether each amount and the spread is finite and not negative, or not recorded."""
    kept = np.ones(len(frame), dtype=bool)
    for name in (*AMOUNTS, SPREAD):
        values = frame[name].to_numpy()
        kept &= ((values >= 0) & (values < np.inf)) | np.isnan(values)
    return kept


def _inside_range(frame: pd.DataFrame) -> Bools:
    """Return (n,): whether open and close lie between low and high."""
    opened, high, low, close = (frame[name].to_numpy() for name in PRICES)
    return np.asarray((high >= np.maximum(opened, close)) & (low <= np.minimum(opened, close)))


def _bid_above_0(frame: pd.DataFrame) -> Bools:
    """Return (n,): whether the half spread leaves a bid above 0 at the low, or was not recorded."""
    spread = frame[SPREAD].to_numpy()
    return np.asarray(np.isnan(spread) | (spread < frame["low"].to_numpy()))


Rules = tuple[Rule, ...]
LAYOUT: Rules = ()  # the result of a reader: right columns and types, values not yet checked
_AMOUNTS = "volume, trades, taker_buy_volume and half_spread"
BARS: Rules = (  # the clean rows of quality.assess, on which everything after it relies
    Rule(_present, BadValues, f"only {_AMOUNTS} may be missing"),
    Rule(_ascending, BadTimes, "open_time must ascend without copies"),
    Rule(_positive, BadValues, "prices must be finite and above 0"),
    Rule(_not_negative, BadValues, f"{_AMOUNTS} must be NaN (not recorded) or finite and not negative"),
    Rule(_known_after_open, BadTimes, "known_at must be after open_time, and ingested_at not before it"),
    Rule(_inside_range, BadValues, "high must be the highest and low the lowest of the four prices"),
    Rule(_bid_above_0, BadValues, "half_spread must be under the low: it is (ask - bid) / 2 in quote currency"),
)
_TYPES: Mapping[str, object] = dict.fromkeys(TIMES, STAMP) | dict.fromkeys(VALUES, np.dtype(np.float64))


def check(frame: pd.DataFrame, rules: Rules = BARS) -> pd.DataFrame:
    """Return `frame` unchanged if it has the columns and types of bars and satisfies `rules`.

    Raises BadColumns (missing, unknown, out of order, wrong type), BadTimes or BadValues, with the first failing row.
    """
    remedy = "Read them with pipelines.data.readers.files and clean them with quality.assess."
    if (wrong := wrong_columns(frame, _TYPES)) is not None:
        columns = f"the columns must be {', '.join(COLUMNS)}, in this order and of these types"
        raise BadColumns(f"bars refused: {columns}; {wrong}. {remedy}")
    for rule in rules:
        kept = rule.kept(frame)
        if not kept.all():
            failed = np.flatnonzero(~kept)
            found = f"{len(failed)} failures, first at row {failed[0]} of {len(frame)}"
            raise rule.error(f"bars refused: {rule.words}; {found}. {remedy}")
    return frame


def wrong_columns(frame: pd.DataFrame, types: Mapping[str, object]) -> str | None:
    """Return what is wrong with the columns of a frame against name → dtype, in order; None if nothing is.

    A type of `str` is a column of text. Rows are numbered by whole numbers, as a reader leaves them.
    """
    if list(frame.columns) != list(types):
        return f"got {', '.join(map(str, frame.columns))}"
    for name, wanted in types.items():
        found = frame.dtypes[name]
        if not (pd.api.types.is_string_dtype(frame[name]) if wanted is str else found == wanted):
            return f"{name} is {found}, expected {'text' if wanted is str else wanted}"
    return None if frame.index.dtype == np.int64 else f"the rows are numbered by {frame.index.dtype}, expected int64"


def to_matrix(frame: pd.DataFrame) -> Floats:
    """Return a bars frame (n rows) as (n, 9) float64 in BAR_FIELDS order; open_time in epoch seconds."""
    matrix = np.empty((len(frame), BAR_WIDTH))
    matrix[:, OPEN_TIME] = epoch_seconds(frame["open_time"])
    for i, name in enumerate(BAR_FIELDS[1:], start=1):
        matrix[:, i] = frame[name].to_numpy(np.float64)
    return matrix


def epoch_seconds(stamps: Any) -> Floats:
    """Return a series of datetime64[us, UTC] as (n,) epoch seconds; NaT → NaN."""
    micros = stamps.to_numpy("datetime64[us]")
    seconds: Floats = micros.view(np.int64) / 1e6
    seconds[np.isnat(micros)] = np.nan
    return seconds


def numbered(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows numbered from 0; those that are so already without a copy."""
    return rows if rows.index.equals(pd.RangeIndex(len(rows))) else rows.reset_index(drop=True)


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows by their time; equal times stay in the order they came, NaT last. Sorted ones are not copied."""
    stamps = frame["open_time"].to_numpy("datetime64[us]")
    if (stamps[1:] >= stamps[:-1]).all():  # False for NaT
        return frame
    return frame.iloc[np.argsort(stamps, kind="stable")]


def to_frame(matrix: Floats, grid: Grid, ingested_at: datetime | None) -> pd.DataFrame:
    """Return (n, 9) bars as a bars frame. known_at is the close by `grid`; `ingested_at` None = when it was known.

    Raises BadShape on another width, BadTimes if a time is not finite or `ingested_at` is naive.
    """
    if matrix.ndim != 2 or matrix.shape[1] != BAR_WIDTH:
        raise BadShape(
            f"bars have shape {matrix.shape}, expected (n, {BAR_WIDTH}) in the order {', '.join(BAR_FIELDS)}."
        )
    if not np.isfinite(matrix[:, OPEN_TIME]).all():
        raise BadTimes("a bar has no open_time (NaN or infinite). Drop it, or find its origin.")
    opened = np.rint(matrix[:, OPEN_TIME] * 1e6).astype(np.int64)
    known = np.rint(grid.closes(matrix[:, OPEN_TIME]) * 1e6).astype(np.int64)
    columns: dict[str, pd.DatetimeIndex | Floats] = {"open_time": stamps_of(opened), "known_at": stamps_of(known)}
    columns["ingested_at"] = columns["known_at"] if ingested_at is None else constant_stamp(ingested_at, len(matrix))
    columns |= {name: matrix[:, i].copy() for i, name in enumerate(BAR_FIELDS) if i != OPEN_TIME}
    return pd.DataFrame(columns, columns=list(COLUMNS), copy=True)


def stamps_of(micros: npt.ArrayLike) -> pd.DatetimeIndex:
    """Return (n,) int64 epoch microseconds or datetime64[us] as a DatetimeIndex of datetime64[us, UTC]."""
    return pd.DatetimeIndex(np.asarray(micros).astype("datetime64[us]", copy=False)).tz_localize("UTC")


def constant_stamp(moment: datetime, n: int) -> pd.DatetimeIndex:
    """Return `moment` n times. Raises BadTimes if it has no time zone."""
    if moment.tzinfo is None:
        raise BadTimes(f"ingested_at {moment} has no time zone. Pass an aware one, e.g. datetime.now(tz=UTC).")
    return stamps_of(np.full(n, np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")))


def write_bars(frame: pd.DataFrame, path: Path) -> None:
    """Write clean bars as Parquet (zstd). The same frame gives the same bytes, so that a data hash means the data.

    Raises as `check` does. The file appears whole or not at all.
    """
    from pyarrow import parquet  # only where bars are stored: a look at a file does not wait for it

    check(frame)
    arrays = [pyarrow.array(frame[field.name], type=field.type, from_pandas=False) for field in _ARROW]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        parquet.write_table(
            pyarrow.Table.from_arrays(arrays, schema=_ARROW),
            draft,
            compression="zstd",
            compression_level=3,
            use_dictionary=False,  # with the encodings below: a third smaller and four times faster than dictionaries
            column_encoding=_ENCODING,
            row_group_size=131_072,
        )
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def read_bars(path: Path) -> pd.DataFrame:
    """Read what `write_bars` wrote, also up to release 0.7 (half_spread NaN), and check it again.

    Raises UnreadableFile if it is not whole Parquet, BadColumns if it was written by another schema version.
    """
    from pyarrow import parquet  # as in `write_bars`

    try:
        with parquet.ParquetFile(path, pre_buffer=False) as file:  # in this thread, as `readers.sheets.arrow_table`
            table = file.read(use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableFile(
            f"{path}: not a whole Parquet file ({error}). Fetch it again, e.g. with `dvc pull`."
        ) from error
    version = (table.schema.metadata or {}).get(b"bellwether.schema", b"none").decode()
    if version not in (BARS_BEFORE, BARS_VERSION):
        raise BadColumns(
            f"{path}: schema {version!r}, expected {BARS_VERSION!r}. Ingest it again with pipelines.data.readers.files."
        )
    frame = table.to_pandas()
    if version == BARS_BEFORE:
        frame[SPREAD] = np.full(len(frame), np.nan)
    return check(frame)
