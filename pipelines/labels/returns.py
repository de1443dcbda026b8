"""The return over the next hour, and the EWMA volatility known beforehand: the labels of the regime family.

One row a decision bar. The return is `horizon.forward_returns`, of mids: the label is how far the market moves, not
what a trade earns. The volatility is known at the close.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, OPEN_TIME, Arrays, Floats
from pipelines.data.timeframes import Grid
from pipelines.labels.horizon import forward_returns
from pipelines.labels.weights import average_uniqueness
from pipelines.params import Params

# bars after which a return counts half; RiskMetrics' decay of .94 is 11 bars. The best of them is chosen on the
# training rows, by the baselines as by the model
HALF_LIVES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
_LEAST_RETURNS = 20  # before there is a volatility


@kernel
def _ewma(returns: Floats, keep: Floats, least: int, out: Floats) -> None:
    """Fill out (n, k) float64 with the EWMA volatility of returns (n,) for decay factors keep (k,).

    NaN before `least` (int64) returns.
    """
    for k in range(keep.shape[0]):
        total, weight, seen = 0.0, 0.0, 0
        for i in range(returns.shape[0]):
            r = returns[i]
            if r == r:
                total = keep[k] * total + r * r
                weight = keep[k] * weight + 1.0
                seen += 1
            out[i, k] = math.sqrt(total / weight) if seen >= least else np.nan


def ewma_volatility(bars: Floats, grid: Grid) -> Floats:
    """Return (m, len(HALF_LIVES)): root of the exponentially weighted mean square of log returns at each decision bar.

    It reads the bars up to and including each; weights sum to 1 from the first return on.

    bars  (m, 9) in time order, on `grid`. A return over a gap is no bar's return: it is left out. NaN before
          20 returns.
    """
    returns = np.full(len(bars), np.nan)
    next_bar = grid.missing(bars[:, OPEN_TIME]) == 0
    returns[1:][next_bar] = np.log(bars[1:, CLOSE] / bars[:-1, CLOSE])[next_bar]
    out = np.empty((len(bars), len(HALF_LIVES)))
    _ewma(returns, 0.5 ** (1.0 / np.array(HALF_LIVES)), _LEAST_RETURNS, out)
    return out


def return_labels(bars: Floats, base: Floats, grid: Grid, base_grid: Grid, params: Params) -> Arrays:
    """Return one row for each decision bar whose next hour is whole and whose past has a volatility, in time order.

    bars    (m, 9) closed decision bars on `grid`; base (n, 9) the bars they were made of, on `base_grid`
    Returns arrays of one length: `index` position of the decision bar · `y` log return over regime.horizon_minutes, at
            least one decision bar, in basis points · `uniqueness` · `known` close of the decision bar · `ended` end
            of the horizon (epoch seconds) · `ewma` (rows, len(HALF_LIVES)) EWMA volatility at the close, basis points
    """
    known = grid.closes(bars[:, OPEN_TIME])
    deadline = grid.deadline(known, grid.bars_of(params.regime.horizon_minutes * 60.0))
    forward = forward_returns(base, base_grid, known, deadline)
    ewma = ewma_volatility(bars, grid)
    index = np.flatnonzero(np.isfinite(forward.gross_bps) & (ewma > 0).all(axis=1))  # NaN is above nothing
    uniqueness = average_uniqueness(forward.start[index], forward.exit[index], len(base))
    return {
        "index": index,
        "y": np.log1p(forward.gross_bps[index] * 1e-4) * 1e4,
        "uniqueness": uniqueness,
        "known": known[index],
        "ended": deadline[index],
        "ewma": ewma[index] * 1e4,
    }
