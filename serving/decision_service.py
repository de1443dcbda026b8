"""The decision service: observe · decide · outcome · models · status · ready. It validates, delegates, records."""

import asyncio
import functools
import gc
import logging
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import bentoml

from pipelines.contracts import OPEN_TIME, TIMEFRAME_SECONDS, Decision, Outcome, utc
from pipelines.errors import BadTimes, BellwetherError, ServiceDown
from pipelines.settings import load_params, settings
from pipelines.store import BarBatch, DecisionRecord, Fill, Store, StoreFault, decision_payload
from pipelines.training.warm import read_warm_start
from serving.account import Account
from serving.api import (
    DecideAnswer,
    DecideRequest,
    FillAnswer,
    FillRequest,
    Guard,
    Nothing,
    ObserveAnswer,
    ObserveRequest,
    OutcomeAnswer,
    OutcomeRequest,
    answers,
    json_answer,
)
from serving.experience import FILE as EXPERIENCE_FILE
from serving.experience import Experience
from serving.following import Follower, families, refusals, slot_checks
from serving.guarding import Latches, of_account, of_bar, of_champion, of_fills, of_outage, slippage_bps
from serving.ledger import Ledger
from serving.live import FAMILY, age_in_bars, decide, hear, seen_of, tier_at
from serving.metrics_folder import keep_in_memory
from serving.opinions import asks, faulty, opinions, raised_at
from serving.policy import flatten
from serving.remote import ModelClient
from serving.risk.breakers import Conditions
from serving.risk.exposure import Scenarios, scenarios_of
from serving.slots import Slots, Snapshot
from serving.symbols import CLOCK_SKEW, Symbol, Symbols, replay
from serving.tiers import EMERGENCY_LATCH, FULL, Freshness, State, Tier, TierBook, health, worst
from serving.utilisation import utilisation

keep_in_memory()  # before BentoML makes its first counter
log = logging.getLogger("bellwether.decision")
KEPT = 4096  # decisions remembered so that asking again gives the same one

TIER_FILE = "tiers.json"
PROBE = "store probe"  # a lease: the smallest real write, tried while the store is not writable
NO_SYMBOL = State(3, "no symbol has a warm start yet; `bellwether run --once` publishes one")

