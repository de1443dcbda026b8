"""The chain (law L5): one keyed line for each verdict, promotion, outcome and correction, and roots of the decisions.

A line holds the digest of the row as it is stored and an HMAC-SHA256, under the key of the home, over itself and the
line before it: a row that was edited, deleted, inserted, moved to another place or cut off at the end is found.
Decisions are the hot path and have no lines of their own: a line `decisions` holds the Merkle root of those that came
in since the one before. Lines are written in the transaction of their rows, one writer at a time.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipelines.contracts import JsonObject
from pipelines.migrations import tables as t
from pipelines.store.engine import lock_table

CHAIN = "main"  # a store has one chain; the column is there for stores that are joined later
GENESIS, DECISIONS, PRUNED, ACCEPTED = "genesis", "decisions", "pruned", "accepted"
CHAINED = {  # in the order of genesis
    table.name: table
    for table in (t.promotions, t.outcomes, t.corrections, t.experiments, t.transitions, t.block_scores)
}
ROWS_AT_ONCE = 1000
NO_LINE = "0" * 64  # what the first line has before it

Proof = list[tuple[str, str]]  # of a leaf of a Merkle tree, see `merkle_proofs`


@dataclass(frozen=True, slots=True)
class Line:
    """Hold one line of the chain.

    kind    genesis, a table's name, decisions, pruned or accepted
    ref     the row's key, or what the line covers
    digest  sha256 of the row as it is stored; of decisions their Merkle root
    detail  JSON that the line states besides
    mac     HMAC-SHA256 of all this and of the mac before
    """

    seq: int
    kind: str
    ref: str
    digest: str
    detail: str
    mac: str


@dataclass(frozen=True, slots=True)
class Anchor:
    """Hold what the chain ended with at a moment, written down outside of the store."""

    seq: int
    mac: str
    at: str
    where: str  # for people: a file, MLflow


@dataclass(frozen=True, slots=True)
class Fault:
    """Hold one thing that is not as it was written: the line and row concerned, and what happened to it."""

    seq: int | None
    ref: str
    what: str

    def describe(self) -> str:
        """Return the fault in one sentence."""
        return f"{self.ref}{'' if self.seq is None else f' (line {self.seq} of the chain)'} {self.what}"


@dataclass(frozen=True, slots=True)
class Verified:
    """Hold what a verification found.

    head     seq and mac of the last line; (0, NO_LINE) of a store without one
    since    of lines up to here only promotions were read, the others were verified before
    rows     rows compared; decisions: decisions under the roots that were computed again
    faults   what is wrong, in the order of the chain; accepted: how many a person accepted, after which it started over
    """

    head: tuple[int, str]
    since: int
    lines: int
    rows: int
    decisions: int
    faults: tuple[Fault, ...]
    accepted: int = 0


def row_digest(table: str, row: Mapping[str, Any]) -> str:
    """Return the sha256 of a row as both databases return it; a column that holds nothing leaves no trace in it."""
    return sha256_of(json.dumps([table, plain_row(row)], sort_keys=True, separators=(",", ":"), allow_nan=False))


def plain_row(row: Mapping[str, Any]) -> JsonObject:
    """Return the columns of a row that hold something, as the JSON that its digest is made of."""
    return {name: _plain(value) for name, value in row.items() if value is not None}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, datetime):
        return value.isoformat()
    return base64.b64encode(bytes(value)).decode() if isinstance(value, bytes | memoryview) else value


def sha256_of(text: str) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def merkle_root(digests: Sequence[str]) -> str:
    """Return the root of a tree over these digests as RFC 6962 builds it; the sha256 of nothing for none."""
    top: list[bytes] = []
    for level in _merkle_levels(digests):
        top = level
    return top[0].hex() if top else hashlib.sha256(b"").hexdigest()


def merkle_proofs(digests: Sequence[str], places: Iterable[int]) -> Iterator[Proof]:
    """Yield, for each place in `digests`, what leads from that digest to the root: the hash next to it, level by level.

    Returns  from the leaf up, ("L" if the hash stands to the left, else "R", the hash); a node that is carried up
             alone has no step
    """
    *levels, _ = _merkle_levels(digests)
    for place in places:
        proof = []
        for depth, level in enumerate(levels):
            beside = (place >> depth) ^ 1
            if beside < len(level):
                proof.append(("R" if beside & 1 else "L", level[beside].hex()))
        yield proof


def _merkle_levels(digests: Sequence[str]) -> Iterator[list[bytes]]:
    """Yield the levels of the tree over these digests, leaves first; the last one has a node, or none without any."""
    level = [hashlib.sha256(b"\x00" + bytes.fromhex(each)).digest() for each in digests]
    yield level
    while len(level) > 1:
        odd = level[-1:] if len(level) % 2 else []
        level = [hashlib.sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)] + odd
        yield level


def mac_of(key: bytes, before: str, seq: int, kind: str, ref: str, digest: str, detail: str) -> str:
    """Return the HMAC of a line after the mac `before`."""
    text = json.dumps([before, CHAIN, seq, kind, ref, digest, detail], separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def mac_after(key: bytes, before: str, line: Line) -> str:
    """Return the mac that a line must have after the mac `before`."""
    return mac_of(key, before, line.seq, line.kind, line.ref, line.digest, line.detail)


def key_name(key: bytes) -> str:
    """Return what tells a key from another without giving it away."""
    return hashlib.sha256(b"bellwether chain " + key).hexdigest()[:16]


# ---- writing --------------------------------------------------------------------------------------------------------


def chain_row(connection: Connection, key: bytes | None, table: sa.Table, row_key: object) -> None:
    """Write the line of a row that this transaction has just inserted. Without a key nothing is written.

    row_key  its primary key
    """
    if key is None:
        return
    lock_table(connection, t.chain)
    if begin(connection, key):
        return  # every row that is there, this one too, has its line
    append_line(connection, key, table.name, str(row_key), _stored_digest(connection, table, row_key))


def proven_rows(
    connection: Connection, key: bytes | None, table: sa.Table, query: sa.Select[Any]
) -> list[Mapping[str, Any]]:
    """Return the rows of a query of a chained table that are as the chain says: the line is ours, the row is the
    line's. Without a key nothing can be proven, and all rows are returned.
    """
    rows: list[Mapping[str, Any]] = [dict(row) for row in connection.execute(query).mappings()]
    if key is None or not rows:
        return rows
    own, before = t.chain.alias("own"), t.chain.alias("before")
    joined = own.outerjoin(before, sa.and_(before.c.chain_id == own.c.chain_id, before.c.seq == own.c.seq - 1))
    lines = sa.select(own, before.c.mac.label("mac_before")).select_from(joined)
    begun = sa.select(sa.func.max(t.chain.c.seq)).where(t.chain.c.chain_id == CHAIN)
    begun = begun.where(t.chain.c.kind.in_((GENESIS, ACCEPTED)))
    lines = lines.where(own.c.chain_id == CHAIN, own.c.kind == table.name, own.c.seq > begun.scalar_subquery())
    digests = {
        found["ref"]: found["digest"]
        for found in connection.execute(lines).mappings()
        if found["mac"] == mac_after(key, found["mac_before"] or NO_LINE, line_of(dict(found)))
    }
    name = key_of(table).name
    return [row for row in rows if digests.get(str(row[name])) == row_digest(table.name, row)]


def append_line(connection: Connection, key: bytes, kind: str, ref: str, digest: str, detail: str = "") -> Line:
    """Append a line, under the lock of the caller."""
    before = head_line(connection)
    seq = 1 + (before.seq if before else 0)
    mac = mac_of(key, before.mac if before else NO_LINE, seq, kind, ref, digest, detail)
    line = Line(seq, kind, ref, digest, detail, mac)
    connection.execute(sa.insert(t.chain).values(chain_id=CHAIN, **_values(line)))
    return line


def _values(line: Line) -> dict[str, object]:
    """Return the columns of a line."""
    return {name: getattr(line, name) for name in Line.__slots__}


def begin(connection: Connection, key: bytes) -> bool:
    """Begin the chain of a store that has none: count what is there, and give each row its line. False if it began."""
    if head_line(connection) is not None:
        return False
    tables = (*CHAINED.values(), t.decisions)
    counts = {table.name: count_rows(connection, table) for table in tables}
    detail = json.dumps({"key": key_name(key), "schema": t.SCHEMA, "rows": counts}, separators=(",", ":"))
    append_line(connection, key, GENESIS, "the rows that were there", sha256_of(detail), detail)
    line_each_row(connection, key)
    return True


def line_each_row(connection: Connection, key: bytes) -> None:
    """Give every row of the chained tables a line, under the lock of the caller, after a line that begins a chain."""
    line = head_line(connection)
    assert line is not None
    lines = []
    for table in CHAINED.values():
        for row_key, digest in digests_of(connection, table):
            mac = mac_of(key, line.mac, line.seq + 1, table.name, row_key, digest, "")
            line = Line(line.seq + 1, table.name, row_key, digest, "", mac)
            lines.append({"chain_id": CHAIN, **_values(line)})
    if lines:
        connection.execute(sa.insert(t.chain), lines)


def in_force(lines: Sequence[Line]) -> Sequence[Line]:
    """Return the lines from the last one on that began the chain: its first, or one by which a person accepted what
    was there."""
    starts = [i for i, line in enumerate(lines) if line.kind in (GENESIS, ACCEPTED)]
    return lines[starts[-1] :] if starts else lines


def accepted_anchors(lines: Iterable[Line]) -> set[tuple[int, str]]:
    """Return (seq, mac) of the anchors that a person accepted to be off the chain."""
    return {
        (int(seq), str(mac))
        for line in lines
        if line.kind == ACCEPTED
        for seq, mac in json.loads(line.detail)["anchors"]
    }


def count_rows(connection: Connection, table: sa.Table, where: sa.ColumnElement[bool] | None = None) -> int:
    """Return how many rows a table has."""
    query = sa.select(sa.func.count()).select_from(table)
    return int(connection.scalar(query if where is None else query.where(where)) or 0)


def key_of(table: sa.Table) -> sa.Column[Any]:
    """Return the primary key of a chained table; each has one column."""
    (column,) = table.primary_key.columns
    return column


def digests_of(
    connection: Connection, table: sa.Table, where: sa.ColumnElement[bool] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield (key, digest) of rows by their primary key."""
    key = key_of(table)
    query = sa.select(table).order_by(key)
    if where is not None:
        query = query.where(where)
    for row in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}).mappings():
        yield str(row[key.name]), row_digest(table.name, dict(row))


