"""Arrivals of trades that cause further trades: a Hawkes process with an exponential kernel (signal S8).

Intensity, arrivals a second: lambda(t) = mu + sum over earlier arrivals of branching * decay * exp(-decay (t - t_i)).
`mu` is the base rate, `branching` the mean number of arrivals that one arrival causes (under 1: it dies out), `decay`
(1/s) how fast they follow. Fitted by maximum likelihood: log-likelihood by the recursion of Ozaki (1979, Ann. Inst.
Stat. Math. 31, 145-155), its gradient and Hessian by the derivatives of the same recursion. Simulated exactly, after
Dassios and Zhao (2013, Electron. Commun. Probab. 18, no. 62).

Arrivals at one instant are one arrival: a market order that eats several levels is several fills, and two arrivals no
time apart would make the likelihood grow without limit as `decay` does. A base rate that itself moves within the
window looks like branching; no fit of one window can tell the two apart.
"""

import math
from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Estimate, Floats
from pipelines.errors import BadTimes, BadValues, NotEnoughData

ARRIVALS = 512  # of the window that is fitted as trades come in
HAWKES_WIDTH = 3  # numbers that `hawkes_write_row` writes
MIN_ARRIVALS = 100  # fewer cannot identify three parameters
HAWKES_STATE = 1 + 2 * ARRIVALS  # arrivals so far; ring of their times; ring of their sides. All 0: nothing has come

_STEPS = 60  # of Newton's method: it needs 4 to 10, or it gets nowhere
_CLOSE = 1e-5  # what a further step would add to the log-likelihood once the fit is done
_MIN_GAIN = 2.0  # log-likelihood that two more parameters than a Poisson process has must earn (Akaike 1974)
_POISSON = 1e-3  # branching under which the maximum lies at none at all
_EXPLOSIVE = 1.0 - 1e-3  # branching over which the process never dies out: no fit of a market
_LONGEST = 2.0  # step in log or logit
_DECAYS = 4.0 ** np.arange(-2.0, 6.0)  # where a fit starts: mean rate times one of them,
_BRANCHINGS = np.array([0.1, 0.4, 0.8])  # and one of these, whichever fits best
_LOGS = 8  # intensities multiplied before a logarithm is taken


@kernel
def likelihood(
    times: Floats,
    counted: int,
    end: float,
    mu: float,
    branching: float,
    decay: float,
    gradient: Floats,
    hessian: Floats,
) -> float:
    """Return the log-likelihood of arrivals at `times` (n,) seconds, ascending, observed from 0 to `end`, in one pass.

    The first `counted` arrivals excite but are taken as given: 1 where the clock starts with an arrival, else 0.
    Fills gradient (3,) and hessian (3, 3) by mu, branching and decay. All float64.
    """
    n = times.shape[0]
    g0 = g1 = g2 = h00 = h01 = h02 = h11 = h12 = h22 = 0.0
    total, product, factors = 0.0, 1.0, 0
    a = a1 = a2 = 0.0  # sum of exp(-decay * age) over earlier arrivals, and its derivatives by decay
    for i in range(n + 1):
        if i > 0:
            gap = (times[i] if i < n else end) - times[i - 1]
            left = math.exp(-decay * gap)
            a = left * (a + 1.0)
            slope = left * a1
            a1 = slope - gap * a
            a2 = left * a2 - gap * (a1 + slope)
        if i < counted or i == n:
            continue
        rate = mu + branching * decay * a
        inverse = 1.0 / rate
        product *= rate
        factors += 1
        if factors == _LOGS:
            total += math.log(product)
            product, factors = 1.0, 0
        by_branching = decay * a * inverse
        kernel_slope = (a + decay * a1) * inverse
        by_decay = branching * kernel_slope
        g0 += inverse
        g1 += by_branching
        g2 += by_decay
        h00 -= inverse * inverse
        h01 -= inverse * by_branching
        h02 -= inverse * by_decay
        h11 -= by_branching * by_branching
        h12 += kernel_slope - by_branching * by_decay
        h22 += branching * (2.0 * a1 + decay * a2) * inverse - by_decay * by_decay
    gradient[0], gradient[1], gradient[2] = g0 - end, g1 - (n - a), g2 + branching * a1
    hessian[0, 0], hessian[1, 1], hessian[2, 2] = h00, h11, h22 + branching * a2
    hessian[0, 1] = hessian[1, 0] = h01
    hessian[0, 2] = hessian[2, 0] = h02
    hessian[1, 2] = hessian[2, 1] = h12 + a1
    value: float = total + math.log(product) - mu * end - branching * (n - a)
    return value


