"""R3, R4, R5: what open positions use of every budget, against hand arithmetic and against its own bounds."""

from datetime import date

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.market_hours import bars as bars_of

from pipelines.data.calendars import CALENDARS
from pipelines.data.timeframes import Grid
from pipelines.params import TailParams
from pipelines.settings import load_params
from pipelines.tails import VOLATILITY_BARS, euler_es, ewma_volatility, tail_losses
from serving.policy import kernel as decision_kernel
from serving.policy.decision_row import flatten, to_rows
from serving.policy.fusion import N_SCORES
from serving.risk import codes
from serving.risk.exposure import (
    ES_LEVEL,
    FILTERED_LONG,
    FILTERED_SHORT,
    MIN_SCENARIOS,
    PLAIN_LONG,
    PLAIN_SHORT,
    STRIDE,
    UNKNOWN_ASSET,
    AssetCloses,
    Scenarios,
    allocation,
    horizon_returns,
    scenarios_of,
    shrunk_correlation,
)
from serving.risk.exposure import (
    exposure_by_name as measured,
)

HOURS = Grid("1h")

HOUR, HORIZON = 3600.0, 4  # seconds; bars
FILTERED = TailParams(decay=0.97, filtered_alone=["1h"])
LARGER = TailParams(decay=0.97, filtered_alone=[])
NOW = np.array([0.012, 0.02, 0.008])  # volatility of the three at their newest close
NAMES = ("BTC/USDT", "ETH/USDT", "EUR/USD")


def walk(seed, n=1500, start=0.0, common=None, beta=0.0):
    steps = np.random.default_rng(seed).normal(0, 0.01, n) + (0.0 if common is None else beta * common)
    return AssetCloses(HOURS, np.column_stack([start + HOUR * np.arange(1, n + 1), 100 * np.exp(np.cumsum(steps))]))


def closes_of_three():
    common = np.random.default_rng(9).normal(0, 0.01, 1500)
    return {
        "BTC/USDT": walk(1, common=common, beta=2.0),
        "ETH/USDT": walk(2, common=common, beta=2.0),
        "EUR/USD": walk(3),
    }


@pytest.fixture(scope="module", params=[FILTERED, LARGER], ids=["filtered", "larger"])
def three(request):
    return scenarios_of(closes_of_three(), HORIZON, request.param)


def exposure_by_name(positions, side, asset, strategy, scenarios):
    return measured(positions, side, asset, strategy, scenarios, NOW[: len(scenarios.codes)])


def units(scenarios):
    """Return (2, assets) expected shortfall of one unit long and short: the larger where plain history counts."""
    filtered, plain = scenarios.unit_es[[FILTERED_LONG, FILTERED_SHORT]], scenarios.unit_es[[PLAIN_LONG, PLAIN_SHORT]]
    return np.maximum(filtered * NOW[: filtered.shape[1]], plain)


def tail_of(scenarios, net):
    """Return the expected shortfall of net positions from the definition: filtered, or plain where larger."""
    both = (scenarios.filtered * NOW, np.where(np.isnan(scenarios.plain), scenarios.filtered * NOW, scenarios.plain))
    return max(tail_losses(returns @ net, 1 - ES_LEVEL)[1] for returns in both)


def open_now(*positions):
    return np.array(positions, dtype=float).reshape(-1, 3)


def test_nothing_open_uses_nothing_and_a_unit_has_its_own_tail(three):
    found = exposure_by_name(open_now(), 1.0, 0, 0.0, three)
    assert found == dict.fromkeys(found, 0.0) | {"es_unit": pytest.approx(units(three)[0, 0])}
    short = exposure_by_name(open_now(), -1.0, 0, 0.0, three)["es_unit"]
    assert short == units(three)[1, 0] != units(three)[0, 0]
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
    assert found["es"] == pytest.approx(tail_of(three, net))
    assert found["stress"] == pytest.approx((net * units(three)[0]).sum())


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
    net, parts = allocation(open_now(*positions), three, NOW)
    assert parts.sum() == pytest.approx(tail_of(three, net), abs=1e-12)


