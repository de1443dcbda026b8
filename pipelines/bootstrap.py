"""Process-wide settings of the interpreter, applied by every entry point and by nothing at import.

Imports nothing that imports numpy: BLAS reads its number of threads once, when numpy is imported.
"""

import atexit
import gc
import os
import sys
from collections.abc import Mapping
from typing import Final

THREADS: Final = "OMP_NUM_THREADS"
# glibc gives large arrays back at once and has two pools for all threads. With its defaults a process that served a
# hundred symbols held 270 MB more after ten minutes, nearly none of it in use.
GIVES_MEMORY_BACK: Final = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_ARENA_MAX": "2"}
# What a service starts with, unless the caller's environment says otherwise: one BLAS thread, as our sums are small and
# services share few cores.
OF_A_SERVICE: Final = {THREADS: "1", **GIVES_MEMORY_BACK}
GC_THRESHOLD = 20_000  # new objects between two searches for cycles
SERVING_THRESHOLDS = (50_000, 5, 5)  # new objects are searched after 50,000, all that requests left after 1,800,000
ONE_ANSWER = 250_000  # of a command that loads, answers and ends: loading makes 170,000, which all stay


def bootstrap() -> None:
    """Set one BLAS thread, unless the environment sets a number, and a rare search for reference cycles.

    Threads: all sums here are small, and BLAS splits even those of three numbers. On a busy machine its threads spin
    while they wait for each other: fits of a Hawkes process on two busy cores took 25 times the processor time.
    Cycles: our processes load half a million objects that stay. By default each 700 new ones start a search,
    an eighth of the time that loading takes.
    """
    os.environ.setdefault(THREADS, "1")
    gc.set_threshold(GC_THRESHOLD)


def of_a_job(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a process that computes and ends, from those of the service that starts it.

    It keeps its memory: what is given back at once is zeroed and mapped again for the next array, which made the
    fits of three families take a quarter to a half longer.
    """
    return {name: value for name, value in variables.items() if GIVES_MEMORY_BACK.get(name) != value}


def step_back(niceness: int) -> None:
    """Let others go first: this thread, and every thread and process it starts, runs at this niceness or a higher one.

    On Linux niceness is of a thread; those that run already keep theirs.
    """
    os.nice(max(0, niceness - os.nice(0)))


def serve_from_now_on() -> None:
    """Keep what a service has loaded out of every later search for cycles, and search seldom; once it is loaded.

    No request waits while half a million objects are gone through. Requests leave hardly a cycle, and each search goes
    through the decisions in memory: one after every 1,000 objects took a fifth of the time of a close of 128 symbols.
    """
    gc.freeze()
    gc.set_threshold(*SERVING_THRESHOLDS)
    gc.collect()  # leaves nothing: a full search waits for a quarter of what the last one left, which was all of it


def expect_one_answer() -> None:
    """Leave out the searches for cycles of a process that loads, answers and ends; after `bootstrap`.

    The one at its end would go through everything it has loaded, which took a sixth of the time of `bellwether check`;
    the system takes the memory back in any case.
    """
    gc.set_threshold(ONE_ANSWER)
    atexit.register(gc.freeze)


def end_at_once(ended: SystemExit) -> None:
    """End this process with the exit code of `ended`, once all it printed is out; return if the code is a message.

    What it loaded is not taken apart: that takes 50 ms, and this process holds nothing that outlives it.
    """
    code = 0 if ended.code is None else ended.code
    if isinstance(code, int):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
