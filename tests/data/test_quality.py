from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.market_hours import bars as bars_of

from pipelines.data.calendars import CALENDARS, DAY
from pipelines.data.proofs import not_recorded
from pipelines.data.quality import assess, cross_source_divergence
from pipelines.data.readers.files import read
from pipelines.data.schemas import BARS, check, epoch_seconds, to_frame
from pipelines.data.sessions import infer_grid
from pipelines.data.timeframes import Grid
from pipelines.errors import BadColumns, BadTimes, NotEnoughData
from pipelines.market_params import QualityParams
from pipelines.settings import load_params

MINUTES, HOURS = Grid("1m"), Grid("1h")

DATA = Path(__file__).parents[2] / "../shared/data"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
START = 1_704_067_200.0


def frame(n=100, seed=0):
    rng = np.random.default_rng(seed)
    body = 100 * np.exp(rng.normal(size=(n, 2)) * 1e-3)
    volume = 1 + rng.random(n)
    rows = [START + 60.0 * np.arange(n), body[:, 0], body.max(axis=1) + 0.01, body.min(axis=1) - 0.01, body[:, 1]]
    return to_frame(
        np.column_stack([*rows, volume, rng.integers(1, 99, n), volume / 2, np.full(n, 0.05)]), MINUTES, None
    )


def put(bars, row, **values):
    bars = bars.copy()
    for name, value in values.items():
        bars.loc[row, name] = value
    return bars


def test_good_bars_score_one_and_come_back_unchanged():
    report = assess(frame(), MINUTES, NOW)
    assert report.score == 1.0
    assert not any(report.counts.values())
    pd.testing.assert_frame_equal(report.clean, frame())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"open_time": pd.NaT}, "NO_TIME"),
        ({"close": np.nan}, "NON_FINITE"),
        ({"high": np.inf}, "NON_FINITE"),
        ({"volume": np.inf}, "NON_FINITE"),
        ({"low": 0.0}, "NON_POSITIVE"),
        ({"volume": -1.0}, "NON_POSITIVE"),
        ({"high": 1.0}, "OHLC_ORDER"),
        ({"low": 1e6}, "OHLC_ORDER"),
        ({"taker_buy_volume": 50.0}, "TAKER_OVER_VOLUME"),
        ({"half_spread": -0.01}, "SPREAD"),
        ({"half_spread": 150.0}, "SPREAD"),
        ({"half_spread": np.inf}, "NON_FINITE"),
        ({"open_time": pd.Timestamp("2024-01-01T00:40:30Z")}, "OFF_GRID"),
        ({"known_at": pd.Timestamp("2030-01-01T00:00Z"), "open_time": pd.Timestamp("2029-12-31T23:59Z")}, "FUTURE"),
    ],
)
def test_an_impossible_row_is_quarantined_with_its_reason_and_place(spoil, reason):
    report = assess(put(frame(), 40, **spoil), MINUTES, NOW)
    assert report.quarantined["reason"].to_dict() == {40: reason}
    assert report.counts[reason.lower()] == 1
    assert len(report.clean) == 99
    # their bar did not come; a quarantined bar came, and is no gap
    missing = int(reason in ("NO_TIME", "FUTURE", "OFF_GRID"))
    assert report.counts["missing"] == missing
    assert report.score == pytest.approx(0.99 * 0.99**missing)
    (found,) = [one for one in report.flags if one.code == reason]
    assert (found.rows, len(found.moments), len(found.sizes)) == (1, 1, 1)
    assert len(found.cause) > 20


def test_a_copy_is_quarantined_and_a_conflict_keeps_the_first():
    bars = frame()
    twice = pd.concat([bars, bars.iloc[[10]], put(bars, 20, close=bars["open"][20]).iloc[[20]]], ignore_index=True)
    report = assess(twice, MINUTES, NOW)
    assert report.quarantined["reason"].to_dict() == {100: "DUPLICATE", 101: "CONFLICT"}
    pd.testing.assert_frame_equal(report.clean, bars)


def test_a_good_row_is_not_lost_to_an_impossible_one_before_it():
    bars = frame()
    twice = pd.concat([put(bars, 10, high=1.0).iloc[[10]], bars], ignore_index=True)
    report = assess(twice, MINUTES, NOW)
    assert report.quarantined["reason"].tolist() == ["OHLC_ORDER"]
    pd.testing.assert_frame_equal(report.clean, bars)


def test_rows_out_of_order_are_sorted_and_counted():
    bars = frame()
    report = assess(bars.iloc[[*range(50), *range(60, 100), *range(50, 60)]], MINUTES, NOW)
    pd.testing.assert_frame_equal(report.clean, bars)
    assert report.counts["disordered"] == 10
    assert report.score == pytest.approx(0.9)


def test_gaps_are_listed_with_their_length():
    report = assess(frame().drop(index=range(30, 37)), MINUTES, NOW)
    assert report.gaps.to_dict("records") == [
        {"start": pd.Timestamp("2024-01-01T00:30Z"), "end": pd.Timestamp("2024-01-01T00:37Z"), "missing": 7}
    ]
    assert report.score == pytest.approx(0.93)


