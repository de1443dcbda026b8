"""Bars for the signal tests: real 15-minute BTC where the recordings are, otherwise a seeded random walk."""

import numpy as np
import pytest
from support.context_factory import make_context
from support.market_bars import RECORDED, recorded, year

__all__ = ["year"]


@pytest.fixture(scope="session")
def bars(year: np.ndarray) -> np.ndarray:
    return year[:2500]


@pytest.fixture(scope="session")
def contexts(bars: np.ndarray) -> np.ndarray:
    """What else was known at each close, made up: (n, CONTEXT_WIDTH) in the order of CONTEXT_FIELDS."""
    return make_context(bars)


@pytest.fixture(scope="session")
def real_year() -> np.ndarray:
    if not RECORDED.exists():
        pytest.skip(f"recorded bars are not at {RECORDED.resolve()}")
    return recorded()
