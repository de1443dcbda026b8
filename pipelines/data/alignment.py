"""What was known beside each decision bar at its close: the newest book, the flow of the bar, the context of the day.

Training aligns the whole history at once, the live service one close at a time, with the same code over the same
records, so both give the same bytes (L2). Nothing that became known after a close is read (L3).
"""

from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import (
    Ints,
    Bools,
    BOOK_LEVELS,
    CONTEXT_FIELDS,
    CONTEXT_INDEX,
    CONTEXT_WIDTH,
    TAPE,
    TAPE_FIELDS,
    TAPE_WIDTH,
    Books,
    ContextFeed,
    Floats,
)
from pipelines.errors import BadShape

DAY_S = 86400.0
# how old a value may be and still count as known, in seconds; the tape and the reference live as long as one bar
MAX_AGE_S = {"funding_rate": DAY_S, "fear_greed": 3 * DAY_S, "open_interest": DAY_S}
_SUMMED = np.array([TAPE[name] for name in TAPE_FIELDS])
_AT = np.array([CONTEXT_INDEX[name] for name in TAPE_FIELDS], dtype=np.int64)


@kernel
def _align_books(
    closes: Floats,
    step_s: float,
    known: Floats,
    levels: Floats,
    tape: Floats,
    summed: Bools,
    at: Ints,
    out_levels: Floats,
    out_values: Floats,
) -> None:
    first = 0
    told = np.empty(tape.shape[1])
    for i in range(closes.shape[0]):
        close = closes[i]
        while first < known.shape[0] and known[first] <= close - step_s:
            first += 1
        told[:] = 0.0
        j = first
        while j < known.shape[0] and known[j] <= close:
            for k in range(told.shape[0]):
                told[k] = told[k] + tape[j, k] if summed[k] else tape[j, k]
            j += 1
        if j > first:
            out_levels[i] = levels[j - 1]
            for k in range(told.shape[0]):
                out_values[i, at[k]] = told[k]


@kernel
def _align_feed(closes: Floats, known: Floats, field: Ints, value: Floats, max_age: Floats, out: Floats) -> None:
    newest = np.full(out.shape[1], np.nan)
    when = np.full(out.shape[1], -np.inf)
    j = 0
    for i in range(closes.shape[0]):
        while j < known.shape[0] and known[j] <= closes[i]:
            newest[field[j]] = value[j]
            when[field[j]] = known[j]
            j += 1
        for k in range(out.shape[1]):
            if closes[i] - when[k] < max_age[k]:
                out[i, k] = newest[k]


def align(closes: Floats, step_s: float, books: Books | None, feed: ContextFeed | None) -> tuple[Floats, Floats]:
    """Books and context as they were known at each close.

    closes   (m,) ascending epoch seconds: closes of decision bars; step_s their length
    Returns  levels (m, 2, BOOK_LEVELS, 3), or (m, 2, 0, 3) where `books` is None; NaN where no book became known
             during the bar (close - step_s, close]. context (m, CONTEXT_WIDTH): of the tape, what TAPE says is summed
             over the bar's books, NaN if one of them did not record it, the rest as the newest of them has it;
             everything else the newest value that is younger than MAX_AGE_S; NaN = not known.
    Raises   BadShape if lengths of a record's columns disagree
    """
    _check(books, feed)
    values = np.full((len(closes), CONTEXT_WIDTH), np.nan)
    closes = np.ascontiguousarray(closes, dtype=np.float64)
    if feed is not None and len(feed.known):
        ages = np.array([MAX_AGE_S.get(name, float(step_s)) for name in CONTEXT_FIELDS])
        _align_feed(closes, _flat(feed.known), _flat(feed.field, np.int64), _flat(feed.value), ages, values)
    if books is None:
        return np.empty((len(closes), 2, 0, 3)), values
    levels = np.full((len(closes), 2, BOOK_LEVELS, 3), np.nan)
    _align_books(
        closes, float(step_s), _flat(books.known), _flat(books.levels), _flat(books.tape), _SUMMED, _AT, levels, values
    )
    return levels, values


