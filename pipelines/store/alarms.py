"""Alarms: what needs a person's or the reconciler's attention, until it is cleared."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from pipelines.migrations import tables as t
from pipelines.store.engine import Database, between, insert_row, lock_table


@dataclass(frozen=True, slots=True)
class Alarm:
    """Hold one alarm, open while `cleared_at` is None."""

    id: int
    kind: str
    severity: str
    detail: str
    at: datetime
    cleared_at: datetime | None


class AlarmStore(Database):
    """Store alarms, open and cleared."""

    def raise_alarm(self, kind: str, severity: str, detail: str, at: datetime) -> int:
        """Raise an alarm and return its id. An open alarm of the same kind and detail is not raised twice."""
        with self.writing() as connection:
            lock_table(connection, t.alarms)
            same = (t.alarms.c.kind == kind, t.alarms.c.detail == detail, t.alarms.c.cleared_at.is_(None))
            found = connection.scalar(sa.select(t.alarms.c.id).where(*same))
            if found is not None:
                return int(found)
            return insert_row(connection, t.alarms, {"kind": kind, "severity": severity, "detail": detail, "at": at})

    def revise_alarm(self, alarm_id: int, detail: str) -> bool:
        """Replace the detail of an open alarm, which stays the same alarm; return False if it is not open."""
        with self.writing() as connection:
            query = sa.update(t.alarms).where(t.alarms.c.id == alarm_id, t.alarms.c.cleared_at.is_(None))
            return bool(connection.execute(query.values(detail=detail)).rowcount)

    def clear_alarm(self, alarm_id: int, at: datetime) -> bool:
        """Mark an alarm as resolved; return False if it was not open."""
        with self.writing() as connection:
            query = sa.update(t.alarms).where(t.alarms.c.id == alarm_id, t.alarms.c.cleared_at.is_(None))
            return bool(connection.execute(query.values(cleared_at=at)).rowcount)

    def alarms(self, open_only: bool = True, since: datetime | None = None) -> list[Alarm]:
        """Return alarms raised at or after `since`, oldest first."""
        query = between(sa.select(t.alarms).order_by(t.alarms.c.id), t.alarms.c.at, since, None)
        if open_only:
            query = query.where(t.alarms.c.cleared_at.is_(None))
        return [Alarm(**row) for row in self._rows(query)]
