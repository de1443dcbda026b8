"""When breakers are evaluated in live service: closed bars, fills, losses, outages; each trip is an alarm."""

import asyncio
import logging

from pipelines.params import Params
from pipelines.store import Marks, Store
from serving.risk.breaker_monitor import BreakerMonitor, account_inputs, bar_inputs, fill_inputs
from serving.risk.breakers import ACCOUNT_MISMATCH, BreakerInputs
from serving.service import metrics
from serving.service.alarm_queue import AlarmQueue
from serving.service.store_executor import StoreExecutor
from serving.service.system_clock import utc_now
from serving.state.account import Account
from serving.state.symbols import Symbol

log = logging.getLogger("bellwether.decision")


class BreakerWatch:
    """Feed the breaker monitor with what was observed, and queue an alarm for each trip."""

    def __init__(
        self,
        monitor: BreakerMonitor,
        params: Params,
        store: Store,
        executor: StoreExecutor,
        account: Account,
        alarms: AlarmQueue,
    ) -> None:
        """Start with no bar and no fill evaluated."""
        self._monitor, self._params = monitor, params
        self._store, self._executor, self._account, self._alarms = store, executor, account, alarms
        self._evaluated: dict[str, float] = {}  # symbol → close of the newest bar evaluated, epoch s
        self._fills_evaluated = False  # those of a process before this one
        self._trips: tuple[int, int] | None = None  # mark of the trips that were taken over last

    @property
    def names(self) -> tuple[str, ...]:
        """Return the tripped breakers in the order of their tripping."""
        return self._monitor.names

    @property
    def reasons(self) -> dict[str, str]:
        """Return breaker → why it tripped, of the tripped ones."""
        return self._monitor.reasons

    def evaluate(self, inputs: BreakerInputs) -> None:
        """Trip what has to: refused from here on, on its way to the store ahead of the next decision, and an alarm."""
        for name, reason in self._monitor.evaluate(inputs, utc_now()).items():
            log.error("breaker %s tripped: %s", name, reason)
            self._raise_tripped(name, reason)

    def evaluate_bars(self, symbol: Symbol, newest: int) -> None:
        """Evaluate the `newest` closed bars, oldest first. What a person has reset does not trip after a restart."""
        for back in reversed(range(min(newest, len(symbol.history)))):
            self.evaluate(bar_inputs(symbol, back, self._params.breakers))
        self._evaluated[symbol.name] = symbol.closed.close_time

    def evaluate_newest_bar(self, symbol: Symbol) -> None:
        """Evaluate the newest closed bar unless it was evaluated before."""
        if self._evaluated.get(symbol.name) != symbol.closed.close_time:
            self.evaluate_bars(symbol, 1)

    def evaluate_account(self) -> None:
        """Evaluate the losses of the account, and whether a venue's reports fit it."""
        self.evaluate(account_inputs(self._account))

    async def evaluate_fills(self) -> None:
        """Evaluate the newest fills since execution was reset last."""
        since, most = self._monitor.reset_at.get("execution"), self._params.breakers.fills
        self.evaluate(fill_inputs(await self._executor.run(self._store.fills, since, most, source="reported"), most))
        self._fills_evaluated = True

    async def evaluate_earlier_fills(self) -> None:
        """Evaluate the fills of a process before this one, once."""
        if not self._fills_evaluated:
            await self.evaluate_fills()

    async def follow_store(self, marks: Marks) -> None:
        """Take over trips and resets that others wrote, and count losses from the resets on.

        marks  of the store; what was taken over is not read again before they move
        """
        if marks.trips == self._trips:
            return
        confirmed = self._monitor.confirmed_writes()
        trips = await self._executor.run(self._store.breaker_trips, tripped_only=False)
        for name, reason in self._monitor.sync(trips, confirmed).items():
            self._raise_tripped(name, reason)
        for trip in trips:
            self._account.apply_reset(trip)
        self._trips = marks.trips

    def retry_writes(self) -> bool:
        """Hand trips that the store refused to the ledger again; return whether there were any."""
        return self._monitor.retry_writes() is not None

    async def writes_done(self) -> None:
        """Wait until every trip is durable. Raises what the store raised."""
        await asyncio.gather(*(asyncio.wrap_future(done) for done in self._monitor.pending_writes()))

    def _raise_tripped(self, name: str, reason: str) -> None:
        """Count one trip and queue its alarm."""
        metrics.count(metrics.TRIPS, name)
        if name == ACCOUNT_MISMATCH:
            self._alarms.raise_alarm("account_mismatch", "critical", f"account: {reason}", "account: ")
        self._alarms.raise_alarm("breaker_tripped", "critical", f"{name}: {reason}", f"{name}: ")
