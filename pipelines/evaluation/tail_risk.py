"""Value at risk and expected shortfall of the next return, from past returns alone.

    historical           the past as it was
    gaussian             normal, with the past's mean and standard deviation
    student              Student-t, likewise; degrees of freedom by moments
    monte_carlo          draws from a Student-t of EWMA volatility
    filtered_historical  past returns in units of the EWMA volatility of their day, times the volatility now

Returns are simple returns: a loss of VaR is that fraction of value. `backtest` tests a method against the returns that
followed; `pipelines.tails.euler_es` attributes a portfolio's shortfall to its positions.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import gammaln
from scipy.stats import norm, t

from pipelines.compiled import kernel
from pipelines.contracts import Floats
from pipelines.errors import BadShape, UnknownName
from pipelines.evaluation.coverage import Coverage, coverage
from pipelines.tails import refuse_missing, tail_losses, tail_probability

DECAY = 0.94  # of the squared return per step; RiskMetrics 1996, for daily returns; used for hours without refitting
BURN_IN = 20  # returns before an EWMA volatility is used
THICKEST = 0.45  # of one over the degrees of freedom; at .5 the variance is infinite
GRID = 200  # steps of that inverse from zero to one; Monte Carlo draws once for each step
DRAWS, SEED = 131_072, 20  # of Monte Carlo; each is used with both signs


class TailRisk(NamedTuple):
    """Hold VaR (exceeded with probability 1 - level) and the mean loss beyond it, fractions of value; or NaN."""

    var: float
    es: float


UNKNOWN = TailRisk(float("nan"), float("nan"))

# ---- from returns, compiled ---------------------------------------------------------------------------------------


@kernel
def _moments(past: Floats) -> tuple[float, float, float]:
    """Return mean, standard deviation (ddof 1) and Geary's ratio of past (n,) float64.

    Geary's ratio is the mean absolute deviation over the root mean square: .80 of a normal, less with thicker tails. It
    needs two moments where the kurtosis needs four, which returns may not have.
    """
    n, mean = past.shape[0], past.mean()
    square, absolute = 0.0, 0.0
    for r in past:
        square += (r - mean) ** 2
        absolute += abs(r - mean)
    return mean, np.sqrt(square / (n - 1)), absolute / np.sqrt(n * square)


@kernel
def _filtered(past: Floats, decay: float, burn_in: int) -> tuple[Floats, float]:
    """Return returns after the burn-in (int64) over the EWMA volatility before each, and the present volatility."""
    standard = np.empty(past.shape[0])
    total, weight, made = 0.0, 0.0, 0
    for i in range(past.shape[0]):
        if i >= burn_in and total > 0.0:  # without a move there is no volatility yet
            standard[made] = past[i] / np.sqrt(total / weight)
            made += 1
        total = decay * total + past[i] ** 2
        weight = decay * weight + 1.0
    return standard[:made], np.sqrt(total / weight)


@kernel
def _between(table: Floats, x: float) -> tuple[float, float, float]:
    """Return rows 1 to 3 of table (4, k) float64 interpolated where row 0, ascending, is x; its ends beyond them."""
    low, high = 0, table.shape[1] - 1
    while high - low > 1:
        middle = (low + high) // 2
        if table[0, middle] > x:
            high = middle
        else:
            low = middle
    w = min(max((x - table[0, low]) / (table[0, high] - table[0, low]), 0.0), 1.0) if x == x else np.nan
    at = (1.0 - w) * table[:, low] + w * table[:, high]
    return at[1], at[2], at[3]


# ---- the methods --------------------------------------------------------------------------------------------------
# past (window,) finite returns, the newest last; level in (.5, 1) → TailRisk. NaN with fewer than 1 / (1 - level)
# returns (one of them in the tail), if one is not finite, or if the VaR is not a loss.


def historical(past: Floats, level: float) -> TailRisk:
    """Return quantile and tail mean of the past itself, all of it with equal weight."""
    return _losses(*tail_losses(past, tail_probability(level)))


def gaussian(past: Floats, level: float) -> TailRisk:
    """Return the tail of a normal with the mean and standard deviation of the past."""
    if _too_short(past, level):
        return UNKNOWN
    mean, deviation, _ = _moments(past)
    return _losses(*(deviation * unit_student(level)[2:, -1] - mean))


def student(past: Floats, level: float) -> TailRisk:
    """Return the tail of a Student-t with the past's mean and deviation, degrees of freedom by Geary's ratio (1935)."""
    if _too_short(past, level):
        return UNKNOWN
    mean, deviation, geary = _moments(past)
    table = unit_student(level)
    _, var, es = _between(table, geary)
    return _losses(deviation * var - mean, deviation * es - mean)


def monte_carlo(past: Floats, level: float) -> TailRisk:
    """Return the tail of draws from a Student-t around zero with the EWMA volatility.

    Its shape is that of the past in units of that volatility. The draws of a shape are seeded and scaled, so the same
    past gives the same result.
    """
    standard, volatility = _filtered(past, DECAY, BURN_IN)
    if _too_short(standard, level):
        return UNKNOWN
    _, deviation, geary = _moments(standard)
    inverse, _, _ = _between(unit_student(level), geary)
    if math.isnan(inverse):
        return UNKNOWN
    drawn = _drawn(round(inverse * GRID), level)
    return _losses(volatility * deviation * drawn.var, volatility * deviation * drawn.es)


def filtered_historical(past: Floats, level: float) -> TailRisk:
    """Return quantile and tail mean of the past in units of its EWMA volatility, times the volatility now.

    Source: Barone-Adesi, Giannopoulos & Vosper 1999, J. Futures Markets 19(5); theirs is a GARCH volatility.
    """
    standard, volatility = _filtered(past, DECAY, BURN_IN)
    var, es = tail_losses(standard, tail_probability(level))
    return _losses(volatility * var, volatility * es)


Method = Callable[[Floats, float], TailRisk]
METHODS: dict[str, Method] = {
    "historical": historical,
    "gaussian": gaussian,
    "student": student,
    "monte_carlo": monte_carlo,
    "filtered_historical": filtered_historical,
}


def _too_short(past: Floats, level: float) -> bool:
    """Return whether the past has less than one return in the tail."""
    return len(past) * tail_probability(level) < 1.0 - 1e-9


def _losses(var: float, es: float) -> TailRisk:
    """Return the tail risk, UNKNOWN unless VaR is a loss and ES finite."""
    return TailRisk(float(var), float(es)) if var > 0.0 and math.isfinite(es) else UNKNOWN


@cache
def unit_student(level: float) -> Floats:
    """Return (4, k): Geary's ratio (ascending), one over the degrees of freedom, VaR and ES of unit Student-t.

    The last column is the normal's. ES of a Student-t: McNeil, Frey & Embrechts 2005, sec. 2.2.4.
    """
    tail = tail_probability(level)
    inverse = np.linspace(THICKEST, 0.0, 901)[:-1]
    nu = 1.0 / inverse
    geary = np.sqrt((nu - 2.0) / np.pi) * np.exp(gammaln((nu - 1.0) / 2.0) - gammaln(nu / 2.0))
    unit = np.sqrt(1.0 - 2.0 * inverse)
    quantile = t.ppf(level, nu)
    es = t.pdf(quantile, nu) / tail * (nu + quantile**2) / (nu - 1.0)
    normal = [np.sqrt(2.0 / np.pi), 0.0, norm.ppf(level), norm.pdf(norm.ppf(level)) / tail]
    table = np.column_stack([np.stack([geary, inverse, unit * quantile, unit * es]), normal])
    table.setflags(write=False)
    return table


@cache
def _drawn(step: int, level: float) -> TailRisk:
    """Return VaR and ES of draws of variance one, with step / GRID = one over the degrees of freedom."""
    rng = np.random.default_rng(SEED)
    inverse = step / GRID
    draws = rng.standard_normal(DRAWS) if step == 0 else rng.standard_t(1.0 / inverse, DRAWS)
    losses = np.sort(-np.abs(draws))  # either sign is as likely; sorted input makes `tail_losses` fast
    return TailRisk(*(np.sqrt(1.0 - 2.0 * inverse) * x for x in tail_losses(losses, 2.0 * tail_probability(level))))


# ---- tested against the returns that followed ----------------------------------------------------------------------


def estimate(past: Floats, method: str, level: float) -> TailRisk:
    """Return VaR and ES of the return after `past` (n,), by a method's name.

    Raises UnknownName; BadShape unless one-dimensional; BadValues for a return that is not finite, naming its row
    """
    return _method(method)(_series(past), level)


def forecasts(returns: Floats, method: str, level: float, window: int) -> tuple[Floats, Floats]:
    """Return VaR and ES (n,) of each row from the `window` returns before it; NaN in the first `window` rows.

    Raises as `estimate`; BadShape for a window under one
    """
    if window < 1:
        raise BadShape(f"a window of {window} returns; use at least 1, better some hundred.")
    measure, values = _method(method), _series(returns)
    found = np.full((2, len(values)), np.nan)
    for i in range(window, len(values)):
        found[:, i] = measure(values[i - window : i], level)
    return found[0], found[1]


def backtest(returns: Floats, method: str, level: float, window: int) -> Coverage:
    """Forecast each row from the `window` returns before it and test the forecasts against the returns.

    returns  (n,) simple returns in time order; if too short for a forecast, the result has n = 0 and NaN
    Raises   as `forecasts`
    """
    var, es = forecasts(returns, method, level, window)
    return coverage(returns[window:], var[window:], es[window:], level)


def _method(name: str) -> Method:
    """Return the method of that name. Raises UnknownName."""
    if name not in METHODS:
        raise UnknownName(f"no method {name!r} of tail risk; use one of {', '.join(METHODS)}")
    return METHODS[name]


def _series(returns: Floats) -> Floats:
    """Return contiguous float64 returns (n,). Raises BadShape, BadValues."""
    if returns.ndim != 1:
        raise BadShape(f"returns have shape {returns.shape}, expected (n,). Pass one asset at a time.")
    refuse_missing(returns)
    return np.ascontiguousarray(returns, dtype=np.float64)
