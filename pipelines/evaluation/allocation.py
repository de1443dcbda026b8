"""Whose the expected shortfall of a portfolio is: parts of its positions that add up to the whole."""

import numpy as np

from pipelines.contracts import Floats
from pipelines.errors import BadShape
from pipelines.evaluation.coverage import refuse_missing, tail_of


def euler_es(returns: Floats, weights: Floats, level: float) -> Floats:
    """(k,) what each of k positions adds to the portfolio's historical ES; the sum is that ES.

    returns  (n, k) simple returns of the assets in the same rows; weights (k,) of value, negative if short
    A position's part is its mean loss over the portfolio's worst n (1 - level) rows, the last in part: the derivative
    of the ES in the position's size, times that size. Negative where it hedges. NaN under 1 / (1 - level) rows.
    Raises   BadShape if widths differ; BadValues for a row or a weight that is not finite
    Source   Tasche 1999, "Risk contributions and performance measurement"
    """
    tail = tail_of(level)
    if returns.ndim != 2 or weights.shape != returns.shape[1:]:
        raise BadShape(f"returns {returns.shape} and weights {weights.shape}; expected (n, k) and (k,).")
    refuse_missing(returns)
    refuse_missing(weights, "weight")
    share = len(returns) * tail
    if share < 1.0 - 1e-9:
        return np.full(len(weights), np.nan)
    order = np.argsort(returns @ weights, kind="stable")[: int(share) + 1]
    counted = np.minimum(1.0, share - np.arange(len(order)))
    return np.asarray(-(counted @ returns[order]) * weights / share, dtype=np.float64)
