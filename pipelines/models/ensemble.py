"""A served model made of members: model files that read the newest bar or the whole window, calibrated by class.

The pattern recogniser averages three members over nine classes. The market predictor answers with its LSTM; the other
members of the directional ensemble (M5) have weight 0 in its mean and are reported next to it.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.contracts import Arrays, Bools, Floats, Ints, JsonObject, Predictions
from pipelines.models.calibration_and_novelty import (
    BundleIdentity,
    Novelty,
    admitted,
    calibration_from_json,
    check_shape,
    combine,
    read_novelty,
    stacked,
)
from pipelines.models.scorers import Scorer, for_batches, open_scorer


@dataclass(frozen=True, slots=True)
class Member:
    """Hold one member of an ensemble.

    reads        "newest": rows (n, k) of the bar decided on; "window": (n, steps, k)
    places       (k,) positions of its columns among the model's
    weight       in the mean; 0 = reported, but not counted
    scorer       its model file: (n, classes), or (n, 2) of a single class; of a network on a card what takes its place
    """

    name: str
    reads: Literal["newest", "window"]
    places: Ints
    weight: float
    scorer: Scorer

    def block(self, rows: Floats) -> Floats:
        """Return what it reads of rows (n, steps, columns): (n, steps, k), or (n, k) of the newest bar."""
        return rows[:, :, self.places] if self.reads == "window" else rows[:, -1][:, self.places]

    def fill(self, rows: Floats, wanted: Bools, out: Floats) -> None:
        """Fill out (n, classes) with uncalibrated probabilities of rows (n, steps, columns).

        wanted  (n,) rows whose newest bar has every value
        Returns NaN of a row that is not wanted, and where a value of its window is missing.
        """
        block, classes = self.block(rows), out.shape[1]
        complete = wanted & np.isfinite(block).all(axis=(1, 2)) if self.reads == "window" else wanted
        if len(rows) and np.count_nonzero(complete) == len(rows):  # the usual case of one live row: no masks, no copies
            out[:] = self.scorer.probabilities(block)[:, -classes:]
            return
        out[:] = np.nan
        if complete.any():
            out[complete] = self.scorer.probabilities(block[complete])[:, -classes:]


@dataclass(frozen=True, slots=True)
class EnsembleModel:
    """Implement contracts.Model with several members. With one class p is (n,), with several (n, classes).

    calibration  (members, classes, 5) of `calibration_and_novelty.stacked`: one line a member and class
    label_from  a class is named in `label` from this probability on; None = no labels
    novelty     of the newest bar
    gates       (classes,) positions of columns: where such a column of the newest bar is 0, its class is absent and
                p and p_low are 0 whatever the members predict; empty = every class is always present
    device      where its networks run, as in Predictions
    """

    family: str
    version: str
    digest: str
    columns: tuple[str, ...]
    steps: int
    classes: tuple[str, ...]
    members: tuple[Member, ...]
    calibration: Floats
    label_from: float | None
    novelty: Novelty
    golden: Arrays
    schema: JsonObject
    gates: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    device: str = "cpu"

    @property
    def weights(self) -> Floats:
        """Return (members,) their weights in the mean."""
        return np.array([member.weight for member in self.members], dtype=np.float64)

    def predict(self, rows: Floats) -> Predictions:
        """Return predictions of rows (n, steps, columns), of one step (n, columns); NaN = missing.

        A row abstains if its newest bar has a missing value or is too novel, or if no member with a weight is
        available. Raises BadShape.
        """
        check_shape(self.family, rows, self.steps, self.columns)
        if self.steps == 1:
            rows = rows[:, np.newaxis]
        status, reason, distance, accepted, _ = admitted(rows[:, -1], self.columns, self.novelty)
        members, p, low, without = self._predict_members(rows, accepted)
        if without:
            for row in np.flatnonzero(accepted & ~np.isfinite(p).all(axis=1)):
                status[row], reason[row] = "ABSTAIN", f"WARMING_UP: needs {self.steps} whole bars"
                p[row] = low[row] = np.nan
        by_member = {member.name: self._squeeze(members[i]) for i, member in enumerate(self.members)}
        return Predictions(
            self._squeeze(p), self._squeeze(low), status, reason, distance, self.digest, self._labels(p), by_member,
            self.device,
        )  # fmt: skip

    def _predict_members(self, rows: Floats, accepted: Bools) -> tuple[Floats, Floats, Floats, int]:
        """Return p of the members (members, n, classes), p and p_low (n, classes) of the accepted rows (n,), NaN
        elsewhere, and how many rows have a class without one."""
        shape = len(rows), len(self.classes)
        absent, wanted = np.ascontiguousarray(rows[:, -1][:, self.gates] == 0.0), accepted
        if len(self.gates):
            wanted = accepted & ~absent.all(axis=1)  # a bar without any class needs no prediction
            absent &= accepted[:, np.newaxis]
        raw, p, low = np.empty((len(self.members), *shape)), np.empty(shape), np.empty(shape)
        for member, out in zip(self.members, raw, strict=True):
            member.fill(rows, wanted, out)
        members = np.empty_like(raw)
        return members, p, low, combine(raw, self.calibration, self.weights, absent, members, p, low)

    def _squeeze(self, p: Floats) -> Floats:
        """Return (n,) for a model of one class, else p (n, classes) as it is."""
        return p[:, 0] if len(self.classes) == 1 else p

    def _labels(self, p: Floats) -> list[str | None] | None:
        """Return for each row the classes from `label_from` on, joined by "+"; None for none, None without labels."""
        if self.label_from is None:
            return None
        return ["+".join(np.array(self.classes)[row >= self.label_from].tolist()) or None for row in p]


def load(path: Path, identity: BundleIdentity, schema: JsonObject, golden: Arrays) -> EnsembleModel:
    """Return the model of a verified bundle of kind "ensemble"."""
    columns, steps = tuple(schema["columns"]), schema["steps"]
    at = {name: i for i, name in enumerate(columns)}
    calibrations = json.loads((path / "calibration.json").read_text())
    lines = [stacked([calibration_from_json(c) for c in calibrations[m["name"]]]) for m in schema["members"]]
    members = [
        Member(
            name=member["name"],
            reads=member["reads"],
            places=np.array([at[name] for name in member["columns"]]),
            weight=member["weight"],
            scorer=open_scorer(path, member, len(member["columns"])),
        )
        for member in schema["members"]
    ]
    examples = golden["rows"].reshape(-1, steps, len(columns))
    return EnsembleModel(
        **identity,
        columns=columns,
        steps=steps,
        classes=tuple(schema["classes"]),
        members=tuple(replace(member, scorer=for_batches(member.scorer, member.block(examples))) for member in members),
        calibration=np.array(lines),
        label_from=schema.get("sure_from"),
        novelty=read_novelty(path / "novelty.npz"),
        golden=golden,
        schema=schema,
        gates=np.array([at[name] for name in schema.get("gates", ())], dtype=np.int64),
    )
