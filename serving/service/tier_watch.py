"""The tier of every symbol in live service: moved by what is observed, kept in a file, an alarm at each change."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime

from pipelines.contracts import ModelAnswers
from pipelines.data.admission import CLOCK_SKEW
from pipelines.errors import ServiceDown
from pipelines.families import DECISION_FAMILY
from pipelines.params import Params
from serving.inference.model_client import ModelClient
from serving.inference.model_slots import ModelSlots, Snapshot
from serving.inference.predictions import faulty
from serving.policy.decide import tier_inputs
from serving.risk.breaker_monitor import champion_inputs, outage_inputs
from serving.service.alarm_queue import AlarmQueue
from serving.service.breaker_watch import BreakerWatch
from serving.service.store_monitor import TIER_FILE, StoreMonitor
from serving.service.system_clock import ClockMonitor, utc_now
from serving.state.feed_state import FeedState, FeedWatch
from serving.state.symbols import Symbol
from serving.state.tiers import EMERGENCY, EMERGENCY_BREAKER, FULL, Freshness, State, TierStore, worst

log = logging.getLogger("bellwether.decision")
FRESHNESS_FILE = "freshness.json"
NO_SYMBOL = State(3, "no symbol has a warm start yet; `bellwether run --once` publishes one")


class TierWatch:
    """Update the tiers at every decision and every poll. One event loop owns it."""

    def __init__(
        self,
        params: Params,
        *,
        tiers: TierStore,
        freshness: Freshness,
        feed: FeedWatch,
        slots: ModelSlots,
        symbols: Mapping[str, Symbol],
        breakers: BreakerWatch,
        store_monitor: StoreMonitor,
        clock: ClockMonitor,
        model_client: ModelClient | None,
        alarms: AlarmQueue,
    ) -> None:
        """Start from the tiers in the file. `model_client` None: the models run in this process."""
        self._params, self._tiers, self._freshness, self._feed = params, tiers, freshness, feed
        self._slots, self._symbols, self._breakers = slots, symbols, breakers
        self._store_monitor, self._clock, self._model_client, self._alarms = store_monitor, clock, model_client, alarms
        self._answers_here = params.models.fallback == "local"
        self._stale: dict[str, str] = {}  # symbol → why its data are stale
        self._reported_outage: str | None = None  # of the model service, at the last poll
        self._reported_faults: set[tuple[str, str, str]] = set()  # (family, arm, digest) with an alarm
        self._saving = asyncio.Lock()

    # ---- reading --------------------------------------------------------------------------------------------------

    def number(self, name: str) -> int | None:
        """Return the symbol's tier, None if it never had one."""
        state = self._tiers[name]
        return None if state is None else state.tier

    def state(self, name: str) -> State:
        """Return the symbol's state; NO_SYMBOL where it never had one."""
        return self._tiers[name] or NO_SYMBOL

    def worst(self) -> State:
        """Return the worst state of all live symbols, which an operator wants to see first."""
        return worst(self.state(name) for name in self._symbols) or NO_SYMBOL

    def last_arrival(self, name: str) -> float | None:
        """Return when the symbol's newest bar arrived, epoch s; None if none was fed live."""
        return self._freshness.last_arrival(name)

    @property
    def feed(self) -> FeedState | None:
        """Return what the feed wrote last, as of the last poll; None where none ever ran."""
        return self._feed.state

    def now(self, symbol: Symbol, wall: datetime) -> datetime:
        """Return now by the clock of the symbol's market; `wall` is the time of day, aware UTC."""
        passed_s = self._feed.passed_s(symbol.name, wall) if symbol.clock.mode == "market" else 0.0
        return symbol.clock.now(symbol.last_bar_close, wall, passed_s)

    @property
    def outage(self) -> str | None:
        """Return why the model service is out; None if it is not, or where models run in this process."""
        return None if self._model_client is None else self._model_client.outage

    # ---- updates --------------------------------------------------------------------------------------------------

    def poll(self, now: datetime) -> None:
        """Move the tier of every symbol by what is known now, and evaluate the breakers that time alone can trip."""
        self._feed.look(now)
        snapshot = self._slots.snapshot
        outage = self.outage
        if outage and not self._reported_outage:
            here = "; the same bundles answer here, on the CPU" if self._answers_here else ""
            self._alarms.raise_alarm("model_service_out", "high", f"{outage}{here}")
        elif self._reported_outage and not outage:
            self._alarms.close_alarm("model_service_out", "it answers again", "")
        self._reported_outage = outage
        for name, symbol in self._symbols.items():
            self._note_stale(symbol, now)
            if name in self._stale and symbol.clock.mode == "wall":  # a market that is played again has no outage
                self._breakers.evaluate(outage_inputs(symbol, now))
            self._breakers.evaluate_newest_bar(symbol)
            self.update(symbol, snapshot, None)

    def record_arrival(self, symbol: Symbol, now: datetime) -> None:
        """Note that a new bar of this symbol arrived now."""
        self._freshness.record_arrival(symbol.name, now.timestamp())
        self._feed.record_arrival(symbol.name, now)
        self._note_stale(symbol, now)

    def update(self, symbol: Symbol, snapshot: Snapshot, predictions: ModelAnswers | None) -> State:
        """Move the symbol's tier by what is known now; return its state. A change is logged and raises an alarm.

        predictions  answers of the models at this close; None at a poll
        """
        emergency, unseen = self._emergency(symbol, utc_now()), self._params.models.unseen_symbols
        service = None if self._answers_here else self.outage
        inputs = tier_inputs(symbol, snapshot, predictions, service, emergency, unseen)
        before, after = self._tiers.update(symbol.name, inputs)
        champion = (predictions or {}).get(DECISION_FAMILY, {}).get("champion")
        self._breakers.evaluate(champion_inputs(symbol, DECISION_FAMILY, champion, after.faults))
        if before is not None and before.tier != after.tier:
            self._report_change(symbol.name, before, after)
        self._report_faults(predictions or {})
        return after

    def _report_change(self, name: str, before: State, after: State) -> None:
        """Log and queue the alarm of a change of tier; a rise to a tier without a floor closes the alarm."""
        change, subject = f"{name}: tier {before.tier} to {after.tier}: {after.reason}", f"{name}: "
        log.warning("%s", change)
        if after.tier > before.tier:
            self._alarms.raise_alarm("tier_changed", "critical" if after.tier == EMERGENCY else "high", change, subject)
        elif after.tier_floor == FULL:
            self._alarms.close_alarm("tier_changed", change, subject)
        else:
            self._alarms.raise_alarm("tier_changed", "info", change, subject)

    def _report_faults(self, predictions: ModelAnswers) -> None:
        """Queue one alarm for each bundle whose own code failed, here or where this process answers for."""
        for family, arms in predictions.items():
            for arm, answer in arms.items():
                if answer.reason is None and answer.fallback is None:
                    continue
                key, fault = (family, arm, answer.digest), faulty(answer) or answer.fallback
                if fault is not None and fault.startswith("MODEL_FAULT:") and key not in self._reported_faults:
                    self._reported_faults.add(key)
                    self._alarms.raise_alarm("model_fault", "high", f"{family} {arm} version {answer.version}: {fault}")

    def _note_stale(self, symbol: Symbol, now: datetime) -> None:
        """Note whether the data of a symbol are stale at this moment of wall time."""
        stale = self._stale_reason(symbol, now)
        self._stale.pop(symbol.name, None)
        if stale:
            self._stale[symbol.name] = stale

    def _stale_reason(self, symbol: Symbol, now: datetime) -> str | None:
        """Return why the data of a symbol are stale; None if they are not, or on a `market` clock without a feed."""
        is_wall = symbol.clock.mode == "wall"
        at = now if is_wall else self.now(symbol, now)
        age_bars = symbol.grid.age_bars(symbol.closed.close_time, at.timestamp())
        limit = self._params.risk.max_data_age_bars
        if is_wall:
            return self._freshness.stale_reason(symbol.name, age_bars, limit)
        if self._feed.state is None or age_bars <= limit:
            return None
        feed = self._feed.state.condition(now)
        return f"data stale: last closed bar is {int(age_bars)} bars old, limit {limit:g}; {feed}"

    def _emergency(self, symbol: Symbol, now: datetime) -> str | None:
        """Return why nothing may be opened on a symbol whatever its models answer; None if nothing forbids it."""
        if EMERGENCY_BREAKER in self._breakers.names:
            return "tripped by a person; `emergency` is reset like any breaker"
        if self._store_monitor.fault is not None:
            return self._store_monitor.fault
        if self._store_monitor.damage is not None:
            return f"the store is damaged ({self._store_monitor.damage}); restore a backup"
        if self._store_monitor.disk.level == "stop":
            return self._store_monitor.disk.detail
        if self._clock.fault is not None:
            return self._clock.fault
        if symbol.clock.mode == "wall" and symbol.last_bar_close > now + CLOCK_SKEW:
            return (
                f"the newest bar closes at {symbol.last_bar_close:%F %T} UTC, after now, {now:%F %T} UTC: the clock is "
                "behind, or was ahead when that bar came. Fix the clock; a bar that closes now takes its place"
            )
        return self._stale.get(symbol.name)

    async def save(self) -> None:
        """Write what changed in the tier file and the freshness file. Raises ServiceDown if it cannot be written."""
        async with self._saving:
            try:
                if self._tiers.unsaved:
                    await asyncio.to_thread(self._tiers.save)
                if self._freshness.unsaved and self._store_monitor.disk.level != "stop":
                    await asyncio.to_thread(self._freshness.save)
            except OSError as error:
                raise ServiceDown(f"{TIER_FILE} or {FRESHNESS_FILE} cannot be written: {error}") from error
