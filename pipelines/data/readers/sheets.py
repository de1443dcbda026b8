"""One member → its plan, and the columns of it with their lines: text by `sniff`, Parquet and Feather by pyarrow."""

import ast
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow
import pyarrow.compute as pc

from pipelines.contracts import Floats, Ints
from pipelines.data.readers import columns, sniff, times
from pipelines.data.readers.columns import IDENTITY, Plan, key_of, known_names
from pipelines.data.readers.numerals import Signs, places_of, signs_of, to_floats
from pipelines.data.readers.opened import Member
from pipelines.errors import BadColumns, BadValues, UnreadableFile

SAMPLE_ROWS = 60
SHOWN_VALUES = 4


@dataclass(frozen=True, eq=False)
class Sheet:
    """Hold one member's plan and columns. Each is itself alone: two members of one name are two.

    columns  position in plan.names → values, one a row
    lines    (n,) line of each row; of Parquet and Feather its row, from 1
    saw      what was recognised of the member, for messages
    places   most decimal places written in the prices; 0 where numbers are not text
    """

    name: str
    plan: Plan
    columns: dict[int, pyarrow.ChunkedArray]
    lines: Ints
    notes: list[str]
    saw: str
    signs: Signs
    encoding: str
    separator: str | None
    header_line: int | None
    skipped: tuple[int, ...]
    places: int
    tickers: tuple[str, ...] = ()

    def number(self, i: int) -> Floats:
        """Return one column as (n,) float64, NaN where empty. Raises BadValues."""
        return to_floats(self.columns[i], self.signs, self.plan.names[i], self.lines, self.name)

    def stamps(self, positions: Sequence[int], day_first: bool | None) -> times.Times:
        """Return the times of one column, or of a date and a time. Raises BadTimes."""
        name = " + ".join(self.plan.names[i] for i in positions)
        return times.parse([self.columns[i] for i in positions], name, self.lines, self.name, day_first)

    def text(self, i: int) -> pyarrow.ChunkedArray:
        """Return one column as stripped text."""
        return pc.utf8_trim_whitespace(self.columns[i].cast(pyarrow.string()))

    def identity(self) -> dict[str, str]:
        """Return the one value of each identity column. Raises BadValues where there are several, with counts."""
        found: dict[str, str] = {}
        for kind, i in self.plan.identity.items():
            counts = {
                str(one["values"]): int(one["counts"])
                for one in pc.value_counts(self.text(i).combine_chunks()).to_pylist()
            }
            found |= self._one_value(kind, self.plan.names[i], counts)
        if self.tickers:
            found |= self._one_value("symbol", "ticker", dict(Counter(self.tickers)), "columns")
        return found

    def _one_value(self, kind: str, name: str, counts: dict[str, int], unit: str = "rows") -> dict[str, str]:
        """Return {kind: value}, empty where nothing is written. Raises BadValues."""
        named = {value: n for value, n in counts.items() if value not in ("", "None")}
        if len(named) > 1:
            most = sorted(named.items(), key=lambda one: -one[1])
            shown = ", ".join(f"{value} {n} {unit}" for value, n in most[:SHOWN_VALUES])
            more = f" and {len(most) - SHOWN_VALUES} more" if len(most) > SHOWN_VALUES else ""
            raise BadValues(
                f"{self.saw}; still missing: one market, column {name} has {len(named)} values ({shown}{more}); for "
                "example: "
                f"cut the file by {name} and give the part of one."
            )
        return {kind: next(iter(named))} if named else {}


def open_sheet(member: Member) -> Sheet:
    """Return a member's plan with the columns it wants. Raises UnreadableFile, BadColumns."""
    return _text_sheet(member) if member.kind == "text" else _table_sheet(member)


def plan_of(member: Member) -> Plan:
    """Return a member's plan from its first rows alone. Raises as `open_sheet`."""
    if member.kind == "text":
        return _text_plan(sniff.sniff(member.data, member.name))
    return _table_plan(arrow_table(member), member.name)[1]


def _text_plan(text: sniff.Text) -> Plan:
    """Return the plan of a text."""
    form, saw = text.form, f"{text.name}: {text.form.saw()}"
    if not form.names:
        return columns.headless(form.width, text.sample, form.separator, saw)
    names = list(form.names)
    if key_of(names[0]) in ("price", "attributes") and (index := _index_name(text)):
        names[0] = index  # pandas writes the name of the columns where that of the index belongs
    return columns.recognise(names, text.sample, saw)


def _index_name(text: sniff.Text) -> str | None:
    """Return the name of the first column where it stands alone in a line of its own under the header."""
    for line in text.above:
        cells = [cell.strip() for cell in line.split(text.form.separator)]
        if len(cells) > 1 and cells[0] and not any(cells[1:]):
            return cells[0]
    return None


def _text_sheet(member: Member) -> Sheet:
    """Return the sheet of a text."""
    text = sniff.sniff(member.data, member.name)
    plan, form = _text_plan(text), text.form
    table, lines, notes = sniff.load(text, plan.used())
    if not len(lines):
        raise UnreadableFile(
            f"{member.name}: {form.saw()}; still missing: data, there are no rows; for example: fetch it again."
        )
    skipped = [f"line {i} is no header and no row: left out" for i in form.skipped]
    if form.signs.thousands is not None:
        skipped.append(f"{form.signs.thousands!r} in numbers was read as a thousands sign")
    tickers: tuple[str, ...] = ()
    for line in text.above:
        cells = [cell.strip() for cell in line.split(form.separator)]
        if len(cells) > 2 and key_of(cells[0]) in IDENTITY["symbol"] and known_names(cells[1:]) == 0:
            tickers = tuple(cell for cell in cells[1:] if cell)
    priced = [i for name, i in plan.fields.items() if name in ("open", "high", "low", "close")]
    places = places_of([row[i] for row in text.sample for i in priced], form.signs.decimal)
    return Sheet(
        member.name, plan, {int(name): table.column(name) for name in table.column_names}, lines,
        [*skipped, *text.notes, *notes], f"{member.name}: {form.saw()}, {plan.layout}", form.signs, form.encoding,
        form.separator, form.header_line, form.skipped, places, tickers,
    )  # fmt: skip


