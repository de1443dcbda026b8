"""The only doorway to SQL: what was observed, decided, resolved, promoted, tried, leased, asked for and alarmed.

SQLite by default (WAL, one file, survives kill -9; `durability="power"` also a power cut), PostgreSQL by URL. Every
method is one transaction unless `within` hands it one from `Store.writing()`. Time is always an argument, aware UTC.
"""

import base64
import itertools
import json
import math
import sqlite3
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.exc import DataError, DontWrapMixin, IntegrityError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from pipelines.contracts import (
    BAR_FIELDS,
    BAR_WIDTH,
    BOOK_LEVELS,
    CONTEXT_FIELDS,
    CONTEXT_INDEX,
    TAPE_WIDTH,
    Books,
    ContextFeed,
    Decision,
    Floats,
    Outcome,
    utc,
)
from pipelines.errors import (
    BadShape,
    BadTimes,
    BadValues,
    LeaseHeld,
    StateError,
    StoredAlready,
    UnknownName,
    UnreadableFile,
    WouldOverwrite,
)
from pipelines.migrations import tables as t
from pipelines.migrations.tables import SCHEMA

Transaction = Connection  # what `Store.writing` hands out
StoreFault = SQLAlchemyError  # what a database raises when it cannot
ATTEMPTS = 2  # a retrain whose worker died is begun once more, never a third time
STICKY = ("readonly database", "disk I/O error")  # of a SQLite connection: it does not get over them
OUTAGES = (OperationalError, InterfaceError, PoolTimeout)  # of the database itself, whatever was to be written
CONNECT_TIMEOUT_S = 4  # PostgreSQL: a server that does not answer is said to be down after this
FLOW_WAIT_MS = 30_000  # a writer of a flow waits this long for the other writer before it gives up
SERVICE_WAIT_MS = 500  # one of a service: whoever asked it is told at once, and asks again
_BOOK_BYTES = 8 * (2 * BOOK_LEVELS * 3 + TAPE_WIDTH)
_NOT_RECORDED = np.array([np.nan], dtype="<f8").tobytes()
_LOOKUP = 500  # values in one IN (...): under every database's parameter limit
_MIGRATION_LOCK = 0x62656C6C  # any fixed number: two PostgreSQL clients must not migrate at once


class _BadJson(BadValues, DontWrapMixin):
    """JSON that databases refuse, raised while SQLAlchemy binds parameters."""


