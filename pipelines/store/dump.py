"""All tables of a store as plain rows, and back into an empty store: what a backup is made of."""

import base64
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.exc import DataError, IntegrityError

from pipelines.errors import StateError, UnreadableFile, WouldOverwrite
from pipelines.migrations import tables as t
from pipelines.migrations.tables import SCHEMA
from pipelines.store.engine import MIGRATIONS, connect_engine, exists, known_revision, lock_migrations, migrate

TRANSIENT = ("leases",)  # their rows name processes that run now: no part of a dump
ROWS_AT_ONCE = 1000  # read or written with one statement
Row = list[Any]  # plain JSON types, in the order of the table's columns


@dataclass(frozen=True, slots=True)
class Dump:
    """Hold every table as it is in one transaction.

    schema   revision the tables belong to
    columns  table → its columns; tables that others refer to come first
    rows     table → rows in the order of the primary key, in plain JSON types: a time in ISO 8601, bytes in base 64, a
             number that is not finite as a word. The same rows give the same text from either database
    """

    schema: str
    columns: Mapping[str, tuple[str, ...]]
    rows: Callable[[str], Iterator[Row]]


@contextmanager
def open_dump(url: str) -> Iterator[Dump]:
    """Yield a store's tables as of one moment, while others may write.

    The store is not migrated first, so that a release can back up what the one before it left.
    Raises  StateError if there is no store, or a newer one
    """
    shown = make_url(url).render_as_string(hide_password=True)
    if not exists(url):
        raise StateError(f"there is no store at {shown}; `bellwether run --once` makes one")
    engine = connect_engine(url, "process")
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                revision = known_revision(connection)
                if revision is None:
                    raise StateError(f"{shown} holds no store; `bellwether run --once` makes one")
                yield _dump(connection, revision)
    finally:
        engine.dispose()


def nonempty_tables(url: str) -> dict[str, int]:
    """Return table → rows of the tables that have any; empty for a new store. Changes nothing."""
    if not exists(url):
        return {}
    engine = connect_engine(url, "process")
    try:
        with engine.connect() as connection:
            return _row_counts(connection)
    finally:
        engine.dispose()


