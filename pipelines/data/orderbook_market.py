"""The market inside each minute: makers, takers and a few planted patterns around a value that moves by itself.

The simulator draws the value (12 steps a minute), the minute's volume and its taker share; here they meet a book.
Takers arrive as a Hawkes process and divide the minute's volume among them, so a bar's volume and taker share do not
depend on the price. Makers quote around the value and answer every fill, so what a trade does to the price is gone
within seconds and, at the latest, when the next minute begins: no part of the book is an edge that was not planted.
The hidden pressure u leans on the depth of the two sides, on the orders that come and go at the best prices, and by a
fraction of a basis point on the quotes themselves, which is where the funding rate comes from.

Three patterns are planted and returned as truth. All end by themselves and give the price back to the value:
iceberg  an order that shows a slice and refills it; while it lasts it holds the price up to `ice_hold` of a minute's sd
sweep    a stop run: makers pull their quotes near a recent extreme, one order eats through it, five seconds later the
         quotes are back; it reaches at most `sweep_beyond_max` of a minute's sd (a quarter of that of 15 minutes)
fake     a large order beside the best prices that is withdrawn before the market can reach it (a spoof)
"""

from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, TAKER_BUY, TRADES, VOLUME
from pipelines.data.orderbook import (
    ASK,
    BID,
    BOOK_FIELDS,
    LOG_ROWS,
    NO_TICK,
    RING_MASK,
    clear,
    empty_book,
    is_empty,
    place,
    take,
    top_levels,
    withdraw,
)

STEPS = 12  # value steps in a minute: one every five seconds
SLOT_US = 60_000_000 // STEPS
MINUTE_US = 60_000_000
LOTS = 100_000  # lots in one unit of the base asset
SLACK = 64  # ticks that quotes may lie beyond the makers' band before they are withdrawn
FLICKERS = 4  # orders that come or go in each slot whatever happens: at least 48 book events a minute
PATTERNS = ("iceberg", "sweep", "fake")
ICEBERG, SWEEP, FAKE = np.arange(3)
PLANTED_WIDTH = 6  # start and end in epoch microseconds, kind, direction, tick, lots
PLANTED_A_MINUTE = 8  # that can end in one minute, at most
MAX_ORDERS = 4096  # takers in one minute
LOOKBACK = 240  # minutes whose extremes a sweep runs for

# one stream a quantity, started anew each minute: a longer draw of one moves none of the others
STREAMS = 5
ARRIVALS, SIDES, SIZES, MAKERS, PLANS = np.arange(STREAMS)  # typed: compiled code is not made anew for each value
_STEP = np.uint64(0x9E3779B97F4A7C15)
_MINUTE = np.uint64(0xD1342543DE82EF95)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
_1, _3 = np.uint64(1), np.uint64(3)
UNIT = 2.0**-53


@dataclass(frozen=True)
class BookDesign:
    """Constants of the market inside a minute. A level's size is in mean order sizes of the minute."""

    # takers: arrivals a minute at base volume, growing with the 2/3 power of the volume (Kyle and Obizhaeva 2016,
    # Econometrica 84(4): number and size of bets both grow with activity); sizes Pareto with tail exponent 2
    orders_a_minute: float = 30.0
    base_volume: float = 24.0  # base asset a minute at which that holds
    burst_branching: float = 0.5  # Hawkes: arrivals that one arrival causes
    burst_decay_s: float = 1.0  # and the mean seconds until they come
    same_side: float = 0.5  # chance that an arrival within burst_decay_s simply follows the side before it
    # makers
    band: float = 128.0  # ticks a side in which they quote
    depth: float = 8.0  # size of a level away from the best
    half_spread: float = 0.015  # in sd of a minute, and what whole ticks add
    resilience: float = 0.9  # chance that they fill up the best levels right after an order
    thickness: float = 0.3  # log sd of the depth of both sides
    thickness_half_life_min: float = 60.0
    # informed pressure u in the book
    depth_lean: float = 0.15  # log of bid over ask depth at u = 1
    own_lean: float = 0.30  # sd of the same that has nothing to do with u
    own_lean_half_life_min: float = 45.0
    flicker_lean: float = 0.15  # chance over a half that an order that moves does so with u, at u = 1
    shade_bps: float = 0.4  # how far the quotes lean at u = 1
    # patterns
    icebergs_a_day: float = 8.0
    ice_minutes: float = 20.0  # mean life, exponential
    ice_behind: float = 0.5  # how far behind the best price at most, in sd of a minute
    ice_shown: float = 0.08  # slice, in level sizes
    ice_hidden: float = 1.5  # hidden size, in level sizes of both sides: from half to one and a half of it
    ice_hold: float = 0.6  # how far beyond it the value may go before it is withdrawn, in sd of a minute
    sweeps_a_day: float = 48.0  # attempts; most find no extreme within reach
    sweep_reach: float = 1.0  # distance of the extreme, in sd of a minute, that is still run for
    sweep_beyond_min: float = 0.4
    sweep_beyond_max: float = 1.0
    sweep_share: float = 0.6  # of what takers of that side still bring in the minute
    fakes_a_day: float = 24.0
    fake_size: float = 10.0  # level sizes
    fake_slots: float = 3.0  # mean life in five-second slots


