"""F5: which columns a candidate's out-of-fold answers rest on, and whether the next one should do without some.

Permutation: by how much the family's own loss on a test fold rises when a column's values are dealt out anew among the
fold's rows (Breiman 2001, Mach. Learn. 45; on purged folds as López de Prado 2018, ch. 8). Columns that say the same
cover for each other, so they are also dealt out together, as a cluster (López de Prado 2020, Machine Learning for Asset
Managers, ch. 6), and the rule reads clusters. TreeSHAP, where the family has it, says what the answers are made of,
right or wrong. The rule proposes, to the next challenger; what is served never changes by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from scipy.sparse.csgraph import connected_components

from pipelines.contracts import REGIMES, Estimate, Floats
from pipelines.evaluation.metrics import mean_estimate
from pipelines.features.catalog import COPIES
from pipelines.models.base import Dataset, Fitted, ModelFamily
from pipelines.params import Params

DRAWS = 200  # of the bootstrap: hundreds of figures, none of which the gate reads
Group = tuple[int, ...]  # column numbers that are dealt out together


@dataclass(frozen=True, slots=True)
class PermutationPlan:
    """What is dealt out: every column by itself, then the clusters of several columns. `clusters` holds all of them."""

    columns: tuple[str, ...]
    clusters: tuple[Group, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        return (*((j,) for j in range(len(self.columns))), *(group for group in self.clusters if len(group) > 1))


@dataclass(frozen=True, slots=True)
class PermutationResult:
    """What n out-of-fold rows said. raised (n, groups): rise of a row's loss, mean of the repeats, in the order of
    PermutationPlan.groups; contributions (n, k) of each column in the model's own unit, None where the family gives none."""

    raised: Floats
    contributions: Floats | None


def plan_permutation(data: Dataset, params: Params) -> PermutationPlan | str:
    """What to deal out of a family's rows, or why nothing: rows of one bar only, no value missing."""
    if (shape := data.inputs(np.arange(1)).shape)[1:] != (len(data.columns),):
        return f"reads windows of {shape[1]} bars: columns of one bar cannot be dealt out by themselves"
    return PermutationPlan(data.columns, clusters(data.all_inputs(), data.columns, params.importance.correlation))


def clusters(rows: Floats, columns: tuple[str, ...], least: float) -> tuple[Group, ...]:
    """Columns joined where |rank correlation| (Spearman) is at least `least`, or where the catalogue calls one a copy
    of the other; through others too. rows (n, k), none missing. In the order of their first columns."""
    from scipy.stats import rankdata  # a second of imports that only a fit needs

    ranks = rankdata(rows, axis=0)
    ranks -= ranks.mean(axis=0)
    size = np.sqrt((ranks**2).sum(axis=0))
    size[size == 0.0] = np.inf  # a constant goes with nothing
    joined = np.abs((ranks.T @ ranks) / np.outer(size, size)) >= least
    for name, made_of in COPIES.items():
        for other in made_of:
            if name in columns and other in columns:
                joined[columns.index(name), columns.index(other)] = True
    _, label = connected_components(joined, directed=False)
    return tuple(sorted(tuple(np.flatnonzero(label == each).tolist()) for each in np.unique(label)))


def permute(
    model_family: ModelFamily, fitted: Fitted, test: Dataset, loss: Floats, plan: PermutationPlan, params: Params
) -> PermutationResult:
    """One fold: `loss` (n,) is what `fitted` lost on the rows as they are. The seed and the fold's place give the
    deals; all groups are dealt the same way."""
    rows, repeats = test.all_inputs(), params.importance.repeats
    rng = np.random.default_rng([params.seed, int(test.at[0])])
    raised = np.zeros((len(test), len(plan.groups)))
    for _ in range(repeats):
        order = rng.permutation(len(test))
        for g, group in enumerate(plan.groups):
            dealt = rows.copy()
            dealt[:, group] = rows[order][:, group]
            raised[:, g] += model_family.loss(fitted.predict(dealt).p, test, fitted.loss_params) - loss
    told = None if model_family.contributions is None else model_family.contributions(fitted, rows)
    return PermutationResult(raised / repeats, told)


