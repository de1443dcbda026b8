"""The grid that recorded bars show: their timeframe, and when their market is open. For quality, ingest and live alike.

A calendar is taken by shares of history, so one quote on a weekend opens no weekend, and changed clocks, holidays and
outages close no hour. A person may state the calendar instead (`--sessions`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from pipelines.contracts import Bools, Floats, Ints
from pipelines.data.calendars import (
    ALWAYS,
    CALENDARS,
    DAY,
    WEEK,
    ZONES,
    Calendar,
    trading_days,
    weekly_clock,
)
from pipelines.data.proofs import still
from pipelines.data.schemas import epoch_seconds, in_order
from pipelines.data.timeframes import MONDAY_S, TIMEFRAMES, Grid, seconds
from pipelines.errors import BadTimes

EPOCH_DATE = date(1970, 1, 1).toordinal()
WHOLE = 0.99  # share of the bars a calendar must hold: the others are strays, such as a weekend quote
FILLED = 0.97  # share of a grid's bars that are there: over it no other calendar is looked for
GAIN = 0.05  # share by which a narrower calendar must be better filled than one that is open longer
LEAST_WEEKS = 2  # of history before hours of the week are learnt
OPEN_SHARE = 0.2  # of the usual number of bars: hours of the week with fewer are closed
HALF_HOUR = 1800
LONE_S = 2 * 3600  # an open spell of the week up to this long …
LONE_GAP_S = 6 * 3600  # … this far from any other is a stray
CLOSURES_SEEN = 2  # closures inside a history before a calendar is known, one where its edges are sharp
FILLED_IN = 0.05  # share of bars without a move or volume, from where on they may be the hours a market is shut
SHUT = 0.95  # share of the bars of those hours that do not move: over it they are shut


def infer_timeframe(open_times: Floats) -> str:
    """Return the name of the commonest spacing of `open_times` (epoch seconds, any order, copies ignored).

    Raises BadTimes when there are fewer than two times, or when the spacing is none of TIMEFRAMES.
    """
    times = np.unique(open_times[np.isfinite(open_times)])
    if len(times) < 2:
        raise BadTimes(f"{len(times)} distinct open_time(s) do not show a timeframe; give it by name, e.g. '1m'.")
    steps, counts = np.unique(np.diff(times), return_counts=True)
    step = float(steps[np.argmax(counts)])
    if 28 * DAY <= step <= 31 * DAY:
        return "1M"
    for name, length in TIMEFRAMES.items():
        if length == step:
            return name
    raise BadTimes(
        f"bars are mostly {step:g} s apart ({counts.max()} of {counts.sum()} steps), which is no known timeframe "
        f"({', '.join(f'{name} = {length} s' for name, length in TIMEFRAMES.items())}). Resample them first."
    )


def distinct(times: np.ndarray) -> np.ndarray:
    """Return times in order, each once. np.unique hashes, which takes ten times as long on times in order."""
    if (times[1:] > times[:-1]).all():
        return times
    if (times[1:] < times[:-1]).any():
        times = np.sort(times)
    return np.asarray(times[np.concatenate([[True], times[1:] != times[:-1]])])


def infer_grid(open_times: Floats, timeframe: str | None = None, calendar: Calendar | None = None) -> Grid:
    """Return the grid of recorded bars.

    open_times  (n,) epoch seconds, any order; those that are not finite are ignored
    timeframe   None: the commonest spacing
    calendar    as a person states it; None: the one that holds nearly all bars and is filled best, of CALENDARS and
                the hours of the week learnt from the bars; day and night while the bars show nothing else
    Raises      BadTimes as infer_timeframe
    """
    known = np.isfinite(open_times)
    times = distinct(open_times if known.all() else open_times[known])
    name = timeframe or infer_timeframe(times)
    if calendar is not None:
        return Grid(name, calendar, _phase(times, name) if calendar.plain else 0)
    always = Grid(name, ALWAYS, _phase(times, name))
    if len(times) < 2:
        return always
    best, filled = always, _fit(always, times)
    if filled >= FILLED:
        return always
    for grid in (*_named(name), *_local_days(times, name)):
        if grid.calendar.always_open or _is_known(grid, times):
            fit = _fit(grid, times)
            if fit > filled + (GAIN if best is always else 0.0):
                best, filled = grid, fit
    if filled >= FILLED:
        return best
    learnt = _learnt(times, name)
    if learnt is not None and _fit(learnt, times) > filled + GAIN:
        return learnt
    return best


def _is_known(grid: Grid, times: Floats) -> bool:
    """Return whether a history shows enough of a calendar's closures to take it: an outage looks like one of them."""
    seen = grid.closures(times[0], times[-1])
    if seen >= CLOSURES_SEEN or seen == 0:
        return seen > 0
    strays = np.flatnonzero(~grid.on_grid(times))
    apart = np.diff(times, prepend=-np.inf, append=np.inf)
    return bool((np.minimum(apart[:-1], apart[1:])[strays] >= LONE_GAP_S).all())


