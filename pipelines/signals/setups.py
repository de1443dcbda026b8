"""The nine chart patterns of the recogniser (M2) as setups: which does this bar's close complete, and which way?

A setup is spoken of once, on the bar that makes it known, like the `direction` of any signal; what becomes of it is a
matter of labels. Every rule reads at most the last `MEMORY` bars from scratch and keeps no state, so a bar's setups are
the same bytes whether computed over years or over the 256 bars that serving keeps. `setups` is the one doorway:
full signals of the same names (S1–S4, S12–S15) replace the rules behind it.

1 = speaks for a rise, -1 = for a fall. ATR: mean true range of the last 14 bars. A swing high is the highest of eleven
bars, five on each side; lows are told as negated highs throughout.

order_block           S1  a run of candles one way, begun at the last opposite candle, moved 1.5 ATR, and this close
                          breaks the newest swing on that side
liquidity_sweep       S3  a wick at least 0.1 ATR beyond an untouched swing; within three bars this close is back inside
fvg                   S2  three candles whose outer wicks leave a gap of at least 0.3 ATR
cisd                  S4  this close is the first through the open of the last opposing run: two candles or more, 1 ATR,
                          ended at most twelve bars ago
cmt_confluence       S15  the trends (last close against the mean of six) of all timeframes that have six closed candles
                          agree, weighed as stated and renormalised, and did not agree a bar ago
amt_accumulation     S12  balance (48 bars within 7 ATR), and this close returns into the value area (70 % of volume)
                          that the last one was outside: price is bought back below value, sold back above it
amt_distribution     S12  three closes in a row outside the value area of the balance before them: acceptance
flowstate_crt_setup  S13  this 4 h candle (1 d on coarse bars) traded 0.1 ATR beyond the last one's high or low, and
                          this is the first close back inside
unicorn_rating_trigger    four of the eight above spoke for one side within eight bars, more than for the other, one of
                          them now
Without volume the value area counts time: every bar weighs the same.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import BAR_WIDTH, CLOSE, HIGH, LOW, OPEN, OPEN_TIME, VOLUME, Floats, Ints
from pipelines.errors import BadShape

PATTERNS = (
    "order_block", "liquidity_sweep", "fvg", "cisd", "cmt_confluence", "amt_accumulation", "amt_distribution",
    "flowstate_crt_setup", "unicorn_rating_trigger",
)  # fmt: skip
WINDOW = 192  # bars a rule may read: twelve 4 h candles of 15-minute bars
RECENT = 8  # bars over which setups come together
MEMORY = WINDOW + RECENT

ATR_BARS = 14
SIDE = 5  # bars on each side of a swing
SWING_BARS = 96  # how far back a swing is looked for
SWEEP_ATR, SWEEP_WITHIN = 0.1, 3
GAP_ATR = 0.3
DISPLACEMENT_ATR, DISPLACEMENT_WITHIN = 1.5, 8
RUN_CANDLES, RUN_ATR, RUN_WITHIN = 2, 1.0, 12
BALANCE_BARS, BALANCE_ATR, ACCEPTED = 48, 7.0, 3
PRICE_BINS, VALUE_SHARE = 32, 0.70
FRAMES = np.array([300.0, 900.0, 3600.0, 14400.0, 86400.0])  # seconds
FRAME_WEIGHTS = np.array([0.10, 0.20, 0.30, 0.25, 0.15])
FRAME_CANDLES = 6
CRT_FRAMES = np.array([14400.0, 86400.0])  # the first that holds at least four bars
COINCIDENCE = 4


@kernel
def _reach(bars, t):  # type: ignore[no-untyped-def]
    """ATR at bar t in price units."""
    total = 0.0
    for i in range(t - ATR_BARS + 1, t + 1):
        last = bars[i - 1, CLOSE]
        total += max(bars[i, HIGH] - bars[i, LOW], abs(bars[i, HIGH] - last), abs(bars[i, LOW] - last))
    return total / ATR_BARS


@kernel
def _swing(high, i):  # type: ignore[no-untyped-def]
    """Is high[i] the highest of eleven, the first of equals?"""
    highest = True
    for k in range(1, SIDE + 1):
        highest = highest and high[i - k] < high[i] and high[i + k] <= high[i]
    return highest


@kernel
def _sweep(high, close, reach):  # type: ignore[no-untyped-def]
    """Depth in ATR of the deepest wick beyond a swing high that the last close ends; 0 = none."""
    last = high.shape[0] - 1
    newest = high[last]
    for i in range(last - SWEEP_WITHIN + 1, last):
        newest = max(newest, high[i])
    depth = 0.0
    for i in range(last - SWEEP_WITHIN - SIDE, last - SWING_BARS, -1):
        level = high[i]
        if newest <= level or close[last] >= level or not _swing(high, i):
            continue
        first = i + SIDE + 1
        while high[first] <= level:
            first += 1
        inside = first <= last - SWEEP_WITHIN  # beyond it longer ago: left behind or swept before
        for k in range(first, last):
            inside = inside or close[k] < level
        if not inside:
            depth = max(depth, (newest - level) / reach)
    return depth if depth >= SWEEP_ATR else 0.0


@kernel
def _order_block(opened, high, close, reach):  # type: ignore[no-untyped-def]
    """Does the last close break the newest swing high out of a run that began at a falling candle?"""
    last = high.shape[0] - 1
    begin = last
    while begin > last - DISPLACEMENT_WITHIN and close[begin] >= opened[begin]:
        begin -= 1
    if close[begin] >= opened[begin] or close[last] - close[begin] < DISPLACEMENT_ATR * reach:
        return False
    for i in range(last - SIDE - 1, last - SWING_BARS, -1):
        if _swing(high, i):
            return close[last] > high[i] and close[last - 1] <= high[i]
    return False


@kernel
def _delivery(opened, close, reach):  # type: ignore[no-untyped-def]
    """Is the last close the first above the open of the last run of falling candles?"""
    last = close.shape[0] - 1
    end = last - 1
    while end >= last - RUN_WITHIN:
        begin = end
        while begin > 0 and close[begin] < opened[begin]:
            begin -= 1
        if end - begin >= RUN_CANDLES:
            level = opened[begin + 1]
            if level - close[end] >= RUN_ATR * reach:
                for k in range(end + 1, last):
                    if close[k] > level:
                        return False
                return close[last] > level
        end = min(begin, end - 1)
    return False


@kernel
def _value_area(bars, start, stop):  # type: ignore[no-untyped-def]
    """(low, high) of the value area of bars start … stop-1 and their whole span: a profile of volume by price, grown
    from its fullest bin to the fuller neighbour until 70 % of the volume lies inside."""
    bottom, top, counted = bars[start, LOW], bars[start, HIGH], True
    for i in range(start, stop):
        bottom, top = min(bottom, bars[i, LOW]), max(top, bars[i, HIGH])
        counted = counted and bars[i, VOLUME] > 0.0
    width = (top - bottom) / PRICE_BINS
    if not width > 0.0:
        return bottom, top, 0.0
    profile = np.zeros(PRICE_BINS)
    total = 0.0
    for i in range(start, stop):
        first = min(int((bars[i, LOW] - bottom) / width), PRICE_BINS - 1)
        final = min(int((bars[i, HIGH] - bottom) / width), PRICE_BINS - 1)
        volume = bars[i, VOLUME] if counted else 1.0
        for b in range(first, final + 1):
            profile[b] += volume / (final - first + 1)
        total += volume
    low = np.argmax(profile)
    high = low
    inside = profile[low]
    while inside < VALUE_SHARE * total and high - low < PRICE_BINS - 1:
        below = profile[low - 1] if low > 0 else -1.0
        above = profile[high + 1] if high < PRICE_BINS - 1 else -1.0
        if above >= below:
            high += 1
            inside += above
        else:
            low -= 1
            inside += below
    return bottom + low * width, bottom + (high + 1) * width, top - bottom


@kernel
def _agreement(bars, t, step):  # type: ignore[no-untyped-def]
    """1 or -1 where the trends of all timeframes agree at the close of bar t, else 0; only closed candles are read."""
    now = bars[t, OPEN_TIME] + step
    score, total, heard = 0.0, 0.0, 0
    for f in range(FRAMES.shape[0]):
        frame = FRAMES[f]
        if frame < step:
            continue
        found, newest, trend, candle = 0, 0.0, 0.0, -1.0
        for i in range(t, t - WINDOW + 1, -1):
            slot = np.floor(bars[i, OPEN_TIME] / frame)
            if slot != candle and (slot + 1.0) * frame <= now:  # the last bar of a closed candle
                if found == 0:
                    newest = bars[i, CLOSE]
                trend += newest - bars[i, CLOSE]  # a sum of differences: equal closes give an exact nought
                found += 1
                if found == FRAME_CANDLES:
                    break
            candle = slot
        if found == FRAME_CANDLES:
            score += FRAME_WEIGHTS[f] * np.sign(trend)
            total += FRAME_WEIGHTS[f]
            heard += 1
    if heard < 2:
        return 0.0
    return np.sign(score) if abs(score) > 0.999 * total else 0.0


@kernel
def _range_setup(high, low, close, slots, reach):  # type: ignore[no-untyped-def]
    """Depth in ATR beyond the last candle's high in this candle, where the last close is the first back inside."""
    last = high.shape[0] - 1
    begin = last
    while begin > 0 and slots[begin - 1] == slots[last]:
        begin -= 1
    before = begin - 1
    if before < 0:
        return 0.0
    level, floor = high[before], low[before]
    for i in range(before, -1, -1):
        if slots[i] != slots[before]:
            break
        level, floor = max(level, high[i]), min(floor, low[i])
    first, extreme = -1, level
    for i in range(begin, last + 1):
        if first < 0 and high[i] > level:
            first = i
        if first >= 0:
            extreme = max(extreme, high[i])
            if i < last and close[i] < level:
                return 0.0
    inside = first >= 0 and floor < close[last] < level
    return (extreme - level) / reach if inside and extreme - level >= SWEEP_ATR * reach else 0.0


