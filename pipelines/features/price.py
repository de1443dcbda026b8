"""Price features of the core 25: where the close stands, how far it moves."""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import highest, lowest, mean, push, root_mean_square


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Five values from the last 20 bars.

    reads    bar high, low, close; state: closes 20, log returns 20, highs 20, lows 20 (windows, NaN when fresh)
    """
    closes, returns, highs, lows = state[0:20], state[20:40], state[40:60], state[60:80]
    close = bar[CLOSE]
    push(returns, math.log(close / closes[19]))
    push(closes, close)
    push(highs, bar[HIGH])
    push(lows, bar[LOW])
    out[0] = returns[19]
    out[1] = math.log(close / mean(closes[15:20]))
    out[2] = math.log(close / mean(closes))
    out[3] = root_mean_square(returns)
    out[4] = (highest(highs) - lowest(lows)) / close


INF = math.inf
GROUP = FeatureGroup(
    "price",
    step,
    (
        Column("log_return_1", "price", "log price", -INF, INF, 2, "log(close / last close)", "definition"),
        Column("close_to_ma5", "price", "log price", -INF, INF, 5, "log(close / mean of 5 closes)", "TA-Lib SMA"),
        Column("close_to_ma20", "price", "log price", -INF, INF, 20, "log(close / mean of 20 closes)", "TA-Lib SMA"),
        Column(
            "volatility_20", "price", "log price a bar", 0.0, INF, 21, "root mean square of 20 log returns",
            "Andersen and Bollerslev 1998, realised volatility",
        ),
        Column(
            "range_20", "price", "fraction of price", 0.0, INF, 20, "(highest high 20 - lowest low 20) / close",
            "definition",
        ),
    ),
    np.full(80, np.nan),
)  # fmt: skip
