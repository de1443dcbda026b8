"""What a portfolio would lose if the worst came: crises as recorded, resampled times, correlations at their harmful
extreme, and markets too thin to get out of. What was not recorded makes a scenario absent, with the reason."""

from collections.abc import Callable
from functools import partial

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import CLOSE, OPEN_TIME, VOLUME, Floats, Ints
from pipelines.errors import UnknownName
from pipelines.evaluation.crises import CRISES, crisis
from pipelines.evaluation.metrics import block_indices, default_block, interval
from pipelines.evaluation.stressed import MarketHistory, Portfolio, StressResult, exact_estimate

LEVELS = (0.95, 0.99)
DAY_S = 86_400.0
HORIZON_DAYS = 10  # of the bootstrap: what bank supervision holds market risk for
VOLATILITY_DAYS = 30
LEAST_SPELLS = 5  # of a horizon or a volatility window in the history: an extreme of fewer says nothing
PATHS = 4000  # of the bootstrap
HISTORIES, PATHS_EACH = 40, 200  # resampled histories its interval rests on, and paths drawn from each

IMPACT = 1.0  # of a day's volatility at a day's volume: "of order one" in every market, Bitcoin too; see `drought`
MEAN_TO_FINAL_IMPACT = 2.0 / 3.0  # mean of the square root over an order's own course, against its end


# ---- block bootstrap ----------------------------------------------------------------------------------------------


@kernel
def stationary_rows(n, steps, block, draws, seed):  # type: ignore[no-untyped-def]
    """(draws, steps) row numbers under n: blocks of geometric length, `block` in the mean, that go on at the first row
    after the last. Source: Politis & Romano 1994, JASA 89(428)."""
    np.random.seed(seed)
    rows = np.empty((draws, steps), dtype=np.int64)
    for d in range(draws):
        at, left = 0, 0
        for s in range(steps):
            at = at + 1 if at + 1 < n else 0
            if left == 0:
                at, left = np.random.randint(0, n), np.random.geometric(1.0 / block)
            left -= 1
            rows[d, s] = at
    return rows


@kernel
def _walk(returns, rows, weights, stops, cost):  # type: ignore[no-untyped-def]
    """(2, draws) largest loss against the entry and largest drawdown of positions that go through `rows` (draws, steps)
    of returns (n, k). A stop closes at the first step beyond it, where that step ended: what was overshot is paid."""
    draws, steps = rows.shape
    k = weights.shape[0]
    told = np.empty((2, draws))
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
                    price[i] *= 1.0 + returns[rows[d, s], i]
                    if np.sign(weights[i]) * (price[i] - 1.0) <= -stops[i]:
                        closed[i] = 1.0
                        paid += cost * abs(weights[i]) * price[i]
                equity += weights[i] * (price[i] - 1.0)
            equity -= paid
            lost = max(lost, 1.0 - equity)
            deepest = max(deepest, 1.0 - equity / peak)
            peak = max(peak, equity)
        told[0, d] = lost
        told[1, d] = deepest
    return told


