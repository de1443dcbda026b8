"""What the values of columns prove of one another: the order of prices, the unit of volume, the grid of stamps."""

from collections.abc import Mapping, Sequence

import numpy as np

from pipelines.contracts import BAR_FIELDS, Floats, Ints
from pipelines.data.readers.times import Stamps
from pipelines.data.schemas import AMOUNTS, PRICES, SPREAD
from pipelines.errors import BadColumns, BadTimes, BadValues

ORDERS = {
    (1, 2): ("open", "high", "low", "close"),
    (1, 0): ("low", "high", "open", "close"),
    (2, 3): ("open", "close", "high", "low"),
    (0, 1): ("high", "low", "open", "close"),
    (2, 1): ("open", "low", "high", "close"),
    (3, 2): ("open", "close", "low", "high"),
}  # positions of high and low among the four prices → the orders in which publishers write them
SURE = 0.98  # share of rows that prove an order: a few may be wrong
MINUTE_US = 60_000_000
STEADY = 0.9  # share of rows in which a contract has one size
JITTER_S, JITTER_SHARE = 1.0, 0.01  # stamps are put on the minute within one second and one per cent of a bar
LOOKED_AT = 20_000  # rows from the top that show the order of prices
FEW_ROWS = 10  # below this nothing is proved against a header


def price_order(prices: Sequence[Floats], saw: str) -> tuple[str, ...]:
    """Return which of four columns is which price. Raises BadColumns where their values do not show it.

    prices  four (n,) in time order. The highest and the lowest column show themselves; of the other two the open is the
            one that continues the close of the row before
    """
    table = np.stack([price[:LOOKED_AT] for price in prices])
    moving = np.isfinite(table).all(axis=0)
    moving &= np.where(moving, table.max(axis=0) > table.min(axis=0), False)
    if not moving.any():
        return ORDERS[(1, 2)]
    table = table[:, moving]
    high = [i for i in range(4) if (table[i] >= table.max(axis=0)).mean() >= SURE]
    low = [i for i in range(4) if (table[i] <= table.min(axis=0)).mean() >= SURE]
    found = [order for (i, j), order in ORDERS.items() if i in high and j in low]  # several where prices tie
    if not found:
        raise BadColumns(
            f"{saw}; still missing: names, in {int(moving.sum())} rows no column is always the highest and another "
            "always "
            "the lowest; for example: add a first line such as open_time,open,high,low,close,volume."
        )
    order = found[0]
    opened, closed = table[order.index("open")], table[order.index("close")]
    if _swapped(opened, closed):
        swap = {"open": "close", "close": "open"}
        return tuple(swap.get(name, name) for name in order)
    return order


def _swapped(opened: Floats, closed: Floats) -> bool:
    """Return whether the close continues the open of the row before, as if the two were swapped."""
    if len(opened) < 3 * FEW_ROWS:
        return False
    moved = opened[1:] != opened[:-1]
    right, wrong = opened[1:] == closed[:-1], closed[1:] == opened[:-1]
    return bool(moved.mean() > 0.5 and wrong.mean() > 0.9 and right.mean() < 0.1)


def check_price_names(values: Mapping[str, Floats], names: Mapping[str, str], saw: str) -> None:
    """Raise BadColumns if the values of named prices prove that the names are swapped. Rows in time order."""
    table = np.stack([values[price][:LOOKED_AT] for price in PRICES])
    moving = np.isfinite(table).all(axis=0)
    moving &= np.where(moving, table.max(axis=0) > table.min(axis=0), False)
    if moving.sum() < FEW_ROWS:
        return
    table = table[:, moving]
    top, bottom = table.max(axis=0), table.min(axis=0)
    wrong = (table[1] < top) | (table[2] > bottom)
    if wrong.mean() < SURE:
        if _swapped(table[0], table[3]):
            raise BadColumns(
                f"{saw}; still missing: the right names, in {int(moving.sum())} rows the column {names['close']} "
                "begins where "
                f"{names['open']} ended one row before; for example: exchange the names {names['open']} and "
                f"{names['close']}."
            )
        return
    high = [price for i, price in enumerate(PRICES) if (table[i] >= top).mean() >= SURE]
    low = [price for i, price in enumerate(PRICES) if (table[i] <= bottom).mean() >= SURE]
    if len(high) == 1 and len(low) == 1:
        raise BadColumns(
            f"{saw}; still missing: the right names, in {int(wrong.sum())} of {int(moving.sum())} rows the column "
            f"{names['high']} is not the highest or {names['low']} not the lowest; for example: {names[high[0]]} "
            "holds the "
            f"highest and {names[low[0]]} the lowest price, so rename them to high and low."
        )


