"""The contribution of each of the 21 stars (S14) on a history: how often it is true, and its lift with an interval.

Lift: mean return over the labels' horizon in the direction of the star's side where it is true, less the mean where it
is false. Both sides of a bar count, so a drift of the market adds nothing to a star. Nothing is fitted or chosen here.
"""

from dataclasses import asdict, dataclass

import numpy as np

from pipelines.contracts import OPEN_TIME, Estimate, Floats, JsonObject, json_ready
from pipelines.errors import BadShape
from pipelines.evaluation.intervals import measure
from pipelines.evaluation.signals import Grids
from pipelines.labels.horizon import forward_returns
from pipelines.params import Params
from pipelines.signals.stars import HIGH_RATING, MIN_KNOWN, MIN_RATING, STARS, N

LEAST_BLOCKS = 10  # stretches of two horizons in which a star is true: fewer do not measure the spread between them


@dataclass(frozen=True, slots=True)
class Contribution:
    """Hold the contribution of one star, or of a rating from a number of stars on. Counts are of bar × side.

    known       count with its inputs available; true: count where it is true
    prevalence  true / known; NaN if it is never known
    lift_bps    its n counts those with a return to the horizon; NaN if it is always or never true; its bounds are NaN
                if it is true, or false, in fewer than LEAST_BLOCKS stretches of `block_bars`
    """

    name: str
    definition: str
    known: int
    true: int
    prevalence: float
    lift_bps: Estimate


@dataclass(frozen=True, slots=True)
class Contributions:
    """Hold all contributions on one history; of the `measured` stars one in twenty excludes zero by luck."""

    bars: int
    horizon_bars: int
    block_bars: int
    stars: tuple[Contribution, ...]
    ratings: tuple[Contribution, ...]

    @property
    def measured(self) -> int:
        """Return the number of stars with an interval."""
        return sum(bool(np.isfinite(star.lift_bps.low)) for star in self.stars)

    @property
    def excluding_zero(self) -> tuple[str, ...]:
        """Return the stars whose interval excludes zero."""
        return tuple(star.name for star in self.stars if star.lift_bps.low > 0.0 or star.lift_bps.high < 0.0)

    def to_dict(self) -> JsonObject:
        """Return the contributions JSON-ready; None where a figure is unknown."""
        found: JsonObject = json_ready(asdict(self))
        by_chance = round(0.05 * self.measured, 2)
        return found | {
            "measured": self.measured, "excluding_zero": list(self.excluding_zero), "expected_by_chance": by_chance,
        }  # fmt: skip


def measure_contributions(truth: Floats, decision: Floats, base: Floats, grids: Grids, params: Params) -> Contributions:
    """Measure every star and the ratings from 15 and from 18.

    truth     (n, 21, 2) of `signals.stars.history` for the n decision bars
    decision  (n, 9) bars; base (m, 9) bars they were made of, or the same; `grids` of both
    Raises    BadShape
    """
    n = len(decision)
    if truth.shape != (n, N, 2) or n == 0:
        raise BadShape(f"stars {truth.shape}, expected ({n}, {N}, 2) with at least one decision bar")
    horizon = params.labels.horizon_bars
    grid, base_grid = grids
    closes = grid.closes(decision[:, OPEN_TIME])
    ahead = forward_returns(base, base_grid, closes, grid.deadline(closes, horizon)).gross_bps
    block = 2 * horizon  # bars of one stretch share most of their horizon
    rated = ratings(truth)
    by_star = [(star.name, star.definition, truth[:, i]) for i, star in enumerate(STARS)]
    by_rating = [
        (
            f"rating >= {least:g}",
            f"of {N}, counted of the known stars",
            np.where(np.isnan(rated), np.nan, rated >= least),
        )
        for least in (MIN_RATING, HIGH_RATING)
    ]
    found = [_contribution(*row, ahead, block) for row in by_star + by_rating]
    return Contributions(n, horizon, block, tuple(found[:N]), tuple(found[N:]))


def ratings(truth: Floats) -> Floats:
    """Return (n, 2) ratings: each side's share of true among known stars, times 21; NaN under MIN_KNOWN known ones."""
    known = (~np.isnan(truth[:, :, 0])).sum(axis=1)
    share = np.nansum(truth, axis=1) / np.maximum(known, 1)[:, np.newaxis]
    return np.where((known >= MIN_KNOWN)[:, np.newaxis], N * share, np.nan)


def _contribution(name: str, definition: str, truth: Floats, ahead: Floats, block: int) -> Contribution:
    """Measure truth (n, 2) of {0, 1, NaN} against ahead (n,) bps of a long position, NaN beyond the horizon."""
    available = ~np.isnan(truth)
    known, true = int(available.sum()), int(np.nansum(truth))
    prevalence = true / known if known else float("nan")
    sided = np.column_stack([ahead, -ahead])
    counted = available & ~np.isnan(sided)
    is_true, is_false = counted & (truth == 1.0), counted & (truth == 0.0)
    # per bar: how many of its two sides are true or false, and their returns
    parts = [is_true.sum(axis=1), is_false.sum(axis=1)]
    parts += [np.where(each, sided, 0.0).sum(axis=1) for each in (is_true, is_false)]
    n = int(counted.sum())
    if not parts[0].any() or not parts[1].any():
        return Contribution(name, definition, known, true, prevalence, Estimate(np.nan, np.nan, np.nan, n))
    value = parts[2].sum() / parts[0].sum() - parts[3].sum() / parts[1].sum()
    if min(len(np.unique(np.flatnonzero(part) // block)) for part in parts[:2]) < LEAST_BLOCKS:
        return Contribution(name, definition, known, true, prevalence, Estimate(float(value), np.nan, np.nan, n))
    means = [parts[2 + i].sum() / parts[i].sum() for i in (0, 1)]
    influence = [len(ahead) * (parts[2 + i] - means[i] * parts[i]) / parts[i].sum() for i in (0, 1)]
    lift = measure(float(means[0] - means[1]), influence[0] - influence[1], n).estimate()
    return Contribution(name, definition, known, true, prevalence, lift)
