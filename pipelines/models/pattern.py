"""M2, the pattern recogniser: P(a pattern that is present plays out), nine classes at once, by three equal members.

A random forest and boosted trees read the newest bar, a convolutional network the last 32; each is calibrated by class
on later rows outside its training. A rule decides whether a pattern is present (`signals.setups`): an absent class has
p = 0, so a model gains over its baselines only by separating patterns that play out from those that do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.contracts import Arrays, Bools, Floats, Ints
from pipelines.errors import NotEnoughData
from pipelines.labels.splits import walk_forward
from pipelines.labels.weights import effective_rows
from pipelines.models.base import Baseline, Dataset, Export, Log, ModelFamily, NativePredictions
from pipelines.models.baselines import logistic
from pipelines.models.calibration import Classifier, fit_calibration
from pipelines.models.calibration_and_novelty import Calibration, as_json, logit
from pipelines.models.directional_ensemble import average
from pipelines.models.export import json_bytes, npz_bytes
from pipelines.models.losses import brier_losses
from pipelines.models.novelty import fit_novelty
from pipelines.models.pattern_rows import MirrorLayout, Singles, mirror_layout, share_of_side
from pipelines.models.pattern_view import CANDLE, DIRECTIONS, STEPS, TAKER
from pipelines.models.scorers import model_entry
from pipelines.models.snapshot import bar_rows
from pipelines.models.trees import fit_boosted, fit_forest
from pipelines.models.trees_export import boosted_arrays, forest_arrays
from pipelines.models.views import VIEWS
from pipelines.params import Params
from pipelines.signals.setups import PATTERNS

if TYPE_CHECKING:
    from pipelines.models.pattern_network import PatternNetwork

LEAST_ROWS = 200  # to fit at all: a few batches of the network; the gate requires more out of fold
NETWORK = "network"
WINDOW_COLUMNS = (*CANDLE, TAKER, "volume_to_median", "volatility_regime")
VOLATILITY_COLUMNS = ("atr_14", "volatility_20", "volatility_regime")


@dataclass(frozen=True, slots=True)
class Recogniser:
    """Hold the native members and their calibrations, fitted on one window.

    classes       names of the classes it predicts: those whose pattern occurs in the snapshot
    window        positions of the columns the network reads, its classes' sides last
    trees         name → classifier over `sides.rows`
    calibrations  member → one a class
    calibration_p  class → sorted predictions of the tail, of the bars on which it is present, by members that trained
                   before it
    """

    classes: tuple[str, ...]
    sides: MirrorLayout
    window: Ints
    network: "PatternNetwork"
    trees: Mapping[str, Classifier]
    calibrations: Mapping[str, Sequence[Calibration]]
    calibration_p: Sequence[Floats] = ()

    @property
    def loss_params(self) -> Mapping[str, Any]:
        """Return no constants: the Brier score needs none."""
        return {}

    def predict(self, inputs: Floats) -> NativePredictions:
        """Return calibrated predictions (n, classes) of inputs (n, steps, k), 0 where a class is absent."""
        newest = inputs[:, -1]
        present = newest[:, self.sides.sides] != 0.0
        return blend(self.raw(newest, inputs[:, :, self.window].astype(np.float32)), self.calibrations, present)

    def raw(self, newest: Floats, windows: Singles) -> dict[str, Floats]:
        """Return member → (n, classes) before calibration, 0 where a class is absent."""
        present = newest[:, self.sides.sides] != 0.0
        p = {name: tree_probabilities(model, self.sides, newest, present) for name, model in self.trees.items()}
        return {**p, NETWORK: network_probabilities(self.network, windows, present)}


def blend(
    raw: Mapping[str, Floats], calibrations: Mapping[str, Sequence[Calibration]], present: Bools
) -> NativePredictions:
    """Return the mean of the calibrated members, 0 where a class is absent; raw member → (n, classes)."""
    p, low = {}, {}
    for name, values in raw.items():
        by_class = [line.calibrate(values[:, c]) for c, line in enumerate(calibrations[name])]
        p[name], low[name] = (
            np.where(present, np.column_stack(columns), 0.0) for columns in zip(*by_class, strict=True)
        )
    equal = np.ones(len(p))
    return NativePredictions(
        average(np.stack(list(p.values())), equal), average(np.stack(list(low.values())), equal), p
    )


def tree_probabilities(model: Classifier, sides: MirrorLayout, newest: Floats, present: Bools) -> Floats:
    """Return uncalibrated probabilities (n, classes) of newest bars (n, k), 0 where a class is absent."""
    p = np.zeros(present.shape)
    if present.any():
        p[present] = model.predict_proba(sides.rows(newest)[present])[:, 1]
    return p


def network_probabilities(network: "PatternNetwork", windows: Singles, present: Bools) -> Floats:
    """Return uncalibrated probabilities (n, classes), 0 where a class is absent, NaN where the window has a gap."""
    from pipelines.models.networks import probabilities_of

    p = np.full(present.shape, np.nan)
    if (complete := np.isfinite(windows).all(axis=(1, 2))).any():
        p[complete] = np.where(present[complete], probabilities_of(network, windows[complete]), 0.0)
    return p


def dataset(artifacts: Path, params: Params) -> Dataset:
    """Return the bars on which a pattern is present.

    A class that never occurs in the snapshot is left out of the columns and of the labels: this version of the model
    does not predict it.
    """
    data = bar_rows(artifacts, "pattern", VIEWS["pattern"])
    occurs = (data.extras["direction"] != 0.0).any(axis=0)
    absent = {name for name, found in zip(DIRECTIONS, occurs, strict=True) if not found}
    data = data.select_columns(np.array([name not in absent for name in data.columns]))
    direction = data.extras["direction"][:, occurs]
    return replace(data, y=data.y[:, occurs], extras={**data.extras, "direction": direction})


def classes_of(columns: tuple[str, ...]) -> tuple[str, ...]:
    """Return the patterns whose side is among the columns."""
    return tuple(p for p, d in zip(PATTERNS, DIRECTIONS, strict=True) if d in columns)


@dataclass(frozen=True, slots=True)
class _TrainingRows:
    """Hold a dataset read once.

    newest            (n, k) newest bars
    windows           (n, steps, j) of the network
    present, y        (n, classes) whether a class is present, and its label
    evidence, weight  (n, classes) weight of each (row, class) as evidence and in a fit
    """

    newest: Floats
    windows: Singles
    present: Bools
    y: Floats
    evidence: Floats
    weight: Floats


def read(data: Dataset, window: Ints) -> _TrainingRows:
    """Return all rows of `data`, read in batches; `window` (j,) positions of the columns the network reads."""
    newest, windows = [], []
    for batch in np.array_split(np.arange(len(data)), max(1, len(data) // 2048)):
        rows = data.inputs(batch)
        newest.append(rows[:, -1])
        windows.append(rows[:, :, window].astype(np.float32))
    direction = data.extras["direction"]
    share = share_of_side(direction)
    return _TrainingRows(
        np.concatenate(newest), np.concatenate(windows), direction != 0.0, data.y,
        share * data.uniqueness[:, np.newaxis], share * data.weight[:, np.newaxis],
    )  # fmt: skip


def fit(data: Dataset, params: Params, embargo_s: float, log: Log) -> Recogniser:
    """Fit all members on the older rows; the purged tail stops the network and calibrates every member.

    The trees, which need no early stopping, are then fitted again on all rows, so that they include the newest market.
    Their calibration is that of the first fit, measured on rows outside its training.
    Raises  NotEnoughData under LEAST_ROWS rows before the tail, or without both outcomes
    """
    split = walk_forward(data.known, data.ended, 1, 1.0 - params.pattern.tail_share, embargo_s)[0]
    sides, classes = mirror_layout(data.columns), classes_of(data.columns)
    window = np.array([data.columns.index(n) for n in (*WINDOW_COLUMNS, *DIRECTIONS) if n in data.columns])
    head, tail = (read(data.select_rows(rows), window) for rows in (split.train, split.test))
    if len(split.train) < LEAST_ROWS or len(np.unique(head.y[head.present])) < 2:
        raise NotEnoughData(
            f"{len(split.train)} training rows before the purged tail, needs {LEAST_ROWS} and both outcomes: "
            "bring a longer history"
        )
    network = fit_network(head, tail, len(classes), data.columns, params, log)
    model = Recogniser(classes, sides, window, network, fit_trees(head, sides, params), {})
    raw = model.raw(tail.newest, tail.windows)
    share = shares(head.y, head.present, head.weight)
    calibrations = {name: calibrate(p, tail, share, params.pattern.pooled_rows) for name, p in raw.items()}
    p = blend(raw, calibrations, tail.present).p
    ranked = [np.sort(p[tail.present[:, c] & np.isfinite(p[:, c]), c]) for c in range(len(classes))]
    trees = fit_trees(read(data, window), sides, params)
    return Recogniser(classes, sides, window, network, trees, calibrations, ranked)


def fit_trees(data: _TrainingRows, sides: MirrorLayout, params: Params) -> dict[str, Classifier]:
    """Return a random forest and XGBoost fitted on one row per bar and present class."""
    p, rows, y = params.pattern, sides.rows(data.newest)[data.present], data.y[data.present].astype(int)
    weight, evidence = data.weight[data.present], data.evidence[data.present]
    events = effective_rows(evidence, weight / evidence)
    return {
        "forest": fit_forest(rows, y, weight, events, p.forest, params.seed),
        "boosted": fit_boosted(rows, y, weight, events, p.boosted, params.seed),
    }


def fit_network(
    head: _TrainingRows, tail: _TrainingRows, classes: int, columns: tuple[str, ...], params: Params, log: Log
) -> "PatternNetwork":
    """Return the network fitted on at most `max_windows` windows of `head`, stopped by the loss on `tail`."""
    # torch takes seconds to import, and only a fit needs it
    from pipelines.models.networks import Plan, repeatable, train_network, training_device
    from pipelines.models.pattern_network import PatternNetwork

    p = params.pattern
    window_columns = [name for name in WINDOW_COLUMNS if name in columns]
    swapped = {"candle_high": "candle_low", "candle_low": "candle_high"}
    odd = {*CANDLE, TAKER}
    with repeatable(params.seed):
        network = PatternNetwork(
            source=[window_columns.index(swapped.get(name, name)) for name in window_columns],
            sign=[-1.0 if name in odd else 1.0 for name in window_columns],
            classes=classes,
            channels=p.channels,
            dropout=p.dropout,
        )
    chosen = np.unique(np.linspace(0, len(head.windows) - 1, p.max_windows).astype(int))
    network.standardise(head.windows[chosen])
    train_network(
        network, head.windows[chosen], head.y[chosen], head.weight[chosen].sum(axis=1),
        (tail.windows, tail.y, tail.evidence.sum(axis=1)),
        Plan(p.epochs, p.batch, p.network_rate, p.patience, params.seed), training_device(params.training.device),
        on_epoch=lambda e: log(f"pattern: network epoch {e.number}: loss {e.train_loss:.4f}, tail {e.tail_loss:.4f}"),
    )  # fmt: skip
    return network


def shares(y: Floats, present: Bools, weight: Floats) -> Floats:
    """Return (classes,) weighted shares of y among the rows on which a class is present.

    Each is shrunk to the share of all classes with the weight of one row, since a rare class has little evidence of its
    own. y, present, weight (n, classes).
    """
    counted = weight * present
    overall = (counted * y).sum() / counted.sum()
    return np.asarray(((counted * y).sum(axis=0) + overall) / (counted.sum(axis=0) + 1.0))


def calibrate(raw: Floats, tail: _TrainingRows, share: Floats, pooled_rows: float) -> list[Calibration]:
    """Return one calibration per class, fitted in log-odds relative to the class's `share` (classes,) in training.

    Each line is fitted on the class's own rows of the tail and on those of all classes, which together count as
    `pooled_rows` effective rows. So a rare class predicts its own share, moved by the line of all classes; a frequent
    one has its own calibration. raw (n, classes), NaN = not predicted.
    """
    base = np.broadcast_to(logit(share), raw.shape)
    present = tail.present & np.isfinite(raw)
    pooled = [values[present] for values in (raw, tail.y, tail.evidence, base)]
    scale = min(1.0, pooled_rows / pooled[2].sum())
    lines = []
    for c in range(raw.shape[1]):
        own = [values[present[:, c], c] for values in (raw, tail.y, tail.evidence, base)]
        p, y, weight, around = (np.concatenate(pair) for pair in zip(own, pooled, strict=True))
        weight[len(own[0]) :] *= scale
        line = fit_calibration(p, y, weight, around)
        # fitted around the class's share, served around zero log-odds
        turn = np.array([[1.0, 0.0], [-base[0, c], 1.0]])
        shift = line.shift + base[0, c] * (1.0 - line.slope)
        lines.append(Calibration(line.slope, float(shift), turn @ line.covariance @ turn.T))
    return lines


def trees_file(arrays: Arrays, sides: MirrorLayout, width: int) -> bytes:
    """Return trees over mirrored rows as the file of a member that reads rows (n, width) and makes (n, classes)."""
    mirror = {"even": sides.even, "odd": sides.odd, "centres": sides.centres, "sides": sides.sides}
    return npz_bytes(**{**arrays, **mirror, "columns": np.array(width)})


def export(fitted: Any, data: Dataset, params: Params) -> Export:
    """Return an ensemble of equal members with a gate per class: a class whose pattern is absent has p = 0."""
    from pipelines.models.networks import device_words
    from pipelines.models.pattern_onnx import network_to_onnx

    width, gates = len(data.columns), [data.columns[i] for i in fitted.sides.sides]
    files = {
        "forest.npz": trees_file(forest_arrays(fitted.trees["forest"]), fitted.sides, width),
        "boosted.npz": trees_file(boosted_arrays(fitted.trees["boosted"]), fitted.sides, width),
        f"{NETWORK}.onnx": network_to_onnx(fitted.network, STEPS, NETWORK),
    }
    entries = {Path(file).stem: model_entry(file) for file in files}
    calibrations = {name: [as_json(line) for line in lines] for name, lines in fitted.calibrations.items()}
    files["calibration.json"] = json_bytes(calibrations)
    members = [
        {
            "name": name, **entries[name], "reads": "window" if name == NETWORK else "newest", "weight": 1.0,
            "columns": [data.columns[i] for i in fitted.window] if name == NETWORK else list(data.columns),
        }
        for name in fitted.calibrations
    ]  # fmt: skip
    p = params.pattern
    schema = {
        "classes": list(fitted.classes), "steps": STEPS, "members": members, "gates": gates, "sure_from": p.confidence,
        "target_atr": p.target_atr, "stop_atr": p.stop_atr, "horizon_bars": p.horizon_bars,
        "training_device": device_words(params.training.device),
    }  # fmt: skip
    return Export("ensemble", files, schema)


def loss(p: Floats, data: Dataset, loss_params: Mapping[str, Any]) -> Floats:
    """Return (n,) Brier scores, mean over the classes."""
    return brier_losses(p, data.y)


def _brier_baseline(p: Floats, test: Dataset) -> Baseline:
    """Return the baseline with probabilities p (n, classes), scored by the Brier score."""
    return Baseline(brier_losses(p, test.y), p)


def prevalence(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Predict the training share of each class's present patterns that played out; 0 where it is absent."""
    present = train.extras["direction"] != 0.0
    share = shares(train.y, present, train.weight[:, np.newaxis])
    return _brier_baseline(share * (test.extras["direction"] != 0.0), test)