@kernel
def _decays_between(times: Floats, end: float, decay: float, factors: Floats) -> None:
    """Fill factors (n + 1,) float64: the share of excitement left from one arrival to the next.

    times (n,) float64 seconds; the last factor is the share left from the last arrival to `end`.
    """
    n = times.shape[0]
    factors[0] = 0.0
    for i in range(1, n):
        factors[i] = math.exp(-decay * (times[i] - times[i - 1]))
    factors[n] = math.exp(-decay * (end - times[n - 1]))


@kernel
def _start(factors: Floats, counted: int, end: float, decay: float) -> tuple[float, float]:
    """Return (log-likelihood, branching) of the best of _BRANCHINGS at this decay.

    factors (n + 1,) float64 as `_decays_between` fills them. The base rate makes up for the rest of the mean rate.
    """
    n, a = factors.shape[0] - 1, 0.0
    rate = n / end
    mu0, mu1, mu2 = rate * (1.0 - _BRANCHINGS[0]), rate * (1.0 - _BRANCHINGS[1]), rate * (1.0 - _BRANCHINGS[2])
    jump0, jump1, jump2 = _BRANCHINGS[0] * decay, _BRANCHINGS[1] * decay, _BRANCHINGS[2] * decay
    value0 = value1 = value2 = 0.0
    product0 = product1 = product2 = 1.0
    for i in range(n):
        a = factors[i] * (a + 1.0)
        if i >= counted:
            product0 *= mu0 + jump0 * a
            product1 *= mu1 + jump1 * a
            product2 *= mu2 + jump2 * a
        if i % _LOGS == _LOGS - 1 or i == n - 1:
            value0 += math.log(product0)
            value1 += math.log(product1)
            value2 += math.log(product2)
            product0 = product1 = product2 = 1.0
    a = factors[n] * (a + 1.0)
    value0 -= mu0 * end + _BRANCHINGS[0] * (n - a)
    value1 -= mu1 * end + _BRANCHINGS[1] * (n - a)
    value2 -= mu2 * end + _BRANCHINGS[2] * (n - a)
    if value0 >= value1 and value0 >= value2:
        return value0, _BRANCHINGS[0]
    return (value1, _BRANCHINGS[1]) if value1 >= value2 else (value2, _BRANCHINGS[2])


@kernel
def _solve(hessian: Floats, gradient: Floats, damping: float, step: Floats) -> bool:
    """Solve step (3,) = (damping - hessian)^-1 gradient by Cholesky; return False where it is not positive definite.

    hessian (3, 3), gradient (3,), step (3,) written: float64.
    """
    a, b, c = damping - hessian[0, 0], -hessian[0, 1], -hessian[0, 2]
    d, e, f = damping - hessian[1, 1], -hessian[1, 2], damping - hessian[2, 2]
    if not a > 0.0:
        return False
    l00 = math.sqrt(a)
    l10, l20 = b / l00, c / l00
    d -= l10 * l10
    if not d > 0.0:
        return False
    l11 = math.sqrt(d)
    l21 = (e - l20 * l10) / l11
    f -= l20 * l20 + l21 * l21
    if not f > 0.0:
        return False
    l22 = math.sqrt(f)
    y0 = gradient[0] / l00
    y1 = (gradient[1] - l10 * y0) / l11
    y2 = (gradient[2] - l20 * y0 - l21 * y1) / l22
    step[2] = y2 / l22
    step[1] = (y1 - l21 * step[2]) / l11
    step[0] = (y0 - l10 * step[1] - l20 * step[2]) / l00
    return True


