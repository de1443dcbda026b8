"""S14 unicorn rating: 21 named predicates ("stars") counted for the long and for the short side at a bar's close.

Each star reads columns of the families before this one, so one table says all that there is to know of it. A star whose
inputs are missing is unknown, not false: the rating is the share of the known stars that speak for a side, times 21,
and needs at least `MIN_KNOWN` of them. What each star is worth is measured by `bellwether stars`, never assumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, OPEN, OPEN_TIME, VOLUME, Floats
from pipelines.errors import BadShape, UnknownName
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import mean, push
from pipelines.signals.columns import signal_columns
from pipelines.signals.order_block import LONDON, NEW_YORK

# How a star judges the sum of the columns it reads (those of them that are there), for side = 1 long, -1 short.
RECENT = 0  # side * sum > 0 on this bar or one of the seven before it
AGREES = 1  # side * sum > 0
BEYOND = 2  # side * sum < 0: price stands on the other side of a level, so there is room
STRONG = 3  # side * sum >= MIN_CONFLUENCE
UNOPPOSED = 4  # side * sum >= 0
CANDLE = 5  # sum >= 1, and the bar closed from its open towards the side
BARS = 8  # of RECENT
MIN_CONFLUENCE = 0.6  # S17's base
VOLUME_BARS = 20
# read of the bar itself: its volume over the mean of the 20 bars before; 1 if it opens in a killzone
OWN_VOLUME, OWN_CLOCK = "bar volume", "bar clock"


@dataclass(frozen=True, slots=True)
class Star:
    """One predicate: its name, what makes it true for a side, how it judges, and the columns it reads."""

    name: str
    definition: str
    rule: int
    reads: tuple[str, ...]


STARS: tuple[Star, ...] = (
    Star("order_block", "an order block of this side within 8 bars", RECENT, ("order_block.direction",)),
    Star("fair_value_gap", "a fair-value gap of this side within 8 bars", RECENT, ("fvg.direction",)),
    Star("liquidity_sweep", "the other side's liquidity swept within 8 bars", RECENT, ("sweep.direction",)),
    Star("cisd", "the state of delivery changed to this side within 8 bars", RECENT, ("cisd.direction",)),
    Star("smt_divergence", "swings diverged from the reference symbol's within 8 bars", RECENT, ("smt.direction",)),
    Star("crt", "the last candle's range swept and re-entered within 8 bars", RECENT, ("crt.direction",)),
    Star("amt_accumulation", "a return into value within 8 bars", RECENT, ("amt_accumulation.direction",)),
    Star("amt_distribution", "acceptance outside value within 8 bars", RECENT, ("amt_distribution.direction",)),
    Star("discount_premium", "below the middle of the last higher-timeframe candle to buy, above it to sell", BEYOND,
         ("crt_level_score",)),
    Star("confluence", "timeframes agree by at least 0.6", STRONG, ("confluence.score",)),
    Star("amt_phase", "the auction's phase leans to this side", AGREES, ("amt_phase_score",)),
    Star("cvd", "cumulative delta of 20 bars is on this side", AGREES, ("cvd.direction",)),
    Star("effort_without_result", "absorption or a divergence of cumulative delta within 8 bars", RECENT,
         ("absorption.direction", "cvd_divergence.direction")),
    Star("order_flow_imbalance", "the book's events pressed to this side", AGREES, ("ofi.direction",)),
    Star("depth", "footprint or heatmap leans to this side, and the other not against it", AGREES,
         ("footprint.direction", "heatmap.direction")),
    Star("smart_money", "smart money drove a bar to this side within 8 bars", RECENT, ("smart_money.direction",)),
    Star("institutional_flow", "large trades or excited arrivals are on this side, and the other not against it",
         AGREES, ("institutional.direction", "hawkes.direction")),
    Star("killzone", "a candle of this side in a killzone", CANDLE, (OWN_CLOCK,)),
    Star("volume", "a candle of this side on at least the mean volume of 20 bars", CANDLE, (OWN_VOLUME,)),
    Star("trend", "mean of 20 closes on this side of the mean of 50", AGREES, ("ma_cross.direction",)),
    Star("sentiment", "funding with fear and greed does not oppose", UNOPPOSED,
         ("funding.direction", "fear_greed.direction")),
)  # fmt: skip
N = len(STARS)
MIN_RATING = 15.0  # of 21
HIGH_RATING = 18.0
MIN_KNOWN = 12  # stars whose inputs are there: with fewer, 21 predicates were not asked

STRUCTURE = ("sweep", "fvg", "order_block")  # whose levels a unicorn speaks of; the later wins on one bar
_RULES = np.array([star.rule for star in STARS])
_NONE, _VOLUME, _CLOCK = -1.0, -2.0, -3.0
# state: where the columns stand (2 a star, 3 a structure signal), then the memory of `evaluate`, then of `step`
_STRUCTURE_AT = 2 * N
_MEMORY_AT = _STRUCTURE_AT + 3 * len(STRUCTURE)
MEMORY = 3 * N + VOLUME_BARS + 1
_LEVELS_AT = _MEMORY_AT + MEMORY  # a side: bars since, low, high of its newest structure signal
_HELD_AT = _LEVELS_AT + 6  # side that had the rating at the last bar; NaN = not known
WIDTH = 8  # columns


@kernel
def evaluate(places, memory, bar, row, stars):  # type: ignore[no-untyped-def]
    """Judge one bar's stars.

    places  (42,) positions in `row` of the columns a star reads, two a star; -1 none, -2 its volume, -3 its clock
    memory  (MEMORY,) as `fresh_memory` gives it: a star bars since it was said long, short, and bars known; 21 volumes
    row     columns of the families before, of this bar
    stars   (21, 2) written: 1 true, 0 false, for long and for short; NaN = an input is missing or warms up
    """
    volumes = memory[3 * N : 3 * N + VOLUME_BARS + 1]
    push(volumes, bar[VOLUME])
    candle = bar[CLOSE] - bar[OPEN]
    for i in range(N):
        value = np.nan
        if places[2 * i] == _VOLUME:
            value = volumes[-1] / mean(volumes[:-1])
        elif places[2 * i] == _CLOCK:
            hour = bar[OPEN_TIME] / 3600.0 % 24.0
            inside = LONDON[0] <= hour < LONDON[1] or NEW_YORK[0] <= hour < NEW_YORK[1]
            value = (1.0 if inside else 0.0) + (hour - hour)
        else:
            for k in range(2):
                if places[2 * i + k] != _NONE:
                    said = row[int(places[2 * i + k])]
                    if abs(said) < np.inf:  # a fold makes NaN of what is not finite only after its last family
                        value = said if value != value else value + said
        rule = _RULES[i]
        if rule == CANDLE and candle != candle:
            value = np.nan
        known = abs(value) < np.inf
        if rule == RECENT:
            ago = memory[3 * i : 3 * i + 3]
            ago[2] = min(ago[2] + 1.0, BARS) if known else 0.0
            known = ago[2] == BARS
        for s in range(2):
            side = 1.0 - 2.0 * s
            true = False
            if rule == RECENT:
                ago[s] = 0.0 if side * value > 0.0 else min(ago[s] + 1.0, BARS)
                true = ago[s] < BARS
            elif rule == AGREES:
                true = side * value > 0.0
            elif rule == BEYOND:
                true = side * value < 0.0
            elif rule == STRONG:
                true = side * value >= MIN_CONFLUENCE
            elif rule == UNOPPOSED:
                true = side * value >= 0.0
            else:
                true = value >= 1.0 and side * candle > 0.0
            stars[i, s] = np.nan
            if known:
                stars[i, s] = 1.0 if true else 0.0


@kernel
def count(stars):  # type: ignore[no-untyped-def]
    """(long, short, known) of (21, 2) stars: how many speak for a side, of how many whose inputs are there."""
    long, short, known = 0.0, 0.0, 0.0
    for i in range(stars.shape[0]):
        if stars[i, 0] == stars[i, 0]:
            known += 1.0
            long += stars[i, 0]
            short += stars[i, 1]
    return long, short, known


@kernel
def step(state, bar, book, context, out):  # type: ignore[no-untyped-def]
    """The unicorn where a side first has the rating, its stars, and the share of the 21 that could be judged.

    reads    bar open_time, open, close, volume; columns of the families before
    state    places 51; memory of `evaluate` 84; levels 6; side that had the rating at the last bar 1
    """
    row, own = out[: out.shape[0] - WIDTH], out[out.shape[0] - WIDTH :]
    stars = np.empty((N, 2))
    evaluate(state[:_STRUCTURE_AT], state[_MEMORY_AT:_LEVELS_AT], bar, row, stars)
    levels = state[_LEVELS_AT:_HELD_AT]
    levels[0], levels[3] = min(levels[0] + 1.0, BARS), min(levels[3] + 1.0, BARS)
    for i in range(_STRUCTURE_AT, _MEMORY_AT, 3):
        said = row[int(state[i])]
        if abs(said) == 1.0:
            at = 0 if said > 0.0 else 3
            levels[at], levels[at + 1], levels[at + 2] = 0.0, row[int(state[i + 1])], row[int(state[i + 2])]

    own[:] = np.nan
    long, short, known = count(stars)
    own[7] = known / N
    if known < MIN_KNOWN:
        state[_HELD_AT] = np.nan
        return
    lead = np.sign(long - short)
    best = max(long, short)
    rating = best / known * N
    side = lead if rating >= MIN_RATING else 0.0
    anew = side != 0.0 and side != state[_HELD_AT] and state[_HELD_AT] == state[_HELD_AT]
    state[_HELD_AT] = side
    own[0] = side if anew else 0.0
    if anew:
        own[1] = rating
        at = 0 if side > 0.0 else 3
        if levels[at] < BARS:
            own[2], own[3] = levels[at + 1], levels[at + 2]
    own[4] = lead * best
    own[5], own[6] = long, short


@kernel
def _walk(places, memory, bars, rows, stars):  # type: ignore[no-untyped-def]
    for i in range(bars.shape[0]):
        evaluate(places, memory, bars[i], rows[i], stars[i])


def history(bars: Floats, signals: Floats, columns: Sequence[str]) -> Floats:
    """(n, 21, 2) stars of n bars in time order, for long and short: 1 true, 0 false, NaN = unknown.

    bars     (n, 8); signals (n, k) what the families before wrote, named by `columns`
    Raises   UnknownName for a column that a star reads and nobody wrote, BadShape
    """
    if signals.shape != (len(bars), len(columns)):
        raise BadShape(f"signals {signals.shape}, wanted ({len(bars)}, {len(columns)}) of the same bars")
    stars = np.empty((len(bars), N, 2))
    bars, signals = np.require(bars, np.float64, ["C", "W"]), np.require(signals, np.float64, ["C", "W"])
    _walk(places(columns)[:_STRUCTURE_AT], fresh_memory(), bars, signals, stars)
    return stars


def places(columns: Sequence[str]) -> Floats:
    """Positions in a row of the columns that the stars, then the structure signals' levels, read."""
    at = {name: float(i) for i, name in enumerate(columns)} | {OWN_VOLUME: _VOLUME, OWN_CLOCK: _CLOCK}
    wanted = [name for star in STARS for name in (*star.reads, None, None)[:2]]
    wanted += [f"{name}.{part}" for name in STRUCTURE for part in ("direction", "low", "high")]
    unknown = sorted({name for name in wanted if name is not None and name not in at})
    if unknown:
        raise UnknownName(f"stars read {', '.join(unknown)}, which no family before them writes; put theirs first")
    return np.array([_NONE if name is None else at[name] for name in wanted])


