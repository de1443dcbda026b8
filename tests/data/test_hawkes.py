"""S8: the fit finds what arrivals were made from, its intervals cover as they promise, and the tape agrees."""

import numpy as np
import pytest

from pipelines.data.orderbook.hawkes import (
    ARRIVALS,
    HAWKES_STATE,
    MIN_ARRIVALS,
    fit,
    hawkes_add_trade,
    hawkes_write_row,
    likelihood,
    simulate,
)
from pipelines.errors import BadTimes, BadValues, NotEnoughData

PATHS, N = 60, 1000
SETTINGS = ((0.5, 0.6, 2.0), (1.0, 0.35, 5.0), (4.0, 0.8, 40.0))  # mu, branching, decay
EPOCH = 1.7e9


def path(setting, seed, n=N):
    mu, branching, _ = setting
    seconds = n * (1.0 - branching) / mu
    return simulate(*setting, seconds, seed), seconds


@pytest.fixture(scope="module")
def fits():
    made = {}
    for s, setting in enumerate(SETTINGS):
        times = [path(setting, 1000 * s + k) for k in range(PATHS)]
        made[setting] = [fit(arrivals, 0.0, seconds) for arrivals, seconds in times]
    return made


def naive(times, counted, end, mu, branching, decay):
    """The log-likelihood as the definition has it, every arrival against every earlier one."""
    ages = times[:, None] - times[None, :]
    excited = np.where(ages > 0, np.exp(-decay * np.maximum(ages, 0.0)), 0.0).sum(axis=1)
    whole = mu * end + branching * (1.0 - np.exp(-decay * (end - times))).sum()
    return np.log(mu + branching * decay * excited)[counted:].sum() - whole


def at(times, counted, end, parameters):
    gradient, hessian = np.empty(3), np.empty((3, 3))
    return likelihood(times, counted, end, *parameters, gradient, hessian), gradient, hessian


def tape(times, sides, base=EPOCH):
    state = np.zeros(HAWKES_STATE)
    for seconds, side in zip(times, sides, strict=True):
        hawkes_add_trade(state, base + seconds, side)
    return state


def row_of(state, seconds):
    out = np.empty(3)
    hawkes_write_row(state, seconds, out)
    return out


@pytest.mark.parametrize("counted", [0, 1])
def test_the_recursion_is_the_sum_over_all_pairs(counted):
    times, seconds = path(SETTINGS[0], 3, 300)
    for parameters in ((0.5, 0.6, 2.0), (1.3, 0.05, 30.0), (0.01, 0.95, 0.02)):
        assert at(times, counted, seconds, parameters)[0] == pytest.approx(
            naive(times, counted, seconds, *parameters), rel=1e-11
        )


@pytest.mark.parametrize("parameters", [(0.5, 0.6, 2.0), (1.3, 0.1, 30.0), (0.05, 0.9, 0.1)])
def test_gradient_and_hessian_are_those_of_finite_differences(parameters):
    times, seconds = path(SETTINGS[0], 4, 300)
    _, gradient, hessian = at(times, 1, seconds, parameters)
    for p in range(3):
        step = 1e-5 * parameters[p] * np.eye(3)[p]
        up, down = (at(times, 1, seconds, parameters + sign * step) for sign in (1, -1))
        assert gradient[p] == pytest.approx((up[0] - down[0]) / (2 * step[p]), rel=1e-5, abs=1e-4)
        np.testing.assert_allclose(hessian[p], (up[1] - down[1]) / (2 * step[p]), rtol=1e-5, atol=1e-3)


def test_a_simulated_path_has_the_mean_and_the_clustering_it_was_asked_for():
    setting, seconds = (0.5, 0.6, 2.0), 40_000.0
    times = simulate(*setting, seconds, 5)
    rate = setting[0] / (1 - setting[1])
    # a stationary Hawkes process counts like Poisson, its variance 1 / (1 - branching)^2 times as large
    assert len(times) == pytest.approx(rate * seconds, abs=4 * np.sqrt(rate * seconds) / (1 - setting[1]))
    counts = np.histogram(times, np.arange(0.0, seconds + 1, 50.0))[0]
    assert counts.var() / counts.mean() == pytest.approx(1 / (1 - setting[1]) ** 2, rel=0.25)
    assert (np.diff(times) > 0).all()
    assert times[-1] <= seconds


def test_the_same_seed_gives_the_same_arrivals_and_no_branching_a_poisson_process():
    assert simulate(1.0, 0.5, 2.0, 500.0, 7).tobytes() == simulate(1.0, 0.5, 2.0, 500.0, 7).tobytes()
    gaps = np.diff(simulate(2.0, 0.0, 1.0, 10_000.0, 8))
    assert gaps.mean() == pytest.approx(0.5, rel=0.03)
    assert gaps.std() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", ["mu", "branching", "decay"])
def test_the_fit_is_not_biased_by_more_than_chance_and_a_quarter_of_the_spread_of_one_path(fits, setting, name):
    """Maximum likelihood is biased by order 1/n, a part of its spread: a quarter is the bound, and 3.5 Monte-Carlo
    errors are what chance may add."""
    truth = dict(zip(("mu", "branching", "decay"), setting, strict=True))[name]
    logs = np.log([getattr(f, name).value / truth for f in fits[setting]])
    assert all(f.converged for f in fits[setting])
    assert abs(logs.mean()) < 0.25 * logs.std() + 3.5 * logs.std() / np.sqrt(PATHS)