@kernel
def _in_logs(mu: float, branching: float, decay: float, gradient: Floats, hessian: Floats) -> None:
    """Turn derivatives by mu, branching, decay into those by log mu, logit branching, log decay, in place.

    gradient (3,), hessian (3, 3), float64.
    """
    spread = branching * (1.0 - branching)
    first = (mu, spread, decay)
    second = (mu, spread * (1.0 - 2.0 * branching), decay)
    for p in range(3):
        for q in range(3):
            hessian[p, q] *= first[p] * first[q]
        hessian[p, p] += gradient[p] * second[p]
    for p in range(3):
        gradient[p] *= first[p]


@kernel
def quick_fit(times: Floats, counted: int, end: float, found: Floats) -> bool:
    """Fit by damped Newton steps in log mu, logit branching and log decay, from the best of a grid; return success.

    times   (n,) float64 seconds; found (3,) float64, filled: mu, branching, decay
    Returns whether it converged to a maximum inside. Where it did not, and the parameters found are no better than a
            Poisson process, the result is that process: branching 0, decay NaN. It depends on these arrivals alone.
    """
    n = times.shape[0]
    gradient, hessian, step = np.empty(3), np.empty((3, 3)), np.empty(3)
    newer_gradient, newer_hessian, factors = np.empty(3), np.empty((3, 3)), np.empty(n + 1)
    found[:] = np.nan
    best, branching, decay = -np.inf, 0.0, 0.0
    _decays_between(times, end, _DECAYS[0] * n / end, factors)
    for ratio in _DECAYS:
        value, chosen = _start(factors, counted, end, ratio * n / end)
        for i in range(n + 1):  # the next decay is four times as fast
            square = factors[i] * factors[i]
            factors[i] = square * square
        if value > best:
            best, branching, decay = value, chosen, ratio * n / end
    mu = n / end * (1.0 - branching)
    best = likelihood(times, counted, end, mu, branching, decay, gradient, hessian)
    _in_logs(mu, branching, decay, gradient, hessian)
    damping = 0.0
    for _ in range(_STEPS):
        if not _solve(hessian, gradient, damping, step):
            damping = max(4.0 * damping, 1e-3 * n)
            continue
        gain = 0.5 * (step[0] * gradient[0] + step[1] * gradient[1] + step[2] * gradient[2])
        if damping == 0.0 and gain < _CLOSE:  # the last step squares what is left, and needs no further step
            found[0], found[2] = mu * math.exp(step[0]), decay * math.exp(step[2])
            found[1] = 1.0 / (1.0 + (1.0 - branching) / branching * math.exp(-step[1]))
            return True
        scale = min(1.0, _LONGEST / max(abs(step[0]), abs(step[1]), abs(step[2])))
        newer_mu, newer_decay = mu * math.exp(scale * step[0]), decay * math.exp(scale * step[2])
        newer_branching = 1.0 / (1.0 + (1.0 - branching) / branching * math.exp(-scale * step[1]))
        value = likelihood(times, counted, end, newer_mu, newer_branching, newer_decay, newer_gradient, newer_hessian)
        if not value >= best - 1e-9:
            damping = max(4.0 * damping, 1e-3 * n)
            continue
        best, mu, branching, decay = max(best, value), newer_mu, newer_branching, newer_decay
        if branching < _POISSON or branching > _EXPLOSIVE or decay * end < 1.0:
            break
        gradient[:], hessian[:] = newer_gradient, newer_hessian
        _in_logs(mu, branching, decay, gradient, hessian)
        damping = 0.0 if damping < 1e-2 * n else 0.25 * damping
    rate = (n - counted) / end
    if best - (n - counted) * (math.log(rate) - 1.0) > _MIN_GAIN:
        return False
    found[0], found[1] = rate, 0.0
    return True


