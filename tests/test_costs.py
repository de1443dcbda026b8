"""What a trade costs: the row in force, the cost of each exit, and the funding of perpetuals."""

import numpy as np
import pandas as pd
import pytest

from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import BAR_WIDTH, CLOSE, HALF_SPREAD, ContextFeed
from pipelines.costs import (
    costs_of,
    forward_cost_bps,
    funding_payments,
    funding_rates,
    funding_received_bps,
    left_at,
    stop_cost_bps,
    target_cost_at,
    target_cost_bps,
    trade_cost_bps,
    venue_of,
)
from pipelines.labels.barriers import STOP, TARGET, TIME
from pipelines.market_params import CostParams
from pipelines.settings import ROOT, load_params

COSTS = load_params().costs
RECORDED = ROOT.parent / "shared" / "data" / "alternative" / "binance_usdm_btcusdt_funding_8h.parquet"
HOUR = 3600.0


def named(**changes: object) -> CostParams:
    return CostParams.model_validate(COSTS.model_dump() | changes)


@pytest.mark.parametrize(
    ("venue", "market", "cost_bps", "row"),
    [
        ("simulator", "spot", 5.0, "simulator spot taker"),
        ("binance", "spot", 21.0, "binance spot taker"),
        ("Binance", "perpetual", 11.0, "binance perpetual taker"),
        ("hyperliquid", "perpetual", 10.0, "hyperliquid perpetual taker"),
        ("coinbase", "spot", 241.0, "coinbase spot taker"),
        ("kraken", "spot", 81.0, "kraken spot taker"),
        ("bitstamp", "spot", 81.0, "bitstamp spot taker"),
        ("oanda", "metal", 5.8, "oanda metal taker"),
        ("binance", None, 21.0, "binance spot (market not stated: the dearest) taker"),
        ("kraken", "future", 81.0, "kraken spot (no row of future: the dearest) taker"),
        ("nowhere", "spot", 21.0, "default row (nowhere has none) taker"),
        (None, None, 21.0, "default row (venue not stated) taker"),
    ],
)
def test_a_market_pays_the_row_of_its_venue_and_says_which(venue, market, cost_bps, row):
    costs = costs_of(COSTS, venue, market)
    assert (costs.round_trip_bps, costs.row) == (pytest.approx(cost_bps), row)


def test_a_maker_pays_the_makers_fee_and_a_takers_for_a_stop():
    costs = costs_of(named(order="maker"), "binance", "perpetual")
    assert (costs.fee_bps, costs.row) == (2.0, "binance perpetual maker")
    assert costs.stop_slippage_bps == pytest.approx(COSTS.stop_slippage_bps + 3.0)


def test_a_figure_says_the_row_the_fee_and_where_the_spread_comes_from():
    spot, perpetual = costs_of(COSTS, "binance", "spot"), costs_of(COSTS, "binance", "perpetual")
    assert spot.describe() == "binance spot taker 10 bps a side, half spread assumed 0.5 bps"
    assert spot.describe(np.ones(3, bool)) == "binance spot taker 10 bps a side, spread as recorded"
    assert "as recorded of 25%, else half spread assumed" in spot.describe(np.array([1, 0, 0, 0], bool))
    assert perpetual.describe().endswith("funding every 8 h not recorded")
    assert perpetual.describe(funded=True).endswith("funding every 8 h as recorded")


def test_only_what_was_not_executed_pays_the_spread_and_only_a_stop_slips():
    costs, barrier = costs_of(COSTS, "binance", "spot"), np.array([TARGET, STOP, TIME, STOP])
    known = np.array([False, False, True, True])
    slipped = COSTS.stop_slippage_bps
    assert slipped > 0.0
    assert trade_cost_bps(costs, barrier, known).tolist() == pytest.approx([21.0, 21.0 + slipped, 20.0, 20.0 + slipped])
    assert trade_cost_bps(costs, barrier).tolist() == pytest.approx([21.0, 21.0 + slipped, 21.0, 21.0 + slipped])