def test_every_flag_has_its_first_ten_places_with_their_sizes():
    holes = [i for start in range(30, 90, 5) for i in (start, start + 1)]
    (found,) = assess(frame().drop(index=holes), MINUTES, NOW).flags
    assert (found.code, found.rows, found.unit) == ("GAP", 12, "missing bars")
    assert found.moments[:2] == ("2024-01-01T00:30:00+00:00", "2024-01-01T00:35:00+00:00")
    assert found.sizes == (2.0,) * 10
    assert "--sessions" in found.cause
    assert found.to_dict()["moments"] == list(found.moments)


def test_stale_runs_are_flagged_and_lower_the_score_but_stay():
    bars = frame()
    still = bars["close"][19]
    bars.loc[20:39, ["open", "high", "low", "close"]] = still
    report = assess(bars, MINUTES, NOW)
    assert report.flagged["flag"].tolist() == ["STALE"] * 20
    assert report.flagged["size"].tolist() == [20] * 20
    assert len(report.clean) == 100
    assert report.score == pytest.approx(0.8)


def test_the_settings_say_from_where_on_bars_are_stale_a_jump_or_divergent():
    shipped = load_params().data.quality
    assert shipped == QualityParams()  # the file and the types name the same numbers
    still = frame(300)
    still.loc[100:119, ["open", "high", "low", "close"]] = still["close"][99]
    count = {
        least: assess(still, MINUTES, NOW, rules=QualityParams(stale_bars=least)).counts["stale"] for least in (20, 21)
    }
    assert count == {20: 20, 21: 0}
    jumped = frame(600)
    jumped.loc[500:, ["open", "high", "low", "close"]] *= 1.2
    counts = [assess(jumped, MINUTES, NOW, rules=QualityParams(jump_mads=mads)).counts["jumps"] for mads in (20.0, 1e6)]
    assert counts == [1, 0]
    other = still.assign(close=still["close"] * np.where(np.arange(300) == 50, 1.001, 1.0))
    found = [
        len(cross_source_divergence(still, other, QualityParams(divergent_bps=bps)).flagged) for bps in (9.0, 11.0)
    ]
    assert found == [1, 0]


def test_a_jump_is_flagged_and_costs_nothing():
    bars = frame(600)
    bars.loc[500:, ["open", "high", "low", "close"]] *= 1.2
    report = assess(bars, MINUTES, NOW)
    assert report.flagged["flag"].tolist() == ["JUMP"]
    assert report.flagged["open_time"][0] == bars["open_time"][500]
    assert report.score == 1.0


def test_a_jump_among_the_first_bars_is_seen_too():
    bars = frame(600)
    bars.loc[100:, ["open", "high", "low", "close"]] *= 1.2
    report = assess(bars, MINUTES, NOW)
    assert report.flagged["open_time"].tolist() == [bars["open_time"][100]]
    (found,) = report.flags
    assert (found.code, found.moments) == ("JUMP", ("2024-01-01T01:40:00+00:00",))
    assert found.sizes[0] > 20
    assert report.score == 1.0


def test_a_jump_is_judged_by_the_past_alone():
    bars = frame(1000)
    bars.loc[500:, ["open", "high", "low", "close"]] *= 1.2
    whole, cut = assess(bars, MINUTES, NOW).flagged, assess(bars[:501], MINUTES, NOW).flagged
    pd.testing.assert_frame_equal(whole[whole["open_time"] <= bars["open_time"][500]], cut)


