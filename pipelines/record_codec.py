"""A decision and its input bytes as one record (version 2): MessagePack, deflated against a part it shares with others.

    record   version byte 2, digest of the part (16 bytes), zlib stream whose preset dictionary is the part's message
    message  MessagePack array of bytes: the decision as a MessagePack map without the eight bytes of each float, these
             floats, features, signals. Without its floats a map hardly differs from that of the part
    part     the message of the first decision of a kind: what later ones repeat (keys, lineage, models, weights, texts)
             is copied from it. Stored once under the digest of its stored bytes

Numbers keep every bit; a whole number in a field of floats is read as that float, and times are read in UTC. zlib's
check sum finds a damaged record. A field that a later release adds has its default in records of before; a release that
renames or drops a field of Decision writes records of another version and goes on reading these.
"""

import re
import zlib
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec

from pipelines.contracts import Decision, JsonObject
from pipelines.errors import BadValues, StateError

VERSION = 2  # 1 was the decision as JSON, in a column of its own
DIGEST_BYTES = 16
_HEAD = 1 + DIGEST_BYTES
_LEVEL = 3  # of zlib: above it time rises and bytes hardly fall
_MARK = b"\xcb"  # what MessagePack writes before a float
_FLOAT = re.compile(_MARK + rb"(.{8})", re.DOTALL)
_NOT_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")  # how MessagePack writes NaN and infinities

Kind = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """Hold a decision with the bytes it was made from: float64 rows in catalogue order, for an exact replay."""

    decision: Decision
    features: bytes
    signals: bytes


@dataclass(frozen=True, slots=True)
class Part:
    """Hold what decisions of one kind share: the digest it is stored under, and its message."""

    digest: bytes
    message: bytes


def plain_number(value: Any) -> Any:
    """Return a number of a subclass, such as NumPy's float64, as the plain number. Raises TypeError for other types."""
    for kind in (float, int):
        if isinstance(value, kind):
            return kind(value)
    raise TypeError(f"{type(value).__name__} is no plain type")


_ENCODER = msgspec.msgpack.Encoder(enc_hook=plain_number)
_DECISION = msgspec.msgpack.Decoder(Decision)
_MESSAGE = msgspec.msgpack.Decoder(tuple[bytes, bytes, bytes, bytes])


def kind_of(decision: Decision) -> Kind:
    """Return what decisions have in common that resemble each other enough to share a part."""
    answers = [answer.status for arms in decision.models.values() for answer in arms.values()]
    return (decision.generation, decision.tier, decision.event is None, *answers)


def message_of(record: DecisionRecord) -> bytes:
    """Return the message of a record. Raises BadValues for a figure that is not finite or a type that JSON lacks."""
    try:
        body = _ENCODER.encode(record.decision)
        if _NOT_FINITE.search(body) and not _is_finite(msgspec.msgpack.decode(body)):  # or bytes that look alike
            raise ValueError("a figure is NaN or infinite")
        pieces = _FLOAT.split(body)  # eight bytes after any 0xcb, also one in a text: `_joined` puts them back alike
        return _ENCODER.encode((_MARK.join(pieces[::2]), b"".join(pieces[1::2]), record.features, record.signals))
    except (TypeError, ValueError, OverflowError) as error:
        raise BadValues(
            f"decision {record.decision.id} is not storable as JSON: {error}. Use null for what is missing and plain "
            "types only."
        ) from error


def _is_finite(value: Any) -> bool:
    """Return whether every float in plain data is finite."""
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or value - value == 0.0


def new_part(message: bytes) -> tuple[Part, bytes]:
    """Return the part that this message is, and the bytes it is stored as."""
    content = zlib.compress(message)
    return Part(digest_of(content), message), content


def digest_of(content: bytes) -> bytes:
    """Return the digest under which the bytes of a part are stored."""
    return blake2b(content, digest_size=DIGEST_BYTES).digest()


def part_of(digest: bytes, content: bytes) -> Part:
    """Return a part from its stored bytes. Raises StateError if they are not the bytes it was stored with."""
    if digest_of(content) != digest:
        raise StateError(f"part {digest.hex()} of the decision records is damaged: restore a backup")
    return Part(digest, zlib.decompress(content))


def record_of(message: bytes, part: Part) -> bytes:
    """Return the record of a message, written against a part."""
    deflate = zlib.compressobj(_LEVEL, zdict=part.message)
    return bytes((VERSION,)) + part.digest + deflate.compress(message) + deflate.flush()


def part_digest(record: bytes) -> bytes:
    """Return the digest of the part that a record was written against. Raises StateError for another version."""
    if record[0] != VERSION:
        raise StateError(
            f"a decision is stored as record version {record[0]}, this release knows {VERSION}. Install the newer one."
        )
    return record[1:_HEAD]


def read_record(record: bytes, part: Part) -> DecisionRecord:
    """Return the decision and its bytes. Raises StateError if the record is damaged."""
    body, features, signals = _read_message(record, part)
    try:
        return DecisionRecord(_DECISION.decode(body), features, signals)
    except msgspec.ValidationError:  # a value of another type than its field states was stored as it was
        return DecisionRecord(Decision.from_dict(_json_of(body)), features, signals)


def read_as_stored(record: bytes, part: Part) -> tuple[JsonObject, bytes, bytes]:
    """Return the decision as JSON with the fields that were stored and no others, its features and its signals.

    Raises  StateError if the record is damaged
    """
    body, features, signals = _read_message(record, part)
    return _json_of(body), features, signals


def _read_message(record: bytes, part: Part) -> tuple[bytes, bytes, bytes]:
    """Return the MessagePack map of the decision, features and signals. Raises StateError if the record is damaged."""
    inflate = zlib.decompressobj(zdict=part.message)
    try:
        message = inflate.decompress(record[_HEAD:])
    except zlib.error as error:
        raise StateError(f"a decision record is damaged ({error}): restore a backup") from error
    if not inflate.eof:
        raise StateError("a decision record is cut short: restore a backup")
    bare, floats, features, signals = _MESSAGE.decode(message)
    return _joined(bare, floats), features, signals


def _joined(bare: bytes, floats: bytes) -> bytes:
    """Return a map with its floats put back; a mark that is left over had no eight bytes after it."""
    pieces = bare.split(_MARK, len(floats) // 8)
    whole = [b""] * (2 * len(pieces) - 1)
    whole[::2] = pieces
    whole[1::2] = [_MARK + floats[i : i + 8] for i in range(0, len(floats), 8)]
    return b"".join(whole)


def _json_of(body: bytes) -> JsonObject:
    """Return the map of a decision with its times as JSON has them."""
    decision: JsonObject = msgspec.msgpack.decode(body)
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in decision.items()}
