"""S9: what a window of books shows, on books made by hand, mirrored, and against the same rules over whole tables."""

import numpy as np
import pytest

from bellwether.reports.heatmap import grid, write
from benchmarks.heatmap import MARKETS, PandasHeatmap, books
from pipelines.data.orderbook.heatmap import (
    EVERY_S,
    HEAT_STATE,
    LEVELS,
    LEVELS_PER_SIDE,
    MIN_SNAPSHOTS,
    SNAPSHOTS,
    heatmap,
    heatmap_add_snapshot,
    heatmap_write_row,
    level_width,
)
from pipelines.data.orderbook.limit_order_book import NO_TICK
from pipelines.errors import NotEnoughData

RING, MASK = 1 << 10, (1 << 10) - 1
MID, TICK = 10_000, 0.5  # ticks, quote currency: a level is one tick wide
NONE = slice(3, 7)


def book(bid=MID, ask=MID + 1, size=10, more=(), reach=LEVELS_PER_SIDE):
    """A flat book with `more` (tick, size) put in; what lies at or under the best bid is a bid."""
    depth = np.zeros((2, RING), np.int64)
    depth[0, np.arange(bid - reach + 1, bid + 1) & MASK] = size
    depth[1, np.arange(ask, ask + reach) & MASK] = size
    for tick, there in more:
        depth[int(tick > bid), tick & MASK] = there
    return depth, MASK, bid, ask, bid - reach + 1, ask + reach - 1


def seen(looks):
    state = np.zeros(HEAT_STATE)
    for look in looks:
        heatmap_add_snapshot(state, *look)
    return state


def summary_of(state):
    out = np.empty(7)
    heatmap_write_row(state, TICK, out)
    return out


def test_a_flat_book_is_balanced_least_concentrated_fully_liquid_and_without_walls():
    out = summary_of(seen([book()] * MIN_SNAPSHOTS))
    np.testing.assert_allclose(out[:3], [0.0, 1 / LEVELS, 1.0], atol=1e-15)
    assert np.isnan(out[NONE]).all()


def test_three_to_one_is_an_imbalance_of_a_half():
    look = book()
    look[0][0] *= 3
    assert summary_of(seen([look] * MIN_SNAPSHOTS))[0] == pytest.approx(0.5)


