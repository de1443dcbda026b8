"""Splits without leakage: purged by each label's own life, embargoed by a stated time.

Rows may be of several markets, which move together: time is cut for all of them at once, and no moment is cut in two.
"""

from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from pipelines.contracts import DAY_S, Floats, Ints
from pipelines.errors import NotEnoughData


@dataclass(frozen=True, slots=True)
class Split:
    """Hold the row numbers of one fold; every label in `train` has ended, plus the embargo, before `test` begins."""

    train: Ints
    test: Ints


def walk_forward(known: Floats, ended: Floats, folds: int, min_train_fraction: float, embargo_s: float) -> list[Split]:
    """Return expanding training windows, each tested on the next stretch of events.

    known, ended  (m,) epoch seconds at which an event of any market was known and its label ended; `known` ascending
    embargo_s     seconds between the last label's end and the first test event: max(horizon, feature memory)
    """
    m = len(known)
    edges = whole_moments(known, np.linspace(int(m * min_train_fraction), m, folds + 1).astype(int))
    splits = []
    for low, high in pairwise(edges):
        if high <= low:
            continue
        train = np.flatnonzero(ended + embargo_s < known[low])
        if len(train):
            splits.append(Split(train, np.arange(low, high)))
    if not splits:
        span_days = (known[-1] - known[0]) / DAY_S if m else 0.0
        raise NotEnoughData(
            f"{m} events over {span_days:.1f} days leave no training rows before an embargo of "
            f"{embargo_s / 3600:.0f} h; bring a longer history or lower labels.horizon_bars in params.yaml"
        )
    return splits


def whole_moments(known: Floats, edges: Ints) -> Ints:
    """Return edges (e,) between rows moved back to the first row known at the same time; the end of all rows stays."""
    inside = np.minimum(edges, len(known) - 1)
    return np.asarray(np.where(edges < len(known), np.searchsorted(known, known[inside]), edges))


def combinatorial(known: Floats, ended: Floats, groups: int, test_groups: int, embargo_s: float) -> list[Split]:
    """Return every choice of `test_groups` among `groups` stretches as test.

    Train is the rows that neither overlap nor border the test stretches.

    Source: López de Prado 2018, ch. 12 (combinatorial purged cross-validation).
    """
    ends = np.cumsum([len(part) for part in np.array_split(known, groups)])
    parts = np.split(np.arange(len(known)), whole_moments(known, ends[:-1]))
    splits = []
    for chosen in combinations([g for g in range(groups) if len(parts[g])], test_groups):
        test = np.concatenate([parts[g] for g in chosen])
        keep = np.ones(len(known), dtype=bool)
        for g in chosen:
            begin, end = known[parts[g][0]], ended[parts[g]].max()
            # a training label may not reach into the test stretch, nor start inside it or its embargo
            keep &= (ended + embargo_s < begin) | (known > end + embargo_s)
        splits.append(Split(np.flatnonzero(keep), test))
    return splits
