"""S15 multi-timeframe confluence: do the trends of 5 m, 15 m, 1 h, 4 h and 1 d agree?

The trend of a timeframe is the sign of its last closed candle's close against the mean of its last six closed candles'.
A timeframe finer than the bars, or with fewer than six closed candles so far, has no vote: the weights of the others
are renormalised and the coverage is less. The signal comes on the bar from which all voting timeframes, at least two,
agree; a timeframe whose six closes are all the same has no trend and agrees with none.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN_TIME, Floats
from pipelines.data.bar_clock import FRAME_CLOSES, FRAME_OPENS, FRAME_SECONDS, FRAMES
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import push
from pipelines.layout import lay_out, offsets, window
from pipelines.signals.candles import CLOCK_STATE, bar_length, candle_is_closed, has_valid_prices
from pipelines.signals.columns import DIRECTION, SIGNAL_PARTS, STRENGTH, signal_columns

WEIGHTS = np.array([10.0, 20.0, 30.0, 25.0, 15.0])  # of FRAMES, per cent: whole numbers, so that their sums are exact
CANDLES = 6
_FRAME_PARTS = {"opened": 1, "closes_at": 1, "close": 1, "closes": CANDLES}  # of the newest candle; of six before it
OPENED, CLOSES_AT, NEWEST, OLDER = offsets(_FRAME_PARTS)
PER_FRAME = sum(_FRAME_PARTS.values())
(CLOCK, AGREEMENT, FRAME_STATES), FRESH = lay_out(
    clock=window(CLOCK_STATE), agreement=window(1), frames=window(PER_FRAME * len(FRAMES))
)
MORE = ("confluence.score", "confluence.coverage")
SCORE_OUT, COVERAGE_OUT = range(len(SIGNAL_PARTS), len(SIGNAL_PARTS) + len(MORE))


@kernel
def _trend(candles: Floats, frame_s: float, open_time: float, length: float) -> float:
    """Return the last closed close less the mean of the last six, in price units; NaN = no vote.

    candles (9,) float64: open time, close time and close of the forming candle, closes of the six before; seconds as
    float64
    """
    if not frame_s >= length:
        return np.nan
    newest, oldest = candles[PER_FRAME - 1], OLDER
    total = 0.0
    if candle_is_closed(candles[CLOSES_AT], open_time, length):  # the newest candle counts, the oldest is dropped
        newest, oldest = candles[NEWEST], OLDER + 1
    for i in range(PER_FRAME - 1, oldest - 1, -1):
        total += newest - candles[i]  # a sum of differences: equal closes give an exact 0
    return total / CANDLES


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write the agreement of the timeframes' trends, their weighted mean, and the share of the weight that votes.

    arrays   float64: state (48,), clocked bar, book and context unread, out (6,)
    reads    bar open_time, high, low, close
    state    last open time, bar length; agreement at the last bar (NaN = fewer than two vote); for each timeframe:
             open time, close time and close of the candle that forms, closes of the six before
    NaN      direction: fewer than two timeframes vote; score: none; a bar without valid prices changes no state
    """
    close, open_time = bar[CLOSE], bar[OPEN_TIME]
    out[:] = np.nan
    if not has_valid_prices(bar[HIGH], bar[LOW], close):
        return
    length = bar_length(state[CLOCK], open_time)
    frames, agreement = state[FRAME_STATES], state[AGREEMENT]
    score, total, voting, apart = 0.0, 0.0, 0, 0.0
    for f in range(len(FRAMES)):
        candles = frames[PER_FRAME * f : PER_FRAME * (f + 1)]
        if bar[FRAME_OPENS + f] != candles[OPENED]:
            push(candles[OLDER:], candles[NEWEST])
            candles[OPENED], candles[CLOSES_AT] = bar[FRAME_OPENS + f], bar[FRAME_CLOSES + f]
        candles[NEWEST] = close
        trend = _trend(candles, FRAME_SECONDS[f], open_time, length)
        if trend == trend:
            score += WEIGHTS[f] * np.sign(trend)
            apart += WEIGHTS[f] * abs(trend)
            total += WEIGHTS[f]
            voting += 1
    out[COVERAGE_OUT] = total / 100.0
    agreed = np.nan
    if voting > 0:
        out[SCORE_OUT] = score / total
    if voting > 1:
        agreed = np.sign(score) if abs(score) == total else 0.0
        out[DIRECTION] = 0.0
        if agreed != 0.0 and agreement[0] == agreement[0] and agreed != agreement[0]:
            out[DIRECTION], out[STRENGTH] = agreed, apart / total / close
    agreement[0] = agreed


def trends(group_state: Floats) -> dict[str, int]:
    """Return the trend -1, 0 or 1 of each timeframe that votes at the last bar, from this group's slice of a state."""
    open_time, length = group_state[CLOCK]
    rows = group_state[FRAME_STATES].reshape(len(FRAMES), PER_FRAME)
    found = {
        name: _trend(row, FRAME_SECONDS[f], open_time, length)
        for f, (name, row) in enumerate(zip(FRAMES, rows, strict=True))
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
            f"all voting timeframes agree, at least two, and did not a bar ago: {RULE}; strength: weighted mean of "
            "how far the closes are from those means", SOURCE, levels="none",
        ),
        Column("confluence.score", "cmt", "mean", -1.0, 1.0, 6, f"weighted mean over those that vote: {RULE}", SOURCE),
        Column(
            "confluence.coverage", "cmt", "share of the weight", 0.0, 1.0, 1,
            "weight of the timeframes not finer than the bars and with six closed candles", SOURCE,
        ),
    ),
    FRESH,
)  # fmt: skip
