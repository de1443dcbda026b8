"""Progress for people: a live display inside `progress_display`, the flow's own log otherwise."""

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

T = TypeVar("T")
_SHOWN: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def progress_display(console: Console) -> Iterator[None]:
    """Draw everything inside that calls `step` or `track` on this console."""
    columns = (  # on a narrow terminal the description is cut, never how far or how long
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=12),
        MofNCompleteColumn(table_column=Column(no_wrap=True, min_width=9)),
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
    )
    # a file shows the end only: drawing in between would fill it with frames
    with Progress(*columns, console=console, auto_refresh=console.is_terminal, refresh_per_second=4) as progress:
        token = _SHOWN.set(progress)
        try:
            yield
        finally:
            _SHOWN.reset(token)


@contextmanager
def step(name: str) -> Iterator[None]:
    """Show one step of unknown length."""
    progress = _SHOWN.get()
    if progress is None:
        yield
        return
    task = progress.add_task(name, total=1)
    yield
    progress.update(task, completed=1)


@contextmanager
def line_progress(name: str) -> Iterator[Callable[[str], None]]:
    """Show a bar for work that prints lines: yield a function for them, of which `[2/5] …` moves the bar."""
    progress = _SHOWN.get()
    task = progress.add_task(name, total=None) if progress is not None else None

    def show_line(line: str) -> None:
        """Show one line of the work, and move the bar if it holds a position."""
        if progress is None or task is None:
            report_progress(f"{name}: {line}")
        elif at := re.match(r"\[(\d+)/(\d+)\] (.*)", line):
            progress.update(task, completed=int(at[1]), total=int(at[2]), description=f"{name}: {at[3]}")
        elif line:
            progress.update(task, description=f"{name}: {line[:90]}")

    yield show_line
    if progress is not None and task is not None:
        total = progress.tasks[task].total or 1
        progress.update(task, completed=total, total=total, description=name)


def track(items: Iterable[T], name: str, total: int) -> Iterator[T]:
    """Yield the items, with a bar of `total`."""
    progress = _SHOWN.get()
    if progress is None:
        yield from items
        return
    task = progress.add_task(name, total=total)
    for item in items:
        yield item
        progress.advance(task)


def report_progress(line: str) -> None:
    """Print a line above the bars; without a display, log it in the flow run."""
    progress = _SHOWN.get()
    if progress is None:
        from prefect.logging import get_logger

        get_logger("bellwether").info(line)
    else:
        progress.console.print(line)
