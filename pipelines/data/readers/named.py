"""Files of named series → context: a column of times and one of values, known when a person states."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow

from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import DAY_S, ContextFeed, Floats
from pipelines.data.readers.context import moments, ordered, refuse_several
from pipelines.data.readers.files import numbers, read_table
from pipelines.data.series import Series
from pipelines.errors import BadColumns

TIMES = ("known_at", "time", "timestamp", "datetime", "date", "open_time", "event_time", "published", "filed")


def read_series(series: Series, path: Path) -> ContextFeed:
    """Read a named series from a file, in the order it became known.

    The time is the column named as one of TIMES; the value the column named as the series, or `value`, or the only one
    with numbers. A value could be known at its time plus the lag; one that has only a day when the day is over plus the
    lag. Empty and infinite values are left out. Raises UnreadableFile, BadColumns, BadTimes, BadValues.
    """
    table = read_table(path)
    names = {name.strip().lower(): name for name in table.column_names}
    refuse_several(table, names, path)
    time = next((names[name] for name in TIMES if name in names), None)
    if time is None:
        raise BadColumns(
            f"{path}: no column of times among {', '.join(table.column_names)}. Name it one of {', '.join(TIMES)}."
        )
    value = _value_column(table, names, time, series.name, path)
    event = moments(table, time, path, utc=False)
    if _days_alone(table, time, event):
        event = event + DAY_S
    field = np.full(len(event), CONTEXT_INDEX[series.field], dtype=np.int64)
    return ordered(event + series.lag_s, field, numbers(table, value, path))


def _value_column(table: pyarrow.Table, names: Mapping[str, str], time: str, name: str, path: Path) -> str:
    """Return the column of the values. Raises BadColumns where none or several could be."""
    for known in (name, "value"):
        if known in names:
            return names[known]
    is_number = (pyarrow.types.is_integer, pyarrow.types.is_floating)
    found = [c for c in table.column_names if c != time and any(kind(table.column(c).type) for kind in is_number)]
    if len(found) != 1:
        raise BadColumns(
            f"{path}: {'no column' if not found else 'several columns'} with numbers besides {time}"
            f"{': ' + ', '.join(found) if found else ''}. Name the one to read {name!r} or 'value'."
        )
    return str(found[0])


def _days_alone(table: pyarrow.Table, time: str, event: Floats) -> bool:
    """Return whether times are days without a time of day: dates, or text of which no row has an hour."""
    kind = table.column(time).type
    is_text = pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)
    return bool(pyarrow.types.is_date(kind) or (is_text and (event[np.isfinite(event)] % DAY_S == 0.0).all()))
