"""Stress scenarios of a portfolio: recorded crises, bootstrapped returns, correlation breakdown, liquidity drought.

A scenario whose data was not recorded is absent, with the reason.
"""

from collections.abc import Callable

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, DAY_S, OPEN_TIME, VOLUME, Floats, Ints
from pipelines.errors import UnknownName
from pipelines.evaluation.crises import CRISES, crisis
from pipelines.evaluation.metrics import block_indices, interval
from pipelines.evaluation.stressed import MarketHistory, Portfolio, StressResult, exact_estimate

LEVELS = (0.95, 0.99)
HORIZON_DAYS = 10  # of the bootstrap: the horizon of market risk in bank supervision
VOLATILITY_DAYS = 30
LEAST_SPELLS = 5  # of a volatility window in the history: fewer give no extreme
LEAST_HORIZONS = 30  # in the history of the bootstrap: its interval then rests on 15 blocks of two
PATHS = 4000  # of the bootstrap

IMPACT = 1.0  # of a day's volatility at a day's volume: "of order one" in every market; see `liquidity_drought`
MEAN_TO_FINAL_IMPACT = 2.0 / 3.0  # mean of the square root over an order's own course, against its end


# ---- block bootstrap ----------------------------------------------------------------------------------------------


@kernel
def _walk(returns: Floats, starts: Ints, steps: int, weights: Floats, stops: Floats, cost: float) -> Floats:
    """Return (2, draws): largest loss against the entry and largest drawdown of positions over spells of returns.

    returns (n, k), weights and stops (k,) float64; starts (draws,) int64 first rows of spells of `steps` rows. A stop
    closes a position at the end of the first step beyond it, at that step's price: the overshoot is lost.
    """
    draws, k = starts.shape[0], weights.shape[0]
    found = np.empty((2, draws))
    price, closed = np.empty(k), np.empty(k)
    for d in range(draws):
        paid = 0.0
        for i in range(k):
            price[i], closed[i] = 1.0, 0.0
            paid += cost * abs(weights[i])
        peak, deepest, lost = 1.0, paid, paid
        for s in range(steps):
            equity = 1.0
            for i in range(k):
                if closed[i] == 0.0:
                    price[i] *= 1.0 + returns[starts[d] + s, i]
                    if np.sign(weights[i]) * (price[i] - 1.0) <= -stops[i]:
                        closed[i] = 1.0
                        paid += cost * abs(weights[i]) * price[i]
                equity += weights[i] * (price[i] - 1.0)
            equity -= paid
            lost = max(lost, 1.0 - equity)
            deepest = max(deepest, 1.0 - equity / peak)
            peak = max(peak, equity)
        found[0, d] = lost
        found[1, d] = deepest
    return found


