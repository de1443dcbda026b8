"""Averages of several voters: a voter that could not speak leaves the average; it is never counted as a half (M5)."""

import numpy as np

from pipelines.contracts import Floats


def average(voices: Floats, weights: Floats) -> Floats:
    """Weighted mean over the voters that speak.

    voices   (m, …) probabilities of m voters, NaN where one does not speak
    weights  (m,) not negative; a weight of 0 is a voter that is only heard
    Returns  (…) the mean, renormalised over who speaks; NaN where nobody with a weight does
    """
    shape = (-1,) + (1,) * (voices.ndim - 1)
    speaking = np.where(np.isfinite(voices), weights.reshape(shape), 0.0)
    total = speaking.sum(axis=0)
    said = (np.where(np.isfinite(voices), voices, 0.0) * speaking).sum(axis=0)
    return np.asarray(np.where(total > 0, said / np.where(total > 0, total, 1.0), np.nan))
