"""Compiled functions that several steps share. All arrays and values are float64.

A window is a slice of state in time order, newest last, NaN when fresh: a window function is NaN until its window is
full, and while a missing input is inside it, and then recovers. Sums are added up again over the window each bar:
rounding does not accumulate, and a value does not depend on when the fold was started.
"""

import math

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import Floats
from pipelines.layout import lay_out, zeros


@kernel
def push(window: Floats, value: float) -> None:
    """Drop the oldest value of `window` (w,) float64 and put `value` last."""
    last = window.shape[0] - 1
    for i in range(last):
        window[i] = window[i + 1]
    window[last] = value


@kernel
def mean(window: Floats) -> float:
    """Return the mean of a window (w,) float64, added in time order; NaN if any value is."""
    total: float = 0.0
    for value in window:
        total += value
    average: float = total / window.shape[0]
    return average


@kernel
def deviation(window: Floats, ddof: int) -> float:
    """Return the standard deviation of a window (w,) float64, two passes; divisor w - ddof."""
    centre = mean(window)
    total = 0.0
    for value in window:
        total += (value - centre) * (value - centre)
    return math.sqrt(total / (window.shape[0] - ddof))


@kernel
def root_mean_square(window: Floats) -> float:
    """Return the square root of the mean square of a window (w,) float64 (no mean is subtracted)."""
    total = 0.0
    for value in window:
        total += value * value
    return math.sqrt(total / window.shape[0])


@kernel
def highest(window: Floats) -> float:
    """Return the greatest value of a window (w,) float64; NaN if any value is."""
    best: float = window[0]
    for value in window:
        if value > best or value != value:
            best = value
    return best


@kernel
def lowest(window: Floats) -> float:
    """Return the least value of a window (w,) float64; NaN if any value is."""
    best: float = window[0]
    for value in window:
        if value < best or value != value:
            best = value
    return best


@kernel
def mid_rank(window: Floats, value: float) -> float:
    """Return the share of a full window (w,) float64 below `value`, ties counted half: in [0, 1].

    NaN if the oldest entry or `value` is.
    """
    if window[0] != window[0] or value != value:
        return np.nan
    twice = 0
    for i in range(window.shape[0]):  # counted as integers by index: the compiler then takes several at once
        twice += int(window[i] < value) + int(window[i] <= value)
    rank: float = 0.5 * twice / window.shape[0]
    return rank


@kernel
def replace_sorted(ordered: Floats, old: float, new: float) -> None:
    """Replace `old` by `new` in `ordered` (w,) float64 ascending; a missing value stands as +inf, at the end."""
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
def ema(state: Floats, value: float, period: float) -> float:
    """Return the exponential average, rate 2/(period+1), seeded by the mean of `period` values as TA-Lib does.

    state    (2,) float64, zeros when fresh: values seen, sum then average.  NaN before `period` values.
    """
    state[0] += 1.0
    if state[0] < period:
        state[1] += value
        return np.nan
    if state[0] == period:
        state[1] = (state[1] + value) / period
    else:
        state[1] += (value - state[1]) * (2.0 / (period + 1.0))
    average: float = state[1]
    return average


(_M_BARS, _FAST, _SLOW, _SIGNAL), _MACD_FRESH = lay_out(bars=zeros(1), fast=zeros(2), slow=zeros(2), signal=zeros(2))
MACD_STATE = len(_MACD_FRESH)


@kernel
def macd(state: Floats, close: float) -> tuple[float, float]:
    """Return MACD 12/26 and its signal 9 in price units, seeded as TA-Lib does: both averages start at bar 26.

    state    (7,) float64, zeros when fresh: bars, fast (2), slow (2), signal (2).  Line from bar 26, signal from 34.
    """
    state[0] += 1.0
    fast = np.nan
    if state[0] > 14.0:  # the fast average is seeded by the twelve bars that end with the slow one's seed
        fast = ema(state[_FAST], close, 12.0)
    slow = ema(state[_SLOW], close, 26.0)
    if state[0] < 26.0:
        return np.nan, np.nan
    return fast - slow, ema(state[_SIGNAL], fast - slow, 9.0)


RSI_FIELDS = ("bars", "last_close", "gain", "loss")
_R_BARS, _R_LAST, _R_GAIN, _R_LOSS = range(len(RSI_FIELDS))
RSI_STATE = len(RSI_FIELDS)


