"""Send closes to a decision service by the clock, whatever its answers take, and look at its processes meanwhile.

An open loop over one connection: each request is due at a moment of its own. One that is due while another still waits
for its answer is sent at once after it, and its waiting counts. The outcome of a decision on an event is reported as a
feed does, so that the service holds what it holds on a live market.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
import psutil

from benchmarks.fixture import SIMULATED, by_decision_bar
from benchmarks.throughput import Retrying
from pipelines.contracts import OPEN_TIME, Decision, Floats, JsonObject, Outcome
from pipelines.costs import costs_of
from pipelines.data.timeframes import Grid
from pipelines.errors import BadValues, BellwetherError
from pipelines.monitoring.outcomes import resolve
from pipelines.params import Params
from pipelines.settings import Settings
from pipelines.store.codec import decision_of
from serving.client import Client

DUE, LATE, CLOSE, DECIDE = range(4)  # columns of a paced run, seconds each
SHOWN_FAULTS = 5
OUTCOMES_OF = 3  # symbols of a close that one outcome is reported for, at most; about one in five bars has an event


class Close(NamedTuple):
    """Hold one request: symbols that close together, and the 1-minute bars (n, 9) of their decision bar."""

    symbols: tuple[str, ...]
    bars: Floats


def closes_in_turn(live: Floats, params: Params, symbols: Sequence[str], batch: int) -> Iterator[Close]:
    """Yield the closes of every live bar (n, 9), `batch` symbols a request: no symbol is over a bar ahead of another.

    Raises  BadValues at the end of the bars: a load that goes on would not be of new closes
    """
    groups = by_decision_bar(live, params)
    for bars in groups:
        for first in range(0, len(symbols), batch):
            yield Close(tuple(symbols[first : first + batch]), bars)
    raise BadValues(
        f"all {len(groups):,} closes of {len(symbols)} symbols are sent, and the load is not over: simulate more live "
        "days, or take more symbols"
    )


class Outcomes:
    """Hold decisions whose outcome is still to come, and find those that the bars of their market resolve."""

    def __init__(self, live: Floats, params: Params) -> None:
        """Take the live 1-minute bars (n, 9) that every symbol has."""
        self._live, self._costs, self._base = live, costs_of(params.costs, *SIMULATED), Grid("1m")
        self._pending: dict[str, dict[str, Decision]] = defaultdict(dict)

    def add(self, answer: Mapping[str, object]) -> None:
        """Wait for the outcome of an answered decision, if it is on an event that can be scored."""
        if answer.get("event") is None or answer.get("stop") is None:
            return
        decision = decision_of({name: value for name, value in answer.items() if name != "api"})
        self._pending[decision.symbol][decision.id] = decision

    def ended(self, close: Close) -> list[Outcome]:
        """Return the outcomes that the bars up to this close resolve, and wait for them no longer."""
        until = int(np.searchsorted(self._live[:, OPEN_TIME], close.bars[-1, OPEN_TIME], side="right"))
        found: list[Outcome] = []
        for pending in [self._pending[symbol] for symbol in close.symbols if self._pending[symbol]]:
            oldest = min(decision.as_of for decision in pending.values()).timestamp()
            first = int(np.searchsorted(self._live[:, OPEN_TIME], oldest))
            resolved = resolve(list(pending.values()), self._live[first:until], self._base, self._costs)
            for outcome in resolved:
                del pending[outcome.decision_id]
            found += resolved
        return found


class Load:
    """Send closes over one connection; count what became of them.

    decided      decisions that were new; failed: symbols of a close that got none; outcomes: those reported
    generations  numbers of the generations that decisions name
    """

    def __init__(self, client: Client, closes: Iterator[Close], outcomes: Outcomes) -> None:
        """Take the connection and the closes; nothing is sent yet."""
        self._client, self._closes, self._outcomes = client, closes, outcomes
        self._retrying, self._known, self._ended = Retrying(), set[str](), deque[Outcome]()
        self.decided = self.failed = self.outcomes = 0
        self.generations: set[int] = set()
        self.faults: list[str] = []

    @property
    def retries(self) -> int:
        """Return how many requests were answered 503 and sent again."""
        return self._retrying.retries

    def next_close(self) -> Close:
        """Return the close that is sent next."""
        return next(self._closes)

    def observe(self, close: Close) -> None:
        """Send the bars of a close."""
        if len(close.symbols) == 1:
            self._answered(partial(self._client.observe, close.symbols[0], close.bars))
        else:
            sent = [(symbol, close.bars, None, None) for symbol in close.symbols]
            self._answered(partial(self._client.observe_all, sent))

    def decide(self, close: Close) -> None:
        """Request the decisions on a close, and count those that are new: one from memory is no decision made."""
        if len(close.symbols) == 1:
            answer = self._answered(partial(self._client.decide, close.symbols[0]))
            answers = [] if answer is None else [answer]
        else:
            batch = self._answered(partial(self._client.decide_all, close.symbols))
            answers = [] if batch is None else list(batch["decisions"])
        new = [one for one in answers if "id" in one and one["id"] not in self._known]
        for one in answers:
            if "error" in one:
                self._note(str(one["error"]))
        for one in new:
            self._known.add(one["id"])
            self.generations.add(int(one["generation"]))
            self._outcomes.add(one)
        self.decided += len(new)
        self.failed += len(close.symbols) - len(new)

    def report_outcomes(self, close: Close) -> None:
        """Report outcomes that ended by a close, in order, at most one for OUTCOMES_OF of its symbols: the others wait.

        All symbols are one market and have their events at the same closes. Those of many markets are spread, as here.
        """
        self._ended.extend(self._outcomes.ended(close))
        most = min(len(self._ended), -(-len(close.symbols) // OUTCOMES_OF))
        if reported := [self._ended.popleft() for _ in range(most)]:
            answer = self._answered(partial(self._client.outcome_all, reported))
            self.outcomes += 0 if answer is None else sum("error" not in one for one in answer["outcomes"])

    def _answered(self, request: Callable[[], JsonObject]) -> JsonObject | None:
        """Return the answer of a request, sent again after a 503; None, counted, where it stays without one."""
        try:
            return self._retrying.call(request)
        except BellwetherError as error:
            self._note(str(error))
            return None

    def _note(self, fault: str) -> None:
        """Keep the first faults."""
        if len(self.faults) < SHOWN_FAULTS:
            self.faults.append(fault)


def back_to_back(load: Load, seconds: float) -> float:
    """Send closes for so many seconds, each once the one before is done; return closes a second: the capacity."""
    began, sent = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        close = load.next_close()
        load.observe(close)
        load.decide(close)
        load.report_outcomes(close)
        sent += 1
    return sent / passed


def paced(load: Load, seconds: float, every_s: float, gap_s: float = 0.0) -> Floats:
    """Send a close every `every_s` seconds, its /decide `gap_s` later than its /observe, until `seconds` have passed.

    Returns  (n, 4) seconds of each close that was sent: DUE since the beginning; LATE, how much later it was sent;
             CLOSE, from when it was due until its decisions were answered, which are durable then; DECIDE, from when
             the /decide was due until then. Closes that were due and not sent in time are the rows that lack
    """
    began, rows = time.perf_counter(), []
    for i in range(due_closes(seconds, every_s)):
        due = i * every_s
        if time.perf_counter() - began > seconds:
            break
        close = load.next_close()
        _wait_until(began + due)
        late = time.perf_counter() - began - due
        load.observe(close)
        _wait_until(began + due + gap_s)
        load.decide(close)
        whole = time.perf_counter() - began - due
        rows.append((due, late, whole, whole - gap_s))
        load.report_outcomes(close)
    return np.array(rows).reshape(-1, 4)


def due_closes(seconds: float, every_s: float) -> int:
    """Return how many closes are due in so many seconds."""
    return max(int(np.ceil(seconds / every_s - 1e-9)), 1)


def _wait_until(at: float) -> None:
    """Sleep until `at` of time.perf_counter(); return at once if it is over."""
    if (left := at - time.perf_counter()) > 0:
        time.sleep(left)


# ---- what the processes take ----------------------------------------------------------------------------------------


def sample(watched: Mapping[str, psutil.Process], settings: Settings) -> JsonObject:
    """Return one sample of the watched processes and the store: `at` in seconds, bytes, CPU seconds.

    written  bytes a process has sent towards the disk since it started, as Linux counts them
    """
    found: JsonObject = {"at": time.perf_counter()}
    for name, process in watched.items():
        memory, cpu = process.memory_full_info(), process.cpu_times()
        found[name] = {
            "uss": memory.uss, "rss": memory.rss, "fds": process.num_fds(), "threads": process.num_threads(),
            "cpu_s": cpu.user + cpu.system, "written": process.io_counters().write_bytes,
        }  # fmt: skip
    for name, file in (("store", "store.db"), ("wal", "store.db-wal")):
        path = settings.home / file
        found[name] = path.stat().st_size if path.is_file() else 0
    return found


@contextmanager
def sampled(watched: Mapping[str, psutil.Process], settings: Settings, every_s: float) -> Iterator[list[JsonObject]]:
    """Take a sample now, every `every_s` seconds and at the end; give the list that they are appended to.

    Raises  psutil.NoSuchProcess at the end if a process ended: what follows is of another
    """
    samples, ended = [sample(watched, settings)], threading.Event()

    def take() -> None:
        """Take samples until the load has ended."""
        while not ended.wait(every_s):
            samples.append(sample(watched, settings))

    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(take)
        try:
            yield samples
        finally:
            ended.set()
        taking.result()
    samples.append(sample(watched, settings))
