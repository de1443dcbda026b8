"""VaR and ES: known distributions are covered, wrong forecasts rejected, and the tests give published figures."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm, t

from benchmarks.tail_risk import DAY_S, closes, simple_returns
from pipelines.contracts import BAR_WIDTH, CLOSE, OPEN_TIME
from pipelines.errors import BadShape, BadValues, UnknownName
from pipelines.evaluation.coverage import SIZE, acerbi_szekely, coverage, independence, kupiec
from pipelines.evaluation.tail_risk import METHODS, backtest, estimate, forecasts, unit_student
from pipelines.tails import euler_es

LEVEL, WINDOW = 0.95, 250
RUNS = 200
every_method = pytest.mark.parametrize("method", METHODS)


def normal(seed, n, sd=0.01):
    return np.random.default_rng(seed).normal(0.0, sd, n)


def heavy(seed, n, sd=0.01):
    return sd * np.random.default_rng(seed).standard_t(4, n) / np.sqrt(2.0)


def garch(seed, n):
    """Return returns of a GARCH(1, 1): calm and volatile times in turn."""
    shocks, returns, variance = np.random.default_rng(seed).normal(size=n), np.empty(n), 1e-4
    for i, shock in enumerate(shocks):
        returns[i] = np.sqrt(variance) * shock
        variance = 1e-6 + 0.08 * returns[i] ** 2 + 0.91 * variance
    return returns


def normal_coverage(returns, share=1.0, level=LEVEL):
    """Test the true normal VaR and ES of `normal`, times `share`."""
    z, n = norm.ppf(level), len(returns)
    var, es = share * 0.01 * z, share * 0.01 * norm.pdf(z) / (1.0 - level)
    return coverage(returns, np.full(n, var), np.full(n, es), level)


def at_most(size=SIZE):
    """Return the rejections of RUNS right forecasts that luck exceeds one time in a thousand."""
    return binom.ppf(0.999, RUNS, size)


# ---- the tests of coverage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_right_forecasts_are_rejected_about_as_often_as_the_size_of_the_test(level):
    found = [normal_coverage(normal(seed, 1000), level=level) for seed in range(RUNS)]
    n = sum(f.n for f in found)
    assert abs(sum(f.violations for f in found) - n * (1 - level)) < 4.0 * math.sqrt(n * level * (1 - level))
    for name in ("kupiec", "independence", "conditional", "acerbi_szekely"):
        assert sum(getattr(f, name).p < SIZE for f in found) <= at_most(), name
    assert abs(np.mean([f.acerbi_szekely.statistic for f in found])) < 0.1


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_half_the_volatility_is_rejected_and_double_the_volatility_by_kupiec(level):
    half, double = normal_coverage(normal(1, 1000), 0.5, level), normal_coverage(normal(1, 1000), 2.0, level)
    assert {"kupiec", "conditional", "acerbi_szekely"} <= set(half.rejected_by())
    assert half.acerbi_szekely.statistic < -1.0
    assert "kupiec" in double.rejected_by()
    assert "acerbi_szekely" not in double.rejected_by()  # it rejects only forecasts that are too low


def test_an_expected_shortfall_too_small_beyond_a_right_var_is_rejected_by_acerbi_and_szekely_alone():
    returns = normal(2, 4000)
    var = np.full(4000, 0.01 * norm.ppf(LEVEL))
    assert coverage(returns, var, 0.8 * var, LEVEL).rejected_by() == ("acerbi_szekely",)
    assert normal_coverage(returns).rejected_by() == ()


@pytest.mark.parametrize(
    ("days", "tail", "passes"),
    [
        (255, 0.01, range(1, 7)),
        (510, 0.01, range(2, 11)),
        (1000, 0.01, range(5, 17)),
        (255, 0.05, range(7, 21)),
        (510, 0.05, range(17, 36)),
        (1000, 0.05, range(38, 65)),
    ],
)
def test_kupiec_passes_the_numbers_of_failures_of_the_published_table(days, tail, passes):
    """Kupiec 1995 as tabled by Jorion 2007, table 6-2; without any failure in 255 days at 1 % it prints N < 7."""
    accepted = [x for x in range(1, days) if kupiec(days, x, tail).p > 0.05]
    assert accepted == list(passes)


def test_christoffersen_gives_the_figures_of_the_textbook():
    """Jorion 2007, ch. 6: 20 failures in 252 days at 95 %; 6 after a failure and 14 after none: 3.91 and 9.53."""
    before = np.r_[np.ones(20, bool), np.zeros(232, bool)]
    after = np.zeros(252, bool)
    after[:6] = after[20:34] = True
    assert kupiec(252, 20, 0.05).statistic == pytest.approx(3.91, abs=0.005)
    assert independence(before, after).statistic == pytest.approx(9.53, abs=0.005)


def test_conditional_coverage_is_the_sum_of_both_with_two_degrees_of_freedom():
    found = normal_coverage(garch(5, 2000))
    both = found.kupiec.statistic + found.independence.statistic
    assert found.conditional.statistic == pytest.approx(both)
    assert found.conditional.p == pytest.approx(math.exp(-both / 2.0))  # the tail of chi-square with two


def test_violations_in_clusters_are_caught_by_christoffersen_and_not_by_kupiec():
    returns = np.full(1000, 0.01)
    for start in range(100, 600, 100):
        returns[start : start + 10] = -0.03
    found = coverage(returns, np.full(1000, 0.02), np.full(1000, 0.03), LEVEL)
    assert (found.violations, found.expected) == (50, pytest.approx(50))
    assert found.rejected_by() == ("independence", "conditional")


def test_z2_follows_its_formula_and_p_is_the_share_of_draws_as_low():
    severity = np.array([1.0, 1.5, 2.0])
    assert acerbi_szekely(severity, 100, 0.01).statistic == pytest.approx(1.0 - 4.5 / 1.0)
    alike = acerbi_szekely(np.ones(8), 500, 0.01)  # all severities one: the number of violations decides alone
    assert alike.p == pytest.approx(binom.sf(7, 500, 0.01), abs=0.03)


def test_a_row_without_a_forecast_is_not_counted_and_separates_its_neighbours():
    returns = np.array([-0.03, -0.03, -0.03, 0.01])
    var = np.array([0.02, np.nan, 0.02, 0.02])
    found = coverage(returns, var, 1.2 * var, LEVEL)
    assert (found.n, found.abstained, found.violations) == (3, 1, 2)
    assert found.independence == independence(np.array([True]), np.array([False]))


def test_without_violations_clustering_is_not_computable_and_too_high_forecasts_are_rejected():
    found = coverage(np.full(500, 0.01), np.full(500, 0.02), np.full(500, 0.03), 0.99)
    assert math.isnan(found.independence.p)
    assert found.acerbi_szekely == (1.0, 1.0)
    assert found.rejected_by() == ("kupiec",)


# ---- the methods --------------------------------------------------------------------------------------------------


def test_historical_is_the_order_statistic_and_the_mean_of_the_worst():
    past = np.random.default_rng(0).permutation(-np.arange(1.0, 101.0) / 1000.0)
    assert estimate(past, "historical", 0.95) == pytest.approx((0.096 - 0.05 * 0.001, 0.098))


def test_gaussian_is_the_closed_form():
    past = normal(3, 400) + 0.001
    z, mean, sd = norm.ppf(0.99), past.mean(), past.std(ddof=1)
    assert estimate(past, "gaussian", 0.99) == pytest.approx((sd * z - mean, sd * norm.pdf(z) / 0.01 - mean))


@pytest.mark.parametrize("nu", [3, 4, 8])
def test_student_finds_the_tail_of_the_draws(nu):
    past = np.random.default_rng(nu).standard_t(nu, 200_000)
    var = t.ppf(0.99, nu)
    es = t.expect(lambda x: x, (nu,), lb=var) / 0.01
    assert estimate(past, "student", 0.99) == pytest.approx((var, es), rel=0.05)


def test_monte_carlo_agrees_with_the_closed_form_of_its_draws():
    for seed in range(5):
        found = estimate(heavy(seed, 2000), "monte_carlo", 0.99)
        table = unit_student(0.99)
        shape = np.argmin(np.abs(table[3] / table[2] - found.es / found.var))  # ES / VaR rises with the tail
        other = estimate(heavy(seed, 2000), "monte_carlo", 0.95)
        assert found.var / other.var == pytest.approx(table[2, shape] / unit_student(0.95)[2, shape], rel=0.02)


def test_monte_carlo_and_filtered_history_scale_a_tail_alike():
    for seed in range(5):
        past = heavy(seed, 2000)
        drawn, filtered = (estimate(past, method, LEVEL) for method in ("monte_carlo", "filtered_historical"))
        assert drawn.var == pytest.approx(filtered.var, rel=0.15)


@every_method
def test_independent_returns_are_covered_by_every_method(method):
    found = [backtest(normal(seed, WINDOW + 500), method, LEVEL, WINDOW) for seed in range(12)]
    assert sum(f.violations for f in found) == pytest.approx(sum(f.expected for f in found), rel=0.2)


def test_changing_volatility_rejects_history_but_not_history_in_units_of_volatility():
    returns = garch(11, 6000)
    assert {"independence", "conditional"} <= set(backtest(returns, "historical", 0.95, 500).rejected_by())
    assert backtest(returns, "filtered_historical", 0.95, 500).rejected_by() == ()


@every_method
def test_volatility_that_doubles_is_followed_at_once_by_those_that_filter(method):
    past = normal(4, 500)
    past[-30:] *= 3.0
    more = estimate(past, method, LEVEL).var / estimate(past[:-30], method, LEVEL).var
    assert (more > 2.0) == (method in ("monte_carlo", "filtered_historical"))


@every_method
@pytest.mark.parametrize("level", [0.9, 0.95, 0.975, 0.99])
def test_expected_shortfall_is_never_under_the_value_at_risk_and_both_grow_with_the_level(method, level):
    for seed in range(10):
        past = heavy(seed, 137 + 10 * seed)
        found, further = estimate(past, method, level), estimate(past, method, (level + 1.0) / 2.0)
        assert 0.0 < found.var <= found.es
        assert not further.var < found.var


@every_method
def test_later_returns_change_no_forecast(method):
    returns = garch(9, 400)
    garbage = np.r_[returns[:300], 10.0 * normal(1, 100)]
    for later in (garbage, returns[:301]):
        for whole, other in zip(
            forecasts(returns, method, LEVEL, 200), forecasts(later, method, LEVEL, 200), strict=True
        ):
            assert whole[:301].tobytes() == other[:301].tobytes()  # row 300 is forecast from the rows before it


@every_method
def test_a_window_too_short_for_the_level_gives_nan(method):
    returns = normal(1, 130)
    assert np.isnan(estimate(returns[:50], method, 0.99)).all()
    assert np.isnan(estimate(returns[:0], method, 0.99)).all()
    assert np.isfinite(estimate(returns, method, 0.99)).all()
    assert np.isnan(forecasts(returns, method, 0.99, 50)).all()
    for window in (50, 130, 500):
        found = backtest(returns, method, 0.99, window)
        assert (found.n, found.violations, found.rejected_by()) == (0, 0, ())
        assert np.isnan([found.kupiec.p, found.conditional.p, found.acerbi_szekely.p, found.es_over_var]).all()


@every_method
def test_returns_that_are_zero_or_only_positive_have_no_computable_risk(method):
    assert np.isnan(estimate(np.zeros(300), method, LEVEL)).all()
    only_rises = estimate(np.abs(normal(1, 300)) + 1.0, "historical", LEVEL)
    assert np.isnan(only_rises).all()


@every_method
@pytest.mark.parametrize("missing", [np.nan, np.inf])
def test_a_return_that_is_missing_is_refused_by_its_row(method, missing):
    returns = normal(1, 300)
    returns[123] = missing
    for call in (lambda: backtest(returns, method, LEVEL, 100), lambda: estimate(returns, method, LEVEL)):
        with pytest.raises(BadValues, match="row 123 "):
            call()
    assert np.isnan(METHODS[method](returns, LEVEL)).all()


def test_invalid_input_is_refused():
    returns = normal(1, 300)
    with pytest.raises(UnknownName, match="historical, gaussian"):
        estimate(returns, "crystal ball", LEVEL)
    for level in (0.05, 1.0, 99.0):
        with pytest.raises(BadValues, match="level"):
            estimate(returns, "historical", level)
    with pytest.raises(BadShape, match="one asset"):
        backtest(returns.reshape(100, 3), "historical", LEVEL, 50)
    with pytest.raises(BadShape, match="window of 0"):
        backtest(returns, "historical", LEVEL, 0)
    with pytest.raises(BadShape, match="300 returns"):
        coverage(returns, returns[:5], returns[:5], LEVEL)


# ---- Euler attribution --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [100, 333, 1000])
def test_euler_parts_sum_to_the_portfolios_shortfall(n):
    returns = np.column_stack([heavy(seed, n) for seed in range(4)])
    weights = np.array([0.5, 0.3, -0.4, 0.6])
    parts = euler_es(returns, weights, 0.97)
    assert parts.sum() == pytest.approx(estimate(returns @ weights, "historical", 0.97).es, rel=1e-12)


def test_an_euler_part_is_the_derivative_of_the_shortfall_by_position_size():
    returns = np.column_stack([heavy(seed, 1000) for seed in range(3)])
    weights, step = np.array([0.5, 0.3, 0.2]), 1e-7
    for k, part in enumerate(euler_es(returns, weights, LEVEL)):
        up, down = (weights + side * step * (np.arange(3) == k) for side in (1, -1))
        slope = (euler_es(returns, up, LEVEL).sum() - euler_es(returns, down, LEVEL).sum()) / (2 * step)
        assert part == pytest.approx(weights[k] * slope, rel=1e-5)


def test_a_hedge_reduces_the_shortfall_and_a_position_of_zero_has_none():
    market = heavy(1, 1000)
    returns = np.column_stack([market, market + normal(2, 1000, 0.001), normal(3, 1000)])
    parts = euler_es(returns, np.array([1.0, -0.5, 0.0]), LEVEL)
    assert parts[0] > 0.0 > parts[1]
    assert parts[2] == 0.0


def test_euler_refuses_missing_values_and_gives_nan_for_too_few_rows():
    returns = np.column_stack([normal(seed, 60) for seed in range(2)])
    assert np.isnan(euler_es(returns, np.array([0.5, 0.5]), 0.99)).all()
    with pytest.raises(BadShape, match=r"\(60, 2\)"):
        euler_es(returns, np.ones(3), LEVEL)
    returns[7, 1] = np.nan
    with pytest.raises(BadValues, match="row 7 "):
        euler_es(returns, np.ones(2), LEVEL)
    with pytest.raises(BadValues, match="weight nan of row 1 "):
        euler_es(returns[:5], np.array([1.0, np.nan]), LEVEL)


# ---- the recorded markets' days -----------------------------------------------------------------------------------


def test_a_closed_weekend_is_one_return_from_friday_to_monday():
    """Friday and Monday complete, of Sunday the last two hours: its close is not a daily one."""
    hours = np.r_[np.arange(24), 48 + np.arange(22, 24), 72 + np.arange(24)]
    bars = np.ones((len(hours), BAR_WIDTH))
    bars[:, OPEN_TIME], bars[:, CLOSE] = 10 * DAY_S + 3600.0 * hours, np.arange(len(hours)) + 1.0
    assert closes(bars, "daily").tolist() == [24.0, 50.0]
    assert simple_returns(closes(bars, "daily")) == pytest.approx([50.0 / 24.0 - 1.0])
    assert len(closes(bars, "hourly")) == len(hours)
