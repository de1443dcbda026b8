"""Compare portfolio methods; writes docs/results/portfolio.md.

Run: python -m benchmarks.portfolio [--to FILE]

Every method of the registry, walked forward on recorded markets and on simulated assets whose truth is known, after
costs, against 1/N with intervals of the difference. Nothing was chosen by these figures: one window, one rhythm, one
band, written here before the first run.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import reduce

import numpy as np
from scipy.optimize import nnls

from benchmarks.fixture import SIMULATED, costs_of_file, recording
from benchmarks.pages import write
from benchmarks.signals import _line, _prose
from pipelines.contracts import CLOSE, DAY_S, OPEN_TIME, Estimate, Floats, utc
from pipelines.costs import Costs, costs_of
from pipelines.data import schemas
from pipelines.data.quality import assess
from pipelines.data.readers.files import read
from pipelines.evaluation.portfolio import METHODS, Figures, Path, figures, walk
from pipelines.evaluation.signals import WEEK_S, format_estimate
from pipelines.params import Params
from pipelines.settings import ROOT, load_params

PAGE = ROOT / "docs" / "results" / "portfolio.md"
YEAR_S = 365.25 * DAY_S
WINDOW_WEEKS = 26
BAND_SHARE = 0.2  # of 1/N: half the width of a band
BASELINE = "equal"


@dataclass(frozen=True)
class Market:
    """Describe one market. every: rows of a week; given: (k,) weights of `custom`, None if there are none to give."""

    title: str
    about: str
    assets: tuple[str, ...]
    returns: Floats
    rows_a_year: float
    every: int
    costs: Costs
    given: Floats | None = None


# ---- markets ----------------------------------------------------------------------------------------------------

CRYPTO = {
    "BTC/USDT": "binance_spot_btcusdt_1h_2017_2025h1.parquet",
    "ETH/USDT": "binance_spot_ethusdt_1h_to_2025h1.parquet",
}
FOREX = {
    "EUR/USD": "../forex/oanda_eurusd_1h_to_2015h1.parquet",
    "XAU/USD": "../forex/oanda_xauusd_1h_to_2015h1.parquet",
}


def recorded(files: dict[str, str], about: str, params: Params) -> Market:
    """Return the market of the hours that all the files have; mid prices where bid and ask were recorded.

    All its assets pay the costs of the dearest of them.
    """
    costs = max((costs_of_file(name, params) for name in files.values()), key=lambda each: each.round_trip_bps)
    now = datetime.now(UTC)
    bars = [schemas.to_matrix(assess(read(recording(name), now).frame, "1h", now).clean) for name in files.values()]
    opened = reduce(np.intersect1d, (matrix[:, OPEN_TIME] for matrix in bars))
    closes = np.column_stack([matrix[np.isin(matrix[:, OPEN_TIME], opened), CLOSE] for matrix in bars])
    span = float(opened[-1] - opened[0])
    days = " to ".join(f"{utc(moment):%F}" for moment in (opened[0], opened[-1]))
    return Market(
        title=f"{' and '.join(files)}, {days}, hourly",
        about=f"{about} Costs: {costs.describe()}.",
        assets=tuple(files),
        returns=closes[1:] / closes[:-1] - 1.0,
        rows_a_year=(len(opened) - 1) / span * YEAR_S,
        every=round((len(opened) - 1) / span * WEEK_S),
        costs=costs,
    )


DAYS_A_YEAR, SIMULATED_YEARS, ASSETS = 252, 10, 10


def simulated(params: Params, years: int = SIMULATED_YEARS) -> Market:
    """Return a market of ten assets of two factors and own noise, the same law every day; `given` is the truth."""
    seed, costs = params.seed, costs_of(params.costs, *SIMULATED)
    rng = np.random.default_rng(seed)
    loadings = np.column_stack([rng.uniform(0.5, 1.5, ASSETS), rng.normal(0.0, 0.7, ASSETS)])
    volatility, premium = np.array([0.15, 0.08]), np.array([0.06, 0.0])
    own = rng.uniform(0.10, 0.30, ASSETS)
    mean = loadings @ premium + rng.normal(0.0, 0.06, ASSETS)
    covariance = (loadings * volatility**2) @ loadings.T + np.diag(own**2)
    rows = DAYS_A_YEAR * years
    moves = rng.normal(size=(rows, 2)) * volatility @ loadings.T + rng.normal(size=(rows, ASSETS)) * own
    root = np.linalg.cholesky(covariance)
    best = nnls(root.T, np.linalg.solve(root, mean))[0]  # max w'mean - w'covariance w / 2 over w >= 0, up to a factor
    best /= best.sum()
    ratios = [float(w @ mean / np.sqrt(w @ covariance @ w)) for w in (best, np.full(ASSETS, 1.0 / ASSETS))]
    return Market(
        title=f"Ten simulated assets, {years} years of {DAYS_A_YEAR} days, seed {seed}",
        about=f"""Two common factors (volatility {100 * volatility[0]:g} % and {100 * volatility[1]:g} % a year, premium
        {100 * premium[0]:g} % and none), own volatility from 10 % to 30 %, own drift of 6 % standard deviation; drawn
        once, the same on every day. `custom` is given the truth: the long-only weights with the highest Sharpe under
        the law that made the returns ({ratios[0]:.2f} a year; 1/N: {ratios[1]:.2f}). They could not be known in
        advance; they show how much there was to find, and whether the intervals could detect it. Costs:
        {costs.describe()}.""",
        assets=tuple("ABCDEFGHIJ"),
        returns=mean / DAYS_A_YEAR + moves / np.sqrt(DAYS_A_YEAR),
        rows_a_year=float(DAYS_A_YEAR),
        every=DAYS_A_YEAR // 50,
        costs=costs,
        given=best,
    )


# ---- figures and tables -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walked:
    """Hold a method's path through a market, and its figures."""

    path: Path
    figures: Figures


