"""The lower bound of a calibrated probability counts markets that move together once."""

import numpy as np
import pytest

from pipelines.models.calibration import fit_calibration


@pytest.fixture
def one():
    """Return raw probabilities, outcomes and times of one market."""
    rng = np.random.default_rng(2)
    raw = rng.uniform(0.3, 0.7, 400)
    return raw, (rng.random(400) < raw).astype(float), 900.0 * np.arange(400.0)


def copies(values, n=4):
    """Return the rows of n markets that are the same, in order of time."""
    return np.repeat(values, n)


def test_four_copies_of_one_market_have_the_bound_of_one(one):
    raw, y, known = one
    alone = fit_calibration(raw, y, np.ones(400), known=known)
    four = fit_calibration(*(copies(each) for each in (raw, y)), np.ones(1600), known=copies(known))
    apart = fit_calibration(*(copies(each) for each in (raw, y)), np.ones(1600))
    np.testing.assert_allclose(four.covariance, alone.covariance, rtol=1e-6)
    np.testing.assert_allclose(apart.covariance, alone.covariance / 4.0, rtol=1e-6)


def test_a_market_alone_has_the_bound_it_had_to_the_last_bit(one):
    raw, y, known = one
    with_times, without = (fit_calibration(raw, y, np.ones(400), known=each) for each in (known, None))
    assert (with_times.slope, with_times.covariance.tobytes()) == (without.slope, without.covariance.tobytes())
