"""The newest closed bars of a live symbol: the same whenever its buffer is full."""

import numpy as np
import pytest

from pipelines.contracts import BAR_WIDTH, RETAINED_BARS, History
from serving.state.recent_bars import SPARE_BARS, RecentBars


def rows(first, n):
    """A history of n bars, each with its number in every column."""
    numbers = np.arange(first, first + n, dtype=np.float64)
    of = [np.tile(numbers[:, None], width) for width in (BAR_WIDTH, 3, 2)]
    return History(*of, np.tile(numbers[:, None, None, None], (2, 1, 3)), np.tile(numbers[:, None], 4))


@pytest.mark.parametrize("before", [5, RETAINED_BARS])
@pytest.mark.parametrize("spare", [1, 7, SPARE_BARS])
def test_the_newest_bars_are_retained_whenever_the_first_buffer_is_full(spare, before):
    recent, last = RecentBars(rows(0, before), spare), before + RETAINED_BARS + 2 * SPARE_BARS + 3
    for at in range(before, last):
        new = rows(at, 1)
        found = recent.with_bar(new.bars[0], new.features[0], new.signals[0], new.levels[0], new.context[0])
        expected = np.arange(max(0, at + 1 - RETAINED_BARS), at + 1)
        assert all((part[:, ..., 0].reshape(len(part), -1)[:, 0] == expected).all() for part in
                   (found.bars, found.features, found.signals, found.levels, found.context))  # fmt: skip
