"""Manage a position to its end: ATR stop, take-profit ladder, break-even, trailing stop and time (R10).

`plan` sets the levels at the deciding close, `manage` advances a position by one closed bar, `simulate_exits` runs many
positions over a history. Compiled and pure: a position is one flat float64 array that holds its whole state.

The labels' definition of an outcome (`pipelines/labels/barriers.py`) holds here too, and the plan `plain` gives equal
numbers (where all bars or none have a half spread): a long buys at the ask and is closed at the bid, a short the other
way round, the fill is the open of the first base bar after the decision, levels are set from the deciding close, a bar
that reaches stop and target counts as the stop, a bar that opens beyond the stop exits at its open, a target is never
better than its price, and time runs out at the close of the last bar that opened before the horizon's end. A closed bar
moves the stop from the next bar on, and only in the trade's favour.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HALF_SPREAD, HIGH, LOW, OPEN, OPEN_TIME, Floats, Ints
from pipelines.errors import BadShape
from pipelines.labels.barriers import STOP, TARGET, TIME, UNRESOLVED, half_spread_or_0
from pipelines.params import ExitParams, LabelParams
from serving.risk.sizing import level

LEGS = 3  # take-profits at most

# ---- params: written by `flatten` -------------------------------------------------------------------------------
PARAM_FIELDS = (
    "stop_atr",
    "target_1", "target_2", "target_3",  # ATR; NaN = no such leg
    "share_1", "share_2", "share_3",  # of the position; NaN = no such leg
    "trailing_atr",  # NaN = the stop does not trail
    "break_even_after",  # legs filled; 0 = never
)  # fmt: skip
STOP_ATR = PARAM_FIELDS.index("stop_atr")
TARGET_AT = PARAM_FIELDS.index("target_1")  # LEGS of them
SHARE_AT = PARAM_FIELDS.index("share_1")  # LEGS of them
TRAILING_ATR = PARAM_FIELDS.index("trailing_atr")
BREAK_EVEN_AFTER = PARAM_FIELDS.index("break_even_after")
PARAM_WIDTH = len(PARAM_FIELDS)

# ---- position: prices in quote currency, times in epoch seconds ---------------------------------------------------
POSITION_FIELDS = (
    "direction",  # 1 long, -1 short; NaN = there is no plan
    "stop",  # in force from the open of the next bar
    "take_profit_1", "take_profit_2", "take_profit_3",  # NaN = no such leg
    "fraction_1", "fraction_2", "fraction_3",  # of the position, sum 1; NaN = no such leg
    "trailing",  # distance from the best price so far; NaN = the stop does not trail
    "break_even_legs",  # from so many filled legs on the stop is the fill or better; 0 = never
    "start_time",  # the decision: bars that opened before it are not read
    "end_time",  # time runs out
    "bar_seconds",  # of the bars that manage it
    "fill", "fill_time",  # open of the first bar, price and time; NaN before it
    "filled_legs",
    "remaining",  # fraction still open
    "best",  # highest bid (long) or lowest ask (short) of the bars since the fill
    "last_time", "last_close",  # of the newest bar read, the close on the side that closes; NaN before the first
    "gross_bps",  # of the closed parts, each by its fraction, before cost
    "exit_time",  # open of the bar that closed the last part; NaN while open
    "barrier",  # barriers.TARGET | STOP | TIME of the last part, UNRESOLVED if it was never filled; NaN while open
)  # fmt: skip
DIRECTION = POSITION_FIELDS.index("direction")
STOP_PRICE = POSITION_FIELDS.index("stop")
TAKE_PROFIT_AT = POSITION_FIELDS.index("take_profit_1")  # LEGS of them
FRACTION_AT = POSITION_FIELDS.index("fraction_1")  # LEGS of them
TRAILING = POSITION_FIELDS.index("trailing")
BREAK_EVEN_LEGS = POSITION_FIELDS.index("break_even_legs")
START_TIME = POSITION_FIELDS.index("start_time")
END_TIME = POSITION_FIELDS.index("end_time")
BAR_SECONDS = POSITION_FIELDS.index("bar_seconds")
FILL = POSITION_FIELDS.index("fill")
FILL_TIME = POSITION_FIELDS.index("fill_time")
FILLED_LEGS = POSITION_FIELDS.index("filled_legs")
REMAINING = POSITION_FIELDS.index("remaining")
BEST = POSITION_FIELDS.index("best")
LAST_TIME = POSITION_FIELDS.index("last_time")
LAST_CLOSE = POSITION_FIELDS.index("last_close")
GROSS_BPS = POSITION_FIELDS.index("gross_bps")
EXIT_TIME = POSITION_FIELDS.index("exit_time")
BARRIER = POSITION_FIELDS.index("barrier")
POSITION_WIDTH = len(POSITION_FIELDS)

# ---- out: effects of one bar; NaN = none ------------------------------------------------------------------------
OUT_FIELDS = (
    "leg_1", "leg_2", "leg_3",  # price the leg was filled at
    "rest", "rest_fraction",  # price at which stop or time closed the remainder, and the remainder
    "stop",  # in force from here; NaN when nothing is left
    "remaining",  # fraction still open
)  # fmt: skip
LEG_AT = OUT_FIELDS.index("leg_1")  # LEGS of them
REST = OUT_FIELDS.index("rest")
REST_FRACTION = OUT_FIELDS.index("rest_fraction")
STOP_NOW = OUT_FIELDS.index("stop")
REMAINING_NOW = OUT_FIELDS.index("remaining")
OUT_WIDTH = len(OUT_FIELDS)

# ---- result of `manage`: TARGET, STOP, TIME and UNRESOLVED of the labels, or one of these ---------------------------
STILL_OPEN = 2  # still open
BAD_BAR = 3  # not read: a price missing or impossible, or a bar out of order. The stop stays where it was
NO_POSITION = 4  # no plan, or it ended before


def flatten(exits: ExitParams, labels: LabelParams) -> Floats:
    """Return `exits` of params.yaml as the flat array (PARAM_WIDTH,) of `plan`; stop and plain target as the labels."""
    flat = np.full(PARAM_WIDTH, np.nan)
    legs = exits.legs if exits.laddered else [(labels.target_atr, 1.0)]
    flat[STOP_ATR] = labels.stop_atr
    for k, (distance, share) in enumerate(legs):
        flat[TARGET_AT + k], flat[SHARE_AT + k] = distance, share
    if exits.trails:
        flat[TRAILING_ATR] = exits.trailing_atr
    flat[BREAK_EVEN_AFTER] = exits.break_even_after_leg if exits.laddered else 0
    return flat


@kernel
def _usable(
    price: float, direction: float, atr: float, decided_at: float, horizon_s: float, bar_s: float, exits: Floats
) -> bool:
    """Return whether a plan can be made: all inputs finite and possible, every level above 0, shares adding up to 1."""
    if not (abs(direction) == 1.0 and 0.0 < price < np.inf and 0.0 < atr < np.inf):
        return False
    if not (abs(decided_at) < np.inf and 0.0 < horizon_s < np.inf and 0.0 < bar_s < np.inf):
        return False
    if not (0.0 < exits[STOP_ATR] < np.inf and 0.0 < level(price, -direction, exits[STOP_ATR], atr) < np.inf):
        return False
    if exits[TRAILING_ATR] == exits[TRAILING_ATR] and not 0.0 < exits[TRAILING_ATR] < np.inf:
        return False
    total = 0.0
    for k in range(LEGS):
        distance, share = exits[TARGET_AT + k], exits[SHARE_AT + k]
        if distance != distance and share != share:
            continue
        # a leg after a gap has a NaN before it, and is refused as every leg that is not further out than the last
        nearer = 0.0 if k == 0 else exits[TARGET_AT + k - 1]
        if not (nearer < distance < np.inf and 0.0 < share <= 1.0 and level(price, direction, distance, atr) > 0.0):
            return False
        total += share
    return abs(total - 1.0) <= 1e-9 and 0.0 <= exits[BREAK_EVEN_AFTER] <= LEGS


@kernel
def plan(
    price: float, direction: float, atr: float, decided_at: float, horizon_s: float, bar_s: float, exits: Floats,
    position: Floats,
) -> bool:  # fmt: skip
    """Write the plan of a position that is not filled yet; return whether there is one.

    price       deciding close; direction 1 long, -1 short; atr fraction of price
    decided_at  epoch seconds; horizon_s until time runs out; bar_s length of the managing bars
    exits       (PARAM_WIDTH,) float64 of `flatten`
    position    (POSITION_WIDTH,) float64, written whole: all NaN if any input is missing or impossible (law L7)
    """
    position[:] = np.nan
    if not _usable(price, direction, atr, decided_at, horizon_s, bar_s, exits):
        return False
    position[DIRECTION] = direction
    position[STOP_PRICE] = level(price, -direction, exits[STOP_ATR], atr)
    for k in range(LEGS):
        position[TAKE_PROFIT_AT + k] = level(price, direction, exits[TARGET_AT + k], atr)
        position[FRACTION_AT + k] = exits[SHARE_AT + k]
    position[TRAILING] = price * exits[TRAILING_ATR] * atr
    position[BREAK_EVEN_LEGS] = exits[BREAK_EVEN_AFTER]
    position[START_TIME] = decided_at
    position[END_TIME] = decided_at + horizon_s
    position[BAR_SECONDS] = bar_s
    position[FILLED_LEGS], position[REMAINING], position[GROSS_BPS] = 0.0, 1.0, 0.0
    return True


@kernel
def _reached(price: float, limit: float, direction: float) -> bool:
    """Return whether the price is at the limit or beyond it in `direction`; NaN is never reached."""
    return direction * (price - limit) >= 0.0


@kernel
def _close_part(position: Floats, price: float, fraction: float) -> None:
    """Close a fraction of the position at a price and book its return."""
    position[GROSS_BPS] += position[DIRECTION] * (price / position[FILL] - 1.0) * 1e4 * fraction
    position[REMAINING] -= fraction


@kernel
def _end(position: Floats, out: Floats, time: float, barrier: int) -> None:
    """Mark the position as ended at a barrier."""
    position[REMAINING], position[EXIT_TIME], position[BARRIER] = 0.0, time, barrier
    out[STOP_NOW], out[REMAINING_NOW] = np.nan, 0.0


@kernel
def _close_rest(position: Floats, out: Floats, price: float, time: float, barrier: int) -> None:
    """Close the remainder at a price and end the position at a barrier."""
    out[REST], out[REST_FRACTION] = price, position[REMAINING]
    _close_part(position, price, position[REMAINING])
    _end(position, out, time, barrier)


@kernel
def _readable(bar: Floats) -> bool:
    """Return whether the prices and the time of a bar (9,) are finite and possible."""
    low, high = bar[LOW], bar[HIGH]
    return bool(0.0 < low <= bar[OPEN] <= high < np.inf and low <= bar[CLOSE] <= high and bar[OPEN_TIME] < np.inf)


@kernel
def _raise_stop(position: Floats) -> None:
    """Move the stop after the closed bars, in the trade's favour or not at all."""
    direction = position[DIRECTION]
    trailed = position[BEST] - direction * position[TRAILING]
    if _reached(trailed, position[STOP_PRICE], direction):
        position[STOP_PRICE] = trailed
    legs = position[BREAK_EVEN_LEGS]
    if 0.0 < legs <= position[FILLED_LEGS] and _reached(position[FILL], position[STOP_PRICE], direction):
        position[STOP_PRICE] = position[FILL]


