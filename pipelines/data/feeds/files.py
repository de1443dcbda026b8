"""The feed of recorded files: what they hold after the newest stored bar, at `feed.speed`, until they end."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from pipelines.contracts import OPEN_TIME, Floats
from pipelines.data.feeds.protocol import Close, Feed, FeedRequest, Sent, decision_bars, merged, needed, with_records
from pipelines.data.sources import Records


class FileFeed:
    """Deliver recorded bars. Files are read once, at the first use."""

    name, paced, sends, poll_s = "files", True, True, 1.0
    fault: str | None = None

    def __init__(self, request: FeedRequest) -> None:
        """Take the markets and the function that reads one of them. Raises BadValues without it."""
        self._markets = request.markets
        load = needed(request.load, "a function that reads the files of a symbol", self.name)
        self._load = lru_cache(maxsize=None)(load)

    def backfill(self, symbol: str, since: float, until: float) -> Sent:
        """Return recorded bars as Feed defines."""
        bars, known = self._market(symbol)
        opens, base = bars[:, OPEN_TIME], self._markets[symbol].base
        return with_records(bars[(opens >= since) & (base.closes(opens) <= until)], known, since, until)

    def stream(self, symbols: Sequence[str]) -> Iterator[Close | None]:
        """Yield closes as Feed defines, and end with the files.

        It begins after the symbol that is furthest; what others lack before that is for `backfill`. What became known
        while a market was closed comes with its next bar.
        """
        groups, sent_until = {}, {symbol: self._markets[symbol].closed for symbol in symbols}
        begin = max(sent_until.values())
        for symbol in symbols:
            bars, _ = self._market(symbol)
            groups[symbol] = decision_bars(bars[bars[:, OPEN_TIME] >= begin], self._markets[symbol].grid)
        for close, parts in merged(groups):
            sent = {}
            for symbol, bars in parts.items():
                sent[symbol] = with_records(bars, self._market(symbol)[1], sent_until[symbol], close)
                sent_until[symbol] = close
            yield close, sent

    def _market(self, symbol: str) -> tuple[Floats, Records]:
        """Return all bars of a symbol, ascending, and its records."""
        bars, known = self._load(symbol)
        return np.asarray(bars), known


def file_feed(request: FeedRequest) -> Feed:
    """Return the feed of recorded files. Raises BadValues without a function that reads them."""
    return FileFeed(request)
