"""S1 order block: the last opposite candle before a displacement that breaks structure, known only at that break.

Long: from the close of a falling candle, none falling after it, price has risen at least 1.5 ATR within eight bars, and
this close is the first above the newest confirmed swing high. The block is that falling candle's range. Short is the
mirror image. Further columns describe its quality: the hour, the volume, the takers' side.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, TAKER_BUY, VOLUME, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, mean, push
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, SIGNAL_PARTS, STRENGTH, signal_columns
from pipelines.signals.killzones import in_killzone
from pipelines.signals.swings import BARS_PER_SIDE, WIDTH, is_swing

MIN_ATR = 1.5  # least displacement, in ATR 14
WITHIN = 8  # bars of a displacement at most
LOOK_BACK = 96  # bars, this one counted, among which a swing counts
BEFORE = 20  # bars whose volume is the usual one

CANDLES = WITHIN + 1
(
    ATR, HIGHS, LOWS, OPENS, CLOSES, VOLUMES, TAKERS, SWING_HIGH, SWING_HIGH_AGE, SWING_LOW, SWING_LOW_AGE,
), FRESH = lay_out(
    atr=zeros(ATR_STATE), highs=window(WIDTH), lows=window(WIDTH), opens=window(CANDLES), closes=window(CANDLES),
    volumes=window(BEFORE + WITHIN), takers=window(WITHIN), swing_high=window(1), swing_high_age=zeros(1),
    swing_low=window(1), swing_low_age=zeros(1),
)  # fmt: skip
TOP, BOTTOM = slice(SWING_HIGH.start, SWING_HIGH_AGE.stop), slice(SWING_LOW.start, SWING_LOW_AGE.stop)
MORE = ("order_block.killzone", "order_block.volume", "order_block.delta")
KILLZONE_OUT, VOLUME_OUT, DELTA_OUT = range(len(SIGNAL_PARTS), len(SIGNAL_PARTS) + len(MORE))


@kernel
def _run(opened: Floats, close: Floats, level: float, side: float, reach: float) -> int:
    """Return the bars since the last candle against `side`, if the last close breaks `level` in a displacement; else 0.

    opened, close  (9,) float64 in time order; level, reach (ATR 14) in price units
    """
    last = close.shape[0] - 1
    begin = last
    while begin > 0 and side * close[begin] >= side * opened[begin]:
        begin -= 1
    if side * close[begin] >= side * opened[begin] or side * (close[last] - close[begin]) < MIN_ATR * reach:
        return 0
    return last - begin if side * close[last] > side * level >= side * close[last - 1] else 0


@kernel
def _track_swing(newest: Floats, values: Floats, side: float) -> None:
    """Update newest (2,) float64: level of the newest swing (NaN = none in sight) and bars since it stood.

    values  (11,) float64 in time order; side 1.0 swing highs, -1.0 swing lows
    """
    newest[1] += 1.0
    if is_swing(values, BARS_PER_SIDE, side):
        newest[0], newest[1] = values[BARS_PER_SIDE], BARS_PER_SIDE
    elif newest[1] >= LOOK_BACK - 1:  # by the next bar
        newest[0] = np.nan


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write the order block that this bar's close confirms, if any.

    arrays   float64: state (83,), bar (9,), book and context unread, out (7,)
    reads    bar open_time, open, high, low, close; volume and taker_buy_volume for the columns about its quality
    state    ATR 3; windows, NaN when fresh: highs 11, lows 11, opens 9, closes 9, volumes 28, taker volumes 8; newest
             swing high, newest swing low x (level NaN = none, bars since it stood)
    rule     structure is the newest swing that was confirmed at the last close and stood at most 95 bars ago
    """
    highs, lows, opens, closes = state[HIGHS], state[LOWS], state[OPENS], state[CLOSES]
    volumes, takers, top, bottom = state[VOLUMES], state[TAKERS], state[TOP], state[BOTTOM]
    push(highs, bar[HIGH])
    push(lows, bar[LOW])
    push(opens, bar[OPEN])
    push(closes, bar[CLOSE])
    push(volumes, bar[VOLUME])
    push(takers, bar[TAKER_BUY])
    reach = atr(state[ATR], bar[HIGH], bar[LOW], bar[CLOSE])

    out[:] = np.nan
    if reach == reach:
        out[DIRECTION] = 0.0
        side = 1.0
        run = _run(opens, closes, top[0], side, reach)
        if run == 0:
            side = -1.0
            run = _run(opens, closes, bottom[0], side, reach)
        if run > 0:
            out[DIRECTION] = side
            out[STRENGTH] = side * (closes[WITHIN] - closes[WITHIN - run]) / reach
            out[LOW_LEVEL], out[HIGH_LEVEL] = lows[WIDTH - 1 - run], highs[WIDTH - 1 - run]
            out[KILLZONE_OUT] = in_killzone(bar)
            begin = volumes.shape[0] - run
            out[VOLUME_OUT] = mean(volumes[begin:]) / mean(volumes[begin - BEFORE : begin])
            taken, traded = 0.0, 0.0
            for k in range(run):
                taken += 2.0 * takers[WITHIN - run + k] - volumes[begin + k]
                traded += volumes[begin + k]
            out[DELTA_OUT] = side * taken / traded
    _track_swing(top, highs, 1.0)
    _track_swing(bottom, lows, -1.0)


SOURCE = "ruling S1: displacement of at least 1.5 ATR 14 that breaks the newest swing of 5 bars a side"
GROUP = FeatureGroup(
    "order_block",
    step,
    (
        *signal_columns(
            "order_block", "ict", 15, "ATR", "displacement from the last opposite candle, at least 1.5 ATR within 8 "
            "bars, at the first close beyond the newest swing", SOURCE, levels="range of the last opposite candle",
        ),
        Column(
            "order_block.killzone", "ict", "flag", 0.0, 1.0, 15, "1 if the bar that breaks opens 07:00-10:00 in "
            "London or in New York", "ICT convention: killzones by the city's own clock", sparse=True,
        ),
        Column(
            "order_block.volume", "ict", "ratio", 0.0, np.inf, 15, "mean volume of the displacement / mean of the 20 "
            "bars before it", SOURCE, needs="volume", sparse=True,
        ),
        Column(
            "order_block.delta", "ict", "fraction of volume", -1.0, 1.0, 15, "taker buys less sells of the "
            "displacement in its direction / its volume", SOURCE, needs="taker", sparse=True,
        ),
    ),
    FRESH,
)  # fmt: skip
