"""Recorded messages and trades as events of the book, so that a recording has a tape like any other source.

A trade takes its lots off the level it was made at, when it was known. A message gives the new size of a level: a
difference below the size that the trades left was cancelled, a difference above it was added; so trades that a level
survived show as its refill. A message describes the book at its own time of the exchange: trades at or after that time
are not in it yet, and their lots are not subtracted twice.

The reader's ring holds RING ticks, so it is centred on the best prices, and again when they have moved by MOVED; levels
further away are no events of the tape before they come near.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Bools, Floats, Ints
from pipelines.data.orderbook.limit_order_book import ADD, ASK, BID, CANCEL, NO_TICK, TRADE
from pipelines.data.orderbook.tape import REACH, RING, RING_MASK, TapeRecord, apply_events

HALF = RING // 2
MOVED = HALF - REACH  # ticks
# a trade: microseconds when it was known and when it was made, side of the book, tick, lots
TRADE_FIELDS = ("known", "made", "side", "tick", "lots")
KNOWN, MADE, SIDE, TICK, LOTS = range(len(TRADE_FIELDS))
TRADE_WIDTH = len(TRADE_FIELDS)


@kernel
def _event(tape: TapeRecord, row: Ints, now: int, kind: int, side: int, tick: int, lots: int, left: int) -> None:
    """Feed one event (int64) to the tape; row (1, LOG_WIDTH) int64 is overwritten."""
    row[0, 0], row[0, 1], row[0, 2], row[0, 3], row[0, 4], row[0, 5] = now, kind, side, tick, lots, left
    apply_events(tape, row, 0, 1)


@kernel
def centre_on(tape: TapeRecord, bids: Floats, asks: Floats, low: int, lot: float, tick: int) -> int:
    """Centre the ring on `tick` (int64) and return it.

    bids, asks  (ticks,) float64 size of each level from tick `low` on, by the messages; lot: base asset, float64
    """
    tape.depth[:] = 0
    tape.best[BID], tape.best[ASK] = -NO_TICK, NO_TICK
    for t in range(max(tick - HALF, low), min(tick + HALF, low + bids.shape[0])):
        if bids[t - low] > 0.0:
            tape.depth[BID, t & RING_MASK] = np.int64(np.rint(bids[t - low] / lot))
            tape.best[BID] = t
        if asks[t - low] > 0.0:
            tape.depth[ASK, t & RING_MASK] = np.int64(np.rint(asks[t - low] / lot))
            if tape.best[ASK] == NO_TICK:
                tape.best[ASK] = t
    return tick


@kernel
def trades_until(
    tape: TapeRecord,
    row: Ints,
    trades: Ints,
    i: int,
    until: int,
    centre: int,
    bids: Floats,
    asks: Floats,
    low: int,
    lot: float,
) -> tuple[int, int]:
    """Feed the trades from number `i` on that were known by `until`; return the number of the next one, and the centre.

    trades  (n, TRADE_WIDTH) int64; until: int64 microseconds; bids, asks (ticks,) float64
    """
    while i < trades.shape[0] and trades[i, KNOWN] <= until:
        side, tick, lots = trades[i, SIDE], trades[i, TICK], trades[i, LOTS]
        if abs(tick - centre) >= HALF:
            centre = centre_on(tape, bids, asks, low, lot, tick)
        left = max(tape.depth[side, tick & RING_MASK] - lots, 0)
        _event(tape, row, trades[i, KNOWN], TRADE, side, tick, lots, left)
        i += 1
    return i, centre


@kernel
def _set_level(
    tape: TapeRecord,
    row: Ints,
    trades: Ints,
    pending: int,
    i: int,
    now: int,
    made: int,
    side: int,
    tick: int,
    size: int,
) -> None:
    """Set a level to `size` lots, the state of the message made at `made`; feed the difference to the tape.

    All int64. Trades `pending` to `i` at or after `made` are not in the message yet: their lots are subtracted.
    """
    for k in range(pending, i):
        if trades[k, MADE] >= made and trades[k, SIDE] == side and trades[k, TICK] == tick:
            size -= trades[k, LOTS]
    size = max(size, 0)
    had = tape.depth[side, tick & RING_MASK]
    if size > had:
        _event(tape, row, now, ADD, side, tick, size - had, size)
    elif size < had:
        _event(tape, row, now, CANCEL, side, tick, had - size, size)


@kernel
def apply_message(
    tape: TapeRecord,
    row: Ints,
    trades: Ints,
    pending: int,
    i: int,
    now: int,
    made: int,
    tick: Ints,
    bid: Bools,
    first: int,
    last: int,
    centre: int,
    bids: Floats,
    asks: Floats,
    low: int,
    lot: float,
    top_bid: int,
    top_ask: int,
) -> tuple[int, int]:
    """Feed the message of rows first..last, already in bids and asks (ticks,) float64; best ticks top_bid, top_ask.

    tick (rows,) int64, bid (rows,) bool; now, made int64 microseconds
    Returns the first trade that a later message has still to include, and the centre
    """
    for r in range(first, last):
        if abs(tick[r] + low - centre) < HALF:
            size = bids[tick[r]] if bid[r] else asks[tick[r]]
            lots = np.int64(np.rint(size / lot))
            _set_level(tape, row, trades, pending, i, now, made, BID if bid[r] else ASK, tick[r] + low, lots)
    settled = pending
    for k in range(pending, i):
        t = trades[k, TICK]
        if trades[k, MADE] < made:
            settled = k + 1 if settled == k else settled
            inside = low <= t < low + bids.shape[0] and abs(t - centre) < HALF
            size = 0.0
            if inside:
                size = bids[t - low] if trades[k, SIDE] == BID else asks[t - low]
            _set_level(tape, row, trades, pending, i, now, made, trades[k, SIDE], t, np.int64(np.rint(size / lot)))
    middle = (top_bid + top_ask) // 2 + low
    if abs(middle - centre) > MOVED:
        centre = centre_on(tape, bids, asks, low, lot, middle)
    return settled, centre
