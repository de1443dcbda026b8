"""Calibrated log-odds pooling of what categories say (U3): evidence added up, and what is said twice counted once.

A category's evidence is the log-odds its own Platt line gives an event, over the base rate's. Independent evidence adds
up; where categories go together, each one's is divided by how many of it are there. A category that is silent brings
none: the base rate stands in its place. One that spoke too seldom to be fitted is out, and its weight is the others'.
Sources: Platt 1999; Genest and Zidek 1986 (logarithmic pooling); Ledoit and Wolf 2004 (shrunk covariance).
"""

from dataclasses import dataclass

import numpy as np

from pipelines.contracts import Bools, Floats
from pipelines.errors import BadShape, BadValues, NotEnoughData
from pipelines.labels.splits import combinatorial
from pipelines.models.calibration import STRETCHES, fit_calibration
from pipelines.models.calibration_and_novelty import logit

LEAST = 50  # events a category must have spoken on before its line is fitted
_STEADY = 1e-3  # a spread of what was said under which no slope can be seen


@dataclass(frozen=True, slots=True)
class Pool:
    """What turns words into one probability.

    base         log-odds that an event's target comes first, whoever speaks
    slope, shift (C,) log-odds over `base` = slope · x + shift, x = said · side; NaN = spoke too seldom to be heard
    correlation  (C, C) of what categories say in an event's direction, among events of one outcome; shrunk
    """

    base: float
    slope: Floats
    shift: Floats
    correlation: Floats

    @property
    def is_fitted(self) -> Bools:
        """(C,) who has a line."""
        return np.isfinite(self.slope)

    def evidence(self, said: Floats, side: Floats) -> Floats:
        """(n, C) log-odds over `base` that each category brings to n events; 0 where it is silent or not heard."""
        x = agreement(said, side)
        heard = (x != 0.0) & self.is_fitted
        return np.where(heard, np.nan_to_num(self.slope) * x + np.nan_to_num(self.shift), 0.0)

    def discount_redundancy(self, evidence: Floats) -> Floats:
        """(n, C) evidence over its redundancy: 1 + the sum of its positive correlations with all others that speak.

        Two that say the same are worth one; for equal evidence and equal correlations it is the optimum of a linear
        discriminant. A negative correlation is not rewarded: it would make weak evidence strong.
        """
        others = np.maximum(self.correlation, 0.0) * (1.0 - np.eye(len(self.slope)))
        return np.asarray(evidence / (1.0 + (evidence != 0.0) @ others))

    def pooled(self, evidence: Floats, weights: Floats) -> Floats:
        """(n,) log-odds: base + Σ C · weight · evidence, counted once, over the C categories heard.

        weights  (C,) or (n, C), not negative; made to sum to 1 over the categories heard, as the live vote does over
                 those available. Equal ones take everybody's evidence as it is, twice the equal share takes it twice
        """
        mine = np.where(self.is_fitted, weights, 0.0)
        total = mine.sum(axis=-1, keepdims=True)
        shares = np.divide(mine, total, out=np.zeros_like(mine), where=total > 0.0)
        return np.asarray(self.base + self.is_fitted.sum() * (shares * self.discount_redundancy(evidence)).sum(axis=1))


def agreement(said: Floats, side: Floats) -> Floats:
    """(n, C) signed agreement with each event in [-1, 1]: said (n, C) × side (n,), 0 where nothing is said."""
    if said.ndim != 2 or side.shape != (len(said),):
        raise BadShape(f"said {said.shape} and side {side.shape}, wanted (n, C) and (n,)")
    return np.nan_to_num(said) * side[:, None]


def fit_pool(said: Floats, side: Floats, label: Floats, weight: Floats | None = None) -> Pool:
    """Fit on n past events.

    said    (n, C) direction × confidence in [-1, 1], 0 = silent, NaN = unavailable; side (n,) -1 or 1
    label   (n,) 1 target first, 0 not; weight (n,) uniqueness of each label, None = 1
    Raises  NotEnoughData where only one outcome is there, BadShape, BadValues
    """
    x = agreement(said, side)
    weight = np.ones(len(label)) if weight is None else weight
    if not np.isin(label, (0.0, 1.0)).all() or not (np.abs(x) <= 1.0).all():
        raise BadValues("labels are 0 or 1 and what is said lies in [-1, 1]; leave unresolved events out")
    rate = float(np.average(label, weights=weight)) if len(label) else 0.0
    if not 0.0 < rate < 1.0:
        raise NotEnoughData(f"{len(label)} events of a single outcome; bring a longer history")
    base = float(logit(np.array(rate)))
    lines = np.array([_line(x[:, c], label, weight, base) for c in range(x.shape[1])])
    return Pool(base, lines[:, 0], lines[:, 1], correlation(x, label))


def held_out_evidence(
    said: Floats, side: Floats, label: Floats, known: Floats, ended: Floats, embargo_s: float
) -> tuple[Floats, Floats]:
    """(n, C) evidence counted once and (n,) base log-odds of events, by pools that had not seen them: purged stretches.

    Weights are fitted on these, else a category would be paid for having fitted the rows it is judged on. An event
    whose stretch leaves too few others is NaN in both.
    """
    n, c = said.shape
    evidence, base = np.full((n, c), np.nan), np.full(n, np.nan)
    for split in combinatorial(known, ended, STRETCHES, 1, embargo_s):
        if len(split.train) < LEAST or len(np.unique(label[split.train])) < 2:
            continue
        pool = fit_pool(said[split.train], side[split.train], label[split.train])
        evidence[split.test] = pool.discount_redundancy(pool.evidence(said[split.test], side[split.test]))
        base[split.test] = pool.base
    return evidence, base


def correlation(x: Floats, label: Floats) -> Floats:
    """(C, C) correlation of agreement (n, C) among events of one outcome, shrunk towards none.

    Within an outcome, since two categories that are both right go together without saying the same. A category that
    never changes goes with nobody.
    """
    from sklearn.covariance import ledoit_wolf

    centred = x.copy()
    for outcome in (0.0, 1.0):
        rows = label == outcome
        centred[rows] -= x[rows].mean(axis=0) if rows.any() else 0.0
    spread = centred.std(axis=0)
    moving = spread > _STEADY
    found = np.eye(x.shape[1])
    if moving.sum() > 1:
        shrunk, _ = ledoit_wolf(centred[:, moving] / spread[moving], assume_centered=True)
        scale = np.sqrt(np.diag(shrunk))
        found[np.ix_(moving, moving)] = shrunk / np.outer(scale, scale)
    return found


def _line(x: Floats, label: Floats, weight: Floats, base: float) -> tuple[float, float]:
    """Slope and shift of one category over the rows on which it speaks; NaN where these are too few."""
    rows = np.flatnonzero(x)
    if len(rows) < LEAST or len(np.unique(label[rows])) < 2:
        return np.nan, np.nan
    if x[rows].std() < _STEADY:  # one word only: what is known of it is how often it was right
        said = float(np.average(label[rows], weights=weight[rows]))
        return 0.0, float(logit(np.array(said))) - base
    chance = 1.0 / (1.0 + np.exp(-(base + x[rows])))  # log-odds of x round the base rate, whose line is then fitted
    line = fit_calibration(chance, label[rows], weight[rows], around=base)
    return line.slope, line.shift
