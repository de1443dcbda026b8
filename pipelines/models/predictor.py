"""M4, the market predictor: P(the price rises within the horizon | it moves by more than a round trip costs).

The family speaks with an LSTM over the last 60 bars. Beside it stand the other members of the directional ensemble
(M5), which read the newest bar of the same rows: heard, calibrated and exported, but without a vote in `p`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.errors import NotEnoughData
from pipelines.features.catalog import COPIES, CORE_COLUMNS
from pipelines.labels.splits import walk_forward
from pipelines.models.base import Baseline, Dataset, Export, Log, ModelFamily, NativePredictions
from pipelines.models.baselines import always_base_rate, log_loss_baseline, logistic
from pipelines.models.calibration import fit_calibration
from pipelines.models.calibration_and_novelty import Calibration, as_json
from pipelines.models.export import json_bytes
from pipelines.models.losses import log_losses
from pipelines.models.novelty import fit_novelty
from pipelines.models.snapshot import bar_rows
from pipelines.models.views import VIEWS, feature_view
from pipelines.params import Params

if TYPE_CHECKING:
    from pipelines.models.networks import RecurrentNetwork

LEAST_ROWS = 200
NETWORK = "lstm"
# What the network reads: price return, volume, book depth, volatility; or all of the core.
WINDOW_COLUMNS = {
    "four": ("log_return_1", "volume_to_median", "depth_ratio", "volatility_20"),
    "core": CORE_COLUMNS,
}
NEWEST_COLUMNS = tuple(name for name in CORE_COLUMNS if name not in COPIES)  # what the members beside it read


@dataclass(frozen=True, slots=True)
class Directional:
    """The native members and their calibrations, fitted on one window.

    window, newest  positions of the columns that the network, and the others, read
    others          name → classifier with `predict_proba`
    """

    network: "RecurrentNetwork"
    window: Ints
    newest: Ints
    others: Mapping[str, Any]
    calibrations: Mapping[str, Calibration]
    loss_params: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, inputs: Floats) -> NativePredictions:
        raw = {NETWORK: network_raw(self.network, inputs[:, :, self.window])}
        rows = inputs[:, -1][:, self.newest].astype(np.float32)
        raw |= {name: np.asarray(model.predict_proba(rows)[:, 1], np.float64) for name, model in self.others.items()}
        members = {name: self.calibrations[name].calibrate(p) for name, p in raw.items()}
        return NativePredictions(*members[NETWORK], {name: p for name, (p, _) in members.items()})


def network_raw(network: "RecurrentNetwork", windows: Floats) -> Floats:
    """(n,) the network's own probability of a rise; NaN where a value of the window (n, steps, k) is missing."""
    from pipelines.models.networks import probabilities_of

    p = np.full(len(windows), np.nan)
    if (whole := np.isfinite(windows).all(axis=(1, 2))).any():
        p[whole] = probabilities_of(network, windows[whole].astype(np.float32))[:, 0]
    return p


def dataset(artifacts: Path, params: Params) -> Dataset:
    """Bars whose move left the dead zone, through the columns this configuration reads."""
    view = VIEWS["predictor"]
    wanted = {*WINDOW_COLUMNS[params.predictor.configuration], *NEWEST_COLUMNS}
    columns = tuple(name for name in view.columns if name in wanted)
    return bar_rows(artifacts, "predictor", feature_view(columns, view.steps))


def places(columns: tuple[str, ...], wanted: tuple[str, ...]) -> Ints:
    """Positions of the wanted columns that the snapshot has, in their order."""
    return np.array([columns.index(name) for name in wanted if name in columns], dtype=np.int64)


def systematic_sample(uniqueness: Floats, most: int) -> Ints:
    """Row numbers of a systematic sample: as many as there is distinct information, at most `most`.

    uniqueness  (m,) share of a row's label that is its own; rows are drawn in proportion to it, at even distances in
                time, so that chosen labels overlap as little as they can. No chance is in it.
    """
    count = max(1, min(most, len(uniqueness), int(uniqueness.sum())))
    passed = np.cumsum(uniqueness) / uniqueness.sum() * count
    return np.unique(np.minimum(np.searchsorted(passed, np.arange(count) + 0.5), len(uniqueness) - 1))


