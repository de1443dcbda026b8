"""S3 liquidity sweep: a wick beyond a confirmed swing that closes back inside within three bars.

A swing high is the highest of eleven bars, five on each side, so it is known five bars after it stands. A sweep of a
high is short, of a low long. A swing swept, or left behind by closes beyond it, is spent. Before a sweep its imminence
measures how near price is to an unspent swing; after it the reversal measures how much of the wick is taken back.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, push
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, SIGNAL_PARTS, STRENGTH, signal_columns
from pipelines.signals.swings import BARS_PER_SIDE, WIDTH, is_swing

MIN_ATR = 0.1  # least wick beyond the swing, in ATR 14
WITHIN = 3  # bars from the first trade beyond until a close back inside
MAX_SWINGS = 64  # unspent swings a side: of planted stop runs 15-minute bars show .26, with eight swings .21
SWING_FIELDS = ("level", "bars_beyond", "extreme")
LEVEL, BEYOND, EXTREME = range(len(SWING_FIELDS))
SWING = len(SWING_FIELDS)
(ATR, HIGHS, LOWS, SWING_HIGHS, SWING_LOWS), FRESH = lay_out(
    atr=zeros(ATR_STATE), highs=window(WIDTH), lows=window(WIDTH), swing_highs=window(SWING * MAX_SWINGS),
    swing_lows=window(SWING * MAX_SWINGS),
)  # fmt: skip
FRESH[SWING_HIGHS][BEYOND::SWING] = FRESH[SWING_LOWS][BEYOND::SWING] = 0.0
MORE = ("sweep.imminence_high", "sweep.imminence_low", "sweep.reversal")
IMMINENCE_HIGH, IMMINENCE_LOW, REVERSAL = range(len(SIGNAL_PARTS), len(SIGNAL_PARTS) + len(MORE))


@kernel
def _sweep_of_highs(
    window: Floats,
    swings: Floats,
    high: float,
    close: float,
    reach: float,
) -> tuple[float, float, float]:
    """Advance one side, as highs (lows come negated); return (wick depth in ATR, level, extreme), depth 0 = no sweep.

    window (11,) highs, swings (192,) in the order of SWING_FIELDS; float64, both updated
    """
    depth, level, extreme = 0.0, np.nan, np.nan
    for i in range(0, swings.shape[0], SWING):
        if high > swings[i] or swings[i + BEYOND] > 0.0:
            swings[i + BEYOND] += 1.0
            if swings[i + BEYOND] == 1.0 or high > swings[i + EXTREME]:
                swings[i + EXTREME] = high
            if close < swings[i]:
                wick = (swings[i + EXTREME] - swings[i]) / reach
                if wick >= MIN_ATR:
                    if wick > depth:
                        depth, level, extreme = wick, swings[i], swings[i + EXTREME]
                    swings[i] = np.nan
                swings[i + BEYOND] = 0.0
            elif swings[i + BEYOND] >= WITHIN:
                swings[i], swings[i + BEYOND] = np.nan, 0.0
    push(window, high)
    if is_swing(window, BARS_PER_SIDE, 1.0):
        for i in range(swings.shape[0] - SWING):
            swings[i] = swings[i + SWING]
        swings[-3], swings[-2], swings[-1] = window[BARS_PER_SIDE], 0.0, np.nan
    return depth, level, extreme


@kernel
def _imminence(swings: Floats, close: float, reach: float) -> float:
    """Return the nearness of the close to the nearest unspent swing: 1 at its level, 0 from 1 ATR on or without one.

    swings (192,) float64; the close may be on either side of the level
    """
    nearest = 0.0
    for i in range(0, swings.shape[0], SWING):
        near = 1.0 - abs(swings[i] - close) / reach
        if near > nearest:
            nearest = near
    return nearest


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write the sweep that this bar's close confirms, if any; the deeper side when both are swept.

    arrays   float64: state (409,), bar (9,), book and context unread, out (7,)
    reads    bar high, low, close
    state    ATR 3; windows of 11 highs and 11 negated lows; per side 64 swings x (level NaN = none, bars, extreme)
    """
    highs, lows, swing_highs, swing_lows = state[HIGHS], state[LOWS], state[SWING_HIGHS], state[SWING_LOWS]
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    reach = atr(state[ATR], high, low, close)
    above, top, peak = _sweep_of_highs(highs, swing_highs, high, close, reach)
    below, bottom, trough = _sweep_of_highs(lows, swing_lows, -low, -close, reach)
    out[:] = np.nan
    if reach == reach:
        out[DIRECTION] = 0.0
        if above > below:
            out[DIRECTION], out[STRENGTH], out[LOW_LEVEL], out[HIGH_LEVEL] = -1.0, above, top, peak
            out[REVERSAL] = (peak - close) / (peak - low)
        elif below > above:
            out[DIRECTION], out[STRENGTH], out[LOW_LEVEL], out[HIGH_LEVEL] = 1.0, below, -trough, -bottom
            out[REVERSAL] = (close + trough) / (high + trough)
        out[IMMINENCE_HIGH], out[IMMINENCE_LOW] = (
            _imminence(swing_highs, close, reach),
            _imminence(swing_lows, -close, reach),
        )


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
    FRESH,
)  # fmt: skip
