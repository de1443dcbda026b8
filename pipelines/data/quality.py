"""Data quality: usable rows, quarantined rows with their reasons, flags with place and cause, and one score in [0, 1].

    score = (1 - missing / expected) (1 - quarantined / rows) (1 - disordered / rows) (1 - stale / clean)

disordered = clean rows that came after a later one; stale = rows of `stale_bars` or more without any price change;
missing = bars that should lie between the first and the last clean bar and do not come at all (a quarantined one did);
expected = clean + missing. Bars that are only filled in while the market is shut are left out before anything is
counted. Jumps are counted and flagged but do not lower the score: real markets jump. Training is blocked under the
floor of params.yaml (`data.quality_floor`), and by a share split; this module measures, it does not block.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.contracts import Bools, Floats
from pipelines.data import admission, collar
from pipelines.data.admission import Reasons
from pipelines.data.findings import (
    CAUSES,
    Flag,
    disorder_flag,
    gap_flag,
    holiday_flag,
    jump_flag,
    listed,
    moments_of,
    quarantine_flags,
    shut_flag,
    stale_flag,
)
from pipelines.data.proofs import (
    SD_OF_MAD,
    Split,
    check_prices,
    moved_without_volume,
    not_recorded,
    split_flag,
    splits,
    still,
    unproved,
)
from pipelines.data.schemas import (
    BARS,
    LAYOUT,
    PRICES,
    VALUES,
    check,
    epoch_seconds,
    in_order,
    numbered,
    to_matrix,
)
from pipelines.data.timeframes import Grid
from pipelines.errors import BadTimes, NotEnoughData
from pipelines.market_params import QualityParams

RULES = QualityParams()  # where no params.yaml is at hand; the values of its `data.quality`
PART = 65_536  # rows of which the rules are asked at a time
JUMP_BLOCK = 240  # bars of the median by which a jump is measured
LEAST_MOVES = 20  # of a first block, by whose own median its jumps are measured
REASONS = tuple(CAUSES)  # what `admission` refuses, a copy, a spike


@dataclass(frozen=True)
class QualityReport:
    """Hold the result of `assess`. clean + quarantined + those left out as SHUT = the rows of the input.

    rows         of the input, without those left out
    counts       checks → rows (gaps: number of gaps, missing: number of bars); every check is there, also at 0
    clean        satisfies schemas.BARS, ascending; an amount that nobody recorded is NaN. It is the frame of the caller
                 where there was nothing to leave out: never change it in place
    quarantined  the refused rows as they came, index = row number in the input, last column `reason` (see REASONS)
    flagged      clean rows to examine: open_time, flag (JUMP | STALE | SPLIT), size (robust sd of the move | run
                 length | factor)
    flags        everything found, with places, sizes and cause
    grid         where bars open and close, by which they are missing or not
    gaps         columns start, end (first missing and next present open_time), missing (bars)
    blocked      why nothing may be trained on these bars whatever their score; None if nothing forbids it
    """

    score: float
    rows: int
    counts: dict[str, int]
    clean: pd.DataFrame
    quarantined: pd.DataFrame
    flagged: pd.DataFrame
    gaps: pd.DataFrame
    grid: Grid
    flags: tuple[Flag, ...] = ()
    blocked: str | None = None


def assess(
    frame: pd.DataFrame,
    grid: Grid,
    as_of: datetime,
    rules: QualityParams = RULES,
) -> QualityReport:
    """Check every row of `frame` (schemas.LAYOUT, any order) as of the moment `as_of` (aware).

    grid   where bars of this market open and close: stated, or as `sessions.market_grid` finds it
    rules  from where on a standstill is stale, a move a jump, and a bar a spike
    Of rows with the same open_time the first good one stays: an equal one is DUPLICATE, another CONFLICT.
    Raises NotEnoughData on an empty frame, BadTimes on a naive `as_of`, BadColumns on columns other than LAYOUT or on
    swapped prices, BadValues on prices written with too few places.
    """
    if as_of.tzinfo is None:
        raise BadTimes(f"as_of {as_of} has no time zone. Pass an aware one, e.g. datetime.now(tz=UTC).")
    if frame.empty:
        raise NotEnoughData("no bars to assess: the frame is empty. Check the source and its period.")
    frame = check(numbered(frame), LAYOUT)
    check_prices(frame)
    frame, unrecorded = not_recorded(frame)
    rows = in_order(frame)
    shut = _shut(rows, grid)
    filled, rows = rows[shut], _kept(rows, ~shut)
    reason = _collared(rows, _copies(rows, _admitted(rows, grid, as_of)), rules)

    good = reason == ""
    usable = _kept(rows, good)
    clean = numbered(usable)
    quarantined = rows[~good].assign(reason=reason[~good].astype(object)).sort_index()
    gaps = _gaps(clean, _came(rows, clean, grid), grid)
    found = splits(clean)
    stale, jumps = _stale(clean, rules.stale_bars), _jumps(clean, grid, rules.jump_mads)
    split = _split_rows(clean, found)
    jumps = jumps[~jumps["open_time"].isin(split["open_time"])]
    flagged = pd.concat([stale, jumps, split], ignore_index=True).sort_values("open_time", kind="stable")

    # good rows as they came: a stamp from the future disorders no other row
    came = usable if usable.index.is_monotonic_increasing else usable.sort_index()
    times = _stamps(came)
    behind = times < np.maximum.accumulate(times)
    n, missing, disordered = len(rows), int(gaps["missing"].sum()), int(behind.sum())
    refused = quarantined["reason"].value_counts()
    counts = {name.lower(): int(refused.get(name, 0)) for name in REASONS}
    counts |= {"disordered": disordered, "gaps": len(gaps), "missing": missing, "stale": len(stale)}
    counts |= {"jumps": len(jumps), "splits": len(split), "shut": len(filled)}
    score = 0.0
    if len(clean):
        score = len(clean) / (len(clean) + missing) * len(clean) / n
        score *= (1 - disordered / n) * (1 - len(stale) / len(clean))
    flags = listed(
        (
            *unrecorded,
            shut_flag(filled, grid),
            *quarantine_flags(quarantined, grid),
            gap_flag(gaps, grid),
            holiday_flag(clean, grid),
            disorder_flag(came[behind]),
            stale_flag(clean, stale),
            split_flag(clean, found, rules.allow_splits),
            jump_flag(jumps, unproved(clean, found)),
            moved_without_volume(clean),
        )
    )
    forbids = [one.cause for one in flags if one.code == "SPLIT"] if not rules.allow_splits else []
    return QualityReport(
        score,
        n,
        counts,
        check(clean, BARS),
        quarantined,
        flagged.reset_index(drop=True),
        gaps,
        grid,
        flags,
        forbids[0] if forbids else None,
    )


def _kept(rows: pd.DataFrame, kept: Bools) -> pd.DataFrame:
    """Return the rows where `kept` (n,) is True; all of them without a copy."""
    return rows if kept.all() else rows[kept]


def _shut(rows: pd.DataFrame, grid: Grid) -> Bools:
    """Return (n,): whether a row is only filled in at a time at which the market is shut; rows in time order."""
    if grid.calendar.always_open:
        return np.zeros(len(rows), dtype=bool)
    seconds = _seconds(rows)
    shut = np.isfinite(seconds)
    shut[shut] = grid.slots(seconds[shut]) < 0
    return np.asarray(still(rows) & shut)


def _came(rows: pd.DataFrame, clean: pd.DataFrame, grid: Grid) -> Floats:
    """Return the opens of bars that came, ascending and on the grid, from the first clean bar to the last.

    A quarantined bar came: it is counted once, as quarantined, and leaves no gap.
    """
    if clean.empty:
        return np.empty(0)
    own = _seconds(clean)
    if len(rows) == len(own):
        return own
    times = np.unique(_seconds(rows))
    times = times[(times >= own[0]) & (times <= own[-1])]  # False for NaN
    return np.asarray(times if len(times) == len(own) else times[grid.on_grid(times)])


def _admitted(rows: pd.DataFrame, grid: Grid, as_of: datetime) -> Reasons:
    """Return the first rule of admission that each row breaks, "" for none; in parts that stay in the CPU's cache."""
    parts = [np.empty(0, dtype=object)]
    for start in range(0, len(rows), PART):
        part = rows.iloc[start : start + PART]
        known_s = np.where(part["ingested_at"].notna().to_numpy(), epoch_seconds(part["known_at"]), np.nan)
        parts.append(admission.reasons(to_matrix(part), grid, as_of, known_s))
    return np.concatenate(parts)