@kernel
def hawkes_add_trade(state: Floats, seconds: float, side: float) -> None:
    """Add a trade at `seconds` (any base, ascending) to state (HAWKES_STATE,) float64; side +1 bought, -1 sold.

    A trade at the instant of the one before (or earlier) belongs to the same arrival, which keeps its first side.
    """
    arrived = int(state[0])
    if arrived > 0 and seconds <= state[1 + (arrived - 1) % ARRIVALS]:
        return
    at = arrived % ARRIVALS
    state[1 + at], state[1 + ARRIVALS + at] = seconds, side
    state[0] = arrived + 1


@kernel
def hawkes_write_row(state: Floats, seconds: float, out: Floats) -> None:
    """Fit the last ARRIVALS arrivals as known at `seconds`, and write their excitement into out (3,) float64.

    out[0]  branching, 0 … 1
    out[1]  intensity at `seconds` over the base rate, less one
    out[2]  side of the arrivals that excite: -1 sellers … 1 buyers
    All 0 where a Poisson process fits as well: nothing excites. All NaN before MIN_ARRIVALS and where no maximum was
    found (explosive, or a memory longer than the window: the base rate moved).
    """
    out[0] = out[1] = out[2] = np.nan
    arrived = int(state[0])
    n = min(arrived, ARRIVALS)
    if n < MIN_ARRIVALS:
        return
    times, found = np.empty(n), np.empty(3)
    origin = state[1 + (arrived - n) % ARRIVALS]
    for i in range(n):
        times[i] = state[1 + (arrived - n + i) % ARRIVALS] - origin
    end = max(seconds - origin, times[n - 1])
    if not quick_fit(times, 1, end, found):
        return
    out[0] = out[1] = out[2] = 0.0
    if found[1] == 0.0:
        return
    both, net = 0.0, 0.0
    for i in range(n):
        weight = math.exp(found[2] * (times[i] - end))
        both += weight
        net += weight * state[1 + ARRIVALS + (arrived - n + i) % ARRIVALS]
    out[0], out[1] = found[1], found[1] * found[2] * both / found[0]
    if both > 0.0:
        out[2] = net / both


@dataclass(frozen=True, slots=True)
class HawkesFit:
    """Hold the maximum-likelihood fit of n arrivals.

    Intervals are 95 %, from the observed information in log mu, logit branching and log decay; errors (3,) are
    standard errors of mu, branching and decay themselves.

    converged: a maximum inside. Else (a Poisson process, an explosive one) values are the best found, errors are NaN.
    """

    mu: Estimate
    branching: Estimate
    decay: Estimate
    errors: Floats
    log_likelihood: float
    n: int
    converged: bool


