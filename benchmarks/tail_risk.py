"""Compare forecasts of tail losses with what followed; writes docs/results/tail-risk.md.

Run: python -m benchmarks.tail_risk [--to FILE]

Every method of `pipelines/evaluation/tail_risk.py`, hour by hour and day by day, on recorded markets; then the
forecast behind the tail budgets over a position's longest life, which decides `params.yaml:risk.tail`.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from benchmarks.fixture import recording
from benchmarks.pages import write
from benchmarks.tail_budget import (
    BUDGET_RECORDINGS,
    FILTERED,
    FIRST,
    LEAST,
    LEAST_MARKETS,
    BudgetCase,
    budget_cases,
    case_table,
    closes_of,
    verdicts,
)
from pipelines.contracts import CLOSE, DAY_S, OPEN_TIME, Floats, utc
from pipelines.data import schemas
from pipelines.data.quality import assess
from pipelines.data.readers.files import read
from pipelines.evaluation.coverage import DRAWS, SIZE, Coverage, Significance
from pipelines.evaluation.tail_risk import BURN_IN, DECAY, METHODS, backtest
from pipelines.params import Params
from pipelines.settings import ROOT, load_params
from serving.risk.exposure import ES_LEVEL

PAGE = ROOT / "docs" / "results" / "tail-risk.md"
MARKETS = {
    "BTC/USDT": "binance_spot_btcusdt_1h_2017_2025h1.parquet",
    "ETH/USDT": "binance_spot_ethusdt_1h_to_2025h1.parquet",
    "EUR/USD": "../forex/oanda_eurusd_1h_to_2015h1.parquet",
    "XAU/USD": "../forex/oanda_xauusd_1h_to_2015h1.parquet",
}
LEVELS = (0.95, 0.99)
WINDOWS = {"hourly": 1000, "daily": 500}  # returns a forecast uses; set before any figure was read
HOURS_OF_A_DAY = 12  # a UTC day with fewer, such as the Sunday evening of a currency, is none of its own
DAY_S = int(DAY_S)
SHORT = {"kupiec": "K", "independence": "I", "conditional": "C", "acerbi_szekely": "Z"}


@dataclass(frozen=True)
class Backtested:
    """Hold the coverage of a method on one market, one step and one level."""

    market: str
    step: str
    level: float
    method: str
    found: Coverage

    @property
    def passed(self) -> bool:
        """Return whether no test refuses the method."""
        return not self.found.rejected_by()


def closes(bars: Floats, step: str) -> Floats:
    """Return closes (m,) of hourly bars (n, 9): of each hour, or of the last hour of each UTC day with enough hours."""
    if step == "hourly":
        return bars[:, CLOSE]
    _, first, hours = np.unique(bars[:, OPEN_TIME] // DAY_S, return_index=True, return_counts=True)
    return np.asarray(bars[(first + hours - 1)[hours >= HOURS_OF_A_DAY], CLOSE])


def simple_returns(prices: Floats) -> Floats:
    """Return (m - 1,) returns from each price to the next available one: a closed weekend is one return, as a holder
    bears it.
    """
    return np.asarray(prices[1:] / prices[:-1] - 1.0)


def backtest_all(market: str, bars: Floats) -> list[Backtested]:
    """Backtest every method on hourly and daily returns at both levels."""
    return [
        Backtested(market, step, level, method, backtest(simple_returns(closes(bars, step)), method, level, window))
        for step, window in WINDOWS.items()
        for level in LEVELS
        for method in METHODS
    ]


# ---- the page ---------------------------------------------------------------------------------------------------


def table(rows: Sequence[Backtested]) -> list[str]:
    """Return the lines of one market's table."""
    names = ("level", "method", "n", "violations", "expected", "Kupiec p", "independence p", "conditional p")
    return [
        f"| {' | '.join((*names, 'Z2', 'Z2 p', 'ES / VaR', 'refused by'))} |",
        f"|---|---{9 * '|--:'}|---|",
        *[_line(row) for row in rows],
    ]


