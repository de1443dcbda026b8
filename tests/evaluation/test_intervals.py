"""Intervals of dependent rows: they cover the truth as often as they say, or say that there are too few rows."""

import numpy as np
import pytest
from scipy.signal import lfilter

from pipelines.errors import BadValues
from pipelines.evaluation.intervals import block_length, chance_of_zero, holm, mean_of, measure, ratio_of
from pipelines.evaluation.metrics import mean_estimate

REPETITIONS = 700  # the standard error of a coverage of 95 % is then 0.8 points


def overlapping(rng, n, span=16, heavy=False):
    noise = rng.standard_t(4, n + span - 1) if heavy else rng.standard_normal(n + span - 1)
    return np.convolve(noise, np.full(span, span**-0.5), "valid")


def labels(rng, n):
    """Outcomes of labels that span eight rows, with mean Φ(-.25)."""
    return (overlapping(rng, n, 8) < -0.25) - 0.4012937


SERIES = {
    "independent": lambda rng, n: rng.standard_normal(n),
    "t4": lambda rng, n: rng.standard_t(4, n),
    "MA(16)": overlapping,
    "MA(16) of t4": lambda rng, n: overlapping(rng, n, heavy=True),
    "AR(.8)": lambda rng, n: lfilter([1.0], [1.0, -0.8], rng.standard_normal(n + 60))[60:],
    "overlapping labels": labels,
}


@pytest.mark.parametrize("n", [500, 1000, 5000])
@pytest.mark.parametrize("series", SERIES)
def test_a_95_percent_interval_covers_the_mean_in_93_to_97_of_100_cases(series, n):
    """The percentile bootstrap before it: 82 % on MA(16) at n = 1,000."""
    repetitions = REPETITIONS if n < 5000 else 250
    found = [mean_estimate(SERIES[series](np.random.default_rng([n, i]), n)) for i in range(repetitions)]
    known = [each.low <= 0.0 <= each.high for each in found if np.isfinite(each.low)]
    assert len(known) / repetitions > 0.85
    assert np.mean(known) == pytest.approx(0.95, abs=0.02 + 0.01 * (repetitions < REPETITIONS))


@pytest.mark.parametrize("series", SERIES)
def test_twenty_rows_are_too_few_for_an_interval(series):
    """The percentile bootstrap gave one, which covered 63 %."""
    found = mean_of(SERIES[series](np.random.default_rng(1), 20))
    assert np.isfinite(found.value)
    assert np.isnan(found.estimate().low)
    assert found.why == "20 rows, needs 60"


def test_rows_that_depend_on_too_many_neighbours_are_too_few():
    found = mean_of(overlapping(np.random.default_rng(2), 120))
    assert np.isnan(found.error)
    assert "120 rows hold under 15 independent blocks" in found.why


def test_the_smallest_detectable_gain_is_found_in_95_of_100_cases():
    rng = np.random.default_rng(3)
    gain = mean_of(overlapping(rng, 5000, 4)).detectable
    truth = np.median([mean_of(overlapping(rng, 1500, 4)).detectable for _ in range(200)])
    found = [mean_estimate(truth + overlapping(rng, 1500, 4)).low > 0 for _ in range(300)]
    assert np.mean(found) == pytest.approx(0.95, abs=0.035)
    assert gain < truth


def test_a_ratio_is_that_of_the_sums_with_an_interval_that_covers_it():
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        below = rng.gamma(2.0, 1.0, 800)
        found = ratio_of(3.0 * below + rng.normal(0.0, 2.0, 800), below).estimate()
        covered += found.low <= 3.0 <= found.high
    assert covered / 400 == pytest.approx(0.95, abs=0.03)
    assert np.isnan(ratio_of(np.ones(80), np.zeros(80)).value)


def test_chance_of_zero_is_uniform_where_all_figures_are_zero_and_small_where_one_is_not():
    small = []
    for i in range(400):
        rows = np.column_stack([overlapping(np.random.default_rng([5, i, k]), 600, 6) for k in range(2)])
        small.append(chance_of_zero(rows - rows.mean(axis=0), rows.mean(axis=0)) < 0.05)
    assert np.mean(small) == pytest.approx(0.05, abs=0.025)
    rows[:, 1] += 2.0
    assert chance_of_zero(rows - rows.mean(axis=0), rows.mean(axis=0)) < 1e-4


def test_holm_by_hand():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, np.nan])), [0.03, 0.06, 0.06, np.nan])
    assert holm(np.array([np.nan])).tolist() == pytest.approx([np.nan], nan_ok=True)


def test_a_block_is_as_long_as_the_rows_depend():
    rng = np.random.default_rng(6)
    assert block_length(rng.standard_normal(2000)) <= 4
    assert 20 <= block_length(overlapping(rng, 2000)) <= 80
    assert block_length(np.full(100, 3.0)) == 1


def test_a_missing_row_is_refused_by_its_number():
    with pytest.raises(BadValues, match="row 3 of 100 is nan"):
        measure(0.0, np.where(np.arange(100) == 3, np.nan, 1.0))
    assert np.isnan(mean_of(np.empty(0)).value)
