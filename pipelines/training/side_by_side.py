"""Who computes the parts of a stage: `Each`. Here in this process, or the markets side by side in processes of their
own, since compiled kernels hold the interpreter's lock. flows/stage.py has them computed by Dask workers."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Job:
    """Describe one part of a stage.

    name      what a person sees: "validator fold 3"
    argument  of the part; it can be pickled
    reads     files below the workspace that the part reads; writes: the folder below it that the part makes, if any
    """

    name: str
    argument: Any
    reads: tuple[Path, ...] = ()
    writes: Path | None = None


class Each(Protocol):
    """Compute every part of a stage and return the results in the order of the jobs."""

    def __call__(self, act: Callable[[Path, Any, Any], Any], jobs: Sequence[Job], shared: Any) -> list[Any]:
        """Return `act(workspace, shared, job.argument)` of every job, and what it writes, in the current folder.

        act     a function of a module; its result can be pickled, and depends on its arguments and `reads` alone
        Raises  what the first job that failed raised
        """
        ...


def in_order(act: Callable[[Path, Any, Any], Any], jobs: Sequence[Job], shared: Any) -> list[Any]:
    """Compute the parts one after another in this process, as `Each`."""
    return [act(Path(), shared, job.argument) for job in jobs]


def side_by_side(act: Callable[[Path, Any, Any], Any], jobs: Sequence[Job], shared: Any) -> list[Any]:
    """Compute the parts in processes of this machine, as `Each`."""
    return each_of(partial(act, Path(), shared), [job.argument for job in jobs])


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
