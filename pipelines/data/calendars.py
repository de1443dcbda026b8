"""Trading calendars: when a market is open, by the clock of its exchange, with summer time.

A calendar is a time zone, the hour its trading days begin, and the open intervals of its week. Crypto trades day and
night; forex and metals from Sunday 17:00 to Friday 17:00 New York; a US share from 9:30 to 16:00 New York. Where a
person states none, `infer` takes the calendar that the bars themselves show.

Holidays are not listed: a trading day without a single bar is taken as one (see `timeframes.Grid.missing_between`).
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from pipelines.contracts import DAY_S, Floats, Ints, JsonObject
from pipelines.errors import BadValues, UnknownName, UnreadableFile

DAY = int(DAY_S)
WEEK = 7 * DAY
NOON = DAY // 2
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FIRST_DATE, LAST_DATE = date(1927, 12, 26), date(2069, 12, 30)  # Mondays; daily shares go back so far
ZONES = ("UTC", "America/New_York", "Europe/London", "Europe/Berlin", "Asia/Tokyo", "Asia/Kolkata", "Australia/Sydney")


@dataclass(frozen=True, slots=True)
class Calendar:
    """Describe when a market is open.

    name       one of CALENDARS, the name of a file, or `learned`
    zone       IANA name of the clock all times are of
    day_start  second of the day at which a trading day begins (17:00 = 61,200); one that begins at noon or later is
               named after the next date, as in forex
    week       open intervals (from, until) in seconds since Monday 00:00, ascending and apart; the last may reach
               beyond Sunday midnight into the next week. Empty: open day and night
    """

    name: str
    zone: str = "UTC"
    day_start: int = 0
    week: tuple[tuple[int, int], ...] = ()

    @property
    def always_open(self) -> bool:
        """Return whether the market trades day and night, without a weekend."""
        return not self.week

    @property
    def plain(self) -> bool:
        """Return whether days are UTC's and never end: time divides into bars without any date."""
        return self.always_open and self.zone == "UTC" and self.day_start == 0

    def to_dict(self) -> JsonObject:
        """Return the calendar, JSON-ready: {name, zone, day_starts: 'HH:MM', week: ['Mon 09:30-Mon 16:00', …]}."""
        week = [f"{_moment(start)}-{_moment(end % WEEK)}" for start, end in self.week]
        return {"name": self.name, "zone": self.zone, "day_starts": _clock(self.day_start), "week": week}

    @classmethod
    def from_dict(cls, stored: JsonObject) -> "Calendar":
        """Return the calendar of `to_dict`. Raises BadValues naming the field."""
        try:
            name, zone, starts, week = (stored[key] for key in ("name", "zone", "day_starts", "week"))
        except KeyError as error:
            raise BadValues(f"calendar: no {error.args[0]!r}; wanted name, zone, day_starts, week") from error
        return cls(str(name), _zone(str(zone)), _second_of_day(str(starts)), _week([str(line) for line in week]))

    def describe(self) -> str:
        """Return the calendar in words, for reports."""
        if self.always_open:
            return f"{self.name}: day and night; days begin at {_clock(self.day_start)} {self.zone}"
        return f"{self.name}: {', '.join(_hours(self.week))} ({self.zone})"


