"""Allocation among the symbols of a universe: returns of markets and of decisions, weights and trades."""

import numpy as np
import pytest

from pipelines.contracts import DAY_S
from pipelines.errors import NotEnoughData
from pipelines.evaluation.allocation import Plan, allocate, of_decisions, of_markets, to_dict, trades


def closes(prices, first_day=0, hour_s=3600.0):
    """Return (times, prices) of one close at 12:00 UTC a day."""
    at = (first_day + np.arange(len(prices))) * DAY_S + 12 * hour_s
    return at, np.asarray(prices, dtype=float)


def test_days_that_not_all_traded_are_left_out():
    found = of_markets({"A/USD": closes([1.0, 2.0, 4.0, 2.0]), "B/USD": closes([10.0, 11.0, 12.1], first_day=1)})
    assert found.symbols == ("A/USD", "B/USD")
    np.testing.assert_allclose(found.returns, [[1.0, 0.1], [-0.5, 0.1]])
    np.testing.assert_allclose(found.days, [2 * DAY_S, 3 * DAY_S])


def test_a_bar_that_closes_at_midnight_is_of_the_day_that_ends():
    times = np.array([DAY_S, 2 * DAY_S, 3 * DAY_S])
    found = of_markets({"A/USD": (times, np.array([1.0, 1.1, 1.21]))})
    np.testing.assert_allclose(found.days, [DAY_S, 2 * DAY_S])


def test_too_few_shared_days_are_named():
    with pytest.raises(NotEnoughData, match="days that all traded"):
        of_markets({"A/USD": closes([1.0, 2.0]), "B/USD": closes([1.0, 2.0], first_day=9)})


def test_decisions_earn_size_times_net_on_the_day_they_ended_and_nothing_on_others():
    resolved = [("A/USD", 10.0, 0.1, 50.0), ("A/USD", 20.0, 0.1, -10.0), ("B/USD", 2 * DAY_S + 1, 0.2, 100.0)]
    found = of_decisions(resolved, ("A/USD", "B/USD"))
    np.testing.assert_allclose(found.returns, [[0.0004, 0.0], [0.0, 0.0], [0.0, 0.002]])
    with pytest.raises(NotEnoughData, match="2 resolved trades on 1 days"):
        of_decisions(resolved[:2], ("A/USD",))


@pytest.fixture
def market():
    rng = np.random.default_rng(3)
    common = rng.normal(0, 0.02, 200)
    prices = [np.exp(np.cumsum(0.7 * common + rng.normal(0, 0.02, 200))) for _ in range(3)]
    return of_markets({name: closes(each) for name, each in zip(("A/USD", "B/USD", "C/USD"), prices, strict=True)})


def test_every_method_is_in_the_table_and_one_over_n_is_the_first(market):
    plan = Plan(window=60, every=7, band_share=0.2, cost_bps=10.0)
    found = allocate(market, plan, np.zeros(3))
    assert found[0].method == "equal"
    assert {one.method for one in found} >= {"max Sharpe", "risk parity", "HRP", "market cap", "custom"}
    by_name = {one.method: to_dict(one, market.symbols) for one in found}
    assert by_name["custom"]["weights"] is None
    assert "no weights" in by_name["custom"]["abstained"]
    assert by_name["market cap"]["net_return"] is None
    assert by_name["equal"]["over_equal"] is None
    for name in ("risk parity", "HRP"):
        assert sum(by_name[name]["weights"].values()) == pytest.approx(1.0)
        assert sum(by_name[name]["attribution"].values()) == pytest.approx(by_name[name]["total"], abs=1e-9)


def test_stated_capitalisations_and_weights_are_used_today(market):
    plan = Plan(60, 7, 0.2, 10.0, given=np.array([0.5, 0.3, 0.2]), caps=np.array([2.0, 1.0, 1.0]))
    by_name = {one.method: one for one in allocate(market, plan, np.zeros(3))}
    np.testing.assert_allclose(by_name["custom"].now, [0.5, 0.3, 0.2])
    np.testing.assert_allclose(by_name["market cap"].now, [0.5, 0.25, 0.25])


def test_an_asset_inside_its_band_is_left_alone_and_fees_are_paid_from_the_trades():
    plan = Plan(60, 7, 0.3, 10.0)  # half a band of .1 of three assets
    target = np.full(3, 1 / 3)
    assert not trades(target, np.array([0.36, 0.32, 0.32]), plan).any()
    moved = trades(target, np.array([0.5, 0.3, 0.2]), plan)
    assert moved[0] < 0 < moved[2]
    assert abs(moved.sum() + 1e-3 * np.abs(moved).sum()) < 1e-9
