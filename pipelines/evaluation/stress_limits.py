"""Stress of the largest portfolios that the risk limits allow: do the limits protect the drawdown limit in a crisis?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.contracts import DAY_S, OPEN_TIME, Floats, JsonObject
from pipelines.evaluation.crises import CRISES, bars_in_window, replay_crisis
from pipelines.evaluation.stress import stress_all
from pipelines.evaluation.stressed import MarketHistory, Portfolio, StressResult, exact_estimate
from pipelines.params import RiskParams

SIDES = {"long": 1.0, "short": -1.0}
AGAIN = "opened with the first bar and again at the next open after every stop, while the account limits allow it"


@dataclass(frozen=True, slots=True)
class Allowed:
    """Hold the largest gross exposure (fraction of equity) and widest stop (fraction of price) of a row of limits.

    row  as in risk.regime_limits, or "unknown", which has the smallest of all
    """

    row: str
    gross: float
    stop: float


@dataclass(frozen=True, slots=True)
class Case:
    """Hold one such portfolio and its results; `stopped` tells if it has stops."""

    allowed: Allowed
    side: str
    stopped: bool
    results: tuple[StressResult, ...]

    @property
    def name(self) -> str:
        """Return side, gross exposure and stop, for reports."""
        return f"{self.side} {self.allowed.gross:.0%}, {self.with_stop}"

    @property
    def with_stop(self) -> str:
        """Return the stop in per cent, or "no stop"."""
        return f"stop {self.allowed.stop:.1%}" if self.stopped else "no stop"

    def breaches(self, limit: float) -> dict[str, float]:
        """Return scenario → loss of those above a drawdown limit (fraction)."""
        return {r.scenario: r.loss.value for r in self.results if r.loss is not None and r.loss.value > limit}

    def to_dict(self, limit: float) -> JsonObject:
        """Return the case JSON-ready, with the scenarios that break the drawdown limit."""
        return {
            "name": self.name,
            "row": self.allowed.row,
            "gross": self.allowed.gross,
            "side": self.side,
            "stop": self.allowed.stop if self.stopped else None,
            "breaks_drawdown_limit": self.breaches(limit),
            "results": [result.to_dict() for result in self.results],
        }


def allowed(risk: RiskParams, assets: int) -> list[Allowed]:
    """Return the largest exposure of each row of limits and of the unknown regime, over `assets` assets.

    Position caps and gross budgets apply. Tail and correlation budgets do not: a crisis breaks those first.
    """
    rows = {name: (row.max_position, row.max_stop) for name, row in risk.regime_limits.items()}
    rows["unknown"] = (min(position for position, _ in rows.values()), min(stop for _, stop in rows.values()))
    return [
        Allowed(
            name,
            min(
                risk.budgets.max_gross,
                assets * risk.budgets.max_asset,
                risk.max_open * min(position, risk.kelly_cap),
            ),
            stop,
        )
        for name, (position, stop) in rows.items()
    ]


def largest_allowed(risk: RiskParams, assets: int) -> Allowed:
    """Return the row with the largest gross exposure; of several, the one with the widest stop."""
    return max(allowed(risk, assets), key=lambda row: (row.gross, row.stop))


def portfolio_of(row: Allowed, side: str, stopped: bool, shares: Floats, cost_bps: float) -> Portfolio:
    """Return the portfolio of a row; `shares` (k,) of the gross exposure sum to 1; cost_bps of one side."""
    stops = np.full(len(shares), row.stop if stopped else np.nan)
    return Portfolio(SIDES[side] * row.gross * shares, stops, cost_bps)


def reopened(name: str, portfolio: Portfolio, recorded: MarketHistory, risk: RiskParams) -> StressResult:
    """Return a crisis in which everything is opened again after every stop, at the size of the drawdown's stage.

    Only the account limits stop it: nothing is opened on a UTC day that has lost `max_daily_loss`, nor from the stage
    of size zero on. One stop closes everything. `path` starts at the window's first bar.
    """
    scenario, bars = f"reopened:{name}", bars_in_window(recorded, CRISES[name])
    if isinstance(bars, str):
        return StressResult(scenario, AGAIN, absent=bars)
    if not np.isfinite(portfolio.stops).any():
        return StressResult(scenario, AGAIN, absent="no stop: a position that is never closed is not opened again")
    day = bars[:, 0, OPEN_TIME] // DAY_S
    equity = np.ones(len(bars) + 1)  # before each bar, and after the last
    path, lost = np.empty(len(bars)), np.empty(len(bars))
    first, opened, booked = 0, 0, 1.0
    while first < len(bars):
        peak, held = equity[: first + 1].max(), equity[first]
        booked = max(booked, held)
        day_start = equity[np.searchsorted(day, day[first])]
        left = _size_left(1.0 - held / booked, risk)
        if not (left > 0.0 and held / day_start > 1.0 - risk.max_daily_loss):
            path[first], lost[first], equity[first + 1] = 1.0 - held / peak, 1.0 - held / booked, held
            first += 1
            continue
        opened += 1
        found = replay_crisis(bars[first:], replace(portfolio, weights=portfolio.weights * left))
        hit = found.stopped[found.stopped >= 0]
        upto = int(hit.min()) + 1 if len(hit) else len(bars) - first
        after = slice(first + 1, first + 1 + upto)
        equity[after] = held * found.close[:upto]
        peaks = np.maximum.accumulate(np.concatenate([[peak], equity[after][:-1]]))
        path[first : first + upto] = np.maximum(1.0 - held * found.worst[:upto] / peaks, 0.0)
        lost[first : first + upto] = np.maximum(1.0 - held * found.worst[:upto] / booked, 0.0)
        first += upto
    n = len(bars)
    return StressResult(
        scenario,
        AGAIN,
        loss=exact_estimate(lost.max(), n),
        drawdown=exact_estimate(path.max(), n),
        n=n,
        detail=f"{CRISES[name].since:%F} to {CRISES[name].until:%F} UTC, {n:,} bars; opened {opened} times",
        figures={"times opened": exact_estimate(opened, n), "loss at the end": exact_estimate(1.0 - equity[-1], n)},
        at=bars[:, 0, OPEN_TIME],
        path=path,
    )


def _size_left(drawdown: float, risk: RiskParams) -> float:
    """Return the size multiplier of the stage of a drawdown (fraction)."""
    stages = (risk.stages.reduce, risk.stages.half, risk.stages.exit_only, risk.stages.flat)
    return next((s.size for s in reversed(stages) if drawdown >= s.at * risk.max_drawdown), 1.0)


def stress_of_limits(recorded: MarketHistory, risk: RiskParams, cost_bps: float, draws: int, seed: int) -> list[Case]:
    """Return the cases of every row of limits, long and short, with its widest stop; the largest row first.

    Exposure is split evenly among the markets. The largest row is also stressed without stops, as when the venue is
    down. Results are those of SCENARIOS, then `reopened` by crisis.
    cost_bps  of one side
    """
    k = len(recorded.symbols)
    most = largest_allowed(risk, k)
    rows = [(most, True), (most, False), *((row, True) for row in allowed(risk, k) if row != most)]
    cases = []
    for row, stopped in rows:
        for side in SIDES:
            held = portfolio_of(row, side, stopped, np.full(k, 1.0 / k), cost_bps)
            reopenings = [reopened(name, held, recorded, risk) for name in CRISES]
            cases.append(Case(row, side, stopped, (*stress_all(held, recorded, draws, seed), *reopenings)))
    return cases


def largest(cases: Sequence[Case]) -> list[Case]:
    """Return the cases of the largest row, which is the first one's."""
    return [case for case in cases if case.allowed == cases[0].allowed]


def verdict(cases: Sequence[Case], limit: float) -> list[str]:
    """Return a sentence on each case of the largest portfolio: which scenarios break the drawdown limit (fraction)."""
    lines = []
    for case in largest(cases):
        broken = ", ".join(f"{name} ({value:.1%})" for name, value in case.breaches(limit).items())
        absent = sum(result.absent is not None for result in case.results)
        known = f"{len(case.results) - absent} scenarios of {len(case.results)} that could be computed"
        outcome = (
            f"breaks the drawdown limit of {limit:.0%} in {broken}" if broken else f"under the limit of {limit:.0%}"
        )
        lines.append(f"{case.name}: {outcome}; {known}")
    return lines
