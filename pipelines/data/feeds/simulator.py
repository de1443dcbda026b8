"""The feed of the simulated market: it goes on after the newest stored bar, minute by minute, without an end.

The bars are those that the whole market of this spec has, so a feed that starts again sends the same ones.
"""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import numpy as np

from pipelines.contracts import OPEN_TIME, utc
from pipelines.data.feeds.protocol import (
    NOTHING,
    Close,
    Feed,
    FeedRequest,
    Sent,
    decision_bars,
    joined,
    merged,
    needed,
    with_records,
)
from pipelines.data.simulator.latent import DESIGN
from pipelines.data.simulator.stream import SimulatedStream


class SimulatorFeed:
    """Deliver a simulated market."""

    name, paced, sends, poll_s = "simulator", True, True, 1.0
    fault: str | None = None

    def __init__(self, request: FeedRequest) -> None:
        """Take markets and spec; the market is made as it is requested. Raises BadValues without a spec."""
        self._markets, self._states = request.markets, request.states
        self._spec = needed(request.spec, "the simulator's spec", self.name)

    def backfill(self, symbol: str, since: float, until: float) -> Sent:
        """Return simulated bars as Feed defines."""
        base, found = self._markets[symbol].base, NOTHING
        for piece in self._pieces(list(self._markets), since):
            sent = piece[symbol]
            inside = (sent.bars[:, OPEN_TIME] >= since) & (base.closes(sent.bars[:, OPEN_TIME]) <= until)
            known = with_records(sent.bars[inside], (sent.books, sent.feed), since, until)
            found = joined(found, known)
            if len(sent.bars) and not inside[-1] and sent.bars[-1, OPEN_TIME] >= since:
                break
        return found

    def stream(self, symbols: Sequence[str]) -> Iterator[Close | None]:
        """Yield closes as Feed defines; it never ends.

        It begins after the symbol that is furthest; what others lack before that is for `backfill`.
        """
        begin = max(self._markets[symbol].closed for symbol in symbols)
        waiting, sent_until = dict.fromkeys(symbols, NOTHING), dict.fromkeys(symbols, begin)
        for piece in self._pieces(symbols, begin):
            for symbol in symbols:
                waiting[symbol] = joined(waiting[symbol], after(piece[symbol], begin))
            ready = merged({s: self._whole(s, waiting[s]) for s in symbols})
            for close, parts in ready:
                sent = {}
                for symbol, bars in parts.items():
                    known = (waiting[symbol].books, waiting[symbol].feed)
                    sent[symbol] = with_records(bars, known, sent_until[symbol], close)
                    sent_until[symbol] = close
                    rest = waiting[symbol].bars[len(bars) :]
                    waiting[symbol] = with_records(rest, known, close, np.inf)
                yield close, sent

    def _whole(self, symbol: str, sent: Sent) -> list[tuple[float, np.ndarray]]:
        """Return the decision bars among those waiting whose last base bar is there."""
        market, groups = self._markets[symbol], decision_bars(sent.bars, self._markets[symbol].grid)
        if groups and market.base.next_close(float(groups[-1][1][-1, OPEN_TIME])) < groups[-1][0]:
            groups.pop()
        return groups

    def _pieces(self, symbols: Sequence[str], since: float) -> Iterator[dict[str, Sent]]:
        """Yield what each symbol's market brings from `since` (epoch seconds) on, a decision bar at a time, endlessly.

        A state is saved at the start and each market day, so that a feed that starts again goes on within a second.
        """
        stream = SimulatedStream(self._spec, DESIGN, symbols)
        if self._states is not None:
            stream.load(self._states, until=utc(since))
        known = stream.moment
        stream.skip_to(utc(since))
        if self._states is not None and stream.moment - known > timedelta(days=1):
            stream.save(self._states)
        minutes = min(self._markets[symbol].grid.step_s for symbol in symbols) // 60
        saved = stream.moment.date()
        while True:
            if self._states is not None and stream.moment.date() != saved:
                saved = stream.moment.date()
                stream.save(self._states)
            yield {symbol: Sent(part.bars, part.books, part.feed) for symbol, part in stream.next(minutes).items()}


def after(sent: Sent, since: float) -> Sent:
    """Return what opens at `since` or later, and what became known after it, epoch seconds."""
    return with_records(sent.bars[sent.bars[:, OPEN_TIME] >= since], (sent.books, sent.feed), since, np.inf)


def simulator_feed(request: FeedRequest) -> Feed:
    """Return the feed of the simulated market. Raises BadValues without a spec."""
    return SimulatorFeed(request)
