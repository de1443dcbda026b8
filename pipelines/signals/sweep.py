"""S3 liquidity sweep: a wick beyond a confirmed swing that closes back inside within three bars.

A swing high is the highest of eleven bars, five on each side, so it is known five bars after it stands. A sweep of a
high speaks short, of a low long. A swing swept, or left behind by closes beyond it, is spent.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW
from pipelines.features.fold import StepFamily
from pipelines.features.kernels import ATR_STATE, atr, push
from pipelines.signals.columns import signal_columns

SIDE = 5  # bars on each side of a swing
MIN_ATR = 0.1  # least wick beyond the swing, in ATR 14
WITHIN = 3  # bars from the first trade beyond until a close back inside
KEPT = 8  # unspent swings remembered a side
WIDTH = 2 * SIDE + 1
SWINGS = ATR_STATE + 2 * WIDTH  # where they start in the state: level, bars beyond, extreme of each


@kernel
def _mirror_of_highs(window, swings, high, close, reach):  # type: ignore[no-untyped-def]
    """One side, told as highs (lows come negated). Returns (wick depth in ATR, level, extreme); depth 0 = no sweep."""
    depth, level, extreme = 0.0, np.nan, np.nan
    for i in range(0, swings.shape[0], 3):
        if high > swings[i] or swings[i + 1] > 0.0:
            swings[i + 1] += 1.0
            if swings[i + 1] == 1.0 or high > swings[i + 2]:
                swings[i + 2] = high
            if close < swings[i]:
                wick = (swings[i + 2] - swings[i]) / reach
                if wick >= MIN_ATR:
                    if wick > depth:
                        depth, level, extreme = wick, swings[i], swings[i + 2]
                    swings[i] = np.nan
                swings[i + 1] = 0.0
            elif swings[i + 1] >= WITHIN:
                swings[i], swings[i + 1] = np.nan, 0.0
    push(window, high)
    top = window[SIDE]
    swing = top == top
    for i in range(SIDE):
        swing = swing and window[i] < top and window[SIDE + 1 + i] <= top
    if swing:
        for i in range(swings.shape[0] - 3):
            swings[i] = swings[i + 3]
        swings[-3], swings[-2], swings[-1] = top, 0.0, np.nan
    return depth, level, extreme


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """The sweep that this bar's close confirms, if any; the deeper side when both are swept.

    reads    bar high, low, close
    state    ATR 3; windows of 11 highs and 11 negated lows; per side 8 swings x (level NaN = none, bars, extreme)
    """
    highs, lows = state[ATR_STATE : ATR_STATE + WIDTH], state[ATR_STATE + WIDTH : SWINGS]
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    reach = atr(state[0:ATR_STATE], high, low, close)
    middle = SWINGS + 3 * KEPT
    above, top, peak = _mirror_of_highs(highs, state[SWINGS:middle], high, close, reach)
    below, bottom, trough = _mirror_of_highs(lows, state[middle:], -low, -close, reach)
    out[:] = np.nan
    if reach == reach:
        out[0] = 0.0
        if above > below:
            out[0], out[1], out[2], out[3] = -1.0, above, top, peak
        elif below > above:
            out[0], out[1], out[2], out[3] = 1.0, below, -trough, -bottom


FAMILY = StepFamily(
    "sweep",
    step,
    signal_columns(
        "sweep", "ict", 15, "ATR",
        "wick at least 0.1 ATR beyond a swing of 5 bars a side, close back inside within 3 bars",
        "ruling S3", levels="swept swing and the wick's end",
    ),
    np.concatenate([np.zeros(ATR_STATE), np.full(2 * WIDTH, np.nan), np.tile([np.nan, 0.0, np.nan], 2 * KEPT)]),
)  # fmt: skip
