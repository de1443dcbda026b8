"""Compute the adaptive thresholds of a signal (S17) from the regime and the unicorn stars of the event.

Base values, a regime's factors on them, and one relief: from `high_unicorn` stars on the event's own side, a lower
confidence is enough. All of it is `thresholds` of params.yaml; `version` identifies the values. Those listed under
`require` refuse an event, the others are recorded with it; docs/results/thresholds.md has the share each lets pass.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import get_args

import numpy as np

from pipelines.contracts import REGIMES, Floats
from pipelines.errors import UnknownName
from pipelines.params import Phase, Threshold, ThresholdFactors, ThresholdParams

THRESHOLDS: tuple[Threshold, ...] = get_args(Threshold)
PHASES: tuple[Phase, ...] = get_args(Phase)  # in the order of the codes of signals/amt.py
COLUMNS = ("min_confidence", "relieved_confidence", "min_strength", "min_confluence", "min_unicorn")
N_COLUMNS = len(COLUMNS)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Hold the minimum values that a signal has to reach, each on the event's own side.

    min_strength    points of 100: percentile of the event's category in its own history
    min_confidence  percentile in [0, 1], see fusion.fuse
    min_confluence  weighted agreement of the timeframes' trends (S15) with the event, in [0, 1]
    min_unicorn     stars of 21 (S14)
    phase           of the auction (S12) a position is opened in
    version         first 12 hex digits of the sha256 of the parameters
    """

    min_strength: float
    min_confidence: float
    min_confluence: float
    min_unicorn: float
    phase: str
    version: str


def thresholds(params: ThresholdParams, regime: str | None, unicorn: float | None = None) -> Thresholds:
    """Return the thresholds of a regime (None = unknown: base) for an event.

    unicorn  stars of the event's own side, 0 … 21; None or NaN = not known, no relief
    Raises   UnknownName for a regime outside contracts.REGIMES
    """
    if regime is not None and regime not in REGIMES:
        raise UnknownName(f"no regime {regime!r}; known: {', '.join(REGIMES)}")
    base, factors = params.base, {str(name): each for name, each in params.regimes.items()}
    factor = factors.get(regime or "", ThresholdFactors())
    relief = params.high_unicorn_confidence if unicorn is not None and unicorn >= params.high_unicorn else 1.0
    return Thresholds(
        min_strength=base.min_strength * factor.min_strength,
        min_confidence=base.min_confidence * factor.min_confidence * relief,
        min_confluence=base.min_confluence * factor.min_confluence,
        min_unicorn=base.min_unicorn * factor.min_unicorn,
        phase=base.phase,
        version=sha256(params.model_dump_json().encode()).hexdigest()[:12],
    )


def threshold_table(params: ThresholdParams) -> Floats:
    """Return (regimes + 1, N_COLUMNS) minimum values for the decision kernel, in the order of COLUMNS.

    One row per regime, then one for none; `relieved_confidence` holds from `high_unicorn` stars on.
    """
    rows = []
    for regime in (*REGIMES, None):
        plain, relieved = thresholds(params, regime), thresholds(params, regime, params.high_unicorn)
        rows.append(
            [
                plain.min_confidence, relieved.min_confidence, plain.min_strength, plain.min_confluence,
                plain.min_unicorn,
            ]
        )  # fmt: skip
    return np.array(rows)
