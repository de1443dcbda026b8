"""Backfill from exchanges: closed bars, page by page, kept on disk as they come; the next venue where one fails.

Each page is asked from the first bar that is missing, and is on disk before the next is asked for: a second run asks
only for what is missing, from the newest page on if that one was short. Pages already kept are used whichever venue of
the list they came from. Slots between two pages count as empty only when the venue, asked twice, goes on after them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.contracts import BAR_WIDTH, CLOSE, OPEN_TIME, Floats, utc
from pipelines.data.readers.pages import Page, folder_of, read_page, write_page
from pipelines.data.timeframes import seconds
from pipelines.data.readers.venues import Venue, check_venue
from pipelines.errors import UnknownName, VenueDown
from pipelines.params import ExchangeParams

SETTLE_S = 2  # a candle may still be mended just after its close
SAY_EVERY_S = 5.0
DAY = 86400


@dataclass(frozen=True)
class Backfill:
    """What an exchange is asked for besides a symbol.

    since     first bar (aware); where a market is younger, its own first bar
    pages     folder of the page store
    gateway   put before each URL (Settings.exchange_url); pause_ms: at least this between requests
    say       called with a line of progress every few seconds, and at once when a venue is left
    """

    params: ExchangeParams
    since: datetime
    pages: Path
    gateway: str = ""
    pause_ms: int = 0
    say: Callable[[str], None] = lambda line: None
    sleep: Callable[[float], None] = time.sleep

    def check(self) -> None:
        """Refuse without a request what no venue could give. Raises UnknownName."""
        seconds(self.params.timeframe)
        for venue in self.params.venues:
            check_venue(venue, self.params.timeframe)


def backfill(plan: Backfill, symbol: str, until: datetime) -> list[Page]:
    """Bars of `symbol` (BASE/QUOTE) that closed in [since, until], in time order, cut into parts of one venue each.

    Venues are asked in the order of preference; when one fails for good the next goes on from the first missing bar. A
    part that follows another venue's has `seam_bps`: how far its venue's close of the last bar before it was from the
    other's, in 1/10,000; None where that could not be measured.
    Raises   VenueDown if no venue gives the rest, UnknownName if none has the symbol. What came is kept.
    """
    step = seconds(plan.params.timeframe)
    start = -int(-plan.since.timestamp() // step) * step
    end = int(until.timestamp() // step) * step
    series = _Series(plan, symbol, step, start, end)
    failed: dict[str, Exception] = {}
    if series.cursor < end:
        plan.check()
        kept = "" if series.cursor == start else f"bars are kept to {utc(series.cursor):%F %H:%M} UTC, "
        plan.say(f"{symbol}: {kept}asking exchanges for {utc(series.cursor):%F %H:%M} to {utc(end):%F %H:%M} UTC")
    for name in plan.params.venues:
        if series.cursor >= end:
            break
        try:
            with Venue(name, plan.params.timeframe, plan.gateway, plan.pause_ms, plan.sleep) as venue:
                series.fill(venue)
            break
        except (VenueDown, UnknownName) as error:
            failed[name] = error
            plan.say(f"{symbol}: {name} is left at {utc(series.cursor):%F %H:%M} UTC: {error}")
    else:
        if series.cursor < end:
            raise _told(plan, symbol, series, failed)
    return series.parts()


def describe(parts: list[Page]) -> dict[str, Any]:
    """Which bars are of which venue, and what changed from one to the next. JSON-ready, the same for the same bars.

    close_difference_bps: the new venue's close against the old one's of the same bar; None if one has no such bar
    """
    segments: list[dict[str, Any]] = []
    changes: list[dict[str, Any]] = []
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
    """One symbol's pages: those on disk, and those that come."""

    def __init__(self, plan: Backfill, symbol: str, step: int, start: int, end: int) -> None:
        self.plan, self.symbol, self.step, self.start, self.end = plan, symbol, step, start, end
        self.pages: list[Page] = []
        for venue in plan.params.venues:  # of two pages of the same bar the preferred venue's comes first
            folder = folder_of(plan.pages, venue, symbol, plan.params.timeframe)
            self.pages += [read_page(path) for path in sorted(folder.glob("*.parquet"))]
        self.cursor = start  # the first slot nobody has answered for
        self._advance(end)

    def _advance(self, end: int) -> list[Page]:
        """Move the cursor over the pages that hold it, up to `end`; returns them, cut so that none overlap."""
        passed = []
        while self.cursor < end and (page := self._holding(self.cursor)):
            passed.append(page.cut(self.cursor, end))
            self.cursor = min(page.end, end)
        return passed

    def _holding(self, moment: int) -> Page | None:
        return next((page for page in self.pages if page.start <= moment < page.end), None)

    def parts(self) -> list[Page]:
        self.cursor = self.start
        return self._advance(self.end)

    def fill(self, venue: Venue) -> None:
        """Everything `venue` has of what is missing. Raises VenueDown, or UnknownName if it has no such market."""
        market = venue.market(self.symbol)
        # our own clock may be fast: what the venue's has not closed is open
        end = min(self.end, int(min(venue.now() - SETTLE_S, self.end) // self.step) * self.step)
        size, said = venue.page_bars(market) * self.step, time.monotonic()
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
            self._keep(page)
            self._advance(end)
            if time.monotonic() - said > SAY_EVERY_S:
                said = time.monotonic()
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
        """The next page that holds a bar from the cursor on, before `stop`: `short` filled up if given; else None."""
        if short is not None:
            fresh, _ = self._asked(venue, market, short.start, stop)
            if len(fresh) and fresh[0, OPEN_TIME] <= self.cursor <= fresh[-1, OPEN_TIME]:
                bars = _joined(fresh, short.bars)
                return Page(venue.name, market, short.start, self._after(bars), bars, short.seam_bps)
        ask, bars = self.cursor, np.empty((0, BAR_WIDTH))
        while len(bars) == 0 and ask < stop:
            bars, asked = self._asked(venue, market, ask, stop)
            if len(bars) == 0 or bars[0, OPEN_TIME] >= ask + self.step:  # a hole, or a hiccup: ask again
                bars = _joined(bars, self._asked(venue, market, ask, stop)[0])
            ask += asked
            if len(bars) == 0 and ask < stop:
                ask = self._next_traded(venue, market, ask, stop)
        if len(bars):
            return Page(venue.name, market, self.cursor, self._after(bars), bars, self._seam(venue, market))
        if stop < self.end and self._holding(stop):  # nothing, and bars are known after it
            return Page(venue.name, market, self.cursor, stop, bars)
        return None

    def _next_traded(self, venue: Venue, market: str, ask: int, stop: int) -> int:
        """Where to ask after an empty page: the first day from `ask` on that has a daily bar, so that a long silence or
        a market younger than what is asked costs few requests; `stop` if no day has."""
        day = ask // DAY * DAY
        if self.step >= DAY or not venue.has("1d"):
            return ask
        limit = min(venue.page_bars(market), (stop - day) // DAY + 1)
        for _ in range(2):  # as with bars, nothing is believed when said twice
            days = venue.page(market, day, limit, "1d")[:, OPEN_TIME]
            days = days[(days >= day) & (days < stop)]
            if len(days):
                return max(ask, int(days.min()))
        return min(day + limit * DAY, stop)

    def _asked(self, venue: Venue, market: str, since: int, stop: int) -> tuple[Floats, int]:
        """(bars that open at `since` or later and close by `stop`, ascending and unique; the seconds asked for)."""
        limit = min(venue.page_bars(market), (stop - since) // self.step)
        bars = venue.page(market, since, limit)
        bars = bars[(bars[:, OPEN_TIME] >= since) & (bars[:, OPEN_TIME] + self.step <= stop)]
        return _joined(bars, bars[:0]), limit * self.step

    def _after(self, bars: Floats) -> int:
        """The first slot after the last bar."""
        return int(bars[-1, OPEN_TIME] // self.step + 1) * self.step

    def _seam(self, venue: Venue, market: str) -> float | None:
        """This venue's close over that of the venue before, of the last bar before the cursor, in bps."""
        before = self._holding(self.cursor - self.step) if self.cursor > self.start else None
        if before is None or len(before.bars) == 0 or before.venue == venue.name:
            return None
        theirs = before.cut(before.start, self.cursor).bars[-1]
        ours = venue.page(market, int(theirs[OPEN_TIME]), 1)
        same = ours[ours[:, OPEN_TIME] == theirs[OPEN_TIME]]
        if len(same) == 0 or not theirs[CLOSE] > 0.0 or not np.isfinite(same[0, CLOSE]):
            return None
        return round(float(same[0, CLOSE] / theirs[CLOSE] - 1.0) * 1e4, 4)

    def _keep(self, page: Page) -> None:
        """On disk first, then in hand; in place of the page it fills up."""
        write_page(page, folder_of(self.plan.pages, page.venue, self.symbol, self.plan.params.timeframe))
        self.pages = [p for p in self.pages if (p.venue, p.start) != (page.venue, page.start)]
        self.pages.append(page)


def _joined(first: Floats, second: Floats) -> Floats:
    """Rows of both, ascending by open time; of two with the same time the one from `first`, as given first."""
    both = np.concatenate([first, second])
    _, at = np.unique(both[:, OPEN_TIME], return_index=True)  # the first of equals
    return both[at]


def _told(plan: Backfill, symbol: str, series: _Series, failed: dict[str, Exception]) -> Exception:
    """Every venue failed: what, how far, and what to do."""
    why = "; ".join(str(error) for error in failed.values())
    if all(isinstance(error, UnknownName) for error in failed.values()):
        return UnknownName(f"no venue has {symbol}: {why}. Ask for another symbol, or other data.exchange.venues.")
    kept = sum(len(page.bars) for page in series.parts())
    return VenueDown(
        f"{symbol}: no venue gives the {plan.params.timeframe} bars from {utc(series.cursor):%F %H:%M} to "
        f"{utc(series.end):%F %H:%M} UTC. {why}. Kept: {kept:,} bars before that; the same command goes on from there. "
        "Look at the network (HTTPS_PROXY, BELLWETHER_EXCHANGE_URL), name other data.exchange.venues in params.yaml, "
        "or give recorded bars with --source files."
    )
