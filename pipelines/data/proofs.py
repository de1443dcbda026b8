"""What the fields of bars prove of one another: amounts nobody recorded, swapped or cut prices, share splits.

Each finding is a Flag with place, size and cause, or a refusal where no use of the bars would be honest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pandas as pd

from pipelines.contracts import Bools, Floats, Ints
from pipelines.data.findings import Flag, flag
from pipelines.data.schemas import AMOUNTS, PRICES
from pipelines.errors import BadColumns, BadValues

CONSTANT_BARS = 50  # bars in which an amount above 0 may be the same by chance; one of 0 needs two
SURE = 0.98  # share of rows that prove an order of prices
FEW_ROWS = 10
COARSE = 0.01  # of the price: one step of the places it is written with, from where on returns are steps
FLAT_SHARE = 0.5  # of bars whose high is their low, where prices have too few places
MOST_PLACES, FEW_PRICES = 12, 1000
FACTORS = {1.5: "3-for-2", **{float(n): f"{n}-for-1" for n in (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 25, 30, 50, 100)}}
NEAR_BARS = 60  # bars on each side whose mean log volume is compared
OFF_ERRORS, UNLIKE_ERRORS = (
    3.0,
    2.0,
)  # standard errors of that change: at most so far from a split's, more than from none
NOISE_BARS = 60  # bars on each side whose moves are a split's noise
LEAST_SIDE = 3
NOISE_SD, LEAST_NOISE, MOST_NOISE = 3.0, 0.02, 0.1  # noise in robust sd of a move, and its limits as log returns
SD_OF_MAD = 1.4826  # robust sd of normal moves = this x median |move|


def not_recorded(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[Flag]]:
    """Return the frame with amounts that nobody recorded as NaN, and a flag for each.

    An amount is not recorded where it is 0 in every bar, or the same number in every one of CONSTANT_BARS or more.
    frame   schemas.LAYOUT; unchanged where nothing is constant
    """
    found: list[Flag] = []
    for name in AMOUNTS:
        values = frame[name].to_numpy()
        there = values[~np.isnan(values)]
        if len(there) < 2 or there[0] != there[-1] or not (there == there[0]).all():
            continue
        if there[0] == 0.0 or len(there) >= CONSTANT_BARS:
            same = f"{name} is {there[0]:g} in all {len(there):,} bars"
            cause = f"{same}: it was not recorded, so what needs it is left out, as for a file without the column"
            found.append(Flag("NOT_RECORDED", 1, (), (float(there[0]),), name, cause))
            frame = frame.assign(**{name: np.nan})
    return frame, found


def check_prices(frame: pd.DataFrame) -> None:
    """Raise BadColumns where the names of prices are swapped, BadValues where prices have too few places.

    frame   schemas.LAYOUT, any order of rows
    """
    usable = np.logical_and.reduce([np.isfinite(frame[name].to_numpy()) for name in PRICES])
    rows = frame if usable.all() else frame[usable]
    if len(rows) < FEW_ROWS:
        return
    high, low = rows["high"].to_numpy(), rows["low"].to_numpy()
    below, flat = high < low, high == low
    if below.sum() >= FEW_ROWS and below.sum() >= SURE * (~flat).sum():
        raise _other_order(rows[list(PRICES)].to_numpy(), below)
    if flat.mean() >= FLAT_SHARE:
        _check_places(rows[list(PRICES)].to_numpy())


def _other_order(prices: Floats, below: Bools) -> BadColumns:
    """Return the error of bars whose high is below low in nearly all that move, naming the order that fits."""
    for order in permutations(range(4)):  # position of each price among the columns; the first that fits swaps least
        opened, top, bottom, closed = (prices[:, i] for i in order)
        fits = (top >= np.maximum(opened, closed)) & (bottom <= np.minimum(opened, closed))
        if fits.mean() >= SURE:
            names = ", ".join(f"{PRICES[i]} is the {right}" for right, i in zip(PRICES, order, strict=True)
                              if PRICES[i] != right)  # fmt: skip
            return BadColumns(
                f"high is below low in {int(below.sum()):,} of {len(prices):,} bars. The columns are in another order: "
                f"what is named {names}. Rename them."
            )
    return BadColumns(
        f"high is below low in {int(below.sum()):,} of {len(prices):,} bars, and no order of the four price columns "
        "fits open, high, low, close. Check which columns they are."
    )


def _check_places(prices: Floats) -> None:
    """Raise BadValues where bars are flat because one step of the written places is a large part of the price."""
    values = np.unique(prices)
    middle = float(np.median(np.abs(values)))
    step = _step(values) if len(values) <= FEW_PRICES else None
    if step is None or middle <= 0.0 or step / middle < COARSE:
        return
    raise BadValues(
        f"{len(values)} distinct price{'s' * (len(values) > 1)} in {len(prices):,} bars, one step is "
        f"{step / middle:.0%}: prices near {middle:g} were written with too few places ({-round(np.log10(step))}). "
        "Returns would be steps of the format. Export them with all their places."
    )


def _step(values: Floats) -> float | None:
    """Return 10^-d with the fewest places d that write all values exactly; None over MOST_PLACES."""
    for places in range(MOST_PLACES + 1):
        scaled = values * 10.0**places
        if (np.abs(scaled - np.rint(scaled)) <= 1e-6 * np.maximum(np.abs(scaled), 1e-3)).all():
            return float(10.0**-places)
    return None


def moved_without_volume(clean: pd.DataFrame) -> Flag | None:
    """Return the bars whose price moved while their volume is 0; sizes are the range, basis points of the low."""
    high, low = clean["high"].to_numpy(), clean["low"].to_numpy()
    moved = (clean["volume"].to_numpy() == 0.0) & (high > low)
    return flag(
        "MOVED_WITHOUT_VOLUME", clean["open_time"][moved], 1e4 * (high[moved] / low[moved] - 1.0), "bps",
        "the price moved while volume is 0: these are quotes, or the volume of other trades; nothing was traded there",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Split:
    """Describe a move that looks like a share split.

    row     of the first bar after it
    factor  new shares for an old one: 4.0, of a reverse split 0.25
    volume  how many times larger the usual volume is after it; None where volume is not recorded or its noise hides it
    """

    row: int
    factor: float
    volume: float | None

    @property
    def name(self) -> str:
        """Return '4-for-1', of a reverse split '1-for-4'."""
        if self.factor > 1.0:
            return FACTORS[self.factor]
        return "-for-".join(reversed(FACTORS[_old_shares(self.factor)].split("-for-")))


def splits(clean: pd.DataFrame) -> list[Split]:
    """Return the moves to 1/n, or to n times, of the price (within its noise) while volume goes the other way.

    clean   ascending bars, schemas.BARS. A move is of a split if the price changed by a factor of FACTORS within its
            noise and the usual volume of NEAR_BARS on both sides by the same within its error. Where volume shows
            neither a split nor none, it may be one by its price alone: `volume` is None
    """
    opened, close, volume = (clean[name].to_numpy() for name in ("open", "close", "volume"))
    if len(close) < 2 * LEAST_SIDE:
        return []
    move = np.diff(np.log(close), prepend=np.nan)
    rows: Ints = np.flatnonzero(np.abs(move) > np.log(min(FACTORS)) - MOST_NOISE)
    found = (_split_at(int(row), opened, close, volume, move) for row in rows)
    return [split for split in found if split is not None]


def _split_at(row: int, opened: Floats, close: Floats, volume: Floats, move: Floats) -> Split | None:
    """Return the split whose first bar is `row`; None if it is none."""
    around = np.r_[move[max(1, row - NOISE_BARS) : row], move[row + 1 : row + 1 + NOISE_BARS]]
    if len(around) < 2 * LEAST_SIDE:
        return None
    noise = NOISE_SD * SD_OF_MAD * float(np.median(np.abs(around)))
    if noise > MOST_NOISE:
        return None
    gap = float(np.log(opened[row] / close[row - 1]))  # the open is nearer to the factor than a bar's trade later
    names = np.array([*FACTORS, *(1.0 / n for n in FACTORS)])
    off = np.abs(gap + np.log(names))
    factor = float(names[np.argmin(off)])
    if off.min() > max(noise, LEAST_NOISE):
        return None
    before, after = _logs(volume[max(0, row - NEAR_BARS) : row]), _logs(volume[row : row + NEAR_BARS])
    if min(len(before), len(after)) < LEAST_SIDE:
        return Split(row, factor, None)
    grown = float(after.mean() - before.mean())
    error = float(np.sqrt(before.var(ddof=1) / len(before) + after.var(ddof=1) / len(after)))
    if abs(grown - np.log(factor)) > max(OFF_ERRORS * error, 0.5 * abs(np.log(factor))):
        return None
    return Split(row, factor, float(np.exp(grown)) if abs(grown) > UNLIKE_ERRORS * error else None)


def _logs(volume: Floats) -> Floats:
    """Return the logs of the volumes above 0."""
    return np.asarray(np.log(volume[volume > 0.0]))


def _old_shares(factor: float) -> float:
    """Return the n of FACTORS of a reverse split, 1 / n."""
    return min(FACTORS, key=lambda n: abs(n - 1.0 / factor))


def split_flag(clean: pd.DataFrame, found: Sequence[Split], allowed: bool) -> Flag | None:
    """Return the flag of splits proved by price and volume; sizes are their factors."""
    proved = [split for split in found if split.volume is not None]
    rows = [split.row for split in proved]
    if not proved:
        return None
    one = proved[0]
    fell = "fell to" if one.factor > 1.0 else "rose to"
    share = f"1/{one.factor:g}" if one.factor > 1.0 else f"{_old_shares(one.factor):g} times"
    took = "taken as a real move, as data.quality.allow_splits says" if allowed else (
        "give prices adjusted for splits; if this is a real move, set data.quality.allow_splits in params.yaml"
    )  # fmt: skip
    cause = (
        f"{one.name} split on {clean['open_time'].iloc[one.row]:%F}: the price {fell} {share} of itself and volume is "
        f"{one.volume:.2g} times the usual one, as after a split: {took}"
    )
    return flag("SPLIT", clean["open_time"].iloc[rows], np.array([split.factor for split in proved]), "for one", cause)


def still(rows: pd.DataFrame) -> Bools:
    """Return (n,): whether a bar is only filled in: four prices equal to the close before, and no volume.

    rows   schemas.LAYOUT in time order
    """
    close = rows["close"].to_numpy()
    before = np.concatenate([close[:1], close[:-1]])  # before the first none is known: its own
    flat = ~(rows["volume"].to_numpy() > 0.0)
    for name in PRICES:
        flat &= rows[name].to_numpy() == before
    return np.asarray(flat)


def unproved(clean: pd.DataFrame, found: Sequence[Split]) -> list[str]:
    """Return day and name of the splits that volume neither proves nor disproves."""
    return [f"{clean['open_time'].iloc[one.row]:%F}: {one.name}" for one in found if one.volume is None]
