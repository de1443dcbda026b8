"""Y3, the gate: does the candidate add anything, on rows it has not seen, beside what is served and what is simple?

Every check is a line with its value, 95 % interval, threshold and n. A check that cannot be computed fails and says
why: there is no benefit of the doubt. Promotion asks whether the model *adds*; whether a trade *pays* is asked of
every single decision by the policy.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.contracts import Check, Estimate, Floats, Verdict
from pipelines.evaluation.deflation import deflated_sharpe, overfitting_probability
from pipelines.evaluation.metrics import (
    auc,
    brier_losses,
    expected_calibration_error,
    lift_bps,
    log_losses,
    mean_estimate,
    most_confident,
    statistic_estimate,
)
from pipelines.settings import Params


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the gate reads of a binary family. Rows are out-of-fold events in time order; all arrays (n,).

    p, y           the candidate's calibrated out-of-fold probability, the outcome
    baselines      name → probabilities on the same rows
    gross_bps      what taking each signal returned, before cost
    champion_p     the champion's probability on the same rows, NaN where it had seen the row in training or abstained;
                   None without a champion
    trials         how many candidates of this family were ever tried, this one included
    parity_gap     largest difference between the exported and the native model
    latency_ms     median time of one row through the exported model
    schema_coverage, novel_share   shares of out-of-time rows with all columns, and beyond the novelty limit
    """

    family: str
    p: Floats
    y: Floats
    baselines: dict[str, Floats]
    gross_bps: Floats
    champion_p: Floats | None
    trials: int
    parity_gap: float
    latency_ms: float
    schema_coverage: float
    novel_share: float


def judge(evidence: Evidence, params: Params) -> Verdict:
    """Run every check of the validator row. Deterministic for the same evidence and params."""
    g, e = params.gate, evidence
    n = len(e.y)
    checks = [_plain("events", n >= g.min_events, float(n), f">= {g.min_events}", n)]
    if n < g.min_events or len(np.unique(e.y)) < 2:
        checks.append(_unknown("skill", n, f"needs {g.min_events} out-of-fold events of both outcomes"))
        return _verdict(e.family, checks)
    draws, seed = g.bootstrap, params.seed
    own_log, own_brier = log_losses(e.p, e.y), brier_losses(e.p, e.y)
    for name, p in e.baselines.items():
        skill = mean_estimate(log_losses(p, e.y) - own_log, draws, seed)
        if name == "logistic":  # the simpler model is kept unless the complex one is better; the interval is shown
            checks.append(_bounded(f"log_loss_gain_over_{name}", skill, skill.value > 0, "value > 0"))
        else:
            checks.append(_bounded(f"log_loss_gain_over_{name}", skill, skill.low > 0, "low > 0"))
    brier = mean_estimate(brier_losses(e.baselines["base_rate"], e.y) - own_brier, draws, seed)
    checks.append(_bounded("brier_gain_over_base_rate", brier, brier.low > 0, "low > 0"))
    lift = statistic_estimate(lift_bps(e.p, e.gross_bps, g.coverage), n, draws, seed, params.costs.round_trip_bps)
    checks.append(_bounded(f"lift_bps_at_{g.coverage:.0%}", lift, lift.low > 0, "low > 0"))
    ranking = statistic_estimate(lambda rows: auc(e.p[rows], e.y[rows]), n, draws // 4, seed)
    checks.append(
        _bounded("no_leak_auc", ranking, ranking.low <= g.leak_auc, f"low <= {g.leak_auc}",
                 "" if ranking.low <= g.leak_auc else "LEAK_SUSPECTED: direction is not this predictable")
    )  # fmt: skip
    ece = expected_calibration_error(e.p, e.y)
    checks.append(_plain("calibration_ece", ece <= g.max_ece, ece, f"<= {g.max_ece}", n))
    checks += _luck(e, params)
    checks.append(
        _plain("export_parity", e.parity_gap <= g.max_parity_gap, e.parity_gap, f"<= {g.max_parity_gap:g}", n)
    )
    checks.append(_plain("latency_ms", e.latency_ms <= g.max_latency_ms, e.latency_ms, f"<= {g.max_latency_ms:g}", n))
    covered = e.schema_coverage >= g.min_schema_coverage
    checks.append(_plain("schema_coverage", covered, e.schema_coverage, f">= {g.min_schema_coverage}", n))
    familiar = e.novel_share <= g.max_novel_share
    checks.append(_plain("novel_share", familiar, e.novel_share, f"<= {g.max_novel_share}", n))
    if e.champion_p is not None:
        checks.append(_against_champion(e, own_log, params))
    return _verdict(e.family, checks)


def excess_of_chosen(p: Floats, gross_bps: Floats, coverage: float) -> Floats:
    """(n,) gross bps over the mean signal where `p` is among the most confident, 0 elsewhere: a row's share of lift."""
    excess = np.zeros(len(p))
    chosen = most_confident(p, coverage)
    excess[chosen] = gross_bps[chosen] - gross_bps.mean()
    return excess


def _luck(e: Evidence, params: Params) -> list[Check]:
    g = params.gate
    chosen = most_confident(e.p, g.coverage)
    sharpe = deflated_sharpe(e.gross_bps[chosen] - e.gross_bps.mean(), e.trials)
    rivals = {"model": e.p, **{k: v for k, v in e.baselines.items() if k != "base_rate"}}
    performance = np.column_stack([excess_of_chosen(p, e.gross_bps, g.coverage) for p in rivals.values()])
    pbo = overfitting_probability(np.column_stack([performance, np.zeros(len(e.y))]))
    return [
        _plain("deflated_sharpe", bool(sharpe >= g.min_deflated_sharpe), sharpe, f">= {g.min_deflated_sharpe}",
               len(chosen), f"of the lift, against the best of {e.trials} trial(s)"),
        _plain("overfitting_probability", pbo <= g.max_pbo, pbo, f"<= {g.max_pbo}", len(e.y),
               f"among {', '.join(rivals)} and taking every signal"),
    ]  # fmt: skip


def _against_champion(e: Evidence, own_log: Floats, params: Params) -> Check:
    g = params.gate
    assert e.champion_p is not None
    paired = np.isfinite(e.champion_p)
    if paired.sum() < g.min_paired:
        detail = f"{int(paired.sum())} rows the champion had not seen, needs {g.min_paired}; wait for more outcomes"
        return _unknown("gain_over_champion", int(paired.sum()), detail)
    gain = mean_estimate(log_losses(e.champion_p[paired], e.y[paired]) - own_log[paired], g.bootstrap, params.seed)
    better = gain.value >= g.min_improvement and gain.low > 0
    return _bounded("gain_over_champion", gain, better, f"value >= {g.min_improvement} and low > 0")


def _plain(name: str, passed: bool, value: float, threshold: str, n: int, detail: str = "") -> Check:
    return Check(name, bool(passed), float(value), None, None, threshold, n, detail)


def _bounded(name: str, estimate: Estimate, passed: bool, threshold: str, detail: str = "") -> Check:
    return Check(name, bool(passed), estimate.value, estimate.low, estimate.high, threshold, estimate.n, detail)


def _unknown(name: str, n: int, detail: str) -> Check:
    return Check(name, None, None, None, None, "computable", n, detail)


def _verdict(family: str, checks: list[Check]) -> Verdict:
    reasons = tuple(c.name if not c.detail else f"{c.name}: {c.detail}" for c in checks if not c.passed)
    return Verdict(family, not reasons, tuple(checks), reasons)
