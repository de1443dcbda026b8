"""The database of another tool (MLflow, Prefect), copied whole between SQLite and PostgreSQL.

Both tools make the same tables and columns in either, with other types: a UUID is text in SQLite, a duration a time
after 1970, JSON a text or number. Rows pass through plain values that both have, and are compared as such afterwards.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DataError, IntegrityError

from pipelines.errors import StateError

ROWS_AT_ONCE = 1000
OWN_ROWS = ("alembic_version", "workspaces")  # tables that a tool's migration fills itself, in a new database
EPOCH = datetime.fromtimestamp(0, UTC).replace(tzinfo=None)  # from which SQLAlchemy counts a duration in SQLite
Kinds = Mapping[str, Mapping[str, str]]  # table → column → "json", "time", "moment", "interval", "uuid" or "plain"
Content = dict[str, tuple[int, str]]  # table → number of rows, and a digest that no order of rows changes


def connect(url: str) -> Engine:
    """Return an engine whose JSON columns give and take text, so that a JSON null and no value stay different."""
    at = make_url(url)
    return sa.create_engine(at.set(drivername=at.get_backend_name()), json_serializer=_same, json_deserializer=_same)


def shown(url: str) -> str:
    """Return the URL of a database without its password and driver."""
    at = make_url(url)
    return at.set(drivername=at.get_backend_name()).render_as_string(hide_password=True)


def without_password(url: str) -> tuple[str, str | None]:
    """Return a URL without its password, and the password."""
    at = make_url(url)
    bare = at._replace(password=None).render_as_string(hide_password=False)
    return bare, None if at.password is None else str(at.password)


def make_folder(url: str) -> None:
    """Make the folder of a SQLite database, if it is one."""
    at = make_url(url)
    if at.get_backend_name() == "sqlite":
        Path(at.database or "").parent.mkdir(parents=True, exist_ok=True)


def exists(url: str) -> bool:
    """Return whether there is a database: a SQLite URL names a file; of PostgreSQL only the tables show it."""
    at = make_url(url)
    return at.get_backend_name() != "sqlite" or Path(at.database or "").is_file()


def row_counts(url: str) -> dict[str, int]:
    """Return table → rows of the tables that have any, without those that a new database has; makes no file."""
    if not exists(url):
        return {}
    engine = connect(url)
    try:
        with engine.connect() as connection:
            names = [name for name in sa.inspect(connection).get_table_names() if name not in OWN_ROWS]
            counted = {name: _count(connection, name) for name in names}
    finally:
        engine.dispose()
    return {name: n for name, n in counted.items() if n}


def columns(url: str) -> dict[str, frozenset[str]]:
    """Return table → names of its columns; empty without a database."""
    if not exists(url):
        return {}
    engine = connect(url)
    try:
        with engine.connect() as connection:
            return {name: frozenset(table.columns.keys()) for name, table in _tables(connection).items()}
    finally:
        engine.dispose()


def differences(source: str, target: str) -> list[str]:
    """Return the tables whose rows differ between two databases with the same columns."""
    from_, to = connect(source), connect(target)
    try:
        with from_.connect() as reading, to.connect() as other:
            kinds = _kinds(reading, other)
            return _differing(_content(reading, kinds), _content(other, kinds))
    finally:
        from_.dispose()
        to.dispose()


def copy(source: str, target: str) -> dict[str, int]:
    """Copy all rows into a database with the same, empty tables, in one transaction; return table → rows.

    The foreign keys of PostgreSQL are dropped and made again within the transaction, since tables refer to each other
    in circles; it then checks every row. Its sequences continue after the highest number.
    Raises  StateError if the rows do not fit or are not read back as they were; nothing was changed then
    """
    from_, to = connect(source), connect(target)
    try:
        with from_.connect() as reading, to.begin() as writing:
            kinds = _kinds(reading, writing)
            read, written = _tables(reading), _tables(writing)
            foreign = _drop_foreign_keys(writing)
            for name, table in read.items():
                _copy_rows(reading, table, writing, written[name], kinds[name])
            _make_foreign_keys(writing, foreign)
            _set_sequences(writing, written)
            before, after = _content(reading, kinds), _content(writing, kinds)
            if odd := _differing(before, after):
                raise StateError(
                    f"{odd[0]} is not read back as it was written ({after[odd[0]][0]:,} of {before[odd[0]][0]:,} rows)."
                    " Nothing was copied."
                )
    finally:
        from_.dispose()
        to.dispose()
    return {name: n for name, (n, _) in before.items() if n}


def values_of(url: str, table: str, column: str) -> list[str]:
    """Return the values of a column of text, without those that are missing; empty without the table."""
    if not exists(url):
        return []
    engine = connect(url)
    try:
        with engine.connect() as connection:
            found = _tables(connection).get(table)
            if found is None or column not in found.c:
                return []
            query = sa.select(found.c[column]).where(found.c[column].is_not(None))
            return [str(value) for value in connection.scalars(query)]
    finally:
        engine.dispose()


# ---- tables ---------------------------------------------------------------------------------------------------------


def _tables(connection: Connection) -> dict[str, sa.Table]:
    """Return the tables with the columns that rows are written to: not those the database computes itself."""
    inspector, metadata = sa.inspect(connection), sa.MetaData()
    found = {}
    for name in sorted(set(inspector.get_table_names()) - {"alembic_version"}):
        stated = [column for column in inspector.get_columns(name) if not column.get("computed")]
        found[name] = sa.Table(name, metadata, *(sa.Column(column["name"], column["type"]) for column in stated))
    return found


def _count(connection: Connection, name: str) -> int:
    """Return the number of rows of a table."""
    return int(connection.scalar(sa.select(sa.func.count()).select_from(sa.table(name))) or 0)


def _kinds(one: Connection, other: Connection) -> Kinds:
    """Return the kind of each column, as the PostgreSQL of the two states it: SQLite has fewer."""
    stating = one if one.dialect.name == "postgresql" else other
    return {name: {c.name: _kind(c.type) for c in table.columns} for name, table in _tables(stating).items()}


def _kind(type_: sa.types.TypeEngine[Any]) -> str:
    """Return the kind of a column."""
    if isinstance(type_, sa.JSON):
        return "json"
    if isinstance(type_, sa.DateTime):
        return "moment" if type_.timezone else "time"
    if isinstance(type_, INTERVAL):
        return "interval"
    return "uuid" if isinstance(type_, sa.Uuid) else "plain"


# ---- rows -----------------------------------------------------------------------------------------------------------


def _rows(connection: Connection, table: sa.Table, kinds: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, column → plain value."""
    query = sa.select(table)
    for row in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}).mappings():
        yield {name: _plain(value, kinds[name]) for name, value in row.items()}


