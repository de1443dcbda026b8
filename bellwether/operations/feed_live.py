"""The live part of `bellwether run`: a feed is ordered, and shown until Ctrl-C."""

from collections.abc import Callable

from bellwether.operations.feed_wanted import FeedOrder, read_order, write_order
from bellwether.operations.feed_watch import Sample, samples
from pipelines.settings import Settings


def live(settings: Settings, show: Callable[[Sample], None], source: str | None = None, every_s: float = 1.0) -> None:
    """Order a feed and show what happens, until Ctrl-C; `restore` puts back what was ordered before.

    source   one of pipelines.data.feeds.FEEDS; None = that of the universe's own source
    every_s  seconds between two samples
    Raises   UnknownName for another source, before anything is ordered; KeyboardInterrupt at the end
    """
    order(settings, source)
    for one in samples(settings, every_s):
        show(one)


def order(settings: Settings, source: str | None) -> None:
    """Order a feed. Raises UnknownName for a source that is none."""
    if source is not None:
        check_source(source)
    write_order(settings, FeedOrder(True, source))


def check_source(source: str) -> None:
    """Raise UnknownName, with the known names, for a source that is no feed."""
    from pipelines.data.feeds import FEEDS
    from pipelines.errors import UnknownName

    if source not in FEEDS:
        raise UnknownName(f"no feed {source!r}; known: {', '.join(FEEDS)}. Use one of these.")


def pause(settings: Settings) -> FeedOrder:
    """Stop the feed, if one is ordered, and return what was ordered: a turn sends its bars itself."""
    before = read_order(settings)
    if before.wanted:
        write_order(settings, FeedOrder(False, before.source, "a turn runs: `bellwether run`"))
    return before


def restore(settings: Settings, before: FeedOrder) -> None:
    """Order again what `pause` returned."""
    if read_order(settings) != before:
        write_order(settings, before)
