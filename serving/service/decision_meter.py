"""What is counted of decisions once they are durable: the figures of `metrics`, and the service level."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from time import perf_counter

from pipelines.contracts import Decision
from serving.service import metrics, tracing
from serving.service.system_clock import utc_now
from serving.state.service_level import Result, ServiceLevel


def count_close(result: Result, n: int) -> None:
    """Count closes by what became of them."""
    metrics.count(metrics.CLOSES, result, n=n)


class DecisionMeter:
    """Count decisions that the ledger has written. One event loop owns it."""

    def __init__(self, level: ServiceLevel) -> None:
        """Take the service level."""
        self._level = level

    def follow(self, decisions: Sequence[Decision], written: "Sequence[Future[int]]") -> None:
        """Count these decisions when all their writes have ended; the writing thread does no more than note the time.

        written  of one transaction, in the order of the decisions: the last one ends last
        """
        loop, began, span = asyncio.get_running_loop(), perf_counter(), tracing.begin("ledger")
        before = written[:-1]  # without the last: a future that held itself would stay until a search for cycles

        def ended(last: "Future[int]") -> None:
            """Note when it ended; runs on the ledger's thread."""
            at, took_s = utc_now().timestamp(), perf_counter() - began
            span.end()
            loop.call_soon_threadsafe(self._count, decisions, [*before, last], at, took_s)

        if written:
            written[-1].add_done_callback(ended)

    def _count(self, decisions: Sequence[Decision], written: "Sequence[Future[int]]", at: float, took_s: float) -> None:
        """Count those that were written; `at` is when, epoch seconds."""
        durable = [one for one, done in zip(decisions, written, strict=True) if done.exception() is None]
        if not durable:
            return
        metrics.observe(metrics.STAGE, took_s, "ledger")
        metrics.observe(metrics.BATCH, len(durable))
        decided, abstained = Counter[tuple[str, str, str]](), Counter[tuple[str, str, str]]()
        for one in durable:
            decided[str(one.tier), one.arm, one.action] += 1
            for family, arms in one.models.items():
                for arm, answer in arms.items():
                    if answer.status != "OK":
                        abstained[family, arm, metrics.code_of(answer.reason)] += 1
        for waited_s in self._level.decided([(one.symbol, one.as_of.timestamp()) for one in durable], at):
            metrics.observe(metrics.CLOSE, waited_s)
        for labels, n in decided.items():
            metrics.count(metrics.DECISIONS, *labels, n=n)
        for labels, n in abstained.items():
            metrics.count(metrics.ABSTENTIONS, *labels, n=n)
