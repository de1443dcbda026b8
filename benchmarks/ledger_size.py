"""Measure the ledger at sizes that a year of a hundred symbols reaches: write, read, back up, restore.

Run: python -m benchmarks.evidence ledger_size; its page is docs/results/ledger-size.md

Decisions are real ones of four families in both arms, repeated with ids, symbols and times of their own, and written by
the product's own functions, a hundred symbols a close; PostgreSQL with fsync on. Every case stands alone.
"""

import itertools
import multiprocessing
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Literal

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import make_url

from bellwether.operations import backup
from bellwether.operations.history import decisions_known
from bellwether.operations.lineage import trace
from benchmarks.four_families import Served, decisions, four_families, hex_of
from benchmarks.postgres import postgresql
from flows.support.installation import Installation
from pipelines.contracts import JsonObject, Outcome
from pipelines.settings import Settings
from pipelines.store import DecisionRecord, Promotion, Store
from serving.policy.decision_row import policy_of
from serving.service.home_store import open_store

CASES = (  # the largest last: it takes longest
    *("PostgreSQL 10,000", "PostgreSQL 100,000", "SQLite 10,000", "SQLite 100,000"),
    *("PostgreSQL 300,000", "PostgreSQL 1,000,000"),
)
SYMBOLS = 100  # decided on at each close: the decisions of one transaction
BLOCK = 100  # closes that are made ready, written and counted together
FIRST = datetime(2026, 1, 1, tzinfo=UTC)  # first close
BAR = timedelta(minutes=15)
RESOLVED = 20  # of so many decisions on an event one has an outcome
REPEATS = 300  # of a query
QUERY_S = 20.0  # no repeat begins after so long: a slow query is measured fewer times
CASE_S = 40 * 60.0  # a backup or a restore that is not done by then is ended, and the case says so
# as a server is installed, with memory for a small machine; fsync, full pages and synchronous commits are on
SETTINGS = "-c fsync=on -c full_page_writes=on -c synchronous_commit=on -c shared_buffers=256MB -c max_connections=50"
TABLES = ("decisions", "record_parts", "outcomes", "chain")


def ledger(case: str) -> JsonObject:
    """Measure one case: a database and the number of decisions in it."""
    database, n = case.split()
    return measure(database, int(n.replace(",", "")), four_families(), decisions(False))


def measure(database: str, n: int, served: Served, records: list[DecisionRecord], repeats: int = REPEATS) -> JsonObject:
    """Write n decisions made of `records` into a new database, query it, back it up and restore it; return figures."""
    ends = time.monotonic() + CASE_S
    with databases(database) as new_database, tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(served.home, Path(scratch) / "home")
        where = Settings(home=Path(scratch) / "home", store_url=new_database())
        installation = Installation(where, served.params, open_store(where))
        promote(installation, served)
        found: JsonObject = {"database": database, "n": n, "load_before": os.getloadavg()[0]}
        found |= {"written": fill(installation.store, records, n)}
        tidy(installation.store)
        found |= {"disk": disk_of(installation.store)}
        found |= {"queries": times_of(queries_of(installation, n), repeats)}
        installation.store.close()
        file = Path(scratch) / "backup.zip"
        found["backup"] = in_child(back_up, where.home, where.store, file, ends)
        if file.is_file():
            found["backup"]["bytes"] = file.stat().st_size
            found["restore"] = in_child(restore, Path(scratch) / "restored", new_database(), file, ends)
    return found | {"load_after": os.getloadavg()[0]}


@contextmanager
def databases(database: str) -> Iterator[Callable[[], str]]:
    """Yield a function that returns the URL of a new, empty database."""
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        if database == "SQLite":
            yield lambda: f"sqlite:///{scratch}/{next(numbers)}.db"
            return
        server = stack.enter_context(postgresql(SETTINGS))
        engine = sa.create_engine(server, isolation_level="AUTOCOMMIT")
        stack.callback(engine.dispose)

        def new_database() -> str:
            """Create a database of the server."""
            name = f"ledger{next(numbers)}"
            with engine.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            return make_url(server).set(database=name).render_as_string(hide_password=False)

        yield new_database


# ---- what is written ------------------------------------------------------------------------------------------------


def promote(installation: Installation, served: Served) -> None:
    """Store what lineage follows: parameters, a promotion line for each arm, and the pointer of its data version."""
    policy, at = policy_of(served.params), FIRST - timedelta(days=1)
    installation.store.add_parameters(policy.digest, policy.content, at)
    actions: dict[str, Literal["promote", "shadow"]] = {"challenger": "shadow", "champion": "promote"}
    for family, arms in served.families.items():
        for arm, action in actions.items():
            origin = arms[arm]
            installation.store.add_promotion(
                Promotion(at, "benchmark", action, family, arm, None, origin["version"], origin["digest"],
                          origin["run_id"], origin["data_hash"], origin["git_commit"], True, "benchmark")
            )  # fmt: skip
            pointer = installation.versions / origin["data_hash"] / "data.dvc"
            pointer.parent.mkdir(parents=True, exist_ok=True)
            pointer.touch()


