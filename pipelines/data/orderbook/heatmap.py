"""A heatmap of an order book: 100 price levels by 50 snapshots, one every 5 s (signal S9).

A level is a bucket of equal width, at `tick // width` whatever the book does, so that levels of different snapshots are
the same prices. The width is the largest power of two of ticks that is at most LEVEL_BPS of the mid (at least one
tick): the book decides it, not where the recording began. A snapshot holds the 50 levels from the best bid down and
the 50 from the best ask up; a bucket that both sides rest in is a level of each. Only snapshots of the newest one's
width are compared; the width changes when the price doubles, and little is lost where it changes back and forth.

A wall is a level of MIN_WALL_MEDIANS medians of its side (over the levels that hold anything) or more, now and in
MIN_PERSISTENCE of the snapshots. Every output is NaN before MIN_SNAPSHOTS snapshots. The caller adds a snapshot every
EVERY_S seconds and sets the state to zeros where the book was lost.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Floats, Ints
from pipelines.data.orderbook.limit_order_book import NO_TICK
from pipelines.errors import NotEnoughData
from pipelines.layout import offsets

SNAPSHOTS, EVERY_S = 50, 5.0
LEVELS_PER_SIDE = 50  # levels of a side
LEVELS = 2 * LEVELS_PER_SIDE
LEVEL_BPS = 1.0  # of the mid: 50 levels reach some 25 to 50 bps
MIN_WALL_MEDIANS = 5.0  # medians
MIN_PERSISTENCE = 0.6  # share of the snapshots
MIN_SNAPSHOTS = int(MIN_PERSISTENCE * SNAPSHOTS)
MIN_LEVELS = 10  # levels a side must hold before one of them can stand out
CLUSTER = 2.0  # medians of the window's mean level, from which neighbouring prices form a cluster

# a snapshot's row: width of a level and best bid and ask in ticks, median level of each side (0 where no level can be a
# wall: to find it is most of the work), total of the levels of each side, Herfindahl-Hirschman index, liquidity, then
# the levels, lowest price first
_ROW_PARTS = {
    "width": 1, "best_bid": 1, "best_ask": 1, "median": 2, "resting": 2, "concentration": 1, "liquidity": 1,
    "levels": LEVELS,
}  # fmt: skip
WIDTH, BEST_BID, BEST_ASK, MEDIAN, RESTING, CONCENTRATION, LIQUIDITY, FIRST = offsets(_ROW_PARTS)
ROW = sum(_ROW_PARTS.values())
SUMMARY = ("imbalance", "concentration", "liquidity", "wall_bid", "wall_ask", "wall_bid_size", "wall_ask_size")
_IMBALANCE, _MEAN_CONCENTRATION, _MEAN_LIQUIDITY, _WALL, _, _WALL_SIZE, _ = range(len(SUMMARY))
HEAT_STATE = 1 + SNAPSHOTS * ROW  # snapshots so far; ring of their rows. All 0: no snapshot yet


@kernel
def level_width(best_bid: int, best_ask: int) -> int:
    """Return the width of a level in ticks (int64): the largest power of two within LEVEL_BPS of the mid."""
    width, most = 1, LEVEL_BPS * 1e-4 * 0.5 * (best_bid + best_ask)
    while 2 * width <= most:
        width *= 2
    return width


@kernel
def heatmap_add_snapshot(
    state: Floats,
    depth: Ints,
    mask: int,
    best_bid: int,
    best_ask: int,
    far_bid: int,
    far_ask: int,
) -> None:
    """Add a snapshot of a book to state (HEAT_STATE,) float64.

    depth   (2, ring) int64 sizes at `tick & mask`, bid and ask; no level lies beyond far_bid or far_ask
    Ticks (int64) are counted from price 0. A book without a bid or without an ask is skipped.
    """
    if abs(best_bid) >= NO_TICK or abs(best_ask) >= NO_TICK:
        return
    width = level_width(best_bid, best_ask)
    seen = int(state[0])
    row = state[1 + seen % SNAPSHOTS * ROW : 1 + (seen % SNAPSHOTS + 1) * ROW]
    row[:] = 0.0
    row[WIDTH], row[BEST_BID], row[BEST_ASK] = width, best_bid, best_ask
    squares = 0.0
    for side in range(2):
        away = 2 * side - 1
        best, far = (best_ask, far_ask) if side else (best_bid, far_bid)
        bucket = best // width
        filled, resting, largest = 0, 0.0, 0.0
        for j in range(LEVELS_PER_SIDE):
            low, high = (bucket + away * j) * width, (bucket + away * j + 1) * width - 1
            if side:
                low, high = max(low, best), min(high, far)
            else:
                low, high = max(low, far), min(high, best)
            size = 0.0
            for tick in range(low, high + 1):
                size += depth[side, tick & mask]
            if size > 0.0:
                filled += 1
                resting += size
                largest = max(largest, size)
                squares += size * size
                row[FIRST + LEVELS_PER_SIDE + j if side else FIRST + LEVELS_PER_SIDE - 1 - j] = size
        row[RESTING + side] = resting
        if filled >= MIN_LEVELS:
            levels, low_ones = row[FIRST + LEVELS_PER_SIDE * side : FIRST + LEVELS_PER_SIDE * (side + 1)], 0
            for size in levels:
                low_ones += 0.0 < size <= largest / MIN_WALL_MEDIANS
            if 2 * low_ones >= filled - 1:  # else the median is above that, and not even the largest level is a wall
                row[MEDIAN + side] = np.median(levels[levels > 0.0])
    both = row[RESTING] + row[RESTING + 1]
    row[CONCENTRATION] = squares / (both * both)
    row[LIQUIDITY] = 1.0 / (LEVELS * row[CONCENTRATION]) / (1.0 + (best_ask - best_bid - 1) / width)
    state[0] = seen + 1


@kernel
def _newest(state: Floats, rows: Ints) -> int:
    """Fill rows (SNAPSHOTS,) int64 with the offsets of the snapshots of the newest width; return how many.

    Newest first; state (HEAT_STATE,) float64.
    """
    seen, found, width = int(state[0]), 0, 0.0
    for back in range(min(seen, SNAPSHOTS)):
        at = 1 + (seen - 1 - back) % SNAPSHOTS * ROW
        if back == 0:
            width = state[at + WIDTH]
        if state[at + WIDTH] == width:
            rows[found] = at
            found += 1
    return found


@kernel
def _place(state: Floats, at: int, side: int, bucket: float) -> int:
    """Return the index into a snapshot's levels of a price bucket of one side; -1 where its levels do not reach."""
    best = state[at + BEST_ASK] if side else state[at + BEST_BID]
    j = int((2 * side - 1) * (bucket - best // state[at + WIDTH]))
    if j < 0 or j >= LEVELS_PER_SIDE:
        return -1
    return LEVELS_PER_SIDE + j if side else LEVELS_PER_SIDE - 1 - j


@kernel
def _stands_out(state: Floats, at: int, side: int, bucket: float) -> float:
    """Return the medians that the level holds (float64) if it is a wall of this snapshot, else 0."""
    level, median = _place(state, at, side, bucket), state[at + MEDIAN + side]
    if level < 0 or median == 0.0 or state[at + FIRST + level] < MIN_WALL_MEDIANS * median:
        return 0.0
    medians: float = state[at + FIRST + level] / median
    return medians


@kernel
def find_liquidity_walls(state: Floats, rows: Ints, found: int, side: int, most: int, walls: Floats) -> int:
    """Write the nearest `most` persistent walls of a side into walls (most, 3) float64; return how many.

    rows   (SNAPSHOTS,) int64 offsets of `found` snapshots in state, newest first
    walls  bucket, medians now, share of the snapshots it stands out in
    """
    at, made, j = rows[0], 0, 0
    bucket = (state[at + BEST_ASK] if side else state[at + BEST_BID]) // state[at + WIDTH]
    while j < LEVELS_PER_SIDE and made < most:
        now = _stands_out(state, at, side, bucket)
        if now > 0.0:
            stood = 0
            for k in range(found):
                if _stands_out(state, rows[k], side, bucket) > 0.0:
                    stood += 1
            if stood >= MIN_PERSISTENCE * found:
                walls[made, 0], walls[made, 1], walls[made, 2] = bucket, now, stood / found
                made += 1
        bucket += 2 * side - 1
        j += 1
    return made


@kernel
def middle(bucket: float, width: float, tick_price: float) -> float:
    """Return the quote price of the middle of a level (float64)."""
    return ((bucket + 0.5) * width - 0.5) * tick_price


@kernel
def heatmap_write_row(state: Floats, tick_price: float, out: Floats) -> None:
    """Write the window's summary into out (7,) float64, in the order of SUMMARY.

    All NaN before MIN_SNAPSHOTS snapshots of one width. tick_price: quote currency of a tick.
    out[0]     imbalance: (bid - ask) / both, of all that rested within the levels over the window
    out[1]     concentration: Herfindahl-Hirschman index of a snapshot's levels, mean of the window; 1/100 … 1
    out[2]     liquidity, mean of the window: share of the 100 levels that hold anything, times their evenness (their
               effective number 1/HHI over how many they are), times closeness 1 / (1 + ticks that are missing between
               the best bid and ask / width). 1 = all levels equal and the spread one tick
    out[3, 4]  price of the nearest persistent wall below, above (the middle of its level); NaN = none
    out[5, 6]  their sizes now, in medians
    """
    out[:] = np.nan
    rows, walls = np.empty(SNAPSHOTS, np.int64), np.empty((1, 3))
    found = _newest(state, rows)
    if found < MIN_SNAPSHOTS:
        return
    bid = ask = concentration = liquidity = 0.0
    for k in range(found):
        at = rows[k]
        bid += state[at + RESTING]
        ask += state[at + RESTING + 1]
        concentration += state[at + CONCENTRATION]
        liquidity += state[at + LIQUIDITY]
    out[_IMBALANCE] = (bid - ask) / (bid + ask)
    out[_MEAN_CONCENTRATION], out[_MEAN_LIQUIDITY] = concentration / found, liquidity / found
    for side in range(2):
        if find_liquidity_walls(state, rows, found, side, 1, walls):
            out[_WALL + side] = middle(walls[0, 0], state[rows[0] + WIDTH], tick_price)
            out[_WALL_SIZE + side] = walls[0, 1]


def _price(bucket: float, width: float, tick_price: float) -> float:
    """Return the quote price of the middle of a level to eight decimals: no tick is finer."""
    return round(float(middle(bucket, width, tick_price)), 8)


@dataclass(frozen=True, slots=True)
class LiquidityWall:
    """Hold one wall.

    side         +1 bid, -1 ask
    price, size  quote currency; medians of its side now
    persistence  share of the snapshots it stood out in
    """

    side: int
    price: float
    size: float
    persistence: float


@dataclass(frozen=True, slots=True)
class Cluster:
    """Hold neighbouring prices, each with CLUSTER medians or more over the window. side +1 bid, -1 ask.

    low, high  lowest and highest of their middles in quote currency; share: of all that rested on the side
    """

    side: int
    low: float
    high: float
    share: float


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Hold k snapshots of one width, oldest first; sizes as the book had them.

    times      (k,) epoch seconds
    best       (k, 2) best bid and ask, quote currency
    prices     (k, 100) middle of each level in quote currency, lowest first; the first 50 are bids
    volume     (k, 100) size that rested there
    intensity  (k, 100) volume / largest volume of the picture, 0 … 1
    profile    (2, 50) mean of what rested on the bid and ask within so many levels of the best price
    width      quote currency of a level
    summary    (7,) as `heatmap_write_row` writes it, in the order of SUMMARY
    """

    times: Floats
    best: Floats
    prices: Floats
    volume: Floats
    intensity: Floats
    profile: Floats
    clusters: tuple[Cluster, ...]
    liquidity_walls: tuple[LiquidityWall, ...]
    width: float
    summary: Floats


def heatmap(state: Floats, tick_price: float, newest: float) -> Heatmap:
    """Return the heatmap of a state whose newest snapshot was taken at `newest` (epoch seconds).

    Raises NotEnoughData before MIN_SNAPSHOTS snapshots of one width.
    """
    rows = np.empty(SNAPSHOTS, np.int64)
    found = _newest(state, rows)
    if found < MIN_SNAPSHOTS:
        raise NotEnoughData(
            f"heatmap: {found} snapshots of one width, needs {MIN_SNAPSHOTS}. Take them {EVERY_S:g} s apart."
        )
    newest_first = rows[:found].copy()
    back = (newest_first[0] - newest_first) // ROW % SNAPSHOTS
    table = state[newest_first[::-1, None] + np.arange(ROW)]
    volume, width = table[:, FIRST:], table[-1, WIDTH]
    bid, ask = (table[:, [at]] // width for at in (BEST_BID, BEST_ASK))
    buckets = np.hstack([bid + np.arange(-LEVELS_PER_SIDE + 1, 1), ask + np.arange(LEVELS_PER_SIDE)])
    summary = np.empty(len(SUMMARY))
    heatmap_write_row(state, tick_price, summary)
    walls = []
    for side in range(2):
        room = np.empty((LEVELS_PER_SIDE, 3))
        made = find_liquidity_walls(state, rows, found, side, LEVELS_PER_SIDE, room)
        for bucket, size, share in room[:made].tolist():
            walls.append(LiquidityWall(1 - 2 * side, _price(bucket, width, tick_price), size, share))
    mean = volume.mean(axis=0)
    return Heatmap(
        times=newest - EVERY_S * back[::-1],
        best=np.round(table[:, [BEST_BID, BEST_ASK]] * tick_price, 8),
        prices=np.round(middle(buckets, width, tick_price), 8),
        volume=volume,
        intensity=volume / volume.max(),
        profile=np.cumsum([mean[:LEVELS_PER_SIDE][::-1], mean[LEVELS_PER_SIDE:]], axis=1),
        clusters=(*_clusters(buckets, volume, 0, width, tick_price), *_clusters(buckets, volume, 1, width, tick_price)),
        liquidity_walls=tuple(walls),
        width=round(float(width * tick_price), 8),
        summary=summary,
    )


def _clusters(buckets: Floats, volume: Floats, side: int, width: float, tick_price: float) -> list[Cluster]:
    """Return the clusters of a side, nearest first.

    A price counts where it was within the levels of at least MIN_SNAPSHOTS snapshots.
    """
    mine = slice(LEVELS_PER_SIDE, None) if side else slice(None, LEVELS_PER_SIDE)
    known, at = np.unique(buckets[:, mine], return_inverse=True)
    rested = np.bincount(at.ravel(), volume[:, mine].ravel())
    often = np.bincount(at.ravel())
    mean = np.where(often >= MIN_SNAPSHOTS, rested / often, 0.0)
    if (mean > 0).sum() < MIN_LEVELS:
        return []
    dense = np.concatenate([[False], mean >= CLUSTER * np.median(mean[mean > 0]), [False]])
    edges = np.flatnonzero(dense[1:] != dense[:-1]).reshape(-1, 2)
    breaks = [
        Cluster(
            1 - 2 * side,
            _price(known[first], width, tick_price),
            _price(known[end - 1], width, tick_price),
            float(rested[first:end].sum() / rested.sum()),
        )
        for first, end in edges.tolist()
    ]
    return breaks if side else breaks[::-1]
