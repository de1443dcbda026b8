"""What a run of the monitor found, in words: one line, a page with a table of the markets, and figures by market."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from flows.support import promotion
from flows.support.installation import Installation
from flows.support.live_outcomes import Resolved
from flows.support.progress import report_progress
from flows.support.watches import FamilyWatch
from pipelines.contracts import JsonObject
from pipelines.families import DECISION_FAMILY
from pipelines.monitoring.family_outcomes import LiveLoss


def summary_of(watches: Sequence[FamilyWatch], tripped: str | None, faulty: Sequence[str] = ()) -> str:
    """Return one line on drift, share missing, loss and the breaker `model`; equal findings of families once.

    faulty  families whose watch met a fault
    """
    parts: dict[str, list[str]] = {}
    for watched in watches:
        parts.setdefault("; ".join(findings(watched)), []).append(watched.model.family)
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
    shown = alarming or ([watched.worst] if watched.worst else [])
    lines = []
    for market in shown:
        name = f"{market.symbol}: " if several else ""
        lines.append(f"{name}{market.drift.reason}")
        if market.drift.missing_alarm:
            lines.append(f"{name}{market.drift.missing_reason}")
    named = {market.symbol for market in shown}
    quiet = [m for m in watched.markets if m.symbol not in named]
    judged = [m.symbol for m in quiet if m.drift.alarm is not None]
    if judged:
        lines.append(f"no drift in {', '.join(judged)}")
    if waiting := [m.symbol for m in quiet if m.drift.alarm is None]:
        lines.append(f"not judged yet: {', '.join(waiting)}")
    return lines + [f"{symbol} not watched: {why}" for symbol, why in watched.left_out.items()]


def publish_summary(
    installation: Installation, summary: str, resolved: Mapping[str, Resolved | str], losses: Sequence[LiveLoss],
    pages: Mapping[str, Path], compared: Sequence[str] = (),
) -> None:  # fmt: skip
    """Write summary, outcomes by market, live losses, experiments and drift reports to the run's artifacts and progress
    lines."""
    rows = []
    for symbol, found in resolved.items():
        counts = f"{found.events} | {found.families}" if isinstance(found, Resolved) else f"{found} |"
        rows.append(f"| {symbol} | {counts} |")
    lines = [
        f"# {', '.join(resolved)}", "", summary, "",
        "| market | outcomes of events | of the families' labels |", "|---|---|---|", *rows, "",
        "## Live loss", "",
        *([f"- {each.describe()}" for each in losses] or ["no outcome of a family's own label yet"]), "",
        "## Experiments", "",
        *([f"- {each}" for each in compared] or ["none ended or began; `bellwether ab list` shows those that run"]), "",
        "## Drift reports", "",
        *([f"- {family}: {page}" for family, page in pages.items()] or ["no block was judged yet"]),
    ]  # fmt: skip
    create_markdown_artifact(key="monitor", markdown="\n".join(lines))
    known, now_found = installation.store.outcome_count(), events_in(resolved)
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
