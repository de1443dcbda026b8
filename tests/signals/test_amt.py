"""S12: value areas and phases on a balance drawn by hand, and against plain versions of the rules on real bars."""

import numpy as np
import pytest
import talib
from support.signal_subset import SignalSubset

from pipelines.signals import amt

FOLD = SignalSubset("amt")
AT = FOLD.index
INSIDE, WIDE = (100.2, 99.8, 100.0), (101.0, 99.0, 100.0)  # high, low, close
BALANCE = [WIDE] * 19 + [INSIDE] * 32
VALUE = (99.75, 100.25)  # eight of 32 bins between 99 and 101 hold all that is inside
ABOVE, BACK = (100.9, 100.3, 100.8), (100.9, 99.9, 100.1)
POKE = (100.6, 99.8, 100.0)


def market(*tail):
    """A balance around 100, then `tail`."""
    high, low, close = np.array(BALANCE + list(tail)).T
    n = len(close)
    return np.column_stack([900.0 * np.arange(n), close, high, low, close, np.ones((n, 4))])


def upside_down(bars):
    out = bars.copy()
    out[:, [1, 2, 3, 4]] = -bars[:, [1, 3, 2, 4]]
    return out


def column(bars, name):
    return FOLD.run(bars)[:, AT[name]]


def phases(*tail):
    """First letters of the phases at the last bar of the balance and at each of the tail; upside down alike."""
    bars = market(*tail)
    there, mirrored = (FOLD.run(side)[len(BALANCE) - 1 :, AT["amt_phase"] :] for side in (bars, upside_down(bars)))
    np.testing.assert_array_equal(there[:, 0], mirrored[:, 0])
    left = there[:, 0] > 1  # a profile breaks its ties upwards, so the middle of a renewed value area may lie otherwise
    np.testing.assert_allclose(there[left, 1], -mirrored[left, 1], atol=1e-9)
    return [amt.PHASES[int(phase)][0] for phase in there[:, 0]]


@pytest.mark.parametrize(("turn", "side"), [(lambda bars: bars, -1.0), (upside_down, 1.0)])
def test_a_close_back_in_value_signals_the_other_side_once(turn, side):
    rows = FOLD.run(turn(market(ABOVE, BACK, INSIDE)))[-3:]
    assert rows[:, AT["amt_accumulation.direction"]].tolist() == [0.0, side, 0.0]
    low, high = rows[1, AT["amt_accumulation.low"]], rows[1, AT["amt_accumulation.high"]]
    assert abs(low) < 100.8
    assert abs(high) < 100.8
    reach = talib.ATR(*(turn(market(ABOVE, BACK))[:, i] for i in (2, 3, 4)), 14)[-1]
    outside = 100.8 - max(abs(low), abs(high))
    assert rows[1, AT["amt_accumulation.strength"]] == pytest.approx(outside / reach)


@pytest.mark.parametrize(("turn", "side"), [(lambda bars: bars, 1.0), (upside_down, -1.0)])
def test_the_third_close_outside_value_accepts_it_and_the_fourth_gives_no_signal(turn, side):
    rows = FOLD.run(turn(market(ABOVE, ABOVE, ABOVE, ABOVE)))[-4:]
    assert rows[:, AT["amt_distribution.direction"]].tolist() == [0.0, 0.0, side, 0.0]
    edges = rows[2, [AT["amt_distribution.low"], AT["amt_distribution.high"]]]
    assert sorted(abs(edges)) == pytest.approx(VALUE)
    reach = talib.ATR(*(turn(market(ABOVE, ABOVE, ABOVE))[:, i] for i in (2, 3, 4)), 14)[-1]
    assert rows[2, AT["amt_distribution.strength"]] == pytest.approx((100.8 - 100.25) / reach)


