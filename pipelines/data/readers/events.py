"""Calendars of events → embargo windows: columns from, until, kind and, where a row is of one market alone, symbol."""

from pathlib import Path

import numpy as np
import pyarrow

from pipelines.contracts import DAY_S, Floats
from pipelines.data.embargo import Window
from pipelines.data.readers.context import moments
from pipelines.data.readers.files import read_table
from pipelines.data.symbols import parse_symbol
from pipelines.errors import BadColumns, BadTimes, BadValues, UnknownName

COLUMNS = ("from", "until", "kind")


def read_events(path: Path, symbol: str) -> tuple[Window, ...]:
    """Return the windows of a market from one Parquet, CSV or zip file: rows of its symbol, and those without one.

    Times have their zone or are epochs, as those of bars; a day alone is its start, as `until` its end.
    Raises UnreadableFile, BadColumns, BadTimes (also for a window that ends before it begins) and BadValues.
    """
    table = read_table(path)
    names = {name.strip().lower(): name for name in table.column_names}
    if lacking := [name for name in COLUMNS if name not in names]:
        raise BadColumns(
            f"{path}: no column {', '.join(lacking)} among {', '.join(table.column_names)}. A calendar of events has "
            "from, until, kind and, where a row is of one market alone, symbol."
        )
    since, until = (_moments(table, names[name], path, end=name == "until") for name in ("from", "until"))
    kinds = [str(kind or "").strip() for kind in table.column(names["kind"]).to_pylist()]
    bad = np.flatnonzero(~(until > since))
    if len(bad):
        raise BadTimes(f"{path}: row {bad[0]} ends before it begins, or lacks a time ({len(bad)} rows). Correct it.")
    if "" in kinds:
        raise BadValues(f"{path}: row {kinds.index('')} has no kind; a refusal names it. Write what happens, e.g. CPI.")
    of = table.column(names["symbol"]).to_pylist() if "symbol" in names else [None] * len(kinds)
    rows = zip(since.tolist(), until.tolist(), kinds, strict=True)
    return tuple(Window(*row) for i, row in enumerate(rows) if _is_of(of[i], symbol, i, path))


def _moments(table: pyarrow.Table, name: str, path: Path, end: bool) -> Floats:
    """Return a column of times as (n,) epoch seconds; a day alone is its start, or its end."""
    found = moments(table, name, path, utc=False)
    return found + DAY_S if end and pyarrow.types.is_date(table.column(name).type) else found


def _is_of(named: str | None, symbol: str, row: int, path: Path) -> bool:
    """Return whether a row is of this market: it names it in any spelling, or none. Raises BadValues."""
    if not (text := str(named or "").strip()):
        return True
    try:
        return parse_symbol(text) == symbol
    except UnknownName as error:
        raise BadValues(f"{path}: row {row}: {error}") from error
