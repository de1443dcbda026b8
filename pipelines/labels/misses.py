"""Estimate what a trade returns whose target is not touched: the second half of its expected return (U3).

Such a trade is not a full stop: many run out of time between the barriers, and some gap through the stop. In ATR, so
that one figure serves a calm and a wild market.
"""

import numpy as np

from pipelines.contracts import Floats


def miss_atr(label: Floats, gross_bps: Floats, atr: Floats, uniqueness: Floats) -> float | None:
    """Return the mean gross return of the events that missed their target, in ATR; None where all reached it.

    label       (m,) 1 target first, 0 stop or time
    gross_bps   (m,) signed return from fill to exit, before fees; atr (m,) fraction of price, above 0
    uniqueness  (m,) above 0: weight of each event as evidence, as overlapping ones share their path
    NaN in any of an event's values leaves that event out.
    """
    usable = (label == 0.0) & np.isfinite(gross_bps) & np.isfinite(atr) & np.isfinite(uniqueness)
    if not usable.any():
        return None
    return float(np.average(gross_bps[usable] / (atr[usable] * 1e4), weights=uniqueness[usable]))
