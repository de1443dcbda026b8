"""What one decision costs: `policy.decide`, the compiled core, the same core as plain Python, a year of minutes.

Run: python -m benchmarks.decision_core [rows]. The plain run is this file again with numba switched off, on the same
rows; its answers must be equal bit for bit, or the ratio would compare two different programs.
"""

import hashlib
import os
import subprocess
import sys
import time
from datetime import UTC, datetime

import numpy as np

from pipelines.settings import load_params
from serving import core
from serving.fusion import N_VOICES
from serving.policy import DecisionInputs, Portfolio, decide, flatten, to_rows

SEED = 11
SHARED = 2000


def sample_rows(n: int) -> np.ndarray:
    """Event rows, the dearest kind: every check runs. Two of six categories available, as without an order book."""
    rng = np.random.default_rng(SEED)
    side = rng.choice([-1.0, 1.0], n)
    direction = np.full((n, N_VOICES), np.nan)
    direction[:, 1:3] = side[:, None]
    p = rng.uniform(0.4, 0.8, n)
    return to_rows(
        direction, rng.uniform(0.5, 1.0, (n, N_VOICES)), regime=rng.integers(0, 4, n), trend=side, event=side, tier=1,
        age_bars=0, breakers=0, gross=0, open_count=0, trades_today=0, daily_pnl=0, drawdown=0,
        atr=rng.uniform(0.002, 0.008, n), price=100.0, p=p, p_low=p - 0.05,
    )  # fmt: skip


def core_ns(n: int) -> tuple[float, str]:
    """Nanoseconds a row over n rows, and a digest of the answers to the SHARED rows both runs see."""
    rows, flat = sample_rows(n), flatten(load_params())
    outs, codes = np.empty((n, core.OUT_WIDTH)), np.empty(n, dtype=np.int64)
    core.core_batch(rows[:1], flat, outs[:1], codes[:1])
    started = time.perf_counter()
    core.core_batch(rows, flat, outs, codes)
    elapsed = time.perf_counter() - started
    core.core_batch(sample_rows(SHARED), flat, outs[:SHARED], codes[:SHARED])
    return elapsed / n * 1e9, hashlib.sha256(outs[:SHARED].tobytes() + codes[:SHARED].tobytes()).hexdigest()


def decide_us(n: int) -> np.ndarray:
    """(n,) microseconds of one `policy.decide`, emitted and refused alike."""
    params = load_params()
    flat, now = flatten(params), datetime(2024, 1, 1, tzinfo=UTC)
    took = np.empty(n)
    for i, row in enumerate(sample_rows(n)):
        inputs = DecisionInputs(
            row[:N_VOICES], row[N_VOICES : 2 * N_VOICES], "TRENDING", row[core.TREND], "fvg", row[core.EVENT],
            row[core.ATR], row[core.PRICE], row[core.P], row[core.P_LOW], None, 1, 0.0, 0, Portfolio(0, 0, 0, 0, 0),
        )  # fmt: skip
        started = time.perf_counter()
        decide(
            inputs, params, flat, id="b", symbol="SIM/USDT", as_of=now, known_at=now, ingested_at=now, arm="champion"
        )
        took[i] = (time.perf_counter() - started) * 1e6
    return took[n // 10 :]  # the first tenth warms caches


def main(n: int = 20_000) -> None:
    from pipelines.evaluation.backtest import Core, backtest

    took = decide_us(n)
    compiled, digest = core_ns(n)
    plain = subprocess.run(
        [sys.executable, "-m", "benchmarks.decision_core", "--plain"],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    minutes = 365 * 1440
    rows = sample_rows(minutes)
    decided = 60.0 * np.arange(1, minutes + 1)
    gross = np.where(np.arange(minutes) % 20 < 10, 60.0, -40.0)
    rows[np.arange(minutes) % 20 != 0, core.EVENT] = 0.0  # one bar in twenty has an event
    loop = Core(core.decide_row, flatten(load_params()), core.ROW_WIDTH, core.OUT_WIDTH, core.ACCOUNT, core.ACTION,
                core.SIZE)  # fmt: skip
    arrays = (rows, decided, decided, decided + 600.0, gross, 5.0, 100, SEED)
    backtest(loop, *(a[:100] if isinstance(a, np.ndarray) else a for a in arrays))
    started = time.perf_counter()
    result = backtest(loop, *arrays)
    year = time.perf_counter() - started
    print(f"policy.decide      p50 {np.median(took):.1f} us, p99 {np.quantile(took, 0.99):.1f} us, n={len(took)}")
    print(f"core, compiled     {compiled:.0f} ns a row, n={n}")
    print(f"core, plain Python {float(plain[0]):.0f} ns a row: {float(plain[0]) / compiled:.0f} times slower")
    print(f"equal bit for bit  {plain[1] == digest}")
    print(f"backtest           {year:.2f} s for {minutes} minutes and {len(result.trades)} trades, figures included")


if __name__ == "__main__":
    if "--plain" in sys.argv:
        print(*core_ns(SHARED))
    else:
        main(*(int(a) for a in sys.argv[1:]))
