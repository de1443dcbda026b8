"""The feed of this installation: feed start, feed stop, feed status."""

from typing import Annotated

import typer

from bellwether.cli.options import AsJson, new_group
from bellwether.cli.output import emit, line, paragraph
from flows.support import processes, service_table
from pipelines.settings import settings

app = new_group()
feed = new_group("Start, stop and show the feed of bars.")
app.add_typer(feed, name="feed")
Feed = Annotated[
    str | None, typer.Option("--source", help="simulator | files | push | exchange; the universe's own by default.")
]


@feed.command("start")
def feed_start(source: Feed = None, as_json: AsJson = False) -> None:
    """Order the feed; it goes on until `feed stop`.

    It goes on after the newest stored bar. `bellwether up` continues it after a restart of the machine.
    """
    from bellwether.operations.feed_live import order

    order(settings(), source)
    _show(as_json, note="ordered")


@feed.command("stop")
def feed_stop(as_json: AsJson = False) -> None:
    """Stop the feed; the services go on running."""
    from bellwether.operations.feed_wanted import FeedOrder, read_order, write_order

    write_order(settings(), FeedOrder(False, read_order(settings()).source, "a person stopped it: `feed stop`"))
    _show(as_json, note="stopped")


@feed.command("status")
def feed_status(as_json: AsJson = False) -> None:
    """Show what is ordered and what the feed does."""
    _show(as_json)


def _show(as_json: bool, note: str = "") -> None:
    """Print the order, the state of the process and the newest sample."""
    from bellwether.operations.feed_wanted import read_order
    from bellwether.operations.feed_watch import sample, text_of
    from flows.support.installation import open_installation

    ordered, installation = read_order(settings()), open_installation()
    found = sample(settings(), installation.store)
    process = processes.services(settings(), {"feed": service_table.SERVICES["feed"]})["feed"]["state"]
    if as_json:
        emit({"wanted": ordered.wanted, "source": ordered.source, "process": process, **found})
        return
    if note:
        line(f"the feed is {note}")
    if ordered.wanted and process == "down":
        line("the feed process is down: `bellwether up` starts it")
    paragraph(found["detail"], lead=found["state"])
    line(text_of(found))
