"""Trades as files give them, and the bars they make."""

from typing import Any

import numpy as np
import pyarrow

from pipelines.compiled import kernel
from pipelines.contracts import BAR_WIDTH, CLOSE, HIGH, LOW, OPEN, OPEN_TIME, TAKER_BUY, TRADES, VOLUME, Floats, Trades
from pipelines.errors import BadShape, BadTimes

# Binance's public archives: trades (futures 6 columns, spot 7) and aggTrades (futures 7, spot 8), without a header
# before 2025 or so; price and size stand second and third, the maker flag follows the time in all of them
PRICE, SIZE = 1, 2
NAMES = {
    "time": ("time", "transact_time"),
    "price": ("price",),
    "size": ("qty", "quantity"),
    "maker": ("is_buyer_maker",),
}
COLUMNS = (6, 7, 8)


@kernel
def _bars(time, price, size, side, width, out):  # type: ignore[no-untyped-def]
    made = -1
    for i in range(time.shape[0]):
        start = np.floor(time[i] / width) * width
        if made < 0 or out[made, OPEN_TIME] != start:
            made += 1
            out[made, :] = 0.0
            out[made, OPEN_TIME] = start
            out[made, OPEN] = out[made, HIGH] = out[made, LOW] = price[i]
        out[made, HIGH] = max(out[made, HIGH], price[i])
        out[made, LOW] = min(out[made, LOW], price[i])
        out[made, CLOSE] = price[i]
        out[made, VOLUME] += size[i]
        out[made, TRADES] += 1.0
        if side[i] > 0.0:
            out[made, TAKER_BUY] += size[i]
    return made + 1


def bars_from_trades(trades: Trades, seconds: int) -> Floats:
    """(m, 8) bars of `seconds`, stamped with their opens; a bar in which nothing traded is absent.

    The first and the last bar are whole only where the trades cover them: cut them where that matters.
    Raises BadTimes if the trades are not in time order.
    """
    if len(trades.time) and np.diff(trades.time).min(initial=0.0) < 0:
        raise BadTimes(f"trade {int(np.argmin(np.diff(trades.time))) + 1} is before the one before it; sort by time")
    if not len(trades.time) == len(trades.price) == len(trades.size) == len(trades.side):
        raise BadShape("trades: time, price, size and side must be of one length")
    out = np.empty((len(trades.time), BAR_WIDTH))
    flat = (np.ascontiguousarray(v, dtype=np.float64) for v in (trades.time, trades.price, trades.size, trades.side))
    return out[: _bars(*flat, float(seconds), out)].copy()


def trade_columns(names: list[str], first: list[str]) -> dict[str, int] | None:
    """Positions of time, price, size and maker flag in a table of trades; None if it is none.

    names  column names, or [] for a file without a header; first  cells of its first line
    """
    if names:
        at = {kind: [names.index(name) for name in known if name in names] for kind, known in NAMES.items()}
        return {kind: found[0] for kind, found in at.items()} if all(at.values()) else None
    words = [cell.strip().lower() for cell in first]
    if len(words) not in COLUMNS:
        return None
    flags = [i for i, word in enumerate(words) if word in ("true", "false")]
    if not flags or not words[flags[0] - 1].isdigit():
        return None
    return {"time": flags[0] - 1, "price": PRICE, "size": SIZE, "maker": flags[0]}


def from_table(table: pyarrow.Table, at: dict[str, int], micros: Any) -> Trades:
    """micros  (n,) datetime64[us] of the time column, already read; the rest is taken from the table."""
    time = micros.astype(np.int64) / 1e6
    price, size = (table.column(at[name]).cast(pyarrow.float64()).to_numpy() for name in ("price", "size"))
    maker = table.column(at["maker"]).cast(pyarrow.bool_()).to_numpy()
    side = np.where(maker.astype(bool), -1.0, 1.0)  # the buyer was resting, so the seller was the aggressor
    order = np.argsort(time, kind="stable")
    return Trades(time[order], price[order], size[order], side[order])
