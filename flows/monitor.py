"""Monitor: resolve outcomes, compare what the service really saw with the training history, watch the loss, report.

Drift, loss or age asks for a retrain by an event; it never promotes anything. A loss that drifted and costs money trips
the breaker `model`.
"""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.events import emit_event

from flows.support import promotion
from flows.support.installation import Installation, now, open_installation
from flows.support.progress import report_progress, step
from pipelines.contracts import OPEN_TIME, TIMEFRAME_SECONDS, Estimate, Floats, utc
from pipelines.data import schemas
from pipelines.evaluation.metrics import mean_estimate
from pipelines.families import FAMILIES
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.monitoring.drift import DriftReference, DriftResult, detect, fit_reference
from pipelines.monitoring.loss import LossDrift, loss_drift
from pipelines.monitoring.outcomes import resolve
from pipelines.monitoring.triggers import TriggerReason, overdue, retrain_reasons
from serving.risk.breakers import BreakerInputs, triggered

DRIFT_EVENT = "bellwether.retrain-asked"
ACTING = "validator"  # the family whose probability decides trades: its losses are those outcomes can score
_AT = np.array([FEATURES.index[name] for name in WATCHED_COLUMNS])


@task
def settle(symbol: str) -> int:
    """Give every decision on an event its outcome, by the labels' own definition. Returns how many were resolved."""
    installation = open_installation()
    pending = [r.decision for r in installation.store.unresolved(until=now()) if r.decision.symbol == symbol]
    if not pending:
        return 0
    described = installation.manifest()
    base_s = TIMEFRAME_SECONDS[described["timeframe"]]
    bars = schemas.to_matrix(schemas.read_bars(installation.workspace / "data" / described["file"]))
    seen = installation.store.bars(symbol, after=bars[-1, OPEN_TIME])
    found = resolve(pending, np.concatenate([bars, seen]), base_s, installation.params.costs.round_trip_bps)
    return sum(installation.store.add_outcome(outcome) for outcome in found)


def seen_rows(installation: Installation, symbol: str, since: datetime) -> Floats:
    """(n, k) rows of WATCHED_COLUMNS as the service used them, one a decision bar, oldest first."""
    by_bar = {
        r.decision.as_of: r.features
        for r in installation.store.decisions(symbol, since=since)
        if r.decision.as_of > since
    }
    rows = [np.frombuffer(by_bar[at], dtype=np.float64)[_AT] for at in sorted(by_bar)]
    return np.array(rows, dtype=np.float64).reshape(-1, len(_AT))


def learnt_until(installation: Installation) -> datetime:
    """When the last decision bar of the newest snapshot closed."""
    bars = np.load(installation.workspace / "artifacts" / "features" / "decision.npy", mmap_mode="r")
    return utc(bars[-1, OPEN_TIME] + TIMEFRAME_SECONDS[installation.meta()["decision_timeframe"]])


@task
def look_for_drift(symbol: str) -> tuple[DriftReference, DriftResult, Floats]:
    installation = open_installation()
    rows = np.load(installation.workspace / "artifacts" / "features" / "features.npy")[:, _AT]
    reference = fit_reference(rows, WATCHED_COLUMNS, installation.params.drift, installation.params.seed)
    seen = seen_rows(installation, symbol, learnt_until(installation))
    return reference, detect(reference, seen), seen


@task
def look_at_loss(family: str, symbol: str) -> LossDrift | None:
    """The champion's live loss beside the one it was judged on; None without a champion."""
    installation = open_installation()
    held = promotion.slots_of(installation.store, family).champion
    if held is None or held.run_id is None:
        return None
    told = installation.tracking.metrics(held.run_id)
    value, low, high = (told[f"loss.model.{name}"] for name in ("value", "low", "high"))
    judged = Estimate(value, low, high, int(told["n"]))
    scored = [
        (chance, outcome.label)
        for record, outcome in installation.store.resolved()
        if record.decision.symbol == symbol
        and (answer := record.decision.models.get(family, {}).get("champion")) is not None
        and answer.digest == held.digest
        and (chance := answer.chance[0]) is not None
    ]
    p, y = (
        (np.array(values, dtype=np.float64) for values in zip(*scored, strict=True)) if scored else (np.empty(0),) * 2
    )
    return loss_drift(
        p, y, judged, installation.params.drift, installation.params.gate.bootstrap, installation.params.seed
    )


def trip_model(installation: Installation, symbol: str, loss: LossDrift | None) -> str | None:
    """Latch `model` where the acting champion's loss has drifted and its newest trades lost money; returns why.

    Only trades that it decided count, since a person last reset the breaker. Input drift never comes here: it asks for
    a retrain, and the loop closes by itself.
    """
    held = promotion.slots_of(installation.store, ACTING).champion
    if held is None or loss is None or not loss.alarm:
        return None
    resets = [
        x.reset_as_of
        for x in installation.store.breaker_trips(tripped_only=False)
        if x.name == "model" and x.reset_as_of
    ]
    since, params = max(resets, default=None), installation.params
    traded = [
        outcome.net_bps
        for record, outcome in installation.store.resolved(since)
        if record.decision.symbol == symbol
        and record.decision.action != "NO_TRADE"
        and record.decision.arm == "champion"
        and record.decision.models[ACTING]["champion"].digest == held.digest
        and (since is None or record.decision.as_of > since)
    ][-params.breakers.trades :]
    if not traded:
        return None
    worth = mean_estimate(np.array(traded), params.gate.bootstrap, params.seed, params.costs.round_trip_bps)
    about = f"{ACTING} champion version {held.to_version} at {symbol}"
    why = triggered(BreakerInputs(about, loss_drift=True, traded=worth), params).get("model")
    if why is not None and installation.store.trip("model", now(), why):
        installation.store.raise_alarm("breaker_tripped", "critical", f"model: {why}", now())
    return why