@pytest.mark.parametrize("name", ["mu", "branching", "decay"])
def test_intervals_cover_the_truth_as_often_as_they_say(fits, name):
    """180 paths: a binomial of 95 % lies within 0.887 and 0.994 in all but one of ten thousand cases."""
    k = ("mu", "branching", "decay").index(name)
    inside = [getattr(f, name).low <= s[k] <= getattr(f, name).high for s, each in fits.items() for f in each]
    assert len(inside) == 3 * PATHS
    assert 0.887 <= np.mean(inside) <= 0.994


@pytest.mark.parametrize("name", ["mu", "branching", "decay"])
def test_standard_errors_are_the_spread_between_paths(fits, name):
    k = ("mu", "branching", "decay").index(name)
    for each in fits.values():
        spread = np.std([getattr(f, name).value for f in each])
        assert np.median([f.errors[k] for f in each]) == pytest.approx(spread, rel=0.3)


@pytest.mark.parametrize("setting", [*SETTINGS, (0.2, 0.8, 0.5), (30.0, 0.7, 900.0)])
def test_the_tape_finds_the_maximum_that_the_fit_finds(setting):
    for seed in range(6):
        times, _ = path(setting, seed, 1500)
        times = np.round(times, 6)
        sides = np.where(np.random.default_rng(seed).random(len(times)) < 0.5, 1.0, -1.0)
        end = times[-1] + 0.2
        window = np.unique(times)[-ARRIVALS:]
        by_fit = fit(window, end=end)
        got = row_of(tape(times, sides, base=0.0), end)
        assert by_fit.converged
        assert got[0] == pytest.approx(by_fit.branching.value, rel=1e-4)
        excited = np.exp(-by_fit.decay.value * (end - window))
        jump = by_fit.branching.value * by_fit.decay.value
        assert got[1] == pytest.approx(jump * excited.sum() / by_fit.mu.value, rel=1e-3)
        assert got[2] == pytest.approx((excited * sides[-ARRIVALS:]).sum() / excited.sum(), rel=1e-3, abs=1e-6)


def test_epoch_seconds_are_precise_enough():
    times, _ = path(SETTINGS[0], 9)
    sides = np.ones(len(times))
    near, far = row_of(tape(times, sides, 0.0), times[-1]), row_of(tape(times, sides, EPOCH), EPOCH + times[-1])
    np.testing.assert_allclose(far, near, rtol=1e-4)


def test_buyers_mirrored_are_sellers_and_nothing_else_changes():
    times, _ = path(SETTINGS[0], 10)
    sides = np.where(np.arange(len(times)) > len(times) - 8, 1.0, -1.0)
    buys, sells = (row_of(tape(times, sign * sides), EPOCH + times[-1]) for sign in (1, -1))
    assert buys[2] > 0.5
    assert buys.tolist() == [sells[0], sells[1], -sells[2]]


def test_excitement_fades_with_silence():
    times, _ = path(SETTINGS[0], 11)
    state = tape(times, np.ones(len(times)))
    soon, late = row_of(state, EPOCH + times[-1]), row_of(state, EPOCH + times[-1] + 20.0)
    assert late[1] < 0.01 * soon[1]


def test_its_row_depends_on_the_last_arrivals_alone():
    times, _ = path(SETTINGS[0], 12, 1500)
    sides = np.where(np.random.default_rng(1).random(len(times)) < 0.5, 1.0, -1.0)
    whole, last = tape(times, sides), tape(times[-ARRIVALS:], sides[-ARRIVALS:])
    for state in (whole, tape(times[:700], sides[:700])):
        row_of(state, EPOCH + times[699])  # writing a row changes nothing
    assert row_of(whole, EPOCH + times[-1]).tobytes() == row_of(last, EPOCH + times[-1]).tobytes()


def test_fills_at_one_instant_are_one_arrival():
    times, _ = path(SETTINGS[0], 13)
    once, twice = tape(times, np.ones(len(times))), tape(np.repeat(times, 3), np.ones(3 * len(times)))
    assert once.tobytes() == twice.tobytes()
    assert fit(np.repeat(times, 3)).mu == fit(times).mu


def test_too_few_arrivals_are_no_answer():
    times, _ = path(SETTINGS[0], 14)
    assert np.isnan(row_of(tape(times[: MIN_ARRIVALS - 1], np.ones(MIN_ARRIVALS - 1)), EPOCH + 1e4)).all()
    assert np.isfinite(row_of(tape(times[:MIN_ARRIVALS], np.ones(MIN_ARRIVALS)), EPOCH + times[MIN_ARRIVALS])).all()
    with pytest.raises(NotEnoughData, match="99 arrivals"):
        fit(times[: MIN_ARRIVALS - 1])


def test_regular_arrivals_excite_nothing():
    times = np.arange(400.0) + np.random.default_rng(2).uniform(-0.1, 0.1, 400)
    assert row_of(tape(times, np.ones(400)), EPOCH + 400.0).tolist() == [0.0, 0.0, 0.0]
    regular = fit(times)
    assert not regular.converged
    assert np.isnan(regular.errors).all()


def test_arrivals_by_chance_excite_little_or_nothing():
    """Windows of a Poisson process: some look as if its rate had moved, and are no answer."""
    paths = [path((1.0, 0.0, 1.0), seed, 400) for seed in range(100)]
    branching = np.array([row_of(tape(times, np.ones(len(times))), EPOCH + seconds)[0] for times, seconds in paths])
    assert np.isnan(branching).mean() < 0.1
    assert np.nanmedian(branching) < 0.1


def test_impossible_input_is_refused():
    times, _ = path(SETTINGS[0], 15)
    with pytest.raises(BadTimes, match="ascending"):
        fit(times[::-1])
    with pytest.raises(BadTimes, match="outside"):
        fit(times, end=times[-2])
    with pytest.raises(BadValues, match="dies out"):
        simulate(1.0, 1.0, 1.0, 10.0, 0)
