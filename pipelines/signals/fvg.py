"""S2 fair-value gap: three candles whose outer wicks leave a gap, known at the third close; its life after that.

Long: low of the third candle above the high of the first. Only gaps of at least `MIN_ATR` count. A gap is open
until price trades into it (mitigated) or through it (filled).
"""

from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, SIGNAL_PARTS, STRENGTH, signal_columns

MIN_ATR = 0.3  # least gap, in ATR 14
MAX_GAPS = 8  # the newest gaps, oldest first
GAP_FIELDS = ("direction", "low", "high", "status")
SIDE, BOTTOM, TOP, STATUS_AT = range(len(GAP_FIELDS))
GAP = len(GAP_FIELDS)
(ATR, BEFORE, GAPS), FRESH = lay_out(atr=zeros(ATR_STATE), before=window(4), gaps=zeros(GAP * MAX_GAPS))
OPEN, MITIGATED, FILLED = 1.0, 2.0, 3.0  # 0 = no gap in this place yet
STATUS = {1.0: "open", 2.0: "mitigated", 3.0: "filled"}
COUNTS = slice(len(SIGNAL_PARTS), len(SIGNAL_PARTS) + len(STATUS))  # how many gaps have each status, in its order


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write the gap that begins on this bar, if any, and how many of the last eight are open, mitigated, filled.

    arrays   float64: state (39,), bar (9,), book and context unread, out (7,)
    reads    bar high, low, close
    state    ATR 3; high, low of the last bar and of the one before (4, NaN when fresh); gaps 8 x 4
    rule     a bar after the gap's first that trades into it mitigates it; one that trades through it fills it
    """
    before, gaps = state[BEFORE], state[GAPS]
    high, low = bar[HIGH], bar[LOW]
    reach = atr(state[ATR], high, low, bar[CLOSE])

    for i in range(0, gaps.shape[0], GAP):
        near, far = (low <= gaps[i + TOP], low <= gaps[i + BOTTOM])
        if gaps[i + SIDE] < 0.0:
            near, far = (high >= gaps[i + BOTTOM], high >= gaps[i + TOP])
        if far and gaps[i + SIDE] != 0.0:
            gaps[i + STATUS_AT] = FILLED
        elif near and gaps[i + STATUS_AT] == OPEN:
            gaps[i + STATUS_AT] = MITIGATED

    out[:] = np.nan
    if reach == reach:
        direction = 0.0
        if low - before[2] >= MIN_ATR * reach:
            direction, bottom, top = 1.0, before[2], low
        elif before[3] - high >= MIN_ATR * reach:
            direction, bottom, top = -1.0, high, before[3]
        out[DIRECTION] = direction
        if direction != 0.0:
            out[STRENGTH] = (top - bottom) / reach
            out[LOW_LEVEL], out[HIGH_LEVEL] = bottom, top
            for i in range(gaps.shape[0] - GAP):
                gaps[i] = gaps[i + GAP]
            gaps[-4], gaps[-3], gaps[-2], gaps[-1] = direction, bottom, top, OPEN
        out[COUNTS] = 0.0
        for i in range(0, gaps.shape[0], GAP):
            if gaps[i + SIDE] != 0.0:
                out[COUNTS][int(gaps[i + STATUS_AT]) - 1] += 1.0
    before[2], before[3] = before[0], before[1]
    before[0], before[1] = high, low


@dataclass(frozen=True, slots=True)
class Gap:
    """Hold one gap: side 1 long, -1 short; prices in quote currency; status open, mitigated or filled."""

    direction: int
    low: float
    high: float
    status: str


def gaps(group_state: Floats) -> list[Gap]:
    """Return the last eight gaps, oldest first, from this group's slice: `SIGNALS.group_state(state, "fvg")`."""
    rows = group_state[GAPS].reshape(MAX_GAPS, GAP)
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
        Column("fvg.open", "ict", "count of the last 8", 0.0, MAX_GAPS, 15, "gaps not traded into yet", SOURCE),
        Column("fvg.mitigated", "ict", "count of the last 8", 0.0, MAX_GAPS, 15, "traded into, not through", SOURCE),
        Column("fvg.filled", "ict", "count of the last 8", 0.0, MAX_GAPS, 15, "gaps traded through", SOURCE),
    ),
    FRESH,
)  # fmt: skip
