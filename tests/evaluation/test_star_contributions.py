"""Contributions of stars: a planted lift is found with its interval; noise and too few events have none."""

import json

import numpy as np
import pytest

from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape
from pipelines.evaluation.stars import measure_contributions, ratings
from pipelines.settings import load_params
from pipelines.signals.stars import STARS, N

QUARTERS = Grid("15m")

PARAMS = load_params()
HORIZON = PARAMS.labels.horizon_bars


def market(n=6000, seed=2, drift=0.0):
    """Return a walk whose next 16 bars rise by 40 bps more with a long star 0 than without it."""
    rng = np.random.default_rng(seed)
    truth = np.zeros((n, N, 2))
    truth[:] = (rng.random((n, N, 2)) < 0.3).astype(float)
    truth[:, 0, 1] = (1.0 - truth[:, 0, 0]) * (rng.random(n) < 0.4)
    push = np.zeros(n + 1)
    push[1:] = 40.0 / HORIZON * np.convolve(truth[:, 0, 0] - truth[:, 0, 1], np.ones(HORIZON))[:n]
    steps = rng.normal(drift, 10.0, n + 1) + push
    close = 1e4 * np.exp(np.cumsum(steps[:n]) / 1e4)
    bars = np.column_stack(
        [QUARTERS.step_s * np.arange(n, dtype=float), *[close] * 4, np.ones((n, 3)), np.full(n, np.nan)]
    )
    bars[1:, 1] = close[:-1]
    return truth, bars


def named(found):
    return {each.name: each for each in (*found.stars, *found.ratings)}


def test_a_planted_lift_is_found_and_a_star_of_noise_has_none():
    truth, bars = market()
    found = named(measure_contributions(truth, bars, bars, (QUARTERS, QUARTERS), PARAMS))
    planted = found[STARS[0].name].lift_bps
    assert planted.low > 0.0
    assert planted.low < planted.value < planted.high
    noise = [found[star.name].lift_bps for star in STARS[1:]]
    assert sum(lift.low > 0 or lift.high < 0 for lift in noise) <= 4
    assert found[STARS[0].name].prevalence == pytest.approx(truth[:, 0].mean())


def test_the_lift_is_the_difference_of_two_means_by_hand():
    truth, bars = market(900)
    found = measure_contributions(truth, bars, bars, (QUARTERS, QUARTERS), PARAMS)
    ahead = np.full(900, np.nan)
    ahead[:-HORIZON] = (bars[HORIZON:, 4] / bars[1 : 901 - HORIZON, 1] - 1.0) * 1e4
    sided = np.column_stack([ahead, -ahead])
    for i in (0, 7, 20):
        known = ~np.isnan(sided)
        expected = sided[known & (truth[:, i] == 1)].mean() - sided[known & (truth[:, i] == 0)].mean()
        assert found.stars[i].lift_bps.value == pytest.approx(expected)
        assert found.stars[i].lift_bps.n == 2 * (900 - HORIZON)


def test_a_drift_of_the_market_adds_nothing_to_a_star():
    truth, bars = market(drift=20.0)
    truth[:, 3, 0], truth[:, 3, 1] = 1.0, 1.0
    truth[::7, 3] = 0.0  # both sides at once: it takes no side, so it cannot gain from one
    assert named(measure_contributions(truth, bars, bars, (QUARTERS, QUARTERS), PARAMS))[
        STARS[3].name
    ].lift_bps.value == pytest.approx(0.0, abs=1e-9)


def test_a_star_that_is_never_known_or_hardly_ever_true_has_no_interval_and_is_not_counted():
    truth, bars = market()
    truth[:, 5] = np.nan
    truth[:, 6] = 0.0
    truth[100:105, 6, 0] = 1.0
    found = measure_contributions(truth, bars, bars, (QUARTERS, QUARTERS), PARAMS)
    unknown, rare = found.stars[5], found.stars[6]
    assert (unknown.known, unknown.true, unknown.lift_bps.n) == (0, 0, 0)
    assert np.isnan([unknown.prevalence, unknown.lift_bps.value]).all()
    assert np.isfinite(rare.lift_bps.value)
    assert np.isnan([rare.lift_bps.low, rare.lift_bps.high]).all()
    assert found.measured == N - 2
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["stars"][5]["prevalence"] is None
    assert plain["expected_by_chance"] == pytest.approx(0.05 * (N - 2))
    assert STARS[0].name in plain["excluding_zero"]


def test_a_rating_counts_the_known_stars_and_needs_twelve_of_them():
    truth = np.full((3, N, 2), np.nan)
    truth[0], truth[0, :18, 0], truth[0, 18:, 0], truth[0, :, 1] = 0.0, 1.0, 0.0, 0.0
    truth[1, :12, 0], truth[1, :12, 1] = 1.0, 0.0
    truth[2, :11] = 1.0
    np.testing.assert_array_equal(ratings(truth), [[18.0, 0.0], [21.0, 0.0], [np.nan, np.nan]])


def test_other_rows_than_the_bars_are_refused():
    truth, bars = market(900)
    with pytest.raises(BadShape, match="decision bar"):
        measure_contributions(truth[1:], bars, bars, (QUARTERS, QUARTERS), PARAMS)


def test_the_same_history_gives_the_same_figures():
    truth, bars = market(900)
    first, again = (measure_contributions(truth, bars, bars, (QUARTERS, QUARTERS), PARAMS).to_dict() for _ in range(2))
    assert first == again
