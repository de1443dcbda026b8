"""Measure what a decision, a bar-minute and a context value take on disk, and their append and read.

Run: python -m benchmarks store (figures), python -m benchmarks.store [--to FILE] (writes docs/results/store.md)

Compared with a decision stored as JSON next to its feature and signal bytes, as releases with a schema before 0008 did.
Decisions are real ones of four families in both arms on a simulated market, made as the service makes them.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import contextlib
import sqlite3
import tempfile
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from benchmarks.evidence import machine
from benchmarks.fixture import simulated
from benchmarks.four_families import decisions, hex_of
from benchmarks.measured import Row, pairs
from benchmarks.pages import write
from benchmarks.postgres import postgresql, programs
from pipelines.context_layout import CONTEXT_FIELDS, TAPE_WIDTH
from pipelines.contracts import BOOK_LEVELS, OPEN_TIME, Books, ContextFeed, Floats, utc
from pipelines.data.simulator.latent import MINUTES_A_DAY
from pipelines.migrations import tables as t
from pipelines.record_codec import Kind, Part, kind_of, message_of, new_part, record_of
from pipelines.settings import ROOT, load_params
from pipelines.store import BarBatch, DecisionRecord, Store, decision_payload
from pipelines.store.engine import dump_json
from serving.state.ledger import Ledger

PAGE = ROOT / "docs" / "results" / "store.md"
READ, APPENDS = 10_000, 3_000  # decisions
SYMBOLS = (4, 16, 100)
_COLUMNS = tuple(
    c.name for c in t.decisions.columns if c.name not in ("payload", "features", "signals", "record", "seq")
)  # fmt: skip


class JsonStore(Store):
    """Store decisions as releases with a schema before 0008 did."""

    def add_decisions(self, records: Sequence[DecisionRecord], within: Connection | None = None) -> list[int]:
        """Store each decision as JSON next to its feature and signal bytes; none of them is numbered: all are 0."""
        rows = [
            {
                **{c: getattr(r.decision, c) for c in _COLUMNS},
                "payload": decision_payload(r.decision),
                "features": r.features,
                "signals": r.signals,
            }
            for r in records
        ]
        with self.writing(within) as connection:
            connection.execute(sa.insert(t.decisions), rows)
        return [0] * len(rows)


def of_symbols(records: Sequence[DecisionRecord], n: int, symbols: int, first: int = 0) -> Iterator[DecisionRecord]:
    """Yield n decisions from number `first` on, in turn of so many symbols, each with ids and a warm start of its own.

    There are fewer real ones than a store holds in a day: they are repeated with other ids.
    """
    for i in range(first, first + n):
        record, name = records[i % len(records)], f"SYM{i % symbols}/USDT"
        lineage = record.decision.lineage | {"warm_start": hex_of(name, 64)}
        made = replace(record.decision, id=hex_of(f"{symbols} {i}"), symbol=name, lineage=lineage)
        yield replace(record, decision=made)


# ---- bytes ----------------------------------------------------------------------------------------------------------


def disk_bytes(store: Store, tables: Sequence[str]) -> int:
    """Return the bytes of the whole SQLite file after a checkpoint, or of these tables of PostgreSQL with indexes."""
    with store.writing() as connection:
        url = connection.engine.url
        if connection.dialect.name == "postgresql":
            return sum(int(connection.scalar(sa.select(sa.func.pg_total_relation_size(name))) or 0) for name in tables)
    with closing(sqlite3.connect(str(url.database))) as opened:
        opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(str(url.database)).stat().st_size


def grown_by(store: Store, tables: Sequence[str], rows: int, fill: Callable[[], object]) -> float:
    """Return the bytes a row takes: growth over `rows` rows while `fill` stores them."""
    before = disk_bytes(store, tables)
    fill()
    return (disk_bytes(store, tables) - before) / rows


def decision_bytes(store: Store, records: Sequence[DecisionRecord], n: int, symbols: int) -> float:
    """Return bytes on disk of a decision with its indexes and its share of the parts, of n decisions."""

    def fill() -> None:
        """Store in groups, as the ledger does under load."""
        some = list(of_symbols(records, n, symbols))
        for i in range(0, n, 50):
            store.add_decisions(some[i : i + 50])

    return grown_by(store, ("decisions", "record_parts"), n, fill)


def bar_bytes(store: Store, minutes: int) -> float:
    """Return bytes on disk of a bar-minute."""
    bars = simulated(load_params(), 1 + minutes // MINUTES_A_DAY)[:minutes]
    batches = np.split(bars, range(15, len(bars), 15))

    def fill() -> None:
        """Store a quarter of an hour at a time."""
        with store.writing() as connection:
            for some in batches:
                store.add_bars(BarBatch("BTC/USDT", some, some[:, OPEN_TIME] + 60.0, utc(some[-1, 0])), connection)

    return grown_by(store, ("bars",), len(bars), fill)


def record_bytes(store: Store, n: int, kind: str) -> float:
    """Return bytes on disk of a book, or of a context value, of n."""
    rng, known = np.random.default_rng(7), 1.7e9 + 60.0 * np.arange(n)
    levels, tape = rng.random((n, 2, BOOK_LEVELS, 3)), rng.random((n, TAPE_WIDTH))
    feed = ContextFeed(known, np.full(n, CONTEXT_FIELDS.index("funding_rate")), rng.random(n))
    books = Books(known, levels, tape)
    batch = BarBatch("BTC/USDT", np.empty((0, 9)), np.empty(0), utc(known[-1]))
    batch = replace(batch, books=books) if kind == "book" else replace(batch, feed=feed)
    return grown_by(store, ("records",), n, lambda: store.add_bars(batch))


# ---- time -----------------------------------------------------------------------------------------------------------


def append_seconds(stores: Sequence[Store], records: Sequence[DecisionRecord], n: int) -> tuple[Floats, Floats]:
    """Return the wall and the CPU seconds until a decision is durable, (n, 2) each of two stores in turn."""
    ledgers = [Ledger(store) for store in stores]
    wall, cpu, warm = np.empty((n, 2)), np.empty((n, 2)), 30  # the first appends load code
    for i, record in enumerate(of_symbols(records, n + warm, 1, READ)):
        for side in (0, 1) if i % 2 else (1, 0):
            started = time.perf_counter(), time.process_time()
            ledgers[side].append(record.decision, record.features, record.signals).result()
            cpu[i - warm, side] = time.process_time() - started[1]
            wall[i - warm, side] = time.perf_counter() - started[0]
    for ledger in ledgers:
        ledger.close()
    return wall, cpu


def read_seconds(stores: Sequence[Store], repeats: int) -> Floats:
    """Return the CPU seconds in which all decisions are read, (repeats, 2) of two stores in turn."""
    took = np.empty((repeats, 2))
    for i in range(repeats):
        for side in (0, 1) if i % 2 else (1, 0):
            started = time.process_time()
            assert stores[side].decisions()
            took[i, side] = time.process_time() - started
    return took


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    records, n = decisions(tiny), 200 if tiny else READ
    with tempfile.TemporaryDirectory() as scratch:
        stores = Store.open(f"sqlite:///{scratch}/records.db"), JsonStore.open(f"sqlite:///{scratch}/json.db")
        sizes = [decision_bytes(store, records, n, 1) for store in stores]
        read = read_seconds(stores, 2 if tiny else 7)
        appended = append_seconds(stores, records, 40 if tiny else APPENDS)[0] * 1e6
        for store in stores:
            store.close()
    append_row = pairs("append a decision until durable", "us", appended[:, 0], "JSON and bytes, before 0008",
                       appended[:, 1], "SQLite, through the ledger", tail=True)  # fmt: skip
    read_row = pairs(f"read {n:,} decisions", "CPU s", read[:, 0], "JSON and bytes, before 0008", read[:, 1])
    ours, theirs = (np.array([size]) for size in sizes)
    size_row = pairs("a decision on disk", "bytes", ours, "JSON and bytes, before 0008", theirs,
                     "SQLite file, indexes and shared parts included")  # fmt: skip
    return [append_row, read_row, size_row]


# ---- the page -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Disk:
    """Hold the bytes on disk of one database: decisions by number of symbols, as JSON before, and the rest."""

    decision: dict[int, float]
    decision_before: float
    bar: float
    book: float
    context: float


def disk_of(open_new: Callable[[type[Store]], Store], records: Sequence[DecisionRecord], n: int) -> Disk:
    """Measure one database; `open_new` returns an empty store of a class."""
    found: list[float] = []
    fills: list[tuple[type[Store], Callable[[Store], float]]] = [
        *((Store, partial(decision_bytes, records=records, n=n, symbols=symbols)) for symbols in SYMBOLS),
        (JsonStore, partial(decision_bytes, records=records, n=n, symbols=SYMBOLS[0])),
        (Store, partial(bar_bytes, minutes=n)),
        (Store, partial(record_bytes, n=n, kind="book")),
        (Store, partial(record_bytes, n=n, kind="context")),
    ]
    for kind, fill in fills:
        store = open_new(kind)
        found.append(fill(store))
        store.close()
    count = len(SYMBOLS)
    return Disk(dict(zip(SYMBOLS, found, strict=False)), *found[count:])


@contextmanager
def databases() -> Iterator[dict[str, Callable[[type[Store]], Store]]]:
    """Yield database → a function that opens a new, empty store in it; PostgreSQL only where it is installed."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        numbers = iter(range(1000))

        def sqlite(kind: type[Store]) -> Store:
            """Open a new file."""
            return kind.open(f"sqlite:///{scratch}/{next(numbers)}.db")

        found: dict[str, Callable[[type[Store]], Store]] = {"SQLite": sqlite}
        if programs() is not None:
            server = stack.enter_context(postgresql())
            engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
            stack.callback(engine.dispose)

            def postgres(kind: type[Store]) -> Store:
                """Open a new database."""
                name = f"bench{next(numbers)}"
                with engine.connect() as connection:
                    connection.exec_driver_sql(f"CREATE DATABASE {name}")
                return kind.open(server.replace("/postgres", f"/{name}"))

            found["PostgreSQL"] = postgres
        yield found


