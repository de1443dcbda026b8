"""Fixtures of the regime tests, made with tests/support/regime_market.py."""

import pytest
from support.regime_market import PARAMS, QUARTERS, dataset_of

from pipelines.data.simulator.market import simulate
from pipelines.data.timeframes import Grid, resample


@pytest.fixture(scope="session")
def simulated():
    """Return (dataset, true regime at each row's close) of four months of the simulated market."""
    spec = PARAMS.simulator.model_copy(update={"history_days": 120, "live_days": 0, "drift_after_live_days": None})
    market = simulate(spec, tape=False)
    data = dataset_of(resample(market.bars, Grid("1m"), QUARTERS))
    return data, market.truth.regime.reshape(-1, 15)[:, -1][data.extras["index"].astype(int)]
