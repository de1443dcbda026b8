"""M2, the pattern recogniser: P(a pattern that is there plays out), nine classes at once, by three equal voters.

A random forest and boosted trees read the newest bar, a convolutional network the last 32; each is calibrated by class
on later rows it did not learn from. Whether a pattern is there is a rule (`signals.setups`): a class that is not there
has p = 0, so what a model can win over its baselines lies in telling which of them play out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.contracts import Bools, Floats, Ints
from pipelines.errors import NotEnoughData
from pipelines.labels.splits import walk_forward
from pipelines.models.base import Baseline, Dataset, Export, Log, ModelFamily, NativePredictions
from pipelines.models.baselines import logistic
from pipelines.models.calibration import fit_calibration
from pipelines.models.calibration_and_novelty import Calibration, as_json, logit
from pipelines.models.directional_ensemble import average
from pipelines.models.export import json_bytes
from pipelines.models.losses import brier_losses
from pipelines.models.novelty import fit_novelty
from pipelines.models.pattern_rows import MirrorLayout, Singles, mirror_layout, share_of_side
from pipelines.models.pattern_view import CANDLE, DIRECTIONS, STEPS, TAKER
from pipelines.models.snapshot import bar_rows
from pipelines.models.views import VIEWS
from pipelines.params import Params
from pipelines.signals.setups import PATTERNS

if TYPE_CHECKING:
    from pipelines.models.pattern_network import PatternNetwork

LEAST_ROWS = 200
NETWORK = "network"
WINDOW_COLUMNS = (*CANDLE, TAKER, "volume_to_median", "volatility_regime")
VOLATILITY_COLUMNS = ("atr_14", "volatility_20", "volatility_regime")


@dataclass(frozen=True, slots=True)
class Recogniser:
    """The native members and their calibrations, fitted on one window.

    classes       names of the classes it answers: those whose pattern occurs in the snapshot
    window        positions of the columns the network reads, its classes' sides last
    trees         name → classifier over `sides.rows`
    calibrations  member → one a class
    """

    classes: tuple[str, ...]
    sides: MirrorLayout
    window: Ints
    network: "PatternNetwork"
    trees: Mapping[str, Any]
    calibrations: Mapping[str, Sequence[Calibration]]

    @property
    def loss_params(self) -> Mapping[str, Any]:
        return {}

    def predict(self, inputs: Floats) -> NativePredictions:
        newest = inputs[:, -1]
        there = newest[:, self.sides.sides] != 0.0
        p, low = {}, {}
        for name, raw in self.raw(newest, inputs[:, :, self.window].astype(np.float32)).items():
            told = [self.calibrations[name][c].calibrate(raw[:, c]) for c in range(len(self.classes))]
            p[name], low[name] = (np.where(there, np.column_stack(columns), 0.0) for columns in zip(*told, strict=True))
        equal = np.ones(len(p))
        return NativePredictions(
            average(np.stack(list(p.values())), equal), average(np.stack(list(low.values())), equal), p
        )

    def raw(self, newest: Floats, windows: Singles) -> dict[str, Floats]:
        """Member → (n, classes) before calibration, 0 where a class is not there."""
        there = newest[:, self.sides.sides] != 0.0
        told = {name: tree_answers(model, self.sides, newest, there) for name, model in self.trees.items()}
        return {**told, NETWORK: network_answers(self.network, windows, there)}


def tree_answers(model: Any, sides: MirrorLayout, newest: Floats, there: Bools) -> Floats:
    p = np.zeros(there.shape)
    if there.any():
        p[there] = model.predict_proba(sides.rows(newest)[there])[:, 1]
    return p


def network_answers(network: "PatternNetwork", windows: Singles, there: Bools) -> Floats:
    from pipelines.models.networks import probabilities_of

    p = np.full(there.shape, np.nan)
    if (whole := np.isfinite(windows).all(axis=(1, 2))).any():
        p[whole] = np.where(there[whole], probabilities_of(network, windows[whole]), 0.0)
    return p


def dataset(artifacts: Path, params: Params) -> Dataset:
    """Bars on which some pattern is there. A class that never occurs in the snapshot is left out: its side is not among
    the columns and its label not among the targets, so this version does not answer it."""
    data = bar_rows(artifacts, "pattern", VIEWS["pattern"])
    occurs = (data.extras["direction"] != 0.0).any(axis=0)
    absent = {name for name, there in zip(DIRECTIONS, occurs, strict=True) if not there}
    data = data.select_columns(np.array([name not in absent for name in data.columns]))
    direction = data.extras["direction"][:, occurs]
    return replace(data, y=data.y[:, occurs], extras={**data.extras, "direction": direction})


def classes_of(columns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(p for p, d in zip(PATTERNS, DIRECTIONS, strict=True) if d in columns)


@dataclass(frozen=True, slots=True)
class _Read:
    """A data set read once: newest bars (n, k), windows of the network (n, steps, j), which classes are there, and what
    each (row, class) counts: as evidence, and in a fit."""

    newest: Floats
    windows: Singles
    there: Bools
    y: Floats
    evidence: Floats
    weight: Floats


def read(data: Dataset, window: Ints) -> _Read:
    newest, windows = [], []
    for piece in np.array_split(np.arange(len(data)), max(1, len(data) // 2048)):
        rows = data.inputs(piece)
        newest.append(rows[:, -1])
        windows.append(rows[:, :, window].astype(np.float32))
    direction = data.extras["direction"]
    share = share_of_side(direction)
    return _Read(
        np.concatenate(newest), np.concatenate(windows), direction != 0.0, data.y,
        share * data.uniqueness[:, np.newaxis], share * data.weight[:, np.newaxis],
    )  # fmt: skip


def fit(data: Dataset, params: Params, embargo_s: float, log: Log) -> Recogniser:
    """All members on the older part of the rows; the purged tail stops the network and calibrates every one of them.
    Then the trees, which nothing has to stop, learn from all rows, so that the newest market is in them too: what a
    voter's word is worth was measured on rows that it had not seen."""
    split = walk_forward(data.known, data.ended, 1, 1.0 - params.pattern.tail_share, embargo_s)[0]
    sides, classes = mirror_layout(data.columns), classes_of(data.columns)
    window = np.array([data.columns.index(n) for n in (*WINDOW_COLUMNS, *DIRECTIONS) if n in data.columns])
    head, tail = (read(data.select_rows(rows), window) for rows in (split.train, split.test))
    if len(split.train) < LEAST_ROWS or len(np.unique(head.y[head.there])) < 2:
        raise NotEnoughData(
            f"{len(split.train)} rows to learn from before the purged tail, needs {LEAST_ROWS} and both outcomes: "
            "bring a longer history"
        )
    network = fit_network(head, tail, len(classes), data.columns, params, log)
    model = Recogniser(classes, sides, window, network, fit_trees(head, sides, params), {})
    raw = model.raw(tail.newest, tail.windows)
    share = shares(head.y, head.there, head.weight)
    calibrations = {name: calibrate(p, tail, share, params.pattern.pooled_rows) for name, p in raw.items()}
    trees = fit_trees(read(data, window), sides, params)
    return Recogniser(classes, sides, window, network, trees, calibrations)


