"""How fast the simulator makes 1-minute bars with their order book, compile time apart: against the same events in
plain Python, and against the path of values alone. Run: python -m benchmarks simulator"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.measured import Row, cpu_seconds, in_turn, pairs, spread
from pipelines.data import orderbook, orderbook_design, orderbook_market, orderbook_patterns, simulator
from pipelines.data.latent import DESIGN, MINUTES_A_DAY
from pipelines.settings import load_params

MODULES = (orderbook, orderbook_design, orderbook_patterns, orderbook_market, simulator)


@contextmanager
def plain_python() -> Iterator[None]:
    """Every kernel of the simulated book is the Python it was compiled from."""
    compiled = [(m, name, f) for m in MODULES for name, f in vars(m).items() if hasattr(f, "py_func")]
    for module, name, function in compiled:
        setattr(module, name, function.py_func)
    try:
        with np.errstate(over="ignore"):  # 64-bit random numbers wrap around
            yield
    finally:
        for module, name, function in compiled:
            setattr(module, name, function)


def _path(days: int) -> simulator.MarketPath:
    spec = load_params().simulator.model_copy(
        update={"history_days": days, "live_days": 0, "drift_after_live_days": None}
    )
    return simulator.MarketPath(spec, DESIGN)


def _minutes(n: int) -> None:
    path = _path(1)
    path.trade(path.latent(n), np.empty((0, orderbook.LOG_WIDTH), np.int64), path.room(n))


def _plain(n: int) -> None:
    path = _path(1)
    drawn = path.latent(n)
    path.market = path.market.view((np.record, path.market.dtype))
    path.book_knobs = path.book_knobs.view((np.record, path.book_knobs.dtype))
    with plain_python():
        path.trade(drawn, np.empty((0, orderbook.LOG_WIDTH), np.int64), path.room(n))


def _values(days: int) -> None:
    path = _path(days)
    while path.made < path.minutes:
        path.latent(size := min(simulator.BLOCK, path.minutes - path.made))
        path.made += size


def _market(days: int) -> None:
    simulator.simulate(_path(days).spec)


def measure(tiny: bool = False) -> list[Row]:
    repeats, minutes, days, year = (3, 5, 2, 5) if tiny else (9, 30, 30, 365)
    ours, plain = in_turn(lambda: _minutes(minutes), lambda: _plain(minutes), repeats)
    whole, values = in_turn(lambda: _market(days), lambda: _values(days), repeats)
    long = np.array([cpu_seconds(lambda: _market(year)) for _ in range(repeats)])
    us, each = 1e6 / minutes, 1e6 / (days * MINUTES_A_DAY)
    events = simulator.simulate(_path(days).spec).events
    per_minute = spread(year * MINUTES_A_DAY / long * 60 / 1e6)
    told = f"{np.median(events):,.0f} book events a bar, at least {events.min()}"
    return [
        pairs("simulated minute with its book", "us a bar", ours * us, "same events, plain Python", plain * us,
              f"{minutes} minutes at a time, set-up included"),
        pairs("simulated minute with its book", "us a bar", whole * each, "the path of values alone", values * each,
              told),
        Row("simulator, bars with book columns", "million bars a minute", per_minute, note=f"{year} days at a time"),
    ]  # fmt: skip
