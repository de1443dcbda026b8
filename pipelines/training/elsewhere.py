"""Parts of a stage on another machine: what travels there and back. No disk is shared, and only the coordinator writes.

The coordinator is the process of the stage. A part comes with the files it reads, is computed in a folder that is
removed, and returns with the files it wrote and the type of the CPU that computed it.

A worker computes in a process of its own (`apart`): compiled kernels hold the interpreter's lock for as long as a
market takes, and a worker that answers nothing meanwhile would be taken for dead.
"""

import contextlib
import hashlib
import io
import multiprocessing
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache, lru_cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import cloudpickle

from pipelines.bootstrap import bootstrap
from pipelines.cpu import numeric_cpu
from pipelines.errors import BellwetherError, MixedCpu
from pipelines.training.side_by_side import Job

DEATHS = 2  # of the process that computes a part, and the part fails
KEPT = 8  # files of work on a worker's disk: several families are fitted at a time


@dataclass(frozen=True, slots=True)
class Done:
    """Hold what a part returned, the lines it printed, the files it wrote (path → bytes), and the type of its CPU."""

    value: Any
    lines: tuple[str, ...]
    files: Mapping[str, bytes]
    cpu: str


def packed(workspace: Path, paths: Iterable[Path]) -> dict[str, bytes]:
    """Return path → bytes of these files below the workspace, and of all files in these folders."""
    found = {}
    for path in paths:
        inside = workspace / path
        for file in sorted(inside.rglob("*")) if inside.is_dir() else [inside]:
            if file.is_file():
                found[file.relative_to(workspace).as_posix()] = file.read_bytes()
    return found


def unpack(files: Mapping[str, bytes], workspace: Path) -> None:
    """Write files below the workspace."""
    for name, content in files.items():
        path = workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def compute(
    act: Callable[[Path, Any, Any], Any], shared: Any, argument: Any, files: Mapping[str, bytes], writes: Path | None
) -> Done:
    """Compute one part in a folder of its own, which is gone afterwards, with `files` in it.

    writes  the folder whose files return
    Raises  what `act` raises
    """
    folder, printed = Path(tempfile.mkdtemp(prefix="part-")), io.StringIO()
    try:
        unpack(files, folder)
        with contextlib.redirect_stdout(printed):
            value = act(folder, shared, argument)
        made = {} if writes is None else packed(folder, [writes])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Done(value, tuple(printed.getvalue().splitlines()), made, numeric_cpu())


def apart(work: tuple[str, bytes], job: Job, files: Mapping[str, bytes]) -> Done:
    """Compute one part in the process that this one has for it; one that dies is replaced once.

    work    `act` and what the parts share, as `pack_work` returns them
    Raises  what the part raises; BellwetherError if its process dies again and again
    """
    kept = _kept(*work)
    for _ in range(DEATHS):
        try:
            return _process().submit(_compute_kept, str(kept), job, files).result()
        except BrokenProcessPool:
            _process.cache_clear()
    raise BellwetherError(
        f"{job.name}: the process that computed it died {DEATHS} times, as for lack of memory; see the system's log"
    )


def pack_work(act: Callable[[Path, Any, Any], Any], shared: Any) -> tuple[str, bytes]:
    """Return a function and what its parts share as bytes, and their digest; equal ones give equal bytes within one
    process."""
    content = bytes(cloudpickle.dumps((act, shared)))
    return hashlib.sha256(content).hexdigest(), content


def _kept(digest: str, content: bytes) -> Path:
    """Return a file of this machine with these bytes, named by their digest: they come to each worker once."""
    file = Path(tempfile.gettempdir()) / f"work-{digest}"
    if not file.exists():
        for older in sorted(file.parent.glob("work-*"), key=lambda one: one.stat().st_mtime)[: 1 - KEPT]:
            older.unlink()
        draft = file.with_name(f"draft-{os.getpid()}")
        draft.write_bytes(content)
        draft.replace(file)
    return file


@cache
def _process() -> ProcessPoolExecutor:
    """Return the process that computes the parts of this worker."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """Begin to watch the parent, in a thread: without it nobody waits for a result."""
    bootstrap()
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        """End this process at once when the parent has ended."""
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _compute_kept(kept: str, job: Job, files: Mapping[str, bytes]) -> Done:
    """Compute one part; `kept` is the file of its work."""
    act, shared = _read_work(kept)
    return compute(act, shared, job.argument, files, job.writes)


@lru_cache(maxsize=2)
def _read_work(kept: str) -> tuple[Callable[[Path, Any, Any], Any], Any]:
    """Return function and shared content of a file of `pack_work`; those of the last two stay in memory."""
    act, shared = cloudpickle.loads(Path(kept).read_bytes())
    return act, shared


def check_cpu(jobs: Sequence[Job], done: Sequence[Done], own: str) -> None:
    """Check that every part was computed on CPUs of one type.

    own     that of the coordinator, which computes the rest of the stage
    Raises  MixedCpu, naming a part of each other type
    """
    others = {result.cpu: job.name for job, result in zip(jobs, done, strict=True) if result.cpu != own}
    if others:
        named = ", ".join(f"{name} on {cpu}" for cpu, name in others.items())
        raise MixedCpu(
            f"{MixedCpu.code}: {named}, the rest on {own}; one candidate is computed on one type, or its bytes could "
            "not be repeated. Nothing of it is recorded. Start workers of the coordinator's type, or set "
            "BELLWETHER_DASK_URL=local"
        )
