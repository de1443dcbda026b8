"""What an installation holds: the market of its newest snapshot, compared with what is offered before any start."""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from pipelines.contracts import OPEN_TIME, Bools, Floats, utc
from pipelines.data import schemas
from pipelines.data.proofs import not_recorded
from pipelines.data.sessions import WHOLE, grid_of
from pipelines.data.timeframes import Grid
from pipelines.errors import BadTimes, BadValues, UnreadableFile

if TYPE_CHECKING:  # it imports the store, which a look at a file needs not
    from flows.support.installation import Installation

ANOTHER_HOME = "or begin another home: BELLWETHER_HOME=FOLDER bellwether run …"


@dataclass(frozen=True, slots=True)
class Held:
    """Describe the market of the newest snapshot: its grid, the opens of its first and last bar, and their file."""

    symbol: str
    grid: Grid
    first: datetime
    last: datetime
    file: Path

    def describe(self) -> str:
        """Return 'EUR/USD at 15m, 2024-01-02 00:00 to 2024-03-01 12:45 UTC'."""
        return f"{self.symbol} at {self.grid.timeframe}, {self.first:%F %H:%M} to {self.last:%F %H:%M} UTC"


def held_market(workspace: Path) -> Held | None:
    """Return the market of the newest snapshot in a workspace; None before the first. Raises UnreadableFile."""
    path = workspace / "data" / "manifest.json"
    if not path.is_file():
        return None
    try:
        manifest = dict(json.loads(path.read_text()))
        file = workspace / "data" / str(manifest["file"])
        stored = manifest if "grid" in manifest else {"timeframe": manifest["timeframe"]}
        opens = np.empty(0) if "grid" in manifest else schemas.epoch_seconds(schemas.read_bars(file)["open_time"])
        first, last = (datetime.fromisoformat(str(manifest[name])) for name in ("first", "last"))
        return Held(str(manifest["symbol"]), grid_of(stored, opens), first, last, file)
    except (ValueError, TypeError, KeyError) as error:
        raise UnreadableFile(f"{path} is damaged: {error}. `bellwether run --once` writes it again.") from error


def require_same_market(held: Held | None, symbol: str, grid: Grid | None = None, opens: Floats | None = None) -> None:
    """Raise if what is offered is another market, timeframe or grid than what is held; nothing is compared with None.

    symbol  as BASE/QUOTE
    grid    of the offered bars, by themselves; opens: (n,) their open times, epoch seconds
    Raises  BadValues for another symbol; BadTimes for another timeframe, phase or calendar
    """
    if held is None:
        return
    holds = f"this home holds {held.describe()}"
    if symbol != held.symbol:
        raise BadValues(f"{holds}; {symbol} was given. Give {held.symbol}, {ANOTHER_HOME}")
    if grid is None or opens is None:
        return
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
    """Return (n, 9) all bars an installation has of its market: those of the snapshot, then those the service saw."""
    stored = schemas.to_matrix(schemas.read_bars(held.file))
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
    stored = schemas.read_bars(held.file)
    offered = not_recorded(frame)[0].drop_duplicates("open_time").sort_values("open_time")
    offered = offered[offered["open_time"].notna()]
    found = overlap(schemas.to_matrix(offered), schemas.to_matrix(stored))
    if not found.new.any() and not found.differs.any():
        return frame
    fresh = frame[~frame["open_time"].isin(stored["open_time"])]
    earlier = (fresh["open_time"] < stored["open_time"].iloc[0]).to_numpy()
    return pd.concat([fresh[earlier], stored, fresh[~earlier]], ignore_index=True)
