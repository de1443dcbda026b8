"""How fast the simulator makes 1-minute bars, against the same loop in plain Python, side by side in one run.

Run: python -m benchmarks.simulator
"""

from time import perf_counter

from pipelines.data import simulator
from pipelines.data.timeframes import resample
from pipelines.settings import load_params

SAMPLE_DAYS = 2  # plain Python needs seconds for these


def _seconds(days: int, repeats: int) -> float:
    """Best of `repeats` runs of a market of `days` days."""
    spec = load_params().simulator.model_copy(update={"history_days": days, "live_days": 0})
    best = float("inf")
    for _ in range(repeats):
        begin = perf_counter()
        simulator.simulate(spec)
        best = min(best, perf_counter() - begin)
    return best


def main() -> None:
    first = _seconds(SAMPLE_DAYS, 1)
    year = _seconds(365, 5)
    small = _seconds(SAMPLE_DAYS, 5)
    compiled = simulator._walk
    simulator._walk = compiled.py_func
    try:
        plain = _seconds(SAMPLE_DAYS, 1)
    finally:
        simulator._walk = compiled
    minutes = 365 * simulator.MINUTES_A_DAY
    print(f"compile or load from cache      {first - small:8.2f} s, once")
    print(f"one year of 1-minute bars       {year:8.2f} s   {minutes / year / 1e6:.2f} M bars/s")
    print(f"                                           {60 * minutes / year / 1e6:.0f} M bars/min")
    print(f"{SAMPLE_DAYS} days, compiled              {1e3 * small:8.2f} ms")
    print(f"{SAMPLE_DAYS} days, plain Python          {1e3 * plain:8.0f} ms  {plain / small:.0f} times slower")

    bars = simulator.simulate(load_params().simulator).bars
    resample(bars[:60], 60, 900)
    begin = perf_counter()
    resample(bars, 60, 900)
    print(f"{len(bars):,} minutes to 15m      {1e3 * (perf_counter() - begin):8.2f} ms")


if __name__ == "__main__":
    main()
