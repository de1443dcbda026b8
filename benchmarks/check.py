"""Time `bellwether check` of a year of minutes against what reading that file and starting the command take.

Each side is a process of its own, in wall time: an operator waits for its start too. Run: python -m benchmarks check
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv

from benchmarks.measured import Row, pairs
from pipelines.bootstrap import THREADS
from pipelines.settings import ROOT

YEAR, FEW = 525_600, 2_000  # minutes
READS = 4  # of the file, which the check may take, besides one start of the command
COMMAND = (sys.executable, "-m", "bellwether.cli.main")


def write_minutes(file: Path, n: int, seed: int) -> None:
    """Write n minutes of a walk as an exchange's archive has them: epoch ms, prices to the cent, volume."""
    noise = np.random.default_rng(seed)
    close = 40_000.0 * np.exp(np.cumsum(noise.normal(0.0, 5e-4, n)))
    opened = np.concatenate([[40_000.0], close[:-1]])
    high = np.maximum(opened, close) * (1.0 + np.abs(noise.normal(0.0, 2e-4, n)))
    low = np.minimum(opened, close) * (1.0 - np.abs(noise.normal(0.0, 2e-4, n)))
    prices = {"open": opened, "high": high, "low": low, "close": close}
    columns = {"open_time": 1_704_067_200_000 + 60_000 * np.arange(n)}
    columns |= {name: values.round(2) for name, values in prices.items()}
    columns["volume"] = noise.lognormal(1.0, 1.0, n).round(5)
    pyarrow.csv.write_csv(pyarrow.table(columns), file)


def seconds(command: Sequence[str]) -> float:
    """Return how long a process takes from its start to its end, wall seconds. Raises CalledProcessError."""
    own = {name: value for name, value in os.environ.items() if name != THREADS}  # as in an operator's shell
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=own, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def measure(tiny: bool = False) -> list[Row]:
    """Return the row of this benchmark; the three commands run in turn, every other time in the reverse order."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "minutes.csv"
        write_minutes(file, FEW if tiny else YEAR, seed=1)
        commands = (
            (*COMMAND, "check", str(file), "--symbol", "EX/USD"),
            (sys.executable, "-c", f"import pyarrow.csv; pyarrow.csv.read_csv({str(file)!r})"),
            (*COMMAND, "--version"),
        )
        for command in commands:
            seconds(command)  # the first run finds nothing in the page cache
        took = np.empty((3 if tiny else 9, len(commands)))
        for i in range(len(took)):
            for side in range(len(commands))[:: 1 if i % 2 else -1]:
                took[i, side] = seconds(commands[side])
    checked, read, version = took.T
    note = f"wall; read_csv {np.median(read):.2f} s, --version {np.median(version):.2f} s"
    what = f"`bellwether check` of {FEW if tiny else YEAR:,} minutes"
    return [pairs(what, "s", checked, f"{READS} x read_csv + --version", READS * read + version, note)]
