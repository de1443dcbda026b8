"""Fit boosted trees and forests whose leaves hold a stated number of events, whatever the base rate and the weights.

XGBoost's `min_child_weight` is a sum of hessians, w·p(1 − p) an event; a forest's `min_samples_leaf` counts the rows
that a tree drew. Both are set from events here: an event is a distinct row of the window's typical weight.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.contracts import Floats, Ints
from pipelines.family_params import BoostedParams, ForestParams

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier
    from xgboost import XGBClassifier


def least_hessian(events: float, y: Ints, weight: Floats) -> float:
    """Return the hessian sum of a leaf of so many events of weight 1 at the base rate p: events·p(1 − p).

    y, weight  (n,) labels in {0, 1} and weights. Boosting starts at the base rate and strays little from it where there
               is little skill; a leaf of events nearer to one half holds down to 4·p(1 − p) of the stated number
    """
    rate = float(np.average(y, weights=weight))
    return events * rate * (1.0 - rate)


def fit_boosted(
    rows: Any, y: Ints, weight: Floats, events: float, settings: BoostedParams, seed: int
) -> "XGBClassifier":
    """Return XGBoost trees fitted on rows (n, k), float32 or float64; one thread, so the same CPU gives the same bits.

    y, weight  (n,) labels in {0, 1}, weights of any scale
    events     how many distinct events of equal weight the rows stand for; the weights are scaled to this sum, so that
               leaves and `reg_lambda` count overlapping labels once and forgotten ones not at all
    """
    import xgboost  # takes seconds to import, and only a fit needs it

    model = xgboost.XGBClassifier(
        n_estimators=settings.trees,
        max_depth=settings.depth,
        learning_rate=settings.learning_rate,
        min_child_weight=least_hessian(settings.leaf_events, y, weight),
        subsample=settings.subsample,
        reg_lambda=settings.reg_lambda,
        tree_method="hist",
        random_state=seed,
        n_jobs=1,
    )
    return model.fit(rows, y, sample_weight=weight * (events / weight.sum()))


def fit_forest(
    rows: Any, y: Ints, weight: Floats, events: float, settings: ForestParams, seed: int
) -> "RandomForestClassifier":
    """Return a random forest fitted on rows (n, k), float32 or float64; one thread: the same CPU gives the same bits.

    events  as for `fit_boosted`: so many rows a tree draws, in proportion to their weights; more would only repeat
            labels (López de Prado 2018, ch. 6.2). A leaf holds `leaf_events` different rows of its draw
    """
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(
        settings.trees,
        max_depth=settings.depth,
        min_samples_leaf=settings.leaf_events,
        max_samples=max(1, round(events)),
        random_state=seed,
        n_jobs=1,
    ).fit(rows, y, weight)
