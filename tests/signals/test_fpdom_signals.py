"""Footprint, heatmap and smart money: on markets drawn by hand, and computed over whole arrays."""

import numpy as np
import pytest
from support.reference_windows import HOLES, atr, holed, known, quiet, rank, rms, then
from support.signal_subset import SignalSubset

from pipelines.context_layout import CONTEXT_INDEX

WINTER = 1_704_153_600.0  # 2024-01-02: London is on UTC, New York five hours behind
FPDOM = SignalSubset("footprint", "heatmap", "smart_money")


def last(contexts, bars=None):
    return dict(zip(FPDOM.columns, FPDOM.run(quiet() if bars is None else bars, None, contexts)[-1], strict=True))


def columns(out, *names):
    return out[:, [FPDOM.index[name] for name in names]]


def four(name):
    return [f"{name}.{part}" for part in ("direction", "strength", "low", "high")]


def expected_columns(direction, *others):
    spoken = np.abs(direction) > 0.0
    return np.column_stack([direction, *(np.where(spoken, values, np.nan) for values in others)])


def pressed(buying=4.0, selling=0.0, bid=10.0, ask=0.0):
    """Usual: one run more on one side in turn, two coins more at one side in turn."""
    return known(
        70, stacked_buying=then([1.0, 0.0], buying), stacked_selling=then([0.0, 1.0], selling),
        stacking_bid=then([2.0, 0.0], bid), stacking_ask=then([0.0, 2.0], ask),
    )  # fmt: skip


def test_stacked_buying_on_a_bid_that_is_added_to_signals_long():
    row = last(pressed())
    runs, depth = 4.0 / np.sqrt((59 + 16) / 60), 10.0 / np.sqrt((59 * 4 + 100) / 60)
    assert row["footprint.direction"] == 1.0
    assert row["footprint.strength"] == pytest.approx((runs + depth) / 2)
    assert last(pressed(0.0, 4.0, 0.0, 10.0))["footprint.direction"] == -1.0


def test_a_bid_that_is_pulled_counts_as_an_ask_that_is_added_to():
    assert last(pressed(0.0, 4.0, -10.0, 0.0))["footprint.direction"] == -1.0


def test_trades_and_depth_that_disagree_or_lean_little_give_no_signal():
    assert last(pressed(bid=0.0, ask=3.0))["footprint.direction"] == 0.0
    assert last(pressed(1.0, 0.0, 1.0, 0.0))["footprint.direction"] == 0.0


def test_depth_alone_signals_where_no_run_was_stacked_for_sixty_bars():
    alone = known(70, stacked_buying=0.0, stacked_selling=0.0, stacking_bid=then([2.0, 0.0], 30.0), stacking_ask=1.0)
    row = last(alone)
    assert row["footprint.direction"] == 1.0
    assert row["footprint.strength"] == pytest.approx(0.5 * 29.0 / np.sqrt((59 * 1.0 + 29.0**2) / 60))


def mapped(imbalance=0.6, below=98.0, above=103.0):
    return known(
        70, heat_imbalance=then([0.1, -0.1], imbalance), heat_concentration=0.05, heat_liquidity=0.7,
        wall_bid=below, wall_ask=above,
    )  # fmt: skip


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_a_heavy_side_of_the_map_signals_between_its_walls(side):
    row = last(mapped(0.6 * side))
    assert [row[name] for name in four("heatmap")] == [side, 0.6, 98.0, 103.0]
    assert (row["heatmap.concentration"], row["heatmap.liquidity"]) == (0.05, 0.7)


def test_an_imbalance_as_usual_gives_no_signal():
    assert last(mapped(0.1))["heatmap.direction"] == 0.0


def test_the_wall_distance_is_to_the_nearer_wall_or_the_only_one():
    assert last(mapped())["heatmap.wall_distance"] == pytest.approx(-2.0)
    assert last(mapped(above=101.0))["heatmap.wall_distance"] == pytest.approx(1.0)
    assert last(mapped(below=np.nan))["heatmap.wall_distance"] == pytest.approx(3.0)
    assert last(mapped(above=np.nan))["heatmap.wall_distance"] == pytest.approx(-2.0)
    assert np.isnan(last(mapped(below=np.nan, above=np.nan))["heatmap.wall_distance"])