def test_assets_that_share_no_hours_are_taken_to_fall_together():
    apart = scenarios_of({"A/USD": walk(1), "B/USD": walk(2, start=4e5 * HOUR)}, HORIZON, LARGER)
    assert apart.filtered.shape == apart.plain.shape == (0, 2)
    positions = open_now((0.1, 0, 0.0), (-0.1, 1, 0.0))
    found = exposure_by_name(positions, 1.0, 0, 0.0, apart)
    assert found["es"] == found["stress"] == pytest.approx(0.1 * units(apart)[0, 0] + 0.1 * units(apart)[1, 1])
    assert found["correlated"] == pytest.approx(0.2)
    _, parts = allocation(positions, apart, NOW[:2])
    assert parts.sum() == pytest.approx(found["es"])


def test_too_short_a_history_and_an_unknown_asset_leave_the_tail_unknown(three):
    short = scenarios_of({"A/USD": walk(1, n=MIN_SCENARIOS + STRIDE - 1)}, HORIZON, LARGER)
    assert np.isnan(exposure_by_name(open_now(), 1.0, 0, 0.0, short)["es_unit"])
    assert np.isnan(exposure_by_name(open_now(), 1.0, int(UNKNOWN_ASSET), 0.0, three)["es_unit"])
    lost = exposure_by_name(open_now((0.1, UNKNOWN_ASSET, 0.0)), 1.0, 0, 0.0, three)
    assert np.isnan([lost["es"], lost["stress"], lost["market"], lost["correlated"]]).all()
    assert lost["gross"] == 0.1
    assert np.isnan(exposure_by_name(open_now(), 1.0, 0, 0.0, Scenarios())["es_unit"])


def test_a_horizon_with_a_missing_end_is_left_out():
    closes = walk(1, n=100).closes
    times, returns, volatility = horizon_returns(AssetCloses(HOURS, closes), HORIZON, 0.97)
    assert (np.diff(times) == HOUR).all()
    first = int(np.flatnonzero(closes[:, 0] == times[0])[0])
    assert first == 20  # the volatility is known from there on
    assert returns[0] == pytest.approx(closes[first + 4, 1] / closes[first, 1] - 1)
    assert volatility.tobytes() == ewma_volatility(np.ascontiguousarray(closes[:, 1]), 0.97)[first:-4].tobytes()
    holed = np.delete(closes, 50, axis=0)
    fewer, _, _ = horizon_returns(AssetCloses(HOURS, holed), HORIZON, 0.97)
    assert set(times) - set(fewer) == {closes[50, 0], closes[46, 0]}


# ---- the filter -----------------------------------------------------------------------------------------------------


def test_the_volatility_is_the_weighted_mean_square_of_past_returns_alone():
    prices = np.ascontiguousarray(walk(5, n=400).closes[:, 1])
    found = ewma_volatility(prices, 0.97)
    assert np.isnan(found[:20]).all()
    for at in (20, 77, 399):
        squares = (prices[1 : at + 1] / prices[:at] - 1.0)[::-1][:VOLATILITY_BARS] ** 2
        assert found[at] == pytest.approx(np.sqrt(np.average(squares, weights=0.97 ** np.arange(len(squares)))))
    assert ewma_volatility(np.r_[prices[:300], prices[300:] * 7.0], 0.97)[:300].tobytes() == found[:300].tobytes()


def test_the_closes_that_a_service_holds_give_the_volatility_of_a_run_over_all_of_them():
    prices = np.ascontiguousarray(walk(6, n=900).closes[:, 1])
    whole = ewma_volatility(prices, 0.97)
    live = Scenarios(codes={"A/USD": 0}, decay=0.97)
    for at in (15, 20, 128, 129, 500, 899):  # 256 bars are held, fewer while the market is new
        held = live.volatility(lambda _, at=at: prices[max(0, at - 255) : at + 1])
        assert held.tobytes() == whole[at : at + 1].tobytes()
    assert np.isnan(live.volatility(lambda _: prices[:0])).all()
    assert np.isnan(live.volatility(lambda _: np.r_[prices[:90], np.nan, prices[90:130]])).all()