def test_the_expected_round_trip_rests_on_the_spread_of_the_bar_where_it_has_one():
    gold = costs_of(COSTS, "oanda", "metal")
    bars = np.full((2, BAR_WIDTH), 1000.0)
    bars[:, HALF_SPREAD] = 0.2, np.nan
    assert forward_cost_bps(gold, np.array([4.0, np.nan])).tolist() == pytest.approx([4.0, 5.8])
    # a target is left at its own price: only the fill pays half a spread
    assert target_cost_bps(gold, bars).tolist() == pytest.approx([2.0, 5.8])
    live = [target_cost_at(gold, *one) for one in bars[:, [HALF_SPREAD, CLOSE]].tolist()]
    assert live == target_cost_bps(gold, bars).tolist()  # to the bit


def test_unsound_tables_are_refused_with_the_key():
    for wrong in ({"order": "limit"}, {"venues": {"Binance": {"spot": {"taker_bps": 1, "maker_bps": 1}}}},
                  {"venues": {"x": {}}}, {"venues": {"x": {"moon": {"taker_bps": 1, "maker_bps": 1}}}},
                  {"default": {"taker_bps": -1, "maker_bps": 1}}):  # fmt: skip
        with pytest.raises(ValueError, match=r"order|venue|venues|default"):
            named(**wrong)


@pytest.mark.parametrize(
    ("described", "found"),
    [
        ({"venue": "kraken", "market": "spot", "source": {"source": "simulator"}}, ("kraken", "spot")),
        ({"source": {"source": "simulator"}}, ("simulator", "spot")),
        ({"source": {"source": "exchange", "segments": [{"venue": "binance", "market": "BTC/USDT"},
                                                        {"venue": "hyperliquid", "market": "BTC/USDC:USDC"}]}},
         ("hyperliquid", "perpetual")),
        ({"source": {"source": "files", "venue": "oanda", "market": "metal"}}, ("oanda", "metal")),
        ({"symbol": "BTC/USDT:USDT", "source": {"source": "files", "venue": "binance"}}, ("binance", "perpetual")),
        ({"symbol": "BTC/USDT", "source": {"source": "files"}}, (None, None)),
        ({}, (None, None)),
    ],
)  # fmt: skip
def test_a_data_version_says_where_its_market_trades(described, found):
    assert venue_of(described) == found


# ---- funding


def feed(*rates: tuple[float, float]) -> ContextFeed:
    field = np.full(len(rates), CONTEXT_INDEX["funding_rate"], np.int64)
    known, value = (np.array(column) for column in zip(*rates, strict=True))
    return ContextFeed(known, field, value)


def paid(*rates: tuple[float, float], market: str = "perpetual"):
    return funding_payments(funding_rates(feed(*rates)), costs_of(COSTS, "binance", market))


def test_a_position_pays_at_the_funding_times_it_is_held_over():
    payments = paid((8 * HOUR + 0.006, 1e-4), (16 * HOUR, -2e-4), (24 * HOUR, 3e-4))
    held = np.array([[8 * HOUR - 60, 8 * HOUR], [8 * HOUR, 16 * HOUR - 60], [0.0, 24 * HOUR], [0.0, 16 * HOUR]])
    side = np.array([1.0, 1.0, 1.0, -1.0])
    assert funding_received_bps(payments, side, *held.T).tolist() == pytest.approx([-1.0, 0.0, -2.0, -1.0])


def test_an_announced_rate_holds_until_its_funding_time_and_the_last_one_is_paid():
    payments = paid((7 * HOUR, 5e-4), (7.9 * HOUR, 1e-4), (20 * HOUR, 2e-4))
    assert payments.tolist() == [[8 * HOUR, 1e-4], [24 * HOUR, 2e-4]]


@pytest.mark.parametrize("minute", [10, 30, 50])
def test_rates_announced_each_hour_off_the_hour_are_paid_at_the_funding_times_of_the_venue(minute):
    payments = paid(*((k * HOUR + 60.0 * minute, 1e-4 * k) for k in range(16)))
    assert payments[:, 0].tolist() == [8 * HOUR, 16 * HOUR]
    assert payments[:, 1].tolist() == pytest.approx([7e-4, 15e-4])


