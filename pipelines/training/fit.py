"""Fit one family on one snapshot and say honestly what it scores. Returns a candidate; never promotes."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import Bools, Floats, Ints, Model
from pipelines.errors import NotEnoughData
from pipelines.evaluation.importance import (
    PermutationPlan,
    PermutationResult,
    importance,
    join_folds,
    not_permuted,
    permute,
    plan_permutation,
)
from pipelines.evaluation.metrics import auc
from pipelines.labels.splits import walk_forward
from pipelines.models.base import Baseline, Dataset, Fitted, Log, ModelFamily, NativePredictions, present_columns
from pipelines.models.export import write_bundle, write_json
from pipelines.models.runtime import load_bundle
from pipelines.params import Params

RECENT_SHARE = 0.2  # newest part of the rows: how novel does it look to a gate fitted on what came before?
LATENCY_ROWS = 200
GOLDEN_POOL = 512  # evenly spaced training rows: golden rows and the parity check come from these


@dataclass(frozen=True, slots=True)
class OutOfFold:
    """Answers to rows the model had not seen; arrays over `row` numbers of the dataset.

    loss      (n,) in the family's unit; p, p_low (n,) or (n, classes)
    members   voter → its own p; baselines  name → baseline on the same rows
    permutation     what dealing out columns did, None where that was not asked
    """

    row: Ints
    loss: Floats
    p: Floats
    p_low: Floats
    members: dict[str, Floats]
    label: list[str | None] | None
    baselines: dict[str, Baseline]
    folds: int
    permutation: PermutationResult | None = None


def out_of_fold(
    model_family: ModelFamily,
    data: Dataset,
    params: Params,
    embargo_s: float,
    log: Log,
    plan: PermutationPlan | None = None,
) -> OutOfFold:
    """Walk forward: fit and calibrate on the window so far, score the next stretch, deal out its columns if `plan`."""
    folds = model_family.folds(params)
    splits = walk_forward(data.known, data.ended, folds, params.splits.min_train_fraction, embargo_s)
    parts, dealt = [], []
    for number, split in enumerate(splits, start=1):
        train, test = data.select_rows(split.train), data.select_rows(split.test)
        log(f"[{number - 1}/{len(splits) + 1}] {len(train):,} rows to learn, {len(test):,} to score")
        fitted = model_family.fit(train, params, embargo_s, log)
        answer = answer_in_pieces(fitted, test)
        baselines = {name: baseline(train, test, params) for name, baseline in model_family.baselines.items()}
        loss = model_family.loss(answer.p, test, fitted.loss_params)
        if plan is not None:
            dealt.append(permute(model_family, fitted, test, loss, plan, params))
        parts.append((split.test, loss, answer, baselines))
    join = np.concatenate
    return OutOfFold(
        row=join([rows for rows, *_ in parts]),
        loss=join([loss for _, loss, *_ in parts]),
        p=join([answer.p for *_, answer, _ in parts]),
        p_low=join([answer.p_low for *_, answer, _ in parts]),
        members={name: join([answer.members[name] for *_, answer, _ in parts]) for name in parts[0][2].members},
        label=_words([answer for *_, answer, _ in parts]),
        baselines={name: _joined([baselines[name] for *_, baselines in parts]) for name in model_family.baselines},
        folds=len(splits),
        permutation=join_folds(dealt) if dealt else None,
    )


def ranked_alone(newest: Floats, y: Floats, columns: tuple[str, ...]) -> dict[str, float]:
    """The column that ranks the outcome best all by itself → its AUC, in either direction; empty for several classes.

    newest (m, k) values at the bar decided on. Of a market no column ranks much: one that does has seen the outcome.
    """
    if y.ndim != 1 or len(np.unique(y)) != 2:
        return {}
    from scipy.stats import rankdata  # a second of imports that only a fit needs

    ranks = rankdata(newest, axis=0) / len(newest)
    found = {name: auc(ranks[:, j], y) for j, name in enumerate(columns)}
    best = max(found, key=lambda name: abs(found[name] - 0.5))
    return {best: max(found[best], 1.0 - found[best])}


def _joined(parts: list[Baseline]) -> Baseline:
    told = [part.p for part in parts if part.p is not None]
    return Baseline(np.concatenate([part.loss for part in parts]), np.concatenate(told) if told else None)


def _words(answers: list[NativePredictions]) -> list[str | None] | None:
    told = [answer.label for answer in answers if answer.label is not None]
    return [word for part in told for word in part] if told else None


def answer_in_pieces(fitted: Fitted, data: Dataset) -> NativePredictions:
    """The native model on every row, a few thousand at a time: windows of a whole history would not fit in memory."""
    answers = [fitted.predict(data.inputs(piece)) for piece in pieces(len(data))]
    return NativePredictions(
        np.concatenate([a.p for a in answers]),
        np.concatenate([a.p_low for a in answers]),
        {name: np.concatenate([a.members[name] for a in answers]) for name in answers[0].members},
        _words(answers),
    )


def pieces(n: int) -> list[Ints]:
    return np.array_split(np.arange(n), max(1, n // 2048))


def complete_rows(data: Dataset) -> Bools:
    """(m,) True where no value of a row is missing."""
    found = []
    for piece in pieces(len(data)):
        rows = data.inputs(piece)
        found.append(np.isfinite(rows).all(axis=tuple(range(1, rows.ndim))))
    return np.concatenate(found)


def train(
    model_family: ModelFamily,
    data: Dataset,
    out: Path,
    params: Params,
    context: dict[str, Any],
    embargo_s: float,
    log: Log,
) -> str:
    """Out-of-fold figures, final fit on everything, export. Writes `bundle/`, `oof.npz`, `importance.json`, `fit.json`.

    context    provenance for schema and card: catalogue hash, timeframes, symbol, data hash where known
    embargo_s  seconds kept free between training labels and test rows
    Returns    the bundle's digest
    """
    started = time.monotonic()
    keep, dropped = present_columns(data.newest(), data.columns)
    data = data.select_columns(keep)
    usable = complete_rows(data)
    if not usable.any():
        raise NotEnoughData(
            f"{model_family.family}: none of {len(data):,} labelled rows has all of {', '.join(data.columns)}; bring a "
            "longer history, or data with those columns"
        )
    data = data.select_rows(usable)
    plan = plan_permutation(data, params)
    oof = out_of_fold(model_family, data, params, embargo_s, log, None if isinstance(plan, str) else plan)
    if isinstance(plan, str) or oof.permutation is None:
        rests_on = not_permuted(str(plan))
    else:
        rests_on = importance(plan, oof.permutation, data.select_rows(oof.row).extras, model_family.loss_name, params)
    log(f"reselection {rests_on['reselection']['line']}")
    log(f"[{oof.folds}/{oof.folds + 1}] final fit on {len(data):,} rows, {len(data.columns)} columns")
    fitted = model_family.fit(data, params, embargo_s, log)
    export = model_family.export(fitted, data, params)
    schema = {
        **context, "columns": list(data.columns), "dropped": dropped, "trained_through": float(data.ended.max()),
        "terms": dict(fitted.loss_params), "title": model_family.title,
    }  # fmt: skip
    newest = data.newest()
    pool = data.inputs(np.linspace(0, len(data) - 1, min(GOLDEN_POOL, len(data))).astype(int))
    digest = write_bundle(
        out / "bundle",
        family=model_family.family,
        export=export,
        novelty=model_family.novelty(newest, params),
        schema=schema,
        card=_card(model_family, data, oof, dropped, context, params, export.schema["classes"]),
        inputs=pool,
    )
    model = load_bundle(out / "bundle", digest)
    np.savez(out / "oof.npz", **_arrays(oof, data))
    write_json(out / "importance.json", rests_on)
    write_json(
        out / "fit.json",
        {
            "family": model_family.family,
            "digest": digest,
            "classes": list(export.schema["classes"]),
            "loss_name": model_family.loss_name,
            "rows": len(data),
            "out_of_fold": len(oof.row),
            "folds": oof.folds,
            "columns": list(data.columns),
            "dropped": dropped,
            "alone": ranked_alone(newest, data.y, data.columns),
            "reselection": rests_on["reselection"]["line"],
            "parity_gap": parity_gap(model, fitted, pool),
            "latency_ms": _latency_ms(model, pool),
            "schema_coverage": float(usable.mean()),
            "novel_share": _novel_share(model_family, newest, params),
            "seconds": round(time.monotonic() - started, 1),
        },
    )
    return digest


def parity_gap(model: Model, fitted: Fitted, pool: Floats) -> float:
    """Largest difference between what the loaded export answers and what the native model answers; where the export
    abstains as too novel there is nothing to compare."""
    said, native = model.predict(pool).p, fitted.predict(pool).p
    both = np.isfinite(said)
    return float(np.abs(said - native)[both].max(initial=0.0)) if both.any() else float("inf")


def _arrays(oof: OutOfFold, data: Dataset) -> dict[str, Any]:
    """What the evaluation reads: names are `loss_<baseline>`, `baseline_<baseline>`, `member_<voter>`, `more_<name>`."""
    seen = data.select_rows(oof.row)
    label = {} if oof.label is None else {"label": np.array([word or "" for word in oof.label])}
    return label | {
        "row": seen.at, "known": seen.known, "y": seen.y, "p": oof.p, "p_low": oof.p_low, "loss": oof.loss,
        **{f"loss_{name}": baseline.loss for name, baseline in oof.baselines.items()},
        **{f"baseline_{name}": baseline.p for name, baseline in oof.baselines.items() if baseline.p is not None},
        **{f"member_{name}": p for name, p in oof.members.items()},
        **{f"more_{name}": values for name, values in seen.extras.items()},
    }  # fmt: skip


def _novel_share(model_family: ModelFamily, newest: Floats, params: Params) -> float:
    older = int(len(newest) * (1 - RECENT_SHARE))
    gate = model_family.novelty(newest[:older], params)
    return float((gate.distance(newest[older:]) > gate.limit).mean())


def _latency_ms(model: Model, pool: Floats) -> float:
    """Median of 200 single rows through the exported model."""
    times = []
    for i in range(LATENCY_ROWS):
        row = pool[i % len(pool)][None]
        start = time.perf_counter()
        model.predict(row)
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def _card(
    model_family: ModelFamily, data: Dataset, oof: OutOfFold, dropped: dict[str, str], context: dict[str, Any], params: Params,
    classes: list[str],
) -> str:  # fmt: skip
    lines = [
        f"# {model_family.title}",
        "",
        f"- trained on {len(data):,} rows of {context.get('symbol')} on {context.get('decision_timeframe')} bars",
        *(f"- {line}" for line in model_family.describe(data, params)),
        f"- {model_family.loss_name} {oof.loss.mean():.4f} on {len(oof.row):,} later rows in {oof.folds} purged walk-forward"
        f" folds; {', '.join(f'{name} {baseline.loss.mean():.4f}' for name, baseline in oof.baselines.items())}",
        f"- answers {', '.join(classes)}",
        f"- columns ({len(data.columns)}): {', '.join(data.columns)}",
        *(f"- dropped {name}: {why}" for name, why in dropped.items()),
        "- abstains on a missing column and on rows beyond the novelty limit",
        "- not for: other symbols, other timeframes, or trading without the risk engine behind it",
        "",
    ]
    return "\n".join(lines)