def page(records: Sequence[DecisionRecord], n: int) -> str:
    """Return the page: bytes of a decision, on disk and an hour, times, bars and context."""
    with databases() as known:
        disks = {name: disk_of(open_new, records, n) for name, open_new in known.items()}
        timed = {name: times_of(open_new, records, n) for name, open_new in known.items()}
    return "\n".join([
        "# Store: what a decision takes, and how fast it is written and read",
        "",
        _prose(f"""Written by `python -m benchmarks.store`; nothing here was typed or chosen by hand. {machine()};
        msgspec {version("msgspec")}, zlib {zlib.ZLIB_RUNTIME_VERSION}, SQLite {sqlite3.sqlite_version}.
        {len(records):,} decisions on a simulated market, made as the service makes them: four families in both arms,
        trained on little, since what a decision holds does not depend on how good its models are. *Before*: as
        releases with a
        schema before 0008 stored it, measured in the same run."""),
        "",
        "## A decision",
        "",
        _prose("""Everything of a decision is one record: MessagePack, deflated against a part that holds what decisions
        of one kind share. The first decision of a kind brings the part along; a kind is a generation, a tier, an
        event or none, and the status of each answer. Median [5 %, 95 %] of bytes:"""),
        "",
        *record_lines(records),
        "",
        "## On disk",
        "",
        _prose(f"""Growth over {n:,} decisions with indexes and parts, each symbol with ids and a warm start of its own,
        the SQLite file after a checkpoint. One decision a symbol is made at each close of a decision bar; one a
        second is what a caller could request, not what happens."""),
        "",
        *disk_lines(disks),
        "",
        "## Time",
        "",
        _prose("""Both ways in turn, in one process and one run: an append through the ledger until the decision is
        durable, CPU time to read and decode every decision, as lineage, replay and monitoring do. The
        ratio is ours over before, below 1 is faster: the median of pairs, with quartiles. PostgreSQL runs here
        without fsync."""),
        "",
        *timed_lines(timed),
        "",
        "## Bars and context",
        "",
        _prose("""Bytes on disk of what is observed. The numbers of a bar-minute are nine and when it was known; SQLite
        keeps each row's key a second time in the index of the primary key, and the time of arrival as 26
        characters; PostgreSQL pays 24 bytes of row header and the same index. Rows without that second key would
        need every row of the table written again, so they stay as they are."""),
        "",
        *observed_lines(disks),
        "",
    ])  # fmt: skip


