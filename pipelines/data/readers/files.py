"""Recorded bars from files → bars frames. Nothing is repaired or dropped here: quality.assess judges.

A file is refused whole, with its name and a remedy, when it is cut off, not of its kind, or has unreliable times.
Layouts (column names of a Parquet file or a CSV header; further columns are ignored):

    canonical   the columns of schemas.COLUMNS, half_spread optional; its known_at and ingested_at stay as recorded
    candles     open_time, open, high, low, close, volume | volume_base
                [trades | trade_count | count] [taker_buy_volume | taker_buy_volume_base] [half_spread]
    bid/ask     open_time, bid_open … bid_close, ask_open … ask_close: prices are mids, half_spread is
                (ask_close - bid_close) / 2; with a volume column if there is one
    kline       Binance CSV or zip, 12 columns, without a header (with one it is `candles`); epoch ms or, from 2025, µs
    trades      Binance trades and aggTrades, CSV or zip, with or without a header: made into bars (of a minute, unless
                another timeframe is given)
"""

import io
import zipfile
import zlib
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from pipelines.contracts import Floats, Trades
from pipelines.data.readers.trades import NAMES, SPAN, bars_from_trades, from_table, trade_columns
from pipelines.data.schemas import (
    AMOUNTS,
    COLUMNS,
    LAYOUT,
    PRICES,
    SPREAD,
    TIMES,
    check,
    constant_stamp,
    epoch_seconds,
    stamps_of,
    to_frame,
)
from pipelines.data.sessions import infer_timeframe
from pipelines.data.timeframes import Grid, seconds
from pipelines.errors import BadColumns, BadTimes, BadValues, UnreadableFile

Stamps = npt.NDArray[np.datetime64]

KLINE = (
    "open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume", "count",
    "taker_buy_volume", "taker_buy_quote_volume", "ignore",
)  # fmt: skip
OTHER_NAMES = {
    "volume": ("volume", "volume_base"),
    "trades": ("trades", "trade_count", "count"),
    "taker_buy_volume": ("taker_buy_volume", "taker_buy_volume_base"),
}
SIDES = tuple(f"{side}_{price}" for side in ("bid", "ask") for price in PRICES)
NUMBERS = (*PRICES, *SIDES, SPREAD, *(name for names in OTHER_NAMES.values() for name in names))
KNOWN_LAYOUTS = (
    f"canonical ({', '.join(COLUMNS)}); candles (open_time, open, high, low, close, volume or volume_base, "
    f"optional trades, taker_buy_volume, {SPREAD}); bid/ask (open_time, {', '.join(SIDES)}); "
    "Binance kline CSV without a header (12 columns); Binance trades or aggTrades"
)
KNOWN_TRADES = "time or transact_time, price, qty or quantity, is_buyer_maker; or Binance's columns without a header"
EXTENSIONS = (".parquet", ".csv", ".zip")
MS_FROM, US_FROM, US_UNTIL = 10**11, 10**14, 10**17  # epochs of 1973–5138 in ms and in µs; they cannot be confused


def read(path: Path, ingested_at: datetime, timeframe: str | None = None) -> pd.DataFrame:
    """Return the bars of one file in the order of the file, columns and types of schemas.LAYOUT, unchecked.

    ingested_at  when this file is taken in (aware), stamped on every row; a canonical file has its own
    timeframe    None: the commonest spacing of the file
    Raises       UnreadableFile (missing, empty, cut off, not of its kind), BadColumns (names the column and the layouts
                 known), BadTimes (naive, unreadable, or known before its close), BadValues (a cell that is no number)
    """
    table = read_table(path)
    if (at := trade_columns(table.column_names, [])) is not None and "open_time" not in table.column_names:
        return _traded(table, at, path, ingested_at, timeframe or "1m")
    return _canonical(table, path, ingested_at, timeframe)


