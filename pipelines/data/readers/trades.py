"""Trades and quotes as files give them, and the bars they make."""

from dataclasses import dataclass

import numpy as np

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
    Ints,
    Trades,
)
from pipelines.errors import BadShape, BadTimes, BadValues

LOCATED = 3  # holes in the ids that a note names


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


@dataclass(frozen=True)
class Tape:
    """Hold the rows of trade files, in the order of the files.

    time   (n,) epoch seconds;  price, size (base asset);  side +1 where the buyer was the aggressor, -1 the seller
    fills  trades of the exchange each row stands for
    ids    (n,) of the rows as text or numbers, None where there are none
    lines, member  where each row stands
    """

    time: Floats
    price: Floats
    size: Floats
    side: Floats
    fills: Floats
    ids: np.ndarray | None
    lines: Ints
    member: Ints

    def select(self, rows: np.ndarray) -> "Tape":
        """Return some rows, by a mask or by positions."""
        return Tape(
            self.time[rows],
            self.price[rows],
            self.size[rows],
            self.side[rows],
            self.fills[rows],
            None if self.ids is None else self.ids[rows],
            self.lines[rows],
            self.member[rows],
        )


def joined(tapes: list[Tape]) -> Tape:
    """Return several tapes as one; ids only where all have them, of one kind."""
    ids = [tape.ids for tape in tapes if tape.ids is not None]
    return Tape(
        np.concatenate([tape.time for tape in tapes]),
        np.concatenate([tape.price for tape in tapes]),
        np.concatenate([tape.size for tape in tapes]),
        np.concatenate([tape.side for tape in tapes]),
        np.concatenate([tape.fills for tape in tapes]),
        np.concatenate(ids) if len(ids) == len(tapes) and len({one.dtype.kind for one in ids}) == 1 else None,
        np.concatenate([tape.lines for tape in tapes]),
        np.concatenate([tape.member for tape in tapes]),
    )


def once_and_in_order(tape: Tape, where: str) -> tuple[Tape, list[str], bool]:
    """Return the trades, each once, in time order; notes of copies and holes; and whether ids show that none lacks.

    The same id twice is one trade. Raises BadValues where it stands for two different ones, or a row lacks a value.
    """
    bad = ~(np.isfinite(tape.price) & (tape.price > 0) & np.isfinite(tape.size) & (tape.size > 0))
    bad |= ~(np.isfinite(tape.time) & (tape.fills >= 1))
    if bad.any():
        raise BadValues(
            f"{where}: saw: {int(bad.sum())} trades without a time, price, size or count above 0; still missing: "
            "these; for "
            f"example: line {int(tape.lines[np.argmax(bad)])}. Correct or delete such lines."
        )
    notes: list[str] = []
    if tape.ids is not None:
        _, index, inverse = np.unique(tape.ids, return_index=True, return_inverse=True)
        if len(index) < len(tape.ids):
            original = index[inverse]
            same = (
                (tape.price == tape.price[original])
                & (tape.size == tape.size[original])
                & (tape.time == tape.time[original])
            )
            if not same.all():
                at = int(np.argmin(same))
                raise BadValues(
                    f"{where}: saw: id {tape.ids[at]} for two different trades (lines {int(tape.lines[original[at]])} "
                    "and "
                    f"{int(tape.lines[at])}); still missing: one trade an id; for example: give one market's file at "
                    "a time."
                )
            copies = np.ones(len(tape.ids), dtype=bool)
            copies[index] = False
            notes.append(
                f"line {int(tape.lines[np.argmax(copies)])} repeats trade {tape.ids[np.argmax(copies)]}: "
                f"{int(copies.sum())} rows whose id stands twice were left out"
            )
            tape = tape.select(np.sort(index))
    whole, found = _holes(tape)
    notes += found
    if len(tape.time) > 1 and (np.diff(tape.time) < 0).any():
        tape = tape.select(np.argsort(tape.time, kind="stable"))
        notes.append("rows were put in the order of their times")
    return tape, notes, whole


def _holes(tape: Tape) -> tuple[bool, list[str]]:
    """Return whether the ids run on without a hole, and a note with the number of ids lacking and where.

    Aggregated rows have ids of their own, which run on as those of trades do.
    """
    if tape.ids is None or tape.ids.dtype.kind != "i" or len(tape.ids) < 2:
        return False, []
    order = np.argsort(tape.ids, kind="stable")
    ids = tape.ids[order]
    gaps = np.diff(ids) - 1
    lacking, holes = int(gaps.sum()), np.flatnonzero(gaps)
    if not len(holes):
        return True, []
    longest = holes[np.argsort(-gaps[holes], kind="stable")[:LOCATED]]
    places = ", ".join(
        f"{int(gaps[i])} before line {int(tape.lines[order[i + 1]])} "
        f"({np.datetime64(int(tape.time[order[i + 1]]), 's')}Z)"
        for i in longest
    )
    return False, [f"{lacking} trade ids are missing in {len(holes)} holes, so trades are lost: {places}"]


def coin_margined(price: Floats, size: Floats, other: Floats | None) -> Floats | None:
    """Return the base amounts if `size` counts contracts: the archive's other column holds them; None if it does not.

    other  (n,) price · size in the quote currency where size is a base amount
    """
    if other is None or not len(price):
        return None
    with np.errstate(all="ignore"):
        quoted = np.abs(other / (price * size) - 1.0) < 0.01
        contract = price * other / size  # in the quote currency
    contract = contract[np.isfinite(contract)]
    if not len(contract) or not (middle := float(np.median(contract))) > 0:
        return None
    steady = np.abs(contract / middle - 1.0) < 0.02
    return other if quoted.mean() < 0.5 and steady.mean() > 0.9 else None


def bars_from_quotes(time: Floats, bid: Floats, ask: Floats, seconds: int) -> Floats:
    """Return (m, 9) bars of mid prices, half_spread that of the last quote in each; nothing is known of trades.

    time, bid, ask  (n,) in time order; a NaN keeps the quote before it. Raises BadValues if a quote never comes
    """
    bid, ask = _carried(bid), _carried(ask)
    there = np.isfinite(bid) & np.isfinite(ask)
    if not there.any():
        raise BadValues("no row has both a bid and an ask")
    time, bid, ask = time[there], bid[there], ask[there]
    mid, start = (bid + ask) / 2.0, np.floor(time / seconds) * seconds
    starts = np.flatnonzero(np.concatenate([[True], start[1:] != start[:-1]]))
    ends = np.concatenate([starts[1:], [len(time)]]) - 1
    out = np.full((len(starts), BAR_WIDTH), np.nan)
    out[:, OPEN_TIME], out[:, OPEN], out[:, CLOSE] = start[starts], mid[starts], mid[ends]
    out[:, HIGH], out[:, LOW] = np.maximum.reduceat(mid, starts), np.minimum.reduceat(mid, starts)
    out[:, HALF_SPREAD] = (ask[ends] - bid[ends]) / 2.0
    return out


def _carried(values: Floats) -> Floats:
    """Return (n,) with each NaN replaced by the value before it; leading ones stay."""
    at = np.where(np.isfinite(values), np.arange(len(values)), 0)
    return values[np.maximum.accumulate(at)]
