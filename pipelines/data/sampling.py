"""Event sampling: samples of a stream of rows that end when enough has happened, not at a clock time.

Rows are (n, 9) in BAR_FIELDS order: 1-minute bars, decision bars, or single trades as `ticks` writes them. A row is
never split: the one that crosses a threshold ends the sample, whole, and the next sample starts from 0. A sample
is known at the close of its last row and depends on no later one. Samples define when to evaluate a signal; they
remove no row from training.

Source: López de Prado 2018, Advances in Financial Machine Learning, 2.3.1 (volume and dollar bars), 2.3.2.1-2 (tick
and volume imbalance bars), 2.5.2.1 (symmetric CUSUM filter). Differences are noted where they occur.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import (
    BAR_WIDTH,
    CLOSE,
    HALF_SPREAD,
    HIGH,
    LOW,
    OPEN_TIME,
    TAKER_BUY,
    TRADES,
    VOLUME,
    Bools,
    Floats,
    Ints,
    Trades,
)
from pipelines.errors import BadShape, BadTimes, BadValues

Unit = Literal["tick", "volume", "dollar"]
OVERSHOOT = 0.583  # steps by which a random walk is past a line on average when it first is


@dataclass(frozen=True, slots=True)
class Samples:
    """Hold k samples in time order. Rows before the first (warm-up) and after the last (not over yet) are in none.

    first, last  (k,) row numbers, both inside the sample; it starts where the one before ended
    known        (k,) epoch seconds: the close of row `last`, when the sample ends and can first be acted on
    side         (k,) +1 or -1, the direction of the move; 0 of volume and dollar bars, which have none
    amount       (k,) total at its end, signed: log return (CUSUM), base asset, quote currency, or
                 rows (tick imbalance)
    threshold    (k,) the threshold that |amount| reached, in the same unit
    """

    first: Ints
    last: Ints
    known: Floats
    side: Ints
    amount: Floats
    threshold: Floats

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.last)


def ticks(trades: Trades) -> Floats:
    """Return (n, 9): each trade as a row of no length (`seconds` 0) with one price, its size, and its aggressor."""
    bought = np.where(trades.side > 0.0, trades.size, 0.0)
    n = len(trades.time)
    return np.column_stack([trades.time, *[trades.price] * 4, trades.size, np.ones(n), bought, np.full(n, np.nan)])


def cusum(
    rows: Floats,
    seconds: float,
    horizon: int = 240,
    calm: float = 0.5,
    high: float = 0.7,
    half_life: int = 300,
    every: int = 15,
    memory: int = 480,
    high_rank: float = 0.8,
) -> Samples:
    """Sample moves of `calm` times the usual move over `horizon` rows, `high` times where volatility is high.

    The sums of rises and of falls each start again at 0 when they change sign or end a sample. The threshold on a
    row is the trailing volatility of the rows before it, so it was known before the move it is compared with.

    horizon    rows over which a position stays open: volatility a row is scaled by its root
    half_life  rows, of the exponential mean of squared log returns; as many rows are warm-up
    every, memory, high_rank  volatility is high where its mid-rank among its last `memory` values, one taken each
               `every` rows, exceeds `high_rank`: the rule that calls a market VOLATILE; `calm` before there are as many
    Raises     BadShape, BadTimes, BadValues: see `checked`
    The defaults are for minutes: labels last 16 bars of 15 minutes, volatility is that of 20, memory is five days.
    """
    close = checked(rows)[:, CLOSE].copy()
    out, side = _room(len(rows))
    ring = np.empty(memory)
    start, k = _cusum(
        close, float(horizon), calm, high, half_life, every, ring, high_rank, out.last, side, out.amount, out.threshold
    )
    return _cut(rows, seconds, start, k, out, side)


def volume_bars(rows: Floats, seconds: float, volume: float) -> Samples:
    """Sample each time `volume` (base asset) or more has traded. Raises as `checked`, BadValues on missing volume."""
    return _totals_of(rows, seconds, checked(rows, ("volume",))[:, VOLUME].copy(), volume)


def dollar_bars(rows: Floats, seconds: float, value: float) -> Samples:
    """Sample each time `value` (quote currency: volume at each row's close) or more has traded. Raises as `checked`."""
    checked(rows, ("volume",))
    return _totals_of(rows, seconds, rows[:, VOLUME] * rows[:, CLOSE], value)


def imbalance_bars(
    rows: Floats, seconds: float, unit: Unit, expected: int, half_life: float = 20.0, within: float = 4.0
) -> Samples:
    """Sample each time buying exceeds selling, or the other way round, by more than is expected.

    Expected at the start of a sample, from the rows before it: E[T] |E[b]|, E[T] rows a sample of E[b] flow each, both
    exponential means, as in the source. Where flow is balanced that is 0 and every row would be a sample. So it is
    at least the total that balanced flow reaches by chance in `expected` rows on average:
    (√expected - 0.583) √E[b²], the exit of a random walk with its overshoot (Siegmund 1979, Adv. Appl. Probab. 11(4)).

    unit       of `signed_flow`
    expected   rows a sample of balanced flow; as many rows are warm-up
    half_life  samples, of E[T]; times `expected`, rows, of E[b] and E[b²]
    within     E[T] stays between `expected` over and times so much: it feeds back on itself
    """
    flow = signed_flow(rows, unit)
    if expected < 1 or half_life <= 0 or within < 1:
        raise BadValues(
            f"imbalance bars: expected {expected}, half_life {half_life}, within {within}: want 1, 0+, 1 up"
        )
    out, side = _room(len(rows))
    start, k = _imbalance(
        flow, expected, 0.5 ** (1.0 / half_life), 0.5 ** (1.0 / (half_life * expected)), within,
        out.last, side, out.amount, out.threshold,
    )  # fmt: skip
    return _cut(rows, seconds, start, k, out, side)


def signed_flow(rows: Floats, unit: Unit) -> Floats:
    """Return (n,) the flow of each row, buying above 0: b (tick), b · volume (base asset), b · volume · close (quote).

    b is in [-1, 1]: takers' buys less their sells over the volume, ±1 for a single trade, 0 where nothing
    traded. Where takers are not recorded the tick rule of the source signs the whole row: the sign of the last change
    in close, 0 before the first.
    """
    checked(rows, () if unit == "tick" else ("volume",))
    change = np.sign(np.diff(rows[:, CLOSE], prepend=rows[:1, CLOSE]))
    newest = np.maximum.accumulate(np.where(change != 0.0, np.arange(len(rows)), 0))
    by_price, volume, bought = change[newest], rows[:, VOLUME], rows[:, TAKER_BUY]
    traded = np.where(volume > 0.0, volume, 1.0)
    b = np.where(np.isfinite(bought), np.where(volume > 0.0, 2.0 * bought / traded - 1.0, 0.0), by_price)
    if unit == "tick":
        return np.asarray(b)
    return np.asarray(b * volume if unit == "volume" else b * volume * rows[:, CLOSE])


def mean_amount(rows: Floats, unit: Literal["volume", "dollar"], expected: float) -> float:
    """Return the mean amount of `expected` of these rows: a threshold for the rows after them."""
    checked(rows, ("volume",))
    return float(expected * (rows[:, VOLUME] * (rows[:, CLOSE] if unit == "dollar" else 1.0)).mean())


def sampled_bars(rows: Floats, samples: Samples) -> Floats:
    """Return (k, 9) bars of the samples: first, max, min, last, sums; stamped with the open of the first row.

    A sum over a NaN is NaN: part of it is unknown. half_spread is the mean of the recorded ones.
    """
    out = np.empty((len(samples), BAR_WIDTH))
    _merge(np.ascontiguousarray(rows), samples.first, samples.last, out)
    return out


def sampled_closes(samples: Samples, closes: Floats) -> Bools:
    """Return (m,): True at those of the `closes` (epoch seconds, ascending) at which a sample is newly known."""
    sampled = np.zeros(len(closes) + 1, dtype=bool)
    sampled[np.searchsorted(closes, samples.known)] = True
    return sampled[:-1]


def checked(rows: Floats, needs: tuple[str, ...] = ()) -> Floats:
    """Return the rows unchanged.

    Raises BadShape unless (n, 9), BadTimes where they go back in time, BadValues on a close that is no price, and on a
    missing or negative volume if `needs` names it.
    """
    if rows.ndim != 2 or rows.shape[1] != BAR_WIDTH:
        raise BadShape(f"rows have shape {rows.shape}, wanted (n, {BAR_WIDTH})")
    if len(rows) and np.diff(rows[:, OPEN_TIME]).min(initial=0.0) < 0:
        raise BadTimes(
            f"row {int(np.argmin(np.diff(rows[:, OPEN_TIME]))) + 1} is before the one before it; sort by time"
        )
    for name, column, least in (("close", CLOSE, np.nextafter(0.0, 1.0)), ("volume", VOLUME, 0.0)):
        wrong = np.flatnonzero(~((rows[:, column] >= least) & (rows[:, column] < np.inf)))
        if len(wrong) and (name == "close" or name in needs):
            raise BadValues(
                f"{len(wrong)} of {len(rows)} rows have no usable {name}, first {rows[wrong[0], column]} in row "
                f"{wrong[0]}; correct or quarantine them, or sample by CUSUM, which reads closes alone"
            )
    return rows


def _room(n: int) -> tuple[Samples, Ints]:
    """Return arrays for up to n samples, and their sides (n,)."""
    whole = [np.empty(n, dtype=np.int64) for _ in range(3)]
    real = [np.empty(n) for _ in range(3)]
    return Samples(whole[0], whole[1], real[0], whole[2], real[1], real[2]), whole[2]


def _cut(rows: Floats, seconds: float, start: int, k: int, out: Samples, side: Ints) -> Samples:
    """Return the first k samples, with their first rows and closing times."""
    last = out.last[:k].copy()
    first = np.concatenate([np.array([start], dtype=np.int64), last + 1])[:k]
    return Samples(
        first, last, rows[last, OPEN_TIME] + seconds, side[:k].copy(), out.amount[:k].copy(), out.threshold[:k].copy()
    )


def _totals_of(rows: Floats, seconds: float, amounts: Floats, limit: float) -> Samples:
    """Return the samples of totals of `amounts` (n,) that reach `limit`. Raises BadValues for a useless limit."""
    if not 0.0 < limit < np.inf:
        raise BadValues(f"a threshold of {limit}: every row, or none, would end a sample; `mean_amount` gives one")
    out, side = _room(len(rows))
    k = _totals(amounts, limit, out.last, out.amount)
    side[:k], out.threshold[:k] = 0, limit
    return _cut(rows, seconds, 0, k, out, side)


@kernel
def _totals(amounts: Floats, limit: float, last: Ints, amount: Floats) -> int:
    """End a sample where the total of amounts (n,) reaches `limit`; fill last int64, amount float64; return k."""
    k, total = 0, 0.0
    for i in range(amounts.shape[0]):
        total += amounts[i]
        if total >= limit:
            last[k], amount[k] = i, total
            k, total = k + 1, 0.0
    return k


@kernel
def _cusum(
    close: Floats,
    horizon: float,
    calm: float,
    high: float,
    half_life: int,
    every: int,
    ring: Floats,
    high_rank: float,
    last: Ints,
    side: Ints,
    amount: Floats,
    threshold: Floats,
) -> tuple[int, int]:
    """Fill last, side (n,) int64, amount, threshold (n,) float64; return (first row of the first sample, how many).

    close (n,) and ring (memory,) float64; the other arguments as those of `cusum`
    """
    keep, memory = 0.5 ** (1.0 / half_life), ring.shape[0]
    up, down, variance, rank = 0.0, 0.0, 0.0, 0.0
    taken, k = 0, 0
    for i in range(1, close.shape[0]):
        move = math.log(close[i] / close[i - 1])
        limit = (high if rank > high_rank else calm) * math.sqrt(variance * horizon)
        if i > half_life and limit > 0.0:  # a price that never moved has no usual move to compare with
            up, down = max(0.0, up + move), min(0.0, down + move)
            if up >= limit:
                last[k], side[k], amount[k], threshold[k] = i, 1, up, limit
                k, up = k + 1, 0.0
            elif down <= -limit:
                last[k], side[k], amount[k], threshold[k] = i, -1, down, limit
                k, down = k + 1, 0.0
        variance += (1.0 / i if i <= half_life else 1.0 - keep) * (move * move - variance)
        if i >= half_life and i % every == 0:
            ring[taken % memory] = variance
            taken += 1
            if taken >= memory:
                twice = 0
                for j in range(memory):
                    twice += int(ring[j] < variance) + int(ring[j] <= variance)
                rank = 0.5 * twice / memory
    return half_life + 1, k


@kernel
def _imbalance(
    flow: Floats,
    expected: int,
    keep_bar: float,
    keep_row: float,
    within: float,
    last: Ints,
    side: Ints,
    amount: Floats,
    threshold: Floats,
) -> tuple[int, int]:
    """Fill last, side (n,) int64, amount, threshold (n,) float64; return (first row of the first sample, how many).

    flow (n,) float64; keep_bar, keep_row: weight of the past at each sample and row
    """
    rows, mean, square = float(expected), 0.0, 0.0
    total, limit, length, k = 0.0, 0.0, 0, 0
    for i in range(flow.shape[0]):
        if i >= expected:
            if length == 0:
                limit = max(rows * abs(mean), (math.sqrt(expected) - OVERSHOOT) * math.sqrt(square))
            total += flow[i]
            length += 1
            if abs(total) >= limit and total != 0.0:
                last[k], side[k], amount[k], threshold[k] = i, 1 if total > 0.0 else -1, total, limit
                rows += (1.0 - keep_bar) * (length - rows)
                rows = min(max(rows, expected / within), expected * within)
                k, total, length = k + 1, 0.0, 0
        share = 1.0 / (i + 1) if i < expected else 1.0 - keep_row
        mean += share * (flow[i] - mean)
        square += share * (flow[i] * flow[i] - square)
    return expected, k


@kernel
def _merge(rows: Floats, first: Ints, last: Ints, out: Floats) -> None:
    """Fill out (k, 9) float64 with the bars of rows first..last (k,) int64 of rows (n, 9) float64."""
    for k in range(first.shape[0]):
        out[k, :] = rows[first[k], :]
        quoted, total = 0, 0.0
        for i in range(first[k], last[k] + 1):
            if rows[i, HALF_SPREAD] == rows[i, HALF_SPREAD]:
                quoted, total = quoted + 1, total + rows[i, HALF_SPREAD]
        out[k, HALF_SPREAD] = total / quoted if quoted else np.nan
        for i in range(first[k] + 1, last[k] + 1):
            out[k, HIGH] = max(out[k, HIGH], rows[i, HIGH])
            out[k, LOW] = min(out[k, LOW], rows[i, LOW])
            out[k, CLOSE] = rows[i, CLOSE]
            for column in (VOLUME, TRADES, TAKER_BUY):
                out[k, column] += rows[i, column]
