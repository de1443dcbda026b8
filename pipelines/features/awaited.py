"""Validator features whose producer does not exist yet. They are missing until it does; models leave them out."""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.features.fold import AWAITS, Column, StepFamily


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Three missing values; no state."""
    out[:] = np.nan


INF = math.inf
FAMILY = StepFamily(
    "awaited",
    step,
    tuple(
        Column(name, "validator", unit, low, high, 1, formula, f"{AWAITS}: {producer}")
        for name, unit, low, high, formula, producer in (
            ("unicorn_rating_score", "stars", 0.0, 21.0, "stars of the unicorn rating", "S14"),
            ("amt_phase_score", "score", -1.0, 1.0, "auction phase, signed by its bias", "S12"),
            ("crt_level_score", "ATR", -INF, INF, "distance to the last higher-timeframe candle's middle", "S13"),
        )
    ),
    np.empty(0),
)
