"""Patterns planted in the simulated market; the truth lists them, so that detectors can be scored.

All end by themselves and give the price back to the value:
iceberg  an order that shows a slice and refills it; while it lasts it supports price up to `ice_hold` of a minute's sd
sweep    a stop run: makers pull their quotes near a recent extreme, one order eats through it, five seconds later the
         quotes are back; it reaches at most `sweep_beyond_max` of a minute's sd (a quarter of that of 15 minutes)
fake     a large order near the best prices that is withdrawn before the market can reach it (a spoof)
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.data.orderbook.limit_order_book import ASK, RING_MASK, cancel, is_empty, place, take
from pipelines.data.simulator.book_design import (
    FAKE,
    ICEBERG,
    MINUTE_US,
    ONE,
    PLANS,
    S11,
    SLOT_US,
    SWEEP,
    DesignRecord,
    MarketRecord,
    draw,
    uniform,
)


@kernel
def _plant(market: MarketRecord, start: int, end: int, kind: int, direction: int, tick: int, lots: int) -> None:
    """Append an ended pattern (int64, in the order of PLANTED_FIELDS) to the minute's list."""
    row = market.ended
    market.planted[row, 0], market.planted[row, 1], market.planted[row, 2] = start, end, kind
    market.planted[row, 3], market.planted[row, 4], market.planted[row, 5] = direction, tick, lots
    market.ended = row + 1


@kernel
def end_patterns(market: MarketRecord, knobs: DesignRecord, value: float, half: float, hold: float) -> None:
    """Cancel the iceberg and the fake whose time is over, or that the value (ticks, float64) has reached or left."""
    side = market.ice_side
    if side >= 0:
        worse, tick = 2 * side - 1, market.ice_tick
        beyond = (value - tick) * worse
        far = -beyond > knobs.band - 8.0
        if market.ice_shown == 0 or beyond > hold or far or market.now >= market.ice_until:
            if market.ice_shown > 0:
                cancel(market, side, tick, market.ice_shown)
            _plant(market, market.ice_from, market.now, ICEBERG, -worse, tick, market.ice_done)
            market.ice_side, market.ice_shown = -1, 0
    side = market.fake_side
    if side >= 0:
        worse, tick = 2 * side - 1, market.fake_tick
        near = (tick - value) * worse < half + 2.0
        if near or market.now >= market.fake_until or (tick - value) * worse > knobs.band - 8.0:
            if market.fake_left > 0:
                cancel(market, side, tick, market.fake_left)
            _plant(market, market.fake_from, market.now, FAKE, -worse, tick, market.fake_size)
            market.fake_side = -1


@kernel
def start_iceberg(market: MarketRecord, knobs: DesignRecord, sd_ticks: float, volume: float) -> None:
    """Place an iceberg, unless one rests already; sd_ticks and volume (lots of a level, both sides) float64."""
    side = np.int64(draw(market, PLANS) & ONE)
    behind = np.int64(uniform(market, PLANS) * knobs.ice_behind * sd_ticks)
    life = -math.log(1.0 - uniform(market, PLANS)) * knobs.ice_minutes
    hidden = (0.5 + uniform(market, PLANS)) * knobs.ice_hidden * volume
    if market.ice_side >= 0 or market.fake_side == side or is_empty(market, side):
        return
    market.ice_side, market.ice_tick = side, market.edge[side] + (2 * side - 1) * behind
    market.ice_slice = market.ice_shown = np.int64(knobs.ice_shown * market.level[side]) + 1
    market.ice_hidden, market.ice_done = np.int64(hidden), 0
    market.ice_from, market.ice_until = market.now, market.now + np.int64(life * MINUTE_US)
    place(market, side, market.ice_tick, market.ice_shown, 1)


@kernel
def start_fake(market: MarketRecord, knobs: DesignRecord) -> None:
    """Place a large order that is not meant to trade, unless one rests already."""
    bits = np.int64(draw(market, PLANS) >> S11)
    side, behind = bits & 1, 4 + ((bits >> 1) & 7)
    life = -math.log(1.0 - uniform(market, PLANS)) * knobs.fake_slots
    if market.fake_side >= 0 or market.ice_side == side or is_empty(market, side):
        return
    market.fake_side, market.fake_tick = side, market.edge[side] + (2 * side - 1) * behind
    market.fake_left = market.fake_size = np.int64(knobs.fake_size * market.level[side]) + 1
    market.fake_from, market.fake_until = market.now, market.now + np.int64((1.0 + life) * SLOT_US)
    place(market, side, market.fake_tick, market.fake_left, 1)


@kernel
def sweep(market: MarketRecord, knobs: DesignRecord, sd_ticks: float) -> None:
    """Run the stops of a recent extreme within reach: pull the quotes up to beyond it, then fill one order through it.

    sd_ticks  of the minute, float64. The order is made of the lots that takers of that side would still have traded in
              this minute, so the minute's volume and share do not change.
    """
    first = np.int64(draw(market, PLANS) & ONE)
    beyond = knobs.sweep_beyond_min + (knobs.sweep_beyond_max - knobs.sweep_beyond_min) * uniform(market, PLANS)
    for turn in range(2):
        side = (first + turn) % 2
        worse = 2 * side - 1
        if is_empty(market, side) or market.ice_side == side or market.fake_side == side:
            continue
        best = market.best[side]
        extreme = market.highest_of.max() if side == ASK else market.lowest_of.min()
        distance = (extreme - best) * worse
        target = extreme + worse * np.int64(max(beyond * sd_ticks, 2.0))
        if distance < 0 or distance > knobs.sweep_reach * sd_ticks or (market.far[side] - target) * worse < 8:
            continue
        coming, levels = np.int64(0), (target - best) * worse + 1
        for j in range(market.arrived, market.takers):
            if market.buys[j] == side:
                coming += market.lots[j]
        allowed = np.int64(knobs.sweep_share * coming) // levels
        if allowed < 1:
            continue
        size = np.int64(0)
        for k in range(levels):
            tick = best + worse * k
            there = market.depth[side, tick & RING_MASK]
            if there > allowed:
                cancel(market, side, tick, there - allowed)
            size += min(there, allowed)
        left = size
        for j in range(market.arrived, market.takers):
            if market.buys[j] == side:
                given = min(left, market.lots[j])
                market.lots[j] -= given
                left -= given
        take(market, side, size, 1)
        market.pulled = side
        _plant(market, market.now, market.now + SLOT_US, SWEEP, -worse, extreme, size)
        return