_I, _F = np.int64, np.float64
MARKET_FIELDS: list[Any] = [
    *BOOK_FIELDS,
    ("value", _F),  # log value at the end of the minute before
    ("excitement", _F),  # of the arrivals, a second
    ("thickness", _F),  # of the book, mean 0, variance 1
    ("lean", _F),  # of the book towards the bid, that has nothing to do with u; mean 0, variance 1
    ("level", _F, 2),  # lots that makers put at a level of each side
    ("edge", _I, 2),  # the best tick of each side at which makers want to quote
    ("pulled", _I),  # side whose makers stand back until they next look; -1: none
    ("flow_before", _I),  # flow at the newest snapshot
    ("lowest_of", _I, LOOKBACK), ("highest_of", _I, LOOKBACK),  # ticks of the minutes before
    ("ice_from", _I), ("ice_until", _I), ("fake_from", _I), ("fake_until", _I), ("fake_size", _I),
    ("planted", _I, (PLANTED_A_MINUTE, PLANTED_WIDTH)), ("ended", _I),  # of this minute
    # this minute's takers, in time order: seconds, side (1 buys, so takes the ask), lots
    ("time", _F, MAX_ORDERS), ("buys", _I, MAX_ORDERS), ("lots", _I, MAX_ORDERS), ("weight", _F, MAX_ORDERS),
    ("takers", _I), ("arrived", _I),
    ("random", np.uint64, STREAMS),
]  # fmt: skip


def fresh_market(log_value: float) -> Any:
    """(1,) record: an empty book before the first minute of a market whose value starts there."""
    market = empty_book(MARKET_FIELDS)
    market["value"] = log_value
    market["pulled"] = -1
    return market


def knobs_of(design: BookDesign) -> Any:
    """The constants as compiled code reads them: (1,) record."""
    return np.array([astuple(design)], np.dtype([(f.name, _F) for f in fields(BookDesign)]))


@kernel
def _draw(market, stream):  # type: ignore[no-untyped-def]
    """64 random bits (Steele, Lea and Flood 2014, OOPSLA: SplitMix64)."""
    z = market.random[stream] + _STEP
    market.random[stream] = z
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@kernel
def _uniform(market, stream):  # type: ignore[no-untyped-def]
    """In [0, 1)."""
    return np.int64(_draw(market, stream) >> _S11) * UNIT


@kernel
def _normal(market, stream):  # type: ignore[no-untyped-def]
    """About normal, within 3.5: four uniforms."""
    total = 0.0
    for _ in range(4):
        total += _uniform(market, stream)
    return (total - 2.0) * np.sqrt(3.0)


@kernel
def _arrive(market, knobs, expected):  # type: ignore[no-untyped-def]
    """Arrival times of the minute's takers: a Hawkes process with an exponential kernel, exactly, without thinning.

    Source: Dassios and Zhao 2013, Electronic Communications in Probability 18(62), algorithm 3.1.
    """
    base = expected * (1.0 - knobs.burst_branching) / 60.0
    decay, jump = 1.0 / knobs.burst_decay_s, knobs.burst_branching / knobs.burst_decay_s
    excitement, now, n = market.excitement, 0.0, 0
    while n < MAX_ORDERS:
        wait = -np.log(1.0 - _uniform(market, ARRIVALS)) / base
        if excitement > 1e-12:
            d = 1.0 + decay * np.log(1.0 - _uniform(market, ARRIVALS)) / excitement
            if d > 0.0:
                wait = min(wait, -np.log(d) / decay)
        if now + wait >= 60.0:
            break
        now += wait
        excitement = excitement * np.exp(-decay * wait) + jump
        market.time[n] = now
        n += 1
    market.excitement = excitement * np.exp(-decay * (60.0 - now))
    while n < 2:  # a bar has a trade, and a share needs both sides
        market.time[n] = 0.5 * ((market.time[n - 1] if n > 0 else 0.0) + 60.0)
        n += 1
    market.takers, market.arrived = n, 0