def _collared(rows: pd.DataFrame, reason: Reasons, rules: QualityParams) -> Reasons:
    """Return the reasons with the spikes among the good rows marked."""
    good = np.flatnonzero(reason == "")
    usable = rows if len(good) == len(rows) else rows.iloc[good]
    if not collar.leaps(usable["high"].to_numpy(), usable["low"].to_numpy(), rules):
        return reason
    found = collar.spikes(to_matrix(usable), rules).found
    if not found.any():
        return reason
    # the bars next to a split look like spikes near the ends of a history, or where the next is inside
    for row in (split.row for split in splits(rows.iloc[good]) if split.volume is not None):
        usual = np.flatnonzero(~found)
        before, after = usual[usual < row], usual[usual >= row]
        found[before[-1] + 1 if len(before) else 0 : after[0] if len(after) else len(found)] = False
    marked = reason.copy()
    marked[good[found]] = admission.COLLAR
    return marked


def _copies(rows: pd.DataFrame, reason: Reasons) -> Reasons:
    """Return the reasons with all but the first good row of each open_time marked."""
    good = np.flatnonzero(reason == "")
    times = _stamps(rows)[good]
    if (times[1:] != times[:-1]).all():
        return reason
    new = np.r_[True, times[1:] != times[:-1]]
    first = good[np.maximum.accumulate(np.where(new, np.arange(len(good)), 0))]
    values = rows[list(VALUES)].to_numpy()
    copies, originals = good[~new], first[~new]
    a, b = values[copies], values[originals]
    same = ((a == b) | (np.isnan(a) & np.isnan(b))).all(axis=1)
    marked = reason.copy()
    marked[copies] = np.where(same, "DUPLICATE", "CONFLICT")
    return marked


