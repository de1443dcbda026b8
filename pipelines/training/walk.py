"""Walk forward over the rows of one family: each fold and the final fit is a part that any process can compute alone.

A part reads the rows and the parameters and nothing else: neither the order of the parts nor who computes them shows in
a result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.evaluation.importance import PermutationPlan, PermutationResult, join_folds, permute
from pipelines.labels.splits import walk_forward
from pipelines.models.base import Baseline, Dataset, Export, Fitted, HalfLife, Log, ModelFamily, NativePredictions
from pipelines.params import Params
from pipelines.training.side_by_side import Job

GOLDEN_POOL = 512  # evenly spaced training rows, from which golden rows and the parity check are taken
FINAL = 0  # number of the part that is fitted on all rows


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Hold predictions of rows outside the training; arrays over `row` numbers of the dataset.

    loss         (n,) in the family's unit; p, p_low (n,) or (n, classes)
    members      member → its own p; baselines: name → baseline on the same rows
    fold         (n,) number of the fold, from 1, whose model predicted the row
    rank         (n,) or (n, classes) share of that model's own calibration predictions below p, in [0, 1]: known when p
                 was, so a threshold on it looks at no later row; NaN where p is; None for a family without calibration
    half_lives   of the weights, one a fold
    permutation  effect of permuting columns; None if that was not planned
    miss_atr     (n,) what each row's training fold expects of a missed target, see ModelFamily; NaN where it knew none;
                 None for a family that decides no trade
    """

    row: Ints
    loss: Floats
    p: Floats
    p_low: Floats
    members: dict[str, Floats]
    label: list[str | None] | None
    baselines: dict[str, Baseline]
    folds: int
    fold: Ints
    rank: Floats | None
    half_lives: list[HalfLife] = field(default_factory=list)
    permutation: PermutationResult | None = None
    miss_atr: Floats | None = None


@dataclass(frozen=True, slots=True)
class FittedWindow:
    """Hold a model fitted on one training window, the window with the weights it was fitted with, their half-life."""

    fitted: Fitted
    rows: Dataset
    half_life: HalfLife


@dataclass(frozen=True, slots=True)
class Walk:
    """Hold what every part reads.

    splits     (numbers of the training rows, numbers of the test rows) of each fold
    plan       of the permutation of columns; None = none
    embargo_s  seconds between training labels and test rows
    """

    model_family: ModelFamily
    data: Dataset
    params: Params
    embargo_s: float
    splits: list[tuple[Ints, Ints]]
    plan: PermutationPlan | None
    log: Log


@dataclass(frozen=True, slots=True)
class Fold:
    """Hold what one fold found of its n test rows.

    row       (n,) numbers of the rows; loss (n,)
    rank      as OutOfFold.rank; None for a family without calibration
    permuted  None where no permutation was planned
    miss_atr  (n,) as OutOfFold.miss_atr; None for a family that decides no trade
    """

    row: Ints
    loss: Floats
    predicted: NativePredictions
    baselines: dict[str, Baseline]
    rank: Floats | None
    half_life: HalfLife
    permuted: PermutationResult | None
    miss_atr: Floats | None


@dataclass(frozen=True, slots=True)
class FinalFit:
    """Hold the model fitted on all rows as it is stored: no native model leaves the process that fitted it.

    pool_p  (g,) or (g, classes) native p of the rows `pool_rows`, with which the stored model is compared
    """

    half_life: HalfLife
    loss_params: Mapping[str, Any]
    export: Export
    pool_p: Floats


def fit_window(model_family: ModelFamily, data: Dataset, params: Params, embargo_s: float, log: Log) -> FittedWindow:
    """Choose the half-life of a training window's weights on the window alone, and fit the family on it."""
    half_life = model_family.half_life(data, params, embargo_s)
    if half_life.tried or half_life.note:
        tried = ", ".join(f"{events:g}: {loss:.5f}" for events, loss in sorted(half_life.tried.items()))
        log(f"half-life {half_life.events:g} events, of {tried or half_life.note}")
    rows = data.decayed(half_life.events)
    return FittedWindow(model_family.fit(rows, params, embargo_s, log), rows, half_life)


def plan_walk(
    model_family: ModelFamily, data: Dataset, params: Params, embargo_s: float, log: Log, plan: PermutationPlan | None
) -> Walk:
    """Return the walk over these rows, in the folds of the family."""
    folds = model_family.folds(params)
    splits = walk_forward(data.known, data.ended, folds, params.splits.min_train_fraction, embargo_s)
    return Walk(model_family, data, params, embargo_s, [(split.train, split.test) for split in splits], plan, log)


def jobs_of(walk: Walk) -> list[Job]:
    """Return the parts of a walk: its folds in order, then the final fit."""
    family = walk.model_family.family
    folds = [Job(f"{family} fold {number}", number) for number in range(1, len(walk.splits) + 1)]
    return [*folds, Job(f"{family} final fit", FINAL)]


def fit_part(_: Path, walk: Walk, number: int) -> Fold | FinalFit:
    """Compute one part of a walk: the fold of this number, from 1, or the final fit."""
    return fit_all_rows(walk) if number == FINAL else fit_fold(walk, number)


