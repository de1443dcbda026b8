"""The market inside each minute: makers and takers around a value that moves by itself.

The simulator draws the value (12 steps a minute), the minute's volume and its taker share; this module trades them in a
book.
Takers arrive as a Hawkes process and divide the minute's volume among them, so a bar's volume and taker share do not
depend on the price. Makers quote around the value and answer every fill, so what a trade does to the price is gone
within seconds and, at the latest, when the next minute begins: no part of the book is an edge that was not planted.
The hidden pressure u leans on the depth of the two sides, on the orders that move to and from the best prices, and by
a fraction of a basis point on the quotes themselves, which is where the funding rate comes from.

A minute's taker share depends on the move of the whole minute: inside it, early trades predict late ones. A decision at
the close of a bar cannot use that; do not score forecasts shorter than a minute on this market.
"""

import math

import numpy as np
import numpy.typing as npt

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HALF_SPREAD, HIGH, LOW, OPEN, TAKER_BUY, TRADES, VOLUME, Floats, Ints
from pipelines.data.orderbook.limit_order_book import (
    ASK,
    BID,
    LOG_ROWS,
    NO_TICK,
    RING_MASK,
    TRADE,
    cancel,
    clear,
    is_empty,
    place,
    take,
    top_levels,
)
from pipelines.data.orderbook.tape import TapeRecords, apply_events, load_book, skip_samples_until, write_row
from pipelines.data.simulator.book_design import (
    ARRIVALS,
    FLICKERS,
    LOOKBACK,
    LOTS,
    MAKERS,
    MAX_ORDERS,
    MINUTE,
    MINUTE_US,
    PLANS,
    S11,
    SIDES,
    SIZES,
    SLACK,
    STEPS,
    STREAMS,
    THREE,
    UNIT,
    DesignRecord,
    DesignRecords,
    MarketRecord,
    MarketRecords,
    draw,
    normal,
    uniform,
)
from pipelines.data.simulator.book_patterns import end_patterns, start_fake, start_iceberg, sweep


@kernel
def _arrive(market: MarketRecord, knobs: DesignRecord, expected: float) -> None:
    """Draw the arrival times of the minute's takers: a Hawkes process with an exponential kernel, exactly, unthinned.

    expected  mean number of arrivals (float64); fills market.time, takers, arrived, excitement
    Source    Dassios and Zhao 2013, Electronic Communications in Probability 18(62), algorithm 3.1.
    """
    base = expected * (1.0 - knobs.burst_branching) / 60.0
    decay, jump = 1.0 / knobs.burst_decay_s, knobs.burst_branching / knobs.burst_decay_s
    excitement, now, n = market.excitement, 0.0, 0
    while n < MAX_ORDERS:
        wait = -math.log(1.0 - uniform(market, ARRIVALS)) / base
        if excitement > 1e-12:
            d = 1.0 + decay * math.log(1.0 - uniform(market, ARRIVALS)) / excitement
            if d > 0.0:
                wait = min(wait, -math.log(d) / decay)
        if now + wait >= 60.0:
            break
        now += wait
        excitement = excitement * math.exp(-decay * wait) + jump
        market.time[n] = now
        n += 1
    market.excitement = excitement * math.exp(-decay * (60.0 - now))
    while n < 2:  # a bar has a trade, and a share needs both sides
        market.time[n] = 0.5 * ((market.time[n - 1] if n > 0 else 0.0) + 60.0)
        n += 1
    market.takers, market.arrived = n, 0


