"""Findings on bars, each with place, size and cause; `quality.assess` collects them."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from pipelines.contracts import Floats, Ints, JsonObject
from pipelines.data.calendars import WEEK
from pipelines.data.schemas import AMOUNTS, PRICES, SPREAD, epoch_seconds, stamps_of
from pipelines.data.timeframes import HOLIDAY_DAYS, Grid

PLACES = 10  # moments and sizes that a flag names
CAUSES = {
    "NO_TIME": "a time is missing: find these rows in the source",
    "OUT_OF_RANGE": "a time before 1970 or after 2200, or a number beyond what any store holds: another unit",
    "NON_FINITE": "a price is missing or no number: find these rows in the source",
    "NON_POSITIVE": "prices at or below zero: their returns are undefined here. Use an instrument above zero, or a "
    "back-adjusted series with an offset. An amount below zero is an error of the source",
    "OHLC_ORDER": "high is not the highest price or low not the lowest: an error of the source",
    "TAKER_OVER_VOLUME": "takers bought more than was traded: an error of the source, or another unit",
    "SPREAD": "ask under bid, or half_spread not below low: it is (ask - bid) / 2 in quote currency",
    "FUTURE": "known after now: another unit or time zone, or bars that are not closed",
    "OFF_GRID": "opens no bar of this market: shut then, or between two bars. Round the stamps, or state the hours "
    "with --sessions",
    "DUPLICATE": "the same bar again: the first stays",
    "COLLAR": "far outside the range of the bars before and after it: a wrong price. Find it in the source, or release "
    "it with `bellwether data quarantine release`",
    "CONFLICT": "another bar of the same time: the first stays. Find out which is right",
}  # reason of a quarantined row → what it most likely is, and what cures it


@dataclass(frozen=True, slots=True)
class Flag:
    """Hold what a check found.

    code     what it is: a reason of quality.REASONS, or GAP, STALE, JUMP, SPLIT, SHUT, HOLIDAY, MOVED_WITHOUT_VOLUME,
             NOT_RECORDED
    rows     how many bars (gaps, days, columns) it concerns
    moments  open times of the first PLACES of them, ISO 8601 UTC
    sizes    how large each of these is, in `unit`
    cause    what it most likely is, and what cures it
    """

    code: str
    rows: int
    moments: tuple[str, ...]
    sizes: tuple[float, ...]
    unit: str
    cause: str

    def to_dict(self) -> JsonObject:
        """Return this as JSON types; a size that is not finite is null."""
        sizes = [size if np.isfinite(size) else None for size in self.sizes]
        return {**asdict(self), "moments": list(self.moments), "sizes": sizes}


def flag(code: str, opens: pd.Series, sizes: Floats, unit: str, cause: str) -> Flag | None:
    """Return the flag of rows that open at `opens` (n,) with these sizes (n,); None without a row.

    A time that is not there is the moment 'NaT', a size that is not finite NaN
    """
    if len(opens) == 0:
        return None
    first = opens.iloc[:PLACES]
    moments = tuple("NaT" if pd.isna(moment) else moment.isoformat() for moment in first)
    return Flag(code, len(opens), moments, tuple(float(size) for size in sizes[:PLACES]), unit, cause)


def listed(flags: Iterable[Flag | None]) -> tuple[Flag, ...]:
    """Return the flags that are there."""
    return tuple(one for one in flags if one is not None)


def moments_of(seconds: Floats) -> pd.Series:
    """Return epoch seconds (n,) as stamps, to the microsecond; NaN as NaT."""
    there = np.isfinite(seconds)
    micros = np.rint(np.where(there, seconds, 0.0) * 1e6).astype("datetime64[us]")
    return pd.Series(stamps_of(np.where(there, micros, np.datetime64("NaT"))))


def shut_flag(filled: pd.DataFrame, grid: Grid) -> Flag | None:
    """Return the flag of bars filled in while the market is shut; sizes are hours."""
    if filled.empty:
        return None
    seconds = epoch_seconds(filled["open_time"])
    weeks, bars = np.unique(np.floor(seconds / WEEK), return_counts=True)
    hours = float(np.median(bars)) * grid.step_s / 3600
    always = len(weeks) >= weeks[-1] - weeks[0]  # but for one week, such as one of holidays
    often = "every week" if always else f"in each of {len(weeks):,} weeks"
    cause = (
        f"{hours:g} h {often} without a move or volume: the market is shut then ({grid.calendar.describe()}). These "
        "bars were filled in and are left out"
    )
    return flag("SHUT", filled["open_time"], np.full(len(filled), grid.step_s / 3600), "h", cause)


def quarantine_flags(quarantined: pd.DataFrame, grid: Grid) -> list[Flag | None]:
    """Return a flag for each reason rows are quarantined for, most rows first; sizes are of what is wrong."""
    made = []
    for reason in quarantined["reason"].value_counts().index:
        rows = quarantined[quarantined["reason"] == reason]
        size, unit = _size(str(reason), rows, grid)
        made.append(flag(str(reason), rows["open_time"], size, unit, CAUSES.get(str(reason), str(reason).lower())))
    return made


def _size(reason: str, rows: pd.DataFrame, grid: Grid) -> tuple[Floats, str]:
    """Return how wrong quarantined rows are (n,), and its unit: of times seconds, of prices and amounts the value."""
    if reason == "OFF_GRID":
        seconds = epoch_seconds(rows["open_time"])
        return seconds - grid.holding(seconds), "s after the last open of a bar; nan: shut"
    if reason == "NON_POSITIVE":
        return np.asarray(rows[[*PRICES, *AMOUNTS]].min(axis=1).to_numpy(np.float64)), "at the lowest"
    if reason == "SPREAD":
        return rows[SPREAD].to_numpy(np.float64), "half_spread"
    if reason == "TAKER_OVER_VOLUME":
        return (rows["taker_buy_volume"] / rows["volume"]).to_numpy(np.float64), "share of volume"
    return rows["close"].to_numpy(np.float64), "close"


def gap_flag(gaps: pd.DataFrame, grid: Grid) -> Flag | None:
    """Return the flag of gaps; sizes are missing bars."""
    longest = int(gaps["missing"].max()) if len(gaps) else 0
    cause = (
        f"bars that should have come and did not, at most {longest:,} in a row: fetch them; if nothing was traded "
        f"then, state --no-bar no-trade; if the market is shut then, state --sessions (taken now: "
        f"{grid.calendar.describe()})"
    )
    return flag("GAP", gaps["start"], gaps["missing"].to_numpy(np.float64), "missing bars", cause)


def holiday_flag(clean: pd.DataFrame, grid: Grid) -> Flag | None:
    """Return the flag of trading days without a bar that are taken as holidays; sizes are 1 day each."""
    if grid.calendar.always_open or grid.no_trade or len(clean) < 2:
        return None
    days = grid.at("1d")
    present: Ints = np.unique(days.slots(epoch_seconds(clean["open_time"])))
    between = np.diff(present) - 1
    taken = np.flatnonzero((between > 0) & (between <= HOLIDAY_DAYS))
    if len(taken) == 0:
        return None
    absent = np.concatenate([np.arange(present[i] + 1, present[i + 1]) for i in taken])
    cause = f"trading days without a single bar, at most {HOLIDAY_DAYS} in a row: holidays, not missing"
    return flag("HOLIDAY", moments_of(days.opens(absent)), np.ones(len(absent)), "day", cause)


def disorder_flag(rows: pd.DataFrame) -> Flag | None:
    """Return the flag of rows that came after a later one."""
    cause = "these rows came after a later one and were sorted: files in another order, or two of them mixed"
    return flag("DISORDERED", rows["open_time"], np.ones(len(rows)), "row", cause)


def stale_flag(clean: pd.DataFrame, stale: pd.DataFrame) -> Flag | None:
    """Return the flag of standstills, one place a run; sizes are their bars."""
    at = stale.index.to_numpy()
    starts = stale[np.r_[True, np.diff(at) > 1]] if len(at) else stale
    cause = (
        f"{len(stale):,} bars whose prices all equal the close before: a feed that stood still, or filled in. Leave "
        "them out, or fetch them again; if the market is shut then, state --sessions"
    )
    return flag("STALE", starts["open_time"], starts["size"].to_numpy(np.float64), "bars in a row", cause)


def jump_flag(jumps: pd.DataFrame, likely: list[str]) -> Flag | None:
    """Return the flag of jumps; sizes are robust standard deviations. `likely`: what some of them may be."""
    cause = "moves far over the usual one; markets jump, so they lower no score. Compare another source with --against"
    if likely:
        cause += f". As large as a share split, which no volume proves or disproves: {', '.join(likely[:3])}"
    return flag("JUMP", jumps["open_time"], jumps["size"].to_numpy(np.float64), "robust sd", cause)
