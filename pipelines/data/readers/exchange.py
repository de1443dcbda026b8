"""Backfill from exchanges: closed bars, page by page, stored on disk as they come; the next venue where one fails.

Each page is requested from the first missing bar, and is on disk before the next request: a second run requests only
the missing bars, from the newest page on if that one was short. Stored pages are used whichever venue of the list they
came from. Slots between two pages count as empty only when the venue skips them in two requests.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from pipelines.contracts import BAR_WIDTH, CLOSE, DAY_S, OPEN_TIME, Floats, JsonObject, utc
from pipelines.data.readers.pages import Page, folder_of, read_page, write_page
from pipelines.data.readers.venues import Venue, check_venue
from pipelines.data.timeframes import seconds
from pipelines.errors import UnknownName, VenueDown
from pipelines.market_params import ExchangeParams

SETTLE_S = 2  # a candle may still be corrected just after its close
PROGRESS_EVERY_S = 5.0
DAY = int(DAY_S)


@dataclass(frozen=True)
class Backfill:
    """Describe a backfill, except its symbol.

    since     first bar (aware); where a market is younger, its own first bar
    pages     folder of the page store
    gateway   put before each URL (Settings.exchange_url); pause_ms: at least this between requests
    say       called with a line of progress every few seconds, and at once when a venue fails
    """

    params: ExchangeParams
    since: datetime
    pages: Path
    gateway: str = ""
    pause_ms: int = 0
    say: Callable[[str], None] = lambda line: None
    sleep: Callable[[float], None] = time.sleep

    def check(self) -> None:
        """Check venues and timeframe without a request. Raises UnknownName."""
        seconds(self.params.timeframe)
        for venue in self.params.venues:
            check_venue(venue, self.params.timeframe)


def backfill(plan: Backfill, symbol: str, until: datetime) -> list[Page]:
    """Return bars of `symbol` (BASE/QUOTE) that closed in [since, until], in time order, in parts of one venue each.

    Venues are tried in order of preference; when one fails for good the next continues from the first missing bar. A
    part that follows another venue's has `seam_bps`: how far its venue's close of the last bar before it was from the
    other's, in 1/10,000; None where that could not be measured.
    Raises   VenueDown if no venue gives the rest, UnknownName if none has the symbol. Bars received so far stay stored.
    """
    step = seconds(plan.params.timeframe)
    start = -int(-plan.since.timestamp() // step) * step
    end = int(until.timestamp() // step) * step
    series = _Series(plan, symbol, step, start, end)
    failed: dict[str, Exception] = {}
    if series.cursor < end:
        plan.check()
        stored = "" if series.cursor == start else f"bars are stored to {utc(series.cursor):%F %H:%M} UTC, "
        plan.say(
            f"{symbol}: {stored}requesting {utc(series.cursor):%F %H:%M} to {utc(end):%F %H:%M} UTC from exchanges"
        )
    for name in plan.params.venues:
        if series.cursor >= end:
            break
        try:
            with Venue(name, plan.params.timeframe, plan.gateway, plan.pause_ms, plan.sleep) as venue:
                series.fill(venue)
            break
        except (VenueDown, UnknownName) as error:
            failed[name] = error
            plan.say(f"{symbol}: {name} failed at {utc(series.cursor):%F %H:%M} UTC: {error}")
    else:
        if series.cursor < end:
            raise _all_failed(plan, symbol, series, failed)
    return series.parts()


def describe(parts: list[Page]) -> JsonObject:
    """Return the venue of each stretch of bars, and the changes of venue. JSON-ready, the same for the same bars.

    close_difference_bps: the new venue's close against the old one's of the same bar; None if one has no such bar
    """
    segments: list[JsonObject] = []
    changes: list[JsonObject] = []
    for part in parts:
        if len(part.bars) == 0:
            continue
        first, last = (utc(t).isoformat() for t in part.bars[[0, -1], OPEN_TIME])
        before = segments[-1] if segments else None
        if before is not None and (before["venue"], before["market"]) == (part.venue, part.market):
            before["last"], before["bars"] = last, before["bars"] + len(part.bars)
            continue
        if before is not None:
            changes.append(
                {"at": first, "from": before["venue"], "to": part.venue, "close_difference_bps": part.seam_bps}
            )
        segments.append(
            {"venue": part.venue, "market": part.market, "first": first, "last": last, "bars": len(part.bars)}
        )
    return {"segments": segments, "venue_changes": changes}


class _Series:
    """Hold one symbol's pages: those on disk, and those that are fetched."""

    def __init__(self, plan: Backfill, symbol: str, step: int, start: int, end: int) -> None:
        """Read the stored pages of [start, end), epoch seconds; `step` seconds a bar."""
        self.plan, self.symbol, self.step, self.start, self.end = plan, symbol, step, start, end
        self.pages: list[Page] = []
        for venue in plan.params.venues:  # of two pages of the same bar the preferred venue's comes first
            folder = folder_of(plan.pages, venue, symbol, plan.params.timeframe)
            self.pages += [read_page(path) for path in sorted(folder.glob("*.parquet"))]
        self.cursor = start  # the first slot without an answer
        self._advance(end)

    def _advance(self, end: int) -> list[Page]:
        """Move the cursor over the pages that contain it, up to `end`; return them, cut so that none overlap."""
        passed = []
        while self.cursor < end and (page := self._page_at(self.cursor)):
            passed.append(page.cut(self.cursor, end))
            self.cursor = min(page.end, end)
        return passed

    def _page_at(self, moment: int) -> Page | None:
        """Return the page that contains `moment` (epoch seconds), None if none does."""
        return next((page for page in self.pages if page.start <= moment < page.end), None)

    def parts(self) -> list[Page]:
        """Return the pages from the start on, cut so that none overlap."""
        self.cursor = self.start
        return self._advance(self.end)

    def fill(self, venue: Venue) -> None:
        """Fetch every missing bar that `venue` has. Raises VenueDown, or UnknownName if it has no such market."""
        market = venue.market(self.symbol)
        # the local clock may be fast: a bar is closed when the venue's clock is past it
        end = min(self.end, int(min(venue.now() - SETTLE_S, self.end) // self.step) * self.step)
        size, reported = venue.page_bars(market) * self.step, time.monotonic()
        short = next(
            (p for p in self.pages if p.end == self.cursor and p.venue == venue.name and p.end - p.start < size), None
        )
        while self.cursor < end:
            stop = min((page.start for page in self.pages if page.start > self.cursor), default=end)
            stop = min(stop, end)
            page = self._page(venue, market, short, stop)
            short = None  # refilled once, as the newest of the last run
            if page is None:
                break
            self._store(page)
            self._advance(end)
            if time.monotonic() - reported > PROGRESS_EVERY_S:
                reported = time.monotonic()
                share = (self.cursor - self.start) / (self.end - self.start)
                self.plan.say(
                    f"{self.symbol} from {venue.name}: to {utc(self.cursor):%F %H:%M} UTC, {share:.0%} of the period"
                )
        silent = (end - self.cursor) // self.step
        if silent > self.plan.params.silence_bars:
            raise VenueDown(
                f"{venue.name} answers, but has none of the last {silent:,} bars of {market} to "
                f"{utc(end):%F %H:%M} UTC (limit data.exchange.silence_bars: {self.plan.params.silence_bars})"
            )

    def _page(self, venue: Venue, market: str, short: Page | None, stop: int) -> Page | None:
        """Return the next page with a bar from the cursor on, before `stop`: `short` extended if given; else None."""
        if short is not None:
            fresh, _ = self._request(venue, market, short.start, stop)
            if len(fresh) and fresh[0, OPEN_TIME] <= self.cursor <= fresh[-1, OPEN_TIME]:
                bars = _joined(fresh, short.bars)
                return Page(venue.name, market, short.start, self._after(bars), bars, short.seam_bps)
        since, bars = self.cursor, np.empty((0, BAR_WIDTH))
        while len(bars) == 0 and since < stop:
            bars, covered = self._request(venue, market, since, stop)
            if len(bars) == 0 or bars[0, OPEN_TIME] >= since + self.step:  # a hole, or a hiccup: request again
                bars = _joined(bars, self._request(venue, market, since, stop)[0])
            since += covered
            if len(bars) == 0 and since < stop:
                since = self._next_traded(venue, market, since, stop)
        if len(bars):
            return Page(venue.name, market, self.cursor, self._after(bars), bars, self._seam(venue, market))
        if stop < self.end and self._page_at(stop):  # nothing, and bars are known after it
            return Page(venue.name, market, self.cursor, stop, bars)
        return None

    def _next_traded(self, venue: Venue, market: str, since: int, stop: int) -> int:
        """Return where to continue after an empty page (epoch seconds); `stop` if no later day has a bar.

        It is the first day from `since` on that has a daily bar, so that a long silence, or a market younger than the
        period, costs few requests.
        """
        day = since // DAY * DAY
        if self.step >= DAY or not venue.has("1d"):
            return since
        limit = min(venue.page_bars(market), (stop - day) // DAY + 1)
        for _ in range(2):  # as with bars, an empty answer counts only twice
            days = venue.page(market, day, limit, "1d")[:, OPEN_TIME]
            days = days[(days >= day) & (days < stop)]
            if len(days):
                return max(since, int(days.min()))
        return min(day + limit * DAY, stop)

    def _request(self, venue: Venue, market: str, since: int, stop: int) -> tuple[Floats, int]:
        """Return (bars that open at `since` or later and close by `stop`, ascending and unique; seconds requested)."""
        limit = min(venue.page_bars(market), (stop - since) // self.step)
        bars = venue.page(market, since, limit)
        bars = bars[(bars[:, OPEN_TIME] >= since) & (bars[:, OPEN_TIME] + self.step <= stop)]
        return _joined(bars, bars[:0]), limit * self.step

    def _after(self, bars: Floats) -> int:
        """Return the first slot after the last bar, epoch seconds."""
        return int(bars[-1, OPEN_TIME] // self.step + 1) * self.step

    def _seam(self, venue: Venue, market: str) -> float | None:
        """Return this venue's close over that of the venue before, of the last bar before the cursor, in bps."""
        before = self._page_at(self.cursor - self.step) if self.cursor > self.start else None
        if before is None or len(before.bars) == 0 or before.venue == venue.name:
            return None
        theirs = before.cut(before.start, self.cursor).bars[-1]
        ours = venue.page(market, int(theirs[OPEN_TIME]), 1)
        same = ours[ours[:, OPEN_TIME] == theirs[OPEN_TIME]]
        if len(same) == 0 or not theirs[CLOSE] > 0.0 or not np.isfinite(same[0, CLOSE]):
            return None
        return round(float(same[0, CLOSE] / theirs[CLOSE] - 1.0) * 1e4, 4)

    def _store(self, page: Page) -> None:
        """Write a page to disk, then add it to the list in place of the page it extends."""
        write_page(page, folder_of(self.plan.pages, page.venue, self.symbol, self.plan.params.timeframe))
        self.pages = [p for p in self.pages if (p.venue, p.start) != (page.venue, page.start)]
        self.pages.append(page)


def _joined(first: Floats, second: Floats) -> Floats:
    """Return the rows of both, ascending by open time; of two with the same time the one from `first`."""
    both = np.concatenate([first, second])
    _, at = np.unique(both[:, OPEN_TIME], return_index=True)  # the first of equals
    return both[at]


def _all_failed(plan: Backfill, symbol: str, series: _Series, failed: dict[str, Exception]) -> Exception:
    """Return the error for a backfill that every venue failed."""
    why = "; ".join(str(error) for error in failed.values())
    if all(isinstance(error, UnknownName) for error in failed.values()):
        return UnknownName(f"no venue has {symbol}: {why}. Choose another symbol, or other data.exchange.venues.")
    stored = sum(len(page.bars) for page in series.parts())
    return VenueDown(
        f"{symbol}: no venue gives the {plan.params.timeframe} bars from {utc(series.cursor):%F %H:%M} to "
        f"{utc(series.end):%F %H:%M} UTC. {why}. Stored: {stored:,} bars before that; the same command continues. "
        "Check the network (HTTPS_PROXY, BELLWETHER_EXCHANGE_URL), name other data.exchange.venues in params.yaml, "
        "or give recorded bars with --source files."
    )