# ---- records ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BarBatch:
    """Bars of one symbol as they arrived.

    bars         (n, 8) in contracts.BAR_FIELDS order, open_time ascending and unique; NaN only in the last three
    known_at     (n,) epoch seconds: when each bar could be known (its close)
    ingested_at  when we received them
    books, feed  records that came with them; None = none
    """

    symbol: str
    bars: Floats
    known_at: Floats
    ingested_at: datetime
    books: Books | None = None
    feed: ContextFeed | None = None


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A decision with the bytes it was made from: float64 rows in catalogue order, so it can be replayed exactly."""

    decision: Decision
    features: bytes
    signals: bytes


@dataclass(frozen=True, slots=True)
class Promotion:
    """One line of the promotion ledger (law L5): who, why, from, to, and the evidence."""

    at: datetime
    actor: str
    action: Literal["promote", "rollback", "refuse", "challenge"]
    family: str
    arm: str
    from_version: str | None
    to_version: str | None
    digest: str | None
    run_id: str | None
    data_hash: str | None
    git_commit: str | None
    verdict_passed: bool | None
    reason: str
    evidence: dict[str, Any] = field(default_factory=dict)
    id: int | None = None  # given by the store


@dataclass(frozen=True, slots=True)
class Lease:
    name: str
    holder: str
    acquired_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class RetrainAnswer:
    """What became of a wish to retrain; `id` is the request that stands for it."""

    state: Literal["queued", "duplicate", "cooling_down"]
    id: int
    detail: str


@dataclass(frozen=True, slots=True)
class RetrainRequest:
    id: int
    family: str
    reason: str
    at: datetime
    state: Literal["queued", "running", "done", "failed"]
    holder: str | None
    lease_until: datetime | None
    finished_at: datetime | None
    detail: str
    attempts: int = 0  # how often a worker began


@dataclass(frozen=True, slots=True)
class Alarm:
    id: int
    kind: str
    severity: str
    detail: str
    at: datetime
    cleared_at: datetime | None


@dataclass(frozen=True, slots=True)
class BreakerTrip:
    """A tripped circuit breaker; it stays until a named person resets it with a reason."""

    id: int
    name: str
    tripped_at: datetime
    reason: str
    reset_at: datetime | None
    reset_by: str | None
    reset_reason: str | None
    reset_as_of: datetime | None = None  # event time up to which its cause was accepted; None: before release 0.5.0


@dataclass(frozen=True, slots=True)
class Fill:
    """What a venue reported of the order of an emitted decision.

    id            the venue's own name of the report: the same one again changes nothing
    at            the venue's clock
    price         paid or got, quote currency; None where it was rejected
    slippage_bps  of the decision's entry, positive = worse than decided; None where it was rejected
    """

    id: str
    decision_id: str
    at: datetime
    ingested_at: datetime
    status: Literal["filled", "rejected"]
    price: float | None
    slippage_bps: float | None
    reason: str = ""


def decision_payload(decision: Decision) -> dict[str, Any]:
    """Decision → plain JSON types; times in ISO 8601 with their zone."""
    return decision.to_dict()


def decision_of(payload: dict[str, Any]) -> Decision:
    """The Decision that `decision_payload` wrote down."""
    return Decision.from_dict(payload)


# ---- opening ------------------------------------------------------------------------------------------------------


def _dumps(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError) as error:
        raise _BadJson(f"not storable as JSON: {error}. Use null for what is missing and plain types only.") from error


def _tune_sqlite(engine: Engine, durability: str, wait_ms: int) -> None:
    """Pragmas on connect; BEGIN IMMEDIATE for writers, so that a read never has to be upgraded under contention."""
    synchronous = {"process": "NORMAL", "power": "FULL"}[durability]

    @sa.event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        for pragma in (
            f"busy_timeout={wait_ms}",
            "journal_mode=WAL",
            f"synchronous={synchronous}",
            "foreign_keys=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    @sa.event.listens_for(engine, "handle_error")
    def error(found: Any) -> None:
        """What was opened while the file could not be written, or lost its disk, stays so: open it again next time."""
        if any(sign in str(found.original_exception) for sign in STICKY):
            found.is_disconnect = True


def _migrate(connection: Connection, revision: str = "head") -> None:
    """Bring the database to SCHEMA, or to an earlier revision."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
    from alembic import command  # only here: a serving process on a current database never loads it
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _revision(connection: Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return str(revision) if revision else None


def _known_revision(connection: Connection) -> str | None:
    """The revision, None of an empty database. Raises StateError if a newer release wrote it."""
    found = _revision(connection)
    if found is not None and found > SCHEMA:
        raise StateError(f"the store is at schema {found}, this release knows {SCHEMA}. Install the newer release.")
    return found


def _engine(url: str, durability: str, wait_ms: int = FLOW_WAIT_MS) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise BadValues(f"store url {url!r} keeps nothing. Name a file: sqlite:////folder/store.db")
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    waits = {"pool_timeout": wait_ms / 1e3}
    if parsed.get_backend_name() == "postgresql":  # libpq counts in whole seconds, two at least
        options = f"{parsed.query.get('options', '')} -c lock_timeout={wait_ms}".strip()
        told = {"connect_timeout": min(CONNECT_TIMEOUT_S, max(2, wait_ms // 1000)), "options": options}
        engine = sa.create_engine(parsed, json_serializer=_dumps, connect_args=told, **waits)
    else:
        engine = sa.create_engine(parsed, json_serializer=_dumps, **waits)
    if engine.dialect.name == "sqlite":
        _tune_sqlite(engine, durability, wait_ms)
    return engine


# ---- whether its pages are whole ----------------------------------------------------------------------------------


class PageCheck:
    """Reads every page of a SQLite store on a connection of its own: no writer waits for it. `stop` ends it early."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._connection: sqlite3.Connection | None = None
        self._stopped = False

    def run(self) -> str | None:
        """What is damaged; None if nothing is, if it was stopped, or where the database checks its own pages
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
                return None  # ended by `stop`, or never begun: the next check says more
            found = [str(error)]
        finally:
            self._connection = None
        told = [line for line in found if line != "ok"]
        return "; ".join(line.splitlines()[-1] for line in told)[:300] or None

    def stop(self) -> None:
        self._stopped = True
        if (connection := self._connection) is not None:
            connection.interrupt()


def damage(url: str) -> str | None:
    """What is damaged in the pages of a store; None if nothing is. Minutes for a large one."""
    return PageCheck(url).run()


def packed(books: Books | None, feed: ContextFeed | None) -> Iterator[tuple[tuple[str, float], bytes]]:
    """((kind, known_at), payload) of every record: kind is "book" or a name of CONTEXT_FIELDS."""
    if books is not None:
        for i, at in enumerate(books.known.tolist()):
            told = np.concatenate([books.levels[i].ravel(), books.tape[i]])
            yield ("book", at), told.astype("<f8").tobytes()
    if feed is not None:
        for at, field, value in zip(feed.known.tolist(), feed.field.tolist(), feed.value.tolist(), strict=True):
            yield (CONTEXT_FIELDS[field], at), np.array([value], dtype="<f8").tobytes()


def _whole(kind: str, payload: bytes) -> bytes:
    """A payload as `packed` writes it now: books of older releases have a shorter tape, the rest was not recorded."""
    short = _BOOK_BYTES - len(payload)
    return payload + _NOT_RECORDED * (short // 8) if kind == "book" and short > 0 else payload


def unpacked(rows: Iterable[tuple[str, float, bytes]]) -> tuple[Books | None, ContextFeed | None]:
    """What `packed` took apart; None where no such record is among the rows, which ascend by time."""
    rows = list(rows)
    told = [(at, np.frombuffer(_whole(kind, payload), dtype="<f8")) for kind, at, payload in rows if kind == "book"]
    said = [(at, CONTEXT_INDEX[kind], payload) for kind, at, payload in rows if kind != "book"]
    books, feed = None, None
    if told:
        values = np.array([row for _, row in told], dtype=np.float64)
        levels = np.ascontiguousarray(values[:, :-TAPE_WIDTH]).reshape(-1, 2, BOOK_LEVELS, 3)
        books = Books(np.array([at for at, _ in told]), levels, np.ascontiguousarray(values[:, -TAPE_WIDTH:]))
    if said:
        feed = ContextFeed(
            np.array([at for at, *_ in said]),
            np.array([field for _, field, _ in said], dtype=np.int64),
            np.array([np.frombuffer(payload, dtype="<f8")[0] for *_, payload in said]),
        )
    return books, feed


# ---- the whole of it, for backup and restore ------------------------------------------------------------------------

TRANSIENT = ("leases",)  # they name processes that live now, and are no part of a dump
_FETCH = 1000  # rows read or written at once
Row = list[Any]  # plain JSON types, in the order of the table's columns


@dataclass(frozen=True, slots=True)
class Dump:
    """Every table as it is in one transaction.

    schema   revision the tables belong to
    columns  table → its columns; tables that others refer to come first
    rows     table → rows in the order of the primary key, in plain JSON types: a time in ISO 8601, bytes in base 64, a
             number that is not finite as a word. The same rows give the same text from either database
    """

    schema: str
    columns: Mapping[str, tuple[str, ...]]
    rows: Callable[[str], Iterator[Row]]


def exists(url: str) -> bool:
    """False if a SQLite file is not there yet; a server's database is there, or cannot be reached and raises later."""
    parsed = make_url(url)
    return parsed.get_backend_name() != "sqlite" or Path(parsed.database or "").is_file()


@contextmanager
def open_dump(url: str) -> Iterator[Dump]:
    """A store's tables as they were at one moment, whoever writes meanwhile. It is not migrated first, so that a
    release can back up what the one before it left. Raises StateError if there is no store, or a newer one."""
    shown = make_url(url).render_as_string(hide_password=True)
    if not exists(url):
        raise StateError(f"there is no store at {shown}; `bellwether run --once` makes one")
    engine = _engine(url, "process")
    try:
        with engine.connect() as connection:
            if engine.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                revision = _known_revision(connection)
                if revision is None:
                    raise StateError(f"{shown} holds no store; `bellwether run --once` makes one")
                yield _dump(connection, revision)
    finally:
        engine.dispose()


def nonempty_tables(url: str) -> dict[str, int]:
    """table → rows, of the tables that hold any; empty where nothing was ever stored. Changes nothing."""
    if not exists(url):
        return {}
    engine = _engine(url, "process")
    try:
        with engine.connect() as connection:
            return _occupied(connection)
    finally:
        engine.dispose()


def load(url: str, schema: str, rows: Callable[[str], Iterator[Row]], check: Callable[[Dump], None]) -> None:
    """Put a dump into an empty store, in one transaction, and bring it to the current schema: all of it, or nothing.

    schema  revision of the dump; an older one is migrated up after its rows are in
    rows    table → rows as `Dump.rows` gives them
    check   is shown what is stored before it is committed; what it raises undoes everything
    Raises  WouldOverwrite if any table holds a row, StateError and UnreadableFile for a schema we do not know
    """
    refuse_unknown(schema)
    engine = _engine(url, "power")
    try:
        with engine.execution_options(writes=True).begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
                for name in _present(connection):  # no row may come in between our look and our taking the tables away
                    connection.exec_driver_sql(f"LOCK TABLE {name} IN ACCESS EXCLUSIVE MODE")
            refuse_nonempty(_occupied(connection))
            _clear(connection)
            _migrate(connection, schema)
            for table in _reflected(connection):
                _fill(connection, table, rows(table.name))
            check(_dump(connection, schema))
            _migrate(connection)
    finally:
        engine.dispose()


def refuse_unknown(schema: str) -> None:
    """Raises StateError for the schema of a newer release, UnreadableFile for one that no release had."""
    if schema > SCHEMA:
        raise StateError(f"the backup is of schema {schema}, this release knows {SCHEMA}. Install the newer release.")
    if schema not in _revisions():
        raise UnreadableFile(f"the backup names schema {schema!r}, which no release had; is it a backup of this store?")


def refuse_nonempty(held: Mapping[str, int]) -> None:
    """Raises WouldOverwrite, saying what is held, if it is anything."""
    if held:
        told = ", ".join(f"{n:,} {table}" for table, n in held.items())
        raise WouldOverwrite(
            f"the store is not empty: it holds {told}. A backup is restored into an empty store only: point "
            "BELLWETHER_HOME or BELLWETHER_STORE_URL at a new one, or move the old one away."
        )


def _revisions() -> set[str]:
    folder = Path(__file__).parent / "migrations" / "versions"
    return {file.name[:4] for file in folder.glob("[0-9]*.py")}


def _present(connection: Connection) -> list[str]:
    return sorted(set(sa.inspect(connection).get_table_names()) & set(t.METADATA.tables))


def _occupied(connection: Connection) -> dict[str, int]:
    counted = {
        name: connection.scalar(sa.select(sa.func.count()).select_from(sa.table(name)))
        for name in _present(connection)
        if name not in TRANSIENT
    }
    return {name: int(n) for name, n in counted.items() if n}


def _clear(connection: Connection) -> None:
    """Take empty tables of whatever schema away, so that an older schema can be built in their place."""
    t.METADATA.drop_all(connection)
    connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("DROP FUNCTION IF EXISTS promotions_refuse()")


def _reflected(connection: Connection) -> list[sa.Table]:
    """The tables as the database has them, which may be of an older schema than the code's."""
    metadata = sa.MetaData()

    @sa.event.listens_for(metadata, "column_reflect")
    def reflect(inspector: Any, table: sa.Table, column: Any) -> None:
        if isinstance(column["type"], sa.DateTime):
            column["type"] = t.UtcTime()

    metadata.reflect(connection, only=lambda name, _: name in t.METADATA.tables and name not in TRANSIENT)
    return metadata.sorted_tables


def _dump(connection: Connection, schema: str) -> Dump:
    found = {table.name: table for table in _reflected(connection)}

    def rows(name: str) -> Iterator[Row]:
        table = found[name]
        query = sa.select(table).order_by(*table.primary_key.columns)
        for row in connection.execute(query, execution_options={"yield_per": _FETCH}):
            yield [_plain(value) for value in row]

    return Dump(schema, {name: tuple(c.name for c in table.columns) for name, table in found.items()}, rows)


def _plain(value: Any) -> Any:
    kind = type(value)
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is datetime:
        return value.isoformat()
    return base64.b64encode(value).decode() if kind is bytes else value


def _stored_type(column: sa.Column[Any]) -> Callable[[Any], Any]:
    """What turns `_plain`'s value back."""
    if isinstance(column.type, sa.LargeBinary):
        return base64.b64decode
    if isinstance(column.type, t.UtcTime):
        return datetime.fromisoformat
    return float if isinstance(column.type, sa.Float) else lambda value: value


def _fill(connection: Connection, table: sa.Table, rows: Iterator[Row]) -> None:
    columns = [(column.name, _stored_type(column)) for column in table.columns]
    try:
        while some := list(itertools.islice(rows, _FETCH)):
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
        # with an empty table the third word says that 1 was not given yet
        given = sa.func.setval(
            sa.func.pg_get_serial_sequence(table.name, "id"), sa.func.coalesce(highest, 1), highest.is_not(None)
        )
        connection.execute(sa.select(given))


class Store:
    """An open database. Thread-safe; close it with `close()`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = engine.execution_options(writes=True)

    @classmethod
    def open(
        cls, url: str, durability: Literal["process", "power"] = "process", wait_ms: int = FLOW_WAIT_MS
    ) -> "Store":
        """Open `url` (made, with its folder, if it is a new SQLite file) and migrate it to the current schema.

        durability  SQLite only. "process": every commit survives kill -9; "power": a power cut too, at one disk
                    flush a commit
        wait_ms     how long a call waits for somebody else's lock, or for a connection
        Raises      StateError if the database was written by a newer release
        """
        engine = _engine(url, durability, wait_ms)
        store = cls(engine)
        with engine.connect() as connection:
            found = _known_revision(connection)
        if found != SCHEMA:
            with store.writing() as connection:
                _migrate(connection)
        return store

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def writing(self, within: Connection | None = None) -> Iterator[Connection]:
        """One write transaction: all of it is durable on exit, or none of it happened. `within` joins an open one."""
        if within is not None:
            yield within
            return
        with self._writer.begin() as connection:
            yield connection

    def check_writable(self) -> None:
        """Take the writer's place and give it back, without writing a byte. Raises a StoreFault while that cannot be
        had within `wait_ms`."""
        with self.writing() as connection:
            if connection.dialect.name == "postgresql":  # what every insert takes
                connection.exec_driver_sql("LOCK TABLE bars, decisions, outcomes, latches IN ROW EXCLUSIVE MODE")

    def _rows(self, query: sa.Select[Any]) -> list[dict[str, Any]]:
        with self._engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    # ---- observed bars --------------------------------------------------------------------------------------------

    def add_bars(self, batch: BarBatch, within: Connection | None = None) -> int:
        """Store bars as observed; returns how many were new. Sending the same bars again changes nothing.

        Raises  BadShape, BadTimes (not ascending), BadValues (another bar is stored under that symbol and time);
                in each case nothing of the batch is written
        """
        rows, n = batch.bars, len(batch.bars)
        if rows.ndim != 2 or rows.shape[1] != BAR_WIDTH or batch.known_at.shape != (n,):
            raise BadShape(
                f"{batch.symbol}: bars {rows.shape} and known_at {batch.known_at.shape}, want (n, 8) and (n,)"
            )
        if n == 0 and batch.books is None and batch.feed is None:
            return 0
        if not np.all(np.diff(rows[:, 0]) > 0):
            at = utc(rows[1 + int(np.argmin(np.diff(rows[:, 0]) > 0)), 0])
            raise BadTimes(
                f"{batch.symbol}: open_time {at:%F %T} is not after the one before it. Sort and deduplicate."
            )
        with self.writing(within) as connection:
            _one_writer(connection, t.bars)
            span = (float(rows[0, 0]), float(rows[-1, 0])) if n else (0.0, 0.0)  # drivers know no numpy numbers
            known = {row[0]: row for row in self._stored(connection, batch.symbol, *span)}
            fresh = []
            for bar, known_at in zip(rows.tolist(), batch.known_at.tolist(), strict=True):
                if bar[0] not in known:
                    values = dict(zip(BAR_FIELDS, (None if v != v else v for v in bar), strict=True))
                    stamps = {"known_at": known_at, "ingested_at": batch.ingested_at}
                    fresh.append({"symbol": batch.symbol} | values | stamps)
                elif not np.array_equal(known[bar[0]], bar, equal_nan=True):
                    name, old, new = next(
                        (name, a, b)
                        for name, a, b in zip(BAR_FIELDS, known[bar[0]], bar, strict=True)
                        if not (a == b or (a != a and b != b))
                    )
                    raise BadValues(
                        f"{batch.symbol}: bar {utc(bar[0]):%F %T} is stored with {name}={old!r}, now {name}={new!r}. "
                        "What was observed is never rewritten; nothing of this batch was stored."
                    )
            if fresh:
                connection.execute(sa.insert(t.bars), fresh)
            self._add_records(batch, connection)
        return len(fresh)

    def _add_records(self, batch: BarBatch, connection: Connection) -> None:
        """Store the batch's books and context; the same record again changes nothing. Raises BadValues on another."""
        sent = dict(packed(batch.books, batch.feed))
        if not sent:
            return
        moments = [known_at for _, known_at in sent]
        query = sa.select(t.records.c.kind, t.records.c.known_at, t.records.c.payload).where(
            t.records.c.symbol == batch.symbol, t.records.c.known_at.between(min(moments), max(moments))
        )
        known = {(kind, at): _whole(kind, bytes(payload)) for kind, at, payload in connection.execute(query)}
        for (kind, at), payload in sent.items():
            if known.get((kind, at), payload) != payload:
                raise BadValues(
                    f"{batch.symbol}: another {kind} is stored as known at {utc(at):%F %T}. What was observed is never "
                    "rewritten; nothing of this batch was stored."
                )
        fresh = [
            {"symbol": batch.symbol, "kind": kind, "known_at": at, "payload": payload, "ingested_at": batch.ingested_at}
            for (kind, at), payload in sent.items()
            if (kind, at) not in known
        ]
        if fresh:
            connection.execute(sa.insert(t.records), fresh)

    @staticmethod
    def _stored(connection: Connection, symbol: str, first: float, last: float) -> Iterator[tuple[float, ...]]:
        query = (
            sa.select(*(t.bars.c[name] for name in BAR_FIELDS))
            .where(t.bars.c.symbol == symbol, t.bars.c.open_time.between(first, last))
            .order_by(t.bars.c.open_time)
        )
        for row in connection.execute(query):
            yield tuple(float("nan") if value is None else float(value) for value in row)

    def bars(self, symbol: str, after: float = -np.inf, until: float = np.inf) -> Floats:
        """Observed bars (n, 8), ascending, with after < open_time <= until in epoch seconds; NaN = not recorded."""
        query = sa.select(*(t.bars.c[name] for name in BAR_FIELDS)).where(t.bars.c.symbol == symbol)
        if np.isfinite(after):
            query = query.where(t.bars.c.open_time > float(after))
        if np.isfinite(until):
            query = query.where(t.bars.c.open_time <= float(until))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(t.bars.c.open_time)).all()
        return np.array(rows, dtype=np.float64).reshape(-1, BAR_WIDTH)

    def withdraw_bars(self, symbol: str, closed_after: float) -> Floats:
        """Take back bars that were stored before they can have closed, because the clock was wrong; returns them.

        closed_after  epoch seconds: bars whose close is later than this go, and with them every record known later
        """
        with self.writing() as connection:
            _one_writer(connection, t.bars)
            late = sa.and_(t.bars.c.symbol == symbol, t.bars.c.known_at > closed_after)
            found = connection.execute(
                sa.select(*(t.bars.c[name] for name in BAR_FIELDS)).where(late).order_by(t.bars.c.open_time)
            ).all()
            connection.execute(sa.delete(t.bars).where(late))
            connection.execute(
                sa.delete(t.records).where(t.records.c.symbol == symbol, t.records.c.known_at > closed_after)
            )
        return np.array([tuple(row) for row in found], dtype=np.float64).reshape(-1, BAR_WIDTH)

    def newest_bar(self, symbol: str) -> float | None:
        """Open time of the newest observed bar in epoch seconds; None without one."""
        with self._engine.connect() as connection:
            newest = connection.scalar(sa.select(sa.func.max(t.bars.c.open_time)).where(t.bars.c.symbol == symbol))
        return None if newest is None else float(newest)

    def records(
        self, symbol: str, after: float = -np.inf, until: float = np.inf
    ) -> tuple[Books | None, ContextFeed | None]:
        """Observed books and context with after < known_at <= until (epoch seconds), in that order; None = none."""
        query = sa.select(t.records.c.kind, t.records.c.known_at, t.records.c.payload).where(
            t.records.c.symbol == symbol
        )
        if np.isfinite(after):
            query = query.where(t.records.c.known_at > float(after))
        if np.isfinite(until):
            query = query.where(t.records.c.known_at <= float(until))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(t.records.c.known_at, t.records.c.kind)).all()
        return unpacked([(str(kind), float(at), bytes(payload)) for kind, at, payload in rows])

    def symbols(self) -> tuple[str, ...]:
        """Symbols with at least one observed bar, in alphabetical order."""
        return tuple(r["symbol"] for r in self._rows(sa.select(t.bars.c.symbol).distinct().order_by(t.bars.c.symbol)))

    # ---- decisions and outcomes -----------------------------------------------------------------------------------

    def add_decisions(self, records: Sequence[DecisionRecord], within: Connection | None = None) -> None:
        """Store decisions whole. Raises StoredAlready if an id is there, BadValues if a figure is not finite."""
        rows = [
            {
                **{c: getattr(r.decision, c) for c in _DECISION_COLUMNS},
                "payload": decision_payload(r.decision),
                "features": r.features,
                "signals": r.signals,
            }
            for r in records
        ]
        if not rows:
            return
        try:
            with self.writing(within) as connection:
                connection.execute(sa.insert(t.decisions), rows)
        except IntegrityError as error:
            raise StoredAlready("a decision with this id is stored already; ids are never reused") from error

    def decision(self, decision_id: str) -> DecisionRecord:
        """One decision. Raises UnknownName."""
        found = self._rows(sa.select(t.decisions).where(t.decisions.c.id == decision_id))
        if not found:
            raise UnknownName(f"no decision {decision_id!r} in the ledger; `bellwether decide` prints ids of new ones")
        return _record(found[0])

    def decisions(
        self,
        symbol: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        last: int | None = None,
        events_only: bool = False,
        emitted_only: bool = False,
    ) -> list[DecisionRecord]:
        """Decisions with since <= as_of < until, oldest first; `last` keeps the newest so many."""
        query = _between(sa.select(t.decisions), t.decisions.c.as_of, since, until)
        if symbol is not None:
            query = query.where(t.decisions.c.symbol == symbol)
        if events_only:
            query = query.where(t.decisions.c.event.is_not(None))
        if emitted_only:
            query = query.where(t.decisions.c.action != "NO_TRADE")
        query = query.order_by(t.decisions.c.as_of.desc(), t.decisions.c.ingested_at.desc()).limit(last)
        return [_record(row) for row in reversed(self._rows(query))]

    def unresolved(self, until: datetime, limit: int | None = None) -> list[DecisionRecord]:
        """Decisions on an event, as_of <= until, that have no outcome yet; oldest first."""
        query = (
            sa.select(t.decisions)
            .outerjoin(t.outcomes, t.outcomes.c.decision_id == t.decisions.c.id)
            .where(t.outcomes.c.decision_id.is_(None), t.decisions.c.event.is_not(None), t.decisions.c.as_of <= until)
            .order_by(t.decisions.c.as_of)
            .limit(limit)
        )
        return [_record(row) for row in self._rows(query)]

    def add_outcome(self, outcome: Outcome, within: Connection | None = None) -> bool:
        """Store what became of a decision; False if exactly this is stored already.

        Raises  UnknownName for a decision we never made, BadValues if another outcome is stored for it
        """
        with self.writing(within) as connection:
            known = _locked(connection, t.decisions, t.decisions.c.id == outcome.decision_id)
            if known is None:
                raise UnknownName(f"no decision {outcome.decision_id!r} in the ledger: outcomes belong to decisions")
            query = sa.select(t.outcomes).where(t.outcomes.c.decision_id == outcome.decision_id)
            stored = connection.execute(query).mappings().first()
            if stored is None:
                connection.execute(sa.insert(t.outcomes), asdict(outcome))
                return True
            if Outcome(**stored) != outcome:
                raise BadValues(
                    f"decision {outcome.decision_id}: stored {Outcome(**stored)}, now {outcome}; kept the first"
                )
            return False

    def outcomes(self, since: datetime | None = None, until: datetime | None = None) -> list[Outcome]:
        """Outcomes with since <= resolved_at < until, oldest first."""
        query = _between(sa.select(t.outcomes), t.outcomes.c.resolved_at, since, until)
        return [Outcome(**row) for row in self._rows(query.order_by(t.outcomes.c.resolved_at))]

    def outcomes_of(self, decision_ids: Sequence[str]) -> list[Outcome]:
        """Outcomes of these decisions, as far as they are known."""
        found = []
        for i in range(0, len(decision_ids), _LOOKUP):
            some = t.outcomes.c.decision_id.in_(decision_ids[i : i + _LOOKUP])
            found += [Outcome(**row) for row in self._rows(sa.select(t.outcomes).where(some))]
        return found

    def resolved(
        self, since: datetime | None = None, until: datetime | None = None, ended_since: datetime | None = None
    ) -> list[tuple[DecisionRecord, Outcome]]:
        """Decisions joined with their outcomes, since <= as_of < until, ended_since <= resolved_at; oldest decision
        first."""
        joined = t.decisions.join(t.outcomes, t.outcomes.c.decision_id == t.decisions.c.id)
        query = _between(sa.select(t.decisions, t.outcomes).select_from(joined), t.decisions.c.as_of, since, until)
        query = _between(query, t.outcomes.c.resolved_at, ended_since, None)
        names = [f.name for f in fields(Outcome)]
        return [
            (_record(row), Outcome(**{name: row[name] for name in names}))
            for row in self._rows(query.order_by(t.decisions.c.as_of))
        ]

    # ---- fills ----------------------------------------------------------------------------------------------------

    def add_fill(self, fill: Fill, within: Connection | None = None) -> bool:
        """Store what a venue reported; False if exactly this is stored already, whenever it came.

        Raises  UnknownName for a decision we never made; BadValues for one that opened nothing, or if another fill is
                stored under this id
        """
        with self.writing(within) as connection:
            decided = _locked(connection, t.decisions, t.decisions.c.id == fill.decision_id)
            if decided is None:
                raise UnknownName(f"no decision {fill.decision_id!r} in the ledger: fills belong to decisions")
            if decided["action"] == "NO_TRADE":
                raise BadValues(f"decision {fill.decision_id} opened nothing, so nothing of it can be filled")
            stored = connection.execute(sa.select(t.fills).where(t.fills.c.id == fill.id)).mappings().first()
            if stored is None:
                connection.execute(sa.insert(t.fills), asdict(fill))
                return True
            before = Fill(**stored)
            if replace(before, ingested_at=fill.ingested_at) != fill:
                raise BadValues(f"fill {fill.id}: stored {before}, now {fill}; kept the first")
            return False

    def fills(self, since: datetime | None = None, last: int | None = None) -> list[Fill]:
        """Fills that came after `since`, oldest arrival first; `last` keeps the newest so many."""
        f = t.fills
        query = sa.select(f).order_by(f.c.ingested_at.desc(), f.c.at.desc(), f.c.id.desc()).limit(last)
        if since is not None:
            query = query.where(f.c.ingested_at > since)
        return [Fill(**row) for row in reversed(self._rows(query))]

    # ---- promotions and trials ------------------------------------------------------------------------------------

    def add_promotion(self, promotion: Promotion, within: Connection | None = None) -> int:
        """Append to the promotion ledger; returns the line's id. Lines are never changed or deleted."""
        values = asdict(promotion)
        del values["id"]
        with self.writing(within) as connection:
            return _new_id(connection, t.promotions, values)

    def promotions(self, family: str | None = None, last: int | None = None) -> list[Promotion]:
        """The ledger, oldest first; `last` keeps the newest so many."""
        query = sa.select(t.promotions).order_by(t.promotions.c.id.desc()).limit(last)
        if family is not None:
            query = query.where(t.promotions.c.family == family)
        return [Promotion(**row) for row in reversed(self._rows(query))]

    def add_trial(self, family: str, run_id: str, spec_hash: str, at: datetime) -> int:
        """Record that one specification was fitted and scored; returns how many this family has had (for DSR)."""
        with self.writing() as connection:
            _new_id(connection, t.trials, {"family": family, "run_id": run_id, "spec_hash": spec_hash, "at": at})
            return _count(connection, family)

    def count_trials(self, family: str) -> int:
        with self._engine.connect() as connection:
            return _count(connection, family)

    # ---- leases ---------------------------------------------------------------------------------------------------

    def acquire_lease(self, name: str, holder: str, now: datetime, duration: timedelta) -> Lease:
        """Take `name` for `duration`; the holder itself may take it again. Raises LeaseHeld while another has it."""
        lease = Lease(name, holder, now, now + duration)
        try:
            with self.writing() as connection:
                row = _locked(connection, t.leases, t.leases.c.name == name)
                if row is None:
                    connection.execute(sa.insert(t.leases), asdict(lease))
                elif row["holder"] == holder or row["expires_at"] <= now:
                    connection.execute(sa.update(t.leases).where(t.leases.c.name == name).values(**asdict(lease)))
                else:
                    raise LeaseHeld(
                        f"{name} is held by {row['holder']} until {row['expires_at']:%F %T} UTC. Wait or retry.",
                        row["holder"],
                    )
        except IntegrityError as error:  # two first-comers on PostgreSQL: the other one won
            raise LeaseHeld(f"{name} was taken by another holder just now. Wait or retry.") from error
        return lease

    def renew_lease(self, name: str, holder: str, now: datetime, duration: timedelta) -> Lease:
        """Extend a lease still held. Raises LeaseHeld if it ran out or went to another."""
        with self.writing() as connection:
            row = _locked(connection, t.leases, t.leases.c.name == name)
            if row is None or row["holder"] != holder or row["expires_at"] <= now:
                raise LeaseHeld(f"{holder} no longer holds {name}: acquire it again before going on.")
            lease = Lease(name, holder, row["acquired_at"], now + duration)
            connection.execute(sa.update(t.leases).where(t.leases.c.name == name).values(**asdict(lease)))
        return lease

    def release_lease(self, name: str, holder: str) -> bool:
        """Give a lease back; False if it was not (or no longer) ours."""
        with self.writing() as connection:
            mine = sa.delete(t.leases).where(t.leases.c.name == name, t.leases.c.holder == holder)
            return bool(connection.execute(mine).rowcount)

    # ---- the retrain queue ----------------------------------------------------------------------------------------

    def request_retrain(self, family: str, reason: str, at: datetime, cooldown: timedelta) -> RetrainAnswer:
        """Ask for a retrain of `family`: at most one is open, and none is queued within `cooldown` of the last end."""
        q = t.retrain_requests
        try:
            with self.writing() as connection:
                query = sa.select(q).where(q.c.family == family).order_by(q.c.id.desc()).limit(1)
                last = connection.execute(query).mappings().first()
                if last is not None and last["state"] in ("queued", "running"):
                    detail = f"request {last['id']} is {last['state']} since {last['at']:%F %T} UTC: {last['reason']}"
                    return RetrainAnswer("duplicate", last["id"], detail)
                if last is not None and at < last["finished_at"] + cooldown:
                    over = last["finished_at"] + cooldown
                    detail = f"request {last['id']} ended {last['state']}; cooling down until {over:%F %T} UTC"
                    return RetrainAnswer("cooling_down", last["id"], detail)
                values = {"family": family, "reason": reason, "at": at, "state": "queued", "detail": ""}
                return RetrainAnswer("queued", _new_id(connection, q, values), reason)
        except IntegrityError:  # another process queued one between our look and our insert
            open_one = self.retrain_requests(family, last=1)[0]
            return RetrainAnswer("duplicate", open_one.id, f"request {open_one.id} is {open_one.state}")

    def claim_retrain(
        self, holder: str, at: datetime, lease: timedelta, family: str | None = None
    ) -> RetrainRequest | None:
        """Take the oldest request that waits, or that was begun once by a worker whose lease ran out; None if there
        is none."""
        q = t.retrain_requests
        died = sa.and_(q.c.state == "running", q.c.lease_until <= at, q.c.attempts < ATTEMPTS)
        waiting = sa.or_(q.c.state == "queued", died)
        with self.writing() as connection:
            row = _locked(connection, q, waiting if family is None else sa.and_(waiting, q.c.family == family))
            if row is None:
                return None
            mine = {
                "state": "running", "holder": holder, "lease_until": at + lease, "attempts": row["attempts"] + 1,
            }  # fmt: skip
            connection.execute(sa.update(q).where(q.c.id == row["id"]).values(**mine))
            return RetrainRequest(**{**row, **mine})

    def renew_retrain_lease(self, request_id: int, holder: str, until: datetime) -> bool:
        """A worker still at it moves its lease on; False if the request is no longer its own."""
        q = t.retrain_requests
        mine = sa.update(q).where(q.c.id == request_id, q.c.holder == holder, q.c.state == "running")
        with self.writing() as connection:
            return bool(connection.execute(mine.values(lease_until=until)).rowcount)

    def finish_retrain(self, request_id: int, holder: str, at: datetime, ok: bool, detail: str) -> None:
        """Close a claimed request. Raises LeaseHeld if another worker took it over meanwhile."""
        q = t.retrain_requests
        with self.writing() as connection:
            row = _locked(connection, q, q.c.id == request_id)
            if row is None:
                raise UnknownName(f"no retrain request {request_id}")
            if row["state"] != "running" or row["holder"] != holder:
                raise LeaseHeld(f"retrain request {request_id} is {row['state']} with {row['holder']}, not {holder}.")
            values = {"state": "done" if ok else "failed", "finished_at": at, "detail": detail}
            connection.execute(sa.update(q).where(q.c.id == request_id).values(**values))

    def retrain_requests(self, family: str | None = None, last: int | None = None) -> list[RetrainRequest]:
        """Requests, newest first."""
        query = sa.select(t.retrain_requests).order_by(t.retrain_requests.c.id.desc()).limit(last)
        if family is not None:
            query = query.where(t.retrain_requests.c.family == family)
        return [RetrainRequest(**row) for row in self._rows(query)]

    # ---- alarms and latches ---------------------------------------------------------------------------------------

    def raise_alarm(self, kind: str, severity: str, detail: str, at: datetime) -> int:
        """Raise an alarm; one that says the same and is still open is not raised twice. Returns its id."""
        with self.writing() as connection:
            _one_writer(connection, t.alarms)
            same = (t.alarms.c.kind == kind, t.alarms.c.detail == detail, t.alarms.c.cleared_at.is_(None))
            found = connection.scalar(sa.select(t.alarms.c.id).where(*same))
            if found is not None:
                return int(found)
            return _new_id(connection, t.alarms, {"kind": kind, "severity": severity, "detail": detail, "at": at})

    def clear_alarm(self, alarm_id: int, at: datetime) -> bool:
        """Mark an alarm as dealt with; False if it was not open."""
        with self.writing() as connection:
            query = sa.update(t.alarms).where(t.alarms.c.id == alarm_id, t.alarms.c.cleared_at.is_(None))
            return bool(connection.execute(query.values(cleared_at=at)).rowcount)

    def alarms(self, open_only: bool = True, since: datetime | None = None) -> list[Alarm]:
        """Alarms, oldest first."""
        query = _between(sa.select(t.alarms).order_by(t.alarms.c.id), t.alarms.c.at, since, None)
        if open_only:
            query = query.where(t.alarms.c.cleared_at.is_(None))
        return [Alarm(**row) for row in self._rows(query)]

    def trip(self, name: str, at: datetime, reason: str, within: Connection | None = None) -> bool:
        """Latch a breaker (law L7); False if it is tripped already, and then the first reason stands."""
        with self.writing(within) as connection:
            tripped = sa.select(t.latches.c.id).where(t.latches.c.name == name, t.latches.c.reset_at.is_(None))
            if connection.scalar(tripped) is not None:
                return False
            try:
                with connection.begin_nested():  # what was written beside it in this transaction stays whole
                    _new_id(connection, t.latches, {"name": name, "tripped_at": at, "reason": reason})
            except IntegrityError:  # another process tripped it at the same moment
                return False
        return True

    def reset(self, name: str, at: datetime, by: str, reason: str) -> None:
        """Reset a breaker by hand: what the ledger knows at this moment is accepted (`reset_as_of`).

        Raises  BadValues without a name and a reason, UnknownName if it is not tripped
        """
        if not by.strip() or not reason.strip():
            raise BadValues("a breaker is reset by somebody for a reason: give both")
        with self.writing() as connection:
            known = [
                connection.scalar(sa.select(sa.func.max(at_, type_=at_.type)))
                for at_ in (t.decisions.c.as_of, t.outcomes.c.resolved_at)
            ]
            told = {
                "reset_at": at, "reset_by": by, "reset_reason": reason,
                "reset_as_of": max((moment for moment in known if moment is not None), default=None),
            }  # fmt: skip
            query = sa.update(t.latches).where(t.latches.c.name == name, t.latches.c.reset_at.is_(None))
            if not connection.execute(query.values(**told)).rowcount:
                raise UnknownName(f"breaker {name!r} is not tripped; tripped: {[x.name for x in self.breaker_trips()]}")

    def breaker_trips(self, tripped_only: bool = True) -> list[BreakerTrip]:
        """Breakers, oldest first; tripped ones only unless asked for the history."""
        query = sa.select(t.latches).order_by(t.latches.c.id)
        if tripped_only:
            query = query.where(t.latches.c.reset_at.is_(None))
        return [BreakerTrip(**row) for row in self._rows(query)]

    # ---- retention ------------------------------------------------------------------------------------------------

    def prunable(self, before: datetime) -> dict[str, tuple[int, datetime | None]]:
        """table → (rows that `prune` would remove, moment of the oldest of them)."""
        found = {}
        with self._engine.connect() as connection:
            for table, at, removable in _removable(before):
                n, oldest = connection.execute(
                    sa.select(sa.func.count(), sa.func.min(at, type_=at.type)).select_from(table).where(removable)
                ).one()
                found[table.name] = (int(n), oldest)
        return found

    def prune(self, before: datetime) -> dict[str, int]:
        """Remove what nothing refers to and nobody counts, older than `before`; returns table → rows removed.

        decisions         NO_TRADE without an event: never one that was emitted, stood on an event or has an outcome
        alarms            cleared ones, except the newest alarm
        retrain_requests  closed ones, except the newest of each family, from which its cool-down counts
        A thousand rows a transaction, so that the service's own writes come in between.
        """
        removed = {}
        for table, _, removable in _removable(before):
            key, removed[table.name] = table.c.id, 0
            some = sa.select(key).where(removable).limit(_FETCH).correlate(None)
            while True:
                with self.writing() as connection:
                    gone = connection.execute(sa.delete(table).where(key.in_(some))).rowcount
                removed[table.name] += gone
                if gone < _FETCH:
                    break
        return removed

    def served_digests(self, before: datetime) -> set[str]:
        """Digests of every model that spoke in a decision which `prune(before)` leaves."""
        (decisions,) = (removable for table, _, removable in _removable(before) if table is t.decisions)
        query = sa.select(t.decisions.c.payload["models"]).where(sa.not_(decisions))
        with self._engine.connect() as connection:
            told = connection.execute(query, execution_options={"yield_per": _FETCH}).scalars()
            return {digest for models in told for digest in _digests(models)}


def _digests(said: Any) -> Iterator[str]:
    """Every `digest` however deep: releases differ in how a decision names its models."""
    if isinstance(said, dict):
        for key, value in said.items():
            if key == "digest" and isinstance(value, str):
                yield value
            yield from _digests(value)


def _removable(before: datetime) -> list[tuple[sa.Table, sa.Column[datetime], sa.ColumnElement[bool]]]:
    """(table, its time, which rows may go): the retention rule, whole. What is not named here stays for ever."""
    d, a, r = t.decisions, t.alarms, t.retrain_requests
    resolved = sa.exists().where(t.outcomes.c.decision_id == d.c.id)
    every_alarm, of_family = a.alias("every_alarm"), r.alias("of_family")
    newest_alarm = sa.select(sa.func.max(every_alarm.c.id)).scalar_subquery()
    newest_request = sa.select(sa.func.max(of_family.c.id)).where(of_family.c.family == r.c.family).scalar_subquery()
    return [
        (d, d.c.as_of, sa.and_(d.c.as_of < before, d.c.action == "NO_TRADE", d.c.event.is_(None), sa.not_(resolved))),
        (a, a.c.at, sa.and_(a.c.cleared_at < before, a.c.id < newest_alarm)),
        (r, r.c.at, sa.and_(r.c.state.in_(("done", "failed")), r.c.finished_at < before, r.c.id < newest_request)),
    ]


_DECISION_COLUMNS = tuple(c.name for c in t.decisions.columns if c.name not in ("payload", "features", "signals"))


def _record(row: dict[str, Any]) -> DecisionRecord:
    return DecisionRecord(decision_of(row["payload"]), row["features"], row["signals"])


def _between(query: sa.Select[Any], column: Any, since: datetime | None, until: datetime | None) -> sa.Select[Any]:
    if since is not None:
        query = query.where(column >= since)
    return query if until is None else query.where(column < until)


def _one_writer(connection: Connection, table: sa.Table) -> None:
    """Until commit nobody else writes to the table, so what was looked up stays true (SQLite has one writer anyway)."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"LOCK TABLE {table.name} IN SHARE ROW EXCLUSIVE MODE")


def _locked(connection: Connection, table: sa.Table, where: Any) -> dict[str, Any] | None:
    """The first row that fits, locked until commit (SQLite's writer holds the whole file already)."""
    order = table.primary_key.columns
    row = (
        connection.execute(sa.select(table).where(where).order_by(*order).limit(1).with_for_update()).mappings().first()
    )
    return None if row is None else dict(row)


def _new_id(connection: Connection, table: sa.Table, values: dict[str, Any]) -> int:
    key = connection.execute(sa.insert(table).values(**values)).inserted_primary_key
    return int(key[0])  # type: ignore[index]


def _count(connection: Connection, family: str) -> int:
    return int(connection.scalar(sa.select(sa.func.count()).where(t.trials.c.family == family)) or 0)
