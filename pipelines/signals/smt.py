"""S5 SMT divergence: this market makes a new swing that its reference does not confirm.

Short: the newest swing high stands above the one before it, and the reference closed lower at the newest of those two
bars than at the other. Long is the mirror image at swing lows. Swings are taken on closes, since nothing else is known
of the reference, and a swing is known five bars after it stands: that close is where the signal stands.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import CLOSE, Floats
from pipelines.features.fold import FeatureGroup
from pipelines.features.kernels import mean, push
from pipelines.layout import lay_out, window
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, STRENGTH, signal_columns
from pipelines.signals.swings import BARS_PER_SIDE, is_swing

BARS = 60  # both swings, the five bars on the far side of each, and the volatilities come from these
REFERENCE = CONTEXT_INDEX["reference_close"]
(CLOSES, REFERENCES), FRESH = lay_out(closes=window(BARS), references=window(BARS))


@kernel
def _volatility(closes: Floats) -> float:
    """Return the root mean square change from one close to the next, price units a bar; closes (60,) float64."""
    total = 0.0
    for i in range(1, closes.shape[0]):
        total += (closes[i] - closes[i - 1]) ** 2
    return math.sqrt(total / (closes.shape[0] - 1))


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write the divergence of the swing confirmed at this close, if any.

    arrays   float64: state (120,), bar (9,), book unread, context (CONTEXT_WIDTH,), out (4,)
    reads    bar close; context reference_close
    state    windows of 60, NaN when fresh: closes, the reference's closes; while a gap is in either, all is missing
    rule     strength: way from swing to swing, of this market less of the reference (they have opposite signs), each
             over its own volatility times the root of the bars between: the steps a random walk would have made
    """
    closes, others = state[CLOSES], state[REFERENCES]
    push(closes, bar[CLOSE])
    push(others, context[REFERENCE])
    out[:] = np.nan
    known = mean(closes) + mean(others)
    if known != known:
        return
    out[DIRECTION] = 0.0
    newest = BARS - 1 - BARS_PER_SIDE
    side = 1.0 if is_swing(closes, newest, 1.0) else -1.0
    if side < 0.0 and not is_swing(closes, newest, side):
        return
    before = newest - 1
    while before >= BARS_PER_SIDE and not is_swing(closes, before, side):
        before -= 1
    if before < BARS_PER_SIDE:
        return
    own, other = side * (closes[newest] - closes[before]), side * (others[newest] - others[before])
    if own > 0.0 > other:
        out[DIRECTION] = -side
        out[STRENGTH] = (own / _volatility(closes) - other / _volatility(others)) / math.sqrt(newest - before)
        out[LOW_LEVEL], out[HIGH_LEVEL] = min(closes[newest], closes[before]), max(closes[newest], closes[before])


GROUP = FeatureGroup(
    "smt",
    step,
    signal_columns(
        "smt", "ict", BARS, "deviations",
        "newest swing of closes (5 bars a side) beyond the one before, both within 60 bars, while the reference's "
        "closes at the same bars went the other way; strength: the two ways apart, each over its own root mean square "
        "change of 60 bars and the root of the bars between",
        "ICT convention: smart money technique between correlated markets; ruling S5",
        needs="context:reference_close", levels="the two swings of this market",
    ),
    FRESH,
)  # fmt: skip
