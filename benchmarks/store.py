"""Measure what a decision, a bar-minute and a context value take on disk, and their append and read.

Run: python -m benchmarks store (figures), python -m benchmarks.store [--to FILE] (writes docs/results/store.md)

Compared with a decision stored as JSON next to its feature and signal bytes, as releases with a schema before 0008 did.
Decisions are real ones of four families in both arms on a simulated market, made as the service makes them.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import contextlib
import json
import sqlite3
import sys
import tempfile
import textwrap
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from benchmarks.evidence import machine
from benchmarks.fixture import Fixture, arm_of, fixture, prepare, simulated
from benchmarks.measured import Row, pairs
from benchmarks.pages import write
from benchmarks.postgres import postgresql, programs
from pipelines.context_layout import CONTEXT_FIELDS, TAPE_WIDTH
from pipelines.contracts import BOOK_LEVELS, CATEGORIES, OPEN_TIME, Books, ContextFeed, Floats, utc
from pipelines.data.simulator.latent import MINUTES_A_DAY
from pipelines.data.timeframes import Grid, resample
from pipelines.families import FAMILIES
from pipelines.migrations import tables as t
from pipelines.params import Params
from pipelines.record_codec import Kind, Part, kind_of, message_of, new_part, record_of
from pipelines.settings import ROOT, load_params
from pipelines.store import BarBatch, DecisionRecord, Store, decision_payload
from pipelines.store.engine import dump_json
from pipelines.training import stages
from pipelines.warm_start import publish_warm_start, read_warm_start
from serving.inference.generation import write_generation
from serving.inference.model_slots import ModelSlots
from serving.policy.decide import decide
from serving.policy.decision_row import flatten
from serving.risk.exposure import AssetCloses, scenarios_of
from serving.state.account import Account
from serving.state.ledger import Ledger
from serving.state.symbols import Symbol
from serving.state.tiers import Tier

PAGE = ROOT / "docs" / "results" / "store.md"
READ = 10_000  # decisions
SYMBOLS = (4, 16, 100)
TIER = Tier(1, "TIER_1: validator champion decides; pattern, regime, predictor answer")
# Trained on less to finish sooner: what a decision holds depends on the families, not on how good they are.
SHORTER = {
    "predictor": {"max_windows": 500, "epochs": 1, "folds": 1, "forest": {"trees": 20}, "boosted": {"trees": 20}},
    "pattern": {"max_windows": 600, "epochs": 2, "folds": 1, "forest": {"trees": 30}, "boosted": {"trees": 30}},
    "regime": {"em_iterations": 20, "folds": 1},
    "validator": {"trees": 10, "depth": 3},
}
HISTORY_DAYS, LIVE_DAYS, LEFT_OUT_DAYS = 67, 20, 7  # the challenger is trained without the first week
_COLUMNS = tuple(
    c.name for c in t.decisions.columns if c.name not in ("payload", "features", "signals", "record")
)  # fmt: skip


class JsonStore(Store):
    """Store decisions as releases with a schema before 0008 did."""

    def add_decisions(self, records: Sequence[DecisionRecord], within: Connection | None = None) -> None:
        """Store each decision as JSON next to its feature and signal bytes."""
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


# ---- decisions to store ---------------------------------------------------------------------------------------------


def four_families(root: Path) -> Fixture:
    """Train every family in both arms on a simulated history; return the installation, ready to serve."""
    params = load_params()
    changes = {
        family: {
            k: {**getattr(params, family).model_dump()[k], **v} if isinstance(v, dict) else v for k, v in c.items()
        }
        for family, c in SHORTER.items()
    }
    params = Params(**{k: v | changes.get(k, {}) if isinstance(v, dict) else v for k, v in params.model_dump().items()})
    bars = simulated(params, HISTORY_DAYS, LIVE_DAYS)
    history, live = np.split(bars, [HISTORY_DAYS * MINUTES_A_DAY])
    home = root / "home"
    (home / "bundles").mkdir(parents=True)
    families: dict[str, dict[str, object]] = {family: {} for family in FAMILIES}
    for arm, skipped in (("challenger", LEFT_OUT_DAYS * MINUTES_A_DAY), ("champion", 0)):
        artifacts = prepare(root / arm, history[skipped:], params.simulator.symbol, params)
        for family in FAMILIES:
            with contextlib.chdir(root / arm), contextlib.redirect_stdout(sys.stderr):
                stages.fit_family(family, params)
            digest = json.loads((artifacts / family / "fit.json").read_text())["digest"]
            (artifacts / family / "bundle").rename(home / "bundles" / digest)
            families[family][arm] = _origin(digest)
    into = home / "serving" / "warm"
    record = json.loads((artifacts / "labels" / "traditional.json").read_text())
    warm = publish_warm_start(artifacts / "features" / "warm", into, data_hash=_hex("data"), **record)
    write_generation(home / "serving", families, warm, datetime.now(UTC))
    return Fixture(home, params, live, None, ("", ""), warm)  # type: ignore[arg-type]  # no rows are needed


def _origin(digest: str) -> dict[str, object]:
    """Return the entry of an arm in a generation file, with hashes as long as real ones."""
    return arm_of(digest, "7") | {"run_id": _hex("run"), "data_hash": _hex("data"), "git_commit": _hex("git", 40)}


def _hex(text: str, digits: int = 32) -> str:
    """Return hex digits like those of ids and hashes."""
    return sha256(text.encode()).hexdigest()[:digits]


@cache
def decisions(tiny: bool) -> list[DecisionRecord]:
    """Return decisions in the order in which they are made; `tiny` has one family and measures nothing."""
    with tempfile.TemporaryDirectory(prefix="bellwether-bench-") as scratch:
        return _decide(fixture(True) if tiny else four_families(Path(scratch)), 96 if tiny else None)


def _decide(at: Fixture, most: int | None) -> list[DecisionRecord]:
    """Return the decisions on the live bars of an installation, as the service makes them."""
    slots = ModelSlots(at.home / "serving", at.home / "bundles", lambda *refused: None)
    snapshot = slots.pending()
    assert snapshot is not None
    assert not snapshot.refused, snapshot.refused
    symbol, flat = Symbol(read_warm_start(Path(at.warm["path"]), at.warm["digest"])), flatten(at.params)
    closes = AssetCloses(symbol.grid, symbol.warm.closes)
    scenarios = scenarios_of({symbol.name: closes}, at.params.labels.horizon_bars, at.params.risk.tail)
    account = Account(scenarios=scenarios, newest_closes=lambda _: symbol.closes)
    rng, found = np.random.default_rng(7), []
    learned = dict.fromkeys(CATEGORIES, 1.0)
    for i, bar in enumerate(resample(at.live, Grid("1m"), Grid("15m"))[:most]):
        symbol.on_bar(bar)
        close = utc(symbol.closed.close_time)
        if i % 20 == 0:  # as after an outcome
            learned[CATEGORIES[i // 20 % len(CATEGORIES)]] = float(rng.uniform(0.8, 1.2))
        made = decide(
            symbol, snapshot, at.params, flat, partial(account.portfolio, close, symbol.name), (), tier=TIER,
            learned=dict(learned), id=_hex(str(i)), known_at=close, now=utc(close.timestamp() + rng.random()),
        )  # fmt: skip
        account.add_decision(made)
        found.append(DecisionRecord(made, symbol.closed.features.tobytes(), symbol.closed.signals.tobytes()))
    return found


def of_symbols(records: Sequence[DecisionRecord], n: int, symbols: int, first: int = 0) -> Iterator[DecisionRecord]:
    """Yield n decisions from number `first` on, in turn of so many symbols, each with ids and a warm start of its own.

    There are fewer real ones than a store holds in a day: they are repeated with other ids.
    """
    for i in range(first, first + n):
        record, name = records[i % len(records)], f"SYM{i % symbols}/USDT"
        lineage = record.decision.lineage | {"warm_start": _hex(name, 64)}
        made = replace(record.decision, id=_hex(f"{symbols} {i}"), symbol=name, lineage=lineage)
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


def append_seconds(stores: Sequence[Store], records: Sequence[DecisionRecord], n: int) -> Floats:
    """Return the seconds until a decision is durable, (n, 2) of two stores in turn."""
    ledgers = [Ledger(store) for store in stores]
    took, warm = np.empty((n, 2)), 30  # the first appends load code
    for i, record in enumerate(of_symbols(records, n + warm, 1, READ)):
        for side in (0, 1) if i % 2 else (1, 0):
            started = time.perf_counter()
            ledgers[side].append(record.decision, record.features, record.signals).result()
            took[i - warm, side] = time.perf_counter() - started
    for ledger in ledgers:
        ledger.close()
    return took


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
        appended = append_seconds(stores, records, 40 if tiny else 1000) * 1e6
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
        _prose("""Both ways in turn, in one process and one run: wall time of an append through the ledger until the
        decision is durable, CPU time to read and decode every decision, as lineage, replay and monitoring do. The
        ratio is ours over before, below 1 is faster: the median of pairs, with quartiles. PostgreSQL runs here
        without fsync."""),
        "",
        *timed_lines(timed, n),
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
) -> tuple[Floats, Floats, Floats]:
    """Return seconds, ours and before: of appends (m, 2), of reading n decisions (r, 2), of reading one (k, 2)."""
    stores = open_new(Store), open_new(JsonStore)
    for store in stores:
        decision_bytes(store, records, n, 1)
    read, one = read_seconds(stores, 7), one_seconds(stores, n)
    appended = append_seconds(stores, records, 1000)
    for store in stores:
        store.close()
    return appended, read, one


def one_seconds(stores: Sequence[Store], n: int) -> Floats:
    """Return the CPU seconds in which one decision is read by its id, (200, 2) of two stores in turn."""
    took = np.empty((200, 2))
    for i in range(200):
        for side in (0, 1) if i % 2 else (1, 0):
            started = time.process_time()
            stores[side].decision(_hex(f"1 {i * 37 % n}"))
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


def timed_lines(timed: dict[str, tuple[Floats, Floats, Floats]], n: int) -> list[str]:
    """Return the table of times and their ratios."""
    lines = ["| database | what | now | before | ratio |", "|---|---|--:|--:|--:|"]
    names = ("append, wall µs", f"read {n:,}, CPU µs each", "read one by its id, CPU µs")
    for database, found in timed.items():
        for name, took, each in zip(names, found, (1, n, 1), strict=True):
            now, before = (f"{1e6 * np.median(side) / each:,.0f}" for side in took.T)
            low, ratio, high = np.quantile(took[:, 0] / took[:, 1], [0.25, 0.5, 0.75])
            lines.append(f"| {database} | {name} | {now} | {before} | {ratio:.2f} [{low:.2f}, {high:.2f}] |")
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
