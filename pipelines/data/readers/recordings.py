"""Recorded order books: a snapshot and the depth changes after it, replayed into books at regular times.

A recording is a folder with `depth_updates.parquet` and `depth_snapshot.parquet` (absolute sizes a price level, 0 =
level removed; one message changes many levels), and where recorded `trades.parquet`, `book_ticker.parquet` and
`mark_price.parquet`. A message counts as known at the later of the exchange's and the recorder's clock: one of them
may be slow, and no message is known before both.

Messages are numbered. After a lost one (or without a snapshot) the book is unknown: it is emptied and rebuilt from the
changes, and no book is returned for BUILD_UP_S.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_INDEX, TAPE, TAPE_FIELDS, TAPE_INDEX, TAPE_WIDTH
from pipelines.contracts import BOOK_LEVELS, Books, Bools, ContextFeed, Floats, Ints, Trades
from pipelines.data.orderbook.limit_order_book import ASK, BID, LOG_WIDTH
from pipelines.data.orderbook.tape import REACH, RING, TapeRecord, TapeRecords, fresh_tape, reset_book, write_row
from pipelines.data.readers.recorded_tape import TRADE_WIDTH, apply_message, centre_on, trades_until
from pipelines.data.schemas import epoch_seconds
from pipelines.errors import BadColumns, BadValues, UnreadableFile

NEAR_BPS = 2.5  # of the price: the distance that counts as near the best one, as ten ticks in the simulated market
FOOTPRINT_BPS = 250.0  # of the price: the reach of one span's footprint
FAST_S = 10.0  # the shortest window of order flow, seconds
# A book rebuilt from changes alone holds the levels that changed since. In the three recordings with a snapshot its
# five best levels equalled those of the book with the snapshot from 5 s on; other hours are quieter, so a minute.
BUILD_UP_S = 60.0
MAX_TICKS = 1 << 27  # from the lowest to the highest price: more is a wrong price, not a market
UPDATES = ("receive_time", "event_time", "final_update_id", "side", "price", "quantity")
_SUMMED = np.array([TAPE[name] for name in TAPE_FIELDS])
TRADED = ("receive_time", "event_time", "price", "quantity", "is_buyer_maker")
SNAPSHOT = ("last_update_id", "side", "price", "quantity")


@dataclass(frozen=True, slots=True)
class Replay:
    """Hold the books at the requested times, and what was measured after each of n messages.

    best   (n, 4) bid price, size, ask price, size; ids (n,) the exchange's number of each message
    sequence_breaks  how often messages were lost; `books` has none of the time until the book was rebuilt
    tape   the record that read every event, as it stood at the last book
    """

    books: Books
    best: Floats
    ids: Ints
    messages: int
    sequence_breaks: int
    tape: TapeRecord


@kernel
def _apply(
    tick: Ints,
    size: Floats,
    bid: Bools,
    first: int,
    last: int,
    bids: Floats,
    asks: Floats,
    top_bid: int,
    top_ask: int,
) -> tuple[int, int]:
    """Apply rows first..last (tick int64, size float64, bid bool) to bids, asks (ticks,) float64; return best ticks.

    A level is a tick number; sizes are absolute, in base asset.
    """
    for r in range(first, last):
        k = tick[r]
        if bid[r]:
            bids[k] = size[r]
            if size[r] > 0.0 and k > top_bid:
                top_bid = k
        else:
            asks[k] = size[r]
            if size[r] > 0.0 and k < top_ask:
                top_ask = k
    while top_bid >= 0 and bids[top_bid] == 0.0:
        top_bid -= 1
    while top_ask < asks.shape[0] and asks[top_ask] == 0.0:
        top_ask += 1
    return top_bid, top_ask


@kernel
def _replay(
    tick: Ints,
    size: Floats,
    bid: Bools,
    starts: Ints,
    known: Floats,
    made: Ints,
    broken: Bools,
    unit: float,
    low: float,
    bids: Floats,
    asks: Floats,
    times: Floats,
    trades: Ints,
    lot: float,
    low_tick: int,
    tapes: TapeRecords,
    best: Floats,
    flow: Floats,
    levels: Floats,
    which: Ints,
    tape_rows: Floats,
) -> int:
    """Replay messages in order and fill best, flow, levels, which and tape_rows; return the number of crossed messages.

    Book `j` is the one after the last message known at times[j] (float64 seconds), tape_rows[j] the events since book
    j - 1. tick, starts, made, trades, which int64; bid, broken bool; all else float64.
    """
    top_bid, top_ask = _apply(tick, size, bid, 0, 0, bids, asks, bids.shape[0] - 1, 0)
    crossed, j, i, pending, row = 0, 0, 0, 0, np.zeros((1, LOG_WIDTH), np.int64)
    tape = tapes[0]
    centre = centre_on(tape, bids, asks, low_tick, lot, (top_bid + top_ask) // 2 + low_tick)
    for m in range(known.shape[0] + 1):
        end = m == known.shape[0]
        while j < times.shape[0] and (end or known[m] > times[j]):
            _levels(bids, asks, top_bid, top_ask, unit, low, levels[j])
            which[j] = m - 1
            until = np.int64(times[j] * 1e6)
            i, centre = trades_until(tape, row, trades, i, until, centre, bids, asks, low_tick, lot)
            write_row(tape, until, tape_rows[j])
            j += 1
        if end:
            break
        now = np.int64(np.rint(known[m] * 1e6))
        i, centre = trades_until(tape, row, trades, i, now, centre, bids, asks, low_tick, lot)
        if broken[m]:
            bids[:], asks[:] = 0.0, 0.0
            top_bid, top_ask = -1, asks.shape[0]
            reset_book(tape)
            pending = i
        before_bid, before_ask = top_bid, top_ask
        bid_size = bids[top_bid] if top_bid >= 0 else 0.0
        ask_size = asks[top_ask] if top_ask < asks.shape[0] else 0.0
        top_bid, top_ask = _apply(tick, size, bid, starts[m], starts[m + 1], bids, asks, top_bid, top_ask)
        pending, centre = apply_message(
            tape, row, trades, pending, i, now, made[m], tick, bid, starts[m], starts[m + 1], centre,
            bids, asks, low_tick, lot, top_bid, top_ask,
        )  # fmt: skip
        if top_bid < 0 or top_ask >= asks.shape[0]:
            continue
        if top_bid >= top_ask:
            crossed += 1
        best[m, 0], best[m, 1] = low + unit * top_bid, bids[top_bid]
        best[m, 2], best[m, 3] = low + unit * top_ask, asks[top_ask]
        if before_bid >= 0 and before_ask < asks.shape[0]:
            e = 0.0
            if top_bid >= before_bid:
                e += bids[top_bid]
            if top_bid <= before_bid:
                e -= bid_size
            if top_ask <= before_ask:
                e -= asks[top_ask]
            if top_ask >= before_ask:
                e += ask_size
            flow[m] = e
    return crossed


@kernel
def _levels(bids: Floats, asks: Floats, top_bid: int, top_ask: int, unit: float, low: float, out: Floats) -> None:
    """Write the best levels into out (2, levels, 3) float64: price, size; NaN where a side has fewer and for orders."""
    out[:] = np.nan
    k, found = top_bid, 0
    while k >= 0 and found < out.shape[1]:
        if bids[k] > 0.0:
            out[0, found, 0], out[0, found, 1] = low + unit * k, bids[k]
            found += 1
        k -= 1
    k, found = top_ask, 0
    while k < asks.shape[0] and found < out.shape[1]:
        if asks[k] > 0.0:
            out[1, found, 0], out[1, found, 1] = low + unit * k, asks[k]
            found += 1
        k += 1


def replay_recording(folder: Path, every_s: float = 1.0) -> Replay:
    """Return the books of a recording every `every_s` seconds (multiples since the epoch).

    Each is the book after all messages known by then.

    order_flow       Cont, Kukanov and Stoikov's best-level imbalance summed over the messages since the book before;
                     NaN where there is no book `every_s` before
    order_flow_fast  the same over the last FAST_S seconds; NaN before there were as many
    The rest of the tape comes from the trades recorded with the changes (recorded_tape); without them all of it is NaN.
    No book is returned after the last message, nor for BUILD_UP_S where the book is rebuilt from the changes.
    Raises UnreadableFile where the changes are missing, BadColumns where they have no numbers or miss another column,
    BadValues where the book was ever crossed, a side is neither bid nor ask, or the prices span more than MAX_TICKS.
    """
    updates = _read(folder, "depth_updates", UPDATES)
    snapshot = _read(folder, "depth_snapshot", SNAPSHOT) if (folder / "depth_snapshot.parquet").is_file() else None
    newest = None if snapshot is None or snapshot.empty else int(snapshot["last_update_id"].iloc[0])
    if newest is not None:
        updates = updates[updates["final_update_id"] > newest].reset_index(drop=True)
    if updates.empty:
        raise UnreadableFile(f"{folder}: no change of the book after its snapshot. Fetch it again.")
    ids = updates["final_update_id"].to_numpy(np.int64)
    starts: Ints = np.concatenate([[0], np.flatnonzero(np.diff(ids)) + 1, [len(ids)]]).astype(np.int64)
    lost = _lost(updates, starts[:-1], newest, folder)
    broken = lost.copy()
    broken[0] |= newest is None
    known = _known(updates)[starts[:-1]]
    rows = updates if snapshot is None else pd.concat([snapshot[list(SNAPSHOT[1:])], updates], ignore_index=True)
    prices, sizes = (rows[name].to_numpy(np.float64) for name in ("price", "quantity"))
    _check_rows(rows, prices, sizes, folder)
    low, unit = float(prices.min()), _tick(prices)
    width = round((prices.max() - low) / unit) + 1
    if width > MAX_TICKS:
        raise BadValues(
            f"{folder.name}: prices {low:g} to {prices.max():g} are {width} ticks of {unit:g}, at most {MAX_TICKS}. "
            "One of them is wrong: drop its rows."
        )
    at, bid = _ticks(prices, low, unit), (rows["side"] == "bid").to_numpy()
    initial = len(rows) - len(updates)  # rows of the snapshot
    bids, asks = np.zeros(width), np.zeros(width)
    for side, of in ((bids, bid), (asks, ~bid)):
        side[at[:initial][of[:initial]]] = sizes[:initial][of[:initial]]
    times = np.arange(np.ceil(known[0] / every_s), np.floor(known[-1] / every_s) + 1) * every_s
    best, flow = np.full((len(known), 4), np.nan), np.zeros(len(known))
    levels, which = np.empty((len(times), 2, BOOK_LEVELS, 3)), np.empty(len(times), np.int64)
    tape = np.full((len(times), TAPE_WIDTH), np.nan)
    traded = _read(folder, "trades", TRADED) if (folder / "trades.parquet").is_file() else None
    lot, low_tick = _lot(sizes, traded), round(low / unit)
    tapes = fresh_tape(1.0 / lot, unit, *_reach(float(np.median(prices[: initial + starts[1]])), unit))
    crossed = _replay(
        at[initial:], sizes[initial:], bid[initial:], starts, known, _made(updates)[starts[:-1]], broken, unit, low,
        bids, asks, times, _taken(traded, unit, lot), lot, low_tick, tapes, best, flow, levels, which, tape,
    )  # fmt: skip
    if crossed:
        raise BadValues(
            f"{folder.name}: the book was crossed after {crossed} of {len(known)} messages; changes are lost, so it "
            "is no recording. Fetch it again."
        )
    levels[..., 0] = np.round(levels[..., 0], 8)  # a price is a number of ticks; no tick is finer
    best[:, [0, 2]] = np.round(best[:, [0, 2]], 8)
    total = np.concatenate([[0.0], np.cumsum(flow)])
    flow_so_far = total[which + 1]
    early = np.searchsorted(known, times - FAST_S, side="right")
    whole = np.isfinite(levels[:, :, 0, 0]).all(axis=1) & _built(times, known, broken)
    after = np.concatenate([[False], whole[:-1]])
    if traded is None:
        tape[:] = np.nan
    tape[:, TAPE_INDEX["order_flow"]] = np.diff(flow_so_far, prepend=np.nan)
    tape[:, TAPE_INDEX["order_flow_fast"]] = np.where(times - FAST_S >= known[0], flow_so_far - total[early], np.nan)
    tape[np.ix_(~after, _SUMMED)] = np.nan
    books = Books(times[whole], levels[whole], tape[whole])
    return Replay(books, best, ids[starts[1:] - 1], len(known), int(lost.sum()), tapes[0])


def _lost(updates: pd.DataFrame, first: Ints, newest: int | None, folder: Path) -> Bools:
    """Return (messages,): whether a message is missing before this one; the first is compared with the snapshot.

    Futures name the message before (`prev_final_update_id`); spot numbers every change of the book, and a message names
    its first and last.
    """
    last = updates["final_update_id"].to_numpy(np.int64)[first]
    before = np.concatenate([[last[0] if newest is None else newest], last[:-1]])
    if "prev_final_update_id" in updates:
        named = updates["prev_final_update_id"].to_numpy(np.int64)[first]
        lost = named != before
        lost[0] = newest is not None and named[0] > newest  # a message may reach from before the snapshot to after it
    elif "first_update_id" in updates:
        lost = updates["first_update_id"].to_numpy(np.int64)[first] > before + 1
    else:
        raise BadColumns(
            f"{folder}: depth_updates.parquet has neither prev_final_update_id nor first_update_id: lost "
            "changes could not be detected. Record them with the exchange's numbers."
        )
    return np.asarray(lost, dtype=np.bool_)


def _built(times: Floats, known: Floats, broken: Bools) -> Bools:
    """Return (times,): whether the book is known then: not from the message before a break to BUILD_UP_S after it."""
    trusted = np.ones(len(times), dtype=np.bool_)
    for m in np.flatnonzero(broken):
        trusted &= (times <= known[m - 1]) | (times >= known[m] + BUILD_UP_S) if m else times >= known[m] + BUILD_UP_S
    return trusted


def _check_rows(rows: pd.DataFrame, prices: Floats, sizes: Floats, folder: Path) -> None:
    """Raise BadValues for changes without a side, a price above 0 and a size of 0 or more."""
    bad = ~(rows["side"].isin(("bid", "ask")).to_numpy() & np.isfinite(prices) & (prices > 0))
    bad |= ~(np.isfinite(sizes) & (sizes >= 0))
    if bad.any():
        raise BadValues(
            f"{folder.name}: {int(bad.sum())} changes without a side (bid or ask), a price above 0 and a size of 0 or "
            "more. Fetch it again."
        )


def read_trades(folder: Path) -> Trades:
    """Return the trades of a recording in time order; time is the exchange's."""
    recorded = _read(folder, "trades", ("event_time", "price", "quantity", "is_buyer_maker"))
    side = np.where(recorded["is_buyer_maker"].to_numpy(), -1.0, 1.0)
    time = epoch_seconds(recorded["event_time"])
    order = np.argsort(time, kind="stable")
    price, size = (recorded[name].to_numpy(np.float64)[order] for name in ("price", "quantity"))
    return Trades(time[order], price, size, side[order])


