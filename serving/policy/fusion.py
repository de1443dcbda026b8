"""Fusion (U1–U3): what the categories say together, how surely, and how much of the house spoke.

A category is *unavailable* (direction NaN: no producer in the data at hand), *silent* (direction 0: nothing to say on
this bar) or *speaking*. Unavailable ones leave the weights, which renormalise. Silent ones keep their reported weight
but enter neither the mean nor the vote. Coverage is the share of all weight that speaks, so both lower it.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CATEGORIES, REGIMES, Floats
from pipelines.errors import BadValues, UnknownName
from pipelines.params import FusionParams

SCORE_NAMES = (*CATEGORIES, "traditional")
N_SCORES = len(SCORE_NAMES)
TRADITIONAL = N_SCORES - 1

# Rows of the weight table: one a regime, then no regime (base weights), then tier 3, where only tradition speaks.
NO_REGIME = len(REGIMES)
TRADITIONAL_ONLY = NO_REGIME + 1
WEIGHT_ROWS = TRADITIONAL_ONLY + 1

RULE_REGIME = "rule:volatility-adx"  # digest-like name of the rule that stands where a regime model will


def regime_weights(fusion: FusionParams, regime: str | None) -> dict[str, float]:
    """Base weights (U1) times the regime's adjustment (U2), summing to 1; None = base weights.

    Raises UnknownName for a category or regime nobody knows, BadValues for a negative or wholly zero weight.
    """
    if regime is not None and regime not in REGIMES:
        raise UnknownName(f"no regime {regime!r}; known: {', '.join(REGIMES)}")
    factors = fusion.regimes.get(regime, {}) if regime else {}
    for name in (*fusion.weights, *factors):
        if name not in CATEGORIES:
            raise UnknownName(f"params.yaml fusion: no category {name!r}; known: {', '.join(CATEGORIES)}")
    raw = {name: fusion.weights.get(name, 0.0) * factors.get(name, 1.0) for name in CATEGORIES}
    total = sum(raw.values())
    if not all(weight >= 0.0 for weight in raw.values()) or not 0.0 < total < np.inf:
        raise BadValues(f"params.yaml fusion: weights {raw} must be finite, not negative and not all zero")
    return {name: weight / total for name, weight in raw.items()}


def weight_table(fusion: FusionParams) -> Floats:
    """(WEIGHT_ROWS, N_SCORES): each row sums to 1. The traditional voice has weight in tier 3 only."""
    table = np.zeros((WEIGHT_ROWS, N_SCORES))
    for row, regime in enumerate((*REGIMES, None)):
        table[row, :TRADITIONAL] = [regime_weights(fusion, regime)[name] for name in CATEGORIES]
    table[TRADITIONAL_ONLY, TRADITIONAL] = 1.0
    return table


@kernel
def fuse(directions, confidences, weights, independence, shares, contributions):  # type: ignore[no-untyped-def]
    """Weighted mean confidence and weighted log-odds vote of the categories that speak.

    directions     (N_SCORES,) −1, 0, 1, NaN = unavailable; confidences (N_SCORES,) percentile in [0, 1]
    independence   (N_SCORES,) in (0, 1]: what is left of a category's vote where others tend to say the same
    shares         written: weight renormalised over the available; NaN = unavailable or without weight
    contributions  written: signed share of the vote; they sum to ± consensus; 0 = silent, NaN as above
    Returns        (confidence, vote, consensus, coverage). vote = Σ w·u·d·logit(clip(½ + confidence/2, ½, .999)), u the
                   independence; consensus = |vote| / Σ w·u·logit, 0 when nothing weighs. confidence NaN if nobody
                   speaks; it is a mean, so that two saying the same do not change it.

    The odds are of agreement, not of profit: what a trade earns is asked of the validator's probability alone.
    """
    available = 0.0
    speaking = 0.0
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
                part = weight * independence[c] * np.log(odds / (1.0 - odds))
                speaking += weight
                strength += weight * confidences[c]
                parts += part
                vote += directions[c] * part
                contributions[c] = directions[c] * part
    for c in range(directions.shape[0]):
        shares[c] /= available
        if parts > 0.0:
            contributions[c] /= parts
    confidence = strength / speaking if speaking > 0.0 else np.nan
    consensus = abs(vote) / parts if parts > 0.0 else 0.0
    return confidence, vote, consensus, speaking / total