spoils = st.lists(
    st.tuples(
        st.integers(0, 59),
        st.sampled_from(["open_time", "open", "high", "low", "close", "volume", "taker_buy_volume", "half_spread"]),
        st.sampled_from([np.nan, np.inf, -1.0, 0.0, 1e9]),
    ),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(spoils=spoils, picks=st.lists(st.integers(0, 59), min_size=1, max_size=120))
def test_nothing_is_dropped_clean_and_quarantined_are_what_came_in(spoils, picks):
    bars = frame(60).assign(trades=np.arange(60.0))  # trades names the row, whatever becomes of it
    for row, name, value in spoils:
        bars.loc[row, name] = pd.NaT if name == "open_time" else value
    dirty, _ = not_recorded(bars.iloc[picks].reset_index(drop=True))  # one row again and again has constant amounts
    report = assess(dirty, MINUTES, NOW)
    check(report.clean, BARS)
    named = np.r_[report.clean["trades"], report.quarantined["trades"]]
    np.testing.assert_array_equal(np.sort(named), np.sort(dirty["trades"]))
    pd.testing.assert_frame_equal(report.quarantined.drop(columns="reason"), dirty.loc[report.quarantined.index])
    assert (report.quarantined["reason"] != "").all()
    assert 0.0 <= report.score <= 1.0


def test_if_nothing_is_usable_the_score_is_zero():
    assert assess(frame().assign(close=np.nan), MINUTES, NOW).score == 0.0


def test_closed_weekends_are_missing_only_where_the_market_is_declared_to_trade_day_and_night():
    hours = pd.date_range("2024-01-01", periods=24 * 7 * 10, freq="h", tz="UTC")
    open_hours = hours[hours.dayofweek < 5].delete([50, 51])
    n = len(open_hours)
    bars = frame(n).assign(open_time=open_hours.as_unit("us"), known_at=(open_hours + timedelta(hours=1)).as_unit("us"))
    bars["ingested_at"] = bars["known_at"]
    assert assess(bars, HOURS, NOW).score < 0.75
    grid = infer_grid(epoch_seconds(bars["open_time"]))
    report = assess(bars, grid, NOW)
    assert report.grid == grid
    assert not grid.calendar.always_open
    assert report.gaps["missing"].tolist() == [2]
    assert report.score == pytest.approx(1 - 2 / (n + 2))


def test_a_bar_outside_trading_hours_is_quarantined_and_a_weekend_lengthens_no_move():
    opens = bars_of("us-equity", 3600.0, date(2024, 1, 2), date(2024, 3, 28))[:, 0]
    grid = Grid("1h", CALENDARS["us-equity"])
    rng = np.random.default_rng(5)
    close = 100 * np.exp(np.cumsum(1e-3 * rng.standard_normal(len(opens))))
    monday = int(np.flatnonzero(np.diff(opens) > 2 * DAY)[8]) + 1
    close[monday:] *= 1.03
    unknown = np.full(len(opens), np.nan)
    rows = np.column_stack([opens, *[close] * 4, rng.lognormal(size=len(opens)), unknown, unknown, unknown])
    late = rows[-1:].copy()
    late[:, 0] = opens[-1] + 1800.0  # 16:00 New York
    report = assess(to_frame(np.vstack([rows, late]), grid, None), grid, NOW)
    assert report.quarantined["reason"].to_dict() == {len(rows): "OFF_GRID"}
    assert (report.counts["missing"], report.counts["gaps"]) == (0, 0)
    jumps = report.flagged[report.flagged["flag"] == "JUMP"]
    assert epoch_seconds(jumps["open_time"]).tolist() == [opens[monday]]  # not taken for a bar of three days
    assert report.clean["known_at"].max() == pd.Timestamp("2024-03-28 16:00", tz="America/New_York")


@pytest.mark.parametrize(
    ("name", "timeframe", "weekly", "least"),
    [
        ("candles/binance_spot_ethusdt_5m_to_2025h1.parquet", "5m", False, 0.9999),
        ("candles/binance_spot_btcusdt_1h_2017_2025h1.parquet", "1h", False, 0.998),
        ("forex/oanda_xauusd_1h_to_2015h1.parquet", "1h", True, 0.95),
    ],
)
def test_recorded_markets_are_good_enough_to_train_on(name, timeframe, weekly, least):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"recorded data {name} is not on this machine")
    frame = read(path, NOW).frame
    grid = infer_grid(epoch_seconds(frame["open_time"]))
    report = assess(frame, grid, NOW)
    assert grid.timeframe == timeframe
    assert set(report.quarantined["reason"]) <= {"OFF_GRID"}  # quotes of gold in the hour after a Friday's close
    assert len(report.quarantined) < (0.001 * len(frame) if weekly else 1)
    assert report.grid.calendar.always_open != weekly
    assert report.score >= least


def test_what_cannot_be_assessed_is_refused():
    with pytest.raises(NotEnoughData, match="empty"):
        assess(frame()[:0], MINUTES, NOW)
    with pytest.raises(BadTimes, match="no time zone"):
        assess(frame(), MINUTES, datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(BadColumns):
        assess(frame().drop(columns="trades"), MINUTES, NOW)


def test_two_sources_that_part_ways_are_flagged_where_they_do_and_their_usual_distance_is_not():
    rng = np.random.default_rng(0)
    a = frame(300)
    b = a.assign(close=a["close"] * np.exp(-2e-4 + 1e-5 * rng.standard_normal(300)))
    b.loc[120, "close"] *= 1.01
    found = cross_source_divergence(a, b)
    assert found.n == 300
    assert found.median_bps == pytest.approx(2.0, abs=0.1)
    assert found.flagged["open_time"].tolist() == [a["open_time"][120]]
    assert found.flagged["bps"][0] == pytest.approx(2.0 - 99.5, abs=1.0)
    with pytest.raises(NotEnoughData, match="both sources"):
        cross_source_divergence(a, b.iloc[:5])


@pytest.mark.filterwarnings("error")
def test_a_bar_without_a_time_among_those_of_a_session_market_is_quarantined_without_a_word():
    opens = bars_of("us-equity", 3600.0, date(2024, 1, 2), date(2024, 1, 30))[:, 0]
    grid = Grid("1h", CALENDARS["us-equity"])
    prices = np.repeat(100 + np.random.default_rng(1).random((len(opens), 1)), 4, axis=1)
    rows = np.column_stack([opens, prices, np.full((len(opens), 4), np.nan)])
    report = assess(put(to_frame(rows, grid, None), 7, open_time=pd.NaT), grid, NOW)
    assert report.counts["no_time"] == 1
