"""What the events inside a bar were, in numbers: a reader of book events that fills a row of contracts.TAPE.

It reads rows as orderbook logs them, in time order, whoever wrote them, and keeps the size of each level from what a
row says is left there. `apply_events` takes events in, `write_row` writes a row at a snapshot and begins the next span. All it
remembers lies in one flat record, so a tape read in two parts equals the same tape read at once. Integers throughout:
lots, ticks, microseconds; `write_row` turns them into base asset and quote currency.

Fills of one side in the same microsecond are one order of a taker. What is called large, small or usual is measured
against the last ORDERS orders, so nothing is told of it before there were as many.

stacked     Prices between the lowest and the highest trade of the span are cut into BUCKETS. A bucket is imbalanced
            when takers bought RATIO times what they sold in the bucket below (or sold RATIO times what they bought in
            the one above), both above 0. RUN or more such buckets, one above the other, count as one stack.
stacking    Lots added less lots cancelled within `near` ticks of the best price; trades apart.
large       Orders above the 99 % quantile of the ORDERS orders before them.
iceberg     A fill that is followed within REFILL_US by new lots at the same price is a refill; REFILLS of them in turn
            that bring the level back to the same size show a hidden order (exchanges refill its displayed peak in
            full), and what they replaced was it. A maker who quotes anew where a level was eaten shows another size.
spoof       An order of SPOOF usual sizes (mean of the last USUAL or so that were added near the best) near the best
            price, of which WITHDRAWN is cancelled within SPOOF_US, before anything trades at its price.
cvd         Signed volume of orders above, and not above, the median notional of the ORDERS orders before the span.
vpin        Easley, Lopez de Prado and O'Hara 2012, Rev. Financial Studies 25(5), 1457-1493: mean of |bought - sold| /
            volume over the last VPIN_BUCKETS buckets of equal volume. Takers' sides are known here, none is guessed. A
            bucket is the volume of ORDERS / PER_BUCKET = 50 average orders when it begins: time by trade, as there, and
            as good for a recording of minutes as for a year.
"""

from typing import Any

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import TAPE_INDEX
from pipelines.data.orderbook.hawkes import HAWKES_STATE, hawkes_write_row, hawkes_add_trade
from pipelines.data.orderbook.heatmap import EVERY_S, HEAT_STATE, Heatmap, heatmap_add_snapshot, heatmap_write_row, heatmap
from pipelines.data.orderbook.limit_order_book import ADD, ASK, BID, NO_TICK, TRADE
from pipelines.data.orderbook.limit_order_book import RING_MASK as BOOK_MASK

RING = 4096  # ticks: fifty levels a side of a basis point each, at a tick of a thirtieth of one
RING_MASK = RING - 1
REACH = RING // 2 - 64  # ticks behind the best price that surely lie in the ring
ORDERS = 1000
BEYOND = 10  # orders of the window that the 99 % quantile leaves above it
TOP = 64  # largest orders of the window that are kept in order
BUCKETS, RATIO, RUN = 16, 3, 3
REFILL_US, REFILLS = 100_000, 2
SPOOF, WITHDRAWN, SPOOF_US = 5.0, 0.8, 60_000_000
SPOOF_NEAR = 2  # times `near`
SUSPECTS = 8  # large orders that are watched at a time
USUAL = 1000  # added orders whose mean size is the usual one, older ones weighing less; before as many none is known
USUAL_RATE = 1.0 / USUAL
PER_BUCKET, VPIN_BUCKETS = 20, 50
SAMPLE_US = int(EVERY_S * 1e6)
MOST_LOOKS = 50  # at a book that did not change for longer

_STACKED_BUYING, _STACKED_SELLING = TAPE_INDEX["stacked_buying"], TAPE_INDEX["stacked_selling"]
_STACKING = TAPE_INDEX["stacking_bid"]  # bid, then ask
_HAWKES, _HEAT = TAPE_INDEX["hawkes_branching"], TAPE_INDEX["heat_imbalance"]
_LARGE_BUY, _LARGE_SELL = TAPE_INDEX["large_buy"], TAPE_INDEX["large_sell"]
_ICEBERG, _SPOOF, _SMART = TAPE_INDEX["iceberg_bid"], TAPE_INDEX["spoof_bid"], TAPE_INDEX["smart_price"]
_CVD_LARGE, _CVD_SMALL, _VPIN = TAPE_INDEX["cvd_large"], TAPE_INDEX["cvd_small"], TAPE_INDEX["vpin"]

