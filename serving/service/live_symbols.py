"""The live symbols of this process: started from the warm start a generation names, one lock each."""

import asyncio
import functools
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from pipelines.clock import Clock, mode_of
from pipelines.contracts import OPEN_TIME, Decision, Floats, utc
from pipelines.data.admission import CLOCK_SKEW
from pipelines.errors import BellwetherError, ServiceDown, StateError
from pipelines.families import DECISION_FAMILY
from pipelines.settings import Settings
from pipelines.store import DecisionRecord, Marks, Store
from pipelines.warm_start import WarmStart, read_warm_start
from serving.inference.generation import UNREADABLE
from serving.inference.model_slots import ModelSlots, Snapshot
from serving.policy.decide import age_in_bars, decide
from serving.policy.decision_row import Policy
from serving.risk.exposure import AssetCloses, Scenarios, scenarios_of
from serving.service.alarm_queue import AlarmQueue
from serving.service.decision_memory import DecisionKey, DecisionMemory
from serving.service.store_executor import StoreExecutor
from serving.service.system_clock import SUBJECT, utc_now
from serving.service.tier_watch import NO_SYMBOL
from serving.state.account import Account
from serving.state.service_level import ServiceLevel
from serving.state.symbols import Symbol, Symbols, clock_of, restore_symbol
from serving.state.tiers import FULL, Tier, TierStore

log = logging.getLogger("bellwether.decision")


