"""What a family brings to training. Serving never sees this; it sees `contracts.Model`.

A family is one `ModelFamily`: what rows it learns from, how it is fitted and calibrated, its loss, what it has to beat, how
it is exported. Folds, novelty, bundles, registry, gate and slots are the same for all of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipelines.contracts import Bools, Floats, Ints
from pipelines.models.calibration_and_novelty import Novelty
from pipelines.params import Params

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Dataset:
    """m rows in time order. Per row: what a model reads, what came of it, and how long that took to be known.

    columns       names of the input columns
    inputs        rows (n,) → (n, k) of a family of one step, else (n, steps, k), oldest first; NaN = missing
    y             (m,) or (m, classes): what the loss compares with
    weight        (m,) uniqueness × time decay: what a row counts in a fit
    uniqueness    (m,) share of a row's information that is its own: what it counts as evidence
    known, ended  (m,) epoch seconds at which the row was known, and its label ended
    extras        name → (m,) or (m, j): what only this family's baselines, loss or gate need
    at            (m,) position of the row in the snapshot's dataset: which row of the whole this is
    """

    columns: tuple[str, ...]
    inputs: Callable[[Ints], Floats]
    y: Floats
    weight: Floats
    uniqueness: Floats
    known: Floats
    ended: Floats
    at: Ints
    extras: Mapping[str, Floats] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.known)

    def all_inputs(self) -> Floats:
        return self.inputs(np.arange(len(self)))

    def newest(self) -> Floats:
        """(m, k): the newest bar of every row, read in pieces so that long windows need no memory at once."""
        parts = [self.inputs(piece) for piece in np.array_split(np.arange(len(self)), max(1, len(self) // 4096))]
        return np.concatenate([part if part.ndim == 2 else part[:, -1] for part in parts])

    def select_rows(self, chosen: Ints | Bools) -> "Dataset":
        """The chosen rows, in their order."""
        rows: Ints = np.arange(len(self))[chosen]
        read = self.inputs
        return replace(
            self,
            inputs=lambda more: read(rows[more]),
            y=self.y[rows],
            weight=self.weight[rows],
            uniqueness=self.uniqueness[rows],
            known=self.known[rows],
            ended=self.ended[rows],
            at=self.at[rows],
            extras={name: values[rows] for name, values in self.extras.items()},
        )

    def select_columns(self, keep: Bools) -> "Dataset":
        """The kept columns only."""
        read = self.inputs
        return replace(
            self,
            columns=tuple(c for c, k in zip(self.columns, keep, strict=True) if k),
            inputs=lambda rows: np.compress(keep, read(rows), axis=-1),  # a third of the time of a mask on windows
        )


@dataclass(frozen=True, slots=True)
class NativePredictions:
    """A native model's calibrated answer to n rows: as `contracts.Predictions`, without abstentions."""

    p: Floats
    p_low: Floats
    members: Mapping[str, Floats] = field(default_factory=dict)
    label: list[str | None] | None = None


class Fitted(Protocol):
    """A native model and its calibration, fitted on one window."""

    @property
    def loss_params(self) -> Mapping[str, Any]:
        """JSON-ready constants the loss needs beside p (the regime's volatilities); empty for most."""
        ...

    def predict(self, inputs: Floats) -> NativePredictions:
        """inputs (n, k) or (n, steps, k), no value missing in the newest bar."""
        ...


@dataclass(frozen=True, slots=True)
class Export:
    """What goes into a bundle besides novelty, golden rows, card and hashes.

    kind    a key of runtime.KINDS: how it is served
    files   name → bytes; suffixes .onnx .json .npz only
    schema  what its loader reads beside `columns`: classes, steps, members …; JSON-ready
    """

    kind: str
    files: Mapping[str, bytes]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Baseline:
    """A baseline on rows it has not seen: losses (n,) in the family's unit, and its p where it has one (else None)."""

    loss: Floats
    p: Floats | None


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """One family.

    loss_name  what a loss is called and measured in, for people: "log loss", "Brier score"
    dataset    (artifacts folder of a snapshot, params) → Dataset
    fit        (training rows, params, embargo in seconds, log) → Fitted; calibrates on purged stretches of these rows
    loss       (p, rows, loss_params) → (n,) losses of a model with those loss_params on those rows; lower is better
    baselines  name → (training rows, test rows, params) → Baseline
    export     (fitted, all training rows, params) → Export
    novelty    (newest bars of the training rows, params) → how far from them a row may be
    describe   (training rows, params) → lines of the model card: label, horizon, what it is not for
    folds      params → walk-forward folds of the everyday run
    is_decision_model       its probability decides trades, so the gate also reads what they made
    contributions  (fitted, rows (n, k)) → (n, k): what each column adds to each answer; None where nobody can say
    """

    family: str
    title: str
    classes: tuple[str, ...]
    loss_name: str
    dataset: Callable[[Path, Params], Dataset]
    fit: Callable[[Dataset, Params, float, Log], Fitted]
    loss: Callable[[Floats, Dataset, Mapping[str, Any]], Floats]
    baselines: Mapping[str, Callable[[Dataset, Dataset, Params], Baseline]]
    export: Callable[[Fitted, Dataset, Params], Export]
    novelty: Callable[[Floats, Params], Novelty]
    describe: Callable[[Dataset, Params], list[str]]
    folds: Callable[[Params], int] = lambda params: params.splits.folds
    is_decision_model: bool = False
    contributions: Callable[[Fitted, Floats], Floats] | None = None


def present_columns(rows: Floats, names: tuple[str, ...]) -> tuple[Bools, dict[str, str]]:
    """The schema rule: columns wholly absent from the training snapshot are dropped and named; so are constant ones,
    which can teach nothing. Returns (mask of kept columns, dropped column → reason)."""
    keep = np.ones(len(names), dtype=bool)
    dropped: dict[str, str] = {}
    for j, name in enumerate(names):
        values = rows[np.isfinite(rows[:, j]), j]
        if len(values) == 0:
            dropped[name] = "absent: no value in the training snapshot"
        elif values.min() == values.max():
            dropped[name] = f"constant at {values[0]:g} in the training snapshot"
        keep[j] = name not in dropped
    return keep, dropped
