"""From a symbol's newest closed bar to a durable decision: predictions, tier, policy, ledger."""

import asyncio
import functools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime

from pipelines.contracts import Decision, ModelAnswers, utc
from pipelines.errors import ServiceDown
from pipelines.store import StoreFault
from serving.inference.model_client import ModelClient
from serving.inference.model_slots import ModelSlots, Snapshot
from serving.inference.predictions import events_at_close, inference_requests, prediction_records
from serving.policy.decide import age_in_bars, decide, predict_all, tier_at
from serving.policy.decision_row import Policy
from serving.service.breaker_watch import BreakerWatch
from serving.service.decision_memory import DecisionKey, DecisionMemory, PendingDecision, id_of, subject_of
from serving.service.live_symbols import LiveSymbols
from serving.service.store_executor import wait_for_write
from serving.service.store_monitor import StoreMonitor
from serving.service.system_clock import ClockMonitor, utc_now
from serving.service.tier_watch import TierWatch
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.online_weights_store import OnlineWeightsStore
from serving.state.symbols import Symbol


class Decider:
    """Make decisions; each is durable before it is returned. One event loop owns it."""

    def __init__(
        self,
        policy: Policy,
        *,
        slots: ModelSlots,
        live: LiveSymbols,
        ledger: Ledger,
        account: Account,
        weights: OnlineWeightsStore,
        breakers: BreakerWatch,
        tiers: TierWatch,
        memory: DecisionMemory,
        store_monitor: StoreMonitor,
        clock: ClockMonitor,
        model_client: ModelClient | None,
    ) -> None:
        """Take the collaborators. `model_client` None: models run in process."""
        self._policy, self._params = policy, policy.params
        self._slots, self._live, self._ledger = slots, live, ledger
        self._account, self._weights, self._breakers = account, weights, breakers
        self._tiers, self._memory, self._store_monitor = tiers, memory, store_monitor
        self._clock, self._model_client = clock, model_client

    async def decide(self, names: Sequence[str]) -> list[Decision]:
        """Return a durable decision for each symbol, on its newest closed bar, for now.

        Raises UnknownName; ServiceDown or a StoreFault where nothing can be stored now: the next call may find the
        decision stored all the same.
        """
        try:
            return await wait_for_write(self._ledger, self._decide_and_store(names, utc_now()))
        except (StoreFault, ServiceDown, asyncio.CancelledError):
            self._memory.mark_uncertain(names)
            raise

    async def _decide_and_store(self, names: Sequence[str], now: datetime) -> list[Decision]:
        """Return decisions once they, their tiers and the trips they rest on are durable."""
        for name in names:
            self._live.get(name)  # an unknown name is refused before anything else
        self._store_monitor.refuse_writes()
        self._clock.check(now)
        await self._memory.find_late(names)
        made = await self._decide_all(names, now)
        await self._tiers.save()
        await self._breakers.writes_done()
        return list(await asyncio.gather(*(asyncio.wrap_future(one.stored) for one in made)))

    async def _decide_all(self, names: Sequence[str], now: datetime) -> list[PendingDecision]:
        """Decide each symbol; where models run in the model service, one request carries all rows."""
        symbols = self._live.symbols
        if self._model_client is None:
            return [self._decide_one(symbols[name], now, self._slots.snapshot, None) for name in names]
        async with AsyncExitStack() as locks:
            for name in sorted(set(names)):  # in one order, so that two requests never wait for each other
                await locks.enter_async_context(self._live.locks[symbols[name].name])
            snapshot = self._slots.snapshot
            predictions = await self._predict_remote(self._model_client, names, now, snapshot)
            return [self._decide_one(symbols[name], now, snapshot, predictions.get(name)) for name in names]

    async def _predict_remote(
        self, client: ModelClient, names: Sequence[str], now: datetime, snapshot: Snapshot
    ) -> dict[str, ModelAnswers]:
        """Return symbol → answers of the model service, of the symbols not decided yet."""
        undecided = [
            symbol
            for symbol in (self._live.symbols[name] for name in dict.fromkeys(names))
            if self._key(symbol, age_in_bars(symbol, self._known_at(symbol, now)), snapshot) not in self._memory.made
        ]
        events = [events_at_close(symbol) for symbol in undecided]
        requests = [
            inference_requests(snapshot, symbol, event) for symbol, event in zip(undecided, events, strict=True)
        ]
        answers = iter(await client.predict(snapshot, [request for some in requests for request in some]))
        return {
            symbol.name: prediction_records(
                snapshot, symbol, event, some, {k: v for _ in some for k, v in next(answers).items()}
            )
            for symbol, event, some in zip(undecided, events, requests, strict=True)
        }

    def _decide_one(
        self, symbol: Symbol, now: datetime, snapshot: Snapshot, predictions: ModelAnswers | None
    ) -> PendingDecision:
        """Decide and hand the decision to the ledger, or return the one already made on exactly this.

        predictions  answers of the models at this close; None: run the models in this process
        """
        subject = subject_of(symbol, snapshot)
        if (found := self._memory.find(subject)) is not None:
            return found
        known_at = self._known_at(symbol, now)
        age_bars = age_in_bars(symbol, known_at)
        if (before := self._memory.made.get(self._key(symbol, age_bars, snapshot))) is not None:
            return before
        predictions = predict_all(symbol, snapshot) if predictions is None else predictions
        state = self._tiers.update(symbol, snapshot, predictions)
        key = self._key(symbol, age_bars, snapshot)
        decision = decide(
            symbol,
            snapshot,
            self._policy,
            functools.partial(self._account.portfolio, utc(symbol.closed.close_time), symbol.name),
            self._breakers.names,
            tier=tier_at(state, age_bars, self._params.risk.max_data_age_bars),
            learned=self._weights.weights,
            predictions=predictions,
            id=id_of(key, snapshot),
            known_at=known_at,
            now=now,
        )
        self._account.add_decision(decision)  # before it is durable: the next decision must see it
        try:
            written = self._ledger.append(decision, symbol.closed.features.tobytes(), symbol.closed.signals.tobytes())
        except ServiceDown:
            self._account.remove_decision(decision)
            raise
        made = PendingDecision(decision, self._memory.stored(decision, written))
        self._memory.add(key, subject, made)
        return made

    def _key(self, symbol: Symbol, age_bars: float, snapshot: Snapshot) -> DecisionKey:
        """Return everything a decision on this symbol would rest on now."""
        return DecisionKey(
            symbol=symbol.name,
            close_time=symbol.closed.close_time,
            is_stale=age_bars > self._params.risk.max_data_age_bars,
            generation=snapshot.generation,
            warm_start=symbol.warm.digest,
            breakers=self._breakers.names,
            tier=self._tiers.number(symbol.name),
            reading=symbol.reading,
        )

    def _known_at(self, symbol: Symbol, now: datetime) -> datetime:
        """Return now by the clock of the symbol's market; `now` is the time of day."""
        return self._tiers.now(symbol, now)