def read_trades(path: Path) -> Trades:
    """Return the trades of one file of a trade layout, in time order. Raises as `read`."""
    table = read_table(path)
    at = trade_columns(table.column_names, [])
    if at is None:
        raise BadColumns(f"{path}: no trades; columns {', '.join(table.column_names)}. Wanted {KNOWN_TRADES}.")
    return _trades(table, at, path)[0]


def _trades(table: pyarrow.Table, at: dict[str, int], path: Path) -> tuple[Trades, Floats]:
    """Return the trades of a table, and how many fills each row stands for. Raises BadValues."""
    trades, fills = from_table(table, at, micros(table, table.column_names[at["time"]], path))
    bad = ~(np.isfinite(trades.price) & (trades.price > 0) & np.isfinite(trades.size) & (trades.size > 0))
    bad |= ~(np.isfinite(trades.time) & (fills >= 1))
    if bad.any():
        raise BadValues(
            f"{path}: {int(bad.sum())} trades without a time, price, size or count above 0. Fetch it again."
        )
    return trades, fills


def _traded(
    table: pyarrow.Table, at: dict[str, int], path: Path, ingested_at: datetime, timeframe: str
) -> pd.DataFrame:
    """Return bars made of trades. The first and the last hold the part of them that the file covers."""
    trades, fills = _trades(table, at, path)
    frame = to_frame(bars_from_trades(trades, seconds(timeframe), fills), Grid(timeframe), ingested_at)
    return check(frame, LAYOUT)


def read_table(path: Path) -> pyarrow.Table:
    """Return the columns of one file unchanged; a headless Binance CSV gets its names.

    Raises UnreadableFile (missing, empty, cut off, not of its kind) or BadColumns.
    """
    check_path(path)
    table = {".parquet": _parquet, ".csv": _csv, ".zip": _zip}[path.suffix.lower()](path)
    if table.num_rows == 0:
        raise UnreadableFile(f"{path}: no rows, only columns {', '.join(table.column_names)}. Fetch it again.")
    return table


def venue_of_layout(path: Path) -> str | None:
    """Return the venue that alone writes this layout: binance for its archives without a header; None for any other.

    Reads the first line. Raises as `read_table` for a file that cannot be read
    """
    check_path(path)
    if path.suffix.lower() == ".parquet":
        return None
    first = _first_line(path).strip().strip("\ufeff").split(",")
    if not first[0].strip().isdigit():
        return None
    return "binance" if len(first) == len(KLINE) or trade_columns([], first) is not None else None


def _first_line(path: Path) -> str:
    """Return the first line of a CSV file, or of the one in a zip. Raises UnreadableFile."""
    if path.suffix.lower() == ".csv":
        with path.open("rb") as file:
            return file.readline().decode("utf-8", errors="replace")
    return _zipped(path).partition(b"\n")[0].decode("utf-8", errors="replace")


def check_path(path: Path) -> None:
    """Raise UnreadableFile if `path` is missing, empty or of an extension we cannot read."""
    if not path.is_file():
        raise UnreadableFile(f"{path}: no such file. Check the path.")
    if path.suffix.lower() not in EXTENSIONS:
        raise UnreadableFile(
            f"{path}: cannot read {path.suffix or 'a file without extension'}; known: {', '.join(EXTENSIONS)}."
        )
    if path.stat().st_size == 0:
        raise UnreadableFile(f"{path}: the file is empty. Fetch it again.")


def _parquet(path: Path) -> pyarrow.Table:
    """Return the table of a Parquet file. Raises UnreadableFile."""
    try:
        return pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableFile(f"{path}: cut off or not Parquet ({error}). Fetch it again.") from error


def _csv(path: Path) -> pyarrow.Table:
    """Return the table of a CSV file. Raises UnreadableFile or BadColumns."""
    return _parse_csv(path.read_bytes(), path)


def _zip(path: Path) -> pyarrow.Table:
    """Return the table of the one CSV file in a zip. Raises UnreadableFile or BadColumns."""
    return _parse_csv(_zipped(path), path)


