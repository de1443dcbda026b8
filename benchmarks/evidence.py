"""`python -m benchmarks.evidence [NAME ...]`: long runs that show what tests are too short to show.

Every case is stored when it is done, in `artifacts/evidence/<name>.json`; a second run continues where the first ended
and skips what is stored. Figures of another params.yaml or of other code are not mixed in: they are measured again.
`--case` names one case of many; `--write` makes the pages under `docs/results` from what is stored, and runs nothing.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.table import Table

from benchmarks import (
    ab,
    ab_end_to_end,
    ab_guardrails,
    earlier,
    faults,
    file_turns,
    graph_repro,
    hardship,
    ledger_size,
    live_experiments,
    live_half_hour,
    live_summary,
    serving_load,
    serving_page,
    standing_arms,
    tool_databases,
    universe_turns,
    upgrade,
    watch_evidence,
    workers,
)
from benchmarks.file_histories import HISTORIES
from benchmarks.fixture import recording
from benchmarks.gate_cases import (
    RECORDINGS,
    leak_cases,
    leaks,
    noise,
    planted,
    real,
    share,
    size_cases,
    size_figures,
    sizes,
    validator_figures,
)
from benchmarks.postgres import postgresql
from benchmarks.predictor_epochs import MARKETS, epochs_compared, gains
from pipelines.contracts import JsonObject
from pipelines.settings import ROOT, Settings

KILLS, SWAPS = 20, 50  # of a case: an interrupted run loses no more
BARS_AFTER = 200  # fed after the last kill of a case, so that damage would show
INPUTS = 10_000  # of a case
NOISE_SEEDS = 30  # with none promoted, at most 10 % are (rule of three); a case takes about half a minute
CRASH = ("kills", "acknowledged", "lost", "doubled", "lost_bars", "state", "not_replayed")


@dataclass(frozen=True)
class Part:
    """Describe one long run. `run(case)` runs a case in a process of its own; `sums` turns the results into figures."""

    description: str
    cases: tuple[str, ...]
    run: Callable[[str], JsonObject]
    sums: Callable[[list[JsonObject]], dict[str, JsonObject]]
    jobs: int | None = None  # cases at a time, where a case measures time or takes the whole machine
    code: tuple[str, ...] = ()  # folders besides pipelines/ that its figures depend on
    alone: bool = False  # a case reads what only this machine has

    @property
    def is_spread(self) -> bool:
        """Return whether other machines may compute its cases: a result depends on the case and the code alone."""
        return self.jobs is None and not self.code and not self.alone


class Compute(Protocol):
    """Run cases of a part, some at a time; `ended` receives each result, or the error, as soon as it is there."""

    def __call__(
        self, part: Part, cases: Sequence[str], jobs: int, ended: Callable[[str, JsonObject | str], None]
    ) -> None:
        """Run them all; one that fails does not stop the others."""
        ...


# ---- the runs -----------------------------------------------------------------------------------------------------


def killed(seed: str) -> JsonObject:
    """Kill the decision service KILLS times under load, store on SQLite."""
    return hardship.crashes(KILLS, store_url="", seed=int(seed), bars_after=BARS_AFTER)


def killed_on_postgresql(seed: str) -> JsonObject:
    """Kill the decision service KILLS times under load, store on PostgreSQL."""
    with postgresql() as url:
        return hardship.crashes(KILLS, store_url=url, seed=int(seed), bars_after=BARS_AFTER)


def swapped(seed: str) -> JsonObject:
    """Swap the champion SWAPS times under load."""
    return hardship.swaps(SWAPS)


def odd_inputs(seed: str) -> JsonObject:
    """Send INPUTS generated requests to both services; see benchmarks/inputs.py."""
    from benchmarks import inputs  # Schemathesis takes seconds to import

    return dict(inputs.run(int(seed), INPUTS))


def upgraded(revision: str) -> JsonObject:
    """Upgrade a home of the given revision under load; `previous` is the newest tag."""
    return upgrade.run_drill(None if revision == "previous" else revision)


def sum_of(*names: str) -> Callable[[list[JsonObject]], dict[str, JsonObject]]:
    """Return a function that sums the named counts over all cases: exact numbers, no interval."""

    def of(found: list[JsonObject]) -> dict[str, JsonObject]:
        """Return the sums of the cases found."""
        sums = {name: float(sum(f[name] for f in found)) for name in names}
        return {name: {"value": v, "low": v, "high": v, "n": len(found)} for name, v in sums.items()} if found else {}

    return of


def all_sums(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return the sum of every whole number that all cases have."""
    shared = set.intersection(*(set(case) for case in found)) if found else set()
    return sum_of(*sorted(n for n in shared - {"seed"} if all(type(case[n]) is int for case in found)))(found)


