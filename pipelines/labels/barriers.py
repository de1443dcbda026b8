"""Triple barrier: was the target touched before the stop, before time ran out?

One definition for training labels and for live outcomes. Barriers are set from the close of the decision bar, the fill
is the open of the first base bar after it, the path is walked on base bars. The label holds no fee: a model
of a label with cost learns "which barriers are wider than the cost" and nothing of direction.

Prices of bars are mids, and a trade is executed on its own side of them: a long buys at the ask and sells at the bid, a
short the other way round. So where a bar has a half spread, a long fills at open + half spread, its stop and its target
are touched by the bid (low and high less the half spread), and it leaves at the bid. Where a bar has none (NaN) mids
stand in for both sides, and the spread is a cost to be subtracted (`params.costs`). Bars of trades with a half spread
are read in the same way: their prices lie on either side of the mid in turn, and on average at it.
Source: López de Prado 2018, Advances in Financial Machine Learning, ch. 3.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HALF_SPREAD, HIGH, LOW, OPEN, OPEN_TIME, Bools, Floats, Ints

TARGET = 1
STOP = -1
TIME = 0
UNRESOLVED = -2
BARRIERS = {TARGET: "target", STOP: "stop", TIME: "time", UNRESOLVED: "unresolved"}


@kernel
def half_spread_or_0(half_spread: float) -> float:
    """Return a bar's half spread (quote currency, float64), 0.0 where it is NaN: then its mids are all there is."""
    return half_spread if half_spread == half_spread else 0.0


@kernel
def first_touch(
    bars: Floats,
    start: int,
    direction: int,
    target: float,
    stop: float,
    end_time: float,
) -> tuple[int, int, float]:
    """Walk base bars from index `start` until a barrier or `end_time`; return (exit index, barrier, exit price).

    bars       (n, 9) float64 base bars in time order
    direction  int64, 1 long, -1 short; target, stop float64 in price units; end_time float64 epoch seconds
    Returns    (exit index, TARGET | STOP | TIME | UNRESOLVED, exit price on the side that is hit: the bid of a long,
               the ask of a short, the mid where the bar has no half spread). A bar that touches both counts as the
               stop; a bar that opens beyond the stop exits at its open; TIME exits at the close of the last bar that
               opened before `end_time`; UNRESOLVED if the bars end before that is known (exit price NaN).
    """
    n = bars.shape[0]
    last = -1
    for i in range(start, n):
        if bars[i, OPEN_TIME] >= end_time:
            break
        last = i
        half = half_spread_or_0(bars[i, HALF_SPREAD])
        if direction > 0:
            if bars[i, LOW] - half <= stop:
                return i, STOP, min(stop, bars[i, OPEN] - half)
            if bars[i, HIGH] - half >= target:
                return i, TARGET, target
        else:
            if bars[i, HIGH] + half >= stop:
                return i, STOP, max(stop, bars[i, OPEN] + half)
            if bars[i, LOW] + half <= target:
                return i, TARGET, target
    if last < 0:
        return start, UNRESOLVED, np.nan
    step = np.inf if n > 1 else 0.0  # length of a base bar: the least distance near the end, as a gap may lie anywhere
    for i in range(max(1, last - 8), min(n, last + 9)):
        step = min(step, bars[i, OPEN_TIME] - bars[i - 1, OPEN_TIME])
    if last + 1 < n or bars[last, OPEN_TIME] + step >= end_time:
        return last, TIME, bars[last, CLOSE] - direction * half_spread_or_0(bars[last, HALF_SPREAD])
    return last, UNRESOLVED, np.nan


@kernel
def _label_all(
    bars: Floats,
    starts: Ints,
    directions: Ints,
    targets: Floats,
    stops: Floats,
    ends: Floats,
    exits: Ints,
    barriers: Ints,
    prices: Floats,
) -> None:
    """Fill exits, barriers (m,) int64 and prices (m,) float64 with the first touch of each event.

    bars (n, 9) float64; starts, directions (m,) int64; targets, stops, ends (m,) float64
    """
    for k in range(starts.shape[0]):
        if starts[k] >= bars.shape[0]:
            exits[k], barriers[k], prices[k] = bars.shape[0], UNRESOLVED, np.nan
        else:
            exits[k], barriers[k], prices[k] = first_touch(
                bars, starts[k], directions[k], targets[k], stops[k], ends[k]
            )


