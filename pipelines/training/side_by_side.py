"""The markets of a stage side by side, in processes of their own: compiled kernels hold the interpreter's lock."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_of(act: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return `act` of every item, in their order, as many at a time as there are cores; one alone runs right here.

    act     a function of a module, with arguments and results that can be pickled
    Raises  what the first item that failed raised; the others end first
    """
    workers = min(len(items), os.cpu_count() or 1)
    if workers < 2:
        return [act(item) for item in items]
    # a fork has every module that its parent imported; elsewhere a process starts fresh and imports them
    how = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, mp_context=how) as pool:
        return list(pool.map(act, items))
