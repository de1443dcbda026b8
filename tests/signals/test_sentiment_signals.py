"""Funding and fear-and-greed signal against the crowd while the extreme stands."""

import numpy as np
import pytest
from support.reference_windows import known, quiet, rank
from support.signal_subset import SignalSubset

from pipelines.context_layout import CONTEXT_INDEX

SENTIMENT = SignalSubset("sentiment")
INTEREST = 1e-4


def column(out, name):
    return out[:, SENTIMENT.index[name]]


def settled(*rates):
    """Return the sentiment signals (n, 8) of rates that stand 32 bars each."""
    rate = np.repeat(rates, 32)
    return SENTIMENT.run(quiet(len(rate)), None, known(len(rate), funding_rate=rate))


USUAL = [1.0e-4, 1.2e-4, 0.8e-4, 1.0e-4, 1.3e-4, 0.9e-4, 1.0e-4, 1.1e-4]


def test_the_highest_funding_of_three_days_signals_short_as_long_as_it_stands():
    out = settled(*USUAL, INTEREST, 5e-4, INTEREST)
    assert column(out, "funding.direction")[-65:].tolist() == [0.0, *[-1.0] * 32, *[0.0] * 32]
    assert column(out, "funding.strength")[-33] == pytest.approx(0.8)


def test_the_lowest_signals_long():
    out = settled(*USUAL, -3e-4)
    assert column(out, "funding.direction")[-1] == 1.0
    assert column(out, "funding.strength")[-1] == pytest.approx(0.8)


def test_a_rate_of_plain_interest_is_no_extreme_whatever_its_rank():
    low, high = settled(*[0.5e-4] * 9, INTEREST), settled(*[3e-4] * 9, INTEREST)
    assert column(low, "funding.direction")[-1] == 0.0
    assert column(high, "funding.direction")[-1] == 0.0
    assert column(settled(*[3e-4] * 10), "funding.direction")[-1] == 0.0


def test_a_missing_rate_silences_funding_until_it_has_left_the_window():
    rate = np.tile(np.repeat(USUAL, 32), 4)
    rate[400] = np.nan
    silent = np.isnan(column(SENTIMENT.run(quiet(1024), None, known(1024, funding_rate=rate)), "funding.direction"))
    assert np.flatnonzero(silent).tolist() == [*range(287), *range(400, 688)]


def test_funding_is_the_reference_rule(bars, contexts):
    out = SENTIMENT.run(bars, None, contexts)
    rate = contexts[:, CONTEXT_INDEX["funding_rate"]]
    place, excess = rank(rate, 288), rate - INTEREST
    high, low = (place >= 0.9) & (excess > 0), (place <= 0.1) & (excess < 0)
    direction = np.where(np.isnan(place), np.nan, 1.0 * low - high)
    np.testing.assert_array_equal(column(out, "funding.direction"), direction)
    strength = np.where(high | low, np.abs(excess) / (np.abs(excess) + INTEREST), np.nan)
    np.testing.assert_allclose(column(out, "funding.strength"), strength, rtol=1e-12)
    assert high.any()
    assert low.any()


def test_extreme_fear_signals_long_and_extreme_greed_short_by_their_distance_from_the_middle():
    index = np.array([0.0, 25.0, 25.5, 50.0, 74.5, 75.0, 100.0, np.nan, 20.0])
    out = SENTIMENT.run(quiet(9), None, known(9, fear_greed=index))
    np.testing.assert_array_equal(column(out, "fear_greed.direction"), [1, 1, 0, 0, 0, -1, -1, np.nan, 1])
    nan = np.nan
    np.testing.assert_allclose(column(out, "fear_greed.strength"), [1, 0.5, nan, nan, nan, 0.5, 1, nan, 0.6])


def test_each_is_unavailable_without_its_own_feed_and_no_matter_for_the_other():
    both = SENTIMENT.run(quiet(300), None, known(300, funding_rate=INTEREST, fear_greed=10.0))
    one = SENTIMENT.run(quiet(300), None, known(300, fear_greed=10.0))
    assert np.isnan(column(one, "funding.direction")).all()
    np.testing.assert_array_equal(column(one, "fear_greed.direction"), column(both, "fear_greed.direction"))
    assert np.isnan(SENTIMENT.run(quiet(300))).all()