def _pooled_logistic(train: Dataset, test: Dataset, rows: Any, test_rows: Any, params: Params) -> Baseline:
    """Predict by logistic regression on rows (n, classes, j) of each bar and present class."""
    present, test_present = train.extras["direction"] != 0.0, test.extras["direction"] != 0.0
    weight = (train.weight[:, np.newaxis] * share_of_side(train.extras["direction"]))[present]
    p = np.zeros(test_present.shape)
    if test_present.any():
        p[test_present] = logistic(
            rows[present].astype(np.float64),
            train.y[present],
            weight,
            test_rows[test_present].astype(np.float64),
            params,
        )
    return _brier_baseline(p, test)


def volatility_only(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Predict by logistic regression on class and volatility: shows if a model learnt only the barriers' width."""
    places = [train.columns.index(name) for name in VOLATILITY_COLUMNS if name in train.columns]

    def rows(data: Dataset) -> Floats:
        """Return (n, classes, j): log volatilities and the class (one-hot)."""
        width = np.log(np.maximum(data.newest()[:, places], 1e-6))[:, np.newaxis]
        which = np.eye(data.y.shape[1])
        wide = np.concatenate([width + np.zeros((1, len(which), 1)), which + np.zeros((len(data), 1, 1))], axis=2)
        return np.asarray(wide)

    return _pooled_logistic(train, test, rows(train), rows(test), params)


def newest_bar(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Predict by logistic regression on the trees' columns, side and class included."""
    sides = mirror_layout(train.columns)
    return _pooled_logistic(train, test, sides.rows(train.newest()), sides.rows(test.newest()), params)


def describe(data: Dataset, params: Params) -> list[str]:
    """Return the card's lines on label, classes and baseline."""
    p, present = params.pattern, data.extras["direction"] != 0.0
    classes, counts = classes_of(data.columns), present.sum(axis=0)
    occurrences = [
        f"{name} {int(count):,} ({share:.3f})"
        for name, count, share in zip(classes, counts, data.y.sum(axis=0) / np.maximum(counts, 1), strict=True)
    ]
    left_out = [name for name in PATTERNS if name not in classes]
    return [
        f"label: the pattern is present and {p.target_atr:g} ATR its way came before {p.stop_atr:g} ATR against it"
        f" within {p.horizon_bars} bars; no cost in the label; 0 where it is absent",
        f"patterns present, and the share that played out: {', '.join(occurrences)}",
        *([f"not predicted, since they never occur in the snapshot: {', '.join(left_out)}"] if left_out else []),
        "prevalence, its baseline, is the training share among present patterns, 0 for absent ones",
    ]


PATTERN = ModelFamily(
    family="pattern",
    title="Pattern recogniser: P(a pattern that is present plays out)",
    classes=PATTERNS,
    loss_name="Brier score",
    dataset=dataset,
    fit=fit,
    loss=loss,
    baselines={"prevalence": prevalence, "volatility_only": volatility_only, "logistic": newest_bar},
    export=export,
    novelty=lambda rows, params: fit_novelty(rows, params.pattern.novelty_quantile),
    describe=describe,
    folds=lambda params: params.pattern.folds,
)
