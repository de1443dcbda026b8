"""Volume features: the five of the core, and the validator's volume ratio and order-flow imbalance.

A bar without volume (forex) gives missing values, a volume of nought no logarithm; both leave with the window.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import TAKER_BUY, VOLUME
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import deviation, mean, push, replace_sorted


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Seven values from the last 60 bars.

    reads    bar volume, taker_buy_volume (base asset)
    state    volumes 60 in time order, the same 60 ascending (missing = +inf), taker volumes 5
    """
    volumes, ordered, takers = state[0:60], state[60:120], state[120:125]
    volume = bar[VOLUME]
    replace_sorted(ordered, volumes[0], volume)
    push(volumes, volume)
    push(takers, bar[TAKER_BUY])
    mean_60 = mean(volumes)
    mean_5 = mean(volumes[55:60])
    median = 0.5 * (ordered[29] + ordered[30]) if mean_60 == mean_60 else np.nan
    out[0] = math.log(volume / median)
    out[1] = math.log(mean_5 / median)
    out[2] = math.log(mean_60 / median)
    out[3] = math.log(volume / mean_5)
    out[4] = deviation(volumes[40:60], 1) / mean(volumes[40:60])
    out[5] = volume / mean(volumes[39:59])
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
    np.concatenate([np.full(60, np.nan), np.full(60, np.inf), np.full(5, np.nan)]),
)  # fmt: skip
