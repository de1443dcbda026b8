"""How fast the simulator makes 1-minute bars, against the loop in plain Python. Run: python -m benchmarks simulator"""

import numpy as np

from benchmarks.measured import Row, cpu_seconds, in_turn, pairs, spread
from pipelines.data import simulator
from pipelines.settings import load_params


def _market(days: int) -> None:
    simulator.simulate(load_params().simulator.model_copy(update={"history_days": days, "live_days": 0}))


def _plain(days: int) -> None:
    compiled = simulator._walk
    simulator._walk = compiled.py_func
    try:
        _market(days)
    finally:
        simulator._walk = compiled


def measure(tiny: bool = False) -> list[Row]:
    repeats, days, year = (3, 1, 5) if tiny else (9, 2, 365)
    ours, plain = in_turn(lambda: _market(days), lambda: _plain(days), repeats)
    ms = 1e3 / days
    long = np.array([cpu_seconds(lambda: _market(year)) for _ in range(repeats)])
    return [
        pairs(
            "simulated day of 1m bars", "ms", ours * ms, "same loop, plain Python", plain * ms, f"{days} days at a time"
        ),
        Row("simulator", "million bars a minute", spread(year * 1440 / long * 60 / 1e6), note=f"{year} days at a time"),
    ]
