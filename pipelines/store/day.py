"""One day of decisions with what its audit needs, as of one moment: rows as their digests cover them, and proofs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipelines.contracts import JsonObject
from pipelines.errors import StateError
from pipelines.migrations import tables as t
from pipelines.record_codec import Part, part_digest, part_of, read_as_stored
from pipelines.store.chain_lines import (
    CHAINED,
    ROWS_AT_ONCE,
    Line,
    Proof,
    Span,
    count_rows,
    digests_of,
    key_of,
    merkle_proofs,
    plain_row,
    read_lines,
    spans_of,
)
from pipelines.store.engine import Database


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """Hold one decision as it is stored.

    decision           as JSON, with the fields that its release stored
    features, signals  the bytes it was made from
    row                the columns its digest is made of (`chain_lines.plain_row`)
    seal               seq of the line whose root it is under, and the proof of that; None where it is under none yet
    """

    decision: JsonObject
    features: bytes
    signals: bytes
    row: JsonObject
    seal: tuple[int, Proof] | None


class StoredDay:
    """Read the decisions with since <= as_of < until, and what proves them, over one connection."""

    def __init__(self, connection: Connection, since: datetime, until: datetime) -> None:
        """Read the lines of the chain; they are few next to the decisions."""
        self._connection, self._until = connection, until
        self._of_day = sa.and_(t.decisions.c.as_of >= since, t.decisions.c.as_of < until)
        self._parts: dict[bytes, tuple[Part, bytes]] = {}
        self.lines = list(read_lines(connection, 0))
        self._roots = [newest for *_, newest in spans_of(self.lines).values()]

    def counts(self) -> dict[str, int]:
        """Return how many rows of each kind the audit of this day has."""
        decisions = count_rows(self._connection, t.decisions, self._of_day)
        joined = t.outcomes.join(t.decisions, t.decisions.c.id == t.outcomes.c.decision_id)
        outcomes = sa.select(sa.func.count()).select_from(joined).where(self._of_day)
        return {
            "decisions": decisions,
            "not sealed": count_rows(self._connection, t.decisions, self._not_sealed()),
            "outcomes": int(self._connection.scalar(outcomes) or 0),
            **{name: len(self._wanted(CHAINED[name])) for name in ("promotions", "corrections")},
            "lines of the chain": len(self.lines),
        }

    def first_and_last(self) -> tuple[datetime, datetime] | None:
        """Return as_of of the first and of the last decision of the whole store; None without any."""
        as_of = t.decisions.c.as_of
        times = sa.select(sa.func.min(as_of, type_=t.UtcTime()), sa.func.max(as_of, type_=t.UtcTime()))
        first, last = self._connection.execute(times).one()
        return None if first is None else (first, last)

    def decisions(self) -> Iterator[StoredDecision]:
        """Yield every decision of the day, root by root, then those that are under none; in a root by as_of.

        Raises  StateError for a record that cannot be read
        """
        came = t.decisions.c.ingested_at
        edges = sa.select(sa.func.min(came, type_=t.UtcTime()), sa.func.max(came, type_=t.UtcTime()))
        first, last = self._connection.execute(edges.where(self._of_day)).one()
        if first is None:
            return
        for line in self._roots:
            span = Span.of(line)
            if span.until >= first and (span.since is None or span.since < last):
                yield from self._under(line, span)
        for row in self._stream(self._ordered(self._not_sealed())):
            yield self._stored(row, None)

    def outcomes(self) -> Iterator[JsonObject]:
        """Yield the outcomes of the day's decisions, as far as they are known now."""
        joined = t.outcomes.join(t.decisions, t.decisions.c.id == t.outcomes.c.decision_id)
        query = sa.select(t.outcomes).select_from(joined).where(self._of_day).order_by(t.outcomes.c.decision_id)
        for row in self._stream(query):
            yield plain_row(row)

    def ledger(self, table: str) -> Iterator[JsonObject]:
        """Yield the rows of `promotions` or `corrections` up to the end of the day in their order, and the one after
        it, which shows that none before it is left out."""
        wanted, key = self._wanted(CHAINED[table]), key_of(CHAINED[table])
        for row in self._stream(sa.select(CHAINED[table]).order_by(key)):
            if row[key.name] in wanted:
                yield plain_row(row)

    def parts(self) -> Iterator[JsonObject]:
        """Yield the parts that the records of the decisions read so far were written against."""
        for digest, (_, content) in self._parts.items():
            yield plain_row({"digest": digest, "content": content})

    # ---- how they are found -----------------------------------------------------------------------------------------

    def _stream(self, query: sa.Select[Any]) -> Iterator[Mapping[str, Any]]:
        """Yield the rows of a query without holding all of them."""
        for row in self._connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}).mappings():
            yield dict(row)

    def _ordered(self, where: sa.ColumnElement[bool]) -> sa.Select[Any]:
        """Return a query of decisions by as_of."""
        return sa.select(t.decisions).where(where).order_by(t.decisions.c.as_of, t.decisions.c.id)

    def _not_sealed(self) -> sa.ColumnElement[bool]:
        """Return which decisions of the day came in after the last root."""
        if not self._roots:
            return self._of_day
        return sa.and_(self._of_day, t.decisions.c.ingested_at > max(Span.of(line).until for line in self._roots))

    def _under(self, line: Line, span: Span) -> Iterator[StoredDecision]:
        """Yield the decisions of the day under one root, each with its proof."""
        query = self._ordered(sa.and_(self._of_day, span.rows()))
        ids = [str(id) for id in self._connection.scalars(query.with_only_columns(t.decisions.c.id))]
        if ids:
            digests = dict(digests_of(self._connection, t.decisions, span.rows()))
            place = {id: n for n, id in enumerate(digests)}
            proofs = merkle_proofs(list(digests.values()), [place[id] for id in ids])
            for row, proof in zip(self._stream(query), proofs, strict=True):
                yield self._stored(row, (line.seq, proof))

    def _stored(self, row: Mapping[str, Any], seal: tuple[int, Proof] | None) -> StoredDecision:
        """Return the decision of a row."""
        plain = plain_row(row)
        if (record := row["record"]) is None:
            return StoredDecision(row["payload"], bytes(row["features"]), bytes(row["signals"]), plain, seal)
        return StoredDecision(*read_as_stored(bytes(record), self._part(part_digest(bytes(record)))), plain, seal)

    def _part(self, digest: bytes) -> Part:
        """Return a part of records. Raises StateError if it is not stored, or damaged."""
        if digest not in self._parts:
            query = sa.select(t.record_parts.c.content).where(t.record_parts.c.digest == digest)
            content = self._connection.scalar(query)
            if content is None:
                raise StateError(f"part {digest.hex()} of the decision records is not stored: restore a backup")
            self._parts[digest] = part_of(digest, bytes(content)), bytes(content)
        return self._parts[digest][0]

    def _wanted(self, table: sa.Table) -> set[object]:
        """Return the keys of the rows up to the end of the day in the order of the chain, and of the one after it."""
        key, lines = key_of(table), {line.ref: line.seq for line in self.lines if line.kind == table.name}
        times = {row[0]: row[1] for row in self._connection.execute(sa.select(key, table.c.at))}
        of_time = {number for number, at in times.items() if at < self._until}  # also one that has no line
        last = max((lines.get(str(number), 0) for number in of_time), default=0)
        after = min((seq for seq in lines.values() if seq > last), default=last)
        return of_time | {number for number in times if lines.get(str(number), after + 1) <= after}


class DayStore(Database):
    """Open one day of the store for its audit."""

    @contextmanager
    def day(self, since: datetime, until: datetime) -> Iterator[StoredDay]:
        """Yield the decisions with since <= as_of < until (aware) and what proves them, while others may write."""
        with self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield StoredDay(connection, since, until)
