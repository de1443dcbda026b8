"""What fields of bars prove of one another, on made bars and on the cases of files that people have."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipelines.data.calendars import CALENDARS
from pipelines.data.proofs import check_prices, not_recorded, splits
from pipelines.data.quality import QualityReport, assess
from pipelines.data.readers.files import read
from pipelines.data.schemas import to_frame
from pipelines.data.sessions import market_grid
from pipelines.data.timeframes import Grid
from pipelines.errors import BadColumns, BadValues
from pipelines.market_params import QualityParams

CASES = Path(__file__).parents[2] / "../shared/cases"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAYS, HOURS = Grid("1d"), Grid("1h")
START = 1_704_067_200.0  # a Monday


def walk(n=700, grid=DAYS, seed=0, sd=0.012, places=None, start=100.0, opens=None):
    """A walk whose volume is as noisy as a share's."""
    rng = np.random.default_rng(seed)
    close = start * np.exp(np.cumsum(rng.normal(0, sd, n)))
    opened = np.r_[start, close[:-1]]
    wick = 1 + np.abs(rng.normal(0, sd / 3, (2, n)))
    prices = [opened, np.maximum(opened, close) * wick[0], np.minimum(opened, close) / wick[1], close]
    if places is not None:
        prices = [np.round(price, places) for price in prices]
    times = START + float(grid.step_s) * np.arange(n) if opens is None else opens
    volume = rng.lognormal(13, 0.8, n)
    unknown = np.full(n, np.nan)
    return to_frame(np.column_stack([times, *prices, volume, unknown, unknown, unknown]), grid, None)


def split(bars, row, n):
    """The same share, not adjusted for a split of n shares for one at `row`."""
    bars = bars.copy()
    bars.loc[row:, ["open", "high", "low", "close"]] /= n
    bars.loc[row:, "volume"] *= n
    return bars


def case(folder) -> QualityReport:
    """The report on a case's first file, as a run sees it."""
    file = sorted((CASES / folder).glob("*.csv"))
    if not file:
        pytest.skip(f"the case {folder} is not on this machine")
    frame = read(file[0], NOW).frame
    return assess(frame, market_grid(frame), NOW)


@pytest.mark.parametrize("row", [7, 150, 500, 695])
@pytest.mark.parametrize(("factor", "name"), [(4, "4-for-1"), (10, "10-for-1"), (20, "20-for-1"), (0.1, "1-for-10")])
def test_a_split_is_named_with_its_day_and_factor_also_among_the_first_bars(row, factor, name):
    bars = split(walk(seed=3), row, factor)
    report = assess(bars, DAYS, NOW)
    assert [flag.code for flag in report.flags] == ["SPLIT"]
    (found,) = report.flags
    assert found.moments == (bars["open_time"][row].isoformat(),)
    assert found.sizes == (pytest.approx(factor),)
    assert f"{name} split on {bars['open_time'][row]:%F}" in report.blocked
    assert "adjusted for splits" in report.blocked
    assert report.score == 1.0
    assert assess(bars, DAYS, NOW, QualityParams(allow_splits=True)).blocked is None


@pytest.mark.parametrize(("factor", "name"), [(1.5, "3-for-2"), (2, "2-for-1"), (1 / 1.5, "2-for-3")])
def test_a_small_split_is_named_even_where_the_noise_of_volume_hides_it(factor, name):
    blocked = 0
    for seed in range(10):
        report = assess(split(walk(400, seed=seed), 200, factor), DAYS, NOW)
        (found,) = report.flags
        assert f"{name}" in found.cause
        assert found.moments == (report.clean["open_time"][200].isoformat(),)
        blocked += report.blocked is not None
    assert blocked >= 5


def test_a_crash_to_half_without_more_volume_afterwards_is_a_jump_and_no_split():
    bars = walk(seed=3)
    bars.loc[300:, ["open", "high", "low", "close"]] /= 2.0
    report = assess(bars, DAYS, NOW)
    assert [flag.code for flag in report.flags] == ["JUMP"]
    assert report.blocked is None
    unrecorded = assess(bars.assign(volume=np.nan), DAYS, NOW)
    assert "2-for-1" in unrecorded.flags[0].cause
    assert unrecorded.blocked is None


def test_no_split_is_seen_in_wild_markets():
    found = [splits(walk(3000, seed=seed, sd=sd)) for seed in range(20) for sd in (0.002, 0.02, 0.06, 0.2)]
    assert not any(found)


@pytest.mark.parametrize(("value", "n", "gone"), [(0.0, 40, True), (1.0, 60, True), (1.0, 40, False)])
def test_an_amount_that_never_changes_was_not_recorded(value, n, gone):
    frame, found = not_recorded(walk(n).assign(volume=value, trades=3.0 * np.arange(n)))
    assert frame["volume"].isna().all() == gone
    assert frame["trades"].notna().all()
    assert [flag.code for flag in found] == ["NOT_RECORDED"] * gone
    assert not gone or f"volume is {value:g} in all {n} bars" in found[0].cause


def test_a_price_that_moves_without_volume_is_flagged_with_its_range():
    bars = walk()
    bars.loc[[40, 41], "volume"] = 0.0
    (found,) = assess(bars, DAYS, NOW).flags
    assert (found.code, found.rows, found.unit) == ("MOVED_WITHOUT_VOLUME", 2, "bps")
    assert found.sizes[0] == pytest.approx(1e4 * (bars["high"][40] / bars["low"][40] - 1))


