"""The store's chain: begun, sealed over decisions, pruned, accepted and verified; its lines are in `chain_lines`."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from pipelines.errors import StateError
from pipelines.migrations import tables as t
from pipelines.store.chain_lines import (
    ACCEPTED,
    CHAIN,
    DECISIONS,
    PRUNED,
    Anchor,
    Line,
    Span,
    Verified,
    accepted_anchors,
    append_line,
    begin,
    count_rows,
    head_line,
    in_force,
    key_name,
    line_each_row,
    line_of,
    read_lines,
    root_of,
    sha256_of,
    spans_of,
)
from pipelines.store.chain_verify import verify
from pipelines.store.engine import Database, Transaction, lock_table

COMMIT_MARGIN = timedelta(minutes=1)  # a decision is committed within seconds of its stamp: a root leaves the last out


class ChainStore(Database):
    """Store the chain and verify it."""

    def chain_head(self) -> Line | None:
        """Return the last line of the chain; None before the first."""
        with self._engine.connect() as connection:
            return head_line(connection)

    def begin_chain(self) -> None:
        """Begin the chain of a store that has none yet: each row that is there gets its line."""
        if self._chain_key is None or self.chain_head() is not None:
            return
        with self.writing() as connection:
            lock_table(connection, t.chain)
            begin(connection, self._chain_key)

    def missed_anchor(self, anchors: Sequence[Anchor]) -> str | None:
        """Return why the chain is not the one of the newest anchor; None if it is, or where there is no anchor."""
        if self._chain_key is None or not anchors:
            return None
        query = sa.select(t.chain).where(t.chain.c.chain_id == CHAIN)
        with self._engine.connect() as connection:
            rows = connection.execute(query.where(t.chain.c.kind == ACCEPTED)).mappings().all()
            known = accepted_anchors(line_of(dict(row)) for row in rows)
            left = [anchor for anchor in anchors if (anchor.seq, anchor.mac) not in known]
            if not left:
                return None
            newest = max(left, key=lambda each: each.seq)
            found = connection.scalar(
                sa.select(t.chain.c.mac).where(t.chain.c.chain_id == CHAIN, t.chain.c.seq == newest.seq)
            )
        return None if found == newest.mac else f"{newest.where} of {newest.at} names another line {newest.seq}"

    def chain_lines(self, after: int = 0) -> list[Line]:
        """Return the lines after a seq, in their order."""
        with self._engine.connect() as connection:
            return list(read_lines(connection, after))

    def seal_decisions(self, at: datetime) -> Line | None:
        """Write the root of the decisions that came in since the last root and a minute before `at` (aware).

        Returns  the last line of the chain; None where no key is at hand
        """
        if self._chain_key is None:
            return None
        self.begin_chain()
        until = at - COMMIT_MARGIN
        with self._engine.connect() as connection:  # reading them holds no lock: the service goes on writing
            since = _sealed_until(connection)
            root, n = ("", 0) if since is not None and until <= since else root_of(connection, Span(since, until, 0))
        with self.writing() as connection:
            lock_table(connection, t.chain)
            if n and _sealed_until(connection) == since:  # else another process sealed them meanwhile
                self._append_root(connection, self._chain_key, Span(since, until, n), root)
            return head_line(connection)

    def _append_root(self, connection: Transaction, key: bytes, span: Span, root: str) -> None:
        """Write the root of the decisions of a span, under the lock of the caller."""
        append_line(connection, key, DECISIONS, span.until.isoformat(), root, span.to_text())

    def note_pruning(self, kept: sa.ColumnElement[bool]) -> None:
        """Write, for each root over decisions of which some are about to be deleted, the root of those `kept`.

        Raises  StateError if the decisions there are not those that the root was made of: nothing may be deleted then
        """
        if self._chain_key is None:
            return
        for newest in [lines[-1] for lines in spans_of(in_force(self.chain_lines())).values()]:
            span = Span.of(newest)
            with self._engine.connect() as connection:  # reading them holds no lock, and sealed rows do not change
                if not count_rows(connection, t.decisions, sa.and_(span.rows(), sa.not_(kept))):
                    continue
                root, n = root_of(connection, span)
                left, remaining = root_of(connection, span, kept)
            if root != newest.digest and left != newest.digest:
                raise StateError(
                    f"{span.describe()} are not those that were sealed ({n:,} are there); nothing was deleted. "
                    "`bellwether verify --all` names what changed"
                )
            if remaining < n and left != newest.digest:
                with self.writing() as connection:
                    lock_table(connection, t.chain)
                    pruned = Span(span.since, span.until, remaining)
                    append_line(connection, self._chain_key, PRUNED, newest.ref, left, pruned.to_text())

    def accept(self, found: Verified, anchors: Sequence[Anchor], by: str, reason: str, at: datetime) -> None:
        """Start the chain over with what is there: a person accepts it, with the faults found, by name and reason.

        Raises  StateError without a key
        """
        if self._chain_key is None:
            raise StateError("this store was opened without the key of its chain; nothing was accepted")
        with self.writing() as connection:
            lock_table(connection, t.chain)
            macs = {line.seq: line.mac for line in read_lines(connection, 0)}
            detail = {
                "key": key_name(self._chain_key), "by": by, "reason": reason, "at": at.isoformat(),
                "faults": [fault.describe() for fault in found.faults],
                "anchors": [[each.seq, each.mac] for each in anchors if macs.get(each.seq) != each.mac],
            }  # fmt: skip
            text = json.dumps(detail, separators=(",", ":"))
            append_line(connection, self._chain_key, ACCEPTED, f"{len(found.faults)} faults", sha256_of(text), text)
            line_each_row(connection, self._chain_key)
            root, n = root_of(connection, Span(None, at - COMMIT_MARGIN, 0))
            if n:
                self._append_root(connection, self._chain_key, Span(None, at - COMMIT_MARGIN, n), root)

    def verify_chain(self, anchors: Sequence[Anchor] = (), incremental: bool = False) -> Verified:
        """Compare the store with its chain, as of one moment, while others may write.

        anchors      what the chain ended with earlier, as written down outside of the store
        incremental  rows of lines up to the newest anchor are not read again, but those of promotions
        Raises       StateError without a key
        """
        if self._chain_key is None:
            raise StateError("this store was opened without the key of its chain; it cannot be verified")
        with self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                return verify(connection, self._chain_key, anchors, incremental)


def _sealed_until(connection: Transaction) -> datetime | None:
    """Return the end of the newest span of decisions that has a root; None before the first."""
    roots = sa.select(t.chain.c.detail).where(t.chain.c.chain_id == CHAIN, t.chain.c.kind == DECISIONS)
    last = connection.scalar(roots.order_by(t.chain.c.seq.desc()).limit(1))
    return None if last is None else datetime.fromisoformat(json.loads(last)["until"])
