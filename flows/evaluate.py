"""Evaluate: put a candidate through the gate, next to the champion, and record the verdict on the ledger."""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from flows.support import backtest
from flows.support.home_copy import bring
from flows.support.installation import Installation, open_installation
from flows.support.live_outcomes import longest_horizon_s
from flows.support.progress import line_progress, report_progress, step
from flows.support.promotion import challenge, fetch_bundle, publish
from flows.support.run_names import run_name
from flows.support.version_tags import comparison
from flows.train import restore_fit
from pipelines import versioning
from pipelines.contracts import Bools, Floats, Ints, Model, Verdict
from pipelines.errors import StateError
from pipelines.evaluation.experiment_basis import experiment_basis
from pipelines.evaluation.gates import Evidence, evidence_of, judge
from pipelines.evaluation.report import figure_rows, flat_metrics, read_oof, write_page
from pipelines.evaluation.verdicts import MARKS, state_of, verdict_record, verdict_state
from pipelines.families import Family
from pipelines.models.catalog import model_family
from pipelines.models.runtime import load_bundle
from pipelines.models.trained_on import described, shared_symbols, shares_market, symbols_of
from pipelines.models.views import select
from pipelines.store import Promotion
from pipelines.tracking import Version


def served_champion(installation: Installation, family: str) -> Model | None:
    """Return the champion in service; None without one, or if it is the newest fit of the family itself."""
    champion = installation.store.slots(family).champion
    fit = json.loads((installation.workspace / "artifacts" / family / "fit.json").read_text())
    if champion is None or champion.digest == fit["digest"]:
        return None
    version = installation.tracking.version(family, str(champion.to_version))
    return load_bundle(fetch_bundle(installation, version), version.digest, version.version)


def rival(installation: Installation, family: str) -> Model | None:
    """Return the champion that the newest fit of a family has to beat, on the rows of the markets they share.

    None without one, if they share no market (then `incomparable` says so), or if it is this very fit.
    """
    model = served_champion(installation, family)
    return model if model is not None and shares_market(model.schema, fitted_on(installation, family)) else None


def incomparable(installation: Installation, family: str) -> str:
    """Return why the champion in service cannot be compared with the newest fit; empty where it can, or without one."""
    model = served_champion(installation, family)
    if model is None or shares_market(model.schema, fit := fitted_on(installation, family)):
        return ""
    return (
        f"champion version {model.version} was trained on {described(model.schema)}, this candidate on "
        f"{described(fit)}: they share no rows. Add one of its symbols to the universe (`bellwether symbols add`), or "
        "use another home"
    )


def fitted_on(installation: Installation, family: str) -> dict[str, Any]:
    """Return the schema of the newest fit of a family: its symbols and its timeframe among it."""
    schema = installation.workspace / "artifacts" / family / "bundle" / "schema.json"
    return dict(json.loads(schema.read_text()))


