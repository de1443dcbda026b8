"""Report: what happened on a market day, as a page and as JSON under `<home>/reports/<day>/`.

Decisions, trades and results in market time; retrains, promotions, alarms and data versions of the time of day in which
that market day was lived through.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import numpy as np
from prefect import flow
from prefect.artifacts import create_markdown_artifact

from flows.support import experiments
from flows.support.installation import Installation, now, open_installation
from flows.support.market_time import ingested_markets, is_market_clocked, learning_now
from flows.support.progress import report_progress, step
from flows.support.run_names import run_name
from pipelines.contracts import Decision, Floats, JsonObject, Outcome, json_ready
from pipelines.errors import BadTimes
from pipelines.evaluation.day_report import write_day_page
from pipelines.evaluation.metrics import mean_estimate
from pipelines.store import RUNNING, Alarm, DecisionRecord

DAY = timedelta(days=1)
WATCHES = ("drift", "missing", "loss", "age", "predates", "overdue")  # kinds of alarm that the monitor raises
LEDGER = "ledger: outcomes of emitted decisions, after costs"
POOLED = "all"

Resolved = tuple[DecisionRecord, Outcome]


@dataclass(frozen=True, slots=True)
class Span:
    """Hold a market day [begin, end) and the time of day [came, went) in which its bars arrived; both aware UTC."""

    begin: datetime
    end: datetime
    came: datetime
    went: datetime

    def holds(self, at: datetime | None) -> bool:
        """Return whether a moment lies in the day, by the clock of the market or by the time of day.

        Requests and alarms of releases up to 0.10 have the time of day, later ones the time of learning.
        """
        return at is not None and (self.begin <= at < self.end or self.came <= at < self.went)


def newest_day(installation: Installation) -> date:
    """Return the newest market day that is over."""
    return (learning_now(installation) - DAY).date()


def span_of(installation: Installation, day: date) -> Span:
    """Return a market day with the time of day in which it was lived through. Raises BadTimes for one still to come."""
    begin = datetime.combine(day, time(), UTC)
    end = begin + DAY
    if begin > (present := learning_now(installation)):
        raise BadTimes(f"{day} is still to come: it is {present:%F %H:%M} UTC in the market. Name an earlier day")
    markets = ingested_markets(installation)
    if not is_market_clocked(markets.values()):
        return Span(begin, end, begin, end)
    came = _first_arrival(installation, markets, begin, end)
    went = _first_arrival(installation, markets, end, None)
    nothing_came = came is None  # a day of the history, or one that the feed has not reached
    return Span(begin, end, came or begin, (end if nothing_came else now()) if went is None or nothing_came else went)


def _first_arrival(
    installation: Installation, symbols: Sequence[str] | Mapping[str, object], begin: datetime, end: datetime | None
) -> datetime | None:
    """Return when the first bar arrived that opens in [begin, end), of any symbol; None without one."""
    last = np.inf if end is None else end.timestamp()
    found = [installation.store.first_arrival(symbol, begin.timestamp(), last) for symbol in symbols]
    return min((at for at in found if at is not None), default=None)


def gather(installation: Installation, day: date) -> JsonObject:
    """Return the report of a market day, JSON-ready. Raises as `span_of`; needs no server."""
    span = span_of(installation, day)
    store = installation.store
    decisions = [record.decision for record in store.decisions(since=span.begin, until=span.end)]
    resolved = [
        (record, outcome)
        for record, outcome in store.resolved(until=span.end, ended_since=span.begin)
        if outcome.resolved_at < span.end
    ]
    symbols = sorted({d.symbol for d in decisions} | {r.decision.symbol for r, _ in resolved})
    alarms = [alarm for alarm in store.alarms(open_only=False) if span.holds(alarm.at)]
    return {
        "day": day.isoformat(),
        "until": span.end.isoformat(),
        "complete": learning_now(installation) >= span.end,
        "lived_through": [span.came.isoformat(), span.went.isoformat()],
        "symbols": {
            symbol: results_of(
                [d for d in decisions if d.symbol == symbol], [r for r in resolved if r[0].decision.symbol == symbol]
            )
            for symbol in symbols
        },
        POOLED: results_of(decisions, resolved),
        "trades": trades_of(decisions, resolved),
        "account_source": installation.params.account.source,
        "drift": [alarm_row(alarm) for alarm in alarms if alarm.kind in WATCHES],
        "alarms": [alarm_row(alarm) for alarm in alarms if alarm.kind not in WATCHES],
        "retrains": [
            {
                "family": each.family, "state": each.state, "reason": each.reason, "detail": each.detail,
                "at": each.at.isoformat(), "finished_at": each.finished_at and each.finished_at.isoformat(),
            }
            for each in reversed(store.retrain_requests())
            if span.holds(each.at) or span.holds(each.finished_at)
        ],
        "promotions": [
            {
                "family": each.family, "action": each.action, "version": each.to_version, "actor": each.actor,
                "reason": each.reason, "at": each.at.isoformat(),
            }
            for each in store.promotions()
            if span.came <= each.at < span.went
        ],
        "experiments": compared(installation, span),
        "data_versions": data_versions(installation, span),
    }  # fmt: skip


def compared(installation: Installation, span: Span) -> list[JsonObject]:
    """Return a row for each experiment and standing arm that ran on the day, with its figures after its newest block
    of the day; null before the first.
    """
    rows, end_s = [], span.end.timestamp()
    for experiment in installation.store.experiments():
        moves = [each for each in installation.store.transitions(experiment.number) if each.as_of_s < end_s]
        ended = moves[-1].as_of_s if moves and moves[-1].state not in RUNNING else np.inf
        if not moves or ended < span.begin.timestamp():
            continue
        blocks = [b for b in installation.store.block_scores(experiment.number) if b.start_s < end_s]
        figures = experiments.evidence_of(experiment, blocks, experiments.progress_on(experiment, blocks))
        kept = {name: figures[name] for name in ("blocks", "gain", "low", "high", "e_value")}
        rows.append({
            "id": experiment.number, "family": experiment.family, "champion": experiment.champion,
            "challenger": experiment.challenger, "state": moves[-1].state, "unit": experiment.unit, **kept,
            "e_value": kept["e_value"] if experiment.alpha else None,
        })  # fmt: skip
    return rows


def results_of(decisions: Sequence[Decision], resolved: Sequence[Resolved]) -> JsonObject:
    """Return counts and results of a day's decisions and of the outcomes that became known on it.

    net_bps     mean a trade after costs, of its entry price, with 95 % interval and n
    equity_bps  sum of size times net result, in basis points of equity
    """
    refused = [d.reasons[0].split(":")[0] for d in decisions if d.action == "NO_TRADE" and d.reasons]
    traded = [(r.decision, o) for r, o in resolved if r.decision.action != "NO_TRADE"]
    net = np.array([o.net_bps for _, o in traded], dtype=np.float64)
    return {
        "decisions": len(decisions),
        "events": sum(d.event is not None for d in decisions),
        "emitted": sum(d.action != "NO_TRADE" for d in decisions),
        "refusals": dict(Counter(refused).most_common()),
        "outcomes": len(resolved),
        "trades_closed": len(traded),
        "won": sum(o.net_bps > 0 for _, o in traded),
        "net_bps": _estimate(net, np.array([d.as_of.timestamp() for d, _ in traded], dtype=np.float64)),
        "equity_bps": float(sum(d.size * o.net_bps for d, o in traded)),
        "cost_bps": float(np.mean([o.cost_bps for _, o in traded])) if traded else None,
        "source": LEDGER,
    }


def _estimate(values: Floats, at_s: Floats) -> JsonObject:
    """Return the mean of (n,) values of the moments at_s (n,) with interval and n, JSON-ready; null without values.

    Trades of one moment count as one unit: markets move together.
    """
    order = np.argsort(at_s, kind="stable")
    found = mean_estimate(values[order], known=at_s[order])
    return dict(json_ready({k: v for k, v in asdict(found).items() if k != "cost_bps"}))


def trades_of(decisions: Sequence[Decision], resolved: Sequence[Resolved]) -> list[JsonObject]:
    """Return a row for each trade that was opened or closed on the day, by when it was opened."""
    ended = {r.decision.id: o for r, o in resolved}
    trades = {r.decision.id: r.decision for r, _ in resolved if r.decision.action != "NO_TRADE"}
    trades |= {d.id: d for d in decisions if d.action != "NO_TRADE"}
    return [
        {
            "symbol": d.symbol, "opened": d.as_of.isoformat(), "action": d.action, "event": d.event, "size": d.size,
            "entry": d.entry, "tier": d.tier,
            "closed": ended[d.id].resolved_at.isoformat() if d.id in ended else None,
            "barrier": ended[d.id].barrier if d.id in ended else None,
            "net_bps": ended[d.id].net_bps if d.id in ended else None,
        }
        for d in sorted(trades.values(), key=lambda d: (d.as_of, d.symbol))
    ]  # fmt: skip


def data_versions(installation: Installation, span: Span) -> list[JsonObject]:
    """Return the data versions that were made in the time of day of the span, oldest first."""
    made = [
        (datetime.fromtimestamp(folder.stat().st_mtime, UTC), folder.name)
        for folder in (installation.versions.iterdir() if installation.versions.is_dir() else ())
        if folder.is_dir()
    ]
    return [
        {"data_hash": name, "at": at.isoformat(timespec="seconds")}
        for at, name in sorted(made)
        if span.came <= at < span.went
    ]


def alarm_row(alarm: Alarm) -> JsonObject:
    """Return an alarm, JSON-ready."""
    cleared = alarm.cleared_at
    return {**asdict(alarm), "at": alarm.at.isoformat(), "cleared_at": cleared and cleared.isoformat()}


def write(installation: Installation, found: JsonObject) -> Path:
    """Write a report as page and as JSON under `<home>/reports/<day>/`; return the page. Files appear whole."""
    folder = installation.settings.home / "reports" / str(found["day"])
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / ".report.json"
    draft.write_text(json.dumps(found, indent=1) + "\n")
    draft.replace(folder / "report.json")
    return write_day_page(folder / "report.html", found)


def summary_line(found: JsonObject) -> str:
    """Return a report in one line."""
    every = found[POOLED]
    return (
        f"{found['day']}: {every['decisions']:,} decisions of {len(found['symbols'])} symbols, {every['emitted']} "
        f"emitted, {every['trades_closed']} trades closed for {every['equity_bps']:+.2f} bps of equity "
        f"({every['source']}), {len(found['drift'])} of drift, {len(found['retrains'])} retrains, "
        f"{len(found['promotions'])} lines of promotion, {len(found['experiments'])} experiments, "
        f"{len(found['alarms'])} alarms"
    )


@flow(name="report", flow_run_name=run_name("report {day}"), log_prints=True)
def report(day: str | None = None) -> JsonObject:
    """Write the report of a market day. Return it with its page.

    Args:
        day: The market day, such as 2024-01-31; the newest that is over if none is given.
    """
    installation = open_installation()
    with step("report: gather"):
        found = gather(installation, date.fromisoformat(day) if day else newest_day(installation))
    page = write(installation, found)
    create_markdown_artifact(key="daily-report", markdown=f"{summary_line(found)}\n\npage: {page}")
    report_progress(summary_line(found))
    return {**found, "page": str(page)}