def fit(times: Floats, start: float | None = None, end: float | None = None) -> HawkesFit:
    """Fit arrivals at `times` (seconds, ascending; equal ones count once), observed from `start` to `end`.

    Without `start` the clock starts with the first arrival, which is taken as given; without `end` it stops with the
    last. Raises BadTimes where times are not finite, descend or lie outside; NotEnoughData under MIN_ARRIVALS.
    """
    arrivals = np.asarray(times, np.float64)
    if arrivals.ndim != 1 or not np.isfinite(arrivals).all() or (np.diff(arrivals) < 0).any():
        raise BadTimes("Hawkes fit: arrivals must be one row of finite seconds in ascending order. Sort them.")
    seconds = np.unique(arrivals)
    if len(seconds) < MIN_ARRIVALS:
        raise NotEnoughData(
            f"Hawkes fit: {len(seconds)} arrivals at different instants, needs {MIN_ARRIVALS}. Take a longer window."
        )
    first = seconds[0] if start is None else start
    last = seconds[-1] if end is None else end
    if first > seconds[0] or last < seconds[-1]:
        raise BadTimes(f"Hawkes fit: arrivals from {seconds[0]} to {seconds[-1]} outside {first} to {last}. Cut them.")
    since, counted, length, n = seconds - first, int(start is None), float(last - first), len(seconds)
    gradient, hessian, factors = np.empty(3), np.empty((3, 3)), np.empty(n + 1)

    def value(logs: Floats) -> tuple[float, Floats]:
        """Return the negative log-likelihood an arrival and its gradient (3,) at `logs` (3,)."""
        mu, branching, decay = np.exp(logs[0]), 1.0 / (1.0 + np.exp(-logs[1])), np.exp(logs[2])
        at = likelihood(since, counted, length, mu, branching, decay, gradient, hessian)
        return -at / n, -gradient * (mu, branching * (1.0 - branching), decay) / n

    rate = n / length
    bounds = [(np.log(rate) - 12, np.log(rate) + 1), (-12, 12), (-np.log(length), np.log(rate) + 14)]
    best = None
    for decay in _DECAYS * rate:
        _decays_between(since, length, decay, factors)
        _, branching = _start(factors, counted, length, decay)
        logs = np.log([rate * (1.0 - branching), branching / (1.0 - branching), decay])
        from scipy.optimize import minimize

        got = minimize(value, logs, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-8})
        if best is None or got.fun < best.fun:
            best = got
    assert best is not None
    mu, branching, decay = np.exp(best.x[0]), 1.0 / (1.0 + np.exp(-best.x[1])), np.exp(best.x[2])
    most = likelihood(since, counted, length, mu, branching, decay, gradient, hessian)
    scale = np.array([mu, branching * (1.0 - branching), decay])
    inside = (
        _POISSON <= branching <= _EXPLOSIVE
        and decay * length > 1.0
        and np.abs(gradient * scale).max() < 1e-4 * n
        and np.linalg.eigvalsh(-hessian * np.outer(scale, scale)).min() > 0.0
    )
    errors = np.sqrt(np.diag(np.linalg.inv(-hessian))) if inside else np.full(3, np.nan)
    reach = 1.959964 * errors / scale
    low, high = best.x - reach, best.x + reach
    return HawkesFit(
        mu=Estimate(float(mu), float(np.exp(low[0])), float(np.exp(high[0])), n),
        branching=Estimate(float(branching), float(1 / (1 + np.exp(-low[1]))), float(1 / (1 + np.exp(-high[1]))), n),
        decay=Estimate(float(decay), float(np.exp(low[2])), float(np.exp(high[2])), n),
        errors=errors,
        log_likelihood=float(most),
        n=n,
        converged=bool(inside),
    )


@kernel
def _arrive(
    mu: float,
    branching: float,
    decay: float,
    seconds: float,
    uniforms: Floats,
    carried: Floats,
    out: Floats,
) -> int:
    """Write arrivals until `seconds` or until `uniforms` (k, 2) are used up into out (k,); return how many.

    carried  (2,) time and excitation, updated; all float64
    """
    now, excited, made = carried[0], carried[1], 0
    for k in range(uniforms.shape[0]):
        wait = -math.log(uniforms[k, 0]) / mu  # for an arrival of the base rate
        if excited > 0.0:
            left = 1.0 + decay * math.log(uniforms[k, 1]) / excited
            if left > 0.0:
                wait = min(wait, -math.log(left) / decay)  # for one that is caused
        now += wait
        if now > seconds:
            break
        excited = excited * math.exp(-decay * wait) + branching * decay
        out[made] = now
        made += 1
    carried[0], carried[1] = now, excited
    return made


def simulate(mu: float, branching: float, decay: float, seconds: float, seed: int) -> Floats:
    """Return the arrival times in (0, seconds] of a process that starts without excitation; one seed gives one result.

    Raises BadValues unless mu, decay and seconds are above 0 and branching in [0, 1).
    """
    if not (mu > 0 and decay > 0 and seconds > 0 and 0 <= branching < 1):
        raise BadValues(
            f"Hawkes simulation: mu {mu}, decay {decay} and seconds {seconds} must be above 0, branching {branching} "
            "in [0, 1): from 1 on the process never dies out."
        )
    noise, carried, parts = np.random.default_rng(seed), np.zeros(2), []
    while carried[0] <= seconds:
        uniforms, out = 1.0 - noise.random((4096, 2)), np.empty(4096)
        parts.append(out[: _arrive(mu, branching, decay, seconds, uniforms, carried, out)])
    return np.concatenate(parts)
