"""Test the forecast behind the tail budgets as the service makes it, on recorded markets, for `benchmarks.tail_risk`.

A forecast is made at every horizon that starts where the one before ended: horizons that overlap share their losses,
and tests that count them as independent refuse right forecasts (docs/results/power.md). Scenarios are those of a warm
start, made again with every planned retrain; the volatility is that of the newest close.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.contracts import CLOSE, DAY_S, OPEN_TIME, Floats
from pipelines.data.timeframes import Grid, resample
from pipelines.evaluation.coverage import Coverage, coverage
from pipelines.params import Params, TailParams
from pipelines.tails import ewma_volatility, tail_losses
from serving.risk.exposure import ES_LEVEL, AssetCloses, scenarios_of

FIRST = 4096  # closes before the first forecast: a quarter of what a warm start keeps
# Forecasts a case needs. With as many, Kupiec's test or Acerbi and Székely's finds a VaR and ES of four fifths in 80 %
# of cases, after Holm's correction for a dozen tests (benchmarks/power_tail.py). Set before any figure was read.
LEAST = 1200
LEAST_MARKETS = 2  # with so many forecasts each, on a timeframe: one market does not speak for another
SIZE = 0.05  # of all tests of a timeframe together
SIDES = {"long": 1.0, "short": -1.0}
PLAIN, FILTERED, LARGER = METHODS = "historical", "filtered_historical", "larger of filtered_historical and historical"
TIMEFRAMES = ("5m", "15m", "1h", "4h", "1d")
# market, timeframe of its files, files, timeframes of decision bars to make of them
BUDGET_RECORDINGS = (
    ("BTC/USDT", "1m", ("binance_spot_btcusdt_1m_2024.parquet", "binance_spot_btcusdt_1m_2025h1.parquet"),
     ("5m", "15m")),
    ("ETH/USDT", "5m", ("binance_spot_ethusdt_5m_to_2025h1.parquet",), ("5m", "15m")),
    ("BTC/USDT", "1h", ("binance_spot_btcusdt_1h_2017_2025h1.parquet",), ("1h", "4h", "1d")),
    ("ETH/USDT", "1h", ("binance_spot_ethusdt_1h_to_2025h1.parquet",), ("1h", "4h", "1d")),
    ("EUR/USD", "1h", ("../forex/oanda_eurusd_1h_to_2015h1.parquet",), ("1h", "4h", "1d")),
    ("XAU/USD", "1h", ("../forex/oanda_xauusd_1h_to_2015h1.parquet",), ("1h", "4h", "1d")),
)  # fmt: skip


@dataclass(frozen=True)
class BudgetCase:
    """Hold the coverage of one method for one side of one market on one timeframe."""

    timeframe: str
    market: str
    side: str
    method: str
    found: Coverage

    @property
    def enough(self) -> bool:
        """Return whether the case has the forecasts that its tests need."""
        return self.found.n >= LEAST

    @property
    def p(self) -> dict[str, float]:
        """Return the p of the tests that differ: too many or too few, clustered, too large. NaN: nothing to test."""
        return {name: getattr(self.found, name).p for name in ("kupiec", "independence", "acerbi_szekely")}

    @property
    def understated(self) -> dict[str, float]:
        """Return the same, but with too few violations no fault: a budget may be too narrow, not too wide."""
        return self.p | ({"kupiec": 1.0} if self.found.violations < self.found.expected else {})


def closes_of(bars: Floats, timeframe: str, base: Grid) -> AssetCloses:
    """Return the closes of bars (n, 9) of the `base` grid, resampled to a timeframe."""
    grid = base.at(timeframe)
    made = bars if grid == base else resample(bars, base, grid)
    return AssetCloses(grid, np.column_stack([grid.closes(made[:, OPEN_TIME]), made[:, CLOSE]]))


def budget_cases(market: str, asset: AssetCloses, params: Params) -> list[BudgetCase]:
    """Return the coverage of every method and side on the closes of an asset."""
    grid, closes, horizon = asset.grid, asset.closes, params.labels.horizon_bars
    refresh_s = params.retrain.interval_days * DAY_S
    tail = TailParams(decay=params.risk.tail.decay, filtered_alone=[])
    times, prices = closes[:, 0], np.ascontiguousarray(closes[:, 1])
    volatility = ewma_volatility(prices, tail.decay)
    start = np.flatnonzero((grid.closed_by(times) % horizon == 0) & (np.arange(len(times)) >= FIRST))
    deadline = grid.deadline(times[start], horizon)
    end = np.searchsorted(times, deadline)
    whole = end < len(times)
    whole[whole] = times[end[whole]] == deadline[whole]
    start, end = start[whole], end[whole]
    forecast = np.full((len(SIDES), 2, 2, len(start)), np.nan)  # side, filtered or plain, VaR or ES
    made, scale = -np.inf, np.full((len(SIDES), 2, 2), np.nan)
    for at, row in enumerate(start):
        if times[row] - made >= refresh_s:
            made = times[row]
            scenarios = scenarios_of({market: AssetCloses(grid, closes[: row + 1])}, horizon, tail)
            for i, side in enumerate(SIDES.values()):
                for j, returns in enumerate((scenarios.filtered[:, 0], scenarios.plain[:, 0])):
                    scale[i, j] = tail_losses(side * returns, 1.0 - ES_LEVEL)
        forecast[:, 0, :, at], forecast[:, 1, :, at] = scale[:, 0] * volatility[row], scale[:, 1]
    earned = prices[end] / prices[start] - 1.0
    found = []
    for i, (name, side) in enumerate(SIDES.items()):
        filtered, plain = forecast[i]
        for method, (var, es) in ((PLAIN, plain), (FILTERED, filtered), (LARGER, np.maximum(filtered, plain))):
            tested = coverage(side * earned, var, es, ES_LEVEL)
            found.append(BudgetCase(grid.timeframe, market, name, method, tested))
    return found


def holm_rejects(p: Iterable[float], size: float = SIZE) -> bool:
    """Return whether Holm's correction refuses any of several tests; a p that is NaN refuses nothing.

    The smallest is compared with size over their number (Holm 1979, Scand. J. Stat. 6(2)).
    """
    known = [value for value in p if np.isfinite(value)]
    return bool(known) and min(known) < size / len(known)


def passed(cases: Sequence[BudgetCase], timeframe: str, method: str) -> bool | None:
    """Return whether a method passed on a timeframe; None where too few markets have enough forecasts.

    For the larger of both, violations that are too few are no fault.
    """
    own = [case for case in cases if (case.timeframe, case.method) == (timeframe, method) and case.enough]
    if len({case.market for case in own}) < LEAST_MARKETS:
        return None
    return not holm_rejects(p for case in own for p in (case.understated if method == LARGER else case.p).values())


# ---- the page -----------------------------------------------------------------------------------------------------


def verdicts(cases: Sequence[BudgetCase]) -> list[str]:
    """Return the lines of a table: by timeframe, which methods passed, and which one the budgets use for it."""
    lines = [
        f"| timeframe | markets with {LEAST:,} forecasts or more | {' | '.join(f'`{m}`' for m in METHODS)} | "
        f"smallest p of `{FILTERED}`, and its bound | used |",
        f"|---|--:|{'---|' * len(METHODS)}--:|---|",
    ]
    for timeframe in TIMEFRAMES:
        markets = {case.market for case in cases if case.timeframe == timeframe and case.enough}
        cells = [
            {True: "passed", False: "refused", None: "too few"}[passed(cases, timeframe, method)] for method in METHODS
        ]
        lines.append(
            f"| {timeframe} | {len(markets)} | {' | '.join(cells)} | {closest(cases, timeframe)} | "
            f"{used(cases, timeframe)} |"
        )
    return lines


def closest(cases: Sequence[BudgetCase], timeframe: str) -> str:
    """Return the smallest p of filtered history on a timeframe and the bound it is compared with."""
    own = [case for case in cases if (case.timeframe, case.method) == (timeframe, FILTERED) and case.enough]
    known = [p for case in own for p in case.p.values() if np.isfinite(p)]
    return f"{min(known):.4f}, {SIZE / len(known):.4f}" if known else "–"


def used(cases: Sequence[BudgetCase], timeframe: str) -> str:
    """Return the method that the budgets have to use on a timeframe, as `params.yaml:risk.tail` names it."""
    return FILTERED if passed(cases, timeframe, FILTERED) else LARGER


def case_table(cases: Sequence[BudgetCase]) -> list[str]:
    """Return the lines of the table of every case with a forecast."""
    head = ("timeframe", "market", "side", "method", "n", "violations", "expected", "Kupiec p", "independence p",
            "Z2", "Z2 p")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", f"|---|---|---|---|{'--:|' * 7}"]
    for case in cases:
        found, p = case.found, case.p
        if not found.n:
            continue
        counts = (f"{found.n:,}", str(found.violations), f"{found.expected:.1f}")
        tests = [f"{v:.3f}" if v >= 0.001 else "< .001" if v == v else "–" for v in p.values()]
        named = (case.timeframe, case.market, case.side, f"`{case.method}`")
        z2 = f"{found.acerbi_szekely.statistic:z.2f}"
        lines.append(f"| {' | '.join((*named, *counts, *tests[:2], z2, tests[2]))} |")
    return lines