@dataclass(frozen=True, slots=True)
class Barriers:
    """Hold the outcome of m events. All arrays (m,).

    start, exit  index into the base bars of the fill and of the exit
    barrier      TARGET | STOP | TIME | UNRESOLVED
    label        1.0 target first, 0.0 stop or time, NaN unresolved
    gross_bps    signed return from fill to exit in basis points; NaN unresolved
    spread_known  whether fill bar and exit bar both had a half spread: then gross_bps is of executed prices, after the
                 spread and before fees; else it is of mids, before both. False where unresolved
    start_time, exit_time   epoch seconds; exit_time is the open of the exit bar
    """

    start: Ints
    exit: Ints
    barrier: Ints
    label: Floats
    gross_bps: Floats
    spread_known: Bools
    start_time: Floats
    exit_time: Floats


def levels(close: Floats, direction: Ints, atr: Floats, target_atr: float, stop_atr: float) -> tuple[Floats, Floats]:
    """Return (target, stop) prices of events at `close`; atr as a fraction of price. Serving computes the same ones."""
    return close * (1.0 + direction * target_atr * atr), close * (1.0 - direction * stop_atr * atr)


def gross_return_bps(bars: Floats, start: Ints, exit: Ints, direction: Ints, price: Floats) -> tuple[Floats, Bools]:
    """Return (gross_bps, spread_known) of m trades, (m,) each, as `Barriers` defines them.

    bars   (n, 9); start, exit  (m,) rows of fill and exit in it; direction (m,) 1 long, -1 short
    price  (m,) exit prices as `first_touch` returns them; NaN (unresolved) gives NaN and False
    """
    entry, leave = bars[start, HALF_SPREAD], bars[exit, HALF_SPREAD]
    executed = np.isfinite(entry) & np.isfinite(leave) & np.isfinite(price)
    # where only one end has a spread, both are taken at mid: half a spread is neither executed nor left to the costs
    fill = bars[start, OPEN] + np.where(executed, direction * entry, 0.0)
    out = price + np.where(executed, 0.0, direction * np.nan_to_num(leave))
    return direction * (out / fill - 1.0) * 1e4, executed


def triple_barrier(
    base: Floats, close_time: Floats, close: Floats, direction: Ints, atr: Floats, target_atr: float, stop_atr: float,
    deadline: Floats,
) -> Barriers:  # fmt: skip
    """Label m events against base bars (n, 9).

    close_time  (m,) epoch seconds at which each event became known; close (m,) price then; atr (m,) fraction of price
    deadline    (m,) epoch seconds at which time runs out: the close of the decision bar that ends the horizon
    """
    m = len(close_time)
    starts = np.searchsorted(base[:, OPEN_TIME], close_time, side="left").astype(np.int64)
    targets, stops = levels(close, direction, atr, target_atr, stop_atr)
    exits, barriers, prices = np.empty(m, np.int64), np.empty(m, np.int64), np.empty(m)
    _label_all(base, starts, direction.astype(np.int64), targets, stops, deadline, exits, barriers, prices)
    inside, end = np.minimum(starts, len(base) - 1), np.minimum(exits, len(base) - 1)
    gross_bps, spread_known = gross_return_bps(base, inside, end, direction, prices)
    return Barriers(
        start=starts,
        exit=exits,
        barrier=barriers,
        label=np.where(barriers == UNRESOLVED, np.nan, (barriers == TARGET).astype(np.float64)),
        gross_bps=gross_bps,
        spread_known=spread_known,
        start_time=np.where(starts < len(base), base[inside, OPEN_TIME], close_time),
        exit_time=base[end, OPEN_TIME],
    )
