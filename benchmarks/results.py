"""Pages under docs/results, made from stored evidence: `python -m benchmarks.evidence --write`. Measures nothing.

Every such page is written by `write_page`; the page of faults is made here.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.faults import FAULTS
from benchmarks.probes import CALLS, READS
from pipelines.contracts import JsonObject

INTRODUCTION = """\
Made by `python -m benchmarks.evidence --write` from what a run stored; nothing here was typed in. Repeat it with
`python -m benchmarks.evidence {parts}`
(about an hour on two cores; an interrupted run goes on where it stopped), then write the page. Times are of this
machine and of one sample each: orders of magnitude."""
MATRIX = """\
Each fault is caused on real processes while a feeder sends bars and two clients request decisions; endpoints are polled
four times a second from outside. *Seen*: until the first sign of it, and which. *Calls; all as before*: after the fault
has ended (a kill has ended at once), until calls are answered, and until every endpoint answers as before. *Lost*,
*doubled*: decisions that were acknowledged and are not stored as answered, or stored twice; lost bars likewise."""
ENDPOINTS = """\
Answers in order, those from before the fault included: a status code, and of readiness the checks that are
red. `refused`: no connection. `silent`: no answer in 2 s. In brackets the slowest answer, from half a second on."""
UPGRADE = """\
The old release makes a home and serves from it, is stopped, and `bellwether up` of this one starts on that home. A
client sends bars and requests decisions all the time. In the second home the old release has another feature, so that
this one refuses its warm start and folds it again."""
PARTS = ("faults", "crashes", "crashes_on_postgresql", "swaps", "odd_inputs", "upgrade")


def write_page(
    page: Path, folder: Path, parts: Sequence[str], make: Callable[[dict[str, JsonObject], list[str]], str]
) -> str:
    """Write a page from the parts stored in `folder`; return what was written and what is missing, for the terminal.

    make  part → what is stored of it, names of the parts that are missing or not finished → text of the page

    A page of which no part is stored stays as it is: its figures were measured somewhere else.
    """
    found = {name: json.loads(file.read_text()) for name in parts if (file := folder / f"{name}.json").is_file()}
    if not found:
        return f"{page}: nothing stored, left as it is"
    incomplete = [name for name in parts if name not in found or not found[name]["complete"]]
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(make(found, incomplete))
    missing = f"; missing or incomplete: {', '.join(incomplete)}" if incomplete else ""
    return f"{page}: {', '.join(found)}{missing}"


def faults_page(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of the parts found; `incomplete` names those missing or not finished."""
    blocks = [
        "# Faults, kills, swaps, odd input and an upgrade",
        INTRODUCTION.format(parts=" ".join(PARTS)),
        *machines(found),
    ]
    if incomplete:
        blocks.append(f"**Not run, or not to its end: {', '.join(incomplete)}.**")
    if "faults" in found:
        blocks += matrix(found["faults"]["cases"])
    blocks += counts(found)
    if "upgrade" in found:
        blocks += upgrade(found["upgrade"]["cases"])
    return "\n\n".join(blocks) + "\n"


def machines(found: JsonObject) -> list[str]:
    """Return one line a machine, with the parts measured there and their days."""
    where: dict[str, list[str]] = {}
    for name, part in found.items():
        where.setdefault(part["machine"], []).append(f"{name} {part['at']}")
    return [f"- {machine}: {', '.join(parts)}" for machine, parts in where.items()]


