"""M4, the market predictor: P(the price rises within the horizon | it moves by more than a round trip costs).

The family's p is that of an LSTM over the last 60 bars. The other members of the directional ensemble (M5) read the
newest bar of the same rows; they are fitted, calibrated and exported with it, but have weight 0 in `p`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.errors import NotEnoughData
from pipelines.features.catalog import COPIES, CORE_COLUMNS
from pipelines.labels.splits import walk_forward
from pipelines.labels.weights import effective_rows
from pipelines.models.base import Baseline, Dataset, Export, Log, ModelFamily, NativePredictions
from pipelines.models.baselines import always_base_rate, fit_logistic, log_loss_baseline, logistic
from pipelines.models.calibration import Classifier, fit_calibration
from pipelines.models.calibration_and_novelty import Calibration, as_json
from pipelines.models.export import json_bytes, npz_bytes
from pipelines.models.losses import log_losses
from pipelines.models.novelty import fit_novelty
from pipelines.models.scorers import model_entry
from pipelines.models.snapshot import bar_rows
from pipelines.models.trees import fit_boosted, fit_forest
from pipelines.models.trees_export import boosted_arrays, forest_arrays
from pipelines.models.views import VIEWS, feature_view
from pipelines.params import Params

if TYPE_CHECKING:
    from pipelines.models.networks import RecurrentNetwork

LEAST_ROWS = 200  # to fit at all: a few batches of the network; the gate requires more out of fold
NETWORK = "lstm"
# What the network reads: price return, volume, book depth, volatility; or all of the core.
WINDOW_COLUMNS = {
    "four": ("log_return_1", "volume_to_median", "depth_ratio", "volatility_20"),
    "core": CORE_COLUMNS,
}
NEWEST_COLUMNS = tuple(name for name in CORE_COLUMNS if name not in COPIES)  # what the other members read


@dataclass(frozen=True, slots=True)
class Directional:
    """Hold the native members and their calibrations, fitted on one window.

    window, newest  positions of the columns that the network, and the other members, read
    others          name → classifier
    calibration_p   sorted predictions of the network on the tail, which stopped and calibrated it
    """

    network: "RecurrentNetwork"
    window: Ints
    newest: Ints
    others: Mapping[str, Classifier]
    calibrations: Mapping[str, Calibration]
    loss_params: Mapping[str, Any] = field(default_factory=dict)
    calibration_p: Sequence[Floats] = ()

    def predict(self, inputs: Floats) -> NativePredictions:
        """Return the network's calibrated p of inputs (n, steps, k), and that of every member."""
        uncalibrated = member_probabilities(self.network, self.others, inputs, self.window, self.newest)
        members = {name: self.calibrations[name].calibrate(p.astype(np.float64)) for name, p in uncalibrated.items()}
        return NativePredictions(*members[NETWORK], {name: p for name, (p, _) in members.items()})


def network_probabilities(network: "RecurrentNetwork", windows: Floats) -> Floats:
    """Return (n,) uncalibrated probabilities of a rise; NaN where a value of the window (n, steps, k) is missing."""
    from pipelines.models.networks import probabilities_of

    p = np.full(len(windows), np.nan)
    if (complete := np.isfinite(windows).all(axis=(1, 2))).any():
        p[complete] = probabilities_of(network, windows[complete].astype(np.float32))[:, 0]
    return p


def member_probabilities(
    network: "RecurrentNetwork", others: Mapping[str, Classifier], inputs: Floats, window: Ints, newest: Ints
) -> dict[str, Floats]:
    """Return member → (n,) uncalibrated probabilities of a rise, of inputs (n, steps, k); XGBoost's are float32."""
    rows = inputs[:, -1][:, newest].astype(np.float32)
    p = {NETWORK: network_probabilities(network, inputs[:, :, window])}
    return p | {name: model.predict_proba(rows)[:, 1] for name, model in others.items()}


def dataset(artifacts: Path, params: Params) -> Dataset:
    """Return the bars whose move left the dead zone, with the columns this configuration reads."""
    view = VIEWS["predictor"]
    wanted = {*WINDOW_COLUMNS[params.predictor.configuration], *NEWEST_COLUMNS}
    columns = tuple(name for name in view.columns if name in wanted)
    return bar_rows(artifacts, "predictor", feature_view(columns, view.steps))


def places(columns: tuple[str, ...], wanted: tuple[str, ...]) -> Ints:
    """Return the positions of the wanted columns that the snapshot has, in their order."""
    return np.array([columns.index(name) for name in wanted if name in columns], dtype=np.int64)


