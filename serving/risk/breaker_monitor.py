"""Who trips breakers: what is known of a bar, an account or its fills as conditions, and the latches of this process.

A condition that holds refuses at once, in memory, and its latch goes to the ledger's writer ahead of every decision
that comes after it. Memory lets go only of what the store says a person has reset.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from math import floor, nan
from typing import Any

import numpy as np

from pipelines.contracts import CLOSE, HIGH, LOW, OPEN_TIME, Decision, utc
from pipelines.errors import BadValues, ServiceDown
from pipelines.features.catalog import FEATURES
from pipelines.params import Params
from pipelines.store import BreakerTrip, Fill
from serving.risk.breakers import REBASED, BreakerInputs, triggered
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.symbols import Symbol

ATR, SPREAD = FEATURES.index["atr_14"], FEATURES.index["spread"]
FEWEST_BOOKS = 20  # recorded before the newest, to say what is usual
MODEL_FAULT = "MODEL_FAULT:"  # what counts as the model's own failing: a service that is out is a matter of tiers


# ---- what is known --------------------------------------------------------------------------------------------------


def bar_inputs(symbol: Symbol, back: int, book_bars: int) -> BreakerInputs:
    """The closed decision bar `back` bars before the newest (0 = the newest), beside the bars before it.

    Over a gap, of bars or of a closed market, a bar is its own range: the way across belongs to no bar.
    """
    kept, i = symbol.history, len(symbol.history) - 1 - back
    close = utc(kept.bars[i, OPEN_TIME] + symbol.step_s)
    about = f"{symbol.name}, bar closed {close:%F %H:%M} UTC"
    if i < 1:
        return BreakerInputs(about)
    bar, before = kept.bars[i], kept.bars[i - 1]
    follows = bar[OPEN_TIME] - before[OPEN_TIME] == symbol.step_s
    high, low = (max(bar[HIGH], before[CLOSE]), min(bar[LOW], before[CLOSE])) if follows else (bar[HIGH], bar[LOW])
    reach = kept.features[i - 1, ATR] * before[CLOSE]
    spreads = 1e4 * kept.features[max(0, i - book_bars) : i + 1, SPREAD]  # NaN without a book, and of a crossed one
    sizes = np.nansum(kept.levels[max(0, i - book_bars) : i + 1, :, :, 1], axis=(1, 2))
    usual = np.isfinite(spreads[:-1])
    known = usual.sum() >= FEWEST_BOOKS and np.isfinite(spreads[-1])
    return BreakerInputs(
        about,
        true_range=float((high - low) / reach) if reach > 0 else nan,
        spread_bps=float(spreads[-1]) if known else nan,
        usual_spread_bps=float(np.median(spreads[:-1][usual])) if known else nan,
        depth=float(sizes[-1]) if known else nan,
        usual_depth=float(np.median(sizes[:-1][usual])) if known else nan,
    )


def account_inputs(account: Account) -> BreakerInputs:
    daily_pnl, drawdown = account.losses
    day = "no day yet" if account.day is None else f"{account.day:%F}"
    return BreakerInputs(f"account on {day}", daily_pnl=daily_pnl, drawdown=drawdown)


def outage_inputs(symbol: Symbol, now: datetime) -> BreakerInputs:
    """A symbol that was fed live and is not: the decision bars that should have closed by now, closures left out."""
    last, step_s = symbol.closed.close_time, symbol.step_s
    closed = symbol.warm.closures
    slots = np.arange(round(last / step_s), floor(now.timestamp() / step_s))
    missing = float((~closed[slots % len(closed)]).sum())
    return BreakerInputs(f"{symbol.name}, last bar closed {utc(last):%F %H:%M} UTC", missing_bars=missing)


def champion_inputs(
    symbol: Symbol, family: str, said: Mapping[str, Any] | None, faults: Mapping[str, int]
) -> BreakerInputs:
    """The acting champion's entry in the record of a decision, and its faults in a row by digest."""
    if said is None or not (said["reason"] or "").startswith(MODEL_FAULT):
        return BreakerInputs()
    close = utc(symbol.closed.close_time)
    about = f"{family} champion version {said['version']} at {symbol.name}, bar closed {close:%F %H:%M} UTC"
    return BreakerInputs(about, faults=float(faults.get(said["digest"], 0)))


