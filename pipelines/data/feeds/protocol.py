"""The Protocol of a feed, what it delivers, and how bars become closes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import numpy as np

from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Books, ContextFeed, Floats
from pipelines.data.alignment import known_between, merge_records
from pipelines.data.sources import Records
from pipelines.data.timeframes import Grid
from pipelines.errors import BadValues
from pipelines.market_params import SimulatorParams

if TYPE_CHECKING:  # no feed but that of exchanges needs its readers
    from pipelines.data.readers.exchange import Backfill


class Sent(NamedTuple):
    """Hold what one symbol sends at a close: base bars (n, 9) in time order, and the records known by then."""

    bars: Floats
    books: Books | None = None
    feed: ContextFeed | None = None


T = TypeVar("T")
NOTHING = Sent(np.empty((0, BAR_WIDTH)))
Close = tuple[float, dict[str, Sent]]  # close time in epoch seconds, and what each symbol that closed then sends


@dataclass(frozen=True, slots=True)
class FeedMarket:
    """Describe one market of a feed.

    base, grid  where its base bars and its decision bars open and close
    newest      open time of the newest base bar that is stored, epoch seconds: the feed goes on after it
    """

    symbol: str
    base: Grid
    grid: Grid
    newest: float

    @property
    def closed(self) -> float:
        """Return the close of the newest base bar that is stored, epoch seconds."""
        return self.base.next_close(self.newest)


class Feed(Protocol):
    """Deliver the closes of some markets after their newest stored bars.

    name    its name in FEEDS
    paced   market time is the feed's to set: it goes at `feed.speed`, and stands while the feed waits
    sends   the bars of a close are to be sent; False where they arrive from elsewhere
    poll_s  seconds of wall time until it is worth asking again after a None
    fault   why the next close is not there, where that is not for want of time; None = nothing is wrong
    """

    name: str
    paced: bool
    sends: bool
    poll_s: float
    fault: str | None

    def backfill(self, symbol: str, since: float, until: float) -> Sent:
        """Return bars of `symbol` that open at `since` or later and close by `until`, and the records known in
        between; epoch seconds. Raises VenueDown where nobody gives them now."""
        ...

    def stream(self, symbols: Sequence[str]) -> Iterator[Close | None]:
        """Yield closes of these symbols in time order, each once; None where the next one is not there yet.

        It ends where no bar will ever follow.
        """
        ...


@dataclass(frozen=True, slots=True)
class FeedRequest:
    """Hold what feeds are made of; each takes what it needs.

    markets   symbol → its market
    spec      of the simulator; states: folder where states of the simulated market are saved, None = nowhere
    load      symbol → its whole recorded market: bars (n, 9) in time order, and records
    plan      how exchanges are asked; its `since` is not used
    stored    (symbol, after) → stored bars (n, 9) that open after `after`, in time order
    poll_s    seconds between two requests to an exchange
    now       wall time, epoch seconds
    """

    markets: Mapping[str, FeedMarket]
    spec: SimulatorParams | None = None
    states: Path | None = None
    load: Callable[[str], tuple[Floats, Records]] | None = None
    plan: "Backfill | None" = None
    stored: Callable[[str, float], Floats] | None = None
    poll_s: float = 5.0
    now: Callable[[], float] | None = None


def needed(value: T | None, what: str, feed: str) -> T:
    """Return the value. Raises BadValues where it is None: this feed cannot be made without it."""
    if value is None:
        raise BadValues(f"the feed {feed!r} needs {what}, and none was given. Pass it in the request.")
    return value


def decision_bars(bars: Floats, grid: Grid) -> list[tuple[float, Floats]]:
    """Return (close in epoch seconds, its base bars) of each decision bar that holds bars (n, 9), in time order."""
    opens = grid.holding(bars[:, OPEN_TIME])
    inside = np.isfinite(opens)
    bars, opens = bars[inside], opens[inside]
    if len(bars) == 0:
        return []
    edges = np.flatnonzero(np.diff(opens)) + 1
    parts = zip(opens[np.r_[0, edges]], np.split(bars, edges), strict=True)
    return [(grid.next_close(opened), part) for opened, part in parts]


def merged(parts: Mapping[str, Sequence[tuple[float, Floats]]]) -> list[tuple[float, dict[str, Floats]]]:
    """Return each close of any symbol with the bars of the symbols that close then, in time order.

    parts  symbol → its decision bars, as of `decision_bars`
    """
    closes: dict[float, dict[str, Floats]] = {}
    for symbol, groups in parts.items():
        for close, bars in groups:
            closes.setdefault(close, {})[symbol] = bars
    return sorted(closes.items())


def with_records(bars: Floats, known: Records, after: float, until: float) -> Sent:
    """Return bars with the records that became known in (after, until], epoch seconds."""
    return Sent(bars, *known_between(*known, after, until))


def joined(first: Sent, second: Sent) -> Sent:
    """Return the bars and records of both; `second` follows."""
    return Sent(
        np.concatenate([first.bars.reshape(-1, BAR_WIDTH), second.bars.reshape(-1, BAR_WIDTH)]),
        merge_records(first.books, second.books),
        merge_records(first.feed, second.feed),
    )