_Made = tuple[Decision, "Future[None]"]


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
        self._where = settings()
        self._params = load_params(self._where.params_file)
        self._flat = flatten(self._params)
        self._store = Store.open(self._where.store, self._where.durability)
        self._ledger = Ledger(self._store)
        self._account = Account.restore(self._store)
        self._experience = Experience(self._where.serving_dir / EXPERIENCE_FILE, self._params)
        self._alarms: deque[tuple[str, str, str, str, bool]] = deque()
        self._slots = Slots(self._where.serving_dir, self._where.bundles, self._alarm)
        self._waiting: Snapshot | None = None  # a generation loaded, not yet served
        self._symbols = Symbols()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._latches = Latches(self._params, self._ledger)
        self._judged: dict[str, float] = {}  # symbol → close of the newest bar its breakers looked at
        self._fills_judged = False  # those of a process before this one
        self._made: dict[tuple[Any, ...], _Made] = {}
        self._follower = Follower(self._look)
        self._tiers = TierBook(self._where.serving_dir / TIER_FILE, self._params.tiers)
        self._saving = asyncio.Lock()
        self._freshness = Freshness()
        self._stale: dict[str, str] = {}
        self._store_fault: str | None = None
        self._spoilt: set[tuple[str, str, str]] = set()  # (family, arm, digest) whose fault was told
        self._outage: str | None = None  # of the model service, as last told
        self._remote: ModelClient | None = None

    # ---- following what flows write -------------------------------------------------------------------------------

    @bentoml.on_startup
    async def start(self) -> None:
        if self._where.models == "remote":
            wait_s, retry_s = self._where.model_timeout_ms / 1e3, self._where.model_retry_seconds
            self._remote = ModelClient(self._where.model_url, wait_s, retry_s, self._params.tiers.faults_in_row)
        await self._look()
        gc.freeze()  # what is loaded stays: no request waits while it is searched for cycles
        self._follower.start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self._follower.stop()
        if self._remote is not None:
            await self._remote.close()
        await asyncio.to_thread(self._ledger.close)
        self._slots.close()
        self._store.close()

    async def _look(self) -> None:
        """New generation, breakers and outcomes written by others; what this look says of every symbol's tier."""
        self._waiting = await asyncio.to_thread(self._slots.pending) or self._waiting
        try:
            if self._store_fault is not None:
                await asyncio.to_thread(self._probe)
            if self._waiting is not None:
                await self._warm(self._waiting)
                await asyncio.to_thread(self._slots.swap, self._waiting)
                self._waiting = None
            if (fault := self._latches.send_again()) is not None:
                self._fault_of_store(fault)
            await self._follow_store()
        except (StoreFault, ServiceDown) as error:  # the next look tries again; until then nothing may be opened
            self._fault_of_store(error)
        if self._remote is not None:
            await self._remote.look(time.monotonic())
        self._look_at_tiers(datetime.now(UTC))
        try:
            await self._save_tiers()
            await asyncio.to_thread(self._tell_alarms)
        except (StoreFault, ServiceDown) as error:
            self._fault_of_store(error)

    async def _follow_store(self) -> None:
        written = self._latches.written()
        told = await asyncio.to_thread(self._store.latches, tripped_only=False)
        for name, why in self._latches.follow(told, written).items():
            self._tell_tripped(name, why)
        for latch in told:
            self._account.accept(latch)
        since = self._experience.since
        ended = await asyncio.to_thread(self._store.resolved, None, None, since)
        try:
            await asyncio.to_thread(self._experience.follow, ended)
        except OSError as error:
            raise ServiceDown(f"{EXPERIENCE_FILE} cannot be written: {error}. Free the disk.") from error
        if self._account.sizes:
            for outcome in await asyncio.to_thread(self._store.outcomes_of, list(self._account.sizes)):
                self._account.resolve(outcome)
        self._judge(of_account(self._account))
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
            bars = await asyncio.to_thread(self._store.bars, warm.symbol, warm.last_open_time)
            last_close = warm.history.bars[-1, OPEN_TIME] + TIMEFRAME_SECONDS[warm.decision_timeframe]
            records = await asyncio.to_thread(self._store.records, warm.symbol, last_close)
            symbol = await asyncio.to_thread(replay, warm, bars, *records)
            await asyncio.to_thread(self._rehearse, symbol, new)
            newest = utc(symbol.closed.close_time)
            self._remember(symbol, await asyncio.to_thread(self._store.decisions, warm.symbol, newest))
            self._symbols[warm.symbol] = symbol
            self._account.scenarios = await asyncio.to_thread(self._scenarios, dict(self._symbols))
        log.info("%s: warm start %s and %d bars observed since", warm.symbol, warm.digest[:12], len(bars))

    def _scenarios(self, symbols: dict[str, Symbol]) -> Scenarios:
        """Tails over a position's longest life; where live symbols decide on unlike bars, the longest of theirs."""
        horizon_s = self._params.labels.horizon_bars * max(symbol.step_s for symbol in symbols.values())
        return scenarios_of({name: symbol.warm.closes for name, symbol in symbols.items()}, float(horizon_s))

    def _remember(self, symbol: Symbol, stored: list[DecisionRecord]) -> None:
        """Decisions of a process before this one: asked again, its bar gives the same answer, not a second one."""
        done: Future[None] = Future()
        done.set_result(None)
        for decision in (record.decision for record in stored):
            if decision.as_of.timestamp() == symbol.closed.close_time:
                stale = age_in_bars(symbol, decision.known_at) > self._params.risk.max_data_age_bars
                key = (
                    symbol.name, symbol.closed.close_time, stale, decision.generation, decision.lineage["warm_start"],
                    decision.breakers, self._tier_of(symbol.name) if stale else decision.tier,
                )  # fmt: skip
                self._made.setdefault(key, (decision, done))

    def _rehearse(self, symbol: Symbol, snapshot: Snapshot) -> None:
        """One bar and one decision on copies, so that no request waits for a kernel to be loaded."""
        Symbol(symbol.warm).step(symbol.closed.bar)
        close = utc(symbol.closed.close_time)
        account = Account(scenarios=self._scenarios({symbol.name: symbol}))
        portfolio = functools.partial(account.portfolio, close, symbol.name)
        tier = Tier(FULL if snapshot.slot("validator", "champion") else NO_SYMBOL.tier, "rehearsal")
        facts: dict[str, Any] = {"tier": tier, "id": "rehearsal", "asked_at": close, "now": close}
        decide(symbol, snapshot, self._params, self._flat, portfolio, (), **facts)

    # ---- tiers and alarms -----------------------------------------------------------------------------------------

    def _look_at_tiers(self, now: datetime) -> None:
        snapshot, limit = self._slots.snapshot, self._params.risk.max_data_age_bars
        outage = self._out()
        if outage and not self._outage:
            self._alarm("model_service_out", "high", outage)
        elif self._outage and not outage:
            self._alarms.append(("model_service_out", "info", "it answers again", "", True))
        self._outage = outage
        for name, symbol in self._symbols.items():
            age_bars = (now.timestamp() - symbol.closed.close_time) / symbol.step_s
            stale = self._freshness.look(name, age_bars, limit)
            self._stale = {k: v for k, v in self._stale.items() if k != name} | ({name: stale} if stale else {})
            if stale:
                self._judge(of_outage(symbol, now))
            if self._judged.get(name) != symbol.closed.close_time:
                self._judge_bars(symbol, 1)
            self._see(symbol, snapshot, None)

    def _see(self, symbol: Symbol, snapshot: Snapshot, heard: dict[str, Any] | None) -> State:
        """Move the symbol's tier by what is seen now; a change is logged and an alarm."""
        emergency = (
            "latched by a person; `emergency` is reset like any breaker"
            if EMERGENCY_LATCH in self._latches.names
            else None
        )
        emergency = emergency or self._store_fault or self._stale.get(symbol.name)
        seen = seen_of(symbol, snapshot, heard, self._out(), emergency)
        before, after = self._tiers.see(symbol.name, seen)
        champion = (heard or {}).get(FAMILY, {}).get("champion")
        self._judge(of_champion(symbol, FAMILY, champion, after.faults))
        if before is not None and before.tier != after.tier:
            told = f"{symbol.name}: tier {before.tier} to {after.tier}: {after.reason}"
            log.warning("%s", told)
            fell = after.tier > before.tier
            severity = "info" if not fell else "critical" if after.tier == 4 else "high"
            self._alarms.append(("tier_changed", severity, told, f"{symbol.name}: ", not fell and after.held == FULL))
        for family, arms in (heard or {}).items():
            for arm, said in arms.items():
                key = (family, arm, said["digest"])
                fault = faulty(said)
                if fault is not None and fault.startswith("MODEL_FAULT:") and key not in self._spoilt:
                    self._spoilt.add(key)
                    self._alarm("model_fault", "high", f"{family} {arm} version {said['version']}: {fault}")
        return after

    def _out(self) -> str | None:
        """Why the model service is out; None where models answer here."""
        return None if self._remote is None else self._remote.out

    def _alarm(self, kind: str, severity: str, detail: str) -> None:
        """Told to the store by the next look: no request waits for it, and a store that is down loses none."""
        self._alarms.append((kind, severity, detail, detail, False))

    def _tell_alarms(self) -> None:
        """Entries are (kind, severity, detail, about, over): one replaces its kind's about the same; over = closed."""
        while self._alarms:
            kind, severity, detail, about, over = self._alarms[0]
            at = datetime.now(UTC)
            for alarm in self._store.alarms():
                if alarm.kind == kind and alarm.detail.startswith(about) and alarm.detail != detail:
                    self._store.clear_alarm(alarm.id, at)
            told = self._store.raise_alarm(kind, severity, detail, at)
            if over:
                self._store.clear_alarm(told, at)
            self._alarms.popleft()

    def _fault_of_store(self, error: BaseException) -> None:
        if self._store_fault is None:
            log.error("the store cannot be written: %s", error)
        self._store_fault = f"store not writable ({type(error).__name__}: {str(error).splitlines()[0][:200]})"

    def _probe(self) -> None:
        now = datetime.now(UTC)
        self._store.acquire_lease(PROBE, PROBE, now, timedelta(seconds=1))
        self._store_fault = None

    async def _save_tiers(self) -> None:
        """Raises ServiceDown if what was decided about tiers cannot be kept."""
        async with self._saving:
            if self._tiers.unsaved:
                try:
                    await asyncio.to_thread(self._tiers.save)
                except OSError as error:
                    why = f"{TIER_FILE} cannot be written: {error}. Free the disk; we go on by ourselves."
                    raise ServiceDown(why) from error

    # ---- breakers -------------------------------------------------------------------------------------------------

    def _judge(self, seen: Conditions) -> None:
        """Trip what has to: refused from here on, on its way to the store ahead of the next decision, and an alarm."""
        for name, why in self._latches.judge(seen, datetime.now(UTC)).items():
            log.error("breaker %s tripped: %s", name, why)
            self._tell_tripped(name, why)

    def _tell_tripped(self, name: str, why: str) -> None:
        self._alarms.append(("breaker_tripped", "critical", f"{name}: {why}", f"{name}: ", False))

    def _judge_bars(self, symbol: Symbol, newest: int) -> None:
        """The newest closed bars, oldest first. What a person has reset does not trip when a restart looks again."""
        for back in reversed(range(min(newest, len(symbol.history)))):
            self._judge(of_bar(symbol, back, self._params.breakers.book_bars))
        self._judged[symbol.name] = symbol.closed.close_time

    async def _judge_fills(self) -> None:
        since, whole = self._latches.reset_at.get("execution"), self._params.breakers.fills
        self._judge(of_fills(await asyncio.to_thread(self._store.fills, since, whole), whole))
        self._fills_judged = True

    # ---- the calls ------------------------------------------------------------------------------------------------

    @bentoml.api(route="/observe", output_spec=ObserveAnswer)
    @answers
    async def observe(self, request: ObserveRequest, /) -> Any:
        """Take closed base bars, books and context of one symbol. Durable before the answer; needs the bearer key."""
        # a caller that goes away or a timeout ends the waiting, never a fold between the store and live state
        try:
            return await asyncio.shield(self._take(request, datetime.now(UTC)))
        except (StoreFault, ServiceDown) as error:
            self._fault_of_store(error)
            return self._unwritten(error)

    async def _take(self, request: ObserveRequest, now: datetime) -> dict[str, Any]:
        rows, told = request.matrix(), request.records()
        symbol = self._symbols[request.symbol]
        async with self._locks[symbol.name]:
            symbol = self._symbols[request.symbol]  # a new warm start may have come while we waited
            fresh = symbol.admit(rows, now, functools.partial(self._store.bars, symbol.name))
            new = symbol.admit_records(*told, now, functools.partial(self._store.records, symbol.name))
            if len(fresh) or any(new):
                batch = BarBatch(symbol.name, fresh, fresh[:, OPEN_TIME] + symbol.base_s, now, *new)
                await asyncio.wrap_future(self._ledger.observe(batch))
            symbol.hear(*new)
            closed = symbol.advance(fresh)
            self._judge_bars(symbol, len(closed))
        return {
            "symbol": symbol.name,
            "received": len(rows),
            "new": len(fresh),
            "records": sum(len(records.known) for records in new if records is not None),
            "closed": [utc(bar.bar[OPEN_TIME]).isoformat() for bar in closed],
            "reason": symbol.reason,
        }

    @bentoml.api(route="/decide", output_spec=DecideAnswer)
    @answers
    async def decide(self, request: DecideRequest, /) -> Any:
        """Decide on the last closed bar of one symbol or many; asked again, the same bar gives the same answer."""
        now = datetime.now(UTC)
        asked_at = request.as_of or now
        if asked_at > now + CLOCK_SKEW:
            raise BadTimes(
                f"as_of: {asked_at.isoformat()} is in the future (now {now:%F %T} UTC); leave it out for now"
            )
        names = request.symbols or [str(request.symbol)]
        try:
            made = await self._decided(names, asked_at, now)
            await self._save_tiers()
            await asyncio.gather(*(asyncio.wrap_future(done) for done in self._latches.waiting()))
            await asyncio.gather(*(asyncio.wrap_future(done) for _, done in made))
        except (StoreFault, ServiceDown) as error:
            self._fault_of_store(error)
            self._look_at_tiers(now)
            return self._unwritten(error)
        told = [decision_payload(decision) for decision, _ in made]
        return told[0] if request.symbols is None else {"decisions": told}

    def _unwritten(self, error: Exception) -> Any:
        told = f"nothing was decided or stored: {error}. Mend the store; asking again is safe."
        content = {"error": told, "kind": type(error).__name__, "fields": [], **self._told_tier(self._worst())}
        return json_answer(content, 503)

    async def _decided(self, names: Sequence[str], asked_at: datetime, now: datetime) -> list[_Made]:
        if self._remote is None:
            return [self._decide(self._symbols[name], asked_at, now, self._slots.snapshot, None) for name in names]
        async with AsyncExitStack() as held:
            for name in sorted(set(names)):  # in one order, so that two requests never wait for each other
                await held.enter_async_context(self._locks[self._symbols[name].name])
            snapshot = self._slots.snapshot
            new = [
                symbol
                for symbol in (self._symbols[name] for name in dict.fromkeys(names))
                if self._key(symbol, age_in_bars(symbol, asked_at), snapshot) not in self._made
            ]
            raised = [raised_at(symbol) for symbol in new]
            asked = [asks(snapshot, symbol, some) for symbol, some in zip(new, raised, strict=True)]
            answers = iter(await self._remote.ask(snapshot, [ask for some in asked for ask in some]))
            heard = {
                symbol.name: opinions(
                    snapshot, symbol, some, mine, {k: v for _ in mine for k, v in next(answers).items()}
                )
                for symbol, some, mine in zip(new, raised, asked, strict=True)
            }
            return [self._decide(self._symbols[name], asked_at, now, snapshot, heard.get(name)) for name in names]

    def _key(self, symbol: Symbol, age_bars: float, snapshot: Snapshot) -> tuple[Any, ...]:
        """All that a decision rests on, as it stands now."""
        stale, tier = age_bars > self._params.risk.max_data_age_bars, self._tier_of(symbol.name)
        close, warm = symbol.closed.close_time, symbol.warm.digest
        return symbol.name, close, stale, snapshot.generation, warm, self._latches.names, tier

    def _tier_of(self, name: str) -> int | None:
        state = self._tiers[name]
        return None if state is None else state.tier

    def _decide(
        self, symbol: Symbol, asked_at: datetime, now: datetime, snapshot: Snapshot, heard: dict[str, Any] | None
    ) -> _Made:
        """Decide and hand to the ledger, or find the decision already made on exactly this."""
        age_bars = age_in_bars(symbol, asked_at)
        if (before := self._made.get(self._key(symbol, age_bars, snapshot))) is not None:
            return before
        heard = hear(symbol, snapshot) if heard is None else heard
        state = self._see(symbol, snapshot, heard)
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
            heard=heard,
            id=uuid4().hex,
            asked_at=asked_at,
            now=now,
        )
        self._account.take(decision)  # before it is durable: the next decision must see it
        done = self._ledger.append(decision, symbol.closed.features.tobytes(), symbol.closed.signals.tobytes())
        self._made[key] = decision, done
        if len(self._made) > KEPT:
            del self._made[next(iter(self._made))]
        loop = asyncio.get_running_loop()
        done.add_done_callback(lambda ended: loop.call_soon_threadsafe(self._settle, key, decision, ended))
        return decision, done

    def _settle(self, key: tuple[Any, ...], decision: Decision, ended: "Future[None]") -> None:
        if ended.exception() is not None:  # the caller gets the error; nothing may rest on a decision never written
            self._account.drop(decision)
            self._made.pop(key, None)

    @bentoml.api(route="/outcome", output_spec=OutcomeAnswer)
    @answers
    async def outcome(self, request: OutcomeRequest, /) -> dict[str, Any]:
        """What became of a decision; idempotent by decision id. Needs the bearer key."""
        outcome = Outcome(**request.model_dump())
        new = await asyncio.wrap_future(self._ledger.resolve(outcome))
        self._account.resolve(outcome)
        self._judge(of_account(self._account))
        return {"decision_id": outcome.decision_id, "new": new}

    @bentoml.api(route="/fill", output_spec=FillAnswer)
    @answers
    async def fill(self, request: FillRequest, /) -> Any:
        """What a venue made of an emitted decision's order; idempotent by its id. Needs the bearer key."""
        try:
            decision = (await asyncio.to_thread(self._store.decision, request.decision_id)).decision
            worse = None if request.price is None else slippage_bps(decision, request.price)
            reported = Fill(**request.model_dump(), ingested_at=datetime.now(UTC), slippage_bps=worse)
            new = await asyncio.wrap_future(self._ledger.fill(reported))
            await self._judge_fills()
        except (StoreFault, ServiceDown) as error:
            self._fault_of_store(error)
            return self._unwritten(error)
        return {"id": reported.id, "new": new, "slippage_bps": worse, "breakers": list(self._latches.names)}

    @bentoml.api(route="/models")
    @answers
    async def models(self, request: Nothing, /) -> dict[str, Any]:
        """What is served: champion and challenger of every family, and what was refused."""
        snapshot = self._slots.snapshot
        return {
            "generation": snapshot.generation,
            "written_at": snapshot.written_at,
            "families": families(snapshot),
            "refused": refusals(snapshot),
        }

    @bentoml.api(route="/status")
    @answers
    async def status(self, request: Nothing, /) -> dict[str, Any]:
        """Tier and why, models, symbols, breakers, account."""
        snapshot = self._slots.snapshot
        account = self._account
        return {
            "generation": snapshot.generation,
            "health": self._health(all(check["ok"] for check in self._checks())),
            **self._told_tier(self._worst()),  # the worst of all symbols: an operator looks here first
            "data_hash": None if snapshot.warm_start is None else snapshot.warm_start["data_hash"],
            "families": families(snapshot),
            "refused": refusals(snapshot),
            "symbols": {
                name: _described(symbol) | self._told_tier(self._state(name)) for name, symbol in self._symbols.items()
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
    @answers
    async def risk(self, request: Nothing, /) -> dict[str, Any]:
        """Every limit with what is used of it, whose the tail is, breakers, stage, and what would be refused now."""
        closes = [symbol.closed.close_time for symbol in self._symbols.values()]
        at = utc(max(closes)) if closes else datetime.now(UTC)
        tiers = {name: self._state(name).tier for name in self._symbols}
        return utilisation(self._account, self._symbols, at, self._params, self._flat, self._latches.names, tiers)

    @bentoml.api(route="/ready")
    @answers
    async def ready(self, request: Nothing, /) -> Any:
        """Every check behind readiness; 503 until all of them hold."""
        checks = self._checks()
        ready = all(check["ok"] for check in checks)
        told = {"ready": ready, "health": self._health(ready), **self._told_tier(self._worst())}
        return json_answer({**told, "checks": checks}, 200 if ready else 503)

    async def __is_ready__(self) -> bool:
        return all(check["ok"] for check in self._checks())

    def _state(self, name: str) -> State:
        return self._tiers[name] or NO_SYMBOL

    def _worst(self) -> State:
        return worst(self._state(name) for name in self._symbols) or NO_SYMBOL

    def _health(self, ready: bool) -> str:
        return health(self._worst(), ready)

    def _told_tier(self, state: State) -> dict[str, Any]:
        tier = state.now()
        multiplier = self._params.tiers.size[tier.number]
        return {"tier": tier.number, "tier_reason": tier.reason, "tier_multiplier": multiplier, "held": state.held}

    def _checks(self) -> list[dict[str, Any]]:
        fault = self._follower.fault()
        current = {symbol.warm.digest for symbol in self._symbols.values()}
        told = self._slots.snapshot.warm_start
        warm = told is not None and told["digest"] in current
        wanted = "no generation file yet: run `bellwether run`" if told is None else f"warm start {told['digest'][:12]}"
        return [
            {
                "name": "follows generation",
                "ok": fault is None,
                "detail": fault or f"{self._slots.snapshot.generation}",
            },
            {"name": "warm start", "ok": warm, "detail": wanted if warm or told is None else f"{wanted} was refused"},
            {"name": "store", "ok": self._store_fault is None, "detail": self._store_fault or "writable"},
            *slot_checks(self._slots.snapshot),
        ]


def _described(symbol: Symbol) -> dict[str, Any]:
    return {
        "base_timeframe": symbol.warm.base_timeframe,
        "decision_timeframe": symbol.warm.decision_timeframe,
        "last_bar": utc(symbol.last_open_time).isoformat(),
        "decides_on": utc(symbol.closed.close_time - symbol.step_s).isoformat(),
        "reason": symbol.reason,
        "warm_start": symbol.warm.digest,
        "data_hash": symbol.warm.data_hash,
    }


DecisionService.add_asgi_middleware(  # type: ignore[attr-defined]
    Guard,
    title="Bellwether decisions",
    text="Show it closed bars, books and context; ask for a decision. Every answer says why, and is durable before it "
    "leaves. observe, outcome and fill write: send Authorization: Bearer <key> (artifacts/write_key).",
    writes=("/observe", "/outcome", "/fill"),
    reads=("/models", "/status", "/risk", "/ready"),
)
