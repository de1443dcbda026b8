"""Monitor a universe: resolve outcomes, compare what the service saw in each market with each champion's training
inputs there, watch its edge over all of them, report.

Drift, a lost edge or age requests a retrain by an event; it never promotes anything. An edge that is gone and trades
that lose money trip the breaker `model`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypedDict

import numpy as np
from prefect import flow, task
from prefect.events import emit_event

from flows.promote import begin_queued, promote_winner
from flows.support import experiment_guardrails, experiments, promotion
from flows.support.alarms import end_alarm, end_others, keep_alarm
from flows.support.drift_reports import report_drift, report_page
from flows.support.experiment_pages import write_pages
from flows.support.frozen import frozen
from flows.support.installation import Installation, now, open_installation
from flows.support.live_outcomes import Resolved, live_losses, resolve_market
from flows.support.market_time import learning_now, learning_time_at
from flows.support.monitor_summary import events_in, markets_of, publish_summary, summary_of
from flows.support.progress import report_progress, step
from flows.support.run_names import run_name
from flows.support.watched import WatchedModel
from flows.support.watches import (
    FamilyWatch,
    ServedReader,
    family_watch,
    isolate_market,
    known_markets,
    market_time,
    model_under_watch,
    outcomes_until_s,
    watched_families,
)
from pipelines.contracts import Estimate, JsonObject
from pipelines.data.timeframes import Grid
from pipelines.experiments.eprocess import LEAST_BLOCKS, block_means
from pipelines.families import DECISION_FAMILY, FAMILIES
from pipelines.monitoring.loss import harm
from pipelines.monitoring.triggers import (
    KINDS,
    TriggerReason,
    drift_reasons,
    is_due,
    last_finished,
    overdue,
    retrain_reasons,
    seen_until,
)
from serving.risk.breakers import BreakerInputs, triggered

DRIFT_EVENT = "bellwether.retrain-requested"
OF_MARKET = ("drift", "missing")  # reasons that are about one market: each has an alarm of its own

Reasons = dict[str, list[TriggerReason]]  # family → why it should be trained again; an empty list: no reason


class MonitorResult(TypedDict):
    """Hold the answer of one run of `monitor` over all its markets.

    resolved        outcomes of events found now; family_outcomes: of the families' own labels
    summary         one line; report: page of the deciding family's newest judged block, None before there is one
    retrain_families, reasons   families with a reason to be trained again now, and each family's reasons
    markets         symbol → {resolved, family_outcomes, drift: family → what was found, fault: None or what failed}
    losses          live loss of each champion and challenger, as `LiveLoss.to_dict`
    experiments     a line on each that was decided or begun now
    """

    resolved: int
    summary: str
    report: str | None
    retrain_families: list[str]
    reasons: dict[str, list[str]]
    family_outcomes: int
    markets: dict[str, JsonObject]
    losses: list[JsonObject]
    experiments: list[str]


def universe(installation: Installation, symbol: str | None) -> tuple[str, ...]:
    """Return the markets of a run: the one requested, or all of the newest data version.

    Raises  UnknownName for a symbol that it does not hold, StateError before the first ingest
    """
    return installation.symbols if symbol is None else (str(installation.manifest(symbol)["symbol"]),)


@task(task_run_name="outcomes-{symbol}")
def resolve_outcomes(symbol: str) -> Resolved:
    """Give every decision on a market its outcomes, by the labels' own definition. Return how many were resolved."""
    return resolve_market(open_installation(), symbol)


def resolve_each(installation: Installation, symbols: Sequence[str]) -> dict[str, Resolved | str]:
    """Return symbol → what was resolved, or the fault that its outcomes met: alarmed, logged, and the others go on."""
    found: dict[str, Resolved | str] = {}
    for symbol in symbols:
        found[symbol] = "its outcomes met a fault"
        with isolate_market(installation, f"outcomes {symbol}"):
            found[symbol] = resolve_outcomes(symbol)
    return found


@task
def watch(symbols: Sequence[str]) -> tuple[list[FamilyWatch], Reasons]:
    """Compare all the champions' service has seen since their training with that training, and watch their edge.

    Without a champion the challenger is watched. References and edge are those of its bundle.
    """
    return watch_each(open_installation(), symbols)


