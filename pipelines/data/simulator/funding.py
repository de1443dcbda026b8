"""The funding rate of a simulated market: mean premium of the quotes over the value in eight hours, and interest."""

import numpy as np

from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import ContextFeed, Floats

FUNDING_S = 28_800  # seconds between funding rates
INTEREST = 1e-4  # part of the funding rate that is independent of the basis
FUNDING_CAP = 0.0075


class FundingMeter:
    """Add up the premium of the minutes in the order they come; a rate is known when its eight hours are over."""

    def __init__(self) -> None:
        """Begin before the first minute."""
        self.total, self.count = 0.0, 0  # of the period under way

    def add(self, opened: Floats, premium: Floats) -> ContextFeed:
        """Return the rates that became known in n minutes, fractions; the next call goes on where these end.

        opened   (n,) epoch seconds, contiguous and after those of the call before
        premium  (n,) mid over value less 1; NaN where a side of the book was empty
        """
        if not len(opened):
            return ContextFeed(np.empty(0), np.empty(0, np.int64), np.empty(0))
        period = (opened // FUNDING_S).astype(np.int64)
        first, last = int(period[0]), int((opened[-1] + 60.0) // FUNDING_S)  # periods before `last` are over
        seen = np.isfinite(premium)
        index, size = period[seen] - first, last - first + 1
        # what was added before comes first: the sum of pieces is the sum of the whole, bit for bit
        total = np.bincount(np.append(0, index), np.append(self.total, premium[seen]), size)
        count = np.bincount(index, minlength=size)
        count[0] += self.count
        self.total, self.count = float(total[-1]), int(count[-1])
        over = np.flatnonzero(count[:-1])
        rate = np.round(np.clip(INTEREST + total[over] / count[over], -FUNDING_CAP, FUNDING_CAP), 8).astype(np.float64)
        known = ((first + over + 1) * FUNDING_S).astype(np.float64)
        return ContextFeed(known, np.full(len(over), CONTEXT_INDEX["funding_rate"], np.int64), rate)


def joined(feeds: list[ContextFeed]) -> ContextFeed:
    """Return feeds of consecutive minutes, at least one, as one."""
    return ContextFeed(*(np.concatenate([getattr(f, name) for f in feeds]) for name in ("known", "field", "value")))