_I, _F = np.int64, np.float64
STATE: list[Any] = [
    ("lots", _F), ("price", _F),  # lots in one unit of the base asset; quote currency of a tick
    ("near", _I), ("grain", _I),  # ticks: how far from the best counts as near; in a cell of the footprint
    ("depth", _I, (2, RING)), ("best", _I, 2),  # lots at each level, as rows said; best tick of each side
    ("next_sample", _I),  # microseconds: when the heatmap next looks; 0 = not begun
    # the order of a taker whose fills are still coming: microseconds, side of the book, lots, lots times ticks
    ("order_at", _I), ("order_side", _I), ("order_lots", _I), ("order_worth", _I),
    # the last orders, a ring: lots, lots times ticks; how many ever, what the ring's lots add up to
    ("order_size", _I, ORDERS), ("worth", _I, ORDERS), ("orders", _I), ("traded_lots", _I),
    ("top", _I, TOP), ("tops", _I),  # the largest of them, largest first
    ("middle", _I), ("scratch", _I, ORDERS),  # lots times ticks: median of them at the newest snapshot, -1 = not yet
    # of the span, by side of the book: eaten there, net added, …
    ("footprint", _I, (2, RING)), ("lowest", _I), ("highest", _I), ("fills", _I),
    ("stacked", _I, 2), ("large", _I, 2), ("iceberg", _I, 2), ("spoof", _I, 2),
    ("cvd_large", _I), ("cvd_small", _I), ("smart_lots", _I), ("smart_worth", _I),
    ("whole", _I),  # 1: when the span began, the window of orders was full
    # fills of each level: its tick, when last, lots since it was refilled; size after the refill, how often in turn,
    # lots of the first of them
    ("filled_tick", _I, (2, RING)), ("filled_at", _I, (2, RING)), ("filled", _I, (2, RING)),
    ("peak", _I, (2, RING)), ("refills", _I, (2, RING)), ("refilled", _I, (2, RING)),
    # large orders that are watched: side, tick, lots, lots cancelled, microseconds
    ("suspect", _I, (SUSPECTS, 5)), ("suspects", _I), ("usual", _F), ("adds", _I),
    ("bucket", _I), ("bucket_lots", _I), ("bucket_net", _I), ("imbalances", _F, VPIN_BUCKETS), ("buckets", _I),
    ("hawkes", _F, HAWKES_STATE), ("heat", _F, HEAT_STATE),
]  # fmt: skip


def fresh_tape(lots: float, price: float, near: int = 10, grain: int = 1) -> Any:
    """(1,) record that has read nothing; compiled code gets its one element.

    lots   in one unit of the base asset
    price  quote currency of a tick, ticks counted from price 0
    near   ticks from the best price within which orders count as near it
    grain  ticks of the smallest bucket of the footprint, RING of which hold the trades of a span
    """
    tapes = np.zeros(1, np.dtype(STATE))
    tape = tapes[0]
    tape["lots"], tape["price"], tape["near"], tape["grain"], tape["middle"] = lots, price, near, grain, -1
    tape["best"] = -NO_TICK, NO_TICK
    return tapes


def latest_heatmap(tape: Any) -> Heatmap:
    """The heatmap of the last snapshots that a tape looked at. Raises NotEnoughData before there were enough."""
    return heatmap(tape["heat"], float(tape["price"]), (int(tape["next_sample"]) - SAMPLE_US) / 1e6)


@kernel
def reset_book(tape):  # type: ignore[no-untyped-def]
    """The book was lost: no level is known any more, nor what was seen of them."""
    tape.depth[:] = 0
    tape.best[BID], tape.best[ASK] = -NO_TICK, NO_TICK
    tape.suspects = 0
    tape.filled_tick[:] = 0
    tape.heat[:] = 0.0


@kernel
def load_book(tape, book, now):  # type: ignore[no-untyped-def]
    """Take the levels as they rest in `book` (a record of data.orderbook) at `now`; what led there is not known."""
    tape.depth[:] = 0
    tape.best[:] = book.best
    for side in range(2):
        if abs(book.best[side]) == NO_TICK:
            continue
        tick, worse = book.best[side], 2 * side - 1
        while (book.far[side] - tick) * worse >= 0:
            tape.depth[side, tick & RING_MASK] = book.depth[side, tick & BOOK_MASK]
            tick += worse
    tape.suspects, tape.filled_tick[:], tape.order_lots = 0, 0, 0
    tape.next_sample = now - now % SAMPLE_US + SAMPLE_US


