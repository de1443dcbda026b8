"""What a validator's events returned and paid, where a test needs the columns and not their values."""

import numpy as np


def traded(n):
    """Return the extras of n events: 10 bps lost each, an ATR of half a per cent, 5 bps of costs."""
    values = {"gross_bps": -10.0, "atr": 0.005, "cost_bps": 5.0, "target_cost_bps": 5.0}
    return {name: np.full(n, value) for name, value in values.items()}
