"""Swings: which of eleven values stands out."""

import numpy as np
import pytest

from pipelines.signals.swings import BARS_PER_SIDE, is_swing

FLAT = np.full(11, 1.0)


@pytest.mark.parametrize(
    ("place", "value", "stands"),
    [
        pytest.param(0, 2.0, True, id="lower on both sides"),
        pytest.param(0, 3.0, False, id="an equal one before it"),
        pytest.param(10, 3.0, True, id="an equal one after it"),
        pytest.param(10, 3.1, False, id="a higher one after it"),
        pytest.param(4, np.nan, False, id="one of the eleven not known"),
    ],
)
def test_a_swing_is_the_first_highest_of_eleven(place, value, stands):
    values = FLAT.copy()
    values[BARS_PER_SIDE], values[place] = 3.0, value
    assert is_swing(values, BARS_PER_SIDE, 1.0) == stands
    assert is_swing(-values, BARS_PER_SIDE, -1.0) == stands
    assert not is_swing(values, BARS_PER_SIDE, -1.0)


def test_flat_values_have_no_swing():
    assert not is_swing(FLAT, BARS_PER_SIDE, 1.0)
    assert not is_swing(FLAT, BARS_PER_SIDE, -1.0)
