"""Rows of figures that a benchmark returns, each with its spread and n; two sides are always measured in turn."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.contracts import Floats

Work = Callable[[], Any]
PROBE_S = 0.02  # a call is repeated inside one measurement until it takes about this long


@dataclass(frozen=True, slots=True)
class Spread:
    """Hold median and quartiles of n figures; p99 where single calls were timed."""

    median: float
    low: float
    high: float
    n: int
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Hold one line of the table. `ratio` is theirs over ours, pair by pair: above 1, ours is so many times faster."""

    what: str
    unit: str
    ours: Spread
    compared_with: str | None = None
    theirs: Spread | None = None
    ratio: Spread | None = None
    note: str = ""


def spread(values: Floats, tail: bool = False) -> Spread:
    """Return the spread of (n,) figures; `tail` adds the 99th percentile."""
    low, median, high = (float(x) for x in np.quantile(values, [0.25, 0.5, 0.75]))
    return Spread(median, low, high, len(values), float(np.quantile(values, 0.99)) if tail else None)


def pairs(
    what: str, unit: str, ours: Floats, compared_with: str, theirs: Floats, note: str = "", tail: bool = False
) -> Row:  # fmt: skip
    """Return the row of two sides measured in turn: ours (n,), theirs (n,) in the same unit."""
    return Row(what, unit, spread(ours, tail), compared_with, spread(theirs, tail), spread(theirs / ours), note)


def in_turn(ours: Work, theirs: Work, repeats: int) -> tuple[Floats, Floats]:
    """Return the CPU seconds of one call of each side, (repeats,) each.

    The order changes every time, so that neither side always finds the caches warm. CPU time of this process: other
    work of the machine is not counted.
    """
    loops = [_loops(work) for work in (ours, theirs)]
    seconds = np.empty((repeats, 2))
    for i in range(repeats):
        for side in (0, 1) if i % 2 else (1, 0):
            seconds[i, side] = cpu_seconds((ours, theirs)[side], loops[side])
    return seconds[:, 0], seconds[:, 1]


def cpu_seconds(work: Work, loops: int = 1) -> float:
    """Return the CPU seconds of one call, the mean of `loops` calls."""
    started = time.process_time()
    for _ in range(loops):
        work()
    return (time.process_time() - started) / loops


def _loops(work: Work) -> int:
    """Return how many calls make a measurement long compared with the clock's step. The first call only loads."""
    work()
    return max(1, round(PROBE_S / max(cpu_seconds(work), 1e-7)))
