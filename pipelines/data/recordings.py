"""Recorded order books: a snapshot and the depth changes after it, replayed into books at regular times.

A recording is a folder with `depth_updates.parquet` and `depth_snapshot.parquet` (absolute sizes a price level, 0 =
level removed; one message changes many levels), and where recorded `trades.parquet`, `book_ticker.parquet` and
`mark_price.parquet`. A message counts as known at the later of the exchange's and the recorder's clock: one of them
may run behind, and nobody knows a message before both.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.compiled import kernel
from pipelines.contracts import BOOK_LEVELS, CONTEXT_INDEX, Books, ContextFeed, Floats, Ints, Trades
from pipelines.data.schemas import epoch_seconds
from pipelines.errors import BadValues, UnreadableFile

FAST_S = 10.0  # the shortest window of order flow, seconds
BUILD_UP_S = 60.0  # a book without a snapshot is made of what changed: after a minute its best levels have been quoted


@dataclass(frozen=True, slots=True)
class Replay:
    """books at the asked times; on the way, after each message: best (n, 4) bid price, size, ask price, size, and its
    exchange id."""

    books: Books
    best: Floats
    ids: Ints
    messages: int
    sequence_breaks: int
    crossed: int


@kernel
def _apply(tick, size, bid, first, last, at, bids, asks, top_bid, top_ask):  # type: ignore[no-untyped-def]
    """Apply rows first..last; returns the best ticks. A level is a tick number; sizes are absolute."""
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
def _replay(tick, size, bid, starts, known, unit, low, bids, asks, times, best, flow, levels, which):  # type: ignore[no-untyped-def]
    """Messages in order; book `j` is the one after the last message known at times[j]. Returns crossed messages."""
    top_bid, top_ask = bids.shape[0] - 1, 0
    top_bid, top_ask = _apply(tick, size, bid, 0, 0, 0, bids, asks, top_bid, top_ask)
    crossed, j = 0, 0
    for m in range(known.shape[0] + 1):
        end = m == known.shape[0]
        while j < times.shape[0] and (end or known[m] > times[j]):
            _levels(bids, asks, top_bid, top_ask, unit, low, levels[j])
            which[j] = m - 1
            j += 1
        if end:
            break
        before_bid, before_ask = top_bid, top_ask
        bid_size = bids[top_bid] if top_bid >= 0 else 0.0
        ask_size = asks[top_ask] if top_ask < asks.shape[0] else 0.0
        top_bid, top_ask = _apply(tick, size, bid, starts[m], starts[m + 1], m, bids, asks, top_bid, top_ask)
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
def _levels(bids, asks, top_bid, top_ask, unit, low, out):  # type: ignore[no-untyped-def]
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


def replay(folder: Path, every_s: float = 1.0) -> Replay:
    """Books of a recording every `every_s` seconds (multiples since the epoch), each after all messages known by then.

    order_flow       Cont, Kukanov and Stoikov's best-level imbalance summed over the messages since the book before
    order_flow_fast  the same over the last FAST_S seconds; NaN before there were as many
    Without a snapshot the book is built up from the changes, and nothing is told of its first BUILD_UP_S seconds.
    Raises UnreadableFile where the changes are missing, BadValues where the book was ever crossed.
    """
    updates = _read(folder, "depth_updates")
    snapshot = _read(folder, "depth_snapshot") if (folder / "depth_snapshot.parquet").is_file() else None
    if snapshot is not None:
        updates = updates[updates["final_update_id"] > snapshot["last_update_id"].iloc[0]].reset_index(drop=True)
    ids = updates["final_update_id"].to_numpy(np.int64)
    starts: Ints = np.concatenate([[0], np.flatnonzero(np.diff(ids)) + 1, [len(ids)]]).astype(np.int64)
    known = _known(updates)[starts[:-1]]
    prices = updates["price"].to_numpy(np.float64)
    every = prices if snapshot is None else np.concatenate([prices, snapshot["price"].to_numpy(np.float64)])
    low, unit = float(every.min()), _tick(every)
    width = round((every.max() - low) / unit) + 1
    bids, asks = np.zeros(width), np.zeros(width)
    if snapshot is not None:
        at = _ticks(snapshot["price"].to_numpy(np.float64), low, unit)
        side = (snapshot["side"] == "bid").to_numpy()
        bids[at[side]] = snapshot["quantity"].to_numpy(np.float64)[side]
        asks[at[~side]] = snapshot["quantity"].to_numpy(np.float64)[~side]
    first = np.ceil(known[0] / every_s) * every_s
    times = np.arange(first, known[-1] + every_s, every_s)
    best, flow = np.full((len(known), 4), np.nan), np.zeros(len(known))
    levels, which = np.empty((len(times), 2, BOOK_LEVELS, 3)), np.empty(len(times), np.int64)
    crossed = _replay(
        _ticks(prices, low, unit), updates["quantity"].to_numpy(np.float64), (updates["side"] == "bid").to_numpy(),
        starts, known, unit, low, bids, asks, times, best, flow, levels, which,
    )  # fmt: skip
    if crossed and snapshot is not None:
        raise BadValues(
            f"{folder.name}: the book was crossed after {crossed} of {len(known)} messages; changes are lost, so it "
            "is no recording. Fetch it again."
        )
    levels[..., 0] = np.round(levels[..., 0], 8)  # a price is a number of ticks; no tick is finer
    best[:, [0, 2]] = np.round(best[:, [0, 2]], 8)
    total = np.concatenate([[0.0], np.cumsum(flow)])
    told = total[which + 1]
    early = np.searchsorted(known, times - FAST_S, side="right")
    books = Books(
        known=times,
        levels=levels,
        order_flow=np.diff(told, prepend=np.nan),
        order_flow_fast=np.where(times - FAST_S >= known[0], told - total[early], np.nan),
    )
    whole = np.isfinite(levels[:, :, 0, 0]).all(axis=1) & (levels[:, 0, 0, 0] < levels[:, 1, 0, 0])
    if snapshot is None:
        whole &= times >= known[0] + BUILD_UP_S
    kept = Books(times[whole], levels[whole], books.order_flow[whole], books.order_flow_fast[whole])
    breaks = 0
    if "prev_final_update_id" in updates:
        previous = updates["prev_final_update_id"].to_numpy(np.int64)[starts[1:-1]]
        breaks = int((previous != ids[starts[1:-1] - 1]).sum())
    return Replay(kept, best, ids[starts[1:] - 1], len(known), breaks, int(crossed))


def read_trades(folder: Path) -> Trades:
    """Trades of a recording in time order; time is the exchange's."""
    told = _read(folder, "trades")
    side = np.where(told["is_buyer_maker"].to_numpy(), -1.0, 1.0)
    time = epoch_seconds(told["event_time"])
    order = np.argsort(time, kind="stable")
    price, size = (told[name].to_numpy(np.float64)[order] for name in ("price", "quantity"))
    return Trades(time[order], price, size, side[order])


