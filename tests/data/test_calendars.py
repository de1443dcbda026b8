"""Calendars: the hours of exchanges by their own clock over both clock changes, and as a person writes them."""

import json
from datetime import date
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.market_hours import HOURS, at, calendar_of, sessions, utc_of

from pipelines.data.calendars import (
    CALENDARS,
    DAY,
    WEEK,
    ZONES,
    Calendar,
    named_calendar,
    trading_days,
    weekly_clock,
)
from pipelines.errors import BadValues, UnknownName, UnreadableFile

FIRST, LAST = date(2023, 9, 4), date(2024, 4, 28)  # both changes of New York, London and Sydney


@pytest.mark.parametrize("market", HOURS)
def test_sessions_are_those_of_the_exchanges_clock_over_both_clock_changes(market):
    expected, found = sessions(market, FIRST, LAST), trading_days(calendar_of(market))
    inside = (found.opens >= expected[0, 0]) & (found.opens <= expected[-1, 0])
    np.testing.assert_array_equal(found.opens[inside], expected[:, 0])
    np.testing.assert_array_equal(found.closes[inside], expected[:, 1])
    assert (np.diff(found.opens) > 0).all()
    assert (found.closes[:-1] <= found.opens[1:]).all()


@pytest.mark.parametrize(
    ("market", "opened", "named"),
    [
        ("forex", "2024-03-08 16:59", "2024-03-08"),
        ("forex", "2024-03-10 17:00", "2024-03-11"),  # Sunday evening is Monday
        ("us-futures", "2024-03-11 18:00", "2024-03-12"),
        ("us-equity", "2024-03-11 09:30", "2024-03-11"),
        ("over the clock change", "2024-03-09 20:00", "2024-03-10"),
    ],
)
def test_a_trading_day_is_named_after_its_date(market, opened, named):
    days, moment = trading_days(calendar_of(market)), pd.Timestamp(opened, tz="America/New_York").timestamp()
    i = np.searchsorted(days.opens, moment, "right") - 1
    assert days.opens[i] <= moment < days.closes[i]
    assert date.fromordinal(int(days.date[i])).isoformat() == named


def test_an_interval_over_days_is_cut_where_days_begin_and_not_where_it_opens():
    week = {"name": "t", "zone": "America/New_York", "day_starts": "17:00", "week": ["Mon 10:00-Wed 10:00"]}
    days = trading_days(Calendar.from_dict(week))
    first = int(np.searchsorted(days.opens, at("2024-03-11 10:00", "America/New_York")))
    found = [utc_of(days.opens[i]) + utc_of(days.closes[i])[-6:] for i in range(first, first + 4)]
    assert found == [
        "Mon 2024-03-11 14:00 21:00", "Mon 2024-03-11 21:00 21:00", "Tue 2024-03-12 21:00 14:00",
        "Mon 2024-03-18 14:00 21:00",
    ]  # fmt: skip


@pytest.mark.parametrize("zone", ZONES)
def test_the_weekly_clock_is_the_local_time_of_every_half_hour(zone):
    times = pd.date_range(FIRST, LAST, freq="30min", tz="UTC")
    local = times.tz_convert(zone)
    expected = local.dayofweek * DAY + local.hour * 3600 + local.minute * 60
    np.testing.assert_array_equal(weekly_clock(times.as_unit("s").asi8.astype(float), ZoneInfo(zone)), expected)


