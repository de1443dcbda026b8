"""R3, R4, R5: what open positions use of every budget, against hand arithmetic and against its own bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tails import euler_es, tail_losses
from serving.risk.exposure import (
    ES_LEVEL,
    MIN_SCENARIOS,
    STRIDE,
    UNKNOWN_ASSET,
    Scenarios,
    allocation,
    exposure_by_name,
    horizon_returns,
    scenarios_of,
    shrunk_correlation,
)

HOUR, HORIZON = 3600.0, 4 * 3600.0
NAMES = ("BTC/USDT", "ETH/USDT", "EUR/USD")


def walk(seed, n=1500, start=0.0, common=None, beta=0.0):
    steps = np.random.default_rng(seed).normal(0, 0.01, n) + (0.0 if common is None else beta * common)
    return np.column_stack([start + HOUR * np.arange(1, n + 1), 100 * np.exp(np.cumsum(steps))])


@pytest.fixture(scope="module")
def three():
    common = np.random.default_rng(9).normal(0, 0.01, 1500)
    return scenarios_of(
        {
            "BTC/USDT": walk(1, common=common, beta=2.0),
            "ETH/USDT": walk(2, common=common, beta=2.0),
            "EUR/USD": walk(3),
        },
        HORIZON,
    )


def open_now(*positions):
    return np.array(positions, dtype=float).reshape(-1, 3)


def test_nothing_open_uses_nothing_and_a_unit_has_its_own_tail(three):
    found = exposure_by_name(open_now(), 1.0, 0, 0.0, three)
    assert found == dict.fromkeys(found, 0.0) | {"es_unit": pytest.approx(three.unit_es[0, 0])}
    assert exposure_by_name(open_now(), -1.0, 0, 0.0, three)["es_unit"] == three.unit_es[1, 0] != three.unit_es[0, 0]
    assert np.isnan(exposure_by_name(open_now(), 0.0, 0, 0.0, three)["es_unit"])


def test_budgets_by_hand(three):
    positions = open_now((0.10, 0, 7.0), (-0.04, 0, 8.0), (0.05, 1, 7.0), (0.20, 2, 7.0))
    found = exposure_by_name(positions, 1.0, 0, 7.0, three)
    assert found["gross"] == pytest.approx(0.39)
    assert found["strategy"] == pytest.approx(0.35)
    assert found["market"] == pytest.approx(0.19)  # what is quoted in USDT
    assert found["asset"] == pytest.approx(0.14)
    net = np.array([0.06, 0.05, 0.20])
    assert found["correlated"] == pytest.approx(np.maximum(three.correlation[0] * net, 0).sum())
    assert found["es"] == pytest.approx(tail_losses(three.returns @ net, 1 - ES_LEVEL)[1])
    assert found["stress"] == pytest.approx((net * three.unit_es[0]).sum())


def test_a_position_against_the_others_moves_with_none_of_them(three):
    positions = open_now((0.10, 0, 0.0), (0.10, 1, 0.0))
    assert exposure_by_name(positions, 1.0, 0, 0.0, three)["correlated"] > 0.15
    assert exposure_by_name(positions, -1.0, 0, 0.0, three)["correlated"] == 0.0


positions = st.lists(
    st.tuples(st.floats(-0.2, 0.2), st.sampled_from([0.0, 1.0, 2.0]), st.sampled_from([0.0, 1.0])), max_size=8
)


@settings(max_examples=200, deadline=None)
@given(positions, st.sampled_from([-1.0, 1.0]), st.sampled_from([0, 1, 2]))
def test_the_tail_is_never_above_all_falling_together_nor_below_nothing(three, positions, side, asset):
    found = exposure_by_name(open_now(*positions), side, asset, 0.0, three)
    assert 0.0 <= found["es"] <= found["stress"] + 1e-15
    assert all(found[name] <= found["gross"] + 1e-12 for name in ("strategy", "market", "asset", "correlated"))


@settings(max_examples=100, deadline=None)
@given(positions, st.floats(0.01, 0.2))
def test_a_size_that_the_tail_budget_leaves_keeps_the_budget(three, positions, limit):
    positions = open_now(*positions)
    found = exposure_by_name(positions, 1.0, 0, 0.0, three)
    room = max(limit - found["es"], 0.0) / found["es_unit"]
    after = exposure_by_name(np.vstack([positions, [room, 0.0, 0.0]]), 1.0, 0, 0.0, three)
    assert after["es"] <= max(limit, found["es"]) + 1e-12


@settings(max_examples=100, deadline=None)
@given(positions)
def test_the_parts_of_the_tail_add_up_to_it(three, positions):
    net, parts = allocation(open_now(*positions), three)
    whole = tail_losses(three.returns @ net, 1 - ES_LEVEL)[1]
    assert parts.sum() == pytest.approx(whole, abs=1e-12)


def test_assets_that_share_no_hours_are_taken_to_fall_together():
    apart = scenarios_of({"A/USD": walk(1), "B/USD": walk(2, start=1e5 * HORIZON)}, HORIZON)
    assert apart.returns.shape == (0, 2)
    positions = open_now((0.1, 0, 0.0), (-0.1, 1, 0.0))
    found = exposure_by_name(positions, 1.0, 0, 0.0, apart)
    assert found["es"] == found["stress"] == pytest.approx(0.1 * apart.unit_es[0, 0] + 0.1 * apart.unit_es[1, 1])
    assert found["correlated"] == pytest.approx(0.2)
    _, parts = allocation(positions, apart)
    assert parts.sum() == pytest.approx(found["es"])


def test_too_short_a_history_and_an_unknown_asset_leave_the_tail_unknown(three):
    short = scenarios_of({"A/USD": walk(1, n=MIN_SCENARIOS + STRIDE - 1)}, HORIZON)
    assert np.isnan(exposure_by_name(open_now(), 1.0, 0, 0.0, short)["es_unit"])
    assert np.isnan(exposure_by_name(open_now(), 1.0, int(UNKNOWN_ASSET), 0.0, three)["es_unit"])
    lost = exposure_by_name(open_now((0.1, UNKNOWN_ASSET, 0.0)), 1.0, 0, 0.0, three)
    assert np.isnan([lost["es"], lost["stress"], lost["market"], lost["correlated"]]).all()
    assert lost["gross"] == 0.1
    assert np.isnan(exposure_by_name(open_now(), 1.0, 0, 0.0, Scenarios())["es_unit"])


def test_a_horizon_with_a_missing_end_is_left_out():
    closes = walk(1, n=100)
    times, returns = horizon_returns(closes, HORIZON)
    assert (np.diff(times) == HOUR).all()
    assert returns[0] == pytest.approx(closes[4, 1] / closes[0, 1] - 1)
    holed = np.delete(closes, 50, axis=0)
    fewer, _ = horizon_returns(holed, HORIZON)
    assert set(times) - set(fewer) == {closes[50, 0], closes[46, 0]}


def test_correlation_is_shrunk_by_its_own_error_and_keeps_its_sign():
    rng = np.random.default_rng(4)
    a = rng.normal(size=(150, 1))
    returns = np.hstack([a, 0.8 * a + 0.6 * rng.normal(size=(150, 1))])
    raw = np.corrcoef(returns, rowvar=False)[0, 1]
    shrunk = shrunk_correlation(returns)
    assert 0.9 * raw < shrunk[0, 1] < raw
    assert shrunk[0, 0] == pytest.approx(1.0)
    few = shrunk_correlation(returns[:12])[0, 1]
    assert abs(few) < abs(np.corrcoef(returns[:12], rowvar=False)[0, 1])


def test_the_parts_by_euler_are_the_derivative_of_the_tail(three):
    weights, step = np.array([0.1, -0.05, 0.2]), 1e-7
    parts = euler_es(three.returns, weights, ES_LEVEL)
    for i in range(3):
        up, down = weights.copy(), weights.copy()
        up[i] += step
        down[i] -= step
        slope = (
            tail_losses(three.returns @ up, 1 - ES_LEVEL)[1] - tail_losses(three.returns @ down, 1 - ES_LEVEL)[1]
        ) / (2 * step)
        assert parts[i] == pytest.approx(weights[i] * slope, rel=1e-4)
