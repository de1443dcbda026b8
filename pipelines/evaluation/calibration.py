"""Do events of probability p happen p of the time? How far off, and whether that is more than chance."""

from dataclasses import dataclass

import numpy as np

from pipelines.contracts import Estimate, Floats
from pipelines.evaluation.intervals import LEAST_ROWS, by_moment, chance_of_zero, contrasts, measure
from pipelines.models.losses import checked

ROWS_A_BIN = 50
MOST_BINS = 10


@dataclass(frozen=True, slots=True)
class CalibrationError:
    """Hold how far hit rates are from probabilities, and how often a calibrated model would show as much.

    error   root mean square of hit rate − p over bins of p, less what chance alone adds; 95 % interval. 0 where chance
            explains it all
    chance  p of "hit rates are p, both in the mean and along p" (intercept and slope); NaN with too few rows
    shift   mean of y − p
    """

    error: Estimate
    chance: float
    shift: float


def calibration_error(p: Floats, y: Floats, known: Floats | None = None) -> CalibrationError:
    """Measure the calibration of probabilities (n,) of outcomes (n,) in {0, 1}, rows in time order; NaN refused.

    known  (n,) when each row was known, where rows of several markets share a moment

    The error is over up to 10 bins of equal count, each bin's square less its squared standard error, which is measured
    on dependent rows: the mean of |hit rate − p| over bins grows with their noise, and refused perfect models.
    """
    checked(p, y)
    n = len(y)
    if n < LEAST_ROWS:
        return CalibrationError(Estimate(float("nan"), float("nan"), float("nan"), n), float("nan"), float("nan"))
    residual, place = y - p, np.log(np.clip(p, 1e-6, 1 - 1e-6) / np.clip(1 - p, 1e-6, 1 - 1e-6))
    place = (place - place.mean()) / max(float(place.std()), 1e-12)
    moments = np.column_stack([residual, residual * place])
    shift = moments.mean(axis=0)
    chance = chance_of_zero(moments - shift, shift, known)
    return CalibrationError(_error(p, residual, known), chance, float(shift[0]))


def _error(p: Floats, residual: Floats, known: Floats | None) -> Estimate:
    """Return the root mean square error over bins, with its interval."""
    n = len(p)
    bins = int(np.clip(n // ROWS_A_BIN, 1, MOST_BINS))
    member = np.zeros((n, bins))
    for k, rows in enumerate(np.array_split(np.argsort(p, kind="stable"), bins)):
        member[rows, k] = 1.0
    share = member.mean(axis=0)
    error = (member * residual[:, np.newaxis]).mean(axis=0) / share
    influence = member * (residual[:, np.newaxis] - error) / share
    noise = (contrasts(by_moment(influence, known)) ** 2).mean(axis=0)  # of each bin's error, squared
    square = float(share @ (error**2 - noise))
    along = measure(
        square, 2.0 * influence @ (share * error), known=known
    )  # how the square moves with the bins' errors
    # what is left of it where every error is zero: the noise of the squares themselves
    spread = float(np.sqrt(along.error**2 + 2.0 * (share**2 @ noise**2)))
    bounds = along.estimate()
    half = (bounds.high - bounds.low) / 2.0 / along.error * spread if along.error > 0.0 else 2.0 * spread
    low, value, high = (float(np.sqrt(max(x, 0.0))) if np.isfinite(x) else float("nan")
                        for x in (square - half, square, square + half))  # fmt: skip
    return Estimate(value, low, high, n)
