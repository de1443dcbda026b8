"""Time the simulator's 1-minute bars with their order book, without compiling.

Compared with the same events in plain Python, and with the path of values alone. Run: python -m benchmarks simulator
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.measured import Row, cpu_seconds, in_turn, pairs, spread
from pipelines.data.orderbook import hawkes, heatmap, limit_order_book, tape
from pipelines.data.simulator import book_design, book_market, book_patterns, latent, market, market_path
from pipelines.data.simulator.latent import DESIGN, MINUTES_A_DAY
from pipelines.settings import load_params

MODULES = (
    limit_order_book, book_design, book_patterns, hawkes, heatmap, tape, book_market, latent, market_path,
)  # fmt: skip


@contextmanager
def plain_python() -> Iterator[None]:
    """Replace every kernel of the simulated book by the Python it was compiled from."""
    compiled = [(m, name, f) for m in MODULES for name, f in vars(m).items() if hasattr(f, "py_func")]
    for module, name, function in compiled:
        setattr(module, name, function.py_func)
    try:
        with np.errstate(over="ignore"):  # 64-bit random numbers wrap around
            yield
    finally:
        for module, name, function in compiled:
            setattr(module, name, function)


def _path(days: int) -> market_path.MarketPath:
    """Return a market path of so many days."""
    spec = load_params().simulator.model_copy(
        update={"history_days": days, "live_days": 0, "drift_after_live_days": None}
    )
    return market_path.MarketPath(spec, DESIGN)


class _Minutes:
    """Trade the same `n` minutes, drawn once, at each call."""

    def __init__(self, n: int) -> None:
        """Draw the minutes and store the state before the first."""
        self.path = _path(1)
        self.drawn, self.out = self.path.latent(n), self.path.allocate(n)
        self.fresh, self.unread = self.path.market, self.path.tape
        self.log = np.empty((0, limit_order_book.LOG_WIDTH), np.int64)
        self.knobs = self.path.book_knobs

    def trade(self, plain: bool = False) -> None:
        """Trade the minutes, compiled or in plain Python."""
        path, market = self.path, self.fresh.copy()
        path.made, path.market, path.tape, path.book_knobs = 0, market, self.unread.copy(), self.knobs
        if not plain:
            path.trade(self.drawn, self.log, self.out)
            return
        path.market = market.view((np.record, market.dtype))
        path.tape = path.tape.view((np.record, path.tape.dtype))
        path.book_knobs = self.knobs.view((np.record, self.knobs.dtype))
        with plain_python():
            path.trade(self.drawn, self.log, self.out)


def _values(days: int) -> None:
    """Draw the values of so many days, without a book."""
    path = _path(days)
    while path.made < path.minutes:
        path.latent(size := min(market_path.BLOCK, path.minutes - path.made))
        path.made += size


def _market(days: int) -> None:
    """Simulate so many days with their book."""
    market.simulate(_path(days).spec)


def measure(tiny: bool = False) -> list[Row]:
    """Return the rows of this benchmark; `tiny` measures too little to be quoted."""
    repeats, minutes, days, year = (3, 10, 2, 5) if tiny else (9, 60, 30, 90)
    block = _Minutes(minutes)
    ours, plain = in_turn(block.trade, lambda: block.trade(plain=True), repeats)
    whole, values = in_turn(lambda: _market(days), lambda: _values(days), repeats)
    long = np.array([cpu_seconds(lambda: _market(year)) for _ in range(repeats)])
    us, each = 1e6 / minutes, 1e6 / (days * MINUTES_A_DAY)
    events = market.simulate(_path(days).spec).events
    per_minute = spread(year * MINUTES_A_DAY / long * 60 / 1e6)
    events_note = f"{np.median(events):,.0f} book events a bar, at least {events.min()}"
    return [
        pairs("simulated minute with its book", "us a bar", ours * us, "same events, plain Python", plain * us,
              f"the first {minutes} minutes"),
        pairs("simulated minute with its book", "us a bar", whole * each, "the path of values alone", values * each,
              events_note),
        Row("simulator, bars with book columns", "million bars a minute", per_minute, note=f"{year} days at a time"),
    ]  # fmt: skip
