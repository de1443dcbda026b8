"""A limit order book in one flat record, and its events: orders are placed, cancelled and taken.

Prices are whole ticks, sizes whole lots, time whole microseconds: the book is exact and the same on every machine. A
side is BID (0) or ASK (1). Level sizes and order counts lie in a ring a side, at `tick & RING_MASK`, so a side may span
at most RING ticks. Orders of a level count as equally large: the rest of a level has that share of its orders.

Every change updates the order-flow imbalance of Cont, Kukanov and Stoikov (2014, J. Financial Econometrics 12(1),
47-88). Event by event their formula is: the lots that join or improve the best bid, less the lots that leave it, less
the same of the ask.

Compiled code gets the record itself (`books[0]`), a bare pointer: passing it from function to function costs nothing,
where arrays would be counted in and out at each call (that was half of the time).
"""

from typing import Any

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import BOOK_LEVELS, Floats, Ints

BID, ASK = np.arange(2)  # int64 scalars, so that compiled code is not specialised for each value
ADD, CANCEL, TRADE = np.arange(3)  # kinds of event
RING = 1024
RING_MASK = RING - 1
NO_TICK = 1 << 40  # best tick of an empty ask; an empty bid has the negative
LOG_WIDTH = 6  # epoch microseconds, kind, side, tick, lots, lots left at the level
LOG_ROWS = 1 << 14  # of one minute

_I = np.int64
BookRecord = Any  # one element of an array of dtype BOOK_FIELDS: numpy and numba have no common type for it
BOOK_FIELDS: list[Any] = [
    ("depth", _I, (2, RING)),  # lots that rest at each level
    ("orders", _I, (2, RING)),  # in how many orders
    ("best", _I, 2),  # best tick of each side
    ("far", _I, 2),  # no level of the side lies beyond this tick
    ("hole", _I, 2),  # the worst tick that was emptied since the makers last quoted
    ("flow", _I),  # lots: order-flow imbalance so far
    ("events", _I),  # book events so far
    ("now", _I),  # epoch microseconds
    ("log_mode", _I),  # what goes into the log: 0 nothing, 1 trades, 2 every event
    ("log", _I, (LOG_ROWS, LOG_WIDTH)),
    ("logged", _I),  # rows that the log holds or, where it is too short, would hold
    # trades since `traded` was last set to 0: ticks of the first, highest, lowest and last, and their number
    ("first", _I), ("highest", _I), ("lowest", _I), ("last", _I), ("traded", _I),
    # an iceberg: side (-1: none rests), tick, lots shown, lots of a slice, lots hidden, lots traded
    ("ice_side", _I), ("ice_tick", _I), ("ice_shown", _I), ("ice_slice", _I), ("ice_hidden", _I), ("ice_done", _I),
    # an order that is not meant to trade: side (-1: none rests), tick, lots that still rest
    ("fake_side", _I), ("fake_tick", _I), ("fake_left", _I),
]  # fmt: skip


def empty_book(fields: list[Any] = BOOK_FIELDS) -> BookRecord:
    """Return a (1,) record without orders; `fields`: BOOK_FIELDS and the caller's own fields after them."""
    books = np.zeros(1, np.dtype(fields))
    book = books[0]
    book["best"] = -NO_TICK, NO_TICK
    book["far"] = book["hole"] = NO_TICK, -NO_TICK
    book["ice_side"] = book["fake_side"] = -1
    return books


@kernel
def is_empty(book: BookRecord, side: int) -> bool:
    """Return whether a side (0 bid, 1 ask; int64) of the book record holds no order."""
    best: int = book.best[side]
    return abs(best) == NO_TICK


@kernel
def _write(book: BookRecord, kind: int, side: int, tick: int, lots: int, left: int) -> None:
    """Append one event to the record's log (LOG_ROWS, LOG_WIDTH) int64; beyond its end only the count grows."""
    row = book.logged
    book.logged = row + 1
    if row < LOG_ROWS:
        book.log[row, 0], book.log[row, 1], book.log[row, 2] = book.now, kind, side
        book.log[row, 3], book.log[row, 4], book.log[row, 5] = tick, lots, left


@kernel
def place(book: BookRecord, side: int, tick: int, lots: int, orders: int) -> None:
    """Add `lots` > 0 in `orders` orders (int64) to a level, which must not cross the other side."""
    at, worse = tick & RING_MASK, 2 * side - 1
    book.depth[side, at] += lots
    book.orders[side, at] += orders
    if (tick - book.best[side]) * worse <= 0:
        book.best[side] = tick
        book.flow -= worse * lots
    if (tick - book.far[side]) * worse > 0:
        book.far[side] = tick
    book.events += 1
    if book.log_mode == 2:
        _write(book, ADD, side, tick, lots, book.depth[side, at])


@kernel
def _find_best(book: BookRecord, side: int, tick: int) -> None:
    """Set the side's best level: `tick` or the first one beyond it that holds an order (all int64)."""
    worse, far = 2 * side - 1, book.far[side]
    while (far - tick) * worse >= 0 and book.depth[side, tick & RING_MASK] == 0:
        tick += worse
    if (far - tick) * worse < 0:
        tick, book.far[side] = NO_TICK * worse, -NO_TICK * worse
    book.best[side] = tick


