"""The page of the ledger at size: tables of what was stored, an extrapolation, and the plan for partitions."""

import math
from collections.abc import Callable, Sequence
from textwrap import fill

from benchmarks.ledger_size import CASE_S, CASES, QUERY_S, REPEATS, RESOLVED, SETTINGS, SYMBOLS, TABLES
from benchmarks.results import machines, table
from benchmarks.serving_page import number
from pipelines.contracts import JsonObject

PARTS = ("ledger_size",)
GOAL_MS = 100.0  # p99 of a query
FAR = 10_000_000  # decisions: what is extrapolated to
FLAT = 1.2  # a cost that grows by less between the smallest and the largest size counts as constant
WHAT = f"""\
Real decisions of four model families in both arms, made as the service makes them on a simulated market, repeated with
ids, symbols and times of their own: {SYMBOLS} symbols, a close each 15 minutes, the decisions of a close in one
transaction by `add_decisions`, then the outcomes of one in {RESOLVED} of those on an event. Time, log and CPU are of
the writing alone, without making the decisions; CPU is that of the writing process, without the server's. PostgreSQL
runs with `{SETTINGS}` and its defaults otherwise; SQLite as the product opens it. Both are on the same disk as
everything else, and other work ran on the machine meanwhile: the load (processes that run or want to) before and after
each case is stated, there are two cores. Times are of one sample each, and at a load of several times the cores they
are several times those of a machine of one's own."""
READING = f"""\
Milliseconds of wall time, p50 / p99, of {REPEATS} calls each with a decision, symbol and moment drawn at every call, in
one process, after VACUUM and ANALYZE as autovacuum does them within minutes; a query that takes long is stopped after
{QUERY_S:.0f} s, and its n is in brackets. Lineage and listings are the functions of `bellwether lineage` and
`bellwether decisions` with the 20 decisions that it shows by default; lineage reads and verifies the bundles of all
models as well. A p99 above the goal of {GOAL_MS:.0f} ms is bold."""
SAVED = f"""\
`bellwether backup` and `restore` by their own functions, in a process of its own each. Memory is the most
that process had resident, less what it had before it began. A case has {CASE_S / 60:.0f} minutes; what is not done by
then is ended."""
MODEL = f"""\
From the sizes of PostgreSQL above to 10⁷ decisions, three years of a hundred symbols at a close each 15 minutes. The
model has three forms, chosen by how a cost grows between the smallest and the largest size: by less than a factor
{FLAT} it counts as constant; by no more than twice what the logarithm of n does, as log n; else as n, a straight line
through the two largest sizes. It assumes that what is read stays in the memory of the machine and that its load stays
as it was: neither is
known of 10⁷."""
MENDED = """\
## What was slow, and what became of it

By `EXPLAIN ANALYZE` and by turns of old and new code on the PostgreSQL of 100,000 decisions, 2026-12-02, one sample a
plan, at a load of about 13: before and after are of store revisions 0014 and 0015. The tables above are of 0015.

| what | why | before | after |
|---|---|---|---|
| status line of `bellwether run`, each second | one scan of the whole table for both counts | 177 ms, 17,635 pages | \
17 ms, 87 pages: all decisions from an index alone (still as n), emitted ones from a partial index |
| emitted decisions, at the start of a service | the same scan | 156 ms | .03 ms where nothing was emitted, as here |
| listing as known at a moment (`--as-of`) | the index of closes lacks the moment of storing: each later decision is \
read from the table to be left out | 244 ms, 90,400 rows left out | 2.9 ms, 369 pages: the moment is in the index \
(still as n, of 32 bytes instead of a row) |
| lineage | 12 round trips, 8 of them for the promotion ledger, once a model in each arm | \
p50 151 ms, p99 450 ms (n 60) | \
p50 76 ms, p99 202 ms: the ledger is read once; what is left are round trips under load and the bytes of 8 bundles |

The two indexes are revision 0015 of the store; together they take about 25 bytes a decision more, 1 % of it. A backup
reads rows through a cursor and a restore a thousand lines at a time: neither loaded the ledger, so nothing was changed
there."""
PAPER = """\
## Partitioning, on paper

Not built. The plan, should deletion or vacuum of the ledger become what limits it:

| what | plan |
|---|---|
| partitions | `decisions` by range of `as_of`, a month each, and one default partition that must stay empty; made \
three months ahead by the flow of retention, which alarms where one is missing |
| key | `(id, as_of)`: PostgreSQL wants the partition's column in every unique key. An id begins with its close \
(decision 0088), so `as_of` follows from the id, and a lookup by id states both and reads one partition. That would be \
the first code that reads a time out of an id |
| ids of before 0088 | hold no time: a lookup that finds none in the partition of the id searches all of them, one \
index probe each |
| sequence number | unique only within a partition: `(seq, as_of)`. The lock under which numbers are given stays what \
makes them unique; the newest number is the largest of the newest partition that has rows |
| references | `outcomes`, `fills` and `family_outcomes` refer to `decisions.id`: they get `as_of` and refer to the \
pair (family_outcomes has it), partitioned alike, else a partition cannot be dropped |
| record parts, chain | stay whole: parts are a few a generation, and a chain has one order |

| code | change |
|---|---|
| `pipelines/migrations` | a step for PostgreSQL alone: a new partitioned table, the old one attached as its first \
partition (a CHECK on `as_of` validated before spares the scan under lock), the keys built CONCURRENTLY before; SQLite \
has no partitions and keeps its tables, so the two schemas differ for the first time and the test that compares them \
needs two answers |
| `pipelines/store/decisions.py` | `decision`, `received_outcomes`, `add_outcome` and `add_fill` state the close; \
listings by `as_of` and by symbol stay: the planner reads the newest partition first and stops |
| `pipelines/store/retention.py` | not a DROP of a month: what retention deletes are quiet NO_TRADEs, and emitted \
decisions, those on events and those with outcomes stay for ever. A month is rewritten without them, attached, and the \
old one dropped, after the chain has noted the root of what stays |
| `pipelines/store/dump.py` | order by `(as_of, id)`; partitions are made before rows are loaded; digests of a table's \
lines change with the order, so the format of a backup becomes 2 |
| `pipelines/store/chain_lines.py` | a root is over what came in a span (`ingested_at`): one index a partition, so \
spans state a range of `as_of` as well, or all partitions are read |
| `--as-of` | what was stored by a moment is not bounded by `as_of`, where market time is faster than the clock: all \
partitions are read, as all of the index is now |

It costs one plan over all partitions for every query that states no close (twelve a year, planning grows with them), a
routing step an insert, a migration that rewrites three tables' keys, two schemas, and a backup format. It gains smaller
indexes to vacuum and the removal of a month without DELETE. It does not make inserts faster: ids ascend with time, so
that every index but that by symbol grows at its end already, partitioned or not."""