def load(url: str, schema: str, rows: Callable[[str], Iterator[Row]], check: Callable[[Dump], None]) -> None:
    """Load a dump into an empty store in one transaction and migrate it to the current schema: all of it, or nothing.

    schema  revision of the dump; an older one is migrated after its rows are in
    rows    table → rows as `Dump.rows` gives them
    check   receives what is stored before it is committed; an exception from it undoes everything
    Raises  WouldOverwrite if any table has a row, StateError and UnreadableFile for a schema we do not know
    """
    refuse_unknown(schema)
    engine = connect_engine(url, "power")
    try:
        with engine.execution_options(writes=True).begin() as connection:
            lock_migrations(connection)
            if engine.dialect.name == "postgresql":
                for name in _present(connection):  # no row may come in between the count and the drop of the tables
                    connection.exec_driver_sql(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
            refuse_nonempty(_row_counts(connection))
            _drop_tables(connection)
            migrate(connection, schema)
            for table in _reflected(connection):
                _insert(connection, table, rows(table.name))
            check(_dump(connection, schema))
            migrate(connection)
    finally:
        engine.dispose()


def refuse_unknown(schema: str) -> None:
    """Raise StateError for the schema of a newer release, UnreadableFile for one that no release had."""
    if schema > SCHEMA:
        raise StateError(f"the backup is of schema {schema}, this release knows {SCHEMA}. Install the newer release.")
    if schema not in {file.name[:4] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")}:
        raise UnreadableFile(f"the backup names schema {schema!r}, which no release had; is it a backup of this store?")


def refuse_nonempty(row_counts: Mapping[str, int]) -> None:
    """Raise WouldOverwrite with the counts if any table has rows."""
    if row_counts:
        shown = ", ".join(f"{n:,} {table}" for table, n in row_counts.items())
        raise WouldOverwrite(
            f"the store is not empty: it holds {shown}. A backup is restored into an empty store only: point "
            "BELLWETHER_HOME or BELLWETHER_STORE_URL at a new one, or move the old one away."
        )


def _present(connection: Connection) -> list[str]:
    """Return the names of our tables that the database has."""
    return sorted(set(sa.inspect(connection).get_table_names()) & set(t.METADATA.tables))


def _row_counts(connection: Connection) -> dict[str, int]:
    """Return table → rows of the tables that have any, without the transient ones."""
    counted = {
        name: connection.scalar(sa.select(sa.func.count()).select_from(sa.table(name)))
        for name in _present(connection)
        if name not in TRANSIENT
    }
    return {name: int(n) for name, n in counted.items() if n}


def _drop_tables(connection: Connection) -> None:
    """Drop empty tables of whatever schema, so that an older schema can be built in their place."""
    t.METADATA.drop_all(connection)
    connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
    if connection.dialect.name == "postgresql":
        for table in ("promotions", "corrections", "record_parts", "chain", "parameters"):  # the append-only ones
            connection.exec_driver_sql(f"DROP FUNCTION IF EXISTS {table}_refuse()")


def _reflected(connection: Connection) -> list[sa.Table]:
    """Return the tables as the database has them, which may be of an older schema than the code's."""
    metadata = sa.MetaData()

    @sa.event.listens_for(metadata, "column_reflect")
    def reflect(_inspector: object, _table: sa.Table, column: Any) -> None:
        """Read every time as aware UTC."""
        if isinstance(column["type"], sa.DateTime):
            column["type"] = t.UtcTime()

    metadata.reflect(connection, only=lambda name, _: name in t.METADATA.tables and name not in TRANSIENT)
    return metadata.sorted_tables


def _dump(connection: Connection, schema: str) -> Dump:
    """Return the tables that the connection sees, at revision `schema`."""
    tables = {table.name: table for table in _reflected(connection)}

    def rows(name: str) -> Iterator[Row]:
        """Yield the rows of a table in plain JSON types."""
        table = tables[name]
        query = sa.select(table).order_by(*table.primary_key.columns)
        for row in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}):
            yield [_plain(value) for value in row]

    return Dump(schema, {name: tuple(c.name for c in table.columns) for name, table in tables.items()}, rows)


def _plain(value: Any) -> Any:
    """Return a stored value as plain JSON: ISO 8601, base 64, or a word for a number that is not finite."""
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is datetime:
        return value.isoformat()
    return base64.b64encode(value).decode() if kind is bytes else value


def _parser(column: sa.Column[Any]) -> Callable[[Any], Any]:
    """Return the function that reverses `_plain` for a column."""
    if isinstance(column.type, sa.LargeBinary):
        return base64.b64decode
    if isinstance(column.type, t.UtcTime):
        return datetime.fromisoformat
    return float if isinstance(column.type, sa.Float) else lambda value: value


def _insert(connection: Connection, table: sa.Table, rows: Iterator[Row]) -> None:
    """Insert rows of a dump. Raises UnreadableFile if they do not fit the table."""
    columns = [(column.name, _parser(column)) for column in table.columns]
    try:
        while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
            values = [
                {name: None if value is None else kind(value) for (name, kind), value in zip(columns, row, strict=True)}
                for row in some
            ]
            connection.execute(sa.insert(table), values)
    except (ValueError, TypeError, IntegrityError, DataError) as error:
        raise UnreadableFile(f"the backup's rows of {table.name} do not fit the table: {error}") from error
    key = table.primary_key.columns
    if connection.dialect.name == "postgresql" and [c.name for c in key] == ["id"] and key["id"].autoincrement is True:
        highest = sa.select(sa.func.max(table.c.id)).scalar_subquery()
        # for an empty table the third argument is false: 1 was not assigned yet
        assigned = sa.func.setval(
            sa.func.pg_get_serial_sequence(table.name, "id"), sa.func.coalesce(highest, 1), highest.is_not(None)
        )
        connection.execute(sa.select(assigned))