def _hours(week: Sequence[tuple[int, int]]) -> list[str]:
    """Return intervals as text, days with the same hours as one: 'Mon to Fri 09:30-16:00'."""
    lines: list[str] = []
    hours = sorted({(start % DAY, end - start) for start, end in week})
    for opens, length in hours:
        days = [start // DAY for start, end in week if (start % DAY, end - start) == (opens, length)]
        run = f"{DAYS[days[0]]} to {DAYS[days[-1]]}" if len(days) > 2 and days[-1] - days[0] == len(days) - 1 else None
        if length <= DAY:
            named = run or ", ".join(DAYS[day] for day in days)
            lines.append(f"{named} {_clock(opens)}-{_clock((opens + length) % DAY)}")
        else:
            lines += [f"{_moment(day * DAY + opens)} to {_moment((day * DAY + opens + length) % WEEK)}" for day in days]
    return lines


@dataclass(frozen=True, slots=True)
class Days:
    """Hold the open intervals of a calendar as moments, (n,) each, epoch seconds, ascending; without a gap in a day's
    own trade an interval is one trading day.

    date  (n,) ordinal of the date a trading day is named after
    """

    opens: Floats
    closes: Floats
    date: Ints


@lru_cache(maxsize=16)
def trading_days(calendar: Calendar) -> Days:
    """Return every open interval of the calendar, cut where a trading day begins, from 1928 to 2069."""
    zone = ZoneInfo(calendar.zone)
    spans = calendar.week or ((calendar.day_start, calendar.day_start + WEEK),)
    cut = [part for start, end in spans for part in _cut(start, end, calendar.day_start)]
    weeks = np.arange(FIRST_DATE.toordinal(), LAST_DATE.toordinal(), 7)
    opens = np.concatenate([_instants(weeks, start, zone) for start, _ in cut])
    closes = np.concatenate([_instants(weeks, end, zone) for _, end in cut])
    named = np.concatenate([_dates(weeks, start, calendar.day_start) for start, _ in cut])
    order = np.argsort(opens, kind="stable")
    return Days(opens[order], closes[order], named[order])


def _cut(start: int, end: int, day_start: int) -> list[tuple[int, int]]:
    """Return an interval of seconds of the week as pieces that each lie in one trading day."""
    edges = [start]
    edge = (start - day_start) // DAY * DAY + DAY + day_start
    while edge < end:
        edges.append(edge)
        edge += DAY
    return list(zip(edges, [*edges[1:], end], strict=True))


def _instants(weeks: Ints, second: int, zone: ZoneInfo) -> Floats:
    """Return (w,) epoch seconds of a local second of the week in each week; `weeks` ordinals of Mondays."""
    days, rest = divmod(second, DAY)
    local = (weeks + days - date(1970, 1, 1).toordinal()) * float(DAY) + rest  # as if the clock were UTC
    if zone.key == "UTC":
        return np.asarray(local)
    return np.asarray(local - _offsets(tuple((weeks + days).tolist()), rest, zone.key))


@lru_cache(maxsize=64)
def _offsets(ordinals: tuple[int, ...], second: int, key: str) -> Floats:
    """Return (w,) seconds that the zone's clock is ahead of UTC at a local second of each date."""
    zone, at = ZoneInfo(key), timedelta(seconds=second)
    moments = (datetime.combine(date.fromordinal(one), time(tzinfo=zone)) + at for one in ordinals)
    return np.array([_offset(moment) for moment in moments])


def _offset(moment: datetime) -> float:
    """Return the seconds by which a moment's clock is ahead of UTC."""
    offset = moment.utcoffset()
    return offset.total_seconds() if offset is not None else 0.0


def _dates(weeks: Ints, second: int, day_start: int) -> Ints:
    """Return (w,) ordinals of the dates that the trading days holding this second of the week are named after."""
    begun = (second - day_start) // DAY  # days since Monday on which this trading day began
    return np.asarray(weeks + begun + (1 if day_start >= NOON else 0))


def _every_day(opens: str, closes: str, days: Sequence[str] = DAYS[:5]) -> tuple[tuple[int, int], ...]:
    """Return the week of a market that opens and closes on each of these days."""
    return _week([f"{day} {opens}-{closes}" for day in days])


def _clock(second: int) -> str:
    """Return a second of the day as HH:MM, with seconds where there are any."""
    minutes, seconds = divmod(second, 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}" + (f":{seconds:02d}" if seconds else "")


def _moment(second: int) -> str:
    """Return a second of the week as 'Mon 09:30'."""
    return f"{DAYS[second // DAY]} {_clock(second % DAY)}"


def _second_of_day(text: str) -> int:
    """Return HH:MM[:SS], or 24:00, as seconds. Raises BadValues."""
    found = re.fullmatch(r"(\d{1,2}):(\d{2})(?::(\d{2}))?", text.strip())
    second = int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3] or 0) if found else DAY + 1
    if found is None or int(found[2]) > 59 or int(found[3] or 0) > 59 or second > DAY:
        raise BadValues(f"calendar: {text!r} is no time of a day. Write HH:MM, from 00:00 to 24:00.")
    return second


