"""New stores without the work of their migrations: a process runs them once for each kind of database and then repeats
the statements that they sent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipelines.store import engine

Statement = tuple[str, Any]
READING = ("SELECT", "PRAGMA", "WITH", "SHOW")


def repeating(migrate: Callable[..., None]) -> Callable[..., None]:
    """Return `migrate` as it is for a database that holds something; for an empty one, what it did to the first."""
    sent: dict[tuple[str, str], list[Statement]] = {}

    @wraps(migrate)
    def brought_up(connection: Connection, revision: str = "head") -> None:
        kind = connection.dialect.name, revision
        if sa.inspect(connection).get_table_names():
            migrate(connection, revision)
        elif kind in sent:
            engine.lock_migrations(connection)
            for statement, parameters in sent[kind]:
                connection.exec_driver_sql(statement, parameters)
        else:
            with recorded(connection) as statements:
                migrate(connection, revision)
            sent[kind] = statements

    return brought_up


@contextmanager
def recorded(connection: Connection) -> Iterator[list[Statement]]:
    """Yield the list of what is sent to the database meanwhile, without what only reads."""
    statements: list[Statement] = []

    def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        if not statement.lstrip().startswith(READING):
            statements.append((statement, parameters or None))

    sa.event.listen(connection, "before_cursor_execute", record)
    try:
        yield statements
    finally:
        sa.event.remove(connection, "before_cursor_execute", record)
