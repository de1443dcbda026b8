"""Time of day and session flags from the bar's open time, UTC. Sessions are fixed UTC hours, no summer time."""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import DAY_S, OPEN_TIME, Floats
from pipelines.features.fold import Column, FeatureGroup

HOUR = 3600.0


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write sine and cosine of the time of day and three session flags; no state.

    arrays   float64: state (0,), bar (9,), book and context unread, out (5,)
    """
    second = bar[OPEN_TIME] % DAY_S
    angle = 2.0 * math.pi * second / DAY_S
    out[0] = math.sin(angle)
    out[1] = math.cos(angle)
    out[2] = 1.0 if second < 8.0 * HOUR else 0.0
    out[3] = 1.0 if 7.0 * HOUR <= second < 16.0 * HOUR else 0.0
    out[4] = 1.0 if 13.0 * HOUR <= second < 21.0 * HOUR else 0.0


SESSION = "ruling: cash hours in UTC, no summer time"
GROUP = FeatureGroup(
    "clock",
    step,
    (
        Column("time_of_day_sin", "validator", "sine", -1.0, 1.0, 1, "sin(2 pi open time / day)", "definition"),
        Column("time_of_day_cos", "validator", "cosine", -1.0, 1.0, 1, "cos(2 pi open time / day)", "definition"),
        Column("session_asia", "validator", "flag", 0.0, 1.0, 1, "1 if 00:00 <= open time < 08:00 UTC", SESSION),
        Column("session_london", "validator", "flag", 0.0, 1.0, 1, "1 if 07:00 <= open time < 16:00 UTC", SESSION),
        Column("session_newyork", "validator", "flag", 0.0, 1.0, 1, "1 if 13:00 <= open time < 21:00 UTC", SESSION),
    ),
    np.empty(0),
)
