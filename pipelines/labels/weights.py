"""Sample weights: overlapping labels share their information, old ones fade."""

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


def time_decay(time: Floats, half_life_seconds: float) -> Floats:
    """Return weights (n,): half for each half-life before the newest event; the newest has weight 1."""
    return np.asarray(0.5 ** ((time.max() - time) / half_life_seconds))