def test_liquidity_falls_with_levels_that_are_empty_uneven_or_far_apart():
    half, uneven, apart = book(reach=LEVELS_PER_SIDE // 2), book(more=((MID - 3, 500),)), book(ask=MID + 2)
    flat, few, lumpy, wide = (summary_of(seen([each] * MIN_SNAPSHOTS))[2] for each in (book(), half, uneven, apart))
    assert few == pytest.approx(flat / 2)
    assert wide == pytest.approx(flat / 2)  # a whole level is missing
    assert lumpy < 0.2


def test_all_at_two_levels_is_a_concentration_of_a_half():
    assert summary_of(seen([book(reach=1)] * MIN_SNAPSHOTS))[1] == pytest.approx(0.5)


def test_a_wall_has_its_price_and_size_in_medians():
    out = summary_of(seen([book(more=((MID - 7, 50), (MID + 9, 80)))] * MIN_SNAPSHOTS))
    assert out[NONE].tolist() == [(MID - 7) * TICK, (MID + 9) * TICK, 5.0, 8.0]


def test_just_under_five_medians_is_no_wall_and_of_two_the_nearer_one_is_returned():
    out = summary_of(seen([book(more=((MID - 7, 49), (MID + 9, 80), (MID + 20, 900)))] * MIN_SNAPSHOTS))
    assert np.isnan(out[[3, 5]]).all()
    assert out[[4, 6]].tolist() == [(MID + 9) * TICK, 8.0]


@pytest.mark.parametrize(("stood", "is_wall"), [(SNAPSHOTS * 6 // 10 - 1, False), (SNAPSHOTS * 6 // 10, True)])
def test_a_wall_has_stood_in_three_fifths_of_the_snapshots(stood, is_wall):
    with_it, without = book(more=((MID - 7, 60),)), book()
    assert np.isfinite(summary_of(seen([without] * (SNAPSHOTS - stood) + [with_it] * stood))[3]) == is_wall


def test_a_wall_that_is_gone_now_is_no_wall():
    assert np.isnan(summary_of(seen([book(more=((MID - 7, 60),))] * (SNAPSHOTS - 1) + [book()]))[3])


def test_a_wall_is_a_price_not_a_distance_from_the_mid():
    """The market walks up 20 ticks: an order left where it was is a wall, one that walks with the market is none."""
    stays = [book(MID + k // 2, MID + 1 + k // 2, more=((MID - 7, 60),)) for k in range(40)]
    walks = [book(MID + k // 2, MID + 1 + k // 2, more=((MID - 7 + k // 2, 60),)) for k in range(40)]
    assert summary_of(seen(stays))[3] == (MID - 7) * TICK
    assert np.isnan(summary_of(seen(walks))[3])


def test_mirrored_books_give_the_mirrored_summary():
    looks = books(*MARKETS[0][:2], n=60, seed=3)
    width, ring = level_width(*looks[-1][2:4]), MARKETS[0][1]
    top = 2 * (looks[0][2] // (2 * width)) * 2 * width - 1  # a tick t becomes top - t, a level a whole level
    mirrored = []
    for depth, mask, bid, ask, far_bid, far_ask in looks:
        turned = depth[::-1][:, (top - np.arange(ring)) & mask]
        mirrored.append((np.ascontiguousarray(turned), mask, top - ask, top - bid, top - far_ask, top - far_bid))
    one, other = summary_of(seen(looks)), summary_of(seen(mirrored))
    assert np.isfinite(one).all()
    np.testing.assert_allclose(other[:3], [-one[0], one[1], one[2]], rtol=1e-12)
    np.testing.assert_allclose(other[[4, 3]], top * TICK - one[[3, 4]], rtol=1e-12)
    np.testing.assert_allclose(other[[6, 5]], one[[5, 6]], rtol=1e-12)


WIDTH_CHANGES = (40_003, 1 << 10)  # where a level is 4 ticks wide, or 2


@pytest.mark.parametrize(("mid", "ring"), [*(market[:2] for market in MARKETS), WIDTH_CHANGES])
def test_the_kernel_gives_the_values_of_whole_tables(mid, ring):
    state, pivoted, walls = np.zeros(HEAT_STATE), PandasHeatmap(), 0
    for k, look in enumerate(books(mid, ring, 140, seed=1)):
        heatmap_add_snapshot(state, *look)
        pivoted.add_snapshot(*look)
        if k % 7 == 0:
            out = summary_of(state)
            np.testing.assert_allclose(out, pivoted.row(TICK), rtol=1e-12)
            walls += int(np.isfinite(out[3:5]).sum())
    assert walls > 10


def test_sizes_may_be_floats_and_their_unit_does_not_matter():
    looks = books(*MARKETS[0][:2], n=40, seed=4)
    in_coins = [(look[0] * 0.001, *look[1:]) for look in looks]
    np.testing.assert_allclose(summary_of(seen(in_coins)), summary_of(seen(looks)), rtol=1e-9)


def test_nothing_is_returned_before_there_is_enough():
    assert np.isnan(summary_of(seen([book()] * (MIN_SNAPSHOTS - 1)))).all()
    assert np.isfinite(summary_of(seen([book()] * MIN_SNAPSHOTS))[:3]).all()
    with pytest.raises(NotEnoughData, match="29 snapshots"):
        heatmap(seen([book()] * (MIN_SNAPSHOTS - 1)), TICK, 1000.0)


def test_a_book_without_a_side_is_skipped():
    state = seen([book()] * MIN_SNAPSHOTS)
    before = state.copy()
    heatmap_add_snapshot(state, np.zeros((2, RING), np.int64), MASK, MID, NO_TICK, MID, -NO_TICK)
    heatmap_add_snapshot(state, np.zeros((2, RING), np.int64), MASK, -NO_TICK, MID, NO_TICK, MID)
    assert state.tobytes() == before.tobytes()


def test_the_window_is_the_last_fifty_whatever_came_before():
    looks = books(*MARKETS[0][:2], n=130, seed=5)
    assert summary_of(seen(looks)).tobytes() == summary_of(seen(looks[-SNAPSHOTS:])).tobytes()


def test_a_level_is_about_a_basis_point_and_other_widths_are_not_compared():
    assert [int(level_width(mid, mid + 1)) for mid in (9_000, 20_000, 39_999, 650_000)] == [1, 2, 2, 64]
    narrow, wide = [book(19_990, 19_991)] * 45, [book(20_000, 20_001)] * MIN_SNAPSHOTS
    assert np.isnan(summary_of(seen(narrow + wide[1:]))).all()
    assert summary_of(seen(narrow + wide)).tobytes() == summary_of(seen(wide)).tobytes()


def test_the_picture_holds_times_prices_intensity_profile_clusters_and_walls():
    more = ((MID - 7, 60), (MID + 4, 20), (MID + 5, 20))
    made = heatmap(seen([book(more=more)] * 60), TICK, 1_000_000.0)
    assert made.times[[0, -1]].tolist() == [1_000_000.0 - 49 * EVERY_S, 1_000_000.0]
    assert made.intensity.shape == made.prices.shape == (SNAPSHOTS, LEVELS)
    np.testing.assert_allclose(np.diff(made.prices[0]), TICK)
    at = np.argmax(made.intensity[0])
    assert (made.prices[0, at], made.intensity[0, at]) == ((MID - 7) * TICK, 1.0)
    assert made.profile[:, -1].tolist() == [49 * 10 + 60, 48 * 10 + 40]
    assert [(w.side, w.price, w.size, w.persistence) for w in made.liquidity_walls] == [(1, (MID - 7) * TICK, 6.0, 1.0)]
    bid, ask = made.clusters
    assert (bid.side, bid.low, bid.high) == (1, (MID - 7) * TICK, (MID - 7) * TICK)
    assert (ask.side, ask.low, ask.high) == (-1, (MID + 4) * TICK, (MID + 5) * TICK)
    assert ask.share == pytest.approx(40 / 520)
    np.testing.assert_array_equal(made.summary, summary_of(seen([book(more=more)] * 60)))


def test_the_picture_is_drawn_by_price_over_a_moving_market(tmp_path):
    state = seen([book(MID + k, MID + 1 + k, more=((MID - 7, 60),)) for k in range(35)])
    prices, shown = grid(heatmap(state, TICK, 1000.0))
    assert shown.shape == (LEVELS + 34, 35)
    row = np.flatnonzero(prices == (MID - 7) * TICK)[0]
    assert shown[row].tolist() == [1.0] * 35
    assert np.isnan(shown[0, -1])
    page = write(heatmap(state, TICK, 1000.0), "TEST USDT", tmp_path / "heat.html").read_text()
    assert "USDT: 35 snapshots" in page
    assert "<script src=" not in page  # it needs no network
