"""Absorption, Hawkes bursts and institutional flow: on markets drawn by hand, and computed over whole arrays."""

import numpy as np
import pytest
from support.reference_windows import HOLES, atr, holed, known, quiet, rank, rms, then
from support.signal_subset import SignalSubset

from pipelines.context_layout import CONTEXT_INDEX

FLOW = SignalSubset("absorption", "hawkes", "institutional")


def last(bars, contexts=None):
    return dict(zip(FLOW.columns, FLOW.run(bars, None, contexts)[-1], strict=True))


def signal_of(out, name):
    """direction, strength, low, high of one signal: (n, 4)."""
    at = FLOW.index[f"{name}.direction"]
    return out[:, at : at + 4]


def pressed(taker=9.0, close=100.1):
    bars = quiet()
    bars[-1, 4], bars[-1, 7] = close, taker
    return bars


def test_buyers_who_press_hard_and_move_nothing_are_absorbed():
    row = last(pressed())
    assert row["absorption.direction"] == -1.0
    assert row["absorption.strength"] == pytest.approx(8.0 / np.sqrt((59 + 64) / 60) * 0.9)
    assert (row["absorption.low"], row["absorption.high"]) == (99.5, 100.5)


def test_absorbed_sellers_signal_long():
    assert last(pressed(taker=1.0, close=99.9))["absorption.direction"] == 1.0


def test_price_that_went_against_the_aggressor_counts_as_no_move():
    assert last(pressed(close=99.6))["absorption.strength"] == last(pressed(close=100.0))["absorption.strength"]


def test_price_that_followed_or_takers_no_keener_than_usual_are_not_absorption():
    assert last(pressed(close=100.3))["absorption.direction"] == 0.0
    assert last(pressed(taker=5.5))["absorption.direction"] == 0.0
    assert last(pressed(taker=5.0))["absorption.direction"] == 0.0


def burst(excess=3.0, side=0.5):
    return known(70, hawkes_excess=then([0.5, 1.0], excess), hawkes_side=side, hawkes_branching=0.6)


@pytest.mark.parametrize("side", [0.5, -0.5])
def test_a_burst_signals_the_side_that_excites_it(side):
    row = last(quiet(), burst(side=side))
    assert (row["hawkes.direction"], row["hawkes.strength"]) == (np.sign(side), 1.5)
    assert (row["hawkes.branching"], row["hawkes.excess"]) == (0.6, 3.0)


def test_a_burst_of_both_sides_or_an_intensity_as_usual_gives_no_signal():
    assert last(quiet(), burst(side=0.1))["hawkes.direction"] == 0.0
    assert last(quiet(), burst(excess=1.0))["hawkes.direction"] == 0.0


def test_the_highest_of_intensities_below_their_base_rate_is_no_burst():
    contexts = known(70, hawkes_excess=then([-0.5, -0.4], -0.1), hawkes_side=0.9)
    assert last(quiet(), contexts)["hawkes.direction"] == 0.0


def flows(large, small, vpin=0.5):
    return known(70, cvd_large=then([2.0, -2.0], large), cvd_small=then([0.5, -0.5], small), vpin=vpin)


def test_large_trades_against_the_small_ones_are_followed_by_their_usual_size_and_vpin():
    row = last(quiet(), flows(1.0, -5.0))
    assert row["institutional.direction"] == 1.0
    assert row["institutional.strength"] == pytest.approx(1.5 / np.sqrt((59 * 4.0 + 1.0) / 60))
    assert row["institutional.vpin"] == 0.5
    assert last(quiet(), flows(-1.0, 5.0))["institutional.direction"] == -1.0


def test_of_a_common_side_large_trades_signal_only_if_they_lean_further_each_by_its_own_measure():
    assert last(quiet(), flows(3.0, 0.5))["institutional.direction"] == 1.0
    assert last(quiet(), flows(2.0, 1.0))["institutional.direction"] == 0.0
    assert last(quiet(), flows(0.0, 1.0))["institutional.direction"] == 0.0


def test_large_trades_alone_signal():
    contexts = known(70, cvd_large=then([2.0, -2.0], 1.0), cvd_small=0.0, vpin=0.5)
    assert last(quiet(), contexts)["institutional.direction"] == 1.0


def expected_columns(direction, strength, low=np.nan, high=np.nan):
    """Return the four columns of a signal: strength and levels only where it has a side."""
    active = np.abs(direction) > 0.0
    return np.column_stack([direction, *(np.where(active, values, np.nan) for values in (strength, low, high))])


def test_absorption_is_the_reference_rule_on_a_year(year):
    bars = year.copy()
    bars[HOLES, 5:] = np.nan
    delta = 2.0 * bars[:, 7] - bars[:, 5]
    side, size = np.sign(delta), np.abs(delta)
    move = side * (bars[:, 4] - bars[:, 1]) / atr(bars)
    hard = rank(size)
    direction = np.where((hard >= 0.9) & (move <= 0.25), -side, 0.0)
    direction[np.isnan(hard)] = np.nan
    wanted = expected_columns(direction, size / rms(size) * (1.0 - np.maximum(move, 0.0)), bars[:, 3], bars[:, 2])
    np.testing.assert_allclose(signal_of(FLOW.run(bars), "absorption"), wanted, rtol=1e-9)
    assert 0.002 < np.nanmean(np.abs(direction)) < 0.1


def test_hawkes_and_institutional_are_the_reference_rules(bars, contexts):
    bars, contexts = holed(bars, contexts)
    out = FLOW.run(bars, None, contexts)
    of = {name: contexts[:, i] for name, i in CONTEXT_INDEX.items()}

    excess, side, high = of["hawkes_excess"], of["hawkes_side"], rank(of["hawkes_excess"])
    burst = np.where((high >= 0.9) & (np.abs(side) >= 0.2) & (excess > 0.0), np.sign(side), 0.0)
    burst[np.isnan(high)] = np.nan
    np.testing.assert_allclose(signal_of(out, "hawkes"), expected_columns(burst, excess * np.abs(side)), rtol=1e-9)

    large, small, usual = of["cvd_large"], of["cvd_small"], rms(of["cvd_large"])
    own = (large * small < 0.0) | (np.abs(large) / usual > np.abs(small) / rms(small))
    flow = np.where(np.isnan(usual), np.nan, np.where(own, np.sign(large), 0.0))
    wanted = expected_columns(flow, np.abs(large) / usual * (1.0 + of["vpin"]))
    np.testing.assert_allclose(signal_of(out, "institutional"), wanted, rtol=1e-9)
    for active in (burst, flow):
        assert {-1.0, 0.0, 1.0} == set(active[~np.isnan(active)])


def test_a_hole_silences_each_signal_until_it_has_left_the_window(bars, contexts):
    bars, contexts = holed(bars, contexts)
    out = FLOW.run(bars, None, contexts)
    for name in ("absorption", "hawkes", "institutional"):
        silent = np.isnan(signal_of(out, name)[:, 0])
        assert np.flatnonzero(silent).tolist() == [*range(59), *range(HOLES.start, HOLES.stop + 59)]


@pytest.mark.parametrize("family", FLOW.groups, ids=lambda family: family.name)
def test_without_what_it_needs_a_signal_is_unavailable(family, bars, contexts):
    needs = {column.needs for column in family.columns}
    assert all(need == "taker" or need.startswith("context:") for need in needs)
    forex = bars[:200].copy()
    forex[:, 5:] = np.nan
    out = FLOW.run(forex) if needs == {"taker"} else FLOW.run(bars[:200])
    assert np.isnan(out[:, [FLOW.index[column.name] for column in family.columns]]).all()
