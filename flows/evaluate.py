"""Evaluate: put a candidate through the gate, next to the champion, and record the verdict on the ledger."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from flows.support import backtest
from flows.support.installation import Installation, open_installation
from flows.support.progress import report_progress, step
from flows.support.promotion import challenge, fetch_bundle, publish, slots_of, verdict_line
from pipelines.contracts import Bools, Floats, Ints, Verdict
from pipelines.evaluation.gates import Evidence, evidence_of, judge
from pipelines.evaluation.report import figure_rows, flat_metrics, read_oof, write_page
from pipelines.models.catalog import model_family
from pipelines.models.runtime import load_bundle
from pipelines.models.views import select
from pipelines.store import Promotion
from pipelines.tracking import Version


def champion_on_unseen(installation: Installation, family: str, at: Ints) -> Floats | None:
    """Return (n,) losses of the champion on rows `at` of the family's dataset; None without a champion of this market.

    NaN where the champion had trained on the row, or abstains.
    """
    champion = slots_of(installation.store, family).champion
    if champion is None:
        return None
    version = installation.tracking.version(family, str(champion.to_version))
    model = load_bundle(fetch_bundle(installation, version), version.digest, version.version)
    meta = installation.meta()
    if any(model.schema.get(key) != meta[key] for key in ("symbol", "decision_timeframe")):
        return None  # a champion of another market cannot be compared on these rows
    chosen = model_family(family)
    data = chosen.dataset(installation.workspace / "artifacts", installation.params).select_rows(at)
    unseen = np.flatnonzero(data.known > model.schema["trained_through"])
    losses = np.full(len(at), np.nan)
    for rows in np.array_split(unseen, max(1, len(unseen) // 2048)):
        later = data.select_rows(rows)
        p = model.predict(select(later.all_inputs(), later.columns, model.columns)).p
        answered: Bools = np.asarray(np.isfinite(p.reshape(len(p), -1)).all(axis=1))
        losses[rows[answered]] = chosen.loss(p[answered], later.select_rows(answered), model.schema["loss_params"])
    return losses


def gather(installation: Installation, family: str) -> Evidence:
    """Return what the gate reads, from the stage outputs of the newest snapshot and the current champion."""
    folder = installation.workspace / "artifacts" / family
    champion = slots_of(installation.store, family).champion
    is_champion = champion is not None and champion.digest == json.loads((folder / "fit.json").read_text())["digest"]
    unseen = None if is_champion else champion_on_unseen(installation, family, read_oof(folder)["row"])
    trials = max(1, installation.store.count_trials(family))
    return evidence_of(folder, unseen, trials, trial_sharpes=trial_sharpes(installation, family))


def trial_sharpes(installation: Installation, family: str) -> list[float]:
    """Return the Sharpe ratio of the lift of each registered version of the family whose run in MLflow has one."""
    runs = [version.run_id for version in installation.tracking.versions(family)]
    found = [installation.tracking.metrics(run).get("lift_sharpe.value") for run in runs]
    return [ratio for ratio in found if ratio is not None]


@task(timeout_seconds=900, task_run_name="judge-{family}")
def pass_gate(family: str, version: str) -> bool:
    """Return whether the version passes the gate; the same bytes are judged once."""
    installation = open_installation()
    candidate = installation.tracking.version(family, version)
    earlier = verdict_line(installation.store, family, version, candidate.digest)
    return judged_before(earlier) if earlier is not None else judge_candidate(installation, candidate)


def judged_before(line: Promotion) -> bool:
    """Return the verdict that the ledger already has."""
    report_progress(f"{line.family} version {line.to_version}: judged before, {line.reason}")
    return bool(line.verdict_passed)


def judge_candidate(installation: Installation, candidate: Version) -> bool:
    """Judge a version, put the evidence into its run and the verdict on the ledger, and serve it in shadow."""
    family, version = candidate.family, candidate.version
    evidence = gather(installation, family)
    verdict = judge(evidence, installation.params)
    figures = json.loads((installation.workspace / "artifacts" / "evaluation" / f"{family}.json").read_text())
    traded = backtest.figures(backtest.run(installation, family)) if model_family(family).is_decision_model else None
    log_evidence(installation, candidate, verdict, evidence.trials, figures, traded)
    challenge(installation, candidate, verdict, figure_rows(figures, traded), actor="gate")
    create_markdown_artifact(
        key=f"verdict-{family}",
        markdown=verdict_markdown(verdict, version, installation.tracking.run_link(candidate.run_id)),
    )
    outcome = "passed the gate" if verdict.passed else "refused: " + "; ".join(verdict.reasons)
    report_progress(f"{family} version {version}: {outcome}")
    return verdict.passed


def log_evidence(
    installation: Installation,
    candidate: Version,
    verdict: Verdict,
    trials: int,
    figures: dict[str, Any],
    traded: dict[str, Any] | None,
) -> None:
    """Log evidence page, verdict and the backtest's figures to the version's run.

    figures  of the walk-forward evaluation; traded: of the backtest, None for a family that decides no trade
    """
    family, version = candidate.family, candidate.version
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "evidence.html"
        folder = installation.workspace / "artifacts" / family
        write_page(page, verdict, figures, folder, f"{family} version {version}")
        installation.tracking.record_verdict(family, version, verdict.passed, asdict(verdict), [page], trials)
        if traded is not None:
            report = Path(scratch) / "backtest.json"
            report.write_text(json.dumps(traded, indent=1) + "\n")
            installation.tracking.log_report(candidate.run_id, [report], "gate", flat_metrics(traded, "backtest."))


def verdict_markdown(verdict: Verdict, version: str, link: str) -> str:
    """Return the verdict as Markdown: a table of the checks, with a link to the evidence."""
    lines = [
        f"# {verdict.family} version {version}: {'passed' if verdict.passed else 'refused'}",
        f"[Evidence in MLflow]({link})",
        "",
        "| check | value | 95 % interval | required | detectable | n |",
        "|---|---|---|---|---|---|",
    ]
    for c in verdict.checks:
        value = "–" if c.value is None else f"{c.value:.4g}"
        interval = "" if c.low is None or c.high is None else f"[{c.low:.4g}, {c.high:.4g}]"
        least = "" if c.detectable is None else f"{c.detectable:.2g}"
        mark = "✓" if c.passed else "✗"
        lines.append(f"| {mark} {c.name} | {value} | {interval} | {c.threshold} | {least} | {c.n:,} |")
    return "\n".join(lines)


@flow(name="evaluate", log_prints=True)
def evaluate(family: str, version: str) -> bool:
    """Judge one registered version. With either verdict it serves in shadow as challenger, and answers show which."""
    with step(f"gate: {family} version {version}"):
        passed: bool = pass_gate(family, version)
        publish(open_installation(), fresh=True)
    return passed