def base_volume(values: dict[str, Floats], quote: Floats | None, taker_quote: Floats | None, saw: str) -> list[str]:
    """Put the base volume of Binance's klines in place if `volume` counts contracts; return a note of each change.

    quote, taker_quote  (n,) the archive's quote_volume and taker_buy_quote_volume
    Raises BadValues where `volume` is neither the base volume nor a number of contracts of one size
    """
    if quote is None or "volume" not in values:
        return []
    volume = values["volume"]
    with np.errstate(all="ignore"):
        ratio = quote / volume
        traded = np.isfinite(ratio) & (volume > 0) & (quote > 0) & np.isfinite(values["close"])
        inside = (ratio >= values["low"] * 0.999) & (ratio <= values["high"] * 1.001)
        if traded.sum() < FEW_ROWS or inside[traded].mean() >= 0.5:
            return []
        fit = values["close"][traded] * quote[traded] / volume[traded]  # of one contract, in the quote currency
    middle = float(np.median(fit))
    steady = float((np.abs(fit / middle - 1.0) < 0.02).mean()) if 0 < middle < np.inf else 0.0
    if steady < STEADY:
        raise BadValues(
            f"{saw}; still missing: the base volume, quote_volume / volume lies outside low … high in "
            f"{int((~inside[traded]).sum())} of {int(traded.sum())} rows, so `volume` is no amount of the base asset; "
            "for "
            "example: rename the column to something else to read the prices without it."
        )
    values["volume"] = quote
    notes = [
        f"volume counts contracts of {middle:.4g} (quote_volume / volume lies outside low … high in "
        f"{int((~inside[traded]).sum())} of {int(traded.sum())} rows): the base volume was read from quote_volume"
    ]
    if "taker_buy_volume" in values and taker_quote is not None:
        values["taker_buy_volume"] = taker_quote
        notes.append("taker_buy_volume was read from taker_buy_quote_volume for the same reason")
    return notes


def refuse_premium(values: Mapping[str, Floats], saw: str) -> None:
    """Raise BadValues if bars are those of a premium index: rates around 0 in which nothing trades."""
    volume = values.get("volume")
    if volume is not None and ((volume > 0) | (volume < 0)).any():
        return
    close = values["close"][np.isfinite(values["close"])]
    if len(close) < 2:
        return
    small, crosses = float(np.abs(close).max()) < 1.0, bool((close <= 0).any())
    with np.errstate(divide="ignore", invalid="ignore"):
        moves = np.abs(np.diff(close) / close[:-1])
    moves = moves[np.isfinite(moves)]
    wild = (
        float(np.abs(close).max()) < 0.05
        and len(close) >= FEW_ROWS
        and len(moves) > 0
        and float(np.median(moves)) > 0.01
    )
    if small and (crosses or wild):
        raise BadValues(
            f"{saw}; still missing: prices, the closes lie between {close.min():.4g} and {close.max():.4g} and nothing "
            "traded: a premium index is no price; for example: give the klines of the instrument itself."
        )


def unrecorded(values: dict[str, Floats]) -> list[str]:
    """Set amounts that are 0 in every row, while prices move, to NaN; return their names with the reason."""
    close = values["close"]
    zero = [
        name for name in AMOUNTS if name in values and not values[name][:FEW_ROWS].any() and (values[name] == 0).all()
    ]
    if not zero or len(close) < 3 * FEW_ROWS or not (np.diff(close[np.isfinite(close)]) != 0).any():
        return []
    for name in zero:
        values[name] = np.full(len(close), np.nan)
    return [f"{name} (0 in every row)" for name in zero]


def are_minutes(micros: Ints) -> bool:
    """Return whether all times (n,), epoch microseconds, lie on the minute."""
    return bool((micros // MINUTE_US * MINUTE_US == micros).all())


def on_minutes(stamps: Stamps, bar_us: int, lines: Ints, where: str) -> tuple[Stamps, list[str]]:
    """Return stamps put on the minute where they are off by at most JITTER_S and JITTER_SHARE of a bar, and a note.

    Raises BadTimes naming the line that is furthest off
    """
    micros = stamps.astype("datetime64[us]").astype(np.int64)
    if are_minutes(micros):
        return stamps, []
    off = (micros + MINUTE_US // 2) % MINUTE_US - MINUTE_US // 2
    limit = min(JITTER_S * 1e6, JITTER_SHARE * bar_us)
    worst = int(np.argmax(np.abs(off)))
    n = int((off != 0).sum())
    if abs(off[worst]) > limit:
        raise BadTimes(
            f"{where}: saw: {n} of {len(off)} times off the minute, line {int(lines[worst])} the furthest by "
            f"{off[worst] / 1e6:+.3f} s; still missing: times of bars, which lie on the minute; for example: round "
            "them, or "
            f"give the trades themselves. Up to {limit / 1e6:g} s are rounded."
        )
    return (micros - off).astype("datetime64[us]"), [
        f"{n} of {len(off)} times are off the minute by up to {abs(off[worst]) / 1e3:g} ms (line "
        f"{int(lines[worst])}): rounded to it"
    ]


def to_minutes(stamps: Stamps, values: Mapping[str, Floats]) -> tuple[Stamps, dict[str, Floats], Ints]:
    """Return bars shorter than a minute as minutes, and the row each begins with.

    stamps  (n,) ascending. First, max, min, last, sums and the mean spread; a sum over NaN is NaN
    """
    minute = stamps.astype("datetime64[m]")
    starts = np.flatnonzero(np.concatenate([[True], minute[1:] != minute[:-1]]))
    ends = np.concatenate([starts[1:], [len(stamps)]]) - 1
    made: dict[str, Floats] = {}
    for name in BAR_FIELDS:
        if name not in values:
            continue
        column = values[name]
        if name == "open":
            made[name] = column[starts]
        elif name == "close":
            made[name] = column[ends]
        elif name == "high":
            made[name] = np.maximum.reduceat(column, starts)
        elif name == "low":
            made[name] = np.minimum.reduceat(column, starts)
        elif name == SPREAD:
            known = np.isfinite(column)
            count = np.add.reduceat(known.astype(np.float64), starts)
            total = np.add.reduceat(np.where(known, column, 0.0), starts)
            made[name] = np.divide(total, count, out=np.full(len(starts), np.nan), where=count > 0)
        else:
            made[name] = np.add.reduceat(column, starts)
    return minute[starts].astype("datetime64[us]"), made, starts
