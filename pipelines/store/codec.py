"""Records as they are stored, and back: order books and context values as bytes, decisions as JSON.

A decision is JSON where it is sent, and where a release with a schema before 0008 stored it; since then it is stored as
`pipelines.record_codec` writes it.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from pipelines.context_layout import CONTEXT_FIELDS, CONTEXT_INDEX, TAPE_WIDTH
from pipelines.contracts import BOOK_LEVELS, Books, ContextFeed, Decision, JsonObject
from pipelines.renamed_keys import current_names, current_word

_BOOK_BYTES = 8 * (2 * BOOK_LEVELS * 3 + TAPE_WIDTH)
_NOT_RECORDED = np.array([np.nan], dtype="<f8").tobytes()


# ---- decisions ------------------------------------------------------------------------------------------------------


def decision_payload(decision: Decision) -> JsonObject:
    """Return a decision as it is sent: plain JSON, times in ISO 8601 with their zone."""
    return decision.to_dict()


def decision_of(payload: Mapping[str, Any]) -> Decision:
    """Return the decision of a `decision_payload`, of whatever release stored or sent it."""
    return Decision.from_dict(_current_decision(payload))


def _current_decision(payload: Mapping[str, Any]) -> JsonObject:
    """Return a stored payload with the keys and words of this release (`pipelines.renamed_keys`)."""
    current = current_names("decision", payload)
    if validation := current.get("validation"):
        current["validation"] = current_names("decision.validation", validation)
    if reasons := current.get("reasons"):
        current["reasons"] = [_current_codes(reason) for reason in reasons]
    if trail := current.get("trail"):
        current["trail"] = {layer: _current_codes(result) for layer, result in trail.items()}
    if models := current.get("models"):
        current["models"] = _current_roles(models)
    return current


def _current_codes(text: str) -> str:
    """Return `CODE: numbers` or `refused: CODE, CODE` with every code as it is named now."""
    head, colon, rest = text.partition(": ")
    if head in ("refused", "not reached"):
        return head + colon + ", ".join(current_word(code) for code in rest.split(", "))
    return current_word(head) + colon + rest


def _current_roles(models: Mapping[str, Any]) -> JsonObject:
    """Return family → arm → record with every `role` as it is named now, however deep it stands."""
    return {
        key: _current_roles(value)
        if isinstance(value, Mapping)
        else current_word(value)
        if key == "role" and isinstance(value, str)
        else value
        for key, value in models.items()
    }


# ---- books and context ----------------------------------------------------------------------------------------------


def packed(books: Books | None, feed: ContextFeed | None) -> Iterator[tuple[tuple[str, float], bytes]]:
    """Yield ((kind, known_at), payload) of every record.

    kind      "book" or a name of CONTEXT_FIELDS
    known_at  epoch seconds
    payload   little-endian float64: levels and tape of a book, or one context value
    """
    if books is not None:
        for i, at in enumerate(books.known.tolist()):
            row = np.concatenate([books.levels[i].ravel(), books.tape[i]])
            yield ("book", at), row.astype("<f8").tobytes()
    if feed is not None:
        for at, field, value in zip(feed.known.tolist(), feed.field.tolist(), feed.value.tolist(), strict=True):
            yield (CONTEXT_FIELDS[field], at), np.array([value], dtype="<f8").tobytes()


def padded(kind: str, payload: bytes) -> bytes:
    """Return a payload as `packed` writes it now: books of earlier releases have a shorter tape, whose missing fields
    were not recorded (NaN)."""
    short = _BOOK_BYTES - len(payload)
    return payload + _NOT_RECORDED * (short // 8) if kind == "book" and short > 0 else payload


def context_value(payload: bytes) -> float:
    """Return the context value of a payload; NaN = not recorded."""
    return float(np.frombuffer(payload, dtype="<f8")[0])


def unpacked(rows: Iterable[tuple[str, float, bytes]]) -> tuple[Books | None, ContextFeed | None]:
    """Return the books and context of (kind, known_at, payload) rows, the inverse of `packed`.

    rows     ascending by time
    Returns  None for a kind of record that no row has
    """
    rows = list(rows)
    book_rows = [
        (at, np.frombuffer(padded(kind, payload), dtype="<f8")) for kind, at, payload in rows if kind == "book"
    ]
    context_rows = [(at, CONTEXT_INDEX[kind], payload) for kind, at, payload in rows if kind != "book"]
    books, feed = None, None
    if book_rows:
        values = np.array([row for _, row in book_rows], dtype=np.float64)
        levels = np.ascontiguousarray(values[:, :-TAPE_WIDTH]).reshape(-1, 2, BOOK_LEVELS, 3)
        books = Books(np.array([at for at, _ in book_rows]), levels, np.ascontiguousarray(values[:, -TAPE_WIDTH:]))
    if context_rows:
        feed = ContextFeed(
            np.array([at for at, *_ in context_rows]),
            np.array([field for _, field, _ in context_rows], dtype=np.int64),
            np.array([context_value(payload) for *_, payload in context_rows]),
        )
    return books, feed
