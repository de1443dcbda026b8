"""Sample weights: overlapping labels share their information, old events fade."""

import numpy as np

from pipelines.contracts import Floats, Ints


def average_uniqueness(start: Ints, exit: Ints, n_bars: int) -> Floats:
    """Return the mean of 1/concurrency over each event's life; in (0, 1].

    start, exit  (m,) inclusive indices into n_bars base bars
    Source       López de Prado 2018, ch. 4.3
    """
    opened = np.zeros(n_bars + 1)
    np.add.at(opened, start, 1.0)
    np.add.at(opened, np.minimum(exit + 1, n_bars), -1.0)
    alive = np.cumsum(opened)[:n_bars]
    share = np.concatenate([[0.0], np.cumsum(1.0 / np.maximum(alive, 1.0))])
    life = np.maximum(exit - start + 1, 1)
    return np.asarray((share[np.minimum(exit + 1, n_bars)] - share[start]) / life)


def event_decay(known: Floats, half_life_events: float) -> Floats:
    """Return weights (n,) in (0, 1]: half for every `half_life_events` events known later; the newest has weight 1.

    known  (n,) epoch seconds, ascending; events known together weigh the same. Counted in events, since a span of time
           holds a hundred times as many events of minutes as of hours
    """
    later = len(known) - np.searchsorted(known, known, side="right")
    return np.asarray(0.5 ** (later / half_life_events))


def effective_rows(uniqueness: Floats, decay: Floats) -> float:
    """Return how many distinct rows of equal weight say as much as these n: (Σ u·d)² / Σ u·d², 0 of none.

    Without decay it is the sum of the uniqueness; overlap and forgetting both lower it.
    Source  Kish 1965, Survey Sampling, ch. 11.7
    """
    return float((uniqueness * decay).sum() ** 2 / (uniqueness * decay**2).sum()) if len(decay) else 0.0
