"""Data quality: usable rows, quarantined rows with their reasons, and one score in [0, 1].

    score = (1 - missing / expected) (1 - quarantined / rows) (1 - disordered / rows) (1 - stale / clean)

disordered = clean rows that came after a later one; stale = rows of `stale_bars` or more without any price change;
missing = bars that should lie between the first and the last clean bar and do not; expected = clean + missing.
Jumps are counted and flagged but do not lower the score: real markets jump. Training is blocked under the floor of
params.yaml (`data.quality_floor`); this module measures, it does not block.
"""

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.contracts import Floats
from pipelines.data import admission, collar
from pipelines.data.admission import Reasons
from pipelines.data.schemas import BARS, LAYOUT, PRICES, VALUES, check, epoch_seconds, stamps_of, to_matrix
from pipelines.data.timeframes import Grid
from pipelines.errors import BadTimes, NotEnoughData
from pipelines.params import QualityParams

RULES = QualityParams()  # where no params.yaml is at hand; the values of its `data.quality`
JUMP_BLOCK = 240  # bars of the median by which a jump is measured
# every reason of a quarantined row: what `admission` refuses, a copy, a spike
REASONS = (*admission.CODES, "DUPLICATE", "CONFLICT", admission.COLLAR)


@dataclass(frozen=True)
class QualityReport:
    """Hold the result of `assess`. clean + quarantined = the rows of the input.

    counts       checks → rows (gaps: number of gaps, missing: number of bars); every check is there, also at 0
    clean        satisfies schemas.BARS, ascending
    quarantined  the refused rows as they came, index = row number in the input, last column `reason` (see REASONS)
    flagged      clean rows to examine: open_time, flag (JUMP | STALE), size (robust sd of the move | run length)
    grid         where bars open and close, by which they are missing or not
    gaps         columns start, end (first missing and next present open_time), missing (bars)
    """

    score: float
    rows: int
    counts: dict[str, int]
    clean: pd.DataFrame
    quarantined: pd.DataFrame
    flagged: pd.DataFrame
    gaps: pd.DataFrame
    grid: Grid


def assess(
    frame: pd.DataFrame,
    grid: Grid,
    as_of: datetime,
    rules: QualityParams = RULES,
) -> QualityReport:
    """Check every row of `frame` (schemas.LAYOUT, any order) as of the moment `as_of` (aware).

    grid   where bars of this market open and close: stated, or as `sessions.infer_grid` finds it
    rules  from where on a standstill is stale, a move a jump, and a bar a spike
    Of rows with the same open_time the first good one stays: an equal one is DUPLICATE, another CONFLICT.
    Raises NotEnoughData on an empty frame, BadTimes on a naive `as_of`, BadColumns on columns other than LAYOUT.
    """
    if as_of.tzinfo is None:
        raise BadTimes(f"as_of {as_of} has no time zone. Pass an aware one, e.g. datetime.now(tz=UTC).")
    if frame.empty:
        raise NotEnoughData("no bars to assess: the frame is empty. Check the source and its period.")
    frame = check(frame.reset_index(drop=True), LAYOUT)
    order = np.argsort(_stamps(frame), kind="stable")  # equal times stay in the order they came; NaT last
    rows = frame.iloc[order]
    bars = to_matrix(rows)
    stamped = rows["ingested_at"].notna().to_numpy()
    known_s = np.where(stamped, epoch_seconds(rows["known_at"]), np.nan)
    reason = _copies(rows, admission.reasons(bars, grid, as_of, known_s))
    reason = _collared(bars, reason, rules)

    good = reason == ""
    clean = rows[good].reset_index(drop=True)
    quarantined = rows[~good].assign(reason=reason[~good].astype(object)).sort_index()
    gaps = _gaps(clean, grid)
    flagged = pd.concat([_stale(clean, rules.stale_bars), _jumps(clean, grid, rules.jump_mads)], ignore_index=True)
    flagged = flagged.sort_values("open_time", kind="stable")

    times = _stamps(rows[good].sort_index())  # good rows as they came: a stamp from the future disorders no other row
    disordered = int((times < np.maximum.accumulate(times)).sum())
    missing = int(gaps["missing"].sum())
    stale = int((flagged["flag"] == "STALE").sum())
    counts = {name.lower(): int((reason == name).sum()) for name in REASONS}
    counts |= {"disordered": disordered, "gaps": len(gaps), "missing": missing, "stale": stale}
    counts["jumps"] = int((flagged["flag"] == "JUMP").sum())
    score = 0.0
    if len(clean):
        score = len(clean) / (len(clean) + missing) * len(clean) / len(frame)
        score *= (1 - disordered / len(frame)) * (1 - stale / len(clean))
    return QualityReport(
        score,
        len(frame),
        counts,
        check(clean, BARS),
        quarantined,
        flagged.reset_index(drop=True),
        gaps,
        grid,
    )