def test_bars_that_never_balance_have_no_value_and_no_phase():
    steps = 100 + 0.5 * np.arange(120)
    bars = np.column_stack([900.0 * np.arange(120), steps, steps + 0.3, steps - 0.3, steps, np.ones((120, 4))])
    rows = FOLD.run(bars)
    assert not rows[50:, [AT["amt_accumulation.direction"], AT["amt_distribution.direction"]]].any()
    assert not rows[47:, [AT["amt_phase"], AT["amt_phase_score"]]].any()


TINY = (100.01, 99.99, 100.0)
SPIKE = (112.0, 99.8, 100.0)
AROUND = [ABOVE, INSIDE] * 25
NEW_HOME = (101.1, 100.7, 100.9)
CLIMB = [(100.5 + 0.6 * i, 100.3 + 0.6 * i, 100.4 + 0.6 * i) for i in range(60)]
TRANSITIONS = {
    "settled": ([], "A"),
    "it stays while closes are quiet": ([INSIDE] * 3, "AAAA"),
    "no balance any more": ([TINY] * 12, "A" * 10 + "UUU"),
    "a close outside": ([ABOVE], "AM"),
    "a poke": ([POKE], "AM"),
    "the third close outside": ([ABOVE] * 3, "AMMD"),
    "closes outside but not in a row": ([ABOVE, ABOVE, BACK, ABOVE], "AMMMM"),
    "three quiet bars": ([POKE] + [INSIDE] * 3, "AMMMA"),
    "a poke among the quiet bars": ([POKE, INSIDE, POKE, INSIDE, INSIDE, INSIDE], "AMMMMMA"),
    "three quiet bars without a balance": ([SPIKE] + [INSIDE] * 3, "AMMMU"),
    "never resolved for 48 bars": ([*AROUND[:46], SPIKE, SPIKE, SPIKE], "A" + "M" * 48 + "U"),
    "the move away fails": ([ABOVE] * 3 + [BACK], "AMMDM"),
    "and falls out of the other side": ([ABOVE] * 3 + [(100.8, 99.0, 99.2)], "AMMDM"),
    "value follows price": ([ABOVE] * 3 + [NEW_HOME] * 22, "AMMD" + "D" * 21 + "A"),
    "never balanced for 48 bars": (CLIMB[:51], "AMM" + "D" * 48 + "U"),
}


@pytest.mark.parametrize("name", TRANSITIONS)
def test_the_phase_after_each_bar_worked_by_hand(name):
    tail, expected = TRANSITIONS[name]
    assert "".join(phases(*tail)) == expected


def test_the_lean_of_each_phase():
    scores = column(market(ABOVE, ABOVE, ABOVE, CLIMB[2], CLIMB[3]), "amt_phase_score")[-6:]
    np.testing.assert_allclose(scores, [0, -4 / 9, -2 / 9, 1, 47 / 48, 46 / 48], atol=1e-9)
    assert column(market(POKE), "amt_phase_score")[-1] == pytest.approx(-2 / 3)
    near_the_top = column(market((100.2, 99.8, 100.15)), "amt_phase_score")[-1]
    assert near_the_top == pytest.approx(-0.15 / 0.25 / 3)


def plain_area(bars, start, stop):
    """Return the value area of the stateless rule."""
    part = bars[start:stop]
    bottom, top, volumes = part[:, 3].min(), part[:, 2].max(), part[:, 5]
    weights = volumes if (volumes > 0).all() else np.ones(len(part))
    width = (top - bottom) / 32
    profile = [0.0] * 32
    for (high, low), weight in zip(part[:, 2:4], weights, strict=True):
        touched = range(min(int((low - bottom) / width), 31), min(int((high - bottom) / width), 31) + 1)
        for b in touched:
            profile[b] += weight / len(touched)
    low = high = int(np.argmax(profile))
    inside, wanted = profile[low], 0.7 * sum(weights)
    while inside < wanted and high - low < 31:
        below = profile[low - 1] if low > 0 else -1.0
        above = profile[high + 1] if high < 31 else -1.0
        low, high, inside = (low, high + 1, inside + above) if above >= below else (low - 1, high, inside + below)
    return bottom + low * width, bottom + (high + 1) * width, top - bottom


