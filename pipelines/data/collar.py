"""Bars far outside the range before them: a price typed with six noughts too many, a low of a cent.

One bar with a price a million times too high spoils every average that reads it for as long as that looks back. A bar
is outside where its high lies above the highest high of the newest `collar_bars` bars, or its low under their lowest
low, by more than `collar_factor` and by more than `collar_mads` robust standard deviations of their moves.

In a file, bars outside are spikes where at most `collar_run` of them stand in a row and those after are back inside, or
where the file ends with them; more in a row are a lasting shift of level, which is no business of this rule. Live,
nothing is known of the bars after: every bar outside is held back until a person decides.

Measured on the recorded markets (Binance BTC/USDT 1m 2024 and 2025, 1h from 2017; ETH/USDT 5m, 15m, 1h; OANDA EUR/USD
and XAU/USD 1h; and 1h, 4h, 1d made of them: 1,223,603 bars): none is outside. The farthest over 240 bars were 1.07
times the range in minutes, 1.32 in hours and 1.46 in days, all of BTC/USDT (March 2020).
"""

from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, Bools, Floats
from pipelines.market_params import QualityParams

LEAST_SHARE = 8  # a range of fewer than collar_bars / 8 bars is none: the rule abstains


@dataclass(frozen=True, slots=True)
class Recent:
    """Hold what came before live bars.

    bars    (m, 9) newest bars, ascending; coarser ones stand for the finer ones inside them
    seen    how many bars of the market's own timeframe they stand for
    scale   robust standard deviation of the move from one bar to the next, as `robust_scale`
    """

    bars: Floats
    seen: int
    scale: float


@dataclass(frozen=True, slots=True)
class Outside:
    """Hold which bars are outside: (n,) bool; highest and lowest (n,) of the range before each, NaN where inside."""

    found: Bools
    highest: Floats
    lowest: Floats


def spikes(bars: Floats, rules: QualityParams) -> Outside:
    """Return which bars of a history are spikes.

    bars    (n, 9), ascending, finite prices above 0
    """
    n, least = len(bars), rules.collar_bars // LEAST_SHARE
    found, highest, lowest = np.zeros(n, dtype=np.bool_), np.full(n, np.nan), np.full(n, np.nan)
    if not leaps(bars[:, HIGH], bars[:, LOW], rules):
        return Outside(found, highest, lowest)
    head = min(n, rules.collar_bars)  # the first bars have no range before them: the one after them judges
    backward = bars[:head][::-1]
    early = _walked(backward, 0, 0, np.nan, rules, rules.collar_run)
    first = np.arange(head) < least
    found[:head] = early.found[::-1] & first
    highest[:head], lowest[:head] = early.highest[::-1], early.lowest[::-1]
    later = _walked(bars, 0, 0, np.nan, rules, rules.collar_run, found)
    return Outside(
        found | later.found,
        np.where(later.found, later.highest, np.where(found, highest, np.nan)),
        np.where(later.found, later.lowest, np.where(found, lowest, np.nan)),
    )


def leaps(highs: Floats, lows: Floats, rules: QualityParams) -> bool:
    """Return whether any bar may be a spike: its high or low (n,) is so far from that of the bar next to it."""
    factor = rules.collar_factor
    steps = (prices[1:] / prices[:-1] for prices in (highs, lows))
    return any(bool(((step > factor) | (step * factor < 1.0)).any()) for step in steps)


def outside(bars: Floats, before: Recent, rules: QualityParams) -> Outside:
    """Return which live bars (n, 9) are outside the range of those before them; none counts for the next one."""
    m = len(before.bars)
    walked = _walked(np.concatenate([before.bars, bars]), m, before.seen, before.scale, rules, 0)
    return Outside(walked.found[m:], walked.highest[m:], walked.lowest[m:])


def is_near(before: Floats, bars: Floats, rules: QualityParams) -> bool:
    """Return whether no high or low of live bars (n, 9) is `collar_factor` times that of the bar before it.

    before   (9,) the newest bar in the range before them. Then none is outside of that range, which holds it.
    """
    top, bottom, factor = float(before[HIGH]), float(before[LOW]), rules.collar_factor
    for high, low in zip(bars[:, HIGH].tolist(), bars[:, LOW].tolist(), strict=True):
        if high > top * factor or low * factor < bottom:
            return False
        top, bottom = high, low
    return True


def robust_scale(closes: Floats) -> float:
    """Return the robust standard deviation (1.4826 x median) of the moves between closes; NaN of fewer than 2.

    A move is relative to the lower of its two closes, so that up and down count alike.
    """
    if len(closes) < 2:
        return float("nan")
    return 1.4826 * float(np.median(np.abs(np.diff(closes)) / np.minimum(closes[1:], closes[:-1])))