def champion_on_unseen(installation: Installation, model: Model, at: Ints) -> Floats:
    """Return (n,) losses of the champion `model` on rows `at` of its family's dataset.

    NaN where the champion had trained on the row, was not trained on its market, or abstains.
    """
    chosen = model_family(model.family)
    data = chosen.dataset(installation.workspace / "artifacts", installation.params).select_rows(at)
    theirs = np.isin(np.array(data.symbols), symbols_of(model.schema))[data.symbol]
    unseen = np.flatnonzero(theirs & (data.known > model.schema["trained_through"]))
    losses = np.full(len(at), np.nan)
    for rows in np.array_split(unseen, max(1, len(unseen) // 2048)) if len(unseen) else ():
        later = data.select_rows(rows)
        p = model.predict(select(later.all_inputs(), later.columns, model.columns)).p
        answered: Bools = np.asarray(np.isfinite(p.reshape(len(p), -1)).all(axis=1))
        losses[rows[answered]] = chosen.loss(p[answered], later.select_rows(answered), model.schema["loss_params"])
    return losses


def gather(installation: Installation, family: str) -> Evidence:
    """Return what the gate reads, from the stage outputs of the newest snapshot and the current champion."""
    folder = installation.workspace / "artifacts" / family
    trials, sharpes = max(1, installation.store.count_trials(family)), trial_sharpes(installation, family)
    champion = rival(installation, family)
    if champion is None:
        return evidence_of(folder, None, trials, trial_sharpes=sharpes, incomparable=incomparable(installation, family))
    unseen = champion_on_unseen(installation, champion, read_oof(folder)["row"])
    return evidence_of(folder, unseen, trials, paired_losses(installation, champion), sharpes)


def trial_sharpes(installation: Installation, family: str) -> list[float]:
    """Return the Sharpe ratio of the lift of each version of the family whose run in MLflow has one.

    Of those that share a market with the data: another one's say nothing of how much luck varies here.
    """
    meta = installation.meta()
    runs = [version.run_id for version in installation.tracking.versions(family) if shares_market(version.tags, meta)]
    found = [installation.tracking.metrics(run).get("lift_sharpe.value") for run in runs]
    return [ratio for ratio in found if ratio is not None]


def paired_losses(installation: Installation, champion: Model) -> Floats:
    """Return (n,) losses of the newest fit's recipe, as `fit_paired` left them; NaN if it had too few rows to compare.

    Raises  StateError if they are of another fit or end elsewhere: another run has used the workspace since
    """
    folder = installation.workspace / "artifacts"
    rows = len(read_oof(folder / champion.family)["row"])
    path = folder / "paired" / f"{champion.family}.npz"
    if later_rows(installation, champion) < installation.params.gate.min_paired:
        return np.full(rows, np.nan)
    digest = json.loads((folder / champion.family / "fit.json").read_text())["digest"]
    if path.is_file():
        with np.load(path, allow_pickle=False) as f:
            if (str(f["digest"]), float(f["through"])) == (digest, champion.schema["trained_through"]):
                return np.asarray(f["loss"])
    raise StateError(
        f"{path} does not hold the losses of {champion.family} {digest[:12]} after the data of champion version "
        f"{champion.version}; run `bellwether retrain {champion.family}` again"
    )


def later_rows(installation: Installation, champion: Model) -> int:
    """Return how many out-of-fold rows of the newest fit, of markets the champion knows, are later than its data."""
    oof = read_oof(installation.workspace / "artifacts" / champion.family)
    theirs = np.isin(oof["symbols"], symbols_of(champion.schema))[oof["symbol"]]
    return int((theirs & (oof["known"] > champion.schema["trained_through"])).sum())


@task(task_run_name="pair-{family}")
def fit_paired(family: str, version: str) -> None:
    """Fit the candidate's recipe up to the end of the champion's data, in a process of its own.

    Only where there is a champion to beat and enough later rows, and once a version.
    """
    installation = open_installation()
    candidate = installation.tracking.version(family, version)
    if installation.store.verdict(family, version, candidate.digest) is not None:
        return
    champion = rival(installation, family)
    if champion is None or later_rows(installation, champion) < installation.params.gate.min_paired:
        return
    shared = shared_symbols(champion.schema, fitted_on(installation, family))
    stage = ["paired", family, repr(champion.schema["trained_through"]), ",".join(shared)]
    with line_progress(f"gate: {family} as of the champion's data") as show_line:
        versioning.run_command(
            installation.workspace,
            f"paired@{family}",
            [sys.executable, "-P", "-m", "pipelines.training.stages", *stage],
            60 * installation.settings.fit_timeout_minutes,
            show_line,
        )


@task(timeout_seconds=900, task_run_name="judge-{family}")
def pass_gate(family: str, version: str) -> bool:
    """Return whether the version passes the gate; the same bytes are judged once."""
    installation = open_installation()
    candidate = installation.tracking.version(family, version)
    earlier = installation.store.verdict(family, version, candidate.digest)
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
    oof = read_oof(installation.workspace / "artifacts" / family)
    horizon_s = longest_horizon_s(installation, family, installation.symbols)
    basis = experiment_basis(evidence, oof["known"], horizon_s, installation.params)
    challenge(
        installation, candidate, verdict, figure_rows(figures, traded), "gate", basis.to_dict() if basis else None
    )
    create_markdown_artifact(
        key=f"verdict-{family}",
        markdown=verdict_markdown(verdict, version, installation.tracking.run_link(candidate.run_id), figures),
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
        tags = {"trials": str(trials), **comparison(verdict, figures)}
        installation.tracking.record_verdict(family, version, verdict.passed, verdict_record(verdict), [page], tags)
        if traded is not None:
            report = Path(scratch) / "backtest.json"
            report.write_text(json.dumps(traded, indent=1) + "\n")
            installation.tracking.log_report(candidate.run_id, [report], "gate", flat_metrics(traded, "backtest."))


def verdict_markdown(verdict: Verdict, version: str, link: str, figures: Mapping[str, Any]) -> str:
    """Return the verdict as Markdown: what its rows could show, and a table of the checks, with a link to the evidence.

    figures  of the walk-forward evaluation
    """
    lines = [
        f"# {verdict.family} version {version}: {verdict_state(verdict)}",
        f"[Evidence in MLflow]({link})",
        "",
        *(f"- {effect['line']}" for effect in figures.get("detectable", {}).values()),
        "",
        "| check | value | 95 % interval | required | detectable | n |",
        "|---|---|---|---|---|---|",
    ]
    for c in verdict.checks:
        value = "–" if c.value is None else f"{c.value:.4g}"
        interval = "" if c.low is None or c.high is None else f"[{c.low:.4g}, {c.high:.4g}]"
        least = "" if c.detectable is None else f"{c.detectable:.2g}"
        lines.append(
            f"| {MARKS[state_of(c.passed)]} {c.name} | {value} | {interval} | {c.threshold} | {least} | {c.n:,} |"
        )
    return "\n".join(lines)


@flow(name="evaluate", flow_run_name=run_name("evaluate {family} {version}"), log_prints=True)
def evaluate(family: Family, version: str) -> bool:
    """Judge one registered version. With either verdict it serves in shadow as challenger, and answers show which.

    Args:
        family: The model family of the version.
        version: Its number in MLflow.
    """
    installation = open_installation()
    bring(installation)
    if installation.settings.worker:
        restore_fit(installation, installation.tracking.version(family, version))
    fit_paired(family, version)
    with step(f"gate: {family} version {version}"):
        passed: bool = pass_gate(family, version)
        publish(installation, fresh=True)
    return passed
