"""Everything behind the routes of the decision service, without HTTP: opened, started and stopped in one place."""

import asyncio
import functools
from datetime import UTC, datetime, time

from pipelines.bootstrap import serve_from_now_on
from pipelines.contracts import Floats, JsonObject, utc
from pipelines.params import Params
from pipelines.settings import Settings
from pipelines.store import COPIED_LOG_BYTES, SERVICE_WAIT_MS
from serving.inference.device import predicts_remotely
from serving.inference.feature_rows import feature_rows
from serving.inference.generation_watcher import GenerationWatcher
from serving.inference.model_client import ModelClient
from serving.inference.model_slots import ModelSlots
from serving.policy.decision_row import policy_of
from serving.risk.account_report import account_report
from serving.risk.breaker_monitor import BreakerMonitor
from serving.risk.utilisation import utilisation
from serving.service import metrics, tracing
from serving.service.alarm_queue import AlarmQueue, report_poll
from serving.service.breaker_watch import BreakerWatch
from serving.service.decider import Decider
from serving.service.decision_memory import DecisionMemory
from serving.service.decision_meter import DecisionMeter, count_close
from serving.service.decision_stream import DecisionStream
from serving.service.fill_booking import FillBooking
from serving.service.flow_watcher import FlowWatcher
from serving.service.gauges import Gauges, StoredGauges
from serving.service.home_store import open_store
from serving.service.intake import Intake
from serving.service.keys import write_key
from serving.service.ledger_check import disagreement
from serving.service.live_symbols import LiveSymbols
from serving.service.ramp_guard import RampGuard
from serving.service.readiness import Readiness
from serving.service.store_executor import StoreExecutor
from serving.service.store_monitor import TIER_FILE, StoreMonitor
from serving.service.system_clock import ClockMonitor, utc_now
from serving.service.tier_watch import FRESHNESS_FILE, TierWatch
from serving.state.account import Account, no_closes
from serving.state.feed_state import FeedWatch
from serving.state.ledger import Ledger
from serving.state.online_weights_store import ONLINE_WEIGHTS_FILE, OnlineWeightsStore
from serving.state.service_level import SERVICE_LEVEL_FILE, ServiceLevel
from serving.state.symbols import Symbols
from serving.state.tiers import Freshness, TierStore


