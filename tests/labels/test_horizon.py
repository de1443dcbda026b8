"""Fixed-horizon labels, against examples worked by hand; a bar is a minute, a decision bar three."""

from datetime import date

import numpy as np
import pytest
from support.market_hours import at
from support.market_hours import bars as bars_of

from pipelines.contracts import BAR_WIDTH, HALF_SPREAD
from pipelines.data.calendars import CALENDARS
from pipelines.data.timeframes import Grid, resample
from pipelines.labels.horizon import forward_returns, horizon_labels
from pipelines.settings import load_params

MINUTES = Grid("1m")

PARAMS = load_params()
MINUTES, THREES = Grid("1m"), Grid("3m")
STEP_S, HORIZON = 180, 2


SETTINGS = PARAMS.model_copy(update={"predictor": PARAMS.predictor.model_copy(update={"horizon_bars": HORIZON})})


def minutes(opens, closes):
    rows = np.full((len(opens), BAR_WIDTH), 1.0)
    rows[:, HALF_SPREAD] = np.nan
    rows[:, 0] = 60.0 * np.arange(len(opens))
    rows[:, 1], rows[:, 4] = opens, closes
    rows[:, 2], rows[:, 3] = np.maximum(opens, closes), np.minimum(opens, closes)
    return rows


def walk(n=600, seed=3):
    close = 100 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0, 1e-3, n)))
    return minutes(np.concatenate([[100.0], close[:-1]]), close)


def labels(base, cost_bps=5.0):
    decision = resample(base, MINUTES, THREES)
    return horizon_labels(
        decision, base, THREES, MINUTES, SETTINGS, lambda spread: np.broadcast_to(cost_bps, len(spread))
    )


def test_the_return_is_from_the_next_open_to_the_last_close_inside_the_horizon():
    base = minutes(100.0 + np.arange(12), 100.5 + np.arange(12))
    labelled = forward_returns(base, MINUTES, np.array([180.0]), np.array([540.0]))
    assert (labelled.start[0], labelled.exit[0]) == (3, 8)
    assert labelled.gross_bps[0] == pytest.approx((108.5 / 103.0 - 1) * 1e4)


def test_a_return_is_of_mids_and_the_spread_that_either_side_pays_stands_next_to_it():
    base = minutes(100.0 + np.arange(12), 100.5 + np.arange(12))
    mids = forward_returns(base, MINUTES, np.array([180.0]), np.array([540.0]))
    assert np.isnan(mids.spread_bps[0])
    base[3, HALF_SPREAD], base[8, HALF_SPREAD] = 0.2, 0.4
    quoted = forward_returns(base, MINUTES, np.array([180.0, 1e6]), np.array([540.0, 1e6 + 360.0]))
    assert quoted.gross_bps[0] == mids.gross_bps[0]
    assert quoted.spread_bps[0] == pytest.approx((0.2 + 0.4) / 103.0 * 1e4)
    bought_at_ask_sold_at_bid = ((108.5 - 0.4) - (103.0 + 0.2)) / 103.0 * 1e4
    sold_at_bid_bought_at_ask = ((103.0 - 0.2) - (108.5 + 0.4)) / 103.0 * 1e4
    earned = [way * quoted.gross_bps[0] - quoted.spread_bps[0] for way in (1, -1)]
    assert earned == pytest.approx([bought_at_ask_sold_at_bid, sold_at_bid_bought_at_ask])
    assert np.isnan(quoted.spread_bps[1])  # no return there, so no spread either


def test_quotes_that_widen_change_no_label():
    base, quoted = walk(), walk()
    quoted[:, HALF_SPREAD] = np.random.default_rng(5).uniform(0.0, 0.5, len(quoted))
    for name in ("index", "y", "gross_bps"):
        np.testing.assert_array_equal(labels(base)[name], labels(quoted)[name])


def test_a_row_says_when_it_was_known_when_it_ended_and_what_the_bar_itself_did():
    base = walk()
    labelled = labels(base)
    close = resample(base, MINUTES, THREES)[:, 4]
    at = labelled["index"]
    np.testing.assert_array_equal(labelled["known"], (at + 1.0) * STEP_S)
    np.testing.assert_array_equal(labelled["ended"], labelled["known"] + HORIZON * STEP_S)
    np.testing.assert_allclose(labelled["last_return"][at > 0], np.log(close[at[at > 0]] / close[at[at > 0] - 1]))
    np.testing.assert_array_equal(labelled["y"], labelled["gross_bps"] > 0)


