"""Time one update of the order-book heatmap (a snapshot added, its row written) against a pandas pivot of the levels.

Run: python -m benchmarks heatmap
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measured import Row, in_turn, pairs
from pipelines.contracts import Floats
from pipelines.data.orderbook.heatmap import (
    HEAT_STATE,
    LEVEL_BPS,
    LEVELS,
    LEVELS_PER_SIDE,
    MIN_LEVELS,
    MIN_PERSISTENCE,
    MIN_SNAPSHOTS,
    MIN_WALL_MEDIANS,
    SNAPSHOTS,
    heatmap_add_snapshot,
    heatmap_write_row,
)

BookView = tuple[Any, int, int, int, int, int]  # what heatmap_add_snapshot reads of a book
MARKETS = ((35_000, 1 << 10, "the simulator's book"), (640_000, 1 << 13, "a perpetual's, 1,600 ticks a side"))


def books(mid: int, ring: int, n: int, seed: int) -> list[BookView]:
    """Return n books 5 s apart around a wandering mid (ticks), a third of their levels empty, with a liquidity wall on
    both sides.
    """
    noise, made = np.random.default_rng(seed), []
    liquidity_walls = mid - mid // 2000, mid + mid // 1500
    for _ in range(n):
        mid += int(noise.integers(-2, 3))
        depth, best = np.zeros((2, ring), np.int64), (mid, mid + 1 + int(noise.integers(0, 2)))
        reach = min(ring // 2 - 8, mid // 300)
        for side, away in ((0, -1), (1, 1)):
            sizes = noise.integers(1, 100, reach) * (noise.random(reach) < 0.7)
            sizes[0] = sizes[-1] = 5
            if 0 < (liquidity_walls[side] - best[side]) * away < reach:
                sizes[abs(liquidity_walls[side] - best[side])] = 20 * 50 * max(1, mid // 20_000)
            depth[side, (best[side] + away * np.arange(reach)) & (ring - 1)] = sizes
        made.append((depth, ring - 1, best[0], best[1], best[0] - reach + 1, best[1] + reach - 1))
    return made


@dataclass(frozen=True)
class _Snapshot:
    """Hold one book in price buckets."""

    width: int
    best: tuple[int, int]
    levels: pd.DataFrame  # bucket, side, size


class PandasHeatmap:
    """Compute the same figures over whole tables, again at each update."""

    def __init__(self) -> None:
        """Start without snapshots."""
        self.snapshots: deque[_Snapshot] = deque(maxlen=SNAPSHOTS)

    def add_snapshot(self, depth: Any, mask: int, best_bid: int, best_ask: int, far_bid: int, far_ask: int) -> None:
        """Add a book; the arguments are those of `heatmap_add_snapshot`, prices in ticks."""
        width = 2 ** max(0, int(np.floor(np.log2(LEVEL_BPS * 1e-4 * (best_bid + best_ask) / 2))))
        parts = []
        for side, ticks in ((0, np.arange(far_bid, best_bid + 1)), (1, np.arange(best_ask, far_ask + 1))):
            part = pd.DataFrame({"bucket": ticks // width, "side": side, "size": depth[side, ticks & mask]})
            away = (part["bucket"] - (best_bid, best_ask)[side] // width).abs()
            parts.append(part[away < LEVELS_PER_SIDE].groupby(["bucket", "side"], as_index=False)["size"].sum())
        self.snapshots.append(_Snapshot(width, (best_bid, best_ask), pd.concat(parts)))

    def row(self, tick_price: float) -> Floats:
        """Return the heatmap's row (7,), prices in quote currency; NaN with fewer than MIN_SNAPSHOTS."""
        out = np.full(7, np.nan)
        window = [snapshots for snapshots in self.snapshots if snapshots.width == self.snapshots[-1].width]
        if len(window) < MIN_SNAPSHOTS:
            return out
        table = pd.concat([snapshots.levels.assign(when=k) for k, snapshots in enumerate(window)])
        table = table[table["size"] > 0]
        bid, ask = (float(table.loc[table["side"] == side, "size"].sum()) for side in (0, 1))
        out[0] = (bid - ask) / (bid + ask)
        share = table["size"] / table.groupby("when")["size"].transform("sum")
        concentrated = (share**2).groupby(table["when"]).sum().to_numpy()
        missing = np.array([snapshots.best[1] - snapshots.best[0] - 1 for snapshots in window]) / window[-1].width
        out[1], out[2] = concentrated.mean(), (1 / (LEVELS * concentrated) / (1 + missing)).mean()
        for side, name in ((0, "bid"), (1, "ask")):
            sizes = table[table["side"] == side].pivot(index="when", columns="bucket", values="size")
            sizes = sizes[sizes.count(axis=1) >= MIN_LEVELS].reindex(range(len(window)))
            medians = sizes.div(sizes.median(axis=1), axis=0)
            stands = medians >= MIN_WALL_MEDIANS
            lasting = stands.columns[(stands.sum() >= MIN_PERSISTENCE * len(window)) & stands.iloc[-1]]
            if len(lasting):
                nearest = int(lasting.max() if name == "bid" else lasting.min())
                out[3 + side] = ((nearest + 0.5) * window[-1].width - 0.5) * tick_price
                out[5 + side] = medians[nearest].iloc[-1]
        return out


class _Compiled:
    """Run the product's heatmap."""

    def __init__(self) -> None:
        """Start with a fresh state."""
        self.state, self.out = np.zeros(HEAT_STATE), np.empty(7)

    def update(self, view: BookView) -> None:
        """Add a book and write the row."""
        heatmap_add_snapshot(self.state, *view)
        heatmap_write_row(self.state, 0.1, self.out)


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark. Raises AssertionError if the two sides differ by more than 1e-12."""
    rows = []
    for mid, ring, note in MARKETS:
        seen = books(mid, ring, SNAPSHOTS + 1, seed=1)
        compiled, pandas_heatmap = _Compiled(), PandasHeatmap()
        for each in seen:
            compiled.update(each)
            pandas_heatmap.add_snapshot(*each)
        np.testing.assert_allclose(compiled.out, pandas_heatmap.row(0.1), rtol=1e-12)

        def ours(compiled: _Compiled = compiled, newest: BookView = seen[-1]) -> None:
            """Update the compiled heatmap with the newest book."""
            compiled.update(newest)

        def theirs(pandas_heatmap: PandasHeatmap = pandas_heatmap, newest: BookView = seen[-1]) -> None:
            """Update the heatmap of tables with the newest book."""
            pandas_heatmap.add_snapshot(*newest)
            pandas_heatmap.row(0.1)

        took, reference = in_turn(ours, theirs, 3 if tiny else 9)
        rows.append(pairs("heatmap of the book, one update", "us", took * 1e6, "pandas pivot", reference * 1e6, note))
    return rows
