"""F5: the importance of a candidate's columns out of fold, and a proposal which the next challenger should leave out.

Permutation importance: by how much the family's own loss on a test fold rises when a column's values are permuted among
the fold's rows (Breiman 2001, Mach. Learn. 45; on purged folds as López de Prado 2018, ch. 8). Redundant columns
substitute for each other, so they are also permuted together, as a cluster (López de Prado 2020, Machine Learning for
Asset Managers, ch. 6), and the reselection rule reads clusters. TreeSHAP, where the family has it, gives each column's
contribution to the predictions, right or wrong. The rule only proposes; it never changes what is served. The next
retrain reads the proposal (`flows.train.reselected`), and the gate judges that challenger like any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, NotRequired, TypedDict

import numpy as np

from pipelines.contracts import REGIMES, Floats, JsonObject, json_ready
from pipelines.evaluation.charts import axes_of, svg
from pipelines.evaluation.metrics import mean_estimate
from pipelines.features.catalog import COPIES
from pipelines.models.base import Dataset, Fitted, ModelFamily
from pipelines.params import Params

Group = tuple[int, ...]  # numbers of columns that are permuted together


@dataclass(frozen=True, slots=True)
class PermutationPlan:
    """Hold what is permuted: every column by itself, then the clusters of several columns; `clusters` has all."""

    columns: tuple[str, ...]
    clusters: tuple[Group, ...]

    @property
    def groups(self) -> tuple[Group, ...]:
        """Return the groups in the order of permutation: single columns, then clusters of several."""
        return (*((j,) for j in range(len(self.columns))), *(group for group in self.clusters if len(group) > 1))


@dataclass(frozen=True, slots=True)
class PermutationResult:
    """Hold the effects of permutation on n out-of-fold rows.

    raised         (n, groups) rise of a row's loss, mean of the repeats, in the order of PermutationPlan.groups
    contributions  (n, k) of each column in the model's own unit, None where the family gives none
    """

    raised: Floats
    contributions: Floats | None


class Reselection(TypedDict):
    """Propose which columns the next challenger leaves out; `proposed` None = not judged."""

    proposed: bool | None
    leave_out: list[str]
    keep: list[str]
    low: NotRequired[list[str]]
    line: str


def plan_permutation(data: Dataset, params: Params) -> PermutationPlan | str:
    """Return what to permute of a family's rows (one bar each, no value missing), or why nothing can be."""
    if (shape := data.inputs(np.arange(1)).shape)[1:] != (len(data.columns),):
        return f"reads windows of {shape[1]} bars: columns of one bar cannot be permuted by themselves"
    return PermutationPlan(data.columns, clusters(data.all_inputs(), data.columns, params.importance.correlation))


def clusters(rows: Floats, columns: tuple[str, ...], least: float) -> tuple[Group, ...]:
    """Return the clusters of columns, in the order of their first columns.

    Two columns are joined if |rank correlation| (Spearman) is at least `least` or if the catalogue lists one as a copy
    of the other; clusters are the connected components. rows (n, k), none missing.
    """
    from scipy.sparse.csgraph import connected_components  # both take a second to import, and only a fit needs them
    from scipy.stats import rankdata

    ranks = rankdata(rows, axis=0)
    ranks -= ranks.mean(axis=0)
    size = np.sqrt((ranks**2).sum(axis=0))
    size[size == 0.0] = np.inf  # a constant correlates with nothing
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
    """Permute the groups of one test fold and return the rise of the loss.

    loss  (n,) of `fitted` on the unchanged rows
    The permutations depend on the seed and the fold's first row; all groups use the same ones.
    """
    rows, repeats = test.all_inputs(), params.importance.repeats
    rng = np.random.default_rng([params.seed, int(test.at[0])])
    raised = np.zeros((len(test), len(plan.groups)))
    for _ in range(repeats):
        order = rng.permutation(len(test))
        for g, group in enumerate(plan.groups):
            permuted = rows.copy()
            permuted[:, group] = rows[order][:, group]
            raised[:, g] += model_family.loss(fitted.predict(permuted).p, test, fitted.loss_params) - loss
    contributions = None if model_family.contributions is None else model_family.contributions(fitted, rows)
    return PermutationResult(raised / repeats, contributions)


