"""The named market source of this installation, set up by its parameters and settings."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from flows.support.holdings import held_market, require_same_market
from pipelines.contracts import Floats
from pipelines.data.calendars import CALENDARS, named_calendar
from pipelines.data.findings import moments_of
from pipelines.data.readers.context import merge_feeds
from pipelines.data.readers.reading import FileOptions
from pipelines.data.schemas import epoch_seconds
from pipelines.data.series import SeriesFile
from pipelines.data.sessions import at_sessions, market_grid
from pipelines.data.sources import FileSource, MarketSource, Records, make_source, read_books_and_context
from pipelines.data.symbols import parse_symbol
from pipelines.data.timeframes import Grid
from pipelines.errors import BadTimes, BadValues
from pipelines.params import Params
from pipelines.settings import Settings

if TYPE_CHECKING:  # it imports the store, which a look at a file needs not; nor does it need an exchange
    from flows.support.installation import Installation
    from pipelines.data.readers.exchange import Backfill


def market_source(
    installation: "Installation", source: str, path: str | list[str] | None, since: datetime | None,
    venue: str | None = None, market: str | None = None, options: FileOptions | None = None,
) -> MarketSource:  # fmt: skip
    """Return the source of that name, ready to fetch.

    path   of recorded files; options: what they do not show
    since  first bar requested from an exchange, None = data.retention_days ago
    venue, market  where a recorded file comes from; the other sources know it
    """
    plan = exchange_plan(installation.params, installation.settings, since) if source == "exchange" else None
    files = [Path(each) for each in ([path] if isinstance(path, str) else path or [])]
    return make_source(
        source, spec=installation.params.simulator, path=files or None, plan=plan, venue=venue, market=market,
        options=options,
    )  # fmt: skip


def grid_of_file(source: MarketSource, frame: pd.DataFrame, sessions: str | None) -> Grid:
    """Return the grid of a source's bars by themselves: as stated, as the source knows it, or as the bars show it.

    sessions  one of CALENDARS or a file of hours, as a person states it; None = not stated
    """
    read_as = source.read_as if isinstance(source, FileSource) else None
    calendar = named_calendar(sessions) if sessions else None
    if read_as is None:
        return market_grid(frame, calendar)
    return market_grid(frame, calendar, read_as.timeframe, read_as.no_bar == "no-trade")


def placed(source: MarketSource, frame: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Return a file's bars (schemas.LAYOUT) where the grid has them: open and close of each by the hours of its market.

    A date without a time is that of a session (`sessions.at_sessions`). A bar is known at its close, unless the file
    says when it was known. Bars of other sources are returned as they are
    """
    if grid.fixed or not isinstance(source, FileSource) or source.read_as is None:
        return frame
    opens = epoch_seconds(frame["open_time"])
    if source.session_dates:
        opens = at_sessions(opens, grid)
        frame = frame.assign(open_time=moments_of(opens).array)
    if "known_at" in source.read_as.columns:
        return frame
    return frame.assign(known_at=moments_of(grid.closes(opens)).array)


def grid_of_market(
    workspace: Path, source: MarketSource, symbol: str, frame: pd.DataFrame, sessions: str | None
) -> Grid:
    """Return the grid of a market: the one on which the installation of this workspace holds it, else that of the bars.

    Raises  as require_same_market, if the bars are of another market, timeframe or grid; BadValues for other sessions
    """
    held = held_market(workspace)
    if held is None:
        return grid_of_file(source, frame, sessions)
    frame = placed(source, frame, held.grid)
    grid = grid_of_file(source, frame, sessions)
    require_same_market(held, parse_symbol(symbol), grid, epoch_seconds(frame["open_time"]))
    if sessions and grid.calendar != held.grid.calendar:
        raise BadValues(
            f"--sessions {sessions}: this home holds {held.describe()}, {held.grid.calendar.describe()}. Leave the "
            "option out, or begin another home: BELLWETHER_HOME=FOLDER bellwether run …"
        )
    return held.grid


def check_offer(
    workspace: Path, source: str, symbol: str, paths: Sequence[Path], sessions: str | None, options: FileOptions
) -> None:
    """Raise if files cannot be read, or this installation holds another market than is offered.

    Raises  as grid_of_market, and as the files source
    """
    held = held_market(workspace)
    require_same_market(held, symbol)
    if paths:
        origin = make_source(source, path=paths, options=options)
        frame = origin.fetch(symbol, as_of=datetime.now(UTC), ingested_at=datetime.now(UTC))
        grid_of_market(workspace, origin, symbol, frame, sessions)


def resolved_sessions(stated: str | None) -> str | None:
    """Return --sessions as other processes can read it: a name, or the whole path of a file. Raises if neither."""
    if stated is None or stated in CALENDARS:
        return stated
    named_calendar(stated)
    return str(Path(stated).resolve())


def history_end(opens: Floats, grid: Grid, live_days: int) -> float:
    """Return the open of the trading day from which on bars are for the live service, epoch seconds; NaN without a bar.

    opens  (n,) of all bars, ascending: the live service has the last `live_days` trading days before that of the last
           bar, and that one
    """
    if len(opens) == 0:
        return np.nan
    days = grid.at("1d")
    return float(days.opens(days.slots(opens[-1:]) - live_days)[0])


def market_records(
    source: MarketSource, symbol: str, context: Sequence[str], as_of: datetime, series: Sequence[SeriesFile] = ()
) -> Records:
    """Return books and context known at `as_of`: of the source itself, of the context files, and named series."""
    books, feed = source.records(symbol, as_of)
    recorded, from_files = read_books_and_context([Path(file) for file in context], symbol, as_of, series)
    return recorded if books is None else books, merge_feeds([each for each in (feed, from_files) if each is not None])


def exchange_plan(params: Params, settings: Settings, since: datetime | None) -> "Backfill":
    """Return which exchange to fetch from, from when on, and how fast; `since` as of `market_source`."""
    from flows.support.progress import report_progress  # these two only for an exchange, see above
    from pipelines.data.readers.exchange import Backfill

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
    return (datetime.now(UTC) - timedelta(days=days)).replace(hour=0, minute=0, second=0, microsecond=0)


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
            f"live service. Request at least {live_days + 2} days."
        )
    return first
