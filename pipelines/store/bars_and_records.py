"""Observed bars, order books and context values. What was observed is never rewritten."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import repeat
from typing import NamedTuple, cast

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipelines.contracts import BAR_FIELDS, BAR_WIDTH, Books, ContextFeed, Floats, utc
from pipelines.errors import BadShape, BadTimes, BadValues
from pipelines.migrations import tables as t
from pipelines.store.codec import context_value, packed, padded, unpacked
from pipelines.store.corrections import HeldBar, corrections_by, hold, opening_in, read_with, withdraw_held
from pipelines.store.engine import LOOKUP, Bind, Database, binds, insert_text, known, lock_table

ADMISSION = "admission"  # who put a bar into quarantine, if no person did
Row = tuple[object, ...]  # of the table of bars, as _COLUMNS
_COLUMNS = tuple(column.name for column in t.bars.columns)


@dataclass(frozen=True, slots=True)
class BarBatch:
    """Hold bars of one symbol as they arrived.

    bars         (n, 9) in contracts.BAR_FIELDS order, open_time ascending and unique; NaN only from volume on
    known_at     (n,) epoch seconds: when each bar could be known (its close)
    ingested_at  when we received them
    books, feed  records that came with them; None = none
    held         bars that came with them and go into quarantine
    """

    symbol: str
    bars: Floats
    known_at: Floats
    ingested_at: datetime
    books: Books | None = None
    feed: ContextFeed | None = None
    held: Sequence[HeldBar] = ()


class ContextValue(NamedTuple):
    """Hold one context value of a symbol: when it could be known (epoch s), and when we received it; NaN = none."""

    kind: str
    value: float
    known_at: float
    ingested_at: datetime


class BarStore(Database):
    """Store bars, books and context of each symbol."""

    def add_bars(self, batch: BarBatch, within: Connection | None = None) -> int:
        """Store the bars of one symbol, as `add_all_bars`; return how many were new."""
        return self.add_all_bars([batch], within)[0]

    def add_all_bars(self, batches: Sequence[BarBatch], within: Connection | None = None) -> list[int]:
        """Store bars as observed and return how many of each batch were new. The same bars again change nothing.

        Raises  BadShape, BadTimes (not ascending), BadValues (another bar is stored under that symbol and time);
                in each case nothing of any batch is written
        """
        for batch in batches:
            _refuse_disorder(batch)
        if all(not len(b.bars) and b.books is None and b.feed is None and not b.held for b in batches):
            return [0] * len(batches)
        found: list[int] = []
        with self.writing(within) as connection:
            lock_table(connection, t.bars)
            for together in _with_symbols_once(batches):
                fresh = _fresh_bars(together, connection)
                if rows := [row for some in fresh for row in some]:
                    _insert_bars(rows, connection)
                found += map(len, fresh)
                for batch in together:
                    hold(connection, batch.symbol, batch.held, batch.ingested_at, ADMISSION)
                    _add_records(batch, connection)
        return found

    def bars(
        self,
        symbol: str,
        after: float = -np.inf,
        until: float = np.inf,
        reading: datetime | None = None,
        known_by: datetime | None = None,
    ) -> Floats:
        """Return observed bars (n, 9), ascending, with after < open_time <= until in epoch seconds; NaN = not
        recorded.

        reading   moment (aware) whose corrections are applied, and no later ones; None = all, the bars as of now
        known_by  moment (aware): bars and corrections that came later are left out
        """
        limits = [moment for moment in (reading, known_by) if moment is not None]
        with self._engine.connect() as connection:
            observed = _observed(connection, symbol, after, until, known_by)
            made = corrections_by(connection, symbol, min(limits, default=None))
        return read_with(observed, opening_in(made, after, until))

    def bar_readings(self, symbol: str, after: float = -np.inf, until: float = np.inf) -> Floats:
        """Return bars (m, 9) with after < open_time <= until in every reading: as observed, then each correction."""
        with self._engine.connect() as connection:
            observed = _observed(connection, symbol, after, until)
            corrected = opening_in(corrections_by(connection, symbol, None), after, until)
        return np.concatenate([observed, *(one.after[np.newaxis] for one in corrected if one.after is not None)])

    def withdraw_bars(self, symbol: str, closed_after: float) -> Floats:
        """Delete bars that were stored before they can have closed, because the clock was wrong, and return them.

        closed_after  epoch seconds: bars with a later close are deleted, and every record known later
        """
        with self.writing() as connection:
            lock_table(connection, t.bars)
            late = sa.and_(t.bars.c.symbol == symbol, t.bars.c.known_at > closed_after)
            found = connection.execute(
                sa.select(*(t.bars.c[name] for name in BAR_FIELDS)).where(late).order_by(t.bars.c.open_time)
            ).all()
            connection.execute(sa.delete(t.bars).where(late))
            withdraw_held(connection, symbol, closed_after, utc(closed_after))
            connection.execute(
                sa.delete(t.records).where(t.records.c.symbol == symbol, t.records.c.known_at > closed_after)
            )
        return np.array([tuple(row) for row in found], dtype=np.float64).reshape(-1, BAR_WIDTH)

    def newest_bar(self, symbol: str) -> float | None:
        """Return the open time of the newest observed bar in epoch seconds; None without one."""
        with self._engine.connect() as connection:
            newest = connection.scalar(sa.select(sa.func.max(t.bars.c.open_time)).where(t.bars.c.symbol == symbol))
        return None if newest is None else float(newest)

    def newest_close(self, symbol: str, known_by: datetime | None = None) -> float | None:
        """Return when the newest observed bar closed, epoch seconds, of those that came by `known_by`; None without."""
        query = known(sa.select(t.bars.c.known_at).where(t.bars.c.symbol == symbol), t.bars.c.ingested_at, known_by)
        with self._engine.connect() as connection:
            newest = connection.scalar(query.order_by(t.bars.c.open_time.desc()).limit(1))
        return None if newest is None else float(newest)

    def records(
        self, symbol: str, after: float = -np.inf, until: float = np.inf, known_by: datetime | None = None
    ) -> tuple[Books | None, ContextFeed | None]:
        """Return observed books and context with after < known_at <= until (epoch seconds), ascending; None = none."""
        query = sa.select(t.records.c.kind, t.records.c.known_at, t.records.c.payload).where(
            t.records.c.symbol == symbol
        )
        query = known(query, t.records.c.ingested_at, known_by)
        if np.isfinite(after):
            query = query.where(t.records.c.known_at > float(after))
        if np.isfinite(until):
            query = query.where(t.records.c.known_at <= float(until))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(t.records.c.known_at, t.records.c.kind)).all()
        return unpacked([(str(kind), float(at), bytes(payload)) for kind, at, payload in rows])

    def context(self, symbol: str, last: int | None = None, known_by: datetime | None = None) -> list[ContextValue]:
        """Return context values by the time they could be known; `last` limits them to the newest so many."""
        r = t.records.c
        query = sa.select(r.kind, r.payload, r.known_at, r.ingested_at).where(r.symbol == symbol, r.kind != "book")
        query = known(query, r.ingested_at, known_by).order_by(r.known_at.desc(), r.kind.desc()).limit(last)
        return [
            ContextValue(row["kind"], context_value(bytes(row["payload"])), row["known_at"], row["ingested_at"])
            for row in reversed(self._rows(query))
        ]

    def newest_arrival(self, symbol: str) -> datetime | None:
        """Return the time of day at which the newest observed bar of a symbol came; None without one."""
        query = sa.select(t.bars.c.ingested_at).where(t.bars.c.symbol == symbol).order_by(t.bars.c.open_time.desc())
        with self._engine.connect() as connection:
            found: datetime | None = connection.scalar(query.limit(1))
        return found

    def first_arrival(self, symbol: str, opens_from: float, opens_before: float = np.inf) -> datetime | None:
        """Return the time of day at which the first observed bar with opens_from <= open_time < opens_before (epoch s)
        came; None without one."""
        b = t.bars.c
        query = sa.select(b.ingested_at).where(b.symbol == symbol, b.open_time >= float(opens_from))
        if np.isfinite(opens_before):
            query = query.where(b.open_time < float(opens_before))
        with self._engine.connect() as connection:
            found: datetime | None = connection.scalar(query.order_by(b.open_time).limit(1))
        return found

    def symbols(self) -> tuple[str, ...]:
        """Return the symbols with at least one observed bar, in alphabetical order."""
        return tuple(r["symbol"] for r in self._rows(sa.select(t.bars.c.symbol).distinct().order_by(t.bars.c.symbol)))


def _observed(
    connection: Connection, symbol: str, after: float, until: float, known_by: datetime | None = None
) -> Floats:
    """Return bars (n, 9) as they were observed, ascending, with after < open_time <= until in epoch seconds."""
    query = sa.select(*(t.bars.c[name] for name in BAR_FIELDS)).where(t.bars.c.symbol == symbol)
    query = known(query, t.bars.c.ingested_at, known_by)
    if np.isfinite(after):
        query = query.where(t.bars.c.open_time > float(after))
    if np.isfinite(until):
        query = query.where(t.bars.c.open_time <= float(until))
    rows = connection.execute(query.order_by(t.bars.c.open_time)).all()
    return np.array(rows, dtype=np.float64).reshape(-1, BAR_WIDTH)


def _refuse_disorder(batch: BarBatch) -> None:
    """Raise BadShape or BadTimes for bars that are not (n, 9) in ascending order with a time for each."""
    rows, n = batch.bars, len(batch.bars)
    if rows.ndim != 2 or rows.shape[1] != BAR_WIDTH or batch.known_at.shape != (n,):
        raise BadShape(
            f"{batch.symbol}: bars {rows.shape} and known_at {batch.known_at.shape}, want (n, {BAR_WIDTH}) and (n,)"
        )
    if not np.all(np.diff(rows[:, 0]) > 0):
        at = utc(rows[1 + int(np.argmin(np.diff(rows[:, 0]) > 0)), 0])
        raise BadTimes(f"{batch.symbol}: open_time {at:%F %T} is not after the one before it. Sort and deduplicate.")


def _with_symbols_once(batches: Sequence[BarBatch]) -> Iterator[list[BarBatch]]:
    """Yield the batches in their order, in lists in which a symbol comes once: a later one is compared with it."""
    together: dict[str, BarBatch] = {}
    for batch in batches:
        if batch.symbol in together:
            yield list(together.values())
            together = {}
        together[batch.symbol] = batch
    yield list(together.values())


def _fresh_bars(batches: Sequence[BarBatch], connection: Connection) -> list[list[Row]]:
    """Return, for each batch, the rows that are not stored yet. Raises BadValues where another bar is stored."""
    spans: dict[tuple[float, float], list[str]] = {}
    for batch in batches:
        if len(batch.bars):
            spans.setdefault((batch.bars[0, 0].item(), batch.bars[-1, 0].item()), []).append(batch.symbol)
    stored = {
        (symbol, row[0]): row
        for span, symbols in spans.items()  # bars that close together are one question
        for symbol, row in _stored_bars(connection, symbols, *span)
    }
    as_bound = cast(Bind, dict(binds(t.bars, connection.dialect))["ingested_at"])
    fresh: list[list[Row]] = []
    for batch in batches:
        rows = _rows_of(batch, as_bound)
        if stored:
            rows = [row for row, bar in zip(rows, batch.bars, strict=True) if _is_fresh(batch.symbol, bar, stored)]
        fresh.append(rows)
    return fresh


def _rows_of(batch: BarBatch, as_bound: Bind) -> list[Row]:
    """Return the bars of a batch as rows that a driver takes, in the table's order of columns; None = not recorded."""
    bars = batch.bars.T.tolist()
    columns: dict[str, Iterable[object]] = {
        "symbol": repeat(batch.symbol, len(batch.bars)),
        "known_at": batch.known_at.tolist(),
        "ingested_at": repeat(as_bound(batch.ingested_at), len(batch.bars)),
        **{name: [None if v != v else v for v in values] for name, values in zip(BAR_FIELDS, bars, strict=True)},
    }
    return list(zip(*(columns[name] for name in _COLUMNS), strict=True))


