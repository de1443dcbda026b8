"""The markets of one spec: the leader, which is `simulator.symbol`, and those that follow it.

A follower has the leader's regimes, minute for minute, and of its value noise the part `beta`, `lag_minutes` later; the
rest is its own: noise (so much that its variance is that of the leader), pressure, planted edge, volume, order book and
planted patterns. It trades as much quote currency a minute as the leader. So returns correlate with the leader's by
beta, and those of two followers by the product of their betas, once each is moved back by its lag.

At `edge: 0` each market is a martingale of its own past, and of the past of markets that do not precede it. With a lag
the leader's newest `lag_minutes` do predict the follower: of a 15-minute return by a correlation of
beta * sqrt(lag / 15). Nothing reads one market to forecast another today; a lag is there for what will: keep it short.

No market depends on which others are made, nor on their order: a follower is drawn from the seed and its own name.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from pipelines.data.simulator.latent import Design
from pipelines.data.symbols import parse_symbol
from pipelines.errors import BadValues, UnknownName
from pipelines.market_params import FollowerParams, SimulatorParams

STREAMS_OF_NOISE = 7  # of a market: value, chance, origin, pressure, share, volume, book


@dataclass(frozen=True, slots=True)
class OwnMarket:
    """Hold what one market is made from.

    symbol    canonical
    spec      its own: symbol, start_price and edge are those of this market, and it has no followers
    design    its own: base volumes are those of this market
    follower  None for the leader
    seeds     of its own noise, in the order of STREAMS_OF_NOISE
    """

    symbol: str
    spec: SimulatorParams
    design: Design
    follower: FollowerParams | None
    seeds: list[np.random.SeedSequence]


def symbols_of(spec: SimulatorParams) -> tuple[str, ...]:
    """Return the canonical symbols of a spec, the leader first. Raises BadValues if one stands there twice."""
    names = tuple(parse_symbol(each) for each in (spec.symbol, *(f.symbol for f in spec.followers)))
    for name in names:
        if names.count(name) > 1:
            raise BadValues(
                f"simulator: {name} is named {names.count(name)} times as symbol and followers. Keep one of them, or "
                "give the others names of their own."
            )
    return names


def own_market(spec: SimulatorParams, design: Design, symbol: str | None = None) -> OwnMarket:
    """Return what the market of `symbol` is made from; None = the leader. Raises UnknownName, BadValues."""
    names = symbols_of(spec)
    wanted = names[0] if symbol is None else parse_symbol(symbol)
    if wanted not in names:
        raise UnknownName(
            f"the simulator has no {wanted}; it makes {', '.join(names)}. Use one of these, or add it to "
            "simulator.followers."
        )
    if wanted == names[0]:
        alone = spec.model_copy(update={"followers": ()})
        return OwnMarket(wanted, alone, design, None, np.random.SeedSequence(spec.seed).spawn(STREAMS_OF_NOISE))
    follower = spec.followers[names.index(wanted) - 1]
    own = {
        "symbol": wanted,
        "start_price": follower.start_price,
        "edge": spec.edge * follower.edge,
        "followers": (),
    }
    units = spec.start_price / follower.start_price  # base asset that is worth one unit of the leader's
    book = replace(design.book, base_volume=design.book.base_volume * units)
    key = np.frombuffer(hashlib.sha256(wanted.encode()).digest()[:16], "<u4").tolist()
    seeds = np.random.SeedSequence(spec.seed, spawn_key=key).spawn(STREAMS_OF_NOISE)
    return OwnMarket(
        wanted,
        spec.model_copy(update=own),
        replace(design, base_volume=design.base_volume * units, book=book),
        follower,
        seeds,
    )
