"""Order-book features of the core 25. Without a book they are missing, never constants."""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.features.fold import Column, StepFamily
from pipelines.features.kernels import mean, push


@kernel
def side_depth(side):  # type: ignore[no-untyped-def]
    """Sum of sizes (base asset) over one side (levels, 3); a level whose price is NaN is padding."""
    total = 0.0
    for i in range(side.shape[0]):
        if side[i, 0] == side[i, 0]:
            total += side[i, 1]
    return total


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Six values from the book at the bar's close and the one before.

    reads    book (2, levels, 3): bid and ask; price, size, orders; best level first; no levels = no book
    state    best bid price, size and best ask price, size of the last bar (4); mean side depth of 20 bars (window)
    """
    last, depths = state[0:4], state[4:24]
    if book.shape[1] == 0:
        last[:] = np.nan
        push(depths, np.nan)
        out[:] = np.nan
        return
    bid_price, bid_size = book[0, 0, 0], book[0, 0, 1]
    ask_price, ask_size = book[1, 0, 0], book[1, 0, 1]
    bids, asks = side_depth(book[0]), side_depth(book[1])
    push(depths, 0.5 * (bids + asks))
    trailing = mean(depths)
    out[0] = (ask_price - bid_price) / (0.5 * (ask_price + bid_price))
    out[1] = (bid_size - ask_size) / (bid_size + ask_size)
    out[2] = math.log(bids / asks)
    out[3] = bids / trailing
    out[4] = asks / trailing
    flow = 0.0
    if bid_price >= last[0]:
        flow += bid_size
    if bid_price <= last[0]:
        flow -= last[1]
    if ask_price <= last[2]:
        flow -= ask_size
    if ask_price >= last[2]:
        flow += last[3]
    out[5] = flow / (0.5 * (bid_size + ask_size + last[1] + last[3]))
    last[0], last[1], last[2], last[3] = bid_price, bid_size, ask_price, ask_size


INF = math.inf
FAMILY = StepFamily(
    "book",
    step,
    (
        Column("spread", "book", "fraction of mid", -INF, INF, 1, "(ask - bid) / mid", "definition", needs="book"),
        Column(
            "book_imbalance", "book", "fraction of size", -1.0, 1.0, 1, "(bid - ask size) / sum, best level",
            "definition", needs="book",
        ),
        Column(
            "depth_ratio", "book", "log ratio", -INF, INF, 1, "log(bid size / ask size) over all levels",
            "definition", needs="book",
        ),
        Column(
            "bid_volume", "book", "ratio", 0.0, INF, 20, "bid size, all levels / mean side depth of 20 bars",
            "definition", needs="book",
        ),
        Column(
            "ask_volume", "book", "ratio", 0.0, INF, 20, "ask size, all levels / mean side depth of 20 bars",
            "definition", needs="book",
        ),
        Column(
            "order_flow_ratio", "book", "ratio", -2.0, 2.0, 2, "best-level order flow / mean best size of two books",
            "Cont, Kukanov and Stoikov 2014, J. Financial Econometrics 12(1), eq. 2-4", needs="book",
        ),
    ),
    np.full(24, np.nan),
)  # fmt: skip
