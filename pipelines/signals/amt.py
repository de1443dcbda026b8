"""S12 auction market theory: is price inside a balance, was it thrown out of value, has it been accepted outside?

A balance is 48 bars within 7 ATR. Its value area holds 70 % of its volume: a profile over 32 price bins, grown from the
fullest bin to the fuller neighbour (upwards where they tie). If any of the 48 bars has no volume, every bar weighs the
same: the profile counts time.

amt_accumulation  this close returns into the value area of the balance (this bar in it) that the last was outside:
                  price is bought back from below value (long), sold back from above it (short)
amt_distribution  three closes in a row outside the value area of the balance before them: it is accepted there

amt_phase is a state machine. V is the value area of the balance it is about: renewed on every bar of ACCUMULATION that
is settled, and unchanged from the bar on which price leaves it. *Settled*: the last 48 bars are a balance and this
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

amt_phase_score is the direction and the size of the phase's lean:
UNKNOWN       0
ACCUMULATION  1/3 x (middle of V - close) / half its width: back to the middle
MANIPULATION  2/3 against the side it was thrown out on, a third of that less for each close outside in a row
DISTRIBUTION  1 on the side it was accepted, less 1/48 a bar
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, HIGH, LOW, VOLUME, Floats
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import ATR_STATE, atr, highest, lowest, push
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.candles import has_valid_prices
from pipelines.signals.columns import DIRECTION, HIGH_LEVEL, LOW_LEVEL, SIGNAL_PARTS, STRENGTH, signal_columns

BALANCE_BARS, BALANCE_ATR = 48, 7.0
PRICE_BINS, VALUE_SHARE = 32, 0.70
ACCEPTED = 3  # closes in a row outside, or quiet bars in a row inside
POKE_ATR = 0.1  # least wick beyond value, as of S3
LIMIT = BALANCE_BARS  # bars that MANIPULATION or DISTRIBUTION lasts at most: as long as the balance did
UNKNOWN, ACCUMULATION, MANIPULATION, DISTRIBUTION = 0.0, 1.0, 2.0, 3.0
PHASES = ("UNKNOWN", "ACCUMULATION", "MANIPULATION", "DISTRIBUTION")

MACHINE_FIELDS = ("phase", "side", "value_low", "value_high", "closes_outside", "quiet_bars", "bars_in_phase")
PHASE, SIDE, VALUE_LOW, VALUE_HIGH, OUTSIDE, QUIET, AGE = range(len(MACHINE_FIELDS))
AREA_FIELDS = ("bottom", "top", "span")  # of the value area at each of the last three bars, oldest first
BOTTOM, TOP, SPAN = range(len(AREA_FIELDS))
(ATR, LOWS, HIGHS, VOLUMES, CLOSES, AREAS, MACHINE), FRESH = lay_out(
    atr=zeros(ATR_STATE), lows=window(BALANCE_BARS), highs=window(BALANCE_BARS), volumes=window(BALANCE_BARS),
    closes=window(ACCEPTED), areas=window(len(AREA_FIELDS) * ACCEPTED), machine=zeros(len(MACHINE_FIELDS)),
)  # fmt: skip
SECOND = len(SIGNAL_PARTS)  # where amt_distribution's columns start
PHASE_OUT, SCORE_OUT = range(2 * SECOND, 2 * SECOND + 2)


@kernel
def value_area(lows: Floats, highs: Floats, volumes: Floats) -> tuple[float, float, float]:
    """Return (bottom, top, span) of bars: their value area and whole span, price units; NaN if a price is missing.

    lows, highs, volumes  (w,) float64
    """
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
def _turn(
    machine: Floats,
    high: float,
    low: float,
    close: float,
    reach: float,
    bottom: float,
    top: float,
    balanced: bool,
) -> None:
    """Advance the state machine by one bar.

    machine        (7,) float64 in the order of MACHINE_FIELDS, updated
    bottom, top    value area of the last 48 bars, price units; balanced: whether they are a balance
    """
    phase, side, value_low, value_high = machine[PHASE], machine[SIDE], machine[VALUE_LOW], machine[VALUE_HIGH]
    settled = balanced and bottom <= close <= top
    machine[AGE] += 1.0
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
            machine[SIDE] = where if where != 0.0 else side
            machine[OUTSIDE], machine[QUIET] = abs(where), 0.0
        elif settled and (0.5 * (bottom + top) - edge) * side > 0.0:
            rest = True
    elif where != 0.0:
        machine[OUTSIDE] = machine[OUTSIDE] + 1.0 if where == side else 1.0
        machine[SIDE], machine[QUIET] = where, 0.0
        following = DISTRIBUTION if machine[OUTSIDE] >= ACCEPTED else MANIPULATION
    elif max(above, below) >= POKE_ATR * reach:
        following = MANIPULATION
        machine[SIDE], machine[OUTSIDE], machine[QUIET] = 1.0 if above >= below else -1.0, 0.0, 0.0
    elif phase == MANIPULATION:
        machine[OUTSIDE] = 0.0
        machine[QUIET] += 1.0
        rest = machine[QUIET] >= ACCEPTED
    else:
        rest = True
    if rest:
        following = ACCUMULATION if balanced else UNKNOWN
        machine[SIDE], machine[OUTSIDE], machine[QUIET] = 0.0, 0.0, 0.0
        if settled:
            machine[VALUE_LOW], machine[VALUE_HIGH] = bottom, top
    elif following == phase and machine[AGE] >= LIMIT:
        following = UNKNOWN
    if following != phase:
        machine[PHASE], machine[AGE] = following, 0.0


@kernel
def _score(machine: Floats, close: float) -> float:
    """Return the lean of the phase, -1 … 1; machine (7,) float64."""
    phase, side = machine[PHASE], machine[SIDE]
    if phase == ACCUMULATION:
        middle, half = (
            0.5 * (machine[VALUE_LOW] + machine[VALUE_HIGH]),
            0.5 * (machine[VALUE_HIGH] - machine[VALUE_LOW]),
        )
        lean: float = max(-1.0, min(1.0, (middle - close) / half)) / 3.0
        return lean
    if phase == MANIPULATION:
        against: float = -side * (2.0 / 3.0) * (1.0 - machine[OUTSIDE] / ACCEPTED)
        return against
    if phase == DISTRIBUTION:
        following: float = side * (1.0 - machine[AGE] / LIMIT)
        return following
    return 0.0


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write both signals at this close, the phase and its lean.

    arrays   float64: state (166,), bar (9,), book and context unread, out (10,)
    reads    bar high, low, close, volume (NaN or 0 = the profile counts time)
    state    ATR 3; windows of 48 lows, highs, volumes (NaN when fresh); last 3 closes; last 3 value areas x (bottom,
             top, span); machine: phase, side (-1 below V, 1 above), bottom and top of V, closes outside in a row, quiet
             bars in a row, bars since the phase began
    NaN      while it warms up; a bar without valid prices is missing and changes no state
    """
    high, low, close = bar[HIGH], bar[LOW], bar[CLOSE]
    out[:] = np.nan
    distribution = out[SECOND:]
    if not has_valid_prices(high, low, close):
        return
    reach = atr(state[ATR], high, low, close)
    lows, highs, volumes = state[LOWS], state[HIGHS], state[VOLUMES]
    push(lows, low)
    push(highs, high)
    push(volumes, bar[VOLUME])
    closes, areas, machine = state[CLOSES], state[AREAS], state[MACHINE]
    before = closes[ACCEPTED - 1]
    if lows[0] == lows[0]:
        bottom, top, span = value_area(lows, highs, volumes)
        balanced = 0.0 < span <= BALANCE_ATR * reach
        out[DIRECTION] = 0.0
        if balanced and bottom <= close <= top and not bottom <= before <= top:
            if before < bottom:
                out[DIRECTION], out[STRENGTH] = 1.0, (bottom - before) / reach
            else:
                out[DIRECTION], out[STRENGTH] = -1.0, (before - top) / reach
            out[LOW_LEVEL], out[HIGH_LEVEL] = bottom, top
        if areas[BOTTOM] == areas[BOTTOM]:
            distribution[DIRECTION] = 0.0
            if 0.0 < areas[SPAN] <= BALANCE_ATR * reach and areas[BOTTOM] <= closes[0] <= areas[TOP]:
                up, down = close > areas[TOP], close < areas[BOTTOM]
                for i in range(1, ACCEPTED):
                    up, down = up and closes[i] > areas[TOP], down and closes[i] < areas[BOTTOM]
                if up or down:
                    beyond = close - areas[TOP] if up else areas[BOTTOM] - close
                    distribution[DIRECTION], distribution[STRENGTH] = 1.0 if up else -1.0, beyond / reach
                    distribution[LOW_LEVEL], distribution[HIGH_LEVEL] = areas[BOTTOM], areas[TOP]
        _turn(machine, high, low, close, reach, bottom, top, balanced)
        out[PHASE_OUT] = machine[PHASE]
        out[SCORE_OUT] = _score(machine, close)
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
    FRESH,
)  # fmt: skip
