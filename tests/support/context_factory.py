"""Made-up context at each close: plausible sizes and ranges for every field."""

import numpy as np

from pipelines.context_layout import CONTEXT_FIELDS, SERIES_FIELDS
from pipelines.contracts import CLOSE, HIGH, LOW, VOLUME


def make_context(bars, seed=13):
    """(n, CONTEXT_WIDTH) for bars (n, 9) in the order of CONTEXT_FIELDS; a side has no wall now and then."""
    rng, n = np.random.default_rng(seed), len(bars)
    close, volume, reach = bars[:, CLOSE], bars[:, VOLUME], bars[:, HIGH] - bars[:, LOW]

    def wall(side):
        price = close + side * reach * rng.uniform(0.5, 5.0, n)
        return np.where(rng.random(n) < 0.3, np.nan, price)

    below, above = wall(-1.0), wall(1.0)
    values = {
        "order_flow": rng.normal(0, 3, n),
        "order_flow_fast": rng.normal(0, 0.3, n),
        "funding_rate": np.repeat(rng.normal(1e-4, 2e-4, n // 32 + 1), 32)[:n],
        "fear_greed": np.repeat(rng.integers(5, 96, n // 96 + 1), 96)[:n].astype(float),
        "open_interest": 8e4 + np.cumsum(rng.normal(0, 10, n)),
        "reference_close": close * np.exp(rng.normal(0, 1e-3, n)) * 20,
        "stacked_buying": rng.poisson(1.5, n).astype(float),
        "stacked_selling": rng.poisson(1.5, n).astype(float),
        "stacking_bid": rng.normal(0, 20, n),
        "stacking_ask": rng.normal(0, 20, n),
        "hawkes_branching": rng.beta(6, 4, n),
        "hawkes_excess": rng.lognormal(0.0, 0.8, n) - 0.5,
        "hawkes_side": rng.uniform(-1.0, 1.0, n),
        "heat_imbalance": np.tanh(rng.normal(0, 0.4, n)),
        "heat_concentration": 0.01 + 0.2 * rng.beta(2, 8, n),
        "heat_liquidity": rng.beta(5, 3, n),
        "wall_bid": below,
        "wall_ask": above,
        "wall_bid_size": np.where(below == below, rng.uniform(5, 30, n), np.nan),
        "wall_ask_size": np.where(above == above, rng.uniform(5, 30, n), np.nan),
        "large_buy": volume * rng.beta(2, 8, n),
        "large_sell": volume * rng.beta(2, 8, n),
        "iceberg_bid": volume * rng.beta(1, 20, n) * (rng.random(n) < 0.7),
        "iceberg_ask": volume * rng.beta(1, 20, n) * (rng.random(n) < 0.7),
        "spoof_bid": rng.poisson(0.8, n).astype(float),
        "spoof_ask": rng.poisson(0.8, n).astype(float),
        "smart_price": close - reach * rng.uniform(-0.3, 0.3, n),
        "cvd_large": rng.normal(0, 0.1, n) * volume,
        "cvd_small": rng.normal(0, 0.1, n) * volume,
        "vpin": rng.beta(4, 8, n),
    }
    values |= {name: rng.normal(0, 10.0**i, n) for i, name in enumerate(SERIES_FIELDS)}
    return np.column_stack([values[name] for name in CONTEXT_FIELDS])
