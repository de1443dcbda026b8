"""The tail of what is open follows the volatility of the newest close, as the tail of a new unit does."""

import numpy as np
import pytest

from pipelines.data.timeframes import Grid
from pipelines.params import TailParams
from serving.risk.exposure import AssetCloses, exposure_by_name, scenarios_of

HOUR, HORIZON = 3600.0, 4  # seconds of a bar, bars
ALONE = TailParams(decay=0.97, filtered_alone=["1h"])


def test_one_position_has_the_tail_of_its_size_in_units_whatever_the_volatility_now():
    """Scenarios are in units of volatility: plain returns in their place would be scaled by it twice."""
    steps = np.random.default_rng(1).normal(0, 0.01, 1500)
    closes = np.column_stack([HOUR * np.arange(1, 1501), 100 * np.exp(np.cumsum(steps))])
    scenarios = scenarios_of({"A/USD": AssetCloses(Grid("1h"), closes)}, HORIZON, ALONE)
    for volatility in (0.004, 0.01, 0.05):
        used = exposure_by_name(np.array([[0.2, 0.0, 0.0]]), 1.0, 0.0, 0.0, scenarios, np.array([volatility]))
        assert used["es"] == pytest.approx(0.2 * used["es_unit"])
