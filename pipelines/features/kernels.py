"""Compiled pieces that several steps share. A window is a slice of state in time order, newest last, NaN when fresh:
so a window function is NaN until its window is full and again while a missing input is inside it, and then recovers.
Sums are made anew over the window each bar: nothing drifts, and a value does not depend on when the fold was started.
"""

import math

import numpy as np

from pipelines.compiled import kernel


@kernel
def push(window, value):  # type: ignore[no-untyped-def]
    """Drop the oldest value of `window` (w,), put `value` last."""
    last = window.shape[0] - 1
    for i in range(last):
        window[i] = window[i + 1]
    window[last] = value


@kernel
def mean(window):  # type: ignore[no-untyped-def]
    """Mean of a window, added in time order; NaN if any value is."""
    total = 0.0
    for value in window:
        total += value
    return total / window.shape[0]


@kernel
def deviation(window, ddof):  # type: ignore[no-untyped-def]
    """Standard deviation of a window, two passes; divisor w - ddof."""
    centre = mean(window)
    total = 0.0
    for value in window:
        total += (value - centre) * (value - centre)
    return math.sqrt(total / (window.shape[0] - ddof))


@kernel
def root_mean_square(window):  # type: ignore[no-untyped-def]
    """Square root of the mean square of a window (no mean taken off)."""
    total = 0.0
    for value in window:
        total += value * value
    return math.sqrt(total / window.shape[0])


@kernel
def highest(window):  # type: ignore[no-untyped-def]
    """Greatest value of a window; NaN if any value is."""
    best = window[0]
    for value in window:
        if value > best or value != value:
            best = value
    return best


@kernel
def lowest(window):  # type: ignore[no-untyped-def]
    """Least value of a window; NaN if any value is."""
    best = window[0]
    for value in window:
        if value < best or value != value:
            best = value
    return best


@kernel
def mid_rank(window, value):  # type: ignore[no-untyped-def]
    """Share of a full window below `value`, ties counted half: in [0, 1]. NaN if the oldest entry or `value` is."""
    if window[0] != window[0] or value != value:
        return np.nan
    twice = 0
    for i in range(window.shape[0]):  # counted as integers by index: the compiler then takes several at once
        twice += int(window[i] < value) + int(window[i] <= value)
    return 0.5 * twice / window.shape[0]


@kernel
def replace_sorted(ordered, old, new):  # type: ignore[no-untyped-def]
    """Keep `ordered` (w,) ascending while `old` leaves and `new` enters. A missing value stands as +inf, at the end."""
    if old != old:
        old = np.inf
    if new != new:
        new = np.inf
    i = 0
    last = ordered.shape[0] - 1
    while i < last and ordered[i] < old:
        i += 1
    while i < last and ordered[i + 1] < new:
        ordered[i] = ordered[i + 1]
        i += 1
    while i > 0 and ordered[i - 1] > new:
        ordered[i] = ordered[i - 1]
        i -= 1
    ordered[i] = new


@kernel
def ema(state, value, period):  # type: ignore[no-untyped-def]
    """Exponential average, rate 2/(period+1), seeded by the mean of the first `period` values as TA-Lib does.

    state    (2,) zeros when fresh: values seen, sum then average.  Returns NaN before `period` values.
    """
    state[0] += 1.0
    if state[0] < period:
        state[1] += value
        return np.nan
    if state[0] == period:
        state[1] = (state[1] + value) / period
    else:
        state[1] += (value - state[1]) * (2.0 / (period + 1.0))
    return state[1]


MACD_STATE = 7


@kernel
def macd(state, close):  # type: ignore[no-untyped-def]
    """MACD 12/26 and its signal 9, in price units, seeded as TA-Lib does: both averages start on the 26th bar.

    state    (7,) zeros when fresh: bars, fast (2), slow (2), signal (2).  Returns (line, signal): from bar 26, 34.
    """
    state[0] += 1.0
    fast = np.nan
    if state[0] > 14.0:  # the fast average is seeded by the twelve bars that end with the slow one's seed
        fast = ema(state[1:3], close, 12.0)
    slow = ema(state[3:5], close, 26.0)
    if state[0] < 26.0:
        return np.nan, np.nan
    return fast - slow, ema(state[5:7], fast - slow, 9.0)


RSI_STATE = 4


@kernel
def rsi(state, close):  # type: ignore[no-untyped-def]
    """RSI 14 by Wilder's smoothing, 0..100; NaN before 15 bars and while nothing has moved.

    state    (4,) zeros when fresh: bars, last close, mean gain, mean loss
    """
    change = close - state[1]
    state[1] = close
    state[0] += 1.0
    if state[0] == 1.0:
        return np.nan
    gain = max(change, 0.0)
    loss = max(-change, 0.0)
    if state[0] <= 15.0:
        state[2] += gain / 14.0
        state[3] += loss / 14.0
        if state[0] < 15.0:
            return np.nan
    else:
        state[2] = (state[2] * 13.0 + gain) / 14.0
        state[3] = (state[3] * 13.0 + loss) / 14.0
    return 100.0 * (state[2] / (state[2] + state[3]))


@kernel
def true_range(high, low, last_close):  # type: ignore[no-untyped-def]
    return max(high - low, abs(high - last_close), abs(low - last_close))


ATR_STATE = 3


@kernel
def atr(state, high, low, close):  # type: ignore[no-untyped-def]
    """ATR 14 by Wilder's smoothing, in price units; NaN before 15 bars (the first true range needs a last close).

    state    (3,) zeros when fresh: bars, last close, average (a sum while it is seeded)
    """
    reach = true_range(high, low, state[1])
    state[1] = close
    state[0] += 1.0
    if state[0] == 1.0:
        return np.nan
    if state[0] <= 15.0:
        state[2] += reach / 14.0
        if state[0] < 15.0:
            return np.nan
    else:
        state[2] = (state[2] * 13.0 + reach) / 14.0
    return state[2]


ADX_STATE = 8


@kernel
def adx(state, high, low, close):  # type: ignore[no-untyped-def]
    """ADX 14 by Wilder's smoothing, 0..100; NaN before 28 bars. Seeds as TA-Lib: 13 movements summed, 14 DX averaged.

    state    (8,) zeros when fresh: bars, last high, last low, last close, +DM, -DM, true range, average
    """
    up = high - state[1]
    down = state[2] - low
    reach = true_range(high, low, state[3])
    state[1], state[2], state[3] = high, low, close
    state[0] += 1.0
    if state[0] == 1.0:
        return np.nan
    if state[0] > 14.0:
        for i in range(4, 7):
            state[i] -= state[i] / 14.0
    if up > 0.0 and up > down:
        state[4] += up
    elif down > 0.0 and down > up:
        state[5] += down
    state[6] += reach
    if state[0] <= 14.0:
        return np.nan
    moved = state[4] + state[5]
    if moved > 0.0:  # nothing moved: the average keeps what it was
        dx = 100.0 * abs(state[4] - state[5]) / moved
        state[7] = state[7] + dx / 14.0 if state[0] <= 28.0 else (state[7] * 13.0 + dx) / 14.0
    return state[7] if state[0] >= 28.0 else np.nan