def test_the_tail_of_a_unit_follows_the_volatility_of_the_newest_close(three):
    """Plain history, as before release 0.6, had one tail for calm and for wild hours: a ratio of 1 here."""
    calm, wild = (measured(open_now(), 1.0, 0, 0.0, three, scale * NOW)["es_unit"] for scale in (1.0, 4.0))
    assert wild == pytest.approx(4.0 * three.unit_es[FILTERED_LONG, 0] * NOW[0])
    assert wild > 2.0 * calm


def test_where_the_filter_did_not_pass_a_calm_market_keeps_the_tail_of_its_plain_history():
    quiet = 0.01 * NOW
    alone, floored = (scenarios_of(closes_of_three(), HORIZON, tail) for tail in (FILTERED, LARGER))
    _, prices = closes_of_three()["BTC/USDT"].closes.T
    returns = prices[24::1] / prices[20:-4] - 1.0
    plain = tail_losses(np.ascontiguousarray(returns), 1 - ES_LEVEL)[1]
    assert measured(open_now(), 1.0, 0, 0.0, floored, quiet)["es_unit"] == pytest.approx(plain)
    assert measured(open_now(), 1.0, 0, 0.0, alone, quiet)["es_unit"] < 0.05 * plain
    held = open_now((0.1, 0, 0.0), (0.2, 1, 0.0))
    assert measured(held, 1.0, 0, 0.0, floored, quiet)["es"] > 10 * measured(held, 1.0, 0, 0.0, alone, quiet)["es"]


def test_a_volatility_that_is_not_known_opens_nothing(three):
    unknown = np.array([np.nan, 0.02, 0.008])
    assert np.isnan(measured(open_now(), 1.0, 0, 0.0, three, unknown)["es_unit"])
    held = measured(open_now((0.1, 0, 0.0)), 1.0, 1, 0.0, three, unknown)
    assert np.isnan([held["es"], held["stress"]]).all()
    assert np.isnan(allocation(open_now((0.1, 0, 0.0)), three, unknown)[1][0])
    params, out = load_params(), np.empty(decision_kernel.OUT_WIDTH)
    found = measured(open_now(), 1.0, 0, 0.0, three, unknown)
    row = to_rows(
        np.full((1, N_SCORES), 1.0), np.ones((1, N_SCORES)), regime=0, trend=1, unicorn=20.0, event=1.0, tier=1,
        age_bars=0, breakers=0, volatility=0.002, atr=0.004, price=100.0, p=0.95, p_low=0.9, open_count=0.0,
        trades_today=0.0, daily_pnl=0.0, drawdown=0.0, cost_bps=5.0, miss_bps=-38.0, **found,
    )[0]  # fmt: skip
    assert decision_kernel.decide_row(row, flatten(params), out) == codes.CANNOT_COMPUTE
    row[decision_kernel.ES_UNIT] = 0.01
    assert decision_kernel.decide_row(row, flatten(params), out) == 0


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
    returns = three.losing_most(weights, NOW)
    parts = euler_es(returns, weights, ES_LEVEL)
    for i in range(3):
        up, down = weights.copy(), weights.copy()
        up[i] += step
        down[i] -= step
        slope = (tail_losses(returns @ up, 1 - ES_LEVEL)[1] - tail_losses(returns @ down, 1 - ES_LEVEL)[1]) / (2 * step)
        assert parts[i] == pytest.approx(weights[i] * slope, rel=1e-4)


def test_a_horizon_over_a_closure_is_of_bars_and_the_shorter_one_of_the_clock_is_not_taken():
    opens, closes = bars_of("forex", 3600.0, date(2024, 2, 26), date(2024, 3, 29)).T
    prices = 100 * np.exp(np.cumsum(np.random.default_rng(1).normal(0, 0.01, len(opens))))
    asset = AssetCloses(Grid("1h", CALENDARS["forex"]), np.column_stack([closes, prices]))
    times, returns, _ = horizon_returns(asset, HORIZON, 0.97)
    np.testing.assert_array_equal(times, closes[20:-HORIZON])  # also those that end after a weekend
    np.testing.assert_allclose(returns, prices[20 + HORIZON :] / prices[20:-HORIZON] - 1.0)


def test_the_name_of_a_tails_method_is_that_of_its_timeframe():
    assert FILTERED.method("1h") == "filtered_historical"
    assert FILTERED.method("15m") == LARGER.method("1h") == "larger of filtered_historical and historical"
