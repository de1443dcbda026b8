"""Grids against bars worked out one by one, and resampling against its definition, by fixed steps and by sessions."""

import itertools
import json
from datetime import date
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.market_hours import HOURS as HOURS_OF
from support.market_hours import at, calendar_of, sessions, utc_of
from support.market_hours import bars as bars_of

from pipelines.contracts import BAR_WIDTH, HALF_SPREAD, VOLUME
from pipelines.data.calendars import Calendar
from pipelines.data.sessions import infer_timeframe
from pipelines.data.timeframes import TIMEFRAMES, WEEKEND_S, Grid, decision_timeframe, resample, seconds
from pipelines.errors import BadShape, BadTimes, UnknownName

MINUTES, QUARTERS = Grid("1m"), Grid("15m")


def bars_at(minutes, seed=0):
    """Valid 1-minute bars at the given minute numbers."""
    rng = np.random.default_rng(seed)
    n = len(minutes)
    body = 100 + rng.normal(size=(n, 2)).cumsum(axis=0) * 0.1
    high, low = body.max(axis=1) + rng.random(n), body.min(axis=1) - rng.random(n)
    volume = rng.random((n, 3))
    half_spread = np.where(rng.random(n) < 0.4, np.nan, 0.01 * rng.random(n))
    return np.column_stack([np.asarray(minutes) * 60.0, body[:, 0], high, low, body[:, 1], volume, half_spread])