@kernel
def _speak(bars, t, out):  # type: ignore[no-untyped-def]
    """The eight rules at bar t, from bars t-WINDOW+1 … t; `out` (8,): -1, 0, 1."""
    out[:] = 0.0
    reach = _reach(bars, t)
    if not reach > 0.0:
        return
    recent = bars[t - SWING_BARS - SIDE : t + 1]
    # copies: contiguous like their mirror images, so that a rule is compiled once
    opened, high = recent[:, OPEN].copy(), recent[:, HIGH].copy()
    low, close = recent[:, LOW].copy(), recent[:, CLOSE].copy()
    if _order_block(opened, high, close, reach):
        out[0] = 1.0
    elif _order_block(-opened, -low, -close, reach):
        out[0] = -1.0
    above, below = _sweep(high, close, reach), _sweep(-low, -close, reach)
    out[1] = np.sign(below - above)
    if bars[t, LOW] - bars[t - 2, HIGH] >= GAP_ATR * reach:
        out[2] = 1.0
    elif bars[t - 2, LOW] - bars[t, HIGH] >= GAP_ATR * reach:
        out[2] = -1.0
    if _delivery(opened, close, reach):
        out[3] = 1.0
    elif _delivery(-opened, -close, reach):
        out[3] = -1.0
    step = np.inf
    for i in range(t - WINDOW + 2, t + 1):
        step = min(step, bars[i, OPEN_TIME] - bars[i - 1, OPEN_TIME])
    agreed = _agreement(bars, t, step)
    if agreed != 0.0 and agreed != _agreement(bars, t - 1, step):
        out[4] = agreed
    here, before = bars[t, CLOSE], bars[t - 1, CLOSE]
    bottom, top, span = _value_area(bars, t - BALANCE_BARS + 1, t + 1)
    if 0.0 < span <= BALANCE_ATR * reach and bottom <= here <= top:
        if before < bottom:
            out[5] = 1.0
        elif before > top:
            out[5] = -1.0
    end = t - ACCEPTED + 1  # of the balance; the closes from here on are those that accept or do not
    bottom, top, span = _value_area(bars, end - BALANCE_BARS, end)
    if 0.0 < span <= BALANCE_ATR * reach and bottom <= bars[end - 1, CLOSE] <= top:
        up, down = True, True
        for i in range(end, t + 1):
            up, down = up and bars[i, CLOSE] > top, down and bars[i, CLOSE] < bottom
        out[6] = int(up) - int(down)
    for f in range(CRT_FRAMES.shape[0]):
        if CRT_FRAMES[f] >= 4.0 * step:
            slots = np.floor(bars[t - WINDOW + 2 : t + 1, OPEN_TIME] / CRT_FRAMES[f])
            span_bars = bars[t - WINDOW + 2 : t + 1]
            highs, lows, closes = span_bars[:, HIGH].copy(), span_bars[:, LOW].copy(), span_bars[:, CLOSE].copy()
            above = _range_setup(highs, lows, closes, slots, reach)
            below = _range_setup(-lows, -highs, -closes, slots, reach)
            out[7] = np.sign(below - above)
            break