def fault_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Count the faults of the matrix that were detected and recovered from, and what they lost or doubled."""
    ran = [case for case in found if "not_run" not in case]
    counts = {
        "faults caused": len(ran),
        "detected": sum(case["detected_s"] is not None for case in ran),
        "healed by themselves": sum(case["heals"] == "by itself" for case in ran),
        "healed after a person": sum(case["heals"] == faults.REPAIRED for case in ran),
        "lost": sum(case["lost"] for case in ran),
        "doubled": sum(case["doubled"] for case in ran),
        "lost bars": sum(case["lost_bars"] for case in ran),
        "not run": len(found) - len(ran),
    }
    return {name: {"value": float(v), "low": float(v), "high": float(v), "n": len(found)} for name, v in counts.items()}


def upgrade_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return seconds and counts of the upgrade, without an interval."""
    names = ("silent_s", "recovery_s", "acknowledged", "lost", "doubled", "lost_bars")
    return {name: {"value": float(case[name]), "low": None, "high": None, "n": 1} for case in found for name in names}


def seeds(n: int) -> tuple[str, ...]:
    """Return the case names "0" to n - 1."""
    return tuple(str(seed) for seed in range(n))


RUNNING = ("serving", "flows")
PARTS = {
    "drift_false_alarms": Part("a month of a market without drift: alarms", seeds(40), watch_evidence.stationary,
                               watch_evidence.false_alarm_figures),
    "drift_detection": Part("drifted markets that raised a drift alarm", seeds(20), watch_evidence.drifted,
                            lambda found: share("alarm")(found) | share("before_drift")(found)
                            | watch_evidence.mean_figures("blocks_to_alarm")(found)),
    "drift_missing": Part("share of the columns whose loss was found in one block", seeds(10), watch_evidence.vanished,
                          watch_evidence.mean_figures("wholly", "three_in_ten")),
    "loss_vanished_edge": Part("an edge that vanished, and one that stayed", seeds(6), watch_evidence.vanished_edge,
                               lambda found: share("found")(found) | share("false_alarm")(found)
                               | watch_evidence.mean_figures(*watch_evidence.EDGE_FIGURES)(found)),
    "gate_sizes": Part("simulated evidence of known truth that the gate refused", size_cases(), sizes, size_figures),
    "gate_leaks": Part("perfect models that were suspected of a leak", leak_cases(), leaks, size_figures),
    "gate_on_noise": Part("candidates trained on noise that the gate promoted", seeds(NOISE_SEEDS), noise,
                          share("promoted")),
    "gate_on_planted_edge": Part("candidates trained on a planted edge that the gate promoted", seeds(10), planted,
                                 share("promoted")),
    "swaps": Part(f"cases of {SWAPS} champion swaps under load", seeds(4), swapped,
                  sum_of("swaps", "answers", "failed", "mb_at_tenth", "mb_at_last"), code=RUNNING),
    "crashes": Part(f"cases of {KILLS} times kill -9 under load, SQLite", seeds(5), killed, sum_of(*CRASH),
                    code=RUNNING),
    "crashes_on_postgresql": Part(f"cases of {KILLS} times kill -9 under load, PostgreSQL", seeds(5),
                                  killed_on_postgresql, sum_of(*CRASH), code=RUNNING),
    "faults": Part("the fault matrix", tuple(faults.FAULTS), faults.case, fault_figures, jobs=1, code=RUNNING),
    "odd_inputs": Part(f"cases of {INPUTS:,} generated requests", seeds(10), odd_inputs, all_sums, code=RUNNING),
    "upgrade": Part("the release before, upgraded under load", ("previous",), upgraded, upgrade_figures, jobs=1,
                    code=RUNNING),
    "file_turns": Part("a whole turn on files of five kinds", tuple(HISTORIES), file_turns.turn,
                       file_turns.turn_figures, jobs=1, code=RUNNING),
    "universe_turns": Part("a turn on one symbol, then one on the universe", universe_turns.CASES, universe_turns.turn,
                           universe_turns.turn_figures, jobs=1, code=RUNNING),
    "dvc_repro": Part("the committed dvc.lock reproduced in a fresh clone", graph_repro.CASES, graph_repro.reproduced,
                      sum_of("outputs", "same_digest", "figures", "same_figure"), jobs=1),
    "live_half_hour": Part("half an hour of the market at the default speed", ("half hour",), live_half_hour.half_hour,
                           live_summary.live_figures, jobs=1, code=RUNNING),
    "predictor_100_epochs": Part("log loss of the default predictor less that of the stated 100 epochs", tuple(MARKETS),
                                 epochs_compared, gains, alone=True),
    "ab_false_promotions": Part("experiments whose challenger gains nothing, promoted all the same", ab.null_cases(),
                                ab.false_promotions, ab.null_figures),
    "ab_years": Part("years of experiments whose challengers gain nothing", seeds(ab.YEAR_SEEDS), ab.years,
                     ab.year_figures),
    "ab_power": Part("experiments whose challenger has a known gain: blocks until it is promoted", ab.power_cases(),
                     ab.power, ab.power_figures),
    "ab_futility": Part("experiments stopped for futility", ab.futility_cases(), ab.futility, ab.futility_figures),
    "ab_guardrails": Part("challengers that a guardrail stopped, harmless and harmful ones; splits called broken",
                          ab_guardrails.guardrail_cases(), ab_guardrails.guardrails, ab_guardrails.guardrail_figures),
    "ab_end_to_end": Part("experiments on a real store, day by day", ab_end_to_end.end_to_end_cases(),
                          ab_end_to_end.end_to_end, ab_end_to_end.end_to_end_figures, code=RUNNING),
    "ab_live": Part("experiments on a live market, real services", tuple(live_experiments.CASES),
                    live_experiments.live_case, live_experiments.live_figures, jobs=1, code=RUNNING),
    "standing_arms": Part("the standing arms on the default market, real services", standing_arms.CASES,
                          standing_arms.standing_arms, standing_arms.arm_figures, jobs=1, code=RUNNING),
    "hundred_symbols": Part("a hundred symbols at the default speed, ten minutes", ("ten minutes",),
                            serving_load.hundred_symbols, serving_load.load_figures, jobs=1, code=RUNNING),
    "isolation": Part("a quarter of the capacity during swaps and a retrain", ("windows in turn",),
                      serving_load.isolation, serving_load.load_figures, jobs=1, code=RUNNING),
    "soak": Part("an hour at half of the capacity", ("an hour",), serving_load.soak, serving_load.load_figures,
                 jobs=1, code=RUNNING),
    "earlier": Part("a decision and a live bar against the release before batches, in turn", earlier.CASES,
                    earlier.in_turn, earlier.figures, jobs=1, code=RUNNING),
    "tool_databases": Part("Prefect and MLflow on SQLite and on PostgreSQL", tuple(tool_databases.PROFILES),
                           tool_databases.run, tool_databases.figures, jobs=1, code=RUNNING),
    "ledger_size": Part("the ledger at 10,000 to 1,000,000 decisions", ledger_size.CASES, ledger_size.ledger,
                        ledger_size.ledger_figures, jobs=1, code=(*RUNNING, "bellwether")),
    "workers": Part("Dask workers: a second one, and the units of a model of 1,000 symbols", workers.CASES, workers.run,
                    workers.figures, jobs=1, code=RUNNING),
    "validator_on_btc": Part("the validator on recorded BTC/USDT", tuple(RECORDINGS), real, validator_figures,
                             alone=True),
}  # fmt: skip


