"""What the next return may lose: value at risk and expected shortfall, one step ahead, from past returns alone.

    historical           the past as it was
    gaussian             normal, with the past's mean and standard deviation
    student              Student-t, likewise; degrees of freedom by moments
    monte_carlo          draws from a Student-t of EWMA volatility
    filtered_historical  past returns in units of the EWMA volatility of their day, times the volatility now

Returns are simple returns: a loss of VaR is that fraction of value. `backtest` holds a method to what came
afterwards; whose the shortfall of a portfolio is, `pipelines.tails.euler_es` tells.
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

DECAY = 0.94  # of the squared return a step; RiskMetrics 1996, for daily returns; hours take it over unfitted
BURN_IN = 20  # returns before an EWMA volatility is believed
THICKEST = 0.45  # of one over the degrees of freedom; at .5 there is no variance to speak of
GRID = 200  # steps of that inverse to one; Monte Carlo draws once for each step
DRAWS, SEED = 131_072, 20  # of Monte Carlo; each is used with both signs


class TailRisk(NamedTuple):
    """Losses as positive fractions of value: the one exceeded with chance 1 - level, and the mean beyond it. Or NaN."""

    var: float
    es: float


UNKNOWN = TailRisk(float("nan"), float("nan"))

# ---- from returns, compiled ---------------------------------------------------------------------------------------


@kernel
def _moments(past):  # type: ignore[no-untyped-def]
    """Mean, standard deviation (ddof 1), and mean absolute deviation over the root mean square: Geary's ratio, .80 of
    a normal and less the thicker the tails. It takes two moments where the kurtosis takes four, which returns need not
    have."""
    n, mean = past.shape[0], past.mean()
    square, absolute = 0.0, 0.0
    for r in past:
        square += (r - mean) ** 2
        absolute += abs(r - mean)
    return mean, np.sqrt(square / (n - 1)), absolute / np.sqrt(n * square)


@kernel
def _filtered(past, decay, burn_in):  # type: ignore[no-untyped-def]
    """Past the burn-in, returns over the EWMA volatility of those before each; and the volatility now."""
    standard = np.empty(past.shape[0])
    total, weight, made = 0.0, 0.0, 0
    for i in range(past.shape[0]):
        if i >= burn_in and total > 0.0:  # a dead feed has no volatility yet
            standard[made] = past[i] / np.sqrt(total / weight)
            made += 1
        total = decay * total + past[i] ** 2
        weight = decay * weight + 1.0
    return standard[:made], np.sqrt(total / weight)


@kernel
def _between(table, x):  # type: ignore[no-untyped-def]
    """The other three rows where the first, ascending, is x; the ends beyond them."""
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
# past (window,) finite returns, the newest last; level in (.5, 1) → TailRisk. NaN where fewer than 1 / (1 - level)
# returns are left to judge by (one of them in the tail), where one is not finite, or where no loss is to be feared.


def historical(past: Floats, level: float) -> TailRisk:
    """Quantile and tail mean of the past itself. Knows no time: a calm past says calm."""
    return _losses(*tail_losses(past, tail_probability(level)))


def gaussian(past: Floats, level: float) -> TailRisk:
    """Normal with the mean and standard deviation of the past."""
    if _too_short(past, level):
        return UNKNOWN
    mean, deviation, _ = _moments(past)
    return _losses(*(deviation * unit_student(level)[2:, -1] - mean))


def student(past: Floats, level: float) -> TailRisk:
    """Student-t with the mean and standard deviation of the past, degrees of freedom by Geary's ratio (Geary 1935)."""
    if _too_short(past, level):
        return UNKNOWN
    mean, deviation, geary = _moments(past)
    table = unit_student(level)
    _, var, es = _between(table, geary)
    return _losses(deviation * var - mean, deviation * es - mean)


def monte_carlo(past: Floats, level: float) -> TailRisk:
    """Drawn from a Student-t around nought whose volatility is the EWMA's and whose shape is that of the past in its
    units. The draws of a shape are seeded and scaled, so the same past gives the same answer."""
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
    """Quantile and tail mean of the past in units of its EWMA volatility, times the volatility now.

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
    return len(past) * tail_probability(level) < 1.0 - 1e-9


def _losses(var: float, es: float) -> TailRisk:
    return TailRisk(float(var), float(es)) if var > 0.0 and math.isfinite(es) else UNKNOWN


@cache
def unit_student(level: float) -> Floats:
    """(4, k) Geary's ratio (ascending), one over the degrees of freedom, VaR and ES of Student-t of variance one.

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
    """VaR and ES of draws of variance one, with step / GRID = one over the degrees of freedom."""
    rng = np.random.default_rng(SEED)
    inverse = step / GRID
    draws = rng.standard_normal(DRAWS) if step == 0 else rng.standard_t(1.0 / inverse, DRAWS)
    losses = np.sort(-np.abs(draws))  # either sign is as likely; sorted, `_tail` has little to do
    return TailRisk(*(np.sqrt(1.0 - 2.0 * inverse) * x for x in tail_losses(losses, 2.0 * tail_probability(level))))


# ---- held to what came --------------------------------------------------------------------------------------------


def estimate(past: Floats, method: str, level: float) -> TailRisk:
    """VaR and ES of the return after `past` (n,), by a method's name.

    Raises UnknownName; BadShape unless one-dimensional; BadValues for a return that is not finite, naming its row
    """
    return _method(method)(_series(past), level)


def forecasts(returns: Floats, method: str, level: float, window: int) -> tuple[Floats, Floats]:
    """VaR and ES (n,) of each row from the `window` returns before it; NaN in the first `window` rows.

    Raises as `estimate`; BadShape for a window under one
    """
    if window < 1:
        raise BadShape(f"a window of {window} returns holds none. Use one of some hundred.")
    ask, values = _method(method), _series(returns)
    told = np.full((2, len(values)), np.nan)
    for i in range(window, len(values)):
        told[:, i] = ask(values[i - window : i], level)
    return told[0], told[1]


def backtest(returns: Floats, method: str, level: float, window: int) -> Coverage:
    """Forecast each row from the `window` returns before it and judge the forecasts by what came.

    returns  (n,) simple returns in time order. Too short for any forecast: n = 0 and NaN
    Raises   as `forecasts`
    """
    var, es = forecasts(returns, method, level, window)
    return coverage(returns[window:], var[window:], es[window:], level)


def _method(name: str) -> Method:
    if name not in METHODS:
        raise UnknownName(f"no method {name!r} of tail risk; known: {', '.join(METHODS)}")
    return METHODS[name]


def _series(returns: Floats) -> Floats:
    if returns.ndim != 1:
        raise BadShape(f"returns have shape {returns.shape}, expected (n,). Take one asset at a time.")
    refuse_missing(returns)
    return np.ascontiguousarray(returns, dtype=np.float64)
