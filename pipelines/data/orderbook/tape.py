"""Measures of the events inside a bar: a reader of book events that fills a row of context_layout.TAPE.

It reads rows as limit_order_book logs them, in time order, from any writer, and stores the size of each level as the
`lots left` of its newest row. `apply_events` reads events, `write_row` writes a row at a snapshot and begins the next
span. The whole state is one flat record, so a tape read in two parts equals the same tape read at once. Integers
throughout: lots, ticks, microseconds; `write_row` turns them into base asset and quote currency.

Fills of one side in the same microsecond are one order of a taker. Large, small and usual are measured against the last
ORDERS orders, so these columns are NaN before there were as many.

stacked     Prices between the lowest and the highest trade of the span are cut into BUCKETS. A bucket is imbalanced
            when takers bought RATIO times what they sold in the bucket below (or sold RATIO times what they bought in
            the one above), both above 0. RUN or more such buckets, one above the other, count as one stack.
stacking    Lots added less lots cancelled within `near` ticks of the best price; trades apart.
large       Orders above the 99 % quantile of the ORDERS orders before them.
iceberg     A fill that is followed within REFILL_US by new lots at the same price is a refill; REFILLS of them in turn
            that bring the level back to the same size show a hidden order (exchanges refill its displayed peak in
            full), and the lots they replaced were its own. A maker who quotes again where a level was emptied shows
            another size.
spoof       An order of SPOOF usual sizes (mean of the last USUAL or so that were added near the best) near the best
            price, of which WITHDRAWN is cancelled within SPOOF_US, before anything trades at its price.
cvd         Signed volume of orders above, and not above, the median notional of the ORDERS orders before the span.
vpin        Easley, Lopez de Prado and O'Hara 2012, Rev. Financial Studies 25(5), 1457-1493: mean of |bought - sold| /
            volume over the last VPIN_BUCKETS buckets of equal volume. Takers' sides are recorded, none is inferred. A
            bucket is the volume of ORDERS / PER_BUCKET = 50 average orders when it begins: time by trade, as there, and
            as good for a recording of minutes as for a year.
"""

from typing import Any

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import TAPE_INDEX
from pipelines.contracts import Floats, Ints
from pipelines.data.orderbook.hawkes import HAWKES_STATE, HAWKES_WIDTH, hawkes_add_trade, hawkes_write_row
from pipelines.data.orderbook.heatmap import (
    EVERY_S,
    HEAT_STATE,
    SUMMARY,
    Heatmap,
    heatmap,
    heatmap_add_snapshot,
    heatmap_write_row,
)
from pipelines.data.orderbook.limit_order_book import ADD, ASK, BID, NO_TICK, TRADE, BookRecord
from pipelines.data.orderbook.limit_order_book import RING_MASK as BOOK_MASK

RING = 4096  # ticks: fifty levels a side of a basis point each, at a tick of a thirtieth of one
RING_MASK = RING - 1
REACH = RING // 2 - 64  # ticks behind the best price that surely lie in the ring
ORDERS = 1000
BEYOND = 10  # orders of the window that the 99 % quantile leaves above it
TOP = 64  # largest orders of the window that are stored in order
BUCKETS, RATIO, RUN = 16, 3, 3
REFILL_US, REFILLS = 100_000, 2
SPOOF, WITHDRAWN, SPOOF_US = 5.0, 0.8, 60_000_000
SPOOF_NEAR = 2  # times `near`
SUSPECTS = 8  # large orders that are watched at a time
SUSPECT_FIELDS = ("side", "tick", "lots", "cancelled", "added_at")  # lots; epoch microseconds
_SIDE, _TICK, _LOTS, _CANCELLED, _ADDED_AT = range(len(SUSPECT_FIELDS))
USUAL = 1000  # added orders whose mean size is the usual one, older ones weighing less; NaN before as many
USUAL_RATE = 1.0 / USUAL
PER_BUCKET, VPIN_BUCKETS = 20, 50
SAMPLE_US = int(EVERY_S * 1e6)
MAX_SAMPLES = 50  # of a book that did not change for longer

