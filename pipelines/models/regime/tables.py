"""Mapping tables: the regime probabilities that each label of a detector implies. Chosen by hand; rows sum to 1.

Columns are in the order of contracts.REGIMES: TRENDING, RANGING, VOLATILE, QUIET.
"""

import numpy as np

from pipelines.contracts import Floats

TABLES: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "hmm": {
        "bull": (0.80, 0.10, 0.10, 0.00),
        "bear": (0.75, 0.10, 0.15, 0.00),
        "high_vol": (0.10, 0.00, 0.90, 0.00),
        "low_vol": (0.00, 0.10, 0.00, 0.90),
        "rotation": (0.05, 0.85, 0.05, 0.05),
    },
    "volatility": {
        "LOW": (0.00, 0.20, 0.00, 0.80),
        "NORMAL": (0.40, 0.50, 0.05, 0.05),
        "HIGH": (0.25, 0.05, 0.70, 0.00),
    },
    "trend": {
        "up": (0.85, 0.00, 0.15, 0.00),
        "down": (0.85, 0.00, 0.15, 0.00),
        "flat": (0.00, 0.60, 0.10, 0.30),
    },
    "clustering": {
        "trending": (0.85, 0.05, 0.05, 0.05),
        "ranging": (0.05, 0.85, 0.05, 0.05),
        "volatile": (0.05, 0.05, 0.85, 0.05),
        "quiet": (0.05, 0.05, 0.05, 0.85),
    },
    "momentum": {
        "down": (0.60, 0.10, 0.30, 0.00),
        "flat": (0.10, 0.50, 0.10, 0.30),
        "up": (0.70, 0.10, 0.20, 0.00),
    },
    "sentiment": {
        "Fearful": (0.20, 0.10, 0.70, 0.00),
        "Anxious": (0.20, 0.40, 0.40, 0.00),
        "Neutral": (0.10, 0.40, 0.10, 0.40),
        "Optimistic": (0.50, 0.30, 0.05, 0.15),
        "Euphoric": (0.50, 0.05, 0.45, 0.00),
    },
    "volume": {
        "LOW": (0.05, 0.35, 0.00, 0.60),
        "NORMAL": (0.30, 0.40, 0.15, 0.15),
        "HIGH": (0.45, 0.05, 0.50, 0.00),
    },
}


def table(detector: str) -> Floats:
    """Return the mapping table (labels, 4) of one detector."""
    return np.array(list(TABLES[detector].values()))