def times_of(
    open_new: Callable[[type[Store]], Store], records: Sequence[DecisionRecord], n: int
) -> dict[str, tuple[Floats, int]]:
    """Return what was timed → seconds (m, 2), ours and before, and the decisions of one measurement."""
    stores = open_new(Store), open_new(JsonStore)
    for store in stores:
        decision_bytes(store, records, n, 1)
    read, one = read_seconds(stores, 7), one_seconds(stores, n)
    wall, cpu = append_seconds(stores, records, APPENDS)
    for store in stores:
        store.close()
    return {
        "append, wall µs": (wall, 1),
        "append, CPU µs": (cpu, 1),
        f"read {n:,}, CPU µs each": (read, n),
        "read one by its id, CPU µs": (one, 1),
    }


def one_seconds(stores: Sequence[Store], n: int) -> Floats:
    """Return the CPU seconds in which one decision is read by its id, (200, 2) of two stores in turn."""
    took = np.empty((200, 2))
    for i in range(200):
        for side in (0, 1) if i % 2 else (1, 0):
            started = time.process_time()
            stores[side].decision(hex_of(f"1 {i * 37 % n}"))
            took[i, side] = time.process_time() - started
    return took


def record_lines(records: Sequence[DecisionRecord]) -> list[str]:
    """Return the table of bytes by what they are."""
    bare = [replace(r, features=b"", signals=b"") for r in records]
    kinds = {kind_of(r.decision) for r in records}
    parts = [len(content) for _, content in _parts(records).values()]
    payload = np.array([len(dump_json(decision_payload(r.decision))) for r in records])
    features, signals = (np.array([len(getattr(r, name)) for r in records]) for name in ("features", "signals"))
    whole, alone = np.array(_record_sizes(records)), np.array(_record_sizes(bare))
    event = np.array([r.decision.event is not None for r in records])
    lines = ["| what | before | record |", "|---|--:|--:|"]
    lines.append(f"| decision | {_bytes(payload)} | {_bytes(alone)} |")
    lines.append(
        f"| features, {records[0].features and len(records[0].features) // 8} numbers | {_bytes(features)} | |"
    )
    lines.append(f"| signals, {len(records[0].signals) // 8} numbers | {_bytes(signals)} | |")
    total = payload + features + signals
    lines.append(f"| **all of it** | {_bytes(total)} | {_bytes(whole)} |")
    lines.append(f"| on an event ({event.sum():,}) | {_bytes(total[event])} | {_bytes(whole[event])} |")
    lines.append(f"| without one ({(~event).sum():,}) | {_bytes(total[~event])} | {_bytes(whole[~event])} |")
    return [*lines, "", f"{len(kinds)} kinds have a part of {_bytes(np.array(parts))} bytes each."]