def hands(bought=(4.0, 2.0), sold=(0.0, 0.0), spoofs=(0.0, 3.0), **given):
    """Usual: a tenth of volume in large trades, a twentieth in icebergs, both ways alike; last bar as given."""
    usual = {
        "large_buy": then([0.5], bought[0]), "iceberg_bid": then([0.25], bought[1]),
        "large_sell": then([0.5], sold[0]), "iceberg_ask": then([0.25], sold[1]),
        "spoof_bid": then([0.0], spoofs[0]), "spoof_ask": then([0.0], spoofs[1]), "smart_price": 100.0,
    }  # fmt: skip
    return known(70, **usual | given)


FIRST = 119 / 120  # mid-rank of the highest of sixty


def test_large_buys_bid_icebergs_and_false_asks_are_smart_money_that_buys():
    row = last(hands())
    assert row["smart_money.score"] == pytest.approx(0.9 * FIRST)  # 17:15 is in no killzone
    assert [row[name] for name in four("smart_money")] == pytest.approx([1.0, 0.9 * FIRST, 99.75, 100.25])
    assert row["smart_money.target"] == pytest.approx(101.75)


def test_smart_money_that_sells_hides_behind_false_bids():
    row = last(hands((0.0, 0.0), (4.0, 2.0), (3.0, 0.0)))
    assert row["smart_money.direction"] == -1.0
    assert row["smart_money.score"] == pytest.approx(0.9 * FIRST)
    assert row["smart_money.target"] == pytest.approx(98.25)


def test_spoofs_on_the_side_that_was_traded_are_ignored():
    row = last(hands(spoofs=(3.0, 0.0)))
    assert row["smart_money.score"] == pytest.approx(0.7 * FIRST)
    assert row["smart_money.direction"] == 0.0


@pytest.mark.parametrize(
    ("hour", "timed"), [(6.75, 0), (7.0, 1), (9.75, 1), (10.0, 0), (12.0, 1), (14.75, 1), (15.0, 0)]
)
def test_the_killzones_of_london_and_new_york_add_a_tenth(hour, timed):
    bars = quiet()
    bars[:, 0] += WINTER + 3600.0 * hour - bars[-1, 0]
    assert last(hands(), bars)["smart_money.score"] == pytest.approx(0.9 * FIRST + 0.1 * timed)


def test_large_hands_on_both_sides_weaken_the_signal():
    assert last(hands(sold=(1.0, 1.0)))["smart_money.strength"] == pytest.approx(0.9 * FIRST * 4.0 / 8.0)


def test_the_wall_beyond_the_zone_is_the_target():
    assert last(hands(wall_ask=104.0, wall_bid=97.0))["smart_money.target"] == 104.0
    assert last(hands(wall_ask=100.1, wall_bid=97.0))["smart_money.target"] == pytest.approx(101.75)


def test_hands_without_a_price_signal_without_a_zone():
    row = last(hands(smart_price=np.nan))
    assert row["smart_money.direction"] == 1.0
    assert np.isnan([row["smart_money.low"], row["smart_money.high"], row["smart_money.target"]]).all()


def test_a_bar_without_volume_scores_zero_and_poisons_nothing():
    bars, idle = quiet(130), quiet(130)
    idle[80, 5] = 0.0
    zero = {name: then([0.5], n=130) for name in ("large_buy", "large_sell", "iceberg_bid", "iceberg_ask")}
    contexts = known(130, spoof_bid=0.0, spoof_ask=0.0, smart_price=100.0, **zero)
    contexts[80, [CONTEXT_INDEX[name] for name in zero]] = 0.0
    score = FPDOM.index["smart_money.score"]
    found = FPDOM.run(idle, None, contexts)[:, score]
    assert found[80] == 0.0  # 20:00 is in no killzone
    assert not np.isnan(found[81:]).any()
    assert not np.isnan(FPDOM.run(bars, None, contexts)[80:, score]).any()


