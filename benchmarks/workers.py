"""Dask workers: what a second one gains, and what a part costs: the units of a model of 1,000 symbols and five years.

Measured on one machine. Whether two processes can be twice as fast as one depends on it (shared caches, turbo, other
load): so the gain of a second worker stands next to that of two independent copies of the same task, in turn.
"""

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import numpy as np

from bellwether.operations import start_stop
from benchmarks.fixture import MINUTES, simulated, universe
from benchmarks.ports import free_ports
from benchmarks.results import machines, table
from benchmarks.serving_page import shown
from flows.support import backtest, processes
from pipelines.contracts import JsonObject
from pipelines.models.catalog import MODEL_FAMILIES, model_family
from pipelines.params import Params
from pipelines.settings import ROOT, Settings, load_params
from pipelines.stage_outputs import features_of, labels_of, read_meta
from pipelines.training import stages
from pipelines.training.fit import prepare
from pipelines.training.side_by_side import in_order
from pipelines.training.walk import FINAL, Walk, fit_part, jobs_of, plan_walk

SYMBOL = "SIM/USDT"
DAYS, ROUNDS = 365, 5
TINY_DAYS, TINY_ROUNDS = 60, 1
TARGET = 0.9  # least gain of a second worker, as a share of that of a second copy
CASES = ("speed-up", "folding", "backtest", *(f"fits {family}" for family in MODEL_FAMILIES))
COPY = "import sys; from pathlib import Path; from benchmarks import workers; workers.copy_of(Path(sys.argv[1]))"
# the model's assumptions, none of them measured
SYMBOLS, YEARS = 1000, 5
CORE_HOUR, GB_MONTH = 0.05, 0.023  # dollars: a core of a rented machine on demand, and object storage
ASSUMED = (
    "a market trades around the clock: 525,600 bars of a minute a year",
    "rows grow as symbol-years do, and one model a family reads all of them",
    "seconds of a fit grow by the exponent of two sizes of one market, at least linearly, far beyond the larger one",
    "cores are as this machine's, and each computes one part",
    f"a core-hour costs ${CORE_HOUR}, a GB-month of object storage ${GB_MONTH}, traffic in one place nothing",
    "a worker holds the rows of a family once: GB sent is the least memory it needs, so one model of all symbols takes "
    "larger machines, or a model reads fewer symbols",
    "what caps the rows of a fit in params.yaml stays as it is",
)


class OneWorker:
    """A client of Dask that sees and uses one worker alone."""

    def __init__(self, client: Any, address: str) -> None:
        """Take the client and the worker's address."""
        self._client, self._address = client, address

    def __getattr__(self, name: str) -> Any:
        """Return everything else as the client has it."""
        return getattr(self._client, name)

    def scheduler_info(self) -> JsonObject:
        """Return what the scheduler knows of that worker."""
        found = self._client.scheduler_info()
        return {**found, "workers": {self._address: found["workers"][self._address]}}

    def submit(self, *words: Any, **more: Any) -> Any:
        """Submit to that worker."""
        return self._client.submit(*words, workers=[self._address], **more)


def workspace(folder: Path, days: int) -> Params:
    """Write a simulated market of `days` and make features and labels of it; return the parameters."""
    params = load_params()
    universe(folder, {SYMBOL: (simulated(params, days), MINUTES)}, {})
    with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
        stages.build_features(params)
        stages.build_labels(params)
    return params


def walk_of(folder: Path, family: str, params: Params) -> Walk:
    """Return the walk of a family over the stage outputs in a workspace."""
    chosen = model_family(family)
    with contextlib.chdir(folder):
        data = prepare(family, chosen.dataset(stages.OUT, params), ()).data
        embargo_s = stages.embargo_seconds(params, *stages.decision_grids(read_meta(stages.OUT)))
    return plan_walk(chosen, data, params, embargo_s, _silent, None)


def _silent(_: str) -> None:
    """Discard a line of progress."""


def walks_of(folder: Path) -> list[Walk]:
    """Return the walks of all families: what a retrain of all of them computes."""
    return [walk_of(folder, family, load_params()) for family in MODEL_FAMILIES]