def read_funding(folder: Path) -> ContextFeed | None:
    """Return the funding rate as announced with the mark price; None where it was not recorded."""
    if not (folder / "mark_price.parquet").is_file():
        return None
    recorded = _read(folder, "mark_price", ("receive_time", "event_time", "funding_rate"))
    field = np.full(len(recorded), CONTEXT_INDEX["funding_rate"], dtype=np.int64)
    return ContextFeed(_known(recorded), field, recorded["funding_rate"].to_numpy(np.float64))


def _read(folder: Path, name: str, needs: tuple[str, ...]) -> pd.DataFrame:
    """Return one Parquet file of a recording. Raises UnreadableFile or BadColumns."""
    try:
        frame = pd.read_parquet(folder / f"{name}.parquet")
    except (OSError, ValueError) as error:
        raise UnreadableFile(
            f"{folder}: no whole {name}.parquet ({error}). A recording is a folder with depth_updates.parquet and "
            "depth_snapshot.parquet."
        ) from error
    if lacking := [column for column in needs if column not in frame]:
        raise BadColumns(f"{folder}: {name}.parquet has no column {', '.join(lacking)}. Rename or add it.")
    return frame


def _known(frame: pd.DataFrame) -> Floats:
    """Return (n,) epoch seconds at which each row was known: the later of the two clocks, never descending."""
    known = np.maximum(epoch_seconds(frame["receive_time"]), epoch_seconds(frame["event_time"]))
    return np.asarray(np.maximum.accumulate(known))