def _line(row: Backtested) -> str:
    """Return one line of that table."""
    found = row.found
    by = " ".join(SHORT[name] for name in found.rejected_by()) or "–"
    counts = (f"{found.n:,}", f"{found.violations:,}", f"{found.expected:,.1f}")
    tests = (_p(found.kupiec), _p(found.independence), _p(found.conditional))
    shortfall = (f"{found.acerbi_szekely.statistic:z.2f}", _p(found.acerbi_szekely), f"{found.es_over_var:.2f}")
    return f"| {' | '.join((f'{row.level:.0%}', f'`{row.method}`', *counts, *tests, *shortfall, by))} |"


def _p(test: Significance) -> str:
    """Format a p value."""
    if not np.isfinite(test.p):
        return "–"
    return f"{test.p:.3f}" if test.p >= 0.001 else "< .001"


def summary(rows: Sequence[Backtested]) -> list[str]:
    """Return a line a method: in how many cases it is not refused, and where."""
    cases = len(rows) // len(METHODS)
    lines = [
        f"| method | not refused, of {cases} | hourly | daily | where | by K | by I | by C | by Z |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    for method in METHODS:
        own = [row for row in rows if row.method == method]
        accepted = [row for row in own if row.passed]
        by_step = [f"{sum(r.step == step for r in accepted)} of {sum(r.step == step for r in own)}" for step in WINDOWS]
        where = "; ".join(f"{r.market} {r.step} {r.level:.0%}" for r in accepted) or "none"
        by = [str(sum(name in r.found.rejected_by() for r in own)) for name in SHORT]
        lines.append(f"| {' | '.join((f'`{method}`', str(len(accepted)), *by_step, where, *by))} |")
    return lines


def verdict(rows: Sequence[Backtested]) -> str:
    """Describe which methods are refused everywhere, where all are, and which are right in number and size."""
    sentences = []
    for step in WINDOWS:
        own = [row for row in rows if row.step == step]
        accepted = [row for row in own if row.passed]
        methods, places = {row.method for row in accepted}, {(row.market, row.level) for row in accepted}
        never = [f"`{method}`" for method in METHODS if method not in methods]
        cases = dict.fromkeys((row.market, row.level) for row in own)
        all_refused = [f"{market} {level:.0%}" for market, level in cases if (market, level) not in places]
        nowhere = ", ".join(never) or "none"
        sentences.append(f"{step.capitalize()} returns: refused on every market and level: {nowhere};")
        everywhere = ", ".join(all_refused) or "none"
        sentences.append(f"markets and levels on which every method is refused: {everywhere}.")
    missized = {row.method for row in rows if {"kupiec", "acerbi_szekely"} & set(row.found.rejected_by())}
    sized = [f"`{method}`" for method in METHODS if method not in missized]
    sentences.append("Never refused for the number of violations (K) or for their size (Z):")
    sentences.append(f"{', '.join(sized) or 'none'}.")
    return _prose(" ".join(sentences))


def _prose(text: str) -> str:
    """Return text as one paragraph wrapped at 118 columns."""
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def budget_section(cases: Sequence[BudgetCase], params: Params) -> list[str]:
    """Return the lines of the section on the budgets' own forecast."""
    horizon = params.labels.horizon_bars
    return [
        "## The budgets' own forecast",
        "",
        _prose(f"""`risk.budgets.max_es` and `max_stress` limit the expected shortfall at {ES_LEVEL:g} over a position's
        longest life, {horizon} decision bars. Here that forecast is made as the service makes it: scenarios of up to
        half a year of 15-minute bars, all bars counted though they overlap, made again every
        {params.retrain.interval_days} days; the EWMA volatility (decay {params.risk.tail.decay:g} a bar, which
        RiskMetrics chose for horizons of many steps; not fitted here) at the newest close. The first forecast has
        {FIRST:,} closes behind it. It is tested at horizons that do not overlap: overlapping ones share their losses,
        and then independence refuses every right forecast and Kupiec's test one in five (`docs/results/power.md`). So
        n is about the bars over {horizon}."""),
        "",
        _prose(f"""A method passes on a timeframe if no test of any market and side refuses it, 5 % for all of them
        together (Holm), counting markets with at least {LEAST:,} forecasts, and at least {LEAST_MARKETS} of these: from
        there on the tests find a VaR and ES of four fifths in 80 % of cases. Independence has less power: of
        violations that follow each other six times as often as they should it finds half at that n. For the larger of
        both, too few violations are no fault: it is the limit where nothing better has passed. These rules were set
        from `docs/results/power.md` before a figure was read. Where `{FILTERED}` passed it is used alone, elsewhere the
        larger; a decision names its method in `lineage.tail`."""),
        "",
        *verdicts(cases),
        "",
        *case_table(cases),
        "",
    ]


def page(markets: dict[str, Floats], cases: Sequence[BudgetCase], params: Params) -> str:
    """Return the whole page. `markets`: name → hourly bars (n, 9); `cases` of `budget_cases`."""
    rows = [row for market, bars in markets.items() for row in backtest_all(market, bars)]
    lines = [
        "# Value at risk and expected shortfall against what followed",
        "",
        _prose("Written by `python -m benchmarks.tail_risk`; nothing here was typed or chosen by hand."),
        "",
        _prose(f"""Each hour's or day's loss of a long position is forecast from the {WINDOWS["hourly"]:,} hourly or
        {WINDOWS["daily"]} daily simple returns before it and nothing else. No setting was fitted to these figures: EWMA
        decay {DECAY:g} (which RiskMetrics chose for days), {BURN_IN} returns of burn-in. Closed hours and gaps make one
        return from the last price to the next. A day is a UTC day with at least {HOURS_OF_A_DAY} hours; the move of a
        shorter one falls to the next. The currency and the metal are middle prices."""),
        "",
        _prose(f"""Refused: a p under {SIZE:g}. K, Kupiec: too many or too few violations. I, Christoffersen: a
        violation is likelier (or less likely) right after another. C: both at once. Z, Acerbi and Székely's Z2:
        violations lose more than the ES predicts; zero if right, and below it if losses are underestimated; p of
        {DRAWS:,} draws of a bootstrap under the null. – : no violation, nothing to test. With many rows a test sees
        small faults: compare violations with expected. Four tests at {SIZE:.0%} refuse even a right forecast more than
        one time in twenty; and where few violations are expected (99 % of days) they let much pass."""),
        "",
        *budget_section(cases, params),
        "## Which methods are not refused",
        "",
        *summary(rows),
        "",
        verdict(rows),
    ]
    for market, bars in markets.items():
        for step in WINDOWS:
            days = " to ".join(f"{utc(bars[i, OPEN_TIME]):%F}" for i in (0, -1))
            lines += ["", f"## {market}, {step}, {days}", ""]
            lines += table([row for row in rows if (row.market, row.step) == (market, step)])
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    now, params = datetime.now(UTC), load_params()
    files = [name for _, _, names, _ in BUDGET_RECORDINGS for name in names]
    write(PAGE, __doc__, [*MARKETS.values(), *files], lambda: page(_recorded(now), budgets(now, params), params))


def budgets(now: datetime, params: Params) -> list[BudgetCase]:
    """Return every case of the budgets' own forecast, finest timeframe first."""
    found = []
    for market, base, names, timeframes in BUDGET_RECORDINGS:
        parts = [assess(read(recording(name), now).frame, base, now).clean for name in names]
        bars = np.concatenate([schemas.to_matrix(part) for part in parts])
        for timeframe in timeframes:
            found += budget_cases(market, timeframe, closes_of(bars, timeframe, base), params)
    order = list(dict.fromkeys(name for _, _, _, timeframes in BUDGET_RECORDINGS for name in timeframes))
    return sorted(found, key=lambda case: order.index(case.timeframe))


def _recorded(now: datetime) -> dict[str, Floats]:
    """Return the clean hourly bars (n, 9) of every market."""
    return {
        market: schemas.to_matrix(assess(read(recording(name), now).frame, "1h", now).clean)
        for market, name in MARKETS.items()
    }


if __name__ == "__main__":
    main()
