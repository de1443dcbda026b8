"""Order-book features: the six of the core and the validator's three. Without a book they are missing, never constants.

A book counts only if it became known during the bar (alignment ensures it) and is neither crossed nor locked: otherwise
every column is missing on that bar, and those with a window until the bar has left it. Flow is the sum over all book
events of the bar, never the difference of two books a bar apart; where a source records no flow, the flow columns are
missing.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import mean, push
from pipelines.layout import lay_out, window

WINDOW = 20  # bars of trailing depth
FLOW, FAST = CONTEXT_INDEX["order_flow"], CONTEXT_INDEX["order_flow_fast"]
(DEPTHS, DENSITIES), FRESH = lay_out(depths=window(WINDOW), densities=window(WINDOW))


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write nine values from the book at the bar's close.

    arrays   float64: state (40,), bar (9,), book (2, levels, 3), context (CONTEXT_WIDTH,), out (9,)
    reads    book: bid and ask; price, size (base asset), orders; best first, a NaN price is padding;
             context order_flow, order_flow_fast (base asset)
    state    windows of 20, NaN when fresh: mean depth of the two sides, density (base asset a fraction of mid)
    skew     level l of a side weighs 1 / l: size near the price counts more
    density  resting size over the reach from outermost bid to outermost ask: of few levels a fixed distance would
             hold all or none
    """
    depths, densities = state[DEPTHS], state[DENSITIES]
    out[:] = np.nan
    if book.shape[1] == 0 or not book[0, 0, 0] < book[1, 0, 0]:
        push(depths, np.nan)
        push(densities, np.nan)
        return
    bid, ask = book[0, 0, 0], book[1, 0, 0]
    lowest, highest = bid, ask
    bids, asks, near_bids, near_asks = 0.0, 0.0, 0.0, 0.0
    for i in range(book.shape[1]):
        if book[0, i, 0] == book[0, i, 0]:
            lowest = book[0, i, 0]
            bids += book[0, i, 1]
            near_bids += book[0, i, 1] / (i + 1.0)
        if book[1, i, 0] == book[1, i, 0]:
            highest = book[1, i, 0]
            asks += book[1, i, 1]
            near_asks += book[1, i, 1] / (i + 1.0)
    middle = 0.5 * (ask + bid)
    density = (bids + asks) / ((highest - lowest) / middle)
    push(depths, 0.5 * (bids + asks))
    push(densities, density)
    depth = mean(depths)
    out[0] = (ask - bid) / middle
    out[1] = (book[0, 0, 1] - book[1, 0, 1]) / (book[0, 0, 1] + book[1, 0, 1])
    out[2] = math.log(bids / asks)
    out[3] = bids / depth
    out[4] = asks / depth
    out[5] = context[FLOW] / depth
    out[6] = context[FAST] / depth
    out[7] = (near_bids - near_asks) / (near_bids + near_asks)
    out[8] = density / mean(densities)


INF = math.inf
CKS = "Cont, Kukanov and Stoikov 2014, J. Financial Econometrics 12(1) 47-88, eq. 2-4"
GROUP = FeatureGroup(
    "book",
    step,
    (
        Column("spread", "book", "fraction of mid", 0.0, INF, 1, "(ask - bid) / mid", "definition", needs="book"),
        Column(
            "book_imbalance", "book", "fraction of size", -1.0, 1.0, 1, "(bid - ask size) / sum, best level",
            "definition", needs="book",
        ),
        Column(
            "depth_ratio", "book", "log ratio", -INF, INF, 1, "log(bid size / ask size) over all levels",
            "definition", needs="book",
        ),
        Column(
            "bid_volume", "book", "ratio", 0.0, INF, WINDOW, "bid size, all levels / mean side depth of 20 bars",
            "definition", needs="book",
        ),
        Column(
            "ask_volume", "book", "ratio", 0.0, INF, WINDOW, "ask size, all levels / mean side depth of 20 bars",
            "definition", needs="book",
        ),
        Column(
            "order_flow_ratio", "book", "ratio", -INF, INF, WINDOW,
            "order-flow imbalance of the bar's book events / mean side depth of 20 bars", CKS,
            needs="book and context:order_flow",
        ),
        Column(
            "hft_oci_signal", "validator", "ratio", -INF, INF, WINDOW,
            "order-flow imbalance of the last seconds before the newest book / mean side depth of 20 bars", CKS,
            needs="book and context:order_flow_fast",
        ),
        Column(
            "book_skew_strength", "validator", "fraction of size", -1.0, 1.0, 1,
            "(bid - ask size) / sum over all levels, level l weighing 1 / l", "definition", needs="book",
        ),
        Column(
            "liquidity_density", "validator", "ratio", 0.0, INF, WINDOW,
            "size of both sides / reach of the recorded levels, over the mean of that of 20 bars", "definition",
            needs="book",
        ),
    ),
    FRESH,
)  # fmt: skip
