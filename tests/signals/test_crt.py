"""S13: the range of the last 4 h candle, swept and closed back into; by hand, against the stateless rule, over gaps."""

import numpy as np
import pytest
import talib
from support.signal_subset import SignalSubset

from pipelines.data.timeframes import Grid, resample

QUARTERS = Grid("15m")

FOLD = SignalSubset("crt")
AT = FOLD.index
QUIET = (100.5, 99.5, 100.0)  # high, low, close
BEYOND, BACK = (101.1, 99.8, 101.0), (101.0, 99.8, 100.2)
NAMES = ("crt.direction", "crt.strength", "crt.low", "crt.high")


def market(*tail, quiet=36, seconds=900.0):
    """Two 4 h candles of quiet bars from 99.5 to 100.5 and four bars of a third, then `tail` in that one."""
    high, low, close = np.array([QUIET] * quiet + list(tail)).T
    n = len(close)
    return np.column_stack([seconds * np.arange(n), close, high, low, close, np.ones((n, 4))])


def upside_down(bars):
    out = bars.copy()
    out[:, [1, 2, 3, 4]] = -bars[:, [1, 3, 2, 4]]
    return out


def directions(bars):
    return FOLD.run(bars)[:, AT["crt.direction"]]


def test_the_first_close_back_inside_signals_against_the_side_that_was_swept():
    bars = market(BEYOND, BACK, BACK)
    rows = FOLD.run(bars)[-3:]
    assert rows[:, AT["crt.direction"]].tolist() == [0.0, -1.0, 0.0]
    reach = talib.ATR(bars[:, 2], bars[:, 3], bars[:, 4], 14)[-2]
    assert [rows[1, AT[name]] for name in NAMES[1:]] == pytest.approx([(101.1 - 100.5) / reach, 99.5, 100.5])
    assert np.isnan(rows[[0, 2]][:, [AT[name] for name in NAMES[1:]]]).all()
    mirrored = FOLD.run(upside_down(bars))[-3:]
    assert mirrored[:, AT["crt.direction"]].tolist() == [0.0, 1.0, 0.0]
    assert mirrored[1, AT["crt.strength"]] == rows[1, AT["crt.strength"]]


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        ([(100.55, 99.8, 100.2)], "not 0.1 ATR beyond"),
        ([BEYOND, (101.0, 99.0, 99.2)], "through the range and out of its other side"),
        ([(100.55, 99.8, 100.2), BEYOND, BACK], "it had closed back before"),
        ([BEYOND, BEYOND], "still beyond"),
    ],
)
def test_it_gives_no_signal_where(tail, why):
    assert directions(market(*tail))[-1] == 0.0, why


def test_the_candle_of_the_sweep_must_be_the_candle_of_the_return():
    late = market(BEYOND, BEYOND, quiet=46)  # bars 47 and 48 of three candles: the next bar opens a fourth
    after = np.vstack([late, market(BACK, quiet=48)[-1:]])
    assert directions(after)[-1] == 0.0
    assert directions(market(BEYOND, BACK, quiet=46))[-1] == -1.0


def test_the_distances_are_to_the_candle_that_this_bar_closed():
    bars = market(BEYOND, quiet=46)
    bars = np.vstack([bars, market((100.2, 98.9, 99.0), QUIET, quiet=47)[-2:]])
    reach = talib.ATR(bars[:, 2], bars[:, 3], bars[:, 4], 14)
    rows = FOLD.run(bars)[:, [AT[name] for name in ("crt_level_score", "crt.to_high", "crt.to_low")]]
    assert rows[46] * reach[46] == pytest.approx([101.0 - 100.0, 100.5 - 101.0, 101.0 - 99.5])
    assert rows[47] * reach[47] == pytest.approx([99.0 - 100.0, 101.1 - 99.0, 99.0 - 98.9])  # its own candle
    assert rows[48] * reach[48] == pytest.approx([100.0 - 100.0, 101.1 - 100.0, 100.0 - 98.9])


