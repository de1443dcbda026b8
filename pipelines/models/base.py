"""What a model family defines for training. Serving never imports this; it uses `contracts.Model`.

A family is one `ModelFamily`: its training rows, fit and calibration, loss, baselines and export. Folds, novelty,
bundles, registry, gate and slots are the same for all families.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipelines.contracts import Bools, Floats, Ints
from pipelines.labels.weights import effective_rows, event_decay
from pipelines.models.calibration_and_novelty import Novelty
from pipelines.params import Params

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Dataset:
    """Hold m labelled rows of one or several markets in time order: inputs, labels, weights and times.

    Rows of the same time are in the order of their markets.

    columns       names of the input columns
    inputs        row numbers (n,) → (n, k) for a family of one step, else (n, steps, k), oldest first; NaN = missing
    y             (m,) or (m, classes) labels
    weight        (m,) the row's weight in a fit: its uniqueness, of a training window also × decay (`decayed`)
    uniqueness    (m,) share of a row's information that no other row has: the row's weight as evidence
    known, ended  (m,) epoch seconds at which the row was known, and at which its label ended
    extras        name → (m,) or (m, j): what only this family's baselines, loss or gate need
    at            (m,) position of the row in the whole dataset of the snapshot
    symbol        (m,) code of the row's market: its position in `symbols`; without one, all rows are of the first
    symbols       names of the markets
    newest_of     row numbers (n,) → (n, k) the newest bar of each, where that is cheaper than its window; None = read
                  from `inputs`
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
    symbol: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    symbols: tuple[str, ...] = ("",)
    newest_of: Callable[[Ints], Floats] | None = None

    def __post_init__(self) -> None:
        """Give every row the first market where none is stated."""
        if len(self.symbol) != len(self.known):
            object.__setattr__(self, "symbol", np.zeros(len(self.known), dtype=np.int64))

    def __len__(self) -> int:
        """Return the number of rows, m."""
        return len(self.known)

    def all_inputs(self) -> Floats:
        """Return the inputs of all rows, (m, k) or (m, steps, k)."""
        return self.inputs(np.arange(len(self)))

    def newest(self) -> Floats:
        """Return the newest bar of every row, (m, k), read in batches so that long windows do not fill memory."""
        if self.newest_of is not None:
            return self.newest_of(np.arange(len(self)))
        parts = [self.inputs(batch) for batch in np.array_split(np.arange(len(self)), max(1, len(self) // 4096))]
        return np.concatenate([part if part.ndim == 2 else part[:, -1] for part in parts])

    def select_rows(self, chosen: Ints | Bools) -> "Dataset":
        """Return the dataset of the chosen rows (numbers or a mask), in their order."""
        rows: Ints = np.arange(len(self))[chosen]
        read, newest = self.inputs, self.newest_of
        return replace(
            self,
            inputs=lambda subset: read(rows[subset]),
            y=self.y[rows],
            weight=self.weight[rows],
            uniqueness=self.uniqueness[rows],
            known=self.known[rows],
            ended=self.ended[rows],
            at=self.at[rows],
            extras={name: values[rows] for name, values in self.extras.items()},
            symbol=self.symbol[rows],
            newest_of=None if newest is None else lambda subset: newest(rows[subset]),
        )

    def by_market(self) -> Iterator[tuple[str, Ints]]:
        """Yield each market that has rows, and their numbers in time order."""
        for code, name in enumerate(self.symbols):
            if len(rows := np.flatnonzero(self.symbol == code)):
                yield name, rows

    def decayed(self, half_life_events: float) -> "Dataset":
        """Return the rows of a training window with weights that fade towards its beginning; the newest has decay 1."""
        return replace(self, weight=self.uniqueness * event_decay(self.known, half_life_events))

    def effective_rows(self, half_life_events: float) -> float:
        """Return how many distinct rows of equal weight say as much as this window under that half-life."""
        return effective_rows(self.uniqueness, event_decay(self.known, half_life_events))

    def select_columns(self, mask: Bools) -> "Dataset":
        """Return the dataset with the input columns where `mask` (k,) is True; itself where that is all of them."""
        if mask.all():
            return self
        read, newest = self.inputs, self.newest_of
        return replace(
            self,
            columns=tuple(column for column, chosen in zip(self.columns, mask, strict=True) if chosen),
            inputs=lambda rows: np.compress(mask, read(rows), axis=-1),  # a third of the time of a mask on windows
            newest_of=None if newest is None else lambda rows: np.compress(mask, newest(rows), axis=-1),
        )


@dataclass(frozen=True, slots=True)
class HalfLife:
    """Hold the half-life of the weights of one training window.

    events  later events after which an event weighs half
    tried   half-life → mean loss on an inner purged fold of the window; empty where one value is stated
    note    why nothing could be compared; empty otherwise
    """

    events: float
    tried: Mapping[float, float] = field(default_factory=dict)
    note: str = ""


def stated_half_life(data: Dataset, params: Params, embargo_s: float) -> HalfLife:
    """Return the one half-life of params.yaml."""
    return HalfLife(params.labels.decay_half_life_events)


@dataclass(frozen=True, slots=True)
class NativePredictions:
    """Hold a native model's calibrated predictions of n rows: `contracts.Predictions` without abstentions."""

    p: Floats
    p_low: Floats
    members: Mapping[str, Floats] = field(default_factory=dict)
    label: list[str | None] | None = None


class Fitted(Protocol):
    """Predict with a native model and its calibration, both fitted on one window."""

    @property
    def loss_params(self) -> Mapping[str, Any]:
        """Return the JSON-ready constants that the loss needs besides p (the regime's density); empty for most."""
        ...

    @property
    def calibration_p(self) -> Sequence[Floats]:
        """Return the sorted calibrated predictions of the rows it was calibrated on, an array a class.

        They lie inside its training window and outside the training of what predicted them, so the rank of a new
        prediction among them is known when it is made. Empty for a family that is not calibrated.
        """
        ...

    def predict(self, inputs: Floats) -> NativePredictions:
        """Return calibrated predictions of inputs (n, k) or (n, steps, k), no value missing in the newest bar."""
        ...


@dataclass(frozen=True, slots=True)
class Export:
    """Hold what goes into a bundle besides novelty, golden rows, card and hashes.

    kind    a key of runtime.KINDS: which loader serves it
    files   name → bytes; suffixes .onnx .json .npz only
    schema  what its loader reads besides `columns`: classes, steps, members …; JSON-ready
    """

    kind: str
    files: Mapping[str, bytes]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Baseline:
    """Hold a baseline's losses (n,) in the family's unit on rows outside its training, and its p if it has one."""

    loss: Floats
    p: Floats | None


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Define one model family.

    loss_name          name and unit of the loss in reports: "log loss", "Brier score"
    dataset            (artifacts folder of a snapshot, params) → Dataset
    fit                (training rows, params, embargo in seconds, log) → Fitted; calibrates on purged stretches of them
    loss               (p, rows, loss_params) → (n,) losses of a model with those loss_params; lower is better
    baselines          name → (training rows, test rows, params) → Baseline
    export             (fitted, all training rows, params) → Export
    novelty            (newest bars of the training rows, params) → how far from them a row may be
    describe           (training rows, params) → lines of the model card: label, horizon, what it is not for
    folds              params → number of walk-forward folds
    half_life          (rows of a training window, params, embargo in seconds) → HalfLife of its weights
    left_out           params → columns that the fit leaves out, by a person or as a reselection proposed
    is_decision_model  its probability decides trades, so the gate also reads what the trades returned
    miss_atr           (training rows) → what a trade on one of them returns whose target is not touched, in ATR, before
                       cost; None where every target was touched. Of a decision model only
    contributions      (fitted, rows (n, k)) → (n, k) contribution of each column to each prediction; None where the
                       model gives none
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
    half_life: Callable[[Dataset, Params, float], HalfLife] = stated_half_life
    left_out: Callable[[Params], tuple[str, ...]] = lambda params: ()
    is_decision_model: bool = False
    miss_atr: Callable[[Dataset], float | None] | None = None
    contributions: Callable[[Fitted, Floats], Floats] | None = None


def present_columns(
    rows: Floats, names: tuple[str, ...], markets: Mapping[str, Ints] | None = None
) -> tuple[Bools, dict[str, str]]:
    """Return (mask (k,) of the usable columns, dropped column → reason) of rows (m, k).

    Columns without a value in the training snapshot are dropped, or without one in any market: the pooled schema is
    what every market records. So are constant ones, from which nothing can be learnt.

    markets  market → the numbers of its rows; None = all rows are of one
    """
    mask = np.ones(len(names), dtype=bool)
    dropped: dict[str, str] = {}
    several = {} if markets is None or len(markets) < 2 else markets
    for j, name in enumerate(names):
        known = np.isfinite(rows[:, j])
        values = rows[known, j]
        absent = [market for market, at in several.items() if not known[at].any()]
        if len(values) == 0:
            dropped[name] = "absent: no value in the training snapshot"
        elif absent:
            dropped[name] = f"absent in {', '.join(absent)}: pooled rows have the columns of every market"
        elif values.min() == values.max():
            dropped[name] = f"constant at {values[0]:g} in the training snapshot"
        mask[j] = name not in dropped
    return mask, dropped