def fit_trees(told: _Read, sides: MirrorLayout, params: Params) -> dict[str, Any]:
    """Random forest and XGBoost on one row a bar and class that is there; one thread, so the same bits every time."""
    p, rows, y = params.pattern, sides.rows(told.newest)[told.there], told.y[told.there].astype(int)
    weight, overlap = told.weight[told.there], float(told.evidence[told.there].mean())
    weight = weight / weight.mean()
    # a tree draws as many rows as are distinct: more would only repeat labels (López de Prado 2018, ch. 6.2)
    import xgboost  # seconds of imports that only a fit needs
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(
        p.trees, max_depth=p.forest_depth, min_samples_leaf=round(p.leaf), max_samples=overlap,
        random_state=params.seed, n_jobs=1,
    ).fit(rows, y, weight)  # fmt: skip
    # weights sum to the effective number of rows, so that a leaf counts overlapping labels once
    boosted = xgboost.XGBClassifier(
        n_estimators=p.trees, max_depth=p.boosted_depth, learning_rate=p.learning_rate, min_child_weight=p.leaf / 4.0,
        subsample=0.8, reg_lambda=5.0, tree_method="hist", random_state=params.seed, n_jobs=1,
    ).fit(rows, y, sample_weight=weight * overlap)  # fmt: skip
    return {"forest": forest, "boosted": boosted}