# ---- stored, resumed ----------------------------------------------------------------------------------------------


OTHERS = (
    "params.yaml",
    "flows/monitor.py",
    "flows/support/watches.py",
    "flows/evaluate.py",
    "benchmarks/ab.py",
    "benchmarks/ab_end_to_end.py",
    "benchmarks/ab_guardrails.py",
    "benchmarks/ab_streams.py",
    "benchmarks/fixture.py",
    "benchmarks/gate_cases.py",
    "benchmarks/evidence.py",
    "benchmarks/live_experiments.py",
    "benchmarks/predictor_epochs.py",
    "benchmarks/standing_arms.py",
    "benchmarks/watch_evidence.py",
)
HARD = (  # under benchmarks/
    *("hardship.py", "faults.py", "probes.py", "services.py", "upgrade.py", "inputs.py"),
    *("four_families.py", "open_loop.py", "serving_load.py", "tool_databases.py", "ledger_size.py", "postgres.py"),
    *("workers.py", "workers_timed.py", "earlier.py"),
)


@cache
def fingerprint(code: tuple[str, ...] = ()) -> str:
    """Return the sha256 of params.yaml and of all code that a figure could depend on; `code` names folders besides
    pipelines/.
    """
    files = [ROOT / name for name in OTHERS]
    if code:
        files += [ROOT / "Procfile", *(ROOT / "benchmarks" / name for name in HARD)]
    for folder in ("pipelines", *code):
        files += sorted((ROOT / folder).rglob("*.py"))
    digest = hashlib.sha256()
    for source in filter(Path.is_file, files):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def stored(path: Path, again: bool, code: tuple[str, ...] = ()) -> dict[str, JsonObject]:
    """Return the cases of an earlier run of the same code and params; none if they differ, or with `again`."""
    if again or not path.is_file():
        return {}
    content = json.loads(path.read_text())
    return dict(content["cases"]) if content["fingerprint"] == fingerprint(code) else {}


