"""The directional ensemble (M5): a weighted mean of members. A member without a probability leaves the mean.

It is never counted as one half.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.contracts import REGIMES, Arrays, EnsembleVote, Floats, Probabilities
from pipelines.errors import UnknownName
from pipelines.models.losses import log_losses

STATED = "stated"


def average(members: Floats, weights: Floats) -> Floats:
    """Return the weighted mean (…) over the members that have a probability.

    members  (m, …) probabilities, NaN where a member has none
    weights  (m,) not negative; a member of weight 0 is reported but does not count
    Returns  the mean with weights renormalised over the available members; NaN where none with a weight is available
    """
    finite, shape = np.isfinite(members), (-1,) + (1,) * (members.ndim - 1)
    if finite.all() and weights.any():  # the usual case: the same sums without masks
        return np.asarray((members * weights.reshape(shape)).sum(axis=0) / weights.sum())
    available = np.where(finite, weights.reshape(shape), 0.0)
    total = available.sum(axis=0)
    weighted = (np.where(finite, members, 0.0) * available).sum(axis=0)
    return np.asarray(np.where(total > 0, weighted / np.where(total > 0, total, 1.0), np.nan))


@dataclass(frozen=True, slots=True)
class EnsemblePrediction:
    """Hold predictions of the directional ensemble for n rows.

    p        (n,) the mean; NaN where no member was available
    weights  member → (n,) share it had in the mean, summing to 1 where any was available; 0 where it was missing
    missing  n tuples of the members without a probability
    """

    p: Floats
    weights: dict[str, Floats]
    missing: list[tuple[str, ...]]


def phase_weights(ensemble: Mapping[str, Any], phase: str | None) -> Mapping[str, float]:
    """Return the weights of a market phase; the stated ones if it has none (QUIET) or is unknown (None).

    ensemble  {"stated": {member: weight}, "phases": {phase: {member: weight}}}: `params.yaml`, or `schema["ensemble"]`
              of a predictor's bundle
    Raises    UnknownName on a phase that is not in contracts.REGIMES
    """
    if phase is not None and phase not in REGIMES:
        raise UnknownName(f"no market phase {phase!r}; use one of {', '.join(REGIMES)}")
    weights: Mapping[str, float] = ensemble["phases"].get(phase, ensemble[STATED])
    return weights


def directional(
    members: Mapping[str, Floats], ensemble: Mapping[str, Any], phase: str | None = None
) -> EnsemblePrediction:
    """Return M5: the weighted mean of the members' probabilities of a rise over the available members.

    members  `Predictions.members`: member → (n,) its p, NaN where it has none; a member that is not a key is missing
             on every row
    Raises   UnknownName on a member without a weight: none is left out silently
    """
    weights = phase_weights(ensemble, phase)
    _refuse_unknown(members, weights)
    n = max((len(p) for p in members.values()), default=0)
    p = np.array([members.get(name, np.full(n, np.nan)) for name in weights])
    stated = np.array(list(weights.values()))
    available = np.isfinite(p)
    share = np.where(available, stated[:, np.newaxis], 0.0)
    total = share.sum(axis=0)
    share = share / np.where(total > 0, total, 1.0)
    missing = [tuple(name for name, known in zip(weights, row, strict=True) if not known) for row in available.T]
    return EnsemblePrediction(average(p, stated), dict(zip(weights, share, strict=True)), missing)


def vote(members: Mapping[str, Probabilities], ensemble: Mapping[str, Any], phase: str | None = None) -> EnsembleVote:
    """Return M5 for one row: what `directional` returns, to the last bit, without arrays.

    members  member → its p; None where it has none, and for a member that is not a key
    Raises   UnknownName on a member without a weight
    """
    weights = phase_weights(ensemble, phase)
    _refuse_unknown(members, weights)
    total, weighted, missing = 0.0, 0.0, []
    counted = dict(weights)  # a missing member counts as nothing
    for name, stated in weights.items():
        p = members.get(name)
        if isinstance(p, float):
            total += stated
            weighted += p * stated
        else:
            counted[name] = 0.0
            missing.append(name)
    over = total if total > 0 else 1.0
    shares = {name: share / over for name, share in counted.items()}
    return EnsembleVote(weighted / total if total > 0 else None, phase, shares, tuple(missing))


def _refuse_unknown(members: Mapping[str, object], weights: Mapping[str, float]) -> None:
    """Raise UnknownName on a member without a weight: none is left out silently."""
    if unknown := members.keys() - weights.keys():
        raise UnknownName(
            f"no weight for {', '.join(sorted(unknown))}; ensemble in params.yaml has {', '.join(weights)}. "
            "Add the weight there."
        )


def ensemble_losses(oof: Arrays, y: Floats, ensemble: Mapping[str, Any]) -> dict[str, Floats]:
    """Return log losses (n,) in nats of the ensemble with its stated weights and of each member, out of fold.

    oof     arrays of a predictor's `oof.npz`, of which `member_<name>` (n,) are read; y (n,) outcomes
    Raises  UnknownName if there is no member
    """
    members = {name.removeprefix("member_"): oof[name] for name in oof if name.startswith("member_")}
    if not members:
        raise UnknownName("no array named member_<name> among the out-of-fold rows; train the predictor again")
    predictions = {f"ensemble_{STATED}": directional(members, ensemble).p, **members}
    return {name: log_losses(p, y) for name, p in predictions.items()}
