"""Which bars are taken: one rule for a file, for what is observed, and for what a person corrects (law L11).

`RULES`, which `_broken` walks, are the whole rule for one bar; the first one it breaks names it. A history is sorted
and its copies are marked by `quality.assess`, which quarantines what breaks a rule; a request is refused whole by
`require`, which also refuses rows out of order and bars of another timeframe. Bars far outside the range before them
are held back by `pipelines.data.collar`, in either case.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt

from pipelines.compiled import kernel
from pipelines.contracts import (
    BAR_FIELDS,
    BAR_WIDTH,
    CLOSE,
    HALF_SPREAD,
    HIGH,
    LOW,
    OPEN,
    OPEN_TIME,
    TAKER_BUY,
    VOLUME,
    Bools,
    Floats,
    Ints,
    utc,
)
from pipelines.data.timeframes import TIMEFRAMES, Grid
from pipelines.errors import BadShape, BadTimes, BadValues

Reasons = npt.NDArray[np.object_]  # of str
CLOCK_SKEW = timedelta(seconds=5)  # how far a sender's clock may be ahead of ours
EARLIEST_S, LATEST_S = 0.0, 7_258_118_400.0  # 1970 and 2200: every clock, store and calendar holds what lies between
LARGEST = 1e18  # the volume of a very cheap coin; products of larger numbers overflow float64
SMALLEST_ABOVE_0 = 1e-15
LEAST_SPACINGS = 3  # spacings between the bars of one request that show a timeframe
OPENS_BEFORE = 5  # spacings that do over several requests: a quiet market may leave a few equal gaps by chance
SAME_SPACING = 0.8  # share of them that are the same


@dataclass(frozen=True, slots=True)
class Rule:
    """Name one way in which a bar is impossible; `_broken` says which bars break it.

    code   what it is called in counts, in the quarantine and in answers
    of     whether a refusal raises BadTimes or BadValues
    why    after the value in a refusal; {grid}, {symbol} and {now} are filled in
    """

    code: str
    of: Literal["time", "value"]  # no class: kernels read what stands in this module, and are compiled without errors
    why: str


_PRICE = "must be a finite price above 0"
_AMOUNT = "must be finite and not negative; leave it out if the source has none"
_RANGE = f"lies outside of {SMALLEST_ABOVE_0:g} to {LARGEST:g}, which are the numbers taken; state the unit right"
RULES: tuple[Rule, ...] = (
    Rule("NO_TIME", "time", "is not a time"),
    Rule("OUT_OF_RANGE", "time", "does not lie between 1970 and 2200"),
    Rule("NON_FINITE", "value", _PRICE),
    Rule("NON_FINITE", "value", _AMOUNT),
    Rule("NON_POSITIVE", "value", _PRICE),
    Rule("NON_POSITIVE", "value", _AMOUNT),
    Rule("OUT_OF_RANGE", "value", _RANGE),
    Rule("OHLC_ORDER", "value", "is below low"),
    Rule("OHLC_ORDER", "value", "is below open or close"),
    Rule("OHLC_ORDER", "value", "is above open or close"),
    Rule("TAKER_OVER_VOLUME", "value", "is more than volume"),
    Rule("SPREAD", "value", _AMOUNT),
    Rule("SPREAD", "value", "is not below low; it is (ask - bid) / 2 in quote currency"),
    Rule("FUTURE", "time", "has not closed yet at {now}; send closed bars only"),
    Rule("OFF_GRID", "time", "opens no bar of {grid}, which {symbol} has"),
)
TAKEN = len(RULES)


@kernel
def _broken(bar: Floats, known_s: float, until_s: float, on_grid: bool) -> tuple[int, int]:
    """Return the place in RULES of the first rule that a bar (9,) breaks, and the first field; TAKEN of none.

    known_s, until_s  when it is known, and until when it may be, epoch seconds; on_grid: it opens a bar of the market
    """
    opened = bar[OPEN_TIME]
    if not np.isfinite(opened + known_s):
        return 0, OPEN_TIME
    if opened < EARLIEST_S or opened > LATEST_S:
        return 1, OPEN_TIME
    for field in range(OPEN, VOLUME):
        if not np.isfinite(bar[field]):
            return 2, field
    for field in range(VOLUME, BAR_WIDTH):
        if np.isinf(bar[field]):
            return 3, field
    for field in range(OPEN, VOLUME):
        if bar[field] <= 0.0:
            return 4, field
    for field in range(VOLUME, HALF_SPREAD):
        if bar[field] < 0.0:
            return 5, field
    for field in range(OPEN, BAR_WIDTH):
        if bar[field] > LARGEST or 0.0 < bar[field] < SMALLEST_ABOVE_0:
            return 6, field
    if bar[HIGH] < bar[LOW]:
        return 7, HIGH
    if bar[HIGH] < max(bar[OPEN], bar[CLOSE]):
        return 8, HIGH
    if bar[LOW] > min(bar[OPEN], bar[CLOSE]):
        return 9, LOW
    if bar[TAKER_BUY] > bar[VOLUME]:
        return 10, TAKER_BUY
    if bar[HALF_SPREAD] < 0.0:
        return 11, HALF_SPREAD
    if bar[HALF_SPREAD] >= bar[LOW]:
        return 12, HALF_SPREAD
    if known_s > until_s:
        return 13, OPEN_TIME
    if not on_grid:
        return 14, OPEN_TIME
    return TAKEN, OPEN_TIME


@kernel
def _find_broken(rows: Floats, known_s: Floats, until_s: float, on_grid: Bools, out: Ints) -> None:
    """Fill out (n, 2) with what `_broken` returns of each of rows (n, 9), known_s (n,) and on_grid (n,)."""
    for i in range(rows.shape[0]):
        out[i, 0], out[i, 1] = _broken(rows[i], known_s[i], until_s, on_grid[i])


COLLAR = "COLLAR"  # far outside the range before it, see pipelines.data.collar
SET_ASIDE = "SET_ASIDE"  # accepted once, then taken out by a person
CODES = tuple(dict.fromkeys(rule.code for rule in RULES))  # each once, in the order of RULES


def reasons(rows: Floats, grid: Grid, now: datetime, known_s: Floats | None = None) -> Reasons:
    """Return (n,) the code of the first rule that each bar breaks, "" for one that is taken.

    rows     (n, 9) in BAR_FIELDS order, any order of time; a NaN amount or spread means "not recorded"
    now      aware
    known_s  (n,) epoch seconds at which each bar is known, NaN where that is not stated; None: its close by the grid
    """
    broken = _first_broken(rows, grid, now, known_s)[:, 0]
    found = np.full(len(rows), "", dtype=object)
    bad = np.flatnonzero(broken < TAKEN)
    found[bad] = np.array([rule.code for rule in RULES], dtype=object)[broken[bad]]
    return found


def require(
    rows: Floats, grid: Grid, now: datetime, symbol: str = "the market", opens_before: tuple[float, ...] = ()
) -> None:
    """Raise BadShape, BadTimes or BadValues, naming `bars.<row>.<field>`, unless all bars of a request are taken.

    rows          (n, 9), ascending, of `symbol`
    now           aware; a bar may close up to CLOCK_SKEW after it
    opens_before  open times of the newest bars before them, ascending: with them the timeframe of few bars shows
    """
    if rows.ndim != 2 or rows.shape[1] != BAR_WIDTH or len(rows) == 0:
        raise BadShape(f"bars: shape {rows.shape}, expected (n, {BAR_WIDTH}) with at least one row")
    stored = "Nothing of this request was stored."
    if (other := _other_timeframe(rows[:, OPEN_TIME], grid, opens_before)) is not None:
        raise BadTimes(
            f"bars.0.open_time: the bars are {other} apart, {symbol} holds bars of {grid.timeframe}. Send bars of "
            f"{grid.timeframe}, or train {symbol} on {other} bars with `bellwether run`. {stored}"
        )
    broken = _first_broken(rows, grid, now + CLOCK_SKEW, None)
    times = rows[:, OPEN_TIME]
    refused = broken[:, 0] < TAKEN
    refused[1:] |= times[1:] <= times[:-1]
    if not refused.any():
        return
    i = int(refused.argmax())
    place, field = broken[i].tolist()
    if place == TAKEN:
        raise BadTimes(f"bars.{i}.open_time: {_shown(times[i])} is not after the bar before; sort them. {stored}")
    rule, value = RULES[place], rows[i, field]
    shown = _shown(value) if field == OPEN_TIME else f"{value:g}"
    why = rule.why.format(grid=grid.describe(), symbol=symbol, now=f"{now:%F %T} UTC")
    error = BadTimes if rule.of == "time" else BadValues
    raise error(f"bars.{i}.{BAR_FIELDS[field]}: {shown} {why}. {stored}")


def _first_broken(rows: Floats, grid: Grid, until: datetime, known_s: Floats | None) -> Ints:
    """Return (n, 2) what `_broken` finds of each bar; known_s None: its close by the grid."""
    times = rows[:, OPEN_TIME]
    on_grid = grid.on_grid(np.where(np.abs(times) <= LATEST_S, times, 0.0))  # 0 where a row has no time
    out = np.empty((len(rows), 2), dtype=np.int64)
    flat = (np.ascontiguousarray(part) for part in (rows, grid.closes(times) if known_s is None else known_s))
    _find_broken(*flat, until.timestamp(), on_grid, out)
    return out


def _other_timeframe(opens: Floats, grid: Grid, before: tuple[float, ...]) -> str | None:
    """Return the timeframe of ascending opens where they show another one than the grid's; None where they do not."""
    if before and opens[0] - before[-1] == grid.step_s:  # as below
        return None
    times = np.concatenate([np.array(before, dtype=np.float64), opens])
    if not np.isfinite(times).all() or np.any(np.abs(times) > LATEST_S):
        return None
    steps = np.diff(times)
    if (len(opens) <= LEAST_SPACINGS and len(steps) < OPENS_BEFORE) or not (steps > 0).all():
        return None
    if (steps == grid.step_s).any():  # bars of the grid; any others among them do not open one
        return None
    usual, counts = np.unique(steps, return_counts=True)
    step, share = float(usual[counts.argmax()]), counts.max() / len(steps)
    name = next((name for name, length in TIMEFRAMES.items() if length == step), None)
    if name is None or share < SAME_SPACING or (usual % step).any():
        return None
    if step < grid.step_s:
        return None if grid.on_grid(times).all() else name  # the last bar of a session is a short one
    slots = grid.slots(times)
    is_coarser = step > grid.step_s and (slots >= 0).all() and (np.diff(slots) > 1).all()
    return name if is_coarser else None


def _shown(value: float) -> str:
    """Return an open time as text."""
    return f"{utc(value):%F %T} UTC" if np.isfinite(value) and abs(value) <= LATEST_S else f"{value:g}"
