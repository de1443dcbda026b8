"""S14 unicorn rating: 21 named predicates ("stars") counted for the long and for the short side at a bar's close.

Each star reads columns of the groups before this one, so one table defines it completely. A star whose inputs are
missing is unknown, not false: the rating is the share of the known stars that are true for a side, times 21, and needs
at least `MIN_KNOWN` of them. `bellwether stars` measures the contribution of each star; none is assumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import BAR_WIDTH, CLOSE, OPEN, VOLUME, Floats
from pipelines.data.bar_clock import clocked
from pipelines.errors import BadShape, UnknownName
from pipelines.features.fold import Column, FeatureGroup
from pipelines.features.kernels import mean, push
from pipelines.layout import lay_out, window, zeros
from pipelines.signals.columns import SIGNAL_PARTS, signal_columns
from pipelines.signals.killzones import in_killzone

# The rule of a star on the sum of the columns it reads (those that are not missing), for side = 1 long, -1 short.
RECENT = 0  # side * sum > 0 on this bar or one of the seven before it
AGREES = 1  # side * sum > 0
BEYOND = 2  # side * sum < 0: price stands on the other side of a level, so there is room
STRONG = 3  # side * sum >= MIN_CONFLUENCE
UNOPPOSED = 4  # side * sum >= 0
CANDLE = 5  # sum >= 1, and the bar closed from its open towards the side
BARS = 8  # of RECENT
MIN_CONFLUENCE = 0.6  # S17's base
VOLUME_BARS = 20
# read from the bar itself: its volume over the mean of the 20 bars before; 1 if it opens in a killzone
OWN_VOLUME, OWN_CLOCK = "bar volume", "bar clock"


@dataclass(frozen=True, slots=True)
class Star:
    """Describe one predicate: its name, the condition for a side, its rule, and the columns it reads."""

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
MIN_KNOWN = 12  # stars whose inputs are there: with fewer there is no rating

STRUCTURE = ("sweep", "fvg", "order_block")  # whose levels a unicorn takes; the later wins on one bar
_RULES = np.array([star.rule for star in STARS])
_NONE, _VOLUME, _CLOCK = -1.0, -2.0, -3.0
_STAR_READS = 2  # columns a star reads at most
RECENT_FIELDS = ("bars_since_long", "bars_since_short", "bars_known")  # of each star, in the memory of `evaluate`
_SINCE = len(RECENT_FIELDS)
LEVEL_FIELDS = ("bars_since", "low", "high")  # of a side's newest structure signal
_LEVEL = len(LEVEL_FIELDS)
STRUCTURE_PARTS = ("direction", "low", "high")  # columns read of each structure signal
_STRUCTURE = len(STRUCTURE_PARTS)
(_RECENTS, _VOLUMES), _FRESH_MEMORY = lay_out(recents=zeros(_SINCE * N), volumes=window(VOLUME_BARS + 1))
MEMORY = _VOLUMES.stop
# state: positions of the columns read by the stars and by the structure signals; memory of `evaluate`; a side's levels;
# side that had the rating at the last bar (NaN = not known)
(_STARS_AT, _STRUCTURE_AT, _MEMORY, _LEVELS, _LEADER), _ = lay_out(
    stars_at=zeros(_STAR_READS * N), structure_at=zeros(_STRUCTURE * len(STRUCTURE)), memory=zeros(MEMORY),
    levels=zeros(2 * _LEVEL), leader=window(1),
)  # fmt: skip
OWN_COLUMNS = (
    *(f"unicorn.{part}" for part in SIGNAL_PARTS),
    "unicorn_rating_score", "stars.long", "stars.short", "stars.coverage",
)  # fmt: skip
WIDTH = len(OWN_COLUMNS)
_SIDE, _RATING, _LOW, _HIGH, _SCORE, _LONG, _SHORT, _COVERAGE = range(WIDTH)


@kernel
def evaluate(places: Floats, memory: Floats, bar: Floats, row: Floats, stars: Floats) -> None:
    """Evaluate one bar's stars.

    places  (42,) float64 positions in `row` of the columns a star reads, two a star; -1 none, -2 volume, -3 clock
    memory  (MEMORY,) float64 as `fresh_memory` returns it: of each star RECENT_FIELDS; 21 volumes
    bar     (CLOCKED_WIDTH,) float64, see data.bar_clock; row: columns of the groups before, of this bar, float64
    stars   (21, 2) float64, written: 1 true, 0 false, for long and for short; NaN = an input is missing or warms up
    """
    recents, volumes = memory[_RECENTS], memory[_VOLUMES]
    push(volumes, bar[VOLUME])
    candle = bar[CLOSE] - bar[OPEN]
    for i in range(N):
        value = np.nan
        if places[_STAR_READS * i] == _VOLUME:
            value = volumes[-1] / mean(volumes[:-1])
        elif places[_STAR_READS * i] == _CLOCK:
            value = in_killzone(bar)
        else:
            for k in range(_STAR_READS):
                if places[_STAR_READS * i + k] != _NONE:
                    column = row[int(places[_STAR_READS * i + k])]
                    if abs(column) < np.inf:  # a fold turns infinities into NaN only after its last group
                        value = column if value != value else value + column
        rule = _RULES[i]
        if rule == CANDLE and candle != candle:
            value = np.nan
        known = abs(value) < np.inf
        if rule == RECENT:
            ago = recents[_SINCE * i : _SINCE * (i + 1)]
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
def count(stars: Floats) -> tuple[float, float, float]:
    """Return (long, short, known) of (21, 2) float64 stars: how many are true for a side, of how many known ones."""
    long, short, known = 0.0, 0.0, 0.0
    for i in range(stars.shape[0]):
        if stars[i, 0] == stars[i, 0]:
            known += 1.0
            long += stars[i, 0]
            short += stars[i, 1]
    return long, short, known


@kernel
def step(state: Floats, bar: Floats, book: Floats, context: Floats, out: Floats) -> None:
    """Write the unicorn where a side first has the rating, its stars, and the share of the 21 that are known.

    arrays   float64: state (142,), bar (9,), book and context unread, out: the bar's whole row, own eight columns last
    reads    bar open_time, open, close, volume; columns of the groups before
    state    positions 51; memory of `evaluate` 84; levels 6; side that had the rating at the last bar 1
    """
    row, own = out[: out.shape[0] - WIDTH], out[out.shape[0] - WIDTH :]
    stars = np.empty((N, 2))
    evaluate(state[_STARS_AT], state[_MEMORY], bar, row, stars)
    structure, levels, leader = state[_STRUCTURE_AT], state[_LEVELS], state[_LEADER]
    levels[0], levels[_LEVEL] = min(levels[0] + 1.0, BARS), min(levels[_LEVEL] + 1.0, BARS)
    for i in range(0, structure.shape[0], _STRUCTURE):
        side = row[int(structure[i])]
        if abs(side) == 1.0:
            at = 0 if side > 0.0 else _LEVEL
            levels[at], levels[at + 1], levels[at + 2] = 0.0, row[int(structure[i + 1])], row[int(structure[i + 2])]

    own[:] = np.nan
    long, short, known = count(stars)
    own[_COVERAGE] = known / N
    if known < MIN_KNOWN:
        leader[0] = np.nan
        return
    lead = np.sign(long - short)
    best = max(long, short)
    rating = best / known * N
    side = lead if rating >= MIN_RATING else 0.0
    begins = side != 0.0 and side != leader[0] and leader[0] == leader[0]
    leader[0] = side
    own[_SIDE] = side if begins else 0.0
    if begins:
        own[_RATING] = rating
        at = 0 if side > 0.0 else _LEVEL
        if levels[at] < BARS:
            own[_LOW], own[_HIGH] = levels[at + 1], levels[at + 2]
    own[_SCORE] = lead * best
    own[_LONG], own[_SHORT] = long, short


@kernel
def _evaluate_all(places: Floats, memory: Floats, bars: Floats, rows: Floats, stars: Floats) -> None:
    """Fill stars (n, 21, 2) float64 for n clocked bars and rows (n, k) float64 in time order; memory is updated."""
    for i in range(bars.shape[0]):
        evaluate(places, memory, bars[i], rows[i], stars[i])


def history(bars: Floats, signals: Floats, columns: Sequence[str]) -> Floats:
    """Return (n, 21, 2) stars of n bars in time order, for long and short: 1 true, 0 false, NaN = unknown.

    bars     (n, 9) or (n, CLOCKED_WIDTH), as of `Fold.run`
    signals  (n, k) as the groups before wrote them, named by `columns`
    Raises   UnknownName for a column that a star reads and no group wrote, BadShape
    """
    if signals.shape != (len(bars), len(columns)):
        raise BadShape(f"signals {signals.shape}, wanted ({len(bars)}, {len(columns)}) of the same bars")
    stars = np.empty((len(bars), N, 2))
    bars = clocked(bars) if bars.shape[1] == BAR_WIDTH else bars
    bars, signals = np.require(bars, np.float64, ["C", "W"]), np.require(signals, np.float64, ["C", "W"])
    _evaluate_all(places(columns)[_STARS_AT], fresh_memory(), bars, signals, stars)
    return stars


def places(columns: Sequence[str]) -> Floats:
    """Return the positions in a row of the columns that the stars, then the structure signals' levels, read."""
    at = {name: float(i) for i, name in enumerate(columns)} | {OWN_VOLUME: _VOLUME, OWN_CLOCK: _CLOCK}
    wanted = [name for star in STARS for name in (*star.reads, None, None)[:_STAR_READS]]
    wanted += [f"{name}.{part}" for name in STRUCTURE for part in STRUCTURE_PARTS]
    unknown = sorted({name for name in wanted if name is not None and name not in at})
    if unknown:
        raise UnknownName(f"stars read {', '.join(unknown)}, which no group before them writes. Put it first.")
    return np.array([_NONE if name is None else at[name] for name in wanted])