def watch_each(installation: Installation, symbols: Sequence[str]) -> tuple[list[FamilyWatch], Reasons]:
    """Return the watch of each family and its reasons to retrain. One with a fault is in neither: alarmed, logged."""
    watches: list[FamilyWatch] = []
    reasons: Reasons = {}
    families = watched_families(installation)
    models: dict[str, WatchedModel] = {}
    for family in families:
        with promotion.isolate_fault(installation, family, promotion.WATCH):
            models[family] = model_under_watch(installation, family)
    if not models:
        return watches, reasons
    served = ServedReader(installation, min(model.trained_through for model in models.values()))
    for family, model in models.items():
        with promotion.isolate_fault(installation, family, promotion.WATCH):
            watched = family_watch(installation, model, symbols, served)
            reasons[family] = reasons_of(installation, watched)
            watches.append(watched)
    return watches, reasons


def trip_model(installation: Installation, watched: FamilyWatch | None) -> str | None:
    """Trip `model` if the deciding champion's edge is gone and its newest trades lost money; return why, else None.

    Only trades that it decided count, in all its markets, since a person last reset the breaker. Input drift never
    comes here: it requests a retrain, and the loop closes by itself.
    """
    champion = installation.store.slots(DECISION_FAMILY).champion
    if champion is None or watched is None or not watched.loss.alarm:
        return None
    net_bps = traded_lately(installation, watched)
    if net_bps is None:
        return None
    markets = ", ".join(known_markets(installation, watched.model))
    about = f"{DECISION_FAMILY} champion version {champion.to_version} at {markets}"
    why = triggered(BreakerInputs(about, loss_drift=True, traded=net_bps), installation.params).get("model")
    if why is not None and installation.store.trip("model", now(), why):
        installation.store.raise_alarm("breaker_tripped", "critical", f"model: {why}", now())
    return why


def traded_lately(installation: Installation, watched: FamilyWatch) -> Estimate | None:
    """Return the mean net bps of the champion's newest trades since a person last reset `model`; None if too few.

    Outcomes overlap, and markets move together, so the interval is that of means of blocks of time, of the newest
    blocks with `breakers.trades` trades and at least 15 blocks. n counts trades.
    """
    resets = [
        trip.reset_as_of
        for trip in installation.store.breaker_trips(tripped_only=False)
        if trip.name == "model" and trip.reset_as_of
    ]
    model, edge, params = watched.model, watched.model.edge, installation.params
    since, symbols = max([model.trained_through, *resets]), known_markets(installation, model)
    traded = [
        (record.decision.as_of.timestamp(), outcome.net_bps, outcome.cost_bps)
        for record, outcome in installation.store.resolved(since)
        if record.decision.symbol in symbols
        and record.decision.action != "NO_TRADE"
        and record.decision.arm == "champion"
        and record.decision.models[DECISION_FAMILY]["champion"].digest == model.line.digest
        and record.decision.as_of > since
    ]
    if not traded or edge is None:
        return None
    at_s, net, cost = np.array(traded, dtype=np.float64).T
    blocks = block_means(
        at_s, net, origin_s=model.trained_through.timestamp(), until_s=outcomes_until_s(installation, model, symbols),
        horizon_s=edge.horizon_s, horizons=edge.block_horizons,
    )  # fmt: skip
    backwards = np.cumsum(blocks.n[::-1])
    if len(backwards) < LEAST_BLOCKS or backwards[-1] < params.breakers.trades:
        return None
    wanted = max(LEAST_BLOCKS, int(np.searchsorted(backwards, params.breakers.trades)) + 1)
    newest = blocks.since(float(blocks.start_s[-wanted]))
    mean = newest.interval()
    return Estimate(mean.value, mean.low, mean.high, int(newest.n.sum()), float(cost.mean()))


@task
def compare_arms() -> list[str]:
    """Score the experiments that run, promote winners, and begin what waited. Return a line for each that changed.

    A fault of one family is alarmed, and the others go on.
    """
    installation, lines = open_installation(), []
    for family in (*FAMILIES, experiments.POLICY_ARMS):
        with promotion.isolate_fault(installation, family, promotion.EXPERIMENT):
            lines += experiments.advance(installation, family)
            if family != experiments.POLICY_ARMS:
                promotion.publish(installation)  # of a new stage, before its first block
                lines += guard(installation, family)
                promote_winner(installation, family)
                begin_queued(installation, family)
            write_pages(installation, family)
    for line in lines:
        report_progress(line)
    return lines