def _is_fresh(symbol: str, bar: Floats, stored: Mapping[tuple[str, float], tuple[float, ...]]) -> bool:
    """Return whether a bar (9,) is not stored yet. Raises BadValues where another one is."""
    before = stored.get((symbol, float(bar[0])))
    if before is not None and not np.array_equal(before, bar, equal_nan=True):
        raise BadValues(_conflict(symbol, before, bar.tolist()))
    return before is None


def _insert_bars(rows: Sequence[Row], connection: Connection) -> None:
    """Insert rows of `_rows_of`; of many bars, SQLAlchemy binds values for longer than SQLite takes to write them."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(insert_text(t.bars, connection.dialect), list(rows))
    else:  # PostgreSQL's driver would send row by row
        connection.execute(sa.insert(t.bars), [dict(zip(_COLUMNS, row, strict=True)) for row in rows])


def _stored_bars(
    connection: Connection, symbols: Sequence[str], first: float, last: float
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield (symbol, bar) of stored bars with first <= open_time <= last, in BAR_FIELDS order; NaN = not recorded."""
    for i in range(0, len(symbols), LOOKUP):
        some = symbols[i : i + LOOKUP]
        query = _stored_query(len(some), connection.dialect.paramstyle)
        for symbol, *row in connection.exec_driver_sql(query, (*some, first, last)):
            yield symbol, tuple(float("nan") if value is None else float(value) for value in row)


