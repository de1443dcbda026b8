"""The account the ledger implies: what is open, what today brought, how far under its highest equity it stands.

There is no venue here, so every emitted decision counts as filled at its own size, as a fraction of the equity it was
sized on, and earns what its outcome says. It is rebuilt from the ledger at start, so a restart changes nothing.
"""

from dataclasses import dataclass, field
from datetime import date, datetime

import numpy as np

from pipelines.contracts import Decision, Floats, Outcome
from pipelines.store import BreakerTrip, Store
from serving.policy.decision_row import ExposureSnapshot
from serving.risk.breakers import REBASED
from serving.risk.exposure import POSITION, Scenarios, exposure_by_name


@dataclass(slots=True)
class Account:
    """Equity starts at 1. A decision bar opens at most one position a symbol, however often it is decided on."""

    equity: float = 1.0
    peak: float = 1.0
    day: date | None = None  # UTC, of the latest decision or outcome
    day_start: float = 1.0  # equity at 00:00 UTC of `day`, or when a reset `daily_loss` was accepted later that day
    trades_today: int = 0
    open: dict[tuple[str, datetime], Decision] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)  # decision id → size, until its outcome is known
    scenarios: Scenarios = field(default_factory=Scenarios)  # of the symbols that are live
    _strategies: dict[str, float] = field(default_factory=dict)  # signal → code
    peak_from: datetime | None = None  # event time up to which losses were accepted; None: never
    day_from: datetime | None = None  # the same of the loss of the day
    accepted: set[int] = field(default_factory=set)  # ids of the latches whose reset is counted

    @classmethod
    def restore(cls, store: Store) -> "Account":
        """Replay every emitted decision, every outcome of one and every reset, in the order of event time."""
        account = cls()
        emitted = [record.decision for record in store.decisions(emitted_only=True)]
        moves: list[tuple[datetime, Decision | Outcome | BreakerTrip]] = [(d.as_of, d) for d in emitted]
        moves += [(o.resolved_at, o) for o in store.outcomes_of([d.id for d in emitted])]
        resets = [(x.reset_as_of, x) for x in store.breaker_trips(tripped_only=False) if x.reset_as_of is not None]
        moves += resets  # behind what ended at the same moment: it was known by then
        for _, move in sorted(moves, key=lambda pair: pair[0]):
            if isinstance(move, Decision):
                account.add_decision(move)
            elif isinstance(move, Outcome):
                account.resolve(move)
            else:
                account.apply_reset(move)
        return account

    def add_decision(self, decision: Decision) -> None:
        """Count an emitted decision; any other is ignored."""
        if decision.action == "NO_TRADE":
            return
        self._turn_to(decision.as_of)
        key = (decision.symbol, decision.as_of)
        if key not in self.open:
            self.trades_today += 1
            self.open[key] = decision
            self.sizes[decision.id] = decision.size

    def remove_decision(self, decision: Decision) -> None:
        """Take back a decision that never became durable."""
        if self.sizes.pop(decision.id, None) is not None:
            self.open.pop((decision.symbol, decision.as_of), None)
            self.trades_today -= 1

    def resolve(self, outcome: Outcome) -> None:
        """Book an outcome once: profit is size × net basis points of the equity at that moment, on the day it ended."""
        size = self.sizes.pop(outcome.decision_id, None)
        if size is None:
            return
        ended = outcome.resolved_at.date()
        if self.day is None or ended > self.day:
            self._turn_to(outcome.resolved_at)
        self.open = {key: d for key, d in self.open.items() if d.id != outcome.decision_id}
        growth = 1.0 + size * outcome.net_bps / 1e4
        self.equity *= growth
        if self.peak_from is not None and outcome.resolved_at <= self.peak_from:  # told late: it was accepted
            self.peak *= growth
        self.peak = max(self.peak, self.equity)
        accepted = self.day_from is not None and outcome.resolved_at <= self.day_from
        if self.day is not None and (ended < self.day or accepted):  # told late: it was never part of today
            self.day_start *= growth

    def portfolio(self, at: datetime, symbol: str = "", strategy: str = "", side: float = 0.0) -> ExposureSnapshot:
        """The account as a new position finds it at the close of a bar: one of `strategy` in `symbol` on `side`.

        A position past its expiry no longer counts as open, nor one opened later than `at`: markets that are replayed
        stand at times of their own. Days are days of event time, so a replay of last year is
        limited as last year would have been.
        """
        self._turn_to(at)
        self.open = {key: d for key, d in self.open.items() if d.expiry is None or d.expiry > at}
        held, asset = self.positions(at), self.scenarios.code(symbol)
        return ExposureSnapshot(
            **exposure_by_name(held, side, asset, self._code(strategy), self.scenarios),
            open_count=float(len(held)),
            trades_today=float(self.trades_today),
            daily_pnl=self.equity / self.day_start - 1.0,
            drawdown=1.0 - self.equity / self.peak,
        )

    def open_positions(self, at: datetime) -> list[Decision]:
        """Decisions whose positions are open at that moment, oldest first."""
        return [d for d in self.open.values() if d.as_of <= at and (d.expiry is None or d.expiry > at)]

    def positions(self, at: datetime) -> Floats:
        """(k, 3) positions open at that moment, as `risk.exposure` reads them."""
        rows = [
            (d.size if d.action == "BUY" else -d.size, self.scenarios.code(d.symbol), self._code(d.event or ""))
            for d in self.open_positions(at)
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, len(POSITION))

    @property
    def gross(self) -> float:
        return sum(decision.size for decision in self.open.values())

    def _code(self, strategy: str) -> float:
        return self._strategies.setdefault(strategy, float(len(self._strategies)))

    def _turn_to(self, at: datetime) -> None:
        if self.day != at.date():
            self.day, self.day_start, self.trades_today = at.date(), self.equity, 0

    # ---- what a person accepted -----------------------------------------------------------------------------------

    def apply_reset(self, latch: BreakerTrip) -> None:
        """A person reset `drawdown` or `daily_loss`: its loss is counted anew from what the ledger knew then.

        What ended up to `latch.reset_as_of`, an outcome told later included, was accepted with it. Any other breaker,
        and the same reset again, change nothing.
        """
        if latch.id in self.accepted or latch.reset_as_of is None or latch.name not in REBASED:
            return
        self.accepted.add(latch.id)
        if latch.name == "drawdown":
            self.peak, self.peak_from = self.equity, latch.reset_as_of
            return
        if self.day is None or latch.reset_as_of.date() > self.day:
            self._turn_to(latch.reset_as_of)
        if latch.reset_as_of.date() == self.day:
            self.day_start, self.day_from = self.equity, latch.reset_as_of

    @property
    def losses(self) -> tuple[float, float]:
        """(daily_pnl, drawdown) as they stand, without turning to another day."""
        return self.equity / self.day_start - 1.0, 1.0 - self.equity / self.peak
