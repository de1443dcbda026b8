"""Which old rows may be deleted, and their deletion."""

from collections.abc import Iterator
from datetime import datetime

import sqlalchemy as sa

from pipelines.migrations import tables as t
from pipelines.record_codec import part_digest, read_record
from pipelines.store.chain import ChainStore
from pipelines.store.record_parts import RecordParts

ROWS_PER_TRANSACTION = 1000


class Retention(RecordParts, ChainStore):
    """Delete rows that nothing refers to any more."""

    def prunable(self, before: datetime) -> dict[str, tuple[int, datetime | None]]:
        """Return table → (rows that `prune` would delete, time of the oldest of them)."""
        found = {}
        with self._engine.connect() as connection:
            for table, at, removable in _removable(before):
                n, oldest = connection.execute(
                    sa.select(sa.func.count(), sa.func.min(at, type_=at.type)).select_from(table).where(removable)
                ).one()
                found[table.name] = (int(n), oldest)
        return found

    def prune(self, before: datetime) -> dict[str, int]:
        """Delete rows older than `before` that nothing refers to or counts; return table → rows deleted.

        family_outcomes   all: what is older than the window is no evidence on a model that serves
        decisions         NO_TRADE without an event: never one that was emitted, stood on an event or has an outcome,
                          nor the newest, from whose number the next ones count
        alarms            cleared ones, except the newest alarm
        retrain_requests  closed ones, except the newest of each family, from which its cool-down counts
        A thousand rows a transaction, so that the service's own writes come in between. Parts of records stay: there
        are a few for each generation, and decisions that stay may rest on them.
        Before the first, the chain notes the root of the decisions that stay. Raises StateError if they are not those
        that were sealed.
        """
        removed = {}
        for table, _, removable in _removable(before):
            key, removed[table.name] = table.c.id, 0
            if table is t.decisions:
                self.note_pruning(sa.not_(removable))
            some = sa.select(key).where(removable).limit(ROWS_PER_TRANSACTION).correlate(None)
            while True:
                with self.writing() as connection:
                    deleted = connection.execute(sa.delete(table).where(key.in_(some))).rowcount
                removed[table.name] += deleted
                if deleted < ROWS_PER_TRANSACTION:
                    break
        return removed

    def served_digests(self, before: datetime) -> set[str]:
        """Return the digests of all models recorded in decisions that `prune(before)` leaves."""
        (decisions,) = (removable for table, _, removable in _removable(before) if table is t.decisions)
        query = sa.select(t.decisions.c.payload["models"], t.decisions.c.record).where(sa.not_(decisions))
        digests: set[str] = set()
        with self._engine.connect() as connection:
            rows = connection.execute(query, execution_options={"yield_per": ROWS_PER_TRANSACTION})
            for some in rows.partitions():
                records = [record for _, record in some if record is not None]
                parts = self.parts_of({part_digest(record) for record in records})
                for record in records:
                    models = read_record(record, parts[part_digest(record)]).decision.models
                    digests.update(answer.digest for arms in models.values() for answer in arms.values())
                digests.update(digest for models, record in some if record is None for digest in _digests(models))
        return digests - {""}

    def data_hashes(self, since: datetime) -> set[str]:
        """Return the data versions that decisions from `since` on (as_of) name."""
        # a generation names every model and warm start, so one decision of an arm says what all of it rest on
        d = t.decisions.c
        some_of_each = sa.select(sa.func.max(d.id)).where(d.as_of >= since).group_by(d.generation, d.symbol, d.arm)
        query = sa.select(d.payload["lineage"], d.record).where(d.id.in_(some_of_each))
        found: set[str] = set()
        with self._engine.connect() as connection:
            rows = connection.execute(query, execution_options={"yield_per": ROWS_PER_TRANSACTION})
            for some in rows.partitions():
                records = [record for _, record in some if record is not None]
                parts = self.parts_of({part_digest(record) for record in records})
                found.update(
                    read_record(record, parts[part_digest(record)]).decision.lineage.get("data_hash", "")
                    for record in records
                )
                found.update(_lineage(lineage) for lineage, record in some if record is None)
        return found - {"", "none"}


def _lineage(record: object) -> str:
    """Return the data hash that a decision's JSON names, "" without one."""
    return str(record.get("data_hash") or "") if isinstance(record, dict) else ""


def _digests(record: object) -> Iterator[str]:
    """Yield every `digest` at any depth: releases differ in how a decision names its models."""
    if isinstance(record, dict):
        for key, value in record.items():
            if key == "digest" and isinstance(value, str):
                yield value
            yield from _digests(value)


def _removable(before: datetime) -> list[tuple[sa.Table, sa.Column[datetime], sa.ColumnElement[bool]]]:
    """Return (table, its time, which rows may be deleted): the whole retention rule. Other tables stay for ever."""
    d, a, r, f = t.decisions, t.alarms, t.retrain_requests, t.family_outcomes
    resolved = sa.exists().where(t.outcomes.c.decision_id == d.c.id)
    every_alarm, of_family = a.alias("every_alarm"), r.alias("of_family")
    every_decision = d.alias("every_decision")
    newest_number = sa.select(sa.func.max(every_decision.c.seq)).scalar_subquery()
    is_passed = sa.or_(d.c.seq.is_(None), d.c.seq < newest_number)
    idle = sa.and_(d.c.action == "NO_TRADE", d.c.event.is_(None), sa.not_(resolved))
    newest_alarm = sa.select(sa.func.max(every_alarm.c.id)).scalar_subquery()
    newest_request = sa.select(sa.func.max(of_family.c.id)).where(of_family.c.family == r.c.family).scalar_subquery()
    return [
        (f, f.c.as_of, f.c.as_of < before),  # first: they refer to decisions
        (d, d.c.as_of, sa.and_(d.c.as_of < before, idle, is_passed)),
        (a, a.c.at, sa.and_(a.c.cleared_at < before, a.c.id < newest_alarm)),
        (r, r.c.at, sa.and_(r.c.state.in_(("done", "failed")), r.c.finished_at < before, r.c.id < newest_request)),
    ]
