"""The four columns that every signal has, and their meaning."""

import math

from pipelines.features.fold import Column

# columns of a signal, in order
SIGNAL_PARTS = ("direction", "strength", "low", "high")
DIRECTION, STRENGTH, LOW_LEVEL, HIGH_LEVEL = range(len(SIGNAL_PARTS))


def signal_columns(
    name: str, category: str, warmup: int, unit: str, formula: str, source: str, high: float = math.inf,
    needs: str | None = None, levels: str = "price levels of the signal",
) -> tuple[Column, ...]:  # fmt: skip
    """Return the columns of one signal, known at the close of the bar they stand on.

    x.direction  -1 short, 0 no signal, 1 long; missing while it warms up or an input it needs is missing
    x.strength   > 0 in `unit`, at most `high`; missing where direction is 0
    x.low/high   price levels in quote currency; missing where direction is 0 or the signal has none
    """
    inf = math.inf
    return (
        Column(f"{name}.direction", category, "side", -1.0, 1.0, warmup, formula, source, needs=needs),
        Column(f"{name}.strength", category, unit, 0.0, high, warmup, formula, source, needs=needs, sparse=True),
        Column(f"{name}.low", category, "price", 0.0, inf, warmup, levels, source, needs=needs, sparse=True),
        Column(f"{name}.high", category, "price", 0.0, inf, warmup, levels, source, needs=needs, sparse=True),
    )
