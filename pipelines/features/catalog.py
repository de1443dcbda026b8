"""FEATURES: every feature column in one fold, and the check that finds columns which follow from others."""

from collections.abc import Iterable

import numpy as np

from pipelines.contracts import Floats
from pipelines.errors import BadShape, NotEnoughData
from pipelines.features import averages, book, clock, indicators, price, regime, sentiment, technical, volume
from pipelines.features.fold import Column, StreamingFold

FEATURES = StreamingFold(
    "features",
    (
        price.GROUP,
        volume.GROUP,
        book.GROUP,
        technical.GROUP,
        averages.GROUP,
        indicators.OSCILLATORS,
        indicators.BANDS,
        clock.GROUP,
        regime.GROUP,
        sentiment.GROUP,
    ),
)

CORE_COLUMNS = tuple(c.name for c in FEATURES.catalogue if c.category in ("price", "volume", "book", "technical"))
COPIES = {c.name: tuple(c.copy_of.split(" and ")) for c in FEATURES.catalogue if c.copy_of is not None}
# Watched for drift: the clock does not drift, copies add nothing, and no model reads the traditional set.
# Columns whose input the training data lacks (`needs`) are left out by the drift reference itself.
WATCHED_COLUMNS = tuple(
    c.name
    for c in FEATURES.catalogue
    if c.copy_of is None and c.category != "traditional" and not c.name.startswith(("time_of_day_", "session_"))
)
REGIME_COLUMNS = (
    "volatility_20",
    "volatility_regime",
    "adx_14",
    "persistence_60",
    "price_momentum",
    "volume_ratio",
    "spread_proxy_20",
    "cross_correlation",
    "cross_beta",
)


def absent_columns(catalogue: Iterable[Column], given: set[str]) -> dict[str, str]:
    """Return the columns that stay missing where only `given` was recorded besides prices, each with its needs.

    given  of "volume", "taker", "book" and "context:<field>"
    """
    return {
        column.name: column.needs
        for column in catalogue
        if column.needs and not any(set(way.split(" and ")) <= given for way in column.needs.split(" or "))
    }


def measured_copies(values: Floats, columns: tuple[str, ...] = FEATURES.columns) -> dict[str, tuple[str, ...]]:
    """Return the columns that add no rank: linear combinations (with a constant) of columns before them.

    values   (n, k) float64; columns wholly missing are left out, then rows with any missing value
    Returns  {copy: the earlier columns it is made of}; a constant column is made of none, so its tuple is empty
    Raises   BadShape if widths disagree, NotEnoughData if fewer than ten rows a column are complete
    """
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise BadShape(f"values have shape {values.shape}, wanted (n, {len(columns)})")
    present = np.flatnonzero(~np.isnan(values).all(axis=0))
    rows = values[:, present]
    rows = rows[~np.isnan(rows).any(axis=1)]
    if len(rows) < 10 * len(present):
        raise NotEnoughData(
            f"{len(rows)} complete rows for {len(present)} columns, ten a column are needed. Bring a longer history."
        )
    scale = np.abs(rows).max(axis=0)
    rows = rows / np.where(scale > 0, scale, 1.0)
    basis = np.full((len(rows), 1), 1.0 / np.sqrt(len(rows)))  # orthonormal: the constant, then independent columns
    independent: list[int] = []
    copies: dict[str, tuple[str, ...]] = {}
    for j in range(len(present)):
        rest = rows[:, j] - basis @ (basis.T @ rows[:, j])
        if np.abs(rest).max() < 1e-9:
            earlier = np.column_stack([np.ones(len(rows)), rows[:, independent]])
            weights = np.linalg.lstsq(earlier, rows[:, j], rcond=None)[0][1:]
            made_of = np.flatnonzero(np.abs(weights) > 1e-6)
            copies[columns[present[j]]] = tuple(columns[present[independent[i]]] for i in made_of)
        else:
            rest = rest - basis @ (basis.T @ rest)  # once more: rounding left by the first pass
            basis = np.column_stack([basis, rest / np.linalg.norm(rest)])
            independent.append(j)
    return copies
