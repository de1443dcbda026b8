"""The gauges of the decision service: read from its state at each scrape, and from the store a few times a minute.

Nothing is computed while it decides. What is not known has no series.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

import numpy as np

from pipelines.experiments.verdict import win_evidence
from pipelines.families import FAMILIES
from pipelines.params import Params
from pipelines.store import Store
from serving.inference.model_slots import ModelSlots, Snapshot
from serving.service import metrics
from serving.service.breaker_watch import BreakerWatch
from serving.service.metrics import Sample
from serving.service.readiness import Readiness
from serving.service.store_executor import StoreExecutor
from serving.service.system_clock import steady_s, utc_now
from serving.service.tier_watch import TierWatch
from serving.state.account import Account
from serving.state.service_level import TARGET, WINDOWS, ServiceLevel
from serving.state.symbols import Symbol

log = logging.getLogger("bellwether.decision")
READ_EVERY_S = 30.0
SEVERITIES = ("critical", "high", "info")
DRIFT_FOLDER, DRIFT_FILE = Path("reports") / "drift", "score.json"  # as flows.support.drift_reports writes them


class StoredGauges:
    """Hold the gauges of what flows store: promotions, experiments, drift scores, alarms. One event loop owns it."""

    def __init__(self, store: Store, executor: StoreExecutor, slots: ModelSlots, home: Path) -> None:
        """Start with nothing read."""
        self._store, self._executor, self._slots, self._home = store, executor, slots, home
        self._read_at_s: float | None = None
        self._generation: int | None = None  # whose promotions were read
        self._promoted: dict[str, datetime] = {}  # family → when its champion was promoted
        self._found: list[Sample] = []

    async def follow(self) -> None:
        """Read again where READ_EVERY_S have passed. Raises what the store raises."""
        now_s = steady_s()
        if self._read_at_s is not None and now_s - self._read_at_s < READ_EVERY_S:
            return
        self._read_at_s = now_s
        self._found = await self._executor.run_long(self._read, self._slots.snapshot)

    def _read(self, snapshot: Snapshot) -> list[Sample]:
        """Read the store and the drift scores; in a thread."""
        if snapshot.generation != self._generation:  # the ledger is read where it may have moved
            slots = self._store.slots_of(FAMILIES)
            champions = {family: slots[family].champion for family in FAMILIES}
            self._promoted = {family: line.at for family, line in champions.items() if line is not None}
            self._generation = snapshot.generation
        severities = Counter(alarm.severity for alarm in self._store.alarms())
        found = [
            Sample(metrics.OPEN_ALARMS, severities[name], (name,)) for name in dict.fromkeys([*SEVERITIES, *severities])
        ]
        for family in FAMILIES:
            champion = snapshot.slot(family, "champion")
            if champion is not None:
                found += drift_samples(self._home / DRIFT_FOLDER / f"{family}-{champion.version}", family)
            if snapshot.slot(family, "challenger") is not None:
                found += self._evidence(family)
        return found

    def _evidence(self, family: str) -> Iterator[Sample]:
        """Yield the e-value of the experiment of a family that runs, and what wins; nothing before its first block."""
        experiment = self._store.running_experiment(family)
        if experiment is None or experiment.alpha <= 0.0:
            return
        means = np.array(
            [block.mean for block in self._store.block_scores(experiment.number) if block.mean is not None]
        )
        if len(means):
            bound = experiment.bound
            e_value = win_evidence(np.clip(means, -bound, bound), bound)[-1]
            yield Sample(metrics.E_VALUE, float(e_value), (family,))
            yield Sample(metrics.E_VALUE_WINS, 1.0 / experiment.alpha, (family,))

    def samples(self, now: datetime) -> Iterator[Sample]:
        """Yield what was read last, with the ages of the champions by now."""
        yield from self._found
        for family, at in self._promoted.items():
            if self._slots.snapshot.slot(family, "champion") is not None:
                yield Sample(metrics.CHAMPION_AGE, (now - at).total_seconds(), (family,))


def drift_samples(folder: Path, family: str) -> Iterator[Sample]:
    """Yield score and threshold of the newest block with a report; nothing before any.

    folder  of the reports of one version
    """
    for report in sorted((each for each in folder.glob("[0-9]*")), reverse=True):
        try:
            content = json.loads((report / DRIFT_FILE).read_text())
            yield Sample(metrics.DRIFT, content["score"], (family,))
            yield Sample(metrics.DRIFT_THRESHOLD, content["threshold"], (family,))
        except FileNotFoundError:  # of an earlier release, or being written
            continue
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s cannot be read: %s; the next report has a new one", report / DRIFT_FILE, error)
        return


class Gauges:
    """Read the gauges of this process."""

    def __init__(
        self,
        params: Params,
        *,
        symbols: Mapping[str, Symbol],
        account: Account,
        breakers: BreakerWatch,
        tiers: TierWatch,
        readiness: Readiness,
        level: ServiceLevel,
        stored: StoredGauges,
    ) -> None:
        """Take the objects to read."""
        self._params, self._symbols, self._account, self._breakers = params, symbols, account, breakers
        self._tiers, self._readiness, self._level, self._stored = tiers, readiness, level, stored

    def text(self) -> str:
        """Return all gauges in the text format of `GET /metrics`."""
        return metrics.gauge_text(self.samples(utc_now()))

    def samples(self, now: datetime) -> Iterator[Sample]:
        """Yield every gauge; `now` is the time of day, aware UTC."""
        account = self._account
        yield Sample(metrics.READY, float(self._readiness.is_ready))
        yield Sample(metrics.SYMBOLS, len(self._symbols))
        yield Sample(metrics.DATA_AGE_LIMIT, self._params.risk.max_data_age_bars)
        yield Sample(metrics.EQUITY, account.equity)
        yield Sample(metrics.DRAWDOWN, 1.0 - account.equity / account.peak)
        yield Sample(metrics.OPEN_POSITIONS, len(account.open))
        yield Sample(metrics.TRIPPED, len(self._breakers.names))
        for name in metrics.shown_symbols(self._symbols):
            yield from self._of_symbol(self._symbols[name], now)
        yield Sample(metrics.LEVEL_TARGET, TARGET)
        for window in WINDOWS:
            level = self._level.over(window, now)
            yield Sample(metrics.LEVEL, level.share, (window,))
            yield Sample(metrics.LEVEL_DUE, level.due, (window,))
            yield Sample(metrics.BUDGET, level.budget_used, (window,))
        yield from self._stored.samples(now)

    def _of_symbol(self, symbol: Symbol, now: datetime) -> Iterator[Sample]:
        """Yield the gauges of one symbol."""
        close, at = symbol.closed.close_time, self._tiers.now(symbol, now).timestamp()
        yield Sample(metrics.DATA_AGE, max(at - close, 0.0), (symbol.name,))
        yield Sample(metrics.DATA_AGE_BARS, symbol.grid.age_bars(close, at), (symbol.name,))
        yield Sample(metrics.TIER, self._tiers.state(symbol.name).tier, (symbol.name,))
