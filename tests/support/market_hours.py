"""Hours of markets worked out one date at a time by the clock of their exchange: what grids are tested against."""

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np

from pipelines.data.calendars import CALENDARS, Calendar

WEEKDAYS, SUNDAY_TO_THURSDAY = range(5), (6, 0, 1, 2, 3)
HOURS = {  # market → zone; days of the week, opens, closes, days later
    "24x7": ("UTC", [(range(7), time(0), time(0), 1)]),
    "forex": ("America/New_York", [(SUNDAY_TO_THURSDAY, time(17), time(17), 1)]),
    "us-equity": ("America/New_York", [(WEEKDAYS, time(9, 30), time(16), 0)]),
    "us-futures": ("America/New_York", [(SUNDAY_TO_THURSDAY, time(18), time(17), 1)]),
    "london": ("Europe/London", [(WEEKDAYS, time(8), time(16, 30), 0)]),
    "tokyo": ("Asia/Tokyo", [(WEEKDAYS, time(9), time(11, 30), 0), (WEEKDAYS, time(12, 30), time(15), 0)]),
    "new york days": ("America/New_York", [(range(7), time(17), time(17), 1)]),  # one has 23 hours, one 25
    "over the clock change": ("America/New_York", [((5,), time(20), time(8), 1)]),  # the hour itself is traded
}
OTHER_WEEKS = {
    "london": ("00:00", ["Mon-Fri 08:00-16:30"]),
    "tokyo": ("00:00", ["Mon-Fri 09:00-11:30", "Mon-Fri 12:30-15:00"]),
    "new york days": ("17:00", []),
    "over the clock change": ("20:00", ["Sat 20:00-Sun 08:00"]),
}


def calendar_of(market: str) -> Calendar:
    """Return the calendar of a market of HOURS."""
    if market in CALENDARS:
        return CALENDARS[market]
    starts, week = OTHER_WEEKS[market]
    named = {"name": market, "zone": HOURS[market][0], "day_starts": starts, "week": []}
    from_lines = [part for line in week for part in _single_days(line)]
    return Calendar.from_dict(named | {"week": from_lines})


def _single_days(line: str) -> list[str]:
    """Return 'Mon-Fri 08:00-16:30' as one line a day."""
    days, hours = line.split(" ", 1)
    if days != "Mon-Fri":
        return [line]
    return [f"{day} {hours}" for day in ("Mon", "Tue", "Wed", "Thu", "Fri")]


def sessions(market: str, first: date, last: date) -> np.ndarray:
    """Return (n, 2) open and close, epoch seconds, of the sessions that open on these dates."""
    zone_name, hours = HOURS[market]
    zone, found = ZoneInfo(zone_name), []
    for ordinal in range(first.toordinal(), last.toordinal() + 1):
        day = date.fromordinal(ordinal)
        for weekdays, opens, closes, later in hours:
            if day.weekday() in weekdays:
                end = datetime.combine(day + timedelta(days=later), closes, tzinfo=zone)
                found.append((datetime.combine(day, opens, tzinfo=zone).timestamp(), end.timestamp()))
    return np.array(sorted(found))


def bars(market: str, step_s: float, first: date, last: date) -> np.ndarray:
    """Return (n, 2) open and close of the bars of these sessions, each cut from its open; the last may be shorter."""
    found = []
    for opens, closes in sessions(market, first, last).tolist():
        at = opens
        while at < closes:
            found.append((at, min(at + step_s, closes)))
            at += step_s
    return np.array(found)


def at(text: str, zone: str = "UTC") -> float:
    """Return the epoch seconds of a local time such as '2024-03-08 17:00'."""
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def utc_of(seconds: float) -> str:
    """Return epoch seconds as 'Mon 2024-01-01 09:30' in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%a %Y-%m-%d %H:%M}"