def _zipped(path: Path) -> bytes:
    """Return the content of the one CSV file in a zip. Raises UnreadableFile."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith(".csv")]
            if len(names) != 1:
                raise UnreadableFile(
                    f"{path}: holds {len(names)} CSV files, expected one ({', '.join(archive.namelist())[:200]})."
                )
            return archive.read(names[0])  # checks the CRC
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UnreadableFile(f"{path}: cut off or not a zip ({error}). Fetch it again.") from error


def _parse_csv(data: bytes, path: Path) -> pyarrow.Table:
    """Return the table of CSV text. Raises UnreadableFile or BadColumns.

    Every line must have as many cells as the first, and the last must end: a cut is detected wherever it falls.
    """
    if not data.endswith(b"\n"):
        raise UnreadableFile(
            f"{path}: the last line has no line break, so the file may be cut off. Fetch it again, or add it."
        )
    first = data[: data.index(b"\n")].decode("utf-8", errors="replace").strip().strip("\ufeff").split(",")
    headless = first[0].strip().isdigit()
    headless_names = list(KLINE)
    if headless and len(first) != len(KLINE):
        at = trade_columns([], first)
        if at is None:
            raise BadColumns(f"{path}: {len(first)} columns and no header. Known layouts: {KNOWN_LAYOUTS}.")
        headless_names = [f"column_{i}" for i in range(len(first))]
        for kind, i in at.items():
            headless_names[i] = {**NAMES, **SPAN}[kind][0]
    names = pyarrow.csv.ReadOptions(column_names=headless_names if headless else None)
    types = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(NUMBERS, pyarrow.float64()))
    try:
        return pyarrow.csv.read_csv(io.BytesIO(data), read_options=names, convert_options=types)
    except pyarrow.ArrowException as error:
        raise UnreadableFile(f"{path}: malformed CSV ({error}). Fetch it again.") from error


def _canonical(table: pyarrow.Table, path: Path, ingested_at: datetime, timeframe: str | None) -> pd.DataFrame:
    """Return a table's bars in schemas.LAYOUT. Raises BadColumns, BadTimes or BadValues."""
    names = set(table.column_names)
    if len(names) < table.num_columns:
        raise BadColumns(f"{path}: a column name stands twice in {', '.join(table.column_names)}. Rename one of them.")
    columns = _columns(names, path)
    opened = micros(table, "open_time", path)
    timeframe = timeframe or _timeframe(opened, path)
    closed = opened + np.timedelta64(seconds(timeframe), "s")
    frame = pd.DataFrame({"open_time": stamps_of(opened), "known_at": stamps_of(closed)})
    frame["ingested_at"] = constant_stamp(ingested_at, len(frame))
    if names.issuperset(TIMES):
        known = micros(table, "known_at", path)
        early = ~np.isnat(opened) & ~(known >= closed)  # a row without a time is for quality.assess
        if early.any():
            raise BadTimes(
                f"{path}: known_at of row {int(np.argmax(early))} is before its bar has closed ({early.sum()} rows): "
                f"a bar cannot be known then. Set it to open_time + {timeframe} or later, or leave the column out."
            )
        frame["known_at"] = stamps_of(known)
        frame["ingested_at"] = stamps_of(micros(table, "ingested_at", path))
    for field in (*PRICES, *AMOUNTS):
        found = columns[field]
        values = [numbers(table, name, path) for name in found]
        frame[field] = sum(values) / len(values) if values else np.full(len(frame), np.nan)
    frame[SPREAD] = _half_spread(table, columns["close"], path)
    return check(frame[list(COLUMNS)], LAYOUT)