def symbol_of(i: int) -> str:
    """Return the symbol of decision number i."""
    return f"SYM{i % SYMBOLS:02d}/USDT"


def close_of(i: int) -> datetime:
    """Return the close that decision number i is made at."""
    return FIRST + i // SYMBOLS * BAR


def id_of(i: int) -> str:
    """Return the id of decision number i, which begins with its close as the service's ids do."""
    return f"{int(close_of(i).timestamp()):08x}{hex_of(str(i), 24)}"


def decision_number(records: list[DecisionRecord], i: int) -> DecisionRecord:
    """Return a real decision as number i: with an id, symbol, warm start and times of its own."""
    record = records[i % len(records)]
    made, symbol, close = record.decision, symbol_of(i), close_of(i)
    moved = close - made.as_of
    decision = replace(
        made, id=id_of(i), symbol=symbol, as_of=close, known_at=close, ingested_at=made.ingested_at + moved,
        expiry=made.expiry and made.expiry + moved, lineage=made.lineage | {"warm_start": hex_of(symbol, 64)},
    )  # fmt: skip
    return replace(record, decision=decision)


def outcome_of(record: DecisionRecord) -> Outcome:
    """Return an outcome of a decision, four hours after its close."""
    made = record.decision
    return Outcome(made.id, made.as_of + 16 * BAR, 1, "target", 31.25, 17.375, 13.875)


