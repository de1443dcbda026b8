"""Monitor: resolve outcomes, compare what the service saw with each champion's training inputs, watch its edge, report.

Drift, a lost edge or age requests a retrain by an event; it never promotes anything. An edge that is gone and trades
that lose money trip the breaker `model`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypedDict

import numpy as np
import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.events import emit_event

from flows.support import promotion
from flows.support.alarms import end_alarm, keep_alarm
from flows.support.installation import Installation, now, open_installation
from flows.support.observed_bars import snapshot_now
from flows.support.progress import report_progress, step
from flows.support.watched import PREDATES, WatchedModel, watched_model
from pipelines.contracts import OPEN_TIME, Estimate, Floats, utc
from pipelines.costs import NO_FUNDING, costs_of, funding_rates, venue_of
from pipelines.data import records, schemas
from pipelines.data.alignment import merge_records
from pipelines.data.sessions import grid_of, grids_of
from pipelines.data.timeframes import Grid
from pipelines.experiments.eprocess import LEAST_BLOCKS, block_means
from pipelines.families import DECISION_FAMILY, FAMILIES
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.monitoring.drift import AlarmRates, BlockDrift, DriftResult, alarm_rates, detect
from pipelines.monitoring.loss import LossDrift, harm, loss_drift, unwatched
from pipelines.monitoring.outcomes import resolve
from pipelines.monitoring.triggers import (
    KINDS,
    TriggerReason,
    is_due,
    last_finished,
    overdue,
    retrain_reasons,
    seen_until,
)
from serving.risk.breakers import BreakerInputs, triggered

DRIFT_EVENT = "bellwether.retrain-requested"
WATCHED = np.array([FEATURES.index[name] for name in WATCHED_COLUMNS])  # their columns in a row of features
PREDATES_LOSS = f"{PREDATES}: its bundle states no gain over the base rate"
POSITION = {name: i for i, name in enumerate(WATCHED_COLUMNS)}  # their columns in a row of watched features

Reasons = dict[str, list[TriggerReason]]  # family → why it should be trained again; an empty list: no reason


class MonitorResult(TypedDict):
    """Hold the answer of one run of `monitor`; `report` is the path of the page, None where no decision is new."""

    resolved: int
    summary: str
    report: str | None
    retrain_families: list[str]
    reasons: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class ServedRows:
    """Hold what the service used: (n,) epoch seconds of decision bars, ascending; (n, k) rows of WATCHED_COLUMNS."""

    at_s: Floats
    values: Floats


@dataclass(frozen=True, slots=True)
class FamilyWatch:
    """Hold one run of the watch of one family; `rates` are those of one block, `loss` abstains where none is known."""

    model: WatchedModel
    rates: AlarmRates
    served: ServedRows
    drift: DriftResult
    loss: LossDrift


@task
def resolve_outcomes(symbol: str) -> int:
    """Give every decision on an event its outcome, by the labels' own definition. Return how many were resolved."""
    installation = open_installation()
    pending = [r.decision for r in installation.store.unresolved(until=now()) if r.decision.symbol == symbol]
    if not pending:
        return 0
    manifest = installation.manifest()
    bars = schemas.to_matrix(snapshot_now(installation))
    newer = installation.store.bars(symbol, after=bars[-1, OPEN_TIME])
    costs = costs_of(installation.params.costs, *venue_of(manifest))
    rates = funding_known(installation, symbol) if costs.funding_hours is not None else NO_FUNDING
    grid = grid_of(manifest, bars[:, OPEN_TIME])
    found = resolve(pending, np.concatenate([bars, newer]), grid, costs, rates)
    return sum(installation.store.add_outcome(outcome, now()) for outcome in found)


def funding_known(installation: Installation, symbol: str) -> Floats:
    """Return the funding rates of the newest snapshot and those observed since, as `costs.funding_rates`."""
    _, feed = records.read_snapshot(installation.workspace / "data", installation.manifest())
    return funding_rates(merge_records(feed, installation.store.records(symbol)[1]))


def served_rows(installation: Installation, symbol: str, since: datetime) -> ServedRows:
    """Return what the service used at every decision bar after `since`, oldest first; NaN = a feature was missing."""
    by_bar = {
        r.decision.as_of: r.features
        for r in installation.store.decisions(symbol, since=since)
        if r.decision.as_of > since
    }
    order = sorted(by_bar)
    rows = [np.frombuffer(by_bar[at], dtype=np.float64)[WATCHED] for at in order]
    return ServedRows(
        np.array([at.timestamp() for at in order]), np.array(rows, dtype=np.float64).reshape(-1, len(WATCHED))
    )


