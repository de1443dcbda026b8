"""Measure the inputs of the circuit breakers and hold the breaker trips of this process.

A condition that holds refuses at once, in memory, and its trip goes to the ledger's writer ahead of every later
decision. A trip leaves memory only after the store shows that a person reset it.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import isfinite, nan

import numpy as np

from pipelines.contracts import CLOSE, HIGH, LOW, OPEN_TIME, Decision, ModelAnswer, utc
from pipelines.errors import BadValues, ServiceDown
from pipelines.features.catalog import FEATURES
from pipelines.params import BreakerParams, Params
from pipelines.store import BreakerTrip, Fill
from serving.risk.breakers import NOTHING_OBSERVED, REBASED, BreakerInputs, triggered
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.symbols import Symbol

ATR, SPREAD = FEATURES.index["atr_14"], FEATURES.index["spread"]
MODEL_FAULT = "MODEL_FAULT:"  # the model's own faults; an outage of the model service concerns the tiers only


# ---- inputs ---------------------------------------------------------------------------------------------------------


def bar_inputs(symbol: Symbol, back: int, limits: BreakerParams) -> BreakerInputs:
    """Return range, spread and depth of the closed decision bar `back` bars before the newest (0 = the newest).

    After a gap, of bars or of a closed market, the true range is the bar's own range.
    """
    history, i = symbol.history, len(symbol.history) - 1 - back
    bar = history.bars[i].tolist()
    about = f"{symbol.name}, bar closed {utc(symbol.grid.next_close(bar[OPEN_TIME])):%F %H:%M} UTC"
    if i < 1:
        return BreakerInputs(about)
    previous = history.bars[i - 1].tolist()
    follows = symbol.grid.missing_between(previous[OPEN_TIME], bar[OPEN_TIME]) == 0
    high, low = (max(bar[HIGH], previous[CLOSE]), min(bar[LOW], previous[CLOSE])) if follows else (bar[HIGH], bar[LOW])
    reach = float(history.features[i - 1, ATR]) * previous[CLOSE]
    inputs = BreakerInputs(
        about,
        venue=symbol.warm.venue,
        market=symbol.warm.market,
        true_range=(high - low) / reach if reach > 0 else nan,
    )
    if not isfinite(history.features[i, SPREAD]):  # NaN without a book, and of a crossed one
        return inputs
    first = max(0, i - limits.book_bars)
    spreads = 1e4 * history.features[first : i + 1, SPREAD]
    usual = np.isfinite(spreads[:-1])
    if usual.sum() < limits.min_books:
        return inputs
    sizes = np.nansum(history.levels[first : i + 1, :, :, 1], axis=(1, 2))
    return replace(
        inputs,
        spread_bps=float(spreads[-1]),
        usual_spread_bps=float(np.median(spreads[:-1][usual])),
        depth=float(sizes[-1]),
        usual_depth=float(np.median(sizes[:-1][usual])),
    )


def account_inputs(account: Account) -> BreakerInputs:
    """Return the loss of the day and the drawdown of the account, as fractions, and in what reports differ from it."""
    daily_pnl, drawdown = account.losses
    day = "no day yet" if account.day is None else f"{account.day:%F}"
    return BreakerInputs(f"account on {day}", daily_pnl=daily_pnl, drawdown=drawdown, mismatch=account.mismatch)


def outage_inputs(symbol: Symbol, now: datetime) -> BreakerInputs:
    """Return the decision bars that should have closed by now on a symbol that was fed live, closures left out.

    None is missing where no bar means no trade: silence is no outage there; the limit on the age of data still holds.
    """
    last = symbol.closed.close_time
    missing = float(symbol.grid.overdue(float(symbol.closed.bar[OPEN_TIME]), now.timestamp()))
    return BreakerInputs(f"{symbol.name}, last bar closed {utc(last):%F %H:%M} UTC", missing_bars=missing)


def champion_inputs(
    symbol: Symbol, family: str, answer: ModelAnswer | None, faults: Mapping[str, int]
) -> BreakerInputs:
    """Return the faults in a row of the deciding champion; none where its answer at this close is not a fault.

    answer  of the champion at this close, None if there is none; faults digest → faults in a row
    """
    if answer is None or not (answer.reason or "").startswith(MODEL_FAULT):
        return NOTHING_OBSERVED
    close = utc(symbol.closed.close_time)
    about = f"{family} champion version {answer.version} at {symbol.name}, bar closed {close:%F %H:%M} UTC"
    return BreakerInputs(about, faults=float(faults.get(answer.digest, 0)))


def fill_inputs(fills: Sequence[Fill], whole: int) -> BreakerInputs:
    """Return rejections and mean slippage of the newest fills since execution was last reset.

    fills  that a venue reported, oldest first; whole: number of fills that the mean slippage needs
    """
    if not fills:
        return NOTHING_OBSERVED
    slippages = [fill.slippage_bps for fill in fills if fill.slippage_bps is not None]
    rejected = [fill for fill in fills if fill.status == "rejected"]
    newest = fills[-1]
    reason = "" if not rejected or not rejected[-1].reason else f", last reason {rejected[-1].reason!r}"
    return BreakerInputs(
        f"orders to fill {newest.id} at {newest.at:%F %T} UTC{reason}",
        rejected=float(len(rejected)),
        fills=float(len(fills)),
        slippage_bps=float(np.mean(slippages)) if len(fills) == whole and slippages else nan,
    )


def slippage_bps(decision: Decision, price: float) -> float:
    """Return by how much a price is worse than the decision's entry, in basis points; raise BadValues without one."""
    if decision.entry is None or decision.action == "NO_TRADE":
        raise BadValues(
            f"decision {decision.id} opened no position, so it cannot be filled; send the id of a BUY or SELL"
        )
    side = 1.0 if decision.action == "BUY" else -1.0
    return side * (price / decision.entry - 1.0) * 1e4


