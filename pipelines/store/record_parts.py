"""The parts that decision records share: stored once, remembered where they are known to be durable."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from pipelines.errors import StateError
from pipelines.migrations import tables as t
from pipelines.record_codec import Kind, Part, new_part, part_of
from pipelines.store.engine import LOOKUP, OUTAGES, Database

REMEMBERED = 256  # parts for writing, and as many for reading; one takes about 9 kB
_ADD = sa.text("INSERT INTO record_parts (digest, content) VALUES (:digest, :content) ON CONFLICT DO NOTHING")

K = TypeVar("K")


class RecordParts(Database):
    """Store parts ahead of the records written against them, and read them back."""

    def __init__(self, engine: Engine, chain_key: bytes | None = None) -> None:
        """Remember no part yet."""
        super().__init__(engine, chain_key)
        self._durable: dict[Kind, Part] = {}
        self._read: dict[bytes, Part] = {}
        # a part counts for the other transactions only once the one that stored it is durable
        self._in_transaction: WeakKeyDictionary[Connection, dict[Kind, Part]] = WeakKeyDictionary()

    @contextmanager
    def writing(self, within: Connection | None = None) -> Iterator[Connection]:
        """Yield one write transaction, as `Database.writing`; its parts are remembered when it is durable."""
        try:
            with super().writing(within) as connection:
                yield connection
        except OUTAGES:
            self._durable.clear()  # another server may answer next, without the newest rows
            raise
        if within is None:
            for kind, part in self._in_transaction.pop(connection, {}).items():
                _remember(self._durable, kind, part)

    def add_parts(self, messages: Collection[tuple[Kind, bytes]], connection: Connection) -> list[Part]:
        """Return the part for each message: the one that its kind has, else the message itself, which is stored."""
        own = self._in_transaction.setdefault(connection, {})
        parts, contents = [], []
        for kind, message in messages:
            part = self._durable.get(kind) or own.get(kind)
            if part is None:
                part, content = new_part(message)
                own[kind] = part
                contents.append({"digest": part.digest, "content": content})
            parts.append(part)
        if contents:
            connection.execute(_ADD, contents)
        return parts

    def parts_of(self, digests: Collection[bytes]) -> Mapping[bytes, Part]:
        """Return digest → part. Raises StateError for one that is not stored, or damaged."""
        found = {digest: part for digest in set(digests) if (part := self._read.get(digest)) is not None}
        absent = [digest for digest in set(digests) if digest not in found]
        p = t.record_parts.c
        for i in range(0, len(absent), LOOKUP):
            for row in self._rows(sa.select(p.digest, p.content).where(p.digest.in_(absent[i : i + LOOKUP]))):
                part = part_of(row["digest"], row["content"])
                found[part.digest] = part
                _remember(self._read, part.digest, part)
        if lost := [digest for digest in absent if digest not in found]:
            raise StateError(f"part {lost[0].hex()} of the decision records is not stored: restore a backup")
        return found


def _remember(memory: dict[K, Part], key: K, part: Part) -> None:
    """Add a part; forget the one remembered longest where there are too many."""
    memory[key] = part
    if len(memory) > REMEMBERED:
        memory.pop(next(iter(memory)), None)
