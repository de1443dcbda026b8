"""The feed of exchanges: closed bars, requested when they are due, of the first venue that answers.

A gap needs nothing of its own: what is requested begins after the newest stored bar, however old that is.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Floats, utc
from pipelines.data.feeds.protocol import Close, Feed, FeedMarket, FeedRequest, Sent, decision_bars, merged, needed
from pipelines.errors import UnknownName, VenueDown

GRACE_S = 30.0  # a close waits so long for a symbol whose last bar is late; a minute without a trade has none
LIVE = "live"  # folder of the pages of a feed, next to those of backfills; emptied when their bars are stored


class ExchangeFeed:
    """Deliver closed bars of exchanges; venues follow one another as in `readers.exchange.backfill`."""

    name, paced, sends = "exchange", False, True

    def __init__(self, request: FeedRequest) -> None:
        """Take the markets and the plan; nothing is requested yet. Raises BadValues without a plan."""
        plan = needed(request.plan, "a plan of how exchanges are asked", self.name)
        self._markets, self.poll_s, self._now = request.markets, request.poll_s, request.now or time.time
        self._plan = replace(plan, pages=plan.pages / LIVE)
        self.fault: str | None = None

    def backfill(self, symbol: str, since: float, until: float) -> Sent:
        """Return closed bars as Feed defines; candles come without records."""
        from pipelines.data.readers import exchange  # only for this feed, see `FeedRequest`

        parts = exchange.backfill(replace(self._plan, since=utc(since)), symbol, utc(until))
        bars = np.concatenate([np.empty((0, BAR_WIDTH)), *(part.bars for part in parts)])
        return Sent(bars[bars[:, OPEN_TIME] >= since])

    def stream(self, symbols: Sequence[str]) -> Iterator[Close | None]:
        """Yield closes as Feed defines; it never ends. A symbol no venue gives delays the others by GRACE_S at most."""
        shutil.rmtree(self._plan.pages, ignore_errors=True)  # of an earlier process; their bars are stored or requested
        newest = {symbol: self._markets[symbol].newest for symbol in symbols}
        waiting = {symbol: np.empty((0, BAR_WIDTH)) for symbol in symbols}
        while True:
            self._fetch(newest, waiting)
            ready = self._ready(waiting)
            for close, parts in ready:
                for symbol, bars in parts.items():
                    waiting[symbol] = waiting[symbol][len(bars) :]
                yield close, {symbol: Sent(bars) for symbol, bars in parts.items()}
            if not any(len(bars) for bars in waiting.values()):
                shutil.rmtree(self._plan.pages, ignore_errors=True)
            if not ready:
                yield None

    def _fetch(self, newest: dict[str, float], waiting: dict[str, Floats]) -> None:
        """Add to `waiting` the bars that closed since, where one is due; `fault` says what no venue gave."""
        from pipelines.data.readers.exchange import SETTLE_S

        due = {s: self._markets[s] for s, opened in newest.items() if self._next_due(s, opened) <= self._now()}
        failed: list[str] = []
        for symbol, market in due.items():
            try:
                since = market.base.next_close(newest[symbol])
                bars = self.backfill(symbol, since, self._now() - SETTLE_S).bars
            except (VenueDown, UnknownName) as error:
                failed.append(str(error))
                continue
            waiting[symbol] = np.concatenate([waiting[symbol], bars])
            if len(bars):
                newest[symbol] = float(bars[-1, OPEN_TIME])
        if due:
            self.fault = "; ".join(failed) or None

    def _next_due(self, symbol: str, opened: float) -> float:
        """Return when the bar after the one that opens then can be requested, epoch seconds."""
        from pipelines.data.readers.exchange import SETTLE_S

        base = self._markets[symbol].base
        return base.next_close(base.next_close(opened)) + SETTLE_S

    def _ready(self, waiting: dict[str, Floats]) -> list[tuple[float, dict[str, Floats]]]:
        """Return the closes for which all is there that will come, in time order.

        That is so once each symbol has its last base bar of it, or later ones; and GRACE_S after it in any case.
        """
        groups = {symbol: decision_bars(bars, self._markets[symbol].grid) for symbol, bars in waiting.items()}
        found: list[tuple[float, dict[str, Floats]]] = []
        for close, parts in merged(groups):
            whole = all(self._is_whole(self._markets[symbol], bars, close) for symbol, bars in waiting.items())
            if not whole and self._now() < close + GRACE_S:
                break
            found.append((close, parts))
        return found

    def _is_whole(self, market: FeedMarket, bars: Floats, close: float) -> bool:
        """Return whether bars (n, 9) hold the one that ends at `close` or a later one, or no decision bar ends then."""
        if market.grid.around(close - 1e-3)[1] != close:
            return True
        return len(bars) > 0 and market.base.next_close(float(bars[-1, OPEN_TIME])) >= close


def exchange_feed(request: FeedRequest) -> Feed:
    """Return the feed of exchanges. Raises BadValues without a plan."""
    return ExchangeFeed(request)
