"""Context of a market: series that are not its own bars, each value with the moment it could first be known (D7).

A source of context is a file with one of the layouts below. A value dated D is not known on D: each layout states from
when on, and errs on the late side. Times are read as those of bars are: aware stamps or epoch ms or µs; a `date` is the
start of its UTC day. A series without a file stays missing.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow

from pipelines.contracts import CONTEXT_FIELDS, CONTEXT_INDEX, ContextFeed, Floats, Ints, DAY_S
from pipelines.data.readers.files import micros, numbers, read_table
from pipelines.data.schemas import epoch_seconds, stamps_of
from pipelines.data.timeframes import infer_timeframe, seconds
from pipelines.errors import BadColumns, BadTimes, UnknownName


@dataclass(frozen=True, slots=True)
class Layout:
    """Describe one layout of a context file.

    time, value  its columns; field: the context field of the value, one of CONTEXT_FIELDS
    delay_s      from the time of a row until it could be known; None: the spacing of the rows, as of bars
    description  for messages
    """

    time: str
    value: str
    field: str
    delay_s: float | None
    description: str


# the first layout whose columns are there is the one
LAYOUTS: dict[str, Layout] = {
    "funding": Layout("funding_time", "funding_rate", "funding_rate", 0.0, "funding rate, known when it was settled"),
    # published early on its day; the hour is not recorded, so the day must be over
    "fear_greed": Layout(
        "date", "fear_greed_value", "fear_greed", DAY_S, "fear and greed index, known when its day is over"
    ),
    "open_interest": Layout("known_at", "open_interest", "open_interest", 0.0, "open interest, known as stamped"),
    "reference": Layout(
        "open_time", "close", "reference_close", None, "bars of the reference symbol, known at their close"
    ),
}


def read_context(path: Path) -> ContextFeed:
    """Read the context of one Parquet, CSV or zip file, in the order it became known; its columns determine the layout.

    An empty or infinite value is left out. Raises UnreadableFile, BadColumns naming the layouts known, BadTimes
    (naive, unreadable, or too few rows to show the spacing of a reference's bars) or BadValues.
    """
    table = read_table(path)
    layout = next((one for one in LAYOUTS.values() if {one.time, one.value} <= set(table.column_names)), None)
    if layout is None:
        layouts = "; ".join(f"{one.time}, {one.value} ({one.description})" for one in LAYOUTS.values())
        raise BadColumns(f"{path}: columns {', '.join(table.column_names)} are no context. Known: {layouts}.")
    column = table.column(layout.time)
    if pyarrow.types.is_date(column.type):
        midnight = column.cast(pyarrow.timestamp("us")).cast(pyarrow.timestamp("us", tz="UTC"))
        table = table.set_column(table.column_names.index(layout.time), layout.time, midnight)
    event = epoch_seconds(pd.Series(stamps_of(micros(table, layout.time, path))))
    delay = _spacing(event, path) if layout.delay_s is None else layout.delay_s
    field = np.full(len(event), CONTEXT_INDEX[layout.field], dtype=np.int64)
    return ordered(event + delay, field, numbers(table, layout.value, path))


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
