"""Time of day, UTC, and session flags by the clocks of Tokyo, London and New York, with summer time."""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import DAY_S, Floats
from pipelines.data.bar_clock import LONDON_S, NEW_YORK_S, TOKYO_S, UTC_S
from pipelines.features.fold import Column, FeatureGroup

HOUR = 3600.0


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write sine and cosine of the time of day and three session flags; no state.

    arrays   float64: state (0,), clocked bar, book and context unread, out (5,)
    """
    angle = 2.0 * math.pi * bar[UTC_S] / DAY_S
    out[0] = math.sin(angle)
    out[1] = math.cos(angle)
    out[2] = 1.0 if 9.0 * HOUR <= bar[TOKYO_S] < 17.0 * HOUR else 0.0
    out[3] = 1.0 if 7.0 * HOUR <= bar[LONDON_S] < 16.0 * HOUR else 0.0
    out[4] = 1.0 if 8.0 * HOUR <= bar[NEW_YORK_S] < 16.0 * HOUR else 0.0


SESSION = "ruling: cash hours by the city's own clock"
GROUP = FeatureGroup(
    "clock",
    step,
    (
        Column("time_of_day_sin", "validator", "sine", -1.0, 1.0, 1, "sin(2 pi open time / day)", "definition"),
        Column("time_of_day_cos", "validator", "cosine", -1.0, 1.0, 1, "cos(2 pi open time / day)", "definition"),
        Column("session_asia", "validator", "flag", 0.0, 1.0, 1, "1 if 09:00 <= open < 17:00 in Tokyo", SESSION),
        Column("session_london", "validator", "flag", 0.0, 1.0, 1, "1 if 07:00 <= open < 16:00 in London", SESSION),
        Column("session_newyork", "validator", "flag", 0.0, 1.0, 1, "1 if 08:00 <= open < 16:00 in New York", SESSION),
    ),
    np.empty(0),
)
