"""What a bar's clock shows, next to the bar itself, so that compiled folds read exchange hours and candles as columns.

A clocked bar is a bar of contracts.BAR_FIELDS followed by CLOCK_FIELDS, all float64: seconds of the day at its open by
four clocks, with summer time, and for each of FRAMES the open and the close of the candle that holds it, epoch seconds,
by the market's own days. NaN where the market is shut by its calendar, and where the open is no time.
"""

from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np

from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Floats
from pipelines.data.calendars import DAY, hours_ahead, weekly_clock
from pipelines.data.timeframes import TIMEFRAMES, Grid

CLOCKS = ("UTC", "America/New_York", "Europe/London", "Asia/Tokyo")
FRAMES = ("5m", "15m", "1h", "4h", "1d")
FRAME_SECONDS = np.array([float(TIMEFRAMES[name]) for name in FRAMES])
CLOCK_FIELDS = (
    *(f"second of the day in {zone}" for zone in CLOCKS),
    *(f"{name} candle {edge}" for edge in ("opens", "closes") for name in FRAMES),
)
UTC_S, NEW_YORK_S, LONDON_S, TOKYO_S = range(BAR_WIDTH, BAR_WIDTH + len(CLOCKS))
FRAME_OPENS = BAR_WIDTH + len(CLOCKS)  # then one column a frame
FRAME_CLOSES = FRAME_OPENS + len(FRAMES)
CLOCKED_WIDTH = BAR_WIDTH + len(CLOCK_FIELDS)
ALWAYS_OPEN = Grid("1m")  # of bars whose market nobody names: day and night, days of UTC


def clocked(bars: Floats, grid: Grid = ALWAYS_OPEN) -> Floats:
    """Return bars (n, 9) as clocked bars (n, CLOCKED_WIDTH) of a market with this grid."""
    opens = bars[:, OPEN_TIME]
    out = np.empty((len(bars), CLOCKED_WIDTH))
    out[:, :BAR_WIDTH] = bars
    there = np.isfinite(opens)
    if not there.all() or len(bars) == 0:
        out[:, BAR_WIDTH:] = np.nan
        if there.any():
            out[there, BAR_WIDTH:] = clocked(bars[there], grid)[:, BAR_WIDTH:]
        return out
    for i, zone in enumerate(CLOCKS):
        out[:, UTC_S + i] = weekly_clock(opens, ZoneInfo(zone)) % DAY
    for i, frame in enumerate(_frames(grid)):
        out[:, FRAME_OPENS + i] = frame.holding(opens)
        out[:, FRAME_CLOSES + i] = frame.closes(out[:, FRAME_OPENS + i])
    return out


def clocked_bar(bar: Floats, grid: Grid = ALWAYS_OPEN) -> Floats:
    """Return one bar (9,) as a clocked bar (CLOCKED_WIDTH,), the same as the row of `clocked`, for the live path."""
    opened = float(bar[OPEN_TIME])
    if not np.isfinite(opened):
        return np.asarray(clocked(bar[np.newaxis], grid)[0])
    return np.concatenate([bar, _clock(grid, opened)])


@lru_cache(maxsize=64)
def _clock(grid: Grid, opened: float) -> Floats:
    """Return CLOCK_FIELDS of a bar; symbols of one market that close together read them once."""
    second = opened % DAY
    seconds = [(second + ahead) % DAY for ahead in _ahead(int(opened // 3600))]
    opens, closes = zip(*(frame.around(opened) for frame in _frames(grid)), strict=True)
    return np.array([*seconds, *opens, *closes])


@lru_cache(maxsize=64)
def _frames(grid: Grid) -> tuple[Grid, ...]:
    """Return the grids of FRAMES in this market."""
    return tuple(grid.at(name) for name in FRAMES)


@lru_cache(maxsize=4096)
def _ahead(hour: int) -> tuple[float, ...]:
    """Return the seconds that each of CLOCKS is ahead of UTC in an hour since the epoch."""
    return tuple(float(hours_ahead(np.array([float(hour)]), ZoneInfo(zone))[0]) for zone in CLOCKS)