def systematic_sample(uniqueness: Floats, most: int) -> Ints:
    """Return the row numbers of a systematic sample of at most `most` rows, as many as there is distinct information.

    uniqueness  (m,) share of a row's label that no other row has; rows are drawn in proportion to it, evenly in time,
                so that the chosen labels overlap as little as possible. Deterministic
    """
    count = max(1, min(most, len(uniqueness), int(uniqueness.sum())))
    passed = np.cumsum(uniqueness) / uniqueness.sum() * count
    return np.unique(np.minimum(np.searchsorted(passed, np.arange(count) + 0.5), len(uniqueness) - 1))


def fit(data: Dataset, params: Params, embargo_s: float, log: Log) -> Directional:
    """Fit all members on the older rows; the purged tail stops the network and calibrates every member.

    Raises  NotEnoughData under LEAST_ROWS rows before the tail, or without both directions
    """
    p = params.predictor
    split = walk_forward(data.known, data.ended, 1, 1.0 - p.tail_share, embargo_s)[0]
    head, tail = data.select_rows(split.train), data.select_rows(split.test)
    if len(head) < LEAST_ROWS or len(np.unique(head.y)) < 2:
        raise NotEnoughData(
            f"{len(head)} training rows before the purged tail, needs {LEAST_ROWS} and both directions: bring a "
            "longer history"
        )
    window, newest = places(data.columns, WINDOW_COLUMNS[p.configuration]), places(data.columns, NEWEST_COLUMNS)
    held_out = tail.select_rows(systematic_sample(tail.uniqueness, p.max_windows))
    network = fit_network(
        head.select_rows(systematic_sample(head.uniqueness, p.max_windows)), held_out, window, params, log
    )
    others = fit_others(head.newest()[:, newest].astype(np.float32), head, params)
    uncalibrated = member_probabilities(network, others, held_out.all_inputs(), window, newest)
    # the sampled rows represent the whole tail: each has its own weight and that of the rows left out
    weight = np.minimum(1.0, held_out.uniqueness * len(tail) / len(held_out))
    calibrations = {
        name: fit_calibration(member_p, held_out.y, weight, known=held_out.known)
        for name, member_p in uncalibrated.items()
    }
    calibrated, _ = calibrations[NETWORK].calibrate(uncalibrated[NETWORK])
    return Directional(
        network, window, newest, others, calibrations, calibration_p=(np.sort(calibrated[np.isfinite(calibrated)]),)
    )


def fit_network(train: Dataset, tail: Dataset, window: Ints, params: Params, log: Log) -> "RecurrentNetwork":
    """Return the configured network fitted on the windows of `train`, stopped by the loss on `tail`.

    It is standardised by the training windows, and fitted in mixed precision on a card (`training.device`).
    """
    # torch takes seconds to import, and only a fit needs it
    from pipelines.models.networks import (
        CORE,
        FOUR,
        Epoch,
        Plan,
        RecurrentNetwork,
        repeatable,
        train_network,
        training_device,
    )

    p = params.predictor
    _, layers, head = {"four": FOUR, "core": CORE}[p.configuration]

    def rows(data: Dataset) -> tuple[Any, Floats, Floats]:
        """Return (windows, labels, weights) of a dataset."""
        return data.all_inputs()[:, :, window].astype(np.float32), data.y, data.weight / data.uniqueness

    def log_epoch(epoch: Epoch) -> None:
        """Log the losses of an epoch."""
        log(
            f"predictor: {len(train):,} windows, epoch {epoch.number} of at most {p.epochs}: log loss "
            f"{epoch.train_loss:.4f}, on {len(tail):,} later windows {epoch.tail_loss:.4f}"
        )

    windows, y, weight = rows(train)
    with repeatable(params.seed):
        network = RecurrentNetwork(len(window), layers, head, p.dropout)
    network.standardise(windows)
    plan = Plan(p.epochs, p.batch, p.learning_rate, p.patience, params.seed)
    device = training_device(params.training.device)
    train_network(network, windows, y, weight, rows(tail), plan, device, on_epoch=log_epoch)
    return network


def fit_others(rows: Any, data: Dataset, params: Params) -> dict[str, Classifier]:
    """Return the members other than the network, fitted on newest bars `rows` (m, k) float32."""
    p, y = params.predictor, data.y.astype(int)
    weight = data.weight / data.weight.mean()
    events = effective_rows(data.uniqueness, data.weight / data.uniqueness)
    line = fit_logistic(rows, y, weight, params.baselines.logistic_c)
    forest = fit_forest(rows, y, weight, events, p.forest, params.seed)
    boosted = fit_boosted(rows, y, weight, events, p.boosted, params.seed)
    return {"logistic": line, "random_forest": forest, "xgboost": boosted}


