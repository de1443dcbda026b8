"""Timeframes: a finer series of bars becomes a coarser one, closed bars only, so nothing is read before it is known."""

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
    TIMEFRAME_SECONDS,
    TRADES,
    VOLUME,
    Floats,
)
from pipelines.errors import BadShape, BadTimes, UnknownName


def seconds(timeframe: str) -> int:
    """Return the length of a named timeframe in seconds. Raises UnknownName with the known names."""
    if timeframe not in TIMEFRAME_SECONDS:
        raise UnknownName(f"no timeframe {timeframe!r}; known: {', '.join(TIMEFRAME_SECONDS)}. Use one of these.")
    return TIMEFRAME_SECONDS[timeframe]


@kernel
def _resample(bars: Floats, target: float, seen_until: float, out: Floats) -> int:
    """Fill out (n, 9) from the top with bars of `target` seconds; return how many are closed at `seen_until`.

    bars (n, 9) and out float64; target in seconds, seen_until in epoch seconds, float64
    """
    made, quoted, total = -1, 0, 0.0  # base bars with a half spread in the newest bar, and their sum
    for i in range(bars.shape[0]):
        start = np.floor(bars[i, OPEN_TIME] / target) * target
        if start + target > seen_until:
            break
        if made < 0 or start != out[made, OPEN_TIME]:
            made += 1
            out[made, :] = bars[i, :]
            out[made, OPEN_TIME] = start
            known = bars[i, HALF_SPREAD] == bars[i, HALF_SPREAD]
            quoted, total = (1, bars[i, HALF_SPREAD]) if known else (0, 0.0)
            continue
        out[made, HIGH] = max(out[made, HIGH], bars[i, HIGH])
        out[made, LOW] = min(out[made, LOW], bars[i, LOW])
        out[made, CLOSE] = bars[i, CLOSE]
        out[made, VOLUME] += bars[i, VOLUME]
        out[made, TRADES] += bars[i, TRADES]
        out[made, TAKER_BUY] += bars[i, TAKER_BUY]
        if bars[i, HALF_SPREAD] == bars[i, HALF_SPREAD]:
            quoted, total = quoted + 1, total + bars[i, HALF_SPREAD]
            out[made, HALF_SPREAD] = total / quoted
    return made + 1


def resample(matrix: Floats, base_seconds: int, target_seconds: int) -> Floats:
    """Return bars of `base_seconds` as bars of `target_seconds`: first, max, min, last, sums, mean spread.

    matrix   (n, 9) in BAR_FIELDS order, ascending unique open times (epoch seconds UTC), finite prices
    Returns  (m, 9), stamped with the open time of the target slot (multiples of `target_seconds` since the epoch).
             A bar is returned only when its last base slot is over. Where base rows are missing inside a
             bar, it is made of the others; a target bar without any base row is absent.
             A sum over a NaN (volume, trades, taker_buy_volume) is NaN: part of it is unknown. half_spread is the
             mean of those recorded inside the bar, NaN where none was.
    Raises   BadShape if the matrix is not (n, 9); BadTimes if times do not ascend or the target is no multiple of base
    """
    if matrix.ndim != 2 or matrix.shape[1] != BAR_WIDTH:
        raise BadShape(f"bars have shape {matrix.shape}, expected (n, {BAR_WIDTH}). Use schemas.to_matrix(frame).")
    if base_seconds <= 0 or target_seconds < base_seconds or target_seconds % base_seconds:
        raise BadTimes(
            f"cannot make bars of {target_seconds} s from bars of {base_seconds} s: the target must be a whole "
            f"multiple of the base. Read a finer source or choose a coarser timeframe."
        )
    if len(matrix) == 0:
        return np.empty((0, BAR_WIDTH))
    times = matrix[:, OPEN_TIME]
    ascending = np.diff(times) > 0  # False for NaN too
    if not ascending.all() or not np.isfinite(times[0]):
        at = int(np.argmin(ascending)) + 1 if not ascending.all() else 0
        raise BadTimes(
            f"open_time does not ascend at row {at} of {len(times)}. Clean the bars with quality.assess first."
        )
    out = np.empty_like(matrix, order="C")
    made = _resample(np.ascontiguousarray(matrix), float(target_seconds), times[-1] + base_seconds, out)
    return out[:made].copy()


def infer_timeframe(open_times: Floats) -> str:
    """Return the name of the commonest spacing of `open_times` (epoch seconds, any order, copies ignored).

    Raises BadTimes when there are fewer than two times, or when the spacing is none of TIMEFRAME_SECONDS.
    """
    times = np.unique(open_times[np.isfinite(open_times)])
    if len(times) < 2:
        raise BadTimes(f"{len(times)} distinct open_time(s) do not show a timeframe; give it by name, e.g. '1m'.")
    steps, counts = np.unique(np.diff(times), return_counts=True)
    step = float(steps[np.argmax(counts)])
    for name, length in TIMEFRAME_SECONDS.items():
        if length == step:
            return name
    raise BadTimes(
        f"bars are mostly {step:g} s apart ({counts.max()} of {counts.sum()} steps), which is no known timeframe "
        f"({', '.join(f'{name} = {length} s' for name, length in TIMEFRAME_SECONDS.items())}). Resample them first."
    )