@kernel
def _divide(market: MarketRecord, knobs: DesignRecord, total: int, bought: int) -> None:
    """Give each taker a side and a size: buyers divide `bought` lots, sellers the rest of `total` (int64)."""
    n, share, buyers = market.takers, bought / total, 0
    for j in range(n):
        follows = j > 0 and market.time[j] - market.time[j - 1] < knobs.burst_decay_s
        if follows and uniform(market, SIDES) < knobs.same_side:
            market.buys[j] = market.buys[j - 1]
        else:
            market.buys[j] = 1 if uniform(market, SIDES) < share else 0
        buyers += market.buys[j]
    if buyers == 0 or buyers == n:
        market.buys[n // 2] = 1 - market.buys[n // 2]
    for side in range(2):
        whole = bought if side == 1 else total - bought
        weights, so_far, given, last = 0.0, 0.0, np.int64(0), 0
        for j in range(n):
            if market.buys[j] == side:
                market.weight[j] = 1.0 / math.sqrt(uniform(market, SIZES) + 1e-4)
                weights += market.weight[j]
        for j in range(n):
            if market.buys[j] == side:
                so_far += market.weight[j]
                upto = np.int64(whole * (so_far / weights))
                market.lots[j] = upto - given
                given, last = upto, j
        market.lots[last] += whole - given


@kernel
def _fill(market: MarketRecord, side: int, outer: int, inner: int) -> None:
    """Fill the empty ticks from `outer` to `inner` (int64) with makers' orders, the better price last.

    Little at the best price, all of a level's usual size six ticks behind it.
    """
    worse, usual, edge = 2 * side - 1, market.level[side], market.edge[side]
    tick = outer
    while (tick - inner) * worse >= 0:
        if market.depth[side, tick & RING_MASK] == 0:
            bits = draw(market, MAKERS)
            noise = 0.4 + 1.2 * (np.int64(bits >> S11) * UNIT)
            lots = np.int64(usual * min(1.0, 0.4 + 0.1 * abs(tick - edge)) * noise)
            place(market, side, tick, max(lots, 1), 1 + np.int64(bits & THREE))
        tick -= worse


@kernel
def _requote(market: MarketRecord, knobs: DesignRecord, value: float, half: float) -> None:
    """Move the makers' quotes to the value (ticks, float64): cancel on both sides first, so nothing ever crosses."""
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
            lots = market.depth[side, tick & RING_MASK]
            if lots > 0:
                cancel(market, side, tick, lots)
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
def _free(market: MarketRecord, side: int, tick: int) -> int:
    """Return the lots (int64) of a level that belong to no planted pattern."""
    lots: int = market.depth[side, tick & RING_MASK]
    if side == market.ice_side and tick == market.ice_tick:
        lots -= market.ice_shown
    if side == market.fake_side and tick == market.fake_tick:
        lots -= market.fake_left
    return lots


@kernel
def _flicker(market: MarketRecord, lean: float) -> None:
    """Add or cancel an order near the best prices, or move one to the best from behind it, or back.

    `lean` (float64) is the chance over a half that a move favours buyers: a bid steps forward or an ask steps back. An
    added or cancelled order favours neither: leaning there would only make one side thicker, and every added order is
    cancelled one day.
    """
    bits = np.int64(draw(market, MAKERS) >> S11)
    comes, moves, behind = bits & 1 == 1, bits & 2 == 2, (bits >> 2) & 7
    favours = uniform(market, MAKERS) < 0.5 + (lean if moves else 0.0)
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
            cancel(market, side, from_, moved)
            place(market, side, to, moved, 1)
            return
    free = _free(market, side, tick)
    if (not comes or free > 3.0 * usual) and free > 0:
        cancel(market, side, tick, min(lots, free))
    else:
        place(market, side, tick, lots, 1)


@kernel
def _arrivals_until(market: MarketRecord, knobs: DesignRecord, began: int, until: float) -> None:
    """Fill the takers that arrive before second `until` (float64) of the minute; makers answer most of them at once."""
    j = market.arrived
    while j < market.takers and market.time[j] <= until:
        if market.lots[j] > 0:
            market.now = began + np.int64(market.time[j] * 1e6)
            side = market.buys[j]
            take(market, side, market.lots[j], np.int64(market.level[side]) + 1)
            if side != market.pulled and uniform(market, MAKERS) < knobs.resilience:
                worse, edge = 2 * side - 1, market.edge[side]
                outer = edge + 8 * worse if is_empty(market, side) else market.best[side] - worse
                _fill(market, side, outer, edge)
        j += 1
    market.arrived = j


@kernel
def _minute(
    market: MarketRecord,
    knobs: DesignRecord,
    began: int,
    minute: int,
    path: Floats,
    sd_ticks: float,
    shade: float,
    lean: float,
) -> int:
    """Trade one minute in time order; return the flow (int64 lots) as it stood ten seconds before its end.

    began int64 epoch microseconds; path (STEPS,) float64 log values; sd_ticks: of the minute
    shade  ticks a unit of value, with the quotes' own lean; lean: see `_flicker`
    """
    hold = min(knobs.ice_hold * sd_ticks, 0.5 * knobs.band)
    ice_slot = np.int64(uniform(market, PLANS) / knobs.icebergs_a_day * (1440.0 * STEPS))
    sweep_slot = 1 + np.int64(uniform(market, PLANS) / knobs.sweeps_a_day * (1440.0 * (STEPS - 4)))
    fake_slot = np.int64(uniform(market, PLANS) / knobs.fakes_a_day * (1440.0 * STEPS))
    fast: int = market.flow
    for action in range(-1, STEPS * (FLICKERS + 1)):  # -1: the book as the minute before left it is requoted
        k, j = action // (FLICKERS + 1), action % (FLICKERS + 1)
        requotes = action < 0 or j == FLICKERS // 2
        when = 0.0
        if action >= 0:
            cell = j - 1 if j > FLICKERS // 2 else j
            when = 5.0 * (k + (0.5 if requotes else (cell + uniform(market, MAKERS)) / FLICKERS))
            if k == STEPS - 2 and j == 0:
                _arrivals_until(market, knobs, began, 5.0 * k)
                fast = market.flow
            _arrivals_until(market, knobs, began, when)
        market.now = began + np.int64(when * 1e6)
        if not requotes:
            _flicker(market, lean)
            continue
        value = math.exp(path[k] if action >= 0 else market.value) * shade
        half = 0.05 + knobs.half_spread * sd_ticks * (0.6 + 0.8 * uniform(market, MAKERS))
        end_patterns(market, knobs, value, half, hold)
        _requote(market, knobs, value, half)
        if action < 0:
            continue
        if k == ice_slot:
            start_iceberg(market, knobs, sd_ticks, market.level[0] + market.level[1])
        if k == fake_slot:
            start_fake(market, knobs)
        if k == sweep_slot and minute >= LOOKBACK:
            sweep(market, knobs, sd_ticks)
    _arrivals_until(market, knobs, began, 60.0)
    return fast


@kernel(nogil=True)
def trade_minutes(
    first: int,
    opened: int,
    every: int,
    reads: bool,
    keys: npt.NDArray[np.uint64],
    path: Floats,
    latent: Floats,
    all_knobs: DesignRecords,
    cents: int,
    usual_sd: float,
    markets: MarketRecords,
    tapes: TapeRecords,
    log: Ints,
    bars: Floats,
    events: Ints,
    premium: Floats,
    levels: Floats,
    flows: Floats,
    tape_rows: Floats,
    planted: Ints,
    counts: Ints,
) -> None:
    """Trade one block of n minutes; markets[0] and tapes[0] carry over to the next block.

    Times are int64 epoch microseconds, arrays float64 unless stated otherwise.

    first, opened       number of minutes before row 0; its open in epoch microseconds
    every               minutes between snapshots of the book, counted from 1970
    reads               whether the tape reads the events; where it does not, its rows are NaN
    path (n, STEPS)     log value after each step; latent (n, LATENT): as latent.walk fills it
    cents               of quote currency in a tick; usual_sd: of a minute, at which a level has the usual depth
    log (rows, LOG_WIDTH)    int64; gets the events of markets[0].log_mode, as far as there are rows
    bars (n, 9)         gets everything but the open time; events (n,) int64 book events; premium (n,) mid / value - 1
    levels, flows (m, 2)     snapshots: ticks, lots and orders; lots since the one before, and of the last ten seconds
    tape_rows (m, TAPE_WIDTH)  but for its flows; NaN where an overfull minute lost events, or where none were read
    planted (k, PLANTED_WIDTH)  int64
    counts (4,) int64   rows: snapshots, planted, log (also beyond its end), and those lost in an overfull minute
    """
    market, knobs, tape = markets[0], all_knobs[0], tapes[0]
    log_mode = market.log_mode
    keep_thick = 0.5 ** (1.0 / knobs.thickness_half_life_min)
    keep_lean = 0.5 ** (1.0 / knobs.own_lean_half_life_min)
    for i in range(path.shape[0]):
        minute, began = first + i, opened + i * MINUTE_US
        for k in range(STREAMS):
            market.random[k] = keys[k] + np.uint64(minute) * MINUTE
        foreseen, volume, share, sd, u = latent[i, 0], latent[i, 1], latent[i, 2], latent[i, 3], latent[i, 4]
        total = np.int64(max(np.rint(volume * LOTS), 2.0))
        bought = np.int64(min(max(np.rint(total * share), 1.0), total - 1.0))
        # the minute's volume over its usual one shows in the size of its orders, not in their number: a number that
        # depended on the minute's move would reveal, at a stale last price, where the value has gone
        expected = knobs.orders_a_minute * (foreseen / knobs.base_volume) ** (2.0 / 3.0)
        _arrive(market, knobs, expected)
        _divide(market, knobs, total, bought)

        market.thickness = keep_thick * market.thickness + math.sqrt(1.0 - keep_thick**2) * normal(market, MAKERS)
        market.lean = keep_lean * market.lean + math.sqrt(1.0 - keep_lean**2) * normal(market, MAKERS)
        usual = (
            knobs.depth
            * foreseen
            * LOTS
            / expected
            * math.sqrt(usual_sd / sd)
            * math.exp(knobs.thickness * market.thickness)
        )
        tilt = math.exp(0.5 * (knobs.depth_lean * u + knobs.own_lean * market.lean))
        market.level[BID], market.level[ASK] = usual * tilt, usual / tilt
        shade = (1.0 + 1e-4 * knobs.shade_bps * u) * 100.0 / cents
        sd_ticks = sd * math.exp(market.value) * shade
        market.traded = market.events = market.ended = market.logged = 0
        market.log_mode = 2 if reads else log_mode  # the tape reads every event
        quotes = 0
        if minute == 0:  # the opening quotes are no flow
            _requote(market, knobs, math.exp(market.value) * shade, 0.05 + knobs.half_spread * sd_ticks)
            market.flow = market.events = 0
            quotes = market.logged
            load_book(tape, market, began)
        lean = min(max(knobs.flicker_lean * u, -0.4), 0.4)
        fast = _minute(market, knobs, began, minute, path[i], sd_ticks, shade, lean)

        logged = min(market.logged, LOG_ROWS)
        if reads:
            apply_events(tape, market.log, quotes, logged)
            if market.logged > logged:
                market.unread = 1
                load_book(tape, market, began + MINUTE_US)
        market.value = path[i, STEPS - 1]
        bars[i, OPEN], bars[i, HIGH] = market.first * cents / 100.0, market.highest * cents / 100.0
        bars[i, LOW], bars[i, CLOSE] = market.lowest * cents / 100.0, market.last * cents / 100.0
        bars[i, VOLUME], bars[i, TAKER_BUY], bars[i, TRADES] = total / LOTS, bought / LOTS, market.traded
        events[i] = market.events
        market.lowest_of[minute % LOOKBACK], market.highest_of[minute % LOOKBACK] = market.lowest, market.highest
        premium[i] = bars[i, HALF_SPREAD] = np.nan
        if not is_empty(market, BID) and not is_empty(market, ASK):
            bars[i, HALF_SPREAD] = 0.5 * (market.best[ASK] - market.best[BID]) * cents / 100.0
            mid = 0.5 * (market.best[BID] + market.best[ASK])
            premium[i] = mid * cents / 100.0 / math.exp(market.value) - 1.0
        if (began // MINUTE_US + 1) % every == 0:
            row = counts[0]
            top_levels(market, levels[row])
            flows[row, 0], flows[row, 1] = market.flow - market.flow_before, market.flow - fast
            market.flow_before = market.flow
            tape_rows[row] = np.nan
            if reads:
                write_row(tape, began + MINUTE_US, tape_rows[row])
                skip_samples_until(tape, began + (1 + every) * MINUTE_US)
            if market.unread == 1:
                tape_rows[row] = np.nan
                market.unread = 0
            counts[0] += 1
        for k in range(market.ended):
            planted[counts[1]] = market.planted[k]
            counts[1] += 1
        if log_mode > 0:
            for k in range(logged):
                if log_mode == 2 or market.log[k, 1] == TRADE:
                    if counts[2] < log.shape[0]:
                        log[counts[2]] = market.log[k]
                    counts[2] += 1
            counts[3] += market.logged - logged
    market.log_mode = log_mode
