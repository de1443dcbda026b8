"""Write the ledger in one thread: an entry is durable before its future is done (V5).

Entries queue up; the thread commits everything in the queue as one transaction, so that many requests share one disk
write. What one request writes for several symbols is always in one transaction. If the database refuses it, each entry
is written on its own, so a bad entry fails alone. If the database itself is unavailable, all waiting entries fail at
once instead of waiting for the same lock in turn.
"""

import functools
import itertools
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
from pipelines.store import OUTAGES, BarBatch, DecisionRecord, Fill, ReceivedOutcome, Store, StoreFault, Transaction

log = logging.getLogger("bellwether.ledger")

GROUP = 512  # entries from which on no more are added to a transaction: bounds how long the first of them waits
STUCK_S = 0.8  # a transaction that takes longer waits for a database that neither answers nor fails

T = TypeVar("T")
Write = Callable[[Sequence[Any], Transaction], Sequence[T]]


@dataclass(frozen=True, slots=True)
class _Entry:
    """Hold one item to write and the future that its caller waits on.

    write  takes items of its kind and the transaction; returns the result of each
    """

    write: "Write[Any]"
    item: Any
    done: "Future[Any]"


class Ledger:
    """Own the writing thread; `close()` writes the queue and ends it. Futures raise what the store raised."""

    def __init__(self, store: Store, publish: Callable[[int, Decision], None] | None = None) -> None:
        """Start the writing thread.

        publish  takes each durable decision with its sequence number, in the ledger's order, on that thread
        """
        self._store, self._publish = store, publish
        self._queue: SimpleQueue[tuple[_Entry, ...] | None] = SimpleQueue()
        self._closed = False
        self._order = threading.Lock()  # keeps the end mark the last item of the queue
        self._since: float | None = None  # monotonic start of the running transaction
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def append(self, decision: Decision, features: bytes, signals: bytes) -> "Future[int]":
        """Return a future of its sequence number, done when the decision and its input bytes are durable.

        It raises StoredAlready if its id exists.
        """
        return self.append_all([DecisionRecord(decision, features, signals)])[0]

    def append_all(self, records: Sequence[DecisionRecord]) -> "list[Future[int]]":
        """Return a future for each decision, as `append`; all are written in one transaction, a refused one alone."""
        return self._put_all(self._store.add_decisions, records, self._written)

    def _written(self, record: DecisionRecord, done: "Future[int]") -> None:
        """Publish a decision whose write has ended well; runs on the writing thread, in the order of the numbers."""
        if self._publish is not None and done.exception() is None:
            self._publish(done.result(), record.decision)

    def observe(self, batch: BarBatch) -> "Future[int]":
        """Return a future of the number of new bars, done when they are durable."""
        return self.observe_all([batch])[0]

    def observe_all(self, batches: Sequence[BarBatch]) -> "list[Future[int]]":
        """Return a future for each batch, as `observe`; all are written in one transaction, a refused one alone."""
        return self._put_all(self._store.add_all_bars, batches)

    def resolve(self, outcome: Outcome, at: datetime) -> "Future[bool]":
        """Return a future, done when the outcome, received at `at`, is durable; False if it was stored already."""
        return self.resolve_all([outcome], at)[0]

    def resolve_all(self, outcomes: Sequence[Outcome], at: datetime) -> "list[Future[bool]]":
        """Return a future for each outcome, as `resolve`; all are written in one transaction, a refused one alone."""
        return self._put_all(self._store.add_outcomes, [ReceivedOutcome(outcome, at) for outcome in outcomes])

    def trip(self, name: str, at: datetime, reason: str) -> "Future[bool]":
        """Return a future, done when the trip is durable, ahead of every later decision; False if it was tripped."""
        return self._put(lambda within: self._store.trip(name, at, reason, within))

    def fill(self, fill: Fill) -> "Future[bool]":
        """Return a future, done when the fill is durable; False if it was stored already."""
        return self.fill_all([fill])[0]

    def fill_all(self, fills: Sequence[Fill]) -> "list[Future[bool]]":
        """Return a future for each fill, as `fill`; all are written in one transaction, a refused one alone."""
        return self._put_all(self._store.add_fills, fills)

    def stuck(self) -> str | None:
        """Return why waiting is pointless now; None while the writer makes progress.

        Queued entries may still be written; a repeated request finds them under their id.
        """
        began = self._since
        waited = 0.0 if began is None else time.monotonic() - began
        return None if waited <= STUCK_S else f"the database has not answered for {waited:.1f} s"

    def close(self) -> None:
        """Write the queue and end the thread."""
        with self._order:
            self._closed = True
            self._queue.put(None)
        self._thread.join()

    def _put(self, write: Callable[[Transaction], T]) -> "Future[T]":
        """Queue a write of its own; raise ServiceDown after `close`."""
        return self._put_all(lambda _, within: [write(within)], [None])[0]

    def _put_all(
        self, write: Write[T], items: Sequence[Any], then: "Callable[[Any, Future[T]], None] | None" = None
    ) -> "list[Future[T]]":
        """Queue items that share one transaction; raise ServiceDown after `close`.

        then  what is called with an item and its future before the caller hears of it
        """
        entries: list[_Entry] = []
        for item in items:
            done: Future[T] = Future()
            done.set_running_or_notify_cancel()  # a caller that stops waiting does not cancel the write
            if then is not None:
                done.add_done_callback(functools.partial(then, item))
            entries.append(_Entry(write, item, done))
        with self._order:
            if self._closed:
                raise ServiceDown("the ledger is closed: this process is shutting down. Retry on the new one.")
            if entries:
                self._queue.put(tuple(entries))
        return [entry.done for entry in entries]

    def _run(self) -> None:
        """Commit the queue in groups until the end mark."""
        group: list[_Entry] = []
        try:
            while (first := self._queue.get()) is not None:
                group = [*first, *self._waiting(GROUP - len(first))]
                outage = self._commit(group)
                while outage is not None and (group := self._waiting(GROUP)):  # queued during the failed commit
                    _fail(group, outage)
        finally:  # also after a fault of our own: no future may wait for ever
            with self._order:
                self._closed = True
            while not self._queue.empty():
                group += self._queue.get() or ()
            _fail(group, ServiceDown("the ledger's writer stopped; see the log, then restart"))

    def _waiting(self, most: int) -> list[_Entry]:
        """Take entries from the queue until there are `most`; the end mark stays."""
        taken: list[_Entry] = []
        while len(taken) < most and not self._queue.empty():
            if (entries := self._queue.get()) is None:
                self._queue.put(None)  # read again after this group
                break
            taken += entries
        return taken

    def _commit(self, group: list[_Entry]) -> Exception | None:
        """Write a group; return the outage of the database, if any, after failing every entry of the group."""
        self._since = time.monotonic()
        try:
            with self._store.writing() as connection:
                results = [  # what follows each other and is written alike is one statement
                    result
                    for write, run in itertools.groupby(group, key=lambda entry: entry.write)
                    for result in write([entry.item for entry in run], connection)
                ]
        except (BellwetherError, StoreFault, OSError) as error:
            if len(group) == 1 or isinstance(error, OUTAGES):
                _fail(group, error)
                return error if isinstance(error, OUTAGES) else None
            for i, entry in enumerate(group):
                if (outage := self._commit([entry])) is not None:
                    _fail(group[i:], outage)
                    return outage
            return None
        except Exception as error:  # a fault of our own goes to the waiting callers; the writer continues
            log.exception("the ledger's writer failed")
            _fail(group, error)
            return None
        finally:
            self._since = None
        for entry, result in zip(group, results, strict=True):
            entry.done.set_result(result)
        return None


def _fail(group: Sequence[_Entry], error: Exception) -> None:
    """Set the error on every entry that is not done."""
    for entry in group:
        if not entry.done.done():
            entry.done.set_exception(error)
