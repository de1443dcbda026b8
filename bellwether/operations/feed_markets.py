"""The feed of an installation: the markets of its newest data version, each from its newest stored bar on."""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from flows.support.installation import Installation
from flows.support.live_feed import known_now
from flows.support.market_access import PUSHED, MarketOffer, exchange_plan
from flows.universe import offers
from pipelines.clock import mode_of
from pipelines.contracts import Floats
from pipelines.costs import Costs, costs_of, venue_of
from pipelines.data.feeds import Feed, FeedMarket, FeedRequest, make_feed
from pipelines.data.sources import Records
from pipelines.data.timeframes import decision_timeframe
from pipelines.errors import BadValues


class OpenFeed(NamedTuple):
    """Hold a feed that is ready to stream, and what its closes are delivered with.

    costs  symbol → costs of its market
    wall   whether a market of it runs by the time of day
    """

    feed: Feed
    markets: Mapping[str, FeedMarket]
    costs: Mapping[str, Costs]
    wall: bool


def open_feed(installation: Installation, source: str | None = None) -> OpenFeed:
    """Return the feed of the newest data version's markets; `source` None: that of their own source.

    Raises  StateError before the first data version; BadValues for markets of several sources, UnknownName for a
            source that is no feed
    """
    version, params = installation.data_version(), installation.params
    offered = {offer.symbol: offer for offer in offers(installation) if offer.symbol in version.symbols}
    markets = {symbol: market_of(installation, symbol) for symbol in version.symbols if symbol in offered}
    name = source or source_of(offered)

    def load(symbol: str) -> tuple[Floats, Records]:
        """Return the whole recorded market of a symbol."""
        bars, known, _ = known_now(installation, offered[symbol])
        return bars, known

    request = FeedRequest(
        markets=markets,
        spec=params.simulator,
        states=installation.settings.simulator_states,
        load=load,
        plan=exchange_plan(params, installation.settings, None) if name == "exchange" else None,
        stored=lambda symbol, after: installation.store.bars(symbol, after=after),
        poll_s=params.feed.poll_s,
    )
    facts = version.markets
    return OpenFeed(
        make_feed(name, request),
        markets,
        {symbol: costs_of(params.costs, *venue_of(facts[symbol])) for symbol in markets},
        any(mode_of(each) == "wall" for each in facts.values()),
    )


def source_of(offered: Mapping[str, MarketOffer]) -> str:
    """Return the one source of these markets; one that nothing more is read of waits for bars that are pushed.

    Raises BadValues where there are several, or none is known.
    """
    found = sorted({offer.source if offer.gives_bars else PUSHED for offer in offered.values()})
    if len(found) != 1:
        raise BadValues(
            f"the universe has markets of {', '.join(found) or 'no known source'}, and a feed has one source. Push "
            "their bars to /observe and run `bellwether feed start --source push`."
        )
    return found[0]


def market_of(installation: Installation, symbol: str) -> FeedMarket:
    """Return one market of the newest data version, with its newest bar: of that version, or observed since."""
    base = installation.base_grid(symbol)
    grid = base.at(decision_timeframe(base.timeframe, installation.params.data.decision_timeframe))
    last = datetime.fromisoformat(str(installation.manifest(symbol)["last"])).timestamp()
    observed = installation.store.newest_bar(symbol)
    return FeedMarket(symbol, base, grid, last if observed is None else max(last, observed))
