"""The bars frame, typed and versioned, and its two other forms: the (n, 9) matrix of compiled code and Parquet.

Columns, in order: three UTC stamps (law L8), then prices in quote currency, volumes in base asset, trades a count.
`open_time` names the bar; `known_at` = when it could first be known (never before its close); `ingested_at` =
when it was stored. half_spread is (ask - bid) / 2 at the close, quote currency. NaN means "not recorded" and is allowed
in volume, trades, taker_buy_volume and half_spread only. Files of bars/1, the schema up to release 0.7, have no
half_spread and are read with NaN.
"""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pandera.pandas as pa
import pyarrow
import pyarrow.parquet as parquet

from pipelines.contracts import BAR_FIELDS, BAR_WIDTH, OPEN_TIME, Floats
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
_STAMP = pd.DatetimeTZDtype("us", "UTC")


def _ascending(stamps: Any) -> Any:
    """Return (n,): whether each stamp is after the one before it."""
    return stamps.diff().fillna(pd.Timedelta(1, "s")) > pd.Timedelta(0)  # the first has nothing before it


def _known_after_open(frame: Any) -> Any:
    """Return (n,): whether a bar was known after it opened, and not ingested before."""
    return (frame["known_at"] > frame["open_time"]) & (frame["ingested_at"] >= frame["open_time"])


def _inside_range(frame: Any) -> Any:
    """Return (n,): whether open and close lie between low and high."""
    body_high, body_low = np.maximum(frame["open"], frame["close"]), np.minimum(frame["open"], frame["close"])
    return (frame["high"] >= body_high) & (frame["low"] <= body_low)


def _bid_above_0(frame: Any) -> Any:
    """Return (n,): whether the half spread leaves a bid above 0 at the low, or was not recorded."""
    return frame[SPREAD].isna() | (frame[SPREAD] < frame["low"])


def _schema(name: str, strict_values: bool) -> Any:
    """Return the schema of columns and types; with `strict_values` also the rules for their values."""
    times = [pa.Check(_ascending, name="ascending")] if strict_values else []
    prices = [pa.Check(lambda s: np.isfinite(s) & (s > 0), name="positive")] if strict_values else []
    amounts = [pa.Check(lambda s: np.isfinite(s) & (s >= 0), name="not_negative")] if strict_values else []
    loose = not strict_values
    return pa.DataFrameSchema(
        {
            "open_time": pa.Column(_STAMP, times, nullable=loose),
            "known_at": pa.Column(_STAMP, nullable=loose),
            "ingested_at": pa.Column(_STAMP, nullable=loose),
            **{field: pa.Column("float64", prices, nullable=loose) for field in PRICES},
            **{field: pa.Column("float64", amounts, nullable=True) for field in (*AMOUNTS, SPREAD)},
        },
        checks=[
            pa.Check(_known_after_open, name="known_after_open"),
            pa.Check(_inside_range, name="inside_range"),
            pa.Check(_bid_above_0, name="bid_above_0"),
        ]
        if strict_values
        else [],
        index=pa.Index("int64"),
        strict=True,
        ordered=True,
        name=name,
    )


LAYOUT = _schema(
    "layout", strict_values=False
)  # the result of a reader: right columns and types, values not yet checked
BARS = _schema("bars", strict_values=True)  # the clean rows of quality.assess, on which everything after it relies

_REMEDY: dict[str | None, tuple[type[InputError], str]] = {
    "not_nullable": (BadValues, "only volume, trades, taker_buy_volume and half_spread may be missing"),
    "ascending": (BadTimes, "open_time must ascend without copies"),
    "known_after_open": (BadTimes, "known_at must be after open_time, and ingested_at not before it"),
    "positive": (BadValues, "prices must be finite and above 0"),
    "not_negative": (
        BadValues,
        "volume, trades, taker_buy_volume and half_spread must be NaN (not recorded) or finite and not negative",
    ),
    "inside_range": (BadValues, "high must be the highest and low the lowest of the four prices"),
    "bid_above_0": (BadValues, "half_spread must be under the low: it is (ask - bid) / 2 in quote currency"),
}


def check(frame: pd.DataFrame, schema: Any = BARS) -> pd.DataFrame:
    """Return `frame` unchanged if it satisfies `schema`.

    Raises BadColumns (missing, unknown, out of order, wrong type), BadTimes or BadValues, with the first failing rows.
    """
    try:
        schema.validate(frame)
    except (pa.errors.SchemaError, pa.errors.SchemaErrors) as error:
        raise _refusal(frame, error) from error
    return frame


def _refusal(frame: pd.DataFrame, error: Any) -> InputError:
    """Return the error for a frame that its schema refuses, with the first failing rows."""
    rule_name = getattr(error, "check", None)  # a Check, or the name of a rule of pandera's own
    name = rule_name if isinstance(rule_name, str) else getattr(rule_name, "name", None)
    kind, rule = _REMEDY.get(
        name, (BadColumns, f"the columns must be {', '.join(COLUMNS)}, in this order and of these types")
    )
    rows, detail = error.failure_cases, ""
    if isinstance(error, pa.errors.SchemaErrors):  # the set or the order of the columns is wrong
        detail = f"; got {', '.join(map(str, frame.columns))}"
    elif isinstance(rows, pd.DataFrame) and rows["index"].notna().any():
        detail = f"; {len(rows)} failures, first at row {rows['index'].dropna().iloc[0]} of {len(frame)}"
    else:
        detail = f"; {str(error).splitlines()[0][:160]}"
    return kind(
        f"bars refused: {rule}{detail}. Read them with pipelines.data.readers.files and clean them with quality.assess."
    )


def to_matrix(frame: pd.DataFrame) -> Floats:
    """Return a bars frame (n rows) as (n, 9) float64 in BAR_FIELDS order, C-contiguous; open_time in epoch seconds."""
    matrix = np.empty((len(frame), BAR_WIDTH))
    matrix[:, OPEN_TIME] = epoch_seconds(frame["open_time"])
    for i, name in enumerate(BAR_FIELDS[1:], start=1):
        matrix[:, i] = frame[name].to_numpy(np.float64)
    return matrix


def epoch_seconds(stamps: Any) -> Floats:
    """Return a series of datetime64[us, UTC] as (n,) epoch seconds; NaT → NaN."""
    micros = stamps.to_numpy("datetime64[us]")
    return np.where(np.isnat(micros), np.nan, micros.astype(np.int64) / 1e6)


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
    return pd.DatetimeIndex(np.asarray(micros).astype("datetime64[us]")).tz_localize("UTC")


def constant_stamp(moment: datetime, n: int) -> pd.DatetimeIndex:
    """Return `moment` n times. Raises BadTimes if it has no time zone."""
    if moment.tzinfo is None:
        raise BadTimes(f"ingested_at {moment} has no time zone. Pass an aware one, e.g. datetime.now(tz=UTC).")
    return stamps_of(np.full(n, np.datetime64(moment.astimezone(UTC).replace(tzinfo=None), "us")))


def write_bars(frame: pd.DataFrame, path: Path) -> None:
    """Write clean bars as Parquet (zstd). The same frame gives the same bytes, so that a data hash means the data.

    Raises as `check` does. The file appears whole or not at all.
    """
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
    try:
        table = parquet.read_table(path)
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
