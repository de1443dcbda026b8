"""Fit what `parts.Calibration` applies: Platt scaling on rows the model did not see, with its uncertainty."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.errors import NotEnoughData
from pipelines.labels.splits import combinatorial
from pipelines.models.base import Dataset, Export, NativePredictions
from pipelines.models.calibration_and_novelty import Calibration, as_json, logit
from pipelines.models.export import json_bytes

STRETCHES = 4  # purged stretches of a training window, each scored by a fit on the others


def fit_calibration(raw: Floats, y: Floats, weight: Floats, around: Floats | float = 0.0) -> Calibration:
    """Platt scaling by maximum likelihood (Newton), with the covariance of slope and shift.

    raw, y   (n,) the model's own probability and the outcome, on rows outside its training
    weight   (n,) average uniqueness of each label: overlapping labels share their information, so their sum is the
             effective number of rows and the lower bound stays honest
    around   (n,) log-odds round which the line turns: logit(p) - around = slope · (logit(raw) - around) + shift. With
             the base rate of each row's class, rows of several classes share one line
    A slope below 0 (the model ranks the wrong way round) is kept: the gate sees it. Source: Platt 1999.
    Raises NotEnoughData if only one outcome is there.
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
    return Calibration(float(beta[0]), float(beta[1]), np.asarray(np.linalg.inv(information), np.float64))


def held_out(data: Dataset, embargo_s: float, least: int, score: Callable[[Ints, Ints], Floats]) -> Floats:
    """(m,) raw probabilities of rows by fits that had not seen them: purged stretches of one training window.

    score  (rows to learn from, rows to score) → (n,) raw probabilities
    least  stretches whose rest is smaller than this stay NaN
    """
    told = np.full(len(data), np.nan)
    for split in combinatorial(data.known, data.ended, STRETCHES, 1, embargo_s):
        if len(split.train) >= least:
            told[split.test] = score(split.train, split.test)
    return told


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A native classifier with `predict_proba`, and the calibration of its class 1: what `tabular` serves."""

    model: Any
    calibration: Calibration
    loss_params: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, inputs: Floats) -> NativePredictions:
        return NativePredictions(*self.calibration.calibrate(raw(self.model, inputs)))


def raw(model: Any, rows: Floats) -> Floats:
    """(n,) a classifier's own probability of class 1."""
    return np.asarray(model.predict_proba(rows)[:, 1], dtype=np.float64)


def fit_calibrated(data: Dataset, embargo_s: float, least: int, fit: Callable[[Dataset], Any]) -> Calibrated:
    """The native model on all rows, and its calibration from purged inner folds of the same window.

    fit    rows to learn from → a classifier with `predict_proba`
    least  as of `held_out`
    """

    def score(train: Ints, test: Ints) -> Floats:
        return raw(fit(data.select_rows(train)), data.inputs(test))

    told = held_out(data, embargo_s, least, score)
    seen = np.isfinite(told)
    return Calibrated(fit(data), fit_calibration(told[seen], data.y[seen], data.uniqueness[seen]))


def export_calibrated(model_onnx: bytes, calibration: Calibration, classes: tuple[str, ...]) -> Export:
    """What `tabular` loads: the model as ONNX, rows (n, k) in, "probabilities" (n, 2) out, and the calibration."""
    files = {"model.onnx": model_onnx, "calibration.json": json_bytes(as_json(calibration))}
    return Export("tabular", files, {"classes": list(classes), "steps": 1})
