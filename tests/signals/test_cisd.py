"""S4 change in the state of delivery: drawn by hand, and against its rule written over whole arrays."""

import numpy as np
import pytest
import talib
from support.signal_subset import SignalSubset

from pipelines.contracts import BAR_WIDTH

FOLD = SignalSubset("cisd")
QUIET = ((100.0, 100.6, 99.4, 100.1), (100.1, 100.6, 99.4, 100.0))  # ATR 1.2
RUN = ((100.0, 100.1, 99.0, 99.1), (99.1, 99.2, 98.3, 98.5))
BACK = ((98.5, 99.5, 98.4, 99.4), (99.4, 100.5, 99.3, 100.3))


def market(*tail):
    candles = [QUIET[i % 2] for i in range(40)] + list(tail)
    bars = np.ones((len(candles), BAR_WIDTH))
    bars[:, 0] = 900.0 * np.arange(len(candles))
    bars[:, 1:5] = candles
    return bars


def upside_down(bars):
    out = bars.copy()
    out[:, 1:5] = -bars[:, [1, 3, 2, 4]]
    return out


SMALL = ((99.4, 99.5, 99.2, 99.3), (99.3, 99.4, 99.1, 99.2))


# the last quiet candle falls from 100.1 to 100.0: it is the first of the run
@pytest.mark.parametrize(
    ("turn", "side", "low", "high"), [(np.copy, 1.0, 98.3, 100.1), (upside_down, -1.0, -100.1, -98.3)]
)
def test_the_first_close_through_the_open_of_a_falling_run_signals_a_rise(turn, side, low, high):
    bars = turn(market(*RUN, *BACK))
    rows = FOLD.run(bars)
    assert rows[14:-1, 0].tolist() == [0.0] * (len(bars) - 15)
    reach = talib.ATR(*bars.T[2:5].copy(), 14)[-1]
    assert rows[-1].tolist() == [side, pytest.approx((100.1 - 98.5) / reach), low, high]


WAIT = (98.5, 98.6, 98.4, 98.5)  # neither rises nor falls


@pytest.mark.parametrize(
    ("tail", "side"),
    [
        pytest.param((*RUN, BACK[0], (99.4, 100.2, 99.3, 100.05)), 0.0, id="not through the open"),
        pytest.param((*RUN, *BACK, (100.3, 100.9, 100.2, 100.8)), 0.0, id="through it a bar ago"),
        pytest.param((QUIET[0], (100.1, 100.2, 98.3, 98.5), *BACK), 0.0, id="one candle is no run"),
        pytest.param((*RUN, *[WAIT] * 10, *BACK), 1.0, id="ended 12 bars ago"),
        pytest.param((*RUN, *[WAIT] * 11, *BACK), 0.0, id="ended 13 bars ago"),
        pytest.param((*RUN, BACK[0], *SMALL, BACK[1]), 1.0, id="a smaller run is passed over"),
    ],
)
def test_it_counts_only_a_run_that_counts_and_once(tail, side):
    assert FOLD.run(market(*tail))[-1, 0] == side


def expected(bars, atr, t):
    """The row of bar t by the rule of the recogniser's setups, with Wilder's ATR."""
    for side in (1.0, -1.0):
        opened, close = side * bars[:, 1], side * bars[:, 4]
        against = close < opened
        last = [i for i in range(t - 12, t) if against[i] and (i == t - 1 or not against[i + 1])]
        for end in reversed(last):
            first = end
            while first > max(t - 101, 0) + 1 and against[first - 1]:
                first -= 1
            if end - first >= 1 and opened[first] - close[end] >= 1.0 * atr[t]:
                if close[t] > opened[first] >= close[end + 1 : t].max(initial=-np.inf):
                    run, level = bars[first : end + 1], bars[first, 1]
                    ends = (run[:, 3].min(), level) if side > 0 else (level, run[:, 2].max())
                    return [side, (opened[first] - close[end]) / atr[t], *ends]
                break
    return [0.0, np.nan, np.nan, np.nan]


def test_it_is_the_rule_over_whole_arrays(year):
    bars = year[:4000]
    atr = talib.ATR(*bars.T[2:5].copy(), 14)
    wanted = np.array([expected(bars, atr, t) for t in range(14, len(bars))])
    assert np.abs(wanted[:, 0]).sum() > 100
    np.testing.assert_allclose(FOLD.run(bars)[14:], wanted, rtol=1e-9)


def test_it_needs_prices_alone(bars):
    without = bars.copy()
    without[:, 5:] = np.nan
    assert FOLD.run(without).tobytes() == FOLD.run(bars).tobytes()
    assert {column.needs for column in FOLD.catalogue} == {None}
