"""The drift reports of a run of the monitor: a page and a run of Evidently for each block that was judged since.

Families whose training gave the same reference share one: they saw the same rows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run

from flows.support.alarms import open_alarms
from flows.support.installation import Installation
from flows.support.watches import FamilyWatch, MarketWatch
from pipelines.contracts import DAY_S, Floats, finite_or_none, utc
from pipelines.monitoring.drift import BlockDrift
from pipelines.monitoring.drift_page import MarketLine, histograms, write_drift_page
from pipelines.monitoring.report import (
    BlockReport,
    add_run,
    block_report,
    drifted_of,
    loss_of,
    newest_judged,
    prediction_of,
    project_name,
)
from pipelines.store import Alarm

PAGE, FIGURES = "drift.html", "drift.json"
SCORE = "score.json"  # score and threshold of the block, which the service shows as a gauge
REPORTS = "drift"  # their folder, under `<home>/reports` and among the artifacts of a version's run


@dataclass(frozen=True, slots=True)
class Judged:
    """Hold the newest judged block of a family's market, with the folder of its report."""

    watched: FamilyWatch
    market: MarketWatch
    block: BlockDrift
    folder: Path

    @property
    def version(self) -> str:
        """Return the version in words."""
        return f"{self.watched.model.family} version {self.watched.model.line.to_version}"


def report_drift(installation: Installation, watches: Sequence[FamilyWatch]) -> dict[str, Path]:
    """Write the reports of blocks that have none yet. Return family → page of its newest block, old or new."""
    judged = [found for watched in watches if (found := judged_block(installation, watched)) is not None]
    groups: dict[tuple[str, float, float], list[Judged]] = {}
    for each in judged:
        if not (each.folder / PAGE).is_file():
            groups.setdefault(_rows(each), []).append(each)
    for group in groups.values():
        write_reports(installation, group)
    return {each.watched.model.family: each.folder / PAGE for each in judged}


def report_page(installation: Installation, watched: FamilyWatch) -> Path | None:
    """Return where the page of a family's newest judged block is, or will be, under the home; None before any."""
    judged = judged_block(installation, watched)
    return None if judged is None else (judged.folder / PAGE).relative_to(installation.settings.home)


def alarms_of(installation: Installation, judged: Judged) -> list[Alarm]:
    """Return the open alarms about a family's inputs in the market of its report, oldest first."""
    subject = f"{judged.watched.model.family} {judged.market.symbol}"
    return [alarm for kind in ("drift", "missing") for alarm in open_alarms(installation.store, kind, subject)]


def judged_block(installation: Installation, watched: FamilyWatch) -> Judged | None:
    """Return the newest judged block of the market that decides for a family; None before there is one."""
    market = watched.worst
    block = None if market is None else newest_judged(market.drift)
    if market is None or block is None or isinstance(market.reference, str):
        return None
    at_s = market.served.at_s[block.start : block.start + block.n]
    # a folder a market day, and a moment where blocks are shorter than a day
    form = "%Y-%m-%d" if at_s[-1] - at_s[0] > 0.9 * DAY_S else "%Y-%m-%dT%H-%M"
    name = f"{watched.model.family}-{watched.model.line.to_version}"
    folder = installation.settings.home / "reports" / REPORTS / name / f"{utc(float(at_s[-1])):{form}}"
    return Judged(watched, market, block, folder)


def _rows(judged: Judged) -> tuple[str, float, float]:
    """Return which rows a report is about; of families trained up to the same moment they are the same."""
    at_s = judged.market.served.at_s[judged.block.start : judged.block.start + judged.block.n]
    return judged.market.symbol, float(at_s[0]), float(at_s[-1])


def write_reports(installation: Installation, group: Sequence[Judged]) -> None:
    """Write one run of Evidently for families that saw the same rows, and for each its page; log both to its run."""
    first = group[0]
    reference, market = first.market.reference, first.market
    assert not isinstance(reference, str)
    found = block_report(reference, market.rates, first.block, market.served.at_s, market.served.values)
    figures = first.folder / FIGURES
    alarm, scores = alarm_word(market), scores_of(installation, group, found)
    project, run = add_run(
        found, scores, figures, installation.settings.home / "evidently", project_name(installation.symbols),
        f"{market.symbol} · {found.until:%Y-%m-%d %H:%M} · {alarm}",
        tags=[*(each.watched.model.family for each in group), market.symbol, alarm],
        metadata={
            "symbols": ", ".join(first.watched.symbols), "alarm": alarm, "until": found.until.isoformat(),
            "alarms": ", ".join(str(one.id) for each in group for one in alarms_of(installation, each)) or "none",
            **{f"champion {each.watched.model.family}": str(each.watched.model.line.to_version) for each in group},
            **prefect_link(installation),
        },
    )  # fmt: skip
    opened = f"{installation.settings.evidently_url}/projects/{project}/reports/{run}"
    charts = histograms(found)
    for each in group:
        if each is not first:
            each.folder.mkdir(parents=True, exist_ok=True)
            (each.folder / FIGURES).write_bytes(figures.read_bytes())
        publish(installation, each, found, opened, charts)


