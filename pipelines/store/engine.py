"""Connections, waiting times, faults and transactions of the store, and the check of its pages.

SQLite by default (WAL, one file, survives kill -9; `durability="power"` also survives a power cut), PostgreSQL by URL.
"""

import functools
import json
import sqlite3
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, RowMapping, make_url
from sqlalchemy.exc import DontWrapMixin, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pipelines import migrations
from pipelines.errors import BadValues, StateError
from pipelines.migrations.tables import SCHEMA

Bind = Callable[[Any], Any]  # a value → what a driver takes for it
Transaction = Connection  # what `Database.writing` yields
StoreFault = SQLAlchemyError  # what a database raises when it cannot do what was requested
STICKY = ("readonly database", "disk I/O error")  # errors that a SQLite connection does not recover from
OUTAGES = (OperationalError, InterfaceError, PoolTimeout)  # failures of the database itself, whatever was written
CONNECT_TIMEOUT_S = 4  # PostgreSQL: a server that does not answer counts as down after this
FLOW_WAIT_MS = 30_000  # a flow waits this long for another writer before it gives up
SERVICE_WAIT_MS = 500  # a service waits this long: its caller gets an error at once and retries
PAGE_BYTES = 2048  # of a new file: a record of four families fits, and a new entry of an index writes a whole page
LOG_BYTES = 32 * 1024 * 1024  # of write-ahead log are copied into the file at a time: a page written often, once
# … by a commit, which takes 45 ms longer then (decision 0093). Where `copy_log` is called in time, no commit has to:
COPIED_LOG_BYTES = 4 * LOG_BYTES
LOOKUP = 500  # values in one IN (...): under every database's parameter limit
MIGRATIONS = Path(migrations.__file__).parent
_MIGRATION_LOCK = 0x62656C6C  # any fixed number: two PostgreSQL clients must not migrate at once


class _BadJson(BadValues, DontWrapMixin):
    """Signal JSON that databases refuse, raised while SQLAlchemy binds parameters."""


class Database:
    """Hold an open database, thread-safe. The store's classes add one aggregate each; close it with `close()`.

    Every method is one transaction unless `within` passes an open one from `writing()`. Time is always an argument, an
    aware UTC datetime. Readers with `known_by` leave out what was stored after that moment; None = as of now.
    """

    def __init__(self, engine: Engine, chain_key: bytes | None = None) -> None:
        """Use an engine of `connect_engine`, and the key of `pipelines.store.chain`."""
        self._engine = engine
        self._chain_key = chain_key
        self._writer = engine.execution_options(writes=True)

    @classmethod
    def open(
        cls, url: str, durability: Literal["process", "power"] = "process", wait_ms: int = FLOW_WAIT_MS,
        chain_key: bytes | None = None, log_bytes: int = LOG_BYTES,
    ) -> Self:  # fmt: skip
        """Open `url` and migrate it to the current schema. A new SQLite file is created, with its folder.

        durability  SQLite only. "process": every commit survives kill -9; "power": a power cut too, at one disk
                    flush a commit
        wait_ms     how long a call waits for another connection's lock, or for a connection
        chain_key   under which the chain's lines are written; None writes none, which `verify` finds
        log_bytes   SQLite only: of write-ahead log from which on a commit copies it into the file
        Raises      StateError if a newer release wrote the database
        """
        engine = connect_engine(url, durability, wait_ms, log_bytes)
        store = cls(engine, chain_key)
        try:
            with engine.connect() as connection:
                found = known_revision(connection)
            if found != SCHEMA:
                with store.writing() as connection:
                    migrate(connection)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @contextmanager
    def writing(self, within: Connection | None = None) -> Iterator[Connection]:
        """Yield one write transaction: on exit all of it is durable, or none of it happened. `within` joins an open
        one."""
        if within is not None:
            yield within
            return
        with self._writer.begin() as connection:
            yield connection

    @property
    def log_is_long(self) -> bool:
        """Return whether SQLite's write-ahead log is longer than LOG_BYTES; False on PostgreSQL."""
        log = Path(f"{self._engine.url.database}-wal")
        return self._engine.dialect.name == "sqlite" and log.is_file() and log.stat().st_size > LOG_BYTES

    def copy_log(self) -> None:
        """Copy SQLite's write-ahead log into the file; no writer waits for it, nor it for a writer.

        The next writer starts the log again if all of it was copied, else the next call copies the rest.
        """
        with self._engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def _rows(self, query: sa.Select[Any]) -> Sequence[RowMapping]:
        """Return all rows of a query, column → value."""
        with self._engine.connect() as connection:
            return connection.execute(query).mappings().all()