@task(task_run_name="watch-{family}")
def watch(family: str, symbol: str) -> FamilyWatch:
    """Compare all the champion's service has seen since its training with that training, and watch its edge.

    Without a champion the challenger is watched. Reference and edge are those of its bundle.
    """
    return family_watch(open_installation(), family, symbol)


def watch_each(installation: Installation, symbol: str) -> tuple[list[FamilyWatch], Reasons]:
    """Return the watch of each family and its reasons to retrain. One with a fault is in neither: alarmed, logged."""
    watches: list[FamilyWatch] = []
    reasons: Reasons = {}
    for family in watched_families(installation):
        with promotion.isolate_fault(installation, family, promotion.WATCH):
            watched = watch(family, symbol)
            reasons[family] = reasons_of(installation, symbol, watched)
            watches.append(watched)
    return watches, reasons


def family_watch(installation: Installation, family: str, symbol: str) -> FamilyWatch:
    """Return the watch of one family, as `watch`. Raises BundleError for a bundle that is not as it was registered."""
    slots, params = installation.store.slots(family), installation.params
    line = slots.champion or slots.challenger
    assert line is not None, f"{family} has neither champion nor challenger, so it is not watched"
    model = watched_model(installation, line)
    bar_s = grids_of(installation.meta())[0].mean_s
    # the blocks that are judged are the reference's: params.yaml may have another length since that training
    block_bars = params.drift.block_bars if model.reference is None else model.reference.block_bars
    rates = alarm_rates(params.drift.false_alarms_a_month, block_bars, bar_s, len(watched_families(installation)))
    served = served_rows(installation, symbol, model.trained_through)
    if model.reference is None:
        drift = DriftResult(None, model.reason, len(served.at_s), (), None, model.reason)
    else:
        drift = detect(model.reference, served.values, rates)
    loss = compare_loss(installation, model, symbol) if family == DECISION_FAMILY else unwatched("no outcome scores it")
    return FamilyWatch(model, rates, served, drift, loss)


def compare_loss(installation: Installation, model: WatchedModel, symbol: str) -> LossDrift:
    """Test the edge of the served version on the outcomes of all it predicted since its training."""
    digest, family = model.line.digest, model.family
    scored = [
        (record.decision.as_of.timestamp(), chance, float(outcome.label))
        for record, outcome in installation.store.resolved(model.trained_through)
        if record.decision.symbol == symbol
        and (answer := record.decision.models.get(family, {}).get("champion")) is not None
        and answer.digest == digest
        and (chance := answer.chance[0]) is not None
    ]
    at_s, p, y = np.array(scored, dtype=np.float64).reshape(-1, 3).T
    return loss_drift(
        at_s, p, y, model.edge, installation.params,
        origin_s=model.trained_through.timestamp(), until_s=market_time(installation, symbol, model).timestamp(),
    )  # fmt: skip


def market_time(installation: Installation, symbol: str, model: WatchedModel) -> datetime:
    """Return the newest moment of the market that the service knows, at least the end of the model's training."""
    newest = installation.store.newest_bar(symbol)
    if newest is None:
        return model.trained_through
    return max(utc(installation.base_grid().next_close(newest)), model.trained_through)


def trip_model(installation: Installation, symbol: str, watched: FamilyWatch | None) -> str | None:
    """Trip `model` if the deciding champion's edge is gone and its newest trades lost money; return why, else None.

    Only trades that it decided count, since a person last reset the breaker. Input drift never comes here: it requests
    a retrain, and the loop closes by itself.
    """
    champion = installation.store.slots(DECISION_FAMILY).champion
    if champion is None or watched is None or not watched.loss.alarm:
        return None
    net_bps = traded_lately(installation, symbol, watched)
    if net_bps is None:
        return None
    about = f"{DECISION_FAMILY} champion version {champion.to_version} at {symbol}"
    why = triggered(BreakerInputs(about, loss_drift=True, traded=net_bps), installation.params).get("model")
    if why is not None and installation.store.trip("model", now(), why):
        installation.store.raise_alarm("breaker_tripped", "critical", f"model: {why}", now())
    return why