def page_of(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of what was stored; `incomplete` names the part if a case of it was not run."""
    part = found["ledger_size"]
    cases = [{"case": case, **part["cases"][case]} for case in CASES if case in part["cases"]]
    cases.sort(key=lambda case: (case["database"], case["n"]))
    blocks = [
        "# The ledger at size",
        "Made by `python -m benchmarks.evidence --write` from what `python -m benchmarks.evidence ledger_size` stored; "
        "only the plans under *What was slow* were read and typed by a person.",
        *machines(found),
        WHAT.replace("\n", " "),
    ]
    if incomplete:
        absent = ", ".join(case for case in CASES if case not in part["cases"])
        blocks.append(f"**Not run: {absent}.** `python -m benchmarks.evidence ledger_size` runs what is missing.")
    blocks += ["## Writing", writing(cases)]
    blocks += ["## On disk", "Bytes a decision, of PostgreSQL by table and index; of SQLite the file.", on_disk(cases)]
    blocks += ["## Reading", READING.replace("\n", " "), reading(cases), *slow(cases)]
    blocks += ["## Backup and restore", SAVED.replace("\n", " "), saved(cases)]
    blocks += ["## To ten million", MODEL.replace("\n", " "), extrapolated(cases)]
    text = "\n\n".join(b if b[0] in "#|-" else fill(b, 120, break_on_hyphens=False) for b in blocks)
    return f"{text}\n\n{MENDED}\n\n{PAPER}\n"


def writing(cases: Sequence[JsonObject]) -> str:
    """Return the table of rates, log and CPU."""
    rows = []
    for case in cases:
        w, n = case["written"], case["n"]
        rows.append([
            case["case"], f"{n / w['seconds']:,.0f}", f"{w['first_tenth']:,.0f}, {w['last_tenth']:,.0f}",
            f"{1e6 * w['cpu_s'] / n:,.0f}", f"{w['log_bytes'] / n:,.0f}" if w["log_bytes"] else "not counted",
            f"{w['outcomes']:,.0f}", number(1e3 * w["outcome_s"] / max(1.0, w["outcomes"])),
            f"{case['load_before']:.0f}, {case['load_after']:.0f}",
        ])  # fmt: skip
    heads = ["case", "decisions/s", "first, last tenth", "CPU µs a decision", "log bytes a decision", "outcomes",
             "ms an outcome", "load"]  # fmt: skip
    return table(heads, rows)


def on_disk(cases: Sequence[JsonObject]) -> str:
    """Return the table of bytes a decision by what holds them, and the whole in megabytes."""
    names = sorted({name for case in cases for name in case["disk"]}, key=lambda name: (name not in TABLES, name))
    rows = [
        [name, *(f"{case['disk'][name] / case['n']:,.1f}" if name in case["disk"] else "" for case in cases)]
        for name in names
    ]
    rows.append(["**all**", *(f"**{disk_bytes(case) / case['n']:,.0f}**" for case in cases)])
    rows.append(["MB", *(f"{disk_bytes(case) / 1e6:,.0f}" for case in cases)])
    return table(["what", *(case["case"] for case in cases)], rows)


def disk_bytes(case: JsonObject) -> float:
    """Return the bytes that a case has on disk."""
    return float(sum(case["disk"].values()))


def reading(cases: Sequence[JsonObject]) -> str:
    """Return the table of queries: p50 and p99 of each case."""
    names = list(dict.fromkeys(name for case in cases for name in case["queries"]))
    rows = [[name, *(_times(case["queries"].get(name)) for case in cases)] for name in names]
    return table(["query", *(case["case"] for case in cases)], rows)


def _times(query: JsonObject | None) -> str:
    """Return p50 and p99 of a query, with its n where it was stopped."""
    if query is None:
        return ""
    p99 = number(query["p99"]) if query["p99"] <= GOAL_MS else f"**{number(query['p99'])}**"
    return f"{number(query['p50'])} / {p99}" + (f" ({query['n']})" if query["n"] < REPEATS else "")


def slow(cases: Sequence[JsonObject]) -> list[str]:
    """Return which queries of the largest PostgreSQL miss the goal, in a sentence."""
    largest = [case for case in cases if case["database"] == "PostgreSQL"][-1:]
    return [
        f"Of {len(case['queries'])} queries at {case['n']:,} decisions "
        f"{sum(query['p99'] > GOAL_MS for query in case['queries'].values())} miss the goal at a load of "
        f"{case['load_after']:.0f}; by their median "
        f"{sum(query['p50'] > GOAL_MS for query in case['queries'].values())} do."
        for case in largest
    ]


def saved(cases: Sequence[JsonObject]) -> str:
    """Return the table of backups and restores."""
    rows = []
    for case in cases:
        back, again = case["backup"], case.get("restore", {})
        rows.append([
            case["case"], _seconds(back), f"{back['bytes'] / 1e6:,.0f}" if "bytes" in back else "",
            f"{back['bytes'] / case['n']:,.0f}" if "bytes" in back else "", _growth(back), _seconds(again),
            _growth(again),
        ])  # fmt: skip
    heads = ["case", "backup s", "MB", "bytes a decision", "memory MB", "restore s", "memory MB"]
    return table(heads, rows)


def _seconds(child: JsonObject) -> str:
    """Return the seconds of a backup or restore, or that it is not there."""
    return f"{child['seconds']:,.1f}" if "seconds" in child else child.get("not_done", "not run")


def _growth(child: JsonObject) -> str:
    """Return by how much memory grew, and the peak."""
    return f"+{child['mb_peak'] - child['mb_before']:,.0f} to {child['mb_peak']:,.0f}" if "mb_peak" in child else ""


# ---- extrapolation --------------------------------------------------------------------------------------------------

COSTS: dict[str, Callable[[JsonObject], float | None]] = {
    "writing, s": lambda case: float(case["written"]["seconds"]),
    "write-ahead log, MB": lambda case: float(case["written"]["log_bytes"]) / 1e6,
    "a decision written, CPU µs": lambda case: 1e6 * float(case["written"]["cpu_s"]) / float(case["n"]),
    "on disk, MB": lambda case: disk_bytes(case) / 1e6,
    "backup, s": lambda case: case["backup"].get("seconds"),
    "backup, MB": lambda case: case["backup"]["bytes"] / 1e6 if "bytes" in case["backup"] else None,
    "backup, MB of memory": lambda case: case["backup"].get("mb_peak"),
    "restore, s": lambda case: case.get("restore", {}).get("seconds"),
    "restore, MB of memory": lambda case: case.get("restore", {}).get("mb_peak"),
}


def extrapolated(cases: Sequence[JsonObject]) -> str:
    """Return the table of each cost of PostgreSQL by size, how it grows, and what it would be."""
    ours = [case for case in cases if case["database"] == "PostgreSQL"]
    names = list(dict.fromkeys(name for case in ours for name in case["queries"]))
    costs = COSTS | {f"{name}, p50 ms": _median(name) for name in names}
    rows = []
    for name, cost in costs.items():
        points = [(case["n"], value) for case in ours if (value := cost(case)) is not None]
        if len(points) < 2:
            continue
        grows, far = growth(points)
        known = dict(points)
        rows.append([
            name, *(number(known[case["n"]]) if case["n"] in known else "" for case in ours), grows,
            number(far),
        ])  # fmt: skip
    return table(["cost", *(f"{case['n']:,}" for case in ours), "grows as", f"{FAR:,}"], rows)


def _median(name: str) -> Callable[[JsonObject], float | None]:
    """Return a function that returns the median of a query of a case."""
    return lambda case: case["queries"].get(name, {}).get("p50")


def growth(points: Sequence[tuple[int, float]]) -> tuple[str, float]:
    """Return how a cost grows with n (constant, log n, n) and its value at FAR.

    points  (n, cost) at two sizes or more, ascending n
    """
    (least, first), (most, last) = points[0], points[-1]
    ratio = last / first
    if ratio <= FLAT:
        return "constant", last
    if ratio <= 2.0 * math.log(most) / math.log(least):
        return "log n", last * math.log(FAR) / math.log(most)
    before, value = points[-2]
    return "n", last + (last - value) / (most - before) * (FAR - most)