def _named(timeframe: str) -> list[Grid]:
    """Return the grids of the named calendars of markets that close."""
    return [Grid(timeframe, calendar) for calendar in CALENDARS.values() if not calendar.always_open]


def _local_days(times: Floats, timeframe: str) -> list[Grid]:
    """Return grids of a market that never closes and whose days begin by the clock of a city, one a zone but UTC."""
    if seconds(timeframe) <= HALF_HOUR * 2:
        return []
    grids = []
    for zone in ZONES[1:]:
        into, counts = np.unique(weekly_clock(times, ZoneInfo(zone)) % min(seconds(timeframe), DAY), return_counts=True)
        grids.append(Grid(timeframe, Calendar(ALWAYS.name, zone, int(into[np.argmax(counts)]))))
    return grids


def market_grid(
    frame: pd.DataFrame, calendar: Calendar | None = None, timeframe: str | None = None, no_trade: bool = False
) -> Grid:
    """Return the grid of a bars frame: that of `infer_grid`, or of the bars that move where the others are filled in.

    Flat bars without volume at hours in which nothing ever moves are a market that is shut (`proofs.still`): the grid
    has no bar there, and `quality.assess` leaves them out.

    frame      schemas.LAYOUT, any order
    calendar   as a person states it; no_trade: where no bar stands, nothing traded
    Raises     BadTimes as infer_timeframe
    """
    rows = in_order(frame)
    times = epoch_seconds(rows["open_time"])
    grid = infer_grid(times, timeframe, calendar)
    if calendar is None and grid.calendar.always_open:
        flat = still(rows)
        if flat.mean() >= FILLED_IN and not flat.all():
            moving = infer_grid(times[~flat], grid.timeframe)
            shut = ~moving.on_grid(times)
            if not moving.calendar.always_open and flat[shut].mean() >= SHUT:
                grid = moving
    return replace(grid, no_trade=no_trade)


def at_sessions(open_times: Floats, grid: Grid) -> Floats:
    """Return (n,) the opens of the bars that dates name, epoch seconds.

    open_times  (n,) midnights UTC of dates, NaN where there is none; a date without a session stays as it is, and so
                are all on a grid whose days begin at midnight UTC. A week or month may be named by any of its dates
                before its first session
    """
    if grid.fixed:
        return open_times
    days = trading_days(grid.calendar)
    ordinals = np.where(np.isfinite(open_times), open_times, 0.0) // DAY + EPOCH_DATE
    at = np.minimum(np.searchsorted(days.date, ordinals), len(days.date) - 1)
    opens = grid.holding(days.opens[at])
    named = np.isfinite(open_times) & np.isfinite(opens) & ((days.date[at] == ordinals) | (grid.step_s > DAY))
    return np.where(named, opens, open_times)


def _phase(times: Floats, timeframe: str) -> int:
    """Return the commonest number of seconds by which bars open after a multiple of their length."""
    if timeframe == "1M" or len(times) == 0:
        return 0
    origin = MONDAY_S if timeframe == "1w" else 0
    after = np.floor((times - origin) % seconds(timeframe))
    if (after == after[0]).all():
        return int(after[0])
    into, counts = np.unique(after, return_counts=True)
    return int(into[np.argmax(counts)])


def _fit(grid: Grid, times: Floats) -> float:
    """Return the share of the grid's bars between the first and the last time that are there; 0 if it is not theirs."""
    on = times[grid.on_grid(times)]
    if len(on) < max(2.0, WHOLE * len(times)):
        return 0.0
    return len(on) / (len(on) + int(grid.missing(on).sum()))