def fit_network(
    head: _Read, tail: _Read, classes: int, columns: tuple[str, ...], params: Params, log: Log
) -> "PatternNetwork":
    # torch takes seconds to import: only a stage that fits pays for it
    from pipelines.models.networks import Plan, best_device, repeatable, train_network
    from pipelines.models.pattern_network import PatternNetwork

    p = params.pattern
    read_there = [name for name in WINDOW_COLUMNS if name in columns]
    turned = {"candle_high": "candle_low", "candle_low": "candle_high"}
    odd = {*CANDLE, TAKER}
    with repeatable(params.seed):
        network = PatternNetwork(
            source=[read_there.index(turned.get(name, name)) for name in read_there],
            sign=[-1.0 if name in odd else 1.0 for name in read_there],
            classes=classes,
            channels=p.channels,
            dropout=p.dropout,
        )
    chosen = np.unique(np.linspace(0, len(head.windows) - 1, p.max_windows).astype(int))
    network.standardise(head.windows[chosen])
    train_network(
        network, head.windows[chosen], head.y[chosen], head.weight[chosen].sum(axis=1),
        (tail.windows, tail.y, tail.evidence.sum(axis=1)),
        Plan(p.epochs, p.batch, p.network_rate, p.patience, params.seed), best_device(),
        on_epoch=lambda e: log(f"pattern: network epoch {e.number}: loss {e.train_loss:.4f}, tail {e.tail_loss:.4f}"),
    )  # fmt: skip
    return network


def shares(y: Floats, there: Bools, weight: Floats) -> Floats:
    """(classes,) weighted share of y among the rows on which a class is there; one row's worth of the share of all
    classes is in each, since a class that hardly occurred says hardly anything else."""
    counted = weight * there
    overall = (counted * y).sum() / counted.sum()
    return np.asarray(((counted * y).sum(axis=0) + overall) / (counted.sum(axis=0) + 1.0))


def calibrate(raw: Floats, tail: _Read, share: Floats, pooled_rows: float) -> list[Calibration]:
    """One line a class, told as log-odds above those of its `share` (classes,) in training: fitted on its own rows and,
    worth `pooled_rows` effective ones, those of all classes. So a class seldom seen answers its own share, moved by
    what a member's word is worth in general; one seen often is calibrated as itself."""
    base = np.broadcast_to(logit(share), raw.shape)
    there = tail.there & np.isfinite(raw)
    pooled = [values[there] for values in (raw, tail.y, tail.evidence, base)]
    scale = min(1.0, pooled_rows / pooled[2].sum())
    lines = []
    for c in range(raw.shape[1]):
        own = [values[there[:, c], c] for values in (raw, tail.y, tail.evidence, base)]
        p, y, weight, around = (np.concatenate(pair) for pair in zip(own, pooled, strict=True))
        weight[len(own[0]) :] *= scale
        line = fit_calibration(p, y, weight, around)
        # told round the class's share; served round nought
        turn = np.array([[1.0, 0.0], [-base[0, c], 1.0]])
        shift = line.shift + base[0, c] * (1.0 - line.slope)
        lines.append(Calibration(line.slope, float(shift), turn @ line.covariance @ turn.T))
    return lines


def to_onnx(name: str, model: Any, sides: MirrorLayout, width: int) -> bytes:
    """Rows (n, width) float32 in, "probabilities" (n, classes) out; the same model gives the same bytes."""
    from pipelines.models.pattern_onnx import trees_to_onnx

    if name == "boosted":
        from onnxmltools.convert import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType as XgboostFloats

        rows = [("rows", XgboostFloats([None, sides.width]))]
        converted = convert_xgboost(model, name=name, initial_types=rows, target_opset=15)
    else:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        converted = convert_sklearn(
            model, name=name, initial_types=[("rows", FloatTensorType([None, sides.width]))], target_opset=15,
            options={id(model): {"zipmap": False}},
        )  # fmt: skip
    return trees_to_onnx(converted, sides, width, name)


