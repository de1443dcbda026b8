"""What is offered of a market, and its source, set up by the parameters and settings of this installation."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from pydantic import AwareDatetime, BaseModel, ConfigDict, field_validator

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


PUSHED = "push"  # bars that others send to the service; their history comes from files


class MarketOffer(BaseModel):
    """Say where the data of one market come from; it goes through JSON unchanged."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    symbol: str
    """Any form of its name; kept as the canonical one."""
    source: str = "simulator"
    """simulator | files | exchange | push."""
    paths: tuple[str, ...] = ()
    """Whole paths of recorded files: other processes read them too. None of a market that is held and grows no more."""
    since: AwareDatetime | None = None
    """First bar requested from an exchange; empty = data.retention_days ago."""
    context: tuple[str, ...] = ()
    """Files of context (funding, fear and greed …), or the folder of a recorded book."""
    venue: str | None = None
    """Where files were recorded, such as binance; with `market` the row of `costs` that the market pays."""
    market: str | None = None
    """Which of the venue's markets, such as spot."""
    series: tuple[SeriesFile, ...] = ()
    """Files of named series."""
    events: str | None = None
    """Calendar of events, as a file."""
    sessions: str | None = None
    """When the market is open: a name of calendars.CALENDARS or a file of hours; empty = as the bars show it."""
    options: FileOptions = FileOptions()
    """What files do not show: time zone, timeframe, what a time stamps."""

    @field_validator("symbol")
    @classmethod
    def _canonical(cls, symbol: str) -> str:
        """Return the canonical name. Raises UnknownName."""
        return parse_symbol(symbol)

    @property
    def source_of_history(self) -> str:
        """Return the name of the source that bars up to now are read from."""
        return "files" if self.source == PUSHED else self.source

    @property
    def gives_bars(self) -> bool:
        """Return whether there is anything to read: files need paths."""
        return self.source_of_history != "files" or bool(self.paths)


def market_source(installation: "Installation", offer: MarketOffer) -> MarketSource:
    """Return the source of an offered market, ready to fetch. Raises as `make_source`."""
    plan = (
        exchange_plan(installation.params, installation.settings, offer.since) if offer.source == "exchange" else None
    )
    return make_source(
        offer.source_of_history, spec=installation.params.simulator, path=[Path(each) for each in offer.paths] or None,
        plan=plan, venue=offer.venue, market=offer.market, options=offer.options,
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

    Raises  BadTimes for another timeframe, phase or calendar than the one held; BadValues for other sessions
    """
    held = held_market(workspace, parse_symbol(symbol))
    if held is None:
        return grid_of_file(source, frame, sessions)
    frame = placed(source, frame, held.grid)
    grid = grid_of_file(source, frame, sessions)
    require_same_market(held, grid, epoch_seconds(frame["open_time"]))
    if sessions and grid.calendar != held.grid.calendar:
        raise BadValues(
            f"--sessions {sessions}: this home holds {held.describe()}, {held.grid.calendar.describe()}. Leave the "
            "option out, or begin another home: BELLWETHER_HOME=FOLDER bellwether run …"
        )
    return held.grid


def check_offer(workspace: Path, offer: MarketOffer) -> None:
    """Raise if offered files cannot be read, or hold other bars of a symbol than this installation does.

    A symbol that is not held is an addition to the universe. Raises  as grid_of_market, and as the files source
    """
    if offer.paths:
        files = [Path(each) for each in offer.paths]
        origin = make_source(offer.source_of_history, path=files, options=offer.options)
        frame = origin.fetch(offer.symbol, as_of=datetime.now(UTC), ingested_at=datetime.now(UTC))
        grid_of_market(workspace, origin, offer.symbol, frame, offer.sessions)


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
