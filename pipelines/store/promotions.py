"""The append-only promotion ledger (law L5), and how often each family was fitted."""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipelines.contracts import JsonObject
from pipelines.migrations import tables as t
from pipelines.store.chain_lines import chain_row, proven_rows
from pipelines.store.engine import Database, insert_row, known

NO_ARM = "none"  # of a candidate that was judged and serves in no slot


@dataclass(frozen=True, slots=True)
class Promotion:
    """Hold one line of the promotion ledger: who, why, from, to, and the evidence.

    challenge  the gate's verdict; with the arm "challenger" the version serves in shadow, with NO_ARM it does not
    shadow     a version that was judged before takes the challenger's slot
    """

    at: datetime
    actor: str
    action: Literal["promote", "rollback", "refuse", "challenge", "shadow"]
    family: str
    arm: str
    from_version: str | None
    to_version: str | None
    digest: str | None
    run_id: str | None
    data_hash: str | None
    git_commit: str | None
    verdict_passed: bool | None
    reason: str
    evidence: JsonObject = field(default_factory=dict)
    id: int | None = None  # assigned by the store


@dataclass(frozen=True, slots=True)
class LedgerSlots:
    """Hold the ledger lines that put champion and challenger into the two slots of a family."""

    champion: Promotion | None
    challenger: Promotion | None


class PromotionStore(Database):
    """Store the promotion ledger and the trials that the deflated Sharpe ratio counts."""

    def add_promotion(self, promotion: Promotion, within: Connection | None = None) -> int:
        """Append to the promotion ledger and return the line's id. Lines are never changed or deleted."""
        values = asdict(promotion)
        del values["id"]
        with self.writing(within) as connection:
            number = insert_row(connection, t.promotions, values)
            chain_row(connection, self._chain_key, t.promotions, number)
            return number

    def promotions(
        self, family: str | None = None, last: int | None = None, known_by: datetime | None = None
    ) -> list[Promotion]:
        """Return the ledger, oldest first; `last` limits it to the newest so many lines."""
        query = sa.select(t.promotions).order_by(t.promotions.c.id.desc()).limit(last)
        query = known(query, t.promotions.c.at, known_by)
        if family is not None:
            query = query.where(t.promotions.c.family == family)
        return [Promotion(**row) for row in reversed(self._rows(query))]

    def proven_promotions(self, family: str, known_by: datetime | None = None) -> list[Promotion]:
        """Return the lines of a family that are as the chain says, oldest first; all of them without its key."""
        return self._proven_promotions([family], known_by)

    def slots(self, family: str, known_by: datetime | None = None) -> LedgerSlots:
        """Return the slots of a family, derived from its proven ledger lines in order."""
        return self.slots_of([family], known_by)[family]

    def slots_of(self, families: Collection[str], known_by: datetime | None = None) -> dict[str, LedgerSlots]:
        """Return family → its slots, from one reading of the ledger: each reading proves all of the chain's lines."""
        lines: dict[str, list[Promotion]] = {family: [] for family in families}
        for line in self._proven_promotions(families, known_by):
            lines[line.family].append(line)
        return {family: _slots_after(own) for family, own in lines.items()}

    def _proven_promotions(self, families: Collection[str], known_by: datetime | None) -> list[Promotion]:
        """Return the lines of these families that are as the chain says, oldest first."""
        with self._engine.connect() as connection:
            query = sa.select(t.promotions).where(t.promotions.c.family.in_(families)).order_by(t.promotions.c.id)
            query = known(query, t.promotions.c.at, known_by)
            rows = proven_rows(connection, self._chain_key, t.promotions, query)
        return [Promotion(**row) for row in rows]

    def verdict(self, family: str, version: str, digest: str) -> Promotion | None:
        """Return the newest proven verdict on exactly these bytes; None if the gate never judged them."""
        lines = [
            line
            for line in self.proven_promotions(family)
            if line.action == "challenge" and line.to_version == version and line.digest == digest
        ]
        return lines[-1] if lines else None

    def add_trial(self, family: str, run_id: str, spec_hash: str, at: datetime) -> int:
        """Record that one specification was fitted and scored; return how many this family has had."""
        with self.writing() as connection:
            insert_row(connection, t.trials, {"family": family, "run_id": run_id, "spec_hash": spec_hash, "at": at})
            return _count(connection, family)

    def count_trials(self, family: str) -> int:
        """Return how many specifications of this family were fitted and scored."""
        with self._engine.connect() as connection:
            return _count(connection, family)


def _count(connection: Connection, family: str) -> int:
    """Return the number of trials of a family."""
    return int(connection.scalar(sa.select(sa.func.count()).where(t.trials.c.family == family)) or 0)


def _slots_after(lines: Iterable[Promotion]) -> LedgerSlots:
    """Return the slots of a family after its lines, oldest first."""
    champion: Promotion | None = None
    challenger: Promotion | None = None
    for line in lines:
        if line.action == "shadow" or (line.action == "challenge" and line.arm != NO_ARM):
            challenger = line
        elif line.action in ("promote", "rollback"):
            champion = line
            if challenger is not None and challenger.to_version == line.to_version:
                challenger = None
    return LedgerSlots(champion, challenger)
