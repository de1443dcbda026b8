"""Time one decision: `policy.decide`, the compiled kernel, and the same kernel as plain Python.

Run: python -m benchmarks decision_core. The plain side is this file again with numba switched off, on the same rows;
its answers must be equal to SAME, or the ratio would compare two different programs.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import base64
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np

from benchmarks.measured import Row, pairs, spread
from pipelines.contracts import Floats
from pipelines.errors import BellwetherError
from pipelines.settings import ROOT, load_params
from serving.policy import kernel as k
from serving.policy.decision_row import NOTHING_OPEN, ONES, DecisionInputs, ExposureSnapshot, decide, flatten, to_rows
from serving.policy.fusion import N_SCORES

SEED = 11
SHARED = 500  # rows that both sides answer
SAME = 1e-12  # relative: as near as compiled and plain arithmetic are on every CPU


def sample_rows(n: int) -> Floats:
    """Return n event rows (n, ROW_WIDTH), the most expensive kind: every check runs.

    Two of six categories are available, as without an order book.
    """
    rng = np.random.default_rng(SEED)
    side = rng.choice([-1.0, 1.0], n)
    direction = np.full((n, N_SCORES), np.nan)
    direction[:, 1:3] = side[:, None]
    p = rng.uniform(0.4, 0.8, n)
    return to_rows(
        direction, rng.uniform(0.5, 1.0, (n, N_SCORES)), regime=rng.integers(0, 4, n), trend=side, event=side, tier=1,
        age_bars=0, breakers=0, embargoed=0, **NOTHING_OPEN, es_unit=0.03, volatility=0.003, confluence=side, phase=3,
        unicorn=side * rng.integers(0, 22, n), atr=(atr := rng.uniform(0.002, 0.008, n)), price=100.0, cost_bps=5.0,
        stop_cost_bps=5.4, p=p, p_low=p - 0.05, miss_bps=-0.8 * atr * 1e4,
    )  # fmt: skip


def core_ns(rows: Floats) -> tuple[float, Floats]:
    """Return CPU nanoseconds a row, and the answers to the first SHARED rows.

    (SHARED, OUT_WIDTH + 1), the code last.
    """
    flat, outs, codes = (
        flatten(load_params()),
        np.empty((len(rows), k.OUT_WIDTH)),
        np.empty(len(rows), np.int64),
    )
    started = time.process_time()
    k.decide_rows(rows, flat, outs, codes)
    elapsed = time.process_time() - started
    return elapsed / len(rows) * 1e9, np.column_stack([outs[:SHARED], codes[:SHARED]])


def decide_us(n: int) -> Floats:
    """Return (n,) microseconds of single calls of `policy.decide`, emitted and refused alike."""
    params = load_params()
    flat, now = flatten(params), datetime(2024, 1, 1, tzinfo=UTC)
    took = np.empty(n)
    for i, row in enumerate(sample_rows(n)):
        inputs = DecisionInputs(
            row[: k.CONFIDENCES_AT], row[k.CONFIDENCES_AT : k.FACTORS_AT], ONES, ONES, "TRENDING", row[k.TREND],
            row[k.UNICORN], row[k.CONFLUENCE], row[k.PHASE], "fvg", row[k.EVENT], row[k.VOLATILITY], row[k.ATR],
            row[k.PRICE], row[k.COST_BPS], row[k.STOP_COST_BPS], row[k.P], row[k.P_LOW], row[k.MISS_BPS], None, 1, 0.0,
            (), ExposureSnapshot(**NOTHING_OPEN, es_unit=0.03),
        )  # fmt: skip
        started = time.perf_counter()
        decide(
            inputs, params, flat, id="b", symbol="SIM/USDT", as_of=now, known_at=now, ingested_at=now, arm="champion"
        )
        took[i] = (time.perf_counter() - started) * 1e6
    return took


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark.

    Raises BellwetherError if compiled and plain answers differ by more than SAME.
    """
    repeats, n = (3, 2000) if tiny else (25, 50_000)
    rows = sample_rows(n)
    rows[:SHARED] = sample_rows(SHARED)
    core_ns(rows)  # loads the machine code
    ours, plain = np.empty(repeats), np.empty(repeats)
    command = [sys.executable, "-m", "benchmarks.decision_core"]
    env = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    with subprocess.Popen(
        command, env=env, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for i in range(repeats):
            other.stdin.write("\n")
            other.stdin.flush()
            plain[i], theirs = _parse(other.stdout.readline())
            ours[i], mine = core_ns(rows)
            # NumPy's exp and log differ between CPUs by a unit in the last place, and plain Python uses NumPy's
            if theirs.shape != mine.shape or not np.allclose(theirs, mine, rtol=SAME, atol=0.0, equal_nan=True):
                raise BellwetherError("the plain core and the compiled one answered differently: not the same program")
        other.stdin.close()
    took = decide_us(300 if tiny else 20_000)
    return [
        pairs("decision core, one row", "ns", ours, "same core, plain Python", plain, "equal to 1e-12"),
        Row("policy.decide: row, core, answer in words", "us", spread(took, tail=True), note="single calls, wall time"),
    ]


def serve_plain_core() -> None:
    """Run in the other process: one measurement for each line of input."""
    rows = sample_rows(SHARED)
    for _ in sys.stdin:
        took_ns, answers = core_ns(rows)
        print(took_ns, base64.b64encode(answers.tobytes()).decode(), flush=True)


def _parse(line: str) -> tuple[float, Floats]:
    """Return nanoseconds and answers from a line of the other process; no rows if it has ended."""
    took_ns, _, answers = line.partition(" ")
    if not answers:
        return float("nan"), np.empty((0, 0))
    return float(took_ns), np.frombuffer(base64.b64decode(answers)).reshape(SHARED, -1)


if __name__ == "__main__":
    serve_plain_core()
