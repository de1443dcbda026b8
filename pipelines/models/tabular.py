"""A served model that maps one row of named columns to one calibrated probability: the validator."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.contracts import Arrays, Floats, JsonObject, Predictions
from pipelines.models.calibration_and_novelty import (
    BundleIdentity,
    Calibration,
    Novelty,
    admitted,
    calibration_from_json,
    check_shape,
    read_novelty,
)
from pipelines.models.scorers import Scorer, open_scorer


@dataclass(frozen=True, slots=True)
class TabularModel:
    """Implement contracts.Model for one row of named columns and one calibrated probability."""

    family: str
    version: str
    digest: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    scorer: Scorer
    calibration: Calibration
    novelty: Novelty
    golden: Arrays
    schema: JsonObject
    steps: int = 1

    def raw(self, rows: Floats) -> Floats:
        """Return (n,) probabilities of class 1 by the exported model, before calibration."""
        return self.scorer.probabilities(rows)[:, -1]

    def predict(self, rows: Floats) -> Predictions:
        """Return predictions of rows (n, k); NaN = missing, which abstains. Raises BadShape."""
        check_shape(self.family, rows, self.steps, self.columns)
        status, reason, distance, accepted, every = admitted(rows, self.columns, self.novelty)
        if every and len(rows):  # the usual case of one live row: no masks, no copies
            return Predictions(*self.calibration.calibrate(self.raw(rows)), status, reason, distance, self.digest)
        p, low = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
        if accepted.any():
            p[accepted], low[accepted] = self.calibration.calibrate(self.raw(rows[accepted]))
        return Predictions(p, low, status, reason, distance, self.digest)


def load(path: Path, identity: BundleIdentity, schema: JsonObject, golden: Arrays) -> TabularModel:
    """Return the model of a verified bundle of kind "tabular"; up to 0.13.0 its schema named no model file."""
    return TabularModel(
        **identity,
        columns=tuple(schema["columns"]),
        classes=tuple(schema["classes"]),
        scorer=open_scorer(path, schema.get("model", {"file": "model.onnx"}), len(schema["columns"])),
        calibration=calibration_from_json(json.loads((path / "calibration.json").read_text())),
        novelty=read_novelty(path / "novelty.npz"),
        golden=golden,
        schema=schema,
    )
