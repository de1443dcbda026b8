"""Which rows a gap of missing bars has broken, by the windows that a family reads (decision 0068).

A window is broken while more than TOLERATED of its bars are missing inside it: one missing bar breaks windows of fewer
than 20 bars and no percentile over 500. A family abstains while a window of a column it reads is broken in a bar it
reads, and training leaves out the same rows, so one rule holds on both sides (L2). An average without an end, such as
an EMA, counts as the window of its warm-up: beyond that a bar weighs little.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np

from pipelines.contracts import Bools, Ints
from pipelines.families import DECISION_FAMILY, FAMILIES
from pipelines.features.catalog import FEATURES
from pipelines.models.views import VIEWS
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS

TOLERATED = 0.05  # share of a window's bars
DECISIONS = "decisions"  # what is read at a decision itself: events, category scores, volatility and ATR
READERS = (*FAMILIES, DECISIONS)
OF_DECISIONS = ("atr_14", "volatility_20")


@cache
def windows(reader: str) -> tuple[int, tuple[int, ...]]:
    """Return how many bars in a row a reader sees, and the lengths of the windows its columns are made of, ascending.

    reader   a family, or DECISIONS
    """
    if reader in VIEWS:
        steps, columns = VIEWS[reader].steps, VIEWS[reader].columns
    elif reader == DECISION_FAMILY:
        steps, columns = 1, (*VALIDATOR_COLUMNS, *SIGNALS.columns, *OF_DECISIONS)  # an event is raised by signals
    else:
        steps, columns = 1, (*SIGNALS.columns, *OF_DECISIONS)
    lengths = {int(fold.warmup[fold.index[name]]) for name in columns for fold in (FEATURES, SIGNALS)
               if name in fold.index}  # fmt: skip
    return steps, tuple(sorted({steps, *lengths} - {1}))


@cache
def memory() -> int:
    """Return how many bars after a gap any reader may still be broken by it."""
    return max(steps + max(lengths) for steps, lengths in map(windows, READERS))


def broken(missing: Ints, reader: str) -> Bools:
    """Return (n,): whether a row is not to be read, because a gap lies in its windows.

    missing   (n,) bars missing just before each bar, in time order; before the first none is known
    """
    bad = np.zeros(len(missing), dtype=bool)
    if not missing.any():
        return bad
    steps, lengths = windows(reader)
    total = np.concatenate([[0], np.cumsum(missing)])
    n = np.arange(1, len(missing) + 1)
    for length in lengths:  # the seams between the first and the last of its bars
        bad |= total[n] - total[np.maximum(n - length + 1, 0)] > TOLERATED * length
    within = np.concatenate([[0], np.cumsum(bad)])
    return np.asarray(within[n] - within[np.maximum(n - steps, 0)] > 0)


def waits(missing: Ints) -> Mapping[str, int]:
    """Return reader → bars until it may be read again if none goes missing any more; readers that wait alone.

    missing   (memory(),) or more, as of `broken`: the newest bar is the last
    """
    if not missing.any():
        return {}
    ahead = np.concatenate([missing, np.zeros(memory(), dtype=np.int64)])
    left = {reader: int(broken(ahead, reader)[len(missing) - 1 :].argmin()) for reader in READERS}
    return {reader: bars for reader, bars in left.items() if bars}