def test_footprint_and_heatmap_are_the_reference_rules(bars, contexts):
    bars, contexts = holed(bars, contexts)
    out = FPDOM.run(bars, None, contexts)
    of = {name: contexts[:, i] for name, i in CONTEXT_INDEX.items()}

    stacked, depth = of["stacked_buying"] - of["stacked_selling"], of["stacking_bid"] - of["stacking_ask"]
    runs, added = stacked / rms(stacked), depth / rms(depth)
    lean = (runs + added) / 2
    foot = np.where((np.abs(lean) >= 1.0) & (runs * added >= 0.0), np.sign(lean), lean * 0.0)
    missing = np.full(len(bars), np.nan)
    wanted = expected_columns(foot, np.abs(lean), missing, missing)
    np.testing.assert_allclose(columns(out, *four("footprint")), wanted, rtol=1e-9)

    imbalance, high = of["heat_imbalance"], rank(np.abs(of["heat_imbalance"]))
    heat = np.where(high >= 0.8, np.sign(imbalance), high * 0.0)
    wanted = expected_columns(heat, np.abs(imbalance), of["wall_bid"], of["wall_ask"])
    np.testing.assert_allclose(columns(out, *four("heatmap")), wanted, rtol=1e-9)
    walls = np.column_stack([of["wall_bid"], of["wall_ask"]])
    distance = (walls - bars[:, 4:5]) / atr(bars)[:, None]
    nearest = np.argmin(np.where(np.isnan(distance), np.inf, np.abs(distance)), axis=1)
    wanted = distance[np.arange(len(bars)), nearest]
    np.testing.assert_allclose(columns(out, "heatmap.wall_distance")[:, 0], wanted, rtol=1e-9)
    for spoken in (foot, heat):
        assert {-1.0, 0.0, 1.0} == set(spoken[~np.isnan(spoken)])


def test_smart_money_is_the_reference_rule(bars, contexts):
    bars, contexts = holed(bars, contexts)
    out = FPDOM.run(bars, None, contexts)
    of = {name: contexts[:, i] for name, i in CONTEXT_INDEX.items()}
    bought, sold = of["large_buy"] + of["iceberg_bid"], of["large_sell"] + of["iceberg_ask"]
    side = np.sign(bought - sold)
    parts = (
        (of["large_buy"] + of["large_sell"]) / bars[:, 5],
        (of["iceberg_bid"] + of["iceberg_ask"]) / bars[:, 5],
        np.select([side > 0, side < 0, side == 0], [of["spoof_ask"], of["spoof_bid"], 0.0], np.nan),
    )
    hour = bars[:, 0] % 86400 / 3600
    timed = ((hour >= 7) & (hour < 10)) | ((hour >= 12) & (hour < 15))
    large, iceberg, spoof = (np.where(part == 0.0, rank(part) * 0.0, rank(part)) for part in parts)
    score = 0.4 * large + 0.3 * iceberg + 0.2 * spoof + 0.1 * timed
    direction = np.where(score > 0.7, side, score * 0.0)
    reach, price = atr(bars), of["smart_price"]
    low, high = price - 0.25 * reach, price + 0.25 * reach
    strength = score * np.abs(bought - sold) / (bought + sold)
    up = np.where(of["wall_ask"] > high, of["wall_ask"], high + 1.5 * reach)
    down = np.where(of["wall_bid"] < low, of["wall_bid"], low - 1.5 * reach)
    wanted = np.column_stack(
        [score, expected_columns(direction, strength, low, high, np.where(direction > 0, up, down))]
    )
    found = columns(out, "smart_money.score", *four("smart_money"), "smart_money.target")
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert {-1.0, 0.0, 1.0} == set(direction[~np.isnan(direction)])


@pytest.mark.parametrize("name", ["footprint", "heatmap", "smart_money"])
def test_a_hole_silences_a_signal_until_it_has_left_the_window(bars, contexts, name):
    bars, contexts = holed(bars, contexts)
    silent = np.isnan(columns(FPDOM.run(bars, None, contexts), f"{name}.direction")[:, 0])
    assert np.flatnonzero(silent).tolist() == [*range(59), *range(HOLES.start, HOLES.stop + 59)]


def test_without_a_tape_and_smart_money_without_volume_all_are_unavailable(bars, contexts):
    assert np.isnan(FPDOM.run(bars[:200])).all()
    forex = bars[:200].copy()
    forex[:, 5:] = np.nan
    out = FPDOM.run(forex, None, contexts[:200])
    gone = [column.name for column in FPDOM.catalogue if np.isnan(out[:, FPDOM.index[column.name]]).all()]
    wanted = [c.name for c in FPDOM.catalogue if c.formula == "none" or (c.needs or "").startswith("volume")]
    assert gone == wanted
