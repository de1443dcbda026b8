"""The served regime model: detectors, vote, hysteresis, and its bundle. numpy and our kernels only."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from pipelines.contracts import REGIMES, Arrays, Floats, Ints, JsonObject, Predictions
from pipelines.models.calibration_and_novelty import (
    BundleIdentity,
    Novelty,
    admitted,
    check_shape,
    read_novelty,
)
from pipelines.models.regime.detectors import DETECTORS, change_probability
from pipelines.models.regime.inputs import STEPS, planes
from pipelines.models.regime.kernels import vote
from pipelines.models.regime.tables import table

MIN_BARS = STEPS // 2  # complete bars a window must have; an incomplete bar counts as "no observation"


@dataclass(frozen=True, slots=True)
class RegimePrediction:
    """Hold the vote on n windows, at their newest bar.

    p        (n, 4) regime probabilities
    code     (n,) index into REGIMES after hysteresis and dwell, −1 = none
    members  detector → (n, labels) probabilities of its own labels; "change" → (n,) probability that the hidden state
             changed at the newest bar
    """

    p: Floats
    code: Ints
    members: dict[str, Floats]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Hold the detectors' parameters, their weights in the vote, and the rules of switching.

    reads       detector → inputs, in the order its parameters were fitted on; other detectors are not in the vote
    parameters  detector → name → array
    """

    columns: tuple[str, ...]
    reads: Mapping[str, tuple[str, ...]]
    parameters: Mapping[str, Mapping[str, Floats]]
    weights: Mapping[str, float]
    margin: float
    min_dwell_bars: int

    def detector_probabilities(self, rows: Floats) -> dict[str, Floats]:
        """Return detector → (n, steps, labels): probabilities of its labels, each from the window up to that bar."""
        labels = self._labels(rows)
        first, _ = _side_by_side(tuple(self.reads))
        return {name: labels[:, :, first[i] : first[i + 1]] for i, name in enumerate(self.reads)}

    def _labels(self, rows: Floats) -> Floats:
        """Return (n, steps, L): the labels of all detectors side by side, in the order of `reads`."""
        inputs, (first, table_of_all) = planes(rows, self.columns), _side_by_side(tuple(self.reads))
        labels = np.empty((*rows.shape[:2], len(table_of_all)))
        for i, (name, reads) in enumerate(self.reads.items()):
            part = labels[:, :, first[i] : first[i + 1]]
            DETECTORS[name].predict([inputs[each] for each in reads], self.parameters[name], part)
        return labels

    def predict(self, rows: Floats) -> RegimePrediction:
        """Return the vote on windows (n, steps, columns), oldest bar first.

        A detector with a missing input leaves the vote at that bar; the hidden Markov model steps over such a bar by
        its transition.
        """
        labels, (first, table_of_all) = self._labels(rows), _side_by_side(tuple(self.reads))
        n, detectors = len(rows), len(self.reads)
        p, by_detector = np.empty((n, len(REGIMES))), np.empty((detectors, n, len(REGIMES)))
        code, weights = np.empty(n, np.int64), np.array([self.weights[name] for name in self.reads])
        vote(labels, first, weights, table_of_all, self.margin, self.min_dwell_bars, p, by_detector, code)
        found = {name: labels[:, :, first[i] : first[i + 1]] for i, name in enumerate(self.reads)}
        members = {name: part[:, -1] for name, part in found.items()}
        if "hmm" in found:
            members["change"] = change_probability(found["hmm"], self.parameters["hmm"]["transition"])
        return RegimePrediction(p, code, members)


@cache
def _side_by_side(detectors: tuple[str, ...]) -> tuple[Ints, Floats]:
    """Return (D + 1,) where the labels of each detector begin among those of all, and their tables (L, 4)."""
    tables = [table(name) for name in detectors]
    return np.cumsum([0, *map(len, tables)]), np.concatenate(tables)


def regime_names(codes: Ints) -> list[str | None]:
    """Return the regime of each code, None for −1."""
    return [None if code < 0 else REGIMES[code] for code in codes]


@dataclass(frozen=True, slots=True)
class RegimeModel:
    """Implement contracts.Model for windows (n, STEPS, columns): p is the vote, `label` the regime after hysteresis."""

    family: str
    version: str
    digest: str
    columns: tuple[str, ...]
    ensemble: Ensemble
    novelty: Novelty  # of the newest bar
    golden: Arrays
    schema: JsonObject
    steps: int = STEPS
    classes: tuple[str, ...] = REGIMES

    def predict(self, rows: Floats) -> Predictions:
        """Return predictions of windows (n, STEPS, columns); NaN = missing.

        A row abstains if its newest bar has a missing value or is too novel, or under MIN_BARS complete bars. p_low is
        NaN: no size depends on a regime's p. Raises BadShape.
        """
        check_shape(self.family, rows, self.steps, self.columns)
        status, reason, distance, *_ = admitted(rows[:, -1], self.columns, self.novelty)
        complete = np.isfinite(rows).all(axis=2).sum(axis=1)
        for row in np.flatnonzero(complete < MIN_BARS):
            if status[row] == "OK":
                status[row] = "ABSTAIN"
                reason[row] = f"WARMING_UP: {complete[row]} whole bars of {self.steps}, needs {MIN_BARS}"
        found = self.ensemble.predict(rows)
        label = regime_names(found.code)
        for i, word in enumerate(status):
            if word != "OK":
                label[i] = None
                found.p[i] = np.nan
                for values in found.members.values():
                    values[i] = np.nan
        low = np.full_like(found.p, np.nan)
        return Predictions(found.p, low, status, reason, distance, self.digest, label, found.members)


def load(path: Path, identity: BundleIdentity, schema: JsonObject, golden: Arrays) -> RegimeModel:
    """Return the model of a verified bundle of kind "regime"."""
    columns, regime = tuple(schema["columns"]), schema["regime"]
    with np.load(path / "parameters.npz", allow_pickle=False) as f:
        arrays = {name: f[name] for name in f.files}
    return RegimeModel(
        **identity,
        columns=columns,
        ensemble=Ensemble(
            columns=columns,
            reads={name: tuple(regime["reads"][name]) for name in DETECTORS if name in regime["reads"]},
            parameters={
                name: {key.split(".")[1]: value for key, value in arrays.items() if key.split(".")[0] == name}
                for name in regime["reads"]
            },
            weights=regime["weights"],
            margin=regime["margin"],
            min_dwell_bars=regime["min_dwell_bars"],
        ),
        novelty=read_novelty(path / "novelty.npz"),
        golden=golden,
        schema=schema,
    )
