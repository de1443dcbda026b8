"""What callers report: bars, books and context, outcomes, fills. Each is durable before it is acknowledged."""

import asyncio
import functools
from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict

from pipelines.contracts import OPEN_TIME, Books, ContextFeed, Outcome, utc
from pipelines.errors import BadValues, UnknownName
from pipelines.params import Params
from pipelines.store import BarBatch, Fill, HeldBar, Store
from serving.risk.breaker_monitor import slippage_bps
from serving.service.alarm_queue import AlarmQueue
from serving.service.breaker_watch import BreakerWatch
from serving.service.fill_booking import FillBooking
from serving.service.live_symbols import LiveSymbols
from serving.service.schemas import FillRequest, ObserveRequest
from serving.service.store_executor import StoreExecutor, wait_for_write
from serving.service.store_monitor import StoreMonitor
from serving.service.system_clock import ClockMonitor, utc_now
from serving.service.tier_watch import TierWatch
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.symbols import Symbol


class QuarantinedBar(TypedDict):
    """Name a bar that was not folded: its open time, and the code of the rule that held it back."""

    open_time: str
    reason: str


class Observed(TypedDict):
    """Hold the answer of `/observe`; schemas.ObserveResponse says what each field is."""

    symbol: str
    received: int
    new: int
    records: int
    closed: list[str]
    quarantined: list[QuarantinedBar]
    reason: str | None


class Resolved(TypedDict):
    """Hold the answer of `/outcome`: whether the outcome was new."""

    decision_id: str
    new: bool


class Filled(TypedDict):
    """Hold the answer of `/fill`: slippage in basis points of the entry, and the breakers tripped by now."""

    id: str
    new: bool
    slippage_bps: float | None
    breakers: list[str]


