"""S3 liquidity sweep: imminence before and reversal after, by hand; every column against each swing's life."""

import numpy as np
import pytest
import talib
from support.signal_subset import SignalSubset

from pipelines.contracts import BAR_WIDTH
from pipelines.signals import sweep

FOLD = SignalSubset("sweep")
AT = FOLD.index
CALM = (100.0, 100.5, 99.5, 100.0)  # ATR 1
SWING = (100.0, 102.0, 99.6, 100.0)


def market(*tail):
    candles = [CALM] * 30 + list(tail)
    bars = np.ones((len(candles), BAR_WIDTH))
    bars[:, 0] = 900.0 * np.arange(len(candles))
    bars[:, 1:5] = candles
    return bars


def upside_down(bars):
    out = bars.copy()
    out[:, 1:5] = -bars[:, [1, 3, 2, 4]]
    return out


def imminence(*tail):
    """(at highs, at lows) on the last of the candles, and the ATR there."""
    bars = market(*tail)
    row, fallen = FOLD.run(bars)[-1], FOLD.run(upside_down(bars))[-1]
    high, low = row[[AT["sweep.imminence_high"], AT["sweep.imminence_low"]]]
    assert (fallen[AT["sweep.imminence_low"]], fallen[AT["sweep.imminence_high"]]) == (high, low)
    return high, low, talib.ATR(*bars.T[2:5].copy(), 14)[-1]


def test_a_sweep_grows_imminent_as_price_nears_an_unspent_swing():
    assert imminence(SWING, *[CALM] * 5)[:2] == (0.0, 0.0)  # two away
    high, low, reach = imminence(SWING, *[CALM] * 5, (100.0, 101.6, 100.0, 101.5))
    assert high == pytest.approx(1.0 - 0.5 / reach)
    assert low == 0.0
    assert imminence(SWING, *[CALM] * 5, (100.0, 102.0, 100.0, 102.0))[0] == 1.0


def test_no_sweep_is_imminent_at_a_high_that_is_not_confirmed_or_is_spent():
    assert imminence(SWING, *[CALM] * 3, (100.0, 101.6, 100.0, 101.5))[0] == 0.0
    swept = (100.0, 102.5, 99.8, 101.9)
    assert imminence(SWING, *[CALM] * 5, swept)[0] == 0.0


def test_a_close_beyond_the_swing_leaves_it_imminent_until_it_is_left_behind():
    beyond = (102.1, 102.4, 102.0, 102.2)
    high, _, reach = imminence(SWING, *[CALM] * 5, beyond, beyond)
    assert high == pytest.approx(1.0 - 0.2 / reach)
    assert imminence(SWING, *[CALM] * 5, beyond, beyond, beyond)[0] == 0.0


def test_the_reversal_is_how_much_of_the_wick_is_taken_back():
    bars = market(SWING, *[CALM] * 5, (100.0, 102.5, 99.5, 100.25))
    for turn, side in ((lambda b: b, -1.0), (upside_down, 1.0)):
        rows = FOLD.run(turn(bars))
        assert rows[-1, AT["sweep.direction"]] == side
        assert rows[-1, AT["sweep.reversal"]] == 0.75
        assert np.isnan(rows[:-1, AT["sweep.reversal"]]).all()


def lives(high, close, atr):
    """Every swing high as [confirmed on bar, spent on bar, level, wick depth in ATR or 0, the wick's end]."""
    n = len(high)
    swings = [i for i in range(5, n - 5) if high[i - 5 : i].max() < high[i] >= high[i + 1 : i + 6].max()]
    lives = []
    for number, i in enumerate(swings):
        newer = (
            swings[number + sweep.MAX_SWINGS] + 5 if number + sweep.MAX_SWINGS < len(swings) else n
        )  # as many newer ones: forgotten
        life, beyond, extreme = [i + 5, n, high[i], 0.0, np.nan], 0, -np.inf
        for t in range(i + 6, min(newer + 1, n)):
            if beyond or high[t] > high[i]:
                beyond, extreme = beyond + 1, max(extreme, high[t])
            if beyond and close[t] < high[i]:
                if extreme - high[i] >= 0.1 * atr[t]:
                    life[1], life[3:] = t, [(extreme - high[i]) / atr[t], extreme]
                    break
                beyond, extreme = 0, -np.inf
            elif beyond == 3:
                life[1] = t
                break
        life[1] = min(life[1], newer)
        lives.append(life)
    return lives


def nearness(lives, close, atr, t):
    near = [1.0 - abs(level - close[t]) / atr[t] for born, spent, level, *_ in lives if born <= t < spent]
    return max([0.0, *near])


def test_it_is_the_rule_swing_by_swing(year):
    bars = year[:4000]
    _, _, high, low, close = bars.T[:5].copy()
    atr = talib.ATR(high, low, close, 14)
    above, below = lives(high, close, atr), lives(-low, -close, atr)
    wanted = np.full((len(bars), 7), np.nan)
    for t in range(14, len(bars)):
        wanted[t, 0] = 0.0
        wanted[t, 4:6] = nearness(above, close, atr, t), nearness(below, -close, atr, t)
        top = max((life for life in above if life[1] == t), key=lambda life: life[3], default=[0.0] * 5)
        bottom = max((life for life in below if life[1] == t), key=lambda life: life[3], default=[0.0] * 5)
        if top[3] > bottom[3]:
            wanted[t, :4] = -1.0, top[3], top[2], top[4]
            wanted[t, 6] = (top[4] - close[t]) / (top[4] - low[t])
        elif bottom[3] > top[3]:
            wanted[t, :4] = 1.0, bottom[3], -bottom[4], -bottom[2]
            wanted[t, 6] = (close[t] + bottom[4]) / (high[t] + bottom[4])
    assert np.nansum(np.abs(wanted[:, 0])) > 100
    np.testing.assert_allclose(FOLD.run(bars), wanted, rtol=1e-9, atol=1e-9)
