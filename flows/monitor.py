"""Monitor a universe: resolve outcomes, compare what the service saw in each market with each champion's training
inputs there, watch its edge over all of them, report.

Drift, a lost edge or age requests a retrain by an event; it never promotes anything. An edge that is gone and trades
that lose money trip the breaker `model`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypedDict

import numpy as np
import pandas as pd
from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.events import emit_event

from flows.support import promotion
from flows.support.alarms import end_alarm, end_others, keep_alarm, open_alarms
from flows.support.installation import Installation, now, open_installation
from flows.support.live_outcomes import Resolved, decision_grid, live_losses, resolve_market
from flows.support.market_time import learning_now, learning_time_at
from flows.support.progress import report_progress, step
from flows.support.watched import WatchedModel, watched_model
from pipelines.contracts import Estimate, Floats, JsonObject, utc
from pipelines.data.timeframes import Grid
from pipelines.experiments.eprocess import LEAST_BLOCKS, block_means
from pipelines.families import DECISION_FAMILY, FAMILIES
from pipelines.features.catalog import FEATURES, WATCHED_COLUMNS
from pipelines.models.reference import DriftReference
from pipelines.monitoring.drift import AlarmRates, BlockDrift, DriftResult, alarm_rates, detect
from pipelines.monitoring.family_outcomes import LiveLoss
from pipelines.monitoring.loss import LossDrift, harm, loss_drift, pooled_until, unwatched
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

log = logging.getLogger("bellwether.monitor")
DRIFT_EVENT = "bellwether.retrain-requested"
WATCHED = np.array([FEATURES.index[name] for name in WATCHED_COLUMNS])  # their columns in a row of features
UNSCORED = "no outcome scores it"
OF_MARKET = ("drift", "missing")  # reasons that are about one market: each has an alarm of its own
MARKET_FAULT = "market_fault"
POSITION = {name: i for i, name in enumerate(WATCHED_COLUMNS)}  # their columns in a row of watched features

Reasons = dict[str, list[TriggerReason]]  # family → why it should be trained again; an empty list: no reason


class MonitorResult(TypedDict):
    """Hold the answer of one run of `monitor` over all its markets.

    resolved        outcomes of events found now; family_outcomes: of the families' own labels
    summary         one line; report: path of the page, None where no decision is new
    retrain_families, reasons   families with a reason to be trained again now, and each family's reasons
    markets         symbol → {resolved, family_outcomes, drift: family → what was found, fault: None or what failed}
    losses          live loss of each champion and challenger, as `LiveLoss.to_dict`
    """

    resolved: int
    summary: str
    report: str | None
    retrain_families: list[str]
    reasons: dict[str, list[str]]
    family_outcomes: int
    markets: dict[str, JsonObject]
    losses: list[JsonObject]


@dataclass(frozen=True, slots=True)
class ServedRows:
    """Hold what the service used: (n,) epoch seconds of decision bars, ascending; (n, k) rows of WATCHED_COLUMNS."""

    at_s: Floats
    values: Floats

    def after(self, moment_s: float) -> "ServedRows":
        """Return the rows of decision bars that closed after `moment_s`, epoch seconds."""
        first = int(np.searchsorted(self.at_s, moment_s, side="right"))
        return ServedRows(self.at_s[first:], self.values[first:])


@dataclass(frozen=True, slots=True)
class MarketWatch:
    """Hold one run of the watch of a version's inputs in one market; `rates` are those of one block.

    reference  of the version's training there, or why there is none
    """

    symbol: str
    reference: DriftReference | str
    rates: AlarmRates
    served: ServedRows
    drift: DriftResult


@dataclass(frozen=True, slots=True)
class FamilyWatch:
    """Hold one run of the watch of one family.

    markets   those of its training that were watched now
    left_out  symbol → why it was not: the model does not know the market, or its watch has a fault
    loss      of all of them together; abstains where none is known
    """

    model: WatchedModel
    markets: tuple[MarketWatch, ...]
    loss: LossDrift
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return the markets that were watched."""
        return tuple(market.symbol for market in self.markets)

    @property
    def worst(self) -> MarketWatch | None:
        """Return the market that decided: the first that alarms, else the one with the highest score; None of none."""
        return max(self.markets, key=_severity, default=None)


