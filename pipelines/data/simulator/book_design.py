"""The simulated market inside a minute: its constants, its record, its streams of random numbers."""

import math
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from pipelines.compiled import kernel
from pipelines.data.orderbook.limit_order_book import BOOK_FIELDS, empty_book

STEPS = 12  # value steps in a minute: one every five seconds
SLOT_US = 60_000_000 // STEPS
MINUTE_US = 60_000_000
LOTS = 100_000  # lots in one unit of the base asset
SLACK = 64  # ticks that quotes may lie beyond the makers' band before they are withdrawn
FLICKERS = 4  # orders that come or go in each slot whatever happens: at least 48 book events a minute
PATTERNS = ("iceberg", "sweep", "fake")
ICEBERG, SWEEP, FAKE = np.arange(len(PATTERNS))
PLANTED_FIELDS = ("start", "end", "kind", "direction", "tick", "lots")  # start and end in epoch microseconds
PLANTED_WIDTH = len(PLANTED_FIELDS)
PLANTED_A_MINUTE = 8  # that can end in one minute, at most
MAX_ORDERS = 4096  # takers in one minute
LOOKBACK = 240  # minutes whose extremes a sweep runs for

# one stream a quantity, seeded again each minute: a longer draw of one moves none of the others
STREAMS = 5
# int64 scalars, so that compiled code is not specialised for each value
ARRIVALS, SIDES, SIZES, MAKERS, PLANS = np.arange(STREAMS)
_STEP = np.uint64(0x9E3779B97F4A7C15)
MINUTE = np.uint64(0xD1342543DE82EF95)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S11, _S27, _S30, _S31 = np.uint64(11), np.uint64(27), np.uint64(30), np.uint64(31)
ONE, THREE = np.uint64(1), np.uint64(3)
UNIT = 2.0**-53


@dataclass(frozen=True)
class BookDesign:
    """Hold the constants of the market inside a minute. A level's size is in mean order sizes of the minute."""

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
    own_lean: float = 0.30  # sd of the same, independent of u
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
MarketRecord = Any  # one element of an array of dtype MARKET_FIELDS: numpy and numba have no common type for it
MarketRecords = Any  # (1,) array of it
DesignRecord = Any  # one element of what `design_record` returns
DesignRecords = Any  # (1,) array of it
MARKET_FIELDS: list[Any] = [
    *BOOK_FIELDS,
    ("value", _F),  # log value at the end of the minute before
    ("excitement", _F),  # of the arrivals, a second
    ("thickness", _F),  # of the book, mean 0, variance 1
    ("lean", _F),  # of the book towards the bid, independent of u; mean 0, variance 1
    ("level", _F, 2),  # lots that makers put at a level of each side
    ("edge", _I, 2),  # the best tick of each side at which makers want to quote
    ("pulled", _I),  # side whose makers stand back until they next quote; -1: none
    ("flow_before", _I),  # flow at the newest snapshot
    ("lowest_of", _I, LOOKBACK), ("highest_of", _I, LOOKBACK),  # ticks of the minutes before
    ("ice_from", _I), ("ice_until", _I), ("fake_from", _I), ("fake_until", _I), ("fake_size", _I),
    ("planted", _I, (PLANTED_A_MINUTE, PLANTED_WIDTH)), ("ended", _I),  # of this minute
    # this minute's takers, in time order: seconds, side (1 buys, so takes the ask), lots
    ("time", _F, MAX_ORDERS), ("buys", _I, MAX_ORDERS), ("lots", _I, MAX_ORDERS), ("weight", _F, MAX_ORDERS),
    ("takers", _I), ("arrived", _I),
    ("random", np.uint64, STREAMS),
    ("unread", _I),  # 1: since the newest snapshot a minute had more events than its log holds
]  # fmt: skip


def fresh_market(log_value: float) -> MarketRecords:
    """Return a (1,) record: an empty book before the first minute of a market whose log value starts there."""
    market = empty_book(MARKET_FIELDS)
    market["value"] = log_value
    market["pulled"] = -1
    return market


def design_record(design: BookDesign) -> DesignRecords:
    """Return the constants as compiled code reads them: (1,) record of float64 fields."""
    return np.array([astuple(design)], np.dtype([(f.name, _F) for f in fields(BookDesign)]))


@kernel
def draw(market: MarketRecord, stream: int) -> np.uint64:
    """Return 64 random bits (uint64) of a stream (int64) of the market record.

    Source: SplitMix64 (Steele, Lea and Flood 2014, OOPSLA).
    """
    z: np.uint64 = market.random[stream] + _STEP
    market.random[stream] = z
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@kernel
def uniform(market: MarketRecord, stream: int) -> float:
    """Return a uniform float64 in [0, 1) of a stream (int64)."""
    return np.int64(draw(market, stream) >> S11) * UNIT


@kernel
def normal(market: MarketRecord, stream: int) -> float:
    """Return an about normal float64 within 3.5, the sum of four uniforms of a stream (int64)."""
    total = 0.0
    for _ in range(4):
        total += uniform(market, stream)
    return (total - 2.0) * math.sqrt(3.0)