def to_onnx(name: str, model: Classifier, width: int) -> bytes:
    """Return a scikit-learn classifier as ONNX: rows (n, width) float32 → "probabilities" (n, 2).

    The same model gives the same bytes.
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType

    exported = convert_sklearn(
        model, name=name, initial_types=[("rows", FloatTensorType([None, width]))], target_opset=15,
        options={id(model): {"zipmap": False}},
    )  # fmt: skip
    return bytes(exported.SerializeToString())


def export(fitted: Any, data: Dataset, params: Params) -> Export:
    """Return an ensemble in which only the network has a weight, with the directional weights in the schema."""
    from pipelines.models.networks import device_words
    from pipelines.models.recurrent_onnx import recurrent_to_onnx

    steps = data.inputs(np.zeros(1, np.int64)).shape[1]
    files = {
        f"{NETWORK}.onnx": recurrent_to_onnx(fitted.network, steps, NETWORK),
        "logistic.onnx": to_onnx("logistic", fitted.others["logistic"], len(fitted.newest)),
        "random_forest.npz": npz_bytes(**forest_arrays(fitted.others["random_forest"])),
        "xgboost.npz": npz_bytes(**boosted_arrays(fitted.others["xgboost"])),
    }
    entries = {Path(file).stem: model_entry(file) for file in files}
    files["calibration.json"] = json_bytes({name: [as_json(one)] for name, one in fitted.calibrations.items()})
    members = []
    for name in fitted.calibrations:
        is_network = name == NETWORK
        members.append({
            "name": name, **entries[name], "reads": "window" if is_network else "newest",
            "weight": float(is_network),
            "columns": [data.columns[i] for i in (fitted.window if is_network else fitted.newest)],
        })  # fmt: skip
    schema = {
        "classes": list(PREDICTOR.classes),
        "steps": steps,
        "members": members,
        "ensemble": params.ensemble.model_dump(),
        "configuration": params.predictor.configuration,
        "horizon_bars": params.predictor.horizon_bars,
        "training_device": device_words(params.training.device),
    }
    return Export("ensemble", files, schema)


def loss(p: Floats, data: Dataset, loss_params: Mapping[str, Any]) -> Floats:
    """Return (n,) log losses in nats."""
    return log_losses(p, data.y)


def last_sign(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Predict the training share of rises after a bar that rose, fell or did not move: momentum or reversal."""
    overall = float(np.average(train.y, weights=train.weight))
    before, now = np.sign(train.extras["last_return"]), np.sign(test.extras["last_return"])
    p = np.full(len(test), overall)
    for sign in (-1.0, 0.0, 1.0):
        rows = before == sign
        # shrunk to the overall share with the weight of one row: a rare sign has little evidence of its own
        p[now == sign] = (np.sum(train.weight[rows] * train.y[rows]) + overall) / (np.sum(train.weight[rows]) + 1.0)
    return log_loss_baseline(p, test)


def newest_bar(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Predict by logistic regression on the newest bar's core columns: what windows and layers must improve on."""
    read = places(train.columns, NEWEST_COLUMNS)
    return log_loss_baseline(
        logistic(train.newest()[:, read], train.y, train.weight, test.newest()[:, read], params), test
    )


def describe(data: Dataset, params: Params) -> list[str]:
    """Return the card's lines on label, configuration and members."""
    p = params.predictor
    chosen = len(systematic_sample(data.uniqueness, p.max_windows))
    return [
        f"label: direction over the next {p.horizon_bars} bars, only where the move was more than a round trip costs "
        f"({data.extras['cost_bps'].mean():.3g} bps on average); {data.y.mean():.3f} of {len(data):,} rose",
        f"configuration {p.configuration}: at most {chosen:,} windows a fit, at most {p.epochs} epochs, stopped and "
        f"calibrated by the newest {p.tail_share:.0%} of its rows",
        "further members, of weight 0 in p: logistic regression, random forest and XGBoost on the newest bar",
    ]


PREDICTOR = ModelFamily(
    family="predictor",
    title="Market predictor: P(up) over the next bars, given a move larger than its cost",
    classes=("up",),
    loss_name="log loss",
    dataset=dataset,
    fit=fit,
    loss=loss,
    baselines={"base_rate": always_base_rate, "last_sign": last_sign, "logistic": newest_bar},
    export=export,
    novelty=lambda rows, params: fit_novelty(rows, params.predictor.novelty_quantile),
    describe=describe,
    folds=lambda params: params.predictor.folds,
)
