"""The ledger's one writer: what is handed in is durable before its future is done (V5).

Requests queue up; a thread takes whatever is waiting and commits it as one transaction, so that many requests share
one disk write. If that transaction is refused, each entry is written alone, so one bad entry spoils nothing else. If
it is the database itself that cannot, everybody who waits is told so at once: nobody waits for the same lock in turn.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from queue import SimpleQueue
from typing import Any, TypeVar

from pipelines.contracts import Decision, Outcome
from pipelines.errors import BellwetherError, ServiceDown
from pipelines.store import OUTAGES, BarBatch, DecisionRecord, Fill, Store, StoreFault, Transaction

log = logging.getLogger("bellwether.ledger")

GROUP = 512  # most entries in one transaction: bounds how long the first of them waits
STUCK_S = 0.8  # one transaction takes longer: the database has not given up and not answered

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Entry:
    write: Callable[[Transaction | None], Any]
    done: "Future[Any]"


class Ledger:
    """Owns one thread; `close()` writes what is queued and ends it. Futures raise what the store raised."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: SimpleQueue[_Entry | None] = SimpleQueue()
        self._closed = False
        self._order = threading.Lock()  # nothing is queued behind the end mark
        self._since: float | None = None  # monotonic: when the transaction that runs now was begun
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def append(self, decision: Decision, features: bytes, signals: bytes) -> "Future[None]":
        """Done when the decision, with the bytes it was made from, is durable. StoredAlready: one is, under this id."""
        record = DecisionRecord(decision, features, signals)
        return self._put(lambda within: self._store.add_decisions([record], within))

    def observe(self, batch: BarBatch) -> "Future[int]":
        """Done when the bars are durable; the number of new ones."""
        return self._put(lambda within: self._store.add_bars(batch, within))

    def resolve(self, outcome: Outcome) -> "Future[bool]":
        """Done when the outcome is durable; False if it was stored already."""
        return self._put(lambda within: self._store.add_outcome(outcome, within))

    def trip(self, name: str, at: datetime, reason: str) -> "Future[bool]":
        """Done when the breaker is latched durably, ahead of every decision handed in after it; False if it was."""
        return self._put(lambda within: self._store.trip(name, at, reason, within))

    def fill(self, fill: Fill) -> "Future[bool]":
        """Done when what a venue reported is durable; False if it was stored already."""
        return self._put(lambda within: self._store.add_fill(fill, within))

    def stuck(self) -> str | None:
        """Why nobody should wait any longer; None while the writer gets on. What was handed in may still be written:
        it is found under its id when it is asked for again."""
        began = self._since
        waited = 0.0 if began is None else time.monotonic() - began
        return None if waited <= STUCK_S else f"the database has not answered for {waited:.1f} s"

    def close(self) -> None:
        with self._order:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _put(self, write: Callable[[Transaction | None], T]) -> "Future[T]":
        done: Future[T] = Future()
        done.set_running_or_notify_cancel()  # who stops waiting does not call back what was handed in
        with self._order:
            if self._closed:
                raise ServiceDown("the ledger is closed: this process is shutting down. Retry on the new one.")
            self._queue.put(_Entry(write, done))
        return done

    def _run(self) -> None:
        group: list[_Entry] = []
        try:
            while (first := self._queue.get()) is not None:
                group = [first, *self._waiting(GROUP - 1)]
                outage = self._commit(group)
                while outage is not None and (group := self._waiting(GROUP)):  # queued while the database was asked
                    _fail(group, outage)
        finally:  # also when a fault of our own ends the thread: nobody may wait for ever
            with self._order:
                self._closed = True
            while not self._queue.empty():
                group += [entry] if (entry := self._queue.get()) is not None else []
            _fail(group, ServiceDown("the ledger's writer stopped; see the log, then restart"))

    def _waiting(self, most: int) -> list[_Entry]:
        """What is queued now, up to the end mark, which stays."""
        taken: list[_Entry] = []
        while len(taken) < most and not self._queue.empty():
            if (entry := self._queue.get()) is None:
                self._queue.put(None)  # nothing is queued behind it: seen again after this group
                break
            taken.append(entry)
        return taken

    def _commit(self, group: list[_Entry]) -> Exception | None:
        """Write a group; returns why the database cannot, and then every entry of the group was told."""
        self._since = time.monotonic()
        try:
            with self._store.writing() as connection:
                results = [entry.write(connection) for entry in group]
        except (BellwetherError, StoreFault, OSError) as error:
            if len(group) == 1 or isinstance(error, OUTAGES):
                _fail(group, error)
                return error if isinstance(error, OUTAGES) else None
            for i, entry in enumerate(group):
                if (outage := self._commit([entry])) is not None:
                    _fail(group[i:], outage)
                    return outage
            return None
        except Exception as error:  # a fault of our own belongs to those who wait; the writer goes on
            log.exception("the ledger's writer met a fault")
            _fail(group, error)
            return None
        finally:
            self._since = None
        for entry, result in zip(group, results, strict=True):
            entry.done.set_result(result)
        return None


def _fail(group: Sequence[_Entry], error: Exception) -> None:
    for entry in group:
        if not entry.done.done():
            entry.done.set_exception(error)