def fill_inputs(fills: Sequence[Fill], whole: int) -> BreakerInputs:
    """The newest fills since execution was reset last, oldest first; `whole`: how many say what slippage is usual."""
    if not fills:
        return BreakerInputs()
    slippages = [fill.slippage_bps for fill in fills if fill.slippage_bps is not None]
    rejected = [fill for fill in fills if fill.status == "rejected"]
    newest = fills[-1]
    told = "" if not rejected or not rejected[-1].reason else f", last reason {rejected[-1].reason!r}"
    return BreakerInputs(
        f"orders to fill {newest.id} at {newest.at:%F %T} UTC{told}",
        rejected=float(len(rejected)),
        fills=float(len(fills)),
        slippage_bps=float(np.mean(slippages)) if len(fills) == whole and slippages else nan,
    )


def slippage_bps(decision: Decision, price: float) -> float:
    """How much worse than the decision's entry a price is, basis points of the entry. Raises BadValues without one."""
    if decision.entry is None or decision.action == "NO_TRADE":
        raise BadValues(f"decision {decision.id} opened nothing, so nothing of it can be filled")
    side = 1.0 if decision.action == "BUY" else -1.0
    return side * (price / decision.entry - 1.0) * 1e4


# ---- latches --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class BreakerMonitor:
    """Breaker → why, of those that refuse now. One event loop owns it."""

    params: Params
    ledger: Ledger
    stored: dict[str, str] = field(default_factory=dict)  # as the store said last
    sent: dict[str, "_Sent"] = field(default_factory=dict)  # tripped here, not yet seen in the store
    reset: set[tuple[str, str]] = field(default_factory=set)  # (breaker, reason) that a person has reset
    reset_at: dict[str, datetime] = field(default_factory=dict)  # when a breaker was reset last

    @property
    def reasons(self) -> dict[str, str]:
        return self.stored | {name: sent.reason for name, sent in self.sent.items() if name not in self.stored}

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of their tripping, which decisions record."""
        return tuple(self.reasons)

    def evaluate(self, seen: BreakerInputs, at: datetime) -> dict[str, str]:
        """Trip what has to; returns breaker → why of those that tripped now.

        What a person has reset does not trip again for the same reason; losses are counted anew instead (`REBASED`).
        """
        tripped = {}
        for name, why in triggered(seen, self.params).items():
            if name not in self.reasons and (name in REBASED or (name, why) not in self.reset):
                self.sent[name] = self._send(name, at, why)
                tripped[name] = why
        return tripped

    def _send(self, name: str, at: datetime, why: str) -> "_Sent":
        try:
            return _Sent(at, why, self.ledger.trip(name, at, why))
        except ServiceDown as error:  # it refuses here all the same
            done: Future[bool] = Future()
            done.set_exception(error)
            return _Sent(at, why, done)

    def confirmed_writes(self) -> dict[str, "_Sent"]:
        """What is in the store by now: ask before the store is read, hand to `sync` with what it said."""
        return {name: sent for name, sent in self.sent.items() if sent.done.done() and not sent.done.exception()}

    def sync(self, told: Iterable[BreakerTrip], written: Mapping[str, "_Sent"]) -> dict[str, str]:
        """Take over what the store holds, history included. Returns breaker → why of those nobody here knew."""
        before, self.stored = self.reasons, {}
        for latch in told:
            if latch.reset_at is None:
                self.stored[latch.name] = latch.reason
            else:
                self.reset.add((latch.name, latch.reason))
                self.reset_at[latch.name] = latch.reset_at  # the newest: a breaker is tripped anew only after a reset
        for name, sent in written.items():
            if self.sent.get(name) is sent:
                del self.sent[name]
        return {name: why for name, why in self.stored.items() if name not in before}

    def retry_writes(self) -> BaseException | None:
        """Hand over anew what the store refused; returns its last fault, None if there was none."""
        fault: BaseException | None = None
        for name, sent in list(self.sent.items()):
            if sent.done.done() and (error := sent.done.exception()) is not None:
                fault = error
                self.sent[name] = self._send(name, sent.at, sent.reason)
        return fault

    def pending_writes(self) -> "list[Future[bool]]":
        """What has to be durable before anything that rests on it leaves."""
        return [sent.done for sent in self.sent.values()]


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    at: datetime
    reason: str
    done: "Future[bool]"