@kernel
def _remove(book: BookRecord, side: int, tick: int, lots: int) -> None:
    """Take `lots` (int64) off a level, and its orders in proportion."""
    at, worse = tick & RING_MASK, 2 * side - 1
    before = book.depth[side, at]
    left = before - lots
    book.depth[side, at] = left
    best = tick == book.best[side]
    if best:
        book.flow += worse * lots
    if left > 0:
        book.orders[side, at] = max(1, np.int64(book.orders[side, at] * (left / before) + 0.5))
        return
    book.orders[side, at] = 0
    if (tick - book.hole[side]) * worse > 0:
        book.hole[side] = tick
    if best:
        _find_best(book, side, tick)


@kernel
def cancel(book: BookRecord, side: int, tick: int, lots: int) -> None:
    """Cancel `lots` > 0 (int64) of a level; at most what is there."""
    _remove(book, side, tick, lots)
    book.events += 1
    if book.log_mode == 2:
        _write(book, CANCEL, side, tick, lots, book.depth[side, tick & RING_MASK])


@kernel
def clear(book: BookRecord, side: int, until: int) -> None:
    """Cancel every level of a side that is better than the tick `until` (int64); what an iceberg shows stays."""
    worse = 2 * side - 1
    tick, gone, iceberg_met = book.best[side], 0, False
    while (until - tick) * worse > 0 and (book.far[side] - tick) * worse >= 0:
        at = tick & RING_MASK
        lots, left = book.depth[side, at], 0
        if tick == book.ice_tick and side == book.ice_side:
            left = book.ice_shown
            lots -= left
        if lots > 0:
            book.depth[side, at] = left
            book.orders[side, at] = min(left, 1)
            if not iceberg_met:
                gone += lots
            book.events += 1
            if book.log_mode == 2:
                _write(book, CANCEL, side, tick, lots, left)
        iceberg_met = iceberg_met or left > 0
        tick += worse
    book.flow += worse * gone
    _find_best(book, side, book.best[side])


@kernel
def take(book: BookRecord, side: int, lots: int, spare: int) -> None:
    """Fill a market order of `lots` (int64) from `side`: one trade a level, and one more for each refill of it.

    An iceberg trades after the orders shown next to it, then shows its next slice at the same price. If a side is
    emptied, a maker quotes the remaining lots and `spare` more one tick further: every order is filled.
    """
    worse = 2 * side - 1
    while lots > 0:
        if is_empty(book, side):
            further = max(book.last * worse, book.best[1 - side] * worse) + 1
            place(book, side, further * worse, lots + spare, 1)
        tick = book.best[side]
        there = book.depth[side, tick & RING_MASK]
        filled = min(lots, there)
        _remove(book, side, tick, filled)
        lots -= filled
        if book.traded == 0:
            book.first = book.highest = book.lowest = tick
        book.highest, book.lowest, book.last = max(book.highest, tick), min(book.lowest, tick), tick
        book.traded += 1
        book.events += 1
        if book.log_mode > 0:
            _write(book, TRADE, side, tick, filled, there - filled)
        if side == book.ice_side and tick == book.ice_tick:
            hit = filled - (there - book.ice_shown)
            if hit > 0:
                book.ice_shown -= hit
                book.ice_done += hit
                more = min(book.ice_slice - book.ice_shown, book.ice_hidden)
                if more > 0:
                    book.ice_shown += more
                    book.ice_hidden -= more
                    place(book, side, tick, more, 1)
        if side == book.fake_side and tick == book.fake_tick:
            book.fake_left = min(book.fake_left, there - filled)


@kernel
def top_levels(book: BookRecord, out: Floats) -> None:
    """Write the best levels into out (2, BOOK_LEVELS, 3) float64: tick, lots, orders; NaN where the side has fewer."""
    out[:] = np.nan
    for side in range(2):
        worse, tick, level = 2 * side - 1, book.best[side], 0
        while level < BOOK_LEVELS and (book.far[side] - tick) * worse >= 0:
            at = tick & RING_MASK
            if book.depth[side, at] > 0:
                out[side, level, 0], out[side, level, 1] = tick, book.depth[side, at]
                out[side, level, 2] = book.orders[side, at]
                level += 1
            tick += worse


def resting(book: BookRecord, now: int) -> Ints:
    """Return the resting lots as log rows (k, LOG_WIDTH), kind ADD at `now` (epoch microseconds), best level first."""
    rows = []
    for side, worse in ((BID, -1), (ASK, 1)):
        if abs(book["best"][side]) == NO_TICK:
            continue
        for tick in range(book["best"][side], book["far"][side] + worse, worse):
            lots = book["depth"][side, tick & RING_MASK]
            if lots > 0:
                rows.append((now, ADD, side, tick, lots, lots))
    return np.array(rows, np.int64).reshape(-1, LOG_WIDTH)