@st.composite
def weeks(draw):
    """Return open intervals of a week in quarters of an hour, apart."""
    edges = sorted(draw(st.sets(st.integers(0, WEEK // 900 - 1), min_size=2, max_size=12)))
    return tuple((edges[i] * 900, edges[i + 1] * 900) for i in range(0, len(edges) - 1, 2))


@settings(max_examples=60, deadline=None)
@given(week=weeks(), zone=st.sampled_from(ZONES), day_start=st.sampled_from([0, 8 * 3600, 61_200]))
def test_a_calendar_comes_back_from_what_is_stored_of_it(week, zone, day_start):
    calendar = Calendar("learned", zone, day_start, week)
    assert Calendar.from_dict(calendar.to_dict()) == calendar


def test_named_calendars_come_back_too_and_say_when_they_are_open():
    assert all(Calendar.from_dict(each.to_dict()) == each for each in CALENDARS.values())
    assert [each.describe() for each in CALENDARS.values()] == [
        "24x7: day and night; days begin at 00:00 UTC",
        "forex: Sun 17:00 to Fri 17:00 (America/New_York)",
        "us-equity: Mon to Fri 09:30-16:00 (America/New_York)",
        CALENDARS["us-futures"].describe(),
    ]
    assert "18:00-17:00" in CALENDARS["us-futures"].describe()
    assert [name for name, each in CALENDARS.items() if each.always_open] == ["24x7"]
    days = Calendar("days", "America/New_York", 61_200)
    assert (days.always_open, days.plain, CALENDARS["24x7"].plain) == (True, False, True)


# ---- as a person states them


def written(tmp_path, text):
    (tmp_path / "hours.txt").write_text(text)
    return str(tmp_path / "hours.txt")


@pytest.mark.parametrize("name", CALENDARS)
def test_a_calendar_is_named(name):
    assert named_calendar(name) is CALENDARS[name]


def test_a_file_has_an_interval_a_line(tmp_path):
    stated = written(
        tmp_path,
        "# the Tokyo exchange\nzone = Asia/Tokyo\n\nMon-Fri 09:00-11:30   # before lunch\nmon - fri 12:30 to 15:00\n",
    )
    found = named_calendar(stated)
    assert (found.name, found.zone, found.day_start) == ("hours.txt", "Asia/Tokyo", 0)
    assert found.week == calendar_of("tokyo").week


def test_a_file_says_where_days_begin_and_may_name_an_interval_over_days(tmp_path):
    found = named_calendar(written(tmp_path, "Zone = America/New_York\nDay starts = 17:00\nSun 17:00-Fri 17:00\n"))
    assert (found.week, found.day_start) == (CALENDARS["forex"].week, CALENDARS["forex"].day_start)


def test_without_an_interval_a_market_is_open_day_and_night_by_the_days_of_its_zone(tmp_path):
    found = named_calendar(written(tmp_path, "zone = America/New_York\nday starts = 17:00\n"))
    assert (found.always_open, found.plain) == (True, False)


def test_what_the_product_stores_of_a_calendar_can_be_stated_again(tmp_path):
    stored = json.dumps(CALENDARS["us-futures"].to_dict())
    assert named_calendar(written(tmp_path, stored)) == CALENDARS["us-futures"]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("zone = Mars/Olympus\n", UnknownName, r"hours\.txt, line 1: no time zone 'Mars/Olympus'.*IANA"),
        ("zone = UTC\n\nopen Mon\n", BadValues, r"hours\.txt, line 3: .*cannot read 'open Mon'\. Write one interval"),
        ("zone = UTC\nMon 9-17\n", BadValues, r"line 2: .*'9' is no time of a day"),
        ("zone = UTC\nMan 09:00-17:00\n", BadValues, r"line 2: .*'Man' is no day of the week"),
        ("zone = UTC\nMon 09:00-17:75\n", BadValues, r"line 2: .*'17:75' is no time of a day.*HH:MM"),
        ("zone = UTC\nMon 09:00-25:00\n", BadValues, r"line 2: .*'25:00' is no time of a day"),
        ("zone = UTC\nday starts = noon\n", BadValues, r"line 2: .*noon' is no time of a day"),
        ("zone = UTC\nholiday = 2024-12-25\n", BadValues, r"line 2: unknown 'holiday'; known: zone, day starts"),
        ("Mon-Fri 09:00-17:00\n", BadValues, r"hours\.txt: no line 'zone = …'.*Europe/London"),
        ("zone = UTC\nMon 09:00-17:00\nMon 16:00-18:00\n", BadValues, r"Mon 09:00 to Mon 17:00 .*Mon 16:00 overlap"),
        ("zone = UTC\nSun 12:00-Mon 12:00\nMon 09:00-17:00\n", BadValues, r"Sun 12:00 to Mon 12:00 .*overlap"),
        ('{"name": "x", "zone": "UTC"}', BadValues, "no 'day_starts'; wanted name, zone, day_starts, week"),
        ('{"name": "x", ', BadValues, r"hours\.txt: not a calendar"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_line_and_what_to_write(tmp_path, text, error, message):
    with pytest.raises(error, match=message):
        named_calendar(written(tmp_path, text))


def test_what_is_no_name_and_no_text_is_refused_with_the_known_names(tmp_path):
    with pytest.raises(UnknownName, match=r"no sessions 'nyse'; known: 24x7, forex, us-equity, us-futures, or a file"):
        named_calendar("nyse")
    (tmp_path / "hours.txt").write_bytes(b"\xff\xfe\x00\xd8zone")
    with pytest.raises(UnreadableFile, match=r"hours\.txt: not a text file"):
        named_calendar(str(tmp_path / "hours.txt"))
