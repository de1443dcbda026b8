"""The decision service under load, each part on the real service over HTTP with four families in both arms.

    hundred_symbols   100 symbols at the default speed of the feed: what one process takes, and whether it keeps pace
    isolation         a quarter of the capacity, alone, during champion swaps, and during a retrain
    soak              an hour at half of the capacity: what grows

Every decision is new and durable before its answer leaves. The client runs on the same machine.
Run: python -m benchmarks.evidence hundred_symbols isolation soak
"""

import contextlib
import itertools
import multiprocessing
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks.arms import put_on_ledger
from benchmarks.fixture import FAMILY
from benchmarks.four_families import LIVE_DAYS, Served, four_families
from benchmarks.live_samples import folder_bytes
from benchmarks.open_loop import (
    CLOSE,
    DECIDE,
    DUE,
    LATE,
    Load,
    Outcomes,
    back_to_back,
    closes_in_turn,
    due_closes,
    paced,
    sampled,
)
from benchmarks.services import MB, service_processes, serving_symbols
from pipelines.bootstrap import step_back
from pipelines.contracts import Floats, JsonObject
from pipelines.data.timeframes import Grid
from pipelines.errors import ServiceDown
from pipelines.params import Params
from pipelines.settings import Settings
from pipelines.warm_start import hit_rate
from serving.client import Client
from serving.inference.generation import read_generation, write_generation
from serving.service.home_store import open_store

GB = 1e9
WORKER, PARENT, CLIENT = "decision, worker", "decision, parent", "client"
SYMBOLS, TEN_MINUTES_S = 100, 600.0
IN_TIME_S = 2.0  # from the moment a close is due, as the service level counts it
CAPACITY_S = 60.0
IN_TURN = 16  # symbols of `isolation`, one a request
CONDITIONS = ("swaps", "neither", "retrain")  # in this order again and again: "neither" is a neighbour of both
WINDOWS, WINDOW_S, SHARE = 5, 40.0, 0.25  # windows of each condition; share of the capacity
SWAP_EVERY_S = 1.0
SOAKED, BATCH, HOUR_S, SOAK_SHARE = 128, 16, 3600.0, 0.5  # symbols, of which so many are in a request
LOAD_DAYS = 120  # live market days: enough for an hour at half of 750 decisions a second
EVERY_S = 10.0  # between two samples
PARTS_OF_RUN = 10  # that the spread of a figure within one run is taken from
WARM = 3  # closes of every symbol that are sent before anything is measured: they load code
START_S, STOP_S = 300.0, 30.0  # patience with a process that swaps or fits


class Running(NamedTuple):
    """Hold a service under load: what it serves, where it runs, its two processes, and the load."""

    at: Served
    settings: Settings
    watched: dict[str, psutil.Process]
    load: Load
    client: Client


