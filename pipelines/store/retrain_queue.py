"""The queue of retrain requests: one open request a family, a cool-down after each, a lease for the worker."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from pipelines.errors import LeaseHeld, UnknownName
from pipelines.migrations import tables as t
from pipelines.store.engine import Database, insert_row, lock_row

ATTEMPTS = 2  # a retrain whose worker died is started once more, never a third time


@dataclass(frozen=True, slots=True)
class RetrainAnswer:
    """Hold the result of a retrain request; `id` is the stored request that covers it."""

    state: Literal["queued", "duplicate", "cooling_down"]
    id: int
    detail: str


@dataclass(frozen=True, slots=True)
class RetrainRequest:
    """Hold one request to retrain a family. `attempts` counts how often a worker started it.

    at, finished_at  time of learning: of the market where that has its own clock (releases up to 0.10: time of day)
    lease_until      time of day
    """

    id: int
    family: str
    reason: str
    at: datetime
    state: Literal["queued", "running", "done", "failed"]
    holder: str | None
    lease_until: datetime | None
    finished_at: datetime | None
    detail: str
    attempts: int = 0


class RetrainQueue(Database):
    """Store retrain requests, from queued to done or failed."""

    def request_retrain(self, family: str, reason: str, at: datetime, cooldown: timedelta) -> RetrainAnswer:
        """Queue a retrain of `family`, unless one is open or the last one ended less than `cooldown` ago.

        at  time of learning. A request that ended by another clock, years ahead or ago, cools nothing down.
        """
        q = t.retrain_requests
        try:
            with self.writing() as connection:
                query = sa.select(q).where(q.c.family == family).order_by(q.c.id.desc()).limit(1)
                last = connection.execute(query).mappings().first()
                if last is not None and last["state"] in ("queued", "running"):
                    detail = f"request {last['id']} is {last['state']} since {last['at']:%F %T} UTC: {last['reason']}"
                    return RetrainAnswer("duplicate", last["id"], detail)
                if last is not None and abs(at - last["finished_at"]) < cooldown:
                    over = last["finished_at"] + cooldown
                    detail = f"request {last['id']} ended {last['state']}; cooling down until {over:%F %T} UTC"
                    return RetrainAnswer("cooling_down", last["id"], detail)
                values = {"family": family, "reason": reason, "at": at, "state": "queued", "detail": ""}
                return RetrainAnswer("queued", insert_row(connection, q, values), reason)
        except IntegrityError:  # another process queued one between the select and the insert
            open_one = self.retrain_requests(family, last=1)[0]
            return RetrainAnswer("duplicate", open_one.id, f"request {open_one.id} is {open_one.state}")

    def claim_retrain(
        self, holder: str, at: datetime, lease: timedelta, family: str | None = None
    ) -> RetrainRequest | None:
        """Claim the oldest request that is queued, or that was started once by a worker whose lease expired.

        at       time of day, from which the lease counts
        Returns  None if there is none, of `family` where one is given
        """
        q = t.retrain_requests
        died = sa.and_(q.c.state == "running", q.c.lease_until <= at, q.c.attempts < ATTEMPTS)
        waiting = sa.or_(q.c.state == "queued", died)
        with self.writing() as connection:
            row = lock_row(connection, q, waiting if family is None else sa.and_(waiting, q.c.family == family))
            if row is None:
                return None
            mine = {
                "state": "running", "holder": holder, "lease_until": at + lease, "attempts": row["attempts"] + 1,
            }  # fmt: skip
            connection.execute(sa.update(q).where(q.c.id == row["id"]).values(**mine))
            return RetrainRequest(**{**row, **mine})

    def renew_retrain_lease(self, request_id: int, holder: str, until: datetime) -> bool:
        """Extend the lease of a running request; return False if `holder` no longer has it."""
        q = t.retrain_requests
        mine = sa.update(q).where(q.c.id == request_id, q.c.holder == holder, q.c.state == "running")
        with self.writing() as connection:
            return bool(connection.execute(mine.values(lease_until=until)).rowcount)

    def finish_retrain(self, request_id: int, holder: str, at: datetime, ok: bool, detail: str) -> None:
        """Close a claimed request at `at`, time of learning.

        Raises LeaseHeld if another worker took it over meanwhile, UnknownName.
        """
        q = t.retrain_requests
        with self.writing() as connection:
            row = lock_row(connection, q, q.c.id == request_id)
            if row is None:
                raise UnknownName(f"no retrain request {request_id}")
            if row["state"] != "running" or row["holder"] != holder:
                raise LeaseHeld(f"retrain request {request_id} is {row['state']} with {row['holder']}, not {holder}.")
            values = {"state": "done" if ok else "failed", "finished_at": at, "detail": detail}
            connection.execute(sa.update(q).where(q.c.id == request_id).values(**values))

    def retrain_requests(self, family: str | None = None, last: int | None = None) -> list[RetrainRequest]:
        """Return requests, newest first; at most `last`."""
        query = sa.select(t.retrain_requests).order_by(t.retrain_requests.c.id.desc()).limit(last)
        if family is not None:
            query = query.where(t.retrain_requests.c.family == family)
        return [RetrainRequest(**row) for row in self._rows(query)]
