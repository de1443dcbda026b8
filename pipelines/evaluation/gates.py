"""Y3, the gate: is the candidate better, on rows outside its training, than the champion and than simple baselines?

Every check is a line with its value, 95 % interval, threshold and n. A check that cannot be computed fails, with the
reason. The gate measures whether the model adds skill; the policy decides for every single decision whether a trade
pays.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from pipelines.contracts import Check, Estimate, Floats, Verdict
from pipelines.evaluation.deflation import deflated_sharpe, overfitting_probability
from pipelines.evaluation.metrics import (
    auc_estimate,
    expected_calibration_error,
    lift_estimate,
    mean_estimate,
    most_confident,
)
from pipelines.evaluation.report import arrays_with_prefix, read_oof
from pipelines.models.losses import brier_losses
from pipelines.params import Params
from pipelines.renamed_keys import current_names


@dataclass(frozen=True, slots=True)
class Evidence:
    """Hold what the gate reads of a candidate. Rows are out-of-fold rows in time order.

    loss_name      name and unit of the loss
    classes        names of the columns of p
    loss           (n,) the candidate's losses; baseline_losses  name → (n,) losses of a baseline on the same rows
    p, y           (n,) or (n, classes): the candidate's out-of-fold probability, the outcome
    baselines      name → probabilities on the same rows, of the baselines that have one
    gross_bps      (n,) return of each row's trade before cost; None for a family without trades
    champion_loss  (n,) the champion's losses on the same rows, NaN where the row was in its training or it abstained;
                   None without a champion
    paired_loss    (n,) losses of the candidate's recipe fitted up to the end of the champion's data, on the rows after
                   it, NaN elsewhere: what is compared with champion_loss. None = `loss`
    trials         number of candidates of this family ever tried, this one included
    parity_gap     largest difference between the exported and the native model
    latency_ms     median time of one row through the exported model
    schema_coverage, novel_share   shares of rows with all columns, and of the newest rows beyond the novelty limit
    single_column_auc  {column: AUC} of the column that ranks the outcome best by itself
    """

    family: str
    loss_name: str
    classes: tuple[str, ...]
    loss: Floats
    baseline_losses: Mapping[str, Floats]
    p: Floats
    y: Floats
    champion_loss: Floats | None
    trials: int
    parity_gap: float
    latency_ms: float
    schema_coverage: float
    novel_share: float
    baselines: Mapping[str, Floats] = field(default_factory=dict)
    gross_bps: Floats | None = None
    single_column_auc: Mapping[str, float] = field(default_factory=dict)
    paired_loss: Floats | None = None


def evidence_of(folder: Path, champion_loss: Floats | None, trials: int, paired_loss: Floats | None = None) -> Evidence:
    """Return the evidence in a family's stage output `folder` (`oof.npz`, `fit.json`)."""
    fit, oof = current_names("fit figures", json.loads((folder / "fit.json").read_text())), read_oof(folder)
    return Evidence(
        family=fit["family"],
        loss_name=fit["loss_name"],
        classes=tuple(fit["classes"]),
        loss=oof["loss"],
        baseline_losses=arrays_with_prefix(oof, "loss_"),
        p=oof["p"],
        y=oof["y"],
        champion_loss=champion_loss,
        paired_loss=paired_loss,
        trials=trials,
        baselines=arrays_with_prefix(oof, "baseline_"),
        gross_bps=oof.get("extra_gross_bps"),
        single_column_auc=fit.get("single_column_auc", {}),
        **{key: fit[key] for key in ("parity_gap", "latency_ms", "schema_coverage", "novel_share")},
    )


FamilyChecks = Callable[[Evidence, Params], list[Check]]