def fill(store: Store, records: list[DecisionRecord], n: int) -> JsonObject:
    """Write n decisions, a close a transaction, and the outcomes of a share of those on an event; return what it took.

    Seconds are of the writing alone: decisions are made ready before. A block is followed by its outcomes.
    """
    blocks, size = [], BLOCK * SYMBOLS
    for first in range(0, n, size):
        block = [decision_number(records, i) for i in range(first, min(n, first + size))]
        closes = [block[i : i + SYMBOLS] for i in range(0, len(block), SYMBOLS)]
        began, cpu, log = time.perf_counter(), time.process_time(), log_bytes(store)
        for together in closes:
            store.add_decisions(together)
        took, cpu, logged = time.perf_counter() - began, time.process_time() - cpu, log_bytes(store) - log
        resolved = [outcome_of(r) for r in block if r.decision.event is not None][::RESOLVED]
        began, log = time.perf_counter(), log_bytes(store)
        for i in range(0, len(resolved), SYMBOLS):
            with store.writing() as connection:
                for outcome in resolved[i : i + SYMBOLS]:
                    store.add_outcome(outcome, outcome.resolved_at, connection)
        blocks.append((len(block), took, cpu, logged, len(resolved), time.perf_counter() - began,
                       log_bytes(store) - log))  # fmt: skip
    names = ("decisions", "seconds", "cpu_s", "log_bytes", "outcomes", "outcome_s", "outcome_log_bytes")
    sums = {name: float(sum(values)) for name, values in zip(names, zip(*blocks, strict=True), strict=True)}
    rates = [count / took for count, took, *_ in blocks]
    tenth = max(1, len(rates) // 10)
    return sums | {"first_tenth": float(np.median(rates[:tenth])), "last_tenth": float(np.median(rates[-tenth:]))}


def log_bytes(store: Store) -> int:
    """Return how far PostgreSQL has written its write-ahead log; 0 of SQLite, which counts none."""
    with store.writing() as connection:
        if connection.dialect.name != "postgresql":
            return 0
        return int(connection.exec_driver_sql("SELECT pg_current_wal_insert_lsn() - '0/0'").scalar() or 0)


def tidy(store: Store) -> None:
    """Vacuum and analyse PostgreSQL, as its autovacuum does within minutes."""
    with store.writing() as connection:
        url = connection.engine.url
    if url.get_backend_name() == "postgresql":
        engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("VACUUM (ANALYZE)")
        engine.dispose()


def disk_of(store: Store) -> dict[str, int]:
    """Return bytes by what they hold: a table without its indexes, and each index; of SQLite the file alone."""
    with store.writing() as connection:
        url = connection.engine.url
        if connection.dialect.name == "postgresql":
            names = "SELECT indexname FROM pg_indexes WHERE tablename = ANY(%(tables)s) ORDER BY 1"
            indexes = connection.exec_driver_sql(names, {"tables": list(TABLES)}).scalars().all()
            sizes = [*((name, "pg_table_size") for name in TABLES), *((name, "pg_relation_size") for name in indexes)]
            return {
                name: int(connection.exec_driver_sql(f"SELECT {size}('{name}')").scalar() or 0) for name, size in sizes
            }
    with sa.create_engine(url).connect() as opened:
        opened.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    return {"file": Path(str(url.database)).stat().st_size}


# ---- what is read ---------------------------------------------------------------------------------------------------


def queries_of(installation: Installation, n: int) -> dict[str, Callable[[], object]]:
    """Return name → one query of the product, of a decision, symbol or moment drawn at every call."""
    store, rng = installation.store, np.random.default_rng(7)

    def drawn() -> int:
        """Return the number of a decision."""
        return int(rng.integers(n))

    def of_day() -> object:
        """List a symbol's newest decisions of one day."""
        day = close_of(drawn())
        return decisions_known(store, symbol_of(drawn()), day - timedelta(days=1), day, 20, None)

    def traced() -> object:
        """Trace a decision, none of whose links may be broken."""
        chain = trace(installation, id_of(drawn()))
        assert not chain["broken"], chain["broken"]
        return chain

    return {
        "lineage of a decision": traced,
        "lineage of the newest": lambda: trace(installation, None),
        "listing, newest 20": lambda: decisions_known(store, None, None, None, 20, None),
        "listing, newest 20 of a symbol": lambda: decisions_known(store, symbol_of(drawn()), None, None, 20, None),
        "listing, a symbol's last 20 of a day": of_day,
        "listing, 20 before a moment": lambda: decisions_known(store, None, None, close_of(drawn()), 20, None),
        "listing as known at a moment": lambda: decisions_known(store, None, None, None, 20, close_of(drawn())),
        "listing of a symbol as known at a moment": lambda: decisions_known(
            store, symbol_of(drawn()), None, None, 20, close_of(drawn())
        ),
        "16 of the stream": lambda: store.decisions_after(drawn(), 16),
        "status line: both counts": store.count_decisions,
    }


def times_of(queries: dict[str, Callable[[], object]], repeats: int) -> dict[str, JsonObject]:
    """Return name → milliseconds of each query: repeats, median, 99th percentile, the slowest and the first."""
    found = {}
    for name, query in queries.items():
        took: list[float] = []
        ends = time.monotonic() + QUERY_S
        while len(took) < repeats and (not took or time.monotonic() < ends):
            began = time.perf_counter()
            query()
            took.append(1e3 * (time.perf_counter() - began))
        p50, p99 = np.quantile(took, [0.5, 0.99])
        found[name] = {"n": len(took), "p50": float(p50), "p99": float(p99), "most": max(took), "first": took[0]}
    return found


# ---- backup and restore, each in a process of its own, so that its memory is its own ---------------------------------


def back_up(home: Path, url: str, file: Path) -> int:
    """Make a backup as `bellwether backup` does; return the number of its decisions."""
    return backup.make(Settings(home=home, store_url=url), file, FIRST).rows()["decisions"]


def restore(home: Path, url: str, file: Path) -> int:
    """Restore a backup as `bellwether restore` does; return the number of its decisions."""
    made, _ = backup.restore_installation(Settings(home=home, store_url=url), file)
    return made.rows()["decisions"]


def in_child(run: Callable[[Path, str, Path], int], home: Path, url: str, file: Path, ends: float) -> JsonObject:
    """Run in a new process; return its decisions, seconds, CPU seconds and megabytes (before, and at most).

    ends  monotonic time at which it is ended: `not_done` then says so
    """
    spawned = multiprocessing.get_context("spawn")
    receiver, sender = spawned.Pipe(duplex=False)
    child = spawned.Process(target=_child, args=(sender, run, home, url, file))
    child.start()
    sender.close()
    try:
        if receiver.poll(max(1.0, ends - time.monotonic())):
            found: JsonObject = receiver.recv()
            return found
        return {"not_done": f"ended at the limit of a case, {CASE_S / 60:.0f} minutes"}
    finally:
        child.kill()
        child.join()


def _child(sender: Pipe, run: Callable[[Path, str, Path], int], home: Path, url: str, file: Path) -> None:
    """Run in this process and send what it took."""
    before, began = peak_mb(), time.perf_counter()
    count = run(home, url, file)
    seconds = time.perf_counter() - began
    sender.send({
        "decisions": count, "seconds": seconds, "cpu_s": time.process_time(), "mb_before": before, "mb_peak": peak_mb(),
    })  # fmt: skip


def peak_mb() -> float:
    """Return the most memory this process ever had resident, megabytes; Linux only, else NaN."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text() if status.is_file() else "")
    return int(found[1]) / 1024 if found else float("nan")


# ---- figures --------------------------------------------------------------------------------------------------------


def ledger_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return rate, bytes and the slowest p99 of each case."""
    table = {}
    for case in found:
        name, written, n = case["case"], case["written"], case["n"]
        table[f"{name}: decisions/s"] = written["decisions"] / written["seconds"], n
        for query in ("lineage of a decision", "listing, newest 20 of a symbol"):
            table[f"{name}: {query}, p99 ms"] = case["queries"][query]["p99"], case["queries"][query]["n"]
        for name_of in ("backup", "restore"):
            if "seconds" in case.get(name_of, {}):
                table[f"{name}: {name_of}, s"] = case[name_of]["seconds"], n
    return {name: {"value": value, "low": None, "high": None, "n": n} for name, (value, n) in table.items()}
