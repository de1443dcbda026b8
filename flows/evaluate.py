"""Evaluate: put a candidate through the gate, beside the champion, and ledger the verdict."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

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


def champion_on_unseen(installation: Installation, family: str, at: Ints) -> Floats | None:
    """(n,) the champion's losses on rows `at` of the family's dataset, NaN where it had trained on them or abstains;
    None without a champion of this market."""
    held = slots_of(installation.store, family).champion
    if held is None:
        return None
    version = installation.tracking.version(family, str(held.to_version))
    model = load_bundle(fetch_bundle(installation, version), version.digest, version.version)
    meta = installation.meta()
    if any(model.schema.get(key) != meta[key] for key in ("symbol", "decision_timeframe")):
        return None  # a champion of another market has no opinion on these rows
    chosen = model_family(family)
    data = chosen.dataset(installation.workspace / "artifacts", installation.params).select_rows(at)
    unseen = np.flatnonzero(data.known > model.schema["trained_through"])
    losses = np.full(len(at), np.nan)
    for rows in np.array_split(unseen, max(1, len(unseen) // 2048)):
        later = data.select_rows(rows)
        p = model.predict(select(later.all_inputs(), later.columns, model.columns)).p
        spoke: Bools = np.asarray(np.isfinite(p.reshape(len(p), -1)).all(axis=1))
        losses[rows[spoke]] = chosen.loss(p[spoke], later.select_rows(spoke), model.schema["loss_params"])
    return losses


def gather(installation: Installation, family: str) -> Evidence:
    """What the gate reads, from the stage outputs of the newest snapshot and the current champion."""
    folder = installation.workspace / "artifacts" / family
    held = slots_of(installation.store, family).champion
    itself = held is not None and held.digest == json.loads((folder / "fit.json").read_text())["digest"]
    unseen = None if itself else champion_on_unseen(installation, family, read_oof(folder)["row"])
    return evidence_of(folder, unseen, max(1, installation.store.count_trials(family)))


@task(timeout_seconds=900, task_run_name="judge-{family}")
def pass_gate(family: str, version: str) -> bool:
    """Judge once per digest, ledger the verdict, put the evidence into the version's run, and serve it in shadow."""
    installation = open_installation()
    candidate = installation.tracking.version(family, version)
    earlier = verdict_line(installation.store, family, version, candidate.digest)
    if earlier is not None:
        report_progress(f"{family} version {version}: judged before, {earlier.reason}")
        return bool(earlier.verdict_passed)
    evidence = gather(installation, family)
    verdict = judge(evidence, installation.params)
    folder = installation.workspace / "artifacts"
    figures = json.loads((folder / "evaluation" / f"{family}.json").read_text())
    traded = backtest.figures(backtest.run(installation, family)) if model_family(family).is_decision_model else None
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "evidence.html"
        write_page(page, verdict, figures, folder / family, f"{family} version {version}")
        installation.tracking.record_verdict(family, version, verdict.passed, asdict(verdict), [page], evidence.trials)
        if traded is not None:
            report = Path(scratch) / "backtest.json"
            report.write_text(json.dumps(traded, indent=1) + "\n")
            installation.tracking.log_report(candidate.run_id, [report], "gate", flat_metrics(traded, "backtest."))
    challenge(installation, candidate, verdict, figure_rows(figures, traded), actor="gate")
    create_markdown_artifact(
        key=f"verdict-{family}",
        markdown=verdict_markdown(verdict, version, installation.tracking.run_link(candidate.run_id)),
    )
    report_progress(
        f"{family} version {version}: "
        + ("passed the gate" if verdict.passed else "refused: " + "; ".join(verdict.reasons))
    )
    return verdict.passed


def verdict_markdown(verdict: Verdict, version: str, link: str) -> str:
    lines = [
        f"# {verdict.family} version {version}: {'passed' if verdict.passed else 'refused'}",
        f"[Evidence in MLflow]({link})",
        "",
        "| check | value | 95 % interval | required | n |",
        "|---|---|---|---|---|",
    ]
    for c in verdict.checks:
        value = "–" if c.value is None else f"{c.value:.4g}"
        interval = "" if c.low is None or c.high is None else f"[{c.low:.4g}, {c.high:.4g}]"
        lines.append(f"| {'✓' if c.passed else '✗'} {c.name} | {value} | {interval} | {c.threshold} | {c.n:,} |")
    return "\n".join(lines)


@flow(name="evaluate", log_prints=True)
def evaluate(family: str, version: str) -> bool:
    """Gate one registered version. Whatever the verdict, it serves in shadow as challenger, and answers say so."""
    with step(f"gate: {family} version {version}"):
        passed: bool = pass_gate(family, version)
        publish(open_installation(), fresh=True)
    return passed
