"""Fit one family on one snapshot and say honestly what it scores. Returns a candidate; never promotes."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.errors import NotEnoughData
from pipelines.evaluation.splits import combinatorial, walk_forward
from pipelines.models.base import Recipe, present_columns
from pipelines.models.baselines import BASELINES
from pipelines.models.calibration import fit_calibration
from pipelines.models.export import write_bundle
from pipelines.models.novelty import fit_novelty
from pipelines.models.runtime import Calibration, load_bundle
from pipelines.settings import Params
from pipelines.training.dataset import Dataset

CALIBRATION_FOLDS = 4  # purged stretches of a training window, each scored by a fit on the others, for Platt scaling
RECENT_SHARE = 0.2  # newest part of the events: how novel does it look to a gate fitted on what came before?
LEAST_EVENTS = 50
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Predictions on rows the model had not seen; arrays (n,) over `row` numbers of the dataset."""

    row: Ints
    p: Floats
    p_low: Floats
    baselines: dict[str, Floats]
    folds: int


def out_of_fold(
    recipe: Recipe, data: Dataset, rows: Floats, params: Params, embargo_s: float, say: Progress
) -> OutOfFold:
    """Walk forward: fit and calibrate on the window so far, score the next stretch."""
    splits = walk_forward(data.known, data.ended, params.splits.folds, params.splits.min_train_fraction, embargo_s)
    seen, probabilities, lows = [], [], []
    baselines: dict[str, list[Floats]] = {name: [] for name in BASELINES}
    for number, split in enumerate(splits, start=1):
        native, calibration = fit_calibrated(recipe, _take(data, split.train), rows[split.train], params, embargo_s)
        seen.append(split.test)
        raw = recipe.raw(native, rows[split.test])
        probabilities.append(calibration.apply(raw))
        lows.append(calibration.lower(raw))
        for name, baseline in BASELINES.items():
            train = split.train
            baselines[name].append(
                baseline(rows[train], data.y[train], data.weight[train], data.volatility[train],
                         rows[split.test], data.volatility[split.test])
            )  # fmt: skip
        sizes = f"{len(split.train)} events to learn, {len(split.test)} to score"
        say(f"{recipe.family}: fold {number}/{len(splits)}: {sizes}")
    return OutOfFold(
        np.concatenate(seen), np.concatenate(probabilities), np.concatenate(lows),
        {name: np.concatenate(parts) for name, parts in baselines.items()}, len(splits),
    )  # fmt: skip


def fit_calibrated(
    recipe: Recipe, data: Dataset, rows: Floats, params: Params, embargo_s: float
) -> tuple[Any, Calibration]:
    """The native model on all rows, and its calibration from purged inner folds of the same window."""
    if len(data) < LEAST_EVENTS or len(np.unique(data.y)) < 2:
        raise NotEnoughData(
            f"{len(data)} events to learn from, needs {LEAST_EVENTS} and both outcomes: bring a longer history"
        )
    raw = np.full(len(data), np.nan)
    for split in combinatorial(data.known, data.ended, CALIBRATION_FOLDS, 1, embargo_s):
        if len(split.train) >= LEAST_EVENTS // 2:
            native = recipe.fit(rows[split.train], data.y[split.train], data.weight[split.train], params)
            raw[split.test] = recipe.raw(native, rows[split.test])
    told = np.isfinite(raw)
    calibration = fit_calibration(raw[told], data.y[told], data.uniqueness[told])
    return recipe.fit(rows, data.y, data.weight, params), calibration