@kernel
def manage(position: Floats, bar: Floats, out: Floats) -> int:
    """Advance a position by one closed bar (9,), fill `out` (OUT_WIDTH,) and return the result; float64.

    The first bar that opens at `start_time` or later fills the position. The stop of a bar is the one in force at its
    open. A bar after the end of the horizon, where the last ones before it are missing, closes at the last known close
    inside the horizon, as the labels do.
    """
    out[:] = np.nan
    direction = position[DIRECTION]
    if direction != direction or position[EXIT_TIME] == position[EXIT_TIME]:
        return NO_POSITION
    out[STOP_NOW], out[REMAINING_NOW] = position[STOP_PRICE], position[REMAINING]
    opened = bar[OPEN_TIME]
    if not _readable(bar) or not opened >= position[START_TIME] or opened <= position[LAST_TIME]:
        return BAD_BAR
    if opened >= position[END_TIME]:
        if position[FILL] == position[FILL]:
            _close_rest(position, out, position[LAST_CLOSE], position[LAST_TIME], TIME)
            return TIME
        position[GROSS_BPS] = np.nan
        _end(position, out, opened, UNRESOLVED)
        return UNRESOLVED
    half = direction * half_spread_or_0(bar[HALF_SPREAD])  # a long is filled above the mid, and closed below it
    if position[FILL] != position[FILL]:
        position[FILL], position[FILL_TIME], position[BEST] = bar[OPEN] + half, opened, bar[OPEN] - half
    position[LAST_TIME], position[LAST_CLOSE] = opened, bar[CLOSE] - half

    against, favour = (bar[LOW], bar[HIGH]) if direction > 0.0 else (bar[HIGH], bar[LOW])
    against, favour, opening = against - half, favour - half, bar[OPEN] - half
    if _reached(against, position[STOP_PRICE], -direction):
        gapped = _reached(opening, position[STOP_PRICE], -direction)
        _close_rest(position, out, opening if gapped else position[STOP_PRICE], opened, STOP)
        return STOP
    for k in range(int(position[FILLED_LEGS]), LEGS):
        target = position[TAKE_PROFIT_AT + k]
        if not _reached(favour, target, direction):
            break
        last = k + 1 == LEGS or position[TAKE_PROFIT_AT + k + 1] != position[TAKE_PROFIT_AT + k + 1]
        _close_part(position, target, position[REMAINING] if last else position[FRACTION_AT + k])
        out[LEG_AT + k] = target
        position[FILLED_LEGS] = k + 1.0
        if last:
            _end(position, out, opened, TARGET)
            return TARGET
    if opened + position[BAR_SECONDS] >= position[END_TIME]:
        _close_rest(position, out, bar[CLOSE] - half, opened, TIME)
        return TIME
    if _reached(favour, position[BEST], direction):
        position[BEST] = favour
    _raise_stop(position)
    out[STOP_NOW], out[REMAINING_NOW] = position[STOP_PRICE], position[REMAINING]
    return STILL_OPEN


