"""What resolved outcomes have taught the fusion so far, kept up as they come in (U5).

The state is a file replaced by rename, so that a restart goes on from exactly there; without it, it is learnt anew from
the ledger, in the order in which events resolved. It stands beside the stated weights in every decision; whether it
also decides is `learning.use`. An outcome that is told after a later one teaches only where the ledger is learnt anew.
"""

import json
import logging
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from pipelines.contracts import CATEGORIES, Floats, Outcome, utc
from pipelines.errors import BellwetherError
from pipelines.params import Params
from pipelines.store import DecisionRecord
from serving.inference.generation import write_atomically
from serving.policy.fusion import N_SCORES, regime_weights
from serving.policy.online_weights import (
    BetaPosterior,
    OnlineWeights,
    ResolvedEvent,
    initial_state,
    pattern_posterior,
    update,
)


def initial_weights(params: Params) -> OnlineWeights:
    """Nothing learnt: the stated weights, and the chance of a price without drift."""
    weights = regime_weights(params.fusion, None)
    return initial_state(tuple(weights[name] for name in CATEGORIES), 1.0 / (1.0 + params.labels.odds), params.learning)


def learn(state: OnlineWeights, resolved: Sequence[tuple[DecisionRecord, Outcome]], params: Params) -> OnlineWeights:
    """The state after these outcomes, in the order in which they resolved; those before its last one are left out."""
    for record, outcome in sorted(resolved, key=lambda pair: (pair[1].resolved_at, pair[0].decision.id)):
        decision, at = record.decision, outcome.resolved_at.timestamp()
        side = _side(record.decision.entry, record.decision.stop)
        if side == 0.0 or not decision.said or (state.at is not None and at < state.at):
            continue
        said = tuple(decision.said.get(name, np.nan) for name in CATEGORIES)
        told = ResolvedEvent(at, said, side, float(outcome.label), decision.event or "", decision.regime)
        state = update(state, told, params.learning)
    return state


ONLINE_WEIGHTS_FILE = "experience.json"

log = logging.getLogger("bellwether.experience")


class OnlineWeightsStore:
    """One process's view of it. Not thread-safe: the caller follows with one thread at a time."""

    def __init__(self, file: Path, params: Params) -> None:
        self._file, self._params = file, params
        self._counted: set[str] = set()  # decisions whose outcome came at the very moment of the last one
        self._state = self._read() or initial_weights(params)
        self._shown: datetime | None = None  # the newest outcome it was shown, whether or not it taught anything

    @property
    def since(self) -> datetime | None:
        """Outcomes from this moment on are new, or were counted last; None = all of them."""
        learnt = None if self._state.at is None else utc(self._state.at)
        return max((at for at in (learnt, self._shown) if at is not None), default=None)

    @property
    def weights(self) -> dict[str, float]:
        """Category → learnt weight, before a regime's factor; they sum to 1."""
        return dict(zip(CATEGORIES, self._state.weights, strict=True))

    @property
    def count(self) -> int:
        """Outcomes it has seen."""
        return self._state.count

    @property
    def factor(self) -> Floats:
        """(N_SCORES,) what learning makes of each stated weight where it decides; ones where it is only recorded."""
        return factor_of(self._state.weights, self._params)

    def pattern(self, kind: str, regime: str | None) -> BetaPosterior:
        return pattern_posterior(self._state, kind, regime, self._params.learning)

    def patterns(self) -> list[tuple[str, str, BetaPosterior]]:
        """(kind, regime, confidence) of every pattern that ever resolved."""
        return [(row[0], row[1], self.pattern(row[0], row[1])) for row in self._state.patterns]

    def update(self, resolved: Sequence[tuple[DecisionRecord, Outcome]]) -> int:
        """Learn from outcomes since `since`; returns how many were new. Durable on return."""
        self._shown = max((outcome.resolved_at for _, outcome in resolved), default=self._shown)
        new = [pair for pair in resolved if pair[0].decision.id not in self._counted]
        before, self._state = self._state, learn(self._state, new, self._params)
        if self._state is before:
            return 0
        last = utc(self._state.at or 0.0)
        if before.at is None or last != utc(before.at):
            self._counted = set()
        self._counted |= {record.decision.id for record, outcome in resolved if outcome.resolved_at == last}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, {"state": self._state.to_json(), "counted": sorted(self._counted)})
        return self._state.count - before.count

    def _read(self) -> OnlineWeights | None:
        try:
            told = json.loads(self._file.read_text())
            state = OnlineWeights.from_json(told["state"])
            self._counted = set(told["counted"])
        except FileNotFoundError:
            return None  # the ledger holds all it was learnt from
        except (ValueError, KeyError, TypeError, BellwetherError) as error:
            log.warning("%s cannot be read (%s); learning anew from the ledger", self._file, error)
            return None
        if state.stated == initial_weights(self._params).stated:
            return state
        self._counted = set()  # other weights are stated now: what was learnt began elsewhere
        return None


def factor_of(weights: Sequence[float], params: Params) -> Floats:
    """(N_SCORES,) learnt weights (C,) over the stated ones; ones where learning only records."""
    factor = np.ones(N_SCORES)
    if params.learning.use == "act":
        stated = regime_weights(params.fusion, None)
        factor[: len(CATEGORIES)] = [
            weight / stated[name] if stated[name] > 0.0 else 1.0
            for name, weight in zip(CATEGORIES, weights, strict=True)
        ]
    return factor


def _side(entry: float | None, stop: float | None) -> float:
    """Side of the event, from where its stop lies; 0 where no levels were computed."""
    if entry is None or stop is None:
        return 0.0
    return float(np.sign(entry - stop))