def fresh_memory() -> Floats:
    """The memory of `evaluate` before the first bar."""
    return np.concatenate([np.tile([BARS, BARS, 0.0], N), np.full(VOLUME_BARS + 1, np.nan)])


def feature_group(before: Sequence[FeatureGroup]) -> FeatureGroup:
    """The stars over the families that stand before them in a fold. Raises UnknownName for a column none of them has.

    Where the columns stand is part of the state, so that no compiled code depends on their order.
    """
    columns = {column.name: column for each in before for column in each.columns}
    state = np.concatenate(
        [places(list(columns)), fresh_memory(), np.tile([BARS, np.nan, np.nan], 2).astype(float), [np.nan]]
    )
    first = {name: column.warmup for name, column in columns.items()} | {OWN_VOLUME: VOLUME_BARS + 1, OWN_CLOCK: 1}
    begins = sorted(
        min(first[name] for name in star.reads) + (BARS - 1 if star.rule == RECENT else 0) for star in STARS
    )
    warmup = begins[MIN_KNOWN - 1]
    return FeatureGroup("stars", step, _columns(warmup), state, combines=True)


def _columns(warmup: int) -> tuple[Column, ...]:
    """warmup: the bar by which enough stars are known where every input is there; with fewer inputs it is later."""
    source = "ruling S14: 21 named predicates; from 15 a unicorn, from 18 a high one"
    spoken = f"the bar on which the leading side first has {MIN_RATING:g} of {N}, counted of at least {MIN_KNOWN} known"
    return (
        *signal_columns(
            "unicorn", "cmt", warmup, f"stars of {N}", spoken, source, high=float(N),
            levels="of the side's newest sweep, gap or order block within 8 bars",
        ),
        Column("unicorn_rating_score", "cmt", "stars", -float(N), float(N), warmup,
               "stars of the leading side, signed; 0 where neither leads", source),
        Column("stars.long", "cmt", "count", 0.0, float(N), warmup, "stars that speak for a rise", source),
        Column("stars.short", "cmt", "count", 0.0, float(N), warmup, "stars that speak for a fall", source),
        Column("stars.coverage", "cmt", f"share of {N}", 0.0, 1.0, 1, "stars whose inputs are there", source),
    )  # fmt: skip
