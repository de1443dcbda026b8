"""Compute the account from the ledger: open positions, profit of the day, drawdown from the highest equity.

There is no venue here, so every emitted decision counts as filled at its own size, as a fraction of the equity it was
sized on, and earns the return of its outcome. It is rebuilt from the ledger at start, so a restart changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime

import numpy as np

from pipelines.contracts import Decision, Floats, Outcome
from pipelines.store import BreakerTrip, Store
from serving.policy.decision_row import ExposureSnapshot
from serving.risk.breakers import REBASED
from serving.risk.exposure import POSITION, Scenarios, exposure_by_name


def no_closes(symbol: str) -> Floats:
    """Return no prices: the volatility of `symbol` is then not known, and nothing is opened."""
    del symbol
    return np.empty(0)


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
    _strategies: dict[str, float] = field(default_factory=dict)  # signal → code
    peak_from: datetime | None = None  # event time up to which losses were accepted; None: never
    day_from: datetime | None = None  # the same of the loss of the day
    accepted: set[int] = field(default_factory=set)  # ids of the trips whose reset is counted

    @classmethod
    def restore(cls, store: Store) -> "Account":
        """Return the account after every stored decision, outcome and reset, in the order of event time."""
        account = cls()
        emitted = [record.decision for record in store.decisions(emitted_only=True)]
        events: list[tuple[datetime, Decision | Outcome | BreakerTrip]] = [(d.as_of, d) for d in emitted]
        events += [(o.resolved_at, o) for o in store.outcomes_of([d.id for d in emitted])]
        resets = [(x.reset_as_of, x) for x in store.breaker_trips(tripped_only=False) if x.reset_as_of is not None]
        events += resets  # after the outcomes of the same moment: they were known by then
        for _, event in sorted(events, key=lambda pair: pair[0]):
            if isinstance(event, Decision):
                account.add_decision(event)
            elif isinstance(event, Outcome):
                account.resolve(event)
            else:
                account.apply_reset(event)
        return account

    def add_decision(self, decision: Decision) -> None:
        """Count an emitted decision; ignore any other."""
        if decision.action == "NO_TRADE":
            return
        self._start_day(decision.as_of)
        key = (decision.symbol, decision.as_of)
        if key not in self.open:
            self.trades_today += 1
            self.open[key] = decision
            self.sizes[decision.id] = decision.size

    def remove_decision(self, decision: Decision) -> None:
        """Undo a decision that never became durable."""
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
            self._start_day(outcome.resolved_at)
        self.open = {key: d for key, d in self.open.items() if d.id != outcome.decision_id}
        growth = 1.0 + size * outcome.net_bps / 1e4
        self.equity *= growth
        if (
            self.peak_from is not None and outcome.resolved_at <= self.peak_from
        ):  # it arrived late and its loss was accepted
            self.peak *= growth
        self.peak = max(self.peak, self.equity)
        accepted = self.day_from is not None and outcome.resolved_at <= self.day_from
        if self.day is not None and (ended < self.day or accepted):  # it arrived late and was never part of today
            self.day_start *= growth

    def portfolio(self, at: datetime, symbol: str = "", strategy: str = "", side: float = 0.0) -> ExposureSnapshot:
        """Return the account at the close `at`, as a new position of `strategy` in `symbol` on `side` is measured.

        A position past its expiry does not count as open, nor one opened after `at`: replayed markets have times of
        their own. Days are days of event time, so a replay of last year has the limits of last year.
        """
        self._start_day(at)
        self.open = {key: d for key, d in self.open.items() if d.expiry is None or d.expiry > at}
        positions, asset = self.positions(at), self.scenarios.code(symbol)
        return ExposureSnapshot(
            **exposure_by_name(positions, side, asset, self._code(strategy), self.scenarios, self.volatility()),
            open_count=float(len(positions)),
            trades_today=float(self.trades_today),
            daily_pnl=self.equity / self.day_start - 1.0,
            drawdown=1.0 - self.equity / self.peak,
        )

    def volatility(self) -> Floats:
        """Return (assets,) the volatility of each asset with scenarios at its newest close; NaN = not known."""
        return self.scenarios.volatility(self.newest_closes)

    def open_positions(self, at: datetime) -> list[Decision]:
        """Return the decisions whose positions are open at that moment, oldest first."""
        return [d for d in self.open.values() if d.as_of <= at and (d.expiry is None or d.expiry > at)]

    def positions(self, at: datetime) -> Floats:
        """Return (k, 3) positions open at that moment, as `risk.exposure` reads them."""
        rows = [
            (d.size if d.action == "BUY" else -d.size, self.scenarios.code(d.symbol), self._code(d.event or ""))
            for d in self.open_positions(at)
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, len(POSITION))

    @property
    def gross(self) -> float:
        """Return the sum of all open sizes, as a fraction of equity."""
        return sum(decision.size for decision in self.open.values())

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

        Outcomes up to `trip.reset_as_of` are accepted with the reset, also those that arrive later. Any other breaker,
        and the same reset again, change nothing.
        """
        if trip.id in self.accepted or trip.reset_as_of is None or trip.name not in REBASED:
            return
        self.accepted.add(trip.id)
        if trip.name == "drawdown":
            self.peak, self.peak_from = self.equity, trip.reset_as_of
            return
        if self.day is None or trip.reset_as_of.date() > self.day:
            self._start_day(trip.reset_as_of)
        if trip.reset_as_of.date() == self.day:
            self.day_start, self.day_from = self.equity, trip.reset_as_of

    @property
    def losses(self) -> tuple[float, float]:
        """Return (daily_pnl, drawdown) as fractions, without starting another day."""
        return self.equity / self.day_start - 1.0, 1.0 - self.equity / self.peak
