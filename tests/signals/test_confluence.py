"""S15: trends of five timeframes out of one fold, minute by minute or bar by bar, against candles made directly."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.signal_subset import SignalSubset

from pipelines.contracts import CLOSE
from pipelines.data.timeframes import TIMEFRAMES, Grid, resample
from pipelines.signals import confluence
from pipelines.signals.catalog import SIGNALS

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

MINUTES, QUARTERS = Grid("1m"), Grid("15m")

RECORDED = Path(__file__).parents[2] / "../shared/data/candles/binance_spot_btcusdt_1m_2024.parquet"
FOLD = SignalSubset("confluence")
AT = FOLD.index
WEIGHTS = {"5m": 0.10, "15m": 0.20, "1h": 0.30, "4h": 0.25, "1d": 0.15}


def market(closes, seconds=900.0):
    closes = np.asarray(closes, dtype=float)
    n = len(closes)
    return np.column_stack([seconds * np.arange(n), closes, closes + 1, closes - 1, closes, np.ones((n, 4))])


def column(bars, name):
    return FOLD.run(bars)[:, AT[name]]


def trend(candles):
    """Sign of the last of six closes against their mean; None where there are fewer."""
    closes = candles[-6:, 4]
    return None if len(closes) < 6 else int(np.sign((closes[-1] - closes).sum()))


def expected_trends(bars, base):
    """Trends at the close of the last bar, from candles made of the bars directly."""
    found = {}
    for name in WEIGHTS:
        if TIMEFRAMES[name] >= base.step_s:
            found[name] = trend(resample(bars, base, base.at(name)))
    return {name: way for name, way in found.items() if way is not None}


@pytest.fixture(scope="module")
def minutes():
    if not RECORDED.exists():
        pytest.skip(f"recorded bars are not at {RECORDED.resolve()}")
    frame = pd.read_parquet(RECORDED).iloc[: 1440 * 9]
    columns = ["open", "high", "low", "close", "volume_base", "trade_count", "taker_buy_volume_base"]
    seconds = frame["open_time"].dt.as_unit("s").astype("int64").to_numpy(dtype=float)
    return np.ascontiguousarray(
        np.column_stack([seconds, frame[columns].to_numpy(dtype=float), np.full(len(frame), np.nan)])
    )


def test_a_market_that_turns_is_agreed_on_once_all_timeframes_have_turned():
    closes = np.concatenate([1000 - np.arange(200.0), 801 + np.arange(200.0)])
    bars = market(closes)
    direction = column(bars, "confluence.direction")
    assert np.flatnonzero(direction == 1).tolist() == [int(np.flatnonzero(column(bars, "confluence.score") == 1)[0])]
    assert 200 < np.flatnonzero(direction == 1)[0] < 300  # 4 h is the last to turn
    assert not (direction == -1).any()  # it was falling when the fold began: nothing new
    mirrored = bars.copy()
    mirrored[:, 1:5] = -bars[:, [1, 3, 2, 4]]
    np.testing.assert_array_equal(column(mirrored, "confluence.direction"), -direction)


def test_weights_of_those_without_a_vote_are_renormalised_and_lower_the_coverage():
    rows = FOLD.run(market(1000 + np.arange(700.0)))
    coverage = rows[:, AT["confluence.coverage"]]
    begins = {5: 0.20, 23: 0.50, 95: 0.75, 575: 0.90}  # six candles of 15 m, 1 h, 4 h, 1 d; 5 m is never there
    expected = np.zeros(700)
    for first, share in begins.items():
        expected[first:] = share
    np.testing.assert_allclose(coverage, expected)
    score = rows[:, AT["confluence.score"]]
    assert np.isnan(score[:5]).all()
    assert (score[5:] == 1.0).all()
    direction = rows[:, AT["confluence.direction"]]
    assert np.isnan(direction[:23]).all()  # one timeframe agrees with itself


def test_a_quiet_timeframe_has_no_trend_and_no_agreement():
    still = np.concatenate([np.full(96, 100.0), 100.0 + np.arange(1, 4)])
    rows = FOLD.run(market(still))
    assert rows[95, AT["confluence.score"]] == 0.0
    last = rows[98]  # 15 m rises; no candle of 1 h and 4 h has closed since
    assert last[AT["confluence.score"]] == pytest.approx(0.20 / 0.75)
    assert last[AT["confluence.direction"]] == 0.0


def test_it_is_as_strong_as_its_trends_are_wide_and_names_no_levels(real_year):
    bars = real_year[:3000]
    rows = FOLD.run(bars)
    signalled = np.flatnonzero(np.nan_to_num(rows[:, AT["confluence.direction"]]) != 0)
    assert len(signalled) > 50
    for t in signalled[::9]:
        apart = {}
        for name in WEIGHTS:
            if TIMEFRAMES[name] >= 900:
                closes = resample(bars[: t + 1], QUARTERS, Grid(name))[-6:, CLOSE]
                if len(closes) == 6:
                    apart[name] = abs(closes[-1] - closes.mean())
        mean = sum(WEIGHTS[name] * width for name, width in apart.items()) / sum(WEIGHTS[name] for name in apart)
        assert rows[t, AT["confluence.strength"]] == pytest.approx(mean / bars[t, CLOSE])
    assert np.isnan(np.delete(rows[:, AT["confluence.strength"]], signalled)).all()
    assert np.isnan(rows[:, [AT["confluence.low"], AT["confluence.high"]]]).all()


def test_fold_over_bars_with_holes_is_that_of_candles_made_directly(real_year):
    bars = real_year[:2000]
    bars = bars[np.random.default_rng(4).random(len(bars)) > 0.03]
    rows, last, signals_seen = FOLD.run(bars), None, 0
    for t in range(1, len(bars)):
        ways = expected_trends(bars[: t + 1], QUARTERS)
        total = sum(WEIGHTS[name] for name in ways)
        assert rows[t, AT["confluence.coverage"]] == pytest.approx(total)
        agreed = None
        if ways:
            score = sum(WEIGHTS[name] * way for name, way in ways.items()) / total
            assert rows[t, AT["confluence.score"]] == pytest.approx(score)
        if len(ways) > 1:
            agreed = min(ways.values()) if len(set(ways.values())) == 1 else 0
            new = agreed if last is not None and agreed != last else 0
            assert rows[t, AT["confluence.direction"]] == new
            signals_seen += new != 0
        last = agreed
    assert signals_seen > 30


def test_minute_by_minute_the_trends_are_those_of_the_bars_and_of_the_candles(minutes):
    """Three ways at every 15-minute close of nine days: folded from minutes, from bars; and candles made at once."""
    by_minute, by_bar = FOLD.fresh(), FOLD.fresh()
    bars = resample(minutes, MINUTES, QUARTERS)
    candles = {name: resample(minutes, MINUTES, Grid(name)) for name in WEIGHTS}
    seen, all_voting = 0, 0
    for bar in bars:
        closed = bar[0] + 900
        while seen < len(minutes) and minutes[seen, 0] + 60 <= closed:
            FOLD.step(by_minute, minutes[seen])
            seen += 1
        FOLD.step(by_bar, bar)
        if bar[0] == bars[0, 0]:
            continue  # one bar does not show the length of bars
        of_minutes, of_bars = (confluence.trends(SIGNALS.group_state(s, "confluence")) for s in (by_minute, by_bar))
        expected = {}
        for name, made in candles.items():
            known = made[: np.searchsorted(made[:, 0], closed - TIMEFRAMES[name], side="right")]
            if trend(known) is not None:
                expected[name] = trend(known)
        assert of_minutes == expected
        expected.pop("5m", None)  # finer than the bars
        assert of_bars == expected
        all_voting += len(expected) == 4
    assert all_voting > 250


def test_the_batch_over_minutes_is_the_live_steps(minutes):
    live, part = FOLD.fresh(), minutes[:3000]
    assert FOLD.run(part).tobytes() == np.array([FOLD.step(live, minute) for minute in part]).tobytes()
