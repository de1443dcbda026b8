"""Monitor: resolve outcomes, compare what the service saw with the training history, compare the loss, report.

Drift, loss or age requests a retrain by an event; it never promotes anything. A loss that drifted and costs money trips
the breaker `model`.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TypedDict

import numpy as np
import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.events import emit_event

from flows.support import promotion
from flows.support.installation import Installation, now, open_installation
from flows.support.progress import report_progress, step
from pipelines.contracts import OPEN_TIME, TIMEFRAME_SECONDS, Estimate, Floats, utc
from pipelines.costs import NO_FUNDING, costs_of, funding_rates, venue_of
from pipelines.data import records, schemas
from pipelines.data.alignment import merge_records
from pipelines.evaluation.metrics import mean_estimate
from pipelines.families import DECISION_FAMILY, FAMILIES
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.monitoring.drift import BlockDrift, DriftReference, DriftResult, detect, fit_reference
from pipelines.monitoring.loss import LossDrift, loss_drift
from pipelines.monitoring.outcomes import resolve
from pipelines.monitoring.triggers import TriggerReason, overdue, retrain_reasons
from serving.risk.breakers import BreakerInputs, triggered

DRIFT_EVENT = "bellwether.retrain-requested"
WATCHED = np.array([FEATURES.index[name] for name in WATCHED_COLUMNS])  # their columns in a row of features
POSITION = {name: i for i, name in enumerate(WATCHED_COLUMNS)}  # their columns in a row of watched features

Reasons = dict[str, list[TriggerReason]]  # family → why it should be trained again; an empty list: no reason


class MonitorResult(TypedDict):
    """Hold the answer of one run of `monitor`; `report` is the path of the page, None where no decision is new."""

    resolved: int
    summary: str
    report: str | None
    retrain_families: list[str]
    reasons: dict[str, list[str]]


@task
def resolve_outcomes(symbol: str) -> int:
    """Give every decision on an event its outcome, by the labels' own definition. Return how many were resolved."""
    installation = open_installation()
    pending = [r.decision for r in installation.store.unresolved(until=now()) if r.decision.symbol == symbol]
    if not pending:
        return 0
    manifest = installation.manifest()
    base_s = TIMEFRAME_SECONDS[manifest["timeframe"]]
    bars = schemas.to_matrix(schemas.read_bars(installation.workspace / "data" / manifest["file"]))
    newer = installation.store.bars(symbol, after=bars[-1, OPEN_TIME])
    costs = costs_of(installation.params.costs, *venue_of(manifest))
    rates = funding_known(installation, symbol) if costs.funding_hours is not None else NO_FUNDING
    found = resolve(pending, np.concatenate([bars, newer]), base_s, costs, rates)
    return sum(installation.store.add_outcome(outcome) for outcome in found)


def funding_known(installation: Installation, symbol: str) -> Floats:
    """Return the funding rates of the newest snapshot and those observed since, as `costs.funding_rates`."""
    _, feed = records.read_snapshot(installation.workspace / "data", installation.manifest())
    return funding_rates(merge_records(feed, installation.store.records(symbol)[1]))


def served_rows(installation: Installation, symbol: str, since: datetime) -> Floats:
    """Return (n, k) rows of WATCHED_COLUMNS as the service used them, one a decision bar after `since`, oldest first.

    NaN where a feature was missing at that bar.
    """
    by_bar = {
        r.decision.as_of: r.features
        for r in installation.store.decisions(symbol, since=since)
        if r.decision.as_of > since
    }
    rows = [np.frombuffer(by_bar[at], dtype=np.float64)[WATCHED] for at in sorted(by_bar)]
    return np.array(rows, dtype=np.float64).reshape(-1, len(WATCHED))


def history_end(installation: Installation) -> datetime:
    """Return when the last decision bar of the newest snapshot closed."""
    bars = np.load(installation.workspace / "artifacts" / "features" / "decision.npy", mmap_mode="r")
    return utc(bars[-1, OPEN_TIME] + TIMEFRAME_SECONDS[installation.meta()["decision_timeframe"]])


@task
def detect_drift(symbol: str) -> tuple[DriftReference, DriftResult, Floats]:
    """Compare the rows served since the newest snapshot with its own blocks. Return reference, result and those rows.

    The rows are (n, k) of WATCHED_COLUMNS, as of `served_rows`.
    """
    installation = open_installation()
    rows = np.load(installation.workspace / "artifacts" / "features" / "features.npy")[:, WATCHED]
    reference = fit_reference(rows, WATCHED_COLUMNS, installation.params.drift, installation.params.seed)
    served = served_rows(installation, symbol, history_end(installation))
    return reference, detect(reference, served), served


