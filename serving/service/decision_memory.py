"""Decisions of this process: found again when the same request comes again, and found late after a failed write.

A decision's id is the hash of everything it rests on, so a write that was reported as failed and was done all the same
is recognised: by this process, and by the one after it.
"""

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from pipelines.contracts import Decision
from pipelines.errors import BellwetherError, InputError, StoredAlready, UnknownName
from pipelines.store import Store, StoreFault
from serving.inference.model_slots import Snapshot
from serving.service.store_executor import StoreExecutor
from serving.state.account import Account
from serving.state.symbols import Symbol

log = logging.getLogger("bellwether.decision")
MAX_CACHED_DECISIONS = 512  # the newest; those of 256 symbols at one close and the one before it


class DecisionKey(NamedTuple):
    """Name everything a decision rests on; its order is part of every decision's id. `reading` as of `Symbol`."""

    symbol: str
    close_time: float  # of the bar decided on, epoch s
    is_stale: bool  # the data are older than the limit
    generation: int
    warm_start: str  # digest
    breakers: tuple[str, ...]
    tier: int | None
    reading: str = ""


class Subject(NamedTuple):
    """Name what a decision is about: two on the same are one decision, unless tier or breakers changed in between."""

    symbol: str
    close_time: float  # of the bar decided on, epoch s
    generation: int
    warm_start: str  # digest
    reading: str = ""


class PendingDecision(NamedTuple):
    """Hold a decision and the future of the one that is durable under its id; None = it is this one, and durable."""

    decision: Decision
    stored: "Future[Decision] | None" = None


def subject_of(symbol: Symbol, snapshot: Snapshot) -> Subject:
    """Return what a decision on the symbol's newest closed bar is about."""
    return Subject(symbol.name, symbol.closed.close_time, snapshot.generation, symbol.warm.digest, symbol.reading)


def served_in(snapshot: Snapshot) -> str:
    """Return the models of a snapshot as text of JSON, which every id of a decision made with them holds."""
    return json.dumps(sorted((family, arm, slot.digest) for (family, arm), slot in snapshot.slots.items()))


def id_of(key: DecisionKey, served: str) -> str:
    """Return the id of a decision, the same in any process: 32 hex digits, which ascend with the close decided on.

    Eight are the close in epoch seconds, 24 those of the hash of everything the decision rests on. The index of ids
    grows at its end then: with the hash alone each decision wrote a page of its own, wherever it fell.

    served  what `served_in` returns, once for all decisions of a batch
    """
    named = key if key.reading else key[:-1]
    digest = hashlib.sha256(f"[{json.dumps(named)}, {served}]".encode()).hexdigest()
    return f"{int(key.close_time):08x}{digest[:24]}"


