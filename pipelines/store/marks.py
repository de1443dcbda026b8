"""What a process that follows the store reads at each poll: numbers that move where others wrote what it follows."""

from datetime import UTC, datetime
from typing import NamedTuple

import sqlalchemy as sa

from pipelines.migrations import tables as t
from pipelines.store.engine import Database

_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
# as text, in one statement: where nothing moved, a poll of a service reads nothing else
_MARKS = sa.text(
    f"SELECT (SELECT max(id) FROM {t.corrections.name}), "
    f"(SELECT count(*) FROM {t.latches.name}), (SELECT count(reset_at) FROM {t.latches.name}), "
    f"(SELECT count(*) FROM {t.outcomes.name} WHERE resolved_at >= :since)"
).bindparams(sa.bindparam("since", type_=t.UtcTime()))


class Marks(NamedTuple):
    """Hold marks to compare with those of an earlier poll; equal ones mean that there is nothing new to read.

    corrections  number of the newest correction, 0 without one
    trips        how many trips of breakers are stored, and how many of them were reset
    outcomes     moment from which outcomes are counted, and how many resolved at it or later
    """

    corrections: int
    trips: tuple[int, int]
    outcomes: tuple[datetime | None, int]


class MarkStore(Database):
    """Read the marks of a store."""

    def marks(self, since: datetime | None) -> Marks:
        """Return the marks, read under the write lock: a StoreFault where it is not free within `wait_ms`.

        since  moment (aware) from which outcomes are counted, by when they resolved; None = all of them
        """
        with self.writing() as connection:
            if connection.dialect.name == "postgresql":  # the lock that every insert takes
                connection.exec_driver_sql("LOCK TABLE bars, decisions, outcomes, latches IN ROW EXCLUSIVE MODE")
            row = connection.execute(_MARKS, {"since": since or _EARLIEST}).one()
        corrections, trips, resets, outcomes = (int(number or 0) for number in row)
        return Marks(corrections, (trips, resets), (since, outcomes))
