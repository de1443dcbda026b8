"""Recorded bars from files → bars frames. Nothing is dropped or changed without a note; quality.assess judges it.

Data moves one way: bytes (`opened`) → text and table (`sniff`, `sheets`) → named columns (`columns`) → times (`times`)
→ bars (`bars`; of trades and quotes `ticks`). What a file does not show is refused with what was seen, what is still
missing and an example of the cure; only `FileOptions` fills it in. Layouts and names: `columns.ALIASES` and
`columns.headless`; of a canonical file (the columns of schemas.COLUMNS) known_at and ingested_at stay as recorded.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow

from pipelines.contracts import Floats, Trades
from pipelines.data.readers import numerals, times
from pipelines.data.readers.bars import bars_of
from pipelines.data.readers.opened import EXTENSIONS as EXTENSIONS
from pipelines.data.readers.opened import check_path as check_path
from pipelines.data.readers.opened import files_of as files_of
from pipelines.data.readers.opened import open_paths
from pipelines.data.readers.reading import FileOptions as FileOptions
from pipelines.data.readers.reading import ReadAs as ReadAs
from pipelines.data.readers.reading import Reading as Reading
from pipelines.data.readers.sheets import Sheet, any_table, open_sheet, plan_of
from pipelines.data.readers.ticks import bars_from_ticks, tape_of
from pipelines.data.readers.times import Stamps
from pipelines.data.readers.trades import once_and_in_order
from pipelines.errors import BadColumns, BadTimes, BadValues

STATED = FileOptions()


def read(paths: Path | Sequence[Path], ingested_at: datetime, options: FileOptions = STATED) -> Reading:
    """Return the bars of files, archives and folders as one history, columns and types of schemas.LAYOUT, unchecked.

    ingested_at  when they are taken in (aware), stamped on every row; a canonical file has its own
    Raises       UnreadableFile (missing, empty, cut off, not of its kind), BadColumns (names the columns seen and what
                 lacks), BadTimes (no zone, unreadable, off the grid, known before the close), BadValues (a cell that is
                 no number, several markets in one file); UnknownName for a timeframe or zone that there is not
    """
    opened = open_paths((paths,) if isinstance(paths, Path) else tuple(paths))
    sheets = [open_sheet(member) for member in opened.members]
    left_out = (
        [f"{len(opened.left_out)} files are no data: left out ({', '.join(opened.left_out[:5])})"]
        if opened.left_out
        else []
    )
    identity = _identity(sheets)
    kinds = {"bars" if sheet.plan.kind == "sides" else sheet.plan.kind for sheet in sheets}
    if len(kinds) > 1:
        raise BadColumns(
            f"{sheets[0].name}: saw: files of {' and of '.join(sorted(kinds))}; still missing: one kind; for example: "
            "give one kind at a time."
        )
    if kinds == {"bars"}:
        reading = bars_of(sheets, ingested_at, options)
    else:
        reading = bars_from_ticks(sheets, ingested_at, options)
    made = replace(reading.read_as, identity=identity, notes=(*left_out, *reading.read_as.notes))
    return replace(reading, read_as=made)


def _identity(sheets: Sequence[Sheet]) -> dict[str, str]:
    """Return what the files say of their market. Raises BadValues where two files differ."""
    found: dict[str, tuple[str, str]] = {}
    for sheet in sheets:
        for kind, value in sheet.identity().items():
            other, name = found.setdefault(kind, (value, sheet.name))
            if other != value and kind != "interval":
                raise BadValues(
                    f"{sheet.saw}; still missing: one market, its {kind} is {value} and that of {name} is {other}; for "
                    f"example: give the files of one {kind} at a time."
                )
    return {kind: value for kind, (value, _) in found.items()}


def read_trades(path: Path) -> Trades:
    """Return the trades of one file, in time order, each id once. Raises as `read`."""
    sheets = [open_sheet(member) for member in open_paths((path,)).members]
    if any(sheet.plan.kind != "trades" for sheet in sheets):
        raise BadColumns(
            f"{sheets[0].saw}; still missing: trades; for example: columns time, price, qty, is_buyer_maker, or "
            "Binance's "
            "archives without a header."
        )
    tape = once_and_in_order(tape_of(sheets, STATED)[0], sheets[0].saw)[0]
    return Trades(tape.time, tape.price, tape.size, tape.side)


# ---- tables of any kind


def read_table(path: Path) -> pyarrow.Table:
    """Return the columns of one file under their own names; a public layout without a header gets its names.

    Raises UnreadableFile (missing, empty, cut off, not of its kind) or BadColumns.
    """
    members = open_paths((path,)).members
    tables = [any_table(member) for member in members]
    try:
        return tables[0] if len(tables) == 1 else pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise BadColumns(
            f"{path}: its {len(tables)} tables have different columns ({error}). Give them one at a time."
        ) from error


def micros(table: pyarrow.Table, name: str, path: Path) -> Stamps:
    """Return a time column as (n,) datetime64[us] in UTC, NaT where a stamp is empty.

    Raises BadTimes for anything that is no time, and for times without an offset.
    """
    column = table.column(name)
    if pyarrow.types.is_timestamp(column.type) and column.type.tz is not None:
        return np.asarray(column.cast(pyarrow.timestamp("us", tz="UTC"), safe=False).to_numpy(), dtype="datetime64[us]")
    found = times.parse([column], name, np.arange(1, len(column) + 1), str(path))
    if not found.aware:
        raise BadTimes(
            f"{path}: column {name} has no time zone, so its bars could be hours off. Write it with its offset "
            f"(2024-01-01T00:00:00Z), or localise it first: frame[{name!r}].dt.tz_localize('UTC')."
        )
    return found.micros


def numbers(table: pyarrow.Table, name: str, path: Path) -> Floats:
    """Return a number column as (n,) float64, NaN where empty. Raises BadValues."""
    column = table.column(name)
    return numerals.to_floats(column, numerals.Signs(), name, np.arange(1, len(column) + 1), str(path))


def venue_of_layout(path: Path) -> str | None:
    """Return the venue that alone writes this layout (Binance's and Kraken's archives); None for any other.

    Raises as `read` for a file that cannot be read
    """
    venues = {plan_of(member).venue for member in open_paths((path,)).members}
    return next(iter(venues)) if len(venues) == 1 else None