class DecisionMemory:
    """Hold the decisions made, those being written, and those whose write failed. One event loop owns it."""

    def __init__(self, store: Store, executor: StoreExecutor, account: Account) -> None:
        """Start empty; `made` is filled from the store with each warm start."""
        self._store, self._executor, self._account = store, executor, account
        self.made: OrderedDict[DecisionKey, PendingDecision] = OrderedDict()  # in order: the oldest leaves at once
        # by subject, whatever tier and breakers have become since:
        self._pending: dict[Subject, PendingDecision] = {}  # handed to the ledger, which has not answered yet
        self._uncertain: set[Subject] = set()  # pending ones that were reported to a caller as failed
        self._unsure: dict[Subject, Decision] = {}  # reported as failed, may be stored all the same
        self._late: dict[Subject, Decision] = {}  # reported as failed, found in the store since

    def find(self, subject: Subject) -> PendingDecision | None:
        """Return the decision on this subject that was found late or is being written; None if there is none."""
        if (late := self._late.get(subject)) is not None:
            return PendingDecision(late)
        return self._pending.get(subject)

    def add_all(self, new: "Sequence[tuple[DecisionKey, Subject, Decision, Future[Decision]]]") -> None:
        """Remember decisions that were handed to the ledger, and settle them when it has answered.

        new  with the future of `stored`, of one transaction, in its order: the last one ends last, and wakes the event
             loop once for all
        """
        for key, subject, decision, stored in new:
            self.made[key] = self._pending[subject] = PendingDecision(decision, stored)
        self._forget_oldest()
        if not new:
            return
        loop, about = asyncio.get_running_loop(), [(key, subject, decision) for key, subject, decision, _ in new]
        before = [stored for *_, stored in new[:-1]]

        def ended(last: "Future[Decision]") -> None:
            """Settle all; a future that held itself would keep its batch until a search for cycles."""
            loop.call_soon_threadsafe(self._settle_all, about, [*before, last])

        new[-1][-1].add_done_callback(ended)

    def mark_uncertain(self, names: Collection[str]) -> None:
        """Note that the decisions pending on these symbols were reported to a caller as failed."""
        self._uncertain |= {subject for subject, made in self._pending.items() if made.decision.symbol in names}

    def stored(self, decision: Decision, written: "Future[int]") -> "Future[Decision]":
        """Return the future of the decision that is durable under this id once `written` is done.

        It is this one, or the one of an earlier write that was reported as failed and was done all the same.
        """
        durable: Future[Decision] = Future()

        def ended(future: "Future[int]") -> None:
            """Hand on what the write ended with; runs on the ledger's thread."""
            error = future.exception()
            if error is None:
                durable.set_result(decision)
            elif not isinstance(error, StoredAlready):
                durable.set_exception(error)
            else:
                try:
                    durable.set_result(self._store.decision(decision.id).decision)
                except (BellwetherError, StoreFault, OSError) as fault:
                    durable.set_exception(fault)

        written.add_done_callback(ended)
        return durable

    def _settle_all(
        self, about: Sequence[tuple[DecisionKey, Subject, Decision]], ended: "Sequence[Future[Decision]]"
    ) -> None:
        """Take over what the ledger answered about the decisions of one transaction."""
        for (key, subject, decision), stored in zip(about, ended, strict=True):
            self._settle(key, subject, decision, stored)

    def _settle(self, key: DecisionKey, subject: Subject, decision: Decision, ended: "Future[Decision]") -> None:
        """Take over what the ledger answered about a pending decision; runs on the event loop."""
        pending = self._pending.get(subject)
        if pending is not None and pending.decision is decision:
            del self._pending[subject]
        is_uncertain = subject in self._uncertain
        self._uncertain.discard(subject)
        if (error := ended.exception()) is not None:  # nothing may rest on a decision that was not written
            self._account.remove_decision(decision)
            self.made.pop(key, None)
            if not isinstance(error, InputError):  # that one was refused; any other may have been done
                self._unsure[subject] = decision
            return
        if (stored := ended.result()) is not decision:
            self._account.remove_decision(decision)
            self._account.add_decision(stored)
        if key in self.made:  # without its future: that keeps all that was written, 20 kB, as long as it is there
            self.made[key] = PendingDecision(stored)
        if is_uncertain:
            self._add_late(subject, stored)

    async def find_late(self, names: Collection[str]) -> None:
        """Find decisions on these symbols whose write was reported as failed: a stored one counts from here on."""
        for subject, decision in [(s, d) for s, d in self._unsure.items() if d.symbol in names]:
            try:
                stored = (await self._executor.run(self._store.decision, decision.id)).decision
            except UnknownName:
                self._unsure.pop(subject, None)
                continue
            if self._unsure.pop(subject, None) is not None:
                log.warning("decision %s was stored after all", stored.id)
                self._account.add_decision(stored)
                self._add_late(subject, stored)

    def _add_late(self, subject: Subject, decision: Decision) -> None:
        """Answer this decision from here on, whatever the tier has become: it was reported as failed."""
        self._late[subject] = decision
        if len(self._late) > MAX_CACHED_DECISIONS:
            del self._late[next(iter(self._late))]

    def restore(self, decisions: Iterable[tuple[DecisionKey, Decision]]) -> None:
        """Remember decisions of a process before this one: the same request gives the same answer, not a second one."""
        for key, decision in decisions:
            self.made.setdefault(key, PendingDecision(decision))
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        """Keep the newest MAX_CACHED_DECISIONS: the store has the others, and their ids find them there."""
        while len(self.made) > MAX_CACHED_DECISIONS:
            self.made.popitem(last=False)