def traded_lately(installation: Installation, symbol: str, watched: FamilyWatch) -> Estimate | None:
    """Return the mean net bps of the champion's newest trades since a person last reset `model`; None if too few.

    Outcomes overlap, so the interval is that of block means, of the newest blocks with `breakers.trades` trades and at
    least 15 blocks. n counts trades.
    """
    resets = [
        trip.reset_as_of
        for trip in installation.store.breaker_trips(tripped_only=False)
        if trip.name == "model" and trip.reset_as_of
    ]
    model, edge, params = watched.model, watched.model.edge, installation.params
    since = max([model.trained_through, *resets])
    traded = [
        (record.decision.as_of.timestamp(), outcome.net_bps, outcome.cost_bps)
        for record, outcome in installation.store.resolved(since)
        if record.decision.symbol == symbol
        and record.decision.action != "NO_TRADE"
        and record.decision.arm == "champion"
        and record.decision.models[DECISION_FAMILY]["champion"].digest == model.line.digest
        and record.decision.as_of > since
    ]
    if not traded or edge is None:
        return None
    at_s, net, cost = np.array(traded, dtype=np.float64).T
    blocks = block_means(
        at_s, net, origin_s=model.trained_through.timestamp(),
        until_s=market_time(installation, symbol, model).timestamp(), horizon_s=edge.horizon_s,
        horizons=edge.block_horizons,
    )  # fmt: skip
    backwards = np.cumsum(blocks.n[::-1])
    if len(backwards) < LEAST_BLOCKS or backwards[-1] < params.breakers.trades:
        return None
    wanted = max(LEAST_BLOCKS, int(np.searchsorted(backwards, params.breakers.trades)) + 1)
    newest = blocks.since(float(blocks.start_s[-wanted]))
    mean = newest.interval()
    return Estimate(mean.value, mean.low, mean.high, int(newest.n.sum()), float(cost.mean()))


@task(timeout_seconds=600)
def report(watched: FamilyWatch) -> str | None:
    """Write Evidently's report (HTML and JSON) into the version's run and the Evidently UI. Return the page's path.

    None where the version has no reference, or nothing was served since its training.
    """
    model = watched.model
    if model.reference is None or not len(watched.served.at_s):
        return None
    from pipelines.monitoring.report import write_report

    installation = open_installation()
    block = worst_block(watched.drift)
    current = watched.served.values[block.start : block.start + block.n] if block else watched.served.values
    reference = model.reference
    columns = [POSITION[name] for name in reference.watched]
    files = write_report(
        pd.DataFrame(reference.sample[:, columns], columns=list(reference.watched)),
        pd.DataFrame(current[:, columns], columns=list(reference.watched)),
        reference.thresholds(watched.rates.values),
        reference.missing_limits(watched.rates.missing),
        installation.settings.home / "reports" / f"{now():%Y%m%dT%H%M%S}",
        installation.settings.home / "evidently",
        now(),
        f"{model.family}: {installation.meta()['symbol']}",
    )
    run_id = model.line.run_id
    if run_id is not None:
        metrics = {"drift.score": block.score, "drift.threshold": block.threshold} if block else {}
        known = {name: value for name, value in metrics.items() if np.isfinite(value)}
        installation.tracking.log_report(run_id, [files.html, files.json], "drift", known)
        create_link_artifact(
            key=f"drift-{model.family}",
            link=f"{installation.tracking.run_link(run_id)}/artifacts",
            link_text=f"Drift report of {model.family} version {model.line.to_version}, in its MLflow run",
            description=watched.drift.reason,
        )
    return str(files.html)


def worst_block(result: DriftResult) -> BlockDrift | None:
    """Return the block that decided: the first of the alarms that last, else the highest score; None before any."""
    onsets = [start for start in (result.onset, result.missing_onset) if start is not None]
    if onsets:
        return next(block for block in result.blocks if block.start == min(onsets))
    return max(result.blocks, key=lambda b: -np.inf if np.isnan(b.score) else b.score, default=None)


def watched_families(installation: Installation) -> list[str]:
    """Return the families with a champion: only what serves can be hurt.

    Without one, the deciding family, once it was judged: before that its first training is still running, and a second
    one at the same time is of no use.
    """
    serving = [family for family in FAMILIES if installation.store.slots(family).champion is not None]
    judged = installation.store.slots(DECISION_FAMILY).challenger is not None
    return serving or ([DECISION_FAMILY] if judged else [])


def last_trained(installation: Installation, family: str) -> datetime | None:
    """Return when the family was last trained to the end: by a retrain, or by the run whose version the gate judged.

    The interval of the schedule runs from there. A refused challenger counts: what it was trained on brought no better
    model, and asking again at once brings none.
    """
    judged = [line.at for line in installation.store.promotions(family) if line.action == "challenge"]
    finished = last_finished(installation.store.retrain_requests(family))
    return max([*judged, *([finished] if finished else [])], default=None)


def trading_age(grid: Grid, since: datetime, until: datetime) -> timedelta:
    """Return the trading days between two moments: nights and weekends on which a market is shut make no data older."""
    return timedelta(days=grid.at("1d").age_bars(since.timestamp(), until.timestamp()))


