"""The regime model as it answers: detectors, vote, hysteresis; and its bundle. numpy and our kernels only."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import REGIMES, Floats, Ints, Predictions
from pipelines.models.calibration_and_novelty import Novelty, abstentions, check_shape, read_novelty
from pipelines.models.regime.detectors import DETECTORS, change_probability
from pipelines.models.regime.inputs import STEPS, planes
from pipelines.models.regime.kernels import vote
from pipelines.models.regime.tables import table

MIN_BARS = STEPS // 2  # whole bars a window must hold: the rest is passed over as "no observation"


@dataclass(frozen=True, slots=True)
class Opinion:
    """p (n, 4) of the newest bar; code (n,) index into REGIMES after hysteresis, −1 = none; members name → (n, labels)
    in the detector's own words, and `change` (n,) the chance that the hidden state changed at the newest bar."""

    p: Floats
    code: Ints
    members: dict[str, Floats]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Detectors with their parameters, their weights in the vote, and the rules of switching.

    reads       detector → inputs, in the order its parameters were fitted on; who is not here is silent
    parameters  detector → name → array
    """

    columns: tuple[str, ...]
    reads: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, Mapping[str, Floats]]
    weights: Mapping[str, float]
    margin: float
    min_dwell_bars: int

    def detector_probabilities(self, rows: Floats) -> dict[str, Floats]:
        """detector → (n, steps, labels): its own words at every bar, each from the window up to that bar alone."""
        given = planes(rows, self.columns)
        told = {}
        for name, reads in self.reads.items():
            told[name] = np.empty((*rows.shape[:2], len(DETECTORS[name].labels)))
            DETECTORS[name].predict(np.stack([given[each] for each in reads]), self.parameters[name], told[name])
        return told

    def predict(self, rows: Floats) -> Opinion:
        """rows (n, steps, columns), oldest first; a missing value silences whoever reads it at that bar, and the hidden
        Markov model passes over it."""
        said = self.detector_probabilities(rows)
        first = np.cumsum([0, *(part.shape[2] for part in said.values())])
        n, voters = len(rows), len(said)
        p, voices, code = np.empty((n, len(REGIMES))), np.empty((voters, n, len(REGIMES))), np.empty(n, np.int64)
        vote(
            np.concatenate(list(said.values()), axis=2), first, np.array([self.weights[name] for name in said]),
            np.concatenate([table(name) for name in said]), self.margin, self.min_dwell_bars, p, voices, code,
        )  # fmt: skip
        members = {name: part[:, -1] for name, part in said.items()}
        if "hmm" in said:
            members["change"] = change_probability(said["hmm"], self.parameters["hmm"]["transition"])
        return Opinion(p, code, members)


def regime_names(codes: Ints) -> list[str | None]:
    return [None if code < 0 else REGIMES[code] for code in codes]


@dataclass(frozen=True, slots=True)
class RegimeModel:
    """contracts.Model over rows (n, STEPS, columns); `label` is the regime after hysteresis and dwell, p the vote."""

    family: str
    version: str
    digest: str
    columns: tuple[str, ...]
    ensemble: Ensemble
    novelty: Novelty  # of the newest bar
    golden: dict[str, Any]
    schema: dict[str, Any]
    steps: int = STEPS
    classes: tuple[str, ...] = REGIMES

    def predict(self, rows: Floats) -> Predictions:
        check_shape(self.family, rows, self.steps, self.columns)
        status, reason, distance = abstentions(rows[:, -1], self.columns, self.novelty)
        whole = np.isfinite(rows).all(axis=2).sum(axis=1)
        for row in np.flatnonzero(whole < MIN_BARS):
            if status[row] == "OK":
                status[row] = "ABSTAIN"
                reason[row] = f"WARMING_UP: {whole[row]} whole bars of {self.steps}, needs {MIN_BARS}"
        said = self.ensemble.predict(rows)
        label = regime_names(said.code)
        for i, word in enumerate(status):
            if word != "OK":
                label[i] = None
                said.p[i] = np.nan
                for values in said.members.values():
                    values[i] = np.nan
        low = np.full_like(said.p, np.nan)  # sizing rests on no probability of a regime
        return Predictions(said.p, low, status, reason, distance, self.digest, label, said.members)


def load(path: Path, identity: dict[str, Any], schema: dict[str, Any], golden: dict[str, Any]) -> RegimeModel:
    columns, told = tuple(schema["columns"]), schema["regime"]
    with np.load(path / "parameters.npz", allow_pickle=False) as f:
        arrays = {name: f[name] for name in f.files}
    return RegimeModel(
        **identity,
        columns=columns,
        ensemble=Ensemble(
            columns=columns,
            reads={name: tuple(told["reads"][name]) for name in DETECTORS if name in told["reads"]},
            parameters={
                name: {key.split(".")[1]: value for key, value in arrays.items() if key.split(".")[0] == name}
                for name in told["reads"]
            },
            weights=told["weights"],
            margin=told["margin"],
            min_dwell_bars=told["min_dwell_bars"],
        ),
        novelty=read_novelty(path / "novelty.npz"),
        golden=golden,
        schema=schema,
    )