_STACKED_BUYING, _STACKED_SELLING = TAPE_INDEX["stacked_buying"], TAPE_INDEX["stacked_selling"]
_STACKING = TAPE_INDEX["stacking_bid"]  # bid, then ask
_HAWKES_AT, _HEAT_AT = TAPE_INDEX["hawkes_branching"], TAPE_INDEX["heat_imbalance"]
_HAWKES, _HEAT = slice(_HAWKES_AT, _HAWKES_AT + HAWKES_WIDTH), slice(_HEAT_AT, _HEAT_AT + len(SUMMARY))
_LARGE_BUY, _LARGE_SELL = TAPE_INDEX["large_buy"], TAPE_INDEX["large_sell"]
_ICEBERG, _SPOOF, _SMART = TAPE_INDEX["iceberg_bid"], TAPE_INDEX["spoof_bid"], TAPE_INDEX["smart_price"]
_CVD_LARGE, _CVD_SMALL, _VPIN = TAPE_INDEX["cvd_large"], TAPE_INDEX["cvd_small"], TAPE_INDEX["vpin"]

_I, _F = np.int64, np.float64
TapeRecord = Any  # one element of an array of dtype STATE: numpy and numba have no common type for it
TapeRecords = Any  # (1,) array of it
STATE: list[Any] = [
    ("lots", _F), ("price", _F),  # lots in one unit of the base asset; quote currency of a tick
    ("near", _I), ("grain", _I),  # ticks: how far from the best counts as near; in a cell of the footprint
    ("depth", _I, (2, RING)), ("best", _I, 2),  # lots at each level, by its newest row; best tick of each side
    ("next_sample", _I),  # microseconds: the heatmap's next snapshot; 0 = not begun
    # the order of a taker whose fills are still coming: microseconds, side of the book, lots, lots times ticks
    ("order_at", _I), ("order_side", _I), ("order_lots", _I), ("order_notional", _I),
    # the last orders, a ring: lots, lots times ticks; how many ever, total of the ring's lots
    ("order_size", _I, ORDERS), ("notional", _I, ORDERS), ("orders", _I), ("traded_lots", _I),
    ("top", _I, TOP), ("tops", _I),  # the largest of them, largest first
    ("middle", _I), ("scratch", _I, ORDERS),  # lots times ticks: median of them at the newest snapshot, -1 = not yet
    # of the span, by side of the book: filled there, net added, …
    ("footprint", _I, (2, RING)), ("lowest", _I), ("highest", _I), ("fills", _I),
    ("stacked", _I, 2), ("large", _I, 2), ("iceberg", _I, 2), ("spoof", _I, 2),
    ("cvd_large", _I), ("cvd_small", _I), ("smart_lots", _I), ("smart_notional", _I),
    ("whole", _I),  # 1: when the span began, the window of orders was full
    # fills of each level: its tick, when last, lots since it was refilled; size after the refill, how often in turn,
    # lots of the first of them
    ("filled_tick", _I, (2, RING)), ("filled_at", _I, (2, RING)), ("filled", _I, (2, RING)),
    ("peak", _I, (2, RING)), ("refills", _I, (2, RING)), ("refilled", _I, (2, RING)),
    # large orders that are watched, columns SUSPECT_FIELDS
    ("suspect", _I, (SUSPECTS, len(SUSPECT_FIELDS))), ("suspects", _I), ("usual", _F), ("adds", _I),
    ("bucket", _I), ("bucket_lots", _I), ("bucket_net", _I), ("imbalances", _F, VPIN_BUCKETS), ("buckets", _I),
    ("hawkes", _F, HAWKES_STATE), ("heat", _F, HEAT_STATE),
]  # fmt: skip


def fresh_tape(lots: float, price: float, near: int = 10, grain: int = 1) -> TapeRecords:
    """Return a (1,) record that has read no event; compiled code gets its one element.

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


def latest_heatmap(tape: TapeRecord) -> Heatmap:
    """Return the heatmap of a tape's newest snapshots. Raises NotEnoughData before there were enough."""
    return heatmap(tape["heat"], float(tape["price"]), (int(tape["next_sample"]) - SAMPLE_US) / 1e6)


@kernel
def reset_book(tape: TapeRecord) -> None:
    """Forget every level and all that was measured of them: the book was lost."""
    tape.depth[:] = 0
    tape.best[BID], tape.best[ASK] = -NO_TICK, NO_TICK
    tape.suspects = 0
    tape.filled_tick[:] = 0
    tape.heat[:] = 0.0


