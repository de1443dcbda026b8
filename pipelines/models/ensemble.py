"""A model made of voters: each an ONNX file that reads the newest bar or the whole window, each calibrated by class.

The pattern recogniser votes with three over nine classes; the market predictor speaks with its LSTM and carries the
other members of the directional ensemble (M5) beside it.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from pipelines.contracts import Floats, Ints, Predictions
from pipelines.models.calibration_and_novelty import (
    Novelty,
    abstentions,
    calibrate_all,
    calibration_from_json,
    check_shape,
    open_session,
    read_novelty,
    stacked,
)
from pipelines.models.directional_ensemble import average


@dataclass(frozen=True, slots=True)
class Voter:
    """One member.

    reads        "newest": rows (n, k) of the bar decided on; "window": (n, steps, k)
    places       (k,) positions of its columns among the model's
    weight       in the vote; 0 = heard, but not counted
    calibration  (classes, 5) of `parts.stacked`: one line a class
    session      ONNX with an output "probabilities": (n, classes), or (n, 2) of a single class
    """

    name: str
    reads: Literal["newest", "window"]
    places: Ints
    weight: float
    calibration: Floats
    session: onnxruntime.InferenceSession

    def answer(self, rows: Floats) -> tuple[Floats, Floats]:
        """(p, p_low), (n, classes) each, of rows (n, steps, columns of the model); NaN where a value it reads is
        missing."""
        block = rows[:, :, self.places] if self.reads == "window" else rows[:, -1][:, self.places]
        whole = np.isfinite(block).all(axis=tuple(range(1, block.ndim)))
        p = np.full((len(rows), len(self.calibration)), np.nan)
        low = p.copy()
        if whole.any():
            name = self.session.get_inputs()[0].name
            raw = self.session.run(["probabilities"], {name: block[whole].astype(np.float32)})[0].astype(np.float64)
            p[whole], low[whole] = calibrate_all(self.calibration, raw[:, -len(self.calibration) :])
        return p, low


@dataclass(frozen=True, slots=True)
class Committee:
    """contracts.Model. With one class p is (n,), with several (n, classes).

    gates  (classes,) positions of columns: where such a column of the newest bar is 0, its class is not there, and p
           and p_low are 0 whatever the voters say; empty = every class is always asked for
    """

    family: str
    version: str
    digest: str
    columns: tuple[str, ...]
    steps: int
    classes: tuple[str, ...]
    voters: tuple[Voter, ...]
    sure_from: float | None  # a class is named in `label` from this probability on; None = no labels
    novelty: Novelty  # of the newest bar
    golden: dict[str, Any]
    schema: dict[str, Any]
    gates: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    def predict(self, rows: Floats) -> Predictions:
        check_shape(self.family, rows, self.steps, self.columns)
        if self.steps == 1:
            rows = rows[:, np.newaxis]
        status, reason, distance = abstentions(rows[:, -1], self.columns, self.novelty)
        sure = np.array([word == "OK" for word in status], dtype=bool)
        p = np.full((len(self.voters), len(rows), len(self.classes)), np.nan)
        low = p.copy()
        asked = sure
        if len(self.gates):
            shut = rows[:, -1][:, self.gates] == 0.0
            asked = sure & ~shut.all(axis=1)  # nobody is asked about a bar without any class
            p[:, sure & ~asked] = low[:, sure & ~asked] = 0.0
        if asked.any():
            for i, voter in enumerate(self.voters):
                p[i, asked], low[i, asked] = voter.answer(rows[asked])
            if len(self.gates):
                nought = np.isfinite(p) & shut
                p[nought] = low[nought] = 0.0
        weights = np.array([voter.weight for voter in self.voters])
        said, least = average(p, weights), average(low, weights)
        for row in np.flatnonzero(sure & ~np.isfinite(said).all(axis=1)):
            status[row], reason[row] = "ABSTAIN", f"WARMING_UP: needs {self.steps} whole bars"
            said[row] = least[row] = np.nan
        members = {voter.name: self._shaped(p[i]) for i, voter in enumerate(self.voters)}
        return Predictions(
            self._shaped(said), self._shaped(least), status, reason, distance, self.digest, self._labels(said), members
        )

    def _shaped(self, p: Floats) -> Floats:
        return p[:, 0] if len(self.classes) == 1 else p

    def _labels(self, p: Floats) -> list[str | None] | None:
        if self.sure_from is None:
            return None
        return ["+".join(np.array(self.classes)[row >= self.sure_from].tolist()) or None for row in p]


def load(path: Path, identity: dict[str, Any], schema: dict[str, Any], golden: dict[str, Any]) -> Committee:
    columns = tuple(schema["columns"])
    at = {name: i for i, name in enumerate(columns)}
    calibrations = json.loads((path / "calibration.json").read_text())
    return Committee(
        **identity,
        columns=columns,
        steps=schema["steps"],
        classes=tuple(schema["classes"]),
        voters=tuple(
            Voter(
                name=told["name"],
                reads=told["reads"],
                places=np.array([at[name] for name in told["columns"]]),
                weight=told["weight"],
                calibration=stacked([calibration_from_json(one) for one in calibrations[told["name"]]]),
                session=open_session(path / told["file"]),
            )
            for told in schema["members"]
        ),
        sure_from=schema.get("sure_from"),
        novelty=read_novelty(path / "novelty.npz"),
        golden=golden,
        schema=schema,
        gates=np.array([at[name] for name in schema.get("gates", ())], dtype=np.int64),
    )
