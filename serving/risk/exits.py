"""Where a position ends: ATR stop, take-profit ladder, break-even, trailing stop and time (R10). Compiled, pure.

`plan` sets the levels at the close that decided, `manage` moves a position on by one closed bar, `simulate_exits` walks many
over a history. A position is one flat float64 array: copied and handed back, it goes on where it stood.

The labels' definition of an outcome (`pipelines/labels/barriers.py`) rules here too, and the plan `plain` gives its
very numbers: the fill is the open of the first base bar after the decision, levels are set from the deciding close, a
bar that reaches stop and target counts as the stop, a bar that opens beyond the stop is left at its open, a target is
never better than its price, and time runs out at the close of the last bar that opened before the horizon's end. What
a bar says moves the stop from the next bar on, and only in the trade's favour.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, OPEN, OPEN_TIME, Floats, Ints
from pipelines.errors import BadShape
from pipelines.labels.barriers import STOP, TARGET, TIME, UNRESOLVED
from pipelines.params import ExitParams, LabelParams
from serving.risk.sizing import level

LEGS = 3  # take-profits at most

# ---- params: `flatten` writes them --------------------------------------------------------------------------------
PARAM_FIELDS = (
    "stop_atr",
    "target_1", "target_2", "target_3",  # ATR; NaN = no such leg
    "share_1", "share_2", "share_3",  # of the position; NaN = no such leg
    "trailing_atr",  # NaN = the stop does not trail
    "break_even_after",  # legs filled; 0 = never
)  # fmt: skip
STOP_ATR = 0
TARGET_AT = 1
SHARE_AT = TARGET_AT + LEGS
TRAILING_ATR = SHARE_AT + LEGS
BREAK_EVEN_AFTER = TRAILING_ATR + 1
PARAM_WIDTH = len(PARAM_FIELDS)

# ---- position: prices in quote currency, times in epoch seconds ---------------------------------------------------
POSITION_FIELDS = (
    "direction",  # 1 long, -1 short; NaN = there is no plan
    "stop",  # in force from the open of the next bar
    "take_profit_1", "take_profit_2", "take_profit_3",  # NaN = no such leg
    "fraction_1", "fraction_2", "fraction_3",  # of the position, sum 1; NaN = no such leg
    "trailing",  # distance from the best price so far; NaN = the stop does not trail
    "break_even_legs",  # from so many filled legs on the stop is the fill or better; 0 = never
    "start_time",  # the decision: no bar that opened before it is read
    "end_time",  # time runs out
    "bar_seconds",  # of the bars it is managed by
    "fill", "fill_time",  # open of the first bar, price and time; NaN before it
    "filled_legs",
    "remaining",  # fraction still open
    "best",  # highest high (long) or lowest low (short) of the bars since the fill
    "last_time", "last_close",  # of the newest bar that was read; NaN before the first
    "gross_bps",  # of what is closed, each part by its fraction, before cost
    "exit_time",  # open of the bar that closed the last part; NaN while open
    "barrier",  # barriers.TARGET | STOP | TIME of the last part, UNRESOLVED if it was never filled; NaN while open
)  # fmt: skip
DIRECTION, STOP_PRICE = 0, 1
TAKE_PROFIT_AT = 2
FRACTION_AT = TAKE_PROFIT_AT + LEGS
(TRAILING, BREAK_EVEN_LEGS, START_TIME, END_TIME, BAR_SECONDS, FILL, FILL_TIME, FILLED_LEGS, REMAINING, BEST,
 LAST_TIME, LAST_CLOSE, GROSS_BPS, EXIT_TIME, BARRIER) = range(FRACTION_AT + LEGS, len(POSITION_FIELDS))  # fmt: skip
POSITION_WIDTH = len(POSITION_FIELDS)

# ---- out: what one bar did; NaN = it did not --------------------------------------------------------------------
OUT_FIELDS = (
    "leg_1", "leg_2", "leg_3",  # price the leg was filled at
    "rest", "rest_fraction",  # price at which all that was left was closed by stop or time, and how much that was
    "stop",  # in force from here; NaN when nothing is left
    "remaining",  # fraction still open
)  # fmt: skip
LEG_AT = 0
REST, REST_FRACTION, STOP_NOW, REMAINING_NOW = range(LEGS, len(OUT_FIELDS))
OUT_WIDTH = len(OUT_FIELDS)

# ---- what `manage` answers: TARGET, STOP, TIME and UNRESOLVED of the labels, or one of these ----------------------
STILL_OPEN = 2  # still open
BAD_BAR = 3  # not read: a price missing or impossible, or a bar out of its turn. The stop stands where it stood
NO_POSITION = 4  # no plan, or it ended before


def flatten(exits: ExitParams, labels: LabelParams) -> Floats:
    """`exits` of params.yaml as the flat array (PARAM_WIDTH,) of `plan`; stop and plain target are the labels'."""
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
def _usable(price, direction, atr, decided_at, horizon_s, bar_s, exits):  # type: ignore[no-untyped-def]
    """Can a plan be made of these: all finite, of this world, every level above nought, the shares whole."""
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
def plan(price, direction, atr, decided_at, horizon_s, bar_s, exits, position):  # type: ignore[no-untyped-def]
    """Lay out a position that is not filled yet; True if there is one.

    price       close that decided; direction 1 long, -1 short; atr fraction of price
    decided_at  epoch seconds; horizon_s until time runs out; bar_s length of the bars it is managed by
    exits       (PARAM_WIDTH,) of `flatten`; position (POSITION_WIDTH,) written whole: all NaN if any input is missing
                or impossible (law L7)
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
def _reached(price, limit, direction):  # type: ignore[no-untyped-def]
    """Is the price at the limit or beyond it, going in `direction`. NaN is never reached."""
    return direction * (price - limit) >= 0.0


@kernel
def _close_part(position, price, fraction):  # type: ignore[no-untyped-def]
    position[GROSS_BPS] += position[DIRECTION] * (price / position[FILL] - 1.0) * 1e4 * fraction
    position[REMAINING] -= fraction


@kernel
def _end(position, out, time, barrier):  # type: ignore[no-untyped-def]
    position[REMAINING], position[EXIT_TIME], position[BARRIER] = 0.0, time, barrier
    out[STOP_NOW], out[REMAINING_NOW] = np.nan, 0.0
    return barrier


@kernel
def _close_rest(position, out, price, time, barrier):  # type: ignore[no-untyped-def]
    out[REST], out[REST_FRACTION] = price, position[REMAINING]
    _close_part(position, price, position[REMAINING])
    return _end(position, out, time, barrier)


@kernel
def _readable(bar):  # type: ignore[no-untyped-def]
    low, high = bar[LOW], bar[HIGH]
    return 0.0 < low <= bar[OPEN] <= high < np.inf and low <= bar[CLOSE] <= high and bar[OPEN_TIME] < np.inf


@kernel
def _raise_stop(position):  # type: ignore[no-untyped-def]
    """Move the stop by what the closed bars say, in the trade's favour or not at all."""
    direction = position[DIRECTION]
    trailed = position[BEST] - direction * position[TRAILING]
    if _reached(trailed, position[STOP_PRICE], direction):
        position[STOP_PRICE] = trailed
    legs = position[BREAK_EVEN_LEGS]
    if 0.0 < legs <= position[FILLED_LEGS] and _reached(position[FILL], position[STOP_PRICE], direction):
        position[STOP_PRICE] = position[FILL]


