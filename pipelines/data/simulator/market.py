"""A market made from a seed, with the truth it was made from, so that every learner and detector can be scored.

A value walks 12 steps a minute through four regimes, with seasonal and self-exciting volume and a taker share; inside
each minute a limit order book trades around it (simulator.book_market), and the 1-minute bars are the sum of those
trades. A hidden informed pressure u (Ornstein–Uhlenbeck) leans on the taker share and on the book and moves the value
over the following hours, but how, depends on the regime (`Design.gain`): the flow has to be read together with
volatility and volume. `edge: 0` gives a martingale value with the very same volumes and taker flow.

The same spec gives the same market. Every kind of noise has its own stream, so what happens before a drift date does
not depend on the drift, the history does not depend on `live_days`, and other seeds give independent markets. A spec
makes a leader and markets that are correlated with it (see `followers`); `simulate` makes one of them, and
`stream.SimulatedStream` goes on with all of them, without end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from pipelines.contracts import Books, ContextFeed, Floats, Ints, Trades
from pipelines.data.orderbook import limit_order_book
from pipelines.data.simulator.book_design import LOTS
from pipelines.data.simulator.funding import joined
from pipelines.data.simulator.latent import DESIGN, MINUTES_A_DAY, Design
from pipelines.data.simulator.market_path import BLOCK, MarketPath
from pipelines.errors import BadValues
from pipelines.market_params import SimulatorParams


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
    drift_time  open time of the first changed bar; None where these bars hold no drift. market_path.drift_dates has all
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


def simulate(
    spec: SimulatorParams,
    design: Design = DESIGN,
    tape: bool = True,
    symbol: str | None = None,
    at_history_end: Callable[[MarketPath], object] | None = None,
) -> Market:
    """Make `history_days + live_days` days of 1-minute bars in one path, with their books and their truth.

    Prices in quote currency, whole ticks (see tick_of); volumes in base asset, whole lots of 1e-5: a last-bit
    difference of a maths library does not change a file. Nothing is missing, but without `tape` all columns of
    the tape except the two order flows: the events are not read then, and it takes half the time.
    From `start + history_days + drift_after_live_days` on (None: never) the Design.drift_* constants rule; after
    `drift_every_days` (None: never) those of before rule again, after as many more the Design.drift_* ones, and so on.

    symbol          None = the leader
    at_history_end  is given the path when the history is made and no live day is: to save its state
    Raises BadValues naming the key of params.yaml that makes no market, UnknownName for a symbol that is not made.
    """
    path = MarketPath(spec, design, tape, symbol)
    n, shots, log = path.minutes, 0, np.empty((0, limit_order_book.LOG_WIDTH), np.int64)
    out = path.allocate(n)
    regime, pressure, drift, value = np.empty(n, np.int64), np.empty(n), np.empty(n), np.empty(n)
    planted, rates, history = [], [], spec.history_days * MINUTES_A_DAY
    while path.made < n:
        first = path.made
        rows = slice(first, min(first + BLOCK, n if first >= history else history))
        drawn, part = path.latent(rows.stop - first), out.part(rows, shots)
        regime[rows], pressure[rows], drift[rows] = drawn.regime, drawn.latent[:, -1], drawn.drift
        value[rows] = np.exp(drawn.path[:, -1])
        counts, ended = path.trade(drawn, log, part)
        shots += int(counts[0])
        planted.append(ended)
        rates.append(path.rates(part))
        if path.made == history and at_history_end is not None:
            at_history_end(path)
    drift_time = path.begin + timedelta(minutes=path.drift_at) if path.drift_at < n else None
    truth = Truth(
        regime, pressure, drift, value, drift_time, path.spec.edge, _planted(np.concatenate(planted), path.cents)
    )
    return Market(out.bars, out.events, path.books(out, shots, 0), joined(rates), truth)


def _planted(rows: Ints, cents: int) -> Planted:
    """Return the ended patterns (k, PLANTED_WIDTH) in units of the contract, ordered by their begin."""
    rows = rows[np.lexsort((rows[:, 2], rows[:, 0]))]
    start, end, kind, direction, tick, lots = rows.T
    return Planted(start / 1e6, end / 1e6, kind.copy(), direction.astype(np.float64), tick * cents / 100.0, lots / LOTS)


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
    spec: SimulatorParams,
    first_day: int,
    days: int,
    design: Design = DESIGN,
    orders: bool = False,
    symbol: str | None = None,
) -> Recording:
    """Return every trade, and with `orders` every book event, of `days` days from day `first_day` (0 = the first) on.

    A day holds some 50,000 trades and 300,000 book events: 2 and 15 MB. The days before are made too, unrecorded.
    symbol: None = the leader. Raises BadValues if the spec does not hold these days.
    """
    path = MarketPath(spec, design, symbol=symbol)
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
