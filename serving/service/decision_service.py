"""The decision service: observe · decide · outcome · models · status · ready. It validates, delegates, records."""

import asyncio
import functools
import gc
import hashlib
import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import bentoml
import numpy as np

from pipelines import disk
from pipelines.bootstrap import bootstrap
from pipelines.clock import Clock, ClockWatch, mode_of
from pipelines.contracts import (
    OPEN_TIME,
    TIMEFRAME_SECONDS,
    Books,
    ContextFeed,
    Decision,
    Floats,
    ModelAnswers,
    Outcome,
    utc,
)
from pipelines.errors import BellwetherError, ClockJumped, InputError, ServiceDown, StoredAlready, UnknownName
from pipelines.families import DECISION_FAMILY
from pipelines.permissions import restrict
from pipelines.settings import load_params, settings
from pipelines.store import (
    SERVICE_WAIT_MS,
    BarBatch,
    DecisionRecord,
    Fill,
    PageCheck,
    Store,
    StoreFault,
    decision_payload,
)
from pipelines.warm_start import WarmStart, read_warm_start
from serving.inference.generation_watcher import AlarmQueue, GenerationWatcher, families, refusals, slot_checks
from serving.inference.model_client import ModelClient
from serving.inference.model_slots import ModelSlots, Snapshot
from serving.inference.predictions import events_at_close, faulty, inference_requests, prediction_records
from serving.policy.decide import age_in_bars, decide, predict_all, tier_at, tier_inputs
from serving.policy.decision_row import flatten
from serving.risk.breaker_monitor import (
    BreakerMonitor,
    account_inputs,
    bar_inputs,
    champion_inputs,
    fill_inputs,
    outage_inputs,
    slippage_bps,
)
from serving.risk.breakers import BreakerInputs
from serving.risk.exposure import Scenarios, scenarios_of
from serving.risk.utilisation import utilisation
from serving.service import json_logs
from serving.service.connection_limits import guard_worker
from serving.service.fair_queue import FairQueue, decision_lanes
from serving.service.health import Health, health, waits_for_first_run
from serving.service.http_guard import Guard
from serving.service.http_rules import PROBES, BufferedJsonBody, HttpRules
from serving.service.json_logs import RequestLog
from serving.service.keys import write_key
from serving.service.metrics_folder import keep_in_memory
from serving.service.schemas import (
    DecideRequest,
    DecideResponse,
    EmptyRequest,
    FillRequest,
    FillResponse,
    ObserveRequest,
    ObserveResponse,
    OutcomeRequest,
    OutcomeResponse,
    json_endpoint,
    json_response,
)
from serving.service.startup import starting
from serving.service.store_executor import StoreExecutor, wait_for_write
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.online_weights_store import ONLINE_WEIGHTS_FILE, OnlineWeightsStore
from serving.state.symbols import CLOCK_SKEW, Symbol, Symbols, check_bars, clock_of, restore_symbol
from serving.state.tiers import EMERGENCY_BREAKER, FULL, Freshness, State, Tier, TierStore, worst

bootstrap()
keep_in_memory()  # before BentoML makes its first counter
log = logging.getLogger("bellwether.decision")
MAX_CACHED_DECISIONS = 4096  # decisions remembered so that asking again gives the same one

TIER_FILE, FRESHNESS_FILE = "tiers.json", "freshness.json"
PROBE = "store probe"  # a lease: the smallest real write, tried while the store is not writable
PAGES_EVERY_S = 86_400.0  # between two checks of the store's pages
CLOCK, LOOK, PAGES = "clock: ", "decision service: ", "store: "  # what alarms of a kind are about
NO_SYMBOL = State(3, "no symbol has a warm start yet; `bellwether run --once` publishes one")

P = ParamSpec("P")
T = TypeVar("T")
_Made = tuple[Decision, "Future[Decision]"]


