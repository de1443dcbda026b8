"""The density of the next hour's return that a regime answer stands for, and its log score.

Student-t around nought with log scale = Σ p_r a_r + β (log EWMA volatility − centre): the regimes say by how much the
market moves more or less than its recent volatility alone tells. Linear in p, so that a vote that is only half sure
moves the scale half way; with one a for all regimes it is the EWMA model with the same tail.
Source of the score: Gneiting and Raftery 2007, JASA 102(477), section 4.1.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import gammaln

from pipelines.contracts import Floats
from pipelines.labels.returns import HALF_LIVES

_GAUSSIAN = 1e6  # degrees of freedom from which a t is written as a normal


@dataclass(frozen=True, slots=True)
class Density:
    """half_life  bars, of labels.returns.HALF_LIVES: which EWMA volatility the scale rests on; None = none
    centre     mean log EWMA volatility of the training rows (log basis points)
    power      β; shifts: a_r, one a regime (or one for all), log basis points over the horizon
    freedom    degrees of freedom of the t
    """

    half_life: float | None
    centre: float
    power: float
    shifts: tuple[float, ...]
    freedom: float

    def losses(self, y: Floats, ewma: Floats, p: Floats) -> Floats:
        """(n,) negative log density of y (n,) basis points, in nats; ewma (n, len(HALF_LIVES)) basis points a bar;
        p (n, len(shifts)), rows sum to 1."""
        log_scale = p @ np.array(self.shifts) + self.power * (_log_ewma(ewma, self.half_life) - self.centre)
        return np.asarray(_losses(y, log_scale, self.freedom))

    def terms(self) -> dict[str, Any]:
        return asdict(self)


def density_of(terms: Mapping[str, Any]) -> Density:
    """What `terms` told, also after a journey through JSON."""
    return Density(**{**terms, "shifts": tuple(terms["shifts"])})


def _log_ewma(ewma: Floats, half_life: float | None) -> Floats:
    return np.zeros(len(ewma)) if half_life is None else np.log(ewma[:, HALF_LIVES.index(half_life)])


def _losses(y: Floats, log_scale: Floats, freedom: float) -> Floats:
    z2 = (y * np.exp(-log_scale)) ** 2
    if freedom >= _GAUSSIAN:
        return np.asarray(0.5 * np.log(2.0 * np.pi) + log_scale + 0.5 * z2)
    peak = gammaln(0.5 * (freedom + 1.0)) - gammaln(0.5 * freedom) - 0.5 * np.log(np.pi * freedom)
    return np.asarray(log_scale - peak + 0.5 * (freedom + 1.0) * np.log1p(z2 / freedom))


def fit_density(
    y: Floats, ewma: Floats, p: Floats, weight: Floats, tails: bool = True, volatile: bool = True
) -> Density:
    """Maximum likelihood over the shifts, β, the tail and the half-life.

    y (n,) bps, ewma (n, len(HALF_LIVES)), p (n, k) rows sum to 1, weight (n,)
    tails     False: Gaussian; volatile  False: no EWMA volatility, a constant scale
    """
    found = [_fit(y, ewma, p, weight, tails, half_life) for half_life in (HALF_LIVES if volatile else (None,))]
    return min(found, key=lambda each: each[0])[1]


def _fit(
    y: Floats, ewma: Floats, p: Floats, weight: Floats, tails: bool, half_life: float | None
) -> tuple[float, Density]:
    share, k = weight / weight.sum(), p.shape[1]
    log_vol = _log_ewma(ewma, half_life)
    centre = float(share @ log_vol)
    design = np.column_stack([p, log_vol - centre]) if half_life is not None else p

    def objective(x: Floats) -> tuple[float, Floats]:
        """Weighted mean loss and its gradient; x = design coefficients, then log(ν − 2)."""
        freedom = 2.0 + np.exp(x[-1]) if tails else _GAUSSIAN
        log_scale = design @ x[: design.shape[1]]
        z2 = (y * np.exp(-log_scale)) ** 2
        pull = (freedom + 1.0) * z2 / (freedom + z2) if tails else z2
        slope = design.T @ (share * (1.0 - pull))
        value = float(share @ _losses(y, log_scale, freedom))
        if not tails:
            return value, slope
        step = 1e-4  # of log(ν − 2): the one derivative without a short form
        more = float(share @ _losses(y, log_scale, 2.0 + np.exp(x[-1] + step)))
        return value, np.append(slope, (more - value) / step)

    spread = 0.5 * float(np.log(share @ y**2))
    start = np.concatenate([np.full(k, spread), [1.0] if half_life is not None else [], [1.0] if tails else []])
    bounds = [(spread - 4.0, spread + 4.0)] * k + [(-1.0, 3.0)] * (half_life is not None) + [(-3.0, 6.0)] * tails
    best = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    freedom = float(2.0 + np.exp(best.x[-1])) if tails else _GAUSSIAN
    power = float(best.x[k]) if half_life is not None else 0.0
    return float(best.fun), Density(half_life, centre, power, tuple(best.x[:k].tolist()), freedom)