def matrix(cases: dict[str, JsonObject]) -> list[str]:
    """Return two tables: detection, recovery and cost of each fault; and the answers of every endpoint meanwhile."""
    known = [(name, cases[name]) for name in FAULTS if name in cases]
    ran = [(name, case) for name, case in known if "not_run" not in case]
    rows = [
        [case["description"], _seen(case), _over(case), str(case["lost"]), str(case["doubled"]), str(case["lost_bars"]),
         case["person"] or "nothing", ", ".join(case["alarms"]) or "none"]
        for _, case in ran
    ]  # fmt: skip
    blocks = [
        "## The fault matrix",
        MATRIX,
        table(
            ["fault", "seen after", "calls; all as before", "lost", "doubled", "lost bars", "a person must", "alarms"],
            rows,
        ),
        "### Answers of each endpoint",
        ENDPOINTS,
    ]
    rows_by_endpoint = [
        [case["description"], *(_responses(case, name) for name in (*READS, *CALLS)), *_services_and_doctor(case)]
        for _, case in ran
    ]
    heads = ["fault", *(name for name in (*READS, *CALLS)), "services", "doctor"]
    blocks.append(table(heads, rows_by_endpoint))
    if extra := [
        f"- {case['description']}: {name} {' → '.join(words)}"
        for _, case in ran
        for name, words in case["responses"].items()
        if words and name not in (*READS, *CALLS, "services")
    ]:
        blocks.append("\n".join(extra))
    if wrong := [f"- {case['description']}: {fault}" for _, case in ran for fault in case["faults"]]:
        blocks.append("Answers that must not occur:\n\n" + "\n".join(wrong))
    if holes := [f"- {case['description']}: {case['not_run']}" for _, case in known if "not_run" in case]:
        blocks.append("Not run:\n\n" + "\n".join(holes))
    return blocks


def _seen(case: JsonObject) -> str:
    """Return the seconds until a fault was detected, and by what."""
    return "never" if case["detected_s"] is None else f"{case['detected_s']:.1f} s, {case['by']}"


def _over(case: JsonObject) -> str:
    """Return the seconds until calls were answered again, and until all was as before."""
    calls = "never" if case["answers_s"] is None else f"{case['answers_s']:.1f} s"
    if case["healed_s"] is None:
        return f"{calls}; not in time"
    return f"{calls}; {case['healed_s']:.1f} s{'' if case['heals'] == 'by itself' else ' after that'}"


def _responses(case: JsonObject, name: str) -> str:
    """Return the answers of an endpoint during a fault, and the slowest one from half a second on."""
    slowest = case["slowest_s"][name]
    slow = f" [{slowest:.1f} s]" if slowest >= 0.5 else ""
    return " → ".join(case["responses"].get(name) or ["–"]) + slow


def _services_and_doctor(case: JsonObject) -> tuple[str, str]:
    """Return the states of the services, and the findings of the doctor."""
    return " → ".join(case["responses"].get("services") or ["–"]), ", ".join(case["doctor"]) or "–"


def counts(found: JsonObject) -> list[str]:
    """Return the table of counts of kills, swaps and odd inputs."""
    titles = {
        "crashes": "`kill -9` at random moments under load, the worker or everything in turn; store on SQLite",
        "crashes_on_postgresql": "the same, store on PostgreSQL",
        "swaps": "champions swapped under load",
        "odd_inputs": "requests that Schemathesis made from the published description",
    }
    rows = [
        [titles[name], figure, f"{e['value']:,.0f}", f"{e['n']:,}"]
        for name in titles
        if name in found
        for figure, e in found[name]["figures"].items()
        if not figure.startswith("mb_")
    ]
    return ["## Counts", table(["what", "figure", "sum", "cases"], rows)] if rows else []


def upgrade(cases: dict[str, JsonObject]) -> list[str]:
    """Return the section of the upgrade."""
    rows = []
    for case in cases.values():
        for variant, found in (("as it is", case), ("with another feature", case["other_catalogue"])):
            rows.append([
                f"{found['from']}, {variant}", f"{found['recovery_s']:.0f} s", f"{found['silent_s']:.0f} s",
                f"{found['acknowledged']:,}", str(found["lost"]), str(found["doubled"]), str(found["lost_bars"]),
                found["warm_start"], f"{found['loose_before']} → {found['loose_after']}",
                f"{found['tiers_before']} → {found['tiers_after']}",
            ])  # fmt: skip
    heads = ["from", "`up` to first answer", "silence in all", "decisions", "lost", "doubled", "lost bars"]
    heads += ["warm start", "files others may read", "tiers"]
    return [
        "## Upgrade from the release before, under load",
        UPGRADE,
        table(heads, rows),
    ]


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