def _collared(bars: Floats, reason: Reasons, rules: QualityParams) -> Reasons:
    """Return the reasons with the spikes among the good bars (n, 9) marked."""
    good = np.flatnonzero(reason == "")
    marked = reason.copy()
    marked[good[collar.spikes(bars[good], rules).found]] = admission.COLLAR
    return marked


def _copies(rows: pd.DataFrame, reason: Reasons) -> Reasons:
    """Return the reasons with all but the first good row of each open_time marked."""
    good = np.flatnonzero(reason == "")
    times = _stamps(rows)[good]
    if len(good) == 0:
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


def _gaps(clean: pd.DataFrame, grid: Grid) -> pd.DataFrame:
    """Return the gaps of clean bars: start, end, missing; see QualityReport."""
    times = _seconds(clean)
    missing = grid.missing(times) if len(times) > 1 else np.empty(0, dtype=np.int64)
    before = np.flatnonzero(missing > 0)
    first_missing = grid.opens(grid.slots(times[before]) + 1)
    return pd.DataFrame(
        {
            "start": stamps_of(np.rint(first_missing * 1e6).astype(np.int64)),
            "end": clean["open_time"].iloc[before + 1].reset_index(drop=True),
            "missing": missing[before],
        }
    )


def _stale(clean: pd.DataFrame, least: int) -> pd.DataFrame:
    """Return the rows inside runs of `least` or more bars whose four prices all equal the close before."""
    prices = clean[list(PRICES)].to_numpy()
    still = np.zeros(len(clean), dtype=bool)
    still[1:] = (prices[1:] == prices[:-1, 3:4]).all(axis=1)
    run = np.cumsum(~still)  # one number a run; its first member is the bar that still moved
    length = np.bincount(run, still, run[-1] + 1 if len(run) else 0)
    hit = still & (length[run] >= least) if len(run) else still
    return pd.DataFrame(
        {"open_time": clean["open_time"][hit], "flag": "STALE", "size": length[run][hit] if len(run) else []}
    )


def _jumps(clean: pd.DataFrame, grid: Grid, most: float) -> pd.DataFrame:
    """Return the moves over `most` robust sd (1.4826 x median |log return|); the scale is the median move of the JUMP_BLOCK bars before."""
    n = len(clean)
    move = np.abs(np.diff(np.log(clean["close"].to_numpy()), prepend=np.nan))
    elapsed = np.r_[np.nan, grid.missing(_seconds(clean)) + 1.0][: len(clean)]
    move = move / np.sqrt(elapsed)  # a move over a gap is that of a longer bar
    whole = move[1 : 1 + (n - 1) // JUMP_BLOCK * JUMP_BLOCK].reshape(-1, JUMP_BLOCK)
    scale = np.repeat(
        np.r_[np.nan, 1.4826 * np.median(whole, axis=1)], JUMP_BLOCK
    )  # the first block has none before it
    scale = np.r_[np.nan, scale][:n]
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where(scale > 0, move / scale, np.nan)  # a market that stood still has no scale
    hit = size > most
    return pd.DataFrame({"open_time": clean["open_time"][hit], "flag": "JUMP", "size": size[hit]})


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
    spread = 1.4826 * float(np.median(np.abs(bps - usual)))
    odd = np.abs(bps - usual) > max(rules.divergent_mads * spread, rules.divergent_bps)
    return Divergence(len(both), usual, both.loc[odd, ["open_time"]].assign(bps=bps[odd]).reset_index(drop=True))
