"""Trades as files give them, and the bars they make."""

import numpy as np
import numpy.typing as npt
import pyarrow

from pipelines.compiled import kernel
from pipelines.contracts import (
    BAR_WIDTH,
    CLOSE,
    HALF_SPREAD,
    HIGH,
    LOW,
    OPEN,
    OPEN_TIME,
    TAKER_BUY,
    TRADES,
    VOLUME,
    Floats,
    Trades,
)
from pipelines.errors import BadShape, BadTimes

# Binance's public archives: trades (futures 6 columns, spot 7) and aggTrades (futures 7, spot 8), without a header
# before 2025 or so; price and size stand second and third, the maker flag follows the time in all of them. A row of
# aggTrades is all fills of one order at one price: it names the first and the last trade it is made of
_AGGREGATED = ("id", "price", "size", "first", "last", "time")  # then the maker flag
PRICE, SIZE, FIRST, LAST = (_AGGREGATED.index(name) for name in ("price", "size", "first", "last"))
AGGREGATED = len(_AGGREGATED)  # position of the maker flag in aggTrades; in trades one earlier
NAMES = {
    "time": ("time", "transact_time"),
    "price": ("price",),
    "size": ("qty", "quantity"),
    "maker": ("is_buyer_maker",),
}
SPAN = {"first": ("first_trade_id",), "last": ("last_trade_id",)}  # of aggTrades alone
COLUMNS = (6, 7, 8)


@kernel
def _bars(time: Floats, price: Floats, size: Floats, side: Floats, fills: Floats, width: float, out: Floats) -> int:
    """Fill out (n, 9) float64 with bars of `width` seconds from the top; return how many there are.

    time, price, size, side, fills  (n,) float64 in time order
    """
    made = -1
    for i in range(time.shape[0]):
        start = np.floor(time[i] / width) * width
        if made < 0 or out[made, OPEN_TIME] != start:
            made += 1
            out[made, :] = 0.0
            out[made, HALF_SPREAD] = np.nan  # trades alone do not show the quotes
            out[made, OPEN_TIME] = start
            out[made, OPEN] = out[made, HIGH] = out[made, LOW] = price[i]
        out[made, HIGH] = max(out[made, HIGH], price[i])
        out[made, LOW] = min(out[made, LOW], price[i])
        out[made, CLOSE] = price[i]
        out[made, VOLUME] += size[i]
        out[made, TRADES] += fills[i]
        if side[i] > 0.0:
            out[made, TAKER_BUY] += size[i]
    return made + 1


def bars_from_trades(trades: Trades, seconds: int, fills: Floats | None = None) -> Floats:
    """Return (m, 9) bars of `seconds`, stamped with their opens; a bar in which nothing traded is absent.

    fills  (n,) how many trades each row stands for; None: one
    The first and the last bar are whole only where the trades cover them: cut them where that matters.
    Raises BadTimes if the trades are not in time order.
    """
    if len(trades.time) and np.diff(trades.time).min(initial=0.0) < 0:
        raise BadTimes(f"trade {int(np.argmin(np.diff(trades.time))) + 1} is before the one before it; sort by time")
    fills = np.ones(len(trades.time)) if fills is None else fills
    if not len(trades.time) == len(trades.price) == len(trades.size) == len(trades.side) == len(fills):
        raise BadShape("trades: time, price, size, side and fills must be of one length")
    out = np.empty((len(trades.time), BAR_WIDTH))
    columns = (trades.time, trades.price, trades.size, trades.side, fills)
    flat = (np.ascontiguousarray(values, dtype=np.float64) for values in columns)
    return out[: _bars(*flat, float(seconds), out)].copy()


def trade_columns(names: list[str], first: list[str]) -> dict[str, int] | None:
    """Return the positions of the columns of a table of trades; None if it is none.

    Keys: time, price, size, maker and, where rows are aggregated, first and last trade of a row.

    names  column names, or [] for a file without a header; first  cells of its first line
    """
    if names:
        known = {**NAMES, **SPAN}
        at = {kind: names.index(name) for kind, called in known.items() for name in called if name in names}
        return at if set(NAMES) <= set(at) else None
    words = [cell.strip().lower() for cell in first]
    if len(words) not in COLUMNS:
        return None
    flags = [i for i, word in enumerate(words) if word in ("true", "false")]
    if not flags or not words[flags[0] - 1].isdigit():
        return None
    at = {"time": flags[0] - 1, "price": PRICE, "size": SIZE, "maker": flags[0]}
    return at | {"first": FIRST, "last": LAST} if flags[0] == AGGREGATED else at


def from_table(table: pyarrow.Table, at: dict[str, int], micros: npt.NDArray[np.datetime64]) -> tuple[Trades, Floats]:
    """Return trades in time order, and how many trades of the exchange each of them stands for.

    micros  (n,) datetime64[us] of the time column, already read; the rest is taken from the table.
    """
    time = np.where(np.isnat(micros), np.nan, micros.astype(np.int64) / 1e6)
    price, size = (table.column(at[name]).cast(pyarrow.float64()).to_numpy() for name in ("price", "size"))
    maker = table.column(at["maker"]).cast(pyarrow.bool_()).to_numpy()
    side = np.where(maker.astype(bool), -1.0, 1.0)  # the buyer was resting, so the seller was the aggressor
    order = np.argsort(time, kind="stable")
    fills = np.ones(len(time))
    if set(SPAN) <= set(at):
        first, last = (table.column(at[name]).cast(pyarrow.float64()).to_numpy() for name in SPAN)
        fills = last - first + 1.0
    return Trades(time[order], price[order], size[order], side[order]), fills[order]