def _severity(market: MarketWatch) -> tuple[bool, float]:
    """Return whether a market alarms, and the highest score over its threshold of the block that decided."""
    block = worst_block(market.drift)
    if block is None:
        return False, -np.inf
    alarm = bool(market.drift.alarm or market.drift.missing_alarm)
    scores = np.array([block.score, block.missing_score]) / np.array([block.threshold, block.missing_threshold])
    return alarm, float(np.nan_to_num(scores, nan=-np.inf).max())


class ServedReader:
    """Read what the service used in each market, once for all families."""

    def __init__(self, installation: Installation, since: datetime) -> None:
        """Read rows of decision bars after `since`, the earliest end of a training."""
        self._installation, self._since = installation, since
        self._read: dict[str, ServedRows] = {}

    def rows(self, symbol: str, since: datetime) -> ServedRows:
        """Return the rows of a market after `since`, not before the reader's own."""
        if symbol not in self._read:
            self._read[symbol] = served_rows(self._installation, symbol, self._since)
        return self._read[symbol].after(since.timestamp())


def universe(installation: Installation, symbol: str | None) -> tuple[str, ...]:
    """Return the markets of a run: the one asked for, or all of the newest data version.

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


@contextmanager
def isolate_market(installation: Installation, subject: str) -> Iterator[None]:
    """Log and alarm a fault of one market once, and go on with the others; clear the alarm when the fault is gone.

    subject  what failed and where: `outcomes BTC/USDT`, `validator BTC/USDT`
    """
    store = installation.store
    try:
        yield
    except Exception as fault:
        if not open_alarms(store, MARKET_FAULT, subject):
            log.exception("%s", subject)
            detail = f"{subject}: {type(fault).__name__}: {' '.join(str(fault).split())}"[:400]
            store.raise_alarm(MARKET_FAULT, "high", detail, now())
    else:
        end_alarm(store, MARKET_FAULT, subject, now())


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


def model_under_watch(installation: Installation, family: str) -> WatchedModel:
    """Return what the watch needs of a family's champion, without one of its challenger.

    Raises  BundleError for a bundle that is not as it was registered
    """
    slots = installation.store.slots(family)
    line = slots.champion or slots.challenger
    assert line is not None, f"{family} has neither champion nor challenger, so it is not watched"
    return watched_model(installation, line)


def family_watch(
    installation: Installation, model: WatchedModel, symbols: Sequence[str], served: ServedReader | None = None
) -> FamilyWatch:
    """Return the watch of one version in these markets, and of its edge in all of them that it was trained on.

    A market with a fault is left out by name: it is alarmed and logged, and the others go on.
    """
    reader = served or ServedReader(installation, model.trained_through)
    watched, left_out = [], {}
    for symbol in symbols:
        if symbol not in model.references:
            left_out[symbol] = f"not in the training of version {model.line.to_version}"
            continue
        left_out[symbol] = f"a fault, which the alarm {MARKET_FAULT} names"
        with isolate_market(installation, f"{model.family} {symbol}"):
            watched.append(market_watch(installation, model, symbol, reader))
            del left_out[symbol]
    known = tuple(symbol for symbol in symbols if symbol in model.references)
    loss = compare_loss(installation, model, known) if model.family == DECISION_FAMILY else unwatched(UNSCORED)
    return FamilyWatch(model, tuple(watched), loss, left_out)


def market_watch(
    installation: Installation, model: WatchedModel, symbol: str, served: ServedReader
) -> MarketWatch:  # fmt: skip
    """Return the watch of a version's inputs in one market; the budget of false alarms is that of the universe."""
    reference, params = model.references[symbol], installation.params
    # the blocks that are judged are the reference's: params.yaml may have another length since that training
    block_bars = params.drift.block_bars if isinstance(reference, str) else reference.block_bars
    bar_s = decision_grid(installation, installation.base_grid(symbol)).mean_s
    watches = len(watched_families(installation)) * len(installation.symbols)
    rates = alarm_rates(params.drift.false_alarms_a_month, block_bars, bar_s, watches)
    rows = served.rows(symbol, model.trained_through)
    if isinstance(reference, str):
        drift = DriftResult(None, reference, len(rows.at_s), (), None, reference)
    else:
        drift = detect(reference, rows.values, rates)
    return MarketWatch(symbol, reference, rates, rows, drift)


