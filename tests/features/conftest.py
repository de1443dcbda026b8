"""Bars for the fold tests: real 15-minute BTC where the recordings are, otherwise a seeded random walk."""

import numpy as np
import pytest
from support.context_factory import make_context
from support.market_bars import year

__all__ = ["year"]


@pytest.fixture(scope="session")
def bars(year: np.ndarray) -> np.ndarray:
    return year[:2500]


@pytest.fixture(scope="session")
def books(bars: np.ndarray) -> np.ndarray:
    """Five levels a side around each close: made up, to walk the book columns through the same contract."""
    rng = np.random.default_rng(11)
    steps = rng.uniform(0.5e-5, 2e-5, (len(bars), 1)) * (1 + np.arange(5))
    made = np.empty((len(bars), 2, 5, 3))
    for side, sign in enumerate((-1.0, 1.0)):
        made[:, side, :, 0] = bars[:, 4, None] * (1 + sign * steps)
    made[..., 1:] = rng.lognormal(0, 0.5, (len(bars), 2, 5, 2))
    return made


@pytest.fixture(scope="session")
def contexts(bars: np.ndarray) -> np.ndarray:
    """What else was known at each close, made up: (n, CONTEXT_WIDTH) in the order of CONTEXT_FIELDS."""
    return make_context(bars)
