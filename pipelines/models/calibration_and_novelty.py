"""What served models are made of besides their weights: calibration, novelty, an ONNX session."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipelines.contracts import Floats
from pipelines.errors import BadShape

_EPS = 1e-7


def logit(p: Floats) -> Floats:
    q = np.minimum(np.maximum(p, _EPS), 1 - _EPS)  # np.clip costs more than all the rest on one row
    return np.asarray(np.log(q / (1 - q)))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt scaling of the model's own probability, and the lower bound that sizing may rely on.

    p      = sigmoid(slope · logit(raw) + shift)
    p_low  = sigmoid of the lower 95 % bound of that line, from the covariance of (slope, shift)
    """

    slope: float
    shift: float
    covariance: Floats  # (2, 2)

    def calibrate(self, raw: Floats) -> tuple[Floats, Floats]:
        """(p, p_low), (n,) each."""
        x = logit(raw)
        (slope, both), (_, shift) = self.covariance.tolist()
        line = self.slope * x + self.shift
        error = np.sqrt(np.maximum(slope * x * x + 2.0 * both * x + shift, 0.0))
        return 1.0 / (1.0 + np.exp(-line)), 1.0 / (1.0 + np.exp(-(line - 1.96 * error)))

    def apply(self, raw: Floats) -> Floats:
        return self.calibrate(raw)[0]

    def lower(self, raw: Floats) -> Floats:
        return self.calibrate(raw)[1]


def stacked(lines: Sequence[Calibration]) -> Floats:
    """(classes, 5): slope, shift and the covariance of each class's line, for `calibrate_all`."""
    return np.array([[c.slope, c.shift, c.covariance[0, 0], c.covariance[0, 1], c.covariance[1, 1]] for c in lines])


def calibrate_all(lines: Floats, raw: Floats) -> tuple[Floats, Floats]:
    """(p, p_low) of raw (n, classes): what `Calibration.calibrate` says class by class, at the price of one."""
    slope, shift, both_slopes, mixed, both_shifts = lines.T
    x = logit(raw)
    line = slope * x + shift
    error = np.sqrt(np.maximum(both_slopes * x * x + 2.0 * mixed * x + both_shifts, 0.0))
    return 1.0 / (1.0 + np.exp(-line)), 1.0 / (1.0 + np.exp(-(line - 1.96 * error)))


@dataclass(frozen=True, slots=True)
class Novelty:
    """Mahalanobis distance from the training rows; beyond `limit` the model abstains (M6)."""

    mean: Floats  # (k,)
    precision: Floats  # (k, k)
    limit: float

    def distance(self, rows: Floats) -> Floats:
        """(n,) distances; NaN where a column is missing."""
        away = rows - self.mean
        return np.asarray(np.sqrt(np.maximum(np.einsum("ij,jk,ik->i", away, self.precision, away), 0.0)))


def open_session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # single rows: threads cost more than they give
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def read_novelty(path: Path) -> Novelty:
    with np.load(path, allow_pickle=False) as f:
        return Novelty(f["mean"], f["precision"], float(f["limit"]))


def calibration_from_json(told: dict[str, Any]) -> Calibration:
    """What `as_json` wrote."""
    return Calibration(told["slope"], told["shift"], np.array(told["covariance"]))


def as_json(calibration: Calibration) -> dict[str, Any]:
    return {"slope": calibration.slope, "shift": calibration.shift, "covariance": calibration.covariance.tolist()}


def abstentions(
    newest: Floats, columns: tuple[str, ...], novelty: Novelty
) -> tuple[list[str], list[str | None], Floats]:
    """(status, reason, distance) of n rows by their newest bar (n, k): missing or too novel abstains (M6)."""
    n = len(newest)
    status, reason = ["OK"] * n, [None] * n  # type: list[str], list[str | None]
    distance = novelty.distance(newest)
    for i in np.flatnonzero(~(distance <= novelty.limit)):  # also NaN: a value is missing or infinite
        missing = ~np.isfinite(newest[i])
        status[i] = "ABSTAIN"
        reason[i] = (
            f"MISSING_FEATURE:{columns[int(missing.argmax())]}"
            if missing.any()
            else f"NOVEL:{distance[i]:.2f}>{novelty.limit:.2f}"
        )
    return status, reason, distance


def check_shape(family: str, rows: Floats, steps: int, columns: tuple[str, ...]) -> None:
    want = (len(columns),) if steps == 1 else (steps, len(columns))
    if rows.shape[1:] != want:
        raise BadShape(f"{family}: rows {rows.shape}, expected (n, {', '.join(map(str, want))}): {', '.join(columns)}")
