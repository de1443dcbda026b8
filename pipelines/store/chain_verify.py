"""The comparison of a store with its chain: which lines, rows, roots and anchors are not as they were written."""

import json
from collections.abc import Iterator, Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from pipelines.migrations import tables as t
from pipelines.record_codec import digest_of
from pipelines.store.chain_lines import (
    ACCEPTED,
    CHAINED,
    GENESIS,
    NO_LINE,
    ROWS_AT_ONCE,
    Anchor,
    Fault,
    Line,
    Span,
    Verified,
    accepted_anchors,
    count_rows,
    digests_of,
    in_force,
    key_name,
    key_of,
    mac_after,
    read_lines,
    root_of,
    sha256_of,
    spans_of,
)

ALWAYS_READ = t.promotions.name  # few rows, and what is served depends on each


def verify(connection: Connection, key: bytes, anchors: Sequence[Anchor], incremental: bool) -> Verified:
    """Return what is wrong with the chain and its rows, as this connection sees them."""
    every = list(read_lines(connection, 0))
    lines = in_force(every)
    macs, off = {line.seq: line.mac for line in every}, accepted_anchors(every)
    anchors = [anchor for anchor in anchors if (anchor.seq, anchor.mac) not in off]
    reached = [
        anchor.seq for anchor in anchors if macs.get(anchor.seq) == anchor.mac and lines and anchor.seq >= lines[0].seq
    ]
    since = max(reached, default=0) if incremental else 0
    before = every[len(every) - len(lines) - 1].mac if len(lines) < len(every) else NO_LINE
    faults = [*_wrong_lines(lines, key, before), *_wrong_anchors(anchors, macs)]
    read, decisions = 0, 0
    if lines:
        for table in CHAINED.values():
            own = {line.ref: line for line in lines if line.kind == table.name}
            n, wrong = _wrong_rows(connection, table, own, 0 if table.name == ALWAYS_READ else since)
            read, faults = read + n, [*faults, *wrong]
        decisions, wrong = _wrong_roots(connection, lines, since)
        faults += [*wrong, *_wrong_parts(connection)]
    faults.sort(key=lambda fault: every[-1].seq + 1 if fault.seq is None and every else fault.seq or 0)
    head = (every[-1].seq, every[-1].mac) if every else (0, NO_LINE)
    accepted = len(json.loads(lines[0].detail)["faults"]) if lines and lines[0].kind == ACCEPTED else 0
    return Verified(head, since, len(every), read, decisions, tuple(faults), accepted)


def _wrong_lines(lines: Sequence[Line], key: bytes, before: str) -> Iterator[Fault]:
    """Yield the lines whose mac is not that of their content and of the line before, and holes between lines.

    before  mac of the line before the first
    """
    if lines and lines[0].kind in (GENESIS, ACCEPTED):
        made_by = json.loads(lines[0].detail)["key"]
        if made_by != key_name(key):
            what = f"was made under another key, {made_by}; this home's is {key_name(key)}"
            yield Fault(lines[0].seq, "chain", what)
            return
    expected = lines[0].seq if lines and lines[0].kind == ACCEPTED else 1
    for line in lines:
        if line.seq != expected:
            missing = f"line {expected}" if line.seq == expected + 1 else f"lines {expected} to {line.seq - 1}"
            yield Fault(expected, "chain", f"lacks {missing}")
        elif line.mac != mac_after(key, before, line):
            yield Fault(line.seq, f"{line.kind} {line.ref}", "has a line that was edited, moved or not made by us")
        before, expected = line.mac, line.seq + 1


def _wrong_anchors(anchors: Sequence[Anchor], macs: Mapping[int, str]) -> Iterator[Fault]:
    """Yield the anchors that are not on the chain: the newest one that its end does not reach, and others."""
    last = max(macs, default=0)
    for anchor in sorted(anchors, key=lambda each: -each.seq):
        named = f"{anchor.where} of {anchor.at}"
        if anchor.seq > last:
            what = f"ends at line {last}, and {named} names line {anchor.seq}: cut off, or an older backup was restored"
            yield Fault(last, "chain", what)
            return
        if macs.get(anchor.seq) not in (None, anchor.mac):
            yield Fault(anchor.seq, "chain", f"is another one than {named} names at line {anchor.seq}")
            return


def _wrong_rows(
    connection: Connection, table: sa.Table, own: Mapping[str, Line], since: int
) -> tuple[int, list[Fault]]:
    """Return how many rows of a table were compared, and those that are not as their line says.

    own  key → line of every row that has one
    """
    compared, faults = 0, []
    if since and count_rows(connection, table) == len(own):  # as many rows as lines: only those of new lines are read
        wanted = {ref: line for ref, line in own.items() if line.seq > since}
        found = dict(_of_keys(connection, table, list(wanted)))
    else:
        wanted, found = dict(own), dict(digests_of(connection, table))
    for ref, line in wanted.items():
        compared += 1
        if ref not in found:
            faults.append(Fault(line.seq, f"{table.name} {ref}", "was deleted"))
        elif found[ref] != line.digest:
            faults.append(Fault(line.seq, f"{table.name} {ref}", "was edited"))
    for ref in found:
        if ref not in own:
            faults.append(Fault(None, f"{table.name} {ref}", "was inserted without a line"))
    return compared, faults


def _of_keys(connection: Connection, table: sa.Table, refs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield (key, digest) of the rows with these keys."""
    key = key_of(table)
    keys = [int(ref) if isinstance(key.type, sa.Integer) else ref for ref in refs]
    for i in range(0, len(keys), ROWS_AT_ONCE // 2):
        yield from digests_of(connection, table, key.in_(keys[i : i + ROWS_AT_ONCE // 2]))


def _wrong_roots(connection: Connection, lines: Sequence[Line], since: int) -> tuple[int, list[Fault]]:
    """Return how many decisions were read, and the spans whose decisions are not those that were sealed."""
    read, faults = 0, []
    for sealed in spans_of(lines).values():
        newest = sealed[-1]
        if newest.seq <= since:
            continue
        span = Span.of(newest)
        root, n = root_of(connection, span)
        read += n
        if root == newest.digest:
            continue
        what = "are not those that were sealed: one was edited"
        if n != span.n:
            what = f"are not those that were sealed: {n:,} are there"
            if len(sealed) > 1 and span.n < n <= Span.of(sealed[-2]).n:
                what = f"were to be pruned to so many, and {n:,} are there: run `bellwether prune` to its end"
        faults.append(Fault(newest.seq, span.describe(), what))
    return read, faults


def _wrong_parts(connection: Connection) -> Iterator[Fault]:
    """Yield the parts of records and the parameters whose content is not that of the digest that decisions name."""
    for digest, content in connection.execute(sa.select(t.record_parts.c.digest, t.record_parts.c.content)):
        if digest_of(bytes(content)) != bytes(digest):
            yield Fault(None, f"record_parts {bytes(digest).hex()}", "was edited")
    for digest, content in connection.execute(sa.select(t.parameters.c.digest, t.parameters.c.content)):
        if sha256_of(str(content)) != digest:
            yield Fault(None, f"parameters {digest}", "were edited")