@pytest.mark.parametrize("order", [["open", "low", "high", "close"], ["high", "low", "open", "close"]])
def test_swapped_price_columns_are_refused_with_their_right_order(order):
    bars, names = walk(), ["open", "high", "low", "close"]
    swapped = bars.assign(**{name: bars[right] for name, right in zip(names, order, strict=True)})
    with pytest.raises(BadColumns, match="high is below low in"):
        check_prices(swapped)
    with pytest.raises(BadColumns) as refusal:
        assess(swapped, DAYS, NOW)
    expected = [f"{name} is the {right}" for name, right in zip(names, order, strict=True) if name != right]
    assert all(each in str(refusal.value) for each in expected)
    check_prices(bars)


@pytest.mark.parametrize(("price", "places", "refused"), [(8e-6, 6, True), (8e-6, 9, False), (0.03, 2, True),
                                                          (8e-9, 12, False), (42.0, 2, False)])  # fmt: skip
def test_prices_written_with_too_few_places_are_refused_with_the_size_of_one_step(price, places, refused):
    bars = walk(900, HOURS, sd=0.002, places=places, start=price)
    if refused:
        with pytest.raises(
            BadValues, match=rf"distinct prices? in 900 bars, one step is \d+%.*too few places \({places}\)"
        ):
            check_prices(bars)
    else:
        check_prices(bars)


def hours_of(calendar, weeks=9):
    """Every hour from a Monday on, and whether the market is open then."""
    opens = START + 3600.0 * np.arange(weeks * 168)
    return opens, Grid("1h", CALENDARS[calendar]).on_grid(opens)


@pytest.mark.parametrize("calendar", ["forex", "us-futures"])
@pytest.mark.parametrize("volume", [0.0, np.nan])
def test_hours_filled_in_while_the_market_is_shut_are_left_out_and_said(calendar, volume):
    opens, is_open = hours_of(calendar)
    bars = walk(len(opens), HOURS, sd=0.001)
    moving = walk(int(is_open.sum()), HOURS, sd=0.001)
    source = np.maximum(np.cumsum(is_open) - 1, 0)
    for name in ("open", "high", "low", "close"):
        bars[name] = np.where(is_open, moving[name].to_numpy()[source], moving["close"].to_numpy()[source])
    bars["volume"] = np.where(is_open, bars["volume"], volume)
    grid = market_grid(bars)
    assert grid.calendar == CALENDARS[calendar]
    report = assess(bars, grid, NOW)
    assert (report.score, len(report.clean), report.counts["stale"]) == (1.0, is_open.sum(), 0)
    (found,) = [flag for flag in report.flags if flag.code == "SHUT"]
    assert found.rows == (~is_open).sum()
    assert "h every week without a move or volume: the market is shut then" in found.cause


def test_a_feed_that_stands_still_for_days_is_no_shut_market():
    bars = walk(9 * 168, HOURS, sd=0.001)
    for name in ("open", "high", "low", "close"):
        bars.loc[500:599, name] = bars["close"][499]
    bars.loc[500:599, "volume"] = 0.0
    grid = market_grid(bars)
    assert grid.calendar.always_open
    (found,) = [flag for flag in assess(bars, grid, NOW).flags if flag.code == "STALE"]
    assert (found.rows, found.sizes, found.moments[0]) == (1, (100.0,), bars["open_time"][500].isoformat())


def test_holidays_are_named_and_not_missing():
    grid = Grid("1h", CALENDARS["us-equity"])
    opens = START + 1800.0 * np.arange(2 * 24 * 7 * 12)
    opens = opens[grid.on_grid(opens)]
    day = np.floor(opens / 86_400.0)
    kept = opens[day != day[70]]
    bars = walk(len(kept), HOURS, sd=0.003, opens=kept)
    report = assess(bars, grid, NOW)
    assert report.counts["missing"] == 0
    (found,) = [flag for flag in report.flags if flag.code == "HOLIDAY"]
    assert found.moments == (pd.Timestamp(day[70] * 86_400.0 + 14.5 * 3600, unit="s", tz="UTC").isoformat(),)


def test_where_no_bar_means_no_trade_none_is_missing():
    bars = walk(600, HOURS).drop(index=[*range(50, 60), 300])
    assert assess(bars, HOURS, NOW).counts["missing"] == 11
    grid = market_grid(bars, no_trade=True)
    report = assess(bars, grid, NOW)
    assert (report.score, report.flags) == (1.0, ())
    assert Grid.from_dict(grid.to_dict()) == grid == Grid("1h", no_trade=True)
    assert grid.at("1d").no_trade
    assert grid.missing_between(START, START + 36_000.0) == 0
    assert "nothing traded" in grid.describe()


def test_the_case_of_a_share_split():
    assert "4-for-1 split on 2022-06-02" in case("share-split").blocked


def test_the_case_of_prices_cut_to_six_places():
    with pytest.raises(BadValues, match=r"in 900 bars, one step is 12%.*too few places"):
        case("price-cut-to-six-places")


def test_the_case_of_a_price_of_a_hundred_millionth():
    report = case("price-of-1e-8")
    assert (report.score, report.flags, report.blocked) == (1.0, (), None)


def test_the_case_of_a_volume_that_is_always_zero():
    report = case("volume-always-zero")
    assert report.clean["volume"].isna().all()
    assert report.flags == ()  # the reader says it, see test_cases


def test_the_case_of_weekends_that_were_filled_in():
    report = case("weekend-flats")
    assert (report.score, report.counts["shut"], report.counts["stale"]) == (1.0, 432, 0)
    assert "48 h every week" in report.flags[0].cause


def test_the_case_of_a_price_below_zero():
    report = case("negative-price")
    assert report.counts["non_positive"] == 199
    assert report.counts["missing"] == 0
    (found,) = [flag for flag in report.flags if flag.code == "NON_POSITIVE"]
    assert "Use an instrument above zero, or a back-adjusted series with an offset" in found.cause
    assert found.sizes[0] == pytest.approx(-0.1)