@task
def compare_loss(family: str, symbol: str) -> LossDrift | None:
    """Compare the champion's live loss with the one it was judged on; None without a champion."""
    installation = open_installation()
    champion = promotion.slots_of(installation.store, family).champion
    if champion is None or champion.run_id is None:
        return None
    metrics = installation.tracking.metrics(champion.run_id)
    value, low, high = (metrics[f"loss.model.{name}"] for name in ("value", "low", "high"))
    judged = Estimate(value, low, high, int(metrics["n"]))
    scored = [
        (chance, outcome.label)
        for record, outcome in installation.store.resolved()
        if record.decision.symbol == symbol
        and (answer := record.decision.models.get(family, {}).get("champion")) is not None
        and answer.digest == champion.digest
        and (chance := answer.chance[0]) is not None
    ]
    p, y = (
        (np.array(values, dtype=np.float64) for values in zip(*scored, strict=True)) if scored else (np.empty(0),) * 2
    )
    return loss_drift(
        p, y, judged, installation.params.drift, installation.params.gate.bootstrap, installation.params.seed
    )


def trip_model(installation: Installation, symbol: str, loss: LossDrift | None) -> str | None:
    """Trip `model` if the deciding champion's loss has drifted and its newest trades lost money; return why, else None.

    Only trades that it decided count, since a person last reset the breaker. Input drift never comes here: it requests
    a retrain, and the loop closes by itself.
    """
    champion = promotion.slots_of(installation.store, DECISION_FAMILY).champion
    if champion is None or loss is None or not loss.alarm:
        return None
    resets = [
        trip.reset_as_of
        for trip in installation.store.breaker_trips(tripped_only=False)
        if trip.name == "model" and trip.reset_as_of
    ]
    since, params = max(resets, default=None), installation.params
    traded = [
        outcome
        for record, outcome in installation.store.resolved(since)
        if record.decision.symbol == symbol
        and record.decision.action != "NO_TRADE"
        and record.decision.arm == "champion"
        and record.decision.models[DECISION_FAMILY]["champion"].digest == champion.digest
        and (since is None or record.decision.as_of > since)
    ][-params.breakers.trades :]
    if not traded:
        return None
    cost_bps = float(np.mean([outcome.cost_bps for outcome in traded]))
    net_bps = mean_estimate(np.array([outcome.net_bps for outcome in traded]), cost_bps)
    about = f"{DECISION_FAMILY} champion version {champion.to_version} at {symbol}"
    why = triggered(BreakerInputs(about, loss_drift=True, traded=net_bps), params).get("model")
    if why is not None and installation.store.trip("model", now(), why):
        installation.store.raise_alarm("breaker_tripped", "critical", f"model: {why}", now())
    return why


@task(timeout_seconds=600)
def report(family: str, reference: DriftReference, result: DriftResult, served: Floats) -> str:
    """Write Evidently's report (HTML and JSON) into the version's run and the Evidently UI. Return the page's path."""
    from pipelines.monitoring.report import write_report

    installation = open_installation()
    block = worst_block(result)
    current = served[block.start : block.start + block.n] if block else served
    columns = [POSITION[name] for name in reference.watched]
    files = write_report(
        pd.DataFrame(reference.sample[:, columns], columns=list(reference.watched)),
        pd.DataFrame(current[:, columns], columns=list(reference.watched)),
        reference.thresholds,
        installation.settings.home / "reports" / f"{now():%Y%m%dT%H%M%S}",
        installation.settings.home / "evidently",
        now(),
        f"{family}: {installation.meta()['symbol']}",
    )
    slots = promotion.slots_of(installation.store, family)
    watched = slots.champion or slots.challenger
    if watched is not None and watched.run_id is not None:
        metrics = {"drift.score": block.score, "drift.threshold": block.threshold} if block else {}
        installation.tracking.log_report(watched.run_id, [files.html, files.json], "drift", metrics)
        create_link_artifact(
            key=f"drift-{family}",
            link=f"{installation.tracking.run_link(watched.run_id)}/artifacts",
            link_text=f"Drift report of {family} version {watched.to_version}, in its MLflow run",
            description=result.reason,
        )
    return str(files.html)


def worst_block(result: DriftResult) -> BlockDrift | None:
    """Return the block that decided: the first alarm, else the highest score; None before the first whole block."""
    alarms = [b for b in result.blocks if b.alarm]
    return alarms[0] if alarms else max(result.blocks, key=lambda b: b.score, default=None)


