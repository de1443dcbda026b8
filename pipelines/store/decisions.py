"""Decisions, what became of them (outcomes), and what was filled of their orders (fills)."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Literal, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping
from sqlalchemy.exc import IntegrityError

from pipelines.contracts import Outcome
from pipelines.errors import BadValues, StoredAlready, UnknownName
from pipelines.migrations import tables as t
from pipelines.record_codec import DecisionRecord, Part, kind_of, message_of, part_digest, read_record, record_of
from pipelines.store.chain_lines import chain_row
from pipelines.store.codec import decision_of
from pipelines.store.engine import LOOKUP, between, insert_rows, known, lock_row
from pipelines.store.record_parts import RecordParts

_IN_RECORD = {"payload": {}, "features": b"", "signals": b""}  # columns of rows before revision 0008
_NEWEST_NUMBER = f"SELECT max(seq) FROM {t.decisions.name}"
_NUMBERING_LOCK = 0x64656369  # any fixed number: two PostgreSQL clients must not number decisions at once
_OUTCOME = [t.outcomes.c[f.name] for f in fields(Outcome)]
_RECEIVED = sa.func.coalesce(t.outcomes.c.ingested_at, t.outcomes.c.resolved_at, type_=t.UtcTime())
TOGETHER_FROM = 16  # decisions; zlib lets other threads run, and a few are written sooner than a thread is woken
_DEFLATING = ThreadPoolExecutor(1, thread_name_prefix="deflate")
_DECISION_COLUMNS = tuple(c.name for c in t.decisions.columns if c.name not in (*_IN_RECORD, "record", "seq"))


@dataclass(frozen=True, slots=True)
class Fill:
    """Hold what was filled of the order of an emitted decision: what a venue reported, or what the ledger counts.

    id            the venue's own name of the report: the same report a second time changes nothing
    at            the venue's clock; of the ledger's own, the event time of the market
    price         paid or received, quote currency; None where it was rejected
    slippage_bps  of the decision's entry, positive = worse than decided; None where it was rejected, and of an exit
    quantity      fraction of equity; None where it was not reported
    fee_bps       of this side, basis points of the price; None where it was not reported
    is_exit       whether it closed a position, or a part of it
    source        `reported` by a venue, or of the `ledger`: what an emitted decision counts as while there is no venue
    """

    id: str
    decision_id: str
    at: datetime
    ingested_at: datetime
    status: Literal["filled", "rejected"]
    price: float | None
    slippage_bps: float | None
    reason: str = ""
    quantity: float | None = None
    fee_bps: float | None = None
    is_exit: bool = False
    source: Literal["reported", "ledger"] = "reported"


def _deflated(messages: Sequence[bytes], parts: Sequence[Part]) -> list[bytes]:
    """Return the record of each message against its part; of many, a second thread writes half."""
    if len(messages) < TOGETHER_FROM:
        return list(map(record_of, messages, parts))
    half = len(messages) // 2
    later = _DEFLATING.submit(lambda: list(map(record_of, messages[half:], parts[half:])))
    return [*map(record_of, messages[:half], parts[:half]), *later.result()]


class ReceivedOutcome(NamedTuple):
    """Hold an outcome and when it was stored; of one that an earlier release stored, when it was resolved."""

    outcome: Outcome
    ingested_at: datetime


class DecisionStore(RecordParts):
    """Store the decision ledger with outcomes and fills."""

    _numbering: tuple[object, int] = (None, 0)  # the transaction that numbers decisions, and its newest number

    def add_decisions(self, records: Sequence[DecisionRecord], within: Connection | None = None) -> list[int]:
        """Store decisions, all or none; return the sequence number of each, which ascends as they become durable.

        Raises  StoredAlready if an id exists, BadValues if a figure is not finite
        """
        messages = [(kind_of(r.decision), message_of(r)) for r in records]
        if not messages:
            return []
        try:
            with self.writing(within) as connection:
                parts = self.add_parts(messages, connection)
                newest = self._newest_number(connection)
                numbers = [newest + 1 + i for i in range(len(records))]
                rows = [
                    {c: getattr(r.decision, c) for c in _DECISION_COLUMNS} | _IN_RECORD | {"record": record, "seq": seq}
                    for r, record, seq in zip(records, _deflated([m for _, m in messages], parts), numbers, strict=True)
                ]
                insert_rows(connection, t.decisions, rows)
                self._numbering = connection.get_transaction(), numbers[-1]
        except IntegrityError as error:
            raise StoredAlready("a decision with this id is stored already; ids are never reused") from error
        return numbers

    def _newest_number(self, connection: Connection) -> int:
        """Return the newest sequence number; until this transaction ends nobody else numbers a decision.

        It is read once a transaction. SQLite has one writer anyway.
        """
        if self._numbering[0] is connection.get_transaction():
            return self._numbering[1]
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_NUMBERING_LOCK})")
        return int(connection.exec_driver_sql(_NEWEST_NUMBER).scalar() or 0)  # as text: a third of the time

    def newest_sequence(self) -> int:
        """Return the sequence number of the newest decision, 0 where none has one."""
        with self._engine.connect() as connection:
            return int(connection.scalar(sa.select(sa.func.max(t.decisions.c.seq))) or 0)

    def decisions_after(self, seq: int, limit: int) -> list[tuple[int, DecisionRecord]]:
        """Return (sequence number, decision) of the first `limit` decisions after a number, in the ledger's order."""
        query = sa.select(t.decisions).where(t.decisions.c.seq > seq).order_by(t.decisions.c.seq).limit(limit)
        rows = self._rows(query)
        return list(zip((int(row["seq"]) for row in rows), self._records(rows), strict=True))

    def decision(self, decision_id: str, known_by: datetime | None = None) -> DecisionRecord:
        """Return one decision. Raises UnknownName for none, and for one that was stored after `known_by`."""
        found = self._rows(sa.select(t.decisions).where(t.decisions.c.id == decision_id))
        if not found:
            raise UnknownName(f"no decision {decision_id!r} in the ledger; `bellwether decide` prints ids of new ones")
        came = found[0]["ingested_at"]
        if known_by is not None and came > known_by:
            raise UnknownName(
                f"decision {decision_id} was not known at {known_by.isoformat()}: it was stored at {came.isoformat()}. "
                "Give that moment or a later one"
            )
        return self._records(found)[0]

    def decisions(
        self,
        symbol: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        last: int | None = None,
        events_only: bool = False,
        emitted_only: bool = False,
        known_by: datetime | None = None,
    ) -> list[DecisionRecord]:
        """Return decisions with since <= as_of < until, oldest first; `last` limits them to the newest so many."""
        query = between(sa.select(t.decisions), t.decisions.c.as_of, since, until)
        query = known(query, t.decisions.c.ingested_at, known_by)
        if symbol is not None:
            query = query.where(t.decisions.c.symbol == symbol)
        if events_only:
            query = query.where(t.decisions.c.event.is_not(None))
        if emitted_only:
            query = query.where(t.EMITTED)
        query = query.order_by(t.decisions.c.as_of.desc(), t.decisions.c.ingested_at.desc()).limit(last)
        return self._records(self._rows(query)[::-1])

    def decided_closes(self, since: datetime, until: datetime) -> dict[str, list[datetime]]:
        """Return symbol → closes decided on, since <= close < until, ascending, each once; without their records."""
        d = t.decisions.c
        query = between(sa.select(d.symbol, d.as_of).distinct(), d.as_of, since, until)
        found: dict[str, list[datetime]] = {}
        for row in self._rows(query.order_by(d.symbol, d.as_of)):
            found.setdefault(row["symbol"], []).append(row["as_of"])
        return found

    def _records(self, rows: Sequence[RowMapping]) -> list[DecisionRecord]:
        """Return the records of rows of `decisions`, whichever release wrote them."""
        parts = self.parts_of({part_digest(row["record"]) for row in rows if row["record"] is not None})
        return [
            DecisionRecord(decision_of(row["payload"]), row["features"], row["signals"])
            if (record := row["record"]) is None
            else read_record(record, parts[part_digest(record)])
            for row in rows
        ]

    def count_decisions(self) -> tuple[int, int]:
        """Return how many decisions are stored, and how many of them opened something."""
        counted = sa.select(sa.func.count()).select_from(t.decisions)  # apart: each is read from an index alone
        with self._engine.connect() as connection:
            every, emitted = connection.scalar(counted), connection.scalar(counted.where(t.EMITTED))
        return int(every or 0), int(emitted or 0)

    # ---- outcomes -------------------------------------------------------------------------------------------------

    def unresolved(self, until: datetime, limit: int | None = None, symbol: str | None = None) -> list[DecisionRecord]:
        """Return decisions on an event, as_of <= until, that have no outcome yet; oldest first. symbol: None = all."""
        query = (
            sa.select(t.decisions)
            .outerjoin(t.outcomes, t.outcomes.c.decision_id == t.decisions.c.id)
            .where(t.outcomes.c.decision_id.is_(None), t.decisions.c.event.is_not(None), t.decisions.c.as_of <= until)
            .order_by(t.decisions.c.as_of)
            .limit(limit)
        )
        if symbol is not None:
            query = query.where(t.decisions.c.symbol == symbol)
        return self._records(self._rows(query))

    def add_outcome(self, outcome: Outcome, at: datetime, within: Connection | None = None) -> bool:
        """Store what became of a decision, received at `at`; return False if exactly this is stored already, whenever
        it arrived.

        Raises  UnknownName for a decision we never made, BadValues if another outcome is stored for it
        """
        with self.writing(within) as connection:
            if lock_row(connection, t.decisions, t.decisions.c.id == outcome.decision_id) is None:
                raise UnknownName(f"no decision {outcome.decision_id!r} in the ledger: outcomes belong to decisions")
            query = sa.select(*_OUTCOME).where(t.outcomes.c.decision_id == outcome.decision_id)
            stored = connection.execute(query).mappings().first()
            if stored is None:  # the line of the chain covers `ingested_at`, so the moment is never written later
                connection.execute(sa.insert(t.outcomes), asdict(outcome) | {"ingested_at": at})
                chain_row(connection, self._chain_key, t.outcomes, outcome.decision_id)
                return True
            if Outcome(**stored) != outcome:
                raise BadValues(
                    f"decision {outcome.decision_id}: stored {Outcome(**stored)}, now {outcome}; kept the first"
                )
            return False

    def add_outcomes(self, received: Sequence[ReceivedOutcome], within: Connection | None = None) -> list[bool]:
        """Store outcomes in one transaction, as `add_outcome`; return whether each was new. One fault refuses all."""
        with self.writing(within) as connection:
            return [self.add_outcome(one.outcome, one.ingested_at, connection) for one in received]

    def outcomes_of(self, decision_ids: Sequence[str], known_by: datetime | None = None) -> list[Outcome]:
        """Return the outcomes of these decisions, as far as they are known."""
        return [received.outcome for received in self.received_outcomes(decision_ids, known_by)]

    def received_outcomes(self, decision_ids: Sequence[str], known_by: datetime | None = None) -> list[ReceivedOutcome]:
        """Return the outcomes of these decisions, as far as they are known, with the moment each was stored."""
        query, found = known(sa.select(*_OUTCOME, _RECEIVED.label("received")), _RECEIVED, known_by), []
        for i in range(0, len(decision_ids), LOOKUP):
            for row in self._rows(query.where(t.outcomes.c.decision_id.in_(decision_ids[i : i + LOOKUP]))):
                found.append(ReceivedOutcome(_outcome(row), row["received"]))
        return found

    def resolved(
        self,
        since: datetime | None = None,
        until: datetime | None = None,
        ended_since: datetime | None = None,
        known_by: datetime | None = None,
    ) -> list[tuple[DecisionRecord, Outcome]]:
        """Return decisions joined with their outcomes, since <= as_of < until, ended_since <= resolved_at; oldest
        decision first."""
        joined = t.decisions.join(t.outcomes, t.outcomes.c.decision_id == t.decisions.c.id)
        query = between(sa.select(t.decisions, *_OUTCOME).select_from(joined), t.decisions.c.as_of, since, until)
        query = between(query, t.outcomes.c.resolved_at, ended_since, None)
        query = known(known(query, t.decisions.c.ingested_at, known_by), _RECEIVED, known_by)
        rows = self._rows(query.order_by(t.decisions.c.as_of))
        return list(zip(self._records(rows), map(_outcome, rows), strict=True))

    def outcome_count(self) -> int:
        """Return how many outcomes are stored."""
        with self._engine.connect() as connection:
            return int(connection.scalar(sa.select(sa.func.count()).select_from(t.outcomes)) or 0)

    # ---- fills ----------------------------------------------------------------------------------------------------

    def add_fill(self, fill: Fill, within: Connection | None = None) -> bool:
        """Store a fill; return False if exactly this is stored already, whenever it arrived.

        Raises  UnknownName for a decision we never made; BadValues for one that opened nothing, or if another fill is
                stored under this id
        """
        with self.writing(within) as connection:
            decided = lock_row(connection, t.decisions, t.decisions.c.id == fill.decision_id)
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

    def add_fills(self, fills: Sequence[Fill], within: Connection | None = None) -> list[bool]:
        """Store fills in one transaction, as `add_fill`; return whether each was new. One fault refuses all."""
        with self.writing(within) as connection:
            return [self.add_fill(fill, connection) for fill in fills]

    def fills(
        self,
        since: datetime | None = None,
        last: int | None = None,
        known_by: datetime | None = None,
        source: Literal["reported", "ledger"] | None = None,
    ) -> list[Fill]:
        """Return fills that arrived after `since`, oldest arrival first; `last` limits them to the newest so many.

        source  of the fills; None = both
        """
        f = t.fills
        query = sa.select(f).order_by(f.c.ingested_at.desc(), f.c.at.desc(), f.c.id.desc()).limit(last)
        query = known(query, f.c.ingested_at, known_by)
        if since is not None:
            query = query.where(f.c.ingested_at > since)
        if source is not None:
            query = query.where(f.c.source == source)
        return [Fill(**row) for row in reversed(self._rows(query))]


def _outcome(row: RowMapping) -> Outcome:
    """Return the outcome of a row, which may have further columns."""
    return Outcome(**{column.name: row[column.name] for column in _OUTCOME})
