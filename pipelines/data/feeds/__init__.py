"""What brings bars after the history: one Protocol, one dict. A feed delivers closes in time order, and fills gaps.

simulator  the simulated market goes on after its newest stored bar
files      what recorded files hold after the history
push       bars arrive at `/observe` from anywhere; the feed sees them in the store
exchange   closed bars of exchanges, requested when they are due
"""

from collections.abc import Callable

from pipelines.data.feeds.exchange import exchange_feed
from pipelines.data.feeds.files import file_feed
from pipelines.data.feeds.protocol import Close, Feed, FeedMarket, FeedRequest, Sent
from pipelines.data.feeds.push import push_feed
from pipelines.data.feeds.simulator import simulator_feed
from pipelines.errors import UnknownName

FEEDS: dict[str, Callable[[FeedRequest], Feed]] = {
    "simulator": simulator_feed,
    "files": file_feed,
    "push": push_feed,
    "exchange": exchange_feed,
}

__all__ = ["FEEDS", "Close", "Feed", "FeedMarket", "FeedRequest", "Sent", "make_feed"]


def make_feed(name: str, request: FeedRequest) -> Feed:
    """Return the feed named `name`. Raises UnknownName with the known names; BadValues where the request lacks what
    this feed needs."""
    if name not in FEEDS:
        raise UnknownName(f"no feed {name!r}; known: {', '.join(FEEDS)}. Use one of these.")
    return FEEDS[name](request)
