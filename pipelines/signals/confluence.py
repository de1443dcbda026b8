"""S15 multi-timeframe confluence: do the trends of 5 m, 15 m, 1 h, 4 h and 1 d agree?

The trend of a timeframe is the sign of its last closed candle's close against the mean of its last six closed candles'.
A timeframe finer than the bars, or with fewer than six closed candles so far, is not heard: the weights of the others
are renormalised and the coverage is less. It speaks on the bar from which all timeframes heard, at least two, agree; a
timeframe whose six closes are all the same has no trend and agrees with nobody.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN_TIME, TIMEFRAME_SECONDS, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import push
from pipelines.signals.candles import CLOCK_STATE, bar_length, candle_is_closed, has_valid_prices
from pipelines.signals.columns import signal_columns

TIMEFRAMES = ("5m", "15m", "1h", "4h", "1d")
FRAMES = np.array([float(TIMEFRAME_SECONDS[name]) for name in TIMEFRAMES])
WEIGHTS = np.array([10.0, 20.0, 30.0, 25.0, 15.0])  # per cent: whole numbers, so that their sums are exact
CANDLES = 6
LAST = CLOCK_STATE  # where the agreement of the bar before stands in the state
FIRST = LAST + 1  # where the frames start, for each: slot, newest close in it, closes of the six slots before
PER_FRAME = 2 + CANDLES


@kernel
def _trend(candles, frame, open_time, length):  # type: ignore[no-untyped-def]
    """Last closed close less the mean of the last six, in price units, at the close of the bar from `open_time`; NaN =
    not heard."""
    if not frame >= length:
        return np.nan
    newest, oldest = candles[PER_FRAME - 1], 2
    total = 0.0
    if candle_is_closed(
        candles[0], frame, open_time, length
    ):  # the candle that forms is closed too, and the oldest one is dropped
        newest, oldest = candles[1], 3
    for i in range(PER_FRAME - 1, oldest - 1, -1):
        total += newest - candles[i]  # a sum of differences: equal closes give an exact nought
    return total / CANDLES


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Agreement of the timeframes' trends, their weighed mean, and how much of the weight is heard.

    reads    bar open_time, close
    state    last open time, bar length; agreement at the last bar (NaN = fewer than two heard); for each timeframe:
             slot and close of the candle that forms, closes of the six before
    NaN      direction: fewer than two timeframes heard; score: none; a bar without sound prices leaves no trace
    """
    close, open_time = bar[CLOSE], bar[OPEN_TIME]
    out[:] = np.nan
    if not has_valid_prices(bar[HIGH], bar[LOW], close):
        return
    length = bar_length(state[0:CLOCK_STATE], open_time)
    score, total, heard, apart = 0.0, 0.0, 0, 0.0
    for f in range(FRAMES.shape[0]):
        candles = state[FIRST + PER_FRAME * f : FIRST + PER_FRAME * (f + 1)]
        slot = np.floor(open_time / FRAMES[f])
        if slot != candles[0]:
            push(candles[2:], candles[1])
            candles[0] = slot
        candles[1] = close
        trend = _trend(candles, FRAMES[f], open_time, length)
        if trend == trend:
            score += WEIGHTS[f] * np.sign(trend)
            apart += WEIGHTS[f] * abs(trend)
            total += WEIGHTS[f]
            heard += 1
    out[5] = total / 100.0
    agreed = np.nan
    if heard > 0:
        out[4] = score / total
    if heard > 1:
        agreed = np.sign(score) if abs(score) == total else 0.0
        out[0] = 0.0
        if agreed != 0.0 and state[LAST] == state[LAST] and agreed != state[LAST]:
            out[0], out[1] = agreed, apart / total / close
    state[LAST] = agreed


def trends(group_state: Floats) -> dict[str, int]:
    """-1, 0, 1 of each timeframe heard at the last bar, from this family's slice of a state."""
    open_time, length = group_state[:CLOCK_STATE]
    rows = group_state[FIRST:].reshape(len(TIMEFRAMES), PER_FRAME)
    found = {
        name: _trend(row, FRAMES[f], open_time, length)
        for f, (name, row) in enumerate(zip(TIMEFRAMES, rows, strict=True))
    }
    return {name: int(np.sign(trend)) for name, trend in found.items() if trend == trend}


SOURCE = "ruling S15: weights 5m .10, 15m .20, 1h .30, 4h .25, 1d .15"
RULE = "sign of a timeframe's last closed close against the mean of its last six"
GROUP = FeatureGroup(
    "confluence",
    step,
    (
        *signal_columns(
            "confluence", "cmt", 24, "fraction of price",
            f"all timeframes heard agree, at least two, and did not a bar ago: {RULE}; strength: weighed mean of "
            "how far the closes are from those means", SOURCE, levels="none",
        ),
        Column("confluence.score", "cmt", "mean", -1.0, 1.0, 6, f"weighed mean over those heard: {RULE}", SOURCE),
        Column(
            "confluence.coverage", "cmt", "share of the weight", 0.0, 1.0, 1,
            "weight of the timeframes not finer than the bars and with six closed candles", SOURCE,
        ),
    ),
    np.full(FIRST + PER_FRAME * len(FRAMES), np.nan),
)  # fmt: skip