def arrow_table(member: Member) -> pyarrow.Table:
    """Return the table of a Parquet or Feather member. Raises UnreadableFile."""
    from pyarrow import feather, parquet  # only for such a file: text does not wait for them

    def of_parquet(data: pyarrow.BufferReader) -> pyarrow.Table:
        """Read in this thread: one of Arrow may outlive the answer, and abort a process that ends meanwhile."""
        return parquet.ParquetFile(data, pre_buffer=False).read(use_threads=False)

    def of_feather(data: pyarrow.BufferReader) -> pyarrow.Table:
        """Read in this thread, for the same reason."""
        return feather.read_table(data, use_threads=False)

    read = {"parquet": of_parquet, "feather": of_feather}[member.kind]
    what = member.kind.capitalize()
    try:
        table = read(pyarrow.BufferReader(member.data))
        table.validate(full=True)
        for kind in table.schema.types:  # the zone of damaged bytes is no text: it is looked at where that is caught
            zone = kind.tz if pyarrow.types.is_timestamp(kind) else None
            if zone is not None and not zone.isprintable():
                raise ValueError(f"a time zone {zone!r}")
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise UnreadableFile(f"{member.name}: cut off or not {what} ({str(error)[:160]}). Fetch it again.") from error
    if table.num_rows == 0:
        raise UnreadableFile(
            f"{member.name}: no rows, only columns {', '.join(table.column_names)[:200]}. Fetch it again."
        )
    return table


def _table_plan(table: pyarrow.Table, name: str) -> tuple[list[str], Plan, tuple[str, ...], str]:
    """Return names, plan, tickers of a MultiIndex, and what was seen."""
    names, tickers = _flat_names(table.column_names)
    saw = f"{name}: saw: a table of {table.num_rows} rows"
    rows = [_shown(column.slice(0, SAMPLE_ROWS)) for column in table.columns]
    sample = [list(row) for row in zip(*rows, strict=True)]
    return names, columns.recognise(names, sample, saw), tickers, saw


def _shown(column: pyarrow.ChunkedArray) -> list[str]:
    """Return cells as text, for the look at their kind."""
    if pyarrow.types.is_timestamp(column.type):
        zone = "" if column.type.tz is None else "+00:00"
        seconds = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[column.type.unit]
        whole = pc.fill_null(column.cast(pyarrow.int64()), 0).to_numpy() // seconds
        return [f"{stamp}{zone}" for stamp in whole.astype("datetime64[s]").astype(str)]
    try:
        return [cell or "" for cell in column.cast(pyarrow.string()).to_pylist()]
    except pyarrow.ArrowException:  # lists and the like: no column of ours
        return [""] * len(column)


def _table_sheet(member: Member) -> Sheet:
    """Return the sheet of a Parquet or Feather member."""
    table = arrow_table(member)
    _, plan, tickers, saw = _table_plan(table, member.name)
    taken = {i: table.column(i) for i in plan.used()}
    lines = np.arange(1, table.num_rows + 1, dtype=np.int64)
    kind = member.kind.capitalize()
    texts = [cell for i, how in plan.used().items() if how == "number" for cell in _texts(taken[i])]
    signs = signs_of(texts, ",") if texts else Signs()
    return Sheet(member.name, plan, taken, lines, [], f"{saw}, {plan.layout}", signs, kind, None, None, (), 0, tickers)


def _texts(column: pyarrow.ChunkedArray) -> list[str]:
    """Return some cells of a text column; none of a column of numbers."""
    kind = column.type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        return []
    return [cell for cell in column.slice(0, SAMPLE_ROWS).to_pylist() if cell]


def _flat_names(names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return names without the tickers of pandas' MultiIndex ("('Close', 'XYZ')"), and those tickers."""
    levels = [_tuple_of(name) for name in names]
    if not any(levels):
        return list(names), ()
    held = [level for level in levels if level]
    depth = max(range(min(map(len, held))), key=lambda i: known_names([level[i] for level in held]))
    tickers = tuple(part for level in held for i, part in enumerate(level) if i != depth and part)
    return [level[depth] if level else name for name, level in zip(names, levels, strict=True)], tickers


def _tuple_of(name: str) -> tuple[str, ...]:
    """Return the parts of a tuple written as text; () where it is none."""
    if not (name.startswith("(") and name.endswith(")")):
        return ()
    try:
        parts = ast.literal_eval(name)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    return tuple(str(part) for part in parts) if isinstance(parts, tuple) else ()


def any_table(member: Member) -> pyarrow.Table:
    """Return all columns of a member by their names, typed as pyarrow infers. Raises UnreadableFile, BadColumns."""
    if member.kind != "text":
        return arrow_table(member)
    text = sniff.sniff(member.data, member.name)
    form = text.form
    names = (
        form.names or columns.headless(form.width, text.sample, form.separator, f"{member.name}: {form.saw()}").names
    )
    if len(set(names)) < len(names):
        raise BadColumns(f"{member.name}: a column name stands twice in {', '.join(names)}. Rename one of them.")
    table, lines, _ = sniff.load(text, dict.fromkeys(range(form.width), "inferred"))
    if not len(lines):
        raise UnreadableFile(f"{member.name}: no rows, only columns {', '.join(names)}. Fetch it again.")
    return table.rename_columns([names[int(i)] for i in table.column_names])