def compare_loss(installation: Installation, model: WatchedModel, symbols: Sequence[str]) -> LossDrift:
    """Test the edge of the served version on the outcomes of all it predicted since its training, in all markets.

    Markets move together, so a block is one of time, with the outcomes of all of them.
    """
    if not symbols:
        return unwatched("none of its markets is watched")
    digest, family = model.line.digest, model.family
    scored = [
        (record.decision.as_of.timestamp(), chance, float(outcome.label))
        for record, outcome in installation.store.resolved(model.trained_through)
        if record.decision.symbol in symbols
        and (answer := record.decision.models.get(family, {}).get("champion")) is not None
        and answer.digest == digest
        and (chance := answer.chance[0]) is not None
    ]
    at_s, p, y = np.array(scored, dtype=np.float64).reshape(-1, 3).T
    return loss_drift(
        at_s, p, y, model.edge, installation.params,
        origin_s=model.trained_through.timestamp(), until_s=outcomes_until_s(installation, model, symbols),
    )  # fmt: skip


def outcomes_until_s(installation: Installation, model: WatchedModel, symbols: Sequence[str]) -> float:
    """Return up to when the outcomes of these markets are known together, epoch seconds; one or more markets."""
    horizon_s = np.inf if model.edge is None else model.edge.horizon_s
    return pooled_until([market_time(installation, s, model).timestamp() for s in symbols], horizon_s)


def market_time(installation: Installation, symbol: str, model: WatchedModel) -> datetime:
    """Return the newest moment of the market that the service knows, at least the end of the model's training."""
    newest = installation.store.newest_bar(symbol)
    if newest is None:
        return model.trained_through
    return max(utc(installation.base_grid(symbol).next_close(newest)), model.trained_through)


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
    about = f"{DECISION_FAMILY} champion version {champion.to_version} at {', '.join(known_markets(watched))}"
    why = triggered(BreakerInputs(about, loss_drift=True, traded=net_bps), installation.params).get("model")
    if why is not None and installation.store.trip("model", now(), why):
        installation.store.raise_alarm("breaker_tripped", "critical", f"model: {why}", now())
    return why


def known_markets(watched: FamilyWatch) -> tuple[str, ...]:
    """Return the markets of a run that the version was trained on, also one whose watch has a fault."""
    return tuple(s for s in watched.model.references if s in watched.symbols or s in watched.left_out)


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
    since, symbols = max([model.trained_through, *resets]), known_markets(watched)
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