def guard(installation: Installation, family: str) -> list[str]:
    """End the experiment of a family that does harm, and undo a promotion whose probation found the version before
    better. Return a line for each."""
    lines, experiment = [], experiments.running(installation, family)
    if experiment is not None and (why := experiment_guardrails.tripped(installation, experiment)) is not None:
        experiment_guardrails.keep_alarm_of(installation, experiment, why)
        lines.append(promotion.stop_by_guardrail(installation, experiment, why))
    if (worse := experiments.lost_probation(installation, family)) is not None:
        lines.append(promotion.end_probation(installation, worse, "probation: the version before is better"))
    return lines


@task(timeout_seconds=600)
def report(watches: Sequence[FamilyWatch]) -> dict[str, Path]:
    """Write the drift reports of blocks that have none yet. Return family → page of its newest judged block."""
    return report_drift(open_installation(), watches)


def last_trained(installation: Installation, family: str) -> datetime | None:
    """Return when the family was last trained to the end, in time of learning: by a retrain, or by the run whose
    version the gate judged.

    The interval of the schedule runs from there. A refused challenger counts: what it was trained on brought no better
    model, and asking again at once brings none.
    """
    judged = [line.at for line in installation.store.promotions(family) if line.action == "challenge"]
    finished = last_finished(installation.store.retrain_requests(family))
    learnt = [learning_time_at(installation, max(judged))] if judged else []
    return max([*learnt, *([_learning(installation, finished)] if finished else [])], default=None)


def _learning(installation: Installation, stamp: datetime) -> datetime:
    """Return a moment of the retrain queue in time of learning: releases up to 0.10 wrote the time of day there."""
    return stamp if stamp <= learning_now(installation) else learning_time_at(installation, stamp)


def trading_age(grid: Grid, since: datetime, until: datetime) -> timedelta:
    """Return the trading days between two moments: nights and weekends on which a market is shut make no data older."""
    return timedelta(days=grid.at("1d").age_bars(since.timestamp(), until.timestamp()))


def reasons_of(installation: Installation, watched: FamilyWatch) -> list[TriggerReason]:
    """Return why this family should be trained again now, and keep the alarm of each condition while it lasts.

    A condition of one market has an alarm of its own: one that begins elsewhere later is a new one. Every alarm says
    whether it does harm, by the champion's edge since the condition began.
    """
    model, rules = watched.model, installation.params.retrain
    at, last = learning_now(installation), last_trained(installation, watched.model.family)
    late = overdue(at, last, learning_time_at(installation, model.line.at), rules.overdue_intervals, rules)
    keep_or_end(installation, model.family, "overdue", "critical", late, late.detail if late else "")
    due, answered = [], answered_until(installation, model.family)
    of_family: dict[str, TriggerReason] = {
        reason.kind: reason
        for reason in retrain_reasons(
            at, last, at - data_age(installation, model), None, watched.loss, rules, model.predated
        )
    }
    conditions = [(model.family, kind, of_family.get(kind)) for kind in KINDS if kind not in OF_MARKET]
    for market in watched.markets:
        found: dict[str, TriggerReason] = {r.kind: r for r in drift_reasons(market.drift, market.symbol)}
        conditions += [(f"{model.family} {market.symbol}", kind, found.get(kind)) for kind in OF_MARKET]
    page = report_page(installation, watched)
    for subject, kind, reason in conditions:
        detail = f"{reason.kind}: {reason.detail}; {harm_of(installation, watched, reason)}" if reason else ""
        detail += f"; report: {page}" if reason and page and kind in OF_MARKET else ""
        raised_at = keep_or_end(installation, subject, kind, "warning", reason, detail)
        if reason is not None and is_due(reason, learning_time_at(installation, raised_at), answered):
            due.append(reason)
    kept = [f"{model.family} {symbol}" for symbol in known_markets(installation, model)]
    for kind in OF_MARKET:  # of markets that are not watched any more
        end_others(installation.store, kind, model.family, kept, now())
    return due


