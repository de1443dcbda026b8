"""S13 candle range theory: the last closed higher-timeframe candle is a range; trading beyond it and back is a setup.

The higher timeframe is 4 h, 1 d where a 4 h candle holds fewer than four bars; bars so long that neither does have no
such signal. While a candle forms, the range is that of the candle before it. The setup: this candle has traded at least
0.1 ATR beyond the high (short) or the low (long) of the range, and this is the first close back inside; once a side has
closed back it is spent until the next candle. When both sides speak, the deeper one does.

The distances are to the last candle that is closed at this bar's close: on the bar that ends a candle, to that candle,
although the setup on that bar still speaks of the range it traded against.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN_TIME
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr
from pipelines.signals.candles import CLOCK_STATE, bar_length, candle_is_closed, has_valid_prices
from pipelines.signals.columns import signal_columns

FRAMES = np.array([14400.0, 86400.0])  # seconds
LEAST_BARS = 4  # bars a candle of the frame must hold
MIN_ATR = 0.1  # least depth beyond the range, in ATR 14
CLOCK = ATR_STATE
CANDLES = CLOCK + CLOCK_STATE  # where they start in the state, for each frame:
SLOT, WHOLE, TOP, BOTTOM, RANGE_HIGH, RANGE_LOW, SPENT_HIGH, SPENT_LOW = range(8)
PER_FRAME = 8


@kernel
def _form(candle, frame, open_time, high, low):  # type: ignore[no-untyped-def]
    """Take one bar into the candle of its slot; a new slot makes the candle before it the range."""
    slot = np.floor(open_time / frame)
    if slot == candle[SLOT]:
        candle[TOP], candle[BOTTOM] = max(candle[TOP], high), min(candle[BOTTOM], low)
        return
    first = candle[SLOT] != candle[SLOT]
    if candle[WHOLE] == 1.0:
        candle[RANGE_HIGH], candle[RANGE_LOW] = candle[TOP], candle[BOTTOM]
    # the fold may have started in the middle of its first candle: that one is no range
    candle[WHOLE] = 0.0 if first and open_time != slot * frame else 1.0
    candle[SLOT], candle[TOP], candle[BOTTOM] = slot, high, low
    candle[SPENT_HIGH], candle[SPENT_LOW] = 0.0, 0.0


@kernel
def _sweep(candle, close, reach):  # type: ignore[no-untyped-def]
    """(above, below): depth in ATR beyond the range's high and low that this close ends first; 0 = it does not."""
    above, below = 0.0, 0.0
    high, low = candle[RANGE_HIGH], candle[RANGE_LOW]
    if candle[TOP] > high and close < high:
        if candle[SPENT_HIGH] == 0.0 and close > low:
            above = (candle[TOP] - high) / reach
        candle[SPENT_HIGH] = 1.0
    if candle[BOTTOM] < low and close > low:
        if candle[SPENT_LOW] == 0.0 and close < high:
            below = (low - candle[BOTTOM]) / reach
        candle[SPENT_LOW] = 1.0
    return above if above >= MIN_ATR else 0.0, below if below >= MIN_ATR else 0.0


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """The setup this close completes, if any; its place in the last closed candle.

    reads    bar open_time, high, low, close
    state    ATR 3; last open time, bar length; for 4 h and for 1 d: slot of the candle that forms, is it whole, its
             high and low so far, high and low of the range, has either side closed back
    NaN      before a whole candle has closed; a bar without sound prices is missing and leaves no trace
    """
    high, low, close, open_time = bar[HIGH], bar[LOW], bar[CLOSE], bar[OPEN_TIME]
    out[:] = np.nan
    if not has_valid_prices(high, low, close):
        return
    reach = atr(state[0:ATR_STATE], high, low, close)
    length = bar_length(state[CLOCK:CANDLES], open_time)
    chosen = False
    for f in range(FRAMES.shape[0]):  # both are formed: bars turn out shorter where the first spacing was a gap
        frame, candle = FRAMES[f], state[CANDLES + PER_FRAME * f : CANDLES + PER_FRAME * (f + 1)]
        _form(candle, frame, open_time, high, low)
        above, below = _sweep(candle, close, reach)
        if chosen or not frame >= LEAST_BARS * length or reach != reach:
            continue
        chosen = True
        top, bottom = candle[RANGE_HIGH], candle[RANGE_LOW]
        if top == top:
            out[0] = np.sign(below - above)
        if above != below:
            out[1], out[2], out[3] = max(above, below), bottom, top
        if candle[WHOLE] == 1.0 and candle_is_closed(candle[SLOT], frame, open_time, length):
            top, bottom = candle[TOP], candle[BOTTOM]
        out[4], out[5], out[6] = (close - 0.5 * (top + bottom)) / reach, (top - close) / reach, (close - bottom) / reach


SOURCE = "candle range theory, ruling S13"
IN = "the last closed candle of 4 h (1 d where that holds fewer than four bars)"
GROUP = FeatureGroup(
    "crt",
    step,
    (
        *signal_columns(
            "crt", "cmt", 17, "ATR",
            "at least 0.1 ATR beyond the high or low of the higher-timeframe candle before; first close back inside",
            SOURCE, levels="low and high of that candle",
        ),
        Column(
            "crt_level_score", "cmt", "ATR", -np.inf, np.inf, 16, f"close less the middle of {IN}", SOURCE,
        ),
        Column("crt.to_high", "cmt", "ATR", -np.inf, np.inf, 16, f"high of {IN} less close", SOURCE),
        Column("crt.to_low", "cmt", "ATR", -np.inf, np.inf, 16, f"close less low of {IN}", SOURCE),
    ),
    np.concatenate([np.zeros(ATR_STATE), np.full(CLOCK_STATE, np.nan), np.full(PER_FRAME * len(FRAMES), np.nan)]),
)  # fmt: skip
