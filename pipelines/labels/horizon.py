"""Fixed horizon: did the price rise or fall by more than a round trip costs within so many decision bars?

Filled at the open of the first base bar after the decision bar, left at the close of the last base bar inside the
horizon: the triple barrier without a touched barrier. Moves within the round trip get no row (the dead zone),
since their direction earns less than its cost. So a label is the direction of a move *given* that the move exceeded the
round trip; neither its probability nor the cost of the side taken is in it.

Returns are of mids: up and down are the two sides of one move, and quotes that widen are no move. What a trade earns is
of executed prices: either side pays `spread_bps`, the half spreads at its two ends, where they were recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipelines.contracts import CLOSE, HALF_SPREAD, OPEN, OPEN_TIME, Arrays, Floats, Ints
from pipelines.data.timeframes import Grid
from pipelines.errors import BadValues
from pipelines.labels.weights import average_uniqueness
from pipelines.params import Params


@dataclass(frozen=True, slots=True)
class Forward:
    """Hold the returns over one horizon from each of m moments. All arrays (m,).

    start, exit  index into the base bars of the fill and of the exit; -1 where unknown
    gross_bps    return of mids from the fill's open to the exit's close, basis points, before spread and fees; NaN
                 where the bar at either end is missing: a gap is no return, and the newest moments have none yet
    spread_bps   half spread of the fill's bar plus that of the exit's, basis points of the fill's open: a long earns
                 gross_bps - spread_bps, a short -gross_bps - spread_bps, before fees; NaN where either is not recorded
    """

    start: Ints
    exit: Ints
    gross_bps: Floats
    spread_bps: Floats


def forward_returns(base: Floats, grid: Grid, close_time: Floats, deadline: Floats) -> Forward:
    """Return the returns from each close until its deadline.

    base        (n, 9) base bars in time order, on `grid`; decision bars themselves where nothing finer was recorded
    close_time  (m,) epoch seconds at which each decision bar closed; deadline (m,) those at which its horizon ends
    Reads base bars that open in [close_time, deadline) and nothing after them (L3).
    """
    opens = base[:, OPEN_TIME]
    start = np.searchsorted(opens, close_time, side="left")
    exit = np.searchsorted(opens, deadline, side="left") - 1
    first, last = np.minimum(start, len(base) - 1), np.maximum(exit, 0)
    # both ends on time, to a base bar: a fill after a gap, or an exit before one, would be another horizon
    there = (start <= exit) & (start < len(base))
    there &= (grid.expected(close_time, opens[first]) <= 0) & (grid.expected(grid.closes(opens[last]), deadline) <= 0)
    gross = np.where(there, (base[last, CLOSE] / base[first, OPEN] - 1.0) * 1e4, np.nan)
    both = (base[first, HALF_SPREAD] + base[last, HALF_SPREAD]) / base[first, OPEN] * 1e4
    return Forward(np.where(there, start, -1), np.where(there, exit, -1), gross, np.where(there, both, np.nan))


def label_columns(forward: Forward, index: Ints, known: Floats, deadline: Floats, n_base: int) -> Arrays:
    """Return the columns that all labels of the decision bars `index` have: index, uniqueness, known, ended.

    known, deadline  (m,) closes of all decision bars and ends of their horizons, epoch seconds
    n_base           how many base bars `forward` points into
    """
    uniqueness = average_uniqueness(forward.start[index], forward.exit[index], n_base)
    return {
        "index": index,
        "uniqueness": uniqueness,
        "known": known[index],
        "ended": deadline[index],
    }


def horizon_labels(
    bars: Floats, base: Floats, grid: Grid, base_grid: Grid, params: Params, cost_of: Callable[[Floats], Floats]
) -> Arrays:
    """Return one row for each decision bar whose move left the dead zone, in time order.

    bars    (m, 9) closed decision bars on `grid`; base (n, 9) the bars they were made of, on `base_grid`
    Returns arrays of one length: `index` position of the decision bar · `y` 1 up, 0 down · `uniqueness` · `known`
            close of the decision bar · `ended` end of the horizon (epoch seconds) · `gross_bps` of mids, going long ·
            `cost_bps` of the round trip, either side's · `last_return` log return of the decision bar, NaN of the first
    cost_of  `Forward.spread_bps` (m,) → what a round trip costs, (m,) bps: half the width of the dead zone
    Raises  BadValues where the horizon is shorter than a base bar, so that it has no return
    """
    if (horizon_s := params.predictor.horizon_bars * grid.step_s) < base_grid.step_s:
        raise BadValues(
            f"predictor.horizon_bars is {horizon_s} s, a base bar {base_grid.step_s} s; raise it in params.yaml"
        )
    known = grid.closes(bars[:, OPEN_TIME])
    deadline = grid.deadline(known, params.predictor.horizon_bars)
    forward = forward_returns(base, base_grid, known, deadline)
    cost_bps = cost_of(forward.spread_bps)
    index = np.flatnonzero(np.abs(forward.gross_bps) > cost_bps)  # NaN is not above anything
    last_return = np.full(len(bars), np.nan)
    last_return[1:] = np.log(bars[1:, CLOSE] / bars[:-1, CLOSE])
    return label_columns(forward, index, known, deadline, len(base)) | {
        "y": (forward.gross_bps[index] > 0).astype(np.float64),
        "gross_bps": forward.gross_bps[index],
        "cost_bps": cost_bps[index],
        "last_return": last_return[index],
    }