def scores_of(installation: Installation, group: Sequence[Judged], found: BlockReport) -> dict[str, Floats]:
    """Return column of the run → (n,) share drifted, predictions and losses of each family; NaN = unknown."""
    symbol, span = group[0].market.symbol, (found.since, found.until + timedelta(seconds=1))
    served = group[0].market.served.at_s[group[0].block.start : group[0].block.start + group[0].block.n]
    decided = {r.decision.as_of.timestamp(): r.decision for r in installation.store.decisions(symbol, *span)}
    scores: dict[str, Floats] = {}
    for family, digest in [(each.watched.model.family, str(each.watched.model.line.digest)) for each in group]:
        scores[drifted_of(family)] = np.full(len(served), group[0].block.share_drifted)
        answers = [decided[at].models.get(family, {}).get("champion") for at in served.tolist()]
        scores[prediction_of(family)] = np.array([np.nan if one is None else one.likeliest for one in answers])
        losses = {
            outcome.as_of.timestamp(): outcome.losses.get(digest, np.nan)
            for outcome in installation.store.family_outcomes(family, *span)
            if outcome.symbol == symbol
        }
        scores[loss_of(family)] = np.array([losses.get(at, np.nan) for at in served.tolist()])
    return scores


def publish(installation: Installation, judged: Judged, found: BlockReport, opened: str, charts: str) -> None:
    """Write a family's page, log it and the figures to its version's run, and link them in Prefect.

    opened  address of the run in Evidently; charts: as of `histograms`
    """
    model, market = judged.watched.model, judged.market
    run_id = model.line.run_id
    mlflow = {"Run in MLflow": installation.tracking.run_link(run_id)} if run_id else {}
    raised = [
        f"alarm {one.id}, raised {one.at:%Y-%m-%d %H:%M} UTC by the time of day"
        for one in alarms_of(installation, judged)
    ]
    left_out = [MarketLine(name, None, f"not watched: {why}") for name, why in judged.watched.left_out.items()]
    block, draft = judged.block, judged.folder / f"{SCORE}.draft"
    draft.write_text(json.dumps({name: finite_or_none(getattr(block, name)) for name in ("score", "threshold")}))
    draft.replace(judged.folder / SCORE)  # whole, as the service reads it meanwhile; the page says that all is there
    page = write_drift_page(
        judged.folder / PAGE,
        f"Inputs of {judged.version}, {market.symbol}: {alarm_word(market)}",
        found,
        [market.drift.reason, market.drift.missing_reason, f"loss: {judged.watched.loss.reason}", *raised],
        [*map(market_line, judged.watched.markets), *left_out],
        {"Run in Evidently": opened, **mlflow, **prefect_link(installation)},
        charts,
    )  # fmt: skip
    if run_id is None:
        return
    metrics = {
        "drift.score": block.score,
        "drift.threshold": block.threshold,
        "drift.columns": float(len(block.drifted)),
    }
    installation.tracking.log_report(
        run_id, [page, judged.folder / FIGURES], f"{REPORTS}/{model.family}/{judged.folder.name}",
        {name: value for name, value in metrics.items() if np.isfinite(value)}, found.until,
    )  # fmt: skip
    create_link_artifact(
        key=f"drift-{model.family}",
        link=f"{mlflow['Run in MLflow']}/artifacts",
        link_text=f"Drift report of {judged.version}, in its MLflow run",
        description=f"{market.symbol}: {market.drift.reason}. [Run in Evidently]({opened}). Page: {page}",
    )


def market_line(market: MarketWatch) -> MarketLine:
    """Return the line of one market on the page."""
    block = newest_judged(market.drift)
    alarms = (market.drift.alarm, market.drift.missing_alarm)
    if any(alarms):
        onsets = [start for start in (market.drift.onset, market.drift.missing_onset) if start is not None]
        return MarketLine(
            market.symbol, block, f"alarm since {utc(float(market.served.at_s[min(onsets)])):%Y-%m-%d %H:%M} UTC"
        )
    return MarketLine(market.symbol, block, market.drift.reason if block is None else "no drift")


def alarm_word(market: MarketWatch) -> str:
    """Return what a market's watch found, in a word or two."""
    words = [
        *(["drift"] if market.drift.alarm else []), *(["share missing changed"] if market.drift.missing_alarm else [])
    ]  # fmt: skip
    return " and ".join(words) or "no drift"


def prefect_link(installation: Installation) -> dict[str, str]:
    """Return the address of the flow run that this is part of, under its text; nothing outside of one."""
    if not flow_run.id:
        return {}
    return {"Run in Prefect": f"{installation.settings.prefect_url}/runs/flow-run/{flow_run.id}"}
