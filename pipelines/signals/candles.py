"""Higher timeframes inside a fold: how long the bars are, and which candle a bar belongs to.

A candle of a timeframe opens and closes by the days of its market; both moments come with the bar (data.bar_clock). It
is closed once the bar that ends it is: open time + bar length >= its close; where that bar is missing, once a bar of a
later candle comes. The fold is not given the length of its bars: it takes the shortest spacing of open times so far, so
a gap never makes bars look longer than they are, except a gap between the very first two.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Floats

CLOCK_STATE = 2


@kernel
def bar_length(clock: Floats, open_time: float) -> float:
    """Return the length of the bars in seconds: the shortest spacing of open times so far; NaN at the first bar.

    clock    (2,) float64, NaN when fresh: last open time, shortest spacing
    """
    spacing = open_time - clock[0]
    clock[0] = open_time
    if spacing > 0.0 and not clock[1] <= spacing:
        clock[1] = spacing
    shortest: float = clock[1]
    return shortest


@kernel
def candle_is_closed(closes: float, open_time: float, length: float) -> bool:
    """Return whether a candle is closed at this bar's close (float64 epoch seconds); False while that is NaN."""
    return closes <= open_time + length


@kernel
def has_valid_prices(high: float, low: float, close: float) -> bool:
    """Return whether a bar holds prices (float64); one that does not is skipped like a missing bar."""
    return low <= close <= high and high - low < np.inf
