"""`bellwether watch`: what a running installation does, until Ctrl-C."""

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from bellwether.cli.options import new_group
from bellwether.cli.output import out
from pipelines.settings import settings

if TYPE_CHECKING:
    from bellwether.operations.feed_watch import Sample

app = new_group()
PLAIN_EVERY_S = 10.0  # between two lines where no terminal can write one over the other


@app.command()
def watch(
    once: Annotated[bool, typer.Option("--once", help="Show one sample and end.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two samples.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each sample.")] = False,
) -> None:
    """Show market time, bars, decisions, trades, alarms and champions.

    One line, renewed until Ctrl-C. It reads the store and the feed's state: no service need answer.
    """
    from bellwether.operations.feed_watch import samples

    show = print_json if as_json else printer(out, every_line=once)
    try:
        for one in samples(settings(), every):
            show(one)
            if once:
                return
    except KeyboardInterrupt:
        if not as_json:
            out.print()


def print_json(one: "Sample") -> None:
    """Print a sample as one line of JSON."""
    typer.echo(json.dumps(one))


def printer(console: Console, every_line: bool = False) -> "Callable[[Sample], None]":
    """Return a function that shows samples: on a terminal one over the other, elsewhere one in PLAIN_EVERY_S.

    every_line  show each sample on a line of its own
    """
    from bellwether.operations.feed_watch import text_of

    shown = [-PLAIN_EVERY_S]

    def show(one: "Sample") -> None:
        """Show one sample."""
        text = text_of(one)
        if console.is_terminal and not every_line:
            width = console.width - 1
            console.print(f"\r{text[:width]:<{width}}", end="", markup=False, highlight=False, soft_wrap=True)
        elif every_line or time.monotonic() - shown[0] >= PLAIN_EVERY_S:
            shown[0] = time.monotonic()
            console.print(text, markup=False, highlight=False, soft_wrap=True)

    return show
