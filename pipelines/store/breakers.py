"""Trips of circuit breakers (law L7)."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from pipelines.errors import BadValues, UnknownName
from pipelines.migrations import tables as t
from pipelines.store.engine import Database, insert_row


@dataclass(frozen=True, slots=True)
class BreakerTrip:
    """Hold a trip of a circuit breaker, open until a named person resets it with a reason."""

    id: int
    name: str
    tripped_at: datetime
    reason: str
    reset_at: datetime | None
    reset_by: str | None
    reset_reason: str | None
    reset_as_of: datetime | None = None  # event time up to which its cause was accepted; None: before release 0.5.0


class BreakerStore(Database):
    """Store the trips of each breaker, of which at most one is open."""

    def trip(self, name: str, at: datetime, reason: str, within: Connection | None = None) -> bool:
        """Trip a breaker; return False if it is tripped already, and then the first reason stays."""
        with self.writing(within) as connection:
            tripped = sa.select(t.latches.c.id).where(t.latches.c.name == name, t.latches.c.reset_at.is_(None))
            if connection.scalar(tripped) is not None:
                return False
            try:
                with connection.begin_nested():  # a conflict must not undo what else this transaction wrote
                    insert_row(connection, t.latches, {"name": name, "tripped_at": at, "reason": reason})
            except IntegrityError:  # another process tripped it at the same moment
                return False
        return True

    def reset(self, name: str, at: datetime, by: str, reason: str) -> None:
        """Reset a breaker by hand: everything in the ledger at this moment counts as accepted (`reset_as_of`).

        Raises  BadValues without a name and a reason, UnknownName if it is not tripped
        """
        if not by.strip() or not reason.strip():
            raise BadValues("resetting a breaker needs a person and a reason: give both")
        with self.writing() as connection:
            known = [
                connection.scalar(sa.select(sa.func.max(at_, type_=at_.type)))
                for at_ in (t.decisions.c.as_of, t.outcomes.c.resolved_at)
            ]
            values = {
                "reset_at": at, "reset_by": by, "reset_reason": reason,
                "reset_as_of": max((moment for moment in known if moment is not None), default=None),
            }  # fmt: skip
            query = sa.update(t.latches).where(t.latches.c.name == name, t.latches.c.reset_at.is_(None))
            if not connection.execute(query.values(**values)).rowcount:
                raise UnknownName(f"breaker {name!r} is not tripped; tripped: {[x.name for x in self.breaker_trips()]}")

    def breaker_trips(self, tripped_only: bool = True) -> list[BreakerTrip]:
        """Return trips, oldest first; with `tripped_only` only those not reset yet."""
        query = sa.select(t.latches).order_by(t.latches.c.id)
        if tripped_only:
            query = query.where(t.latches.c.reset_at.is_(None))
        return [BreakerTrip(**row) for row in self._rows(query)]
