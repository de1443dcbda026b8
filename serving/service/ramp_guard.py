"""Who decides at a close where an experiment runs, and the guardrails that act at once: a fault, slow answers, a loss.

A version that trips one decides nothing from that close on. The alarm says which experiment it was; flows end it, or
serve the version before again. Guardrails that need outcomes or many closes: `flows.support.experiment_guardrails`.
"""

import logging
from collections import defaultdict, deque

import numpy as np

from pipelines.contracts import ModelAnswers
from pipelines.experiments.assignment import Assigned, Assignment
from pipelines.experiments.guardrails import GUARDRAIL, LATENCY_ANSWERS, drawdown_harm, fault_harm, latency_harm
from pipelines.params import GuardrailParams
from serving.inference.model_slots import ARMS, Snapshot
from serving.inference.predictions import faulty
from serving.service.alarm_queue import AlarmQueue
from serving.state.account import Account
from serving.state.symbols import Symbol

log = logging.getLogger("bellwether.decision")


class RampGuard:
    """Name the arm of each unit, and stop an arm that does harm. One event loop owns it."""

    def __init__(self, limits: GuardrailParams, account: Account, alarms: AlarmQueue) -> None:
        """Start with nothing stopped: what another process stopped, its alarm and the flows behind it have ended."""
        self._limits, self._account, self._alarms = limits, account, alarms
        self._stopped: dict[int, str] = {}  # experiment → why
        self._answered: dict[int, dict[str, float]] = defaultdict(dict)  # experiment → arm → ms of its newest answer
        # experiment → ms of champion and challenger at the same closes
        self._ms: dict[int, deque[tuple[float, float]]] = defaultdict(lambda: deque(maxlen=LATENCY_ANSWERS))
        self._peak: dict[int, float] = {}  # experiment → highest equity since its guarded arm decides

    def assigned(self, snapshot: Snapshot, symbol: Symbol) -> dict[str, Assigned]:
        """Return family → arm of this close, of families in a canary or split.

        The champion decides in place of a challenger that was stopped or is not served; the record says so.
        """
        found, at_s = {}, symbol.closed.close_time
        for family, assignment in snapshot.assignments.items():
            block = assignment.block(at_s)
            if assignment.weight(block) > 0.0:
                slot = snapshot.slot(family, "challenger")
                is_out = assignment.experiment in self._stopped or slot is None or slot.digest != assignment.challenger
                arm = "champion" if is_out else assignment.arm(symbol.name, block)
                found[family] = Assigned(assignment.experiment, block, arm)
        return found

    def time(self, snapshot: Snapshot, family: str, arm: str, ms: float) -> None:
        """Take how long the answer of a model in this process took."""
        if (assignment := snapshot.assignments.get(family)) is not None:
            answered = self._answered[assignment.experiment]
            answered[arm] = ms
            if len(answered) == len(ARMS):
                self._ms[assignment.experiment].append((answered["champion"], answered["challenger"]))
                answered.clear()

    def look(self, snapshot: Snapshot, symbol: Symbol, answers: ModelAnswers) -> None:
        """Stop the guarded arm of each experiment that trips a guardrail by the answers at this close."""
        self._forget_ended(snapshot)
        for family, assignment in snapshot.assignments.items():
            if (
                assignment.experiment not in self._stopped
                and (why := self._harm(assignment, family, symbol, answers)) is not None
            ):
                self._stopped[assignment.experiment] = why
                slot = snapshot.slot(family, assignment.guarded)
                version = slot.version if slot else "?"
                detail = f"experiment {assignment.experiment}: {family} {assignment.guarded} version {version}: {why}"
                log.error("guardrail: %s", detail)
                self._alarms.raise_alarm(GUARDRAIL, "high", detail, f"experiment {assignment.experiment}: ")

    def _harm(self, assignment: Assignment, family: str, symbol: Symbol, answers: ModelAnswers) -> str | None:
        """Return which guardrail the guarded arm trips, and why; None if it trips none."""
        number, limits = assignment.experiment, self._limits
        answer = answers.get(family, {}).get(assignment.guarded)
        if answer is not None and (found := fault_harm([faulty(answer)])).reason is not None:
            return found.reason
        times = np.array(self._ms[number], dtype=np.float64).reshape(-1, len(ARMS)).T
        guarded, other = reversed(times) if assignment.guarded == "challenger" else times
        if (found := latency_harm(other, guarded, limits.latency_ms)).reason is not None:
            return found.reason
        decides = assignment.guarded == "champion" or assignment.weight(assignment.block(symbol.closed.close_time)) > 0
        if not decides:
            return None
        equity = self._account.equity
        self._peak[number] = max(self._peak.get(number, equity), equity)
        return drawdown_harm(np.array([self._peak[number], equity]), limits.drawdown).reason

    def _forget_ended(self, snapshot: Snapshot) -> None:
        """Forget what was kept of experiments and versions that are not served any more."""
        running = {assignment.experiment for assignment in snapshot.assignments.values()}
        for kept in (self._stopped, self._answered, self._ms, self._peak):
            for number in [number for number in kept if number not in running]:
                del kept[number]