@task(timeout_seconds=600)
def report(family: str, reference: DriftReference, result: DriftResult, seen: Floats) -> str:
    """Evidently's report (HTML and JSON) into the version's run and the Evidently UI. Returns where the page lies."""
    from pipelines.monitoring.report import write_report

    installation = open_installation()
    block = strangest(result)
    current = seen[block.start : block.start + block.n] if block else seen
    watched = [FEATURES_AT[name] for name in reference.watched]
    files = write_report(
        pd.DataFrame(reference.sample[:, watched], columns=list(reference.watched)),
        pd.DataFrame(current[:, watched], columns=list(reference.watched)),
        reference.thresholds,
        installation.settings.home / "reports" / f"{now():%Y%m%dT%H%M%S}",
        installation.settings.home / "evidently",
        now(),
        f"{family}: {installation.meta()['symbol']}",
    )
    slots = promotion.slots_of(installation.store, family)
    held = slots.champion or slots.challenger
    if held is not None and held.run_id is not None:
        metrics = {"drift.score": block.score, "drift.threshold": block.threshold} if block else {}
        installation.tracking.log_report(held.run_id, [files.html, files.json], "drift", metrics)
        create_link_artifact(
            key=f"drift-{family}",
            link=f"{installation.tracking.run_link(held.run_id)}/artifacts",
            link_text=f"Drift report of {family} version {held.to_version}, in its MLflow run",
            description=result.reason,
        )
    return str(files.html)


FEATURES_AT = {name: i for i, name in enumerate(WATCHED_COLUMNS)}


def strangest(result: DriftResult) -> Any:
    """The block that decided: the first alarm, else the highest score; None before the first whole block."""
    alarms = [b for b in result.blocks if b.alarm]
    return alarms[0] if alarms else max(result.blocks, key=lambda b: b.score, default=None)


def watched_families(installation: Installation) -> list[str]:
    """Families with a champion: only what serves can be hurt. Without one, the family that acts, once it was judged:
    before that it is being trained for the first time, and a second training beside it helps nobody."""
    held = [family for family in FAMILIES if promotion.slots_of(installation.store, family).champion is not None]
    judged = promotion.slots_of(installation.store, ACTING).challenger is not None
    return held or ([ACTING] if judged else [])


@flow(name="monitor", log_prints=True)
def monitor(symbol: str | None = None) -> dict[str, Any]:
    """Look once. Returns what was resolved, what drifts, where the report is, and who was asked to retrain."""
    installation = open_installation()
    name = symbol or installation.manifest()["symbol"]
    with step("monitor: outcomes"):
        resolved = settle(name)
    with step("monitor: drift and loss"):
        reference, result, seen = look_for_drift(name)
        loss = look_at_loss(ACTING, name)
    path = None
    if len(seen):
        with step("monitor: Evidently report"):
            path = report(ACTING, reference, result, seen)
    reasons = {
        family: reasons_of(installation, family, name, result, loss if family == ACTING else None)
        for family in watched_families(installation)
    }
    ask(installation, {family: why for family, why in reasons.items() if why})
    tripped = trip_model(installation, name, loss)
    told = result.reason + (f"; loss: {loss.reason}" if loss else "")
    told += f"; breaker model tripped: {tripped}" if tripped else ""
    create_markdown_artifact(
        key="monitor", markdown=f"# {name}\n\n{told}\n\n{resolved} outcomes resolved\n\nreport: {path}"
    )
    known = len(installation.store.resolved())
    report_progress(f"{known} outcomes known, {resolved} of them resolved now; {told}")
    return {
        "resolved": resolved,
        "told": told,
        "report": path,
        "event_families": [family for family, why in reasons.items() if why],
        "reasons": {family: [f"{r.kind}: {r.detail}" for r in why] for family, why in reasons.items()},
    }


def reasons_of(
    installation: Installation, family: str, symbol: str, drift: DriftResult, loss: LossDrift | None
) -> list[TriggerReason]:
    """Why this family should be trained again; raises the alarm where its retrains have stopped coming."""
    slots, rules, at = promotion.slots_of(installation.store, family), installation.params.retrain, now()
    held = slots.champion or slots.challenger
    if held is not None and (late := overdue(at, held.at, held.at, rules.overdue_intervals, rules)):
        installation.store.raise_alarm(late.kind, "critical", f"{family}: {late.detail}", at)
    return retrain_reasons(at, held.at if held else None, at - market_age(installation, symbol), drift, loss, rules)


def market_age(installation: Installation, symbol: str) -> timedelta:
    """How far the market went on since the newest snapshot, in its own time: a recorded year may be replayed today."""
    last, newest = learnt_until(installation), installation.store.newest_bar(symbol)
    return timedelta(0) if newest is None else max(utc(newest) - last, timedelta(0))


def ask(installation: Installation, reasons: dict[str, list[TriggerReason]]) -> None:
    """An alarm a family for people, one event for the automation that starts the retrain of all of them."""
    for family, why in reasons.items():
        for reason in why:
            installation.store.raise_alarm(reason.kind, "warning", f"{family}: {reason.kind}: {reason.detail}", now())
    if reasons:
        first = next(iter(reasons.values()))[0]
        emit_event(
            DRIFT_EVENT,
            resource={"prefect.resource.id": "bellwether.families", "prefect.resource.name": ", ".join(reasons)},
            payload={"family": ",".join(reasons), "reason": f"{first.kind}: {first.detail}"},
        )