def reasons_of(installation: Installation, symbol: str, watched: FamilyWatch) -> list[TriggerReason]:
    """Return why this family should be trained again now, and keep the alarm of each condition while it lasts.

    Every alarm says whether it does harm, by the champion's edge since the condition began.
    """
    model, rules, at = watched.model, installation.params.retrain, now()
    last = last_trained(installation, model.family)
    late = overdue(at, last, model.line.at, rules.overdue_intervals, rules)
    keep_or_end(installation, model.family, "overdue", "critical", late, late.detail if late else "", at)
    age = trading_age(installation.base_grid(), model.trained_through, market_time(installation, symbol, model))
    holds: dict[str, TriggerReason] = {
        reason.kind: reason
        for reason in retrain_reasons(
            at,
            last,
            at - age,
            watched.drift,
            watched.loss,
            rules,
            model.reason or PREDATES_LOSS if model.predates else None,
        )
    }
    due, answered = [], seen_until(installation.store.retrain_requests(model.family))
    for kind in KINDS:
        reason = holds.get(kind)
        detail = f"{reason.kind}: {reason.detail}; {harm_of(installation, watched, kind)}" if reason else ""
        raised_at = keep_or_end(installation, model.family, kind, "warning", reason, detail, at)
        if reason is not None and is_due(reason, raised_at, answered):
            due.append(reason)
    return due


def keep_or_end(
    installation: Installation, family: str, kind: str, severity: str, reason: TriggerReason | None, detail: str,
    at: datetime,
) -> datetime:  # fmt: skip
    """Keep the family's alarm of this kind while there is a reason, else end it; return when it was raised, or `at`."""
    if reason is None:
        end_alarm(installation.store, kind, family, at)
        return at
    return keep_alarm(installation.store, kind, severity, family, detail, at)


def harm_of(installation: Installation, watched: FamilyWatch, kind: str) -> str:
    """Return whether a condition is harmful, harmless or not yet known, by the champion's edge since it began."""
    if kind == "loss":
        return "harmful: it is the edge itself that is gone"
    model = watched.model
    row = {"drift": watched.drift.onset, "missing": watched.drift.missing_onset}.get(kind)
    since_s = model.trained_through.timestamp() if row is None else float(watched.served.at_s[row])
    return harm(watched.loss, model.edge, since_s, installation.params.drift)


def request_retrains(reasons: Reasons) -> list[str]:
    """Emit one event for the automation that retrains all families with a reason; return those families."""
    requested = {family: why for family, why in reasons.items() if why}
    if requested:
        first = next(iter(requested.values()))[0]
        emit_event(
            DRIFT_EVENT,
            resource={"prefect.resource.id": "bellwether.families", "prefect.resource.name": ", ".join(requested)},
            payload={"family": ",".join(requested), "reason": f"{first.kind}: {first.detail}"},
        )
    return list(requested)


def summary_of(watches: Sequence[FamilyWatch], tripped: str | None, faulty: Sequence[str] = ()) -> str:
    """Return one line on drift, share missing, loss and the breaker `model`; equal findings of families once.

    faulty  families whose watch met a fault
    """
    parts: dict[str, list[str]] = {}
    for watched in watches:
        found = [watched.drift.reason]
        if watched.drift.missing_alarm:
            found.append(watched.drift.missing_reason)
        for text in found:
            parts.setdefault(text, []).append(watched.model.family)
    lines = [text if len(parts) == 1 else f"{', '.join(names)}: {text}" for text, names in parts.items()]
    lines += [f"loss: {w.loss.reason}" for w in watches if w.model.family == DECISION_FAMILY]
    if faulty:
        lines.append(f"{', '.join(faulty)} not watched: a fault, which the alarm {promotion.FAULT} names")
    if tripped:
        lines.append(f"breaker model tripped: {tripped}")
    return "; ".join(lines) or "nothing is watched: no family was judged yet"


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
        watches, reasons = watch_each(installation, name)
    deciding = next((w for w in watches if w.model.family == DECISION_FAMILY), None)
    requested = request_retrains(reasons)
    tripped = trip_model(installation, name, deciding)
    page = None
    if watches:
        with step("monitor: Evidently report"):
            page = report(deciding or watches[0])
    faulty = [family for family in watched_families(installation) if family not in reasons]
    summary = summary_of(watches, tripped, faulty)
    publish_summary(installation, name, summary, resolved, page)
    return {
        "resolved": resolved,
        "summary": summary,
        "report": page,
        "retrain_families": requested,
        "reasons": as_text(reasons),
    }