def fresh_memory() -> Floats:
    """Return the memory of `evaluate` before the first bar, (MEMORY,) float64."""
    memory = _FRESH_MEMORY.copy()
    memory[_RECENTS] = np.tile([BARS, BARS, 0.0], N)
    return memory


def feature_group(before: Sequence[FeatureGroup]) -> FeatureGroup:
    """Return the stars over the groups before them in a fold. Raises UnknownName for a column none of them has.

    The positions of the columns are part of the state, so that no compiled code depends on their order.
    """
    columns = {column.name: column for each in before for column in each.columns}
    state = np.concatenate(
        [places(list(columns)), fresh_memory(), np.tile([BARS, np.nan, np.nan], 2).astype(float), [np.nan]]
    )
    first = {name: column.warmup for name, column in columns.items()} | {OWN_VOLUME: VOLUME_BARS + 1, OWN_CLOCK: 1}
    first_known = sorted(
        min(first[name] for name in star.reads) + (BARS - 1 if star.rule == RECENT else 0) for star in STARS
    )
    warmup = first_known[MIN_KNOWN - 1]
    return FeatureGroup("stars", step, _columns(warmup), state, combines=True)


def _columns(warmup: int) -> tuple[Column, ...]:
    """Return the eight columns of the stars.

    warmup  the bar by which enough stars are known where every input is recorded; with fewer inputs it is later
    """
    source = "ruling S14: 21 named predicates; from 15 a unicorn, from 18 a high one"
    formula = f"the bar on which the leading side first has {MIN_RATING:g} of {N}, of at least {MIN_KNOWN} known"
    return (
        *signal_columns(
            "unicorn", "cmt", warmup, f"stars of {N}", formula, source, high=float(N),
            levels="of the side's newest sweep, gap or order block within 8 bars",
        ),
        Column("unicorn_rating_score", "cmt", "stars", -float(N), float(N), warmup,
               "stars of the leading side, signed; 0 where neither leads", source),
        Column("stars.long", "cmt", "count", 0.0, float(N), warmup, "stars true for a rise", source),
        Column("stars.short", "cmt", "count", 0.0, float(N), warmup, "stars true for a fall", source),
        Column("stars.coverage", "cmt", f"share of {N}", 0.0, 1.0, 1, "stars whose inputs are known", source),
    )  # fmt: skip
