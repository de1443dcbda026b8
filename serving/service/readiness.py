"""What `/ready`, `/status` and a 503 answer about this process: checks, health, tier, symbols, account."""

from collections.abc import Sequence
from datetime import datetime
from typing import TypedDict

from pipelines.contracts import OPEN_TIME, JsonObject, finite_or_none, utc
from pipelines.params import Params
from serving.inference.generation_watcher import Check, GenerationWatcher, families, refusals, slot_checks
from serving.inference.model_slots import ModelSlots
from serving.service.breaker_watch import BreakerWatch
from serving.service.health import health, waits_for_first_run
from serving.service.store_monitor import StoreMonitor
from serving.service.system_clock import ClockMonitor, utc_now
from serving.service.tier_watch import TierWatch
from serving.state.account import Account
from serving.state.feed_state import FeedState
from serving.state.service_level import ServiceLevel
from serving.state.symbols import Symbol, Symbols
from serving.state.tiers import State


class TierFields(TypedDict):
    """Report the tier of one symbol, or of the worst: `tier_multiplier` is the share of a position's size it leaves."""

    tier: int
    tier_reason: str
    tier_multiplier: float
    tier_floor: int


class HealthFields(TypedDict):
    """Report ready or not, health in one word and its reason; the table is in docs/health.md."""

    ready: bool
    health: str
    health_reason: str
    waiting_for_first_turn: bool


class Readiness:
    """Describe the state of the service; reads only."""

    def __init__(
        self,
        params: Params,
        *,
        watcher: GenerationWatcher,
        slots: ModelSlots,
        symbols: Symbols,
        account: Account,
        breakers: BreakerWatch,
        tiers: TierWatch,
        store_monitor: StoreMonitor,
        clock: ClockMonitor,
        level: ServiceLevel,
    ) -> None:
        """Take the objects to describe."""
        self._params, self._watcher, self._slots = params, watcher, slots
        self._symbols, self._account, self._breakers, self._tiers = symbols, account, breakers, tiers
        self._store_monitor, self._clock, self._level = store_monitor, clock, level

    @property
    def is_ready(self) -> bool:
        """Return whether every check holds."""
        return all(check["ok"] for check in self.checks())

    def checks(self) -> list[Check]:
        """Return what readiness rests on; where one does not hold, bars and decisions cannot be taken now."""
        snapshot, store, clock = self._slots.snapshot, self._store_monitor, self._clock
        fault, pages = self._watcher.fault(), store.page_state
        return [
            {
                "name": "generation watcher",
                "ok": fault is None,
                "detail": fault or self._slots.refusal or f"{snapshot.generation}",
            },
            {"name": "warm start", "ok": bool(self._symbols), "detail": self._warm_starts()},
            {"name": "store", "ok": store.fault is None, "detail": store.fault or f"writable; {pages}"},
            {"name": "store pages", "ok": store.damage is None, "detail": store.damage or pages},
            {"name": "clock", "ok": clock.fault is None, "detail": clock.fault or "runs evenly"},
            {"name": "disk", "ok": True, "detail": store.disk.detail},  # informs only: a full disk is a tier
            *slot_checks(snapshot),
        ]

    def ready(self) -> dict[str, object]:
        """Return the answer of `/ready`: health, the worst tier, every check."""
        checks = self.checks()
        return {**self._health_fields(checks), **self.worst_tier(), "checks": checks}

    def status(self) -> dict[str, object]:
        """Return the answer of `/status`; tier fields at the top are those of the worst symbol."""
        snapshot, account, now = self._slots.snapshot, self._account, utc_now()
        return {
            "generation": snapshot.generation,
            **self._health_fields(self.checks()),
            **self.worst_tier(),
            "data_hash": ", ".join(sorted({named["data_hash"] for named in snapshot.warm_starts.values()})) or None,
            "families": families(snapshot),
            "refused": refusals(snapshot),
            "symbols": {
                name: _symbol_fields(symbol, self._tiers.last_arrival(name), self._tiers.now(symbol, now))
                | self._tier_fields(self._tiers.state(name))
                for name, symbol in self._symbols.items()
            },
            "feed": None if (feed := self._tiers.feed) is None else _feed_fields(feed, now),
            "service_level": self._level.report(now),
            "breakers": list(self._breakers.names),
            "breaker_reasons": self._breakers.reasons,
            "account": {
                "source": account.source,
                "day": account.day and account.day.isoformat(),
                "open": len(account.open),
                "gross": account.gross,
                "trades": account.trades_today,
                "equity": account.equity,
                "peak": account.peak,
            },
        }

    def models(self) -> dict[str, object]:
        """Return the answer of `/models`: what is served, and what was refused."""
        snapshot = self._slots.snapshot
        return {
            "generation": snapshot.generation,
            "written_at": snapshot.written_at,
            "families": families(snapshot),
            "refused": refusals(snapshot),
        }

    def worst_tier(self) -> TierFields:
        """Return the tier of the worst symbol."""
        return self._tier_fields(self._tiers.worst())

    def _tier_fields(self, state: State) -> TierFields:
        """Return the tier fields of one symbol's state."""
        tier = state.current_tier()
        multiplier = self._params.tiers.size[tier.number]
        return {
            "tier": tier.number,
            "tier_reason": tier.reason,
            "tier_multiplier": multiplier,
            "tier_floor": state.tier_floor,
        }

    def _health_fields(self, checks: Sequence[Check]) -> HealthFields:
        """Return health in one word and its reason."""
        refused, warming = self._refused(), self._warming_up()
        found = health(checks, self._tiers.worst(), self._breakers.reasons, warming, refused)
        return {
            "ready": all(check["ok"] for check in checks),
            "health": found.status,
            "health_reason": found.reason,
            "waiting_for_first_turn": waits_for_first_run(checks, self._slots.snapshot.generation, refused),
        }

    def _warm_starts(self) -> str:
        """Return which warm starts the served generation names; those that were refused first."""
        named = self._slots.snapshot.warm_starts
        if not named:
            return "no generation file yet: run `bellwether run`"
        refused = self._refused_warm_starts()
        if refused:
            return "; ".join(refused)
        return ", ".join(f"warm start {one['digest'][:12]}" for one in named.values())

    def _refused_warm_starts(self) -> list[str]:
        """Return one sentence a symbol whose warm start the served generation names and this process refused."""
        return [
            f"{name}: warm start {named['digest'][:12]} was refused"
            for name, named in self._slots.snapshot.warm_starts.items()
            if name not in self._symbols or self._symbols[name].warm.digest != named["digest"]
        ]

    def _warming_up(self) -> dict[str, str]:
        """Return symbol → why its decisions must wait."""
        return {name: symbol.reason for name, symbol in self._symbols.items() if symbol.reason is not None}

    def _refused(self) -> list[str]:
        """Return what was refused without stopping what is served: bundles, warm starts, the newest generation file."""
        bundles = [
            f"{r.family} {r.arm} version {r.version} was refused: {r.reason}" for r in self._slots.snapshot.refused
        ]
        refused = bundles + self._refused_warm_starts()
        return refused + ([self._slots.refusal] if self._slots.refusal is not None else [])


