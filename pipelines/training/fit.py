"""Fit one family on one snapshot and measure it out of fold. Makes a candidate; never promotes."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.contracts import Arrays, Bools, Floats, JsonObject, Model
from pipelines.cpu import numeric_cpu
from pipelines.errors import NotEnoughData
from pipelines.evaluation.importance import importance, not_permuted, plan_permutation
from pipelines.evaluation.metrics import auc
from pipelines.models.base import Dataset, HalfLife, Log, ModelFamily, present_columns
from pipelines.models.edge import measure_edge
from pipelines.models.export import write_bundle, write_json
from pipelines.models.runtime import load_bundle
from pipelines.params import Params
from pipelines.stage_outputs import timings_file
from pipelines.training.side_by_side import Each, in_order
from pipelines.training.walk import FinalFit, OutOfFold, batches, fit_part, jobs_of, join, plan_walk, pool_rows

LATENCY_ROWS = 200  # the median of fewer moves with the machine
BASELINE_INPUTS = ("volatility", "ewma")  # extras that baselines read


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
    each: Each = in_order,
) -> str:
    """Measure out of fold, fit on all rows, export; write `bundle/`, `oof.npz`, `importance.json` and `fit.json`.

    Writes what it took next to `out`, see `timings_file`.

    context    provenance for schema and card: catalogue hash, timeframe, markets, and the data hash if known
    embargo_s  seconds between training labels and test rows
    reference  files of the drift references of the training inputs, which the bundle keeps
    unshared   column → why it is not the same one in every market: such columns are dropped
    each       who computes the folds and the final fit; the result does not depend on it
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
    walk = plan_walk(model_family, data, params, embargo_s, log, None if isinstance(plan, str) else plan)
    *folds, final = each(fit_part, jobs_of(walk), walk)
    oof = join(model_family, folds)
    if isinstance(plan, str) or oof.permutation is None:
        importance_report = not_permuted(str(plan))
    else:
        importance_report = importance(
            plan, oof.permutation, data.select_rows(oof.row).extras, model_family.loss_name, params,
            data.known[oof.row] if len(symbols) > 1 else None,
        )  # fmt: skip
    log(f"reselection {importance_report['reselection']['line']}")
    data = data.decayed(final.half_life.events)
    decay = decay_figures(data, final.half_life, oof.half_lives)
    export = final.export
    schema = {
        **context, "columns": list(data.columns), "dropped": dropped, "trained_through": float(data.ended.max()),
        "loss_params": final.loss_params, "title": model_family.title, "edge": edge_of(oof, data, params),
    }  # fmt: skip
    if model_family.miss_atr is not None:
        schema["miss_atr"] = model_family.miss_atr(data)
    newest = data.newest()
    pool = data.inputs(pool_rows(data))
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
            "parity_gap": parity_gap(model, final, pool),
            "schema_coverage": prepared.share,
            "left_out": [name for name in left_out if name in dropped],
            "decay": decay,
            "novel_share": _novel_share(model_family, newest, params),
        },
    )
    timings = timings_file(out)
    timings.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        timings,
        {"latency_ms": _latency_ms(model, pool), "seconds": round(time.monotonic() - started, 1), "cpu": numeric_cpu()},
    )
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


def parity_gap(model: Model, final: FinalFit, pool: Floats) -> float:
    """Return the largest difference of p between the loaded export and the native model.

    Rows on which the export abstains are not compared; infinity if it abstains on all.
    """
    exported, native = model.predict(pool).p, final.pool_p
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


def decay_figures(rows: Dataset, chosen: HalfLife, by_fold: Sequence[HalfLife]) -> JsonObject:
    """Return the decay of the weights of the final fit's rows, JSON-ready.

    half_life_events  chosen on the final window; by_fold: by each walk-forward fold on its own
    tried             half-life → log loss on the final window's inner fold; empty where one is stated
    configurations    how many half-lives were tried: as many trials of the family
    effective_rows    distinct rows of equal weight that say as much as the window; without_decay: the same of no decay
    """
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