def watched_families(installation: Installation) -> list[str]:
    """Return the families with a champion: only what serves can be hurt.

    Without one, the deciding family, once it was judged: before that its first training is still running, and a second
    one at the same time is of no use.
    """
    serving = [family for family in FAMILIES if promotion.slots_of(installation.store, family).champion is not None]
    judged = promotion.slots_of(installation.store, DECISION_FAMILY).challenger is not None
    return serving or ([DECISION_FAMILY] if judged else [])


def reasons_of(
    installation: Installation, family: str, symbol: str, drift: DriftResult, loss: LossDrift | None
) -> list[TriggerReason]:
    """Return why this family should be trained again; raise an alarm where its retrains have stopped coming."""
    slots, rules, at = promotion.slots_of(installation.store, family), installation.params.retrain, now()
    newest = slots.champion or slots.challenger
    if newest is not None and (late := overdue(at, newest.at, newest.at, rules.overdue_intervals, rules)):
        installation.store.raise_alarm(late.kind, "critical", f"{family}: {late.detail}", at)
    return retrain_reasons(at, newest.at if newest else None, at - market_age(installation, symbol), drift, loss, rules)


def market_age(installation: Installation, symbol: str) -> timedelta:
    """Return how far the market went on since the newest snapshot, in its own time (a recorded year may run today)."""
    last, newest = history_end(installation), installation.store.newest_bar(symbol)
    return timedelta(0) if newest is None else max(utc(newest) - last, timedelta(0))


def reasons_by_family(installation: Installation, symbol: str, drift: DriftResult, loss: LossDrift | None) -> Reasons:
    """Return the reasons of every watched family; the loss is that of the deciding family alone."""
    return {
        family: reasons_of(installation, family, symbol, drift, loss if family == DECISION_FAMILY else None)
        for family in watched_families(installation)
    }


def request_retrains(installation: Installation, reasons: Reasons) -> list[str]:
    """Raise an alarm for each reason, and emit one event for the automation that starts the retrain of all families.

    Return the families whose retrain was requested.
    """
    requested = {family: why for family, why in reasons.items() if why}
    for family, why in requested.items():
        for reason in why:
            installation.store.raise_alarm(reason.kind, "warning", f"{family}: {reason.kind}: {reason.detail}", now())
    if requested:
        first = next(iter(requested.values()))[0]
        emit_event(
            DRIFT_EVENT,
            resource={"prefect.resource.id": "bellwether.families", "prefect.resource.name": ", ".join(requested)},
            payload={"family": ",".join(requested), "reason": f"{first.kind}: {first.detail}"},
        )
    return list(requested)


def summary_of(drift: DriftResult, loss: LossDrift | None, tripped: str | None) -> str:
    """Return one line on drift, loss and the breaker `model`."""
    parts = [drift.reason]
    if loss:
        parts.append(f"loss: {loss.reason}")
    if tripped:
        parts.append(f"breaker model tripped: {tripped}")
    return "; ".join(parts)


def publish_summary(installation: Installation, symbol: str, summary: str, resolved: int, page: str | None) -> None:
    """Write the summary to the flow run's artifacts and to the progress lines."""
    create_markdown_artifact(
        key="monitor", markdown=f"# {symbol}\n\n{summary}\n\n{resolved} outcomes resolved\n\nreport: {page}"
    )
    known = len(installation.store.resolved())
    report_progress(f"{known} outcomes known, {resolved} of them resolved now; {summary}")


def as_text(reasons: Mapping[str, list[TriggerReason]]) -> dict[str, list[str]]:
    """Return the reasons of each family as `kind: detail`."""
    return {family: [f"{r.kind}: {r.detail}" for r in why] for family, why in reasons.items()}


@flow(name="monitor", log_prints=True)
def monitor(symbol: str | None = None) -> MonitorResult:
    """Run all checks once. Return what was resolved, what drifts, where the report is, and the retrains requested."""
    installation = open_installation()
    name = symbol or installation.manifest()["symbol"]
    with step("monitor: outcomes"):
        resolved = resolve_outcomes(name)
    with step("monitor: drift and loss"):
        reference, drift, served = detect_drift(name)
        loss = compare_loss(DECISION_FAMILY, name)
    page = None
    if len(served):
        with step("monitor: Evidently report"):
            page = report(DECISION_FAMILY, reference, drift, served)
    reasons = reasons_by_family(installation, name, drift, loss)
    requested = request_retrains(installation, reasons)
    tripped = trip_model(installation, name, loss)
    summary = summary_of(drift, loss, tripped)
    publish_summary(installation, name, summary, resolved, page)
    return {
        "resolved": resolved,
        "summary": summary,
        "report": page,
        "retrain_families": requested,
        "reasons": as_text(reasons),
    }