def _copy_rows(
    reading: Connection, table: sa.Table, writing: Connection, into: sa.Table, kinds: Mapping[str, str]
) -> None:
    """Copy the rows of a table in place of those of a new database. Raises StateError for rows that do not fit."""
    sqlite = writing.dialect.name == "sqlite"
    writing.execute(sa.delete(into))
    rows = _rows(reading, table, kinds)
    try:
        while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
            stored = [{name: _stored(value, kinds[name], sqlite) for name, value in row.items()} for row in some]
            writing.execute(sa.insert(into), stored)
    except (ValueError, TypeError, IntegrityError, DataError) as error:
        cause = " ".join(str(getattr(error, "orig", error)).split())  # without the statement, which holds the rows
        raise StateError(f"rows of {table.name} do not fit the other database: {cause}. Nothing was copied.") from error


def _plain(value: Any, kind: str) -> Any:
    """Return a value as both databases have it: JSON as text, a moment in UTC, a duration, a UUID as text."""
    if value is None:
        return None
    if kind == "json":
        return value if isinstance(value, str) else json.dumps(value)  # SQLite makes a number of a text of digits
    if kind == "moment":
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if kind == "interval":
        return value - EPOCH if isinstance(value, datetime) else value
    return str(UUID(str(value))) if kind == "uuid" else value


def _stored(value: Any, kind: str, sqlite: bool) -> Any:
    """Return a plain value as the database takes it."""
    if value is None:
        return None
    if sqlite and kind == "moment":
        return value.replace(tzinfo=None)
    if sqlite and kind == "interval":
        return EPOCH + value
    return UUID(value) if kind == "uuid" and not sqlite else value


def _content(connection: Connection, kinds: Kinds) -> Content:
    """Return what each table holds."""
    found = {}
    for name, table in _tables(connection).items():
        rows, total = 0, 0
        for row in _rows(connection, table, kinds[name]):
            text = repr(sorted((column, _comparable(value, kinds[name][column])) for column, value in row.items()))
            total = (total + int.from_bytes(hashlib.sha256(text.encode()).digest())) % (1 << 256)
            rows += 1
        found[name] = (rows, f"{total:064x}")
    return found


def _comparable(value: Any, kind: str) -> str:
    """Return a plain value as text that is the same for the same value: PostgreSQL writes JSON in its own way."""
    if kind == "json" and value is not None:
        return json.dumps(json.loads(value, parse_float=_whole), sort_keys=True)
    return repr(bytes(value)) if isinstance(value, memoryview) else repr(value)


def _whole(text: str) -> float | int:
    """Return a number of JSON; a whole one as such, however it is written."""
    found = float(text)
    return int(found) if found.is_integer() else found


def _differing(before: Content, after: Content) -> list[str]:
    """Return the tables that differ."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _same(text: Any) -> Any:
    """Return what came."""
    return text


# ---- constraints and sequences of PostgreSQL ------------------------------------------------------------------------


def _drop_foreign_keys(connection: Connection) -> list[tuple[str, str, str]]:
    """Drop the foreign keys and return (table, name, definition) of each; SQLite does not apply them here."""
    if connection.dialect.name != "postgresql":
        return []
    query = (
        "SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE contype = 'f' AND connamespace = current_schema()::regnamespace AND conparentid = 0"
    )
    found = [(str(table), str(name), str(text)) for table, name, text in connection.exec_driver_sql(query)]
    for table, name, _ in found:
        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    return found


def _make_foreign_keys(connection: Connection, foreign: list[tuple[str, str, str]]) -> None:
    """Make the foreign keys again, each checked against all rows. Raises StateError for rows that refer to none."""
    try:
        for table, name, text in foreign:
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD CONSTRAINT {name} {text}".replace("%", "%%"))
    except IntegrityError as error:
        cause = " ".join(str(error.orig).split())
        raise StateError(f"rows refer to rows that are not there: {cause}. Nothing was copied.") from error
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken is not None:
            raise StateError(f"a row of {broken[0]} refers to a row of {broken[2]} that is not there.")


def _set_sequences(connection: Connection, tables: Mapping[str, sa.Table]) -> None:
    """Let each sequence of PostgreSQL continue after the highest number of its column."""
    if connection.dialect.name != "postgresql":
        return
    for name, table in tables.items():
        for column in table.columns:
            if not isinstance(column.type, sa.Integer):
                continue
            sequence = connection.scalar(sa.select(sa.func.pg_get_serial_sequence(f'"{name}"', column.name)))
            if sequence is not None:
                highest = connection.scalar(sa.select(sa.func.max(column)))
                connection.execute(sa.select(sa.func.setval(sequence, highest or 1, highest is not None)))
