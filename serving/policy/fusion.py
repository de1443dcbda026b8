"""Fuse the category scores into one vote, its confidence and its coverage (U1–U3).

A category is *unavailable* (direction NaN: no producer in the data at hand), *neutral* (direction 0: no signal on this
bar) or *active*. Unavailable ones leave the weights, which renormalise. Neutral ones keep their reported weight but
enter neither the mean nor the vote. Coverage is the active share of all weight, so both lower it.
"""

from math import log

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CATEGORIES, REGIMES, SCORE_NAMES, Floats
from pipelines.errors import BadValues, UnknownName
from pipelines.params import FusionParams

N_SCORES = len(SCORE_NAMES)
TRADITIONAL = SCORE_NAMES.index("traditional")
ICT = SCORE_NAMES.index("ict")  # the category whose signals raise the validator's events

# Rows of the weight table: one per regime, then no regime (base weights), then tier 3 (the traditional score alone).
NO_REGIME = len(REGIMES)
TRADITIONAL_ONLY = NO_REGIME + 1
WEIGHT_ROWS = TRADITIONAL_ONLY + 1

RULE_REGIME = "rule:volatility-adx"  # stands in a decision's lineage where no regime model predicted


def regime_weights(fusion: FusionParams, regime: str | None) -> dict[str, float]:
    """Return category → base weight (U1) times the regime's factor (U2), summing to 1; None = base weights.

    A category in `disabled` has none, and the others renormalise.

    Raises UnknownName for an unknown category or regime, BadValues where a weight is negative or all are zero.
    """
    if regime is not None and regime not in REGIMES:
        raise UnknownName(f"no regime {regime!r}; known: {', '.join(REGIMES)}")
    factors = fusion.regimes.get(regime, {}) if regime else {}
    for name in (*fusion.weights, *factors, *fusion.disabled):
        if name not in CATEGORIES:
            raise UnknownName(f"params.yaml fusion: no category {name!r}; known: {', '.join(CATEGORIES)}")
    raw = {name: fusion.weights.get(name, 0.0) * factors.get(name, 1.0) for name in CATEGORIES}
    raw |= dict.fromkeys(fusion.disabled, 0.0)
    total = sum(raw.values())
    if not all(weight >= 0.0 for weight in raw.values()) or not 0.0 < total < np.inf:
        raise BadValues(f"params.yaml fusion: weights {raw} must be finite, not negative and not all zero")
    return {name: weight / total for name, weight in raw.items()}


def weight_table(fusion: FusionParams) -> Floats:
    """Return (WEIGHT_ROWS, N_SCORES) weights; each row sums to 1. The traditional score has weight in tier 3 only."""
    table = np.zeros((WEIGHT_ROWS, N_SCORES))
    for row, regime in enumerate((*REGIMES, None)):
        table[row, :TRADITIONAL] = [regime_weights(fusion, regime)[name] for name in CATEGORIES]
    table[TRADITIONAL_ONLY, TRADITIONAL] = 1.0
    return table


@kernel
def fuse(
    directions: Floats,
    confidences: Floats,
    weights: Floats,
    independence: Floats,
    shares: Floats,
    contributions: Floats,
) -> tuple[float, float, float, float]:
    """Return the weighted mean confidence and the weighted log-odds vote of the active categories.

    directions     (N_SCORES,) −1, 0, 1, NaN = unavailable; confidences (N_SCORES,) percentile in [0, 1]
    independence   (N_SCORES,) in (0, 1]: factor on a category's vote where others tend to agree with it
    weights        (N_SCORES,) not negative; may be the same array as shares
    shares         written: weight renormalised over the available; NaN = unavailable or without weight
    contributions  written: signed share of the vote; they sum to ± consensus; 0 = neutral, NaN as above
    Returns        (confidence, vote, consensus, coverage). vote = Σ w·u·d·logit(clip(½ + confidence/2, ½, .999)), u the
                   independence; consensus = |vote| / Σ w·u·logit, 0 without weight. confidence is NaN if none is
                   active; it is a mean, so two categories that agree do not raise it.

    All arrays are float64. The odds are of agreement, not of profit: the validator's probability alone says what a
    trade earns.
    """
    available = 0.0
    active = 0.0
    total = 0.0
    strength = 0.0
    vote = 0.0
    parts = 0.0
    for c in range(directions.shape[0]):
        weight = weights[c]
        total += weight
        shares[c] = np.nan
        contributions[c] = np.nan
        if weight > 0.0 and directions[c] == directions[c]:
            available += weight
            shares[c] = weight
            contributions[c] = 0.0
            if directions[c] != 0.0 and confidences[c] == confidences[c]:
                odds = min(max(0.5 + 0.5 * confidences[c], 0.5), 0.999)
                part = weight * independence[c] * log(odds / (1.0 - odds))
                active += weight
                strength += weight * confidences[c]
                parts += part
                vote += directions[c] * part
                contributions[c] = directions[c] * part
    for c in range(directions.shape[0]):
        shares[c] /= available
        if parts > 0.0:
            contributions[c] /= parts
    confidence = strength / active if active > 0.0 else np.nan
    consensus = abs(vote) / parts if parts > 0.0 else 0.0
    return confidence, vote, consensus, active / total
