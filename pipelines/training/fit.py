"""Fit one family on one snapshot and measure it out of fold. Makes a candidate; never promotes."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.contracts import Arrays, Bools, Floats, Ints, JsonObject, Model
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
from pipelines.models.base import (
    Baseline,
    Dataset,
    Fitted,
    HalfLife,
    Log,
    ModelFamily,
    NativePredictions,
    present_columns,
)
from pipelines.models.edge import measure_edge
from pipelines.models.export import write_bundle, write_json
from pipelines.models.runtime import load_bundle
from pipelines.params import Params
from pipelines.stage_outputs import timings_file

LATENCY_ROWS = 200  # the median of fewer moves with the machine
GOLDEN_POOL = 512  # evenly spaced training rows, from which golden rows and the parity check are taken
BASELINE_INPUTS = ("volatility", "ewma")  # extras that baselines read


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
class Prepared:
    """Hold the rows of a dataset that a fit can read.

    data     complete rows of the columns that have values and are not left out
    dropped  column → why it is not among them
    share    of the rows that are complete, in each market from its first complete one on: those before it only warm up
    """

    data: Dataset
    dropped: dict[str, str]
    share: float


@dataclass(frozen=True, slots=True)
class FittedWindow:
    """Hold a model fitted on one training window, the window with the weights it was fitted with, their half-life."""

    fitted: Fitted
    rows: Dataset
    half_life: HalfLife


def prepare(family: str, data: Dataset, left_out: Iterable[str], unshared: Mapping[str, str] | None = None) -> Prepared:
    """Return what a fit can read of a dataset.

    unshared  column → why it is not the same one in every market
    Raises    NotEnoughData if no row is complete
    """
    present, dropped = present_columns(data.newest(), data.columns, dict(data.by_market()))
    dropped |= {name: why for name, why in (unshared or {}).items() if name in data.columns}
    dropped |= {name: "left out: by params.yaml or a reselection" for name in left_out if name in data.columns}
    data = data.select_columns(present & np.array([name not in dropped for name in data.columns]))
    usable = complete_rows(data)
    if not usable.any():
        raise NotEnoughData(
            f"{family}: none of {len(data):,} labelled rows has all of {', '.join(data.columns)}; bring a "
            "longer history, or data with those columns"
        )
    since = np.concatenate([rows[np.argmax(usable[rows]) :] for _, rows in data.by_market() if usable[rows].any()])
    return Prepared(data.select_rows(usable), dropped, float(usable[since].mean()))


def fit_window(model_family: ModelFamily, data: Dataset, params: Params, embargo_s: float, log: Log) -> FittedWindow:
    """Choose the half-life of a training window's weights on the window alone, and fit the family on it."""
    half_life = model_family.half_life(data, params, embargo_s)
    if half_life.tried or half_life.note:
        tried = ", ".join(f"{events:g}: {loss:.5f}" for events, loss in sorted(half_life.tried.items()))
        log(f"half-life {half_life.events:g} events, of {tried or half_life.note}")
    rows = data.decayed(half_life.events)
    return FittedWindow(model_family.fit(rows, params, embargo_s, log), rows, half_life)


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
    folds = model_family.folds(params)
    splits = walk_forward(data.known, data.ended, folds, params.splits.min_train_fraction, embargo_s)
    parts, permuted, ranks, half_lives, misses = [], [], [], [], []
    for number, split in enumerate(splits, start=1):
        train, test = data.select_rows(split.train), data.select_rows(split.test)
        log(f"[{number - 1}/{len(splits) + 1}] {len(train):,} rows to train on, {len(test):,} to score")
        window = fit_window(model_family, train, params, embargo_s, log)
        fitted = window.fitted
        predicted = predict_in_batches(fitted, test)
        baselines = {name: baseline(window.rows, test, params) for name, baseline in model_family.baselines.items()}
        loss = model_family.loss(predicted.p, test, fitted.loss_params)
        if plan is not None:
            permuted.append(permute(model_family, fitted, test, loss, plan, params))
        parts.append((split.test, loss, predicted, baselines))
        if model_family.miss_atr is not None:
            expected = model_family.miss_atr(train)
            misses.append(np.full(len(test), np.nan if expected is None else expected))
        ranks.append(rank_among(predicted.p, fitted.calibration_p))
        half_lives.append(window.half_life)
    join = np.concatenate
    return OutOfFold(
        row=join([rows for rows, *_ in parts]),
        loss=join([loss for _, loss, *_ in parts]),
        p=join([predicted.p for *_, predicted, _ in parts]),
        p_low=join([predicted.p_low for *_, predicted, _ in parts]),
        members={name: join([predicted.members[name] for *_, predicted, _ in parts]) for name in parts[0][2].members},
        label=_labels([predicted for *_, predicted, _ in parts]),
        baselines={name: _joined([baselines[name] for *_, baselines in parts]) for name in model_family.baselines},
        folds=len(splits),
        fold=np.repeat(np.arange(1, len(splits) + 1), [len(rows) for rows, *_ in parts]),
        rank=join(known) if len(known := [rank for rank in ranks if rank is not None]) == len(splits) else None,
        half_lives=half_lives,
        permutation=join_folds(permuted) if permuted else None,
        miss_atr=join(misses) if misses else None,
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


def single_column_auc(newest: Floats, y: Floats, columns: tuple[str, ...]) -> dict[str, float]:
    """Return {column: AUC} of the column that ranks the outcome best, in either direction; empty for several classes.

    newest  (m, k) values at the bar decided on. In a market no single column ranks well: one that does is a leak
    """
    if y.ndim != 1 or len(np.unique(y)) != 2:
        return {}
    from scipy.stats import rankdata  # takes a second to import, and only a fit needs it

    ranks = rankdata(newest, axis=0) / len(newest)
    found = {name: auc(ranks[:, j], y) for j, name in enumerate(columns)}
    best = max(found, key=lambda name: abs(found[name] - 0.5))
    return {best: max(found[best], 1.0 - found[best])}


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


def complete_rows(data: Dataset) -> Bools:
    """Return (m,) True where no value of a row is missing, neither of the model's inputs nor of its baselines'."""
    found = []
    for batch in batches(len(data)):
        rows = data.inputs(batch)
        found.append(np.isfinite(rows).all(axis=tuple(range(1, rows.ndim))))
    complete: Bools = np.concatenate(found)
    for values in (data.extras[name] for name in BASELINE_INPUTS if name in data.extras):
        complete &= np.isfinite(values).reshape(len(data), -1).all(axis=1)  # a column left out may be one of these
    return complete


def train(
    model_family: ModelFamily,
    data: Dataset,
    out: Path,
    params: Params,
    context: Mapping[str, object],
    embargo_s: float,
    log: Log,
    reference: Mapping[str, bytes] | None = None,
    unshared: Mapping[str, str] | None = None,
) -> str:
    """Measure out of fold, fit on all rows, export; write `bundle/`, `oof.npz`, `importance.json` and `fit.json`.

    Writes what it took next to `out`, see `timings_file`.

    context    provenance for schema and card: catalogue hash, timeframe, markets, and the data hash if known
    embargo_s  seconds between training labels and test rows
    reference  files of the drift references of the training inputs, which the bundle keeps
    unshared   column → why it is not the same one in every market: such columns are dropped
    Returns    the bundle's digest
    Raises     NotEnoughData if no row is complete, and as the family's fit
    """
    started = time.monotonic()
    left_out = model_family.left_out(params)
    prepared = prepare(model_family.family, data, left_out, unshared)
    data, dropped = prepared.data, prepared.dropped
    symbols = [name for name, _ in data.by_market()]
    context = {**context, "symbols": symbols}
    if isinstance(markets := context.get("markets"), Mapping):
        context["markets"] = {name: markets[name] for name in symbols}
    plan = plan_permutation(data, params)
    oof = out_of_fold(model_family, data, params, embargo_s, log, None if isinstance(plan, str) else plan)
    if isinstance(plan, str) or oof.permutation is None:
        importance_report = not_permuted(str(plan))
    else:
        importance_report = importance(
            plan, oof.permutation, data.select_rows(oof.row).extras, model_family.loss_name, params,
            data.known[oof.row] if len(symbols) > 1 else None,
        )  # fmt: skip
    log(f"reselection {importance_report['reselection']['line']}")
    log(f"[{oof.folds}/{oof.folds + 1}] final fit on {len(data):,} rows, {len(data.columns)} columns")
    window = fit_window(model_family, data, params, embargo_s, log)
    fitted, data = window.fitted, window.rows
    decay = decay_figures(window, oof.half_lives)
    export = model_family.export(fitted, data, params)
    schema = {
        **context, "columns": list(data.columns), "dropped": dropped, "trained_through": float(data.ended.max()),
        "loss_params": dict(fitted.loss_params), "title": model_family.title, "edge": edge_of(oof, data, params),
    }  # fmt: skip
    if model_family.miss_atr is not None:
        schema["miss_atr"] = model_family.miss_atr(data)
    newest = data.newest()
    pool = data.inputs(np.linspace(0, len(data) - 1, min(GOLDEN_POOL, len(data))).astype(int))
    digest = write_bundle(
        out / "bundle",
        family=model_family.family,
        export=export,
        novelty=model_family.novelty(newest, params),
        schema=schema,
        card=_card(model_family, data, oof, dropped, context, params, export.schema["classes"], decay),
        inputs=pool,
        reference=reference,
    )
    model = load_bundle(out / "bundle", digest)
    np.savez(out / "oof.npz", allow_pickle=False, **_arrays(oof, data))
    write_json(out / "importance.json", importance_report)
    write_json(
        out / "fit.json",
        {
            "family": model_family.family,
            "digest": digest,
            "classes": list(export.schema["classes"]),
            "loss_name": model_family.loss_name,
            "rows": len(data),
            "rows_of": {name: len(rows) for name, rows in data.by_market()},
            "out_of_fold": len(oof.row),
            "folds": oof.folds,
            "columns": list(data.columns),
            "dropped": dropped,
            "single_column_auc": single_column_auc(newest, data.y, data.columns),
            "reselection": importance_report["reselection"]["line"],
            "parity_gap": parity_gap(model, fitted, pool),
            "schema_coverage": prepared.share,
            "left_out": [name for name in left_out if name in dropped],
            "decay": decay,
            "novel_share": _novel_share(model_family, newest, params),
        },
    )
    timings = timings_file(out)
    timings.parent.mkdir(parents=True, exist_ok=True)
    write_json(timings, {"latency_ms": _latency_ms(model, pool), "seconds": round(time.monotonic() - started, 1)})
    return digest


def edge_of(oof: OutOfFold, data: Dataset, params: Params) -> JsonObject:
    """Return what the bundle states of the gain over the base rate; empty for a family without that baseline."""
    baseline = oof.baselines.get("base_rate")
    if baseline is None or baseline.p is None or data.y.ndim != 1:
        return {}
    scored = data.select_rows(oof.row)
    return measure_edge(
        scored.known, oof.p, scored.y, baseline.p, base_rate=float(np.average(data.y, weights=data.weight)),
        horizon_s=float((data.ended - data.known).max()), params=params.drift,
    )  # fmt: skip


def parity_gap(model: Model, fitted: Fitted, pool: Floats) -> float:
    """Return the largest difference of p between the loaded export and the native model.

    Rows on which the export abstains are not compared; infinity if it abstains on all.
    """
    exported, native = model.predict(pool).p, fitted.predict(pool).p
    both = np.isfinite(exported)
    return float(np.abs(exported - native)[both].max(initial=0.0)) if both.any() else float("inf")


def _arrays(oof: OutOfFold, data: Dataset) -> Arrays:
    """Return the arrays of `oof.npz`; loss_<baseline>, baseline_<baseline>, member_<name>, extra_<name> among them."""
    scored = data.select_rows(oof.row)
    optional: Arrays = {} if oof.label is None else {"label": np.array([label or "" for label in oof.label])}
    optional |= {} if oof.rank is None else {"rank": oof.rank}
    optional |= {} if oof.miss_atr is None else {"miss_atr": oof.miss_atr}
    return optional | {
        "fold": oof.fold,
        "symbol": scored.symbol, "symbols": np.array(scored.symbols),
        "row": scored.at, "known": scored.known, "y": scored.y, "p": oof.p, "p_low": oof.p_low, "loss": oof.loss,
        **{f"loss_{name}": baseline.loss for name, baseline in oof.baselines.items()},
        **{f"baseline_{name}": baseline.p for name, baseline in oof.baselines.items() if baseline.p is not None},
        **{f"member_{name}": p for name, p in oof.members.items()},
        **{f"extra_{name}": values for name, values in scored.extras.items()},
    }  # fmt: skip


def decay_figures(window: FittedWindow, by_fold: Sequence[HalfLife]) -> JsonObject:
    """Return the decay of the final fit's weights, JSON-ready.

    half_life_events  chosen on the final window; by_fold: by each walk-forward fold on its own
    tried             half-life → log loss on the final window's inner fold; empty where one is stated
    configurations    how many half-lives were tried: as many trials of the family
    effective_rows    distinct rows of equal weight that say as much as the window; without_decay: the same of no decay
    """
    rows, chosen = window.rows, window.half_life
    return {
        "half_life_events": chosen.events,
        "tried": {f"{events:g}": loss for events, loss in chosen.tried.items()},
        "configurations": max([1, len(chosen.tried), *(len(each.tried) for each in by_fold)]),
        "effective_rows": rows.effective_rows(chosen.events),
        "without_decay": float(rows.uniqueness.sum()),
        "by_fold": [each.events for each in by_fold],
        "note": chosen.note,
    }


def _novel_share(model_family: ModelFamily, newest: Floats, params: Params) -> float:
    """Return the share of the newest rows beyond a novelty limit fitted on the older ones."""
    older = int(len(newest) * (1.0 - params.splits.recent_share))
    novelty = model_family.novelty(newest[:older], params)
    return float((novelty.distance(newest[older:]) > novelty.limit).mean())


def _latency_ms(model: Model, pool: Floats) -> float:
    """Return the median time of 200 single rows through the exported model, milliseconds."""
    times = []
    for i in range(LATENCY_ROWS):
        row = pool[i % len(pool)][None]
        start = time.perf_counter()
        model.predict(row)
        times.append(time.perf_counter() - start)
    return float(np.median(times) * 1e3)


def decay_line(decay: JsonObject, rows: int, params: Params) -> str:
    """Return the card's line on the decay of the weights; it names a window that forgets."""
    tried = ", ".join(
        f"{events} {loss:.5f}" for events, loss in sorted(decay["tried"].items(), key=lambda e: float(e[0]))
    )
    rule = "chosen by log loss on an inner fold, the longest within a standard error of the lowest"
    how = f"{rule} ({tried})" if tried else decay["note"] or "stated"
    effective, least = decay["effective_rows"], params.labels.few_effective_rows
    few = f"; FORGETS: under {least:,.0f} effective rows" if effective < least else ""
    return (
        f"weights halve every {decay['half_life_events']:,.0f} events, {how}: {effective:,.0f} effective rows of "
        f"{rows:,} ({decay['without_decay']:,.0f} without decay){few}"
    )


def _card(
    model_family: ModelFamily, data: Dataset, oof: OutOfFold, dropped: Mapping[str, str],
    context: Mapping[str, object], params: Params, classes: list[str], decay: JsonObject,
) -> str:  # fmt: skip
    """Return the model card in Markdown."""
    baselines = ", ".join(f"{name} {baseline.loss.mean():.4f}" for name, baseline in oof.baselines.items())
    lines = [
        f"# {model_family.title}",
        "",
        f"- trained on {len(data):,} rows of {_counted(data)} on {context.get('decision_timeframe')} bars",
        *(f"- {line}" for line in model_family.describe(data, params)),
        f"- {decay_line(decay, len(data), params)}",
        f"- {model_family.loss_name} {oof.loss.mean():.4f} on {len(oof.row):,} later rows in {oof.folds} purged "
        f"walk-forward folds; {baselines}",
        f"- predicts {', '.join(classes)}",
        f"- columns ({len(data.columns)}): {', '.join(data.columns)}",
        *(f"- dropped {name}: {why}" for name, why in dropped.items()),
        "- abstains on a missing column and on rows beyond the novelty limit",
        "- not for: symbols it was not trained on, other timeframes, or trading without the risk engine behind it",
        "",
    ]
    return "\n".join(lines)


def _counted(data: Dataset) -> str:
    """Return the markets of the rows; of several also how many rows each has."""
    markets = {name: len(rows) for name, rows in data.by_market()}
    return ", ".join(name if len(markets) < 2 else f"{name} ({n:,})" for name, n in markets.items())
