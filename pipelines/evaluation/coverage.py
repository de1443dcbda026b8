"""Tests of value at risk and expected shortfall: is what was forecast what came?

A violation is a loss above the VaR that was forecast for it. Of n forecasts at a level of .99 one in a hundred should
be one (Kupiec), whether or not the one before was (Christoffersen), and together they should lose what the ES said
(Acerbi and Székely). The first two refuse too much caution as well as too little; the last one too little only.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import chdtrc, xlogy

from pipelines.contracts import Bools, Floats
from pipelines.errors import BadShape
from pipelines.tails import refuse_missing, tail_probability

SIZE = 0.05  # of a test: how often it may refuse what is right
DRAWS = 1000  # of the bootstrap that Acerbi and Székely's p comes from


class Significance(NamedTuple):
    """A test's statistic, and how often right forecasts would show one at least as far off. NaN: it cannot be said."""

    statistic: float
    p: float


UNTOLD = Significance(float("nan"), float("nan"))


@dataclass(frozen=True, slots=True)
class Coverage:
    """What became of n forecasts.

    abstained       rows without a forecast (NaN), which nothing here counts
    expected        n (1 - level), of violations
    kupiec          unconditional coverage, two-sided
    independence    Christoffersen: is a violation likelier, or less likely, right after another
    conditional     both at once
    acerbi_szekely  Z2: nought in the mean if VaR and ES are right, -1 where tail losses are double; one-sided
    es_over_var     mean of ES / VaR: how much worse than the VaR the method takes the tail to be
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
        """Names of the tests whose p is under `size`. One that cannot say anything refuses nothing."""
        names = ("kupiec", "independence", "conditional", "acerbi_szekely")
        return tuple(name for name in names if getattr(self, name).p < size)


def coverage(returns: Floats, var: Floats, es: Floats, level: float, seed: int = 0) -> Coverage:
    """Judge forecasts of the returns of the same rows.

    returns  (n,) fractions of value, in time order, finite
    var, es  (n,) the loss of that row that was forecast to be exceeded with chance 1 - level, and the mean of losses
             beyond it; positive fractions of value, made before the row. NaN in either: no forecast
    seed     of Acerbi and Székely's bootstrap
    Raises   BadShape if lengths differ; BadValues for a return that is not finite, naming its row, or for a level that
             is no tail
    """
    tail = tail_probability(level)
    if not len(returns) == len(var) == len(es):
        raise BadShape(f"{len(returns)} returns, {len(var)} VaR and {len(es)} ES: forecast each row once.")
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
    """Likelihood ratio of the share of violations against `tail`; χ² with one degree of freedom.

    Source: Kupiec 1995, J. Derivatives 3(2), the test of the proportion of failures. NaN without a forecast.
    """
    if n == 0:
        return UNTOLD
    ratio = 2.0 * (_log_likelihood(violations, n, violations / n) - _log_likelihood(violations, n, tail))
    return _likelihood_ratio(ratio)


def independence(before: Bools, after: Bools) -> Significance:
    """Likelihood ratio of a first-order Markov chain of violations against independent ones; χ², one degree of freedom.

    before, after  (m,) violations of neighbouring rows
    Source: Christoffersen 1998, Int. Economic Review 39(4), sec. 3.2. NaN without any violation: nothing can cluster.
    """
    m, hits = len(after), int(after.sum())
    if not before.any() and hits == 0:
        return UNTOLD
    chain = 0.0
    for said in (before, ~before):
        times, again = int(said.sum()), int((said & after).sum())
        chain += _log_likelihood(again, times, again / times if times else 0.0)
    return _likelihood_ratio(2.0 * (chain - _log_likelihood(hits, m, hits / m)))


def acerbi_szekely(severity: Floats, n: int, tail: float, seed: int = 0) -> Significance:
    """Z2 = 1 - Σ loss / ES over violations / (n tail), and its p by a bootstrap under the null.

    severity  (violations,) loss / ES of each violation; n forecasts
    p         under the null violations come independently with chance `tail`, and lose the ES in the mean. So numbers
              are drawn from the binomial, and as many severities from those seen, divided by their mean: the tail's
              shape is the data's own. One-sided: the share of draws with a Z2 as low. 1 without a violation.
    Source    Acerbi & Székely 2014, Risk, "Back-testing expected shortfall", the second test; their p comes from the
              model's own distribution, ours needs none. NaN without a forecast.
    """
    if n == 0:
        return UNTOLD
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
    return float(xlogy(hits, chance) + xlogy(n - hits, 1.0 - chance))


def _likelihood_ratio(ratio: float) -> Significance:
    ratio = max(ratio, 0.0)  # of two equal likelihoods rounding may leave less than nought
    return Significance(ratio, float(chdtrc(1, ratio)))
