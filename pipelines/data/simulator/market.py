"""A market made from a seed, with the truth it was made from, so that every learner and detector can be scored.

A value walks 12 steps a minute through four regimes, with seasonal and self-exciting volume and a taker share; inside
each minute a limit order book trades around it (simulator.book_market), and the 1-minute bars are the sum of those
trades. A hidden informed pressure u (Ornstein–Uhlenbeck) leans on the taker share and on the book and moves the value
over the following hours, but how, depends on the regime (`Design.gain`): the flow has to be read together with
volatility and volume. `edge: 0` gives a martingale value with the very same volumes and taker flow.

The same spec gives the same market. Every kind of noise has its own stream, so what happens before the drift date does
not depend on the drift, the history does not depend on `live_days`, and other seeds give independent markets.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from pipelines.context_layout import CONTEXT_INDEX, TAPE_INDEX, TAPE_WIDTH
from pipelines.contracts import BAR_WIDTH, BOOK_LEVELS, OPEN_TIME, Books, ContextFeed, Floats, Ints, Trades
from pipelines.data.orderbook import limit_order_book
from pipelines.data.orderbook.tape import fresh_tape
from pipelines.data.simulator.book_design import (
    LOTS,
    PLANTED_A_MINUTE,
    PLANTED_WIDTH,
    STEPS,
    STREAMS,
    design_record,
    fresh_market,
)
from pipelines.data.simulator.book_market import trade_minutes
from pipelines.data.simulator.latent import (
    DESIGN,
    LATENT,
    MINUTES_A_DAY,
    Design,
    decay_factor,
    regime_table,
    walk,
    walk_parameters,
)
from pipelines.errors import BadValues
from pipelines.params import SimulatorParams

BLOCK = 30 * MINUTES_A_DAY  # minutes made at a time: working arrays stay at a few MB however long the history
FUNDING_S = 28_800  # seconds between funding rates
INTEREST = 1e-4  # part of the funding rate that is independent of the basis
FUNDING_CAP = 0.0075


@dataclass(frozen=True)
class Planted:
    """Hold k planted patterns that are over, in the order they began; those that still run are not among them.

    start, end  (k,) epoch seconds
    kind        (k,) index into book_design.PATTERNS
    direction   (k,) of the price if read in time: +1 for a hidden bid, a swept low, a fake bid; else -1
    price       (k,) quote currency: the level of the order, or the extreme that was swept
    size        (k,) base asset: traded on the iceberg or in the sweep; shown by the fake order
    """

    start: Floats
    end: Floats
    kind: Ints
    direction: Floats
    price: Floats
    size: Floats


@dataclass(frozen=True)
class Truth:
    """Hold the hidden state the bars were made from; row i is minute i. No feature, label or model may read it.

    regime      (n,) index into contracts.REGIMES
    pressure    (n,) u at the start of the minute, mean 0, variance 1
    drift       (n,) expected log return of the minute that the edge planted; 0 everywhere at edge 0
    value       (n,) quote currency, true value at the close of the minute; the quotes lean around it
    drift_time  open time of the first changed bar; None where these bars hold no drift
    edge        strength before the drift date, as specified
    planted     icebergs, sweeps and fake orders
    """

    regime: Ints
    pressure: Floats
    drift: Floats
    value: Floats
    drift_time: datetime | None
    edge: float
    planted: Planted


@dataclass(frozen=True)
class Market:
    """Hold history then live days in one path.

    bars    (n, 9) 1-minute in BAR_FIELDS order: the sum of this market's own trades
    events  (n,) book events in each: orders placed, withdrawn and filled
    books   a snapshot at the close of every `book_every_minutes`-th minute since 1970
    feed    the funding rate at 00:00, 08:00 and 16:00 UTC
    truth   the hidden state behind it
    """

    bars: Floats
    events: Ints
    books: Books
    feed: ContextFeed
    truth: Truth


def tick_of(spec: SimulatorParams) -> int:
    """Return the cents of quote currency in a tick: the largest 1, 2 or 5 times 10^k within 0.25 bps of the start."""
    most = max(1.0, spec.start_price * 100.0 * 2.5e-5 * (1.0 + 1e-9))
    power = 1
    while 10 * power <= most:
        power *= 10
    return power * (5 if 5 * power <= most else 2 if 2 * power <= most else 1)


def _check(spec: SimulatorParams, design: Design) -> None:
    """Raise BadValues for a spec that makes no market, naming its key of params.yaml."""
    calm, tick = spec.start_price * spec.vol_15m_bps * 1e-4 * min(design.vol_ratio) / np.sqrt(15.0), tick_of(spec) / 100
    if calm < 5 * tick:
        raise BadValues(
            f"simulator: a quiet minute of {spec.symbol} moves {calm:.4f}, under five ticks of {tick:g}: "
            f"rounding would be the market. Raise simulator.start_price ({spec.start_price}) or vol_15m_bps "
            f"({spec.vol_15m_bps})."
        )
    if spec.start.timestamp() % 60:
        raise BadValues(
            f"simulator.start {spec.start.isoformat()} is not a whole minute. Drop its seconds in params.yaml."
        )
    if spec.drift_after_live_days is not None and spec.drift_after_live_days < -spec.history_days:
        raise BadValues(
            f"simulator.drift_after_live_days {spec.drift_after_live_days} lies before the first of "
            f"{spec.history_days} days of history. Use {-spec.history_days} or more, or null for a stationary market."
        )


@dataclass(frozen=True, slots=True)
class Drawn:
    """Hold n minutes before they are traded: path (n, STEPS) log values, latent (n, LATENT), regime and drift (n,)."""

    path: Floats
    latent: Floats
    regime: Ints
    drift: Floats


@dataclass(frozen=True, slots=True)
class Traded:
    """Hold the arrays that n traded minutes and m snapshots of the book fill; see `book_market.trade_minutes`.

    bars (n, 9); events (n,); premium (n,); levels (m, 2, BOOK_LEVELS, 3); flows (m, 2); tape (m, TAPE_WIDTH)
    """

    bars: Floats
    events: Ints
    premium: Floats
    levels: Floats
    flows: Floats
    tape: Floats

    def part(self, minutes: slice, shots: int) -> "Traded":
        """Return the views of some minutes and of the snapshots from number `shots` on."""
        bars, events, premium = self.bars[minutes], self.events[minutes], self.premium[minutes]
        return Traded(bars, events, premium, self.levels[shots:], self.flows[shots:], self.tape[shots:])


class MarketPath:
    """Make one market block by block; hold everything that carries over from one block to the next."""

    def __init__(self, spec: SimulatorParams, design: Design, tape: bool = True) -> None:
        """Prepare the first minute. tape: whether the events are read into the tape. Raises BadValues."""
        _check(spec, design)
        self.spec, self.reads = spec, tape
        self.begin = spec.start.astimezone(UTC)
        self.minutes = (spec.history_days + spec.live_days) * MINUTES_A_DAY
        self.drift_at = self.minutes
        if spec.drift_after_live_days is not None:
            self.drift_at = min(self.minutes, (spec.history_days + spec.drift_after_live_days) * MINUTES_A_DAY)
        self.clock = (self.begin.hour * 60 + self.begin.minute) % MINUTES_A_DAY
        self.cents, self.every = tick_of(spec), spec.book_every_minutes
        # one stream a quantity: a longer draw of one moves none of the others
        seeds = np.random.SeedSequence(spec.seed).spawn(7)
        self.steps, self.chance, origin, *self.noise = (np.random.default_rng(child) for child in seeds[:6])
        self.keys = seeds[6].generate_state(STREAMS, np.uint64)
        self.table, self.knobs, self.book_knobs = (
            regime_table(spec, design),
            walk_parameters(design),
            design_record(design.book),
        )
        self.usual_sd = spec.vol_15m_bps * 1e-4 / np.sqrt(15.0)
        self.before = np.array([1.0, 1.0, design.branching, decay_factor(design.excitement_half_life_min), spec.edge])
        self.after = np.array(
            [
                design.drift_vol,
                design.drift_share_noise,
                design.drift_branching,
                decay_factor(design.drift_excitement_half_life_min),
                spec.edge * design.drift_edge,
            ]
        )
        # carried over
        self.made = 0
        start = math.log(spec.start_price)
        self.state = np.array([start, origin.standard_normal(), 1.0, float(origin.integers(4)), 0.0])
        self.market = fresh_market(start)
        self.tape = fresh_tape(LOTS, self.cents / 100.0)

    def latent(self, size: int) -> Drawn:
        """Draw the next `size` minutes."""
        noise = np.stack([stream.standard_normal(size) for stream in self.noise], axis=1)
        drawn = Drawn(np.empty((size, STEPS)), np.empty((size, LATENT)), np.empty(size, np.int64), np.empty(size))
        walk(
            self.made, self.drift_at, self.clock + self.made, self.state,
            self.steps.standard_normal((size, STEPS)), noise, self.chance.random((size, 2)),
            self.table, self.knobs, self.before, self.after, drawn.path, drawn.latent, drawn.regime, drawn.drift,
        )  # fmt: skip
        return drawn

    def trade(self, drawn: Drawn, log: Ints, out: Traded) -> tuple[Ints, Ints]:
        """Trade the minutes that were drawn into `out`, and their events into `log` (rows, LOG_WIDTH).

        Returns counts of snapshots, ended patterns, log rows and lost log rows, and the patterns (k, PLANTED_WIDTH).
        """
        size, counts = len(drawn.path), np.zeros(4, np.int64)
        planted = np.empty((size * PLANTED_A_MINUTE, PLANTED_WIDTH), np.int64)
        opened = (int(self.begin.timestamp()) + 60 * self.made) * 1_000_000
        trade_minutes(
            self.made, opened, self.every, self.reads, self.keys, drawn.path, drawn.latent, self.book_knobs,
            self.cents, self.usual_sd, self.market, self.tape, log,
            out.bars, out.events, out.premium, out.levels, out.flows, out.tape,
            planted, counts,
        )  # fmt: skip
        out.bars[:, OPEN_TIME] = opened / 1e6 + 60.0 * np.arange(size)
        self.made += size
        return counts, planted[: counts[1]].copy()

    def allocate(self, size: int) -> Traded:
        """Return arrays for `size` minutes; one snapshot more than can fall into them."""
        shots = size // self.every + 1
        return Traded(
            bars=np.empty((size, BAR_WIDTH)),
            events=np.empty(size, np.int64),
            premium=np.empty(size),
            levels=np.empty((shots, 2, BOOK_LEVELS, 3)),
            flows=np.empty((shots, 2)),
            tape=np.empty((shots, TAPE_WIDTH)),
        )

    def books(self, out: Traded, shots: int, first: int) -> Books:
        """Return the snapshots of `out`, whose row 0 of bars is minute `first`, in units of the contract."""
        opened = int(self.begin.timestamp()) // 60 + first
        known = 60.0 * (opened + self.every - opened % self.every + self.every * np.arange(shots))
        levels = out.levels[:shots]
        levels[..., 0] = levels[..., 0] * self.cents / 100.0
        levels[..., 1] /= LOTS
        tape = out.tape[:shots]
        tape[:, [TAPE_INDEX["order_flow"], TAPE_INDEX["order_flow_fast"]]] = out.flows[:shots] / LOTS
        return Books(known.astype(np.float64), levels, tape)


def simulate(spec: SimulatorParams, design: Design = DESIGN, tape: bool = True) -> Market:
    """Make `history_days + live_days` days of 1-minute bars in one path, with their books and their truth.

    Prices in quote currency, whole ticks (see tick_of); volumes in base asset, whole lots of 1e-5: a last-bit
    difference of a maths library does not change a file. Nothing is missing, but without `tape` all columns of
    the tape except the two order flows: the events are not read then, and it takes half the time.
    From `start + history_days + drift_after_live_days` on (None: never) the Design.drift_* constants rule.
    Raises BadValues naming the key of params.yaml that makes no market.
    """
    path = MarketPath(spec, design, tape)
    n, shots, log = path.minutes, 0, np.empty((0, limit_order_book.LOG_WIDTH), np.int64)
    out = path.allocate(n)
    regime, pressure, drift, value = np.empty(n, np.int64), np.empty(n), np.empty(n), np.empty(n)
    planted = []
    for first in range(0, n, BLOCK):
        rows = slice(first, min(first + BLOCK, n))
        drawn = path.latent(rows.stop - first)
        regime[rows], pressure[rows], drift[rows] = drawn.regime, drawn.latent[:, -1], drawn.drift
        value[rows] = np.exp(drawn.path[:, -1])
        counts, ended = path.trade(drawn, log, out.part(rows, shots))
        shots += int(counts[0])
        planted.append(ended)
    drift_time = path.begin + timedelta(minutes=path.drift_at) if path.drift_at < n else None
    truth = Truth(regime, pressure, drift, value, drift_time, spec.edge, _planted(np.concatenate(planted), path.cents))
    feed = _funding(out.bars[:, OPEN_TIME], out.premium)
    return Market(out.bars, out.events, path.books(out, shots, 0), feed, truth)


def _planted(rows: Ints, cents: int) -> Planted:
    """Return the ended patterns (k, PLANTED_WIDTH) in units of the contract, ordered by their begin."""
    rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
    start, end, kind, direction, tick, lots = rows.T
    return Planted(start / 1e6, end / 1e6, kind.copy(), direction.astype(np.float64), tick * cents / 100.0, lots / LOTS)


def _funding(opened: Floats, premium: Floats) -> ContextFeed:
    """Return the funding rates, fractions: mean premium of mid over value in the eight hours before, plus interest."""
    period = (opened // FUNDING_S).astype(np.int64)
    last = int((opened[-1] + 60.0) // FUNDING_S)  # periods before this one are over
    seen = np.isfinite(premium) & (period < last)
    if not seen.any():
        return ContextFeed(np.empty(0), np.empty(0, np.int64), np.empty(0))
    periods, where = np.unique(period[seen], return_inverse=True)
    mean = np.bincount(where, premium[seen]) / np.bincount(where)
    rate = np.round(np.clip(INTEREST + mean, -FUNDING_CAP, FUNDING_CAP), 8).astype(np.float64)
    known = ((periods + 1) * FUNDING_S).astype(np.float64)
    return ContextFeed(known, np.full(len(periods), CONTEXT_INDEX["funding_rate"], np.int64), rate)


@dataclass(frozen=True)
class BookEvents:
    """Hold n changes of the book in time order; replayed on an empty book they rebuild it level by level.

    time   (n,) epoch seconds
    kind   (n,) limit_order_book.ADD, CANCEL or TRADE
    side   (n,) +1 the bid's level, -1 the ask's (a trade at the ask, side -1, was bought)
    price  (n,) quote currency
    size   (n,) base asset that was added, cancelled or filled
    left   (n,) base asset at the level afterwards
    """

    time: Floats
    kind: Ints
    side: Floats
    price: Floats
    size: Floats
    left: Floats


@dataclass(frozen=True)
class Recording:
    """Hold every trade of some days of a market: the same path, bit for bit, as `simulate` gives.

    bars, books as in Market; trades: one a taker and price level; orders: None unless requested, and they begin with
    the orders that rest when the first day opens, stamped with that moment.
    """

    bars: Floats
    books: Books
    trades: Trades
    orders: BookEvents | None


def record(
    spec: SimulatorParams, first_day: int, days: int, design: Design = DESIGN, orders: bool = False
) -> Recording:
    """Return every trade, and with `orders` every book event, of `days` days from day `first_day` (0 = the first) on.

    A day holds some 50,000 trades and 300,000 book events: 2 and 15 MB. The days before are made too, unrecorded.
    Raises BadValues if the spec does not hold these days.
    """
    path = MarketPath(spec, design)
    if first_day < 0 or days < 1 or (first_day + days) * MINUTES_A_DAY > path.minutes:
        raise BadValues(
            f"days {first_day} to {first_day + days} of a market of {path.minutes // MINUTES_A_DAY}. Request at least "
            "one day inside it, or raise simulator.history_days or live_days."
        )
    log = np.empty((0, limit_order_book.LOG_WIDTH), np.int64)
    while path.made < first_day * MINUTES_A_DAY:
        size = min(BLOCK, first_day * MINUTES_A_DAY - path.made)
        path.trade(path.latent(size), log, path.allocate(size))
    first, size = path.made, days * MINUTES_A_DAY
    path.market["log_mode"] = 2 if orders else 1
    drawn, before, read = path.latent(size), path.market.copy(), path.tape.copy()
    counts, _ = path.trade(drawn, log, path.allocate(size))  # how many rows the log needs
    if counts[3]:
        raise BadValues(
            f"a minute of this market has over {limit_order_book.LOG_ROWS:,} book events: lower simulator.vol_15m_bps "
            f"({spec.vol_15m_bps})."
        )
    log, out = np.empty((counts[2], limit_order_book.LOG_WIDTH), np.int64), path.allocate(size)
    path.made, path.market, path.tape = first, before, read
    resting = limit_order_book.resting(before[0], (int(path.begin.timestamp()) + 60 * first) * 1_000_000)
    counts, _ = path.trade(drawn, log, out)
    fills = log[log[:, 1] == limit_order_book.TRADE]
    trades = Trades(
        fills[:, 0] / 1e6, fills[:, 3] * path.cents / 100.0, fills[:, 4] / LOTS,
        np.where(fills[:, 2] == limit_order_book.ASK, 1.0, -1.0),
    )  # fmt: skip
    return Recording(
        out.bars, path.books(out, int(counts[0]), first), trades,
        _events(np.concatenate([resting, log]), path.cents) if orders else None,
    )  # fmt: skip


def _events(log: Ints, cents: int) -> BookEvents:
    """Return log rows (n, LOG_WIDTH) in units of the contract."""
    time, kind, side, tick, lots, left = log.T
    return BookEvents(
        time / 1e6, kind.copy(), np.where(side == limit_order_book.BID, 1.0, -1.0), tick * cents / 100.0, lots / LOTS,
        left / LOTS,
    )  # fmt: skip