def bootstrap(portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> StressResult:
    """Return the loss and drawdown within ten days of returns drawn in blocks of ten days; `loss` at the 99 % level.

    A block is as long as the horizon, so a path is a spell of the recording with all of its dependence: shorter blocks
    tear apart falls that last for days (Künsch 1989, the moving-block bootstrap). Spells start evenly over the
    recording. The intervals resample the spells in blocks of two horizons, since neighbours overlap; they reflect the
    few spells in the recording, not the number of paths.
    """
    returns, steps = recorded.returns, round(HORIZON_DAYS * DAY_S / recorded.step_s)
    n = len(returns)
    method = f"block bootstrap of {HORIZON_DAYS} days in blocks of {steps:,} rows, as long, up to {PATHS:,} paths"
    if n < LEAST_HORIZONS * steps:
        return StressResult("bootstrap", method, absent=f"{n:,} returns; {LEAST_HORIZONS * steps:,} are needed")
    starts = spells(n, steps)
    drawn = _walk(returns, starts, steps, portfolio.weights, portfolio.stops, portfolio.cost)
    block = -(-2 * steps * len(starts) // n)  # spells that start within two horizons
    again = block_indices(len(starts), block, draws, seed)
    figures = {
        f"{name} {level:.0%}": interval(
            np.quantile(drawn[row][again], level, axis=-1), float(np.quantile(drawn[row], level)), n
        )
        for row, name in enumerate(("loss", "drawdown"))
        for level in LEVELS
    }
    return StressResult(
        "bootstrap",
        method,
        loss=figures["loss 99%"],
        drawdown=figures["drawdown 99%"],
        n=n,
        detail=(
            f"{n * recorded.step_s / DAY_S:,.0f} days of returns, {len(starts):,} spells: {n // steps} of the horizon "
            "that do not overlap"
        ),
        figures=figures,
        samples=drawn[0],
    )


def spells(n: int, steps: int) -> Ints:
    """Return the first rows of at most PATHS spells of `steps` of n rows, evenly spaced over all that are possible."""
    return np.linspace(0, n - steps, min(PATHS, n - steps + 1)).round().astype(np.int64)


# ---- day by day ---------------------------------------------------------------------------------------------------


def daily(recorded: MarketHistory) -> tuple[Floats, Floats, Floats]:
    """Return (return, realised volatility, quote volume) of every UTC day with a bar, (days, k) each.

    Volatility is the root of the summed squares; volume is NaN on a day with a bar without volume.
    """
    day = np.unique(recorded.bars[:, 0, OPEN_TIME] // DAY_S, return_inverse=True)[1]
    returns = np.concatenate([np.zeros((1, len(recorded.symbols))), recorded.returns])
    traded = recorded.bars[:, :, VOLUME] * recorded.bars[:, :, CLOSE]

    def summed(values: Floats) -> Floats:
        """Return (days, k) sums of values (n, k)."""
        return np.stack([np.bincount(day, column) for column in values.T], axis=1)

    return np.expm1(summed(np.log1p(returns))), np.sqrt(summed(returns**2)), summed(traded)


def correlation_breakdown(portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> StressResult:
    """Return the loss of a day on which every position loses at once, at a measured but rare volatility.

    Correlations are set to 1 between positions of the same side and to -1 between opposite ones, so quantiles of the
    parts add up (they are comonotone). A part is the 99 % quantile of its 30-day volatility times the 99 % quantile of
    its own losses in units of the volatility of the 30 days before. Stops are ignored: a day may close beyond them.
    """
    level = LEVELS[-1]
    method = (
        "correlations +1 within a side and -1 across, volatility at its 99 % quantile, 99 % of a day's losses, no stop"
    )
    moved, realised, _ = daily(recorded)
    days = len(moved)
    if days < (LEAST_SPELLS + 1) * VOLATILITY_DAYS:
        why = f"{days} days; {(LEAST_SPELLS + 1) * VOLATILITY_DAYS} are needed"
        return StressResult("correlation_breakdown", method, absent=why)
    total = np.concatenate([np.zeros((1, moved.shape[1])), np.cumsum(realised**2, axis=0)])
    calm = np.sqrt((total[VOLATILITY_DAYS:-1] - total[: -VOLATILITY_DAYS - 1]) / VOLATILITY_DAYS)  # before each day
    if (calm == 0.0).any():
        why = f"the price did not move in {VOLATILITY_DAYS} days: no volatility to stress"
        return StressResult("correlation_breakdown", method, absent=why)
    lost = -np.sign(portfolio.weights) * moved[VOLATILITY_DAYS:] / calm

    def parts(rows: Ints) -> Floats:
        """Return (…, k) each asset's part, from row numbers (…, n)."""
        tail = np.quantile(lost[rows], level, axis=-2)
        return np.asarray(np.abs(portfolio.weights) * np.quantile(calm[rows], level, axis=-2) * np.maximum(tail, 0.0))

    n = len(lost)
    each = parts(np.arange(n))
    resampled = parts(block_indices(n, VOLATILITY_DAYS, draws, seed)).sum(axis=-1)
    side = np.sign(portfolio.weights)
    measured = np.atleast_2d(np.corrcoef(moved.T)) * np.outer(side, side)
    figures = {
        "loss if independent": exact_estimate(np.sqrt((each**2).sum()), n),
        "loss at the correlations recorded": exact_estimate(np.sqrt(max(each @ measured @ each, 0.0)), n),
    }
    for i, symbol in enumerate(recorded.symbols):
        ratio = np.quantile(calm[:, i], level) / np.median(calm[:, i])
        figures[f"volatility of {symbol}, times its median"] = exact_estimate(ratio, n)
    loss = interval(resampled, float(each.sum()), n)
    single = "one asset: nothing to correlate, its volatility is stressed; " if len(side) == 1 else ""
    return StressResult(
        "correlation_breakdown", method, loss=loss, n=n, figures=figures,
        detail=f"{single}{n:,} days, {n // VOLATILITY_DAYS} windows of volatility that share no day",
    )  # fmt: skip


def liquidity_drought(portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> StressResult:
    """Return the cost of selling everything in one thin day, without any move of the market.

    Each position pays its ordinary cost, half of the spread's excess over its median at its 99 % quantile, and an
    impact of 2/3 · Y · σ · sqrt(position / volume), Y = 1. The day's own σ / sqrt(volume) is at its 99 % quantile, so
    thin and volatile days count together where they coincide. The law is established up to about a tenth of a volume.

    Source: square root and Y of order one, Tóth et al. 2011, Phys. Rev. X 1, 021006, and for Bitcoin along the whole of
    an order Donier & Bonart 2015, arXiv:1412.4503. Almgren et al. 2005, Risk 18(7), have a power of 3/5.
    """
    level, scenario = LEVELS[-1], "liquidity_drought"
    method = "all sold in a day, impact and spread at their 99 % quantiles, square-root impact"
    _, realised, traded = daily(recorded)
    complete = (np.isfinite(traded) & (traded > 0.0)).all(axis=1)
    n = int(complete.sum())
    if n == 0:
        return StressResult(scenario, method, absent="no volume was recorded")
    if n < LEAST_SPELLS * VOLATILITY_DAYS:
        return StressResult(scenario, method, absent=f"{n} days with volume; {LEAST_SPELLS * VOLATILITY_DAYS} needed")
    if recorded.equity is None:
        why = "impact depends on absolute size: pass --equity AMOUNT in the market's quote currency"
        return StressResult(scenario, method, absent=why)
    size, per_root = np.abs(portfolio.weights), realised[complete] / np.sqrt(traded[complete])
    widened, spread_note = _widening(recorded, level)

    to_sell = size * recorded.equity

    def lost(rows: Ints) -> Floats:
        """Return (…) losses, from row numbers (…, n)."""
        thin = np.quantile(per_root[rows], level, axis=-2)
        return np.asarray((portfolio.cost + widened + MEAN_TO_FINAL_IMPACT * IMPACT * thin * np.sqrt(to_sell)) @ size)

    resampled = lost(block_indices(n, VOLATILITY_DAYS, draws, seed))
    depth = np.quantile(traded[complete], 1.0 - level, axis=0)
    return StressResult(
        scenario,
        method,
        loss=interval(resampled, float(lost(np.arange(n))), n),
        n=n,
        detail=f"equity {recorded.equity:,.0f}; {spread_note}",
        figures={
            "largest position, of the 1 % thinnest day's volume": exact_estimate(float((to_sell / depth).max()), n),
            "1 % thinnest day's volume, of the median day's": exact_estimate(
                float((depth / np.median(traded[complete], axis=0)).min()), n
            ),
        },
    )


def _widening(recorded: MarketHistory, level: float) -> tuple[Floats, str]:
    """Return (k,) half of the spread's excess over its median at a level, a fraction of price, and a note on it."""
    known = np.isfinite(recorded.spread).all(axis=1)
    if not known.any():
        return np.zeros(len(recorded.symbols)), "no spread was recorded: its widening is not in this loss"
    high, middle = np.quantile(recorded.spread[known], [level, 0.5], axis=0)
    return np.asarray((high - middle) / 2.0), f"half the spread widens by {(high - middle).max() * 5e3:.2f} bps"


# ---- all of them --------------------------------------------------------------------------------------------------

Scenario = Callable[[Portfolio, MarketHistory, int, int], StressResult]


def _replayed(name: str) -> Scenario:
    """Return the scenario of one recorded crisis."""

    def scenario(portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> StressResult:
        """Return the crisis's result; there is one path, so nothing is drawn."""
        del draws, seed
        return crisis(name, portfolio, recorded)

    return scenario


SCENARIOS: dict[str, Scenario] = {
    **{f"crisis:{name}": _replayed(name) for name in CRISES},
    "bootstrap": bootstrap,
    "correlation_breakdown": correlation_breakdown,
    "liquidity_drought": liquidity_drought,
}


def stress(name: str, portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> StressResult:
    """Return the result of one scenario; `draws` of the bootstrap for its intervals. Raises UnknownName."""
    if name not in SCENARIOS:
        raise UnknownName(f"no scenario {name!r}; use one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name](portfolio, recorded, draws, seed)


def stress_all(portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> list[StressResult]:
    """Return the result of every scenario, in the order of SCENARIOS."""
    return [scenario(portfolio, recorded, draws, seed) for scenario in SCENARIOS.values()]
