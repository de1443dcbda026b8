"""A served model that maps one row of named columns to one calibrated probability: the validator."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from pipelines.contracts import Arrays, Floats, JsonObject, Predictions
from pipelines.models.calibration_and_novelty import (
    BundleIdentity,
    Calibration,
    Novelty,
    abstentions,
    calibration_from_json,
    check_shape,
    open_session,
    probabilities_of,
    read_novelty,
)


@dataclass(frozen=True, slots=True)
class TabularModel:
    """Implement contracts.Model for one row of named columns and one calibrated probability."""

    family: str
    version: str
    digest: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    session: onnxruntime.InferenceSession
    calibration: Calibration
    novelty: Novelty
    golden: Arrays
    schema: JsonObject
    steps: int = 1

    def raw(self, rows: Floats) -> Floats:
        """Return (n,) probabilities of class 1 by the exported model, before calibration."""
        return np.asarray(probabilities_of(self.session, rows)[:, 1], dtype=np.float64)

    def predict(self, rows: Floats) -> Predictions:
        """Return predictions of rows (n, k); NaN = missing, which abstains. Raises BadShape."""
        check_shape(self.family, rows, self.steps, self.columns)
        status, reason, distance = abstentions(rows, self.columns, self.novelty)
        n = len(rows)
        familiar = distance <= self.novelty.limit
        if n and familiar.all():  # the usual case of one live row: no masks, no copies
            return Predictions(*self.calibration.calibrate(self.raw(rows)), status, reason, distance, self.digest)
        p, low = np.full(n, np.nan), np.full(n, np.nan)
        if familiar.any():
            p[familiar], low[familiar] = self.calibration.calibrate(self.raw(rows[familiar]))
        return Predictions(p, low, status, reason, distance, self.digest)


def load(path: Path, identity: BundleIdentity, schema: JsonObject, golden: Arrays) -> TabularModel:
    """Return the model of a verified bundle of kind "tabular"."""
    return TabularModel(
        **identity,
        columns=tuple(schema["columns"]),
        classes=tuple(schema["classes"]),
        session=open_session(path / "model.onnx"),
        calibration=calibration_from_json(json.loads((path / "calibration.json").read_text())),
        novelty=read_novelty(path / "novelty.npz"),
        golden=golden,
        schema=schema,
    )
