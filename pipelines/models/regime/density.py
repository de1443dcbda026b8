"""The density of the next hour's return given regime probabilities, and its log score.

A mixture of Student-t around zero, one a regime, with weights ∝ p^γ and log scale a_r + β (log EWMA volatility −
centre). γ above 1 sharpens p again after the average over seven detectors. With one a for all regimes it is the EWMA
model with the same tail, so the gain over that model is what the regimes add.
Source of the score: Gneiting and Raftery 2007, JASA 102(477), section 4.1.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from typing import Any

import numpy as np
from scipy.special import digamma, gammaln

from pipelines.contracts import Floats
from pipelines.labels.returns import HALF_LIVES

_GAUSSIAN = 1e6  # degrees of freedom from which a t is written as a normal
_LEAST_P = 1e-9  # floor of a regime's p, whose logarithm is needed


@dataclass(frozen=True, slots=True)
class Density:
    """Hold the parameters of the mixture.

    half_life  bars, of labels.returns.HALF_LIVES: which EWMA volatility the scale uses; None = none
    centre     mean log EWMA volatility of the training rows (log basis points)
    power      β; shifts: a_r, one a regime (or one for all), log basis points over the horizon
    freedom    degrees of freedom of the t; sharpness: γ
    """

    half_life: float | None
    centre: float
    power: float
    shifts: tuple[float, ...]
    freedom: float
    sharpness: float

    def losses(self, y: Floats, ewma: Floats, p: Floats) -> Floats:
        """Return (n,) negative log densities in nats of y (n,) basis points; NaN where p is.

        ewma  (n, len(HALF_LIVES)) basis points a bar
        p     (n, len(shifts)) regime probabilities, rows sum to 1
        """
        away = self.power * (_log_ewma(ewma, self.half_life) - self.centre)
        log_scale = np.array(self.shifts) + away[:, np.newaxis]
        return -_log_of_sum(_weights(p, self.sharpness) - _losses(y, log_scale, self.freedom))

    def to_dict(self) -> dict[str, object]:
        """Return the parameters, JSON-ready."""
        return asdict(self)


def density_from_dict(loss_params: Mapping[str, Any]) -> Density:
    """Return the density of what `to_dict` returned, also when decoded from JSON."""
    return Density(**{**loss_params, "shifts": tuple(loss_params["shifts"])})


def _log_ewma(ewma: Floats, half_life: float | None) -> Floats:
    """Return (n,) log EWMA volatilities of one half-life; zeros for None."""
    return np.zeros(len(ewma)) if half_life is None else np.log(ewma[:, HALF_LIVES.index(half_life)])


def _weights(p: Floats, sharpness: float) -> Floats:
    """Return (n, R) log weights of the mixture."""
    raised = sharpness * np.log(np.maximum(p, _LEAST_P))
    return np.asarray(raised - _log_of_sum(raised)[:, np.newaxis])


def _log_of_sum(x: Floats) -> Floats:
    """Return (n,) log of the sum of the exponentials of each row, column by column: rows are short."""
    peak: Floats = reduce(np.maximum, x.T)
    return np.asarray(peak + np.log(sum(np.exp(column - peak) for column in x.T)))


def _losses(y: Floats, log_scale: Floats, freedom: float) -> Floats:
    """Return (n, R) negative log densities in nats of y (n,) by each part of the mixture."""
    z2 = (y[:, np.newaxis] * np.exp(-log_scale)) ** 2
    if freedom >= _GAUSSIAN:
        return np.asarray(0.5 * np.log(2.0 * np.pi) + log_scale + 0.5 * z2)
    peak = gammaln(0.5 * (freedom + 1.0)) - gammaln(0.5 * freedom) - 0.5 * np.log(np.pi * freedom)
    return np.asarray(log_scale - peak + 0.5 * (freedom + 1.0) * np.log1p(z2 / freedom))


def fit_density(
    y: Floats, ewma: Floats, p: Floats, weight: Floats, tails: bool = True, volatile: bool = True
) -> Density:
    """Return the density of maximum likelihood over shifts, β, tail, sharpness and half-life.

    y         (n,) basis points; ewma (n, len(HALF_LIVES)); weight (n,)
    p         (n, R), rows sum to 1; ones (n, 1) for no regimes
    tails     False fits a Gaussian
    volatile  False fits a constant scale without EWMA volatility
    """
    found = [_fit(y, ewma, p, weight, tails, half_life) for half_life in (HALF_LIVES if volatile else (None,))]
    return min(found, key=lambda each: each[0])[1]


def _fit(
    y: Floats, ewma: Floats, p: Floats, weight: Floats, tails: bool, half_life: float | None
) -> tuple[float, Density]:
    """Return (mean loss in nats, density) of the best fit for one half-life.

    The optimiser's x = shifts, β, log γ, log(ν − 2); a parameter that is not fitted has two equal bounds.
    """
    share, r = weight / weight.sum(), p.shape[1]
    log_vol = _log_ewma(ewma, half_life)
    centre = float(share @ log_vol)
    away, log_p = (log_vol - centre)[:, np.newaxis], np.log(np.maximum(p, _LEAST_P))

    def freedom_of(x: float) -> float:
        """Return the degrees of freedom ν."""
        return float(2.0 + np.exp(x)) if tails else _GAUSSIAN

    def objective(x: Floats) -> tuple[float, Floats]:
        """Return the weighted mean loss in nats and its gradient."""
        freedom, sharpness = freedom_of(x[-1]), float(np.exp(x[r + 1]))
        log_scale, weights = x[:r] + x[r] * away, _weights(p, sharpness)
        joint = weights - _losses(y, log_scale, freedom)
        each = _log_of_sum(joint)
        # probability of each regime given y, times the row's weight
        part = share[:, np.newaxis] * np.exp(joint - each[:, np.newaxis])
        z2 = (y[:, np.newaxis] * np.exp(-log_scale)) ** 2
        slope = part * (1.0 - ((freedom + 1.0) * z2 / (freedom + z2) if tails else z2))
        sharper = (part * log_p).sum() - share @ np.einsum("ij,ij->i", np.exp(weights), log_p)
        heavier = 0.0
        if tails:
            known = digamma(0.5 * freedom) - digamma(0.5 * (freedom + 1.0)) + 1.0 / freedom
            by_freedom = known + np.log1p(z2 / freedom) - (freedom + 1.0) * z2 / (freedom * (freedom + z2))
            heavier = 0.5 * float((part * by_freedom).sum()) * (freedom - 2.0)
        gradient = [slope.sum(axis=0), [(slope * away).sum(), -sharpness * sharper, heavier]]
        return float(-(share @ each)), np.concatenate(gradient)

    own = share @ p**2
    level = 0.5 * np.log((share * y**2) @ p**2 / own)  # log spread of the returns, weighted by each regime's p²
    start = np.concatenate([level, [0.5 if half_life is not None else 0.0, 0.0, 1.0]])
    bounds = [(each - 4.0, each + 4.0) for each in level]
    bounds += [(-1.0, 3.0) if half_life is not None else (0.0, 0.0), (-2.0, 2.0) if r > 1 else (0.0, 0.0), (-3.0, 6.0)]
    from scipy.optimize import minimize

    best = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    shifts, (power, sharp, tail) = best.x[:r], best.x[r:]
    density = Density(half_life, centre, float(power), tuple(shifts.tolist()), freedom_of(tail), float(np.exp(sharp)))
    return float(best.fun), density