@kernel
def load_book(tape: TapeRecord, book: BookRecord, now: int) -> None:
    """Copy the levels that rest in `book` at `now` (int64 microseconds); the events before are not known."""
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
def _find_best(tape: TapeRecord, side: int, tick: int) -> None:
    """Set the side's best tick (int64): `tick` or the first one beyond it that holds lots."""
    worse = 2 * side - 1
    for _ in range(RING):
        if tape.depth[side, tick & RING_MASK] > 0:
            tape.best[side] = tick
            return
        tick += worse
    tape.best[side] = NO_TICK * worse


@kernel
def _rank(tape: TapeRecord, lots: int) -> None:
    """Insert an order of `lots` (int64) among the largest, if it is one of them."""
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
def _rank_all(tape: TapeRecord) -> None:
    """Find the TOP largest orders of the whole window again."""
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
def _push_order(tape: TapeRecord, lots: int, notional: int) -> None:
    """Add an order (int64 lots, lots times ticks) to the window and drop the oldest; the largest stay exact."""
    at = tape.orders % ORDERS
    old = tape.order_size[at]
    tape.order_size[at], tape.notional[at] = lots, notional
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
def _median(values: Ints, scratch: Ints) -> int:
    """Return the lower median of values (n,) int64, exactly, by selection; scratch (n,) int64 is overwritten."""
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
    median: int = scratch[wanted]
    return median


@kernel
def _fill_buckets(tape: TapeRecord, lots: int, way: int) -> None:
    """Add an order (int64 lots; way +1 buy, -1 sell) to buckets of equal volume; a large one fills several."""
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
def _end_order(tape: TapeRecord) -> None:
    """Account for a taker's order once all its fills have come."""
    lots, notional, side = tape.order_lots, tape.order_notional, tape.order_side
    tape.order_lots = tape.order_notional = 0
    way = 2 * side - 1  # who eats the ask buys
    hawkes_add_trade(tape.hawkes, tape.order_at * 1e-6, float(way))
    if tape.orders >= ORDERS:
        if lots > tape.top[BEYOND]:
            tape.large[side] += lots
            tape.smart_lots += lots
            tape.smart_notional += notional
        _fill_buckets(tape, lots, way)
    if notional > tape.middle:
        tape.cvd_large += way * lots
    else:
        tape.cvd_small += way * lots
    _push_order(tape, lots, notional)


@kernel
def _add(tape: TapeRecord, now: int, side: int, tick: int, lots: int, left: int, behind: int) -> None:
    """Read lots added to a level: stacking, refills, suspects. All int64; behind: ticks from the best price."""
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
                tape.smart_notional += part * tick
        else:
            tape.peak[side, at], tape.refills[side, at], tape.refilled[side, at] = left, 1, part
    if behind > SPOOF_NEAR * tape.near:
        return
    if tape.adds >= USUAL and lots >= SPOOF * tape.usual:
        k = tape.suspects
        if k == SUSPECTS:  # the one watched longest goes
            k = 0
            for i in range(1, SUSPECTS):
                if tape.suspect[i, _ADDED_AT] < tape.suspect[k, _ADDED_AT]:
                    k = i
        else:
            tape.suspects = k + 1
        tape.suspect[k, _SIDE], tape.suspect[k, _TICK], tape.suspect[k, _LOTS] = side, tick, lots
        tape.suspect[k, _CANCELLED], tape.suspect[k, _ADDED_AT] = 0, now
    tape.adds += 1
    tape.usual += (lots - tape.usual) * (USUAL_RATE if tape.adds > USUAL else 1.0 / tape.adds)


@kernel
def _drop(tape: TapeRecord, k: int) -> None:
    """Stop watching suspect number k (int64)."""
    last = tape.suspects - 1
    for j in range(len(SUSPECT_FIELDS)):
        tape.suspect[k, j] = tape.suspect[last, j]
    tape.suspects = last


