"""All markets of a spec as a stream without end, minute for minute the market that `simulate` makes whole.

A stream goes on after the history and the live days of the spec for as long as it is asked, with the planted drift
dates of `market_path.drift_dates`. Made in pieces of any lengths, saved and loaded between any two of them, it is byte
for byte the market made at once.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from pipelines.contracts import Books, ContextFeed, Floats
from pipelines.data.orderbook.limit_order_book import LOG_WIDTH
from pipelines.data.simulator import saved_state
from pipelines.data.simulator.followers import symbols_of
from pipelines.data.simulator.latent import DESIGN, MINUTES_A_DAY, Design
from pipelines.data.simulator.market_path import BLOCK, MarketPath, Traded
from pipelines.errors import BadTimes, BadValues
from pipelines.market_params import SimulatorParams

T = TypeVar("T")
R = TypeVar("R")
KEPT = 3  # newest saved states of a market that `save` keeps, next to the oldest


class Piece(NamedTuple):
    """Hold consecutive minutes of one market.

    bars (n, 9)  in BAR_FIELDS order, 1-minute; books: the snapshots at the closes of those minutes; feed: the funding
    rates that became known at them. Units as in `market.Market`.
    """

    bars: Floats
    books: Books
    feed: ContextFeed


class SimulatedStream:
    """Make the minutes of several markets side by side, one after the other."""

    def __init__(self, spec: SimulatorParams, design: Design = DESIGN, symbols: Sequence[str] | None = None) -> None:
        """Stand before the first minute of the spec.

        symbols  of the spec; None = all of them
        Raises   UnknownName for one that the spec does not make, BadValues for a spec that makes no market
        """
        self.spec, self.design = spec, design
        self.begin = spec.start.astimezone(UTC)
        self.paths = self._fresh(symbols_of(spec) if symbols is None else symbols)

    def _fresh(self, symbols: Iterable[str]) -> dict[str, MarketPath]:
        """Return each market before its first minute, by its canonical symbol."""
        paths = [MarketPath(self.spec, self.design, symbol=symbol) for symbol in symbols]
        return {path.own.symbol: path for path in paths}

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return the canonical symbols of the stream."""
        return tuple(self.paths)

    @property
    def moment(self) -> datetime:
        """Return the close of the newest minute made; the start of the spec before the first."""
        return self.begin + timedelta(minutes=max((path.made for path in self.paths.values()), default=0))

    @property
    def history_end(self) -> datetime:
        """Return the close of the last minute of the history."""
        return self.begin + timedelta(days=self.spec.history_days)

    def skip_to(self, moment: datetime) -> None:
        """Make the minutes that have closed at `moment` (aware) without returning them.

        A year of one market takes seconds; `load` gets there at once. Raises BadTimes if it is before `self.moment`.
        """
        minute = self._minute(moment)
        if moment < self.moment:
            raise BadTimes(
                f"the simulated stream is at {self.moment.isoformat()}, {self.moment - moment} after "
                f"{moment.isoformat()}, and makes no minute twice. Load a state saved before that, or start again."
            )
        side_by_side(lambda path: _skip(path, minute), self.paths.values())

    def next(self, minutes: int) -> dict[str, Piece]:
        """Make the next `minutes` of each market and return them by symbol. Raises BadValues if they are none."""
        if minutes < 1:
            raise BadValues(f"{minutes} minutes of the simulated stream were requested. Request at least one.")
        if minutes < MINUTES_A_DAY:  # starting threads would take longer
            return {symbol: _next(path, minutes) for symbol, path in self.paths.items()}
        pieces = side_by_side(lambda path: _next(path, minutes), self.paths.values())
        return dict(zip(self.paths, pieces, strict=True))

    def save(self, folder: Path, keep: int = KEPT) -> None:
        """Save the state of each market; of those saved before, the oldest and the newest `keep` stay.

        A state has some 100 kB. From an older one a day is made again in a blink, so once a market day is enough.
        """
        for path in self.paths.values():
            saved_state.save(path, folder)
            saved_state.prune(path, folder, max(keep, 1))

    def load(self, folder: Path, until: datetime | None = None) -> bool:
        """Go to the newest saved state, wherever the stream stands; return False, and stay, if there is none.

        until  aware: no later than that; None = the newest
        A market without a saved state, or with an older one, is made up to the same moment as the others.
        """
        minute, fresh = None if until is None else self._minute(until), self._fresh(self.symbols)
        restored = [saved_state.restore(path, folder, minute) for path in fresh.values()]
        if not any(restored):
            return False
        newest = max(path.made for path in fresh.values())
        side_by_side(lambda path: _skip(path, newest), fresh.values())
        self.paths = fresh
        return True

    def _minute(self, moment: datetime) -> int:
        """Return how many minutes have closed at a moment. Raises BadTimes if it has no time zone."""
        if moment.tzinfo is None:
            raise BadTimes(f"{moment} has no time zone. Pass an aware moment, e.g. datetime.now(tz=UTC).")
        return (moment - self.begin) // timedelta(minutes=1)


def side_by_side(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Return the results of `work` for each item, in a thread each, as many at a time as there are processors."""
    todo = list(items)
    with ThreadPoolExecutor(max(min(len(todo), os.cpu_count() or 1), 1), "simulated-market") as pool:
        return list(pool.map(work, todo))


def _skip(path: MarketPath, minute: int) -> None:
    """Make the minutes of one market up to number `minute`."""
    while path.made < minute:
        _trade(path, min(BLOCK, minute - path.made))


def _next(path: MarketPath, minutes: int) -> Piece:
    """Return the next minutes of one market."""
    first = path.made
    out, shots, feed = _trade(path, minutes)
    return Piece(out.bars, path.books(out, shots, first), feed)


def _trade(path: MarketPath, minutes: int) -> tuple[Traded, int, ContextFeed]:
    """Trade the next minutes; return what they filled, the number of snapshots, and the funding rates."""
    out = path.allocate(minutes)
    counts, _ = path.trade(path.latent(minutes), np.empty((0, LOG_WIDTH), np.int64), out)
    return out, int(counts[0]), path.rates(out)