@kernel
def _find_best(tape, side, tick):  # type: ignore[no-untyped-def]
    worse = 2 * side - 1
    for _ in range(RING):
        if tape.depth[side, tick & RING_MASK] > 0:
            tape.best[side] = tick
            return
        tick += worse
    tape.best[side] = NO_TICK * worse


@kernel
def _rank(tape, lots):  # type: ignore[no-untyped-def]
    """Put an order among the largest, if it is one of them."""
    k = tape.tops
    if k > 0 and lots <= tape.top[k - 1]:
        return
    if k == TOP:
        k -= 1
    while k > 0 and tape.top[k - 1] < lots:
        tape.top[k] = tape.top[k - 1]
        k -= 1
    tape.top[k] = lots
    tape.tops = min(tape.tops + 1, TOP)


@kernel
def _rank_all(tape):  # type: ignore[no-untyped-def]
    """The TOP largest of the whole window, from nothing."""
    tape.tops = 0
    for i in range(ORDERS):
        lots = tape.order_size[i]
        if tape.tops < TOP:
            k = tape.tops
            tape.tops = k + 1
        elif lots > tape.top[TOP - 1]:
            k = TOP - 1
        else:
            continue
        while k > 0 and tape.top[k - 1] < lots:
            tape.top[k] = tape.top[k - 1]
            k -= 1
        tape.top[k] = lots


@kernel
def _remember(tape, lots, worth):  # type: ignore[no-untyped-def]
    """The order enters the window and the oldest one leaves; the largest stay known exactly."""
    at = tape.orders % ORDERS
    old = tape.order_size[at]
    tape.order_size[at], tape.worth[at] = lots, worth
    tape.traded_lots += lots - old
    tape.orders += 1
    if tape.orders < ORDERS:
        return
    if tape.orders == ORDERS:
        _rank_all(tape)
        return
    if old >= tape.top[tape.tops - 1]:
        k = 0
        while tape.top[k] > old:
            k += 1
        tape.tops -= 1
        while k < tape.tops:
            tape.top[k] = tape.top[k + 1]
            k += 1
    _rank(tape, lots)
    if tape.tops <= BEYOND:
        _rank_all(tape)