# ---- many positions over a history ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exits:
    """Hold the ends of m positions, all arrays (m,); NaN without a plan, or where the bars end before the position.

    start_time, exit_time  epoch seconds, opens of the bars of the fill and of the last exit
    gross_bps              signed return of all parts by their fractions, before cost
    barrier                TARGET | STOP | TIME of the last part, UNRESOLVED where it did not end
    legs                   take-profits that were filled
    """

    start_time: Floats
    exit_time: Floats
    gross_bps: Floats
    barrier: Ints
    legs: Ints


@kernel
def _follow(
    base: Floats, starts: Ints, price: Floats, direction: Floats, atr: Floats, decided_at: Floats, horizon_s: float,
    bar_s: float, exits: Floats, positions: Floats,
) -> None:  # fmt: skip
    """Run m positions over base bars (n, 9) from row `starts` on; positions (m, POSITION_WIDTH) written; float64."""
    out = np.empty(OUT_WIDTH)
    for k in range(starts.shape[0]):
        position = positions[k]
        plan(price[k], direction[k], atr[k], decided_at[k], horizon_s, bar_s, exits, position)
        i = starts[k]
        while i < base.shape[0] and position[DIRECTION] == position[DIRECTION] and not position[EXIT_TIME] > -np.inf:
            manage(position, base[i], out)
            i += 1