def expected_columns(bars):
    """(accumulation, distribution, phase) of every bar from 51 on, over whole arrays."""
    n, close = len(bars), bars[:, 4]
    reach = talib.ATR(bars[:, 2], bars[:, 3], close, 14)
    areas = {t: plain_area(bars, t - 47, t + 1) for t in range(47, n)}
    ways = np.zeros((n, 3))
    phase, value, side, run, age = "U", None, 0, [], 0
    for t in range(47, n):
        bottom, top, span = areas[t]
        balance, within = span <= 7 * reach[t], bottom <= close[t] <= top
        if balance and within:
            ways[t, 0] = int(close[t - 1] < bottom) - int(close[t - 1] > top)
        if t >= 50:
            bottom3, top3, span3 = areas[t - 3]
            if span3 <= 7 * reach[t] and bottom3 <= close[t - 3] <= top3:
                three = close[t - 2 : t + 1]
                ways[t, 1] = int((three > top3).all()) - int((three < bottom3).all())
        was, age = phase, age + 1
        if phase == "U":
            phase = "A" if balance and within else "U"
        else:
            where = int(close[t] > value[1]) - int(close[t] < value[0])
            over, under = bars[t, 2] - value[1], value[0] - bars[t, 3]
            poked = where == 0 and max(over, under) >= 0.1 * reach[t]
            if phase == "D":
                moved = (bottom + top) / 2 - value[1] if side > 0 else value[0] - (bottom + top) / 2
                if where != side:
                    phase, run, side = "M", [where] * abs(where), where or side
                elif balance and within and moved > 0:
                    phase = "A"
                elif age >= 48:
                    phase = "U"
            else:
                run = [*run, where] if not poked else []
                last = run[-3:]
                if len(last) == 3 and abs(sum(last)) == 3:
                    phase, side = "D", where
                elif where or poked:
                    phase = "U" if was == "M" and age >= 48 else "M"
                elif phase == "A" or last == [0, 0, 0]:
                    phase = "A" if balance else "U"
                elif age >= 48:
                    phase = "U"
        if phase == "A":
            run = []
            if balance and within:
                value = bottom, top
        age = age if phase == was else 0
        ways[t, 2] = "UAMD".index(phase)
    return ways


@pytest.mark.parametrize("volume", ["recorded", "time"])
def test_both_signals_and_the_phase_are_what_the_stateless_rules_and_the_table_give(real_year, volume):
    bars = real_year[9000:12000].copy()
    if volume == "time":
        bars[:, 5:] = np.nan
    names = ["amt_accumulation.direction", "amt_distribution.direction", "amt_phase"]
    folded, expected = FOLD.run(bars)[:, [AT[name] for name in names]], expected_columns(bars)
    np.testing.assert_array_equal(folded[50:], expected[50:])
    assert all((expected[:, i] == way).sum() > 15 for i in (0, 1) for way in (-1, 1))
    assert set(expected[50:, 2]) == {0.0, 1.0, 2.0, 3.0}


def test_volume_decides_where_value_lies():
    poked = market((100.2, 99.6, 100.0))
    assert column(poked, "amt_phase")[-1] == 2.0
    poked[:19, 5] = 500.0  # almost all was traded in the wide bars: the same wick is within value
    assert column(poked, "amt_phase")[-1] == 1.0


def test_bars_without_sound_prices_are_as_if_they_were_not_there(bars):
    part = bars[:400]
    holed = np.insert(part, 200, np.full(9, np.nan), axis=0)
    torn = np.insert(part, 200, [part[199, 0], 1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0], axis=0)  # high below low
    for spoilt in (holed, torn):
        found = FOLD.run(spoilt)
        assert np.isnan(found[200]).all()
        np.testing.assert_array_equal(np.delete(found, 200, axis=0), FOLD.run(part))
