"""S2 fair-value gap: three candles whose outer wicks leave a gap, known at the third close; its life after that.

Long: low of the third candle above the high of the first. Only gaps of at least `MIN_ATR` are spoken of. A gap is open
until price trades into it (mitigated) or through it (filled).
"""

from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr
from pipelines.signals.columns import signal_columns

MIN_ATR = 0.3  # least gap, in ATR 14
KEPT = 8  # gaps remembered
GAPS = ATR_STATE + 4  # where they start in the state: direction, low, high, status of each, oldest first
OPEN, MITIGATED, FILLED = 1.0, 2.0, 3.0  # 0 = no gap in this place yet
STATUS = {1.0: "open", 2.0: "mitigated", 3.0: "filled"}


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """The gap born on this bar, if any, and how many of the last eight are open, mitigated, filled.

    reads    bar high, low, close
    state    ATR 3; high, low of the last bar and of the one before (4, NaN when fresh); gaps 8 x 4
    rule     a bar after the gap's birth that trades into it mitigates it; one that trades through it fills it
    """
    before, gaps = state[ATR_STATE:GAPS], state[GAPS:]
    high, low = bar[HIGH], bar[LOW]
    reach = atr(state[0:ATR_STATE], high, low, bar[CLOSE])

    for i in range(0, gaps.shape[0], 4):
        near, far = (low <= gaps[i + 2], low <= gaps[i + 1])
        if gaps[i] < 0.0:
            near, far = (high >= gaps[i + 1], high >= gaps[i + 2])
        if far and gaps[i] != 0.0:
            gaps[i + 3] = FILLED
        elif near and gaps[i + 3] == OPEN:
            gaps[i + 3] = MITIGATED

    out[:] = np.nan
    if reach == reach:
        direction = 0.0
        if low - before[2] >= MIN_ATR * reach:
            direction, bottom, top = 1.0, before[2], low
        elif before[3] - high >= MIN_ATR * reach:
            direction, bottom, top = -1.0, high, before[3]
        out[0] = direction
        if direction != 0.0:
            out[1] = (top - bottom) / reach
            out[2], out[3] = bottom, top
            for i in range(gaps.shape[0] - 4):
                gaps[i] = gaps[i + 4]
            gaps[-4], gaps[-3], gaps[-2], gaps[-1] = direction, bottom, top, OPEN
        out[4:7] = 0.0
        for i in range(0, gaps.shape[0], 4):
            if gaps[i] != 0.0:
                out[3 + int(gaps[i + 3])] += 1.0
    before[2], before[3] = before[0], before[1]
    before[0], before[1] = high, low


@dataclass(frozen=True, slots=True)
class Gap:
    """One remembered gap: side 1 long, -1 short; prices; status open, mitigated or filled."""

    direction: int
    low: float
    high: float
    status: str


def gaps(group_state: Floats) -> list[Gap]:
    """The last eight gaps, oldest first, from this family's slice of a state (`SIGNALS.group_state(state, "fvg")`)."""
    rows = group_state[GAPS:].reshape(KEPT, 4)
    return [Gap(int(d), float(low), float(high), STATUS[float(s)]) for d, low, high, s in rows if d != 0.0]


SOURCE = "ruling S2: three-candle gap of at least 0.3 ATR 14"
GROUP = FeatureGroup(
    "fvg",
    step,
    (
        *signal_columns(
            "fvg", "ict", 15, "ATR", "gap between the wicks of candles 1 and 3, at least 0.3 ATR", SOURCE,
            levels="edges of the gap",
        ),
        Column("fvg.open", "ict", "count of the last 8", 0.0, KEPT, 15, "gaps not traded into yet", SOURCE),
        Column("fvg.mitigated", "ict", "count of the last 8", 0.0, KEPT, 15, "gaps traded into, not through", SOURCE),
        Column("fvg.filled", "ict", "count of the last 8", 0.0, KEPT, 15, "gaps traded through", SOURCE),
    ),
    np.concatenate([np.zeros(ATR_STATE), np.full(4, np.nan), np.zeros(4 * KEPT)]),
)  # fmt: skip