# ---- trips ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class BreakerMonitor:
    """Hold the tripped breakers of this process and their reasons. One event loop owns it."""

    params: Params
    ledger: Ledger
    stored: dict[str, str] = field(default_factory=dict)  # as last read from the store
    sent: dict[str, "_Sent"] = field(default_factory=dict)  # tripped here, not yet read back from the store
    reset: set[tuple[str, str]] = field(default_factory=set)  # (breaker, reason) that a person has reset
    reset_at: dict[str, datetime] = field(default_factory=dict)  # when a breaker was reset last

    @property
    def reasons(self) -> dict[str, str]:
        """Return breaker → why, of those that are tripped now."""
        return self.stored | {name: sent.reason for name, sent in self.sent.items() if name not in self.stored}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the tripped breakers in the order of their trips, which decisions record."""
        return tuple(self.reasons if self.sent else self.stored)

    def evaluate(self, inputs: BreakerInputs, at: datetime) -> dict[str, str]:
        """Trip the breakers whose condition holds; return breaker → why of those that tripped now.

        A breaker that a person reset does not trip again for the same reason, except those in `REBASED`, whose losses
        are counted from the reset on.
        """
        tripped = {}
        for name, why in triggered(inputs, self.params).items():
            if name not in self.reasons and (name in REBASED or (name, why) not in self.reset):
                self.sent[name] = self._send(name, at, why)
                tripped[name] = why
        return tripped

    def _send(self, name: str, at: datetime, why: str) -> "_Sent":
        """Queue the trip at the ledger's writer."""
        try:
            return _Sent(at, why, self.ledger.trip(name, at, why))
        except ServiceDown as error:  # the breaker refuses in this process all the same
            done: Future[bool] = Future()
            done.set_exception(error)
            return _Sent(at, why, done)

    def confirmed_writes(self) -> dict[str, "_Sent"]:
        """Return the trips that are durable by now; call before reading the store, then pass to `sync`."""
        return {name: sent for name, sent in self.sent.items() if sent.done.done() and not sent.done.exception()}

    def sync(self, trips: Iterable[BreakerTrip], written: Mapping[str, "_Sent"]) -> dict[str, str]:
        """Take over the trips in the store, history included; return breaker → why of those new to this process."""
        before, self.stored = self.reasons, {}
        for trip in trips:
            if trip.reset_at is None:
                self.stored[trip.name] = trip.reason
            else:
                self.reset.add((trip.name, trip.reason))
                self.reset_at[trip.name] = trip.reset_at  # the newest: a breaker trips again only after a reset
        for name, sent in written.items():
            if self.sent.get(name) is sent:
                del self.sent[name]
        return {name: why for name, why in self.stored.items() if name not in before}

    def retry_writes(self) -> BaseException | None:
        """Queue again the trips that the store refused; return its last fault, None if there was none."""
        fault: BaseException | None = None
        for name, sent in list(self.sent.items()):
            if sent.done.done() and (error := sent.done.exception()) is not None:
                fault = error
                self.sent[name] = self._send(name, sent.at, sent.reason)
        return fault

    def pending_writes(self) -> "list[Future[bool]]":
        """Return the futures that must be done before an answer that rests on these trips leaves."""
        return [sent.done for sent in self.sent.values()]


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    """Hold a trip on its way to the store."""

    at: datetime
    reason: str
    done: "Future[bool]"