def bootstrap(portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> StressResult:
    """Largest loss and deepest drawdown on the way of ten days of returns drawn in blocks; `loss` at the 99 % level.

    The intervals rest on histories that were themselves resampled in blocks of the horizon: they tell how few such
    spells there are in what was recorded, not how many paths were drawn.
    """
    del draws  # paths cost little here, and an extreme needs many
    returns, steps = recorded.returns, round(HORIZON_DAYS * DAY_S / recorded.step_s)
    n, block = len(returns), default_block(len(returns))
    method = f"stationary bootstrap of {HORIZON_DAYS} days, {PATHS:,} paths, blocks of {block} rows in the mean"
    if n < LEAST_SPELLS * steps:
        return StressResult("bootstrap", method, absent=f"{n:,} returns; {LEAST_SPELLS * steps:,} are needed")
    walked = partial(_walk, returns, weights=portfolio.weights, stops=portfolio.stops, cost=portfolio.cost)
    drawn = walked(rows=stationary_rows(n, steps, block, PATHS, seed))
    again = [
        walked(rows=history[stationary_rows(n, steps, block, PATHS_EACH, seed + 1 + i)])
        for i, history in enumerate(block_indices(n, steps, HISTORIES, seed))
    ]
    figures = {
        f"{name} {level:.0%}": interval(
            np.array([np.quantile(each[row], level) for each in again]), float(np.quantile(drawn[row], level)), n
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
        detail=f"{n * recorded.step_s / DAY_S:,.0f} days of returns: {n // steps} spells of the horizon",
        figures=figures,
        samples=drawn[0],
    )


# ---- day by day ---------------------------------------------------------------------------------------------------


def daily(recorded: MarketHistory) -> tuple[Floats, Floats, Floats]:
    """By UTC day with a bar: return, realised volatility (root of the summed squares), and volume in quote currency,
    each (days, k); volume is NaN on a day of which a bar has none."""
    day = np.unique(recorded.bars[:, 0, OPEN_TIME] // DAY_S, return_inverse=True)[1]
    returns = np.concatenate([np.zeros((1, len(recorded.symbols))), recorded.returns])
    traded = recorded.bars[:, :, VOLUME] * recorded.bars[:, :, CLOSE]

    def summed(values: Floats) -> Floats:
        return np.stack([np.bincount(day, column) for column in values.T], axis=1)

    return np.expm1(summed(np.log1p(returns))), np.sqrt(summed(returns**2)), summed(traded)


def correlation_breakdown(portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> StressResult:
    """A day on which every position loses at once, at a volatility that is measured but rare.

    Correlations are set to 1 between positions of the same side and to -1 between opposite ones, so quantiles of the
    parts add up (they are comonotone). A part's: the 99 % quantile of its 30-day volatility, times the 99 % quantile of
    its own losses in units of the volatility of the 30 days before. Stops are left out: a day's end may be beyond them.
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
        """(…, k) of each asset's part, from row numbers (…, n)."""
        tail = np.quantile(lost[rows], level, axis=-2)
        return np.asarray(np.abs(portfolio.weights) * np.quantile(calm[rows], level, axis=-2) * np.maximum(tail, 0.0))

    n = len(lost)
    each = parts(np.arange(n))
    again = parts(block_indices(n, VOLATILITY_DAYS, draws, seed)).sum(axis=-1)
    side = np.sign(portfolio.weights)
    measured = np.atleast_2d(np.corrcoef(moved.T)) * np.outer(side, side)
    figures = {
        "loss if independent": exact_estimate(np.sqrt((each**2).sum()), n),
        "loss at the correlations recorded": exact_estimate(np.sqrt(max(each @ measured @ each, 0.0)), n),
    }
    for i, symbol in enumerate(recorded.symbols):
        ratio = np.quantile(calm[:, i], level) / np.median(calm[:, i])
        figures[f"volatility of {symbol}, times its median"] = exact_estimate(ratio, n)
    told = interval(again, float(each.sum()), n)
    alone = "one asset: nothing to correlate, its volatility is stressed; " if len(side) == 1 else ""
    return StressResult(
        "correlation_breakdown", method, loss=told, n=n, figures=figures,
        detail=f"{alone}{n:,} days, {n // VOLATILITY_DAYS} windows of volatility that share no day",
    )  # fmt: skip


def liquidity_drought(portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> StressResult:
    """Everything is sold in one thin day: the cost of getting out, not of any move of the market.

    Each position pays its ordinary cost, half of what the spread exceeds its median by at its 99 % quantile, and an
    impact of 2/3 · Y · σ · sqrt(position / volume), Y = 1. The day's own σ / sqrt(volume) is at its 99 % quantile:
    thin and wild count together where they came together. The law was seen up to some tenth of a volume.

    Source: square root and Y of order one, Tóth et al. 2011, Phys. Rev. X 1, 021006, and for Bitcoin along the whole of
    an order Donier & Bonart 2015, arXiv:1412.4503. Almgren et al. 2005, Risk 18(7), have a power of 3/5.
    """
    level, scenario = LEVELS[-1], "liquidity_drought"
    method = "all sold in a day, impact and spread at their 99 % quantiles, square-root impact"
    _, realised, traded = daily(recorded)
    whole = (np.isfinite(traded) & (traded > 0.0)).all(axis=1)
    n = int(whole.sum())
    if n == 0:
        return StressResult(scenario, method, absent="no volume was recorded")
    if n < LEAST_SPELLS * VOLATILITY_DAYS:
        return StressResult(scenario, method, absent=f"{n} days with volume; {LEAST_SPELLS * VOLATILITY_DAYS} needed")
    if recorded.equity is None:
        why = "impact depends on absolute size: --equity AMOUNT in the market's quote currency"
        return StressResult(scenario, method, absent=why)
    size, per_root = np.abs(portfolio.weights), realised[whole] / np.sqrt(traded[whole])
    widened, told = _widening(recorded, level)

    to_sell = size * recorded.equity

    def lost(rows: Ints) -> Floats:
        """(…) of row numbers (…, n)."""
        thin = np.quantile(per_root[rows], level, axis=-2)
        return np.asarray((portfolio.cost + widened + MEAN_TO_FINAL_IMPACT * IMPACT * thin * np.sqrt(to_sell)) @ size)

    again = lost(block_indices(n, VOLATILITY_DAYS, draws, seed))
    depth = np.quantile(traded[whole], 1.0 - level, axis=0)
    return StressResult(
        scenario,
        method,
        loss=interval(again, float(lost(np.arange(n))), n),
        n=n,
        detail=f"equity {recorded.equity:,.0f}; {told}",
        figures={
            "largest position, of the 1 % thinnest day's volume": exact_estimate(float((to_sell / depth).max()), n),
            "1 % thinnest day's volume, of the median day's": exact_estimate(
                float((depth / np.median(traded[whole], axis=0)).min()), n
            ),
        },
    )


def _widening(recorded: MarketHistory, level: float) -> tuple[Floats, str]:
    """(k,) half of what the spread exceeds its median by at a level, as a fraction of price; and what to say of it."""
    seen = np.isfinite(recorded.spread).all(axis=1)
    if not seen.any():
        return np.zeros(len(recorded.symbols)), "no spread was recorded: its widening is not in this loss"
    high, middle = np.quantile(recorded.spread[seen], [level, 0.5], axis=0)
    return np.asarray((high - middle) / 2.0), f"half the spread widens by {(high - middle).max() * 5e3:.2f} bps"


# ---- all of them --------------------------------------------------------------------------------------------------

Scenario = Callable[[Portfolio, MarketHistory, int, int], StressResult]


def _replayed(name: str) -> Scenario:
    def told(portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> StressResult:
        del draws, seed  # it happened once
        return crisis(name, portfolio, recorded)

    return told


SCENARIOS: dict[str, Scenario] = {
    **{f"crisis:{name}": _replayed(name) for name in CRISES},
    "bootstrap": bootstrap,
    "correlation_breakdown": correlation_breakdown,
    "liquidity_drought": liquidity_drought,
}


def stress(name: str, portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> StressResult:
    """One scenario by name; `draws` of the bootstrap that intervals rest on. Raises UnknownName."""
    if name not in SCENARIOS:
        raise UnknownName(f"no scenario {name!r}; known: {', '.join(SCENARIOS)}")
    return SCENARIOS[name](portfolio, recorded, draws, seed)


def stress_all(portfolio: Portfolio, recorded: MarketHistory, draws: int, seed: int) -> list[StressResult]:
    """Every scenario, in the order of SCENARIOS."""
    return [told(portfolio, recorded, draws, seed) for told in SCENARIOS.values()]
