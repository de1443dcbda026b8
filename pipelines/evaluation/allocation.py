"""Allocate among the symbols of a universe: every portfolio method walked forward on the same rows, and what to trade.

Two sets of returns can be allocated: those of the markets themselves, and those of the decisions in each symbol. Rows
are market days (UTC), so that symbols with different hours share them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.contracts import DAY_S, Estimate, Floats
from pipelines.errors import NotEnoughData
from pipelines.evaluation.portfolio import METHODS, Figures, Past, Path, figures, no_trade_band, walk, weights

BASELINE = "equal"
YEAR_DAYS = 365.25


@dataclass(frozen=True, slots=True)
class DailyReturns:
    """Hold (n, k) simple returns of k symbols on n market days; days (n,) epoch seconds of their 00:00 UTC."""

    symbols: tuple[str, ...]
    days: Floats
    returns: Floats

    @property
    def rows_a_year(self) -> float:
        """Return how many of these rows a year has: fewer than its days where a market is closed on some."""
        span_s = float(self.days[-1] - self.days[0]) if len(self.days) > 1 else 0.0
        return (len(self.days) - 1) / span_s * YEAR_DAYS * DAY_S if span_s else YEAR_DAYS


def of_markets(closes: Mapping[str, tuple[Floats, Floats]]) -> DailyReturns:
    """Return the daily returns of markets on the days that all of them traded.

    closes  symbol → (close times, epoch s, ascending; prices), both (m,). A day's price is the last one known in it
    Raises  NotEnoughData without two such days
    """
    last: dict[str, dict[float, float]] = {}
    for symbol, (times, prices) in closes.items():
        day = np.floor((times - 1.0) / DAY_S) * DAY_S  # a bar that closes at midnight is of the day that ends then
        last[symbol] = dict(zip(day.tolist(), prices.tolist(), strict=True))
    shared = sorted(set.intersection(*(set(found) for found in last.values()))) if last else []
    if len(shared) < 2:
        raise NotEnoughData(f"{', '.join(closes) or 'no symbol'}: {len(shared)} days that all traded; two are needed")
    prices = np.array([[found[day] for found in last.values()] for day in shared])
    return DailyReturns(tuple(last), np.array(shared[1:]), prices[1:] / prices[:-1] - 1.0)


def of_decisions(resolved: Sequence[tuple[str, float, float, float]], symbols: Sequence[str]) -> DailyReturns:
    """Return what the decisions in each symbol earned a day, after costs, as fractions of the equity behind them.

    resolved  (symbol, resolved at in epoch s, size as a fraction of equity, net bps) of emitted decisions
    A day without an outcome in a symbol earned nothing in it. Raises NotEnoughData without two days between the first
    and the last outcome
    """
    at = np.array([one[1] for one in resolved])
    days = np.floor(at / DAY_S) * DAY_S
    n = int((days.max() - days.min()) / DAY_S) + 1 if len(days) else 0
    if n < 2:
        raise NotEnoughData(f"{len(resolved)} resolved trades on {n} days; two days are needed")
    earned = np.zeros((n, len(symbols)))
    column = {symbol: j for j, symbol in enumerate(symbols)}
    for (symbol, _, size, net_bps), day in zip(resolved, days, strict=True):
        if symbol in column:
            earned[int((day - days.min()) / DAY_S), column[symbol]] += size * net_bps / 1e4
    return DailyReturns(tuple(symbols), days.min() + DAY_S * np.arange(n), earned)


@dataclass(frozen=True, slots=True)
class Allocated:
    """Hold one method: its walk and figures, and its weights of now; `why` where it abstains, now or throughout."""

    method: str
    path: Path
    figures: Figures
    now: Floats | None
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold the rules of an allocation: rows of the window, rows between decisions, half band as a share of 1/N."""

    window: int
    every: int
    band_share: float
    cost_bps: float  # of one side
    given: Floats | None = None
    caps: Floats | None = None  # (k,) market capitalisations known now


def allocate(data: DailyReturns, plan: Plan, held: Floats) -> list[Allocated]:
    """Walk every method forward and give its weights of today; 1/N first.

    held    (k,) shares of the portfolio held now; all zero = cash
    Raises  NotEnoughData where the days do not hold a window, a fill and a row after it
    """
    k = len(data.symbols)
    band, fee = plan.band_share / k, plan.cost_bps * 1e-4
    caps = None if plan.caps is None else np.vstack([np.full((len(data.returns) - 1, k), np.nan), plan.caps])
    found: list[Allocated] = []
    for method in sorted(METHODS, key=lambda name: name != BASELINE):
        path = walk(data.returns, method, plan.every, plan.window, plan.cost_bps, band, plan.given, caps)
        base = found[0].path if found else path
        past = Past(data.returns[-plan.window :], held, fee, plan.every, plan.given, plan.caps)
        chosen = weights(method, past)
        why = chosen if isinstance(chosen, str) else next(iter(path.abstained), "") if path.never_allocated else ""
        now = None if isinstance(chosen, str) else chosen
        found.append(Allocated(method, path, figures(path, base, data.rows_a_year), now, why))
    return found


def trades(target: Floats, held: Floats, plan: Plan) -> Floats:
    """Return (k,) shares of the portfolio to buy (+) and sell (-) now, by the band and after fees."""
    return no_trade_band(held, target, plan.band_share / len(target), plan.cost_bps * 1e-4)


def to_dict(one: Allocated, symbols: Sequence[str]) -> dict[str, Any]:
    """Return a method's figures as JSON: fractions a year, intervals as {value, low, high, n}."""
    f = one.figures
    allocated = not one.path.never_allocated
    return {
        "method": one.method,
        "weights": None if one.now is None else dict(zip(symbols, one.now.tolist(), strict=True)),
        "abstained": one.why or None,
        "decisions": one.path.decisions,
        "net_return": _estimate(f.net_return) if allocated else None,
        "over_equal": _estimate(f.return_over_equal) if allocated and one.method != BASELINE else None,
        "sharpe": _estimate(f.sharpe) if allocated else None,
        "sharpe_over_equal": _estimate(f.sharpe_over_equal) if allocated and one.method != BASELINE else None,
        "volatility": f.volatility if allocated else None,
        "max_drawdown": f.max_drawdown if allocated else None,
        "turnover": f.turnover if allocated else None,
        "cost": f.cost if allocated else None,
        "attribution": dict(zip(symbols, one.path.attribution.tolist(), strict=True)) if allocated else None,
        "total": one.path.total if allocated else None,
    }


def _estimate(found: Estimate) -> dict[str, float | int | None]:
    """Return an estimate as JSON; None = not known."""
    values = {"value": found.value, "low": found.low, "high": found.high}
    return {name: v if np.isfinite(v) else None for name, v in values.items()} | {"n": found.n}
