"""One simulated market, minute by minute: everything that carries over from one block of minutes to the next."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np

from pipelines.context_layout import TAPE_INDEX, TAPE_WIDTH
from pipelines.contracts import BAR_WIDTH, BOOK_LEVELS, OPEN_TIME, Books, ContextFeed, Floats, Ints
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
from pipelines.data.simulator.followers import OwnMarket, own_market
from pipelines.data.simulator.funding import FundingMeter
from pipelines.data.simulator.latent import (
    LATENT,
    MINUTES_A_DAY,
    Design,
    decay_factor,
    regime_table,
    walk,
    walk_parameters,
)
from pipelines.errors import BadValues
from pipelines.market_params import SimulatorParams

BLOCK = 30 * MINUTES_A_DAY  # minutes made at a time: working arrays stay at a few MB however long the history
NEVER = 1 << 62  # minute of a drift that does not come


def tick_of(spec: SimulatorParams) -> int:
    """Return the cents of quote currency in a tick: the largest 1, 2 or 5 times 10^k within 0.25 bps of the start."""
    most = max(1.0, spec.start_price * 100.0 * 2.5e-5 * (1.0 + 1e-9))
    power = 1
    while 10 * power <= most:
        power *= 10
    return power * (5 if 5 * power <= most else 2 if 2 * power <= most else 1)


def drift_minutes(spec: SimulatorParams) -> tuple[int, int]:
    """Return the number of the first drifted minute, and the minutes between changes from then on (0: it lasts)."""
    if spec.drift_after_live_days is None:
        return NEVER, 0
    at = (spec.history_days + spec.drift_after_live_days) * MINUTES_A_DAY
    return at, (spec.drift_every_days or 0) * MINUTES_A_DAY


def drift_dates(spec: SimulatorParams, until: datetime) -> list[datetime]:
    """Return the planted drift dates up to `until` (aware), oldest first: the market changes, changes back, and so on.

    The date is the open time of the first bar that is made differently.
    """
    at, every = drift_minutes(spec)
    dates = []
    while at < NEVER and (date := spec.start.astimezone(UTC) + timedelta(minutes=at)) <= until:
        dates.append(date)
        at += every or NEVER
    return dates


def _check(own: OwnMarket) -> None:
    """Raise BadValues for a spec that makes no market, naming its key of params.yaml."""
    spec = own.spec
    calm = spec.start_price * spec.vol_15m_bps * 1e-4 * min(own.design.vol_ratio) / np.sqrt(15.0)
    tick = tick_of(spec) / 100
    if calm < 5 * tick:
        key = "simulator.start_price" if own.follower is None else f"the start_price of {own.symbol} in followers"
        raise BadValues(
            f"simulator: a quiet minute of {spec.symbol} moves {calm:.4f}, under five ticks of {tick:g}: "
            f"rounding would be the market. Raise {key} ({spec.start_price}) or vol_15m_bps "
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
    """Make one market block by block; hold everything that carries over from one block to the next.

    Blocks of any lengths, one after the other, are the same market: each kind of noise is drawn from its own stream in
    the order of the minutes. `saved_state` writes and reads what is carried over.
    """

    def __init__(self, spec: SimulatorParams, design: Design, tape: bool = True, symbol: str | None = None) -> None:
        """Prepare the first minute of the market of `symbol` (None: the leader).

        tape    whether the events are read into the tape
        Raises  BadValues for a spec that makes no market, UnknownName for a symbol that it does not make
        """
        own = own_market(spec, design, symbol)
        _check(own)
        self.own, self.spec, self.reads = own, own.spec, tape
        self.begin = spec.start.astimezone(UTC)
        self.minutes = (spec.history_days + spec.live_days) * MINUTES_A_DAY
        self.drift_at, self.drift_every = drift_minutes(spec)
        self.clock = (self.begin.hour * 60 + self.begin.minute) % MINUTES_A_DAY
        self.cents, self.every = tick_of(own.spec), spec.book_every_minutes
        # one stream a quantity: a longer draw of one moves none of the others
        value, chance, origin, *noise, book = own.seeds
        self.steps, self.chance, first, *self.noise = map(np.random.default_rng, (value, chance, origin, *noise))
        self.keys = book.generate_state(STREAMS, np.uint64)
        self.table, self.knobs, self.book_knobs = (
            regime_table(own.spec, own.design),
            walk_parameters(own.design),
            design_record(own.design.book),
        )
        self.usual_sd = spec.vol_15m_bps * 1e-4 / np.sqrt(15.0)
        self.before = np.array(
            [1.0, 1.0, design.branching, decay_factor(design.excitement_half_life_min), own.spec.edge]
        )
        self.after = np.array(
            [
                design.drift_vol,
                design.drift_share_noise,
                design.drift_branching,
                decay_factor(design.drift_excitement_half_life_min),
                own.spec.edge * design.drift_edge,
            ]
        )
        # carried over
        self.made = 0
        start = math.log(own.spec.start_price)
        self.state = np.array([start, first.standard_normal(), 1.0, float(first.integers(4)), 0.0])
        self.market = fresh_market(start)
        self.tape = fresh_tape(LOTS, self.cents / 100.0)
        self.funding = FundingMeter()
        self.factor: np.random.Generator | None = None
        self.waiting = np.empty((0, STEPS))  # noise of the leader that has not reached this market yet
        if own.follower is not None:
            self._follow(own_market(spec, design), own.follower.lag_minutes)

    def _follow(self, leader: OwnMarket, lag: int) -> None:
        """Take over the leader's noise of value and its regimes; what came before its first minute is drawn here."""
        value, chance, origin, *_ = map(np.random.default_rng, leader.seeds[:3])
        origin.standard_normal()  # its pressure
        self.factor, self.chance, self.state[3] = value, chance, float(origin.integers(4))
        self.waiting = self.steps.standard_normal((lag, STEPS))

    def _value_noise(self, size: int) -> Floats:
        """Draw (size, STEPS) noise of the value of variance 1: of a follower, its part is the leader's of before."""
        own = self.steps.standard_normal((size, STEPS))
        if self.factor is None or self.own.follower is None:
            return own
        factor = np.concatenate([self.waiting, self.factor.standard_normal((size, STEPS))])
        self.waiting, beta = factor[size:].copy(), self.own.follower.beta
        return beta * factor[:size] + math.sqrt(1.0 - beta * beta) * own

    def latent(self, size: int) -> Drawn:
        """Draw the next `size` minutes."""
        noise = np.stack([stream.standard_normal(size) for stream in self.noise], axis=1)
        drawn = Drawn(np.empty((size, STEPS)), np.empty((size, LATENT)), np.empty(size, np.int64), np.empty(size))
        walk(
            self.made, self.drift_at, self.drift_every, self.clock + self.made, self.state,
            self._value_noise(size), noise, self.chance.random((size, 2)),
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

    def rates(self, out: Traded) -> ContextFeed:
        """Return the funding rates that became known in the minutes of `out`, the newest block that was traded."""
        return self.funding.add(out.bars[:, OPEN_TIME], out.premium)
