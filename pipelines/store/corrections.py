"""Quarantined bars, and corrections: what an observed bar is read as from a moment on.

What was observed is never rewritten. A correction is a record of its own, in the order it was made; the bars of a
moment are those observed, with the corrections made by then applied (`read_with`). A bar in quarantine counts for
nothing until a person releases it, which is a correction too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from pipelines.contracts import BAR_FIELDS, BAR_WIDTH, OPEN_TIME, Floats, utc
from pipelines.errors import BadValues, StateError, UnknownName
from pipelines.migrations import tables as t
from pipelines.store.chain_lines import chain_row
from pipelines.store.engine import Database, insert_row, lock_table


class HeldBar(NamedTuple):
    """Hold a bar (9,) that was not folded: when it was known (epoch s), the code of the rule, and the figures."""

    bar: Floats
    known_at: float
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Hold a bar (9,) in quarantine, or one that was; `state` is held, released, dropped or withdrawn."""

    id: int
    symbol: str
    open_time: float
    bar: Floats
    known_at: float
    code: str
    detail: str
    at: datetime
    by: str
    state: str
    closed_at: datetime | None
    closed_by: str | None
    closed_reason: str | None


@dataclass(frozen=True, slots=True)
class Correction:
    """Hold one correction: the bar (9,) as it was read until `at`, and as it is read from then on; None = no bar."""

    id: int
    symbol: str
    open_time: float
    before: Floats | None
    after: Floats | None
    known_at: float
    reason: str
    by: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Change:
    """Name what a person changes of one bar; `after` None takes it out. `known_at`: its close, epoch s."""

    open_time: float
    known_at: float
    after: Floats | None


@dataclass(frozen=True, slots=True)
class Signed:
    """Name who decides, when (aware), and why."""

    by: str
    at: datetime
    reason: str

    def __post_init__(self) -> None:
        """Refuse a decision without a reason."""
        if not self.reason.strip():
            raise BadValues("what changes the bars of a market needs a reason. Add --reason TEXT")


class CorrectionStore(Database):
    """Store quarantined bars and corrections."""

    # ---- reading --------------------------------------------------------------------------------------------------

    def corrections(self, symbol: str, reading: datetime | None = None) -> list[Correction]:
        """Return the corrections of a symbol made by the moment `reading` (aware; None = all), oldest first."""
        with self._engine.connect() as connection:
            return corrections_by(connection, symbol, reading)

    def newest_corrections(self) -> dict[str, datetime]:
        """Return symbol → moment of its newest correction."""
        c = t.corrections.c
        query = sa.select(c.symbol, sa.func.max(c.at, type_=t.UtcTime()).label("at")).group_by(c.symbol)
        return {row["symbol"]: row["at"] for row in self._rows(query)}

    def quarantined(self, symbol: str | None = None, held_only: bool = True) -> list[Quarantined]:
        """Return bars in quarantine, or all that ever were, in the order they came."""
        query = sa.select(t.quarantine).order_by(t.quarantine.c.id)
        if symbol is not None:
            query = query.where(t.quarantine.c.symbol == symbol)
        if held_only:
            query = query.where(t.quarantine.c.state == "held")
        return [_quarantined(row) for row in self._rows(query)]

    def quarantined_bar(self, number: int) -> Quarantined:
        """Return one quarantined bar. Raises UnknownName."""
        found = self._rows(sa.select(t.quarantine).where(t.quarantine.c.id == number))
        if not found:
            raise UnknownName(f"no bar {number} was quarantined; `bellwether data quarantine list` shows the numbers")
        return _quarantined(found[0])

    def withheld(self, symbol: str, after: float) -> dict[float, str]:
        """Return open time → why, of the bars opening after `after` (epoch s) that count for nothing now.

        They are in quarantine, were dropped from it, or were taken out by a correction.
        """
        q = t.quarantine.c
        query = sa.select(q.open_time, q.code).where(
            q.symbol == symbol, q.open_time > float(after), q.state.in_(("held", "dropped"))
        )
        found = {float(row["open_time"]): str(row["code"]) for row in self._rows(query.order_by(q.id))}
        for correction in self.corrections(symbol):
            if correction.after is not None:
                found.pop(correction.open_time, None)
            elif correction.open_time > after:
                found.setdefault(correction.open_time, "TAKEN_OUT")
        return found

    # ---- what people decide ---------------------------------------------------------------------------------------

    def correct(self, symbol: str, changes: Sequence[Change], signed: Signed) -> list[Correction]:
        """Record what these bars are read as from now on, all or none; return the corrections, none of an equal bar.

        A quarantined bar of the same time is released by a bar put in its place.
        """
        with self.writing() as connection:
            lock_table(connection, t.corrections)
            made = self._chained(connection, _correct(connection, symbol, changes, signed))
            for one in made:
                if one.after is not None:
                    _close(connection, symbol, one.open_time, "released", signed)
            return made

    def release(self, numbers: Sequence[int], signed: Signed) -> list[Correction]:
        """Put quarantined bars in as they came, all or none. Raises UnknownName, StateError for one not held."""
        with self.writing() as connection:
            lock_table(connection, t.corrections)
            held, made = _held(connection, numbers), []
            for symbol in dict.fromkeys(one.symbol for one in held):
                changes = [Change(one.open_time, one.known_at, one.bar) for one in held if one.symbol == symbol]
                made += self._chained(connection, _correct(connection, symbol, changes, signed))
            for one in held:
                _close(connection, one.symbol, one.open_time, "released", signed)
            return made

    def drop(self, numbers: Sequence[int], signed: Signed) -> list[Quarantined]:
        """Give up quarantined bars: the gap stays. Raises UnknownName, StateError for one that is not held."""
        with self.writing() as connection:
            lock_table(connection, t.corrections)
            dropped = _held(connection, numbers)
            for one in dropped:
                _close(connection, one.symbol, one.open_time, "dropped", signed)
            return dropped

    def set_aside(self, symbol: str, bar: Floats, known_at: float, code: str, signed: Signed) -> list[Correction]:
        """Take a bar (9,) that was accepted out, into quarantine; nothing happens to one that is out already."""
        opened = float(bar[OPEN_TIME])
        with self.writing() as connection:
            lock_table(connection, t.corrections)
            made = self._chained(connection, _correct(connection, symbol, [Change(opened, known_at, None)], signed))
            if made:
                hold(connection, symbol, [HeldBar(bar, known_at, code, signed.reason)], signed.at, signed.by)
            return made

    def _chained(self, connection: Connection, made: list[Correction]) -> list[Correction]:
        """Write the chain's line of each correction; return them."""
        for one in made:
            chain_row(connection, self._chain_key, t.corrections, one.id)
        return made