class LiveSymbols:
    """Restore symbols and hand them out. Callers that change one hold its lock; one event loop owns all of them."""

    def __init__(
        self,
        policy: Policy,
        where: Settings,
        *,
        symbols: Symbols,
        store: Store,
        executor: StoreExecutor,
        slots: ModelSlots,
        tiers: TierStore,
        account: Account,
        memory: DecisionMemory,
        alarms: AlarmQueue,
        level: ServiceLevel,
    ) -> None:
        """Take the collaborators. `symbols` is filled here and read by others."""
        self._policy, self._params, self._where = policy, policy.params, where
        self.symbols = symbols
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._store, self._executor, self._slots, self._tiers = store, executor, slots, tiers
        self._account, self._memory, self._alarms, self._level = account, memory, alarms, level
        self._refused: set[str] = set()  # symbols with an open alarm for their warm start
        self._corrections = 0  # mark of the corrections that every live symbol was folded with
        # one at a time: CPython 3.11 counts the depth of what it parses for all threads together, and NumPy parses the
        # header of each array; two at once ended with `SystemError: AST constructor recursion depth mismatch`
        self._reading = asyncio.Lock()

    def get(self, name: str) -> Symbol:
        """Return a live symbol.

        Raises UnknownName; StateError where it is not live because its published warm start was refused, or is being
        folded: that is no fault of the caller, and none of the other symbols.
        """
        if name not in self.symbols and (named := self._slots.snapshot.warm_starts.get(name)) is not None:
            raise StateError(
                f"no live state of {name}: warm start {named['digest'][:12]} was refused. `bellwether down` and "
                "`bellwether up` fold it again"
            )
        return self.symbols[name]

    def newest_close(self) -> datetime:
        """Return the newest close of all live symbols, the moment at which the account is measured."""
        return utc(max(symbol.closed.close_time for symbol in self.symbols.values()))

    # ---- warm starts ----------------------------------------------------------------------------------------------

    async def follow(self, new: Snapshot) -> None:
        """Restore, side by side, every symbol for which a generation names another warm start; others leave.

        A warm start that is refused refuses its symbol alone: its old state goes on serving. Raises what the store
        raised, once every other symbol is restored; the next poll goes on from there.
        """
        changed = {
            name: named
            for name, named in new.warm_starts.items()
            if name not in self.symbols or self.symbols[name].warm.digest != named["digest"]
        }
        ended = await asyncio.gather(
            *(self._follow_one(name, named, new) for name, named in changed.items()), return_exceptions=True
        )
        names_all = new.warm_starts and UNREADABLE not in new.warm_starts
        gone = sorted(set(self.symbols) - set(new.warm_starts)) if names_all else []
        if gone:  # before they go: no decision may ask for the prices of a symbol that is not live
            left = {name: symbol for name, symbol in self.symbols.items() if name not in gone}
            self._account.scenarios = await asyncio.to_thread(self._scenarios, left)
        for name in gone:
            async with self.locks[name]:
                del self.symbols[name]
            log.warning("%s left the universe: it is no longer live", name)
        if changed:
            self._account.scenarios = await asyncio.to_thread(self._scenarios, dict(self.symbols))
        for fault in ended:
            if fault is not None:
                raise fault

    async def _follow_one(self, name: str, named: Mapping[str, str], new: Snapshot) -> None:
        """Restore one symbol from the warm start that a generation names; an alarm where it is refused."""
        try:
            async with self._reading:
                warm = await asyncio.to_thread(read_warm_start, Path(named["path"]), named["digest"])
            if name not in (warm.symbol, UNREADABLE):
                raise StateError(
                    f"warm start {named['digest'][:12]} is of {warm.symbol}; `bellwether up` folds it again"
                )
            async with self.locks[warm.symbol]:
                await self._restore(warm, new)
        except ServiceDown:
            raise
        except (BellwetherError, LookupError, OSError, TypeError, ValueError) as error:
            self._alarms.raise_alarm("warm_start_refused", "high", f"{name}: {error}", f"{name}: ")
            self._refused.add(name)
        else:
            if name in self._refused:
                self._refused.remove(name)
                self._alarms.close_alarm("warm_start_refused", f"{name}: it is live again", f"{name}: ")

    async def _restore(self, warm: WarmStart, new: Snapshot) -> None:
        """Make a symbol live: its warm start, then what was observed since. The caller holds the symbol's lock."""
        reading = (await self._executor.run_long(self._store.newest_corrections)).get(warm.symbol)
        since = warm.last_open_time
        bars = await self._executor.run_long(self._store.bars, warm.symbol, since, np.inf, reading)
        withheld = await self._executor.run_long(self._store.withheld, warm.symbol, since)
        last_close = warm.grid.next_close(warm.history.bars[-1, OPEN_TIME])
        records = await self._executor.run_long(self._store.records, warm.symbol, last_close)
        symbol = await asyncio.to_thread(
            restore_symbol, warm, bars, *records, await asyncio.to_thread(self._clock_of, warm),
            "" if reading is None else reading.isoformat(), withheld,
        )  # fmt: skip
        await asyncio.to_thread(self._warm_up, symbol, new)
        newest = utc(symbol.closed.close_time)
        stored = await self._executor.run_long(self._store.decisions, warm.symbol, newest)
        self._memory.restore(self._decisions_on_newest_bar(symbol, stored))
        self._count_fallen(symbol)
        self.symbols[warm.symbol] = symbol
        log.info("%s: warm start %s and %d bars observed since", warm.symbol, warm.digest[:12], len(bars))

    def _count_fallen(self, symbol: Symbol) -> None:
        """Count the closes that fell while the symbol was not live: on a `market` clock those that were observed."""
        closes = symbol.grid.closes(symbol.history.bars[:, OPEN_TIME])
        if symbol.clock.mode != "wall":
            closes = closes[closes > symbol.base_grid.next_close(symbol.warm.last_open_time)]
        self._level.fell(symbol.name, closes.tolist(), utc_now().timestamp())

    async def _restore_again(self, name: str) -> None:
        """Fold a live symbol again from its warm start. The caller holds the symbol's lock."""
        await self._restore(self.symbols[name].warm, self._slots.snapshot)
        self._account.scenarios = await asyncio.to_thread(self._scenarios, dict(self.symbols))

    async def follow_corrections(self, marks: Marks) -> None:
        """Fold every symbol again, from its warm start, whose observed bars were corrected since it was folded.

        marks  of the store; what was followed to the end is not read again before they move
        """
        if marks.corrections == self._corrections:
            return
        newest = await self._executor.run(self._store.newest_corrections)
        for name, at in newest.items():
            symbol = self.symbols.get(name)
            if symbol is None or symbol.reading == at.isoformat():
                continue
            async with self.locks[name]:
                await self._restore_again(name)
            log.warning("%s: bars were corrected; folded again with the reading of %s", name, at.isoformat())
        self._corrections = marks.corrections

    def _clock_of(self, warm: WarmStart) -> Clock:
        """Return the clock a warm start names; one of release 0.5 names none, then its data's manifest may say it."""
        if warm.clock is None:
            try:
                # not by `data_version`, which loads pandas; up to release 0.10 a manifest was of one market
                manifest = json.loads((self._where.workspace / "data" / "manifest.json").read_text())
                facts = manifest.get("markets", {manifest.get("symbol"): manifest})[warm.symbol]
                return Clock(mode_of(facts), "the warm start names no clock; taken from its data's manifest")
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                pass  # `clock_of` says which clock is taken then, and why
        return clock_of(warm)

    def _scenarios(self, symbols: dict[str, Symbol]) -> Scenarios:
        """Return the tail scenarios of these symbols over a position's longest life."""
        assets = {name: AssetCloses(symbol.grid, symbol.warm.closes) for name, symbol in symbols.items()}
        risk = self._params.risk
        return scenarios_of(assets, self._params.labels.horizon_bars, risk.tail, risk.account_currency)

    def _warm_up(self, symbol: Symbol, snapshot: Snapshot) -> None:
        """Fold one bar and make one decision on copies, so that no request waits for a kernel to be loaded."""
        Symbol(symbol.warm).on_bar(symbol.closed.bar)
        close = utc(symbol.closed.close_time)
        account = Account(scenarios=self._scenarios({symbol.name: symbol}), newest_closes=lambda _: symbol.closes)
        decide(
            symbol,
            snapshot,
            self._policy,
            functools.partial(account.portfolio, close, symbol.name),
            (),
            tier=Tier(FULL if snapshot.slot(DECISION_FAMILY, "champion") else NO_SYMBOL.tier, "warm-up"),
            id="warm-up",
            known_at=close,
            now=close,
        )

    def _decisions_on_newest_bar(
        self, symbol: Symbol, stored: Sequence[DecisionRecord]
    ) -> Iterator[tuple[DecisionKey, Decision]]:
        """Yield the stored decisions on the symbol's newest closed bar, each with what it rested on."""
        for decision in (record.decision for record in stored):
            if decision.as_of.timestamp() == symbol.closed.close_time:
                is_stale = age_in_bars(symbol, decision.known_at) > self._params.risk.max_data_age_bars
                state = self._tiers[symbol.name]
                current_tier = None if state is None else state.tier
                key = DecisionKey(
                    symbol=symbol.name,
                    close_time=symbol.closed.close_time,
                    is_stale=is_stale,
                    generation=decision.generation,
                    warm_start=decision.lineage["warm_start"],
                    breakers=decision.breakers,
                    tier=current_tier if is_stale else decision.tier,
                    reading=decision.lineage.get("reading", ""),
                )
                yield key, decision

    # ---- bars that came while the clock was ahead -----------------------------------------------------------------

    def is_ahead(self, symbol: Symbol, now: datetime) -> bool:
        """Return whether a symbol on a `wall` clock holds bars that close after now."""
        return symbol.clock.mode == "wall" and symbol.last_bar_close > now + CLOCK_SKEW

    async def withdraw_bars_ahead(self, symbol: Symbol, rows: Floats, now: datetime) -> Symbol:
        """Withdraw stored bars that close after now if the feed agrees with the clock; return the live symbol.

        They agree where the newest of `rows` (n, 9) closes now and is not stored: then the stored bars came while the
        clock was ahead. The caller holds the symbol's lock.
        """
        symbol.require(rows, now)
        opened = float(rows[-1, OPEN_TIME])
        closes_now = now.timestamp() - symbol.base_grid.next_close(opened) <= 2.0 * symbol.grid.step_s
        is_known = opened <= symbol.warm.last_open_time  # then it is the clock that is behind
        stored = await self._executor.run(self._store.bars, symbol.name, opened - 1.0, opened)
        if is_known or not closes_now or len(stored):
            return symbol
        withdrawn = await self._executor.run(self._store.withdraw_bars, symbol.name, (now + CLOCK_SKEW).timestamp())
        await self._restore_again(symbol.name)
        detail = (
            f"{SUBJECT}{len(withdrawn)} bar(s) of {symbol.name} that closed up to {symbol.last_bar_close:%F %T} UTC "
            "came while the clock was ahead; they are withdrawn, because the feed and the clock now agree on "
            f"{now:%F %T} UTC: "
            f"{[row.tolist() for row in withdrawn[:3]]}"
        )
        log.error("%s", detail)
        for row in withdrawn:  # the alarm shows three; nothing that was stored is lost without a trace
            log.error("withdrawn: %s %s", symbol.name, row.tolist())
        self._alarms.raise_alarm("clock_jumped", "high", detail)
        return self.symbols[symbol.name]