@task(timeout_seconds=600)
def report(watched: FamilyWatch) -> str | None:
    """Write Evidently's report (HTML and JSON) into the version's run and the Evidently UI. Return the page's path.

    Of the market with the worst block. None where the version has no reference there, or nothing was served since.
    """
    model, market = watched.model, watched.worst
    if market is None or isinstance(market.reference, str) or not len(market.served.at_s):
        return None
    from pipelines.monitoring.report import write_report

    installation = open_installation()
    block, reference = worst_block(market.drift), market.reference
    current = market.served.values[block.start : block.start + block.n] if block else market.served.values
    columns = [POSITION[name] for name in reference.watched]
    files = write_report(
        pd.DataFrame(reference.sample[:, columns], columns=list(reference.watched)),
        pd.DataFrame(current[:, columns], columns=list(reference.watched)),
        reference.thresholds(market.rates.values),
        reference.missing_limits(market.rates.missing),
        installation.settings.home / "reports" / f"{now():%Y%m%dT%H%M%S}",
        installation.settings.home / "evidently",
        now(),
        f"{model.family}: {market.symbol}",
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
            description=f"{market.symbol}: {market.drift.reason}",
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
            at, last, at - data_age(installation, watched), None, watched.loss, rules, model.predated
        )
    }
    conditions = [(model.family, kind, of_family.get(kind)) for kind in KINDS if kind not in OF_MARKET]
    for market in watched.markets:
        found: dict[str, TriggerReason] = {r.kind: r for r in drift_reasons(market.drift, market.symbol)}
        conditions += [(f"{model.family} {market.symbol}", kind, found.get(kind)) for kind in OF_MARKET]
    for subject, kind, reason in conditions:
        detail = f"{reason.kind}: {reason.detail}; {harm_of(installation, watched, reason)}" if reason else ""
        raised_at = keep_or_end(installation, subject, kind, "warning", reason, detail)
        if reason is not None and is_due(reason, learning_time_at(installation, raised_at), answered):
            due.append(reason)
    kept = [f"{model.family} {symbol}" for symbol in model.references if symbol in installation.symbols]
    for kind in OF_MARKET:  # of markets that are not watched any more
        end_others(installation.store, kind, model.family, kept, now())
    return due


def data_age(installation: Installation, watched: FamilyWatch) -> timedelta:
    """Return the trading days since the end of a version's training, in the market where most have passed."""
    model = watched.model
    symbols = known_markets(watched) or installation.symbols[:1]
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
        first = next(iter(requested.values()))[0]
        emit_event(
            DRIFT_EVENT,
            resource={"prefect.resource.id": "bellwether.families", "prefect.resource.name": ", ".join(requested)},
            payload={"family": ",".join(requested), "reason": str(first)},
        )
    return list(requested)


def summary_of(watches: Sequence[FamilyWatch], tripped: str | None, faulty: Sequence[str] = ()) -> str:
    """Return one line on drift, share missing, loss and the breaker `model`; equal findings of families once.

    faulty  families whose watch met a fault
    """
    parts: dict[str, list[str]] = {}
    for watched in watches:
        for text in findings(watched):
            parts.setdefault(text, []).append(watched.model.family)
    lines = [text if len(parts) == 1 else f"{', '.join(names)}: {text}" for text, names in parts.items()]
    lines += [f"loss: {w.loss.reason}" for w in watches if w.model.family == DECISION_FAMILY]
    if faulty:
        lines.append(f"{', '.join(faulty)} not watched: a fault, which the alarm {promotion.FAULT} names")
    if tripped:
        lines.append(f"breaker model tripped: {tripped}")
    return "; ".join(lines) or "nothing is watched: no family was judged yet"


def findings(watched: FamilyWatch) -> list[str]:
    """Return what a run found in a family's markets: each that alarms, else the one nearest to it, and the others."""
    several = len(watched.markets) + len(watched.left_out) > 1
    alarming = [m for m in watched.markets if m.drift.alarm or m.drift.missing_alarm]
    told = alarming or ([watched.worst] if watched.worst else [])
    lines = []
    for market in told:
        name = f"{market.symbol}: " if several else ""
        lines.append(f"{name}{market.drift.reason}")
        if market.drift.missing_alarm:
            lines.append(f"{name}{market.drift.missing_reason}")
    quiet = [m for m in watched.markets if m not in told]
    judged = [m.symbol for m in quiet if m.drift.alarm is not None]
    if judged:
        lines.append(f"no drift in {', '.join(judged)} either" if not alarming else f"no drift in {', '.join(judged)}")
    if waiting := [m.symbol for m in quiet if m.drift.alarm is None]:
        lines.append(f"not judged yet: {', '.join(waiting)}")
    return lines + [f"{symbol} not watched: {why}" for symbol, why in watched.left_out.items()]