def fit(data: Dataset, params: Params, embargo_s: float, log: Log) -> Directional:
    """All members on the older part of the rows; the purged tail stops the network and calibrates every one of them."""
    p = params.predictor
    split = walk_forward(data.known, data.ended, 1, 1.0 - p.tail_share, embargo_s)[0]
    head, tail = data.select_rows(split.train), data.select_rows(split.test)
    if len(head) < LEAST_ROWS or len(np.unique(head.y)) < 2:
        raise NotEnoughData(
            f"{len(head)} rows to learn from before the purged tail, needs {LEAST_ROWS} and both directions: bring a "
            "longer history"
        )
    window, newest = places(data.columns, WINDOW_COLUMNS[p.configuration]), places(data.columns, NEWEST_COLUMNS)
    heard = tail.select_rows(systematic_sample(tail.uniqueness, p.max_windows))
    network = fit_network(
        head.select_rows(systematic_sample(head.uniqueness, p.max_windows)), heard, window, params, log
    )
    others = fit_others(head.newest()[:, newest].astype(np.float32), head, params)
    inputs = heard.all_inputs()
    raw = {NETWORK: network_raw(network, inputs[:, :, window])}
    raw |= {n: m.predict_proba(inputs[:, -1][:, newest].astype(np.float32))[:, 1] for n, m in others.items()}
    # the chosen rows of the tail stand for all of it: each counts its own share and that of the rows left out
    counts = np.minimum(1.0, heard.uniqueness * len(tail) / len(heard))
    calibrations = {name: fit_calibration(said, heard.y, counts) for name, said in raw.items()}
    return Directional(network, window, newest, others, calibrations)


def fit_network(learnt: Dataset, tail: Dataset, window: Ints, params: Params, log: Log) -> "RecurrentNetwork":
    """The configured network on these windows, standardised by them; on a card in mixed precision if there is one."""
    # torch takes seconds to import: only who fits a network pays for it
    from pipelines.models.networks import (
        CORE,
        FOUR,
        Epoch,
        Plan,
        RecurrentNetwork,
        best_device,
        repeatable,
        train_network,
    )

    p = params.predictor
    _, layers, head = {"four": FOUR, "core": CORE}[p.configuration]

    def rows(of: Dataset) -> tuple[Any, Floats, Floats]:
        return of.all_inputs()[:, :, window].astype(np.float32), of.y, of.weight / of.uniqueness

    def heard(epoch: Epoch) -> None:
        log(
            f"predictor: {len(learnt):,} windows, epoch {epoch.number} of at most {p.epochs}: log loss "
            f"{epoch.train_loss:.4f}, on {len(tail):,} later windows {epoch.tail_loss:.4f}"
        )

    windows, y, weight = rows(learnt)
    with repeatable(params.seed):
        network = RecurrentNetwork(len(window), layers, head, p.dropout)
    network.standardise(windows)
    plan = Plan(p.epochs, p.batch, p.learning_rate, p.patience, params.seed)
    train_network(network, windows, y, weight, rows(tail), plan, best_device(), on_epoch=heard)
    return network


def fit_others(rows: Any, data: Dataset, params: Params) -> dict[str, Any]:
    """The members beside the network on rows (m, k) of the newest bars; one thread, so the same bits every time."""
    p, y = params.predictor, data.y.astype(int)
    overlap = float(data.uniqueness.mean())
    weight = data.weight / data.weight.mean()
    import xgboost  # seconds of imports that only a fit needs
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    line = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=500))
    line.fit(rows, y, logisticregression__sample_weight=weight)
    # a tree draws as many rows as are distinct: more would only repeat labels (López de Prado 2018, ch. 6.2)
    forest = RandomForestClassifier(
        p.trees, max_depth=p.depth, min_samples_leaf=round(p.leaf), max_samples=overlap, random_state=params.seed,
        n_jobs=1,
    ).fit(rows, y, weight)  # fmt: skip
    # weights sum to the effective number of rows, so that a leaf counts overlapping labels once
    boosted = xgboost.XGBClassifier(
        n_estimators=p.trees, max_depth=p.depth, learning_rate=0.05, min_child_weight=p.leaf, subsample=0.8,
        reg_lambda=5.0, tree_method="hist", random_state=params.seed, n_jobs=1,
    ).fit(rows, y, sample_weight=weight * overlap)  # fmt: skip
    return {"logistic": line, "random_forest": forest, "xgboost": boosted}


