"""The grid that recorded bars show: their calendar through strays, holidays, outages and both clock changes."""

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.market_hours import at, calendar_of, sessions, utc_of
from support.market_hours import bars as bars_of

from pipelines.data.calendars import CALENDARS, NEW_YORK
from pipelines.data.readers.files import read
from pipelines.data.schemas import epoch_seconds
from pipelines.data.sessions import at_sessions, grid_of, infer_grid
from pipelines.data.timeframes import Grid
from pipelines.errors import BadTimes, UnknownName

GOLD = Path(__file__).parents[2] / "../shared/data/forex/oanda_xauusd_1h_to_2015h1.parquet"
FIRST, LAST = date(2024, 1, 29), date(2024, 5, 3)
CHANGE = at("2024-03-10 07:00")  # New York's clock goes forward


def seconds_of(index):
    return index.as_unit("s").asi8.astype(float)


def every(freq, first="2024-01-01", last="2024-05-01", zone="UTC", hours=None):
    """Return epoch seconds at this spacing on the zone's clock; `hours`: weekdays alone, with these hours."""
    index = pd.date_range(first, last, freq=freq, tz=zone, inclusive="left")
    if hours is not None:
        index = index[(index.weekday < 5) & np.isin(index.hour, hours)]
    return seconds_of(index.tz_convert("UTC"))


def opens_of(market, step_s=3600.0, first=FIRST, last=LAST):
    return bars_of(market, step_s, first, last)[:, 0]


def missing(grid, opens):
    on = opens[grid.on_grid(opens)]
    return int(grid.missing(on).sum())


