"""Fit what `parts.Novelty` measures: how far a row lies from everything the model was trained on (M6)."""

import numpy as np

from pipelines.contracts import Floats
from pipelines.models.calibration_and_novelty import Novelty


def fit_novelty(rows: Floats, quantile: float) -> Novelty:
    """Mahalanobis distance with a small ridge, since session flags are nearly collinear with the clock.

    rows      (n, k) finite training rows
    quantile  share of the training rows that must count as familiar
    """
    mean = rows.mean(axis=0)
    covariance = np.atleast_2d(np.cov(rows, rowvar=False))
    ridge = 1e-3 * np.diag(np.maximum(np.diag(covariance), 1e-12))
    measure = Novelty(mean, np.asarray(np.linalg.inv(covariance + ridge), np.float64), float("inf"))
    return Novelty(measure.mean, measure.precision, float(np.quantile(measure.distance(rows), quantile)))
