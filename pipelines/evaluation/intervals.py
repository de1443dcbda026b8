"""Intervals of figures of dependent rows (law L9): a t interval whose error is measured by long averages.

Neighbouring rows share bars, so n rows hold less than n independent values. The error of a mean is measured by its
contrasts: weighted averages with weights that sum to zero, the first q cosines over the rows. They vary as slowly as
the means of q long blocks do, and share no seams, so a dependence over fewer than n / q rows is in them. Their mean
square is the squared error, with q degrees of freedom. Every other figure is the mean of its rows' influences: how much
the figure moves, times n, as one row gains weight. Nothing is resampled.

Rows are in time order. Those of several markets at one moment are one unit, as markets move together: their influences
are added up before anything else, so that dependence across markets is inside a unit and dependence over time between
units (decision 0074). NaN is refused: abstentions are counted before and never scored.

Sources: Lazarus, Lewis, Stock & Watson 2018, J. Business & Economic Statistics 36(4), sec. 2 (equal-weighted cosines);
Ibragimov & Müller 2010, same journal 28(4) (few long blocks); Politis & White 2004, Econometric Reviews 23(1), with the
correction of Patton, Politis & White 2009 (how long a block must be); Hampel 1974, J. Am. Stat. Assoc. 69 (influence).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import fdtrc, stdtr, stdtrit

from pipelines.contracts import Estimate, Floats, Ints
from pipelines.errors import BadValues

LEAST_CONTRASTS, MOST_CONTRASTS = 15, 30
ROWS_A_CONTRAST = 100  # from which on there are more than the least: fewer degrees of freedom, but longer blocks first
LEAST_ROWS = 60  # four a contrast: with fewer, no dependence between rows could be seen
POWER = 0.95  # of what `detectable` returns


@dataclass(frozen=True, slots=True)
class Measurement:
    """Hold a figure, its standard error with `contrasts` degrees of freedom, and the rows it rests on.

    error   NaN where there are too few rows to know it; `why` says so
    """

    value: float
    error: float
    contrasts: int
    n: int
    why: str = ""

    def estimate(self, cost_bps: float | None = None) -> Estimate:
        """Return the figure with its 95 % t interval; NaN bounds where the error is not known."""
        half = float(stdtrit(self.contrasts, 0.975)) * self.error
        return Estimate(self.value, self.value - half, self.value + half, self.n, cost_bps)

    @property
    def detectable(self) -> float:
        """Return the smallest true value that is found above zero, by its whole interval, in POWER of all cases."""
        return self.margin(0.975, POWER)

    def margin(self, confidence: float, power: float) -> float:
        """Return how far above a bound the true value must be to be found above it, so sure, with this power."""
        return float((stdtrit(self.contrasts, confidence) + stdtrit(self.contrasts, power)) * self.error)

    def chance_of_less(self, than: float = 0.0) -> float:
        """Return p of "the true value is `than` or less": how often it would show a value as high; NaN if unknown."""
        return 1.0 - self.chance_of_more(than)

    def chance_of_more(self, than: float = 0.0) -> float:
        """Return p of "the true value is `than` or more": how often it would show a value as low; NaN if unknown."""
        if self.error == 0.0:
            return float(self.value >= than)
        return float(stdtr(self.contrasts, (self.value - than) / self.error))


def moments(known: Floats) -> Ints:
    """Return the first row of every moment, of rows known at ascending times (n,)."""
    return (
        np.flatnonzero(np.concatenate([[True], np.diff(known) != 0.0])) if len(known) else np.zeros(0, dtype=np.int64)
    )


def by_moment(influence: Floats, known: Floats | None) -> Floats:
    """Return (m, …) the influence of each moment on a figure, from those of its rows (n, …); the mean stays.

    known  (n,) ascending times; None = every row is a moment of its own
    """
    if known is None or len(first := moments(known)) == len(influence):
        return influence
    return np.asarray(np.add.reduceat(influence, first, axis=0) * (len(first) / len(influence)))


def measure(value: float, influence: Floats, rows: int | None = None, known: Floats | None = None) -> Measurement:
    """Return a figure with its standard error, from the influence (n,) of each row on it.

    influence  n times the change of the figure as a row's weight grows; its mean is zero, or it is made so
    rows       on which the figure rests, if fewer than n: rows of weight zero are no evidence
    known      (n,) when each row was known, ascending, where several may share a moment
    Raises     BadValues for an influence that is not finite, naming its row
    """
    n = len(influence)
    counted = n if rows is None else rows
    if counted < LEAST_ROWS:
        return Measurement(value, float("nan"), LEAST_CONTRASTS, counted, f"{counted} rows, needs {LEAST_ROWS}")
    if not np.isfinite(influence).all():
        row = int(np.flatnonzero(~np.isfinite(influence))[0])
        raise BadValues(f"row {row} of {n} is {influence[row]}; leave out rows without a value before a figure of them")
    influence = by_moment(influence, known)
    units = len(influence)
    if units < LEAST_ROWS:
        why = f"{n} rows at {units} moments, needs {LEAST_ROWS} moments"
        return Measurement(value, float("nan"), LEAST_CONTRASTS, counted, why)
    longest, needed = units // LEAST_CONTRASTS, block_length(influence)
    if needed > longest:
        what = "rows" if units == n else "moments"
        why = f"{what} depend on {needed} neighbours, so {units} {what} hold under {LEAST_CONTRASTS} independent blocks"
        return Measurement(value, float("nan"), LEAST_CONTRASTS, counted, why)
    found = contrasts(influence[:, np.newaxis], needed)[:, 0]
    return Measurement(value, float(np.sqrt((found**2).mean())), len(found), counted)


def contrasts(influence: Floats, block: int = 1) -> Floats:
    """Return (q, k) contrasts of influences (n, k), each with the variance of the k figures' errors.

    q is LEAST_CONTRASTS to MOST_CONTRASTS, with ROWS_A_CONTRAST rows and two blocks of `block` rows to one where n
    allows.
    """
    n = len(influence)
    q = int(np.clip(n // max(ROWS_A_CONTRAST, 2 * block), LEAST_CONTRASTS, MOST_CONTRASTS))
    return np.asarray(_cosines(n, q) @ influence / n)


@lru_cache(maxsize=64)
def _cosines(n: int, q: int) -> Floats:
    """Return (q, n) cosines over the rows, of squared length n, orthogonal to a constant and to each other."""
    at = np.pi * (np.arange(n) + 0.5) / n
    return np.asarray(np.sqrt(2.0) * np.cos(np.outer(np.arange(1, q + 1), at)))


def block_length(values: Floats) -> int:
    """Return the rows of a block that a bootstrap of their mean needs (Politis & White 2004); 1 without dependence.

    The autocovariances up to twice the last correlation beyond chance, tapered by a flat top, give both the long-run
    variance and how fast the dependence ends.
    """
    n = len(values)
    centred = values - values.mean()

    def covariance(lag: int) -> float:
        """Return the autocovariance at a lag."""
        return float(centred[: n - lag] @ centred[lag:]) / n

    whole = covariance(0)
    if n < 9 or whole <= 1e-300:
        return 1
    quiet = max(5, int(np.ceil(np.sqrt(np.log10(n)))))  # so many small correlations in a row end the dependence
    most = min(int(np.ceil(np.sqrt(n))) + quiet, n // 3)
    chance, found, calm = 2.0 * np.sqrt(np.log10(n) / n) * whole, [whole], 0
    while calm < quiet and len(found) <= most:
        found.append(covariance(len(found)))
        calm = calm + 1 if abs(found[-1]) < chance else 0
    last = len(found) - 1 - calm if calm == quiet else most
    reach = min(2 * max(last, 1), most)
    found += [covariance(lag) for lag in range(len(found), reach + 1)]
    lags = np.arange(1, reach + 1)
    tapered = np.clip(2.0 * (1.0 - lags / reach), 0.0, 1.0) * np.array(found[1 : reach + 1])
    variance, slope = whole + 2.0 * tapered.sum(), 2.0 * (lags * tapered).sum()
    if variance <= 0.0:  # rows that undo each other: no block is too short
        return 1
    return max(1, round(float((1.5 * (slope / variance) ** 2 * n) ** (1 / 3))))


def mean_of(values: Floats, known: Floats | None = None) -> Measurement:
    """Return the mean of (n,) values; NaN without values. known as of `measure`."""
    if not len(values):
        return Measurement(float("nan"), float("nan"), LEAST_CONTRASTS, 0, "no rows")
    mean = float(values.mean())
    return measure(mean, values - mean, known=known)


def ratio_of(above: Floats, below: Floats, rows: int | None = None, known: Floats | None = None) -> Measurement:
    """Return Σ above / Σ below of (n,) values; NaN where Σ below is zero. rows, known as of `measure`."""
    total = float(below.sum())
    if not len(below) or total == 0.0:
        return Measurement(float("nan"), float("nan"), LEAST_CONTRASTS, rows or 0, "nothing to divide by")
    value = float(above.sum()) / total
    return measure(value, len(below) * (above - value * below) / total, rows, known)


def chance_of_zero(influence: Floats, value: Floats, known: Floats | None = None) -> float:
    """Return p of "all k figures are zero": how often figures as far from it would show (Hotelling's T²).

    influence  (n, k) influence of each row on each of the k figures (value, (k,)); known as of `measure`
    NaN where any of their errors is not known; a figure that does not vary is left out
    """
    varies = influence.std(axis=0) > 1e-12
    if not varies.any():
        return float("nan")
    influence, value = by_moment(influence[:, varies], known), value[varies]
    alone = [measure(float(v), each) for v, each in zip(value, influence.T, strict=True)]
    if not np.isfinite([each.error for each in alone]).all():
        return float("nan")
    found = contrasts(influence, max(block_length(each) for each in influence.T))
    q, k = found.shape
    squared = float(value @ np.linalg.solve(found.T @ found / q, value))
    return float(fdtrc(k, q - k + 1, squared * (q - k + 1) / (q * k)))


def holm(chances: Floats) -> Floats:
    """Return (m,) p values corrected so that one under 0.05 is false in 5 % of all sets (Holm 1979); NaN stays NaN."""
    corrected = np.full(len(chances), np.nan)
    known = np.flatnonzero(np.isfinite(chances))
    order = known[np.argsort(chances[known], kind="stable")]
    steps = (len(order) - np.arange(len(order))) * chances[order]
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return corrected