def to_onnx(name: str, model: Any, width: int) -> bytes:
    """Rows (n, width) float32 in, "probabilities" (n, 2) out; names of our own: the same model gives the same bytes."""
    if name == "xgboost":
        from onnxmltools.convert import convert_xgboost
        from onnxmltools.convert.common.data_types import FloatTensorType as XgboostFloats

        exported = convert_xgboost(
            model, name=name, initial_types=[("rows", XgboostFloats([None, width]))], target_opset=15
        )
    else:
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        exported = convert_sklearn(
            model, name=name, initial_types=[("rows", FloatTensorType([None, width]))], target_opset=15,
            options={id(model): {"zipmap": False}},
        )  # fmt: skip
    return bytes(exported.SerializeToString())


def export(fitted: Any, data: Dataset, params: Params) -> Export:
    """A committee in which the network has the vote; the ensemble's weights travel with it as they were registered."""
    from pipelines.models.recurrent_onnx import recurrent_to_onnx

    steps = data.inputs(np.zeros(1, np.int64)).shape[1]
    files = {f"{NETWORK}.onnx": recurrent_to_onnx(fitted.network, steps, NETWORK)}
    files |= {f"{name}.onnx": to_onnx(name, model, len(fitted.newest)) for name, model in fitted.others.items()}
    files["calibration.json"] = json_bytes({name: [as_json(one)] for name, one in fitted.calibrations.items()})
    members = []
    for name in fitted.calibrations:
        speaks = name == NETWORK
        members.append({
            "name": name, "file": f"{name}.onnx", "reads": "window" if speaks else "newest", "weight": float(speaks),
            "columns": [data.columns[i] for i in (fitted.window if speaks else fitted.newest)],
        })  # fmt: skip
    schema = {
        "classes": list(PREDICTOR.classes),
        "steps": steps,
        "members": members,
        "ensemble": params.ensemble.model_dump(),
        "configuration": params.predictor.configuration,
        "horizon_bars": params.predictor.horizon_bars,
    }
    return Export("committee", files, schema)


def loss(p: Floats, data: Dataset, loss_params: Mapping[str, Any]) -> Floats:
    return log_losses(p, data.y)


def last_sign(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """The training share of rises after a bar that rose, fell or stood still: momentum or reversal, whichever it is."""
    overall = float(np.average(train.y, weights=train.weight))
    before, now = np.sign(train.extras["last_return"]), np.sign(test.extras["last_return"])
    p = np.full(len(test), overall)
    for sign in (-1.0, 0.0, 1.0):
        seen = before == sign
        # one row's worth of the overall share: a sign that hardly occurred says hardly anything else
        p[now == sign] = (np.sum(train.weight[seen] * train.y[seen]) + overall) / (np.sum(train.weight[seen]) + 1.0)
    return log_loss_baseline(p, test)


def newest_bar(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Logistic regression on the newest bar's core columns: what the sixty bars and the layers must add to."""
    read = places(train.columns, NEWEST_COLUMNS)
    return log_loss_baseline(logistic(train.newest()[:, read], train.y, train.weight, test.newest()[:, read]), test)


def describe(data: Dataset, params: Params) -> list[str]:
    p = params.predictor
    chosen = len(systematic_sample(data.uniqueness, p.max_windows))
    return [
        f"label: direction over the next {p.horizon_bars} bars, only where the move was more than "
        f"{params.costs.round_trip_bps:g} bps (a round trip); {data.y.mean():.3f} of {len(data):,} rose",
        f"configuration {p.configuration}: at most {chosen:,} windows a fit, at most {p.epochs} epochs, stopped and "
        f"calibrated by the newest {p.tail_share:.0%} of its rows",
        "beside the LSTM, without a vote in p: logistic regression, random forest and XGBoost on the newest bar",
    ]


PREDICTOR = ModelFamily(
    family="predictor",
    title="Market predictor: P(up) over the next bars, given a move worth its cost",
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