def _half_spread(table: pyarrow.Table, close: tuple[str, ...], path: Path) -> Floats:
    """Return (n,) half spreads in quote currency: of bid and ask at the close, else as recorded, else NaN.

    close  the columns the close is made of: one, or the bid's and the ask's
    """
    if len(close) == 2:
        bid, ask = (numbers(table, name, path) for name in close)
        return (ask - bid) / 2.0
    return numbers(table, SPREAD, path) if SPREAD in table.column_names else np.full(table.num_rows, np.nan)


def _columns(names: set[str], path: Path) -> dict[str, tuple[str, ...]]:
    """Return canonical field → the columns it is the mean of: one, a bid and an ask, or none (not recorded)."""
    quotes = not names.issuperset(PRICES) and any(name in names for name in SIDES)
    wanted: dict[str, tuple[str, ...]] = {field: (field,) for field in PRICES}
    if quotes:
        wanted = {field: (f"bid_{field}", f"ask_{field}") for field in PRICES}
    for field in AMOUNTS:
        wanted[field] = tuple(name for name in OTHER_NAMES[field] if name in names)[:1]
    lacking = [name for field in PRICES for name in wanted[field] if name not in names]
    if not quotes and not wanted["volume"]:
        lacking.append("volume")
    if "open_time" not in names:
        lacking.insert(0, "open_time")
    if lacking:
        raise BadColumns(
            f"{path}: no column {', '.join(lacking)}; it has {', '.join(sorted(names))}. Rename or add it. "
            f"Known layouts: {KNOWN_LAYOUTS}."
        )
    return wanted


def _timeframe(opened: Stamps, path: Path) -> str:
    """Return the name of the commonest spacing. Raises BadTimes naming the file."""
    try:
        return infer_timeframe(epoch_seconds(pd.Series(stamps_of(opened))))
    except BadTimes as error:
        raise BadTimes(f"{path}: {error}") from error


def micros(table: pyarrow.Table, name: str, path: Path) -> Stamps:
    """Return a time column as (n,) datetime64[us] in UTC, NaT where empty.

    It holds aware stamps, ISO text with an offset, or epoch ms or µs. Raises BadTimes for anything else.
    """
    column = table.column(name)
    kind = column.type
    if pyarrow.types.is_timestamp(kind):
        if kind.tz is None:
            raise BadTimes(
                f"{path}: column {name} has no time zone, so its bars could be hours off. Write it with its offset "
                f"(2024-01-01T00:00:00Z), or localise it first: frame[{name!r}].dt.tz_localize('UTC')."
            )
        return np.asarray(column.cast(pyarrow.timestamp("us", tz="UTC"), safe=False).to_numpy(), dtype="datetime64[us]")
    if not pyarrow.types.is_integer(kind):
        raise BadTimes(
            f"{path}: column {name} holds {kind}, not times. Use aware stamps (2024-01-01T00:00:00Z) or epoch ms."
        )
    if column.null_count:
        raise BadTimes(f"{path}: column {name} has {column.null_count} empty cells. Find out which bars these are.")
    epochs = column.to_numpy()
    in_ms = (epochs >= MS_FROM) & (epochs < US_FROM)
    in_us = (epochs >= US_FROM) & (epochs < US_UNTIL)
    if not (in_ms | in_us).all():
        odd = int(np.argmin(in_ms | in_us))
        raise BadTimes(
            f"{path}: {name} {epochs[odd]} in row {odd} is neither epoch ms nor µs. Convert it to one of them."
        )
    return np.asarray(np.where(in_ms, epochs * 1000, epochs).astype("datetime64[us]"))


def numbers(table: pyarrow.Table, name: str, path: Path) -> Floats:
    """Return a number column as (n,) float64, NaN where empty. Raises BadValues."""
    column = table.column(name)
    kind = column.type
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_null(kind)):
        raise BadValues(
            f"{path}: column {name} holds {kind}, not numbers (e.g. {column[0].as_py()!r}). Correct or fetch it again."
        )
    return np.asarray(column.cast(pyarrow.float64()).to_numpy(), dtype=np.float64)
