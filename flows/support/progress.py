"""Progress for people: a live display inside `progress_display`, the flow's own log otherwise.

Inside `run_progress` it is a progress artifact of the flow run as well, which moves on its page in Prefect.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar
from uuid import UUID

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

T = TypeVar("T")
_SHOWN: ContextVar[Progress | None] = ContextVar("progress", default=None)
_RUN: ContextVar["RunProgress | None"] = ContextVar("run progress", default=None)


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


class RunProgress:
    """Show how far a flow run is as a progress artifact; its parts count alike.

    name   of the flow; inside the run of another flow with a part of this name it moves that one too
    parts  what the run does, by name
    """

    def __init__(self, name: str, parts: Sequence[str], outer: "RunProgress | None") -> None:
        self.name, self.outer = name, outer
        self.done = dict.fromkeys(parts, 0.0)
        self.percent = 0
        self.artifact: UUID | None = None
        self._lock = threading.Lock()  # families are fitted side by side
        self._show("starts")

    def set(self, part: str, fraction: float) -> None:
        """Set how much of a part is done, from 0 to 1; shown whenever the whole is a percent further."""
        if part not in self.done:
            return
        with self._lock:
            self.done[part] = max(self.done[part], fraction)  # a turn ingests twice: nothing goes backwards
            share = sum(self.done.values()) / len(self.done)
            if int(100 * share) == self.percent:
                return
            self.percent = int(100 * share)
            self._show(part)
        if self.outer is not None:
            self.outer.set(self.name, share)

    def finish(self) -> None:
        """Set all parts done: what was left out is over too."""
        self.done = dict.fromkeys(self.done, 1.0)
        self.set(next(iter(self.done)), 1.0)

    def _show(self, part: str) -> None:
        """Write the percentage to Prefect. Where that fails the run goes on: nothing rests on the artifact."""
        import httpx
        from prefect.artifacts import create_progress_artifact, update_progress_artifact
        from prefect.exceptions import PrefectException

        about = f"{self.name}: {part}"
        try:
            if self.artifact is None:
                self.artifact = create_progress_artifact(self.percent, key=f"progress-{self.name}", description=about)
            else:
                update_progress_artifact(self.artifact, self.percent, description=about)
        except (httpx.HTTPError, PrefectException) as error:
            report_progress(f"progress of {self.percent} % is not shown in Prefect: {error}")


@contextmanager
def run_progress(name: str, parts: Sequence[str]) -> Iterator[None]:
    """Show the progress of everything inside as an artifact of the flow run; outside of a flow run as before.

    name, parts  as of RunProgress; the parts move by `part_done`, and by the `part` of `step` and `line_progress`
    """
    from prefect.runtime import flow_run

    if not flow_run.id:
        yield
        return
    run = RunProgress(name, parts, _RUN.get())
    token = _RUN.set(run)
    try:
        yield
        run.finish()
    finally:
        _RUN.reset(token)


def part_done(part: str, fraction: float = 1.0) -> None:
    """Say how much of a part of the flow run is done."""
    run = _RUN.get()
    if run is not None:
        run.set(part, fraction)


@contextmanager
def step(name: str, part: str = "") -> Iterator[None]:
    """Show one step of unknown length. part: of `run_progress` that is done with it"""
    progress = _SHOWN.get()
    task = progress.add_task(name, total=1) if progress is not None else None
    yield
    if progress is not None and task is not None:
        progress.update(task, completed=1)
    part_done(part)


@contextmanager
def line_progress(name: str, part: str = "") -> Iterator[Callable[[str], None]]:
    """Show a bar for work that prints lines: yield a function for them, of which `[2/5] …` moves the bar.

    part  of `run_progress` that it moves too
    """
    progress = _SHOWN.get()
    task = progress.add_task(name, total=None) if progress is not None else None

    def show_line(line: str) -> None:
        """Show one line of the work, and move the bar if it holds a position."""
        at = re.match(r"\[(\d+)/(\d+)\] (.*)", line)
        if at:
            part_done(part, int(at[1]) / int(at[2]))
        if progress is None or task is None:
            report_progress(f"{name}: {line}")
        elif at:
            progress.update(task, completed=int(at[1]), total=int(at[2]), description=f"{name}: {at[3]}")
        elif line:
            progress.update(task, description=f"{name}: {line[:90]}")

    yield show_line
    if progress is not None and task is not None:
        total = progress.tasks[task].total or 1
        progress.update(task, completed=total, total=total, description=name)
    part_done(part)


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
