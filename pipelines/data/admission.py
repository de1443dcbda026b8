"""Which bars are taken: one rule for a file, for what is observed, and for what a person corrects (law L11).

`RULES` is the whole rule for one bar; the first one it breaks names it. A history is sorted and its copies are marked
by `quality.assess`, which quarantines what breaks a rule; a request is refused whole by `require`, which also refuses
rows out of order and bars of another timeframe. Bars far outside the range before them are held back by
`pipelines.data.collar`, in either case.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

import numpy as np
import numpy.typing as npt

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
    TRADES,
    VOLUME,
    Bools,
    Floats,
    utc,
)
from pipelines.data.timeframes import TIMEFRAMES, Grid
from pipelines.errors import BadShape, BadTimes, BadValues

Reasons = npt.NDArray[np.object_]  # of str
CLOCK_SKEW = timedelta(seconds=5)  # how far a sender's clock may be ahead of ours
EARLIEST_S, LATEST_S = 0.0, 7_258_118_400.0  # 1970 and 2200: every clock, store and calendar holds what lies between
LARGEST = 1e18  # the volume of a very cheap coin; products of larger numbers overflow float64
SMALLEST_ABOVE_0 = 1e-15
PRICE_FIELDS, AMOUNT_FIELDS = (OPEN, HIGH, LOW, CLOSE), (VOLUME, TRADES, TAKER_BUY, HALF_SPREAD)
LEAST_SPACINGS = 3  # spacings between the bars of one request that show a timeframe
OPENS_BEFORE = 5  # spacings that do over several requests: a quiet market may leave a few equal gaps by chance
SAME_SPACING = 0.8  # share of them that are the same


@dataclass(frozen=True)
class Given:
    """Hold what a rule reads of bars: rows (n, 9), their grid, when each is known, until when one may be."""

    rows: Floats
    grid: Grid
    known_s: Floats
    until_s: float

    @cached_property
    def times(self) -> Floats:
        """Return (n,) open times, 0 where a row has none."""
        times = self.rows[:, OPEN_TIME]
        return np.where(np.isfinite(times) & (np.abs(times) <= LATEST_S), times, 0.0)

    def of(self, field: int) -> Floats:
        """Return (n,) values of a field."""
        return self.rows[:, field]

    @cached_property
    def prices(self) -> Floats:
        """Return (n, 4) prices."""
        return self.rows[:, OPEN : CLOSE + 1]

    @cached_property
    def amounts(self) -> Floats:
        """Return (n, 4) amounts and half spread."""
        return self.rows[:, VOLUME:]


@dataclass(frozen=True, slots=True)
class Rule:
    """Name one way in which a bar is impossible.

    code     what it is called in counts, in the quarantine and in answers
    fields   the fields of which it demands the same; a refusal names the first that breaks it
    error    what a refusal raises
    why      after the value in a refusal; {grid}, {symbol} and {now} are filled in
    breaks   (n, fields) or, of one field, (n,): where it is broken
    """

    code: str
    fields: tuple[int, ...]
    error: type[BadTimes] | type[BadValues]
    why: str
    breaks: Callable[[Given], Bools]


def _body(given: Given, pick: Callable[[Floats, Floats], Floats]) -> Floats:
    """Return (n,) the higher or lower of open and close."""
    return pick(given.of(OPEN), given.of(CLOSE))


def _beyond(values: Floats) -> Bools:
    """Return where a value is larger, or nearer to 0, than stores and products can hold; other rules refuse signs."""
    return np.asarray((values > LARGEST) | ((values > 0) & (values < SMALLEST_ABOVE_0)))


_PRICE = "must be a finite price above 0"
_AMOUNT = "must be finite and not negative; leave it out if the source has none"
_RANGE = f"lies outside of {SMALLEST_ABOVE_0:g} to {LARGEST:g}, which are the numbers taken; state the unit right"
_TIME = (OPEN_TIME,)
RULES: tuple[Rule, ...] = (
    Rule("NO_TIME", _TIME, BadTimes, "is not a time", lambda g: ~np.isfinite(g.of(OPEN_TIME) + g.known_s)),
    Rule(
        "OUT_OF_RANGE",
        _TIME,
        BadTimes,
        "does not lie between 1970 and 2200",
        lambda g: (g.of(OPEN_TIME) < EARLIEST_S) | (g.of(OPEN_TIME) > LATEST_S),
    ),
    Rule("NON_FINITE", PRICE_FIELDS, BadValues, _PRICE, lambda g: ~np.isfinite(g.prices)),
    Rule("NON_FINITE", AMOUNT_FIELDS, BadValues, _AMOUNT, lambda g: np.isinf(g.amounts)),
    Rule("NON_POSITIVE", PRICE_FIELDS, BadValues, _PRICE, lambda g: g.prices <= 0),
    Rule("NON_POSITIVE", AMOUNT_FIELDS[:-1], BadValues, _AMOUNT, lambda g: g.amounts[:, :-1] < 0),
    Rule("OUT_OF_RANGE", (*PRICE_FIELDS, *AMOUNT_FIELDS), BadValues, _RANGE, lambda g: _beyond(g.rows[:, OPEN:])),
    Rule("OHLC_ORDER", (HIGH,), BadValues, "is below low", lambda g: g.of(HIGH) < g.of(LOW)),
    Rule("OHLC_ORDER", (HIGH,), BadValues, "is below open or close", lambda g: g.of(HIGH) < _body(g, np.maximum)),
    Rule("OHLC_ORDER", (LOW,), BadValues, "is above open or close", lambda g: g.of(LOW) > _body(g, np.minimum)),
    Rule("TAKER_OVER_VOLUME", (TAKER_BUY,), BadValues, "is more than volume", lambda g: g.of(TAKER_BUY) > g.of(VOLUME)),
    Rule("SPREAD", (HALF_SPREAD,), BadValues, _AMOUNT, lambda g: g.of(HALF_SPREAD) < 0),
    Rule(
        "SPREAD",
        (HALF_SPREAD,),
        BadValues,
        "is not below low; it is (ask - bid) / 2 in quote currency",
        lambda g: g.of(HALF_SPREAD) >= g.of(LOW),
    ),
    Rule(
        "FUTURE", _TIME, BadTimes, "has not closed yet at {now}; send closed bars only", lambda g: g.known_s > g.until_s
    ),
    Rule(
        "OFF_GRID",
        _TIME,
        BadTimes,
        "opens no bar of {grid}, which {symbol} has",
        lambda g: ~g.grid.on_grid(g.times),
    ),
)
COLLAR = "COLLAR"  # far outside the range before it, see pipelines.data.collar
SET_ASIDE = "SET_ASIDE"  # accepted once, then taken out by a person
CODES = tuple(dict.fromkeys(rule.code for rule in RULES))  # each once, in the order of RULES


def reasons(rows: Floats, grid: Grid, now: datetime, known_s: Floats | None = None) -> Reasons:
    """Return (n,) the code of the first rule that each bar breaks, "" for one that is taken.

    rows     (n, 9) in BAR_FIELDS order, any order of time; a NaN amount or spread means "not recorded"
    now      aware
    known_s  (n,) epoch seconds at which each bar is known, NaN where that is not stated; None: its close by the grid
    """
    broken = _first_broken(_given(rows, grid, now, known_s))
    found = np.full(len(rows), "", dtype=object)
    bad = np.flatnonzero(broken < len(RULES))
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
    given = _given(rows, grid, now + CLOCK_SKEW, None)
    broken = _first_broken(given)
    times = rows[:, OPEN_TIME]
    unsorted = np.diff(times, prepend=-np.inf) <= 0
    refused = (broken < len(RULES)) | unsorted
    if not refused.any():
        return
    i = int(refused.argmax())
    if broken[i] == len(RULES):
        raise BadTimes(f"bars.{i}.open_time: {_shown(times[i])} is not after the bar before; sort them. {stored}")
    rule = RULES[broken[i]]
    field = rule.fields[int(rule.breaks(given).reshape(len(rows), -1)[i].argmax())]
    value = rows[i, field]
    shown = _shown(value) if field == OPEN_TIME else f"{value:g}"
    why = rule.why.format(grid=grid.describe(), symbol=symbol, now=f"{now:%F %T} UTC")
    raise rule.error(f"bars.{i}.{BAR_FIELDS[field]}: {shown} {why}. {stored}")


def _given(rows: Floats, grid: Grid, until: datetime, known_s: Floats | None) -> Given:
    """Return what the rules read; known_s None: the close of each bar by the grid."""
    with np.errstate(invalid="ignore"):
        columns = np.asfortranarray(rows)  # rules read whole columns
        return Given(columns, grid, grid.closes(rows[:, OPEN_TIME]) if known_s is None else known_s, until.timestamp())


def _first_broken(given: Given) -> npt.NDArray[np.int64]:
    """Return (n,) the place in RULES of the first rule each bar breaks; len(RULES) = none."""
    found = np.full(len(given.rows), len(RULES))
    with np.errstate(invalid="ignore"):
        for i in range(len(RULES) - 1, -1, -1):
            broken = RULES[i].breaks(given)
            if broken.any():
                found[broken if broken.ndim == 1 else broken.any(axis=1)] = i
    return found


def _other_timeframe(opens: Floats, grid: Grid, before: tuple[float, ...]) -> str | None:
    """Return the timeframe of ascending opens where they show another one than the grid's; None where they do not."""
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
