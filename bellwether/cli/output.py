"""Tables, JSON and progress on the terminal: results on standard output, everything else on standard error."""

import json
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from flows.support.processes import Progress

GAP = 2  # columns of space between two cells
out = Console()
err = Console(stderr=True)


def emit(value: object) -> None:
    """Print JSON on standard output, and nothing else there."""
    typer.echo(json.dumps(value, indent=1, default=str))


def line(text: str) -> None:
    """Print one line as it is, however long: no markup, no colours, no line breaks within a path or a link."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def paragraph(text: str, lead: str = "") -> None:
    """Print text wrapped at words to the width of the terminal, after a `lead` in bold; a longer word stays whole."""
    for i, wrapped in enumerate(_wrap(f"{lead} {text}" if lead else text)):
        shown = Text(wrapped)
        if i == 0:
            shown.stylize("bold", 0, len(lead))
        out.print(shown, soft_wrap=True)


def _wrap(text: str, indent: int = 0) -> list[str]:
    """Return the lines of a text at the width of the terminal, all indented; no word is broken."""
    margin = " " * indent
    return textwrap.wrap(
        text, out.width, initial_indent=margin, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )


def progress_of(as_json: bool) -> "Progress":
    """Return the function that shows lines of progress; next to JSON it shows nothing."""
    from flows.support.processes import silent

    return silent if as_json else line


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns; as lines below each other where a word would not fit its column."""
    cells = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    for wrapped in _wrap(title):
        out.print(Text(wrapped, style="bold"), soft_wrap=True)
    if _least_width(columns, cells) > out.width:
        _print_lines(columns, cells)
    else:
        _print_columns(columns, cells)
    out.print()


def _print_columns(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print cells as a table."""
    shown = Table(header_style="bold", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for name, width in zip(columns, _column_widths(columns, cells), strict=True):
        shown.add_column(name, width=width)
    for row in cells:
        shown.add_row(*map(escape, row))
    out.print(shown, highlight=False)


def _print_lines(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print the leading narrow columns of a row on one line and the others below it, indented, if they do not fit."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    n = 0
    while n < len(widths) - 1 and sum(widths[: n + 1]) + GAP * (n + 1) < out.width:
        n += 1
    for row in cells:
        start = "".join(f"{text:<{width + GAP}}" for text, width in zip(row[:n], widths, strict=False))
        rest = [(name, text) for name, text in zip(columns[n:], row[n:], strict=True) if text not in ("", "–")]
        if rest and len(start) + len(rest[0][1]) <= out.width and "\n" not in rest[0][1]:
            start += rest.pop(0)[1]
        out.print(Text(start.rstrip()), soft_wrap=True)
        for name, text in rest:
            for wrapped in _wrap(f"{name}: {text}", indent=4):
                out.print(Text(wrapped), soft_wrap=True)


def _column_widths(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column: as wide as its text, the widest made narrower until all fit, words whole."""
    texts = list(zip(columns, *cells, strict=True))
    least = [max(_longest_word(text) for text in column) for column in texts]
    widths = [max(len(part) for text in column for part in text.split("\n")) for column in texts]
    while sum(widths) + GAP * (len(widths) - 1) > out.width:
        widest = max((i for i in range(len(widths)) if widths[i] > least[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _least_width(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Return the width at which every word of a table fits into its column, in characters."""
    widest = [max(_longest_word(text) for text in column) for column in zip(columns, *cells, strict=True)]
    return sum(widest) + GAP * (len(widest) - 1)


def _longest_word(text: str) -> int:
    """Return the length of the longest word, in characters."""
    return max(map(len, text.split()), default=0)


def as_known(known_by: str | None) -> str:
    """Return the end of the title of a table of what was known by a moment in ISO 8601; nothing for None."""
    return f", as known at {known_by}" if known_by else ""


def number(value: float | None, digits: int) -> str | None:
    """Return a number with so many decimals; None stays None."""
    return None if value is None else f"{value:.{digits}f}"