def _made(frame: pd.DataFrame) -> Ints:
    """Return (n,) microseconds of the exchange: the state a message describes, or when a trade was made."""
    column = "transaction_time" if "transaction_time" in frame else "event_time"
    return np.rint(epoch_seconds(frame[column]) * 1e6).astype(np.int64)


def _taken(recorded: pd.DataFrame | None, unit: float, lot: float) -> Ints:
    """Return trades (n, TRADE_WIDTH) as recorded_tape reads them, in the order they became known.

    Fills of one side at one time of the exchange are one order, known with its last.
    """
    if recorded is None or recorded.empty:
        return np.zeros((0, TRADE_WIDTH), np.int64)
    known, made = np.rint(_known(recorded) * 1e6).astype(np.int64), _made(recorded)
    side = np.where(recorded["is_buyer_maker"].to_numpy(), BID, ASK)
    last = np.flatnonzero(np.append((np.diff(made) != 0) | (np.diff(side) != 0), True))
    known = known[last[np.searchsorted(last, np.arange(len(made)))]]
    price, size = recorded["price"].to_numpy(np.float64), recorded["quantity"].to_numpy(np.float64)
    lots = np.rint(size / lot).astype(np.int64)
    return np.column_stack([known, made, side, _ticks(price, 0.0, unit), lots]).astype(np.int64)


def _lot(sizes: Floats, traded: pd.DataFrame | None) -> float:
    """Return the largest step, to eight decimals, that divides every size."""
    amounts = sizes if traded is None else np.concatenate([sizes, traded["quantity"].to_numpy(np.float64)])
    return float(max(np.gcd.reduce(np.rint(np.unique(amounts) * 1e8).astype(np.int64)), 1) / 1e8)


def _reach(price: float, unit: float) -> tuple[int, int]:
    """Return the ticks that are near the best price, and of a cell of the footprint; more where ticks are fine."""
    near = min(max(round(NEAR_BPS * 1e-4 * price / unit), 10), REACH // 2)
    return near, max(round(FOOTPRINT_BPS * 1e-4 * price / unit / RING), 1)


def _tick(prices: Floats) -> float:
    """Return the smallest distance between two prices that occur, to eight decimals."""
    steps = np.diff(np.unique(np.round(prices, 8)))
    return float(np.round(steps.min(), 8)) if len(steps) else 1.0


def _ticks(prices: Floats, low: float, unit: float) -> Ints:
    """Return prices (n,) as tick numbers counted from `low`."""
    return np.rint((prices - low) / unit).astype(np.int64)
