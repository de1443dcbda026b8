"""Evaluate: put a candidate through the gate, beside the champion, and ledger the verdict."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact

from flows import backtest
from flows.progress import say, step
from flows.promotion import challenge, fetch_bundle, publish, slots_of, verdict_line
from flows.site import Site, open_site
from pipelines.contracts import Floats, Verdict
from pipelines.evaluation.gates import Evidence, judge
from pipelines.evaluation.report import figure_rows, flat_metrics, write_page
from pipelines.models.runtime import load_bundle
from pipelines.training.dataset import load_dataset


def champion_on_unseen(site: Site, family: str, rows: np.ndarray) -> Floats | None:
    """The champion's probabilities on dataset rows `rows`, NaN where it had trained on them; None without a champion
    of this market."""
    held = slots_of(site.store, family).champion
    if held is None:
        return None
    version = site.tracking.version(family, str(held.to_version))
    model = load_bundle(fetch_bundle(site, version), version.digest, version.version)
    meta = site.meta()
    if any(model.schema.get(key) != meta[key] for key in ("symbol", "decision_timeframe")):
        return None  # a champion of another market has no opinion on these rows
    data = load_dataset(site.workspace / "artifacts" / "labels")
    columns = [data.columns.index(name) for name in model.columns]
    p = model.predict(data.rows[rows][:, columns]).p
    return np.where(data.known[rows] > model.schema["trained_through"], p, np.nan)


def gather(site: Site, family: str) -> Evidence:
    """What the gate reads, from the stage outputs of the newest snapshot and the current champion."""
    folder = site.workspace / "artifacts" / family
    report = json.loads((folder / "fit.json").read_text())
    with np.load(folder / "oof.npz", allow_pickle=False) as f:
        oof = {name: f[name] for name in f.files}
    held = slots_of(site.store, family).champion
    itself = held is not None and held.digest == report["digest"]
    return Evidence(
        family=family,
        p=oof["p"],
        y=oof["y"],
        baselines={k.removeprefix("baseline_"): v for k, v in oof.items() if k.startswith("baseline_")},
        gross_bps=oof["gross_bps"],
        champion_p=None if itself else champion_on_unseen(site, family, oof["row"]),
        trials=max(1, site.store.count_trials(family)),
        parity_gap=report["parity_gap"],
        latency_ms=report["latency_ms"],
        schema_coverage=report["schema_coverage"],
        novel_share=report["novel_share"],
    )


@task(timeout_seconds=900, task_run_name="judge-{family}")
def pass_gate(family: str, version: str) -> bool:
    """Judge once per digest, ledger the verdict, put the evidence into the version's run, and serve it in shadow."""
    site = open_site()
    candidate = site.tracking.version(family, version)
    earlier = verdict_line(site.store, family, version, candidate.digest)
    if earlier is not None:
        say(f"{family} version {version}: judged before, {earlier.reason}")
        return bool(earlier.verdict_passed)
    evidence = gather(site, family)
    verdict = judge(evidence, site.params)
    folder = site.workspace / "artifacts"
    figures = json.loads((folder / "evaluation" / f"{family}.json").read_text())
    traded = backtest.figures(backtest.run(site, family))
    (folder / "evaluation" / f"{family}.backtest.json").write_text(json.dumps(traded, indent=1) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / "evidence.html"
        write_page(page, verdict, figures, folder / family, f"{family} version {version}")
        site.tracking.record_verdict(family, version, verdict.passed, asdict(verdict), [page], evidence.trials)
        site.tracking.log_report(
            candidate.run_id,
            [folder / "evaluation" / f"{family}.backtest.json"],
            "gate",
            flat_metrics(traded, "backtest."),
        )
    challenge(site, candidate, verdict, figure_rows(figures, traded), actor="gate")
    create_markdown_artifact(
        key=f"verdict-{family}", markdown=verdict_markdown(verdict, version, site.tracking.run_link(candidate.run_id))
    )
    say(
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
        publish(open_site(), fresh=True)
    return passed