def join_folds(folds: list[PermutationResult]) -> PermutationResult:
    told = [fold.contributions for fold in folds if fold.contributions is not None]
    return PermutationResult(np.concatenate([fold.raised for fold in folds]), np.concatenate(told) if told else None)


def importance(
    plan: PermutationPlan, answers: PermutationResult, extras: Mapping[str, Floats], loss_name: str, params: Params
) -> Any:
    """JSON-ready: columns, clusters, by_regime, reselection. Shares are of the sum of all rises above nought, NaN-free:
    None where nothing rose.

    extras  what the dataset holds beside its columns on the same rows; `regime`: (n,) code of contracts.REGIMES, NaN
          where the rule knew none
    """
    k, wide = len(plan.columns), [group for group in plan.clusters if len(group) > 1]
    at = [group[0] if len(group) == 1 else k + wide.index(group) for group in plan.clusters]
    raised, clustered = answers.raised[:, :k], answers.raised[:, at]
    told, cluster_of = answers.contributions, {j: c for c, group in enumerate(plan.clusters) for j in group}
    alone, shared = shares(raised), shares(clustered)
    columns = {
        name: {
            "rise": _figure(raised[:, j], params), "share": alone[j], "cluster": cluster_of[j],
            "contribution": None if told is None else float(np.abs(told[:, j]).mean()),
        }
        for j, name in enumerate(plan.columns)
    }  # fmt: skip
    by_cluster = [
        {
            "columns": [plan.columns[j] for j in group], "rise": _figure(clustered[:, c], params), "share": shared[c],
            "contribution": None if told is None else float(np.abs(told[:, group].sum(axis=1)).mean()),
        }
        for c, group in enumerate(plan.clusters)
    ]  # fmt: skip
    held = {name: shared[cluster_of[j]] for j, name in enumerate(plan.columns)}
    return {
        "loss_name": loss_name, "rows": len(raised), "repeats": params.importance.repeats, "seed": params.seed,
        "contributions": "mean |TreeSHAP| in log-odds before calibration" if told is not None else "none",
        "columns": columns, "clusters": by_cluster,
        "by_regime": _by_regime(plan, clustered, extras.get("regime"), params),
        "reselection": reselection(held, params.importance.low_share, params.importance.reselect_over),
    }  # fmt: skip


def shares(raised: Floats) -> list[float | None]:
    """Of (n, g) rises: each mean above nought over the sum of them; None each if none rose."""
    means = np.maximum(raised.mean(axis=0), 0.0) if len(raised) else np.zeros(raised.shape[1])
    whole = float(means.sum())
    return [float(m) / whole for m in means] if whole > 0.0 else [None] * len(means)


def reselection(held: Mapping[str, float | None], low: float, over: float) -> dict[str, Any]:
    """The rule: more than `over` of the columns with a share below `low` propose a challenger without them.

    held  column → share of its cluster: a copy is not unimportant because its twin stood in for it
    """
    if any(share is None for share in held.values()):
        why = "no column's loss would be missed out of fold, so there is nothing to choose by"
        return {"proposed": None, "leave_out": [], "keep": list(held), "line": f"not judged: {why}"}
    few = [name for name, share in held.items() if share is not None and share < low]
    part = len(few) / len(held)
    told = f"{len(few)} of {len(held)} columns ({part:.0%}) hold under {low:.0%} of the importance"
    if proposed := part > over:
        line = f"proposed: {told}, more than {over:.0%}; next challenger without {', '.join(few)}"
    else:
        line = f"not proposed: {told}, not more than {over:.0%}"
    keep = [name for name in held if name not in few]
    return {"proposed": proposed, "leave_out": few if proposed else [], "keep": keep if proposed else list(held),
            "low": few, "line": line}  # fmt: skip


