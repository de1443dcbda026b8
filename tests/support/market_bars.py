"""15-minute bars: real BTC where the recordings are, otherwise a seeded random walk."""

import numpy as np
import pandas as pd
import pytest

from pipelines.settings import ROOT

RECORDED = ROOT / "../shared/data/candles/binance_spot_btcusdt_1m_2024.parquet"


def random_walk(n: int, seed: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    close = 4e4 * np.exp(np.cumsum(rng.normal(0, 3e-3 * (1 + np.sin(np.arange(n) / 300) ** 2))))
    opened = np.concatenate([[4e4], close[:-1]])
    high = np.maximum(opened, close) * (1 + np.abs(rng.normal(0, 1e-3, n)))
    low = np.minimum(opened, close) * (1 - np.abs(rng.normal(0, 1e-3, n)))
    volume = rng.lognormal(5, 0.7, n)
    time = 1.7040672e9 + 900.0 * np.arange(n)
    trades = np.floor(volume * 40)
    return np.column_stack(
        [time, opened, high, low, close, volume, trades, volume * rng.beta(8, 8, n), np.full(n, np.nan)]
    )


def recorded() -> np.ndarray:
    frame = pd.read_parquet(RECORDED).set_index("open_time").resample("15min")
    wanted = {
        "open": "first", "high": "max", "low": "min", "close": "last",
        "volume_base": "sum", "trade_count": "sum", "taker_buy_volume_base": "sum",
    }  # fmt: skip
    bars = frame.agg(wanted)
    seconds = bars.index.as_unit("s").astype("int64").to_numpy(dtype=float)
    return np.ascontiguousarray(np.column_stack([seconds, bars.to_numpy(dtype=float), np.full(len(bars), np.nan)]))


@pytest.fixture(scope="session")
def year() -> np.ndarray:
    """A year of 15-minute bars (n, 9)."""
    return recorded() if RECORDED.exists() else random_walk(35_000)
