"""Intervals of pooled rows: markets move together, so rows of one moment are one unit."""

import numpy as np
import pytest

from pipelines.evaluation.calibration import calibration_error
from pipelines.evaluation.detectable import detectable
from pipelines.evaluation.intervals import Measurement, by_moment, mean_of, moments
from pipelines.evaluation.metrics import auc_of, lift_of, mean_estimate, mean_of_chosen

REPETITIONS, MOMENTS, MARKETS = 400, 1200, 4


def together(seed, share=0.8, span=8, events=0.5):
    """Return (values, known) of four markets that share `share` of their variance, each a bar after the one before it.

    events  share of the bars on which a market has a row; the values overlap over `span` bars, and their mean is zero
    """
    rng = np.random.default_rng(seed)

    def smooth(n):
        return np.convolve(rng.standard_normal(n + span - 1), np.full(span, span**-0.5), "valid")

    common = smooth(MOMENTS + MARKETS)
    values = np.stack(
        [np.sqrt(share) * common[k : k + MOMENTS] + np.sqrt(1 - share) * smooth(MOMENTS) for k in range(MARKETS)], 1
    )
    at, _ = np.nonzero(chosen := rng.random(values.shape) < events)
    return values[chosen], 900.0 * at


def test_a_pooled_95_percent_interval_covers_the_mean_in_93_to_97_of_100_cases():
    drawn = (together(seed) for seed in range(REPETITIONS))
    found = [mean_estimate(values, known=known) for values, known in drawn]
    known = [each.low <= 0.0 <= each.high for each in found if np.isfinite(each.low)]
    assert len(known) / REPETITIONS > 0.95
    assert np.mean(known) == pytest.approx(0.95, abs=0.02)


def test_markets_taken_as_independent_would_cover_far_less():
    """The error of the mean of four markets, as if none knew of the others: what a unit of time prevents."""
    covered = []
    for seed in range(150):
        values, _ = together(seed, events=1.0)
        alone = [mean_of(values[k::MARKETS]) for k in range(MARKETS)]
        error = np.sqrt(np.sum(np.square([each.error for each in alone]))) / MARKETS
        covered.append(abs(values.mean()) <= 2.0 * error)
    assert np.mean(covered) < 0.85


def test_the_influences_of_a_moment_are_added_up_and_their_mean_stays():
    known, values = np.array([1.0, 1.0, 2.0, 4.0, 4.0, 4.0]), np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert moments(known).tolist() == [0, 2, 3]
    np.testing.assert_allclose(by_moment(values, known), np.array([3.0, 3.0, 15.0]) * 3 / 6)
    assert by_moment(values, known).mean() == pytest.approx(values.mean())
    assert by_moment(values, np.arange(6.0)) is values  # one market: every row is a moment


def test_rows_of_one_market_have_the_figures_they_had():
    rng = np.random.default_rng(4)
    values, p, taken, known = rng.normal(size=900), rng.random(900), rng.random(900) < 0.2, 60.0 * np.arange(900)
    y = (rng.random(900) < p).astype(float)
    assert mean_of(values, known) == mean_of(values)
    assert lift_of(taken, values, known) == lift_of(taken, values)
    assert auc_of(p, y, None, known) == auc_of(p, y)
    assert mean_of_chosen(values, taken, None, known) == mean_of_chosen(values, taken)
    assert calibration_error(p, y, known) == calibration_error(p, y)


def test_the_same_rows_four_times_are_no_more_evidence_than_once():
    """Four markets that are one: every error stays, though there are four times as many rows."""
    rng = np.random.default_rng(5)
    values, p, taken = rng.normal(size=900), rng.random(900), rng.random(900) < 0.3
    y = (rng.random(900) < p).astype(float)
    known = np.repeat(60.0 * np.arange(900), 4)
    four = [np.repeat(each, 4) for each in (values, p, taken, y)]
    assert mean_of(four[0], known).error == pytest.approx(mean_of(values).error)
    assert lift_of(four[2], four[0], known).error == pytest.approx(lift_of(taken, values).error)
    assert auc_of(four[1], four[3], None, known).error == pytest.approx(auc_of(p, y).error)


def test_a_few_moments_with_many_rows_are_too_few():
    found = mean_of(np.random.default_rng(6).normal(size=300), np.repeat(np.arange(30.0), 10))
    assert np.isnan(found.error)
    assert found.why == "300 rows at 30 moments, needs 60 moments"


def test_the_smallest_effect_says_what_could_not_be_seen_and_how_many_rows_a_smaller_one_takes():
    found = Measurement(0.3, 0.5, 20, 3854)
    line = detectable(found, 1.0, 3854, "bps").line
    assert line.startswith(f"edges under {found.detectable:.2g} bps could not be seen in 3,854 events; ")
    assert line.endswith("events would show 1 bp")
    again = detectable(Measurement(0.3, 0.25, 20, 3854), 1.0, 3854, "bps")  # half the error is four times the rows
    assert detectable(found, 1.0, 3854, "bps").rows == pytest.approx(4 * again.rows)
    assert detectable(found, 0.0075, 3854, "log loss").line.endswith("rows would show 0.0075")
    assert detectable(found, 5.0, 3854, "log loss").line.endswith("rows show 5")
    unknown = detectable(Measurement(0.3, float("nan"), 20, 12, "12 rows, needs 60"), 1.0, 12, "bps")
    assert unknown.to_dict()["least"] is None
    assert unknown.line == "which edges could be seen, in bps, is not known: 12 rows, needs 60"