class Intake:
    """Validate, store, then fold into live state. One event loop owns it."""

    def __init__(
        self,
        *,
        live: LiveSymbols,
        store: Store,
        executor: StoreExecutor,
        ledger: Ledger,
        account: Account,
        breakers: BreakerWatch,
        tiers: TierWatch,
        store_monitor: StoreMonitor,
        clock: ClockMonitor,
        alarms: AlarmQueue,
        fills: FillBooking,
        params: Params,
    ) -> None:
        """Take the collaborators; nothing is read or written yet."""
        self._live, self._store, self._executor, self._ledger = live, store, executor, ledger
        self._account, self._breakers, self._tiers = account, breakers, tiers
        self._store_monitor, self._clock, self._alarms, self._fills = store_monitor, clock, alarms, fills
        self._rules, self._max_age_bars = params.data.quality, params.risk.max_data_age_bars

    async def observe(self, request: ObserveRequest) -> Observed:
        """Take closed base bars, books and context of one symbol; sending the same again changes nothing.

        Raises UnknownName, BadTimes, BadValues or BadShape for what cannot be taken, ServiceDown, a StoreFault or
        ClockJumped while nothing can be.
        """
        # a caller that goes away or a timeout ends the waiting, never the work between the store and live state
        return await wait_for_write(self._ledger, self._observe(request, utc_now()))

    async def _observe(self, request: ObserveRequest, now: datetime) -> Observed:
        """Validate, store and fold what is new, under the symbol's lock."""
        rows, sent = request.matrix(), request.records()
        symbol = self._live.get(request.symbol)
        self._store_monitor.refuse_writes()
        self._clock.check_bars(symbol, rows, now)
        async with self._live.locks[symbol.name]:
            symbol = self._live.symbols[request.symbol]  # a new warm start may have come while we waited
            if self._live.is_ahead(symbol, now) and len(rows):
                symbol = await self._live.withdraw_bars_ahead(symbol, rows, now)
            validate = functools.partial(
                symbol.validate_new, rows, now, functools.partial(self._store.bar_readings, symbol.name)
            )
            reads_store = len(rows) > 0 and not rows[0, OPEN_TIME] > symbol.last_open_time
            fresh = await self._executor.run(validate) if reads_store else validate()
            new: tuple[Books | None, ContextFeed | None] = (None, None)
            if any(sent):
                stored = functools.partial(self._store.records, symbol.name)
                new = await self._executor.run(symbol.validate_new_records, *sent, now, stored)
            known_held = symbol.withheld_of(rows)
            fresh, held = symbol.hold_back(fresh, self._rules)
            if len(fresh) or held or any(new):
                batch = BarBatch(symbol.name, fresh, symbol.base_grid.closes(fresh[:, OPEN_TIME]), now, *new, held)
                await asyncio.wrap_future(self._ledger.observe(batch))
            self._quarantine(symbol, held)
            symbol.ingest_records(*new)
            closed = symbol.advance(fresh)
            if len(fresh):
                self._tiers.record_arrival(symbol, now)
            self._breakers.evaluate_bars(symbol, len(closed))
            await self._fills.book_entries(symbol)
        if closed:
            self._find_overdue(symbol)
        return {
            "symbol": symbol.name,
            "received": len(rows),
            "new": len(fresh),
            "records": sum(len(records.known) for records in new if records is not None),
            "closed": [utc(bar.bar[OPEN_TIME]).isoformat() for bar in closed],
            "quarantined": [
                QuarantinedBar(open_time=utc(opened).isoformat(), reason=code)
                for opened, code in sorted([*known_held, *((float(one.bar[OPEN_TIME]), one.code) for one in held)])
            ],
            "reason": symbol.reason,
        }

    def _find_overdue(self, symbol: Symbol) -> None:
        """Find positions that a venue has not closed in time; a report may come some bars late."""
        late_s = self._max_age_bars * symbol.grid.step_s
        self._account.find_overdue(symbol.name, utc(symbol.closed.close_time - late_s))
        self._breakers.evaluate_account()

    def _quarantine(self, symbol: Symbol, held: Sequence[HeldBar]) -> None:
        """Leave bars that are durably in quarantine out of every fold from here on, and raise the alarm."""
        if not held:
            return
        symbol.withheld |= {float(one.bar[OPEN_TIME]): one.code for one in held}
        newest = held[-1]
        self._alarms.raise_alarm(
            "bar_quarantined",
            "high",
            f"{symbol.name}: {len(symbol.withheld)} bar(s) are held back, the newest of "
            f"{utc(newest.bar[OPEN_TIME]):%F %T} UTC ({newest.code}): {newest.detail}. See `bellwether data quarantine "
            "list`, then release or drop",
            f"{symbol.name}: ",
        )

    async def outcome(self, outcome: Outcome) -> Resolved:
        """Take what became of a decision; idempotent by its id. Raises UnknownName, ServiceDown or a StoreFault."""
        return await wait_for_write(self._ledger, self._outcome(outcome))

    async def _outcome(self, outcome: Outcome) -> Resolved:
        """Store the outcome, book it, and evaluate the losses."""
        self._store_monitor.refuse_writes()
        new = await asyncio.wrap_future(self._ledger.resolve(outcome, utc_now()))
        self._account.resolve(outcome)
        self._breakers.evaluate_account()
        await self._fills.book_exits()
        return {"decision_id": outcome.decision_id, "new": new}

    async def fill(self, request: FillRequest) -> Filled:
        """Take what a venue reported of an emitted decision's order; idempotent by the report's id.

        Raises UnknownName, BadValues for a decision that opened nothing, ServiceDown or a StoreFault.
        """
        return await wait_for_write(self._ledger, self._fill(request))

    async def _fill(self, request: FillRequest) -> Filled:
        """Store the report with its slippage, count it, and evaluate the newest fills and the account."""
        self._store_monitor.refuse_writes()
        try:
            decision = (await self._executor.run(self._store.decision, request.decision_id)).decision
            slippage = None if request.price is None else slippage_bps(decision, request.price)
        except (UnknownName, BadValues) as error:
            if request.status == "filled" and not request.exit:
                self._account.mismatch = f"fill {request.id} of a position that we do not have: {error}"
                self._breakers.evaluate_account()
                await self._breakers.writes_done()
            raise
        fill = Fill(
            **request.model_dump(exclude={"exit"}),
            ingested_at=utc_now(),
            slippage_bps=None if request.exit else slippage,
            is_exit=request.exit,
        )
        new = await asyncio.wrap_future(self._ledger.fill(fill))
        self._account.apply_fill(fill)
        self._breakers.evaluate_account()
        await self._breakers.evaluate_fills()
        return {"id": fill.id, "new": new, "slippage_bps": fill.slippage_bps, "breakers": list(self._breakers.names)}
