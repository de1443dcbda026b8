"""M1, the signal validator: P(a signal's target is reached before its stop), by gradient-boosted trees."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.contracts import Floats
from pipelines.errors import NotEnoughData
from pipelines.labels.misses import miss_atr
from pipelines.labels.splits import walk_forward
from pipelines.labels.weights import effective_rows
from pipelines.models.base import Baseline, Dataset, Export, HalfLife, Log, ModelFamily
from pipelines.models.baselines import always_base_rate, log_loss_baseline, logistic
from pipelines.models.calibration import Calibrated, export_calibrated, fit_calibrated, raw
from pipelines.models.export import npz_bytes
from pipelines.models.losses import log_losses
from pipelines.models.novelty import fit_novelty
from pipelines.models.snapshot import pooled_labels
from pipelines.models.trees import fit_boosted
from pipelines.models.trees_export import boosted_arrays
from pipelines.params import Params

if TYPE_CHECKING:
    from xgboost import XGBClassifier

LEAST_EVENTS = 50  # to fit at all: fewer fill no second leaf, and the gate requires ten times as many out of fold
EXTRAS = (  # of the labels, for baselines, gate and backtest; the model reads none of them
    "gross_bps", "cost_bps", "target_cost_bps", "spread_known", "direction", "atr", "volatility", "regime",
)  # fmt: skip


def dataset(artifacts: Path, params: Params) -> Dataset:
    """Return the resolved, eligible events of all markets in time order. Raises NotEnoughData without one."""
    found = pooled_labels(artifacts, "events")
    arrays = found.arrays
    if len(arrays["y"]) == 0:
        raise NotEnoughData(
            "0 events with a target of labels.min_target_to_cost times the cost were resolved in this snapshot; "
            "bring a longer history, a coarser data.decision_timeframe, or lower costs in params.yaml"
        )
    rows = arrays["rows"]
    return Dataset(
        columns=tuple(arrays["columns"].tolist()),
        inputs=lambda at: rows[at],
        at=np.arange(len(rows)),
        weight=arrays["uniqueness"],
        y=arrays["y"],
        uniqueness=arrays["uniqueness"],
        known=arrays["known"],
        ended=arrays["ended"],
        extras={name: arrays[name] for name in EXTRAS},
        symbol=found.symbol,
        symbols=found.symbols,
    )


def fit_trees(rows: Floats, y: Floats, weight: Floats, params: Params) -> "XGBClassifier":
    """Return XGBoost trees fitted with the settings of params.yaml on rows (n, k), labels y and weights (n,)."""
    events = effective_rows(np.ones(len(weight)), weight)
    return fit_boosted(rows, y.astype(int), weight, events, params.validator, params.seed)


def half_life(data: Dataset, params: Params, embargo_s: float) -> HalfLife:
    """Return the longest stated half-life whose later log loss is within one standard error of the lowest.

    Of trees fitted on the older events of the window, scored on one inner fold: its newest `half_life_tail`, purged and
    embargoed, each event counted by its uniqueness. The error is that of the events' differences from the lowest loss:
    what two half-lives both miss says nothing about either. The longest is taken where nothing can be compared.

    Source  Breiman, Friedman, Olshen & Stone 1984, Classification and Regression Trees, sec. 3.4.3 (1 SE rule)
    """
    p = params.validator
    values = sorted(p.decay_half_lives_events, reverse=True)
    try:
        split = walk_forward(data.known, data.ended, 1, 1.0 - p.half_life_tail, embargo_s)[0]
    except NotEnoughData as fault:
        return HalfLife(values[0], note=str(fault))
    head, tail = data.select_rows(split.train), data.select_rows(split.test)
    if len(head) < LEAST_EVENTS or len(np.unique(head.y)) < 2:
        return HalfLife(
            values[0], note=f"{len(head)} events before the inner fold, needs {LEAST_EVENTS} of both outcomes"
        )
    rows, later = head.all_inputs(), tail.all_inputs()
    losses = {}
    for events in values:
        model = fit_trees(rows, head.y, head.decayed(events).weight, params)
        losses[events] = log_losses(raw(model, later), tail.y)
    tried = {events: float(np.average(loss, weights=tail.uniqueness)) for events, loss in losses.items()}
    lowest = losses[min(tried, key=lambda events: tried[events])]
    chosen = next(e for e in values if not _above(losses[e] - lowest, tail.uniqueness))
    return HalfLife(chosen, tried)


def _above(values: Floats, weight: Floats) -> bool:
    """Return whether the weighted mean of values (n,) is above zero by more than its standard error.

    weight  (n,) uniqueness: their sum is the number of events that do not overlap
    """
    mean = float(np.average(values, weights=weight))
    return mean > float(np.sqrt(np.average((values - mean) ** 2, weights=weight) / weight.sum()))


def fit(data: Dataset, params: Params, embargo_s: float, log: Log) -> Calibrated:
    """Return the trees fitted on all rows, calibrated on purged inner folds of the same window."""
    if len(data) < LEAST_EVENTS or len(np.unique(data.y)) < 2:
        raise NotEnoughData(
            f"{len(data)} training events, needs {LEAST_EVENTS} and both outcomes: bring a longer history"
        )
    return fit_calibrated(
        data,
        embargo_s,
        LEAST_EVENTS // 2,
        lambda rows: fit_trees(rows.all_inputs(), rows.y, rows.weight, params),
        params.splits.calibration_stretches,
    )


def export(fitted: Any, data: Dataset, params: Params) -> Export:
    """Return the export of a `Calibrated` validator."""
    content = npz_bytes(**boosted_arrays(fitted.model))
    return export_calibrated("model.npz", content, fitted.calibration, VALIDATOR.classes)


def contributions(fitted: Any, rows: Floats) -> Floats:
    """Return (n, k) TreeSHAP values of the trees as XGBoost computes them, log-odds before calibration.

    Source  Lundberg et al. 2020, Nat. Mach. Intell. 2(1).
    """
    import xgboost

    values = fitted.model.get_booster().predict(xgboost.DMatrix(rows, nthread=1), pred_contribs=True)
    return np.asarray(values[:, :-1], dtype=np.float64)  # the last column is the base value of every row


def loss(p: Floats, data: Dataset, loss_params: Mapping[str, Any]) -> Floats:
    """Return (n,) log losses in nats."""
    return log_losses(p, data.y)


def expected_miss(data: Dataset) -> float | None:
    """Return what the events returned that missed their target, in ATR, weighted by uniqueness.

    Before what a trade pays that reaches it, and after what only a miss pays: the slippage of stops, and the funding.
    """
    gross_bps = data.extras["gross_bps"] + data.extras["target_cost_bps"] - data.extras["cost_bps"]
    return miss_atr(data.y, gross_bps, data.extras["atr"], data.uniqueness)


def volatility_only(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Predict by logistic regression on barrier width and volatility regime: shows if a model learnt only these."""
    return log_loss_baseline(
        logistic(train.extras["volatility"], train.y, train.weight, test.extras["volatility"], params), test
    )


def all_columns(train: Dataset, test: Dataset, params: Params) -> Baseline:
    """Predict by logistic regression on all of the model's columns."""
    return log_loss_baseline(logistic(train.all_inputs(), train.y, train.weight, test.all_inputs(), params), test)


def describe(data: Dataset, params: Params) -> list[str]:
    """Return the card's lines on hit rate and label."""
    labels = params.labels
    return [
        f"hit rate {data.y.mean():.3f} of {len(data)} events",
        f"label: target {labels.target_atr} ATR before stop {labels.stop_atr} ATR within {labels.horizon_bars} bars;"
        " no cost in the label",
    ]


VALIDATOR = ModelFamily(
    family="validator",
    title="Signal validator: P(target before stop) of a signal",
    classes=("target_first",),
    loss_name="log loss",
    dataset=dataset,
    fit=fit,
    loss=loss,
    baselines={"base_rate": always_base_rate, "volatility_only": volatility_only, "logistic": all_columns},
    export=export,
    novelty=lambda rows, params: fit_novelty(rows, params.validator.novelty_quantile),
    describe=describe,
    half_life=half_life,
    left_out=lambda params: tuple(params.validator.left_out),
    is_decision_model=True,
    miss_atr=expected_miss,
    contributions=contributions,
)
