import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts import BAR_WIDTH, HALF_SPREAD, TIMEFRAME_SECONDS, VOLUME
from pipelines.data.timeframes import infer_timeframe, resample, seconds
from pipelines.errors import BadShape, BadTimes, UnknownName


def bars_at(minutes, seed=0):
    """Valid 1-minute bars at the given minute numbers."""
    rng = np.random.default_rng(seed)
    n = len(minutes)
    body = 100 + rng.normal(size=(n, 2)).cumsum(axis=0) * 0.1
    high, low = body.max(axis=1) + rng.random(n), body.min(axis=1) - rng.random(n)
    volume = rng.random((n, 3))
    half_spread = np.where(rng.random(n) < 0.4, np.nan, 0.01 * rng.random(n))
    return np.column_stack([np.asarray(minutes) * 60.0, body[:, 0], high, low, body[:, 1], volume, half_spread])


def by_hand(bars, base, target):
    """The definition, one slot at a time."""
    seen_until = bars[-1, 0] + base
    made = []
    for start in sorted({t // target * target for t in bars[:, 0]}):
        if start + target <= seen_until:
            b = bars[(bars[:, 0] >= start) & (bars[:, 0] < start + target)]
            sums = [sum(b[:, k].tolist()) for k in (5, 6, 7)]
            quoted = [x for x in b[:, HALF_SPREAD].tolist() if x == x]
            spread = sum(quoted) / len(quoted) if quoted else np.nan
            made.append([start, b[0, 1], b[:, 2].max(), b[:, 3].min(), b[-1, 4], *sums, spread])
    return np.array(made).reshape(-1, BAR_WIDTH)


minutes = st.sets(st.integers(0, 400), min_size=1, max_size=120).map(sorted)


@settings(max_examples=60, deadline=None)
@given(minutes=minutes, target=st.sampled_from([60, 300, 900, 3600]))
def test_resample_equals_the_definition_with_any_bars_missing(minutes, target):
    bars = bars_at(minutes)
    np.testing.assert_array_equal(resample(bars, 60, target), by_hand(bars, 60, target))


@settings(max_examples=60, deadline=None)
@given(minutes=minutes, cut=st.floats(0, 1))
def test_closed_bars_do_not_change_when_later_bars_arrive(minutes, cut):
    bars = bars_at(minutes)
    early = resample(bars[: 1 + int(cut * (len(bars) - 1))], 60, 900)
    assert resample(bars, 60, 900)[: len(early)].tobytes() == early.tobytes()


def test_a_bar_is_emitted_with_its_last_minute_and_not_before():
    bars = bars_at(range(15))
    assert len(resample(bars[:14], 60, 900)) == 0
    assert len(resample(bars, 60, 900)) == 1


def test_the_same_timeframe_gives_the_same_bars():
    bars = bars_at(range(30))
    assert resample(bars, 60, 60).tobytes() == bars.tobytes()


def test_an_unrecorded_volume_makes_its_sum_unrecorded_and_no_other():
    bars = bars_at(range(30))
    bars[3, VOLUME] = np.nan
    made = resample(bars, 60, 900)
    assert np.isnan(made[0, VOLUME])
    assert np.isfinite(made[1, VOLUME])


def test_no_bars_give_no_bars():
    assert resample(np.empty((0, BAR_WIDTH)), 60, 900).shape == (0, BAR_WIDTH)


@pytest.mark.parametrize(
    ("bars", "target", "error", "message"),
    [
        (bars_at([1, 2])[:, :7], 900, BadShape, "expected"),
        (bars_at([2, 1]), 900, BadTimes, "does not ascend at row 1"),
        (bars_at([1, 1]), 900, BadTimes, "does not ascend at row 1"),
        (bars_at([1]) * np.nan, 900, BadTimes, "row 0"),
        (bars_at([1, 2]), 90, BadTimes, "multiple"),
    ],
)
def test_bad_bars_are_refused_with_the_place(bars, target, error, message):
    with pytest.raises(error, match=message):
        resample(bars, 60, target)


@pytest.mark.parametrize(("name", "length"), TIMEFRAME_SECONDS.items())
def test_the_timeframe_is_found_through_gaps_copies_and_disorder(name, length):
    times = np.r_[np.arange(50), np.arange(60, 90), 3, 3, 7] * float(length)
    assert infer_timeframe(np.random.default_rng(1).permutation(times)) == name


def test_a_spacing_we_do_not_know_is_refused_with_its_length():
    with pytest.raises(BadTimes, match="420 s apart"):
        infer_timeframe(np.arange(9) * 420.0)
    with pytest.raises(BadTimes, match="1 distinct"):
        infer_timeframe(np.array([60.0, 60.0]))
    with pytest.raises(UnknownName, match="known: 1m"):
        seconds("7m")
