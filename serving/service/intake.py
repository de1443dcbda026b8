"""What callers report: bars, books and context, outcomes, fills. Each is durable before it is acknowledged."""

import asyncio
import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime
from math import inf
from time import perf_counter
from typing import TypedDict, TypeVar

from pipelines.contracts import OPEN_TIME, Books, ContextFeed, Floats, Outcome, utc
from pipelines.errors import BadValues, BellwetherError, ServiceError, UnknownName
from pipelines.params import Params
from pipelines.store import BarBatch, Fill, HeldBar, Store
from serving.risk.breaker_monitor import slippage_bps
from serving.service import metrics, tracing
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
from serving.state.service_level import ServiceLevel
from serving.state.symbols import Symbol

T = TypeVar("T")


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


@dataclass(frozen=True, slots=True)
class _Sent:
    """Hold what was sent of one symbol: bars (n, 9), books and context."""

    name: str
    rows: Floats
    records: tuple[Books | None, ContextFeed | None]


@dataclass(frozen=True, slots=True)
class _Ready:
    """Hold what is to be stored and folded of one symbol.

    received  bars sent; fresh (n, 9) those to fold; new records; held those that go into quarantine
    known_held  (open time, why) of bars sent that were held back before; batch None = nothing is new
    """

    symbol: Symbol
    received: int
    fresh: Floats
    new: tuple[Books | None, ContextFeed | None]
    held: Sequence[HeldBar]
    known_held: Sequence[tuple[float, str]]
    batch: BarBatch | None

    def answer(self, closed: Sequence[float]) -> Observed:
        """Return the answer, with the open times (epoch s) of the decision bars that were closed."""
        held = sorted([*self.known_held, *((float(one.bar[OPEN_TIME]), one.code) for one in self.held)])
        return {
            "symbol": self.symbol.name,
            "received": self.received,
            "new": len(self.fresh),
            "records": sum(len(records.known) for records in self.new if records is not None),
            "closed": [utc(opened).isoformat() for opened in closed],
            "quarantined": [QuarantinedBar(open_time=utc(opened).isoformat(), reason=code) for opened, code in held],
            "reason": self.symbol.reason,
        }


def _parted(
    keys: Iterable[int], results: Sequence[T | BaseException]
) -> tuple[dict[int, T], dict[int, BellwetherError]]:
    """Return key → result, and key → refusal of those that were refused; raise what is no refusal of one symbol."""
    found: dict[int, T] = {}
    refused: dict[int, BellwetherError] = {}
    for key, result in zip(keys, results, strict=True):
        if not isinstance(result, BaseException):
            found[key] = result
        elif isinstance(result, BellwetherError) and not isinstance(result, ServiceError):
            refused[key] = result
        else:
            raise result
    return found, refused