def book_fault(levels: Floats) -> str | None:
    """The first thing that makes these books (n, 2, levels, 3) no books, None if nothing does."""
    price, size = levels[..., 0], levels[..., 1]
    bid, ask = price[:, 0, 0], price[:, 1, 0]
    if not (np.isfinite(bid).all() and np.isfinite(ask).all()):
        return "a book needs its best bid and ask"
    if (bid >= ask).any():
        return f"book crossed: bid {bid[bid >= ask][0]:g} is not under ask {ask[bid >= ask][0]:g}"
    for s, (side, way) in enumerate((("bid", -1.0), ("ask", 1.0))):
        steps = np.diff(price[:, s], axis=1) * way
        if (steps[np.isfinite(steps)] <= 0).any():
            return f"{side} prices must go away from the best one, level by level"
        given = np.isfinite(price[:, s])
        if (given != np.isfinite(size[:, s])).any() or (size[:, s][given] <= 0).any():
            return f"every {side} level needs a size above 0"
    return None


def prune_records(
    close: float, step_s: float, books: Books | None, feed: ContextFeed | None
) -> tuple[Books | None, ContextFeed | None]:
    """The records that `align` can still read at closes after `close` (epoch s), and the books of the bar closed there.

    What a live service keeps: with them and what it hears later it aligns as training would over the whole history.
    """
    if books is not None:
        kept = slice(int(np.searchsorted(books.known, close - step_s, "right")), None)
        books = Books(books.known[kept], books.levels[kept], books.tape[kept])
    if feed is not None:
        oldest = close - max(float(step_s), *MAX_AGE_S.values())
        kept = slice(int(np.searchsorted(feed.known, oldest, "right")), None)
        feed = ContextFeed(feed.known[kept], feed.field[kept], feed.value[kept])
    return books, feed


def known_between(
    books: Books | None, feed: ContextFeed | None, after: float, until: float
) -> tuple[Books | None, ContextFeed | None]:
    """The records that became known in (after, until], epoch seconds; None where there are none."""

    def part(told: Any) -> Any:
        if told is None:
            return None
        kept = slice(*np.searchsorted(told.known, [after, until], "right"))
        return (
            type(told)(*(getattr(told, each.name)[kept] for each in fields(told))) if kept.start < kept.stop else None
        )

    return part(books), part(feed)


T = TypeVar("T", Books, ContextFeed)


def merge_records(before: T | None, after: T | None) -> T | None:
    """Both in the order they became known; of a record that is in both, the one before stands."""
    if before is None or after is None:
        return after if before is None else before
    held = set(_names(before))
    new = np.array([name not in held for name in _names(after)], dtype=bool)
    both = [np.concatenate([getattr(before, p.name), getattr(after, p.name)[new]]) for p in fields(before)]
    order = np.argsort(both[0], kind="stable")
    return type(before)(*(values[order] for values in both))


def _names(told: Books | ContextFeed) -> list[Any]:
    """What tells one record of a kind from another: its moment, and the field of a context value."""
    known = told.known.tolist()
    return known if isinstance(told, Books) else list(zip(known, told.field.tolist(), strict=True))


def _flat(values: Any, dtype: Any = np.float64) -> Any:
    """Contiguous and writeable, so that no kernel is compiled for another array type in mid-flight."""
    return np.require(values, dtype, ["C", "W"])


def _check(books: Books | None, feed: ContextFeed | None) -> None:
    if books is not None:
        n = len(books.known)
        if books.levels.shape != (n, 2, BOOK_LEVELS, 3) or books.tape.shape != (n, TAPE_WIDTH):
            raise BadShape(
                f"books: {n} times, levels {books.levels.shape}, tape {books.tape.shape}; wanted "
                f"({n}, 2, {BOOK_LEVELS}, 3) and ({n}, {TAPE_WIDTH})"
            )
    if feed is not None and not len(feed.known) == len(feed.field) == len(feed.value):
        raise BadShape(f"context: {len(feed.known)} times, {len(feed.field)} fields, {len(feed.value)} values")