def _parts(records: Sequence[DecisionRecord]) -> dict[Kind, tuple[Part, bytes]]:
    """Return kind → the part its first decision makes, with the bytes it is stored as."""
    found: dict[Kind, tuple[Part, bytes]] = {}
    for record in records:
        if (kind := kind_of(record.decision)) not in found:
            found[kind] = new_part(message_of(record))
    return found


def _record_sizes(records: Sequence[DecisionRecord]) -> list[int]:
    """Return the bytes of each record, written against the part of its kind."""
    parts = _parts(records)
    return [len(record_of(message_of(r), parts[kind_of(r.decision)][0])) for r in records]


def _bytes(values: npt.NDArray[Any]) -> str:
    """Return "median [5 %, 95 %]" of whole bytes, the number alone where all are alike."""
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    return f"{median:,.0f}" if low == high else f"{median:,.0f} [{low:,.0f}, {high:,.0f}]"


def disk_lines(disks: dict[str, Disk]) -> list[str]:
    """Return the table of bytes a decision and bytes an hour, by number of symbols."""
    lines = [
        "| database | symbols | bytes a decision | before | an hour: 15m bars | 1m bars | one a second | before |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, disk in disks.items():
        for symbols, size in disk.decision.items():
            hours = " | ".join(_size(symbols * times * size) for times in (4, 60, 3600))
            before = _size(symbols * 3600 * disk.decision_before)
            lines.append(f"| {name} | {symbols} | {size:,.0f} | {disk.decision_before:,.0f} | {hours} | {before} |")
    return lines


def _size(count: float) -> str:
    """Return bytes with a unit."""
    for unit, step in (("GB", 1e9), ("MB", 1e6)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def timed_lines(timed: dict[str, dict[str, tuple[Floats, int]]]) -> list[str]:
    """Return the table of times and their ratios."""
    lines = ["| database | what | now | before | ratio |", "|---|---|--:|--:|--:|"]
    for database, found in timed.items():
        for what, (took, each) in found.items():
            now, before = (f"{1e6 * np.median(side) / each:,.0f}" for side in took.T)
            low, ratio, high = np.quantile(took[:, 0] / took[:, 1], [0.25, 0.5, 0.75])
            lines.append(f"| {database} | {what} | {now} | {before} | {ratio:.2f} [{low:.2f}, {high:.2f}] |")
    return lines


def observed_lines(disks: dict[str, Disk]) -> list[str]:
    """Return the table of bytes of bars, books and context values, with the bytes of their numbers."""
    book = 8 * (2 * BOOK_LEVELS * 3 + TAPE_WIDTH)
    lines = ["| database | what | numbers | on disk | an hour at 4, 16, 100 symbols |", "|---|---|--:|--:|--:|"]
    for name, disk in disks.items():
        for what, numbers, size in (
            ("bar-minute", 80, disk.bar),
            ("book, one a minute", book + 8, disk.book),
            ("context value, one a minute", 16, disk.context),
        ):
            hours = ", ".join(_size(60 * symbols * size) for symbols in SYMBOLS)
            lines.append(f"| {name} | {what} | {numbers} | {size:,.0f} | {hours} |")
    return lines


def _prose(text: str) -> str:
    """Return one paragraph, wrapped for a page."""
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def main() -> None:
    """Write the page."""
    write(PAGE, __doc__, [], lambda: page(decisions(False), READ))


if __name__ == "__main__":
    main()