def _zone(name: str) -> str:
    """Return the name of a time zone. Raises UnknownName."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UnknownName(f"no time zone {name!r}. Write its IANA name, e.g. America/New_York or UTC.") from error
    return name


_LINE = re.compile(r"(?P<first>[A-Za-z]{3,9})(?:\s*-\s*(?P<last>[A-Za-z]{3,9}))?\s+(?P<opens>[\d:]+)\s*(?:-|to)\s*"
                   r"(?:(?P<until>[A-Za-z]{3,9})\s+)?(?P<closes>[\d:]+)")  # fmt: skip


def _week(lines: Iterable[str]) -> tuple[tuple[int, int], ...]:
    """Return the open intervals of lines such as 'Mon-Fri 09:30-16:00' or 'Sun 17:00-Fri 17:00'. Raises BadValues."""
    spans: list[tuple[int, int]] = []
    for line in lines:
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise BadValues(
                f"calendar: cannot read {line!r}. Write one interval a line: 'Mon-Fri 09:30-16:00' or "
                "'Sun 17:00-Fri 17:00'."
            )
        first = _weekday(found["first"])
        last = _weekday(found["last"]) if found["last"] else first
        opens, closes = _second_of_day(found["opens"]), _second_of_day(found["closes"])
        for day in range(first, last + 1 if last >= first else last + 8):
            start = day % 7 * DAY + opens
            end = (_weekday(found["until"]) * DAY if found["until"] else day % 7 * DAY) + closes
            spans.append((start, end if end > start else end + (WEEK if found["until"] else DAY)))
    spans.sort()
    for (start, end), (after, _) in zip(spans, [*spans[1:], (spans[0][0] + WEEK, 0)] if spans else [], strict=True):
        if end > after:
            raise BadValues(
                f"calendar: {_moment(start)} to {_moment(end % WEEK)} and the interval from {_moment(after % WEEK)} "
                "overlap. Keep the intervals of a week apart."
            )
    return tuple(spans)


def _weekday(name: str) -> int:
    """Return 0 for Monday … 6 for Sunday. Raises BadValues."""
    short = name.strip().capitalize()[:3]
    if short not in DAYS:
        raise BadValues(f"calendar: {name!r} is no day of the week. Write Mon, Tue, …, Sun.")
    return DAYS.index(short)


NEW_YORK = "America/New_York"
FIVE_PM = 17 * 3600
ALWAYS = Calendar("24x7")
CALENDARS: dict[str, Calendar] = {
    "24x7": ALWAYS,
    "forex": Calendar("forex", NEW_YORK, FIVE_PM, _week(["Sun 17:00-Fri 17:00"])),
    "us-equity": Calendar("us-equity", NEW_YORK, 0, _every_day("09:30", "16:00")),
    # CME Globex: an hour's break at 17:00 New York each day
    "us-futures": Calendar("us-futures", NEW_YORK, FIVE_PM, _every_day("18:00", "17:00", ("Sun", *DAYS[:4]))),
}


def named_calendar(stated: str) -> Calendar:
    """Return the calendar a person states: one of CALENDARS, or a file.

    A file has one interval a line, `zone = America/New_York`, optional `day starts = 17:00`, comments after `#`.
    Raises UnknownName, UnreadableFile or BadValues naming the line.
    """
    if stated in CALENDARS:
        return CALENDARS[stated]
    path = Path(stated)
    if not path.is_file():
        raise UnknownName(
            f"no sessions {stated!r}; known: {', '.join(CALENDARS)}, or a file with lines such as "
            "'zone = America/New_York' and 'Mon-Fri 09:30-16:00'."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFile(f"{path}: not a text file of sessions ({error}).") from error
    return _parse(text, path)


def _parse(text: str, path: Path) -> Calendar:
    """Return the calendar of a file's text. Raises BadValues naming the line."""
    if text.lstrip().startswith("{"):
        try:
            return Calendar.from_dict(json.loads(text))
        except (json.JSONDecodeError, TypeError) as error:
            raise BadValues(f"{path}: not a calendar ({error}).") from error
    zone, day_start, lines = None, 0, []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.partition("#")[0].strip()
        key, given, value = line.partition("=")
        try:
            if not line:
                continue
            if not given:
                _week([line])
                lines.append(line)
            elif key.strip().lower() == "zone":
                zone = _zone(value.strip())
            elif key.strip().lower() in ("day starts", "day_starts"):
                day_start = _second_of_day(value.strip())
            else:
                raise BadValues(f"unknown {key.strip()!r}; known: zone, day starts")
        except (BadValues, UnknownName) as error:
            raise type(error)(f"{path}, line {number}: {error}") from error
    if zone is None:
        raise BadValues(f"{path}: no line 'zone = …'. Say whose clock the hours are of, e.g. zone = Europe/London.")
    try:
        return Calendar(path.name, zone, day_start, _week(lines))
    except BadValues as error:
        raise BadValues(f"{path}: {error}") from error


def weekly_clock(times: Floats, zone: ZoneInfo) -> Floats:
    """Return (n,) seconds since local Monday 00:00 of epoch seconds, by the zone's clock."""
    monday = 4.0 * DAY  # the epoch was a Thursday
    if zone.key == "UTC":
        return np.asarray((times - monday) % WEEK)
    hours, at = np.unique(np.floor(times / 3600.0), return_inverse=True)
    ahead = hours_ahead(hours, zone)
    return np.asarray((times + ahead[at] - monday) % WEEK)


def hours_ahead(hours: Floats, zone: ZoneInfo) -> Floats:
    """Return (n,) seconds the zone's clock is ahead of UTC in each of these ascending hours since the epoch."""
    if zone.key == "UTC":
        return np.zeros(len(hours))
    days, first = np.unique(np.floor(hours / 24.0), return_index=True)
    marks = np.array([_offset(datetime.fromtimestamp(day * DAY, tz=zone)) for day in [*days, days[-1] + 1]])
    last = np.r_[first[1:], len(hours)]
    ahead = np.repeat(marks[:-1], last - first)
    for i in np.flatnonzero(marks[1:] != marks[:-1]):  # a day on which the clock may change: hour by hour
        part = slice(first[i], last[i])
        ahead[part] = [_offset(datetime.fromtimestamp(hour * 3600.0, tz=zone)) for hour in hours[part]]
    return ahead
