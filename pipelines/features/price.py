"""Price features of the core 25: where the close stands, how far it moves."""

import math

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import highest, lowest, mean, push, root_mean_square
from pipelines.layout import lay_out, window

WINDOW, SHORT = 20, 5  # bars
(CLOSES, RETURNS, HIGHS, LOWS), FRESH = lay_out(
    closes=window(WINDOW), returns=window(WINDOW), highs=window(WINDOW), lows=window(WINDOW)
)


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write five values from the last 20 bars.

    arrays   float64: state (80,), bar (9,), book and context unread, out (5,)
    reads    bar high, low, close
    state    windows of 20, NaN when fresh: closes, log returns, highs, lows
    """
    closes, returns, highs, lows = state[CLOSES], state[RETURNS], state[HIGHS], state[LOWS]
    close = bar[CLOSE]
    push(returns, math.log(close / closes[-1]))
    push(closes, close)
    push(highs, bar[HIGH])
    push(lows, bar[LOW])
    out[0] = returns[-1]
    out[1] = math.log(close / mean(closes[WINDOW - SHORT :]))
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
    FRESH,
)  # fmt: skip