def export(fitted: Any, data: Dataset, params: Params) -> Export:
    """A committee of equal voters behind a gate: a class whose pattern is not there is answered 0."""
    from pipelines.models.pattern_onnx import network_to_onnx

    width, gates = len(data.columns), [data.columns[i] for i in fitted.sides.sides]
    files = {f"{name}.onnx": to_onnx(name, model, fitted.sides, width) for name, model in fitted.trees.items()}
    files[f"{NETWORK}.onnx"] = network_to_onnx(fitted.network, STEPS, NETWORK)
    told = {name: [as_json(one) for one in lines] for name, lines in fitted.calibrations.items()}
    files["calibration.json"] = json_bytes(told)
    members = [
        {
            "name": name, "file": f"{name}.onnx", "reads": "window" if name == NETWORK else "newest", "weight": 1.0,
            "columns": [data.columns[i] for i in fitted.window] if name == NETWORK else list(data.columns),
        }
        for name in fitted.calibrations
    ]  # fmt: skip
    p = params.pattern
    schema = {
        "classes": list(fitted.classes), "steps": STEPS, "members": members, "gates": gates, "sure_from": p.confidence,
        "target_atr": p.target_atr, "stop_atr": p.stop_atr, "horizon_bars": p.horizon_bars,
    }  # fmt: skip
    return Export("committee", files, schema)


def loss(p: Floats, data: Dataset, loss_params: Mapping[str, Any]) -> Floats:
    return brier_losses(p, data.y)


def _rival(p: Floats, test: Dataset) -> Baseline:
    return Baseline(brier_losses(p, test.y), p)


def prevalence(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """The training share that played out among the patterns of a class that were there; 0 where it is not there."""
    there = train.extras["direction"] != 0.0
    share = shares(train.y, there, train.weight[:, np.newaxis])
    return _rival(share * (test.extras["direction"] != 0.0), test)


def _pooled_logistic(train: Dataset, test: Dataset, rows: Any, of_test: Any) -> Baseline:
    """A logistic regression on one row a bar and class, its class among the columns."""
    there, asked = train.extras["direction"] != 0.0, test.extras["direction"] != 0.0
    weight = (train.weight[:, np.newaxis] * share_of_side(train.extras["direction"]))[there]
    p = np.zeros(asked.shape)
    if asked.any():
        p[asked] = logistic(rows[there].astype(np.float64), train.y[there], weight, of_test[asked].astype(np.float64))
    return _rival(p, test)


def volatility_only(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Logistic regression on the class and volatility alone: catches a model that learnt only how wide barriers are."""
    places = [train.columns.index(name) for name in VOLATILITY_COLUMNS if name in train.columns]

    def rows(data: Dataset) -> Floats:
        width = np.log(np.maximum(data.newest()[:, places], 1e-6))[:, np.newaxis]
        which = np.eye(data.y.shape[1])
        wide = np.concatenate([width + np.zeros((1, len(which), 1)), which + np.zeros((len(data), 1, 1))], axis=2)
        return np.asarray(wide)

    return _pooled_logistic(train, test, rows(train), rows(test))


def newest_bar(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Logistic regression on what the trees read, side and class included."""
    sides = mirror_layout(train.columns)
    return _pooled_logistic(train, test, sides.rows(train.newest()), sides.rows(test.newest()))


def describe(data: Dataset, params: Params) -> list[str]:
    p, there = params.pattern, data.extras["direction"] != 0.0
    classes = classes_of(data.columns)
    told = [f"{n} {int(k):,} ({share:.3f})" for n, k, share in zip(
        classes, there.sum(axis=0), data.y.sum(axis=0) / np.maximum(there.sum(axis=0), 1), strict=True)]  # fmt: skip
    left_out = [name for name in PATTERNS if name not in classes]
    return [
        f"label: the pattern is there and {p.target_atr:g} ATR its way came before {p.stop_atr:g} ATR against it within"
        f" {p.horizon_bars} bars; no cost in the label; 0 where it is not there",
        f"patterns there, and the share that played out: {', '.join(told)}",
        *([f"not answered, since they never occur in the snapshot: {', '.join(left_out)}"] if left_out else []),
        "prevalence, its baseline, is the training share among the patterns that were there, 0 for those that are not",
    ]


PATTERN = ModelFamily(
    family="pattern",
    title="Pattern recogniser: P(a pattern that is there plays out)",
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
