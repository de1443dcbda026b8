"""The named market source of this installation, set up by its parameters and settings."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from flows.support.installation import Installation, now
from flows.support.progress import report_progress
from pipelines.data.readers.context import merge_feeds
from pipelines.data.readers.exchange import Backfill
from pipelines.data.series import SeriesFile
from pipelines.data.sources import MarketSource, Records, make_source, read_books_and_context
from pipelines.errors import BadTimes, BadValues
from pipelines.params import Params
from pipelines.settings import Settings


def market_source(
    installation: Installation, source: str, path: str | None, since: datetime | None, venue: str | None = None,
    market: str | None = None,
) -> MarketSource:  # fmt: skip
    """Return the source of that name, ready to fetch.

    path   of a recorded file; since: first bar requested from an exchange, None = data.retention_days ago
    venue, market  where a recorded file comes from; the other sources know it
    """
    plan = exchange_plan(installation.params, installation.settings, since) if source == "exchange" else None
    file = Path(path) if path else None
    return make_source(source, spec=installation.params.simulator, path=file, plan=plan, venue=venue, market=market)


def market_records(
    source: MarketSource, symbol: str, context: Sequence[str], as_of: datetime, series: Sequence[SeriesFile] = ()
) -> Records:
    """Return books and context known at `as_of`: of the source itself, of the context files, and named series."""
    books, feed = source.records(symbol, as_of)
    recorded, from_files = read_books_and_context([Path(file) for file in context], symbol, as_of, series)
    return recorded if books is None else books, merge_feeds([each for each in (feed, from_files) if each is not None])


def exchange_plan(params: Params, settings: Settings, since: datetime | None) -> Backfill:
    """Return which exchange to fetch from, from when on, and how fast; `since` as of `market_source`."""
    return Backfill(
        params.data.exchange,
        since or days_ago(params.data.retention_days),
        settings.exchange_pages,
        settings.exchange_url,
        settings.exchange_pause_ms,
        report_progress,
    )


def days_ago(days: int) -> datetime:
    """Return midnight UTC so many days ago, so that every run of a day requests the same history."""
    return (now() - timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0)


def requested_since(source: str, days: int | None, since: datetime | None, live_days: int) -> datetime | None:
    """Return the first bar that `--days` or `--since` requests; None if neither is given.

    Raises BadValues if both are, or either for a source other than an exchange; BadTimes if it leaves no history.
    """
    if days is None and since is None:
        return None
    if source != "exchange":
        raise BadValues(
            f"--days and --since are for --source exchange; source {source!r} gives all it has. Leave them out."
        )
    if days is not None and since is not None:
        raise BadValues(f"--days {days} and --since {since:%F} say the same thing twice. Give one.")
    first = since or days_ago(days or 0)
    if first > days_ago(live_days + 1):
        raise BadTimes(
            f"from {first:%F %H:%M} UTC on there is no history before the last {live_days} days, which are for the "
            "live service. Request more days, or lower data.live_days in params.yaml."
        )
    return first