@pytest.mark.parametrize(
    ("venue", "market", "hours", "assumed"),
    [
        ("binance", "perpetual", 8, False),
        ("hyperliquid", "perpetual", 1, False),
        ("krakenfutures", None, 1, False),  # it has no other market
        ("kraken", "perpetual", 4, True),  # only a row of spot
        ("nowhere", "perpetual", 4, True),
        (None, "perpetual", 4, True),
        ("krakenfutures", "spot", None, False),  # the fee of its perpetual, not its funding
        ("nowhere", "spot", None, False),
        (None, None, None, False),
    ],
)
def test_a_perpetual_without_a_row_of_its_own_pays_funding_at_the_stated_spacing(venue, market, hours, assumed):
    costs = costs_of(named(perpetual_funding_hours=4), venue, market)
    assert (costs.funding_hours, costs.funding_assumed) == (hours, assumed)
    assert ("funding every 4 h (assumed) as recorded" in costs.describe(funded=True)) == assumed
    announced = funding_rates(feed((3.5 * HOUR, 1e-4), (8 * HOUR, 2e-4)))
    assert len(funding_payments(announced, costs)) == {None: 0, 8: 1}.get(hours, 2)
    settled = funding_rates(feed((4 * HOUR, 1e-4), (8 * HOUR, 2e-4)))  # they show their own times and period
    paid_at = {4 * HOUR: 0.5e-4, 8 * HOUR: 1e-4} if hours else {}
    assert dict(funding_payments(settled, costs).tolist()) == pytest.approx(paid_at)


def test_a_row_of_a_perpetual_without_hours_has_those_of_the_table():
    venues = {"here": {"perpetual": {"taker_bps": 1, "maker_bps": 1}}}
    for market in ("perpetual", None):
        assert costs_of(named(venues=venues), "here", market).funding_hours == COSTS.perpetual_funding_hours
    with pytest.raises(ValueError, match="perpetual_funding_hours"):
        named(perpetual_funding_hours=0)


def test_only_a_position_out_of_time_is_held_to_the_close_of_its_exit_bar():
    opened, barrier = np.array([7 * HOUR] * 3), np.array([TARGET, STOP, TIME])
    held_to = left_at(opened, opened + HOUR, barrier)
    assert held_to.tolist() == [7 * HOUR, 7 * HOUR, 8 * HOUR]
    payments = paid((8 * HOUR, 1e-4))
    received = funding_received_bps(payments, np.ones(3), np.zeros(3), held_to)
    assert received.tolist() == pytest.approx([0.0, 0.0, -1.0])


def test_a_stop_costs_its_slippage_and_in_a_makers_market_the_takers_fee_on_top():
    bars = np.full((2, BAR_WIDTH), 1000.0)
    bars[:, HALF_SPREAD] = 0.2, np.nan
    spot, maker = costs_of(COSTS, "binance", "spot"), costs_of(named(order="maker"), "binance", "perpetual")
    assert stop_cost_bps(spot, bars).tolist() == pytest.approx([22.0 + 0.4, 21.0 + 0.4])
    assert stop_cost_bps(maker, bars).tolist() == pytest.approx([4.0 + 2.0 + 0.4 + 3.0, 5.0 + 0.4 + 3.0])


def test_spot_pays_none_and_without_rates_nothing_is_invented():
    assert len(paid((8 * HOUR, 1e-4), market="spot")) == 0
    assert len(funding_payments(funding_rates(None), costs_of(COSTS, "binance", "perpetual"))) == 0


@pytest.mark.skipif(not RECORDED.is_file(), reason="no recorded funding rates next to the project")
def test_a_long_of_2024_paid_what_was_recorded():
    rates = pd.read_parquet(RECORDED)
    known = rates["funding_time"].dt.tz_localize(None).to_numpy("datetime64[ms]").astype(np.int64) / 1e3
    field = np.full(len(rates), CONTEXT_INDEX["funding_rate"], np.int64)
    whole = ContextFeed(known, field, rates["funding_rate"].to_numpy())
    payments = funding_payments(funding_rates(whole), costs_of(COSTS, "binance", "perpetual"))
    assert len(payments) == len(rates)
    year = [pd.Timestamp(day, tz="UTC").timestamp() for day in ("2023-12-31 23:59", "2024-12-31 23:59")]
    received = funding_received_bps(payments, np.array([1.0]), np.array(year[:1]), np.array(year[1:]))[0]
    assert received / (366 * 24) == pytest.approx(-0.136, abs=0.001)  # bps an hour