# ---- connections ----------------------------------------------------------------------------------------------------


def connect_engine(url: str, durability: str, wait_ms: int = FLOW_WAIT_MS, log_bytes: int = LOG_BYTES) -> Engine:
    """Return an engine for `url`; arguments as of `Database.open`. Raises BadValues for a SQLite database in memory."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise BadValues(
                f"store url {url!r} names no file, so nothing would be stored. Use sqlite:////folder/store.db"
            )
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    connect_args: dict[str, str | int] = {}
    if parsed.get_backend_name() == "postgresql":
        connect_args = {
            "connect_timeout": min(CONNECT_TIMEOUT_S, max(2, wait_ms // 1000)),  # libpq: whole seconds, at least two
            "options": f"{parsed.query.get('options', '')} -c lock_timeout={wait_ms}".strip(),
        }
    engine = sa.create_engine(
        parsed, json_serializer=dump_json, pool_timeout=wait_ms / 1e3, connect_args=connect_args,
        pool_pre_ping=bool(connect_args),  # a server that was restarted has closed the connections of the pool
    )  # fmt: skip
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine, durability, wait_ms, log_bytes)
    return engine


def _tune_sqlite(engine: Engine, durability: str, wait_ms: int, log_bytes: int) -> None:
    """Set pragmas on connect; use BEGIN IMMEDIATE for writers, so that no read lock is upgraded under contention."""
    synchronous = {"process": "NORMAL", "power": "FULL"}[durability]

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _: object) -> None:
        """Set the pragmas of a new connection."""
        connection.isolation_level = None  # `begin` below sends BEGIN, not the driver
        for pragma in (
            f"busy_timeout={wait_ms}",
            f"page_size={PAGE_BYTES}",  # before the log: a file that exists keeps its own
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            f"journal_size_limit={LOG_BYTES}",  # a log that begins again is cut to it: `copy_log` reads its size
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
        ((page_bytes,),) = connection.execute("PRAGMA page_size")
        connection.execute(f"PRAGMA wal_autocheckpoint={log_bytes // page_bytes}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Begin a transaction with the lock it needs."""
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    @sa.event.listens_for(engine, "handle_error")
    def error(context: Any) -> None:
        """Discard a connection opened while the file was read-only or its disk failed: it stays in that state."""
        if any(sign in str(context.original_exception) for sign in STICKY):
            context.is_disconnect = True


def exists(url: str) -> bool:
    """Return False if a SQLite file does not exist yet; True for a server, which raises later if it is unreachable."""
    parsed = make_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(parsed.database or "").is_file()


def dump_json(value: object) -> str:
    """Return `value` as compact JSON. Raises BadValues for NaN, infinity and types JSON does not have."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError) as error:
        raise _BadJson(f"not storable as JSON: {error}. Use null for what is missing and plain types only.") from error


# ---- schema ---------------------------------------------------------------------------------------------------------


def migrate(connection: Connection, revision: str = "head") -> None:
    """Bring the database to SCHEMA, or to an earlier revision."""
    lock_migrations(connection)
    from alembic import command  # imported here: a service on a current database never loads it
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def lock_migrations(connection: Connection) -> None:
    """Wait until no other PostgreSQL client migrates; a writer on SQLite is alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")


