"""Higher timeframes inside a fold: how long the bars are, and which candle a bar belongs to.

A candle of a timeframe fills the slot of open times [k·frame, (k+1)·frame), in epoch seconds UTC. It is closed once the
bar that ends it is: open time + bar length >= end of the slot; where that bar is missing, once a bar of a later slot
comes. The fold is not told how long its bars are: it takes the shortest spacing of open times it has seen, so a gap
never makes bars look longer than they are, but for a gap between the very first two.
"""

import numpy as np

from pipelines.compiled import kernel

CLOCK_STATE = 2


@kernel
def bar_length(clock, open_time):  # type: ignore[no-untyped-def]
    """Length of the bars in seconds: the shortest spacing of open times so far; NaN at the first bar.

    clock    (2,) NaN when fresh: last open time, shortest spacing
    """
    spacing = open_time - clock[0]
    clock[0] = open_time
    if spacing > 0.0 and not clock[1] <= spacing:
        clock[1] = spacing
    return clock[1]


@kernel
def candle_is_closed(slot, frame, open_time, length):  # type: ignore[no-untyped-def]
    """Is the candle in `slot` closed once the bar from `open_time` of `length` seconds is? False while that is NaN."""
    return (slot + 1.0) * frame <= open_time + length


@kernel
def has_valid_prices(high, low, close):  # type: ignore[no-untyped-def]
    """Does a bar hold prices at all? One that does not is passed over like a bar that is missing."""
    return low <= close <= high and high - low < np.inf
