"""The feed of pushed bars: they arrive at `/observe` from anywhere, and this feed sees in the store when one closes."""

from collections.abc import Iterator, Sequence

import numpy as np

from pipelines.contracts import OPEN_TIME, Floats
from pipelines.data.feeds.protocol import NOTHING, Close, Feed, FeedRequest, Sent, decision_bars, needed


class PushFeed:
    """Deliver the closes of bars that somebody else sends; there is nothing to send."""

    name, paced, sends, poll_s = "push", False, False, 0.5
    fault: str | None = None

    def __init__(self, request: FeedRequest) -> None:
        """Take the markets and the function that reads stored bars. Raises BadValues without it."""
        self._markets = request.markets
        self._stored = needed(request.stored, "a function that reads stored bars", self.name)

    def backfill(self, symbol: str, since: float, until: float) -> Sent:
        """Return nothing: only who pushes the bars has those that are missing."""
        return NOTHING

    def stream(self, symbols: Sequence[str]) -> Iterator[Close | None]:
        """Yield the newest decision bar that closed of each symbol since the last call, with the bars stored since.

        Of several that closed at once only the newest can be decided on. It never ends.
        """
        seen = {symbol: self._open_bar_before(symbol) for symbol in symbols}
        while True:
            closes: dict[float, dict[str, Sent]] = {}
            for symbol in symbols:
                found = self._newest_close(symbol, seen[symbol])
                if found is not None:
                    close, bars = found
                    seen[symbol] = float(bars[-1, OPEN_TIME])
                    closes.setdefault(close, {})[symbol] = Sent(bars)
            yield from sorted(closes.items())
            if not closes:
                yield None

    def _open_bar_before(self, symbol: str) -> float:
        """Return a moment before the first base bar of the decision bar that is open, epoch seconds.

        Bars of it that are stored already count once it closes.
        """
        market = self._markets[symbol]
        opened, closed = market.grid.around(market.newest)
        whole = not np.isfinite(opened) or market.closed >= closed
        return market.newest if whole else opened - 1e-3

    def _newest_close(self, symbol: str, seen: float) -> tuple[float, Floats] | None:
        """Return the newest close among the bars that open after `seen`, with those up to it; None without one.

        A decision bar is closed once its last base bar is stored, or a bar after it.
        """
        market, bars = self._markets[symbol], self._stored(symbol, seen)
        groups = decision_bars(bars, market.grid)
        if groups and market.base.next_close(float(groups[-1][1][-1, OPEN_TIME])) < groups[-1][0]:
            groups.pop()
        if not groups:
            return None
        return groups[-1][0], np.concatenate([part for _, part in groups])


def push_feed(request: FeedRequest) -> Feed:
    """Return the feed of pushed bars. Raises BadValues without a function that reads stored bars."""
    return PushFeed(request)