def known_revision(connection: Connection) -> str | None:
    """Return the revision of the database, None if it is empty. Raises StateError if a newer release wrote it."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    revision = str(found) if found else None
    if revision is not None and revision > SCHEMA:
        raise StateError(f"the store is at schema {revision}, this release knows {SCHEMA}. Install the newer release.")
    return revision


# ---- statements that several aggregates share -----------------------------------------------------------------------


def between(
    query: sa.Select[Any], column: sa.ColumnElement[datetime], since: datetime | None, until: datetime | None
) -> sa.Select[Any]:
    """Return `query` restricted to since <= column < until; None sets no limit."""
    if since is not None:
        query = query.where(column >= since)
    return query if until is None else query.where(column < until)


def known(query: sa.Select[Any], column: sa.ColumnElement[datetime], by: datetime | None) -> sa.Select[Any]:
    """Return `query` restricted to rows that were stored by a moment (aware); None sets no limit."""
    return query if by is None else query.where(column <= by)


def lock_table(connection: Connection, table: sa.Table) -> None:
    """Block other writers of the table until commit, so that a lookup stays true (SQLite has one writer anyway)."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE")


def lock_row(connection: Connection, table: sa.Table, where: sa.ColumnElement[bool]) -> RowMapping | None:
    """Return the first row by primary key that matches, locked until commit; None without one."""
    order = table.primary_key.columns
    return (
        connection.execute(sa.select(table).where(where).order_by(*order).limit(1).with_for_update()).mappings().first()
    )


@functools.lru_cache(maxsize=32)
def insert_text(table: sa.Table, dialect: sa.Dialect) -> str:
    """Return the statement that inserts a row of a table, all columns in its order, as the driver takes it."""
    return str(sa.insert(table).compile(dialect=dialect))


@functools.lru_cache(maxsize=32)
def binds(table: sa.Table, dialect: sa.Dialect) -> tuple[tuple[str, Bind | None], ...]:
    """Return (name, what makes of a value what the driver takes) of each column, None where nothing has to be made."""
    return tuple((column.name, column.type.dialect_impl(dialect).bind_processor(dialect)) for column in table.columns)


def insert_rows(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, every column named; SQLAlchemy takes longer to prepare them than SQLite to write them."""
    if connection.dialect.name == "sqlite":
        columns = binds(table, connection.dialect)
        values = [tuple(row[name] if bind is None else bind(row[name]) for name, bind in columns) for row in rows]
        connection.exec_driver_sql(insert_text(table, connection.dialect), values)
    else:  # PostgreSQL's driver would send row by row
        connection.execute(sa.insert(table), rows)


def insert_row(connection: Connection, table: sa.Table, values: dict[str, object]) -> int:
    """Insert a row and return the id that the database assigned."""
    key = connection.execute(sa.insert(table).values(**values)).inserted_primary_key
    assert key is not None, table.name
    return int(key[0])


# ---- page check -----------------------------------------------------------------------------------------------------


class PageCheck:
    """Read every page of a SQLite store on a connection of its own: no writer waits for it. `stop` ends it early."""

    def __init__(self, url: str) -> None:
        """Prepare to check the store at `url`."""
        self._url = make_url(url)
        self._connection: sqlite3.Connection | None = None
        self._stopped = False

    def run(self) -> str | None:
        """Return what is damaged; None if nothing is, if it was stopped, or where the database checks its own pages
        (PostgreSQL, with `data_checksums`). A byte changed within a value passes: SQLite has no checksums."""
        if self._url.get_backend_name() != "sqlite" or self._stopped:
            return None
        file = Path(self._url.database or "")
        if not file.is_file():
            return f"{file} is not there"
        try:
            uri = f"file:{urllib.parse.quote(str(file.resolve()))}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=FLOW_WAIT_MS / 1e3, check_same_thread=False)) as opened:
                self._connection = opened
                found = [str(row[0]) for row in opened.execute("PRAGMA quick_check(5)")]
        except sqlite3.DatabaseError as error:
            if self._stopped or (isinstance(error, sqlite3.OperationalError) and "lock" in str(error)):
                return None  # ended by `stop`, or never started: the next check tries again
            found = [str(error)]
        finally:
            self._connection = None
        damaged = [line for line in found if line != "ok"]
        return "; ".join(line.splitlines()[-1] for line in damaged)[:300] or None

    def stop(self) -> None:
        """End a check that runs, and let no later one start."""
        self._stopped = True
        if (connection := self._connection) is not None:
            connection.interrupt()


def damage(url: str) -> str | None:
    """Return what is damaged in the pages of a store, None if nothing is. Takes minutes for a large one."""
    return PageCheck(url).run()
