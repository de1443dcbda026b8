"""S6 cumulative volume delta (taker buys less taker sells): its balance over 20 bars, and where price departs from it.

Without taker volume both are missing, and the order-flow category has no score.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, TAKER_BUY, VOLUME, Floats
from pipelines.features.fold import FeatureGroup
from pipelines.features.kernels import push
from pipelines.layout import lay_out, window
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, SIGNAL_PARTS, STRENGTH, signal_columns

BARS = 20
MIN_SHORTFALL = 0.05  # of the window's volume: a smaller divergence is none
(CLOSES, VOLUMES, DELTAS), FRESH = lay_out(closes=window(BARS), volumes=window(BARS), deltas=window(BARS))
SECOND = len(SIGNAL_PARTS)  # where the columns of the divergence start


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write two signals from the last 20 bars.

    arrays   float64: state (60,), bar (9,), book and context unread, out (8,)
    reads    bar close, volume, taker_buy_volume
    state    windows of 20, NaN when fresh: closes, volumes, deltas (base asset)
    """
    closes, volumes, deltas = state[CLOSES], state[VOLUMES], state[DELTAS]
    push(closes, bar[CLOSE])
    push(volumes, bar[VOLUME])
    push(deltas, 2.0 * bar[TAKER_BUY] - bar[VOLUME])
    out[:] = np.nan
    divergence = out[SECOND:]

    volume, running, peak, trough = 0.0, 0.0, -np.inf, np.inf
    top, bottom = -np.inf, np.inf
    for i in range(BARS):
        if i > 0:  # extremes of everything before this bar
            peak, trough = max(peak, running), min(trough, running)
            top, bottom = max(top, closes[i - 1]), min(bottom, closes[i - 1])
        volume += volumes[i]
        running += deltas[i]
    if not (volume > 0.0 and running == running):
        return

    out[DIRECTION] = np.sign(running)
    if running != 0.0:
        out[STRENGTH] = abs(running) / volume
    divergence[DIRECTION] = 0.0
    if closes[-1] > top and peak - running >= MIN_SHORTFALL * volume:
        divergence[DIRECTION], divergence[STRENGTH] = -1.0, (peak - running) / volume
        divergence[LOW_LEVEL], divergence[HIGH_LEVEL] = top, closes[-1]
    elif closes[-1] < bottom and running - trough >= MIN_SHORTFALL * volume:
        divergence[DIRECTION], divergence[STRENGTH] = 1.0, (running - trough) / volume
        divergence[LOW_LEVEL], divergence[HIGH_LEVEL] = closes[-1], bottom


GROUP = FeatureGroup(
    "cvd",
    step,
    (
        *signal_columns(
            "cvd", "order_flow", BARS, "fraction of volume", "sum of delta / sum of volume over 20 bars", "ruling S6",
            high=1.0, needs="taker", levels="none",
        ),
        *signal_columns(
            "cvd_divergence", "order_flow", BARS, "fraction of volume",
            "close beyond the 19 closes before it, running delta short of its extreme by at least 5 % of "
            "volume", "ruling S6", high=2.0, needs="taker", levels="the close passed and this close",
        ),
    ),
    FRESH,
)  # fmt: skip
