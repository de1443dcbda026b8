"""Time one close of sixteen symbols: a batched /observe and a batched /decide, against one call of each a symbol.

Every symbol is the same market under another name, and models answer for all by `models.unseen_symbols: allow`. What
a request does in this process is timed: its JSON is read, bars are stored durably and folded, models answer,
decisions are stored durably and written as JSON. HTTP itself comes on top, twice a close instead of 32 times.

Run: python -m benchmarks many_symbols
"""

from benchmarks.decision import CPU, WALL, both_ways
from benchmarks.four_families import four_families
from benchmarks.measured import Row, pairs, spread

SYMBOLS = tuple(f"S{i:02d}/USDT" for i in range(16))
CLOSES = 48  # decision bars that are timed
SPEED = 900.0  # market seconds a second, `feed.speed`: a bar of 15 minutes each second


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    symbols, closes = (SYMBOLS[:4], 2) if tiny else (SYMBOLS, CLOSES)
    batched, alone = (took.sum(axis=(1, 2)) for took in both_ways(four_families(tiny), symbols, closes))
    step_ms = 900.0 / SPEED * 1e3
    return [
        pairs(f"one close of {len(symbols)} symbols, observed and decided", "ms", batched[:, CPU],
              "one call of each a symbol", alone[:, CPU], "CPU time, without HTTP", tail=True),
        pairs("  the same, wall time", "ms", batched[:, WALL], "one call of each a symbol", alone[:, WALL],
              "durable on this disk", tail=True),
        Row(f"  share of the time between closes at speed {SPEED:.0f}", "%",
            spread(batched[:, WALL] / step_ms * 100.0), note="wall time"),
    ]  # fmt: skip