def judge(evidence: Evidence, params: Params) -> Verdict:
    """Run every check of the family and return the verdict. Deterministic for the same evidence and params."""
    g, e = params.gate, evidence
    n = len(e.loss)
    checks = [_plain("rows", n >= g.min_events, float(n), f">= {g.min_events}", n)]
    if n < g.min_events or (e.y.ndim == 1 and len(np.unique(e.y)) < 2):
        checks.append(_unknown("skill", n, f"needs {g.min_events} out-of-fold rows of different outcomes"))
        return _verdict(e.family, checks)
    for name, loss in e.baseline_losses.items():
        skill = mean_estimate(loss - e.loss, g.bootstrap, params.seed)
        if name == "logistic":  # the complex model must be better than the simpler one; the interval is shown
            checks.append(_bounded(f"gain_over_{name}", skill, skill.value > 0, "value > 0", f"in {e.loss_name}"))
        else:
            checks.append(_bounded(f"gain_over_{name}", skill, skill.low > 0, "low > 0", f"in {e.loss_name}"))
    for family_checks in CHECKS.get(e.family, ()):
        checks += family_checks(e, params)
    checks.append(
        _plain("export_parity", e.parity_gap <= g.max_parity_gap, e.parity_gap, f"<= {g.max_parity_gap:g}", n)
    )
    checks.append(_plain("latency_ms", e.latency_ms <= g.max_latency_ms, e.latency_ms, f"<= {g.max_latency_ms:g}", n))
    covered = e.schema_coverage >= g.min_schema_coverage
    checks.append(_plain("schema_coverage", covered, e.schema_coverage, f">= {g.min_schema_coverage}", n))
    familiar = e.novel_share <= g.max_novel_share
    checks.append(_plain("novel_share", familiar, e.novel_share, f"<= {g.max_novel_share}", n))
    if e.champion_loss is not None:
        checks.append(_against_champion(e, params))
    return _verdict(e.family, checks)


def brier_over_base_rate(e: Evidence, params: Params) -> list[Check]:
    """Check that the Brier score is better than that of the base rate."""
    gain = brier_losses(e.baselines["base_rate"], e.y) - brier_losses(e.p, e.y)
    brier = mean_estimate(gain, params.gate.bootstrap, params.seed)
    return [_bounded("brier_gain_over_base_rate", brier, brier.low > 0, "low > 0")]


def lift(e: Evidence, params: Params) -> list[Check]:
    """Check that the most confident trades return more, in bps before cost, than all trades."""
    assert e.gross_bps is not None
    g = params.gate
    found = lift_estimate(e.p, e.gross_bps, g.coverage, g.bootstrap, params.seed, 0.0)
    return [_bounded(f"lift_bps_at_{g.coverage:.0%}", found, found.low > 0, "low > 0", "before cost")]