def join_folds(folds: list[PermutationResult]) -> PermutationResult:
    """Return one result over the rows of all folds."""
    parts = [fold.contributions for fold in folds if fold.contributions is not None]
    return PermutationResult(np.concatenate([fold.raised for fold in folds]), np.concatenate(parts) if parts else None)


def importance(
    plan: PermutationPlan, result: PermutationResult, extras: Mapping[str, Floats], loss_name: str, params: Params,
    known: Floats | None = None,
) -> JsonObject:  # fmt: skip
    """Return the JSON-ready report: columns, clusters, by_regime, reselection.

    Shares are of the sum of all positive rises; None if no loss rose.
    extras  of the dataset on the same rows; `regime`: (n,) code of contracts.REGIMES, NaN where it is unknown
    known   (n,) when each row was known, where rows of several markets share a moment
    """
    k, wide = len(plan.columns), [group for group in plan.clusters if len(group) > 1]
    at = [group[0] if len(group) == 1 else k + wide.index(group) for group in plan.clusters]
    raised, clustered = result.raised[:, :k], result.raised[:, at]
    contributions, cluster_of = result.contributions, {j: c for c, group in enumerate(plan.clusters) for j in group}
    column_share, cluster_share = shares(raised), shares(clustered)
    columns = {
        name: {
            "rise": _figure(raised[:, j], known), "share": column_share[j], "cluster": cluster_of[j],
            "contribution": None if contributions is None else float(np.abs(contributions[:, j]).mean()),
        }
        for j, name in enumerate(plan.columns)
    }  # fmt: skip
    by_cluster = [
        {
            "columns": [plan.columns[j] for j in group], "rise": _figure(clustered[:, c], known),
            "share": cluster_share[c],
            "contribution": (
                None if contributions is None else float(np.abs(contributions[:, group].sum(axis=1)).mean())
            ),
        }
        for c, group in enumerate(plan.clusters)
    ]  # fmt: skip
    share_of = {name: cluster_share[cluster_of[j]] for j, name in enumerate(plan.columns)}
    return {
        "loss_name": loss_name, "rows": len(raised), "repeats": params.importance.repeats, "seed": params.seed,
        "contributions": "mean |TreeSHAP| in log-odds before calibration" if contributions is not None else "none",
        "columns": columns, "clusters": by_cluster,
        "by_regime": _by_regime(plan, clustered, extras.get("regime"), known),
        "reselection": reselection(share_of, params.importance.low_share, params.importance.reselect_over),
    }  # fmt: skip


def shares(raised: Floats) -> list[float | None]:
    """Return the share of each group in the sum of positive mean rises (n, g); None each if none rose."""
    means = np.maximum(raised.mean(axis=0), 0.0) if len(raised) else np.zeros(raised.shape[1])
    whole = float(means.sum())
    return [float(m) / whole for m in means] if whole > 0.0 else [None] * len(means)


def reselection(share_of: Mapping[str, float | None], low: float, over: float) -> Reselection:
    """Propose a challenger without the columns of a share below `low`, if they are more than `over` of all columns.

    share_of  column → share of its cluster: a copy is not unimportant because another column substitutes for it
    """
    if any(share is None for share in share_of.values()):
        why = "no permutation raised the loss out of fold, so no column can be preferred"
        return {"proposed": None, "leave_out": [], "keep": list(share_of), "line": f"not judged: {why}"}
    few = [name for name, share in share_of.items() if share is not None and share < low]
    part = len(few) / len(share_of)
    summary = f"{len(few)} of {len(share_of)} columns ({part:.0%}) have under {low:.0%} of the importance"
    if proposed := part > over:
        line = f"proposed: {summary}, more than {over:.0%}; next challenger without {', '.join(few)}"
    else:
        line = f"not proposed: {summary}, not more than {over:.0%}"
    keep = [name for name in share_of if name not in few]
    return {"proposed": proposed, "leave_out": few if proposed else [], "keep": keep if proposed else list(share_of),
            "low": few, "line": line}  # fmt: skip


