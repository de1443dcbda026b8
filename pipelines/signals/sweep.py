"""S3 liquidity sweep: a wick beyond a confirmed swing that closes back inside within three bars.

A swing high is the highest of eleven bars, five on each side, so it is known five bars after it stands. A sweep of a
high speaks short, of a low long. A swing swept, or left behind by closes beyond it, is spent. Before a sweep its
imminence tells how near price is to an unspent swing; after it the reversal tells how much of the wick is taken back.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, push
from pipelines.signals.columns import signal_columns
from pipelines.signals.swings import BARS_PER_SIDE, WIDTH, is_swing

MIN_ATR = 0.1  # least wick beyond the swing, in ATR 14
WITHIN = 3  # bars from the first trade beyond until a close back inside
MAX_SWINGS = 64  # unspent swings remembered a side: of planted stop runs 15-minute bars show .26, with eight swings .21
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
    if is_swing(window, BARS_PER_SIDE, 1.0):
        for i in range(swings.shape[0] - 3):
            swings[i] = swings[i + 3]
        swings[-3], swings[-2], swings[-1] = window[BARS_PER_SIDE], 0.0, np.nan
    return depth, level, extreme


@kernel
def _imminence(swings, close, reach):  # type: ignore[no-untyped-def]
    """Nearness of the close to the nearest unspent swing, beyond it or not: 1 at its level, 0 from 1 ATR on or none."""
    nearest = 0.0
    for i in range(0, swings.shape[0], 3):
        near = 1.0 - abs(swings[i] - close) / reach
        if near > nearest:
            nearest = near
    return nearest


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """The sweep that this bar's close confirms, if any; the deeper side when both are swept.

    reads    bar high, low, close
    state    ATR 3; windows of 11 highs and 11 negated lows; per side 8 swings x (level NaN = none, bars, extreme)
    """
    highs, lows = state[ATR_STATE : ATR_STATE + WIDTH], state[ATR_STATE + WIDTH : SWINGS]
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    reach = atr(state[0:ATR_STATE], high, low, close)
    middle = SWINGS + 3 * MAX_SWINGS
    swing_highs, swing_lows = state[SWINGS:middle], state[middle:]
    above, top, peak = _mirror_of_highs(highs, swing_highs, high, close, reach)
    below, bottom, trough = _mirror_of_highs(lows, swing_lows, -low, -close, reach)
    out[:] = np.nan
    if reach == reach:
        out[0] = 0.0
        if above > below:
            out[0], out[1], out[2], out[3] = -1.0, above, top, peak
            out[6] = (peak - close) / (peak - low)
        elif below > above:
            out[0], out[1], out[2], out[3] = 1.0, below, -trough, -bottom
            out[6] = (close + trough) / (high + trough)
        out[4], out[5] = _imminence(swing_highs, close, reach), _imminence(swing_lows, -close, reach)


IMMINENCE = "1 - ATR from the close to the nearest unspent {} known at it, not below 0; 0 if there is none"
GROUP = FeatureGroup(
    "sweep",
    step,
    (
        *signal_columns(
            "sweep", "ict", 15, "ATR",
            "wick at least 0.1 ATR beyond a swing of 5 bars a side, close back inside within 3 bars",
            "ruling S3", levels="swept swing and the wick's end",
        ),
        Column("sweep.imminence_high", "ict", "nearness", 0.0, 1.0, 15, IMMINENCE.format("swing high"), "ruling S3"),
        Column("sweep.imminence_low", "ict", "nearness", 0.0, 1.0, 15, IMMINENCE.format("swing low"), "ruling S3"),
        Column(
            "sweep.reversal", "ict", "fraction of the way", 0.0, 1.0, 15,
            "way from the wick's end back to the close / to the other end of the bar that closes inside",
            "ruling S3", sparse=True,
        ),
    ),
    np.concatenate([np.zeros(ATR_STATE), np.full(2 * WIDTH, np.nan), np.tile([np.nan, 0.0, np.nan], 2 * MAX_SWINGS)]),
)  # fmt: skip