@kernel
def manage(position, bar, out):  # type: ignore[no-untyped-def]
    """Move a position on by one closed bar (8,); fills `out` (OUT_WIDTH,), returns what came of it.

    The first bar that opens at `start_time` or later fills the position. The stop of a bar is the one that stood as it
    opened. A bar after the end of the horizon, where the last ones before it are missing, closes at the last close
    that was known inside it, as the labels do.
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
            return _close_rest(position, out, position[LAST_CLOSE], position[LAST_TIME], TIME)
        position[GROSS_BPS] = np.nan
        return _end(position, out, opened, UNRESOLVED)
    if position[FILL] != position[FILL]:
        position[FILL], position[FILL_TIME], position[BEST] = bar[OPEN], opened, bar[OPEN]
    position[LAST_TIME], position[LAST_CLOSE] = opened, bar[CLOSE]

    against, favour = (bar[LOW], bar[HIGH]) if direction > 0.0 else (bar[HIGH], bar[LOW])
    if _reached(against, position[STOP_PRICE], -direction):
        gapped = _reached(bar[OPEN], position[STOP_PRICE], -direction)
        return _close_rest(position, out, bar[OPEN] if gapped else position[STOP_PRICE], opened, STOP)
    for k in range(int(position[FILLED_LEGS]), LEGS):
        target = position[TAKE_PROFIT_AT + k]
        if not _reached(favour, target, direction):
            break
        last = k + 1 == LEGS or position[TAKE_PROFIT_AT + k + 1] != position[TAKE_PROFIT_AT + k + 1]
        _close_part(position, target, position[REMAINING] if last else position[FRACTION_AT + k])
        out[LEG_AT + k] = target
        position[FILLED_LEGS] = k + 1.0
        if last:
            return _end(position, out, opened, TARGET)
    if opened + position[BAR_SECONDS] >= position[END_TIME]:
        return _close_rest(position, out, bar[CLOSE], opened, TIME)
    if _reached(favour, position[BEST], direction):
        position[BEST] = favour
    _raise_stop(position)
    out[STOP_NOW], out[REMAINING_NOW] = position[STOP_PRICE], position[REMAINING]
    return STILL_OPEN


# ---- many, over a history ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exits:
    """What became of m positions. All arrays (m,); NaN where there was no plan, or the bars end before the position.

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
def _follow(base, starts, price, direction, atr, decided_at, horizon_s, bar_s, exits, positions):  # type: ignore[no-untyped-def]
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
    """Follow m positions over base bars (n, 8), each for itself.

    decided_at  (m,) epoch seconds; price (m,) close then; direction (m,) 1 or -1; atr (m,) fraction of price
    exits       (PARAM_WIDTH,) of `flatten`
    Raises      BadShape on lengths that differ or fewer than two bars
    """
    m = len(decided_at)
    if any(a.shape != (m,) for a in (price, direction, atr)) or len(base) < 2:
        raise BadShape(
            f"{m} decisions beside prices {price.shape}, directions {direction.shape}, atr {atr.shape} and "
            f"{len(base)} bars; one of each a decision, and at least two bars"
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