@cache
def machine() -> str:
    """Return CPU, cores and versions under which a figure is measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    names = ("bentoml", "mlflow", "prefect", "evidently", "sqlalchemy")
    installed = ", ".join(f"{name} {version(name)}" for name in names)
    return f"{cpu}, {os.cpu_count()} cores; {platform.system()}, Python {platform.python_version()}; {installed}"


def save(path: Path, part: Part, done: dict[str, JsonObject]) -> dict[str, JsonObject]:
    """Write what is known so far, by rename; return its figures."""
    figures = part.sums([{"case": case, **done[case]} for case in part.cases if case in done])
    content = {
        "description": part.description, "complete": len(done) == len(part.cases), "figures": figures,
        "fingerprint": fingerprint(part.code), "machine": machine(), "at": f"{datetime.now(UTC):%Y-%m-%d}",
        "cases": done,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)
    return figures


def failure(error: BaseException) -> str:
    """Return in words why a case has no result."""
    return f"{type(error).__name__}: {error}"


def in_processes(part: Part, cases: Sequence[str], jobs: int, ended: Callable[[str, JsonObject | str], None]) -> None:
    """Run cases in processes of this machine, as `Compute`."""
    with ProcessPoolExecutor(min(jobs, len(cases)), multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(part.run, case): case for case in cases}
        for done in as_completed(waiting):
            error = done.exception()
            ended(waiting[done], done.result() if error is None else failure(error))


def run(
    name: str,
    part: Part,
    folder: Path,
    again: bool,
    jobs: int,
    progress: Console,
    only: Collection[str] = (),
    compute: Compute = in_processes,
) -> dict[str, JsonObject]:
    """Run the missing cases, `jobs` at a time, and return the figures. A case that fails is repeated by the next run.

    With `only`, no other case is run, or forgotten by `again`.
    """
    path, wanted = folder / f"{name}.json", only or part.cases
    done = stored(path, again and not only, part.code)
    done = {case: figures for case, figures in done.items() if not (again and case in wanted)}
    todo = [case for case in part.cases if case not in done and case in wanted]
    todo = [case for case in todo if case not in RECORDINGS or recording(RECORDINGS[case]).is_file()]
    progress.print(f"{name}: {len(done)} of {len(part.cases)} cases stored, {len(todo)} to run")

    def ended(case: str, result: JsonObject | str) -> None:
        """Keep a result, or say why there is none."""
        if isinstance(result, str):
            progress.print(f"{name}: case {case} ended with {result}", markup=False)
            return
        done[case] = result
        save(path, part, done)
        progress.print(f"{name}: {len(done)} of {len(part.cases)}, case {case}")

    if todo:
        compute(part, todo, part.jobs or jobs, ended)
    return save(path, part, done) if done else {}


def main() -> None:
    """Parse the command line; run parts and print their figures, or write the pages with `--write`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(PARTS)}; all by default")
    parser.add_argument("--again", action="store_true", help="forget what is stored and measure again")
    parser.add_argument("--case", action="append", default=[], metavar="CASE", help="only this case; may be repeated")
    parser.add_argument("--write", action="store_true", help="write docs/results from what is stored; run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at a time")
    options = parser.parse_args()
    if unknown := set(options.names) - set(PARTS):
        parser.error(f"no evidence {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    known = {case for name in options.names or PARTS for case in PARTS[name].cases}
    if unknown := set(options.case) - known:
        parser.error(f"no case {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")
    folder, progress = Settings().home / "evidence", Console(stderr=True)
    if options.write:
        from benchmarks import ab_live_page, ab_page, gate_results, ledger_size_page, results, results_drift

        for name, parts, make in (
            ("faults", results.PARTS, results.faults_page),
            ("gate", gate_results.PARTS, gate_results.gate_page),
            ("drift", results_drift.PARTS, results_drift.drift_page),
            ("universe", ("universe_turns",), universe_turns.page_of),
            ("live", ("live_half_hour",), live_summary.page_of),
            ("ab", ab_page.PARTS, ab_page.ab_page),
            ("ab-live", ab_live_page.PARTS, ab_live_page.live_page),
            ("standing-arms", ("standing_arms",), standing_arms.page_of),
            ("serving", serving_page.PARTS, serving_page.page_of),
            ("soak", serving_page.SOAK, serving_page.soak_page),
            ("tool-databases", ("tool_databases",), tool_databases.page_of),
            ("ledger-size", ledger_size_page.PARTS, ledger_size_page.page_of),
            ("workers", ("workers",), workers.page_of),
        ):
            print(results.write_page(ROOT / "docs" / "results" / f"{name}.md", folder, parts, make))
        return
    show(
        {
            name: run(name, PARTS[name], folder, options.again, options.jobs, progress, options.case)
            for name in options.names or PARTS
        },
        folder,
    )


def show(found: Mapping[str, dict[str, JsonObject]], folder: Path) -> None:
    """Print the figures of parts as a table."""
    table = Table(title=f"evidence, in full under {folder}", title_justify="left")
    for heading in ("part", "figure", "value", "95 % interval", "n"):
        table.add_column(heading)
    for name, figures in found.items():
        if not figures:
            table.add_row(PARTS[name].description, "not run: its recordings are not there", "", "", "0")
        for figure, e in figures.items():
            cells = [f"{e[k]:.4g}" if e[k] is not None else "too few" for k in ("value", "low", "high")]
            table.add_row(PARTS[name].description, figure, cells[0], f"{cells[1]} to {cells[2]}", f"{e['n']:,}")
    Console(width=max(Console().width, 140)).print(table)


if __name__ == "__main__":
    main()
