"""What an installation holds: the markets of its newest data version, compared with what is offered."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipelines.contracts import OPEN_TIME, Bools, Floats, utc
from pipelines.data import schemas
from pipelines.data.data_version import MANIFEST, read_bars, read_manifest
from pipelines.data.proofs import not_recorded
from pipelines.data.sessions import WHOLE, grid_of
from pipelines.data.timeframes import Grid
from pipelines.errors import BadTimes, UnreadableFile

if TYPE_CHECKING:  # it imports the store, which a look at a file needs not
    from flows.support.installation import Installation

ANOTHER_HOME = "or begin another home: BELLWETHER_HOME=FOLDER bellwether run …"


@dataclass(frozen=True, slots=True)
class Held:
    """Describe a market of the newest data version: its grid, the opens of its first and last bar, where its bars are.

    folder, facts  of the data version, as `data_version.read_bars` takes them
    """

    symbol: str
    grid: Grid
    first: datetime
    last: datetime
    folder: Path
    facts: Mapping[str, Any]

    def describe(self) -> str:
        """Return 'EUR/USD at 15m, 2024-01-02 00:00 to 2024-03-01 12:45 UTC'."""
        return f"{self.symbol} at {self.grid.timeframe}, {self.first:%F %H:%M} to {self.last:%F %H:%M} UTC"

    def bars(self) -> pd.DataFrame:
        """Return its bars (schemas.BARS). Raises UnreadableFile, BadColumns."""
        return read_bars(self.folder, self.facts)


def held_markets(workspace: Path) -> dict[str, Held]:
    """Return symbol → market of a workspace's newest data version; none before the first. Raises UnreadableFile."""
    folder = workspace / "data"
    if not (folder / MANIFEST).is_file():
        return {}
    return {symbol: _held(folder, symbol, facts) for symbol, facts in read_manifest(folder).markets.items()}


def held_market(workspace: Path, symbol: str) -> Held | None:
    """Return one market of the newest data version; None where it holds none of that symbol. Raises UnreadableFile."""
    folder = workspace / "data"
    if not (folder / MANIFEST).is_file() or symbol not in (markets := read_manifest(folder).markets):
        return None
    return _held(folder, symbol, markets[symbol])


def _held(folder: Path, symbol: str, facts: Mapping[str, Any]) -> Held:
    """Return what the facts of one market say. Raises UnreadableFile."""
    try:
        first, last = (datetime.fromisoformat(str(facts[name])) for name in ("first", "last"))
        return Held(symbol, grid_in(folder, facts), first, last, folder, facts)
    except (ValueError, TypeError, KeyError) as error:
        raise UnreadableFile(
            f"{folder / MANIFEST} is damaged: {symbol}: {error}. `bellwether run --once` writes it again."
        ) from error


def grid_in(folder: Path, facts: Mapping[str, Any]) -> Grid:
    """Return where the base bars of a market open and close; before release 0.9 the bars themselves say so."""
    if "grid" in facts:
        return Grid.from_dict(facts["grid"])
    opens = schemas.epoch_seconds(read_bars(folder, facts)["open_time"])
    return grid_of({"timeframe": facts["timeframe"]}, opens)


def require_same_market(held: Held | None, grid: Grid, opens: Floats) -> None:
    """Raise BadTimes if offered bars have another timeframe, phase or calendar than those held; None holds nothing.

    grid  of the offered bars, by themselves; opens: (n,) their open times, epoch seconds
    """
    if held is None:
        return
    holds = f"this home holds {held.describe()}"
    if grid.timeframe != held.grid.timeframe:
        raise BadTimes(
            f"{holds}; the file is {grid.timeframe}. Give a file of {held.grid.timeframe} bars, {ANOTHER_HOME}"
        )
    known = opens[np.isfinite(opens)]
    off = known[~held.grid.on_grid(known)]
    if len(off) > (1.0 - WHOLE) * len(known):
        raise BadTimes(
            f"{holds}: {held.grid.describe()}. Of {len(known):,} bars given, {len(off):,} open none of its bars, the "
            f"first at {utc(off[0]):%F %T} UTC. Give a file of the same hours and time zone, {ANOTHER_HOME}"
        )


def held_bars(installation: "Installation", held: Held) -> Floats:
    """Return (n, 9) all bars an installation has of a market: those of the data version, then those the service saw."""
    stored = schemas.to_matrix(held.bars())
    seen = installation.store.bars(held.symbol, after=float(stored[-1, OPEN_TIME]))
    return np.concatenate([stored, seen])


@dataclass(frozen=True, slots=True)
class Overlap:
    """Count the bars of a second file against those that are held.

    new      (n,) whether no bar of that time is held; early, of these, before the first held one
    differs  (n,) whether another bar is held
    """

    opens: Floats
    new: Bools
    early: Bools
    differs: Bools

    def describe(self, past_is_taken: bool) -> str:
        """Return what is taken of the file, and what is not."""
        new, early, differs = (int(part.sum()) for part in (self.new, self.early, self.differs))
        there = len(self.opens) - new
        taken = self.new if past_is_taken else self.new & ~self.early
        span = ""
        if taken.any():
            first, last = self.opens[taken][[0, -1]]
            span = f", from {utc(first):%F %H:%M} to {utc(last):%F %H:%M} UTC"
        words = f"of {len(self.opens):,} bars {int(taken.sum()):,} are new{span}; {there:,} were there: "
        words += f"{there - differs:,} equal, {differs:,} differ"
        if differs:
            first = self.opens[self.differs][0]
            words += f" (first at {utc(first):%F %H:%M} UTC): the stored ones stay, see `bellwether data correct`"
        if early and not past_is_taken:
            words += f"; {early:,} lie before the first stored bar and are not taken: the service has begun"
        return words


def overlap(held: Floats, offered: Floats) -> Overlap:
    """Compare offered bars (m, 9) with held ones (n, 9), both ascending, bar by bar."""
    times = held[:, OPEN_TIME]
    opens = offered[:, OPEN_TIME]
    at = np.minimum(np.searchsorted(times, opens), len(times) - 1)
    new = times[at] != opens
    a, b = held[at], offered
    same = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    return Overlap(opens, new, new & (opens < times[0]), ~new & ~same)


def with_held_bars(held: Held, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a file's bars (schemas.LAYOUT) with those that are held; where both have one, the held one stays.

    A file that holds every stored bar, unchanged, is returned as it is: the same file gives the same snapshot.
    """
    stored = held.bars()
    offered = not_recorded(frame)[0].drop_duplicates("open_time").sort_values("open_time")
    offered = offered[offered["open_time"].notna()]
    found = overlap(schemas.to_matrix(offered), schemas.to_matrix(stored))
    if not found.new.any() and not found.differs.any():
        return frame
    fresh = frame[~frame["open_time"].isin(stored["open_time"])]
    earlier = (fresh["open_time"] < stored["open_time"].iloc[0]).to_numpy()
    return pd.concat([fresh[earlier], stored, fresh[~earlier]], ignore_index=True)