def simulate_exits(
    base: Floats, decided_at: Floats, price: Floats, direction: Ints, atr: Floats, horizon_s: float, exits: Floats
) -> Exits:
    """Return the ends of m positions over base bars (n, 9), each run on its own.

    decided_at  (m,) epoch seconds; price (m,) close then; direction (m,) 1 or -1; atr (m,) fraction of price
    exits       (PARAM_WIDTH,) of `flatten`
    Raises      BadShape on lengths that differ or fewer than two bars
    """
    m = len(decided_at)
    if any(a.shape != (m,) for a in (price, direction, atr)) or len(base) < 2:
        raise BadShape(
            f"{m} decisions with prices {price.shape}, directions {direction.shape}, atr {atr.shape} and "
            f"{len(base)} bars; expected one of each per decision, and at least two bars"
        )
    starts = np.searchsorted(base[:, OPEN_TIME], decided_at, side="left").astype(np.int64)
    positions = np.empty((m, POSITION_WIDTH))
    bar_s = float(np.diff(base[:, OPEN_TIME]).min())
    _follow(base, starts, price, direction.astype(np.float64), atr, decided_at, horizon_s, bar_s, exits, positions)
    ended = np.isfinite(positions[:, EXIT_TIME])
    return Exits(
        start_time=positions[:, FILL_TIME],
        exit_time=positions[:, EXIT_TIME],
        gross_bps=np.where(ended, positions[:, GROSS_BPS], np.nan),
        barrier=np.where(ended, positions[:, BARRIER], UNRESOLVED).astype(np.int64),
        legs=np.where(ended, positions[:, FILLED_LEGS], 0).astype(np.int64),
    )
