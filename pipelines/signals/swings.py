"""Swings: bars that stand out among five on each side, hence known five bars after they stand."""

from pipelines.compiled import kernel
from pipelines.contracts import Floats

BARS_PER_SIDE = 5  # bars on each side of a swing
WIDTH = 2 * BARS_PER_SIDE + 1


@kernel
def is_swing(values: Floats, i: int, side: float) -> bool:
    """Return whether values[i] stands out among the five before it and the five after it; of equals the first does.

    values  (w,) float64 in time order, at least five of them on both sides of i
    side    1.0: as the highest, -1.0: as the lowest.  A NaN among the eleven: False.
    """
    here = side * values[i]
    stands = True
    for k in range(1, BARS_PER_SIDE + 1):
        stands = stands and side * values[i - k] < here and side * values[i + k] <= here
    return stands