def data_age(installation: Installation, model: WatchedModel) -> timedelta:
    """Return the trading days since the end of a version's training, in the market where most have passed."""
    symbols = known_markets(installation, model) or installation.symbols[:1]
    return max(
        trading_age(installation.base_grid(s), model.trained_through, market_time(installation, s, model))
        for s in symbols
    )


def answered_until(installation: Installation, family: str) -> datetime | None:
    """Return up to when conditions are answered by a retrain, in time of learning; None if none finished."""
    seen = seen_until(installation.store.retrain_requests(family))
    return None if seen is None else _learning(installation, seen)


def keep_or_end(
    installation: Installation, subject: str, kind: str, severity: str, reason: TriggerReason | None, detail: str
) -> datetime:
    """Keep the alarm of this kind about a family, or a family in a market, while there is a reason, else end it.

    Return when it was raised, or now: times of day.
    """
    if reason is None:
        end_alarm(installation.store, kind, subject, now())
        return now()
    return keep_alarm(installation.store, kind, severity, subject, detail, now())


def harm_of(installation: Installation, watched: FamilyWatch, reason: TriggerReason) -> str:
    """Return whether a condition is harmful, harmless or not yet known, by the champion's edge since it began."""
    if reason.kind == "loss":
        return "harmful: it is the edge itself that is gone"
    model, since_s = watched.model, watched.model.trained_through.timestamp()
    for market in watched.markets:
        row = {"drift": market.drift.onset, "missing": market.drift.missing_onset}.get(reason.kind)
        if market.symbol == reason.market and row is not None:
            since_s = float(market.served.at_s[row])
    return harm(watched.loss, model.edge, since_s, installation.params.drift)


def request_retrains(reasons: Reasons) -> list[str]:
    """Emit one event for the automation that retrains all families with a reason; return those families."""
    requested = {family: why for family, why in reasons.items() if why}
    if requested:
        found = [reason for why in requested.values() for reason in why]
        first = next((reason for reason in found if reason.kind != "schedule"), found[0])  # what happened says more
        emit_event(
            DRIFT_EVENT,
            resource={"prefect.resource.id": "bellwether.families", "prefect.resource.name": ", ".join(requested)},
            payload={"families": list(requested), "reason": str(first)},
        )
    return list(requested)


def as_text(reasons: Mapping[str, list[TriggerReason]]) -> dict[str, list[str]]:
    """Return the reasons of each family as `kind: detail`, with the market that one is about."""
    return {family: [str(reason) for reason in why] for family, why in reasons.items()}


@flow(name="monitor", flow_run_name=run_name("monitor {symbol}"), log_prints=True)
def monitor(symbol: str | None = None) -> MonitorResult:
    """Run all checks once, over the whole universe or one market of it.

    Return what was resolved, what drifts, where the report is, and the retrains requested.

    Args:
        symbol: The market to check; the whole universe if none is given.
    """
    installation = open_installation()
    symbols = universe(installation, symbol)
    with step("monitor: outcomes"):
        resolved = resolve_each(installation, symbols)
    with step("monitor: drift and loss"):
        watches, reasons = watch(symbols)
        losses = live_losses(installation, symbols)
    with step("monitor: experiments"):
        compared = compare_arms()
    deciding = next((w for w in watches if w.model.family == DECISION_FAMILY), None)
    requested = request_retrains(reasons) if frozen(installation.settings, "retrain") is None else []
    tripped = trip_model(installation, deciding)
    with step("monitor: drift reports"):
        pages = report(watches)
    page = pages.get(DECISION_FAMILY) or next(iter(pages.values()), None)
    faulty = [family for family in watched_families(installation) if family not in reasons]
    summary = summary_of(watches, tripped, faulty)
    publish_summary(installation, summary, resolved, losses, pages, compared)
    markets = markets_of(watches, resolved)
    return {
        "resolved": events_in(resolved),
        "summary": summary,
        "report": page and str(page),
        "retrain_families": requested,
        "reasons": as_text(reasons),
        "family_outcomes": sum(market["family_outcomes"] for market in markets.values()),
        "markets": markets,
        "losses": [each.to_dict() for each in losses],
        "experiments": compared,
    }
