"""S13 candle range theory: the last closed higher-timeframe candle is a range; trading beyond it and back is a setup.

The higher timeframe is 4 h, 1 d where a 4 h candle holds fewer than four bars; bars so long that neither does have no
such signal. While a candle forms, the range is that of the candle before it. The setup: this candle has traded at least
0.1 ATR beyond the high (short) or the low (long) of the range, and this is the first close back inside; once a side has
closed back it is spent until the next candle. When both sides qualify, the deeper one counts.

The distances are to the last candle that is closed at this bar's close: on the bar that ends a candle, to that candle,
although the setup on that bar still refers to the range it traded against.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN_TIME, Floats
from pipelines.data.bar_clock import FRAME_CLOSES, FRAME_OPENS, FRAME_SECONDS, FRAMES
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.candles import CLOCK_STATE, bar_length, candle_is_closed, has_valid_prices
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, SIGNAL_PARTS, STRENGTH, signal_columns

USED = np.array([FRAMES.index("4h"), FRAMES.index("1d")])
LEAST_BARS = 4  # bars a candle of the frame must hold
MIN_ATR = 0.1  # least depth beyond the range, in ATR 14
FRAME_FIELDS = ("opened", "whole", "top", "bottom", "range_high", "range_low", "spent_high", "spent_low")
OPENED, WHOLE, TOP, BOTTOM, RANGE_HIGH, RANGE_LOW, SPENT_HIGH, SPENT_LOW = range(len(FRAME_FIELDS))
PER_FRAME = len(FRAME_FIELDS)
(ATR, CLOCK, CANDLES), FRESH = lay_out(
    atr=zeros(ATR_STATE), clock=window(CLOCK_STATE), candles=window(PER_FRAME * len(USED))
)
MORE = ("crt_level_score", "crt.to_high", "crt.to_low")
SCORE_OUT, TO_HIGH, TO_LOW = range(len(SIGNAL_PARTS), len(SIGNAL_PARTS) + len(MORE))


@kernel
def _form(candle: Floats, opened: float, open_time: float, high: float, low: float) -> None:
    """Add one bar to the candle that holds it; a new candle makes the one before it the range.

    candle (8,) float64 in the order of FRAME_FIELDS, updated; opened (of the candle) and open_time (of the
    bar) in epoch seconds, prices as float64
    """
    if opened == candle[OPENED]:
        candle[TOP], candle[BOTTOM] = max(candle[TOP], high), min(candle[BOTTOM], low)
        return
    first = candle[OPENED] != candle[OPENED]
    if candle[WHOLE] == 1.0:
        candle[RANGE_HIGH], candle[RANGE_LOW] = candle[TOP], candle[BOTTOM]
    # the fold may have started in the middle of its first candle: that one is no range
    candle[WHOLE] = 0.0 if first and open_time != opened else 1.0
    candle[OPENED], candle[TOP], candle[BOTTOM] = opened, high, low
    candle[SPENT_HIGH], candle[SPENT_LOW] = 0.0, 0.0


@kernel
def _sweep(candle: Floats, close: float, reach: float) -> tuple[float, float]:
    """Return (above, below): depth in ATR beyond the range's high and low that this close is first to end; 0 = none.

    candle (8,) float64 in the order of FRAME_FIELDS; a side that has closed back is marked spent
    """
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
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write the setup this close completes, if any, and the close's place in the last closed candle.

    arrays   float64: state (21,), bar (9,), book and context unread, out (7,)
    reads    bar open_time, high, low, close
    state    ATR 3; last open time, bar length; for 4 h and for 1 d: open of the candle that forms, is it whole, its
             high and low so far, high and low of the range, has either side closed back
    NaN      before a whole candle has closed; a bar without valid prices is missing and changes no state
    """
    high, low, close, open_time = bar[HIGH], bar[LOW], bar[CLOSE], bar[OPEN_TIME]
    out[:] = np.nan
    if not has_valid_prices(high, low, close):
        return
    reach = atr(state[ATR], high, low, close)
    length = bar_length(state[CLOCK], open_time)
    candles = state[CANDLES]
    chosen = False
    for f in range(USED.shape[0]):  # both are formed: bars turn out shorter where the first spacing was a gap
        used, candle = USED[f], candles[PER_FRAME * f : PER_FRAME * (f + 1)]
        _form(candle, bar[FRAME_OPENS + used], open_time, high, low)
        above, below = _sweep(candle, close, reach)
        if chosen or not FRAME_SECONDS[used] >= LEAST_BARS * length or reach != reach:
            continue
        chosen = True
        top, bottom = candle[RANGE_HIGH], candle[RANGE_LOW]
        if top == top:
            out[DIRECTION] = np.sign(below - above)
        if above != below:
            out[STRENGTH], out[LOW_LEVEL], out[HIGH_LEVEL] = max(above, below), bottom, top
        if candle[WHOLE] == 1.0 and candle_is_closed(bar[FRAME_CLOSES + used], open_time, length):
            top, bottom = candle[TOP], candle[BOTTOM]
        out[SCORE_OUT] = (close - 0.5 * (top + bottom)) / reach
        out[TO_HIGH], out[TO_LOW] = (top - close) / reach, (close - bottom) / reach


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
    FRESH,
)  # fmt: skip