def walk_all(market: Market, band: float, params: Params) -> list[Walked]:
    """Walk every method of the registry, 1/N first."""
    cost_bps = market.costs.fee_bps + market.costs.half_spread_bps
    window = WINDOW_WEEKS * market.every
    paths = [
        walk(market.returns, method, market.every, window, cost_bps, band, given=market.given)
        for method in sorted(METHODS, key=lambda name: name != BASELINE)
    ]
    return [Walked(path, figures(path, paths[0], market.rows_a_year)) for path in paths]


def table(found: Sequence[Walked]) -> list[str]:
    """Return the lines of the table of methods, and of their abstentions."""
    lines = [
        "| method | net return, % a year | over 1/N, points | Sharpe | over 1/N | volatility, % | drawdown, % | "
        "turnover a year | cost, bps a year |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        if one.path.never_allocated:
            continue
        f, baseline = one.figures, one.path.method == BASELINE
        lines.append(
            _line((
                one.path.method,
                format_estimate(_percent(f.net_return)),
                "–" if baseline else format_estimate(_percent(f.return_over_equal)),
                format_estimate(f.sharpe, 2),
                "–" if baseline else format_estimate(f.sharpe_over_equal, 2),
                f"{100 * f.volatility:.1f}",
                f"{100 * f.max_drawdown:.1f}",
                f"{f.turnover:.2f}",
                f"{1e4 * f.cost:.1f}",
            ))
        )  # fmt: skip
    for one in found:
        for reason, count in one.path.abstained.items():
            share = "at every decision" if one.path.never_allocated else f"at {count} of {one.path.decisions} decisions"
            idle = float((one.path.weights[1:].sum(axis=1) < 0.5).mean())  # the first row ends with the first fill
            cash = (
                f" Before its first weights it was in cash: in {100 * idle:.1f} % of the rows, where 1/N was invested."
                if idle
                else ""
            )
            lines += [
                "",
                _prose(f"`{one.path.method}` abstained {share}: {reason}.{'' if one.path.never_allocated else cash}"),
            ]
    return lines


def attributed(market: Market, found: Sequence[Walked]) -> list[str]:
    """Return the lines of the table of what each asset added."""
    lines = [
        _line(("method", *market.assets, "total")),
        _line(("---", *["--:"] * (len(market.assets) + 1))),
    ]
    for one in found:
        if not one.path.never_allocated:
            added = [f"{100 * value:+.1f}" for value in (*one.path.attribution, one.path.total)]
            lines.append(_line((one.path.method, *added)))
    return lines


def band_effect(market: Market, plain: Sequence[Walked], banded: Sequence[Walked], params: Params) -> list[str]:
    """Return the lines of the table of the band against its own method without one, on the same rows."""
    lines = [
        "| method | net return, with a band over without, points a year | Sharpe, likewise | cost without, bps a "
        "year | saved by the band |",
        "|---|--:|--:|--:|--:|",
    ]
    for one, other in zip(banded, plain, strict=True):
        if one.path.never_allocated:
            continue
        difference = figures(one.path, other.path, market.rows_a_year)
        before, after = 1e4 * other.figures.cost, 1e4 * one.figures.cost
        lines.append(
            _line((
                one.path.method,
                format_estimate(_percent(difference.return_over_equal), 2),
                format_estimate(difference.sharpe_over_equal, 3),
                f"{before:.1f}",
                f"{before - after:.1f}",
            ))
        )  # fmt: skip
    return lines


def verdict(found: Sequence[Walked], how: str) -> str:
    """Describe which methods beat 1/N with their whole interval.

    The given truth is not a method and is listed apart.
    """
    methods = [one for one in found if not one.path.never_allocated and one.path.method not in (BASELINE, "custom")]
    comparisons = []
    for what, of in (("net return", "return_over_equal"), ("Sharpe", "sharpe_over_equal")):
        above = [one.path.method for one in methods if getattr(one.figures, of).low > 0.0]
        below = [one.path.method for one in methods if getattr(one.figures, of).high < 0.0]
        comparisons.append(f"{what}: above {', '.join(above) or 'none'}; below {', '.join(below) or 'none'}")
    truth = [one for one in found if one.path.method == "custom" and not one.path.never_allocated]
    seen = ""
    if truth:
        sure = truth[0].figures.sharpe_over_equal.low > 0.0
        seen = f" The truth itself {'is' if sure else 'is not'} distinguished from 1/N by Sharpe in so many years."
    return _prose(f"""**{how}. Of {len(methods)} methods with their whole interval against 1/N** –
    {"; ".join(comparisons)}. By luck alone {len(methods) * 0.025:.2f} on either side of either figure.{seen}""")


def _percent(estimate: Estimate) -> Estimate:
    """Return an estimate in per cent."""
    return Estimate(100 * estimate.value, 100 * estimate.low, 100 * estimate.high, estimate.n, estimate.cost_bps)


# ---- the page ---------------------------------------------------------------------------------------------------


def section(market: Market, params: Params) -> list[str]:
    """Return the lines of one market's section."""
    band = BAND_SHARE / len(market.assets)
    plain, banded = walk_all(market, 0.0, params), walk_all(market, band, params)
    about = f"""{market.about} {len(plain[0].path.net):,} rows after the first window, {plain[0].path.decisions}
    decisions, one every {market.every} rows."""
    return [
        f"## {market.title}", "", _prose(about), "",
        "### Without a band", "", *table(plain), "", verdict(plain, "Without a band"), "",
        f"### With a band of ±{100 * band:g} points", "", *table(banded), "", verdict(banded, "With a band"), "",
        "### Effect of the band", "", *band_effect(market, plain, banded, params), "",
        "### Attribution", "", *attributed(market, plain), "",
    ]  # fmt: skip


def page(params: Params) -> str:
    """Return the whole page."""
    lines = [
        "# Portfolio methods, compared",
        "",
        _prose("""Written by `python -m benchmarks.portfolio`; nothing here was typed or chosen by hand. One window, one
        rhythm and one band were set before the first run, and no other was tried."""),
        "",
        _prose(f"""Each method sees the last {WINDOW_WEEKS} weeks, decides once a week and is filled one row after it
        decided. Long only; cash earns nothing, and neither carry nor swap is counted. Costs, of one side, are paid on
        what is bought and on what is sold, the first allocation too. *Max Sharpe*, *risk parity* and *HRP* are
        skfolio's, on a covariance shrunk by Ledoit and Wolf; *max Sharpe* counts what getting there costs. *Net return*
        is compounded.
        *Over 1/N* is the difference to equal weights on the same rows at the same cost and band. In brackets 95 %
        intervals, t on long averages of the rows' influences. *Turnover*:
        bought and sold, in portfolios. A method that abstains keeps its positions."""),
        "",
        _prose(f"""With a band, an asset is left alone while its share is within {BAND_SHARE:g}/N of its target; beyond,
        it is brought to the edge, and the trades pay their own fee. *Effect of the band*: each method with it less
        itself without, on the same rows and draws. *Attribution*: what each asset added to the total return less what
        trading it cost, in points of the starting portfolio; without a band."""),
        "",
    ]
    markets = (
        recorded(CRYPTO, "Two assets that mostly move together.", params),
        recorded(FOREX, "Mid prices; only hours in which both were quoted, so that a row may span a break.", params),
        simulated(params),
    )
    for market in markets:
        lines += section(market, params)
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    write(PAGE, __doc__, (*CRYPTO.values(), *FOREX.values()), lambda: page(load_params()))


if __name__ == "__main__":
    main()
