"""The report of a market day as one self-contained page."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipelines.contracts import JsonObject
from pipelines.evaluation.document import write_document

_RESULTS = ("symbol", "decisions", "events", "emitted", "closed", "won", "net bps a trade [95 %]", "bps of equity")


def write_day_page(path: Path, found: JsonObject) -> Path:
    """Write the page of a report as `flows.report.gather` returns it, and return its path. Needs no network."""
    every, title = found["all"], f"Report of {found['day']}"
    running = "" if found["complete"] else " The day is not over."
    body = (
        f"<p>{every['decisions']:,} decisions of {len(found['symbols'])} symbols, "
        f"{every['emitted']} emitted, {every['trades_closed']} trades closed.{running} "
        f"<span class='less'>Times are UTC, of the market. Its bars arrived from "
        f"{_moment(found['lived_through'][0])} to {_moment(found['lived_through'][1])} by the time of day.</span></p>"
        f"<h2>Results</h2>{_results(found)}"
        f"<p class='less'>Source: {escape(every['source'])}. Limits rest on the account of source "
        f"{escape(found['account_source'])}.</p>"
        + _section("Trades", found["trades"])
        + _section("Reasons that refused", [{"reason": k, "decisions": n} for k, n in every["refusals"].items()])
        + _section("Drift", found["drift"])
        + _section("Retrains", found["retrains"])
        + _section("Promotions", found["promotions"])
        + _section("Experiments and standing arms", found["experiments"])
        + _section("Alarms", found["alarms"])
        + _section("Data versions", found["data_versions"])
    )
    return write_document(path, title, body)


def _results(found: JsonObject) -> str:
    """Return the table of results: a row a symbol, then all together."""
    rows = [*found["symbols"].items(), *([("all", found["all"])] if len(found["symbols"]) != 1 else [])]
    head = "".join(f"<th>{escape(name)}</th>" for name in _RESULTS)
    return f"<div class='wide'><table><tr>{head}</tr>{''.join(_result(*row) for row in rows)}</table></div>"


def _result(symbol: str, row: Mapping[str, Any]) -> str:
    """Return one row of the table of results."""
    counts = (row["decisions"], row["events"], row["emitted"], row["trades_closed"], row["won"])
    cells = [f"{count:,}" for count in counts] + [_estimate(row["net_bps"]), f"{row['equity_bps']:+.2f}"]
    return f"<tr><td>{escape(symbol)}</td>{''.join(f'<td class=number>{escape(cell)}</td>' for cell in cells)}</tr>"


def _estimate(estimate: Mapping[str, Any]) -> str:
    """Return an estimate as "value [low, high], n"; a dash without rows, no interval with too few."""
    if estimate["value"] is None:
        return "–"
    known = estimate["low"] is not None and estimate["high"] is not None
    bounds = f" [{estimate['low']:+.1f}, {estimate['high']:+.1f}]" if known else " (too few for an interval)"
    return f"{estimate['value']:+.2f}{bounds}, n {estimate['n']:,}"


def _section(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a heading with a table of rows, or the word none."""
    if not rows:
        return f"<h2>{escape(title)}</h2><p class='less'>none</p>"
    names = [name for name in rows[0] if name != "id"]
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{escape(_cell(row[name]))}</td>' for name in names)}</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def _cell(value: object) -> str:
    """Return a value as a cell: a dash for none, four digits of a number, a moment to the minute."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return _moment(value) if isinstance(value, str) and value[4:5] == "-" and "T" in value else str(value)


def _moment(text: str) -> str:
    """Return a moment in ISO 8601 to the minute."""
    return text[:16].replace("T", " ")
