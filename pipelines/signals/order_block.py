"""S1 order block: the last opposite candle before a displacement that breaks structure, known only at that break.

Long: from the close of a falling candle, none falling after it, price has risen at least 1.5 ATR within eight bars, and
this close is the first above the newest confirmed swing high. The block is that falling candle's range. Short is the
mirror image. What tells a good block from a poor one stands beside it: the hour, the volume, who took.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, OPEN_TIME, TAKER_BUY, VOLUME
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, mean, push
from pipelines.signals.columns import signal_columns
from pipelines.signals.swings import BARS_PER_SIDE, WIDTH, is_swing

MIN_ATR = 1.5  # least displacement, in ATR 14
WITHIN = 8  # bars of a displacement at most
LOOK_BACK = 96  # bars, this one counted, among which a swing is looked for
BEFORE = 20  # bars whose volume is the usual one
LONDON, NEW_YORK = (7.0, 10.0), (12.0, 15.0)  # killzones, hours UTC; 2-5 and 7-10 of New York's winter clock

CANDLES = WITHIN + 1
HIGHS = ATR_STATE
LOWS = HIGHS + WIDTH
OPENS = LOWS + WIDTH
CLOSES = OPENS + CANDLES
VOLUMES = CLOSES + CANDLES
TAKERS = VOLUMES + BEFORE + WITHIN
NEWEST = TAKERS + WITHIN


@kernel
def _run(opened, close, level, side, reach):  # type: ignore[no-untyped-def]
    """Bars since the last candle against `side`, where the last close breaks `level` out of a displacement; else 0."""
    last = close.shape[0] - 1
    begin = last
    while begin > 0 and side * close[begin] >= side * opened[begin]:
        begin -= 1
    if side * close[begin] >= side * opened[begin] or side * (close[last] - close[begin]) < MIN_ATR * reach:
        return 0
    return last - begin if side * close[last] > side * level >= side * close[last - 1] else 0


@kernel
def _follow(newest, values, side):  # type: ignore[no-untyped-def]
    """Keep the level of the newest swing and the bars since it stood; one out of sight is forgotten."""
    newest[1] += 1.0
    if is_swing(values, BARS_PER_SIDE, side):
        newest[0], newest[1] = values[BARS_PER_SIDE], BARS_PER_SIDE
    elif newest[1] >= LOOK_BACK - 1:  # by the next bar
        newest[0] = np.nan


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """The order block that this bar's close confirms, if any.

    reads    bar open_time, open, high, low, close; volume and taker_buy_volume for what stands beside the block
    state    ATR 3; windows, NaN when fresh: highs 11, lows 11, opens 9, closes 9, volumes 28, taker volumes 8; newest
             swing high, newest swing low x (level NaN = none, bars since it stood)
    rule     structure is the newest swing that was confirmed at the last close and stood at most 95 bars ago
    """
    highs, lows, opens, closes = state[HIGHS:LOWS], state[LOWS:OPENS], state[OPENS:CLOSES], state[CLOSES:VOLUMES]
    volumes, takers = state[VOLUMES:TAKERS], state[TAKERS:NEWEST]
    top, bottom = state[NEWEST : NEWEST + 2], state[NEWEST + 2 : NEWEST + 4]
    push(highs, bar[HIGH])
    push(lows, bar[LOW])
    push(opens, bar[OPEN])
    push(closes, bar[CLOSE])
    push(volumes, bar[VOLUME])
    push(takers, bar[TAKER_BUY])
    reach = atr(state[0:ATR_STATE], bar[HIGH], bar[LOW], bar[CLOSE])

    out[:] = np.nan
    if reach == reach:
        out[0] = 0.0
        side = 1.0
        run = _run(opens, closes, top[0], side, reach)
        if run == 0:
            side = -1.0
            run = _run(opens, closes, bottom[0], side, reach)
        if run > 0:
            out[0] = side
            out[1] = side * (closes[WITHIN] - closes[WITHIN - run]) / reach
            out[2], out[3] = lows[WIDTH - 1 - run], highs[WIDTH - 1 - run]
            hour = bar[OPEN_TIME] % 86400.0 / 3600.0
            out[4] = int(LONDON[0] <= hour < LONDON[1] or NEW_YORK[0] <= hour < NEW_YORK[1])
            begin = volumes.shape[0] - run
            out[5] = mean(volumes[begin:]) / mean(volumes[begin - BEFORE : begin])
            taken, traded = 0.0, 0.0
            for k in range(run):
                taken += 2.0 * takers[WITHIN - run + k] - volumes[begin + k]
                traded += volumes[begin + k]
            out[6] = side * taken / traded
    _follow(top, highs, 1.0)
    _follow(bottom, lows, -1.0)


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
            "order_block.killzone", "ict", "flag", 0.0, 1.0, 15, "1 if the bar that breaks opens 07:00-10:00 (London) "
            "or 12:00-15:00 UTC (New York)", "ICT convention: killzones in GMT, no summer time", sparse=True,
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
    np.concatenate([np.zeros(ATR_STATE), np.full(NEWEST - ATR_STATE, np.nan), [np.nan, 0.0, np.nan, 0.0]]),
)  # fmt: skip
