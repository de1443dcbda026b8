"""S1 order block: drawn by hand, against its rule written over whole arrays, and without volume."""

import numpy as np
import pytest
import talib
from support.signal_subset import SignalSubset

from pipelines.contracts import BAR_WIDTH

FOLD = SignalSubset("order_block")
QUIET = ((100.0, 100.6, 99.4, 100.1), (100.1, 100.6, 99.4, 100.0))  # no swing, ATR 1.2
HIGH_OF = (100.0, 101.2, 99.4, 100.0)  # a swing high among them
FALLING = (100.0, 100.2, 99.0, 99.2)
RISE = ((99.2, 100.2, 99.1, 100.1), (100.1, 101.9, 100.0, 101.8))


def market(*tail, start=0.0):
    """Quiet 15-minute candles from `start` seconds after midnight, then `tail`."""
    candles = [QUIET[i % 2] for i in range(40)] + list(tail)
    bars = np.ones((len(candles), BAR_WIDTH))
    bars[:, 0] = start + 900.0 * np.arange(len(candles))
    bars[:, 1:5] = candles
    bars[:, 5:8] = 10.0, 7.0, 5.0
    return bars


def upside_down(bars):
    out = bars.copy()
    out[:, 1:5] = -bars[:, [1, 3, 2, 4]]
    out[:, 7] = bars[:, 5] - bars[:, 7]
    return out


def last_of(bars):
    return dict(zip(FOLD.columns, FOLD.run(bars)[-1], strict=True))


def test_the_block_is_the_last_falling_candle_and_known_only_when_the_swing_breaks():
    bars = market(HIGH_OF, *QUIET * 4, FALLING, *RISE)
    assert not FOLD.run(bars)[15:-1, 0].any()
    last = last_of(bars)
    assert last["order_block.direction"] == 1.0
    assert (last["order_block.low"], last["order_block.high"]) == (99.0, 100.2)
    assert last["order_block.strength"] == pytest.approx((101.8 - 99.2) / talib.ATR(*bars.T[2:5].copy(), 14)[-1])


def test_a_falling_market_signals_a_fall():
    last = last_of(upside_down(market(HIGH_OF, *QUIET * 4, FALLING, *RISE)))
    assert last["order_block.direction"] == -1.0
    assert (last["order_block.low"], last["order_block.high"]) == (-100.2, -99.0)


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param((HIGH_OF, *QUIET * 4, FALLING, RISE[0], (100.1, 101.2, 100.0, 101.1)), id="below the swing"),
        pytest.param((HIGH_OF, *QUIET, FALLING, *RISE), id="swing not confirmed at the last close"),
        pytest.param((HIGH_OF, *QUIET * 4, (101.0, 101.1, 100.3, 100.4), (100.4, 101.6, 100.4, 101.5)), id="too small"),
        pytest.param((HIGH_OF, *QUIET * 4, FALLING, *RISE, (101.8, 103.0, 101.7, 102.9)), id="broken a bar ago"),
        pytest.param((HIGH_OF, *QUIET * 4, FALLING, RISE[0], *((100.1, 100.9, 100.0, 100.1),) * 7, RISE[1]), id="late"),
    ],
)
def test_without_displacement_or_a_first_break_it_gives_no_signal(tail):
    assert last_of(market(*tail))["order_block.direction"] == 0.0


@pytest.mark.parametrize(
    ("hour", "inside"), [(6.75, 0), (7, 1), (9.75, 1), (10, 0), (11.75, 0), (12, 1), (14.75, 1), (15, 0)]
)
def test_a_killzone_holds_the_bars_that_open_in_it(hour, inside):
    bars = market(HIGH_OF, *QUIET * 4, FALLING, *RISE)
    bars[:, 0] += 86400.0 * 19000 + 3600.0 * hour - bars[-1, 0]
    assert last_of(bars)["order_block.killzone"] == inside


def test_volume_and_delta_are_those_of_the_displacement():
    bars = market(HIGH_OF, *QUIET * 4, FALLING, *RISE)
    bars[-2:, 5], bars[-2:, 7] = (20.0, 40.0), (15.0, 36.0)
    last, fallen = last_of(bars), last_of(upside_down(bars))
    assert last["order_block.volume"] == 3.0
    assert last["order_block.delta"] == fallen["order_block.delta"] == pytest.approx((10.0 + 32.0) / 60.0)


def test_what_is_not_recorded_is_missing_and_the_block_is_not(bars):
    whole, without = FOLD.run(bars), bars.copy()
    needy = [i for i, column in enumerate(FOLD.catalogue) if column.needs]
    assert [FOLD.catalogue[i].needs for i in needy] == ["volume", "taker"]
    without[:, 5:] = np.nan
    out = FOLD.run(without)
    assert np.isnan(out[:, needy]).all()
    assert out[:, :5].tobytes() == whole[:, :5].tobytes()
    spoilt = bars.copy()
    spoilt[1000:1011, 5:] = np.nan
    assert FOLD.run(spoilt)[1011 + 28 :].tobytes() == whole[1011 + 28 :].tobytes()


def is_swing(high, i):
    return high[i - 5 : i].max() < high[i] >= high[i + 1 : i + 6].max()


def expected(bars, atr, t):
    """The row of bar t by the rule of the recogniser's setups, with Wilder's ATR."""
    for side in (1.0, -1.0):
        opened, close, high = side * bars[:, 1], side * bars[:, 4], bars[:, 2] if side > 0 else -bars[:, 3]
        begin = t
        while begin > t - 8 and close[begin] >= opened[begin]:
            begin -= 1
        if close[begin] >= opened[begin] or close[t] - close[begin] < 1.5 * atr[t]:
            continue
        level = next((high[i] for i in range(t - 6, max(t - 96, 4), -1) if is_swing(high, i)), np.inf)
        if close[t] > level >= close[t - 1]:
            run, usual = bars[begin + 1 : t + 1], bars[begin - 19 : begin + 1]
            hour = int(bars[t, 0] // 3600 % 24)
            delta = side * (2.0 * run[:, 7] - run[:, 5]).sum() / run[:, 5].sum()
            quality = [hour in (7, 8, 9, 12, 13, 14), run[:, 5].mean() / usual[:, 5].mean(), delta]
            return [side, (close[t] - close[begin]) / atr[t], bars[begin, 3], bars[begin, 2], *quality]
    return [0.0] + [np.nan] * 6


def test_it_is_the_rule_over_whole_arrays(year):
    bars = year[:4000]
    atr = talib.ATR(*bars.T[2:5].copy(), 14)
    wanted = np.array([expected(bars, atr, t) for t in range(28, len(bars))])
    assert np.abs(wanted[:, 0]).sum() > 50
    np.testing.assert_allclose(FOLD.run(bars)[28:], wanted, rtol=1e-9, atol=1e-12)
