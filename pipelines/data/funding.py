"""The unit of funding rates. A rate is of a period that differs by venue and changes: here all are of eight hours.

So a market whose settlements came every 8 h and now come every 4 h has rates that can be compared, and the rate of an
hour is an eighth of one here. What is settled is that rate times the period over eight.
"""

import numpy as np

from pipelines.contracts import Floats

UNIT_HOURS = 8.0  # of the rates in context: the period of most venues, whose published rates stay as they are
PERIODS = (1.0, 2.0, 4.0, 8.0)  # hours between settlements that venues use
SETTLED_S = 60.0  # a rate stamped up to so many seconds after a funding time is the rate of that time
HOUR_S = 3600.0


def settlement_hours(times: Floats) -> Floats:
    """Return (n,) hours of the period each rate was settled for, by the spacing of the settlements; NaN = not shown.

    times  (n,) ascending epoch seconds of settlements, at whole hours with a jitter of up to SETTLED_S
    A rate is of the time since the settlement before it, the first one of the time until the next. A spacing that is
    longer than those on both sides is a settlement that is lacking, not a longer period. Rates that do not come at
    whole hours were announced, not settled: then none has a period.
    """
    unique, back = np.unique(times, return_inverse=True)
    hour = np.rint(unique / HOUR_S)
    on_hour = np.abs(unique - hour * HOUR_S) <= SETTLED_S
    spacing = np.diff(hour)
    on_grid = on_hour[:-1] & on_hour[1:] & (spacing > 0)
    if len(spacing) == 0 or on_grid.mean() < 0.9:
        return np.full(len(times), np.nan)
    own = np.where(on_grid, spacing, np.nan)
    own = np.concatenate([own[:1], own])
    before, after = np.concatenate([own[:1], own[:-1]]), np.concatenate([own[1:], own[-1:]])
    hours = np.where((own > before) & (own > after), after, own)
    return np.asarray(np.where(np.isin(hours, PERIODS), hours, np.nan)[back])


def per_unit(rates: Floats, hours: Floats) -> Floats:
    """Return (n,) rates of UNIT_HOURS from rates of `hours` (n,); NaN, not known, are of the unit."""
    return np.asarray(rates * (UNIT_HOURS / np.where(np.isnan(hours), UNIT_HOURS, hours)))