def by_hand(bars, base, target):
    """The definition, one slot at a time."""
    seen_until = bars[-1, 0] + base
    made = []
    for start in sorted({t // target * target for t in bars[:, 0]}):
        if start + target <= seen_until:
            b = bars[(bars[:, 0] >= start) & (bars[:, 0] < start + target)]
            sums = [sum(b[:, k].tolist()) for k in (5, 6, 7)]
            quoted = [x for x in b[:, HALF_SPREAD].tolist() if x == x]
            spread = sum(quoted) / len(quoted) if quoted else np.nan
            made.append([start, b[0, 1], b[:, 2].max(), b[:, 3].min(), b[-1, 4], *sums, spread])
    return np.array(made).reshape(-1, BAR_WIDTH)


minutes = st.sets(st.integers(0, 400), min_size=1, max_size=120).map(sorted)


@settings(max_examples=60, deadline=None)
@given(minutes=minutes, target=st.sampled_from(["1m", "5m", "15m", "1h"]))
def test_resample_equals_the_definition_with_any_bars_missing(minutes, target):
    bars = bars_at(minutes)
    np.testing.assert_array_equal(resample(bars, MINUTES, Grid(target)), by_hand(bars, 60, seconds(target)))


@settings(max_examples=60, deadline=None)
@given(minutes=minutes, cut=st.floats(0, 1))
def test_closed_bars_do_not_change_when_later_bars_arrive(minutes, cut):
    bars = bars_at(minutes)
    early = resample(bars[: 1 + int(cut * (len(bars) - 1))], MINUTES, QUARTERS)
    assert resample(bars, MINUTES, QUARTERS)[: len(early)].tobytes() == early.tobytes()


def test_a_bar_is_emitted_with_its_last_minute_and_not_before():
    bars = bars_at(range(15))
    assert len(resample(bars[:14], MINUTES, QUARTERS)) == 0
    assert len(resample(bars, MINUTES, QUARTERS)) == 1


def test_the_same_timeframe_gives_the_same_bars():
    bars = bars_at(range(30))
    assert resample(bars, MINUTES, MINUTES).tobytes() == bars.tobytes()


def test_an_unrecorded_volume_makes_its_sum_unrecorded_and_no_other():
    bars = bars_at(range(30))
    bars[3, VOLUME] = np.nan
    made = resample(bars, MINUTES, QUARTERS)
    assert np.isnan(made[0, VOLUME])
    assert np.isfinite(made[1, VOLUME])


def test_no_bars_give_no_bars():
    assert resample(np.empty((0, BAR_WIDTH)), MINUTES, QUARTERS).shape == (0, BAR_WIDTH)


@pytest.mark.parametrize(
    ("bars", "base", "target", "error", "message"),
    [
        (bars_at([1, 2])[:, :7], "1m", "15m", BadShape, "expected"),
        (bars_at([2, 1]), "1m", "15m", BadTimes, "does not ascend at row 1"),
        (bars_at([1, 1]), "1m", "15m", BadTimes, "does not ascend at row 1"),
        (bars_at([1]) * np.nan, "1m", "15m", BadTimes, "row 0"),
        (bars_at([0, 5]), "5m", "3m", BadTimes, "multiple"),
        (bars_at([0, 3]), "3m", "5m", BadTimes, "row 1 of 2, open_time 180: a 3m bar does not fit into 5m bars"),
    ],
)
def test_bad_bars_are_refused_with_the_place(bars, base, target, error, message):
    with pytest.raises(error, match=message):
        resample(bars, Grid(base), Grid(target))


@pytest.mark.parametrize(("name", "length"), TIMEFRAMES.items())
def test_the_timeframe_is_found_through_gaps_copies_and_disorder(name, length):
    times = np.r_[np.arange(50), np.arange(60, 90), 3, 3, 7] * float(length)
    assert infer_timeframe(np.random.default_rng(1).permutation(times)) == name


def test_a_spacing_we_do_not_know_is_refused_with_its_length():
    with pytest.raises(BadTimes, match="420 s apart"):
        infer_timeframe(np.arange(9) * 420.0)
    with pytest.raises(BadTimes, match="1 distinct"):
        infer_timeframe(np.array([60.0, 60.0]))
    with pytest.raises(UnknownName, match="known: 1m"):
        seconds("7m")


# ---- the grid of a market, against its bars worked out one by one

FIRST, LAST = date(2023, 10, 16), date(2024, 4, 14)  # both changes of New York's and London's clock
CASES = [
    *itertools.product(HOURS_OF, ("15m", "1h", "4h")),
    ("us-futures", "1d"),
    ("new york days", "1d"),
    ("forex", "1d"),
]


@lru_cache(maxsize=64)
def worked_out(market, timeframe):
    """Return (grid, opens, closes) of a market's bars in half a year."""
    rows = bars_of(market, seconds(timeframe) if timeframe != "1d" else np.inf, FIRST, LAST)
    return Grid(timeframe, calendar_of(market)), rows[:, 0], rows[:, 1]


@pytest.mark.parametrize(("market", "timeframe"), CASES)
def test_bars_open_and_close_by_the_clock_of_their_market(market, timeframe):
    grid, opens, closes = worked_out(market, timeframe)
    slots = grid.slots(opens)
    assert (np.diff(slots) == 1).all()  # dense and ascending
    np.testing.assert_array_equal(grid.opens(slots), opens)
    np.testing.assert_array_equal(grid.closes(opens), closes)
    assert grid.on_grid(opens).all()
    assert (grid.slot(opens[7]), grid.next_close(opens[7])) == (slots[7], closes[7])


@pytest.mark.parametrize(("market", "timeframe"), CASES)
def test_every_moment_is_in_its_bar_or_in_none(market, timeframe):
    grid, opens, closes = worked_out(market, timeframe)
    moments = np.random.default_rng(1).uniform(opens[0], closes[-1], 4000)
    moments = np.sort(np.r_[moments, opens, closes[:-1], opens[1:] - 1.0])
    at = np.searchsorted(opens, moments, "right") - 1
    inside = moments < closes[at]
    np.testing.assert_array_equal(grid.holding(moments), np.where(inside, opens[at], np.nan))
    np.testing.assert_array_equal(grid.slots(moments), np.where(inside, grid.slots(opens[:1])[0] + at, -1))
    np.testing.assert_array_equal(grid.on_grid(moments), np.isin(moments, opens))
    one_by_one = [grid.next_close(moment) for moment in moments[::20]]
    np.testing.assert_array_equal(one_by_one, grid.closes(moments[::20]))


@pytest.mark.parametrize(("market", "timeframe"), CASES)
def test_bars_are_counted_by_their_closes_and_time_by_how_far_the_open_one_is(market, timeframe):
    grid, opens, closes = worked_out(market, timeframe)
    rng = np.random.default_rng(2)
    after, until = np.sort(rng.uniform(opens[0], closes[-1], (2, 500)), axis=0)
    after[:50], until[:50] = closes[:50], closes[20:70]  # (after, until]: the first not, the last yes
    expected = np.searchsorted(closes, until, "right") - np.searchsorted(closes, after, "right")
    np.testing.assert_array_equal(grid.expected(after, until), expected)
    for i in rng.integers(0, len(opens) - 40, 50):
        assert grid.age_bars(closes[i], closes[i + 7]) == pytest.approx(7.0)
        middle = 0.5 * (opens[i + 8] + closes[i + 8])
        assert grid.age_bars(closes[i], middle) == pytest.approx(7.5)
        shut = 0.5 * (closes[i + 7] + opens[i + 8])  # also where the market is open: then both are one moment
        assert grid.age_bars(closes[i], shut) == pytest.approx(7.0)
        assert grid.age_bars(closes[i], closes[i] - 1.0) < 0.0


@pytest.mark.parametrize(("market", "timeframe"), CASES)
@pytest.mark.parametrize("horizon", [1, 2, 16])
def test_a_horizon_ends_with_the_close_of_so_many_bars(market, timeframe, horizon):
    grid, _, closes = worked_out(market, timeframe)
    np.testing.assert_array_equal(grid.deadline(closes[:-horizon], horizon), closes[horizon:])
    assert (closes[horizon:] - closes[:-horizon]).max() <= grid.span_s(horizon)


@pytest.mark.parametrize("market", ["forex", "us-equity", "us-futures", "new york days"])
def test_the_longest_time_of_a_horizon_is_that_over_the_longest_closure(market):
    rows = bars_of(market, 3600.0, date(2019, 10, 1), date(2021, 12, 31))
    grid = Grid("1h", calendar_of(market))
    for horizon in (1, 5, 30):
        assert grid.span_s(horizon) == (rows[horizon:, 1] - rows[:-horizon, 1]).max()
    year = rows[(rows[:, 0] >= rows[1000, 0]) & (rows[:, 0] < rows[1000, 0] + 364 * 86_400)]
    assert grid.mean_s == pytest.approx(364 * 86_400 / len(year), rel=0.01)


def test_on_a_market_that_never_closes_a_horizon_is_its_bars():
    assert (QUARTERS.span_s(16), QUARTERS.mean_s, QUARTERS.fixed) == (4 * 3600.0, 900.0, True)
    assert QUARTERS.bars_of(3600.0) == 4
    assert Grid("4h").bars_of(3600.0) == 1  # at least one bar


@pytest.mark.parametrize(("market", "timeframe"), [c for c in CASES if c[1] == "1h"])
def test_bars_that_did_not_come_are_counted_and_closures_are_not(market, timeframe):
    grid, opens, _ = worked_out(market, timeframe)
    assert grid.missing(opens).sum() == 0
    kept, apart = np.ones(len(opens), dtype=bool), np.diff(opens)
    inner = 1 + np.flatnonzero(np.maximum(apart[:-1], apart[1:]) < WEEKEND_S)  # the hour next to a weekend may be shut
    kept[np.random.default_rng(3).choice(inner, len(opens) // 30, replace=False)] = False
    sessions_kept = np.unique(np.searchsorted(sessions(market, FIRST, LAST)[:, 0], opens[kept], "right"))
    assert len(sessions_kept) == len(sessions(market, FIRST, LAST))  # no session is gone as a whole
    assert grid.missing(opens[kept]).sum() == (~kept).sum()
    before, after = np.flatnonzero(kept)[[2, 4]]
    assert grid.missing_between(opens[before], opens[after]) == after - before - 1


@pytest.mark.parametrize("market", ["forex", "us-equity", "us-futures"])
def test_trading_days_without_any_bar_are_holidays_up_to_a_week_and_an_outage_beyond(market):
    days, grid = sessions(market, FIRST, LAST), Grid("1h", calendar_of(market))
    opens = bars_of(market, 3600.0, FIRST, LAST)[:, 0]
    for gone, counts in ((1, False), (5, False), (6, True)):
        shut = (opens >= days[20, 0]) & (opens < days[20 + gone, 0])
        assert grid.missing(opens[~shut]).sum() == (shut.sum() if counts else 0)
    early_close = (opens >= days[20, 0] + 3 * 3600) & (opens < days[22, 0])  # half a day, then a holiday
    first_day = (opens >= days[20, 0] + 3 * 3600) & (opens < days[21, 0])
    assert grid.missing(opens[~early_close]).sum() == first_day.sum()


def test_a_market_that_never_closes_has_no_holidays():
    hours = Grid("1h")
    opens = at("2024-01-01 00:00") + 3600.0 * np.arange(24 * 20)
    assert hours.missing(np.delete(opens, slice(24, 48))).tolist().count(24) == 1
    days = Grid("1h", calendar_of("new york days"))
    assert days.missing(np.delete(opens, slice(24, 48))).sum() == 24


@pytest.mark.parametrize(
    ("market", "timeframe", "opened", "closed"),
    [
        # a day of forex is known at 17:00 New York: 22:00 UTC in winter, 21:00 in summer, 23 hours in the change
        ("forex", "1d", "2024-01-09 22:00", "2024-01-10 22:00"),
        ("forex", "1d", "2024-03-07 22:00", "2024-03-08 22:00"),
        ("forex", "1d", "2024-03-10 21:00", "2024-03-11 21:00"),
        ("forex", "1w", "2024-03-03 22:00", "2024-03-08 22:00"),
        ("forex", "1w", "2024-03-10 21:00", "2024-03-15 21:00"),
        ("forex", "1M", "2024-01-31 22:00", "2024-02-29 22:00"),
        ("new york days", "1d", "2024-03-09 22:00", "2024-03-10 21:00"),
        ("new york days", "1w", "2024-01-07 22:00", "2024-01-14 22:00"),  # Monday's day begins on Sunday evening
        ("new york days", "1M", "2023-12-31 22:00", "2024-01-31 22:00"),
        # an hourly bar of a US share, the last of half an hour
        ("us-equity", "1h", "2024-01-10 14:30", "2024-01-10 15:30"),
        ("us-equity", "1h", "2024-01-10 20:30", "2024-01-10 21:00"),
        ("us-equity", "1h", "2024-07-10 13:30", "2024-07-10 14:30"),
        ("us-equity", "1h", "2024-07-10 19:30", "2024-07-10 20:00"),
        ("us-equity", "4h", "2024-01-10 14:30", "2024-01-10 18:30"),
        ("us-equity", "4h", "2024-01-10 18:30", "2024-01-10 21:00"),
        ("us-equity", "1d", "2024-07-10 13:30", "2024-07-10 20:00"),
        ("us-equity", "1w", "2024-03-04 14:30", "2024-03-08 21:00"),
        ("us-equity", "1M", "2024-03-01 14:30", "2024-03-29 20:00"),  # the clocks change within
        ("us-futures", "1d", "2024-01-09 23:00", "2024-01-10 22:00"),
        ("tokyo", "1d", "2024-01-10 00:00", "2024-01-10 06:00"),  # over lunch
        ("tokyo", "1h", "2024-01-10 02:00", "2024-01-10 02:30"),
        ("24x7", "1w", "2024-01-08 00:00", "2024-01-15 00:00"),
        ("24x7", "1M", "2024-02-01 00:00", "2024-03-01 00:00"),
        ("24x7", "1M", "2023-12-01 00:00", "2024-01-01 00:00"),
    ],
)
def test_a_bar_is_known_when_it_closes(market, timeframe, opened, closed):
    grid = Grid(timeframe, calendar_of(market))
    assert utc_of(grid.next_close(at(opened)))[4:] == closed
    assert grid.on_grid(np.array([at(opened)])).all()


def test_months_and_weeks_of_the_calendar_are_those_of_pandas():
    days = pd.date_range("2019-01-01", "2026-12-31", tz="UTC")
    for timeframe, period in (("1M", "M"), ("1w", "W-SUN")):
        starts = pd.DatetimeIndex(days.tz_localize(None).to_period(period).start_time.unique()).as_unit("s")
        opens = starts.asi8.astype(float)
        grid = Grid(timeframe)
        assert grid.on_grid(opens).all()
        np.testing.assert_array_equal(grid.closes(opens[:-1]), opens[1:])
        assert grid.missing(opens).sum() == 0


def test_bars_that_open_after_the_full_hour_keep_their_phase():
    grid = Grid("1h", phase_s=1800)
    opens = at("2024-01-01 00:30") + 3600.0 * np.arange(5)
    assert grid.on_grid(opens).all()
    assert not grid.on_grid(opens + 1800.0).any()
    assert utc_of(grid.holding(np.array([at("2024-01-01 03:10")]))[0]) == "Mon 2024-01-01 02:30"
    assert grid.at("4h").phase_s == 1800
    assert grid.at("15m").phase_s == 0
    assert grid.describe() == "1h bars, 1800 s after the full 1h; 24x7: day and night; days begin at 00:00 UTC"


def test_a_time_before_any_trading_day_opens_no_bar():
    grid = Grid("1h", calendar_of("forex"))
    assert grid.slots(np.array([-1e6])).tolist() == [-1]
    assert np.isnan(grid.holding(np.array([-1e6]))).all()


def test_a_grid_comes_back_from_what_is_stored_of_it():
    for market, timeframe, phase in itertools.product(HOURS_OF, TIMEFRAMES, (0, 7)):
        calendar = calendar_of(market)
        grid = Grid(timeframe, calendar, phase if calendar.plain else 0)
        assert Grid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
    with pytest.raises(BadShape, match="wanted timeframe, phase_s, calendar"):
        Grid.from_dict({"timeframe": "1h", "phase_s": "soon", "calendar": {}})
    with pytest.raises(UnknownName, match="no timeframe '7m'"):
        Grid("7m")


@st.composite
def weeks(draw):
    """Return open intervals of a week in quarters of an hour, apart."""
    edges = sorted(draw(st.sets(st.integers(0, 7 * 96 - 1), min_size=2, max_size=10)))
    return tuple((edges[i] * 900, edges[i + 1] * 900) for i in range(0, len(edges) - 1, 2))


@settings(max_examples=15, deadline=None)
@given(
    week=weeks(), zone=st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"]),
    day_start=st.sampled_from([0, 61_200]), timeframe=st.sampled_from(["5m", "1h", "4h", "1d"]),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_on_any_calendar_bars_are_dense_apart_and_end_where_the_next_begins_or_the_market_shuts(
    week, zone, day_start, timeframe, seed
):
    grid = Grid(timeframe, Calendar("learned", zone, day_start, week))
    first = grid.slots(grid.opens(grid.closed_by(np.array([at("2024-02-01 00:00")]))))[0]
    slots = first + np.arange(300)
    opens = grid.opens(slots)
    closes = grid.closes(opens)
    np.testing.assert_array_equal(grid.slots(opens), slots)
    assert (closes > opens).all()
    assert (closes[:-1] <= opens[1:]).all()
    if timeframe != "1d":  # a day may have several intervals
        assert (closes - opens <= grid.step_s).all()
        shut = closes[:-1] < opens[1:]
        assert (grid.slots(closes[:-1][shut]) == -1).all()
    inside = np.random.default_rng(seed).uniform(opens, closes)
    np.testing.assert_array_equal(grid.holding(inside), opens)
    np.testing.assert_array_equal(grid.closed_by(closes), slots + 1)
    np.testing.assert_array_equal(grid.deadline(closes[:-16], 16), closes[16:])


# ---- resampled by session


def by_session(rows, base, market, timeframe):
    """The definition: the rows between the open and the close of each bar, once a base bar at or past that is over."""
    step = np.inf if timeframe == "1d" else float(seconds(timeframe))
    seen_until, made = base.next_close(rows[-1, 0]), []
    for opens, closes in bars_of(market, step, FIRST, LAST):
        inside = rows[(rows[:, 0] >= opens) & (rows[:, 0] < closes)]
        if len(inside) and closes <= seen_until:
            sums = [sum(inside[:, k].tolist()) for k in (5, 6, 7)]
            quoted = [x for x in inside[:, HALF_SPREAD].tolist() if x == x]
            spread = sum(quoted) / len(quoted) if quoted else np.nan
            made.append([opens, inside[0, 1], inside[:, 2].max(), inside[:, 3].min(), inside[-1, 4], *sums, spread])
    return np.array(made).reshape(-1, BAR_WIDTH)


@pytest.mark.parametrize(
    ("market", "timeframe"),
    [("us-equity", "1h"), ("us-equity", "4h"), ("us-equity", "1d"), ("forex", "4h"), ("forex", "1d"),
     ("us-futures", "1d"), ("new york days", "1d"), ("tokyo", "1h"), ("over the clock change", "1h")],
)  # fmt: skip
def test_resampled_by_session_each_bar_is_the_rows_between_its_open_and_its_close(market, timeframe):
    base, opens, _ = worked_out(market, "15m")
    rng = np.random.default_rng(4)
    around = (opens > at("2024-02-20 00:00")) & (opens < at("2024-03-25 00:00"))
    opens = opens[around & (rng.random(len(opens)) > 0.1)]
    rows = bars_at(range(len(opens)))
    rows[:, 0] = opens
    for end in (len(rows), len(rows) - 3, len(rows) // 2):
        made = resample(rows[:end], base, base.at(timeframe))
        np.testing.assert_array_equal(made, by_session(rows[:end], base, market, timeframe))
    assert len(made) >= 3


def test_the_last_bar_of_a_session_is_there_with_its_last_base_bar_and_one_that_never_came_with_the_next():
    base, opens, closes = worked_out("us-equity", "15m")
    first = int(np.searchsorted(opens, at("2024-03-08 20:30")))  # 15:30 New York, the Friday before the clock changes
    rows = bars_at(range(6))
    rows[:, 0] = opens[first - 2 : first + 4]
    assert [utc_of(t) for t in closes[first : first + 3]] == [
        "Fri 2024-03-08 20:45", "Fri 2024-03-08 21:00", "Mon 2024-03-11 13:45"
    ]  # fmt: skip
    hours = base.at("1h")
    assert len(resample(rows[:3], base, hours)) == 1  # 15:30 is not over
    assert utc_of(resample(rows[:4], base, hours)[-1, 0]) == "Fri 2024-03-08 20:30"
    without = np.delete(rows[:5], 3, axis=0)
    made = resample(without, base, hours)
    assert (utc_of(made[-1, 0]), made[-1, 4]) == ("Fri 2024-03-08 20:30", rows[2, 4])


def test_bars_outside_the_hours_or_over_the_end_of_a_session_are_refused_with_the_place_and_what_to_do():
    equity = Grid("15m", calendar_of("us-equity"))
    rows = bars_at(range(3))
    rows[:, 0] = at("2024-03-08 20:30") + 900.0 * np.arange(3)  # the third is after the close
    with pytest.raises(BadTimes, match=r"row 2 of 3, open_time 1709931600: .*us-equity: Mon to Fri.*state --sessions"):
        resample(rows, equity, equity.at("1h"))
    rows = bars_at(range(1))
    rows[:, 0] = at("2024-03-08 20:30")
    with pytest.raises(BadTimes, match="a 1h bar does not fit into 4h bars"):
        resample(rows, Grid("1h"), equity.at("4h"))


@pytest.mark.parametrize(
    ("base", "wanted", "found"),
    [("1m", "15m", "15m"), ("15m", "15m", "15m"), ("1h", "15m", "1h"), ("1d", "15m", "1d"), ("30m", "15m", "1h"),
     ("3m", "5m", "15m"), ("2h", "1h", "4h"), ("8h", "4h", "1d"), ("6h", "1h", "1d")],
)  # fmt: skip
def test_decisions_are_on_the_wanted_bar_or_the_finest_that_the_base_can_make(base, wanted, found):
    assert decision_timeframe(base, wanted) == found


@pytest.mark.parametrize("base", ["3d", "1w", "1M"])
def test_bars_coarser_than_a_day_are_refused_with_what_to_give(base):
    with pytest.raises(BadTimes, match=rf"bars of {base} are coarser .*Give daily bars"):
        decision_timeframe(base, "15m")
