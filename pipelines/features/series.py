"""The named series of a market, passed through: the newest value of each, and how far it moved when it last changed.

Which series a field holds, in which unit, is in the data version (`pipelines.data.series`); a field without one stays
missing, and the schema rule leaves its columns out.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX, SERIES_FIELDS
from pipelines.contracts import Floats
from pipelines.features.fold import Column, FeatureGroup

FIRST, COUNT = CONTEXT_INDEX[SERIES_FIELDS[0]], len(SERIES_FIELDS)
SOURCE = "ruling: a series of any unit is read as it is given"


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write value and change of each named series.

    arrays   float64: state (8,), bar and book unread, context (CONTEXT_WIDTH,), out (8,)
    state    of each series the value before it last changed, and the one since; NaN when fresh
    rule     the change is the newest value less the one before it last changed; missing until it changed once, and
             while the series is not known
    """
    for i in range(COUNT):
        value = context[FIRST + i]
        out[2 * i] = value
        out[2 * i + 1] = np.nan
        if value == value:
            if value != state[2 * i + 1]:
                state[2 * i] = state[2 * i + 1]
                state[2 * i + 1] = value
            out[2 * i + 1] = value - state[2 * i]


GROUP = FeatureGroup(
    "series",
    step,
    tuple(
        column
        for field in SERIES_FIELDS
        for column in (
            Column(field, "validator", "unit of the series", -np.inf, np.inf, 1, "newest value", SOURCE,
                   needs=f"context:{field}"),
            Column(f"{field}_change", "validator", "unit of the series", -np.inf, np.inf, 2,
                   "newest value less the one before it last changed", SOURCE, needs=f"context:{field}"),
        )
    ),
    np.full(2 * COUNT, np.nan),
)  # fmt: skip
SERIES_COLUMNS = tuple(column.name for column in GROUP.columns)