@kernel
def _divide(market, knobs, total, bought):  # type: ignore[no-untyped-def]
    """Give each taker a side and a size: buyers divide `bought` lots, sellers the rest of `total`."""
    n, share, buyers = market.takers, bought / total, 0
    for j in range(n):
        follows = j > 0 and market.time[j] - market.time[j - 1] < knobs.burst_decay_s
        if follows and _uniform(market, SIDES) < knobs.same_side:
            market.buys[j] = market.buys[j - 1]
        else:
            market.buys[j] = 1 if _uniform(market, SIDES) < share else 0
        buyers += market.buys[j]
    if buyers == 0 or buyers == n:
        market.buys[n // 2] = 1 - market.buys[n // 2]
    for side in range(2):
        whole = bought if side == 1 else total - bought
        weights, so_far, given, last = 0.0, 0.0, 0, 0
        for j in range(n):
            if market.buys[j] == side:
                market.weight[j] = 1.0 / np.sqrt(_uniform(market, SIZES) + 1e-4)
                weights += market.weight[j]
        for j in range(n):
            if market.buys[j] == side:
                so_far += market.weight[j]
                upto = np.int64(whole * (so_far / weights))
                market.lots[j] = upto - given
                given, last = upto, j
        market.lots[last] += whole - given


@kernel
def _fill(market, side, outer, inner):  # type: ignore[no-untyped-def]
    """Makers fill the empty ticks from `outer` to `inner`, the better price last, as a market steps forward.

    Little at the best price, all of a level's usual size six ticks behind it.
    """
    worse, usual, edge = 2 * side - 1, market.level[side], market.edge[side]
    tick = outer
    while (tick - inner) * worse >= 0:
        if market.size[side, tick & RING_MASK] == 0:
            bits = _draw(market, MAKERS)
            noise = 0.4 + 1.2 * (np.int64(bits >> _S11) * UNIT)
            lots = np.int64(usual * min(1.0, 0.4 + 0.1 * abs(tick - edge)) * noise)
            place(market, side, tick, max(lots, 1), 1 + np.int64(bits & _3))
        tick -= worse


@kernel
def _requote(market, knobs, value, half):  # type: ignore[no-untyped-def]
    """Makers follow the value (ticks): first they cancel on both sides, then they quote, so nothing ever crosses."""
    bid_edge, ask_edge = np.int64(np.floor(value - half)), np.int64(np.ceil(value + half))
    if market.ice_side == ASK:
        bid_edge = min(bid_edge, market.ice_tick - 1)
    elif market.ice_side == BID:
        ask_edge = max(ask_edge, market.ice_tick + 1)
    market.edge[BID], market.edge[ASK] = bid_edge, ask_edge
    market.pulled = -1
    band = np.int64(knobs.band)
    for side in range(2):
        worse, edge = 2 * side - 1, market.edge[side]
        if (edge - market.best[side]) * worse > 0:  # too good to leave there
            clear(market, side, edge)
        limit = edge + worse * (band - 1)
        if is_empty(market, side) or (market.far[side] - limit) * worse <= SLACK:
            continue
        tick = market.far[side]
        while not is_empty(market, side) and (tick - limit) * worse > 0:  # too far to matter
            lots = market.size[side, tick & RING_MASK]
            if lots > 0:
                withdraw(market, side, tick, lots)
            tick -= worse
        if not is_empty(market, side):
            market.far[side] = limit
    for side in range(2):
        worse, edge = 2 * side - 1, market.edge[side]
        limit = edge + worse * (band - 1)
        outer = limit
        if not is_empty(market, side):
            hole = max(market.hole[side] * worse, market.best[side] * worse)
            outer = min(hole, limit * worse) * worse
            _fill(market, side, limit, market.far[side] + worse)
        _fill(market, side, outer, edge)
        market.hole[side] = -NO_TICK * worse


@kernel
def _free(market, side, tick):  # type: ignore[no-untyped-def]
    """Lots of a level that belong to no planted pattern."""
    lots = market.size[side, tick & RING_MASK]
    if side == market.ice_side and tick == market.ice_tick:
        lots -= market.ice_shown
    if side == market.fake_side and tick == market.fake_tick:
        lots -= market.fake_left
    return lots


@kernel
def _flicker(market, lean):  # type: ignore[no-untyped-def]
    """An order comes or goes near the best prices, or one moves to the best from behind it, or back.

    `lean` is the chance over a half that a move favours buyers: a bid steps forward or an ask steps back. What comes or
    goes favours nobody: leaning there would only make one side thicker, and what is added is withdrawn one day.
    """
    bits = np.int64(_draw(market, MAKERS) >> _S11)
    comes, moves, behind = bits & 1 == 1, bits & 2 == 2, (bits >> 2) & 7
    favours = _uniform(market, MAKERS) < 0.5 + (lean if moves else 0.0)
    side = BID if favours == comes else ASK
    worse, usual = 2 * side - 1, market.level[side]
    lots = max(np.int64(usual * (0.1 + 0.2 * ((bits >> 5) & 1023) / 1024.0)), 1)
    best = market.edge[side] if is_empty(market, side) else market.best[side]
    tick = best + worse * behind
    if moves:
        tick += worse
        from_, to = (tick, best) if comes else (best, tick)
        moved = min(lots, _free(market, side, from_))
        if moved > 0:
            withdraw(market, side, from_, moved)
            place(market, side, to, moved, 1)
            return
    free = _free(market, side, tick)
    if (not comes or free > 3.0 * usual) and free > 0:
        withdraw(market, side, tick, min(lots, free))
    else:
        place(market, side, tick, lots, 1)


@kernel
def _arrivals_until(market, knobs, began, until):  # type: ignore[no-untyped-def]
    """The takers that arrive before second `until` of the minute; makers answer most of them at once."""
    j = market.arrived
    while j < market.takers and market.time[j] <= until:
        if market.lots[j] > 0:
            market.now = began + np.int64(market.time[j] * 1e6)
            side = market.buys[j]
            take(market, side, market.lots[j], np.int64(market.level[side]) + 1)
            if side != market.pulled and _uniform(market, MAKERS) < knobs.resilience:
                worse, edge = 2 * side - 1, market.edge[side]
                outer = edge + 8 * worse if is_empty(market, side) else market.best[side] - worse
                _fill(market, side, outer, edge)
        j += 1
    market.arrived = j


@kernel
def _plant(market, start, end, kind, direction, tick, lots):  # type: ignore[no-untyped-def]
    row = market.ended
    market.planted[row, 0], market.planted[row, 1], market.planted[row, 2] = start, end, kind
    market.planted[row, 3], market.planted[row, 4], market.planted[row, 5] = direction, tick, lots
    market.ended = row + 1


@kernel
def _end_patterns(market, knobs, value, half, hold):  # type: ignore[no-untyped-def]
    """Withdraw the iceberg and the fake whose time is over, or that the value has reached or left behind."""
    side = market.ice_side
    if side >= 0:
        worse, tick = 2 * side - 1, market.ice_tick
        beyond = (value - tick) * worse
        far = -beyond > knobs.band - 8.0
        if market.ice_shown == 0 or beyond > hold or far or market.now >= market.ice_until:
            if market.ice_shown > 0:
                withdraw(market, side, tick, market.ice_shown)
            _plant(market, market.ice_from, market.now, ICEBERG, -worse, tick, market.ice_done)
            market.ice_side, market.ice_shown = -1, 0
    side = market.fake_side
    if side >= 0:
        worse, tick = 2 * side - 1, market.fake_tick
        near = (tick - value) * worse < half + 2.0
        if near or market.now >= market.fake_until or (tick - value) * worse > knobs.band - 8.0:
            if market.fake_left > 0:
                withdraw(market, side, tick, market.fake_left)
            _plant(market, market.fake_from, market.now, FAKE, -worse, tick, market.fake_size)
            market.fake_side = -1


@kernel
def _start_iceberg(market, knobs, sd_ticks, volume):  # type: ignore[no-untyped-def]
    side = np.int64(_draw(market, PLANS) & _1)
    behind = np.int64(_uniform(market, PLANS) * knobs.ice_behind * sd_ticks)
    life = -np.log(1.0 - _uniform(market, PLANS)) * knobs.ice_minutes
    hidden = (0.5 + _uniform(market, PLANS)) * knobs.ice_hidden * volume
    if market.ice_side >= 0 or market.fake_side == side or is_empty(market, side):
        return
    market.ice_side, market.ice_tick = side, market.edge[side] + (2 * side - 1) * behind
    market.ice_slice = market.ice_shown = np.int64(knobs.ice_shown * market.level[side]) + 1
    market.ice_hidden, market.ice_done = np.int64(hidden), 0
    market.ice_from, market.ice_until = market.now, market.now + np.int64(life * MINUTE_US)
    place(market, side, market.ice_tick, market.ice_shown, 1)


@kernel
def _start_fake(market, knobs):  # type: ignore[no-untyped-def]
    bits = np.int64(_draw(market, PLANS) >> _S11)
    side, behind = bits & 1, 4 + ((bits >> 1) & 7)
    life = -np.log(1.0 - _uniform(market, PLANS)) * knobs.fake_slots
    if market.fake_side >= 0 or market.ice_side == side or is_empty(market, side):
        return
    market.fake_side, market.fake_tick = side, market.edge[side] + (2 * side - 1) * behind
    market.fake_left = market.fake_size = np.int64(knobs.fake_size * market.level[side]) + 1
    market.fake_from, market.fake_until = market.now, market.now + np.int64((1.0 + life) * SLOT_US)
    place(market, side, market.fake_tick, market.fake_left, 1)


@kernel
def _sweep(market, knobs, sd_ticks):  # type: ignore[no-untyped-def]
    """A stop run, if a recent extreme is near: pull the quotes up to beyond it, then one order takes what is left.

    The order is made of what the takers of that side would still have brought in this minute, so the minute's volume
    and share stay what they are.
    """
    first = np.int64(_draw(market, PLANS) & _1)
    beyond = knobs.sweep_beyond_min + (knobs.sweep_beyond_max - knobs.sweep_beyond_min) * _uniform(market, PLANS)
    for turn in range(2):
        side = (first + turn) % 2
        worse = 2 * side - 1
        if is_empty(market, side) or market.ice_side == side or market.fake_side == side:
            continue
        best = market.best[side]
        extreme = market.highest_of.max() if side == ASK else market.lowest_of.min()
        distance = (extreme - best) * worse
        target = extreme + worse * max(np.int64(beyond * sd_ticks), 2)
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
            there = market.size[side, tick & RING_MASK]
            if there > allowed:
                withdraw(market, side, tick, there - allowed)
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


@kernel
def _minute(market, knobs, began, minute, path, sd_ticks, shade, lean):  # type: ignore[no-untyped-def]
    """The events of one minute in time order. Returns the flow as it stood ten seconds before its end.

    path (STEPS,) log values; shade: ticks a unit of value, with the quotes' own lean; lean: see _flicker
    """
    hold = min(knobs.ice_hold * sd_ticks, 0.5 * knobs.band)
    ice_slot = np.int64(_uniform(market, PLANS) / knobs.icebergs_a_day * (1440.0 * STEPS))
    sweep_slot = 1 + np.int64(_uniform(market, PLANS) / knobs.sweeps_a_day * (1440.0 * (STEPS - 4)))
    fake_slot = np.int64(_uniform(market, PLANS) / knobs.fakes_a_day * (1440.0 * STEPS))
    fast = market.flow
    for action in range(-1, STEPS * (FLICKERS + 1)):  # -1: what the minute before left behind is mended
        k, j = action // (FLICKERS + 1), action % (FLICKERS + 1)
        looks = action < 0 or j == FLICKERS // 2
        when = 0.0
        if action >= 0:
            cell = j - 1 if j > FLICKERS // 2 else j
            when = 5.0 * (k + (0.5 if looks else (cell + _uniform(market, MAKERS)) / FLICKERS))
            if k == STEPS - 2 and j == 0:
                _arrivals_until(market, knobs, began, 5.0 * k)
                fast = market.flow
            _arrivals_until(market, knobs, began, when)
        market.now = began + np.int64(when * 1e6)
        if not looks:
            _flicker(market, lean)
            continue
        value = np.exp(path[k] if action >= 0 else market.value) * shade
        half = 0.05 + knobs.half_spread * sd_ticks * (0.6 + 0.8 * _uniform(market, MAKERS))
        _end_patterns(market, knobs, value, half, hold)
        _requote(market, knobs, value, half)
        if action < 0:
            continue
        if k == ice_slot:
            _start_iceberg(market, knobs, sd_ticks, market.level[0] + market.level[1])
        if k == fake_slot:
            _start_fake(market, knobs)
        if k == sweep_slot and minute >= LOOKBACK:
            _sweep(market, knobs, sd_ticks)
    _arrivals_until(market, knobs, began, 60.0)
    return fast


@kernel
def trade_minutes(  # type: ignore[no-untyped-def]
    first, opened, every, keys, path, latent, all_knobs, cents, usual_sd, markets, log,
    bars, events, premium, levels, flows, planted, counts,
):  # fmt: skip
    """Trade one block of n minutes; markets[0] carries over to the next block.

    first, opened       number of minutes before row 0; its open in epoch microseconds
    every               minutes between snapshots of the book, counted from 1970
    path (n, STEPS)     log value after each step; latent (n, 4): volume, taker share, sd of a minute, u
    cents               of quote currency in a tick; usual_sd: of a minute, at which a level has the usual depth
    log (rows, LOG_WIDTH)    gets what markets[0].keep asks for, as far as there are rows
    bars (n, 8)         gets everything but the open time; events (n,) book events; premium (n,) mid over value less 1
    levels, flows (m, 2)     snapshots: ticks, lots and orders; lots since the one before, and of the last ten seconds
    planted (k, PLANTED_WIDTH)
    counts              rows: snapshots, planted, log (also beyond its end), and those lost in an overfull minute
    """
    market, knobs = markets[0], all_knobs[0]
    keep_thick = 0.5 ** (1.0 / knobs.thickness_half_life_min)
    keep_lean = 0.5 ** (1.0 / knobs.own_lean_half_life_min)
    for i in range(path.shape[0]):
        minute, began = first + i, opened + i * MINUTE_US
        for k in range(STREAMS):
            market.random[k] = keys[k] + np.uint64(minute) * _MINUTE
        volume, share, sd, u = latent[i, 0], latent[i, 1], latent[i, 2], latent[i, 3]
        total = max(np.int64(np.rint(volume * LOTS)), 2)
        bought = min(max(np.int64(np.rint(total * share)), 1), total - 1)
        expected = knobs.orders_a_minute * (volume / knobs.base_volume) ** (2.0 / 3.0)
        _arrive(market, knobs, expected)
        _divide(market, knobs, total, bought)

        market.thickness = keep_thick * market.thickness + np.sqrt(1.0 - keep_thick**2) * _normal(market, MAKERS)
        market.lean = keep_lean * market.lean + np.sqrt(1.0 - keep_lean**2) * _normal(market, MAKERS)
        usual = knobs.depth * total / expected * np.sqrt(usual_sd / sd) * np.exp(knobs.thickness * market.thickness)
        tilt = np.exp(0.5 * (knobs.depth_lean * u + knobs.own_lean * market.lean))
        market.level[BID], market.level[ASK] = usual * tilt, usual / tilt
        shade = (1.0 + 1e-4 * knobs.shade_bps * u) * 100.0 / cents
        sd_ticks = sd * np.exp(market.value) * shade
        market.traded = market.events = market.ended = market.logged = 0
        if minute == 0:  # the opening quotes are no flow
            _requote(market, knobs, np.exp(market.value) * shade, 0.05 + knobs.half_spread * sd_ticks)
            market.flow = market.events = 0
        lean = min(max(knobs.flicker_lean * u, -0.4), 0.4)
        fast = _minute(market, knobs, began, minute, path[i], sd_ticks, shade, lean)

        market.value = path[i, STEPS - 1]
        bars[i, OPEN], bars[i, HIGH] = market.first * cents / 100.0, market.highest * cents / 100.0
        bars[i, LOW], bars[i, CLOSE] = market.lowest * cents / 100.0, market.last * cents / 100.0
        bars[i, VOLUME], bars[i, TAKER_BUY], bars[i, TRADES] = total / LOTS, bought / LOTS, market.traded
        events[i] = market.events
        market.lowest_of[minute % LOOKBACK], market.highest_of[minute % LOOKBACK] = market.lowest, market.highest
        premium[i] = np.nan
        if not is_empty(market, BID) and not is_empty(market, ASK):
            mid = 0.5 * (market.best[BID] + market.best[ASK])
            premium[i] = mid * cents / 100.0 / np.exp(market.value) - 1.0
        if (began // MINUTE_US + 1) % every == 0:
            row = counts[0]
            top_levels(market, levels[row])
            flows[row, 0], flows[row, 1] = market.flow - market.flow_before, market.flow - fast
            market.flow_before = market.flow
            counts[0] += 1
        for k in range(market.ended):
            planted[counts[1]] = market.planted[k]
            counts[1] += 1
        for k in range(min(market.logged, LOG_ROWS)):
            if counts[2] < log.shape[0]:
                log[counts[2]] = market.log[k]
            counts[2] += 1
        counts[3] += max(market.logged - LOG_ROWS, 0)
