"""Experiments: a challenger compared with its champion, by rules fixed at the start, on blocks that never change."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Literal, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipelines.contracts import JsonObject, utc
from pipelines.errors import StateError, UnknownName
from pipelines.experiments.assignment import Assignment, Stage
from pipelines.experiments.eprocess import GAP_HORIZONS
from pipelines.experiments.verdict import Rules
from pipelines.migrations import tables as t
from pipelines.store.chain_lines import chain_row, proven_rows
from pipelines.store.engine import Database, insert_row, lock_table

ExperimentState = Literal[
    "shadow",  # both arms score every decision, the champion decides
    "canary",  # it has won in shadow: it decides a few units of (symbol, block)
    "split",  # the same, of half of them
    "probation",  # of a new champion: the one before scores in shadow, to be served again
    "won", "stopped", "refused", "expired", "overridden",
]  # fmt: skip
RAMP: tuple[ExperimentState, ...] = ("shadow", "canary", "split")  # in their order, each may be left out
RUNNING: tuple[ExperimentState, ...] = (*RAMP, "probation")


@dataclass(frozen=True, slots=True)
class Experiment:
    """Hold what was fixed when an experiment began.

    at                      time of day of the start
    family                  of the versions compared; POLICY for a standing arm
    champion, challenger    versions, with the digests of their bundles
    unit                    of a gain: the champion's loss less the challenger's
    origin_s                start of the first block, market time in epoch seconds, chosen before any score
    horizon_s, horizons     longest time from a decision to its outcome, and the length of a block in such
    alpha … max_blocks      as `experiments.verdict.Rules`
    evidence                what bound and least gain rest on, who began it and why
    """

    at: datetime
    family: str
    champion: str
    champion_digest: str
    challenger: str
    challenger_digest: str
    unit: str
    origin_s: float
    horizon_s: float
    horizons: int
    alpha: float
    bound: float
    least_gain: float
    futility_alpha: float
    max_blocks: int
    evidence: JsonObject = field(default_factory=dict)
    id: int | None = None  # assigned by the store

    @property
    def number(self) -> int:
        """Return the id of a stored experiment."""
        assert self.id is not None, "it is not stored yet"
        return self.id

    @property
    def rules(self) -> Rules:
        """Return the rules of its test."""
        return Rules(self.alpha, self.bound, self.least_gain, self.futility_alpha, self.max_blocks)

    @property
    def begun(self) -> datetime:
        """Return when its first block starts, in market time."""
        return utc(self.origin_s)

    @property
    def period_s(self) -> float:
        """Return the time from the start of a block to the next, seconds."""
        return (self.horizons + GAP_HORIZONS) * self.horizon_s

    @property
    def is_probation(self) -> bool:
        """Return whether it watches a new champion: its challenger is the version before."""
        return bool(self.evidence.get("probation"))

    def assignment(self, transitions: "Sequence[Transition]") -> Assignment:
        """Return which arm decides when, by the stages that its transitions state."""
        stages = [t.evidence["stage"] for t in transitions if "stage" in t.evidence]
        return Assignment(
            self.number, self.evidence["key"], self.origin_s, self.period_s, self.champion_digest,
            self.challenger_digest, "champion" if self.is_probation else "challenger",
            tuple(Stage(one["from_block"], one["weight"]) for one in stages),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Transition:
    """Hold one state of an experiment: since when, by whom, why, and on what evidence. `as_of_s`: market time, s."""

    experiment: int
    at: datetime
    as_of_s: float
    state: ExperimentState
    actor: str
    reason: str
    evidence: JsonObject = field(default_factory=dict)
    id: int | None = None  # assigned by the store


@dataclass(frozen=True, slots=True)
class BlockScore:
    """Hold the score of one block: the mean gain of `n` outcomes that both arms scored; None where it is void.

    start_s  market time, epoch seconds; void: why the block does not count, empty where it does
    harm     guardrail → mean over the block's decisions of what it limits; of those that had any
    """

    experiment: int
    number: int
    start_s: float
    n: int
    mean: float | None
    void: str
    at: datetime
    harm: Mapping[str, float] = field(default_factory=dict)
    id: int | None = None  # assigned by the store


class ExperimentStore(Database):
    """Store experiments, their states and the scores of their blocks. Rows are never changed or deleted."""

    def begin_experiment(
        self, experiment: Experiment, actor: str, reason: str, state: ExperimentState = "shadow"
    ) -> Experiment:
        """Store an experiment with its first state; return it with its id.

        Raises  StateError if one of the family, or of the same standing arm, runs
        """
        with self.writing() as connection:
            lock_table(connection, t.experiments)
            for other in self._experiments(connection, experiment.family):
                same_arm = other.alpha > 0.0 or other.challenger == experiment.challenger
                if same_arm and self._state(connection, other.number) in RUNNING:
                    raise StateError(
                        f"experiment {other.id} of {other.family} version {other.challenger} still runs; "
                        f"`bellwether ab stop {other.id}` ends it"
                    )
            values = asdict(experiment)
            del values["id"]
            number = insert_row(connection, t.experiments, values)
            chain_row(connection, self._chain_key, t.experiments, number)
            begun = Experiment(**{**values, "id": number})
            first = Transition(number, begun.at, begun.origin_s, state, actor, reason, {})
            self._add(connection, t.transitions, first)
            return begun

    def move_experiment(self, transition: Transition) -> bool:
        """Store the next state of an experiment; False, and nothing is stored, if it is in this state already.

        Raises  StateError if it has ended otherwise, UnknownName for no such experiment
        """
        with self.writing() as connection:
            lock_table(connection, t.transitions)
            state = self._state(connection, transition.experiment)
            if state == transition.state:
                return False
            if state not in RUNNING and (state, transition.state) != ("won", "refused"):
                raise StateError(f"experiment {transition.experiment} has ended: {state}")
            later = RAMP[RAMP.index(state) + 1 :] if state in RAMP else ()
            if transition.state in RUNNING and transition.state not in later:
                raise StateError(f"experiment {transition.experiment}: no {transition.state} comes after {state}")
            self._add(connection, t.transitions, transition)
            return True

    def add_block_scores(self, scores: Sequence[BlockScore]) -> int:
        """Store the scores of blocks, each once; return how many are new. Those stored before stay as they are."""
        added = 0
        with self.writing() as connection:
            lock_table(connection, t.block_scores)
            for score in scores:
                there = sa.select(t.block_scores.c.id).where(
                    t.block_scores.c.experiment == score.experiment, t.block_scores.c.number == score.number
                )
                if connection.scalar(there) is None:
                    self._add(connection, t.block_scores, score)
                    added += 1
        return added

    def experiments(self, family: str | None = None) -> list[Experiment]:
        """Return the experiments that are as the chain says, oldest first."""
        with self._engine.connect() as connection:
            return self._experiments(connection, family)

    def experiment(self, number: int) -> Experiment:
        """Return one experiment. Raises UnknownName."""
        for experiment in self.experiments():
            if experiment.id == number:
                return experiment
        raise UnknownName(f"no experiment {number}; `bellwether ab list` shows those there are")

    def transitions(self, number: int) -> list[Transition]:
        """Return the states of an experiment that are as the chain says, oldest first."""
        query = sa.select(t.transitions).where(t.transitions.c.experiment == number).order_by(t.transitions.c.id)
        with self._engine.connect() as connection:
            rows = proven_rows(connection, self._chain_key, t.transitions, query)
        return [Transition(**row) for row in rows]

    def experiment_state(self, number: int) -> ExperimentState:
        """Return the present state of an experiment. Raises UnknownName."""
        with self._engine.connect() as connection:
            return self._state(connection, number)

    def running_experiment(self, family: str) -> Experiment | None:
        """Return the experiment of a family that runs, the newest one; None without one. Not of standing arms."""
        with self._engine.connect() as connection:
            for experiment in reversed(self._experiments(connection, family)):
                if self._state(connection, experiment.number) in RUNNING:
                    return experiment
        return None

    def assignment(self, family: str) -> Assignment | None:
        """Return which arm of a family decides when, while an experiment of it runs; None without one."""
        experiment = self.running_experiment(family)
        return None if experiment is None else experiment.assignment(self.transitions(experiment.number))

    def block_scores(self, number: int) -> list[BlockScore]:
        """Return the scores of an experiment's blocks that are as the chain says, in their order."""
        b = t.block_scores
        query = sa.select(b).where(b.c.experiment == number).order_by(b.c.number)
        with self._engine.connect() as connection:
            return [BlockScore(**row) for row in proven_rows(connection, self._chain_key, b, query)]

    def _experiments(self, connection: Connection, family: str | None) -> list[Experiment]:
        """Return the proven experiments, of one family or all, oldest first."""
        query = sa.select(t.experiments).order_by(t.experiments.c.id)
        if family is not None:
            query = query.where(t.experiments.c.family == family)
        return [Experiment(**row) for row in proven_rows(connection, self._chain_key, t.experiments, query)]

    def _state(self, connection: Connection, number: int) -> ExperimentState:
        """Return the last proven state of an experiment."""
        query = sa.select(t.transitions).where(t.transitions.c.experiment == number).order_by(t.transitions.c.id)
        rows = proven_rows(connection, self._chain_key, t.transitions, query)
        if not rows:
            raise UnknownName(f"no experiment {number}; `bellwether ab list` shows those there are")
        return cast(ExperimentState, rows[-1]["state"])

    def _add(self, connection: Connection, table: sa.Table, row: Transition | BlockScore) -> None:
        """Insert a row with its line on the chain."""
        values = asdict(row)
        del values["id"]
        chain_row(connection, self._chain_key, table, insert_row(connection, table, values))