def _walked(
    bars: Floats,
    accepted: int,
    seen: int,
    scale: float,
    rules: QualityParams,
    run: int,
    skipped: Bools | None = None,
) -> Outside:
    """Return the bars outside; the first `accepted` are never judged, those of `skipped` are left out."""
    n = len(bars)
    found, ranges = np.zeros(n, dtype=np.bool_), np.full((n, 2), np.nan)
    _walk(
        np.ascontiguousarray(bars, dtype=np.float64), accepted, seen, scale, rules.collar_factor, rules.collar_mads,
        rules.collar_bars // LEAST_SHARE, run, np.zeros(n, dtype=np.bool_) if skipped is None else skipped,
        np.empty((rules.collar_bars, 3)), np.empty(rules.collar_bars), found, ranges,
    )  # fmt: skip
    return Outside(found, ranges[:, 0], ranges[:, 1])


@kernel
def _is_outside(high: float, low: float, top: float, bottom: float, factor: float, reach: float) -> bool:
    """Return whether a bar lies outside; all prices above 0, `reach` the least move beyond, NaN = none is known."""
    if high > top * factor and not (high - top) / top <= reach:
        return True
    return low * factor < bottom and not (bottom - low) / low <= reach


@kernel
def _median(values: Floats, n: int, sorted_: Floats) -> float:
    """Return the median of the first n values; NaN of none. `sorted_` (n,) is scratch."""
    kept = 0
    for i in range(n):
        value = values[i]
        if value != value:
            continue
        at = kept
        while at > 0 and sorted_[at - 1] > value:
            sorted_[at] = sorted_[at - 1]
            at -= 1
        sorted_[at] = value
        kept += 1
    if kept == 0:
        return np.nan
    half = kept // 2
    upper: float = sorted_[half]
    return upper if kept % 2 else 0.5 * (sorted_[half - 1] + upper)


@kernel
def _walk(
    bars: Floats, accepted: int, seen: int, scale: float, factor: float, mads: float, least: int, run: int,
    skipped: Bools, ring: Floats, scratch: Floats, found: Bools, ranges: Floats,
) -> None:  # fmt: skip
    """Fill found (n,) and ranges (n, 2) bar by bar; a bar outside does not enter the range of those after it.

    bars (n, 9); ring (window, 3) of high, low and move; scale NaN = that of the ring; run 0 = no look ahead
    """
    n, window = bars.shape[0], ring.shape[0]
    filled, at, known, before = 0, 0, 0, np.nan
    top, bottom, is_ranged, reach, is_scaled = np.nan, np.nan, False, np.nan, False
    i = 0
    while i < n:
        if skipped[i]:
            i += 1
            continue
        high, low, close = bars[i, HIGH], bars[i, LOW], bars[i, CLOSE]
        if i == accepted:
            known = max(known, seen)
        if i >= accepted and known >= least and filled > 0:
            if not is_ranged:
                top, bottom = ring[0, 0], ring[0, 1]
                for k in range(1, filled):
                    top, bottom = max(top, ring[k, 0]), min(bottom, ring[k, 1])
                is_ranged = True
            if high > top * factor or low * factor < bottom:
                if not is_scaled:
                    usual = scale if scale == scale else 1.4826 * _median(ring[:, 2], filled, scratch)
                    reach, is_scaled = mads * usual, True
                if _is_outside(high, low, top, bottom, factor, reach):
                    j = i + 1
                    while (
                        j < n and j - i <= run and _is_outside(bars[j, HIGH], bars[j, LOW], top, bottom, factor, reach)
                    ):
                        j += 1
                    if run == 0 or j - i <= run:
                        last = i + 1 if run == 0 else j
                        for k in range(i, last):
                            found[k], ranges[k, 0], ranges[k, 1] = True, top, bottom
                        i = last
                        continue
                    filled, at, known, before, is_ranged = 0, 0, 0, np.nan, False  # a lasting shift: begin there
        if filled == window:
            if is_ranged and (ring[at, 0] >= top or ring[at, 1] <= bottom):
                is_ranged = False
        else:
            filled += 1
        ring[at, 0], ring[at, 1] = high, low
        ring[at, 2] = abs(close - before) / min(close, before)
        at = (at + 1) % window
        if is_ranged:
            top, bottom = max(top, high), min(bottom, low)
        before, known, is_scaled = close, known + 1, False
        i += 1