def weekend_quote(opens):
    """Return the bars with one more on a Saturday, 10:00 UTC, in their middle."""
    friday = opens[np.flatnonzero(np.diff(opens) > 40 * 3600)[0]]
    saturday = (friday // 86_400 + 1) * 86_400 + 10 * 3600
    assert utc_of(saturday).startswith("Sat")
    return np.sort(np.r_[opens, saturday])


@pytest.mark.parametrize("market", ["forex", "us-equity", "us-futures"])
@pytest.mark.parametrize("step_s", [900.0, 3600.0, 14_400.0])
def test_a_market_of_the_catalogue_is_known_by_its_bars(market, step_s):
    opens = opens_of(market, step_s)
    grid = infer_grid(np.random.default_rng(1).permutation(np.r_[opens, opens[:9], np.nan]))
    assert (grid.calendar.name, grid.phase_s) == (market, 0)
    assert missing(grid, opens) == 0
    assert grid.on_grid(opens).all()


@pytest.mark.parametrize(("market", "day"), [("forex", "22:00"), ("us-futures", "22:00")])
def test_days_of_a_market_of_the_catalogue_are_known_at_its_close(market, day):
    grid = infer_grid(sessions(market, FIRST, LAST)[:, 0])
    assert (grid.timeframe, grid.calendar.name) == ("1d", market)
    opened = sessions(market, FIRST, LAST)[1, 0]  # a Wednesday's in winter
    assert utc_of(grid.next_close(opened))[-5:] == day


@pytest.mark.parametrize("weeks", [2, 3])
def test_two_weeks_are_enough_also_across_a_clock_change_and_with_a_weekend_quote(weeks):
    opens = opens_of("forex")
    opens = opens[(opens >= CHANGE - 7.5 * 86_400) & (opens < CHANGE + (weeks - 1) * 7 * 86_400)]
    for rows in (opens, weekend_quote(opens)):
        grid = infer_grid(rows)
        assert grid.calendar.name == "forex"
        assert missing(grid, rows) == 0
        assert (~grid.on_grid(rows)).sum() == len(rows) - len(opens)


@pytest.mark.parametrize("market", ["forex", "us-equity"])
def test_one_quote_on_a_weekend_opens_no_weekend(market):
    opens = opens_of(market)
    grid = infer_grid(weekend_quote(opens))
    assert grid.calendar == CALENDARS[market]
    assert (missing(grid, opens), grid.on_grid(opens).all()) == (0, True)


def test_one_sunday_among_the_days_of_a_market_opens_no_sunday():
    days = every("1D", "2023-01-01", hours=[0])
    sunday = at("2023-03-12 00:00")
    grid = infer_grid(np.sort(np.r_[days, sunday]))
    assert missing(grid, days) == 0
    assert grid.on_grid(np.array([days[9], sunday])).tolist() == [True, False]


@pytest.mark.parametrize(
    ("opens", "words"),
    [
        (every("1D", "2023-01-01", hours=[0]), "learned: Mon 00:00 to Sat 00:00 (UTC)"),
        (every("1D", "2024-01-02", "2024-12-30", NEW_YORK, [0]),
         "learned: Mon 00:00 to Sat 00:00 (America/New_York)"),
        (every("1h", zone=NEW_YORK, hours=range(9, 16)), "learned: Mon to Fri 09:00-16:00 (America/New_York)"),
        (every("1h", zone=NEW_YORK, hours=range(4, 20)), "learned: Mon to Fri 04:00-20:00 (America/New_York)"),
        (every("1h", zone="Europe/London", hours=range(8, 16)), "learned: Mon to Fri 08:00-16:00 (Europe/London)"),
        (opens_of("tokyo", 900.0), "learned: Mon to Fri 00:00-02:30, Mon to Fri 03:30-06:00 (UTC)"),
    ],
)  # fmt: skip
def test_hours_that_nobody_named_are_learnt_by_the_clock_that_moves_with_them(opens, words):
    grid = infer_grid(opens)
    assert grid.calendar.describe() == words
    assert (missing(grid, opens), grid.on_grid(opens).all()) == (0, True)


@pytest.mark.parametrize(("until", "known"), [("2024-01-12", False), ("2024-01-15 12:00", True)])
def test_hours_that_nobody_named_are_learnt_from_two_weeks_on(until, known):
    opens = every("1h", "2024-01-01", until, "Europe/London", range(8, 16))
    assert (infer_grid(opens).calendar.name == "learned") == known


def test_an_hour_far_from_the_others_on_many_weekends_is_no_session():
    opens = every("1h", zone="Europe/London", hours=range(8, 16))
    saturdays = opens[(opens - opens[0]) % (7 * 86_400) == 0][::3] + 5 * 86_400.0
    grid = infer_grid(np.sort(np.r_[opens, saturdays]))
    assert not grid.on_grid(saturdays).any()
    assert (missing(grid, opens), grid.on_grid(opens).all()) == (0, True)


def test_bars_of_a_share_that_open_at_half_past_are_learnt_with_it():
    opens = every("1h", zone="Europe/London", hours=range(8, 16)) + 1800.0
    grid = infer_grid(opens)
    assert grid.calendar.describe() == "learned: Mon to Fri 08:30-16:30 (Europe/London)"
    assert (missing(grid, opens), grid.on_grid(opens).all()) == (0, True)


def test_bars_of_four_hours_of_utc_are_learnt_for_a_market_of_another_clock():
    minutes = opens_of("forex", 900.0)
    opens = np.unique(minutes // 14_400 * 14_400)
    grid = infer_grid(opens)
    assert (grid.timeframe, missing(grid, opens), grid.on_grid(opens).all()) == ("4h", 0, True)
    assert not grid.on_grid(np.array([at("2024-02-03 12:00")])).any()  # a Saturday


def test_days_of_utc_with_a_sunday_stump_are_a_week_of_six_days():
    opens = np.unique(opens_of("forex") // 86_400 * 86_400)
    grid = infer_grid(opens)
    assert (grid.timeframe, missing(grid, opens), grid.on_grid(opens).all()) == ("1d", 0, True)
    assert grid.calendar.describe() == "learned: Sun 00:00 to Sat 00:00 (UTC)"
    assert utc_of(grid.next_close(opens[-1]))[-5:] == "00:00"


# ---- what is no closure


def test_holidays_close_no_hour_of_the_week_and_are_not_missing():
    opens, days = opens_of("us-equity"), sessions("us-equity", FIRST, LAST)
    for holiday in (15, 40):
        opens = opens[(opens < days[holiday, 0]) | (opens >= days[holiday, 1])]
    grid = infer_grid(opens)
    assert (grid.calendar.name, missing(grid, opens)) == ("us-equity", 0)
    days = every("1D", "2023-01-01", hours=[0])
    kept = days[np.random.default_rng(1).random(len(days)) > 0.04]
    assert missing(infer_grid(kept), kept) == 0


def test_a_week_without_bars_is_an_outage_and_not_a_closure():
    opens = opens_of("forex", last=date(2024, 6, 28))
    gone = (opens >= at("2024-04-07 21:00")) & (opens < at("2024-04-16 21:00"))
    grid = infer_grid(opens[~gone])
    assert grid.calendar.name == "forex"
    assert missing(grid, opens[~gone]) == gone.sum() == 7 * 24


@pytest.mark.parametrize("hours", [3, 61, 24 * 9])
def test_an_outage_of_a_market_that_never_closes_stays_missing(hours):
    opens = every("1h", last="2024-02-08")
    holed = np.delete(opens, slice(300, 300 + hours))
    grid = infer_grid(holed)
    assert (grid, missing(grid, holed)) == (Grid("1h"), hours)


def test_an_outage_over_a_weekend_of_a_young_market_that_never_closes_stays_missing():
    opens = every("1h", "2024-01-01", "2024-01-12")
    outage = (opens >= at("2024-01-06 03:00")) & (opens < at("2024-01-07 15:00"))
    grid = infer_grid(opens[~outage])
    assert (grid, missing(grid, opens[~outage])) == (Grid("1h"), 36)


@pytest.mark.parametrize("absent", [0.3, 0.9])
def test_minutes_in_which_nothing_traded_close_no_hour(absent):
    opens = every("1min", last="2024-01-08")
    kept = opens[np.random.default_rng(1).random(len(opens)) > absent]
    grid = infer_grid(kept, "1m")
    assert grid == Grid("1m")
    assert missing(grid, kept) == round(kept[-1] - kept[0]) // 60 + 1 - len(kept)


def test_a_share_of_hours_absent_moves_no_calendar():
    opens = opens_of("forex")
    apart = np.diff(opens, prepend=-np.inf, append=np.inf) > 3600.0
    edges = apart[:-1] | apart[1:]  # absent next to a weekend, an hour is that of another market's open and not missing
    kept = opens[edges | (np.random.default_rng(2).random(len(opens)) > 0.05)]
    grid = infer_grid(kept)
    assert grid.calendar.name == "forex"
    inside = (opens > kept[0]) & (opens < kept[-1])
    assert missing(grid, kept) == inside.sum() - len(kept) + 2


def test_a_market_that_never_closes_is_open_by_days_of_utc():
    assert infer_grid(every("1h")) == Grid("1h")
    assert infer_grid(every("15min", last="2024-01-05")) == Grid("15m")
    assert infer_grid(every("1D")) == Grid("1d")


# ---- where bars open


@pytest.mark.parametrize(
    ("opens", "timeframe", "phase_s"),
    [
        (every("1h") + 1800.0, "1h", 1800),
        (every("1D") + 8 * 3600.0, "1d", 28_800),
        (every("7D", "2024-01-01"), "1w", 0),
        (every("7D", "2024-01-03"), "1w", 2 * 86_400),
        (every("MS", "2022-01-01"), "1M", 0),
    ],
)
def test_bars_may_open_after_the_full_hour_day_or_week(opens, timeframe, phase_s):
    grid = infer_grid(opens)
    assert (grid.timeframe, grid.phase_s, grid.calendar.always_open) == (timeframe, phase_s, True)
    assert grid.on_grid(opens).all()
    assert missing(grid, opens) == 0


def test_a_single_bar_has_the_grid_that_is_stated_and_none_else():
    one = np.array([at("2024-01-01 00:30")])
    assert infer_grid(one, "1h") == Grid("1h", phase_s=1800)
    assert infer_grid(np.empty(0), "1h") == Grid("1h")
    with pytest.raises(BadTimes, match="do not show a timeframe"):
        infer_grid(one)
    with pytest.raises(UnknownName, match="no timeframe '7m'"):
        infer_grid(one, "7m")


def test_what_a_person_states_is_taken_whatever_the_bars_show():
    opens = opens_of("us-equity")
    grid = infer_grid(opens, calendar=CALENDARS["forex"])
    assert grid == Grid("1h", CALENDARS["forex"])
    assert infer_grid(every("1h", last="2024-01-02") + 1800.0, calendar=CALENDARS["24x7"]).phase_s == 1800


def test_the_grid_of_a_data_version_is_stated_in_it_or_that_of_its_bars():
    stated = Grid("1h", calendar_of("tokyo"))
    assert grid_of({"grid": stated.to_dict(), "timeframe": "1m"}, np.empty(0)) == stated
    assert grid_of({"timeframe": "1h"}, opens_of("forex")) == Grid("1h", CALENDARS["forex"])


# ---- recorded gold


def test_the_weekends_of_gold_are_no_gaps_over_both_clock_changes():
    if not GOLD.exists():
        pytest.skip("no recorded gold next to the checkout")
    opens = epoch_seconds(read(GOLD, datetime(2026, 1, 1, tzinfo=UTC)).frame["open_time"])
    opens = opens[opens >= at("2013-04-01 00:00")]
    grid = infer_grid(opens[opens < at("2013-10-01 00:00")])  # the history ends before any change
    assert not grid.calendar.always_open
    later = opens[(opens >= at("2013-10-01 00:00")) & (opens < at("2014-10-01 00:00"))]
    later = later[grid.on_grid(later)]
    weekends = np.flatnonzero((np.diff(later) >= 40 * 3600) & (np.diff(later) <= 52 * 3600))
    assert len(weekends) > 40
    assert {utc_of(later[i])[:3] for i in weekends} == {"Fri"}
    assert {utc_of(later[i])[-5:] for i in weekends} == {"20:00", "21:00"}  # the last bar, in summer and in winter
    assert not grid.missing(later)[weekends].any()


@pytest.mark.parametrize(
    ("timeframe", "calendar", "named", "opens"),
    [
        ("1d", "us-equity", "2024-01-05", "2024-01-05 14:30"),
        ("1d", "us-equity", "2024-07-05", "2024-07-05 13:30"),
        ("1d", "us-equity", "2024-01-06", "2024-01-06 00:00"),  # a Saturday has no session: left to quality.assess
        ("1d", "forex", "2024-01-05", "2024-01-04 22:00"),
        ("1d", "forex", "2024-07-08", "2024-07-07 21:00"),
        ("1w", "us-equity", "2024-01-07", "2024-01-08 14:30"),
        ("1M", "us-equity", "2024-06-01", "2024-06-03 13:30"),
        ("1d", "24x7", "2024-01-06", "2024-01-06 00:00"),
    ],
)
def test_a_date_names_the_session_it_belongs_to(timeframe, calendar, named, opens):
    placed = at_sessions(np.array([at(named), np.nan]), Grid(timeframe, CALENDARS[calendar]))
    assert placed[0] == at(opens)
    assert np.isnan(placed[1])
