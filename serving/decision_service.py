"""The decision service: observe · decide · outcome · models · status · ready. It validates, delegates, records."""

import asyncio
import functools
import logging
from collections import defaultdict
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import bentoml

from pipelines.contracts import OPEN_TIME, TIMEFRAME_SECONDS, Decision, Outcome, utc
from pipelines.errors import BadTimes, BellwetherError
from pipelines.settings import load_params, settings
from pipelines.store import BarBatch, DecisionRecord, Store, decision_payload
from pipelines.training.warm import read_warm_start
from serving.account import Account
from serving.api import (
    DecideAnswer,
    DecideRequest,
    Guard,
    Nothing,
    ObserveAnswer,
    ObserveRequest,
    OutcomeAnswer,
    OutcomeRequest,
    answers,
    json_answer,
)
from serving.following import Follower, alarm_to, families, refusals, slot_checks
from serving.ledger import Ledger
from serving.live import decide, tier_of
from serving.policy import flatten
from serving.slots import Slots, Snapshot
from serving.symbols import CLOCK_SKEW, Symbol, Symbols, replay

log = logging.getLogger("bellwether.decision")
KEPT = 4096  # decisions remembered so that asking again gives the same one

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
        self._max_age = self._params.risk.max_data_age_bars
        self._store = Store.open(self._where.store, self._where.durability)
        self._ledger = Ledger(self._store)
        self._account = Account.restore(self._store)
        self._alarm = alarm_to(self._store)
        self._slots = Slots(self._where.serving_dir, self._where.bundles, self._alarm)
        self._symbols = Symbols()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._breakers: tuple[str, ...] = ()
        self._made: dict[tuple[Any, ...], _Made] = {}
        self._follower = Follower(self._look)

    # ---- following what flows write -------------------------------------------------------------------------------

    @bentoml.on_startup
    async def start(self) -> None:
        await self._look()
        self._follower.start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await self._follower.stop()
        await asyncio.to_thread(self._ledger.close)
        self._slots.close()
        self._store.close()

    async def _look(self) -> None:
        """New generation, new warm start, breakers, outcomes written by others."""
        new = await asyncio.to_thread(self._slots.pending)
        if new is not None:
            await self._warm(new)
            await asyncio.to_thread(self._slots.swap, new)
        self._breakers = await asyncio.to_thread(lambda: tuple(latch.name for latch in self._store.latches()))
        if self._account.sizes:
            for outcome in await asyncio.to_thread(self._store.outcomes_of, list(self._account.sizes)):
                self._account.resolve(outcome)

    async def _warm(self, new: Snapshot) -> None:
        """Start live state from the warm start a generation names; a refused one leaves the old state serving."""
        told = new.warm_start
        if told is None or told["digest"] in {symbol.warm.digest for symbol in self._symbols.values()}:
            return
        try:
            warm = await asyncio.to_thread(read_warm_start, Path(told["path"]), told["digest"])
        except BellwetherError as error:
            await asyncio.to_thread(self._alarm, "warm_start_refused", "high", str(error))
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
        log.info("%s: warm start %s and %d bars observed since", warm.symbol, warm.digest[:12], len(bars))

    def _remember(self, symbol: Symbol, stored: list[DecisionRecord]) -> None:
        """Decisions of a process before this one: asked again, its bar gives the same answer, not a second one."""
        done: Future[None] = Future()
        done.set_result(None)
        for decision in (record.decision for record in stored):
            if decision.as_of.timestamp() == symbol.closed.close_time:
                served = decision.generation, decision.lineage["warm_start"], decision.breakers
                self._made.setdefault(_key(symbol, decision.known_at, self._max_age, *served), (decision, done))

    def _rehearse(self, symbol: Symbol, snapshot: Snapshot) -> None:
        """One bar and one decision on copies, so that no request waits for a kernel to be loaded."""
        Symbol(symbol.warm).step(symbol.closed.bar)
        close = utc(symbol.closed.close_time)
        account = Account().portfolio(close)
        decide(symbol, snapshot, self._params, self._flat, account, (), id="rehearsal", asked_at=close, now=close)

    # ---- the calls ------------------------------------------------------------------------------------------------

    @bentoml.api(route="/observe", output_spec=ObserveAnswer)
    @answers
    async def observe(self, request: ObserveRequest, /) -> dict[str, Any]:
        """Take closed base bars, books and context of one symbol. Durable before the answer; needs the bearer key."""
        # a caller that goes away or a timeout ends the waiting, never a fold between the store and live state
        return await asyncio.shield(self._take(request, datetime.now(UTC)))

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
    async def decide(self, request: DecideRequest, /) -> dict[str, Any]:
        """Decide on the last closed bar of one symbol or many; asked again, the same bar gives the same answer."""
        now = datetime.now(UTC)
        asked_at = request.as_of or now
        if asked_at > now + CLOCK_SKEW:
            raise BadTimes(
                f"as_of: {asked_at.isoformat()} is in the future (now {now:%F %T} UTC); leave it out for now"
            )
        names = request.symbols or [str(request.symbol)]
        made = [self._decide(self._symbols[name], asked_at, now) for name in names]
        await asyncio.gather(*(asyncio.wrap_future(done) for _, done in made))
        told = [decision_payload(decision) for decision, _ in made]
        return told[0] if request.symbols is None else {"decisions": told}

    def _decide(self, symbol: Symbol, asked_at: datetime, now: datetime) -> _Made:
        """Decide and hand to the ledger, or find the decision already made on exactly this."""
        snapshot = self._slots.snapshot
        key = _key(symbol, asked_at, self._max_age, snapshot.generation, symbol.warm.digest, self._breakers)
        if (before := self._made.get(key)) is not None:
            return before
        decision = decide(
            symbol,
            snapshot,
            self._params,
            self._flat,
            self._account.portfolio(utc(symbol.closed.close_time)),
            self._breakers,
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
        return {"decision_id": outcome.decision_id, "new": new}

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
        # the worst of all symbols: an operator looks here first
        tier, reason = max(
            (tier_of(snapshot, symbol) for symbol in self._symbols.values()),
            default=(3, "TIER_3: no symbol has a warm start yet; `bellwether run --once` publishes one"),
        )
        account = self._account
        return {
            "generation": snapshot.generation,
            "tier": tier,
            "tier_reason": reason,
            "data_hash": None if snapshot.warm_start is None else snapshot.warm_start["data_hash"],
            "families": families(snapshot),
            "refused": refusals(snapshot),
            "symbols": {name: _described(symbol) for name, symbol in self._symbols.items()},
            "breakers": list(self._breakers),
            "account": {
                "day": account.day and account.day.isoformat(),
                "open": len(account.open),
                "gross": account.gross,
                "trades": account.trades_today,
                "equity": account.equity,
                "peak": account.peak,
            },
        }

    @bentoml.api(route="/ready")
    @answers
    async def ready(self, request: Nothing, /) -> Any:
        """Every check behind readiness; 503 until all of them hold."""
        checks = self._checks()
        ready = all(check["ok"] for check in checks)
        return json_answer({"ready": ready, "checks": checks}, 200 if ready else 503)

    async def __is_ready__(self) -> bool:
        return all(check["ok"] for check in self._checks())

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
            *slot_checks(self._slots.snapshot),
        ]


def _key(
    symbol: Symbol, asked_at: datetime, max_age_bars: float, generation: int, warm_start: str, breakers: tuple[str, ...]
) -> tuple[Any, ...]:
    """What a decision on the symbol's last closed bar rests on: the same key is the same decision."""
    age_bars = (asked_at.timestamp() - symbol.closed.close_time) / symbol.step_s
    stale, early = age_bars > max_age_bars, age_bars < 0
    return symbol.name, symbol.closed.close_time, stale, early, generation, warm_start, breakers


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
    "leaves. observe and outcome write: send Authorization: Bearer <key> (artifacts/write_key).",
    writes=("/observe", "/outcome"),
    reads=("/models", "/status", "/ready"),
)
