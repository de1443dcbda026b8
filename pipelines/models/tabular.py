"""One row of named columns in, one calibrated probability out: how the validator is served."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from pipelines.contracts import Floats, Predictions
from pipelines.models.calibration_and_novelty import (
    Calibration,
    Novelty,
    abstentions,
    calibration_from_json,
    check_shape,
    open_session,
    read_novelty,
)


@dataclass(frozen=True, slots=True)
class TabularModel:
    """One row of named columns in, one calibrated probability out (contracts.Model)."""

    family: str
    version: str
    digest: str
    columns: tuple[str, ...]
    classes: tuple[str, ...]
    session: onnxruntime.InferenceSession
    calibration: Calibration
    novelty: Novelty
    golden: dict[str, Any]
    schema: dict[str, Any]
    steps: int = 1

    def raw(self, rows: Floats) -> Floats:
        """(n,) probability of class 1 as the exported model says it, before calibration."""
        name = self.session.get_inputs()[0].name
        answer = self.session.run(["probabilities"], {name: rows.astype(np.float32)})[0]
        return np.asarray(answer[:, 1], dtype=np.float64)

    def predict(self, rows: Floats) -> Predictions:
        check_shape(self.family, rows, self.steps, self.columns)
        status, reason, distance = abstentions(rows, self.columns, self.novelty)
        n = len(rows)
        sure = distance <= self.novelty.limit
        if n and sure.all():  # the everyday case of one live row: no masks, no copies
            return Predictions(*self.calibration.calibrate(self.raw(rows)), status, reason, distance, self.digest)
        p, low = np.full(n, np.nan), np.full(n, np.nan)
        if sure.any():
            p[sure], low[sure] = self.calibration.calibrate(self.raw(rows[sure]))
        return Predictions(p, low, status, reason, distance, self.digest)


def load(path: Path, identity: dict[str, Any], schema: dict[str, Any], golden: dict[str, Any]) -> TabularModel:
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