def test_the_first_candle_of_a_fold_is_a_range_only_if_it_is_whole():
    whole, torn = FOLD.run(market(quiet=40)), FOLD.run(market(quiet=40)[1:])
    first = [np.flatnonzero(~np.isnan(rows[:, AT["crt_level_score"]]))[0] for rows in (whole, torn)]
    assert first == [15, 30]
    assert np.flatnonzero(~np.isnan(whole[:, AT["crt.direction"]]))[0] == 16


@pytest.mark.parametrize(("seconds", "bars_a_candle"), [(3600.0, 4), (7200.0, 12), (14400.0, 6)])
def test_the_frame_is_the_first_that_holds_four_bars(seconds, bars_a_candle):
    quiet = 4 * bars_a_candle + 16 - 16 % bars_a_candle
    found = directions(market(BEYOND, BACK, quiet=quiet, seconds=seconds))
    assert found[-1] == -1.0
    assert not np.nan_to_num(found[:-1]).any()
    crossing = market(BEYOND, quiet=quiet - 1, seconds=seconds)
    crossing = np.vstack([crossing, market(BACK, quiet=quiet, seconds=seconds)[-1:]])
    assert directions(crossing)[-1] == 0.0


def test_bars_of_which_no_frame_holds_four_have_no_such_signal():
    assert np.isnan(FOLD.run(market(BEYOND, BACK, quiet=60, seconds=86400.0))).all()


def range_setup(high, low, close, slots, reach):
    """The stateless rule, one side."""
    begin = int(np.flatnonzero(slots == slots[-1])[0])
    if begin == 0:
        return 0.0
    before = slots == slots[begin - 1]
    level, floor = high[before].max(), low[before].min()
    beyond = np.flatnonzero(high[begin:] > level)
    if len(beyond) == 0 or (close[begin + beyond[0] : -1] < level).any():
        return 0.0
    depth = (high[begin:].max() - level) / reach
    return depth if floor < close[-1] < level and depth >= 0.1 else 0.0


@pytest.mark.parametrize("seconds", [900, 7200])
def test_it_is_the_stateless_rule_on_recorded_bars_with_holes(real_year, seconds):
    bars = real_year[4000:8000] if seconds == 900 else resample(real_year, QUARTERS, Grid("2h"))[:4000]
    bars = bars[np.random.default_rng(2).random(len(bars)) > 0.03]
    high, low, close = bars[:, 2], bars[:, 3], bars[:, 4]
    reach, slots = talib.ATR(high, low, close, 14), bars[:, 0] // (14400 if seconds == 900 else 86400)
    rows, signalled = FOLD.run(bars), np.zeros(3)
    for t in range(100, len(bars)):
        part = slice(t - 60, t + 1)
        above = range_setup(high[part], low[part], close[part], slots[part], reach[t])
        below = range_setup(-low[part], -high[part], -close[part], slots[part], reach[t])
        expected = np.sign(below - above)
        assert rows[t, AT["crt.direction"]] == expected
        if expected:
            assert rows[t, AT["crt.strength"]] == pytest.approx(max(above, below))
        signalled[int(expected)] += 1
    assert signalled[[1, -1]].min() > 20


def test_the_distances_are_to_the_last_candle_that_resampling_gives(real_year):
    bars = real_year[:1200]
    reach = talib.ATR(bars[:, 2], bars[:, 3], bars[:, 4], 14)
    rows = FOLD.run(bars)[:, [AT[name] for name in ("crt_level_score", "crt.to_high", "crt.to_low")]]
    for t in range(15, len(bars)):
        candle, close = resample(bars[: t + 1], QUARTERS, Grid("4h"))[-1], bars[t, 4]
        expected = close - candle[2:4].mean(), candle[2] - close, close - candle[3]
        np.testing.assert_allclose(rows[t] * reach[t], expected, rtol=1e-9, atol=1e-6)
