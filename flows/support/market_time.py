"""The time of learning: how old champions and their data are, and when they are trained again.

A simulated or recorded market runs by its own clock (pipelines.clock): its time is the close of the newest bar
observed. Intervals, cool-downs and drift windows count in it. Leases, timeouts and logs stay on wall time.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from flows.support.installation import Installation, now
from pipelines.clock import mode_of
from pipelines.contracts import utc
from pipelines.data.timeframes import TIMEFRAMES, Grid
from pipelines.errors import StateError
from serving.state.feed_state import read_feed_state


def learning_now(installation: Installation) -> datetime:
    """Return the present time of learning.

    The newest close of the universe's stored bars for a market clock, before any bar was observed the last one of the
    data version; the time of day for a market that trades now, for a universe with one, and before the first ingest.
    """
    return learning_time_at(installation, None)


def learning_time_at(installation: Installation, wall: datetime | None) -> datetime:
    """Return the time of learning when it was `wall` by the time of day; None = now.

    By a market clock, of a moment before the first bar arrived: the last bar of the data version.
    """
    markets = ingested_markets(installation)
    if not is_market_clocked(markets.values()):
        return wall or now()
    closes = [installation.store.newest_close(symbol, wall) for symbol in markets]
    known = [close for close in closes if close is not None]
    return utc(max(known)) if known else max(_last_close(facts) for facts in markets.values())


def is_market_clocked(markets: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether the time of a universe is that of its market: every one of its markets runs by a market clock."""
    modes = {mode_of(facts) for facts in markets}
    return modes == {"market"}


def market_speed(installation: Installation) -> float:
    """Return how many seconds of learning pass in a second of wall time.

    1 for a market that trades now; else the speed of the feed, 0 where no feed ever ran here, NaN where what the feed
    wrote cannot be read.
    """
    if not is_market_clocked(ingested_markets(installation).values()):
        return 1.0
    feed = read_feed_state(installation.settings.serving_dir)
    return feed.speed if feed is not None else 0.0


def ingested_markets(installation: Installation) -> Mapping[str, Mapping[str, Any]]:
    """Return symbol → facts of the newest data version; nothing before the first ingest."""
    if not installation.data.is_dir():  # what reads a data version loads pandas, half a second
        return {}
    try:
        return installation.data_version().markets
    except StateError:
        return {}


def _last_close(facts: Mapping[str, Any]) -> datetime:
    """Return when the last bar of a market's data version closed."""
    opened = datetime.fromisoformat(facts["last"])
    if "grid" in facts:
        return utc(Grid.from_dict(facts["grid"]).next_close(opened.timestamp()))
    return opened + timedelta(seconds=TIMEFRAMES[facts["timeframe"]])
