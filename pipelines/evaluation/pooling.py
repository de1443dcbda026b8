"""Calibrated log-odds pooling of category scores (U3): evidence is added, and redundant evidence counted once.

A category's evidence is the log-odds its own Platt line gives an event, relative to the base rate. Independent evidence
adds up; evidence of correlated categories is divided by their number. A neutral category adds none: the base rate
stands in its place. One with too few scores to be fitted is excluded, and its weight goes to the others.
Sources: Platt 1999; Genest and Zidek 1986 (logarithmic pooling); Ledoit and Wolf 2004 (shrunk covariance).
"""

from dataclasses import dataclass

import numpy as np

from pipelines.contracts import Bools, Floats
from pipelines.errors import BadShape, BadValues, NotEnoughData
from pipelines.labels.splits import combinatorial
from pipelines.models.calibration import fit_calibration
from pipelines.models.calibration_and_novelty import logit

STRETCHES = 4  # purged stretches of the events, each scored by pools of the others: enough to leave most to fit on
LEAST = 50  # events with a score from a category before its line is fitted
_STEADY = 1e-3  # spread of scores under which no slope can be fitted


@dataclass(frozen=True, slots=True)
class Pool:
    """Hold what maps the scores of C categories to one probability.

    base         log-odds that an event's target comes first, without any score
    slope, shift (C,) log-odds over `base` = slope · x + shift, x = score · side; NaN = too few scores to be fitted
    correlation  (C, C) of scores in an event's direction, among events of one outcome; shrunk
    """

    base: float
    slope: Floats
    shift: Floats
    correlation: Floats

    @property
    def is_fitted(self) -> Bools:
        """Return (C,) True for the categories with a fitted line."""
        return np.isfinite(self.slope)

    def evidence(self, scores: Floats, side: Floats) -> Floats:
        """Return (n, C) log-odds over `base` of each category for n events; 0 where it is neutral or not fitted."""
        x = agreement(scores, side)
        counts = (x != 0.0) & self.is_fitted
        return np.where(counts, np.nan_to_num(self.slope) * x + np.nan_to_num(self.shift), 0.0)

    def discount_redundancy(self, evidence: Floats) -> Floats:
        """Return (n, C) evidence divided by 1 + the sum of its positive correlations with other categories' evidence.

        Two identical categories count as one; for equal evidence and equal correlations this is the optimum of a linear
        discriminant. A negative correlation is not rewarded: it would make weak evidence strong.
        """
        others = np.maximum(self.correlation, 0.0) * (1.0 - np.eye(len(self.slope)))
        return np.asarray(evidence / (1.0 + (evidence != 0.0) @ others))

    def pooled(self, evidence: Floats, weights: Floats) -> Floats:
        """Return (n,) log-odds: base + Σ C · weight · discounted evidence, over the C fitted categories.

        weights  (C,) or (n, C), not negative; normalised to sum to 1 over the fitted categories, as the live vote does
                 over those available. Equal weights take all evidence as it is, twice the equal share takes it twice
        """
        fitted = np.where(self.is_fitted, weights, 0.0)
        total = fitted.sum(axis=-1, keepdims=True)
        shares = np.divide(fitted, total, out=np.zeros_like(fitted), where=total > 0.0)
        return np.asarray(self.base + self.is_fitted.sum() * (shares * self.discount_redundancy(evidence)).sum(axis=1))


def agreement(scores: Floats, side: Floats) -> Floats:
    """Return (n, C) signed agreement with each event in [-1, 1]: scores (n, C) × side (n,), 0 where there is none."""
    if scores.ndim != 2 or side.shape != (len(scores),):
        raise BadShape(f"scores {scores.shape} and side {side.shape}; pass (n, C) and (n,)")
    return np.nan_to_num(scores) * side[:, None]


def fit_pool(scores: Floats, side: Floats, label: Floats) -> Pool:
    """Fit a pool on n past events.

    scores  (n, C) direction × confidence in [-1, 1], 0 = neutral, NaN = unavailable; side (n,) -1 or 1
    label   (n,) 1 target first, 0 not
    Raises  NotEnoughData with a single outcome, BadShape, BadValues
    """
    x = agreement(scores, side)
    if not np.isin(label, (0.0, 1.0)).all() or not (np.abs(x) <= 1.0).all():
        raise BadValues("labels must be 0 or 1 and scores in [-1, 1]; drop unresolved events first")
    rate = float(label.mean()) if len(label) else 0.0
    if not 0.0 < rate < 1.0:
        raise NotEnoughData(f"{len(label)} events of a single outcome; bring a longer history")
    base = float(logit(np.array(rate)))
    lines = np.array([_line(x[:, c], label, base) for c in range(x.shape[1])])
    return Pool(base, lines[:, 0], lines[:, 1], correlation(x, label))


def held_out_evidence(
    scores: Floats, side: Floats, label: Floats, known: Floats, ended: Floats, embargo_s: float
) -> tuple[Floats, Floats]:
    """Return (n, C) discounted evidence and (n,) base log-odds of events by pools fitted on other, purged stretches.

    Weights are fitted on these; in-sample evidence would favour a category that fits its own rows. An event whose
    stretch leaves too few training events is NaN in both.
    """
    n, c = scores.shape
    evidence, base = np.full((n, c), np.nan), np.full(n, np.nan)
    for split in combinatorial(known, ended, STRETCHES, 1, embargo_s):
        if len(split.train) < LEAST or len(np.unique(label[split.train])) < 2:
            continue
        pool = fit_pool(scores[split.train], side[split.train], label[split.train])
        evidence[split.test] = pool.discount_redundancy(pool.evidence(scores[split.test], side[split.test]))
        base[split.test] = pool.base
    return evidence, base


def correlation(x: Floats, label: Floats) -> Floats:
    """Return (C, C) the correlation of agreement (n, C) among events of one outcome, shrunk towards zero.

    Within an outcome, because two categories that are both right are correlated without being redundant. A category
    that never changes is uncorrelated.
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


def _line(x: Floats, label: Floats, base: float) -> tuple[float, float]:
    """Return slope and shift of one category over the events it scored; NaN if these are too few."""
    rows = np.flatnonzero(x)
    if len(rows) < LEAST or len(np.unique(label[rows])) < 2:
        return np.nan, np.nan
    if x[rows].std() < _STEADY:  # a constant score: only its hit rate can be measured
        hit_rate = float(label[rows].mean())
        return 0.0, float(logit(np.array(hit_rate))) - base
    chance = 1.0 / (1.0 + np.exp(-(base + x[rows])))  # log-odds of x around the base rate, whose line is then fitted
    line = fit_calibration(chance, label[rows], np.ones(len(rows)), around=base)
    return line.slope, line.shift
