"""S4 change in the state of delivery: the first close through the open of the last opposing run of candles.

Long: a run of at least two falling candles that fell at least 1 ATR from its open to its close, ended at most twelve
bars ago, and this close is the first since above that open. Short is the mirror image. A run too short or too small is
passed over and the one before it looked at.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN
from pipelines.features.fold import FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, push
from pipelines.signals.columns import signal_columns

CANDLES = 2  # least length of a run
MIN_ATR = 1.0  # least way from its open to its close, in ATR 14
WITHIN = 12  # bars since its last candle at most
BARS = 102  # remembered: a run that reaches further back is told from there on
OPENS, CLOSES, HIGHS, LOWS, END = (ATR_STATE + k * BARS for k in range(5))


@kernel
def _run(opened, close, side, reach):  # type: ignore[no-untyped-def]
    """(first, last) of the run against `side` through whose open the last close is the first; (0, 0) = none."""
    last = close.shape[0] - 1
    end = last - 1
    while end >= last - WITHIN:
        begin = end
        while begin > 0 and side * close[begin] < side * opened[begin]:
            begin -= 1
        if end - begin >= CANDLES:
            level = side * opened[begin + 1]
            if level - side * close[end] >= MIN_ATR * reach:
                for k in range(end + 1, last):
                    if side * close[k] > level:
                        return 0, 0
                if side * close[last] > level:
                    return begin + 1, end
                return 0, 0
        end = min(begin, end - 1)
    return 0, 0


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """The change of delivery that this bar's close makes, if any.

    reads    bar open, high, low, close
    state    ATR 3; windows of 102, NaN when fresh: opens, closes, highs, lows
    """
    opens, closes = state[OPENS:CLOSES], state[CLOSES:HIGHS]
    highs, lows = state[HIGHS:LOWS], state[LOWS:END]
    push(opens, bar[OPEN])
    push(closes, bar[CLOSE])
    push(highs, bar[HIGH])
    push(lows, bar[LOW])
    reach = atr(state[0:ATR_STATE], bar[HIGH], bar[LOW], bar[CLOSE])
    out[:] = np.nan
    if reach != reach:
        return
    out[0] = 0.0
    side = 1.0
    begin, end = _run(opens, closes, side, reach)
    if end == 0:
        side = -1.0
        begin, end = _run(opens, closes, side, reach)
    if end > 0:
        level = opens[begin]
        out[0] = side
        out[1] = side * (level - closes[end]) / reach
        out[2], out[3] = level, level
        for k in range(begin, end + 1):  # one of the two stays the level, the other becomes the run's extreme
            if side > 0.0:
                out[2] = min(out[2], lows[k])
            else:
                out[3] = max(out[3], highs[k])


GROUP = FeatureGroup(
    "cisd",
    step,
    signal_columns(
        "cisd", "ict", 15, "ATR",
        "first close through the open of the last opposing run: 2 candles or more, 1 ATR or more, ended at most 12 "
        "bars ago; strength: open to close of the run",
        "ruling S4", levels="open of the run and its extreme",
    ),
    np.concatenate([np.zeros(ATR_STATE), np.full(4 * BARS, np.nan)]),
)  # fmt: skip