def train(
    recipe: Recipe, data: Dataset, out: Path, params: Params, context: dict[str, Any], embargo_s: float, say: Progress
) -> str:
    """Out-of-fold figures, final fit on everything, export. Writes `bundle/`, `oof.npz`, `fit.json` into `out`.

    context    provenance for schema and card: catalogue hash, timeframes, symbol, data hash where known
    embargo_s  seconds kept free between training labels and test events
    Returns    the bundle's digest
    """
    keep, dropped = present_columns(data.rows, data.columns)
    columns = tuple(c for c, k in zip(data.columns, keep, strict=True) if k)
    full = data.rows[:, keep]
    usable = np.isfinite(full).all(axis=1)
    data, rows = _take(data, usable), full[usable]
    oof = out_of_fold(recipe, data, rows, params, embargo_s, say)
    say(f"{recipe.family}: final fit on {len(data)} events, {len(columns)} columns")
    native, calibration = fit_calibrated(recipe, data, rows, params, embargo_s)
    schema = {**context, "columns": list(columns), "dropped": dropped, "trained_through": float(data.ended.max())}
    digest = write_bundle(
        out / "bundle",
        family=recipe.family,
        onnx=recipe.to_onnx(native, len(columns)),
        calibration=calibration,
        novelty=fit_novelty(rows, params.validator.novelty_quantile),
        schema=schema,
        card=_card(recipe, data, oof, columns, dropped, context, params),
        rows=rows,
    )
    model = load_bundle(out / "bundle", digest)
    parity = float(np.abs(model.raw(rows) - recipe.raw(native, rows)).max())
    older = int(len(rows) * (1 - RECENT_SHARE))
    later = fit_novelty(rows[:older], params.validator.novelty_quantile)
    novel = float((later.distance(rows[older:]) > later.limit).mean())
    scored: dict[str, Any] = {f"baseline_{name}": p for name, p in oof.baselines.items()}
    np.savez(
        out / "oof.npz", row=np.flatnonzero(usable)[oof.row], p=oof.p, p_low=oof.p_low, y=data.y[oof.row],
        known=data.known[oof.row], gross_bps=data.gross_bps[oof.row], **scored,
    )  # fmt: skip
    report = {
        "family": recipe.family,
        "digest": digest,
        "events": len(data),
        "out_of_fold": len(oof.row),
        "folds": oof.folds,
        "columns": list(columns),
        "dropped": dropped,
        "parity_gap": parity,
        "latency_ms": _latency_ms(model.raw, rows),
        "schema_coverage": float(usable.mean()),
        "novel_share": novel,
    }
    (out / "fit.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    return digest


def _take(data: Dataset, mask: Any) -> Dataset:
    return Dataset(
        data.columns, data.rows[mask], data.y[mask], data.weight[mask], data.uniqueness[mask], data.known[mask],
        data.ended[mask], data.gross_bps[mask], data.direction[mask], data.atr[mask], data.volatility[mask],
    )  # fmt: skip


def _latency_ms(raw: Callable[[Floats], Floats], rows: Floats) -> float:
    """Median of 200 single rows through the exported model."""
    times = []
    for i in range(200):
        row = rows[i % len(rows)][None, :]
        start = time.perf_counter()
        raw(row)
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def _card(
    recipe: Recipe, data: Dataset, oof: OutOfFold, columns: tuple[str, ...], dropped: dict[str, str],
    context: dict[str, Any], params: Params,
) -> str:  # fmt: skip
    labels = params.labels
    lines = [
        f"# {recipe.title}",
        "",
        f"- trained on {len(data)} events of {context.get('symbol')} on {context.get('decision_timeframe')} bars,"
        f" hit rate {data.y.mean():.3f}",
        f"- label: target {labels.target_atr} ATR before stop {labels.stop_atr} ATR within {labels.horizon_bars} bars;"
        " no cost in the label",
        f"- scored on {len(oof.row)} later events in {oof.folds} purged walk-forward folds",
        f"- columns ({len(columns)}): {', '.join(columns)}",
        *(f"- dropped {name}: {why}" for name, why in dropped.items()),
        "- abstains on a missing column and on rows beyond the novelty limit",
        "- not for: other symbols, other timeframes, or trading without the risk engine behind it",
        "",
    ]
    return "\n".join(lines)