def _stamps(rows: pd.DataFrame) -> npt.NDArray[np.datetime64]:
    """Return (n,) open times as datetime64[us]."""
    return np.asarray(rows["open_time"].to_numpy("datetime64[us]"))


def _seconds(clean: pd.DataFrame) -> Floats:
    """Return (n,) open times as epoch seconds."""
    return epoch_seconds(clean["open_time"])


def _gaps(clean: pd.DataFrame, times: Floats, grid: Grid) -> pd.DataFrame:
    """Return the gaps between the opens that came: start, end, missing; see QualityReport."""
    missing = grid.missing(times) if len(times) > 1 else np.empty(0, dtype=np.int64)
    before = np.flatnonzero(missing > 0)
    first_missing = grid.opens(grid.slots(times[before]) + 1)
    return pd.DataFrame(
        {
            "start": moments_of(first_missing),
            "end": moments_of(times[before + 1]),
            "missing": missing[before],
        }
    )


def _stale(clean: pd.DataFrame, least: int) -> pd.DataFrame:
    """Return the rows inside runs of `least` or more bars whose four prices all equal the close before."""
    before = clean["close"].to_numpy()[:-1]
    unmoved = np.zeros(len(clean), dtype=bool)
    unmoved[1:] = np.logical_and.reduce([clean[name].to_numpy()[1:] == before for name in PRICES])
    run = np.cumsum(~unmoved)  # one number a run; its first member is the bar that unmoved moved
    length = np.bincount(run, unmoved, run[-1] + 1 if len(run) else 0)
    hit = unmoved & (length[run] >= least) if len(run) else unmoved
    return pd.DataFrame(
        {"open_time": clean["open_time"][hit], "flag": "STALE", "size": length[run[hit]] if len(run) else []}
    )


def _jumps(clean: pd.DataFrame, grid: Grid, most: float) -> pd.DataFrame:
    """Return the moves over `most` robust sd (1.4826 x median |log return|) of the JUMP_BLOCK bars before them.

    The first JUMP_BLOCK are measured by their own median.
    """
    n = len(clean)
    if n < 2:
        return pd.DataFrame({"open_time": clean["open_time"][:0], "flag": "JUMP", "size": []})
    move = np.diff(np.log(clean["close"].to_numpy()))
    np.abs(move, out=move)
    missing = grid.missing(_seconds(clean))
    if missing.any():
        move /= np.sqrt(missing + 1.0)  # a move over a gap is that of a longer bar
    whole = move[: len(move) // JUMP_BLOCK * JUMP_BLOCK].reshape(-1, JUMP_BLOCK)
    first = move[:JUMP_BLOCK]  # nothing is before it: measured by itself, which one move in it does not change
    own = np.median(first) if len(first) >= LEAST_MOVES else np.nan
    scale = np.repeat(SD_OF_MAD * np.r_[own, np.median(whole, axis=1)], JUMP_BLOCK)[: len(move)]
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.r_[np.nan, np.where(scale > 0, move / scale, np.nan)]  # a market that stood still has no scale
    hit = size > most
    return pd.DataFrame({"open_time": clean["open_time"][hit], "flag": "JUMP", "size": size[hit]})


def _split_rows(clean: pd.DataFrame, found: list[Split]) -> pd.DataFrame:
    """Return the bars on which splits are proved by price and volume, as `flagged` has them; sizes are factors."""
    proved = [split for split in found if split.volume is not None]
    opens = clean["open_time"].iloc[[split.row for split in proved]]
    return pd.DataFrame({"open_time": opens, "flag": "SPLIT", "size": [split.factor for split in proved]})


@dataclass(frozen=True)
class Divergence:
    """Compare two sources of one market, on the bars both have.

    n            shared bars; median_bps: how far `a` usually lies above `b`, basis points of price
    flagged      shared bars whose closes differ otherwise than usual: open_time, bps
    """

    n: int
    median_bps: float
    flagged: pd.DataFrame


def cross_source_divergence(a: pd.DataFrame, b: pd.DataFrame, rules: QualityParams = RULES) -> Divergence:
    """Return where two sources of the same symbol and timeframe disagree (D5).

    It is reported and lowers no score: the data do not show which of the two is wrong.
    a, b    bars frames; Raises NotEnoughData where they share fewer than ten bars
    """
    both = a[["open_time", "close"]].merge(b[["open_time", "close"]], on="open_time", suffixes=("_a", "_b"))
    if len(both) < 10:
        raise NotEnoughData(f"{len(both)} bars are in both sources, needs 10 to compare. Check symbol and period.")
    bps = 1e4 * np.log(both["close_a"].to_numpy() / both["close_b"].to_numpy())
    usual = float(np.median(bps))
    spread = SD_OF_MAD * float(np.median(np.abs(bps - usual)))
    odd = np.abs(bps - usual) > max(rules.divergent_mads * spread, rules.divergent_bps)
    return Divergence(len(both), usual, both.loc[odd, ["open_time"]].assign(bps=bps[odd]).reset_index(drop=True))