@kernel
def rsi(state: Floats, close: float) -> float:
    """Return RSI 14 by Wilder's smoothing, 0..100; NaN before 15 bars and while nothing has moved.

    state    (4,) float64, zeros when fresh: bars, last close, mean gain, mean loss
    """
    change = close - state[_R_LAST]
    state[_R_LAST] = close
    state[_R_BARS] += 1.0
    if state[_R_BARS] == 1.0:
        return np.nan
    gain = max(change, 0.0)
    loss = max(-change, 0.0)
    if state[_R_BARS] <= 15.0:
        state[_R_GAIN] += gain / 14.0
        state[_R_LOSS] += loss / 14.0
        if state[_R_BARS] < 15.0:
            return np.nan
    else:
        state[_R_GAIN] = (state[_R_GAIN] * 13.0 + gain) / 14.0
        state[_R_LOSS] = (state[_R_LOSS] * 13.0 + loss) / 14.0
    strength: float = 100.0 * (state[_R_GAIN] / (state[_R_GAIN] + state[_R_LOSS]))
    return strength


@kernel
def true_range(high: float, low: float, last_close: float) -> float:
    """Return the true range of a bar in price units (float64); NaN if the last close is."""
    return max(high - low, abs(high - last_close), abs(low - last_close))


ATR_FIELDS = ("bars", "last_close", "average")
_T_BARS, _T_LAST, _T_AVERAGE = range(len(ATR_FIELDS))
ATR_STATE = len(ATR_FIELDS)


@kernel
def atr(state: Floats, high: float, low: float, close: float) -> float:
    """Return ATR 14 by Wilder's smoothing, in price units; NaN before 15 bars (the first range needs a last close).

    state    (3,) float64, zeros when fresh: bars, last close, average (a sum while it is seeded)
    """
    reach = true_range(high, low, state[_T_LAST])
    state[_T_LAST] = close
    state[_T_BARS] += 1.0
    if state[_T_BARS] == 1.0:
        return np.nan
    if state[_T_BARS] <= 15.0:
        state[_T_AVERAGE] += reach / 14.0
        if state[_T_BARS] < 15.0:
            return np.nan
    else:
        state[_T_AVERAGE] = (state[_T_AVERAGE] * 13.0 + reach) / 14.0
    average: float = state[_T_AVERAGE]
    return average


ADX_FIELDS = ("bars", "last_high", "last_low", "last_close", "plus_dm", "minus_dm", "true_range", "average")
_X_BARS, _X_HIGH, _X_LOW, _X_CLOSE, PLUS_DM, MINUS_DM, TRUE_RANGE, _X_AVERAGE = range(len(ADX_FIELDS))
ADX_STATE = len(ADX_FIELDS)


@kernel
def adx(state: Floats, high: float, low: float, close: float) -> float:
    """Return ADX 14 by Wilder's smoothing, 0..100; NaN before 28 bars.

    Seeds as TA-Lib: 13 movements summed, 14 DX averaged.
    state    (8,) float64, zeros when fresh: bars, last high, last low, last close, +DM, -DM, true range, average
    """
    up = high - state[_X_HIGH]
    down = state[_X_LOW] - low
    reach = true_range(high, low, state[_X_CLOSE])
    state[_X_HIGH], state[_X_LOW], state[_X_CLOSE] = high, low, close
    state[_X_BARS] += 1.0
    if state[_X_BARS] == 1.0:
        return np.nan
    if state[_X_BARS] > 14.0:
        for i in range(PLUS_DM, TRUE_RANGE + 1):
            state[i] -= state[i] / 14.0
    if up > 0.0 and up > down:
        state[PLUS_DM] += up
    elif down > 0.0 and down > up:
        state[MINUS_DM] += down
    state[TRUE_RANGE] += reach
    if state[_X_BARS] <= 14.0:
        return np.nan
    moved = state[PLUS_DM] + state[MINUS_DM]
    if moved > 0.0:  # nothing moved: the average stays as it was
        dx = 100.0 * abs(state[PLUS_DM] - state[MINUS_DM]) / moved
        state[_X_AVERAGE] = (
            state[_X_AVERAGE] + dx / 14.0 if state[_X_BARS] <= 28.0 else (state[_X_AVERAGE] * 13.0 + dx) / 14.0
        )
    return state[_X_AVERAGE] if state[_X_BARS] >= 28.0 else np.nan


EMA_STATE, CHAIN_STATE = 2, 3  # of one average, and of one average of a chain


@kernel
def tail(window: Floats, n: int) -> Floats:
    """Return the newest n values of a window (w,) float64, a view."""
    return window[window.shape[0] - n :]


@kernel
def total(window: Floats) -> float:
    """Return the sum of a window (w,) float64, added in time order."""
    added: float = 0.0
    for value in window:
        added += value
    return added


@kernel
def chain(state: Floats, value: float, period: float, length: int) -> None:
    """Update `length` exponential averages, each of the one before.

    state  (3·length,) float64: for each average the two of `ema`, then its last value
    """
    for i in range(length):
        if value == value:
            value = ema(state[3 * i : 3 * i + 2], value, period)
        state[3 * i + 2] = value