@dataclass(frozen=True)
class _Week:
    """Hold how often each slot of the week has bars, by the clock of one zone.

    share  (slots,) bars over those that could have been, 1 where every week has them all
    off    share of the bars that do not open where most do
    """

    zone: str
    phase_s: int
    slot_s: int
    share: Floats
    off: float

    @property
    def blur(self) -> float:
        """Return how far slots are neither open nor closed: less by the clock that the market itself follows."""
        usual = self.usual
        partial = np.minimum(self.share, np.maximum(usual - self.share, 0.0))
        return self.off + float(partial.sum() / max(self.share.sum(), 1e-12))

    @property
    def usual(self) -> float:
        """Return the share of a slot that is open."""
        there = self.share[self.share > 0]
        return float(np.median(there)) if len(there) else 0.0


def _learnt(times: Floats, timeframe: str) -> Grid | None:
    """Return the grid of the hours of the week that have bars; None under LEAST_WEEKS, or if none is closed."""
    if times[-1] - times[0] < LEAST_WEEKS * WEEK - DAY or TIMEFRAMES[timeframe] > DAY:
        return None
    week = min((_week_of(times, timeframe, zone) for zone in ZONES), key=lambda each: round(each.blur, 3))
    is_open = _without_strays(week.share > OPEN_SHARE * week.usual, week.slot_s)
    if is_open.all() or not is_open.any():
        return None
    spans = _runs(is_open, week)
    starts = {start % DAY for start, _ in spans}
    over_midnight = any(end > start // DAY * DAY + DAY for start, end in spans)
    day_start = min(starts) if len(starts) == 1 and (over_midnight or TIMEFRAMES[timeframe] == DAY) else 0
    return Grid(timeframe, Calendar("learned", week.zone, day_start, spans))


def _week_of(times: Floats, timeframe: str, zone: str) -> _Week:
    """Return how the bars fill the week by one clock."""
    step = TIMEFRAMES[timeframe]
    slot_s = max(step, HALF_HOUR)
    local = weekly_clock(times, ZoneInfo(zone))
    into, counts = np.unique(local % step, return_counts=True)
    phase = int(into[np.argmax(counts)]) if step >= HALF_HOUR else 0
    slots = np.floor((local - phase) % WEEK / slot_s).astype(np.int64)
    weeks = (times[-1] - times[0] + step) / WEEK
    share = np.bincount(slots, minlength=WEEK // slot_s) / (weeks * slot_s / step)
    off = 1.0 - counts.max() / len(times) if step >= HALF_HOUR else 0.0
    return _Week(zone, phase, slot_s, share, off)


def _without_strays(is_open: Bools, slot_s: int) -> Bools:
    """Return the open slots of a week without short spells far from any other."""
    kept = is_open.copy()
    n = len(is_open)
    starts = np.flatnonzero(is_open & ~np.roll(is_open, 1))
    ends = np.flatnonzero(is_open & ~np.roll(is_open, -1))
    if len(starts) < 2:
        return kept
    if ends[0] < starts[0]:
        ends = np.roll(ends, -1)
    lengths = (ends - starts) % n + 1
    before = (starts - np.roll(ends, 1)) % n - 1
    after = np.roll(before, -1)
    lone = (lengths * slot_s <= LONE_S) & (np.minimum(before, after) * slot_s >= LONE_GAP_S)
    if lone.mean() > 0.5:  # a market that opens for an hour or two a day is one
        return kept
    for start, length in zip(starts[lone], lengths[lone], strict=True):
        kept[np.arange(start, start + length) % n] = False
    return kept


def _runs(is_open: Bools, week: _Week) -> tuple[tuple[int, int], ...]:
    """Return the open slots of a week as intervals of seconds since Monday; one may reach into the next week."""
    n = len(is_open)
    starts: Ints = np.flatnonzero(is_open & ~np.roll(is_open, 1))
    spans = []
    for start in starts.tolist():
        length = 1
        while is_open[(start + length) % n]:
            length += 1
        first = start * week.slot_s + week.phase_s
        spans.append((first % WEEK, first % WEEK + length * week.slot_s))
    return tuple(sorted(spans))


def grid_of(manifest: Mapping[str, object], open_times: Floats) -> Grid:
    """Return the grid a data version names; of one from before release 0.9.0 that of its bars' opens, epoch seconds."""
    stored = manifest.get("grid")
    if isinstance(stored, Mapping):
        return Grid.from_dict(stored)
    return infer_grid(open_times, str(manifest["timeframe"]))