def steady_s() -> float:
    """Seconds on the clock that nobody sets; it goes on while a machine sleeps, where the system has such a one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def durable(endpoint: Callable[P, Awaitable[Any]]) -> Callable[P, Awaitable[Any]]:
    """Say 503, with the reason, when the store, the disk or the clock is in the way of a call; nothing happened then,
    or it is found when the same is asked again."""

    @functools.wraps(endpoint)
    async def kept(*args: P.args, **kwargs: P.kwargs) -> Any:
        service: Any = args[0]
        try:
            return await endpoint(*args, **kwargs)
        except (StoreFault, ServiceDown, ClockJumped, OSError) as error:
            if not isinstance(error, ClockJumped):
                service._fault_of_store(error)
            service._look_at_tiers(datetime.now(UTC))
            return service._unwritten(error)

    return kept


@bentoml.service(
    name="DecisionService",
    workers=1,
    http={"host": "127.0.0.1", "port": 3000},
    traffic={"timeout": 10},
    logging={"access": {"enabled": False}},
    metrics={"enabled": True},
)
class DecisionService:
    """Live decisions on closed bars, each durable before its answer leaves. One process owns its symbols."""

    def __init__(self) -> None:
        restrict()
        with starting():
            self._where = settings()
            self._params = load_params(self._where.params_file)
            self._flat = flatten(self._params)
            self._store = Store.open(self._where.store, self._where.durability, SERVICE_WAIT_MS)
            self._account = Account.restore(self._store)
            self._experience = OnlineWeightsStore(self._where.serving_dir / ONLINE_WEIGHTS_FILE, self._params)
        self._executor = StoreExecutor()
        self._ledger = Ledger(self._store)
        self._alarms = AlarmQueue()
        self._slots = ModelSlots(self._where.serving_dir, self._where.bundles, self._alarm)
        self._waiting: Snapshot | None = None  # a generation loaded, not yet served
        self._symbols = Symbols()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._latches = BreakerMonitor(self._params, self._ledger)
        self._judged: dict[str, float] = {}  # symbol → close of the newest bar its breakers looked at
        self._fills_judged = False  # those of a process before this one
        self._made: dict[tuple[Any, ...], _Made] = {}
        # by what a decision is about, see `about`, whatever tier and breakers have become since:
        self._pending: dict[tuple[Any, ...], _Made] = {}  # handed to the ledger, which has not answered yet
        self._doubted: set[tuple[Any, ...]] = set()  # of those pending: somebody was told that it failed
        self._unsure: dict[tuple[Any, ...], Decision] = {}  # told as failed; it may be stored all the same
        self._late: dict[tuple[Any, ...], Decision] = {}  # told as failed, and found in the store since
        self._watcher = GenerationWatcher(self._look, self._tell_look)
        self._tiers = TierStore(self._where.serving_dir / TIER_FILE, self._params.tiers)
        self._saving = asyncio.Lock()
        self._freshness = Freshness(self._where.serving_dir / FRESHNESS_FILE)
        self._stale: dict[str, str] = {}
        self._store_fault: str | None = None
        self._clock_watch = ClockWatch(steady_s(), time.time())
        self._clock_told: str | None = None  # why the clock cannot be believed, as last told
        self._disk = disk.DiskState("ok", 0, "not looked at yet")
        self._pages: PageCheck | None = None  # while the store's pages are checked
        self._pages_at: float | None = None  # steady time of the last check
        self._damage: str | None = None
        self._spoilt: set[tuple[str, str, str]] = set()  # (family, arm, digest) whose fault was told
        self._outage: str | None = None  # of the model service, as last told
        self._remote: ModelClient | None = None

    # ---- following what flows write -------------------------------------------------------------------------------

    @bentoml.on_startup
    async def start(self) -> None:
        if self._where.models == "remote":
            wait_s, retry_s = self._where.model_timeout_ms / 1e3, self._where.model_retry_seconds
            self._remote = ModelClient(
                self._where.model_url, write_key(self._where), wait_s, retry_s, self._params.tiers.faults_in_row
            )
        await self._watcher.poll()
        gc.freeze()  # what is loaded stays: no request waits while it is searched for cycles
        self._watcher.start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self._watcher.stop()
        if self._remote is not None:
            await self._remote.close()
        if self._pages is not None:
            self._pages.stop()
        await asyncio.to_thread(self._ledger.close)
        self._slots.close()
        self._executor.close()
        self._store.close()

    async def _look(self) -> None:
        """New generation, breakers and outcomes written by others; what this look says of every symbol's tier."""
        try:
            await self._look_around()
        except (StoreFault, ServiceDown) as error:  # the next look tries again; until then nothing may be opened
            self._fault_of_store(error)
        finally:  # whatever else went wrong, tiers follow what is known, and alarms go out
            self._look_at_tiers(datetime.now(UTC))
            try:
                await self._save_tiers()
                await self._executor.run(self._alarms.flush, self._store)
            except (StoreFault, ServiceDown) as error:
                self._fault_of_store(error)

    async def _look_around(self) -> None:
        self._clock_fault(datetime.now(UTC))
        self._look_at_disk()
        await self._executor.run(self._reach if self._store_fault is None else self._probe)
        self._look_at_pages()
        self._waiting = await asyncio.to_thread(self._slots.pending) or self._waiting
        if self._waiting is not None:
            await self._warm(self._waiting)
            await asyncio.to_thread(self._slots.swap, self._waiting)
            self._waiting = None
        if self._latches.retry_writes() is not None:  # what was refused before: a fault only if it is refused again
            await wait_for_write(self._ledger, self._all(self._latches.pending_writes()))
        await self._follow_store()
        if self._remote is not None:
            await self._remote.probe(time.monotonic())

    def _tell_look(self, fault: str | None) -> None:
        told = f"{LOOK}{fault or 'looks are whole again'}"
        self._alarms.append(("look_fault", "high" if fault else "info", told, LOOK, fault is None))

    def _look_at_disk(self) -> None:
        where = self._where
        self._disk = disk.check_space(where.home, where.disk_warn_mb * disk.MB, where.disk_stop_mb * disk.MB)

    def _look_at_pages(self) -> None:
        """Begin a check of the store's pages where one is due; no call and no writer waits for it."""
        due = self._pages_at is None or steady_s() - self._pages_at >= PAGES_EVERY_S
        if self._pages is None and due:
            self._pages = PageCheck(self._where.store)
            threading.Thread(target=self._check_pages, args=(self._pages,), name="pages", daemon=True).start()

    def _check_pages(self, check: PageCheck) -> None:
        found = check.run()
        if found is not None:
            told = f"{PAGES}{found}. Stop everything and restore a backup: `bellwether restore FILE`"
            log.error("the store is damaged: %s", found)
            self._alarms.append(("store_damaged", "critical", told, PAGES, False))
        elif self._damage is not None:
            self._alarms.append(("store_damaged", "info", f"{PAGES}whole again", PAGES, True))
        self._damage, self._pages_at, self._pages = found, steady_s(), None

    async def _follow_store(self) -> None:
        await self._find_late(self._symbols)
        in_store = self._latches.confirmed_writes()
        told = await self._executor.run(self._store.breaker_trips, tripped_only=False)
        for name, why in self._latches.sync(told, in_store).items():
            self._tell_tripped(name, why)
        for latch in told:
            self._account.apply_reset(latch)
        since = self._experience.since
        ended = await self._executor.run_long(self._store.resolved, None, None, since)
        if self._disk.level != "stop":  # it is learnt from the store when there is room again
            try:
                await asyncio.to_thread(self._experience.update, ended)
            except OSError as error:
                raise ServiceDown(f"{ONLINE_WEIGHTS_FILE} cannot be written: {error}. Make room on the disk") from error
        if self._account.sizes:
            for outcome in await self._executor.run_long(self._store.outcomes_of, list(self._account.sizes)):
                self._account.resolve(outcome)
        self._judge(account_inputs(self._account))
        if not self._fills_judged:
            await self._judge_fills()

    async def _warm(self, new: Snapshot) -> None:
        """Start live state from the warm start a generation names; a refused one leaves the old state serving."""
        told = new.warm_start
        if told is None or told["digest"] in {symbol.warm.digest for symbol in self._symbols.values()}:
            return
        try:
            warm = await asyncio.to_thread(read_warm_start, Path(told["path"]), told["digest"])
        except BellwetherError as error:
            self._alarm("warm_start_refused", "high", str(error))
            return
        async with self._locks[warm.symbol]:
            await self._begin(warm, new)

    async def _begin(self, warm: WarmStart, new: Snapshot) -> None:
        """Live state of a symbol: its warm start, then what was observed since. The caller holds the symbol's lock."""
        bars = await self._executor.run_long(self._store.bars, warm.symbol, warm.last_open_time)
        last_close = warm.history.bars[-1, OPEN_TIME] + TIMEFRAME_SECONDS[warm.decision_timeframe]
        records = await self._executor.run_long(self._store.records, warm.symbol, last_close)
        symbol = await asyncio.to_thread(
            restore_symbol, warm, bars, *records, await asyncio.to_thread(self._clock_of, warm)
        )
        await asyncio.to_thread(self._rehearse, symbol, new)
        newest = utc(symbol.closed.close_time)
        self._remember(symbol, await self._executor.run_long(self._store.decisions, warm.symbol, newest))
        self._symbols[warm.symbol] = symbol
        self._account.scenarios = await asyncio.to_thread(self._scenarios, dict(self._symbols))
        log.info("%s: warm start %s and %d bars observed since", warm.symbol, warm.digest[:12], len(bars))

    def _clock_of(self, warm: WarmStart) -> Clock:
        """The clock a warm start names. One of an earlier release names none: then what the data it was made from say,
        where they can be seen from here."""
        if warm.clock is None:
            try:
                manifest = json.loads((self._where.workspace / "data" / "manifest.json").read_text())
                if manifest["symbol"] == warm.symbol:
                    return Clock(mode_of(manifest), "the warm start names no clock; its data's manifest was asked")
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                pass  # `clock_of` says which clock is taken then, and why
        return clock_of(warm)

    def _scenarios(self, symbols: dict[str, Symbol]) -> Scenarios:
        """Tails over a position's longest life; where live symbols decide on unlike bars, the longest of theirs."""
        horizon_s = self._params.labels.horizon_bars * max(symbol.step_s for symbol in symbols.values())
        return scenarios_of({name: symbol.warm.closes for name, symbol in symbols.items()}, float(horizon_s))

    def _remember(self, symbol: Symbol, stored: list[DecisionRecord]) -> None:
        """Decisions of a process before this one: asked again, its bar gives the same answer, not a second one."""
        for decision in (record.decision for record in stored):
            if decision.as_of.timestamp() == symbol.closed.close_time:
                stale = age_in_bars(symbol, decision.known_at) > self._params.risk.max_data_age_bars
                key = (
                    symbol.name, symbol.closed.close_time, stale, decision.generation, decision.lineage["warm_start"],
                    decision.breakers, self._tier_of(symbol.name) if stale else decision.tier,
                )  # fmt: skip
                self._made.setdefault(key, (decision, done_with(decision)))

    def _rehearse(self, symbol: Symbol, snapshot: Snapshot) -> None:
        """One bar and one decision on copies, so that no request waits for a kernel to be loaded."""
        Symbol(symbol.warm).on_bar(symbol.closed.bar)
        close = utc(symbol.closed.close_time)
        account = Account(scenarios=self._scenarios({symbol.name: symbol}))
        portfolio = functools.partial(account.portfolio, close, symbol.name)
        tier = Tier(FULL if snapshot.slot("validator", "champion") else NO_SYMBOL.tier, "rehearsal")
        facts: dict[str, Any] = {"tier": tier, "id": "rehearsal", "known_at": close, "now": close}
        decide(symbol, snapshot, self._params, self._flat, portfolio, (), **facts)

    # ---- tiers and alarms -----------------------------------------------------------------------------------------

    def _look_at_tiers(self, now: datetime) -> None:
        snapshot = self._slots.snapshot
        outage = self._out()
        if outage and not self._outage:
            self._alarm("model_service_out", "high", outage)
        elif self._outage and not outage:
            self._alarms.append(("model_service_out", "info", "it answers again", "", True))
        self._outage = outage
        for name, symbol in self._symbols.items():
            stale = self._look_at_age(symbol, now)
            self._stale = {k: v for k, v in self._stale.items() if k != name} | ({name: stale} if stale else {})
            if stale:
                self._judge(outage_inputs(symbol, now))
            if self._judged.get(name) != symbol.closed.close_time:
                self._judge_bars(symbol, 1)
            self._see(symbol, snapshot, None)

    def _look_at_age(self, symbol: Symbol, now: datetime) -> str | None:
        """Why the data of a symbol on the time of day are stale; None if they are not, or its clock is the market's."""
        if symbol.clock.mode == "market":
            return None
        age_bars = (now.timestamp() - symbol.closed.close_time) / symbol.step_s
        return self._freshness.stale_reason(symbol.name, age_bars, self._params.risk.max_data_age_bars)

    def _see(self, symbol: Symbol, snapshot: Snapshot, predictions: ModelAnswers | None) -> State:
        """Move the symbol's tier by what is seen now; a change is logged and an alarm."""
        seen = tier_inputs(symbol, snapshot, predictions, self._out(), self._emergency(symbol, datetime.now(UTC)))
        before, after = self._tiers.update(symbol.name, seen)
        champion = (predictions or {}).get(DECISION_FAMILY, {}).get("champion")
        self._judge(champion_inputs(symbol, DECISION_FAMILY, champion, after.faults))
        if before is not None and before.tier != after.tier:
            told = f"{symbol.name}: tier {before.tier} to {after.tier}: {after.reason}"
            log.warning("%s", told)
            fell = after.tier > before.tier
            severity = "info" if not fell else "critical" if after.tier == 4 else "high"
            self._alarms.append(
                ("tier_changed", severity, told, f"{symbol.name}: ", not fell and after.tier_floor == FULL)
            )
        for family, arms in (predictions or {}).items():
            for arm, said in arms.items():
                key = (family, arm, said.digest)
                fault = faulty(said)
                if fault is not None and fault.startswith("MODEL_FAULT:") and key not in self._spoilt:
                    self._spoilt.add(key)
                    self._alarm("model_fault", "high", f"{family} {arm} version {said.version}: {fault}")
        return after

    def _emergency(self, symbol: Symbol, now: datetime) -> str | None:
        """Why nothing may be opened on a symbol, whatever its models say; None if nothing stands against it."""
        if EMERGENCY_BREAKER in self._latches.names:
            return "latched by a person; `emergency` is reset like any breaker"
        if self._store_fault is not None:
            return self._store_fault
        if self._damage is not None:
            return f"the store is damaged ({self._damage}); restore a backup"
        if self._disk.level == "stop":
            return self._disk.detail
        if self._clock_told is not None:
            return self._clock_told
        if symbol.clock.mode == "wall" and symbol.last_bar_close > now + CLOCK_SKEW:
            return (
                f"the newest bar closes at {symbol.last_bar_close:%F %T} UTC, after now, {now:%F %T} UTC: the clock is "
                "behind, or was ahead when that bar came. Fix the clock; a bar that closes now takes its place"
            )
        return self._stale.get(symbol.name)

    def _clock_fault(self, now: datetime) -> str | None:
        """Why the clock cannot be believed now; told once, and once when it can be again."""
        told = self._clock_watch.check(steady_s(), now.timestamp())
        if told is not None and told != self._clock_told:
            log.error("%s", told)
            self._alarms.append(("clock_jumped", "critical", f"{CLOCK}{told}", CLOCK, False))
        elif told is None and self._clock_told is not None:
            log.warning("the clock is believed again")
            self._alarms.append(("clock_jumped", "info", f"{CLOCK}it is believed again", CLOCK, True))
        self._clock_told = told
        return told

    def _now(self, symbol: Symbol, wall: datetime) -> datetime:
        return symbol.clock.now(symbol.last_bar_close, wall)

    def _out(self) -> str | None:
        """Why the model service is out; None where models answer here."""
        return None if self._remote is None else self._remote.outage

    def _alarm(self, kind: str, severity: str, detail: str) -> None:
        """Told to the store by the next look: no request waits for it, and a store that is down loses none."""
        self._alarms.append((kind, severity, detail, detail, False))

    def _fault_of_store(self, error: BaseException) -> None:
        if str(error) == self._store_fault:  # a call that was refused for what is known
            return
        if self._store_fault is None:
            log.error("the store cannot be written: %s", error)
        said = str(error).splitlines()[0][:200] if str(error) else "no reason given"
        self._store_fault = f"store not writable ({type(error).__name__}: {said})"

    def _reach(self) -> None:
        """Whether a write could begin now, without one."""
        self._store.check_writable()

    def _probe(self) -> None:
        """A write, after one failed: the place may be there and the disk full."""
        now = datetime.now(UTC)
        self._store.acquire_lease(PROBE, PROBE, now, timedelta(seconds=1))
        if self._tiers.unsaved:
            try:
                self._tiers.save()
            except OSError as error:
                raise ServiceDown(f"{TIER_FILE} cannot be written: {error}. Make room on the disk") from error
        self._store_fault = None

    async def _save_tiers(self) -> None:
        """Raises ServiceDown if what was decided about tiers cannot be kept."""
        async with self._saving:
            try:
                if self._tiers.unsaved:
                    await asyncio.to_thread(self._tiers.save)
                if self._freshness.unsaved and self._disk.level != "stop":
                    await asyncio.to_thread(self._freshness.save)
            except OSError as error:
                raise ServiceDown(f"{TIER_FILE} or {FRESHNESS_FILE} cannot be written: {error}") from error

    # ---- breakers -------------------------------------------------------------------------------------------------

    def _judge(self, seen: BreakerInputs) -> None:
        """Trip what has to: refused from here on, on its way to the store ahead of the next decision, and an alarm."""
        for name, why in self._latches.evaluate(seen, datetime.now(UTC)).items():
            log.error("breaker %s tripped: %s", name, why)
            self._tell_tripped(name, why)

    def _tell_tripped(self, name: str, why: str) -> None:
        self._alarms.append(("breaker_tripped", "critical", f"{name}: {why}", f"{name}: ", False))

    def _judge_bars(self, symbol: Symbol, newest: int) -> None:
        """The newest closed bars, oldest first. What a person has reset does not trip when a restart looks again."""
        for back in reversed(range(min(newest, len(symbol.history)))):
            self._judge(bar_inputs(symbol, back, self._params.breakers.book_bars))
        self._judged[symbol.name] = symbol.closed.close_time

    async def _judge_fills(self) -> None:
        since, whole = self._latches.reset_at.get("execution"), self._params.breakers.fills
        self._judge(fill_inputs(await self._executor.run(self._store.fills, since, whole), whole))
        self._fills_judged = True

    # ---- the calls ------------------------------------------------------------------------------------------------

    @bentoml.api(route="/observe", output_spec=ObserveResponse)
    @json_endpoint
    @durable
    async def observe(self, request: ObserveRequest, /) -> Any:
        """Take closed base bars, books and context of one symbol. Durable before the answer; needs the bearer key."""
        # a caller that goes away or a timeout ends the waiting, never a fold between the store and live state
        return await wait_for_write(self._ledger, self._take(request, datetime.now(UTC)))

    async def _take(self, request: ObserveRequest, now: datetime) -> dict[str, Any]:
        rows, told = request.matrix(), request.records()
        symbol = self._live(request.symbol)
        self._refuse_what_cannot_be_kept(symbol, rows, now)
        async with self._locks[symbol.name]:
            symbol = self._symbols[request.symbol]  # a new warm start may have come while we waited
            if symbol.clock.mode == "wall" and symbol.last_bar_close > now + CLOCK_SKEW and len(rows):
                symbol = await self._back_from_the_future(symbol, rows, now)
            admit = functools.partial(symbol.validate_new, rows, now, functools.partial(self._store.bars, symbol.name))
            known = len(rows) > 0 and not rows[0, OPEN_TIME] > symbol.last_open_time  # only then the store is asked
            fresh = await self._executor.run(admit) if known else admit()
            new: tuple[Books | None, ContextFeed | None] = (None, None)
            if any(told):
                stored = functools.partial(self._store.records, symbol.name)
                new = await self._executor.run(symbol.validate_new_records, *told, now, stored)
            if len(fresh) or any(new):
                batch = BarBatch(symbol.name, fresh, fresh[:, OPEN_TIME] + symbol.base_s, now, *new)
                await asyncio.wrap_future(self._ledger.observe(batch))
            symbol.ingest_records(*new)
            closed = symbol.advance(fresh)
            if len(fresh):
                self._freshness.record_arrival(symbol.name, now.timestamp())
                self._look_at_age(symbol, now)
            self._judge_bars(symbol, len(closed))
        return {
            "symbol": symbol.name,
            "received": len(rows),
            "new": len(fresh),
            "records": sum(len(records.known) for records in new if records is not None),
            "closed": [utc(bar.bar[OPEN_TIME]).isoformat() for bar in closed],
            "reason": symbol.reason,
        }

    def _live(self, name: str) -> Symbol:
        """Raises UnknownName; ServiceDown where nothing is live though something was published: its warm start was
        refused, which is no fault of whoever asks."""
        if not self._symbols and (named := self._slots.snapshot.warm_start) is not None:
            raise ServiceDown(
                f"no live state: warm start {named['digest'][:12]} was refused. `bellwether down` and `bellwether up` "
                "fold it again"
            )
        return self._symbols[name]

    def _refuse_what_cannot_be_kept(self, symbol: Symbol | None, rows: Floats, now: datetime) -> None:
        """Raises ServiceDown while the store is known to be out, which is seen again by a look and not by a caller;
        ClockJumped while bars cannot be dated."""
        if self._store_fault is not None:
            raise ServiceDown(self._store_fault)
        if symbol is not None and (fault := self._clock_fault(now)) is not None:
            if symbol.clock.mode == "wall" and len(rows):
                self._clock_watch.observe_bar(float(rows[-1, OPEN_TIME]) + symbol.base_s, steady_s())
            raise ClockJumped(fault)

    async def _back_from_the_future(self, symbol: Symbol, rows: Floats, now: datetime) -> Symbol:
        """Bars ahead of the clock stand in the way of the feed. If what it sends now closes now and is not stored, feed
        and clock agree against them: they came while the clock was ahead, and are taken back."""
        check_bars(rows, symbol.base_s, now)
        opened = float(rows[-1, OPEN_TIME])
        closes_now = now.timestamp() - (opened + symbol.base_s) <= 2.0 * symbol.step_s
        known = opened <= symbol.warm.last_open_time  # then it is the clock that is behind
        stored = await self._executor.run(self._store.bars, symbol.name, opened - 1.0, opened)
        if known or not closes_now or len(stored):
            return symbol
        gone = await self._executor.run(self._store.withdraw_bars, symbol.name, (now + CLOCK_SKEW).timestamp())
        await self._begin(symbol.warm, self._slots.snapshot)
        told = (
            f"{CLOCK}{len(gone)} bar(s) of {symbol.name} that closed up to {symbol.last_bar_close:%F %T} UTC came while the "
            f"clock was ahead; they are taken back, for the feed and the clock now agree on {now:%F %T} UTC: "
            f"{[row.tolist() for row in gone[:3]]}"
        )
        log.error("%s", told)
        for row in gone:  # the alarm shows three; nothing that was stored is lost without a trace
            log.error("taken back: %s %s", symbol.name, row.tolist())
        self._alarms.append(("clock_jumped", "high", told, told, False))
        return self._symbols[symbol.name]

    @bentoml.api(route="/decide", output_spec=DecideResponse)
    @json_endpoint
    @durable
    async def decide(self, request: DecideRequest, /) -> Any:
        """Decide on the last closed bar of one symbol or many, for now by the clock of its market; asked again, the
        same bar gives the same answer. Needs the bearer key."""
        names = request.symbols or [str(request.symbol)]
        try:
            made = await wait_for_write(self._ledger, self._make(names, datetime.now(UTC)))
        except (StoreFault, ServiceDown, asyncio.CancelledError):
            self._doubted |= {subject for subject, (decision, _) in self._pending.items() if decision.symbol in names}
            raise
        told = [decision_payload(decision) for decision in made]
        return told[0] if request.symbols is None else {"decisions": told}

    async def _make(self, names: Sequence[str], now: datetime) -> list[Decision]:
        """Decisions, durable; of what a failed write stored all the same, the stored one."""
        for name in names:
            self._live(name)  # an unknown name is said before anything else
        self._refuse_what_cannot_be_kept(None, np.empty((0, 0)), now)
        self._clock_fault(now)
        await self._find_late(names)
        made = await self._decided(names, now)
        await self._save_tiers()
        await self._all(self._latches.pending_writes())
        return await self._all([done for _, done in made])

    async def _find_late(self, names: Collection[str]) -> None:
        """Look for decisions whose write was told as failed: a stored one counts, and is the answer on its bar."""
        for subject, decision in [(s, d) for s, d in self._unsure.items() if d.symbol in names]:
            try:
                stored = (await self._executor.run(self._store.decision, decision.id)).decision
            except UnknownName:
                self._unsure.pop(subject, None)
                continue
            if self._unsure.pop(subject, None) is not None:
                log.warning("decision %s was stored after all", stored.id)
                self._account.add_decision(stored)
                self._stands(subject, stored)

    def _stands(self, subject: tuple[Any, ...], decision: Decision) -> None:
        """Whoever asked was told that it failed: asked again, this is the answer, whatever the tier has become."""
        self._late[subject] = decision
        if len(self._late) > MAX_CACHED_DECISIONS:
            del self._late[next(iter(self._late))]

    @staticmethod
    async def _all(waited: "Sequence[Future[T]]") -> list[T]:
        return list(await asyncio.gather(*(asyncio.wrap_future(done) for done in waited)))

    def _unwritten(self, error: Exception) -> Any:
        told = f"not done: {str(error).rstrip('.')}. Asking again is safe; what was stored all the same is found"
        content = {"error": told, "kind": type(error).__name__, "fields": [], **self._told_tier(self._worst())}
        return json_response(content, 503)

    async def _decided(self, names: Sequence[str], now: datetime) -> list[_Made]:
        if self._remote is None:
            return [self._decide(self._symbols[name], now, self._slots.snapshot, None) for name in names]
        async with AsyncExitStack() as held:
            for name in sorted(set(names)):  # in one order, so that two requests never wait for each other
                await held.enter_async_context(self._locks[self._symbols[name].name])
            snapshot = self._slots.snapshot
            new = [
                symbol
                for symbol in (self._symbols[name] for name in dict.fromkeys(names))
                if self._key(symbol, age_in_bars(symbol, self._now(symbol, now)), snapshot) not in self._made
            ]
            raised = [events_at_close(symbol) for symbol in new]
            asked = [inference_requests(snapshot, symbol, some) for symbol, some in zip(new, raised, strict=True)]
            answers = iter(await self._remote.predict(snapshot, [ask for some in asked for ask in some]))
            predictions = {
                symbol.name: prediction_records(
                    snapshot, symbol, some, mine, {k: v for _ in mine for k, v in next(answers).items()}
                )
                for symbol, some, mine in zip(new, raised, asked, strict=True)
            }
            return [self._decide(self._symbols[name], now, snapshot, predictions.get(name)) for name in names]

    def _key(self, symbol: Symbol, age_bars: float, snapshot: Snapshot) -> tuple[Any, ...]:
        """All that a decision rests on, as it stands now."""
        stale, tier = age_bars > self._params.risk.max_data_age_bars, self._tier_of(symbol.name)
        close, warm = symbol.closed.close_time, symbol.warm.digest
        return symbol.name, close, stale, snapshot.generation, warm, self._latches.names, tier

    def _tier_of(self, name: str) -> int | None:
        state = self._tiers[name]
        return None if state is None else state.tier

    def _decide(self, symbol: Symbol, now: datetime, snapshot: Snapshot, predictions: ModelAnswers | None) -> _Made:
        """Decide and hand to the ledger, or find the decision already made on exactly this."""
        subject = about(symbol, snapshot)
        if (late := self._late.get(subject)) is not None:
            return late, done_with(late)
        if (waiting := self._pending.get(subject)) is not None:
            return waiting
        known_at = self._now(symbol, now)
        age_bars = age_in_bars(symbol, known_at)
        if (before := self._made.get(self._key(symbol, age_bars, snapshot))) is not None:
            return before
        predictions = predict_all(symbol, snapshot) if predictions is None else predictions
        state = self._see(symbol, snapshot, predictions)
        key = self._key(symbol, age_bars, snapshot)
        decision = decide(
            symbol,
            snapshot,
            self._params,
            self._flat,
            functools.partial(self._account.portfolio, utc(symbol.closed.close_time), symbol.name),
            self._latches.names,
            tier=tier_at(state, age_bars, self._params.risk.max_data_age_bars),
            learned=self._experience.weights,
            predictions=predictions,
            id=id_of(key, snapshot),
            known_at=known_at,
            now=now,
        )
        self._account.add_decision(decision)  # before it is durable: the next decision must see it
        try:
            done = self._stored(
                decision,
                self._ledger.append(decision, symbol.closed.features.tobytes(), symbol.closed.signals.tobytes()),
            )
        except ServiceDown:
            self._account.remove_decision(decision)
            raise
        self._made[key] = self._pending[subject] = decision, done
        if len(self._made) > MAX_CACHED_DECISIONS:
            del self._made[next(iter(self._made))]
        loop = asyncio.get_running_loop()
        done.add_done_callback(lambda ended: loop.call_soon_threadsafe(self._settle, key, subject, decision, ended))
        return decision, done

    def _stored(self, decision: Decision, done: "Future[None]") -> "Future[Decision]":
        """The decision that stands in the ledger under this id: this one, or the one of a write that was told as failed
        and was done all the same. Its id says what it rests on, so that it is found and not made a second time."""
        stands: Future[Decision] = Future()

        def ended(told: "Future[None]") -> None:
            error = told.exception()
            if error is None:
                stands.set_result(decision)
            elif not isinstance(error, StoredAlready):
                stands.set_exception(error)
            else:
                try:
                    stands.set_result(self._store.decision(decision.id).decision)
                except (BellwetherError, StoreFault, OSError) as gone:
                    stands.set_exception(gone)

        done.add_done_callback(ended)
        return stands

    def _settle(
        self, key: tuple[Any, ...], subject: tuple[Any, ...], decision: Decision, ended: "Future[Decision]"
    ) -> None:
        if self._pending.get(subject, (None,))[0] is decision:
            del self._pending[subject]
        doubted = subject in self._doubted
        self._doubted.discard(subject)
        if (error := ended.exception()) is not None:  # nothing may rest on a decision that was not written
            self._account.remove_decision(decision)
            self._made.pop(key, None)
            if not isinstance(error, InputError):  # that one was refused; any other may have been done
                self._unsure[subject] = decision
            return
        if (stored := ended.result()) is not decision:
            self._account.remove_decision(decision)
            self._account.add_decision(stored)
            if key in self._made:
                self._made[key] = stored, ended
        if doubted:
            self._stands(subject, stored)

    @bentoml.api(route="/outcome", output_spec=OutcomeResponse)
    @json_endpoint
    @durable
    async def outcome(self, request: OutcomeRequest, /) -> dict[str, Any]:
        """What became of a decision; idempotent by decision id. Needs the bearer key."""
        return await wait_for_write(self._ledger, self._resolve(Outcome(**request.model_dump())))

    async def _resolve(self, outcome: Outcome) -> dict[str, Any]:
        self._refuse_what_cannot_be_kept(None, np.empty((0, 0)), datetime.now(UTC))
        new = await asyncio.wrap_future(self._ledger.resolve(outcome))
        self._account.resolve(outcome)
        self._judge(account_inputs(self._account))
        return {"decision_id": outcome.decision_id, "new": new}

    @bentoml.api(route="/fill", output_spec=FillResponse)
    @json_endpoint
    @durable
    async def fill(self, request: FillRequest, /) -> Any:
        """What a venue made of an emitted decision's order; idempotent by its id. Needs the bearer key."""
        return await wait_for_write(self._ledger, self._fill(request))

    async def _fill(self, request: FillRequest) -> dict[str, Any]:
        self._refuse_what_cannot_be_kept(None, np.empty((0, 0)), datetime.now(UTC))
        decision = (await self._executor.run(self._store.decision, request.decision_id)).decision
        worse = None if request.price is None else slippage_bps(decision, request.price)
        reported = Fill(**request.model_dump(), ingested_at=datetime.now(UTC), slippage_bps=worse)
        new = await asyncio.wrap_future(self._ledger.fill(reported))
        await self._judge_fills()
        return {"id": reported.id, "new": new, "slippage_bps": worse, "breakers": list(self._latches.names)}

    @bentoml.api(route="/models")
    @json_endpoint
    async def models(self, request: EmptyRequest, /) -> dict[str, Any]:
        """What is served: champion and challenger of every family, and what was refused."""
        snapshot = self._slots.snapshot
        return {
            "generation": snapshot.generation,
            "written_at": snapshot.written_at,
            "families": families(snapshot),
            "refused": refusals(snapshot),
        }

    @bentoml.api(route="/status")
    @json_endpoint
    async def status(self, request: EmptyRequest, /) -> dict[str, Any]:
        """Tier and why, models, symbols, breakers, account."""
        snapshot = self._slots.snapshot
        account = self._account
        return {
            "generation": snapshot.generation,
            **self._told_health(self._checks()),
            **self._told_tier(self._worst()),  # the worst of all symbols: an operator looks here first
            "data_hash": None if snapshot.warm_start is None else snapshot.warm_start["data_hash"],
            "families": families(snapshot),
            "refused": refusals(snapshot),
            "symbols": {
                name: _described(symbol, self._freshness.last_arrival(name), datetime.now(UTC))
                | self._told_tier(self._state(name))
                for name, symbol in self._symbols.items()
            },
            "breakers": list(self._latches.names),
            "breaker_reasons": self._latches.reasons,
            "account": {
                "day": account.day and account.day.isoformat(),
                "open": len(account.open),
                "gross": account.gross,
                "trades": account.trades_today,
                "equity": account.equity,
                "peak": account.peak,
            },
        }

    @bentoml.api(route="/risk")
    @json_endpoint
    async def risk(self, request: EmptyRequest, /) -> dict[str, Any]:
        """Every limit with what is used of it, whose the tail is, breakers, stage, and what would be refused now."""
        closes = [symbol.closed.close_time for symbol in self._symbols.values()]
        at = utc(max(closes)) if closes else datetime.now(UTC)
        tiers = {name: self._state(name).tier for name in self._symbols}
        return utilisation(self._account, self._symbols, at, self._params, self._flat, self._latches.names, tiers)

    @bentoml.api(route="/ready")
    @json_endpoint
    async def ready(self, request: EmptyRequest, /) -> Any:
        """Every check behind readiness; 503 until all of them hold."""
        checks = self._checks()
        told = {**self._told_health(checks), **self._told_tier(self._worst())}
        return json_response({**told, "checks": checks}, 200 if told["ready"] else 503)

    async def __is_ready__(self) -> bool:
        return all(check["ok"] for check in self._checks())

    def _state(self, name: str) -> State:
        return self._tiers[name] or NO_SYMBOL

    def _worst(self) -> State:
        return worst(self._state(name) for name in self._symbols) or NO_SYMBOL

    def _refused(self) -> list[str]:
        """What was refused and does not stand in the way of what is served."""
        refused = [
            f"{r.family} {r.arm} version {r.version} was refused: {r.reason}" for r in self._slots.snapshot.refused
        ]
        return refused + ([self._slots.refusal] if self._slots.refusal is not None else [])

    def _health(self, checks: list[dict[str, Any]]) -> Health:
        warming = {name: symbol.reason for name, symbol in self._symbols.items() if symbol.reason is not None}
        return health(checks, self._worst(), self._latches.reasons, warming, self._refused())

    def _told_health(self, checks: list[dict[str, Any]]) -> dict[str, Any]:
        """What /ready and /status say first; the table is in docs/health.md."""
        found = self._health(checks)
        return {
            "ready": all(check["ok"] for check in checks),
            "health": found.status,
            "health_reason": found.reason,
            "waiting_for_first_turn": waits_for_first_run(checks, self._slots.snapshot.generation, self._refused()),
        }

    def _told_tier(self, state: State) -> dict[str, Any]:
        tier = state.current_tier()
        multiplier = self._params.tiers.size[tier.number]
        return {
            "tier": tier.number,
            "tier_reason": tier.reason,
            "tier_multiplier": multiplier,
            "held": state.tier_floor,
        }

    def _checks(self) -> list[dict[str, Any]]:
        """What readiness rests on: all of them hold, or bars and decisions cannot be taken now. `ok` is true of those
        that only tell."""
        fault, told = self._watcher.fault(), self._slots.snapshot.warm_start
        followed = fault or self._slots.refusal or f"{self._slots.snapshot.generation}"
        current = {symbol.warm.digest for symbol in self._symbols.values()}
        warm = told is not None and told["digest"] in current
        wanted = "no generation file yet: run `bellwether run`" if told is None else f"warm start {told['digest'][:12]}"
        refused = wanted if told is None or warm else f"{wanted} was refused"
        pages = "checking" if self._pages is not None else "whole" if self._pages_at is not None else "not checked yet"
        return [
            {"name": "follows generation", "ok": fault is None, "detail": followed},
            {"name": "warm start", "ok": bool(current), "detail": refused},
            {"name": "store", "ok": self._store_fault is None, "detail": self._store_fault or f"writable; {pages}"},
            {"name": "store pages", "ok": self._damage is None, "detail": self._damage or pages},
            {"name": "clock", "ok": self._clock_told is None, "detail": self._clock_told or "runs evenly"},
            {"name": "disk", "ok": True, "detail": self._disk.detail},
            *slot_checks(self._slots.snapshot),
        ]


