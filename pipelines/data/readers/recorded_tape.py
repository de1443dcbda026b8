"""Recorded messages and trades told as events of the book, so that a recording has a tape like any other source.

A trade takes its lots off the level it was made at, when it was known. A message says how large a level now is: what it
lacks of what the trades left there was cancelled, what it has beyond that was added; so trades that a level outlived
show as its refill. A message speaks of the book at its own time of the exchange: of trades at or after it, it does not
know yet, and what they took is not asked back from it.

The reader's ring holds RING ticks, so it is laid around the best prices, anew when they have moved by MOVED; what lies
further away is not an event of the tape before it comes near.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Ints, Floats, Bools
from pipelines.data.orderbook.limit_order_book import ADD, ASK, BID, CANCEL, NO_TICK, TRADE
from pipelines.data.orderbook.tape import REACH, RING, RING_MASK, apply_events

HALF = RING // 2
MOVED = HALF - REACH  # ticks
# a trade: microseconds when it was known and when it was made, side of the book, tick, lots
KNOWN, MADE, SIDE, TICK, LOTS = range(5)
TRADE_WIDTH = 5


@kernel
def _event(tape: TapeRecord, row: Ints, now: int, kind: int, side: int, tick: int, lots: int, left: int) -> None:
    row[0, 0], row[0, 1], row[0, 2], row[0, 3], row[0, 4], row[0, 5] = now, kind, side, tick, lots, left
    apply_events(tape, row, 0, 1)


@kernel
def centre_on(tape: TapeRecord, bids: Floats, asks: Floats, low: int, lot: float, tick: int) -> int:
    """Lay the ring around `tick`. bids, asks: size of each level from tick `low` on, as messages said."""
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
    """The trades from number `i` on that were known by `until`. Returns the number of the next one, and the centre."""
    while i < trades.shape[0] and trades[i, KNOWN] <= until:
        side, tick, lots = trades[i, SIDE], trades[i, TICK], trades[i, LOTS]
        if abs(tick - centre) >= HALF:
            centre = centre_on(tape, bids, asks, low, lot, tick)
        left = max(tape.depth[side, tick & RING_MASK] - lots, 0)
        _event(tape, row, trades[i, KNOWN], TRADE, side, tick, lots, left)
        i += 1
    return i, centre


@kernel
def _settle(
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
    """The message made at `made` has `size` lots at this level; trades `pending` to `i` may be news to it."""
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
    """The message of rows first..last, which bids and asks already hold; its best prices are top_bid and top_ask.

    Returns the first trade that a later message has still to settle, and the centre.
    """
    for r in range(first, last):
        if abs(tick[r] + low - centre) < HALF:
            size = bids[tick[r]] if bid[r] else asks[tick[r]]
            lots = np.int64(np.rint(size / lot))
            _settle(tape, row, trades, pending, i, now, made, BID if bid[r] else ASK, tick[r] + low, lots)
    settled = pending
    for k in range(pending, i):
        t = trades[k, TICK]
        if trades[k, MADE] < made:
            settled = k + 1 if settled == k else settled
            inside = low <= t < low + bids.shape[0] and abs(t - centre) < HALF
            size = 0.0
            if inside:
                size = bids[t - low] if trades[k, SIDE] == BID else asks[t - low]
            _settle(tape, row, trades, pending, i, now, made, trades[k, SIDE], t, np.int64(np.rint(size / lot)))
    middle = (top_bid + top_ask) // 2 + low
    if abs(middle - centre) > MOVED:
        centre = centre_on(tape, bids, asks, low, lot, middle)
    return settled, centre