# ---- rows -----------------------------------------------------------------------------------------------------------


def hold(connection: Connection, symbol: str, bars: Sequence[HeldBar], at: datetime, by: str) -> None:
    """Put bars into quarantine; one that is held already stays as it came first."""
    if not bars:
        return
    q = t.quarantine.c
    opens = [float(one.bar[OPEN_TIME]) for one in bars]
    query = sa.select(q.open_time).where(
        q.symbol == symbol, q.state == "held", q.open_time.between(min(opens), max(opens))
    )
    known = {float(opened) for opened in connection.execute(query).scalars()}
    fresh = [
        {"symbol": symbol, "open_time": opened, "bar": _bytes(one.bar), "known_at": float(one.known_at),
         "code": one.code, "detail": one.detail, "at": at, "by": by, "state": "held"}
        for opened, one in zip(opens, bars, strict=True) if opened not in known
    ]  # fmt: skip
    if fresh:
        connection.execute(sa.insert(t.quarantine), fresh)


def withdraw_held(connection: Connection, symbol: str, closed_after: float, at: datetime) -> None:
    """Close quarantined bars known later than `closed_after` (epoch s): they came while the clock was wrong."""
    q = t.quarantine.c
    late = (q.symbol == symbol, q.state == "held", q.known_at > closed_after)
    values = {"state": "withdrawn", "closed_at": at, "closed_by": "clock", "closed_reason": "the clock was ahead"}
    connection.execute(sa.update(t.quarantine).where(*late).values(values))


def read_with(bars: Floats, corrections: Iterable[Correction]) -> Floats:
    """Return bars (n, 9), ascending, as they are read with these corrections, oldest first."""
    changed: dict[float, Floats | None] = {one.open_time: one.after for one in corrections}
    if not changed:
        return bars
    kept = bars[~np.isin(bars[:, OPEN_TIME], list(changed))]
    put = [row for row in changed.values() if row is not None]
    together = np.concatenate([kept, np.array(put).reshape(-1, BAR_WIDTH)])
    return together[np.argsort(together[:, OPEN_TIME], kind="stable")]


