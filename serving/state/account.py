"""Compute the account from the ledger: open positions, profit of the day, drawdown from the highest equity.

`account.source` says what it rests on. `ledger`: there is no venue, so every emitted decision counts as filled at its
own size, as a fraction of the equity it was sized on, and earns the return of its outcome. `reported`: positions and
profit are what a venue reported at `/fill`; an order without a report counts as exposure until its expiry. Either way
it is rebuilt from the ledger at start, so a restart changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Literal

import numpy as np

from pipelines.contracts import Decision, Floats, Outcome
from pipelines.store import BreakerTrip, Fill, Store
from serving.policy.decision_row import ExposureSnapshot
from serving.risk.breakers import ACCOUNT_MISMATCH, REBASED
from serving.risk.exposure import POSITION, Scenarios, exposure_by_name

Source = Literal["ledger", "reported"]
QUANTITY_TOLERANCE = 0.01  # share of a quantity by which two reports of it may differ: lots are rounded


def no_closes(symbol: str) -> Floats:
    """Return no prices: the volatility of `symbol` is then not known, and nothing is opened."""
    del symbol
    return np.empty(0)


@dataclass(frozen=True, slots=True)
class Position:
    """Hold what was filled of a decision and is open.

    quantity   fraction of equity, above 0; price and fee_bps are their means over the entries
    fee_bps    of the entry; of one that was reported without, the assumed one
    filled_at  of the first entry, by the clock of who filled it
    """

    quantity: float
    price: float
    fee_bps: float
    filled_at: datetime

    def with_entry(self, quantity: float, price: float, fee_bps: float) -> "Position":
        """Return the position after another entry."""
        total = self.quantity + quantity
        share = quantity / total
        mean = self.price + share * (price - self.price), self.fee_bps + share * (fee_bps - self.fee_bps)
        return Position(total, *mean, self.filled_at)


@dataclass(slots=True)
class Account:
    """Track equity, which starts at 1, and open positions; a decision bar opens at most one position per symbol."""

    equity: float = 1.0
    peak: float = 1.0
    day: date | None = None  # UTC, of the latest decision or outcome
    day_start: float = 1.0  # equity at 00:00 UTC of `day`, or when a reset `daily_loss` was accepted later that day
    trades_today: int = 0
    open: dict[tuple[str, datetime], Decision] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)  # decision id → size, until its outcome is known
    scenarios: Scenarios = field(default_factory=Scenarios)  # of the symbols that are live
    newest_closes: Callable[[str], Floats] = no_closes  # of their decision bars, as `Scenarios.volatility` reads them
    source: Source = "ledger"
    assumed_fee_bps: float = 0.0  # of a side, where a reported fill names none
    filled: dict[str, Position] = field(default_factory=dict)  # decision id → what is open of it, by `source`
    unfilled: dict[str, Decision] = field(default_factory=dict)  # emitted, with no fill by `source` yet
    exits: dict[str, tuple[Decision, Fill, Outcome]] = field(default_factory=dict)  # of the ledger, not stored yet
    mismatch: str | None = None  # in what a venue's report differs from the ledger, the newest such report
    _strategies: dict[str, float] = field(default_factory=dict)  # signal → code
    _emitted: dict[str, Decision] = field(default_factory=dict)  # decision id → it, until nothing of it can be open
    _entries: dict[str, Fill] = field(default_factory=dict)  # decision id → entry of the ledger, until its exit
    _counted: set[str] = field(default_factory=set)  # ids of the fills that are counted
    peak_from: datetime | None = None  # event time up to which losses were accepted; None: never
    day_from: datetime | None = None  # the same of the loss of the day
    accepted: set[int] = field(default_factory=set)  # ids of the trips whose reset is counted

    @classmethod
    def restore(cls, store: Store, source: Source = "ledger", assumed_fee_bps: float = 0.0) -> "Account":
        """Return the account after every stored decision, outcome, fill and reset, in the order of event time."""
        account = cls(source=source, assumed_fee_bps=assumed_fee_bps)
        emitted = [record.decision for record in store.decisions(emitted_only=True)]
        events: list[tuple[datetime, Decision | Outcome | BreakerTrip | Fill]] = [(d.as_of, d) for d in emitted]
        decided = {d.id: d.as_of for d in emitted}  # a venue's clock may be a little behind
        fills = [(max(fill.at, decided.get(fill.decision_id, fill.at)), fill) for fill in store.fills()]
        events += [(at, fill) for at, fill in fills if not fill.is_exit]
        events += [(o.resolved_at, o) for o in store.outcomes_of([d.id for d in emitted])]
        events += [(at, fill) for at, fill in fills if fill.is_exit]
        resets = [(x.reset_as_of, x) for x in store.breaker_trips(tripped_only=False) if x.reset_as_of is not None]
        events += resets  # after the outcomes of the same moment: they were known by then
        for _, event in sorted(events, key=lambda pair: pair[0]):
            if isinstance(event, Decision):
                account.add_decision(event)
            elif isinstance(event, Outcome):
                account.resolve(event)
            elif isinstance(event, Fill):
                account.apply_fill(event)
            else:
                account.apply_reset(event)
        return account

    def add_decision(self, decision: Decision) -> None:
        """Count an emitted decision; ignore any other."""
        if decision.action == "NO_TRADE":
            return
        if self.day is None or decision.as_of.date() > self.day:  # a symbol that is a bar behind brings no day back
            self._start_day(decision.as_of)
        key = (decision.symbol, decision.as_of)
        if key not in self.open:
            self.trades_today += decision.as_of.date() == self.day
            self.open[key] = decision
            self.sizes[decision.id] = decision.size
            self._emitted[decision.id] = self.unfilled[decision.id] = decision

    def remove_decision(self, decision: Decision) -> None:
        """Undo a decision that never became durable."""
        if self.sizes.pop(decision.id, None) is not None:
            self.open.pop((decision.symbol, decision.as_of), None)
            self._emitted.pop(decision.id, None)
            self.unfilled.pop(decision.id, None)
            self.filled.pop(decision.id, None)
            self.trades_today -= decision.as_of.date() == self.day

    def resolve(self, outcome: Outcome) -> None:
        """Book an outcome once: profit is size × net basis points of the equity at that moment, on the day it ended.

        By a venue's reports it books nothing: an order that was not filled by then is none, and a position stays open
        until its exit is reported.
        """
        size = self.sizes.pop(outcome.decision_id, None)
        if size is None:
            return
        decision = self._emitted[outcome.decision_id]
        self.unfilled.pop(outcome.decision_id, None)
        if self.source == "reported":
            if outcome.decision_id not in self.filled:
                self._forget(outcome.decision_id)
            return
        self._forget(outcome.decision_id)
        if (entry := self._entries.pop(outcome.decision_id, None)) is not None:
            self.exits[outcome.decision_id] = decision, entry, outcome
        self._book(1.0 + size * outcome.net_bps / 1e4, outcome.resolved_at)

    def _book(self, growth: float, at: datetime) -> None:
        """Multiply the equity by `growth`, on the day of `at`."""
        ended = at.date()
        if self.day is None or ended > self.day:
            self._start_day(at)
        self.equity *= growth
        if self.peak_from is not None and at <= self.peak_from:  # it arrived late and its loss was accepted
            self.peak *= growth
        self.peak = max(self.peak, self.equity)
        accepted = self.day_from is not None and at <= self.day_from
        if self.day is not None and (ended < self.day or accepted):  # it arrived late and was never part of today
            self.day_start *= growth

    def _forget(self, decision_id: str) -> None:
        """Drop a decision of which nothing is open any more."""
        self.open = {key: d for key, d in self.open.items() if d.id != decision_id}
        for of in (self.filled, self.unfilled, self._emitted):
            of.pop(decision_id, None)

    # ---- fills ----------------------------------------------------------------------------------------------------

    def apply_fill(self, fill: Fill) -> None:
        """Count a fill once: by the ledger the price of a position, by a venue's reports the positions themselves.

        A report that does not fit what was decided sets `mismatch`. A rejection takes an order out of the account where
        that rests on reports.
        """
        if fill.id in self._counted:
            return
        self._counted.add(fill.id)
        if fill.source == "ledger":
            self._apply_own(fill)
        elif fill.status == "rejected":
            if self.source == "reported" and not fill.is_exit and fill.decision_id not in self.filled:
                self._forget(fill.decision_id)
                self.sizes.pop(fill.decision_id, None)
        elif fill.is_exit:
            self._apply_exit(fill)
        else:
            self._apply_entry(fill)

    def _apply_own(self, fill: Fill) -> None:
        """Count a fill of the ledger: the price of a position while it is open, or that its exit is stored."""
        if fill.is_exit:
            self.exits.pop(fill.decision_id, None)
        elif fill.decision_id in self.sizes:
            self.unfilled.pop(fill.decision_id, None)
            self._entries[fill.decision_id] = fill
            if self.source == "ledger":
                self.filled[fill.decision_id] = self._position(fill, self.sizes[fill.decision_id])

    def _apply_entry(self, fill: Fill) -> None:
        """Count what a venue reported to have opened."""
        decision = self._emitted.get(fill.decision_id)
        if decision is None and self.source == "ledger" and fill.quantity is None:
            return  # of a client that reports prices alone: nothing to compare
        if decision is None:
            self.mismatch = (
                f"fill {fill.id} opened a position for decision {fill.decision_id}, which is closed in the ledger"
            )
            return
        if self.source == "ledger":  # only compared
            self._compare(fill, decision, fill.quantity or 0.0)
            return
        new = self._position(fill, decision.size)
        before = self.filled.get(decision.id)
        after = new if before is None else before.with_entry(new.quantity, new.price, new.fee_bps)
        self.filled[decision.id] = after
        self.open.setdefault((decision.symbol, decision.as_of), decision)  # also one reported after it had lapsed
        self.unfilled.pop(decision.id, None)
        self._compare(fill, decision, after.quantity)

    def _apply_exit(self, fill: Fill) -> None:
        """Count what a venue reported to have closed; its profit is of the equity at that moment."""
        if self.source == "ledger":
            return
        position, decision = self.filled.get(fill.decision_id), self._emitted.get(fill.decision_id)
        if position is None or decision is None or fill.price is None:
            self.mismatch = f"fill {fill.id} closed a position of decision {fill.decision_id} that is not open here"
            return
        quantity = position.quantity if fill.quantity is None else fill.quantity
        if quantity > position.quantity * (1.0 + QUANTITY_TOLERANCE):
            self.mismatch = (
                f"fill {fill.id} closed {quantity:.4f} of the equity for decision {decision.id}, of which "
                f"{position.quantity:.4f} was open"
            )
        fee_bps = position.fee_bps + (self.assumed_fee_bps if fill.fee_bps is None else fill.fee_bps)
        side = 1.0 if decision.action == "BUY" else -1.0
        net = side * (fill.price / position.price - 1.0) - fee_bps / 1e4
        closed = min(quantity, position.quantity)
        self._book(1.0 + closed * net, fill.at)
        left = position.quantity - closed
        if left > QUANTITY_TOLERANCE * position.quantity:
            self.filled[decision.id] = Position(left, position.price, position.fee_bps, position.filled_at)
        else:
            self._forget(decision.id)
            self.sizes.pop(decision.id, None)

    def _position(self, fill: Fill, size: float) -> Position:
        """Return the position of one entry; `size` stands in for a quantity that was not reported."""
        quantity = size if fill.quantity is None else fill.quantity
        fee_bps = self.assumed_fee_bps if fill.fee_bps is None else fill.fee_bps
        return Position(quantity, float(fill.price or np.nan), fee_bps, fill.at)

    def _compare(self, fill: Fill, decision: Decision, quantity: float) -> None:
        """Set `mismatch` where a venue opened more than was decided; less is a part of the order."""
        if quantity > decision.size * (1.0 + QUANTITY_TOLERANCE):
            self.mismatch = (
                f"fill {fill.id}: {quantity:.4f} of the equity is open on {decision.symbol} for decision "
                f"{decision.id}, sized {decision.size:.4f}"
            )

    def find_overdue(self, symbol: str, at: datetime) -> None:
        """Set `mismatch` where a venue still reports a position in `symbol` whose time was over by `at`."""
        if self.source == "ledger":
            return
        for id, position in self.filled.items():
            decision = self._emitted[id]
            if decision.symbol == symbol and decision.expiry is not None and decision.expiry < at:
                self.mismatch = (
                    f"the venue has {position.quantity:.4f} of the equity open on {symbol} for decision {id}, whose "
                    f"time was over at {decision.expiry:%F %T} UTC, and reported no exit"
                )

    # ---- exposure -------------------------------------------------------------------------------------------------

    def portfolio(
        self,
        at: datetime,
        symbol: str = "",
        strategy: str = "",
        side: float = 0.0,
        volatility: Floats | None = None,
    ) -> ExposureSnapshot:
        """Return the account at the close `at`, as a new position of `strategy` in `symbol` on `side` is measured.

        volatility  what `volatility()` returned, for callers that ask for many symbols at one close; None = it is asked

        A position past its expiry does not count as open, nor one opened after `at`: replayed markets have times of
        their own. One that a venue reported counts until its exit. Days are days of event time, so a replay of last
        year has the limits of last year.
        """
        self._start_day(at)
        self.open = {key: d for key, d in self.open.items() if self._is_open(d, at)}
        positions, asset = self.positions(at), self.scenarios.code(symbol)
        return ExposureSnapshot(
            **exposure_by_name(
                positions,
                side,
                asset,
                self._code(strategy),
                self.scenarios,
                self.volatility() if volatility is None else volatility,
            ),
            open_count=float(len(positions)),
            trades_today=float(self.trades_today),
            daily_pnl=self.equity / self.day_start - 1.0,
            drawdown=1.0 - self.equity / self.peak,
        )

    def _is_open(self, decision: Decision, at: datetime) -> bool:
        """Return whether a decision may have a position at that moment, or later."""
        is_reported = self.source == "reported" and decision.id in self.filled
        return is_reported or decision.expiry is None or decision.expiry > at

    def volatility(self) -> Floats:
        """Return (assets,) the volatility of each asset with scenarios at its newest close; NaN = not known."""
        return self.scenarios.volatility(self.newest_closes)

    def open_positions(self, at: datetime) -> list[Decision]:
        """Return the decisions whose positions are open at that moment, or on their way, oldest first."""
        return [d for d in self.open.values() if d.as_of <= at and self._is_open(d, at)]

    def size_of(self, decision: Decision) -> float:
        """Return the size of a decision's position, a fraction of equity: what a venue reported, or as decided."""
        position = self.filled.get(decision.id) if self.source == "reported" else None
        return decision.size if position is None else position.quantity

    def positions(self, at: datetime) -> Floats:
        """Return (k, 3) positions open at that moment, as `risk.exposure` reads them."""
        rows = [
            ((1.0 if d.action == "BUY" else -1.0) * self.size_of(d), self.scenarios.code(d.symbol),
             self._code(d.event or ""))
            for d in self.open_positions(at)
        ]  # fmt: skip
        return np.array(rows, dtype=np.float64).reshape(-1, len(POSITION))

    @property
    def gross(self) -> float:
        """Return the sum of all open sizes, as a fraction of equity."""
        return sum(self.size_of(decision) for decision in self.open.values())

    def _code(self, strategy: str) -> float:
        """Return the number of a strategy; a new one gets the next."""
        return self._strategies.setdefault(strategy, float(len(self._strategies)))

    def _start_day(self, at: datetime) -> None:
        """Start the day of `at` where it is not the current one."""
        if self.day != at.date():
            self.day, self.day_start, self.trades_today = at.date(), self.equity, 0

    # ---- resets by a person ---------------------------------------------------------------------------------------

    def apply_reset(self, trip: BreakerTrip) -> None:
        """Count the loss of `drawdown` or `daily_loss` from the moment a person reset it.

        Outcomes up to `trip.reset_as_of` are accepted with the reset, also those that arrive later. A reset
        `account_mismatch` closes the reported positions whose time was over by then. Any other breaker, and the same
        reset again, change nothing.
        """
        if trip.id in self.accepted or trip.reset_as_of is None or trip.name not in (*REBASED, ACCOUNT_MISMATCH):
            return
        self.accepted.add(trip.id)
        if trip.name == ACCOUNT_MISMATCH:
            self._accept_mismatch(trip.reset_as_of)
            return
        if trip.name == "drawdown":
            self.peak, self.peak_from = self.equity, trip.reset_as_of
            return
        if self.day is None or trip.reset_as_of.date() > self.day:
            self._start_day(trip.reset_as_of)
        if trip.reset_as_of.date() == self.day:
            self.day_start, self.day_from = self.equity, trip.reset_as_of

    def _accept_mismatch(self, until: datetime) -> None:
        """Drop what differed up to `until`: a person looked at it."""
        self.mismatch = None
        for id in [id for id in self.filled if self.source == "reported"]:
            expiry = self._emitted[id].expiry
            if expiry is not None and expiry <= until:
                self._forget(id)
                self.sizes.pop(id, None)

    @property
    def losses(self) -> tuple[float, float]:
        """Return (daily_pnl, drawdown) as fractions, without starting another day."""
        return self.equity / self.day_start - 1.0, 1.0 - self.equity / self.peak