@contextmanager
def under_load(symbols: int, batch: int, live_days: int, tiny: bool) -> Iterator[Running]:
    """Run the decision service on so many symbols; give it with a load of `batch` symbols a request, warmed up."""
    at, names = four_families(tiny, live_days), tuple(f"S{i:03d}/USDT" for i in range(symbols))
    with (
        tempfile.TemporaryDirectory(prefix="bellwether-bench-") as scratch,
        serving_symbols(at, names, Path(scratch)) as settings,
        Client(settings) as client,
    ):
        found = service_processes(settings, ("decision",))
        closes = closes_in_turn(at.live, at.params, names, batch)
        load = Load(client, closes, Outcomes(at.live, at.params))
        for _ in range(WARM * -(-symbols // batch)):
            close = load.next_close()
            load.observe(close)
            load.decide(close)
        yield Running(at, settings, {name: found[name] for name in (WORKER, PARENT)}, load, client)


# ---- figures --------------------------------------------------------------------------------------------------------


def exact(value: float, n: int) -> JsonObject:
    """Return a figure that was counted, or measured once."""
    return {"value": float(value), "low": None, "high": None, "n": n}


def quartiles(values: Sequence[float] | Floats) -> JsonObject:
    """Return the median of (n,) figures with their quartiles."""
    low, median, high = (float(x) for x in np.quantile(values, [0.25, 0.5, 0.75]))
    return {"value": median, "low": low, "high": high, "n": len(values)}


def quantile_ms(times: Floats, column: int, q: float) -> JsonObject:
    """Return a quantile of a column of `paced`, in ms, with the least and the most of it in tenths of the run."""
    if not len(times):
        return {"value": None, "low": None, "high": None, "n": 0}
    tenths = [float(np.quantile(part[:, column], q)) * 1e3 for part in np.array_split(times, PARTS_OF_RUN) if len(part)]
    value = float(np.quantile(times[:, column], q)) * 1e3
    return {"value": value, "low": min(tenths), "high": max(tenths), "n": len(times)}


def cpu_share(samples: Sequence[JsonObject], name: str) -> JsonObject:
    """Return the CPU time of a process over all samples, % of a core, with the least and the most between two."""
    at, used = (np.array(found) for found in zip(*((one["at"], one[name]["cpu_s"]) for one in samples), strict=True))
    shares, share = 100.0 * np.diff(used) / np.diff(at), 100.0 * float((used[-1] - used[0]) / (at[-1] - at[0]))
    return {"value": share, "low": float(shares.min()), "high": float(shares.max()), "n": len(shares)}


def growth(samples: Sequence[JsonObject], seconds: float, of: Callable[[JsonObject], float]) -> JsonObject:
    """Return by how much `of` a sample grew, from the mean of the second twelfth of a run to that of its last.

    Of an hour: from minutes 5 to 10 to the last 5. low and high: the least and the most between any two of them.
    """
    passed = [one["at"] - samples[0]["at"] for one in samples]
    twelfth = seconds / 12.0
    first = [of(one) for one, at in zip(samples, passed, strict=True) if twelfth <= at < 2 * twelfth]
    last = [of(one) for one, at in zip(samples, passed, strict=True) if at >= seconds - twelfth]
    return {
        "value": float(np.mean(last) - np.mean(first)), "low": min(last) - max(first), "high": max(last) - min(first),
        "n": len(first) + len(last),
    }  # fmt: skip


def counts(load: Load) -> dict[str, JsonObject]:
    """Return what became of the closes of a load."""
    n = load.decided + load.failed
    return {
        "decisions made, in all": exact(load.decided, n),
        "closes of a symbol without a new decision": exact(load.failed, n),
        "outcomes reported": exact(load.outcomes, n),
        "requests sent again after a 503": exact(load.retries, n),
    }


def load_figures(found: list[JsonObject]) -> dict[str, JsonObject]:
    """Return the figures of a part, which its one case holds."""
    return {name: figure for case in found for name, figure in case["figures"].items()}


# ---- a hundred symbols ----------------------------------------------------------------------------------------------


def hundred_symbols(
    case: str, symbols: int = SYMBOLS, seconds: float = TEN_MINUTES_S, every_s: float = EVERY_S, tiny: bool = False
) -> JsonObject:
    """Serve so many symbols at the default speed of the feed: at each close one /observe and one /decide of all."""
    with under_load(symbols, symbols, LIVE_DAYS, tiny) as running:
        pace_s = Grid(running.at.params.data.decision_timeframe).step_s / running.at.params.feed.speed
        home_before = sum(folder_bytes(running.settings.home).values())
        watched = running.watched | {CLIENT: psutil.Process()}
        with sampled(watched, running.settings, every_s) as samples:
            times = paced(running.load, seconds, pace_s)
        grown = sum(folder_bytes(running.settings.home).values()) - home_before
        return {
            "symbols": symbols, "seconds": seconds, "pace_s": pace_s, "faults": running.load.faults,
            "figures": hundred_figures(times, samples, seconds, pace_s, grown) | counts(running.load),
        }  # fmt: skip


def hundred_figures(
    times: Floats, samples: Sequence[JsonObject], seconds: float, pace_s: float, grown: int
) -> dict[str, JsonObject]:
    """Return the figures of `hundred_symbols`.

    times  (n, 4) as of `paced`; grown  bytes by which the home grew. A close that was due and not sent is not in time
    """
    due, hours = due_closes(seconds, pace_s), (samples[-1]["at"] - samples[0]["at"]) / 3600.0
    written = sum(samples[-1][name]["written"] - samples[0][name]["written"] for name in (WORKER, PARENT))
    share = hit_rate(int(np.sum(times[:, CLOSE] <= IN_TIME_S)), due)
    return {
        "CPU of the decision worker, % of a core": cpu_share(samples, WORKER),
        "CPU of its parent, % of a core": cpu_share(samples, PARENT),
        "CPU of the client, % of a core": cpu_share(samples, CLIENT),
        "written to the disk by both, GB an hour": exact(written / GB / hours, 1),
        "growth of the home, GB an hour": exact(grown / GB / hours, 1),
        f"closes durable within {IN_TIME_S:g} s, %": {
            "value": share.value * 100.0, "low": share.low * 100.0, "high": share.high * 100.0, "n": share.n
        },
        "a close from when it is due until it is durable, p50, ms": quantile_ms(times, CLOSE, 0.5),
        "the same, p99, ms": quantile_ms(times, CLOSE, 0.99),
        "lateness of the last close that was sent, s": exact(times[-1, LATE] if len(times) else seconds, 1),
        "closes that were due and not sent": exact(due - len(times), due),
        "USS of the worker at the beginning, MB": exact(samples[0][WORKER]["uss"] / MB, 1),
        "USS of the worker at the end, MB": exact(samples[-1][WORKER]["uss"] / MB, 1),
    }  # fmt: skip


# ---- isolation ------------------------------------------------------------------------------------------------------


def isolation(
    case: str, symbols: int = IN_TURN, windows: int = WINDOWS, window_s: float = WINDOW_S,
    capacity_s: float = CAPACITY_S, live_days: int = LOAD_DAYS, tiny: bool = False,
) -> JsonObject:  # fmt: skip
    """Serve a quarter of the capacity in windows: during swaps, during neither, during a retrain, and again."""
    with under_load(symbols, 1, live_days, tiny) as running:
        load, capacity = running.load, back_to_back(running.load, capacity_s)
        every_s = 1.0 / (SHARE * capacity)
        found = [
            one_window(running, condition, i, window_s, every_s)
            for i, condition in itertools.product(range(windows), CONDITIONS)
        ]
        return {
            "symbols": symbols, "window_s": window_s, "windows": found, "faults": load.faults,
            "figures": isolation_figures(found, capacity) | counts(load),
        }  # fmt: skip


def one_window(running: Running, condition: str, i: int, window_s: float, every_s: float) -> JsonObject:
    """Send a close every `every_s` for a window of one condition; `i` is its number among those of the condition.

    Returns  `served`: generations that decisions of the window name, besides the one it began with
    """
    running.load.generations.clear()
    with disturbance(running, condition, i) as count:
        times = paced(running.load, window_s, every_s, every_s / 2)
    if condition == "swaps":  # the next window is without one
        running.client.wait_for_generation(generation_of(running.settings))
    return {
        "condition": condition, "closes": len(times), "due": due_closes(window_s, every_s),
        "p50_ms": float(np.quantile(times[:, DECIDE], 0.5)) * 1e3,
        "p99_ms": float(np.quantile(times[:, DECIDE], 0.99)) * 1e3,
        "done": 0 if count is None else count.value, "served": len(running.load.generations) - 1,
    }  # fmt: skip


def disturbance(running: Running, condition: str, i: int) -> AbstractContextManager["Synchronized[int] | None"]:
    """Return what runs next to a window of this condition; it counts swaps written, or fits ended."""
    if condition == "swaps":
        return alongside(swap_champions, running.settings, patience_s=STOP_S)
    if condition == "retrain":
        families = tuple(running.at.families)
        first = i % len(families)  # each window begins with the fit of another family
        turned = families[first:] + families[:first]
        return alongside(fit_again, running.at.workspace, running.at.params, turned, patience_s=0.0)
    return contextlib.nullcontext()


def isolation_figures(windows: Sequence[JsonObject], capacity: float) -> dict[str, JsonObject]:
    """Return the figures of windows in turn, as `isolation` stores them; capacity in closes of a symbol a second."""
    by = {name: [one for one in windows if one["condition"] == name] for name in CONDITIONS}
    figures = {
        "capacity, closes of one symbol a second": exact(capacity, 1),
        "pace, closes of one symbol a second": exact(SHARE * capacity, 1),
    }
    for name, label in (("neither", "neither"), ("swaps", "champion swaps"), ("retrain", "a retrain")):
        for q in ("p50", "p99"):
            figures[f"/decide, {label}, {q}, ms"] = quartiles([one[f"{q}_ms"] for one in by[name]])
    for name, label in (("swaps", "champion swaps"), ("retrain", "a retrain")):
        ratios = [one["p99_ms"] / base["p99_ms"] for one, base in zip(by[name], by["neither"], strict=True)]
        figures[f"p99 during {label} / during neither"] = quartiles(ratios)
    return figures | {
        "swaps written": exact(sum(one["done"] for one in by["swaps"]), len(by["swaps"])),
        "of them seen in the answers meanwhile": exact(sum(one["served"] for one in by["swaps"]), len(by["swaps"])),
        "fits ended": exact(sum(one["done"] for one in by["retrain"]), len(by["retrain"])),
        "closes that were due and not sent": exact(sum(one["due"] - one["closes"] for one in windows), len(windows)),
    }


@contextmanager
def alongside(work: Callable[..., None], *args: Any, patience_s: float) -> Iterator["Synchronized[int]"]:
    """Run `work` in a process of its own for as long as the block; give the number it counts up.

    work        is called with `args`, an event that it sets once it begins, one that is set at the end, and the number
    patience_s  until it is terminated at the end
    Raises      ServiceDown if it does not begin, or ends by itself
    """
    context = multiprocessing.get_context("spawn")
    begun, ended, count = context.Event(), context.Event(), context.Value("i", 0)
    process = context.Process(target=work, args=(*args, begun, ended, count))
    process.start()
    try:
        if not _begins(process, begun):
            ended_with = f"it ended with exit code {process.exitcode}, see its output"
            why = f"{START_S:.0f} s are over" if process.exitcode is None else ended_with
            raise ServiceDown(f"{work.__name__} did not begin: {why}")
        yield count
        if process.exitcode is not None:
            raise ServiceDown(f"{work.__name__} ended by itself with exit code {process.exitcode}, see its output")
    finally:
        ended.set()
        process.join(patience_s)
        if process.is_alive():
            process.terminate()
            process.join()


def _begins(process: Any, begun: Event) -> bool:
    """Return whether a process has begun its work within START_S."""
    for _ in range(int(START_S)):
        if begun.wait(1.0):
            return True
        if process.exitcode is not None:
            return False
    return False


def swap_champions(settings: Settings, begun: Event, ended: Event, count: "Synchronized[int]") -> None:
    """Exchange champion and challenger of the validator every SWAP_EVERY_S, on the ledger and in the generation."""
    begun.set()
    with contextlib.closing(open_store(settings)) as store:
        while not ended.wait(SWAP_EVERY_S):
            content = read_generation(settings.serving_dir)
            assert content is not None
            arms, now = content["families"][FAMILY], datetime.now(UTC)
            swapped = {FAMILY: {"champion": arms["challenger"], "challenger": arms["champion"]}}
            put_on_ledger(store, swapped, now)
            write_generation(settings.serving_dir, content["families"] | swapped, content["warm_starts"], now)
            count.value += 1


def generation_of(settings: Settings) -> int:
    """Return the generation that the service has to serve."""
    content = read_generation(settings.serving_dir)
    return 0 if content is None else int(content["generation"])


def fit_again(
    workspace: Path, params: Params, families: Sequence[str], begun: Event, ended: Event, count: "Synchronized[int]"
) -> None:
    """Fit the families one after another, again and again, as a retrain does: real stages, stepped back as every job.

    families  in this order; the process is ended in the middle of a fit
    """
    step_back(Settings().job_niceness)
    from pipelines.models import catalog  # noqa: F401 - what a retrain has loaded before it fits
    from pipelines.training import fit, stages  # noqa: F401

    with contextlib.chdir(workspace), contextlib.redirect_stdout(sys.stderr):
        begun.set()
        for family in itertools.cycle(families):
            if ended.is_set():
                return
            stages.fit_family(family, params)
            count.value += 1


# ---- soak -----------------------------------------------------------------------------------------------------------


def soak(
    case: str, symbols: int = SOAKED, batch: int = BATCH, seconds: float = HOUR_S, capacity_s: float = CAPACITY_S,
    live_days: int = LOAD_DAYS, every_s: float = EVERY_S, tiny: bool = False,
) -> JsonObject:  # fmt: skip
    """Serve half of the capacity for an hour, and sample processes and store meanwhile."""
    with under_load(symbols, batch, live_days, tiny) as running:
        capacity = back_to_back(running.load, capacity_s)
        pace_s = 1.0 / (SOAK_SHARE * capacity)
        with sampled(running.watched, running.settings, every_s) as samples:
            times = paced(running.load, seconds, pace_s, pace_s / 2)
        return {
            "symbols": symbols, "batch": batch, "seconds": seconds, "samples": samples, "faults": running.load.faults,
            "figures": soak_figures(times, samples, seconds, capacity, batch) | counts(running.load),
        }  # fmt: skip


def soak_figures(
    times: Floats, samples: Sequence[JsonObject], seconds: float, capacity: float, batch: int
) -> dict[str, JsonObject]:
    """Return the figures of `soak`: times (n, 4) as of `paced`; capacity in requests a second of `batch` symbols."""
    sixth, hours = seconds / 6.0, (samples[-1]["at"] - samples[0]["at"]) / 3600.0
    first, last = times[times[:, DUE] < sixth], times[times[:, DUE] >= seconds - sixth]
    due = due_closes(seconds, 1.0 / (SOAK_SHARE * capacity))
    figures = {
        "capacity, decisions a second": exact(capacity * batch, 1),
        "pace, decisions a second": exact(SOAK_SHARE * capacity * batch, 1),
    }
    for name, label in ((WORKER, "the worker"), (PARENT, "its parent")):
        figures |= {
            f"growth of the USS of {label}, MB": growth(samples, seconds, lambda one: one[name]["uss"] / MB),  # noqa: B023
            f"growth of the RSS of {label}, MB": growth(samples, seconds, lambda one: one[name]["rss"] / MB),  # noqa: B023
            f"growth of the descriptors of {label}": growth(samples, seconds, lambda one: one[name]["fds"]),  # noqa: B023
            f"growth of the threads of {label}": growth(samples, seconds, lambda one: one[name]["threads"]),  # noqa: B023
        }
    return figures | {
        "USS of the worker at the end, MB": exact(samples[-1][WORKER]["uss"] / MB, 1),
        "the WAL at its largest, MB": exact(max(one["wal"] for one in samples) / MB, len(samples)),
        "growth of the store, MB an hour": exact((samples[-1]["store"] - samples[0]["store"]) / MB / hours, 1),
        "/decide in the first sixth, p50, ms": quantile_ms(first, DECIDE, 0.5),
        "/decide in the first sixth, p99, ms": quantile_ms(first, DECIDE, 0.99),
        "/decide in the last sixth, p50, ms": quantile_ms(last, DECIDE, 0.5),
        "/decide in the last sixth, p99, ms": quantile_ms(last, DECIDE, 0.99),
        "requests that were due and not sent": exact(due - len(times), due),
    }