def opening_in(corrections: Iterable[Correction], after: float, until: float) -> list[Correction]:
    """Return the corrections of bars with after < open_time <= until, epoch seconds."""
    return [one for one in corrections if after < one.open_time <= until]


def corrections_by(connection: Connection, symbol: str, reading: datetime | None) -> list[Correction]:
    """Return the corrections of a symbol made by a moment, oldest first; None = all."""
    query = sa.select(t.corrections).where(t.corrections.c.symbol == symbol).order_by(t.corrections.c.id)
    if reading is not None:
        query = query.where(t.corrections.c.at <= reading)
    return [_correction(row) for row in connection.execute(query).mappings()]


def _correct(connection: Connection, symbol: str, changes: Sequence[Change], signed: Signed) -> list[Correction]:
    """Append corrections of a symbol and return them; a bar that is read like that already makes none."""
    known = corrections_by(connection, symbol, None)
    at = max([signed.at, *(one.at + timedelta(microseconds=1) for one in known)])  # a reading is named by its moment
    made: list[Correction] = []
    for change in sorted(changes, key=lambda change: change.open_time):
        before = _now_read(connection, symbol, change.open_time, [*known, *made])
        if _same(before, change.after):
            continue
        values = {"symbol": symbol, "open_time": float(change.open_time), "before": _bytes(before),
                  "after": _bytes(change.after), "known_at": float(change.known_at), "reason": signed.reason,
                  "by": signed.by, "at": at}  # fmt: skip
        number = insert_row(connection, t.corrections, values)
        made.append(
            Correction(number, symbol, float(change.open_time), before, change.after, float(change.known_at),
                       signed.reason, signed.by, at)
        )  # fmt: skip
    return made


def _now_read(connection: Connection, symbol: str, opened: float, known: Sequence[Correction]) -> Floats | None:
    """Return the bar of an open time as it is read now; None = there is none."""
    for one in reversed(known):
        if one.open_time == opened:
            return one.after
    columns = [t.bars.c[name] for name in BAR_FIELDS]
    row = connection.execute(sa.select(*columns).where(t.bars.c.symbol == symbol, t.bars.c.open_time == opened)).first()
    return None if row is None else np.array(tuple(row), dtype=np.float64)


def _held(connection: Connection, numbers: Sequence[int]) -> list[Quarantined]:
    """Return quarantined bars by their numbers. Raises UnknownName, StateError for one that is not held any more."""
    found = []
    for number in dict.fromkeys(numbers):
        row = connection.execute(sa.select(t.quarantine).where(t.quarantine.c.id == number)).mappings().first()
        if row is None:
            raise UnknownName(f"no bar {number} was quarantined; `bellwether data quarantine list` shows the numbers")
        one = _quarantined(row)
        if one.state != "held":
            raise StateError(
                f"bar {number} of {one.symbol}, {utc(one.open_time):%F %T} UTC, was {one.state} by {one.closed_by} at "
                f"{one.closed_at:%F %T} UTC; nothing was changed. `bellwether data correct` states what it is read as"
            )
        found.append(one)
    return found


def _close(connection: Connection, symbol: str, opened: float, state: str, signed: Signed) -> None:
    """Mark the held bar of an open time, if there is one."""
    q = t.quarantine.c
    held = (q.symbol == symbol, q.open_time == float(opened), q.state == "held")
    values = {"state": state, "closed_at": signed.at, "closed_by": signed.by, "closed_reason": signed.reason}
    connection.execute(sa.update(t.quarantine).where(*held).values(values))


def _same(one: Floats | None, other: Floats | None) -> bool:
    """Return whether two bars are equal; NaN equals NaN, None only None."""
    if one is None or other is None:
        return one is other
    return bool(np.array_equal(one, other, equal_nan=True))


def _bytes(bar: Floats | None) -> bytes | None:
    """Return a bar (9,) as it is stored."""
    return None if bar is None else np.asarray(bar, dtype="<f8").tobytes()


def _bar(stored: bytes | None) -> Floats | None:
    """Return a stored bar (9,)."""
    return None if stored is None else np.frombuffer(bytes(stored), dtype="<f8").astype(np.float64)


def _quarantined(row: RowMapping) -> Quarantined:
    """Return the quarantined bar of a row."""
    bar = np.frombuffer(bytes(row["bar"]), dtype="<f8").astype(np.float64)
    return Quarantined(**{**row, "bar": bar})


def _correction(row: RowMapping) -> Correction:
    """Return the correction of a row."""
    return Correction(**{**row, "before": _bar(row["before"]), "after": _bar(row["after"])})
