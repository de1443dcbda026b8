"""Columns of the book and of context, against hand-checked values and numpy."""

import numpy as np
import pytest

from pipelines.context_layout import CONTEXT_INDEX, CONTEXT_WIDTH
from pipelines.features.catalog import FEATURES

BOOK = [column.name for column in FEATURES.catalogue if (column.needs or "").startswith("book")]


def context(**known):
    row = np.full(CONTEXT_WIDTH, np.nan)
    for name, value in known.items():
        row[CONTEXT_INDEX[name]] = value
    return row


def last(bars, books=None, contexts=None):
    return dict(zip(FEATURES.columns, FEATURES.run(bars, books, contexts)[-1], strict=True))


def two_levels(bids, asks):
    """(2, 3, 3): sizes at 99, 98 and 101, 102; the third level is padding."""
    book = np.full((2, 3, 3), np.nan)
    book[0, :2, 0], book[1, :2, 0] = (99.0, 98.0), (101.0, 102.0)
    book[0, :2, 1], book[1, :2, 1] = bids, asks
    return book


def test_the_book_columns_of_a_book_drawn_by_hand(bars):
    books = np.array([two_levels((1.0, 1.0), (1.0, 1.0))] * 19 + [two_levels((3.0, 2.0), (1.0, 2.0))])
    row = last(bars[:20], books, np.tile(context(order_flow=4.0, order_flow_fast=-1.0), (20, 1)))
    depth = (19 * 2.0 + 4.0) / 20
    wanted = {
        "spread": 0.02,
        "book_imbalance": 0.5,
        "depth_ratio": np.log(5.0 / 3.0),
        "bid_volume": 5.0 / depth,
        "ask_volume": 3.0 / depth,
        "order_flow_ratio": 4.0 / depth,
        "hft_oci_signal": -1.0 / depth,
        "book_skew_strength": (4.0 - 2.0) / (4.0 + 2.0),
        "liquidity_density": 8.0 / ((19 * 4.0 + 8.0) / 20),
    }
    assert {name: row[name] for name in BOOK} == pytest.approx(wanted)


def test_the_same_size_on_a_wider_reach_is_less_dense(bars):
    near, wide = (np.array([two_levels((1.0, 1.0), (1.0, 1.0))] * 20) for _ in range(2))
    wide[-1, :, 1, 0] = (96.0, 104.0)
    assert last(bars[:20], near)["liquidity_density"] == pytest.approx(1.0)
    assert last(bars[:20], wide)["liquidity_density"] == pytest.approx(0.5 / ((19 + 0.5) / 20))


def test_a_mirrored_book_turns_the_signed_columns(bars, books, contexts):
    mirrored = books.copy()
    mirrored[..., 1:] = books[:, ::-1, :, 1:]
    there, back = FEATURES.run(bars, books, contexts), FEATURES.run(bars, mirrored, -contexts)
    for name in ("book_imbalance", "depth_ratio", "book_skew_strength", "order_flow_ratio", "hft_oci_signal"):
        at = FEATURES.index[name]
        np.testing.assert_allclose(there[:, at], -back[:, at], rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("fault", ["unknown", "no_ask", "crossed", "locked"])
def test_a_bar_without_a_sound_book_has_no_book_columns_and_repeats_no_old_ones(bars, books, contexts, fault):
    faulty = books[:60].copy()
    if fault == "unknown":
        faulty[40] = np.nan
    elif fault == "no_ask":
        faulty[40, 1] = np.nan
    else:
        faulty[40, 1, 0, 0] = faulty[40, 0, 0, 0] * (0.99 if fault == "crossed" else 1.0)
    values = FEATURES.run(bars[:60], faulty, contexts[:60])
    of_book = values[:, [FEATURES.index[name] for name in BOOK]]
    assert np.isnan(of_book[40]).all()
    there = ~np.isnan(of_book[41:])
    assert there.all(axis=0).tolist() == [FEATURES.catalogue[FEATURES.index[name]].warmup == 1 for name in BOOK]
    assert there[19:].all()


def test_flow_that_was_not_recorded_leaves_the_other_book_columns_alone(bars, books):
    row = last(bars[:30], books[:30])
    assert [name for name in BOOK if np.isnan(row[name])] == ["order_flow_ratio", "hft_oci_signal"]


@pytest.mark.parametrize(
    ("known", "sentiment"),
    [
        ({"fear_greed": 100.0}, 1.0),
        ({"fear_greed": 25.0}, -0.5),
        ({"funding_rate": 1e-4}, 0.0),
        ({"funding_rate": 2e-4}, 0.5),
        ({"funding_rate": 0.0}, -0.5),
        ({"fear_greed": 75.0, "funding_rate": 0.0}, 0.0),
        ({"open_interest": 1e5}, np.nan),
    ],
)
def test_market_sentiment_is_the_mean_of_what_is_known(bars, known, sentiment):
    row = FEATURES.step(FEATURES.fresh(), bars[0], context=context(**known))
    np.testing.assert_allclose(row[FEATURES.index["market_sentiment"]], sentiment, atol=1e-12)


def test_correlation_and_beta_with_the_reference_are_numpys(bars, contexts):
    values = FEATURES.run(bars, None, contexts)
    own, theirs = (np.diff(np.log(x)) for x in (bars[:, 4], contexts[:, CONTEXT_INDEX["reference_close"]]))
    for t in range(60, 2500, 97):
        x, y = own[t - 60 : t], theirs[t - 60 : t]
        cov = np.cov(x, y)
        assert np.isclose(values[t, FEATURES.index["cross_correlation"]], np.corrcoef(x, y)[0, 1], rtol=1e-9)
        assert np.isclose(values[t, FEATURES.index["cross_beta"]], cov[0, 1] / cov[1, 1], rtol=1e-9)


def test_the_reference_next_to_itself_is_missing_not_one(bars):
    contexts = np.tile(context(), (200, 1))
    contexts[:, CONTEXT_INDEX["reference_close"]] = bars[:200, 4]
    row = last(bars[:200], None, contexts)
    assert np.isnan([row["cross_correlation"], row["cross_beta"]]).all()
