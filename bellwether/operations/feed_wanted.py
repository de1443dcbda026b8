"""Whether a feed is wanted in a home, and which: `<home>/run/feed.json`, written by a person's commands."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.support.processes import FEED_ORDER, write_atomic
from pipelines.settings import Settings


@dataclass(frozen=True, slots=True)
class FeedOrder:
    """Hold what a person ordered.

    wanted  whether bars shall arrive
    source  the feed, one of pipelines.data.feeds.FEEDS; None = the one of the universe's own source
    why     why it is not wanted, where it ended by itself
    """

    wanted: bool = False
    source: str | None = None
    why: str | None = None


def order_file(settings: Settings) -> Path:
    """Return the path of the order; `processes.leftovers` keeps it, so that the next `up` goes on."""
    return settings.home / "run" / FEED_ORDER


def read_order(settings: Settings) -> FeedOrder:
    """Return what was ordered; nothing is wanted where the file is absent or damaged."""
    try:
        found = json.loads(order_file(settings).read_text())
        return FeedOrder(found["wanted"] is True, found.get("source"), found.get("why"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return FeedOrder()


def write_order(settings: Settings, order: FeedOrder) -> None:
    """Order a feed, or none; the feed process obeys within half a second."""
    order_file(settings).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(order_file(settings), json.dumps(asdict(order)))