async def _ended(writes: "Sequence[Future[T]]") -> list[T | BaseException]:
    """Return what each write returned or raised. They end together: the loop is woken for the first, not for each."""
    for write in writes:
        if not write.done():
            await asyncio.gather(asyncio.wrap_future(write), return_exceptions=True)
    return [write.exception() or write.result() for write in writes]


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
        level: ServiceLevel,
        params: Params,
    ) -> None:
        """Take the collaborators; nothing is read or written yet."""
        self._live, self._store, self._executor, self._ledger = live, store, executor, ledger
        self._account, self._breakers, self._tiers, self._level = account, breakers, tiers, level
        self._store_monitor, self._clock, self._alarms, self._fills = store_monitor, clock, alarms, fills
        self._rules, self._max_age_bars = params.data.quality, params.risk.max_data_age_bars

    async def observe(self, request: ObserveRequest) -> Observed:
        """Take closed base bars, books and context of one symbol; sending the same again changes nothing.

        Raises UnknownName, BadTimes, BadValues or BadShape for what cannot be taken, ServiceDown, a StoreFault or
        ClockJumped while nothing can be.
        """
        (observed,) = await self.observe_all([request])
        if isinstance(observed, BellwetherError):
            raise observed
        return observed

    async def observe_all(self, requests: Sequence[ObserveRequest]) -> list[Observed | BellwetherError]:
        """Take the same of several symbols, in one transaction; return an answer for each, or why it is refused.

        Raises ServiceDown, a StoreFault or ClockJumped while nothing can be taken.
        """
        # a caller that goes away or a timeout ends the waiting, never the work between the store and live state
        return await wait_for_write(self._ledger, self._observe_all(requests, utc_now()))

    async def _observe_all(self, requests: Sequence[ObserveRequest], now: datetime) -> list[Observed | BellwetherError]:
        """Validate each symbol, store all that is new at once, then fold it, under the symbols' locks."""
        answers: dict[int, Observed | BellwetherError] = {}
        sent: dict[int, _Sent] = {}
        names: set[str] = set()
        for i, request in enumerate(requests):
            try:
                sent[i] = self._read(request, names)
                names.add(sent[i].name)
            except BellwetherError as error:
                answers[i] = error
        for one in sent.values():
            if len(one.rows):  # before anything can refuse the call
                self._level.offered(one.name, float(one.rows[-1, OPEN_TIME]), now.timestamp())
        if sent:
            self._store_monitor.refuse_writes()
            async with AsyncExitStack() as locks:
                for name in sorted(one.name for one in sent.values()):  # two requests never wait for each other
                    await locks.enter_async_context(self._live.locks[name])
                answers |= await self._take(sent, now)
        return [answers[i] for i in range(len(requests))]

    def _read(self, request: ObserveRequest, names: Collection[str]) -> "_Sent":
        """Return what was sent of one symbol. Raises UnknownName, ServiceDown, and BadValues for one of `names`."""
        rows, records = request.matrix(), request.records()
        symbol = self._live.get(request.symbol)
        if symbol.name in names:
            raise BadValues(
                f"{symbol.name} stands in this batch twice: send one entry a symbol. This one is not stored."
            )
        return _Sent(symbol.name, rows, records)

    async def _take(self, sent: Mapping[int, "_Sent"], now: datetime) -> dict[int, Observed | BellwetherError]:
        """Validate, store and fold what was sent; return an answer for each, or its refusal. Locks are held."""
        ready, refused = _parted(sent, await self._validate_all(sent, now))
        writing = {i: one for i, one in ready.items() if one.batch is not None}
        written = await _ended(
            self._ledger.observe_all([one.batch for one in writing.values() if one.batch is not None])
        )
        failed = {i: result for i, result in zip(writing, written, strict=True) if isinstance(result, BaseException)}
        durable = {i: one for i, one in ready.items() if i not in failed}
        answers = self._fold(durable, now)  # also where others failed: what is stored is live
        await self._fills.book_all_entries([one.symbol for one in durable.values()])
        self._find_overdue([one.symbol for i, one in durable.items() if answers[i]["closed"]])
        _, refused_late = _parted(failed, list(failed.values()))
        return answers | refused | refused_late

    async def _validate_all(self, sent: Mapping[int, "_Sent"], now: datetime) -> "list[_Ready | BaseException]":
        """Return what is new of what was sent, or its refusal; only what has to read the store is a task of its own."""
        reading = {i: one for i, one in sent.items() if self._reads_store(one)}
        tasks = asyncio.gather(*(self._validate(one, now) for one in reading.values()), return_exceptions=True)
        found: dict[int, _Ready | BaseException] = {}
        for i, one in sent.items():
            if i not in reading:
                try:
                    found[i] = await self._validate(one, now)
                except BellwetherError as error:
                    found[i] = error
        found |= zip(reading, await tasks, strict=True)
        return [found[i] for i in sent]

    def _reads_store(self, sent: "_Sent") -> bool:
        """Return whether what was sent of a symbol is records, or bars that are known."""
        known_until = self._live.symbols[sent.name].last_open_time
        return any(sent.records) or (len(sent.rows) > 0 and not sent.rows[0, OPEN_TIME] > known_until)

    async def _validate(self, sent: "_Sent", now: datetime) -> "_Ready":
        """Return what is new of what was sent; the rest is stored already, identical. Raises as `observe`."""
        symbol, rows = self._live.symbols[sent.name], sent.rows  # a new warm start may have come while we waited
        self._clock.check_bars(symbol, rows, now)
        if self._live.is_ahead(symbol, now) and len(rows):
            symbol = await self._live.withdraw_bars_ahead(symbol, rows, now)
        validate = functools.partial(
            symbol.validate_new, rows, now, functools.partial(self._store.bar_readings, symbol.name)
        )
        is_known = len(rows) > 0 and not rows[0, OPEN_TIME] > symbol.last_open_time
        fresh = await self._executor.run(validate) if is_known else validate()
        new: tuple[Books | None, ContextFeed | None] = (None, None)
        if any(sent.records):
            stored = functools.partial(self._store.records, symbol.name)
            new = await self._executor.run(symbol.validate_new_records, *sent.records, now, stored)
        known_held = symbol.withheld_of(rows)
        fresh, held = symbol.hold_back(fresh, self._rules)
        batch = None
        if len(fresh) or held or any(new):
            batch = BarBatch(symbol.name, fresh, symbol.base_grid.closes(fresh[:, OPEN_TIME]), now, *new, held)
        return _Ready(symbol, len(rows), fresh, new, held, known_held, batch)

    def _fold(self, durable: Mapping[int, "_Ready"], now: datetime) -> dict[int, Observed]:
        """Fold what is durable into live state, all symbols together; return their answers."""
        for one in durable.values():
            self._quarantine(one.symbol, one.held)
            one.symbol.ingest_records(*one.new)
        begin = perf_counter()
        with tracing.span("features"):
            closed = [one.symbol.advance(one.fresh) for one in durable.values()]
        if any(closed):
            metrics.observe(metrics.STAGE, perf_counter() - begin, "features")
        answers = {}
        for (i, one), bars in zip(durable.items(), closed, strict=True):
            if len(one.fresh):
                self._tiers.record_arrival(one.symbol, now)
            self._breakers.evaluate_bars(one.symbol, len(bars))
            self._count_closes(one.symbol, [bar.close_time for bar in bars], now)
            answers[i] = one.answer([float(bar.bar[OPEN_TIME]) for bar in bars])
        return answers

    def _count_closes(self, symbol: Symbol, closes: Sequence[float], now: datetime) -> None:
        """Let the newest of the closes that a call brought wait for its decision."""
        if closes:
            is_wall = symbol.clock.mode == "wall"
            latest = closes[-1] + symbol.base_grid.step_s if is_wall else inf  # a venue has a bar's time to deliver
            self._level.closed(symbol.name, closes, now.timestamp(), latest)

    def _find_overdue(self, closed: Sequence[Symbol]) -> None:
        """Find positions that a venue has not closed in time, of symbols that closed a bar; a report may come late."""
        seen: tuple[str | None] | None = None
        for symbol in closed:
            late_s = self._max_age_bars * symbol.grid.step_s
            self._account.find_overdue(symbol.name, utc(symbol.closed.close_time - late_s))
            if seen != (self._account.mismatch,):  # at the first of them, and where a position was found
                seen = (self._account.mismatch,)
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
        """Take what became of a decision; idempotent by its id.

        Raises UnknownName, BadValues where another outcome is stored for it, ServiceDown or a StoreFault.
        """
        (resolved,) = await self.outcome_all([outcome])
        if isinstance(resolved, BellwetherError):
            raise resolved
        return resolved

    async def outcome_all(self, outcomes: Sequence[Outcome]) -> list[Resolved | BellwetherError]:
        """Take the same of several decisions, in one transaction; return an answer for each, or why it is refused.

        Raises ServiceDown or a StoreFault while none can be taken.
        """
        return await wait_for_write(self._ledger, self._outcome_all(outcomes))

    async def _outcome_all(self, outcomes: Sequence[Outcome]) -> list[Resolved | BellwetherError]:
        """Store the outcomes, book them in the order they were sent, and evaluate the losses after each."""
        self._store_monitor.refuse_writes()
        written = await _ended(self._ledger.resolve_all(outcomes, utc_now()))
        for outcome, result in zip(outcomes, written, strict=True):
            if not isinstance(result, BaseException):
                self._account.resolve(outcome)
                self._breakers.evaluate_account()
        await self._fills.book_exits()
        new, refused = _parted(range(len(outcomes)), written)
        found: dict[int, Resolved | BellwetherError] = dict(refused)
        found |= {i: Resolved(decision_id=outcomes[i].decision_id, new=is_new) for i, is_new in new.items()}
        return [found[i] for i in range(len(outcomes))]

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
