"""Half an hour of `bellwether run` at the default speed: what a person would see who looks every ten seconds.

The market is the default universe with a drift planted DRIFT_AFTER_DAYS after the turn, so that it lies in the half
hour. Every sample is appended to a file as it is taken. A run that was interrupted goes on in the same home, and its
samples count, until they cover half an hour.
Run: python -m benchmarks.evidence live_half_hour
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.live_samples import take_sample
from benchmarks.live_summary import closes, summary
from benchmarks.scratch_home import environment
from flows.support import processes
from pipelines.contracts import JsonObject
from pipelines.data.simulator.market_path import drift_dates
from pipelines.errors import ServiceDown
from pipelines.settings import ROOT, Settings, load_params, settings
from serving.service.home_store import open_store

LIVE_S, EVERY_S, FOLDERS_EVERY_S = 1800.0, 10.0, 60.0
GAP_S = 120.0  # samples further apart do not cover what lies between
DRIFT_AFTER_DAYS, BLOCK_BARS = 4, 96
TURN_S = 3600.0  # patience until the feed moves
STOP_S = 180.0
KEPT = 4000  # characters of what a run that failed wrote last


def changes() -> dict[str, dict[str, Any]]:
    """Return what is changed of params.yaml."""
    live_days = load_params(ROOT / "params.yaml").simulator.live_days
    return {
        "drift": {"block_bars": BLOCK_BARS},
        "simulator": {"drift_after_live_days": live_days + DRIFT_AFTER_DAYS},
    }


def half_hour(case: str) -> JsonObject:
    """Run, or go on with, the half hour; return the summary of all samples. Raises ServiceDown if it does not run."""
    folder = Settings().home.resolve() / "evidence" / "live_half_hour"
    env = environment(folder, changes())
    os.environ.update({name: value for name, value in env.items() if name.startswith("BELLWETHER_")})
    settings.cache_clear()
    with (folder / "run.log").open("a") as log, running(env, log) as process:
        wait_until_live(process, folder)
        sample_until_covered(process, folder)
        return summarised(read_samples(folder))


def summarised(samples: list[JsonObject]) -> JsonObject:
    """Return the summary of all samples, with the decisions of the ledger between the first and the last."""
    params, known = load_params(settings().params_file), [one for one in samples if one.get("market_time")]
    since, until = (datetime.fromisoformat(known[at]["market_time"]) for at in (0, -1))
    store = open_store(settings())
    try:
        counted = closes(store, list(known[-1]["age_bars"]), params.data.decision_timeframe, since, until)
    finally:
        store.close()
    dates = drift_dates(params.simulator, until)
    return summary(samples, counted, dates, params.risk.max_data_age_bars, GAP_S)


@contextmanager
def running(env: dict[str, str], log: Any) -> Iterator[subprocess.Popen[str]]:
    """Run `bellwether run` for as long as the block, and everything that it started no longer."""
    command = [str(Path(sys.executable).with_name("bellwether")), "run"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        for left in processes.home_processes(settings()):
            left.kill()


def wait_until_live(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait until the feed of this run moves. Raises ServiceDown if the run ends before, or takes TURN_S."""
    from serving.state.feed_state import read_feed_state

    began = time.time()
    while True:
        state = read_feed_state(settings().serving_dir)
        if state is not None and state.fault is None and not state.stopped and state.at.timestamp() > began:
            return
        if process.poll() is not None or time.time() - began > TURN_S:
            raise ServiceDown(
                f"`bellwether run` brought no live bar within {time.time() - began:.0f} s. It wrote: "
                f"{(folder / 'run.log').read_text()[-KEPT:]}"
            )
        time.sleep(1.0)


def sample_until_covered(process: subprocess.Popen[str], folder: Path) -> None:
    """Append a sample every EVERY_S until all of them cover LIVE_S. Raises ServiceDown if the run ends before."""
    known, folders_at = read_samples(folder), 0.0
    covered = covered_s(known)
    with (folder / "samples.jsonl").open("a") as file:
        while covered < LIVE_S:
            began = time.time()
            with_folders = began - folders_at >= FOLDERS_EVERY_S
            one = take_sample(settings(), with_folders) | {"run": process.pid, "run_rss": _rss(process.pid)}
            folders_at = began if with_folders else folders_at
            file.write(json.dumps(one) + "\n")
            file.flush()
            known.append(one)
            covered = covered_s(known)
            if process.poll() is not None:
                raise ServiceDown(f"`bellwether run` ended: {(folder / 'run.log').read_text()[-KEPT:]}")
            time.sleep(max(0.0, EVERY_S - (time.time() - began)))


def read_samples(folder: Path) -> list[JsonObject]:
    """Return the samples taken so far, oldest first; a line that was cut short is left out."""
    file = folder / "samples.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def covered_s(samples: list[JsonObject]) -> float:
    """Return the seconds of wall time that samples cover, without the gaps between runs."""
    times = [one["at"] for one in samples]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return float(sum(gap for gap in gaps if gap <= GAP_S))


def _rss(pid: int) -> int:
    """Return the resident bytes of one process; 0 when it has ended."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