def no_leak(e: Evidence, params: Params) -> list[Check]:
    """Check that the AUC on direction is plausible: a lower bound above the limit is taken for a leak."""
    limit = params.gate.leak_auc
    ranking = auc_estimate(e.p, e.y, params.gate.bootstrap // 4, params.seed)
    if ranking.low > limit:
        single = [f"; {name} alone ranks it with an AUC of {auc:.3f}" for name, auc in e.single_column_auc.items()]
        why = "LEAK_SUSPECTED: direction is not this predictable" + "".join(single)
    else:
        why = ""
    return [_bounded("no_leak_auc", ranking, ranking.low <= limit, f"low <= {limit}", why)]


def calibrated(e: Evidence, params: Params) -> list[Check]:
    """Check that events of probability p happen p of the time; the classes of a family are pooled."""
    ece, limit = expected_calibration_error(e.p.ravel(), e.y.ravel()), params.gate.max_ece
    return [_plain("calibration_ece", ece <= limit, ece, f"<= {limit}", e.y.size)]


def each_class(e: Evidence, params: Params, over: str) -> list[Check]:
    """Check that no class is worse than the baseline `over`, by its interval: the mean over classes would hide it."""
    baseline = e.baselines[over]
    checks = []
    for c, name in enumerate(e.classes):
        squared = (baseline[:, c] - e.y[:, c]) ** 2 - (e.p[:, c] - e.y[:, c]) ** 2
        gain = mean_estimate(squared, params.gate.bootstrap, params.seed)
        checks.append(_bounded(f"brier_gain_over_{over}:{name}", gain, gain.high >= 0, "high >= 0"))
    return checks


def excess_of_chosen(p: Floats, gross_bps: Floats, coverage: float) -> Floats:
    """Return (n,) gross bps above the mean for the most confident rows, 0 elsewhere: each row's share of the lift."""
    excess = np.zeros(len(p))
    chosen = most_confident(p, coverage)
    excess[chosen] = gross_bps[chosen] - gross_bps.mean()
    return excess


def luck(e: Evidence, params: Params) -> list[Check]:
    """Check that the lift is not the luck of many trials (Bailey and López de Prado 2014; PBO, 2017)."""
    assert e.gross_bps is not None
    g = params.gate
    chosen = most_confident(e.p, g.coverage)
    sharpe = deflated_sharpe(e.gross_bps[chosen] - e.gross_bps.mean(), e.trials)
    candidates = {"model": e.p, **{k: v for k, v in e.baselines.items() if k != "base_rate"}}
    performance = np.column_stack([excess_of_chosen(p, e.gross_bps, g.coverage) for p in candidates.values()])
    pbo = overfitting_probability(np.column_stack([performance, np.zeros(len(e.y))]))
    return [
        _plain("deflated_sharpe", bool(sharpe >= g.min_deflated_sharpe), sharpe, f">= {g.min_deflated_sharpe}",
               len(chosen), f"of the lift, against the best of {e.trials} trial(s)"),
        _plain("overfitting_probability", pbo <= g.max_pbo, pbo, f"<= {g.max_pbo}", len(e.y),
               f"among {', '.join(candidates)} and taking every signal"),
    ]  # fmt: skip


def _against_champion(e: Evidence, params: Params) -> Check:
    """Check that the loss is lower than the champion's by the stated margin, on rows outside both trainings."""
    g = params.gate
    assert e.champion_loss is not None
    challenger = e.loss if e.paired_loss is None else e.paired_loss
    paired = np.isfinite(e.champion_loss) & np.isfinite(challenger)
    if paired.sum() < g.min_paired:
        detail = (
            f"{int(paired.sum())} rows after the champion's data that both could score, needs {g.min_paired}; wait for "
            "more outcomes"
        )
        return _unknown("gain_over_champion", int(paired.sum()), detail)
    gain = mean_estimate(e.champion_loss[paired] - challenger[paired], g.bootstrap, params.seed)
    better = gain.value >= g.min_improvement and gain.low > 0
    return _bounded(
        "gain_over_champion", gain, better, f"value >= {g.min_improvement} and low > 0", f"in {e.loss_name}"
    )


def _plain(name: str, passed: bool, value: float, threshold: str, n: int, detail: str = "") -> Check:
    """Return a check of a value without an interval."""
    return Check(name, bool(passed), float(value), None, None, threshold, n, detail)


def _bounded(name: str, estimate: Estimate, passed: bool, threshold: str, detail: str = "") -> Check:
    """Return a check of an estimate with its interval."""
    return Check(name, bool(passed), estimate.value, estimate.low, estimate.high, threshold, estimate.n, detail)


def _unknown(name: str, n: int, detail: str) -> Check:
    """Return a check that could not be computed, and why."""
    return Check(name, None, None, None, None, "computable", n, detail)


def _verdict(family: str, checks: list[Check]) -> Verdict:
    """Return the verdict: passed only if every check passed."""
    reasons = tuple(c.name if not c.detail else f"{c.name}: {c.detail}" for c in checks if not c.passed)
    return Verdict(family, not reasons, tuple(checks), reasons)


# Y3: the checks of a family besides the gain over each baseline and the checks of every model
CHECKS: dict[str, tuple[FamilyChecks, ...]] = {
    "validator": (brier_over_base_rate, lift, no_leak, calibrated, luck),
    "pattern": (partial(each_class, over="prevalence"), calibrated),
    "predictor": (brier_over_base_rate, no_leak, calibrated),
    "regime": (),
}
