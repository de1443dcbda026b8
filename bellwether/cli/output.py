"""Tables, JSON and progress on the terminal: results on standard output, everything else on standard error."""

import json
from collections.abc import Iterable, Sequence

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.support.processes import Progress, silent

GAP = 2  # columns of space between two cells
out = Console()
err = Console(stderr=True)


def emit(value: object) -> None:
    """Print JSON on standard output, and nothing else there."""
    typer.echo(json.dumps(value, indent=1, default=str))


def line(text: str) -> None:
    """Print one line as it is, however long: no markup, no colours, no line breaks within a path or a link."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def progress_of(as_json: bool) -> Progress:
    """Return what prints lines of progress; nothing is printed next to JSON."""
    return silent if as_json else line


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns; as one block a row where a word would not fit its column."""
    cells = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    if _least_width(columns, cells) > out.width:
        _print_blocks(title, columns, cells)
        return
    shown = Table(
        title=escape(title), title_justify="left", title_style="bold", header_style="bold", box=box.SIMPLE_HEAD,
        show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0),
    )  # fmt: skip
    for i, name in enumerate(columns):
        shown.add_column(name, min_width=max(_longest_word(text) for text in (name, *(row[i] for row in cells))))
    for row in cells:
        shown.add_row(*map(escape, row))
    out.print(shown, highlight=False)
    out.print()


def _least_width(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> int:
    """Return the width at which every word of a table fits into its column, in characters."""
    widest = [max(_longest_word(text) for text in column) for column in zip(columns, *cells, strict=True)]
    return sum(widest) + GAP * len(widest)


def _longest_word(text: str) -> int:
    """Return the length of the longest word, in characters."""
    return max(map(len, text.split()), default=0)


def _print_blocks(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Print each row as lines of column and value, a blank line after each; long words stay whole."""
    out.print(escape(title), style="bold", highlight=False)
    width = max(map(len, columns))
    for row in cells:
        for name, text in zip(columns, row, strict=True):
            out.print(f"  {name:<{width}}  {escape(text)}", highlight=False, soft_wrap=True)
        out.print()


def number(value: float | None, digits: int) -> str | None:
    """Return a number with so many decimals; None stays None."""
    return None if value is None else f"{value:.{digits}f}"
