"""Process-wide settings of the interpreter, applied by every entry point and by nothing at import.

Imports nothing that imports numpy: BLAS reads its number of threads once, when numpy is imported.
"""

import gc
import os
from typing import Final

THREADS: Final = "OMP_NUM_THREADS"
GC_THRESHOLD = 20_000  # new objects between two searches for cycles
ONE_ANSWER = (
    250_000  # of a command that loads, answers and ends: it makes fewer, so a search would find nothing to free
)


def bootstrap(gc_threshold: int = GC_THRESHOLD) -> None:
    """Set one BLAS thread, unless the environment sets a number, and a rare search for reference cycles.

    Threads: all sums here are small, and BLAS splits even those of three numbers. On a busy machine its threads spin
    while they wait for each other: fits of a Hawkes process on two busy cores took 25 times the processor time.
    Cycles: our processes load half a million objects that stay. By default each 700 new ones start a search,
    an eighth of the time that loading takes.
    """
    os.environ.setdefault(THREADS, "1")
    gc.set_threshold(gc_threshold)
