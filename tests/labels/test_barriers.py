"""Triple barrier and sample weights, against examples worked by hand."""

import numpy as np
import pytest

from pipelines.labels.barriers import STOP, TARGET, TIME, UNRESOLVED, first_touch, levels, triple_barrier
from pipelines.labels.weights import average_uniqueness, effective_rows, event_decay


def bars(*candles):
    """(open, high, low, close) one a minute from epoch 0."""
    rows = np.full((len(candles), 8), np.nan)
    rows[:, 0] = 60.0 * np.arange(len(candles))
    rows[:, 1:5] = candles
    return rows


FLAT = (100.0, 100.5, 99.5, 100.0)


@pytest.mark.parametrize(
    ("path", "direction", "expected"),
    [
        ([FLAT, (100, 103, 100, 102)], 1, (1, TARGET, 102.0)),
        ([FLAT, (100, 100, 98, 98.5)], 1, (1, STOP, 99.0)),
        ([FLAT, (100, 103, 98, 102)], 1, (1, STOP, 99.0)),  # both in one bar: the stop
        ([FLAT, (97, 98, 96, 97)], 1, (1, STOP, 97.0)),  # opened beyond the stop: filled at the open
        ([FLAT, (100, 100, 97, 98)], -1, (1, TARGET, 98.0)),
        ([FLAT, (103, 104, 102, 103)], -1, (1, STOP, 103.0)),
        ([FLAT, FLAT, (100, 100.4, 99.9, 100.3)], 1, (2, TIME, 100.3)),
        ([FLAT, FLAT], 1, (1, UNRESOLVED, np.nan)),
    ],
)
def test_first_touch_gives_the_barrier_worked_by_hand(path, direction, expected):
    target, stop = (102.0, 99.0) if direction > 0 else (98.0, 101.0)
    got = first_touch(bars(*path), 0, direction, target, stop, 180.0)
    np.testing.assert_array_equal(got, expected)


def test_a_label_does_not_change_when_everything_after_its_horizon_does():
    rng = np.random.default_rng(3)
    close = 100 * np.exp(np.cumsum(rng.normal(0, 1e-3, 600)))
    market = bars(*[(c, c * 1.0008, c * 0.9992, c) for c in close])
    garbage = market.copy()
    garbage[400:, 1:5] *= 7.0
    known, horizon = np.array([60.0 * k for k in range(10, 300, 10)]), 60.0 * 100
    cut = [triple_barrier(m, known, close[(known / 60).astype(int)], np.ones(len(known), np.int64),
                          np.full(len(known), 2e-3), 1.5, 1.0, horizon) for m in (market, garbage)]  # fmt: skip
    inside = known + horizon <= 400 * 60.0
    assert inside.sum() > 10
    assert cut[0].label[inside].tobytes() == cut[1].label[inside].tobytes()
    assert cut[0].gross_bps[inside].tobytes() == cut[1].gross_bps[inside].tobytes()


def test_gross_return_is_from_the_next_bars_open_and_holds_no_cost():
    market = bars(FLAT, (100.1, 103, 100, 102), FLAT)
    outcome = triple_barrier(
        market, np.array([60.0]), np.array([100.0]), np.array([1]), np.array([0.01]), 1.5, 1.0, 120.0
    )
    assert outcome.label[0] == 1.0
    assert outcome.gross_bps[0] == pytest.approx((101.5 / 100.1 - 1) * 1e4)
    assert levels(np.array([100.0]), np.array([1]), np.array([0.01]), 1.5, 1.0) == (
        pytest.approx([101.5]),
        pytest.approx([99.0]),
    )


def test_overlapping_labels_share_their_uniqueness():
    start, exit = np.array([0, 0, 10]), np.array([4, 4, 14])
    np.testing.assert_allclose(average_uniqueness(start, exit, 20), [0.5, 0.5, 1.0])


def test_an_event_weighs_half_after_so_many_later_ones_whatever_the_time_between_them():
    known = np.array([0.0, 10.0, 10.0, 90.0, 1e9])
    np.testing.assert_allclose(event_decay(known, 2.0), 0.5 ** np.array([2.0, 1.0, 1.0, 0.5, 0.0]))
    np.testing.assert_array_equal(event_decay(known, 2.0), event_decay(known * 96.0, 2.0))
    assert event_decay(np.empty(0), 2.0).shape == (0,)


def test_effective_rows_count_overlap_and_decay():
    assert effective_rows(np.full(100, 0.25), np.ones(100)) == pytest.approx(25.0)
    assert effective_rows(np.ones(5), np.array([0.0, 0.0, 1.0, 1.0, 0.0])) == pytest.approx(2.0)
    assert effective_rows(np.empty(0), np.empty(0)) == 0.0
