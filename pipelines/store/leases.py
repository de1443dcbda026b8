"""Leases: names that one holder has until a time, such as the workspace of the build graph."""

from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from pipelines.errors import LeaseHeld
from pipelines.migrations import tables as t
from pipelines.store.engine import Database, lock_row


@dataclass(frozen=True, slots=True)
class Lease:
    """Hold one lease: `name` belongs to `holder` until `expires_at`."""

    name: str
    holder: str
    acquired_at: datetime
    expires_at: datetime


class LeaseStore(Database):
    """Store leases by name."""

    def acquire_lease(self, name: str, holder: str, now: datetime, duration: timedelta) -> Lease:
        """Take `name` for `duration`; its holder may take it again. Raises LeaseHeld while another holder has it."""
        lease = Lease(name, holder, now, now + duration)
        try:
            with self.writing() as connection:
                row = lock_row(connection, t.leases, t.leases.c.name == name)
                if row is None:
                    connection.execute(sa.insert(t.leases), asdict(lease))
                elif row["holder"] == holder or row["expires_at"] <= now:
                    connection.execute(sa.update(t.leases).where(t.leases.c.name == name).values(**asdict(lease)))
                else:
                    raise LeaseHeld(
                        f"{name} is held by {row['holder']} until {row['expires_at']:%F %T} UTC. Wait or retry.",
                        row["holder"],
                    )
        except IntegrityError as error:  # two first holders at once on PostgreSQL: the other one won
            raise LeaseHeld(f"{name} was taken by another holder just now. Wait or retry.") from error
        return lease

    def lease(self, name: str) -> Lease | None:
        """Return who holds `name` or held it last, expired or not; None where it was released or never taken."""
        rows = self._rows(sa.select(t.leases).where(t.leases.c.name == name))
        return Lease(**rows[0]) if rows else None

    def renew_lease(self, name: str, holder: str, now: datetime, duration: timedelta) -> Lease:
        """Extend a lease to now + duration. Raises LeaseHeld if it expired or another holder has it."""
        with self.writing() as connection:
            row = lock_row(connection, t.leases, t.leases.c.name == name)
            if row is None or row["holder"] != holder or row["expires_at"] <= now:
                raise LeaseHeld(f"{holder} no longer holds {name}: acquire it again before going on.")
            lease = Lease(name, holder, row["acquired_at"], now + duration)
            connection.execute(sa.update(t.leases).where(t.leases.c.name == name).values(**asdict(lease)))
        return lease

    def release_lease(self, name: str, holder: str) -> bool:
        """Release a lease; return False if `holder` did not have it (any more)."""
        with self.writing() as connection:
            mine = sa.delete(t.leases).where(t.leases.c.name == name, t.leases.c.holder == holder)
            return bool(connection.execute(mine).rowcount)
