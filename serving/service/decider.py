"""From the newest closed bars of symbols to durable decisions: predictions, tier, policy, ledger.

A batch is the unit: every model is called once for all symbols, and all decisions are stored in one transaction. One
symbol is a batch of one.
"""

import asyncio
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AsyncExitStack, contextmanager
from datetime import datetime
from time import perf_counter
from typing import NamedTuple

from pipelines.contracts import Decision, Floats, ModelAnswers
from pipelines.errors import BellwetherError, InputError, ServiceDown
from pipelines.store import DecisionRecord, StoreFault
from serving.inference.model_client import ModelClient
from serving.inference.model_slots import ModelSlots, Snapshot
from serving.inference.predictions import (
    Answers,
    Unseen,
    answered_here,
    events_at_close,
    inference_requests,
    prediction_records,
)
from serving.policy.decide import age_in_bars, decide, predict_all, predict_together, tier_at
from serving.policy.decision_row import ExposureSnapshot, Policy
from serving.service import metrics, tracing
from serving.service.breaker_watch import BreakerWatch
from serving.service.decision_memory import (
    DecisionKey,
    DecisionMemory,
    PendingDecision,
    Subject,
    id_of,
    served_in,
    subject_of,
)
from serving.service.decision_meter import DecisionMeter
from serving.service.live_symbols import LiveSymbols
from serving.service.ramp_guard import RampGuard
from serving.service.store_executor import wait_for_write
from serving.service.store_monitor import StoreMonitor
from serving.service.system_clock import ClockMonitor, utc_now
from serving.service.tier_watch import TierWatch
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.online_weights_store import OnlineWeightsStore
from serving.state.symbols import Symbol


class _New(NamedTuple):
    """Hold a decision that is made and not yet handed to the ledger, with its input rows."""

    name: str
    key: DecisionKey
    subject: Subject
    record: DecisionRecord


