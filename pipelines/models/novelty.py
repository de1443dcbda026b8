"""Fit `calibration_and_novelty.Novelty`: how far a row lies from the training rows (M6)."""

import numpy as np

from pipelines.contracts import Floats
from pipelines.models.calibration_and_novelty import Novelty


def fit_novelty(rows: Floats, quantile: float) -> Novelty:
    """Return the Mahalanobis novelty measure of training rows, with a small ridge on the covariance.

    The ridge is needed because session flags are nearly collinear with the time of day.

    rows      (n, k) finite training rows
    quantile  share of the training rows that lie within the limit
    """
    mean = rows.mean(axis=0)
    covariance = np.atleast_2d(np.cov(rows, rowvar=False))
    ridge = 1e-3 * np.diag(np.maximum(np.diag(covariance), 1e-12))
    measure = Novelty(mean, np.asarray(np.linalg.inv(covariance + ridge), np.float64), float("inf"))
    return Novelty(measure.mean, measure.precision, float(np.quantile(measure.distance(rows), quantile)))
