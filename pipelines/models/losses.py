"""Losses of probabilities, row by row: for fits, for the gate and for monitoring."""

import numpy as np

from pipelines.contracts import Floats
from pipelines.errors import BadShape, BadValues

_EPS = 1e-12


def checked(p: Floats, y: Floats) -> None:
    """Raise BadShape if lengths differ, BadValues on NaN or on a probability outside [0, 1]."""
    if len(p) != len(y):
        raise BadShape(f"{len(p)} probabilities but {len(y)} outcomes")
    if not (np.isfinite(p).all() and np.isfinite(y).all()):
        raise BadValues(
            f"{int((~np.isfinite(p)).sum())} probabilities and {int((~np.isfinite(y)).sum())} outcomes are NaN"
        )
    if len(p) and (p.min() < 0 or p.max() > 1):
        raise BadValues(f"probabilities in [{p.min():.3f}, {p.max():.3f}], expected [0, 1]")


def log_losses(p: Floats, y: Floats) -> Floats:
    """Return (n,) log losses in nats of p, y (n,). Raises as `checked`; NaN is refused."""
    checked(p, y)
    q = np.clip(p, _EPS, 1 - _EPS)
    return np.asarray(-(y * np.log(q) + (1 - y) * np.log(1 - q)))


def brier_losses(p: Floats, y: Floats) -> Floats:
    """Return (n,) squared errors; for p, y (n, classes) their mean over the classes. NaN is refused."""
    checked(p, y)
    squared = (p - y) ** 2
    return np.asarray(squared if squared.ndim == 1 else squared.mean(axis=1))
