"""Killzones: the hours in which displacements are looked for, by the clocks of London and New York with summer time."""

from pipelines.compiled import kernel
from pipelines.contracts import Floats
from pipelines.data.bar_clock import LONDON_S, NEW_YORK_S

OPENS_S, CLOSES_S = 7.0 * 3600.0, 10.0 * 3600.0  # 7:00 to 10:00 in either city; ICT convention


@kernel
def in_killzone(bar: Floats) -> float:
    """Return 1.0 if a clocked bar (CLOCKED_WIDTH,) opens in a killzone, else 0.0; NaN if its open time is."""
    london, new_york = bar[LONDON_S], bar[NEW_YORK_S]
    inside = OPENS_S <= london < CLOSES_S or OPENS_S <= new_york < CLOSES_S
    flag: float = (1.0 if inside else 0.0) + (london - london)
    return flag
