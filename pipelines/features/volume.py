"""Volume features: the five of the core, and the validator's volume ratio and order-flow imbalance.

A bar without volume (forex) gives missing values, a volume of 0 no logarithm; both leave with the window.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import TAKER_BUY, VOLUME, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import deviation, mean, push, replace_sorted
from pipelines.layout import lay_out, window

WINDOW, MIDDLE, SHORT = 60, 20, 5  # bars
(VOLUMES, ORDERED, TAKERS), FRESH = lay_out(volumes=window(WINDOW), ordered=(WINDOW, math.inf), takers=window(SHORT))


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write seven values from the last 60 bars.

    arrays   float64: state (125,), bar (9,), book and context unread, out (7,)
    reads    bar volume, taker_buy_volume (base asset)
    state    volumes 60 in time order, the same 60 ascending (missing = +inf), taker volumes 5
    """
    volumes, ordered, takers = state[VOLUMES], state[ORDERED], state[TAKERS]
    volume = bar[VOLUME]
    replace_sorted(ordered, volumes[0], volume)
    push(volumes, volume)
    push(takers, bar[TAKER_BUY])
    mean_60 = mean(volumes)
    mean_5 = mean(volumes[WINDOW - SHORT :])
    median = 0.5 * (ordered[WINDOW // 2 - 1] + ordered[WINDOW // 2]) if mean_60 == mean_60 else np.nan
    out[0] = math.log(volume / median)
    out[1] = math.log(mean_5 / median)
    out[2] = math.log(mean_60 / median)
    out[3] = math.log(volume / mean_5)
    out[4] = deviation(volumes[WINDOW - MIDDLE :], 1) / mean(volumes[WINDOW - MIDDLE :])
    out[5] = volume / mean(volumes[WINDOW - 1 - MIDDLE : WINDOW - 1])
    out[6] = 2.0 * mean(takers) / mean_5 - 1.0


INF = math.inf
GROUP = FeatureGroup(
    "volume",
    step,
    (
        Column(
            "volume_to_median", "volume", "log ratio", -INF, INF, 60, "log(volume / median of 60 volumes)",
            "ruling: trailing median of 60 bars", needs="volume",
        ),
        Column(
            "volume_ma5", "volume", "log ratio", -INF, INF, 60, "log(mean of 5 volumes / median of 60 volumes)",
            "ruling: trailing median of 60 bars", needs="volume",
        ),
        Column(
            "volume_ma60", "volume", "log ratio", -INF, INF, 60, "log(mean of 60 volumes / median of 60 volumes)",
            "ruling: trailing median of 60 bars", needs="volume",
        ),
        Column(
            "volume_to_ma5", "volume", "log ratio", -INF, math.log(5.0), 5, "log(volume / mean of 5 volumes)",
            "definition", copy_of="volume_to_median and volume_ma5", needs="volume",
        ),
        Column(
            "volume_volatility_20", "volume", "fraction of mean", 0.0, INF, 20,
            "standard deviation (ddof 1) of 20 volumes / their mean", "coefficient of variation", needs="volume",
        ),
        Column(
            "volume_ratio", "validator", "ratio", 0.0, INF, 21, "volume / mean of the 20 volumes before it",
            "definition", needs="volume",
        ),
        Column(
            "order_flow_imbalance", "validator", "fraction of volume", -1.0, 1.0, 5,
            "(2 taker buys - volume) / volume over 5 bars: flow by trades; order_flow_ratio is flow by the book",
            "definition", needs="taker",
        ),
    ),
    FRESH,
)  # fmt: skip