@kernel
def _median(values, scratch):  # type: ignore[no-untyped-def]
    """Lower median of values (n,), exactly, by selection."""
    low, high, wanted = 0, values.shape[0] - 1, (values.shape[0] - 1) // 2
    for i in range(values.shape[0]):
        scratch[i] = values[i]
    while low < high:
        pivot, i, j = scratch[(low + high) // 2], low, high
        while i <= j:
            while scratch[i] < pivot:
                i += 1
            while scratch[j] > pivot:
                j -= 1
            if i <= j:
                scratch[i], scratch[j] = scratch[j], scratch[i]
                i += 1
                j -= 1
        if j < wanted:
            low = i
        if wanted < i:
            high = j
    return scratch[wanted]


@kernel
def _fill_buckets(tape, lots, way):  # type: ignore[no-untyped-def]
    """Buckets of equal volume take the order in; one of more than a bucket fills several."""
    while lots > 0:
        if tape.bucket == 0:
            tape.bucket = max(tape.traded_lots // PER_BUCKET, 1)
        part = min(lots, tape.bucket - tape.bucket_lots)
        tape.bucket_lots += part
        tape.bucket_net += way * part
        lots -= part
        if tape.bucket_lots == tape.bucket:
            tape.imbalances[tape.buckets % VPIN_BUCKETS] = abs(tape.bucket_net) / tape.bucket
            tape.buckets += 1
            tape.bucket = tape.bucket_lots = tape.bucket_net = 0


@kernel
def _end_order(tape):  # type: ignore[no-untyped-def]
    """All fills of a taker's order have come."""
    lots, worth, side = tape.order_lots, tape.order_worth, tape.order_side
    tape.order_lots = tape.order_worth = 0
    way = 2 * side - 1  # who eats the ask buys
    hawkes_add_trade(tape.hawkes, tape.order_at * 1e-6, float(way))
    if tape.orders >= ORDERS:
        if lots > tape.top[BEYOND]:
            tape.large[side] += lots
            tape.smart_lots += lots
            tape.smart_worth += worth
        _fill_buckets(tape, lots, way)
    if worth > tape.middle:
        tape.cvd_large += way * lots
    else:
        tape.cvd_small += way * lots
    _remember(tape, lots, worth)


@kernel
def _add(tape, now, side, tick, lots, left, behind):  # type: ignore[no-untyped-def]
    at = tick & RING_MASK
    if behind <= tape.near:
        tape.stacked[side] += lots
    filled = tape.filled[side, at]
    if filled > 0 and tape.filled_tick[side, at] == tick and now - tape.filled_at[side, at] <= REFILL_US:
        part = min(lots, filled)
        tape.filled[side, at] = 0
        if left == tape.peak[side, at]:
            times = tape.refills[side, at] + 1
            tape.refills[side, at] = times
            if times == REFILLS:
                part += tape.refilled[side, at]
            if times < REFILLS:
                tape.refilled[side, at] += part
            else:
                tape.iceberg[side] += part
                tape.smart_lots += part
                tape.smart_worth += part * tick
        else:
            tape.peak[side, at], tape.refills[side, at], tape.refilled[side, at] = left, 1, part
    if behind > SPOOF_NEAR * tape.near:
        return
    if tape.adds >= USUAL and lots >= SPOOF * tape.usual:
        k = tape.suspects
        if k == SUSPECTS:  # the one watched longest goes
            k = 0
            for i in range(1, SUSPECTS):
                if tape.suspect[i, 4] < tape.suspect[k, 4]:
                    k = i
        else:
            tape.suspects = k + 1
        tape.suspect[k, 0], tape.suspect[k, 1], tape.suspect[k, 2] = side, tick, lots
        tape.suspect[k, 3], tape.suspect[k, 4] = 0, now
    tape.adds += 1
    tape.usual += (lots - tape.usual) * (USUAL_RATE if tape.adds > USUAL else 1.0 / tape.adds)


@kernel
def _drop(tape, k):  # type: ignore[no-untyped-def]
    last = tape.suspects - 1
    for j in range(5):
        tape.suspect[k, j] = tape.suspect[last, j]
    tape.suspects = last


@kernel
def _cancel(tape, now, side, tick, lots, behind):  # type: ignore[no-untyped-def]
    if behind <= tape.near:
        tape.stacked[side] -= lots
    k = tape.suspects - 1
    while k >= 0:
        if tape.suspect[k, 1] == tick and tape.suspect[k, 0] == side:
            tape.suspect[k, 3] += lots
            late = now - tape.suspect[k, 4] > SPOOF_US
            gone = tape.suspect[k, 3] >= WITHDRAWN * tape.suspect[k, 2]
            if gone and not late:
                tape.spoof[side] += 1
            if gone or late:
                _drop(tape, k)
        k -= 1


@kernel
def _trade(tape, now, side, tick, lots):  # type: ignore[no-untyped-def]
    if tape.order_lots > 0 and (now != tape.order_at or side != tape.order_side):
        _end_order(tape)
    tape.order_at, tape.order_side = now, side
    tape.order_lots += lots
    tape.order_worth += lots * tick
    cell = tick // tape.grain
    if tape.fills == 0:
        tape.lowest = tape.highest = cell
    cell = max(min(cell, tape.lowest + RING - 1), tape.highest - RING + 1)  # further off than the ring: at its edge
    tape.lowest, tape.highest = min(tape.lowest, cell), max(tape.highest, cell)
    tape.footprint[side, cell & RING_MASK] += lots
    tape.fills += 1
    at = tick & RING_MASK
    if tape.filled_tick[side, at] != tick:
        tape.filled_tick[side, at], tape.filled[side, at], tape.peak[side, at] = tick, 0, -1
    tape.filled[side, at] += lots
    tape.filled_at[side, at] = now
    k = tape.suspects - 1
    while k >= 0:
        if tape.suspect[k, 1] == tick and tape.suspect[k, 0] == side:
            _drop(tape, k)
        k -= 1


@kernel
def _look(tape, now):  # type: ignore[no-untyped-def]
    """The heatmap looks at the book as it stood at each whole five seconds up to `now`."""
    if tape.next_sample == 0:
        tape.next_sample = now - now % SAMPLE_US + SAMPLE_US
    if tape.next_sample < now - MOST_LOOKS * SAMPLE_US:
        tape.next_sample = now - now % SAMPLE_US - (MOST_LOOKS - 1) * SAMPLE_US
    while tape.next_sample <= now:
        bid, ask = tape.best[BID], tape.best[ASK]
        heatmap_add_snapshot(tape.heat, tape.depth, RING_MASK, bid, ask, bid - REACH, ask + REACH)
        tape.next_sample += SAMPLE_US


@kernel
def skip_samples_until(tape, until):  # type: ignore[no-untyped-def]
    """Nothing will be told before `until` (microseconds): of the looks till then only the last ones would be kept."""
    tape.next_sample = max(tape.next_sample, until - until % SAMPLE_US - (MOST_LOOKS - 1) * SAMPLE_US)


@kernel
def apply_events(tape, rows, first, last):  # type: ignore[no-untyped-def]
    """Take in the events rows[first:last] (n, LOG_WIDTH), in time order and after all that were read before."""
    for r in range(first, last):
        now, kind, side = rows[r, 0], rows[r, 1], rows[r, 2]
        tick, lots, left = rows[r, 3], rows[r, 4], rows[r, 5]
        if tape.next_sample < now:
            _look(tape, now - 1)  # what happens at the very moment is not seen yet
        worse, best = 2 * side - 1, tape.best[side]
        behind = (tick - best) * worse
        tape.depth[side, tick & RING_MASK] = left
        if left > 0:
            if behind < 0:
                tape.best[side] = tick
        elif behind == 0:
            _find_best(tape, side, tick)
        if kind == ADD:
            _add(tape, now, side, tick, lots, left, behind)
        elif kind == TRADE:
            _trade(tape, now, side, tick, lots)
        else:
            _cancel(tape, now, side, tick, lots, behind)


@kernel
def _stacks(tape, out):  # type: ignore[no-untyped-def]
    """Runs of imbalanced price buckets of the span; the footprint is empty afterwards."""
    out[_STACKED_BUYING] = out[_STACKED_SELLING] = 0.0
    if tape.fills == 0:
        return
    low = tape.lowest
    span = tape.highest - low + 1
    width = (span + BUCKETS - 1) // BUCKETS
    buying = selling = 0
    sold_below = np.int64(0)
    for bucket in range((span + width - 1) // width):
        sold = bought = np.int64(0)
        for cell in range(low + bucket * width, min(low + (bucket + 1) * width, low + span)):
            at = cell & RING_MASK
            sold += tape.footprint[BID, at]
            bought += tape.footprint[ASK, at]
            tape.footprint[BID, at] = tape.footprint[ASK, at] = 0
        # the sellers' imbalance of the bucket below is known once this one is
        buying = buying + 1 if sold_below > 0 and bought >= RATIO * sold_below else 0
        selling = selling + 1 if bought > 0 and sold_below >= RATIO * bought else 0
        if buying == RUN:
            out[_STACKED_BUYING] += 1.0
        if selling == RUN:
            out[_STACKED_SELLING] += 1.0
        sold_below = sold


@kernel
def write_row(tape, now, out):  # type: ignore[no-untyped-def]
    """Write what the span up to `now` (microseconds) was into out (TAPE_WIDTH,), and begin the next one.

    The two order flows are left as they are: the book itself keeps them. All events up to `now` must have been read.
    """
    if tape.order_lots > 0:
        _end_order(tape)
    _look(tape, now)
    lots, price = tape.lots, tape.price
    _stacks(tape, out)
    for side in range(2):
        out[_STACKING + side] = tape.stacked[side] / lots
        out[_ICEBERG + side] = tape.iceberg[side] / lots
        out[_SPOOF + side] = tape.spoof[side]
    out[_LARGE_BUY] = out[_LARGE_SELL] = out[_CVD_LARGE] = out[_CVD_SMALL] = out[_SMART] = out[_VPIN] = np.nan
    if tape.whole:
        out[_LARGE_BUY], out[_LARGE_SELL] = tape.large[ASK] / lots, tape.large[BID] / lots
        out[_CVD_LARGE], out[_CVD_SMALL] = tape.cvd_large / lots, tape.cvd_small / lots
        if tape.smart_lots > 0:
            out[_SMART] = tape.smart_worth / tape.smart_lots * price
    if tape.buckets >= VPIN_BUCKETS:
        total = 0.0
        for k in range(VPIN_BUCKETS):
            total += tape.imbalances[k]
        out[_VPIN] = total / VPIN_BUCKETS
    hawkes_write_row(tape.hawkes, now * 1e-6, out[_HAWKES : _HAWKES + 3])
    heatmap_write_row(tape.heat, price, out[_HEAT : _HEAT + 7])
    tape.stacked[:] = tape.large[:] = tape.iceberg[:] = tape.spoof[:] = 0
    tape.cvd_large = tape.cvd_small = tape.smart_lots = tape.smart_worth = tape.fills = 0
    if tape.orders >= ORDERS:
        tape.whole, tape.middle = 1, _median(tape.worth, tape.scratch)
