"""Fit `calibration_and_novelty.Calibration`: Platt scaling on rows outside the training, with its uncertainty."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.errors import NotEnoughData
from pipelines.labels.splits import combinatorial
from pipelines.models.base import Dataset, Export, NativePredictions
from pipelines.models.calibration_and_novelty import Calibration, as_json, logit
from pipelines.models.export import json_bytes
from pipelines.models.scorers import model_entry


class Classifier(Protocol):
    """Describe a fitted classifier as scikit-learn and XGBoost make them."""

    def predict_proba(self, rows: Any) -> Any:
        """Return (n, classes) probabilities of rows (n, k)."""
        ...


def fit_calibration(
    raw: Floats, y: Floats, weight: Floats, around: Floats | float = 0.0, known: Floats | None = None
) -> Calibration:
    """Return Platt scaling fitted by maximum likelihood (Newton), with the covariance of slope and shift.

    raw, y   (n,) the model's uncalibrated probability and the outcome in {0, 1}, on rows outside its training
    weight   (n,) average uniqueness of each label: overlapping labels share their information, so their sum is the
             effective number of rows, and the lower bound accounts for the overlap
    around   (n,) log-odds around which the line turns: logit(p) - around = slope · (logit(raw) - around) + shift. With
             the base rate of each row's class, rows of several classes share one line
    known    (n,) when each row was known: markets move together, so rows of one moment are not independent, and the
             lower bound accounts for that; None = every row is a moment of its own
    A slope below 0 (the model ranks in reverse) is returned as it is: the gate refuses such a model.
    Raises   NotEnoughData if all outcomes are equal
    Source   Platt 1999
    """
    if len(np.unique(y)) < 2:
        raise NotEnoughData(f"{len(y)} calibration rows of a single outcome; bring a longer history")
    design = np.column_stack([logit(raw) - around, np.ones(len(raw))])
    beta = np.zeros(2)
    for _ in range(50):
        p = 1.0 / (1.0 + np.exp(-(around + design @ beta)))
        information = (design * (weight * p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        move = np.linalg.solve(information, design.T @ (weight * (y - p)))
        beta += move
        if np.abs(move).max() < 1e-10:
            break
    covariance = np.asarray(np.linalg.inv(information), np.float64)
    if known is not None:
        covariance *= _widened(design * (weight * (y - p))[:, None], covariance, known)
    return Calibration(float(beta[0]), float(beta[1]), covariance)


def _widened(scores: Floats, covariance: Floats, known: Floats) -> float:
    """Return the factor, 1 or more, by which rows of one moment that move together widen a covariance (2, 2).

    scores  (n, 2) of the rows; summed by moment they have the variance of the estimate (Liang and Zeger 1986)
    """
    _, moment = np.unique(known, return_inverse=True)
    if not len(scores) or moment.max() + 1 == len(scores):
        return 1.0
    summed = np.column_stack([np.bincount(moment, weights=column) for column in scores.T])
    apart = float(np.trace(covariance @ scores.T @ scores))
    return max(1.0, float(np.trace(covariance @ summed.T @ summed)) / apart) if apart > 0.0 else 1.0


def held_out(
    data: Dataset, embargo_s: float, least: int, score: Callable[[Ints, Ints], Floats], stretches: int
) -> Floats:
    """Return (m,) raw probabilities of rows by fits on the other, purged stretches of one training window.

    score  (numbers of training rows, numbers of rows to score) → (n,) raw probabilities
    least  rows of a stretch with fewer training rows than this stay NaN
    stretches  into how many the window is cut
    """
    p = np.full(len(data), np.nan)
    for split in combinatorial(data.known, data.ended, stretches, 1, embargo_s):
        if len(split.train) >= least:
            p[split.test] = score(split.train, split.test)
    return p


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Hold a native classifier and the calibration of its class 1: what `tabular` serves.

    calibration_p  the sorted calibrated predictions of the rows it was calibrated on, by fits on other stretches
    """

    model: Classifier
    calibration: Calibration
    loss_params: Mapping[str, Any] = field(default_factory=dict)
    calibration_p: Sequence[Floats] = ()

    def predict(self, inputs: Floats) -> NativePredictions:
        """Return calibrated probabilities of class 1 for inputs (n, k)."""
        return NativePredictions(*self.calibration.calibrate(raw(self.model, inputs)))


def raw(model: Classifier, rows: Floats) -> Floats:
    """Return (n,) uncalibrated probabilities of class 1 for rows (n, k)."""
    return np.asarray(model.predict_proba(rows)[:, 1], dtype=np.float64)


def fit_calibrated(
    data: Dataset, embargo_s: float, least: int, fit: Callable[[Dataset], Classifier], stretches: int
) -> Calibrated:
    """Return the native model fitted on all rows, calibrated on purged inner folds of the same window.

    fit    training rows → a fitted classifier
    least, stretches  as for `held_out`
    """

    def score(train: Ints, test: Ints) -> Floats:
        """Return raw probabilities of the test rows by a fit on the training rows."""
        return raw(fit(data.select_rows(train)), data.inputs(test))

    p = held_out(data, embargo_s, least, score, stretches)
    scored = np.isfinite(p)
    line = fit_calibration(p[scored], data.y[scored], data.uniqueness[scored], known=data.known[scored])
    return Calibrated(fit(data), line, calibration_p=(np.sort(line.calibrate(p[scored])[0]),))


def export_calibrated(file: str, content: bytes, calibration: Calibration, classes: tuple[str, ...]) -> Export:
    """Return the export for `tabular`: a model file of rows (n, k), as `scorers.WRITTEN` has them, and calibration."""
    files = {file: content, "calibration.json": json_bytes(as_json(calibration))}
    return Export("tabular", files, {"classes": list(classes), "steps": 1, "model": model_entry(file)})
