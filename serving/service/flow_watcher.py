"""One poll of all that others write: generation, corrections, breakers, outcomes; and of clock, disk and store."""

import asyncio
import logging
import time
from datetime import datetime

from pipelines.errors import ServiceDown
from pipelines.store import Marks, Store, StoreFault
from serving.inference.model_client import ModelClient
from serving.inference.model_slots import ModelSlots, Snapshot
from serving.service import metrics
from serving.service.alarm_queue import AlarmQueue
from serving.service.breaker_watch import BreakerWatch
from serving.service.decision_memory import DecisionMemory
from serving.service.fill_booking import FillBooking
from serving.service.gauges import StoredGauges
from serving.service.live_symbols import LiveSymbols
from serving.service.store_executor import StoreExecutor, wait_for_write
from serving.service.store_monitor import StoreMonitor
from serving.service.system_clock import ClockMonitor, utc_now
from serving.service.tier_watch import TierWatch
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.online_weights_store import ONLINE_WEIGHTS_FILE, OnlineWeightsStore
from serving.state.service_level import ServiceLevel

log = logging.getLogger("bellwether.decision")


class FlowWatcher:
    """Follow what flows and people write. `poll` runs every quarter of a second, one at a time."""

    def __init__(
        self,
        *,
        fills: FillBooking,
        store: Store,
        executor: StoreExecutor,
        ledger: Ledger,
        slots: ModelSlots,
        live: LiveSymbols,
        account: Account,
        weights: OnlineWeightsStore,
        breakers: BreakerWatch,
        tiers: TierWatch,
        memory: DecisionMemory,
        store_monitor: StoreMonitor,
        clock: ClockMonitor,
        model_client: ModelClient | None,
        alarms: AlarmQueue,
        level: ServiceLevel,
        gauges: StoredGauges,
    ) -> None:
        """Take the collaborators; nothing is polled yet."""
        self._store, self._executor, self._ledger = store, executor, ledger
        self._slots, self._live, self._account, self._weights = slots, live, account, weights
        self._breakers, self._tiers, self._memory = breakers, tiers, memory
        self._store_monitor, self._clock, self._model_client = store_monitor, clock, model_client
        self._alarms, self._fills, self._level, self._gauges = alarms, fills, level, gauges
        self._level_fault: str | None = None  # why the counts of the service level could not be written last
        self._loaded: Snapshot | None = None  # a generation that is loaded and not served yet
        self._learned: tuple[datetime | None, int] | None = None  # mark of the outcomes that were learned from last

    async def poll(self) -> None:
        """Follow everything once; whatever fails, tiers follow what is known and alarms go out."""
        try:
            await self._follow()
        except (StoreFault, ServiceDown) as error:  # the next poll tries again; until then nothing may be opened
            self._store_monitor.report(error)
        finally:
            self._tiers.poll(utc_now())
            try:
                await self._tiers.save()
                if self._alarms.waiting:
                    await self._executor.run(self._alarms.flush, self._store)
            except (StoreFault, ServiceDown) as error:
                self._store_monitor.report(error)
            await self.save_level()

    async def _follow(self) -> None:
        """Check clock, disk and store, then follow the generation, the store and the model service."""
        self._clock.check(utc_now())
        self._store_monitor.check_disk()
        marks = await self._executor.run(self._store_monitor.check, self._weights.since)
        self._store_monitor.start_page_check()
        self._store_monitor.start_log_copy()
        await self._follow_generation()
        await self._live.follow_corrections(marks)
        if self._breakers.retry_writes():  # refused before: a fault only if it is refused again
            await wait_for_write(self._ledger, self._breakers.writes_done())
        await self._memory.find_late(self._live.symbols)
        await self._breakers.follow_store(marks)
        await self._follow_outcomes(marks)
        await self._breakers.evaluate_earlier_fills()
        await self._gauges.follow()
        if self._model_client is not None:
            await self._model_client.probe(time.monotonic())

    async def _follow_generation(self) -> None:
        """Load a new generation, restore the symbol it names, then serve it; a poll that fails goes on from there."""
        self._loaded = loaded = await asyncio.to_thread(self._slots.pending) or self._loaded
        if loaded is not None:
            await self._live.follow(loaded)
            before = self._slots.snapshot.slots
            await asyncio.to_thread(self._slots.swap, loaded)
            self._loaded = None
            for place in before.keys() | loaded.slots.keys():
                old, new = before.get(place), loaded.slots.get(place)
                if (old and old.digest) != (new and new.digest):
                    metrics.count(metrics.SWAPS, *place)

    async def save_level(self) -> None:
        """Write the counts of the service level; without them nothing else is in doubt, so a fault is logged once."""
        if not self._level.unsaved or self._store_monitor.disk.level == "stop":
            return
        try:
            await asyncio.to_thread(self._level.save)
            self._level_fault = None
        except OSError as error:
            if str(error) != self._level_fault:
                log.error("the counts of the service level cannot be written: %s; the next poll tries again", error)
            self._level_fault = str(error)

    async def _follow_outcomes(self, marks: Marks) -> None:
        """Learn from new outcomes, book those of open positions, and evaluate the losses."""
        if marks.outcomes != self._learned and self._store_monitor.disk.level != "stop":  # learnt once there is room
            resolved = await self._executor.run_long(self._store.resolved, None, None, self._weights.since)
            try:
                await asyncio.to_thread(self._weights.update, resolved)
            except OSError as error:
                raise ServiceDown(f"{ONLINE_WEIGHTS_FILE} cannot be written: {error}. Make room on the disk") from error
            self._learned = marks.outcomes
        if self._account.sizes:
            found = await self._executor.run_long(self._store.outcomes_of, list(self._account.sizes))
            for outcome in sorted(found, key=lambda one: one.resolved_at):
                self._account.resolve(outcome)
        await self._fills.book_exits()
        self._breakers.evaluate_account()