def not_permuted(why: str) -> dict[str, Any]:
    """What stands where nothing could be dealt out."""
    return {"columns": {}, "clusters": [], "by_regime": {},
            "reselection": {"proposed": None, "leave_out": [], "keep": [], "line": f"not judged: {why}"}}  # fmt: skip


def _by_regime(plan: PermutationPlan, clustered: Floats, codes: Floats | None, params: Params) -> dict[str, Any]:
    """Rule regime → rows and, of each cluster by its first column, rise and share. Unknown rows stand apart."""
    if codes is None:
        return {}
    found = {}
    for code, name in [*enumerate(REGIMES), (None, "UNKNOWN")]:
        rows = clustered[np.isnan(codes) if code is None else codes == code]
        if len(rows):
            names = [plan.columns[group[0]] for group in plan.clusters]
            figures = zip(names, rows.T, shares(rows), strict=True)
            found[name] = {
                "rows": len(rows),
                "clusters": {first: {"rise": _figure(each, params), "share": share} for first, each, share in figures},
            }
    return found


def _figure(values: Floats, params: Params) -> dict[str, Any]:
    e: Estimate = mean_estimate(values, DRAWS, params.seed)
    return {"value": e.value, "low": e.low, "high": e.high, "n": e.n}


def section(told: Mapping[str, Any]) -> str:
    """HTML for the evidence page: the rule's line and two bar charts, by column and by regime. `told` of `importance`;
    plotly.js must be on the page."""
    line = f"<h2>What it rests on</h2><p>Reselection {escape(told['reselection']['line'])}.</p>"
    if not told["columns"]:
        return line
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    columns = sorted(told["columns"].items(), key=lambda item: item[1]["rise"]["value"])
    names, rises = [name for name, _ in columns], [each["rise"] for _, each in columns]
    first, second = f"Rise of {told['loss_name']} when dealt out, 95 %", "Share by rule regime, clusters"
    drawn = make_subplots(rows=1, cols=2, subplot_titles=(first, second), horizontal_spacing=0.2)
    error = {
        "type": "data", "symmetric": False, "array": [r["high"] - r["value"] for r in rises],
        "arrayminus": [r["value"] - r["low"] for r in rises],
    }  # fmt: skip
    drawn.add_trace(
        go.Bar(y=names, x=[r["value"] for r in rises], error_x=error, orientation="h", name="by itself"), 1, 1
    )
    for regime, each in told["by_regime"].items():
        shared = {name: cluster["share"] for name, cluster in each["clusters"].items() if cluster["share"] is not None}
        drawn.add_trace(
            go.Bar(y=list(shared), x=list(shared.values()), orientation="h", name=f"{regime} ({each['rows']:,})"), 1, 2
        )
    height = 160 + 26 * len(names)
    drawn.update_layout(template="plotly_white", height=height, margin={"t": 50, "l": 50, "r": 20, "b": 40})
    rows = "".join(
        f"<tr><td>{escape(', '.join(c['columns']))}</td><td>{c['rise']['value']:.5f}</td>"
        f"<td>[{c['rise']['low']:.5f}, {c['rise']['high']:.5f}]</td><td>{_percent(c['share'])}</td>"
        f"<td>{'–' if c['contribution'] is None else format(c['contribution'], '.4f')}</td></tr>"
        for c in sorted(told["clusters"], key=lambda c: -c["rise"]["value"])
    )
    return (
        f"{line}<p>{told['rows']:,} out-of-fold rows, each dealt out {told['repeats']} times inside its fold. Columns "
        f"that say the same are dealt out together. Contributions: {escape(told['contributions'])}.</p>"
        "<table><tr><th>columns</th><th>rise</th><th>interval</th><th>share</th><th>contribution</th></tr>"
        f"{rows}</table>{drawn.to_html(full_html=False, include_plotlyjs=False)}"
    )


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"
