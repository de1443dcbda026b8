"""The most that the limits let anybody hold, under every scenario: do they keep the drawdown limit in a crisis?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.contracts import OPEN_TIME, Floats
from pipelines.evaluation.crises import CRISES, bars_in_window, replay_crisis
from pipelines.evaluation.stress import DAY_S, stress_all
from pipelines.evaluation.stressed import MarketHistory, Portfolio, StressResult, exact_estimate
from pipelines.params import RiskParams

SIDES = {"long": 1.0, "short": -1.0}
AGAIN = "opened with the first bar and again at the next open after every stop, while the account limits let it"


@dataclass(frozen=True, slots=True)
class Allowed:
    """The largest gross exposure (fraction of equity) and widest stop (fraction of price) that a row of limits lets
    through; `row` as in risk.regime_limits, or "unknown", which is the smallest of all."""

    row: str
    gross: float
    stop: float


@dataclass(frozen=True, slots=True)
class Case:
    """One such portfolio and what became of it. `stopped` says whether its stops were there."""

    allowed: Allowed
    side: str
    stopped: bool
    results: tuple[StressResult, ...]

    @property
    def name(self) -> str:
        return f"{self.side} {self.allowed.gross:.0%}, {self.with_stop}"

    @property
    def with_stop(self) -> str:
        return f"stop {self.allowed.stop:.1%}" if self.stopped else "no stop"

    def breaches(self, limit: float) -> dict[str, float]:
        """Scenario → its loss, of those above a drawdown limit."""
        return {r.scenario: r.loss.value for r in self.results if r.loss is not None and r.loss.value > limit}

    def to_dict(self, limit: float) -> dict[str, Any]:
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
    """A line a row of limits, in their order, and the unknown regime: as much as caps and budgets let be open in
    so many assets at once. Budgets of tails and of what moves together are left out: a crisis breaks those first."""
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
    """The row with the largest gross exposure; of several, the one with the widest stop."""
    return max(allowed(risk, assets), key=lambda row: (row.gross, row.stop))


def portfolio_of(row: Allowed, side: str, stopped: bool, shares: Floats, cost_bps: float) -> Portfolio:
    """`shares` (k,) of the gross exposure, one a market; they sum to 1."""
    stops = np.full(len(shares), row.stop if stopped else np.nan)
    return Portfolio(SIDES[side] * row.gross * shares, stops, cost_bps)


def reopened(name: str, portfolio: Portfolio, recorded: MarketHistory, risk: RiskParams) -> StressResult:
    """A crisis for who does not learn: all is opened again after every stop, as much as the drawdown's stage leaves.

    Only the account limits stop it: nothing is opened on a UTC day that has lost `max_daily_loss`, nor from the stage
    on that leaves nothing. One stop closes everything. `path` is from the window's first bar on.
    """
    scenario, bars = f"reopened:{name}", bars_in_window(recorded, CRISES[name])
    if isinstance(bars, str):
        return StressResult(scenario, AGAIN, absent=bars)
    if not np.isfinite(portfolio.stops).any():
        return StressResult(scenario, AGAIN, absent="no stop: what is never closed is never opened again")
    day = bars[:, 0, OPEN_TIME] // DAY_S
    equity = np.ones(len(bars) + 1)  # before each bar, and after the last
    path, lost = np.empty(len(bars)), np.empty(len(bars))
    first, opened, booked = 0, 0, 1.0
    while first < len(bars):
        peak, held = equity[: first + 1].max(), equity[first]
        booked = max(booked, held)
        began = equity[np.searchsorted(day, day[first])]
        left = _left(1.0 - held / booked, risk)
        if not (left > 0.0 and held / began > 1.0 - risk.max_daily_loss):
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


def _left(drawdown: float, risk: RiskParams) -> float:
    """What the stage of a drawdown leaves of a size."""
    stages = (risk.stages.reduce, risk.stages.half, risk.stages.exit_only, risk.stages.flat)
    return next((s.size for s in reversed(stages) if drawdown >= s.at * risk.max_drawdown), 1.0)


def stress_of_limits(recorded: MarketHistory, risk: RiskParams, cost_bps: float, draws: int, seed: int) -> list[Case]:
    """Every row of limits, long and short, exposure shared evenly among the markets, with its widest stop; and the
    largest of them as if no stop were there, which is what a venue that is down leaves of it. The largest comes first.
    Results are those of SCENARIOS, then `reopened` by crisis.

    cost_bps  of one side
    """
    k = len(recorded.symbols)
    most = largest_allowed(risk, k)
    wanted = [(most, True), (most, False), *((row, True) for row in allowed(risk, k) if row != most)]
    cases = []
    for row, stopped in wanted:
        for side in SIDES:
            held = portfolio_of(row, side, stopped, np.full(k, 1.0 / k), cost_bps)
            again = [reopened(name, held, recorded, risk) for name in CRISES]
            cases.append(Case(row, side, stopped, (*stress_all(held, recorded, draws, seed), *again)))
    return cases


def largest(cases: Sequence[Case]) -> list[Case]:
    """Those of the row that lets most through: the first one's."""
    return [case for case in cases if case.allowed == cases[0].allowed]


def verdict(cases: Sequence[Case], limit: float) -> list[str]:
    """A sentence a side of the largest portfolio, with its stops and without: what breaks the drawdown limit."""
    lines = []
    for case in largest(cases):
        broken = ", ".join(f"{name} ({value:.1%})" for name, value in case.breaches(limit).items())
        absent = sum(result.absent is not None for result in case.results)
        known = f"{len(case.results) - absent} scenarios of {len(case.results)} that could be computed"
        told = f"breaks the drawdown limit of {limit:.0%} in {broken}" if broken else f"under the limit of {limit:.0%}"
        lines.append(f"{case.name}: {told}; {known}")
    return lines