@kernel
def _cancel(tape: TapeRecord, now: int, side: int, tick: int, lots: int, behind: int) -> None:
    """Read lots cancelled at a level: stacking and spoofs. All int64; behind: ticks from the best price."""
    if behind <= tape.near:
        tape.stacked[side] -= lots
    k = tape.suspects - 1
    while k >= 0:
        if tape.suspect[k, _TICK] == tick and tape.suspect[k, _SIDE] == side:
            tape.suspect[k, _CANCELLED] += lots
            late = now - tape.suspect[k, _ADDED_AT] > SPOOF_US
            gone = tape.suspect[k, _CANCELLED] >= WITHDRAWN * tape.suspect[k, _LOTS]
            if gone and not late:
                tape.spoof[side] += 1
            if gone or late:
                _drop(tape, k)
        k -= 1


@kernel
def _trade(tape: TapeRecord, now: int, side: int, tick: int, lots: int) -> None:
    """Read a fill at a level: the taker's order, the footprint, refills to come. All int64."""
    if tape.order_lots > 0 and (now != tape.order_at or side != tape.order_side):
        _end_order(tape)
    tape.order_at, tape.order_side = now, side
    tape.order_lots += lots
    tape.order_notional += lots * tick
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
        if tape.suspect[k, _TICK] == tick and tape.suspect[k, _SIDE] == side:
            _drop(tape, k)
        k -= 1


@kernel
def _sample_heatmap(tape: TapeRecord, now: int) -> None:
    """Add the book as it stood at each whole five seconds up to `now` (int64 microseconds) to the heatmap."""
    if tape.next_sample == 0:
        tape.next_sample = now - now % SAMPLE_US + SAMPLE_US
    if tape.next_sample < now - MAX_SAMPLES * SAMPLE_US:
        tape.next_sample = now - now % SAMPLE_US - (MAX_SAMPLES - 1) * SAMPLE_US
    while tape.next_sample <= now:
        bid, ask = tape.best[BID], tape.best[ASK]
        heatmap_add_snapshot(tape.heat, tape.depth, RING_MASK, bid, ask, bid - REACH, ask + REACH)
        tape.next_sample += SAMPLE_US


@kernel
def skip_samples_until(tape: TapeRecord, until: int) -> None:
    """Skip heatmap samples that no row will show.

    No row is written before `until` (int64 microseconds): of the samples till then only the last ones would remain.
    """
    tape.next_sample = max(tape.next_sample, until - until % SAMPLE_US - (MAX_SAMPLES - 1) * SAMPLE_US)


@kernel
def apply_events(tape: TapeRecord, rows: Ints, first: int, last: int) -> None:
    """Read the events rows[first:last] (n, LOG_WIDTH) int64, in time order and after all read before."""
    for r in range(first, last):
        now, kind, side = rows[r, 0], rows[r, 1], rows[r, 2]
        tick, lots, left = rows[r, 3], rows[r, 4], rows[r, 5]
        if tape.next_sample < now:
            _sample_heatmap(tape, now - 1)  # events at the very moment come after the sample
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
def _stacks(tape: TapeRecord, out: Floats) -> None:
    """Count runs of imbalanced price buckets of the span into out (TAPE_WIDTH,) float64; empty the footprint."""
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
def write_row(tape: TapeRecord, now: int, out: Floats) -> None:
    """Write the measures of the span up to `now` (int64 microseconds) into out (TAPE_WIDTH,) float64.

    The next span begins. The two order flows are left as they are: the book itself sums them. All events up to `now`
    must have been read.
    """
    if tape.order_lots > 0:
        _end_order(tape)
    _sample_heatmap(tape, now)
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
            out[_SMART] = tape.smart_notional / tape.smart_lots * price
    if tape.buckets >= VPIN_BUCKETS:
        total = 0.0
        for k in range(VPIN_BUCKETS):
            total += tape.imbalances[k]
        out[_VPIN] = total / VPIN_BUCKETS
    hawkes_write_row(tape.hawkes, now * 1e-6, out[_HAWKES])
    heatmap_write_row(tape.heat, price, out[_HEAT])
    tape.stacked[:] = tape.large[:] = tape.iceberg[:] = tape.spoof[:] = 0
    tape.cvd_large = tape.cvd_small = tape.smart_lots = tape.smart_notional = tape.fills = 0
    if tape.orders >= ORDERS:
        tape.whole, tape.middle = 1, _median(tape.notional, tape.scratch)
