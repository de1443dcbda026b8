"""Records known at the close of each decision bar: the newest book, the flow of the bar, the context of the day.

Training aligns the whole history at once, the live service one close at a time, with the same code over the same
records, so both give the same bytes (L2). Nothing that became known after a close is read (L3).
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from pipelines.compiled import kernel
from pipelines.context_layout import CONTEXT_FIELDS, CONTEXT_INDEX, CONTEXT_WIDTH, TAPE, TAPE_FIELDS, TAPE_WIDTH
from pipelines.contracts import BOOK_LEVELS, DAY_S, Books, Bools, ContextFeed, Floats, Ints
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape

T = TypeVar("T", Books, ContextFeed)
# greatest age at which a value still counts as known, in seconds; the tape and the reference last for one bar
MAX_AGE_S = {"funding_rate": DAY_S, "fear_greed": 3 * DAY_S, "open_interest": DAY_S}
NO_AGES: Mapping[str, float] = MappingProxyType({})
_SUMMED = np.array([TAPE[name] for name in TAPE_FIELDS])
_AT = np.array([CONTEXT_INDEX[name] for name in TAPE_FIELDS], dtype=np.int64)


@kernel
def _align_books(
    opens: Floats,
    closes: Floats,
    known: Floats,
    levels: Floats,
    tape: Floats,
    summed: Bools,
    at: Ints,
    out_levels: Floats,
    out_values: Floats,
) -> None:
    """Fill out_levels and out_values with the book and the tape known at each close (m,), all float64.

    opens, closes (m,) of the bars
    known (n,), levels (n, 2, BOOK_LEVELS, 3), tape (n, TAPE_WIDTH) float64
    summed (TAPE_WIDTH,) bool: added up over the bar's books; at (TAPE_WIDTH,) int64 columns of out_values
    A close without a book during its bar is left as it is.
    """
    first = 0
    row = np.empty(tape.shape[1])
    for i in range(closes.shape[0]):
        close = closes[i]
        while first < known.shape[0] and known[first] <= opens[i]:
            first += 1
        row[:] = 0.0
        j = first
        while j < known.shape[0] and known[j] <= close:
            for k in range(row.shape[0]):
                row[k] = row[k] + tape[j, k] if summed[k] else tape[j, k]
            j += 1
        if j > first:
            out_levels[i] = levels[j - 1]
            for k in range(row.shape[0]):
                out_values[i, at[k]] = row[k]


@kernel
def _align_feed(closes: Floats, known: Floats, field: Ints, value: Floats, max_age: Floats, out: Floats) -> None:
    """Fill out (m, CONTEXT_WIDTH) with the newest value of each field at each close (m,), if younger than max_age.

    known, value (n,) float64, field (n,) int64; max_age (CONTEXT_WIDTH,) float64 seconds
    """
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


def align(
    opens: Floats, grid: Grid, books: Books | None, feed: ContextFeed | None, ages: Mapping[str, float] = NO_AGES
) -> tuple[Floats, Floats]:
    """Return books and context as they were known at each close.

    opens    (m,) ascending epoch seconds: opens of decision bars on `grid`
    ages     field → seconds for which a value counts, of fields that MAX_AGE_S lacks: those of named series
    Returns  levels (m, 2, BOOK_LEVELS, 3), or (m, 2, 0, 3) where `books` is None; NaN where no book became known
             during the bar (open, close]. context (m, CONTEXT_WIDTH): of the tape, what TAPE says is summed
             over the bar's books, NaN if one of them did not record it, the rest as the newest of them has it;
             everything else the newest value that is younger than its greatest age; NaN = not known.
    Raises   BadShape if lengths of a record's columns disagree
    """
    _check(books, feed)
    values = np.full((len(opens), CONTEXT_WIDTH), np.nan)
    opens = np.ascontiguousarray(opens, dtype=np.float64)
    closes = np.ascontiguousarray(grid.closes(opens))
    if feed is not None and len(feed.known):
        greatest = _greatest_ages(float(grid.step_s), tuple(ages.items()))
        _align_feed(closes, _flat(feed.known), _flat(feed.field, np.int64), _flat(feed.value), greatest, values)
    if books is None:
        return np.empty((len(closes), 2, 0, 3)), values
    levels = np.full((len(closes), 2, BOOK_LEVELS, 3), np.nan)
    _align_books(
        opens, closes, _flat(books.known), _flat(books.levels), _flat(books.tape), _SUMMED, _AT, levels, values
    )
    return levels, values


@lru_cache(maxsize=64)
def _greatest_ages(step_s: float, ages: tuple[tuple[str, float], ...]) -> Floats:
    """Return (CONTEXT_WIDTH,) the seconds for which a value of each field counts, where bars last `step_s`."""
    known = {**MAX_AGE_S, **dict(ages)}
    return np.array([known.get(name, step_s) for name in CONTEXT_FIELDS])


def book_fault(levels: Floats) -> str | None:
    """Return the first fault of books (n, 2, levels, 3), None without one."""
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
    close: float, step_s: float, books: Books | None, feed: ContextFeed | None, ages: Mapping[str, float] = NO_AGES
) -> tuple[Books | None, ContextFeed | None]:
    """Return the records that `align` can still read at closes after `close` (epoch s), with the books of its bar.

    With them and later records a live service aligns as training does over the whole history.
    """
    if books is not None:
        first = int(books.known.searchsorted(close - step_s, "right"))
        books = Books(books.known[first:], books.levels[first:], books.tape[first:])
    if feed is not None:
        oldest = close - max(float(step_s), *MAX_AGE_S.values(), *ages.values())
        first = int(feed.known.searchsorted(oldest, "right"))
        feed = ContextFeed(feed.known[first:], feed.field[first:], feed.value[first:])
    return books, feed


def known_between(
    books: Books | None, feed: ContextFeed | None, after: float, until: float
) -> tuple[Books | None, ContextFeed | None]:
    """Return the records that became known in (after, until], epoch seconds; None where there are none."""
    return _part(books, after, until), _part(feed, after, until)


def _part(records: T | None, after: float, until: float) -> T | None:
    """Return the records of one kind that became known in (after, until]; None if there are none."""
    if records is None:
        return None
    first, end = np.searchsorted(records.known, [after, until], "right")
    if first >= end:
        return None
    return type(records)(*(getattr(records, column.name)[first:end] for column in fields(records)))


def merge_records(before: T | None, after: T | None) -> T | None:
    """Return both in the order they became known; of a record that is in both, the one in `before` stays."""
    if before is None or after is None:
        return after if before is None else before
    parts = [(getattr(before, part.name), getattr(after, part.name)) for part in fields(before)]
    if len(before.known) and len(after.known) and after.known[0] > before.known[-1]:  # of a live feed: none is in both
        return type(before)(*map(np.concatenate, parts))
    present = set(_names(before))
    new = np.array([name not in present for name in _names(after)], dtype=bool)
    both = [np.concatenate([old, added[new]]) for old, added in parts]
    order = np.argsort(both[0], kind="stable")
    return type(before)(*(values[order] for values in both))


def _names(records: Books | ContextFeed) -> list[object]:
    """Return the identity of each record: its moment, and the field of a context value."""
    known: list[object] = records.known.tolist()
    return known if isinstance(records, Books) else list(zip(known, records.field.tolist(), strict=True))


def _flat(values: Any, dtype: Any = np.float64) -> Any:
    """Return `values` contiguous and writeable, so that no kernel is compiled for another array type on a request."""
    return values if values.dtype == dtype and values.flags.carray else np.require(values, dtype, ["C", "W"])


def _check(books: Books | None, feed: ContextFeed | None) -> None:
    """Raise BadShape if the columns of a record differ in length."""
    if books is not None:
        n = len(books.known)
        if books.levels.shape != (n, 2, BOOK_LEVELS, 3) or books.tape.shape != (n, TAPE_WIDTH):
            raise BadShape(
                f"books: {n} times, levels {books.levels.shape}, tape {books.tape.shape}; wanted "
                f"({n}, 2, {BOOK_LEVELS}, 3) and ({n}, {TAPE_WIDTH})"
            )
    if feed is not None and not len(feed.known) == len(feed.field) == len(feed.value):
        raise BadShape(f"context: {len(feed.known)} times, {len(feed.field)} fields, {len(feed.value)} values")
