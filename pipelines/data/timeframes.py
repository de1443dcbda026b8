"""Timeframes and the grid of a market's bars: where each opens, where it closes, and which are missing.

A finer series of bars becomes a coarser one, closed bars only, so nothing is read before it is known. This is the only
module that divides time into bars.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache
from math import nan

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import (
    BAR_WIDTH,
    CLOSE,
    HALF_SPREAD,
    HIGH,
    LOW,
    OPEN_TIME,
    TAKER_BUY,
    TRADES,
    VOLUME,
    Bools,
    Floats,
    Ints,
    JsonObject,
)
from pipelines.data.calendars import ALWAYS, DAY, WEEK, Calendar, Days, trading_days
from pipelines.errors import BadShape, BadTimes, UnknownName

# nominal seconds; a week is one of a calendar, a month 30 days for want of a length of its own
TIMEFRAMES = {
    "1m": 60, "3m": 180, "5m": 300, "15m": 900, "30m": 1800, "1h": 3600, "2h": 7200, "4h": 14_400, "6h": 21_600,
    "8h": 28_800, "12h": 43_200, "1d": DAY, "3d": 3 * DAY, "1w": WEEK, "1M": 30 * DAY,
}  # fmt: skip
DECISION_TIMEFRAMES = ("1m", "5m", "15m", "1h", "4h", "1d")  # the others are read, and resampled to one of these
MONDAY_S = 4 * DAY  # the epoch was a Thursday
HOLIDAY_DAYS = 5  # trading days in a row without a bar that are holidays; more are an outage
WEEKEND_S = DAY  # a closure at least so long …
EDGE_S = 2 * 3600  # … may begin so much earlier and end so much later: feeds keep hours of their own around it


def seconds(timeframe: str) -> int:
    """Return the nominal length of a timeframe in seconds. Raises UnknownName with the known names."""
    if timeframe not in TIMEFRAMES:
        raise UnknownName(f"no timeframe {timeframe!r}; known: {', '.join(TIMEFRAMES)}. Use one of these.")
    return TIMEFRAMES[timeframe]


def decision_timeframe(base: str, wanted: str) -> str:
    """Return the timeframe decisions are made on: `wanted`, or the finest one that bars of `base` can make.

    Raises BadTimes where bars of `base` are coarser than every decision timeframe.
    """
    step, lengths = seconds(base), {name: TIMEFRAMES[name] for name in DECISION_TIMEFRAMES}
    if lengths[wanted] >= step and lengths[wanted] % step == 0:
        return wanted
    for name, length in lengths.items():
        if length >= max(step, lengths[wanted]) and length % step == 0:
            return name
    raise BadTimes(f"bars of {base} are coarser than the coarsest bar decisions are made on (1d). Give daily bars.")


@dataclass(frozen=True)
class Grid:
    """Say where the bars of a market open and close.

    Time is a row of trading intervals, each cut into bars from its open; the last bar of an interval may be shorter
    than the others (15:30 to 16:00 of a US share in hourly bars). A bar of a day, a week or a month is one interval.
    Open times are epoch seconds UTC; no time is guessed: one that opens no bar is not on the grid.

    timeframe  one of TIMEFRAMES
    calendar   when the market is open
    phase_s    seconds by which bars open after a multiple of their length since the epoch; of a plain calendar alone
    no_trade   a bar that is not there had no trade, so none is missing; else it is lost
    """

    timeframe: str
    calendar: Calendar = ALWAYS
    phase_s: int = 0
    no_trade: bool = False

    def __post_init__(self) -> None:
        """Raise UnknownName for an unknown timeframe."""
        seconds(self.timeframe)

    @cached_property
    def step_s(self) -> int:
        """Return the nominal length of a bar in seconds."""
        return TIMEFRAMES[self.timeframe]

    @cached_property
    def fixed(self) -> bool:
        """Return whether all bars are of one length and none is ever left out."""
        return self.calendar.plain and self.timeframe != "1M"

    @cached_property
    def origin_s(self) -> int:
        """Return the open of some bar of a fixed grid."""
        return self.phase_s + (MONDAY_S if self.timeframe == "1w" else 0)

    @cached_property
    def _spans(self) -> "_Spans":
        """Return the trading intervals of a grid that is not fixed."""
        return _spans(self.timeframe, self.calendar)

    def slots(self, times: Floats) -> Ints:
        """Return (n,) the number of the bar that holds each time, dense; -1 where the market is shut."""
        if self.fixed:
            return np.floor((times - self.origin_s) / self.step_s).astype(np.int64)
        spans, at = self._spans, self._at(times)
        inside = (at >= 0) & (times < spans.closes[at])
        into = np.floor((times - spans.opens[at]) / spans.step_s).astype(np.int64)
        return np.where(inside, spans.before[at] + np.minimum(into, spans.bars[at] - 1), -1)

    def _at(self, times: Floats) -> Ints:
        """Return (n,) the interval that began last at each time; -1 before the first."""
        return np.searchsorted(self._spans.opens, times, "right") - 1

    def opens(self, slots: Ints) -> Floats:
        """Return (n,) the open time of each numbered bar."""
        if self.fixed:
            return np.asarray(slots * float(self.step_s) + self.origin_s, dtype=np.float64)
        spans = self._spans
        at = np.searchsorted(spans.before, slots, "right") - 1
        return np.asarray(spans.opens[at] + (slots - spans.before[at]) * spans.step_s)

    def holding(self, times: Floats) -> Floats:
        """Return (n,) the open of the bar that holds each time; NaN where the market is shut."""
        slots = self.slots(times)
        if self.fixed:
            return self.opens(slots)
        return np.where(slots >= 0, self.opens(np.maximum(slots, 0)), np.nan)

    def closes(self, opens: Floats) -> Floats:
        """Return (n,) the close of each bar by its open: when it can be known, never before.

        A time outside trading intervals closes with the nominal length after it.
        """
        opens = np.asarray(opens, dtype=np.float64)
        nominal = opens + self.step_s
        if self.fixed:
            return nominal
        spans, at = self._spans, self._at(opens)
        inside = (at >= 0) & (opens < spans.closes[at])
        ends = np.where(spans.bars[at] == 1, spans.closes[at], np.minimum(opens + spans.step_s, spans.closes[at]))
        return np.where(inside, ends, nominal)

    def around(self, moment: float) -> tuple[float, float]:
        """Return open and close of the bar that holds a moment; NaN where the market is shut."""
        if self.fixed:
            opened = moment - (moment - self.origin_s) % self.step_s
            return opened, opened + self.step_s
        spans = self._spans
        at = bisect_right(spans.openings, moment) - 1
        if at < 0 or not moment < spans.closings[at]:
            return nan, nan
        first, last = spans.openings[at], spans.closings[at]
        if spans.bars[at] == 1:
            return first, last
        opened = first + (moment - first) // spans.step_s * spans.step_s
        return opened, min(opened + spans.step_s, last)

    def next_close(self, opened: float) -> float:
        """Return the close of the bar that opens then, epoch seconds, as `closes` does."""
        nominal = float(opened) + self.step_s
        if self.fixed:
            return nominal
        spans = self._spans
        at = bisect_right(spans.openings, opened) - 1
        if at < 0 or not opened < spans.closings[at]:
            return nominal
        last = spans.closings[at]
        return last if spans.bars[at] == 1 else min(float(opened) + spans.step_s, last)

    def slot(self, opened: float) -> int:
        """Return the number of the bar that holds this time; -1 where the market is shut."""
        return int(self.slots(np.array([opened]))[0])

    def on_grid(self, opens: Floats) -> Bools:
        """Return (n,): whether each time opens a bar."""
        return np.asarray(self.holding(opens) == opens)

    def missing(self, opens: Floats) -> Ints:
        """Return (n-1,) how many bars are missing between each bar and the next; all ascending and on the grid.

        Of a market that closes, whole trading days without a bar are holidays, up to HOLIDAY_DAYS in a row. Where no
        bar means no trade, none is missing.
        """
        if self.no_trade:
            return np.zeros(max(len(opens) - 1, 0), dtype=np.int64)
        between = np.maximum(np.diff(self.slots(opens)) - 1, 0)
        if self.fixed or self.calendar.always_open:
            return np.asarray(between)
        at = self._at(opens)
        lost = between - self._holiday_bars(at) - self._at_the_edges(opens, at)
        return np.asarray(np.maximum(lost, 0))

    def _holiday_bars(self, at: Ints) -> Ints:
        """Return (n-1,) the bars of whole trading days without one between intervals of `at`, up to HOLIDAY_DAYS."""
        spans = self._spans
        before, after = spans.day[at[:-1]], spans.day[at[1:]]
        absent = after - before - 1
        first = np.minimum(np.searchsorted(spans.day, before + 1), len(spans.before) - 1)
        bars = spans.before[np.searchsorted(spans.day, after)] - spans.before[first]
        return np.where((absent > 0) & (absent <= HOLIDAY_DAYS), bars, 0)

    def _at_the_edges(self, opens: Floats, at: Ints) -> Ints:
        """Return (n-1,) the bars missing right before and after a long closure between a bar and the next.

        Up to EDGE_S on either side: gold opens an hour after forex for half of the year.
        """
        spans, limit = self._spans, EDGE_S // self.step_s
        if limit == 0:
            return np.zeros(max(len(opens) - 1, 0), dtype=np.int64)
        left, right = at[:-1], at[1:]
        closing, opening = spans.weekend[right] > spans.weekend[left], right > left
        slots = self.slots(opens)
        tail = spans.before[left] + spans.bars[left] - 1 - slots[:-1]
        head = slots[1:] - spans.before[right]
        follows = np.minimum(left + 1, len(spans.opens) - 1)
        long_after = opening & (spans.opens[follows] - spans.closes[left] >= WEEKEND_S)
        long_before = opening & (spans.opens[right] - spans.closes[right - 1] >= WEEKEND_S)
        near = np.where(long_after & (tail <= limit), tail, 0) + np.where(long_before & (head <= limit), head, 0)
        return np.where(closing, near, 0)

    def closures(self, first: float, last: float) -> int:
        """Return how often the market closes between two moments, epoch seconds."""
        if self.fixed:
            return 0
        spans = self._spans
        shut = (spans.opens[1:] > spans.closes[:-1]) & (spans.closes[:-1] > first) & (spans.opens[1:] < last)
        return int(shut.sum())

    def overdue(self, opened: float, moment: float) -> int:
        """Return how many bars after the one that opened then should have closed by a moment, as `missing` counts."""
        if self.no_trade or moment <= opened:
            return 0
        if self.fixed:
            return max(int((moment - self.next_close(opened)) // self.step_s), 0)
        newest = self.closed_by(np.array([moment]))[0]  # the bar that is open, or opens next
        return self.missing_between(opened, float(self.opens(np.array([newest]))[0]))

    def missing_between(self, before: float, after: float) -> int:
        """Return how many bars are missing between one bar and a later one, both by their opens."""
        if after == self.next_close(before):
            return 0
        return int(self.missing(np.array([before, after]))[0])

    def closed_by(self, moments: Floats) -> Ints:
        """Return (n,) how many bars have closed by each moment, epoch seconds, whether or not they came."""
        return np.asarray(np.floor(self._position(moments) + 1e-9).astype(np.int64))

    def _position(self, moments: Floats) -> Floats:
        """Return (n,) bars that have closed by each moment, with the part of the open one that has passed."""
        moments = np.asarray(moments, dtype=np.float64)
        if self.fixed:
            return np.asarray((moments - self.origin_s) / self.step_s)
        spans, at = self._spans, np.maximum(self._at(moments), 0)
        into = np.clip(moments - spans.opens[at], 0.0, None)
        length = np.where(spans.bars[at] == 1, spans.closes[at] - spans.opens[at], spans.step_s)
        last = (spans.bars[at] - 1) * length
        rest = np.maximum(spans.closes[at] - spans.opens[at] - last, 1.0)  # the last bar may be shorter
        inside = np.where(into < last, into / length, spans.bars[at] - 1 + np.minimum((into - last) / rest, 1.0))
        return np.asarray(spans.before[at] + inside)

    def expected(self, after: Floats, until: Floats) -> Ints:
        """Return (n,) how many bars close in (after, until], epoch seconds, whether or not they came."""
        return np.asarray(self.closed_by(until) - self.closed_by(after))

    def age_bars(self, close: float, moment: float) -> float:
        """Return how many bars of trading time have passed since a close; negative before it."""
        if self.fixed:
            return (moment - close) / self.step_s
        then, now = self._position(np.array([close, moment]))
        return float(now - then) if moment >= close else (moment - close) / self.step_s

    def deadline(self, closes: Floats, bars: int) -> Floats:
        """Return (n,) when the `bars`-th bar after each close closes, epoch seconds."""
        if self.fixed:
            return np.asarray(np.asarray(closes, dtype=np.float64) + bars * float(self.step_s))
        return self.closes(self.opens(self.closed_by(closes) + bars - 1))

    def bars_of(self, period_s: float) -> int:
        """Return how many bars a period of seconds takes, at least one."""
        return max(1, round(period_s / self.step_s))

    def span_s(self, bars: int) -> float:
        """Return the longest time that so many bars in a row take, closures between them included, in seconds."""
        if self.fixed:
            return float(bars * self.step_s)
        spans = self._spans
        middle = len(spans.opens) // 2
        last = int(np.searchsorted(spans.opens, spans.opens[middle] + 400 * DAY))  # closures repeat within a year
        firsts = spans.closes[middle:last]
        return float((self.deadline(firsts, bars) - firsts).max())

    def at(self, timeframe: str) -> "Grid":
        """Return the grid of another timeframe of the same market; a phase stays where it divides the bar."""
        step = seconds(timeframe)
        keeps = self.phase_s if self.fixed and step <= DAY else 0
        return Grid(timeframe, self.calendar, keeps % step, self.no_trade)

    @property
    def mean_s(self) -> float:
        """Return the seconds a bar takes on average, closures included."""
        if self.fixed:
            return float(self.step_s)
        spans = self._spans
        first = len(spans.opens) // 2
        last = int(np.searchsorted(spans.opens, spans.opens[first] + 364 * DAY))
        return float((spans.opens[last] - spans.opens[first]) / (spans.before[last] - spans.before[first]))

    def to_dict(self) -> JsonObject:
        """Return the grid, JSON-ready."""
        made: JsonObject = {
            "timeframe": self.timeframe, "phase_s": self.phase_s, "calendar": self.calendar.to_dict(),
        }  # fmt: skip
        return made | ({"no_bar": "no-trade"} if self.no_trade else {})

    @classmethod
    def from_dict(cls, stored: Mapping[str, object]) -> "Grid":
        """Return the grid of `to_dict`."""
        calendar, phase = stored["calendar"], stored["phase_s"]
        if not isinstance(calendar, dict) or not isinstance(phase, int):
            raise BadShape(f"grid: {stored!r} is no grid; wanted timeframe, phase_s, calendar")
        no_trade = stored.get("no_bar") == "no-trade"
        return cls(str(stored["timeframe"]), Calendar.from_dict(calendar), phase, no_trade)

    def describe(self) -> str:
        """Return the grid in words: '1h bars, us-equity: Mon 09:30 to …'."""
        phase = f", {self.phase_s} s after the full {self.timeframe}" if self.phase_s else ""
        silent = "; where no bar stands, nothing traded" if self.no_trade else ""
        return f"{self.timeframe} bars{phase}; {self.calendar.describe()}{silent}"


@dataclass(frozen=True)
class _Spans:
    """Hold trading intervals (n,), ascending: their opens and closes, bars in each, and bars before each.

    day      (n,) number of the trading day, dense; weekend (n,) how many long closures came before
    """

    opens: Floats
    closes: Floats
    bars: Ints
    before: Ints
    day: Ints
    weekend: Ints
    step_s: float

    @cached_property
    def openings(self) -> list[float]:
        """Return `opens` as plain numbers, which one look-up reads faster."""
        return list(map(float, self.opens))

    @cached_property
    def closings(self) -> list[float]:
        """Return `closes` as plain numbers."""
        return list(map(float, self.closes))


@lru_cache(maxsize=16)
def _spans(timeframe: str, calendar: Calendar) -> _Spans:
    """Return the trading intervals whose bars have this timeframe."""
    days, step = trading_days(calendar), float(TIMEFRAMES[timeframe])
    opens, closes, dates = days.opens, days.closes, days.date
    if step >= DAY:  # one bar from the first open of the period to its last close
        period = _periods(days, timeframe)
        first = np.r_[True, np.diff(period) != 0]
        last = np.r_[np.flatnonzero(first)[1:] - 1, len(closes) - 1]
        opens, closes, dates = opens[first], closes[last], period[first]
        bars = np.ones(len(opens), dtype=np.int64)
    else:
        bars = np.ceil((closes - opens) / step).astype(np.int64)
    day = np.cumsum(np.r_[False, np.diff(dates) != 0]).astype(np.int64)
    weekend = np.cumsum(np.r_[False, opens[1:] - closes[:-1] >= WEEKEND_S]).astype(np.int64)
    return _Spans(opens, closes, bars, np.cumsum(bars) - bars, day, weekend, step)


def _periods(days: Days, timeframe: str) -> Ints:
    """Return (n,) the number of the day, week (from Monday) or month each interval belongs to."""
    if timeframe == "1d":
        return days.date
    if timeframe == "1w":
        return np.asarray((days.date - 1) // 7)  # 0001-01-01, ordinal 1, was a Monday
    named = (date.fromordinal(ordinal) for ordinal in days.date.tolist())
    return np.array([day.year * 12 + day.month for day in named])


@kernel
def _resample(bars: Floats, starts: Floats, ends: Floats, seen_until: float, out: Floats) -> int:
    """Fill out (n, 9) from the top with the bars that open at `starts`; return how many are closed at `seen_until`.

    bars (n, 9), out, starts and ends (n,) float64: open and close of the coarser bar that holds each base bar, epoch
    seconds; seen_until in epoch seconds, float64
    """
    made, quoted, total = -1, 0, 0.0  # base bars with a half spread in the newest bar, and their sum
    for i in range(bars.shape[0]):
        if ends[i] > seen_until:
            break
        if made < 0 or starts[i] != out[made, OPEN_TIME]:
            made += 1
            out[made, :] = bars[i, :]
            out[made, OPEN_TIME] = starts[i]
            known = bars[i, HALF_SPREAD] == bars[i, HALF_SPREAD]
            quoted, total = (1, bars[i, HALF_SPREAD]) if known else (0, 0.0)
            continue
        out[made, HIGH] = max(out[made, HIGH], bars[i, HIGH])
        out[made, LOW] = min(out[made, LOW], bars[i, LOW])
        out[made, CLOSE] = bars[i, CLOSE]
        out[made, VOLUME] += bars[i, VOLUME]
        out[made, TRADES] += bars[i, TRADES]
        out[made, TAKER_BUY] += bars[i, TAKER_BUY]
        if bars[i, HALF_SPREAD] == bars[i, HALF_SPREAD]:
            quoted, total = quoted + 1, total + bars[i, HALF_SPREAD]
            out[made, HALF_SPREAD] = total / quoted
    return made + 1


def resample(matrix: Floats, base: Grid, target: Grid) -> Floats:
    """Return bars of the `base` grid as bars of the `target` grid: first, max, min, last, sums, mean spread.

    matrix   (n, 9) in BAR_FIELDS order, ascending unique open times (epoch seconds UTC), finite prices
    Returns  (m, 9), stamped with the open time of the target bar. A bar is returned only when a base bar at or past
             its end is over. Where base rows are missing inside a bar, it is made of the others; a target bar without
             any base row is absent.
             A sum over a NaN (volume, trades, taker_buy_volume) is NaN: part of it is unknown. half_spread is the
             mean of those recorded inside the bar, NaN where none was.
    Raises   BadShape if the matrix is not (n, 9); BadTimes if times do not ascend, a base bar lies outside the target
             grid, or reaches over the end of a target bar
    """
    if matrix.ndim != 2 or matrix.shape[1] != BAR_WIDTH:
        raise BadShape(f"bars have shape {matrix.shape}, expected (n, {BAR_WIDTH}). Use schemas.to_matrix(frame).")
    if target.step_s < base.step_s:
        raise BadTimes(
            f"cannot make bars of {target.timeframe} from bars of {base.timeframe}: the target must be a whole "
            f"multiple of the base. Read a finer source or choose a coarser timeframe."
        )
    if len(matrix) == 0:
        return np.empty((0, BAR_WIDTH))
    times = matrix[:, OPEN_TIME]
    ascending = times[1:] > times[:-1]  # False for NaN too
    if not ascending.all() or not np.isfinite(times[0]):
        at = int(np.argmin(ascending)) + 1 if not ascending.all() else 0
        raise BadTimes(
            f"open_time does not ascend at row {at} of {len(times)}. Clean the bars with quality.assess first."
        )
    starts = target.holding(times)
    ends, closes = target.closes(starts), base.closes(times)
    within = closes <= ends  # False for a bar outside trading hours too
    if not within.all():
        at = int(np.argmin(within))
        raise BadTimes(
            f"row {at} of {len(times)}, open_time {times[at]:.0f}: a {base.timeframe} bar does not fit into "
            f"{target.describe()}. Give bars whose length divides {target.timeframe}, or state --sessions."
        )
    out = np.empty_like(matrix, order="C")
    flat = (np.ascontiguousarray(part, dtype=np.float64) for part in (matrix, starts, ends))
    made = _resample(*flat, float(closes[-1]), out)
    return out[:made].copy()