@cache
def _stored_query(symbols: int, paramstyle: str) -> str:
    """Return the query for the bars of so many symbols in a span, as the driver takes it: SQLAlchemy would build and
    look up the statement for longer than SQLite reads."""
    value = "?" if paramstyle == "qmark" else "%s"
    among = ", ".join([value] * symbols)
    columns = f"symbol, {', '.join(BAR_FIELDS)}"
    return f"SELECT {columns} FROM {t.bars.name} WHERE symbol IN ({among}) AND open_time BETWEEN {value} AND {value}"


def _conflict(symbol: str, stored: tuple[float, ...], sent: list[float]) -> str:
    """Return the refusal that names the first field in which two bars of the same time differ."""
    name, old, new = next(
        (name, a, b) for name, a, b in zip(BAR_FIELDS, stored, sent, strict=True) if not (a == b or (a != a and b != b))
    )
    return (
        f"{symbol}: bar {utc(sent[0]):%F %T} is stored with {name}={old!r}, now {name}={new!r}. "
        "What was observed is never rewritten; nothing of this batch was stored."
    )


def _add_records(batch: BarBatch, connection: Connection) -> None:
    """Store the batch's books and context; the same record a second time changes nothing.

    Raises  BadValues if a different record of the same kind and time is stored
    """
    sent = dict(packed(batch.books, batch.feed))
    if not sent:
        return
    moments = [known_at for _, known_at in sent]
    query = sa.select(t.records.c.kind, t.records.c.known_at, t.records.c.payload).where(
        t.records.c.symbol == batch.symbol, t.records.c.known_at.between(min(moments), max(moments))
    )
    stored = {(kind, at): padded(kind, bytes(payload)) for kind, at, payload in connection.execute(query)}
    for (kind, at), payload in sent.items():
        if stored.get((kind, at), payload) != payload:
            raise BadValues(
                f"{batch.symbol}: another {kind} is stored as known at {utc(at):%F %T}. What was observed is never "
                "rewritten; nothing of this batch was stored."
            )
    fresh = [
        {"symbol": batch.symbol, "kind": kind, "known_at": at, "payload": payload, "ingested_at": batch.ingested_at}
        for (kind, at), payload in sent.items()
        if (kind, at) not in stored
    ]
    if fresh:
        connection.execute(sa.insert(t.records), fresh)
