"""S4 change in the state of delivery: the first close through the open of the last opposing run of candles.

Long: a run of at least two falling candles that fell at least 1 ATR from its open to its close, ended at most twelve
bars ago, and this close is the first since above that open. Short is the mirror image. A run too short or too small is
skipped and the one before it examined.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, Floats
from pipelines.features.fold import FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, push
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, STRENGTH, signal_columns

CANDLES = 2  # least length of a run
MIN_ATR = 1.0  # least way from its open to its close, in ATR 14
WITHIN = 12  # bars since its last candle at most
BARS = 102  # in the windows: a run that reaches further back counts from there on
(ATR, OPENS, CLOSES, HIGHS, LOWS), FRESH = lay_out(
    atr=zeros(ATR_STATE), opens=window(BARS), closes=window(BARS), highs=window(BARS), lows=window(BARS)
)


@kernel
def _run(opened: Floats, close: Floats, side: float, reach: float) -> tuple[int, int]:
    """Return (first, last) of the run against `side` whose open the last close is the first to pass; (0, 0) = none.

    opened, close  (102,) float64 in time order; reach: ATR 14 in price units
    """
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
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write the change of delivery that this bar's close makes, if any.

    arrays   float64: state (411,), bar (9,), book and context unread, out (4,)
    reads    bar open, high, low, close
    state    ATR 3; windows of 102, NaN when fresh: opens, closes, highs, lows
    """
    opens, closes, highs, lows = state[OPENS], state[CLOSES], state[HIGHS], state[LOWS]
    push(opens, bar[OPEN])
    push(closes, bar[CLOSE])
    push(highs, bar[HIGH])
    push(lows, bar[LOW])
    reach = atr(state[ATR], bar[HIGH], bar[LOW], bar[CLOSE])
    out[:] = np.nan
    if reach != reach:
        return
    out[DIRECTION] = 0.0
    side = 1.0
    begin, end = _run(opens, closes, side, reach)
    if end == 0:
        side = -1.0
        begin, end = _run(opens, closes, side, reach)
    if end > 0:
        level = opens[begin]
        out[DIRECTION] = side
        out[STRENGTH] = side * (level - closes[end]) / reach
        out[LOW_LEVEL], out[HIGH_LEVEL] = level, level
        for k in range(begin, end + 1):  # one of the two stays the level, the other becomes the run's extreme
            if side > 0.0:
                out[LOW_LEVEL] = min(out[LOW_LEVEL], lows[k])
            else:
                out[HIGH_LEVEL] = max(out[HIGH_LEVEL], highs[k])


GROUP = FeatureGroup(
    "cisd",
    step,
    signal_columns(
        "cisd", "ict", 15, "ATR",
        "first close through the open of the last opposing run: 2 candles or more, 1 ATR or more, ended at most 12 "
        "bars ago; strength: open to close of the run",
        "ruling S4", levels="open of the run and its extreme",
    ),
    FRESH,
)  # fmt: skip