def fit_fold(walk: Walk, number: int) -> Fold:
    """Fit and calibrate on the rows before a fold, score the fold, and permute its columns if that is planned."""
    model_family, data, params = walk.model_family, walk.data, walk.params
    chosen, scored = walk.splits[number - 1]
    train, test = data.select_rows(chosen), data.select_rows(scored)
    walk.log(f"[{number - 1}/{len(walk.splits) + 1}] {len(train):,} rows to train on, {len(test):,} to score")
    window = fit_window(model_family, train, params, walk.embargo_s, walk.log)
    fitted = window.fitted
    predicted = predict_in_batches(fitted, test)
    loss = model_family.loss(predicted.p, test, fitted.loss_params)
    misses = None
    if model_family.miss_atr is not None:
        expected = model_family.miss_atr(train)
        misses = np.full(len(test), np.nan if expected is None else expected)
    return Fold(
        row=scored,
        loss=loss,
        predicted=predicted,
        baselines={name: baseline(window.rows, test, params) for name, baseline in model_family.baselines.items()},
        rank=rank_among(predicted.p, fitted.calibration_p),
        half_life=window.half_life,
        permuted=None if walk.plan is None else permute(model_family, fitted, test, loss, walk.plan, params),
        miss_atr=misses,
    )


def fit_all_rows(walk: Walk) -> FinalFit:
    """Fit on all rows and export the model."""
    data, folds = walk.data, len(walk.splits)
    walk.log(f"[{folds}/{folds + 1}] final fit on {len(data):,} rows, {len(data.columns)} columns")
    window = fit_window(walk.model_family, data, walk.params, walk.embargo_s, walk.log)
    export = walk.model_family.export(window.fitted, window.rows, walk.params)
    pool = window.rows.inputs(pool_rows(window.rows))
    return FinalFit(window.half_life, dict(window.fitted.loss_params), export, window.fitted.predict(pool).p)


def pool_rows(data: Dataset) -> Ints:
    """Return the numbers of the rows on which the stored model is compared with the native one."""
    return np.linspace(0, len(data) - 1, min(GOLDEN_POOL, len(data))).astype(int)


def out_of_fold(
    model_family: ModelFamily,
    data: Dataset,
    params: Params,
    embargo_s: float,
    log: Log,
    plan: PermutationPlan | None = None,
) -> OutOfFold:
    """Walk forward: fit and calibrate on the rows so far, score the next stretch, and permute its columns if `plan`.

    embargo_s  seconds between training labels and test rows
    """
    walk = plan_walk(model_family, data, params, embargo_s, log, plan)
    return join(model_family, [fit_fold(walk, number) for number in range(1, len(walk.splits) + 1)])


def join(model_family: ModelFamily, folds: Sequence[Fold]) -> OutOfFold:
    """Return the folds, given in their order, as one."""
    put = np.concatenate
    predicted = [fold.predicted for fold in folds]
    ranks = [fold.rank for fold in folds if fold.rank is not None]
    misses = [fold.miss_atr for fold in folds if fold.miss_atr is not None]
    permuted = [fold.permuted for fold in folds if fold.permuted is not None]
    return OutOfFold(
        row=put([fold.row for fold in folds]),
        loss=put([fold.loss for fold in folds]),
        p=put([each.p for each in predicted]),
        p_low=put([each.p_low for each in predicted]),
        members={name: put([each.members[name] for each in predicted]) for name in predicted[0].members},
        label=_labels(predicted),
        baselines={name: _joined([fold.baselines[name] for fold in folds]) for name in model_family.baselines},
        folds=len(folds),
        fold=np.repeat(np.arange(1, len(folds) + 1), [len(fold.row) for fold in folds]),
        rank=put(ranks) if len(ranks) == len(folds) else None,
        half_lives=[fold.half_life for fold in folds],
        permutation=join_folds(permuted) if permuted else None,
        miss_atr=put(misses) if misses else None,
    )


def rank_among(p: Floats, calibration_p: Sequence[Floats]) -> Floats | None:
    """Return the share of a model's calibration predictions below p (n,) or (n, classes); None if it has none.

    calibration_p  an ascending array a class. NaN where p is, and for a class without calibration predictions
    """
    if not calibration_p:
        return None
    columns = [
        np.searchsorted(each, values) / len(each) if len(each) else np.full(len(p), np.nan)
        for each, values in zip(calibration_p, np.atleast_2d(p.T), strict=True)
    ]
    return np.where(np.isfinite(p), columns[0] if p.ndim == 1 else np.column_stack(columns), np.nan)


def _joined(parts: list[Baseline]) -> Baseline:
    """Return one baseline over the rows of all folds."""
    p = [part.p for part in parts if part.p is not None]
    return Baseline(np.concatenate([part.loss for part in parts]), np.concatenate(p) if p else None)


def _labels(parts: list[NativePredictions]) -> list[str | None] | None:
    """Return the labels of all parts in one list; None for a model without labels."""
    labels = [part.label for part in parts if part.label is not None]
    return [label for part in labels for label in part] if labels else None


def predict_in_batches(fitted: Fitted, data: Dataset) -> NativePredictions:
    """Return native predictions of all rows, made in batches: windows of a whole history would not fit in memory."""
    parts = [fitted.predict(data.inputs(batch)) for batch in batches(len(data))]
    return NativePredictions(
        np.concatenate([part.p for part in parts]),
        np.concatenate([part.p_low for part in parts]),
        {name: np.concatenate([part.members[name] for part in parts]) for name in parts[0].members},
        _labels(parts),
    )


def batches(n: int) -> list[Ints]:
    """Return the row numbers below n in batches of about 2048."""
    return np.array_split(np.arange(n), max(1, n // 2048))