def _stored_digest(connection: Connection, table: sa.Table, row_key: object) -> str:
    """Return the digest of one row as it is read back."""
    ((_, digest),) = digests_of(connection, table, key_of(table) == row_key)
    return digest


def head_line(connection: Connection) -> Line | None:
    """Return the last line, None without one."""
    query = sa.select(t.chain).where(t.chain.c.chain_id == CHAIN).order_by(t.chain.c.seq.desc()).limit(1)
    row = connection.execute(query).mappings().first()
    return None if row is None else line_of(dict(row))


def line_of(row: Mapping[str, Any]) -> Line:
    """Return the line of a row."""
    return Line(**{name: row[name] for name in Line.__slots__})


def read_lines(connection: Connection, after: int) -> Iterator[Line]:
    """Yield the lines after a seq, in their order."""
    query = sa.select(t.chain).where(t.chain.c.chain_id == CHAIN, t.chain.c.seq > after).order_by(t.chain.c.seq)
    for row in connection.execute(query, execution_options={"yield_per": ROWS_AT_ONCE}).mappings():
        yield line_of(dict(row))


# ---- decisions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Span:
    """Hold which decisions a root is of: those that came in after `since` (None: from the first) and by `until`."""

    since: datetime | None
    until: datetime
    n: int

    def to_text(self) -> str:
        """Return the span as a line states it."""
        since = None if self.since is None else self.since.isoformat()
        return json.dumps({"since": since, "until": self.until.isoformat(), "n": self.n}, separators=(",", ":"))

    @classmethod
    def of(cls, line: Line) -> "Span":
        """Return the span of a line of kind `decisions` or `pruned`."""
        stored = json.loads(line.detail)
        since = None if stored["since"] is None else datetime.fromisoformat(stored["since"])
        return cls(since, datetime.fromisoformat(stored["until"]), int(stored["n"]))

    def describe(self) -> str:
        """Return the span in words."""
        since = "the first" if self.since is None else f"{self.since:%F %T}"
        return f"the {self.n:,} decisions from {since} to {self.until:%F %T} UTC"

    def rows(self) -> sa.ColumnElement[bool]:
        """Return which rows of `decisions` lie in it."""
        came = t.decisions.c.ingested_at
        return came <= self.until if self.since is None else sa.and_(came > self.since, came <= self.until)


def root_of(connection: Connection, span: Span, kept: sa.ColumnElement[bool] | None = None) -> tuple[str, int]:
    """Return the Merkle root of the decisions of a span by their id, and their number; of those `kept`, if given."""
    where = span.rows() if kept is None else sa.and_(span.rows(), kept)
    digests = [digest for _, digest in digests_of(connection, t.decisions, where)]
    return merkle_root(digests), len(digests)


def spans_of(lines: Iterable[Line]) -> dict[str, list[Line]]:
    """Return the end of a span → its lines: the root when it was sealed, then one a pruning."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line.kind in (DECISIONS, PRUNED):
            found.setdefault(line.ref, []).append(line)
    return found