def test_a_move_within_the_round_trip_gets_no_row():
    base = walk()
    narrow, wide = labels(base, 0.0), labels(base, 20.0)
    assert np.abs(wide["gross_bps"]).min() > 20.0
    inside = np.abs(narrow["gross_bps"]) <= 20.0
    assert inside.any()
    np.testing.assert_array_equal(wide["index"], narrow["index"][~inside])


def test_the_dead_zone_is_as_wide_as_a_round_trip_costs_at_that_close():
    base = walk()
    narrow, cost_bps = labels(base, 0.0), np.where(np.arange(200) < 100, 0.0, 20.0)
    mixed = labels(base, cost_bps)
    kept = np.abs(narrow["gross_bps"]) > cost_bps[narrow["index"]]
    np.testing.assert_array_equal(mixed["index"], narrow["index"][kept])
    np.testing.assert_array_equal(mixed["cost_bps"], cost_bps[mixed["index"]])


def test_nothing_after_the_horizon_matters_neither_garbage_nor_its_absence():
    base = walk()
    known = np.arange(STEP_S, 300 * 60.0, STEP_S)
    inside = known + 360.0 <= 250 * 60.0
    garbage = base.copy()
    garbage[250:, 1:5] *= 7.0
    whole, other, cut = (
        forward_returns(b, MINUTES, known, known + 360.0).gross_bps[inside] for b in (base, garbage, base[:250])
    )
    assert np.isfinite(whole).sum() > 50
    assert whole.tobytes() == other.tobytes() == cut.tobytes()


@pytest.mark.parametrize("gone", [3, 8])
def test_a_gap_at_either_end_is_no_return(gone):
    base = np.delete(walk(30), gone, axis=0)
    assert np.isnan(forward_returns(base, MINUTES, np.array([180.0]), np.array([540.0])).gross_bps[0])


def test_decision_bars_alone_are_enough():
    bars = resample(walk(), MINUTES, THREES)
    labelled = horizon_labels(bars, bars, THREES, THREES, SETTINGS, lambda spread: np.full(len(spread), 5.0))
    i = labelled["index"][10]
    assert labelled["gross_bps"][10] == pytest.approx((bars[i + 2, 4] / bars[i + 1, 1] - 1) * 1e4)
    assert labelled["index"].max() == len(bars) - 1 - HORIZON


def test_overlapping_labels_share_their_uniqueness():
    labelled = labels(walk(), 0.0)
    assert np.median(labelled["uniqueness"]) == pytest.approx(1 / HORIZON)


def test_a_market_that_does_not_move_has_no_rows():
    labelled = labels(minutes(np.full(60, 100.0), np.full(60, 100.0)))
    assert {len(values) for values in labelled.values()} == {0}


@pytest.mark.parametrize(("gone", "known"), [(None, True), (-1, False), (2, False)])
def test_a_horizon_over_a_weekend_ends_with_its_bars_and_a_bar_missing_at_an_end_is_no_return(gone, known):
    grid = Grid("1h", CALENDARS["forex"])
    opens = bars_of("forex", 3600.0, date(2024, 3, 5), date(2024, 3, 12))[:, 0]
    base = minutes(100.0 + np.arange(len(opens)), 100.5 + np.arange(len(opens)))
    base[:, 0] = opens
    friday = int(np.searchsorted(opens, at("2024-03-08 20:00")))  # its last two bars, then two of Sunday evening
    close = np.array([opens[friday]])  # the close of the bar before
    deadline = grid.deadline(close, 4)
    assert deadline[0] == at("2024-03-10 23:00")  # New York's clock has moved: 17:00 is 21:00 UTC
    cut = {None: base, -1: np.delete(base, friday, axis=0), 2: np.delete(base, friday + 3, axis=0)}[gone]
    found = forward_returns(cut, grid, close, deadline)
    assert np.isfinite(found.gross_bps[0]) == known
    if known:
        assert found.gross_bps[0] == pytest.approx((base[friday + 3, 4] / base[friday, 1] - 1) * 1e4)