class DecisionEngine:
    """Run the service of one process, which owns its symbols: `decider`, `intake`, `readiness` and what feeds them.

    Build it outside or inside an event loop; `start`, `stop` and every call belong to one loop.
    """

    def __init__(self, where: Settings, params: Params, stream: DecisionStream | None = None) -> None:
        """Open the store and restore the account. Raises what the store raises where it cannot be opened.

        stream  where decisions are published once they are durable
        """
        self._stream = stream or DecisionStream()
        self._params, self._policy = params, policy_of(params)
        metrics.make_all()
        self._level = level = ServiceLevel(where.serving_dir / SERVICE_LEVEL_FILE, count_close)
        self._store = open_store(where, SERVICE_WAIT_MS, COPIED_LOG_BYTES)
        self._store.add_parameters(self._policy.digest, self._policy.content, utc_now())
        self._account = Account.restore(self._store, params.account.source, params.costs.default.taker_bps)
        weights = OnlineWeightsStore(where.serving_dir / ONLINE_WEIGHTS_FILE, params)
        self._model_client = model_client(where, params)
        self._alarms, self._executor = AlarmQueue(), StoreExecutor()
        self._ledger = Ledger(self._store, self._stream.publish)
        check = functools.partial(disagreement, self._store, where.home)
        self._slots = ModelSlots(where.serving_dir, where.bundles, self._alarms.raise_alarm, disagreement=check)
        self._symbols = Symbols()
        self._account.newest_closes = self._closes_of
        tier_store = TierStore(where.serving_dir / TIER_FILE, params.tiers)
        memory = DecisionMemory(self._store, self._executor, self._account)
        clock = ClockMonitor(self._alarms)
        self.store_monitor = StoreMonitor(self._store, tier_store, where, self._alarms)
        self._breakers = BreakerWatch(
            BreakerMonitor(params, self._ledger), params, self._store, self._executor, self._account, self._alarms
        )
        self.tiers = TierWatch(
            params,
            tiers=tier_store,
            freshness=Freshness(where.serving_dir / FRESHNESS_FILE),
            feed=FeedWatch(where.serving_dir, params.feed.speed),
            slots=self._slots,
            symbols=self._symbols,
            breakers=self._breakers,
            store_monitor=self.store_monitor,
            clock=clock,
            model_client=self._model_client,
            alarms=self._alarms,
        )
        self._live = live = LiveSymbols(
            self._policy,
            where,
            symbols=self._symbols,
            store=self._store,
            executor=self._executor,
            slots=self._slots,
            tiers=tier_store,
            account=self._account,
            memory=memory,
            alarms=self._alarms,
            level=level,
        )
        fills = FillBooking(self._store, self._executor, self._ledger, self._account, params.costs)
        self.intake = Intake(
            live=live,
            store=self._store,
            executor=self._executor,
            ledger=self._ledger,
            account=self._account,
            breakers=self._breakers,
            tiers=self.tiers,
            store_monitor=self.store_monitor,
            clock=clock,
            alarms=self._alarms,
            fills=fills,
            level=level,
            params=params,
        )
        self.decider = Decider(
            self._policy,
            slots=self._slots,
            live=live,
            ledger=self._ledger,
            account=self._account,
            weights=weights,
            breakers=self._breakers,
            tiers=self.tiers,
            memory=memory,
            store_monitor=self.store_monitor,
            clock=clock,
            model_client=self._model_client,
            ramp=RampGuard(params.experiment.guardrails, self._account, self._alarms),
            meter=DecisionMeter(level),
        )
        stored = StoredGauges(self._store, self._executor, self._slots, where.home)
        self._flows = flows = FlowWatcher(
            fills=fills,
            store=self._store,
            executor=self._executor,
            ledger=self._ledger,
            slots=self._slots,
            live=live,
            account=self._account,
            weights=weights,
            breakers=self._breakers,
            tiers=self.tiers,
            memory=memory,
            store_monitor=self.store_monitor,
            clock=clock,
            model_client=self._model_client,
            alarms=self._alarms,
            level=level,
            gauges=stored,
        )
        report = functools.partial(report_poll, self._alarms, "decision service")
        self._watcher = GenerationWatcher(flows.poll, report)
        self.readiness = Readiness(
            params,
            watcher=self._watcher,
            slots=self._slots,
            symbols=self._symbols,
            account=self._account,
            breakers=self._breakers,
            tiers=self.tiers,
            store_monitor=self.store_monitor,
            clock=clock,
            level=level,
        )
        self.gauges = Gauges(
            params,
            symbols=self._symbols,
            account=self._account,
            breakers=self._breakers,
            tiers=self.tiers,
            readiness=self.readiness,
            level=level,
            stored=stored,
        )

    async def start(self) -> None:
        """Poll once, then go on polling in the background."""
        await self._watcher.poll()
        serve_from_now_on()
        self._stream.open(self._store)
        self._watcher.start()

    async def stop(self) -> None:
        """Stop polling, write what is queued, close everything."""
        self._stream.close()
        await self._watcher.stop()
        if self._model_client is not None:
            await self._model_client.close()
        self.store_monitor.stop()
        await asyncio.to_thread(self._ledger.close)
        await self._flows.save_level()
        self._slots.close()
        self._executor.close()
        self._store.close()

    def features(self, name: str, family: str | None) -> JsonObject:
        """Return the answer of `/features`: what the models see at the newest close of a symbol.

        Raises UnknownName for a symbol that is not live or no family, StateError as `LiveSymbols.get`.
        """
        unseen = self._params.models.unseen_symbols
        return feature_rows(self._slots.snapshot, self._live.get(name), unseen, family)

    def risk(self) -> dict[str, object]:
        """Return the answer of `/risk`: every limit with what is used of it at the newest close of all symbols."""
        tiers = {name: self.tiers.state(name).tier for name in self._symbols}
        return utilisation(
            self._account,
            self._symbols,
            self._newest_close(),
            self._params,
            self._policy.flat,
            self._breakers.names,
            tiers,
        )

    def account(self) -> dict[str, object]:
        """Return the answer of `/account`, at the newest close of all symbols."""
        return account_report(self._account, self._newest_close(), self._breakers.reasons)

    def _closes_of(self, name: str) -> Floats:
        """Return the newest closes of a symbol; none of one that is not live."""
        return self._symbols[name].closes if name in self._symbols else no_closes(name)

    def _newest_close(self) -> datetime:
        """Return the newest close of all symbols; where none is live, a moment at which no open position is over."""
        closes = [symbol.closed.close_time for symbol in self._symbols.values()]
        if closes:
            return utc(max(closes))
        if self._account.day is None:
            return utc_now()
        start = datetime.combine(self._account.day, time(), UTC)
        return max([start, *(decision.as_of for decision in self._account.open.values())])


def model_client(where: Settings, params: Params) -> ModelClient | None:
    """Return the connection to the model service, None where models run in this process."""
    if not predicts_remotely(where):
        return None
    return ModelClient(
        where.model_url,
        write_key(where),
        timeout_s=where.model_timeout_ms / 1e3,
        retry_s=where.model_retry_seconds,
        slow_in_row=params.tiers.faults_in_row,
        headers=tracing.headers,
    )