def _feed_fields(feed: FeedState, now: datetime) -> JsonObject:
    """Return what `/status` shows of the feed; `speed` in market seconds a second, null where it cannot be read."""
    return {
        "source": feed.source,
        "alive": feed.is_alive(now),
        "condition": feed.condition(now),
        "speed": finite_or_none(feed.speed),
        "held": feed.held,
        "market_time": feed.market_time and feed.market_time.isoformat(),
        "bars_s": feed.bars_s,
        "lag_bars": feed.lag_bars,
    }


def _symbol_fields(symbol: Symbol, last_arrival_s: float | None, at: datetime) -> JsonObject:
    """Return what `/status` shows of one symbol; times are ISO 8601 UTC, `age_bars` decision bars since the close.

    at  now by the clock of its market
    """
    return {
        "clock": symbol.clock.mode,
        "clock_reason": symbol.clock.why,
        "now": at.isoformat(),
        "age_bars": round(symbol.grid.age_bars(symbol.closed.close_time, at.timestamp()), 2),
        "last_bar_arrived": None if last_arrival_s is None else utc(last_arrival_s).isoformat(),
        "base_timeframe": symbol.base_grid.timeframe,
        "decision_timeframe": symbol.grid.timeframe,
        "last_bar": utc(symbol.last_open_time).isoformat(),
        "decides_on": utc(symbol.closed.bar[OPEN_TIME]).isoformat(),
        "reason": symbol.reason,
        "withheld": len(symbol.withheld),
        "reading": symbol.reading,
        "warm_start": symbol.warm.digest,
        "data_hash": symbol.warm.data_hash,
    }
