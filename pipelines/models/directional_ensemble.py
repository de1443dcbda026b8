"""Averages of several voters: a voter that could not speak leaves the average; it is never counted as a half (M5)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.contracts import REGIMES, Floats
from pipelines.errors import UnknownName
from pipelines.models.losses import log_losses

STATED = "stated"


def average(voices: Floats, weights: Floats) -> Floats:
    """Weighted mean over the voters that speak.

    voices   (m, …) probabilities of m voters, NaN where one does not speak
    weights  (m,) not negative; a weight of 0 is a voter that is only heard
    Returns  (…) the mean, renormalised over who speaks; NaN where nobody with a weight does
    """
    shape = (-1,) + (1,) * (voices.ndim - 1)
    speaking = np.where(np.isfinite(voices), weights.reshape(shape), 0.0)
    total = speaking.sum(axis=0)
    said = (np.where(np.isfinite(voices), voices, 0.0) * speaking).sum(axis=0)
    return np.asarray(np.where(total > 0, said / np.where(total > 0, total, 1.0), np.nan))


@dataclass(frozen=True, slots=True)
class Vote:
    """What the directional ensemble says of n rows.

    p        (n,) the average; NaN where nobody spoke
    weights  member → (n,) share it really had, summing to 1 where anybody spoke; 0 where it was missing
    missing  n tuples of the members that did not speak
    """

    p: Floats
    weights: dict[str, Floats]
    missing: list[tuple[str, ...]]


def phase_weights(ensemble: Mapping[str, Any], phase: str | None) -> Mapping[str, float]:
    """Weights of a market phase: its own, or the stated ones where it has none (QUIET) or is not known (None).

    ensemble  {"stated": {member: weight}, "phases": {phase: {member: weight}}}: `params.yaml`, or `schema["ensemble"]`
              of a predictor's bundle
    """
    if phase is not None and phase not in REGIMES:
        raise UnknownName(f"no market phase {phase!r}; known: {', '.join(REGIMES)}")
    weights: Mapping[str, float] = ensemble["phases"].get(phase, ensemble[STATED])
    return weights


def directional(members: Mapping[str, Floats], ensemble: Mapping[str, Any], phase: str | None = None) -> Vote:
    """M5: the weighted mean of the members' probabilities of a rise, by who speaks.

    members  `Predictions.members`: member → (n,) its p, NaN where it could not speak; a member that is not there at
             all is missing on every row
    Raises   UnknownName on a member that has no weight: nobody is left out in silence
    """
    weights = phase_weights(ensemble, phase)
    if unknown := set(members) - set(weights):
        raise UnknownName(
            f"no weight for {', '.join(sorted(unknown))}; ensemble in params.yaml has {', '.join(weights)}"
        )
    n = max((len(p) for p in members.values()), default=0)
    voices = np.array([members.get(name, np.full(n, np.nan)) for name in weights])
    stated = np.array(list(weights.values()))
    heard = np.isfinite(voices)
    share = np.where(heard, stated[:, np.newaxis], 0.0)
    total = share.sum(axis=0)
    share = share / np.where(total > 0, total, 1.0)
    silent = [tuple(name for name, spoke in zip(weights, row, strict=True) if not spoke) for row in heard.T]
    return Vote(average(voices, stated), dict(zip(weights, share, strict=True)), silent)


def ensemble_losses(oof: Mapping[str, Any], y: Floats, ensemble: Mapping[str, Any]) -> dict[str, Floats]:
    """Log losses (n,) of the ensemble with its stated weights and of each member, on out-of-fold rows.

    oof  arrays of a predictor's `oof.npz`: its `member_<name>`, (n,) each, are what votes; y (n,) outcomes
    Raises UnknownName where it holds no member
    """
    members = {name.removeprefix("member_"): oof[name] for name in oof if name.startswith("member_")}
    if not members:
        raise UnknownName("no array named member_<name> among the out-of-fold rows; train the predictor again")
    said = {f"ensemble_{STATED}": directional(members, ensemble).p, **members}
    return {name: log_losses(p, y) for name, p in said.items()}
