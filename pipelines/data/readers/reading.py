"""What is stated of files, and how they were read: the two ends of `readers.files.read`."""

import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

import pandas as pd

from pipelines.contracts import Ints, JsonObject

Order = Literal["ascending", "descending", "mixed"]
NoBar = Literal["missing", "no-trade"]


@dataclass(frozen=True, slots=True)
class FileOptions:
    """State what the bytes of files do not show; None = as the files show."""

    __pydantic_config__: ClassVar[dict[str, bool]] = {"use_attribute_docstrings": True}

    timeframe: str | None = None
    """Timeframe of the bars, or of the bars made of trades and quotes."""
    timezone: str | None = None
    """Zone of times without an offset: IANA name, -05:00, or America/New_York+07:00."""
    stamp: Literal["start", "end"] = "start"
    """Whether bars are stamped at their open or, "end", at their close."""
    day_first: bool | None = None
    """Of dates such as 01/02/2024, where the file does not show it."""
    no_bar: NoBar | None = None
    """"no-trade": where no bar stands, nothing traded; "missing": it is lost."""


@dataclass(frozen=True, slots=True)
class ReadAs:
    """Say how one or more files were read, JSON-ready.

    encoding … skipped_lines  of the first member; of the others where they differ a note says so
    columns    canonical field → the source's column
    identity   "symbol", "exchange", "interval" → the one value of that column in the files
    notes      each conversion and each row left out, with count and first line
    venue      the one venue that writes this layout; None where many do
    """

    layout: str
    members: tuple[str, ...]
    encoding: str
    separator: str | None
    decimal: str
    header_line: int | None
    skipped_lines: tuple[int, ...]
    columns: Mapping[str, str]
    time_form: str
    order: Order
    rows: int
    notes: tuple[str, ...]
    not_recorded: tuple[str, ...]
    no_bar: NoBar
    timeframe: str
    identity: Mapping[str, str] = field(default_factory=dict)
    venue: str | None = None

    def to_dict(self) -> JsonObject:
        """Return this as JSON types."""
        made: JsonObject = {}
        for name, value in asdict(self).items():
            made[name] = (
                list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            )
        return made

    def describe(self, width: int = 80) -> str:
        """Return one paragraph for people, then a line for each note, no line longer than `width`."""
        files = self.members[0] if len(self.members) == 1 else f"{len(self.members)} files, {self.members[0]} first"
        form = self.encoding if self.separator is None else f"{self.encoding}, separator {self.separator!r}"
        head = (
            "no header"
            if self.header_line is None and self.separator is not None
            else f"header in line {self.header_line}"
        )
        columns = ", ".join(f"{name} = {source}" if name != source else name for name, source in self.columns.items())
        parts = [
            f"read as: {self.layout} of {self.timeframe}, {self.rows:,} rows ({files}; {form}"
            + (", decimal comma" if self.decimal == "," else "")
            + (f", {head})" if self.separator is not None else ")"),
            f"times: {self.time_form}, {self.order}",
            f"columns: {columns}",
        ]
        if self.not_recorded:
            parts.append(f"not recorded: {', '.join(self.not_recorded)}")
        if self.no_bar == "no-trade":
            parts.append("where no bar stands, nothing traded")
        lines = [textwrap.fill("; ".join(parts) + ".", width)]
        lines += [textwrap.fill(note, width, initial_indent="- ", subsequent_indent="  ") for note in self.notes]
        return "\n".join(lines)


@dataclass(frozen=True)
class Reading:
    """Hold what files gave.

    frame          schemas.LAYOUT, unchecked, ascending unless read_as.order is mixed
    session_dates  open_time is the midnight (UTC) of a date without a time: the session of that date
    lines, member  (n,) the line (of Parquet the row) each bar came from, from 1, and the member, an index into
                   read_as.members; of a bar made of several rows the first
    """

    frame: pd.DataFrame
    timeframe: str
    read_as: ReadAs
    session_dates: bool
    lines: Ints
    member: Ints