async def _durable(
    made: Mapping[str, PendingDecision | BellwetherError],
) -> dict[str, Decision | BellwetherError]:
    """Wait until decisions are durable; return each, or why it is refused. Raises what the store raised.

    made  those handed to the ledger last come last: once the last has ended there is hardly one to wait for, and the
          ledger wakes the event loop once instead of once a decision
    """
    found: dict[str, Decision | BellwetherError] = {}
    writing: dict[str, Future[Decision]] = {}
    for name, one in made.items():
        if isinstance(one, BellwetherError):
            found[name] = one
        elif one.stored is None:
            found[name] = one.decision
        else:
            writing[name] = one.stored
    for i, stored in enumerate(reversed(writing.values())):
        if i == 0 or not stored.done():
            await asyncio.gather(asyncio.wrap_future(stored), return_exceptions=True)
    for name, stored in writing.items():
        error = stored.exception()
        if error is not None and not isinstance(error, InputError):
            raise error
        found[name] = stored.result() if error is None else error
    return found


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
        ramp: RampGuard,
        meter: DecisionMeter,
    ) -> None:
        """Take the collaborators. `model_client` None: models run in process."""
        self._policy, self._params = policy, policy.params
        self._unseen: Unseen = policy.params.models.unseen_symbols
        self._slots, self._live, self._ledger = slots, live, ledger
        self._account, self._weights, self._breakers = account, weights, breakers
        self._tiers, self._memory, self._store_monitor = tiers, memory, store_monitor
        self._clock, self._model_client, self._ramp, self._meter = clock, model_client, ramp, meter
        self._policy_s = self._risk_s = 0.0  # spent on the batch that is decided now

    async def decide(self, names: Sequence[str]) -> list[Decision]:
        """Return a durable decision for each symbol, on its newest closed bar, for now.

        Raises UnknownName and what else refuses one of them; ServiceDown or a StoreFault where nothing can be stored
        now: the next call may find the decision stored all the same.
        """
        made: list[Decision] = []
        for found in await self.decide_all(names):
            if isinstance(found, BellwetherError):
                raise found
            made.append(found)
        return made

    async def decide_all(self, names: Sequence[str]) -> list[Decision | BellwetherError]:
        """Return the same for each symbol, or why this one is refused; decisions are stored in one transaction.

        Raises ServiceDown, a StoreFault or ClockJumped where nothing can be stored now.
        """
        try:
            return await wait_for_write(self._ledger, self._decide_and_store(names, utc_now()))
        except (StoreFault, ServiceDown, asyncio.CancelledError):
            self._memory.mark_uncertain(names)
            raise

    async def _decide_and_store(self, names: Sequence[str], now: datetime) -> list[Decision | BellwetherError]:
        """Return decisions once they, their tiers and the trips they rest on are durable."""
        found: dict[str, Decision | BellwetherError] = {}
        for name in names:
            try:
                self._live.get(name)  # an unknown name is refused before anything else
            except BellwetherError as error:
                found[name] = error
        known = [name for name in dict.fromkeys(names) if name not in found]
        if known:
            self._store_monitor.refuse_writes()
            self._clock.check(now)
            await self._memory.find_late(known)
            with self._stage("decision"):
                made = await self._decide_known(known, now)
                await self._tiers.save()
                await self._breakers.writes_done()
                found |= await _durable(made)
        return [found[name] for name in names]

    async def _decide_known(
        self, names: Sequence[str], now: datetime
    ) -> "dict[str, PendingDecision | BellwetherError]":
        """Decide each symbol; where models run in the model service, one request carries all rows."""
        if self._model_client is None:
            return self._decide_together(names, now, self._slots.snapshot, {})
        async with AsyncExitStack() as locks:
            for name in sorted(names):  # in one order, so that two requests never wait for each other
                await locks.enter_async_context(self._live.locks[name])
            snapshot = self._slots.snapshot
            predictions = await self._predict_remote(self._model_client, names, now, snapshot)
            return self._decide_together(names, now, snapshot, predictions)

    async def _predict_remote(
        self, client: ModelClient, names: Sequence[str], now: datetime, snapshot: Snapshot
    ) -> dict[str, ModelAnswers]:
        """Return symbol → answers of the model service, of the symbols not decided yet."""
        undecided = self._undecided(names, now, snapshot)
        if not undecided:
            return {}
        raised = [events_at_close(symbol) for symbol in undecided]
        closes = inference_requests(snapshot, undecided, raised, self._unseen)
        requests = [request for close in closes for request in close.requests]
        with self._stage("family"):
            found: Sequence[Answers] = await client.predict(snapshot, requests)
            if self._params.models.fallback == "local":
                found = answered_here(snapshot, requests, found)
        answers = prediction_records(snapshot, closes, found)
        return {symbol.name: made for symbol, made in zip(undecided, answers, strict=True)}

    def _undecided(self, names: Sequence[str], now: datetime, snapshot: Snapshot) -> list[Symbol]:
        """Return the symbols whose newest close has no decision yet, without those that nothing can be decided on."""
        symbols = []
        for name in names:
            symbol = self._live.symbols.get(name)
            if symbol is None or self._memory.find(subject_of(symbol, snapshot)) is not None:
                continue
            try:
                age_bars = age_in_bars(symbol, self._known_at(symbol, now))
            except BellwetherError:
                continue  # `_decide_one` says why
            if self._key(symbol, age_bars, snapshot) not in self._memory.made:
                symbols.append(symbol)
        return symbols

    def _decide_together(
        self, names: Sequence[str], now: datetime, snapshot: Snapshot, predictions: Mapping[str, ModelAnswers]
    ) -> "dict[str, PendingDecision | BellwetherError]":
        """Decide symbol by symbol, as each sees the positions before it; hand the new ones to the ledger at once.

        predictions  answers of the model service; of a symbol that is not named the models in this process answer
        """
        here = [symbol for symbol in self._undecided(names, now, snapshot) if symbol.name not in predictions]
        answers = dict(predictions)
        if here:
            with self._stage("family"):
                each = predict_together(here, snapshot, self._unseen, functools.partial(self._timed, snapshot))
            answers |= {symbol.name: found for symbol, found in zip(here, each, strict=True)}
        found: dict[str, PendingDecision | BellwetherError] = {}
        new: list[_New] = []
        self._policy_s = self._risk_s = 0.0
        policy = tracing.begin("policy")
        # at the newest close of all: a symbol that is a bar behind sees what the others opened meanwhile. No bar
        # arrives while this runs, so close and volatility are those of every decision here
        at, volatility = self._live.newest_close(), self._account.volatility()
        portfolio = functools.partial(self._portfolio, at, volatility)
        served, learned = served_in(snapshot), self._weights.weights  # the same for all
        try:
            for name in names:
                try:
                    symbol, predicted = self._live.symbols[name], answers.get(name)
                    made = self._decide_one(symbol, now, snapshot, served, predicted, learned, portfolio)
                except BellwetherError as error:
                    found[name] = error
                    continue
                if isinstance(made, PendingDecision):
                    found[name] = made
                else:
                    new.append(made)
        finally:  # also after a fault of our own: the account counts what was decided before it
            policy.set_attribute("risk_s", self._risk_s)
            policy.end()
            found |= self._append(new)
        if new:
            metrics.observe(metrics.STAGE, self._policy_s - self._risk_s, "fusion")
            metrics.observe(metrics.STAGE, self._risk_s, "risk")
        return found

    def _decide_one(
        self,
        symbol: Symbol,
        now: datetime,
        snapshot: Snapshot,
        served: str,
        predictions: ModelAnswers | None,
        learned: Mapping[str, float],
        portfolio: Callable[[str, str, float], ExposureSnapshot],
    ) -> "PendingDecision | _New":
        """Decide and count the decision in the account, or return the one already made on exactly this.

        served       of the snapshot, as `served_in` returns it
        predictions  answers of the models at this close; None: run the models in this process
        learned      category → weight learned from outcomes so far
        portfolio    (symbol, signal, side) → the account at the newest close
        """
        subject = subject_of(symbol, snapshot)
        if (before := self._memory.find(subject)) is not None:
            return before
        known_at = self._known_at(symbol, now)
        age_bars = age_in_bars(symbol, known_at)
        if (before := self._memory.made.get(self._key(symbol, age_bars, snapshot))) is not None:
            return before
        predictions = predict_all(symbol, snapshot, self._unseen) if predictions is None else predictions
        state = self._tiers.update(symbol, snapshot, predictions)
        self._ramp.look(snapshot, symbol, predictions)
        key = self._key(symbol, age_bars, snapshot)
        begin = perf_counter()
        decision = decide(
            symbol,
            snapshot,
            self._policy,
            functools.partial(portfolio, symbol.name),
            self._breakers.names,
            tier=tier_at(state, age_bars, self._params.risk.max_data_age_bars),
            assigned=self._ramp.assigned(snapshot, symbol),
            learned=learned,
            predictions=predictions,
            id=id_of(key, served),
            known_at=known_at,
            now=now,
        )
        self._policy_s += perf_counter() - begin
        self._account.add_decision(decision)  # before it is durable: the next decision must see it
        rows = symbol.closed.features.tobytes(), symbol.closed.signals.tobytes()
        return _New(symbol.name, key, subject, DecisionRecord(decision, *rows))

    def _portfolio(self, at: datetime, volatility: Floats, name: str, event: str, side: float) -> ExposureSnapshot:
        """Return what is open, as `Account.portfolio`, and count how long it took."""
        begin = perf_counter()
        found = self._account.portfolio(at, name, event, side, volatility)
        self._risk_s += perf_counter() - begin
        return found

    def _timed(self, snapshot: Snapshot, family: str, arm: str, ms: float) -> None:
        """Take how long a row of a model in this process took."""
        self._ramp.time(snapshot, family, arm, ms)
        metrics.observe_model(family, arm, ms)

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Time a stage of the batch that is decided now."""
        begin = perf_counter()
        with tracing.span(name):
            yield
        metrics.observe(metrics.STAGE, perf_counter() - begin, name)

    def _append(self, new: "Sequence[_New]") -> dict[str, PendingDecision]:
        """Hand new decisions to the ledger, in one transaction, and remember them; return symbol → decision."""
        try:
            written = self._ledger.append_all([one.record for one in new])
        except ServiceDown:
            for one in new:
                self._account.remove_decision(one.record.decision)
            raise
        decisions = [one.record.decision for one in new]
        stored = [self._memory.stored(decision, done) for decision, done in zip(decisions, written, strict=True)]
        self._memory.add_all(
            [(one.key, one.subject, decision, its) for one, decision, its in zip(new, decisions, stored, strict=True)]
        )
        self._meter.follow(decisions, written)
        return {one.name: PendingDecision(one.record.decision, its) for one, its in zip(new, stored, strict=True)}

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