def about(symbol: Symbol, snapshot: Snapshot) -> tuple[Any, ...]:
    """What a decision is about: two on the same are a decision made twice, unless tier or breakers changed between."""
    return symbol.name, symbol.closed.close_time, snapshot.generation, symbol.warm.digest


def done_with(decision: Decision) -> "Future[Decision]":
    done: Future[Decision] = Future()
    done.set_result(decision)
    return done


def id_of(key: tuple[Any, ...], snapshot: Snapshot) -> str:
    """The name of a decision, from all that it rests on: the same question has the same name, in any process."""
    served = sorted((family, arm, slot.digest) for (family, arm), slot in snapshot.slots.items())
    return hashlib.sha256(json.dumps([key, served]).encode()).hexdigest()[:32]


def _described(symbol: Symbol, arrived: float | None, now: datetime) -> dict[str, Any]:
    at = symbol.clock.now(symbol.last_bar_close, now)
    return {
        "clock": symbol.clock.mode,
        "clock_why": symbol.clock.why,
        "now": at.isoformat(),
        "age_bars": round((at.timestamp() - symbol.closed.close_time) / symbol.step_s, 2),
        "last_bar_arrived": None if arrived is None else utc(arrived).isoformat(),
        "base_timeframe": symbol.warm.base_timeframe,
        "decision_timeframe": symbol.warm.decision_timeframe,
        "last_bar": utc(symbol.last_open_time).isoformat(),
        "decides_on": utc(symbol.closed.close_time - symbol.step_s).isoformat(),
        "reason": symbol.reason,
        "warm_start": symbol.warm.digest,
        "data_hash": symbol.warm.data_hash,
    }


READS = ("/models", "/status", "/risk", "/ready")

DecisionService.add_asgi_middleware(RequestLog)  # type: ignore[attr-defined]
DecisionService.add_asgi_middleware(  # type: ignore[attr-defined]
    Guard, tool="decision", open_paths=(*PROBES, *READS), open_folders=("/static_content/",)
)
DecisionService.add_asgi_middleware(  # type: ignore[attr-defined]
    HttpRules,
    title="Bellwether decisions",
    text="Show it closed bars, books and context; ask for a decision. Every answer says why, and is durable before it "
    "leaves. observe, decide, outcome and fill need the key (artifacts/write_key): press Authorize, or open this page "
    "with `bellwether open decision`.",
    protected_paths=("/observe", "/decide", "/outcome", "/fill"),
    reads=READS,
)
DecisionService.add_asgi_middleware(BufferedJsonBody)  # type: ignore[attr-defined]
DecisionService.add_asgi_middleware(FairQueue, lanes=decision_lanes())  # type: ignore[attr-defined]
guard_worker()
json_logs.configure()
