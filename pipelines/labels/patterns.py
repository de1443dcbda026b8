"""Did a pattern play out? One label a bar and class, for patterns that may occur together.

y = 1 where the pattern is there at the close of a bar and, from that close, price goes `target_atr` ATR the pattern's
way before it goes `stop_atr` ATR against it, within `horizon_bars` decision bars; 0 where the stop or the end of time
came first, and 0 where the pattern is not there. The barriers are those of `barriers.triple_barrier`: filled at the
next base bar, walked on base bars, executed at bid and ask where the spread was recorded, both in one bar counts as the
stop, and no fee is in them.

Whether a pattern is there is a rule, and a model gets no credit for repeating it. So only bars with at least one
pattern are rows, presence is an input, and the baseline called prevalence is the training share of y among the
patterns that were there, and 0 for those that are not: the skill left is to predict which of them play out.
"""

import numpy as np

from pipelines.contracts import CLOSE, OPEN_TIME, Arrays, Floats
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape
from pipelines.labels.barriers import UNRESOLVED, triple_barrier
from pipelines.labels.weights import average_uniqueness
from pipelines.params import Params


def pattern_labels(
    bars: Floats, base: Floats, direction: Floats, reach: Floats, grid: Grid, base_grid: Grid, params: Params
) -> Arrays:
    """Return one row for each decision bar with a pattern, all patterns known and all present ones resolved.

    Rows are in time order.

    bars       (m, 9) closed decision bars on `grid`; base (n, 9) the bars they were made of, on `base_grid`
    direction  (m, c) `signals.setups` at every bar: 1, -1, 0 = not there, NaN = not known
    reach      (m,) ATR 14 at the bar's close in price units
    Returns    arrays of one length r: `index` position of the decision bar · `y` (r, c) · `direction` (r, c) ·
               `uniqueness` · `known` close of the decision bar · `ended` close of the base bar that decided the last
               of the row's labels (epoch seconds)
    Raises     BadShape where there is not one direction and one reach a bar
    """
    if direction.shape[:1] != (len(bars),) or reach.shape != (len(bars),):
        raise BadShape(
            f"direction {direction.shape} and reach {reach.shape} of {len(bars)} bars; wanted one of each a bar"
        )
    p = params.pattern
    known = np.isfinite(direction)
    there = known & (direction != 0.0)
    whole = (known | ~known.any(axis=0)).all(axis=1)  # a pattern that is never known does not block the others
    index = np.flatnonzero(whole & there.any(axis=1) & (reach > 0.0))
    close, known = bars[index, CLOSE], grid.closes(bars[index, OPEN_TIME])
    deadline = grid.deadline(known, p.horizon_bars)
    sides = {
        side: triple_barrier(
            base, known, close, np.full(len(index), side), reach[index] / close, p.target_atr, p.stop_atr,
            deadline,
        )
        for side in (1, -1)
    }  # fmt: skip
    side = np.where(there[index], direction[index], 0.0)
    y, unresolved = np.zeros(side.shape), np.zeros(len(index), dtype=bool)
    exits = np.full(len(index), -1)
    for way, outcome in sides.items():
        present = (side == way).any(axis=1)
        y = np.where(side == way, outcome.label[:, np.newaxis], y)
        unresolved |= present & (outcome.barrier == UNRESOLVED)
        exits = np.where(present, np.maximum(exits, outcome.exit), exits)
    keep = np.flatnonzero(~unresolved)
    start, exits, known = sides[1].start[keep], exits[keep], known[keep]
    uniqueness = average_uniqueness(start, exits, len(base))
    return {
        "index": index[keep],
        "y": y[keep],
        "direction": side[keep],
        "uniqueness": uniqueness,
        "known": known,
        "ended": base_grid.closes(base[exits, OPEN_TIME]),
    }