def publish_summary(
    installation: Installation, summary: str, resolved: Mapping[str, Resolved | str], losses: Sequence[LiveLoss],
    page: str | None,
) -> None:  # fmt: skip
    """Write summary, outcomes by market and live losses to the flow run's artifacts and to the progress lines."""
    rows = []
    for symbol, found in resolved.items():
        counts = f"{found.events} | {found.families}" if isinstance(found, Resolved) else f"{found} |"
        rows.append(f"| {symbol} | {counts} |")
    lines = [
        f"# {', '.join(resolved)}", "", summary, "",
        "| market | outcomes of events | of the families' labels |", "|---|---|---|", *rows, "",
        "## Live loss", "",
        *([f"- {each.describe()}" for each in losses] or ["no outcome of a family's own label yet"]), "",
        f"report: {page}",
    ]  # fmt: skip
    create_markdown_artifact(key="monitor", markdown="\n".join(lines))
    known, now_found = len(installation.store.resolved()), events_in(resolved)
    report_progress(f"{known} outcomes known, {now_found} of them resolved now; {summary}")
    for each in losses:
        report_progress(f"live loss: {each.describe()}")


def events_in(resolved: Mapping[str, Resolved | str]) -> int:
    """Return how many outcomes of events were found in all markets."""
    return sum(found.events for found in resolved.values() if isinstance(found, Resolved))


def markets_of(
    watches: Sequence[FamilyWatch], resolved: Mapping[str, Resolved | str]
) -> dict[str, JsonObject]:  # fmt: skip
    """Return symbol → what a run found there, JSON-ready."""
    found: dict[str, JsonObject] = {}
    for symbol, outcomes in resolved.items():
        drift = {w.model.family: m.drift.reason for w in watches for m in w.markets if m.symbol == symbol}
        drift |= {w.model.family: f"not watched: {w.left_out[symbol]}" for w in watches if symbol in w.left_out}
        counted = outcomes if isinstance(outcomes, Resolved) else Resolved(0, 0)
        found[symbol] = {
            "resolved": counted.events, "family_outcomes": counted.families, "drift": drift,
            "fault": outcomes if isinstance(outcomes, str) else None,
        }  # fmt: skip
    return found


def as_text(reasons: Mapping[str, list[TriggerReason]]) -> dict[str, list[str]]:
    """Return the reasons of each family as `kind: detail`, with the market that one is about."""
    return {family: [str(reason) for reason in why] for family, why in reasons.items()}


@flow(name="monitor", log_prints=True)
def monitor(symbol: str | None = None) -> MonitorResult:
    """Run all checks once, over the whole universe or one market of it.

    Return what was resolved, what drifts, where the report is, and the retrains requested.
    """
    installation = open_installation()
    symbols = universe(installation, symbol)
    with step("monitor: outcomes"):
        resolved = resolve_each(installation, symbols)
    with step("monitor: drift and loss"):
        watches, reasons = watch(symbols)
        losses = live_losses(installation, symbols)
    deciding = next((w for w in watches if w.model.family == DECISION_FAMILY), None)
    requested = request_retrains(reasons)
    tripped = trip_model(installation, deciding)
    page = None
    if watches:
        with step("monitor: Evidently report"):
            page = report(deciding or watches[0])
    faulty = [family for family in watched_families(installation) if family not in reasons]
    summary = summary_of(watches, tripped, faulty)
    publish_summary(installation, summary, resolved, losses, page)
    markets = markets_of(watches, resolved)
    return {
        "resolved": events_in(resolved),
        "summary": summary,
        "report": page,
        "retrain_families": requested,
        "reasons": as_text(reasons),
        "family_outcomes": sum(market["family_outcomes"] for market in markets.values()),
        "markets": markets,
        "losses": [each.to_dict() for each in losses],
    }
