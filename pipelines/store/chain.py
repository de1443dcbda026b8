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
    Fault,
    Line,
    Span,
    Verified,
    append_line,
    begin,
    count_rows,
    head_line,
    read_lines,
    root_of,
    sha256_of,
    spans_of,
)
from pipelines.store.chain_verify import verify
from pipelines.store.engine import Database, lock_table

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
        newest = max(anchors, key=lambda each: each.seq, default=None)
        if newest is None or self._chain_key is None:
            return None
        query = sa.select(t.chain.c.mac).where(t.chain.c.chain_id == CHAIN, t.chain.c.seq == newest.seq)
        with self._engine.connect() as connection:
            found = connection.scalar(query)
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
        with self.writing() as connection:
            lock_table(connection, t.chain)
            begin(connection, self._chain_key)
            roots = sa.select(t.chain.c.detail).where(t.chain.c.chain_id == CHAIN, t.chain.c.kind == DECISIONS)
            last = connection.scalar(roots.order_by(t.chain.c.seq.desc()).limit(1))
            since = None if last is None else datetime.fromisoformat(json.loads(last)["until"])
            until = at - COMMIT_MARGIN
            if since is None or until > since:
                root, n = root_of(connection, Span(since, until, 0))
                if n:
                    span = Span(since, until, n)
                    append_line(connection, self._chain_key, DECISIONS, until.isoformat(), root, span.to_text())
            return head_line(connection)

    def note_pruning(self, kept: sa.ColumnElement[bool]) -> None:
        """Write, for each root over decisions of which some are about to be deleted, the root of those `kept`.

        Raises  StateError if the decisions there are not those that the root was made of: nothing may be deleted then
        """
        if self._chain_key is None:
            return
        for newest in [lines[-1] for lines in spans_of(self.chain_lines()).values()]:
            span = Span.of(newest)
            with self.writing() as connection:
                lock_table(connection, t.chain)
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
                    pruned = Span(span.since, span.until, remaining)
                    append_line(connection, self._chain_key, PRUNED, newest.ref, left, pruned.to_text())

    def accept_faults(self, faults: Sequence[Fault], by: str, reason: str) -> Line:
        """Write a line by which a person accepts that these faults stay; they are no faults from then on.

        Raises  StateError without a key
        """
        if self._chain_key is None:
            raise StateError("this store was opened without the key of its chain; nothing was accepted")
        known = [[fault.ref, fault.what] for fault in faults]
        detail = json.dumps({"by": by, "reason": reason, "faults": known}, separators=(",", ":"))
        with self.writing() as connection:
            lock_table(connection, t.chain)
            begin(connection, self._chain_key)
            return append_line(connection, self._chain_key, ACCEPTED, f"{len(known)} faults", sha256_of(detail), detail)

    def verify_chain(self, anchors: Sequence[Anchor] = (), since: int = 0) -> Verified:
        """Compare the store with its chain, as of one moment, while others may write.

        anchors  what the chain ended with earlier, as written down outside of the store
        since    rows of lines up to this seq were verified before and are not read again, but those of promotions
        Raises   StateError without a key
        """
        if self._chain_key is None:
            raise StateError("this store was opened without the key of its chain; it cannot be verified")
        with self._engine.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                return verify(connection, self._chain_key, anchors, since)
