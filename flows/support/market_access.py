"""Where this installation's bars come from: the named source, with what params and settings say of it."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from flows.support.installation import Installation, now
from flows.support.progress import report_progress
from pipelines.data.readers.context import merge_feeds
from pipelines.data.readers.exchange import Backfill
from pipelines.data.sources import MarketSource, Records, make_source, read_books_and_context
from pipelines.errors import BadTimes, BadValues
from pipelines.params import Params
from pipelines.settings import Settings


def market_source(installation: Installation, source: str, path: str | None, since: datetime | None) -> MarketSource:
    """since: first bar asked of an exchange; None = data.retention_days ago."""
    plan = exchange_plan(installation.params, installation.settings, since) if source == "exchange" else None
    return make_source(source, spec=installation.params.simulator, path=Path(path) if path else None, plan=plan)


def market_records(source: MarketSource, symbol: str, context: Sequence[str], as_of: datetime) -> Records:
    """Books and context known at `as_of`: those that come with the source, and those of the files beside it."""
    books, feed = source.records(symbol, as_of)
    recorded, told = read_books_and_context([Path(file) for file in context], symbol, as_of)
    return recorded if books is None else books, merge_feeds([each for each in (feed, told) if each is not None])


def exchange_plan(params: Params, where: Settings, since: datetime | None) -> Backfill:
    return Backfill(
        params.data.exchange,
        since or days_ago(params.data.retention_days),
        where.exchange_pages,
        where.exchange_url,
        where.exchange_pause_ms,
        report_progress,
    )


def days_ago(days: int) -> datetime:
    """Midnight UTC, so that every run of a day asks for the same history."""
    return (now() - timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0)


def requested_since(source: str, days: int | None, since: datetime | None, live_days: int) -> datetime | None:
    """First bar that `--days` or `--since` asks for; None if neither is given.

    Raises BadValues if both are, or either for a source other than an exchange; BadTimes if it leaves no history.
    """
    if days is None and since is None:
        return None
    if source != "exchange":
        raise BadValues(f"--days and --since are for --source exchange; source {source!r} gives all it has.")
    if days is not None and since is not None:
        raise BadValues(f"--days {days} and --since {since:%F} say the same thing twice. Give one.")
    first = since or days_ago(days or 0)
    if first > days_ago(live_days + 1):
        raise BadTimes(
            f"from {first:%F %H:%M} UTC on there is no history before the last {live_days} days, kept for the live "
            "service. Ask for more, or lower data.live_days in params.yaml."
        )
    return first