@kernel
def _rating(spoken, t):  # type: ignore[no-untyped-def]
    """(for a rise, for a fall): how many of the eight spoke in the RECENT rows that end with t."""
    up, down = 0, 0
    for c in range(spoken.shape[1]):
        rise, fall = 0, 0
        for i in range(t - RECENT + 1, t + 1):
            rise, fall = rise | int(spoken[i, c] > 0.0), fall | int(spoken[i, c] < 0.0)
        up, down = up + rise, down + fall
    return up, down


@kernel
def _setups(bars, at, direction, reach):  # type: ignore[no-untyped-def]
    begin = at[0]
    for t in at:
        begin = min(begin, t)
    begin = max(begin - RECENT, 0)
    spoken = np.empty((bars.shape[0] - begin, PATTERNS_BEFORE))
    done = np.zeros(bars.shape[0] - begin, np.bool_)
    for k in range(at.shape[0]):
        t = at[k]
        direction[k, :] = np.nan
        reach[k] = np.nan
        if t < MEMORY - 1:
            continue
        for i in range(t - RECENT, t + 1):
            if not done[i - begin]:
                _speak(bars, i, spoken[i - begin])
                done[i - begin] = True
        row = t - begin
        direction[k, :PATTERNS_BEFORE] = spoken[row]
        reach[k] = _reach(bars, t)
        up, down = _rating(spoken, row)
        up_before, down_before = _rating(spoken, row - 1)
        direction[k, PATTERNS_BEFORE] = 0.0
        if up >= COINCIDENCE and up > down and up_before < COINCIDENCE:
            direction[k, PATTERNS_BEFORE] = 1.0
        elif down >= COINCIDENCE and down > up and down_before < COINCIDENCE:
            direction[k, PATTERNS_BEFORE] = -1.0


PATTERNS_BEFORE = len(PATTERNS) - 1  # the last one is made of the others


@dataclass(frozen=True, slots=True)
class Setups:
    """What n bars complete.

    direction  (n, 9) in the order of PATTERNS: 1, -1, or 0 where the pattern is not there; NaN where fewer than MEMORY
               bars are known at that bar
    reach      (n,) ATR at the bar's close, price units; NaN likewise
    """

    direction: Floats
    reach: Floats


def setups(bars: Floats, at: Ints) -> Setups:
    """Setups known at the close of bars[at]; nothing after a bar and nothing MEMORY bars before it is read.

    bars    (m, 8) closed bars of one timeframe in time order
    at      (n,) positions, in any order
    Raises  BadShape if bars are not (m, 8)
    """
    bars = np.require(bars, np.float64, ["C", "W"])
    if bars.ndim != 2 or bars.shape[1] != BAR_WIDTH:
        raise BadShape(f"bars have shape {bars.shape}, wanted (m, {BAR_WIDTH})")
    direction, reach = np.empty((len(at), len(PATTERNS))), np.empty(len(at))
    if len(at):
        _setups(bars, np.ascontiguousarray(at, dtype=np.int64), direction, reach)
    return Setups(direction, reach)
