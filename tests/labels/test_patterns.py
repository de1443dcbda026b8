"""Pattern labels: what became of patterns that are present, and nothing after their horizon."""

import numpy as np
import pytest

from pipelines.contracts import BAR_WIDTH, CLOSE, HALF_SPREAD, OPEN_TIME
from pipelines.data.timeframes import Grid, resample
from pipelines.errors import BadShape
from pipelines.labels.patterns import pattern_labels
from pipelines.settings import load_params

MINUTES, FIVES = Grid("1m"), Grid("5m")

MINUTES, FIVES = Grid("1m"), Grid("5m")

MINUTES, FIVES = Grid("1m"), Grid("5m")

PARAMS = load_params().model_copy(
    update={"pattern": load_params().pattern.model_copy(update={"target_atr": 2.0, "stop_atr": 1.0, "horizon_bars": 2})}
)


def minutes(*prices):
    """One-minute bars that open and close at the given prices, from epoch 0; the last is followed by nothing."""
    rows = np.full((len(prices) - 1, BAR_WIDTH), 1.0)
    rows[:, HALF_SPREAD] = np.nan
    rows[:, 0] = 60.0 * np.arange(len(rows))
    ends = np.column_stack([prices[:-1], prices[1:]])
    rows[:, 1], rows[:, 4] = ends.T
    rows[:, 2], rows[:, 3] = ends.max(axis=1), ends.min(axis=1)
    return rows


def labels(base, direction, reach=1.0):
    """Decision bars of five minutes."""
    bars = resample(base, MINUTES, FIVES)
    direction = np.atleast_2d(np.asarray(direction, float))
    direction = np.concatenate([direction, np.zeros((len(bars) - len(direction), direction.shape[1]))])
    return pattern_labels(bars, base, direction, np.full(len(bars), reach), FIVES, MINUTES, PARAMS)


UP = [100.0] * 6 + [100.5, 101.0, 101.5, 102.0, 102.0, 102.0, *[102.0] * 10]


def test_patterns_that_are_there_together_are_each_labelled_by_their_own_side():
    labelled = labels(minutes(*UP), [[1, -1, 0, 1]])
    np.testing.assert_array_equal(labelled["y"], [[1.0, 0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(labelled["direction"], [[1.0, -1.0, 0.0, 1.0]])
    assert labelled["index"].tolist() == [0]
    assert labelled["known"].tolist() == [300.0]


def test_a_label_ends_when_the_last_of_its_sides_is_decided():
    rise, fall, both = (labels(minutes(*UP), [d])["ended"][0] for d in ([1, 0], [0, -1], [1, -1]))
    assert (rise, fall) == (540.0, 420.0)  # target 102 inside minute 8, stop 101 inside minute 6
    assert both == max(rise, fall)


def test_a_move_that_comes_too_late_or_not_at_all_is_zero():
    labelled = labels(minutes(*[100.0] * 26), [[1, -1]])
    np.testing.assert_array_equal(labelled["y"], [[0.0, 0.0]])
    assert labelled["ended"][0] == 300.0 + 2 * 300.0


def test_bars_without_a_pattern_or_without_an_end_have_no_row():
    assert len(labels(minutes(*UP), [[0, 0]])["y"]) == 0
    assert len(labels(minutes(*UP), [[np.nan, np.nan]])["y"]) == 0
    assert len(labels(minutes(*UP[:9]), [[1, 1]])["y"]) == 0  # the bars stop before a barrier or the horizon


def test_a_label_does_not_change_when_everything_after_its_horizon_does():
    rng = np.random.default_rng(5)
    base = minutes(*100.0 * np.exp(np.cumsum(rng.normal(0, 1e-3, 3001))))
    bars = resample(base, MINUTES, FIVES)
    direction = rng.choice([-1.0, 0.0, 1.0], size=(len(bars), 3))
    reach = np.full(len(bars), 0.12)
    cut = 1500
    garbage = base.copy()
    garbage[cut:, 1:5] *= 5.0
    whole, blinded, short = (
        pattern_labels(
            resample(b, MINUTES, FIVES)[: cut // 5], b, direction[: cut // 5], reach[: cut // 5], FIVES, MINUTES, PARAMS
        )
        for b in (base, garbage, base[:cut])
    )
    for labelled in (blinded, short):
        inside = labelled["known"] + 600.0 <= 60.0 * cut
        n = int(inside.sum())
        assert n > 200
        for name in ("index", "y", "direction", "ended"):
            assert whole[name][:n].tobytes() == labelled[name][:n].tobytes(), name
    assert 0.1 < whole["y"][whole["direction"] != 0].mean() < 0.6
    assert (whole["ended"] <= whole["known"] + 600.0).all()


def test_y_is_zero_where_the_pattern_is_not_there_and_rows_that_overlap_share_their_uniqueness():
    rng = np.random.default_rng(6)
    base = minutes(*100.0 * np.exp(np.cumsum(rng.normal(0, 1e-3, 2001))))
    bars = resample(base, MINUTES, FIVES)
    direction = rng.choice([-1.0, 0.0, 1.0], size=(len(bars), 2))
    labelled = pattern_labels(
        bars, base, direction, 0.01 * bars[:, CLOSE], FIVES, MINUTES, PARAMS
    )  # far barriers: lives of two bars
    assert not labelled["y"][labelled["direction"] == 0].any()
    assert 0.4 < labelled["uniqueness"].mean() < 0.8
    assert (np.diff(labelled["known"]) > 0).all()
    np.testing.assert_array_equal(labelled["known"], bars[labelled["index"], OPEN_TIME] + 300)


def test_directions_of_other_bars_are_refused():
    base = minutes(*UP)
    with pytest.raises(BadShape, match="one of each a bar"):
        pattern_labels(resample(base, MINUTES, FIVES), base, np.zeros((9, 2)), np.zeros(9), FIVES, MINUTES, PARAMS)
