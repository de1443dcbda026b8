"""Tests of value at risk and expected shortfall against realised losses.

A violation is a loss above the VaR forecast for it. Of n forecasts at a level of .99 one in a hundred should be one
(Kupiec), independently of the row before (Christoffersen), and the mean loss of violations should be the ES (Acerbi and
Székely). The first two reject forecasts that are too high or too low; the last one only those that are too low.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import chdtrc, xlogy

from pipelines.contracts import Bools, Floats
from pipelines.errors import BadShape
from pipelines.tails import refuse_missing, tail_probability

SIZE = 0.05  # of a test: how often it may reject right forecasts
DRAWS = 1000  # of the bootstrap that Acerbi and Székely's p comes from


class Significance(NamedTuple):
    """Hold a test's statistic, and how often right forecasts would show one as extreme. NaN: not computable."""

    statistic: float
    p: float


UNDETERMINED = Significance(float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class Coverage:
    """Hold the test results of n forecasts.

    abstained       rows without a forecast (NaN), which no test counts
    expected        n (1 - level), of violations
    kupiec          unconditional coverage, two-sided
    independence    Christoffersen: is a violation likelier, or less likely, right after another
    conditional     both at once
    acerbi_szekely  Z2: zero in the mean if VaR and ES are right, -1 where tail losses are double; one-sided
    es_over_var     mean of ES / VaR: how heavy a tail the method forecasts
    """

    n: int
    abstained: int
    violations: int
    expected: float
    kupiec: Significance
    independence: Significance
    conditional: Significance
    acerbi_szekely: Significance
    es_over_var: float

    def rejected_by(self, size: float = SIZE) -> tuple[str, ...]:
        """Return the names of the tests whose p is under `size`; one that is not computable rejects nothing."""
        names = ("kupiec", "independence", "conditional", "acerbi_szekely")
        return tuple(name for name in names if getattr(self, name).p < size)


def coverage(returns: Floats, var: Floats, es: Floats, level: float, seed: int = 0) -> Coverage:
    """Test forecasts against the returns of the same rows.

    returns  (n,) fractions of value, in time order, finite
    var, es  (n,) the loss of that row that was forecast to be exceeded with chance 1 - level, and the mean of losses
             beyond it; positive fractions of value, made before the row. NaN in either: no forecast
    seed     of Acerbi and Székely's bootstrap
    Raises   BadShape if lengths differ; BadValues for a return that is not finite, naming its row, or for a level that
             is no tail
    """
    tail = tail_probability(level)
    if not len(returns) == len(var) == len(es):
        raise BadShape(f"{len(returns)} returns, {len(var)} VaR and {len(es)} ES: pass one forecast for each return.")
    refuse_missing(returns)
    known = np.isfinite(var) & np.isfinite(es)
    hits = known & (-returns > np.where(known, var, np.inf))
    n, violations = int(known.sum()), int(hits.sum())
    neighbours = known[1:] & known[:-1]
    unconditional = kupiec(n, violations, tail)
    clustered = independence(hits[:-1][neighbours], hits[1:][neighbours])
    both = unconditional.statistic + clustered.statistic
    return Coverage(
        n=n,
        abstained=len(returns) - n,
        violations=violations,
        expected=n * tail,
        kupiec=unconditional,
        independence=clustered,
        conditional=Significance(both, float(chdtrc(2, both))),
        acerbi_szekely=acerbi_szekely(-returns[hits] / es[hits], n, tail, seed),
        es_over_var=float((es[known] / var[known]).mean()) if n else float("nan"),
    )


def kupiec(n: int, violations: int, tail: float) -> Significance:
    """Return the likelihood ratio test of the share of violations against `tail`; χ², 1 degree of freedom.

    NaN without a forecast. Source: Kupiec 1995, J. Derivatives 3(2), the test of the proportion of failures.
    """
    if n == 0:
        return UNDETERMINED
    ratio = 2.0 * (_log_likelihood(violations, n, violations / n) - _log_likelihood(violations, n, tail))
    return _likelihood_ratio(ratio)


def independence(before: Bools, after: Bools) -> Significance:
    """Return the likelihood ratio test of independent violations against a Markov chain; χ², 1 degree of freedom.

    before, after  (m,) violations of neighbouring rows
    NaN without any violation. Source: Christoffersen 1998, Int. Economic Review 39(4), sec. 3.2.
    """
    m, hits = len(after), int(after.sum())
    if not before.any() and hits == 0:
        return UNDETERMINED
    chain = 0.0
    for state in (before, ~before):
        times, again = int(state.sum()), int((state & after).sum())
        chain += _log_likelihood(again, times, again / times if times else 0.0)
    return _likelihood_ratio(2.0 * (chain - _log_likelihood(hits, m, hits / m)))


def acerbi_szekely(severity: Floats, n: int, tail: float, seed: int = 0) -> Significance:
    """Return Z2 = 1 - Σ loss / ES over violations / (n tail), and its p by a bootstrap under the null.

    severity  (violations,) loss / ES of each violation; n forecasts
    p         under the null violations are independent with probability `tail` and their mean loss is the ES. Their
              number is drawn from the binomial, their severities from the observed ones divided by their mean, so the
              shape of the tail is the data's own. One-sided: the share of draws with a Z2 as low; 1 without a violation
    NaN       without a forecast
    Source    Acerbi & Székely 2014, Risk, "Back-testing expected shortfall", the second test; their p comes from the
              model's own distribution, ours needs none
    """
    if n == 0:
        return UNDETERMINED
    expected = n * tail
    z = 1.0 - float(severity.sum()) / expected
    if len(severity) == 0:
        return Significance(z, 1.0)
    rng = np.random.default_rng(seed)
    counts = rng.binomial(n, tail, DRAWS)
    drawn = (severity / severity.mean())[rng.integers(0, len(severity), int(counts.sum()))]
    losses = np.bincount(np.repeat(np.arange(DRAWS), counts), drawn, DRAWS)
    as_low = int((1.0 - losses / expected <= z).sum())
    return Significance(z, (1 + as_low) / (1 + DRAWS))


def _log_likelihood(hits: int, n: int, chance: float) -> float:
    """Return the Bernoulli log likelihood of `hits` of n, nats."""
    return float(xlogy(hits, chance) + xlogy(n - hits, 1.0 - chance))


def _likelihood_ratio(ratio: float) -> Significance:
    """Return the ratio and its χ² tail probability."""
    ratio = max(ratio, 0.0)  # rounding may leave less than zero of two equal likelihoods
    return Significance(ratio, float(chdtrc(1, ratio)))