def read_funding(folder: Path) -> ContextFeed | None:
    """The funding rate as it was announced beside the mark price; None where it was not recorded."""
    if not (folder / "mark_price.parquet").is_file():
        return None
    told = _read(folder, "mark_price")
    field = np.full(len(told), CONTEXT_INDEX["funding_rate"], dtype=np.int64)
    return ContextFeed(_known(told), field, told["funding_rate"].to_numpy(np.float64))


def _read(folder: Path, name: str) -> pd.DataFrame:
    try:
        return pd.read_parquet(folder / f"{name}.parquet")
    except (OSError, ValueError) as error:
        raise UnreadableFile(
            f"{folder}: no whole {name}.parquet ({error}). A recording is a folder with depth_updates.parquet and "
            "depth_snapshot.parquet."
        ) from error


def _known(frame: pd.DataFrame) -> Floats:
    told = np.maximum(epoch_seconds(frame["receive_time"]), epoch_seconds(frame["event_time"]))
    return np.asarray(np.maximum.accumulate(told))


def _tick(prices: Floats) -> float:
    """Smallest distance between two prices that occur, to eight decimals."""
    steps = np.diff(np.unique(np.round(prices, 8)))
    return float(np.round(steps.min(), 8)) if len(steps) else 1.0


def _ticks(prices: Floats, low: float, unit: float) -> Any:
    return np.rint((prices - low) / unit).astype(np.int64)