def not_permuted(why: str) -> JsonObject:
    """Return the report of a family whose columns could not be permuted."""
    return {"columns": {}, "clusters": [], "by_regime": {},
            "reselection": {"proposed": None, "leave_out": [], "keep": [], "line": f"not judged: {why}"}}  # fmt: skip


def _by_regime(plan: PermutationPlan, clustered: Floats, codes: Floats | None, known: Floats | None) -> JsonObject:
    """Return rule regime → rows and each cluster's rise and share, by its first column; unknown regimes apart."""
    if codes is None:
        return {}
    found = {}
    for code, name in [*enumerate(REGIMES), (None, "UNKNOWN")]:
        of = np.isnan(codes) if code is None else codes == code
        rows, when = clustered[of], None if known is None else known[of]
        if len(rows):
            names = [plan.columns[group[0]] for group in plan.clusters]
            figures = zip(names, rows.T, shares(rows), strict=True)
            found[name] = {
                "rows": len(rows),
                "clusters": {first: {"rise": _figure(each, when), "share": share} for first, each, share in figures},
            }
    return found


def _figure(values: Floats, known: Floats | None) -> JsonObject:
    """Return the mean of values with its interval and n; None for bounds with too few rows."""
    e = mean_estimate(values, known=known)
    return dict(json_ready({"value": e.value, "low": e.low, "high": e.high, "n": e.n}))


def section(report: Mapping[str, Any]) -> str:
    """Return HTML for the evidence page: the rule's line and two bar charts, by column and by regime.

    report  of `importance`
    """
    line = f"<h2>Column importance</h2><p>Reselection {escape(report['reselection']['line'])}.</p>"
    if not report["columns"]:
        return line
    figure, ((left, right),) = axes_of(1, 2, 1.4 + 0.2 * len(report["columns"]))
    columns = sorted(report["columns"].items(), key=lambda item: item[1]["rise"]["value"])
    names, rises = [name for name, _ in columns], [each["rise"] for _, each in columns]
    error = [
        [0.0 if r["low"] is None else r["value"] - r["low"] for r in rises],
        [0.0 if r["high"] is None else r["high"] - r["value"] for r in rises],
    ]
    left.barh(names, [r["value"] for r in rises], xerr=error, color="#3b5bdb", ecolor="#5c6b7a")
    left.set_title(f"Rise of {report['loss_name']} when permuted, 95 %")
    clusters = list(dict.fromkeys(name for each in report["by_regime"].values() for name in each["clusters"]))
    deep = 0.8 / max(len(report["by_regime"]), 1)
    for i, (regime, each) in enumerate(report["by_regime"].items()):
        shared = {name: cluster["share"] for name, cluster in each["clusters"].items() if cluster["share"] is not None}
        at = [clusters.index(name) + i * deep - 0.4 + deep / 2 for name in shared]
        right.barh(at, list(shared.values()), deep, label=f"{regime} ({each['rows']:,})")
    right.set_yticks(range(len(clusters)), clusters)
    right.set_title("Share by rule regime, clusters")
    if clusters:
        right.legend(loc="best")
    rows = "".join(
        f"<tr><td>{escape(', '.join(c['columns']))}</td><td>{c['rise']['value']:.5f}</td>"
        f"<td>{_bounds(c['rise'])}</td><td>{_percent(c['share'])}</td>"
        f"<td>{'–' if c['contribution'] is None else format(c['contribution'], '.4f')}</td></tr>"
        for c in sorted(report["clusters"], key=lambda c: -c["rise"]["value"])
    )
    return (
        f"{line}<p>{report['rows']:,} out-of-fold rows, each permuted {report['repeats']} times inside its fold. "
        f"Redundant columns are permuted together. Contributions: {escape(report['contributions'])}.</p>"
        "<table><tr><th>columns</th><th>rise</th><th>interval</th><th>share</th><th>contribution</th></tr>"
        f"{rows}</table>{svg(figure)}"
    )


def _bounds(rise: Mapping[str, Any]) -> str:
    """Return the interval of a rise."""
    return "too few rows" if rise["low"] is None else f"[{rise['low']:.5f}, {rise['high']:.5f}]"


def _percent(share: float | None) -> str:
    """Return a share in per cent, a dash for None."""
    return "–" if share is None else f"{share:.1%}"
