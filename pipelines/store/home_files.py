"""Small files of a home in its database: pointers of data versions, what people chose and froze.

Workers that run its flows on another disk bring them from here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from pipelines.migrations import tables as t
from pipelines.store.engine import Database, lock_table


@dataclass(frozen=True, slots=True)
class HomeFile:
    """Hold one file: its path below the home, its text, and when it became so."""

    path: str
    content: str
    at: datetime


class HomeFileStore(Database):
    """Store small files by their path below the home."""

    def put_home_files(self, files: Mapping[str, str], at: datetime) -> None:
        """Store path → text, with this time, in one transaction; what was stored under a path before is replaced."""
        with self.writing() as connection:
            lock_table(connection, t.home_files)
            connection.execute(sa.delete(t.home_files).where(t.home_files.c.path.in_(list(files))))
            if files:
                rows = [{"path": path, "content": content, "at": at} for path, content in files.items()]
                connection.execute(sa.insert(t.home_files), rows)

    def drop_home_files(self, paths: Iterable[str]) -> None:
        """Forget the files of these paths; those that are not stored are passed over."""
        with self.writing() as connection:
            connection.execute(sa.delete(t.home_files).where(t.home_files.c.path.in_(list(paths))))

    def home_files(self) -> list[HomeFile]:
        """Return every file, the one that was stored last at the end."""
        return [HomeFile(**row) for row in self._rows(sa.select(t.home_files).order_by(t.home_files.c.at))]

    def home_file_times(self) -> dict[str, datetime]:
        """Return path → when it was stored, of every file."""
        rows = self._rows(sa.select(t.home_files.c.path, t.home_files.c.at))
        return {row["path"]: row["at"] for row in rows}

    def database_time(self) -> datetime:
        """Return the time of the database's own clock, UTC: that of this machine for SQLite."""
        with self._engine.connect() as connection:
            if connection.dialect.name == "sqlite":
                return datetime.now(UTC)
            found: datetime = connection.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
            return found.astimezone(UTC)