def copy_of(folder: Path) -> None:
    """Compute every part of every walk in this process, after some to warm up; print the seconds."""
    walks = walks_of(folder)
    for walk in walks:
        fit_part(Path(), walk, 1)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    for walk in walks:
        in_order(fit_part, jobs_of(walk), walk)
    print("seconds", time.perf_counter() - began, flush=True)


def copies(folder: Path, n: int) -> float:
    """Return the seconds until n independent copies of the task, begun together, have all ended."""
    words = [sys.executable, "-c", COPY, str(folder)]
    started = [
        subprocess.Popen(words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | ONE_THREAD)
        for _ in range(n)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return max(float(process.communicate()[0].split()[1]) for process in started)


ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@contextlib.contextmanager
def home() -> Iterator[Settings]:
    """Run Prefect, the Dask scheduler and two workers of a new home."""
    root = Path(tempfile.mkdtemp(prefix="bellwether-workers-"))
    names = ("prefect_port", "dask_port", "dask_worker_1_port", "dask_worker_2_port")
    urls = {f"{name}_url": f"sqlite:///{root}/{name}.db" for name in ("store", "mlflow_store", "prefect_store")}
    urls |= {"remote_url": str(root / "dvc"), "mlflow_artifacts_url": str(root / "mlflow")}
    own = dict(zip(names, free_ports(len(names)), strict=True))
    settings = Settings.model_validate({"home": root / "home", "profile": "cluster", "job_niceness": 0, **urls, **own})
    before = dict(os.environ)
    os.environ.update({f"BELLWETHER_{name.upper()}": value for name, value in urls.items()})
    try:
        start_stop.up(settings, ["prefect", "dask-scheduler", "dask-worker-1", "dask-worker-2"])
        yield settings
    finally:
        start_stop.down(settings)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(root, ignore_errors=True)


def speed_up(tiny: bool) -> JsonObject:
    """Measure one copy, two copies, one worker and two workers in turn, ROUNDS times; seconds, and the load of each."""
    with tempfile.TemporaryDirectory(prefix="bellwether-workers-") as scratch, home() as settings:
        folder = Path(scratch) / "workspace"
        workspace(folder, TINY_DAYS if tiny else DAYS)
        env = os.environ | processes.environment(settings) | ONE_THREAD | {"PREFECT_LOGGING_LEVEL": "WARNING"}
        mapped = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.workers_timed", str(folder)],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

        def on_workers(n: int) -> float:
            """Return the seconds of the task on n workers."""
            assert mapped.stdin is not None
            assert mapped.stdout is not None
            mapped.stdin.write(f"{n}\n")
            mapped.stdin.flush()
            return next(float(line.split()[1]) for line in mapped.stdout if line.startswith("seconds"))

        found: JsonObject = {"copies_1": [], "copies_2": [], "workers_1": [], "workers_2": [], "load": []}
        acts: tuple[tuple[str, Callable[[], float]], ...] = (
            ("copies_1", lambda: copies(folder, 1)), ("workers_1", lambda: on_workers(1)),
            ("copies_2", lambda: copies(folder, 2)), ("workers_2", lambda: on_workers(2)),
        )  # fmt: skip
        for _ in range(TINY_ROUNDS if tiny else ROUNDS):
            found["load"].append(os.getloadavg()[0])
            for name, act in acts:
                found[name].append(act())
        mapped.communicate()
        return found | {"parts": sum(len(jobs_of(walk)) for walk in walks_of(folder))}


def folding(tiny: bool) -> JsonObject:
    """Measure features and labels of one market: seconds, bars, and the bytes of its data and of what is made of it."""
    days = TINY_DAYS if tiny else DAYS
    with tempfile.TemporaryDirectory(prefix="bellwether-workers-") as scratch:
        folder = Path(scratch) / "workspace"
        params = workspace(folder, days)  # also compiles
        with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
            took = {}
            for name, act in (("features", stages.build_features), ("labels", stages.build_labels)):
                began = time.perf_counter()
                act(params)
                took[name] = time.perf_counter() - began
        folders = {"data": folder / "data", "features": features_of(folder / "artifacts", SYMBOL),
                   "labels": labels_of(folder / "artifacts", SYMBOL)}  # fmt: skip
        return {"days": days, "bars": days * 1440, "seconds": took,
                "bytes": {name: bytes_in(path) for name, path in folders.items()}}  # fmt: skip


def backtests(tiny: bool) -> JsonObject:
    """Measure the backtest of the validator on one market: seconds of each after the first, which loads code."""
    days, took = TINY_DAYS if tiny else DAYS, []
    with tempfile.TemporaryDirectory(prefix="bellwether-workers-") as scratch:
        folder = Path(scratch) / "workspace"
        params = workspace(folder, days)
        shutil.copyfile(ROOT / "params.yaml", folder / "params.yaml")
        with contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
            stages.main(["train", "validator"])
        for _ in range(TINY_ROUNDS + 1 if tiny else ROUNDS + 1):
            began = time.perf_counter()
            backtest.of_markets(folder / "artifacts", "validator", {}, params)
            took.append(time.perf_counter() - began)
    return {"days": days, "seconds": took[1:]}


def bytes_in(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fits(family: str, tiny: bool) -> JsonObject:
    """Measure the final fit of a family on all rows of a market and on a quarter of them: rows, seconds, bytes sent."""
    from pipelines.training.elsewhere import pack_work

    with tempfile.TemporaryDirectory(prefix="bellwether-workers-") as scratch:
        folder = Path(scratch) / "workspace"
        params = workspace(folder, TINY_DAYS if tiny else DAYS)
        whole, sizes = walk_of(folder, family, params), []
        for share in (0.25, 1.0):
            rows = np.arange(int(len(whole.data) * share))
            walk, took = replace(whole, data=whole.data.select_rows(rows)), []
            if not sizes:  # imports, and kernels that are compiled
                fit_part(Path(), walk, FINAL)
            for _ in range(1 if tiny else 3):
                began = time.perf_counter()
                fit_part(Path(), walk, FINAL)
                took.append(time.perf_counter() - began)
            sizes.append({"rows": len(rows), "seconds": median(took), "sent": len(pack_work(fit_part, walk)[1])})
        return {"family": family, "folds": len(whole.splits), "sizes": sizes, "days": TINY_DAYS if tiny else DAYS}


def run(case: str, tiny: bool = False) -> JsonObject:
    """Measure one case."""
    if case == "speed-up":
        return speed_up(tiny)
    if case == "backtest":
        return backtests(tiny)
    return folding(tiny) if case == "folding" else fits(case.partition(" ")[2], tiny)


def exponent(sizes: Sequence[JsonObject]) -> float:
    """Return how the seconds of a fit grow with its rows: seconds ∝ rows ** exponent, from the two sizes measured."""
    small, large = sizes
    return math.log(large["seconds"] / small["seconds"]) / math.log(large["rows"] / small["rows"])


def figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return the figures of the cases found: units, speed-up with the least and the most of its rounds, the model."""
    by_case = {one["case"]: one for one in found}
    made: dict[str, JsonObject] = {}

    def add(name: str, values: Sequence[float]) -> None:
        """Add the median of values, with the least and the most in place of bounds."""
        bounds = (min(values), max(values)) if len(values) > 1 else (None, None)
        made[name] = {"value": median(values), "low": bounds[0], "high": bounds[1], "n": len(values)}

    if one := by_case.get("speed-up"):
        dask = [a / b for a, b in zip(one["workers_1"], one["workers_2"], strict=True)]
        apart = [2 * a / b for a, b in zip(one["copies_1"], one["copies_2"], strict=True)]
        add("two workers, times as fast as one", dask)
        add("two independent copies, times the work of one in its time", apart)
        add(f"share of what two copies reach (target {TARGET})", [a / b for a, b in zip(dask, apart, strict=True)])
        add("one worker, times the seconds of one process without Dask",
            [a / b for a, b in zip(one["workers_1"], one["copies_1"], strict=True)])  # fmt: skip
        add("load of the machine before a round", one["load"])
    if one := by_case.get("folding"):
        for name, seconds in one["seconds"].items():
            add(f"{name}, µs a 1-minute bar", [1e6 * seconds / one["bars"]])
        for name, size in one["bytes"].items():
            add(f"{name}, GB a symbol-year", [size / 1e9 * 365 / one["days"]])
    if one := by_case.get("backtest"):
        add("backtest, s a symbol-year", [seconds * 365 / one["days"] for seconds in one["seconds"]])
    for name in MODEL_FAMILIES:
        if one := by_case.get(f"fits {name}"):
            large = one["sizes"][1]
            add(
                f"{name}, s a fit of 100,000 rows", [large["seconds"] * (1e5 / large["rows"]) ** exponent(one["sizes"])]
            )
            add(f"{name}, exponent of its rows", [exponent(one["sizes"])])
            add(f"{name}, rows a symbol-year", [large["rows"] * 365 / one["days"]])
    if set(by_case) == set(CASES):
        for name, value in model(by_case).items():
            add(name, [value])
    return made


def model(by_case: dict[str, JsonObject]) -> dict[str, float]:
    """Return what one retrain of SYMBOLS × YEARS takes by the units measured; the page names every assumption."""
    years, fold = SYMBOLS * YEARS, by_case["folding"]
    bars = years * 365 * 1440
    found = {"folding, core-hours": sum(fold["seconds"].values()) / fold["bars"] * bars / 3600}
    found["backtests, core-hours"] = median(by_case["backtest"]["seconds"]) * 365 / by_case["backtest"]["days"]
    found["backtests, core-hours"] *= years / 3600
    for name in MODEL_FAMILIES:
        one = by_case[f"fits {name}"]
        large, grows = one["sizes"][1], max(1.0, exponent(one["sizes"]))
        rows = large["rows"] * 365 / one["days"] * years
        start = load_params().splits.min_train_fraction
        shares = [start + (1 - start) * k / one["folds"] for k in range(one["folds"])] + [1.0]
        seconds = sum(large["seconds"] * (rows * share / large["rows"]) ** grows for share in shares)
        found[f"{name}, core-hours"] = seconds / 3600
        found[f"{name}, GB sent to each worker"] = large["sent"] / large["rows"] * rows / 1e9
    size = {name: value / 1e9 * 365 / fold["days"] * years for name, value in fold["bytes"].items()}
    hours = sum(value for name, value in found.items() if name.endswith("core-hours"))
    return {
        **found,
        "a retrain, core-hours": hours,
        "a retrain, dollars": hours * CORE_HOUR,
        "one data version in S3, GB": size["data"],
        "one data version in S3, dollars a month": size["data"] * GB_MONTH,
        "features and labels on the coordinator's disk, GB": size["features"] + size["labels"],
    }


def page_of(found: JsonObject, incomplete: Sequence[str]) -> str:
    """Return the page of what was stored."""
    made = found["workers"]["figures"]
    rows = [[name, shown(figure), str(figure["n"])] for name, figure in made.items()]
    blocks = [
        "# Dask workers: a second one, and a thousand symbols",
        "Made by `python -m benchmarks.evidence --write` from what `python -m benchmarks.evidence workers` stored; "
        "nothing here was typed in.",
        *machines(found),
        "The task is every fold and the final fit of all four families on a simulated year, as a retrain of all of "
        "them has it, its parts as large as they come. One copy, one worker, two copies and two workers take turns; a "
        "figure is the median of the rounds, in brackets the least and the most. Two workers share what two copies "
        "share: caches, turbo, and what else runs.",
        table(["figure", "value", "n"], rows),
        "## The model and its assumptions",
        f"Core-hours, GB and dollars are of {SYMBOLS:,} symbols × {YEARS} years, from the units above and these "
        "assumptions, none of which is measured:",
        "\n".join(f"- {line}" for line in ASSUMED),
    ]
    if incomplete:
        blocks.insert(3, f"**Not run, or not to its end: {', '.join(incomplete)}.**")
    return "\n\n".join(block if block[0] in "#|-" else fill(block, 120) for block in blocks) + "\n"


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], tiny="--tiny" in sys.argv), indent=1))
