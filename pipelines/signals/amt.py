"""S12 auction market theory: is price inside a balance, was it thrown out of value, has it been accepted outside?

A balance is 48 bars within 7 ATR. Its value area holds 70 % of its volume: a profile over 32 price bins, grown from the
fullest bin to the fuller neighbour (upwards where they tie). If any of the 48 bars has no volume, every bar weighs the
same: the profile counts time.

amt_accumulation  this close returns into the value area of the balance (this bar in it) that the last was outside:
                  price is bought back from below value (long), sold back from above it (short)
amt_distribution  three closes in a row outside the value area of the balance before them: it is accepted there

amt_phase is a state machine. V is the value area of the balance it is about: renewed on every bar of ACCUMULATION that
is settled, and kept as it is from the bar on which price leaves it. *Settled*: the last 48 bars are a balance and this
close is inside their value area. A *poke* is a bar that closes inside V and has a wick at least 0.1 ATR beyond it; a
*quiet* bar closes inside without one.

from          to            when (the first that holds)
UNKNOWN       ACCUMULATION  settled
ACCUMULATION  MANIPULATION  a close outside V, or a poke
ACCUMULATION  UNKNOWN       the last 48 bars are no balance any more
MANIPULATION  DISTRIBUTION  the third close in a row outside V on the same side
MANIPULATION  ACCUMULATION  the third quiet bar in a row after its first, and the last 48 bars are a balance
MANIPULATION  UNKNOWN       the third quiet bar in a row, and they are none; or 48 bars after it began
DISTRIBUTION  MANIPULATION  a close back inside V, or beyond its other edge: the move away has failed
DISTRIBUTION  ACCUMULATION  settled, and the middle of the new value area is beyond the edge of V that was left: value
                            has followed price
DISTRIBUTION  UNKNOWN       48 bars after it began

The phase thus depends on bars before the last 48: on the balance that price left, and on how it was entered.

amt_phase_score says which way the phase leans and how much:
UNKNOWN       0
ACCUMULATION  1/3 x (middle of V - close) / half its width: back to the middle
MANIPULATION  2/3 against the side it was thrown out on, a third of that less for each close outside in a row
DISTRIBUTION  1 on the side it was accepted, less 1/48 a bar
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, VOLUME
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, highest, lowest, push
from pipelines.signals.candles import has_valid_prices
from pipelines.signals.columns import signal_columns

BALANCE_BARS, BALANCE_ATR = 48, 7.0
PRICE_BINS, VALUE_SHARE = 32, 0.70
ACCEPTED = 3  # closes in a row outside, or quiet bars in a row inside
POKE_ATR = 0.1  # least wick beyond value, as of S3
LIMIT = BALANCE_BARS  # bars that MANIPULATION or DISTRIBUTION lasts at most: as long as the balance did
UNKNOWN, ACCUMULATION, MANIPULATION, DISTRIBUTION = 0.0, 1.0, 2.0, 3.0
PHASES = ("UNKNOWN", "ACCUMULATION", "MANIPULATION", "DISTRIBUTION")

# where the parts of the state start
LOWS = ATR_STATE
HIGHS = LOWS + BALANCE_BARS
VOLUMES = HIGHS + BALANCE_BARS
CLOSES = VOLUMES + BALANCE_BARS  # of the last three bars
AREAS = CLOSES + ACCEPTED  # bottom, top, span at each of them, oldest first
MACHINE = AREAS + 3 * ACCEPTED  # phase, side, bottom and top of V, closes outside, quiet bars, bars in this phase
SIZE = MACHINE + 7


@kernel
def value_area(lows, highs, volumes):  # type: ignore[no-untyped-def]
    """(bottom, top) of the value area of some bars and their whole span, price units; NaN if a price is missing."""
    floor, ceiling = lowest(lows), highest(highs)
    width = (ceiling - floor) / PRICE_BINS
    if not width > 0.0:
        return floor, ceiling, ceiling - floor
    counted = True
    for volume in volumes:
        counted = counted and volume > 0.0
    profile = np.zeros(PRICE_BINS)
    total = 0.0
    for i in range(lows.shape[0]):
        first = min(int((lows[i] - floor) / width), PRICE_BINS - 1)
        final = min(int((highs[i] - floor) / width), PRICE_BINS - 1)
        volume = volumes[i] if counted else 1.0
        share = volume / (final - first + 1)
        for b in range(first, final + 1):
            profile[b] += share
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
    return floor + low * width, floor + (high + 1) * width, ceiling - floor


@kernel
def _turn(machine, high, low, close, reach, bottom, top, balanced):  # type: ignore[no-untyped-def]
    """Take the machine one bar on; bottom, top, balanced: value area of the last 48 bars, and are they a balance?"""
    phase, side, value_low, value_high = machine[0], machine[1], machine[2], machine[3]
    settled = balanced and bottom <= close <= top
    machine[6] += 1.0
    where = 0.0  # the side of V this close is on
    if close > value_high:
        where = 1.0
    elif close < value_low:
        where = -1.0
    above, below = high - value_high, value_low - low
    following, rest = phase, False  # rest: ACCUMULATION where there is a balance, else UNKNOWN
    if phase == UNKNOWN:
        rest, balanced = True, settled
    elif phase == DISTRIBUTION:
        edge = value_high if side > 0.0 else value_low
        if where != side:
            following = MANIPULATION
            machine[1] = where if where != 0.0 else side
            machine[4], machine[5] = abs(where), 0.0
        elif settled and (0.5 * (bottom + top) - edge) * side > 0.0:
            rest = True
    elif where != 0.0:
        machine[4] = machine[4] + 1.0 if where == side else 1.0
        machine[1], machine[5] = where, 0.0
        following = DISTRIBUTION if machine[4] >= ACCEPTED else MANIPULATION
    elif max(above, below) >= POKE_ATR * reach:
        following = MANIPULATION
        machine[1], machine[4], machine[5] = 1.0 if above >= below else -1.0, 0.0, 0.0
    elif phase == MANIPULATION:
        machine[4] = 0.0
        machine[5] += 1.0
        rest = machine[5] >= ACCEPTED
    else:
        rest = True
    if rest:
        following = ACCUMULATION if balanced else UNKNOWN
        machine[1], machine[4], machine[5] = 0.0, 0.0, 0.0
        if settled:
            machine[2], machine[3] = bottom, top
    elif following == phase and machine[6] >= LIMIT:
        following = UNKNOWN
    if following != phase:
        machine[0], machine[6] = following, 0.0


@kernel
def _score(machine, close):  # type: ignore[no-untyped-def]
    """Lean of the phase, -1 … 1."""
    phase, side = machine[0], machine[1]
    if phase == ACCUMULATION:
        middle, half = 0.5 * (machine[2] + machine[3]), 0.5 * (machine[3] - machine[2])
        return max(-1.0, min(1.0, (middle - close) / half)) / 3.0
    if phase == MANIPULATION:
        return -side * (2.0 / 3.0) * (1.0 - machine[4] / ACCEPTED)
    if phase == DISTRIBUTION:
        return side * (1.0 - machine[6] / LIMIT)
    return 0.0


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """Both signals at this close, the phase and its lean.

    reads    bar high, low, close, volume (NaN or 0 = the profile counts time)
    state    ATR 3; windows of 48 lows, highs, volumes (NaN when fresh); last 3 closes; last 3 value areas x (bottom,
             top, span); machine: phase, side (-1 below V, 1 above), bottom and top of V, closes outside in a row, quiet
             bars in a row, bars since the phase began
    NaN      while it warms up; a bar without sound prices is missing and leaves no trace
    """
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    out[:] = np.nan
    if not has_valid_prices(high, low, close):
        return
    reach = atr(state[0:ATR_STATE], high, low, close)
    push(state[LOWS:HIGHS], low)
    push(state[HIGHS:VOLUMES], high)
    push(state[VOLUMES:CLOSES], bar[VOLUME])
    closes, areas = state[CLOSES:AREAS], state[AREAS:MACHINE]
    before = closes[ACCEPTED - 1]
    if state[LOWS] == state[LOWS]:
        bottom, top, span = value_area(state[LOWS:HIGHS], state[HIGHS:VOLUMES], state[VOLUMES:CLOSES])
        balanced = 0.0 < span <= BALANCE_ATR * reach
        out[0] = 0.0
        if balanced and bottom <= close <= top and not bottom <= before <= top:
            if before < bottom:
                out[0], out[1] = 1.0, (bottom - before) / reach
            else:
                out[0], out[1] = -1.0, (before - top) / reach
            out[2], out[3] = bottom, top
        if areas[0] == areas[0]:
            out[4] = 0.0
            if 0.0 < areas[2] <= BALANCE_ATR * reach and areas[0] <= closes[0] <= areas[1]:
                up, down = close > areas[1], close < areas[0]
                for i in range(1, ACCEPTED):
                    up, down = up and closes[i] > areas[1], down and closes[i] < areas[0]
                if up or down:
                    out[4], out[5] = (1.0, (close - areas[1]) / reach) if up else (-1.0, (areas[0] - close) / reach)
                    out[6], out[7] = areas[0], areas[1]
        _turn(state[MACHINE:SIZE], high, low, close, reach, bottom, top, balanced)
        out[8] = state[MACHINE]
        out[9] = _score(state[MACHINE:SIZE], close)
        push(areas, bottom)
        push(areas, top)
        push(areas, span)
    push(closes, close)


SOURCE = "auction market theory (Steidlmayer; Dalton, Mind over Markets 1990), ruling S12"
GROUP = FeatureGroup(
    "amt",
    step,
    (
        *signal_columns(
            "amt_accumulation", "cmt", BALANCE_BARS, "ATR",
            "this close returns into the 70 % value area of 48 bars within 7 ATR; how far outside the last close was",
            SOURCE, levels="edges of the value area",
        ),
        *signal_columns(
            "amt_distribution", "cmt", BALANCE_BARS + ACCEPTED, "ATR",
            "three closes in a row outside the 70 % value area of the 48 bars within 7 ATR before them; how far outside"
            " it this close is", SOURCE, levels="edges of the value area left behind",
        ),
        Column(
            "amt_phase", "cmt", "0 UNKNOWN 1 ACCUMULATION 2 MANIPULATION 3 DISTRIBUTION", 0.0, 3.0, BALANCE_BARS,
            "state machine on value area and balance (signals/amt.py)", SOURCE,
        ),
        Column(
            "amt_phase_score", "cmt", "lean", -1.0, 1.0, BALANCE_BARS,
            "1/3 to the middle of value, 2/3 against a poke, 1 with a move accepted, fading over 48 bars", SOURCE,
        ),
    ),
    np.concatenate([np.zeros(ATR_STATE), np.full(MACHINE - ATR_STATE, np.nan), np.zeros(SIZE - MACHINE)]),
)  # fmt: skip
