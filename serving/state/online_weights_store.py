"""Keep the learned weights of the categories up to date with resolved outcomes (U5).

The state is a file replaced by rename, so that a restart continues from exactly there; without the file it is learned
from the whole ledger, in the order in which events resolved. Every decision records the learned weights; with
`learning.use: act` they also decide. An outcome that arrives after a later one counts only when the whole ledger is
learned again.
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
from serving.policy.decision_row import ONES
from serving.policy.fusion import N_SCORES, regime_weights
from serving.policy.online_weights import (
    BetaPosterior,
    OnlineWeights,
    ResolvedEvent,
    initial_state,
    pattern_posterior,
    update,
)

ONLINE_WEIGHTS_FILE = "online_weights.json"
FILE_BEFORE_0_6 = "experience.json"  # read where the file of today does not exist yet

log = logging.getLogger("bellwether.online_weights")


def initial_weights(params: Params) -> OnlineWeights:
    """Return the state before any outcome: the stated weights, and the chance of a price without drift."""
    weights = regime_weights(params.fusion, None)
    return initial_state(tuple(weights[name] for name in CATEGORIES), 1.0 / (1.0 + params.labels.odds), params.learning)


def learn(state: OnlineWeights, resolved: Sequence[tuple[DecisionRecord, Outcome]], params: Params) -> OnlineWeights:
    """Return the state after these outcomes, in the order in which they resolved; those before its last are skipped."""
    for record, outcome in sorted(resolved, key=lambda pair: (pair[1].resolved_at, pair[0].decision.id)):
        decision, at = record.decision, outcome.resolved_at.timestamp()
        side = _side(record.decision.entry, record.decision.stop)
        if side == 0.0 or not decision.category_scores or (state.at is not None and at < state.at):
            continue
        scores = tuple(decision.category_scores.get(name, np.nan) for name in CATEGORIES)
        event = ResolvedEvent(at, scores, side, float(outcome.label), decision.event or "", decision.regime)
        state = update(state, event, params.learning)
    return state


class OnlineWeightsStore:
    """Hold the state of one process and its file. Not thread-safe."""

    def __init__(self, file: Path, params: Params) -> None:
        """Read the stored state; start from the stated weights where there is none."""
        self._file, self._params = file, params
        self._counted: set[str] = set()  # decisions whose outcome has the time of the last one
        self._state = self._read() or initial_weights(params)
        self._newest: datetime | None = None  # time of the newest outcome passed in, also of one that changed nothing

    @property
    def since(self) -> datetime | None:
        """Return the time from which outcomes are new, or were counted last; None = all are new."""
        learned = None if self._state.at is None else utc(self._state.at)
        return max((at for at in (learned, self._newest) if at is not None), default=None)

    @property
    def weights(self) -> dict[str, float]:
        """Return category → learned weight, before a regime's factor; they sum to 1."""
        return dict(zip(CATEGORIES, self._state.weights, strict=True))

    @property
    def count(self) -> int:
        """Return the number of outcomes so far."""
        return self._state.count

    def pattern(self, kind: str, regime: str | None) -> BetaPosterior:
        """Return how sure it is that events of this kind pay in this regime (None = not known)."""
        return pattern_posterior(self._state, kind, regime, self._params.learning)

    def patterns(self) -> list[tuple[str, str, BetaPosterior]]:
        """Return (kind, regime, posterior) of every pattern that ever resolved."""
        return [(row[0], row[1], self.pattern(row[0], row[1])) for row in self._state.patterns]

    def update(self, resolved: Sequence[tuple[DecisionRecord, Outcome]]) -> int:
        """Learn from the outcomes since `since` and return how many were new; durable on return."""
        self._newest = max((outcome.resolved_at for _, outcome in resolved), default=self._newest)
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
        """Return the stored state; None where there is none that fits the stated weights of today."""
        before_0_6 = self._file.with_name(FILE_BEFORE_0_6)
        file = before_0_6 if before_0_6.exists() and not self._file.exists() else self._file
        try:
            record = json.loads(file.read_text())
            state = OnlineWeights.from_json(record["state"])
            self._counted = set(record["counted"])
        except FileNotFoundError:
            return None  # the ledger holds all outcomes
        except (ValueError, KeyError, TypeError, BellwetherError) as error:
            log.warning("%s cannot be read (%s); learning again from the ledger", file, error)
            return None
        if state.stated == initial_weights(self._params).stated:
            return state
        self._counted = set()  # learned from other stated weights than those of today
        return None


def factor_of(weights: Sequence[float], params: Params) -> Floats:
    """Return (N_SCORES,) learned weights (C,) over the stated ones; ones where learning only records."""
    if params.learning.use != "act":
        return ONES
    factor, stated = np.ones(N_SCORES), regime_weights(params.fusion, None)
    factor[: len(CATEGORIES)] = [
        weight / stated[name] if stated[name] > 0.0 else 1.0 for name, weight in zip(CATEGORIES, weights, strict=True)
    ]
    return factor


def _side(entry: float | None, stop: float | None) -> float:
    """Return the side of the event from its stop, -1 or 1; 0 where no levels were computed."""
    if entry is None or stop is None:
        return 0.0
    return float(np.sign(entry - stop))
