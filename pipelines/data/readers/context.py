"""Context of a market: series that are not its own bars, each value with the moment it could first be known (D7).

A source of context is a file with one of the layouts below, or any dated series that is named. A value dated D is not
known on D: each layout states from when on, and errs on the late side. Times are read as those of bars are; a date is
the start of its UTC day. A series without a file stays missing.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute

from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import DAY_S, ContextFeed, Floats, Ints
from pipelines.data.funding import UNIT_HOURS, per_unit, settlement_hours
from pipelines.data.readers.files import micros, numbers, read_table
from pipelines.data.schemas import epoch_seconds, stamps_of
from pipelines.data.sessions import infer_timeframe
from pipelines.data.timeframes import seconds
from pipelines.errors import BadColumns, BadTimes, BadValues

SECONDS_UNTIL = 10**11  # an epoch under this is in seconds: of 5138, in milliseconds of 1973


@dataclass(frozen=True, slots=True)
class Layout:
    """Describe one layout of a context file, as its publisher writes it.

    times, values  names of its two columns, in small letters; the first that is there counts
    field        the context field of the value, one of CONTEXT_FIELDS
    delay_s      from the time of a row until it could be known; None: the spacing of the rows, as of bars
    description  for messages
    also         a column that has to be there too, where the names of the other two are of many layouts
    hours        the column that states the hours of a funding period
    utc          times without a zone are UTC, as the publisher states
    """

    times: tuple[str, ...]
    values: tuple[str, ...]
    field: str
    delay_s: float | None
    description: str
    also: str | None = None
    hours: str | None = None
    utc: bool = False


# the first layout whose columns are there is the one
LAYOUTS: dict[str, Layout] = {
    "funding": Layout(
        ("funding_time", "fundingtime", "fundingratetimestamp", "calc_time"),
        ("funding_rate", "fundingrate", "last_funding_rate"),
        "funding_rate", 0.0, "funding rate, known when it was settled", hours="funding_interval_hours",
    ),
    # published early on its day; the hour is not recorded, so the day must be over
    "fear_greed": Layout(
        ("date",), ("fear_greed_value",), "fear_greed", DAY_S, "fear and greed index, known when its day is over"
    ),
    "fear_greed_published": Layout(
        ("timestamp", "date"), ("value",), "fear_greed", DAY_S,
        "fear and greed index of alternative.me, known when its day is over", also="value_classification", utc=True,
    ),
    "open_interest": Layout(("known_at",), ("open_interest",), "open_interest", 0.0, "open interest, known as stamped"),
    "metrics": Layout(
        ("create_time",), ("sum_open_interest",), "open_interest", 300.0,
        "Binance metrics: open interest, known at the end of its five minutes", utc=True,
    ),
    "reference": Layout(
        ("open_time",), ("close",), "reference_close", None, "bars of the reference symbol, known at their close"
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ContextReading:
    """Hold what a file of context holds: its feed, and in words how it was read."""

    feed: ContextFeed
    read_as: str


def read_context(path: Path) -> ContextFeed:
    """Read the context of one file; see `read_context_file`."""
    return read_context_file(path).feed


def read_context_file(path: Path) -> ContextReading:
    """Read the context of one Parquet, CSV or zip file, in the order it became known; its columns determine the layout.

    An empty or infinite value is left out. Funding rates are of eight hours, whatever the period they were settled for.
    Raises UnreadableFile, BadColumns naming the layouts known, BadTimes (naive, unreadable, or too few rows to show the
    spacing of a reference's bars) or BadValues.
    """
    table = read_table(path)
    names = {name.strip().lower(): name for name in table.column_names}
    layout, time, value = _layout_of(names, path)
    refuse_several(table, names, path)
    event, values = moments(table, time, path, layout.utc), numbers(table, value, path)
    read_as = layout.description
    if layout.field == "funding_rate":
        hours = numbers(table, names[layout.hours], path) if layout.hours in names else _shown_hours(event)
        values, read_as = per_unit(values, hours), f"{read_as}, {_in_words(hours)}"
    delay = _spacing(event, path) if layout.delay_s is None else layout.delay_s
    field = np.full(len(event), CONTEXT_INDEX[layout.field], dtype=np.int64)
    return ContextReading(ordered(event + delay, field, values), f"{path.name}: {read_as}")


def _layout_of(names: dict[str, str], path: Path) -> tuple[Layout, str, str]:
    """Return the layout of a file with its columns of time and value. Raises BadColumns.

    names  column in small letters → as the file has it
    """
    for layout in LAYOUTS.values():
        time = next((names[name] for name in layout.times if name in names), None)
        value = next((names[name] for name in layout.values if name in names), None)
        if time is not None and value is not None and (layout.also is None or layout.also in names):
            return layout, time, value
    known = "; ".join(f"{one.times[0]}, {one.values[0]} ({one.description})" for one in LAYOUTS.values())
    raise BadColumns(f"{path}: columns {', '.join(names.values())} are no context. Known: {known}.")


def refuse_several(table: pyarrow.Table, names: dict[str, str], path: Path) -> None:
    """Raise BadValues if a column of symbols has more than one."""
    for name in ("symbol", "pair", "instid"):
        if name in names and len(counts := pyarrow.compute.value_counts(table.column(names[name]))) > 1:
            several = ", ".join(f"{each['values']} in {each['counts']:,} rows" for each in counts.to_pylist()[:5])
            raise BadValues(f"{path}: column {names[name]} has {several}. Keep the rows of one market.")


def moments(table: pyarrow.Table, name: str, path: Path, utc: bool) -> Floats:
    """Return a column of times as (n,) epoch seconds, NaN where empty; a day is its start in UTC. Raises BadTimes.

    utc  whether times without a zone are UTC
    """
    column, at = table.column(name), table.column_names.index(name)
    kind = column.type
    if pyarrow.types.is_string(kind) and (days := _days(column, path, name)) is not None:
        return days
    if pyarrow.types.is_date(kind) or (utc and pyarrow.types.is_timestamp(kind) and kind.tz is None):
        column = column.cast(pyarrow.timestamp("us")).cast(pyarrow.timestamp("us", tz="UTC"))
    elif (
        pyarrow.types.is_integer(kind) and not column.null_count and pyarrow.compute.max(column).as_py() < SECONDS_UNTIL
    ):
        column = pyarrow.compute.multiply(column, 1000)
    return epoch_seconds(pd.Series(stamps_of(micros(table.set_column(at, name, column), name, path))))


def _days(column: pyarrow.ChunkedArray, path: Path, name: str) -> Floats | None:
    """Return the starts of days written as 31-01-2024 or 01/31/2024, (n,) epoch seconds; None where no row is one.

    With dashes or dots the day comes first, with slashes the month, as alternative.me writes them for the world and for
    the United States. Raises BadTimes for a row that is no such day.
    """
    text = column.to_pylist()
    form = re.compile(r"\d{1,2}([-./])\d{1,2}\1\d{4}")
    if not text[0] or (first := form.fullmatch(text[0].strip())) is None:
        return None
    sign = first[1]
    order = f"%m{sign}%d{sign}%Y" if sign == "/" else f"%d{sign}%m{sign}%Y"
    days = pd.to_datetime(pd.Series(text, dtype=object).str.strip(), format=order, errors="coerce", utc=True)
    if (bad := np.flatnonzero(days.isna().to_numpy())).size:
        raise BadTimes(
            f"{path}: {name} {text[bad[0]]!r} in row {bad[0]} is no day written as {order}, as row 0 is "
            f"({len(bad)} rows). Write days as 2024-01-31."
        )
    return epoch_seconds(days)


def _shown_hours(event: Floats) -> Floats:
    """Return (n,) hours of the funding periods that the spacing of settlements (n,) in any order shows; else NaN."""
    order, hours = np.argsort(event, kind="stable"), np.empty(len(event))
    hours[order] = settlement_hours(event[order])
    return hours


def _in_words(hours: Floats) -> str:
    """Return of which periods rates were, and that they are of UNIT_HOURS now."""
    known, counts = np.unique(hours[np.isfinite(hours)], return_counts=True)
    parts = [f"{n:,} of {period:g} h" for period, n in zip(known, counts, strict=True)]
    if lacking := int(np.isnan(hours).sum()):
        parts.append(f"{lacking:,} without a period shown, taken as of {UNIT_HOURS:g} h")
    return f"rates as of {UNIT_HOURS:g} h: {', '.join(parts)}"


def _spacing(opened: Floats, path: Path) -> float:
    """Return the commonest spacing of bar opens in seconds. Raises BadTimes naming the file."""
    try:
        return float(seconds(infer_timeframe(opened)))
    except BadTimes as error:
        raise BadTimes(f"{path}: {error}") from error


def ordered(known: Floats, field: Ints, value: Floats) -> ContextFeed:
    """Return a feed in the order it became known; values that are not finite are left out."""
    there = np.isfinite(value) & np.isfinite(known)
    order = np.argsort(known[there], kind="stable")
    return ContextFeed(known[there][order], field[there][order], value[there][order])


def merge_feeds(feeds: list[ContextFeed]) -> ContextFeed | None:
    """Return several feeds as one; None for an empty list."""
    if not feeds:
        return None
    return ordered(*(np.concatenate([getattr(feed, name) for feed in feeds]) for name in ("known", "field", "value")))
