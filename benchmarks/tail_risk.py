"""`python -m benchmarks.tail_risk [--to FILE]`: docs/tail-risk.md, which forecasts of tail losses markets refuse.

Every method of `pipelines/evaluation/tail_risk.py`, hour by hour and day by day, held to what came afterwards.
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
from pipelines.contracts import CLOSE, OPEN_TIME, Floats, utc
from pipelines.data import schemas
from pipelines.data.quality import assess
from pipelines.data.readers.files import read
from pipelines.evaluation.coverage import DRAWS, SIZE, Coverage, Significance
from pipelines.evaluation.tail_risk import BURN_IN, DECAY, METHODS, backtest
from pipelines.settings import ROOT

PAGE = ROOT / "docs" / "tail-risk.md"
MARKETS = {
    "BTC/USDT": "binance_spot_btcusdt_1h_2017_2025h1.parquet",
    "ETH/USDT": "binance_spot_ethusdt_1h_to_2025h1.parquet",
    "EUR/USD": "../forex/oanda_eurusd_1h_to_2015h1.parquet",
    "XAU/USD": "../forex/oanda_xauusd_1h_to_2015h1.parquet",
}
LEVELS = (0.95, 0.99)
WINDOWS = {"hourly": 1000, "daily": 500}  # returns a forecast rests on; set before anything was looked at
HOURS_OF_A_DAY = 12  # a UTC day with fewer, such as the Sunday evening of a currency, is none of its own
DAY_S = 86_400
SHORT = {"kupiec": "K", "independence": "I", "conditional": "C", "acerbi_szekely": "Z"}


@dataclass(frozen=True)
class Judged:
    """A method on one market, one step and one level."""

    market: str
    step: str
    level: float
    method: str
    found: Coverage

    @property
    def passed(self) -> bool:
        return not self.found.rejected_by()


def closes(bars: Floats, step: str) -> Floats:
    """Closes (m,) of hourly bars (n, 8): of each hour, or of the last hour of each UTC day that has hours enough."""
    if step == "hourly":
        return bars[:, CLOSE]
    _, first, hours = np.unique(bars[:, OPEN_TIME] // DAY_S, return_index=True, return_counts=True)
    return np.asarray(bars[(first + hours - 1)[hours >= HOURS_OF_A_DAY], CLOSE])


def simple_returns(prices: Floats) -> Floats:
    """(m - 1,) from each price to the next one there is: a closed weekend is one return, as holders bear it."""
    return np.asarray(prices[1:] / prices[:-1] - 1.0)


def judged(market: str, bars: Floats) -> list[Judged]:
    return [
        Judged(market, step, level, method, backtest(simple_returns(closes(bars, step)), method, level, window))
        for step, window in WINDOWS.items()
        for level in LEVELS
        for method in METHODS
    ]


# ---- the page ---------------------------------------------------------------------------------------------------


def table(rows: Sequence[Judged]) -> list[str]:
    names = ("level", "method", "n", "violations", "expected", "Kupiec p", "independence p", "conditional p")
    return [
        f"| {' | '.join((*names, 'Z2', 'Z2 p', 'ES / VaR', 'refused by'))} |",
        f"|---|---{9 * '|--:'}|---|",
        *[_line(row) for row in rows],
    ]


def _line(row: Judged) -> str:
    found = row.found
    by = " ".join(SHORT[name] for name in found.rejected_by()) or "–"
    counts = (f"{found.n:,}", f"{found.violations:,}", f"{found.expected:,.1f}")
    tests = (_p(found.kupiec), _p(found.independence), _p(found.conditional))
    shortfall = (f"{found.acerbi_szekely.statistic:z.2f}", _p(found.acerbi_szekely), f"{found.es_over_var:.2f}")
    return f"| {' | '.join((f'{row.level:.0%}', f'`{row.method}`', *counts, *tests, *shortfall, by))} |"


def _p(test: Significance) -> str:
    if not np.isfinite(test.p):
        return "–"
    return f"{test.p:.3f}" if test.p >= 0.001 else "< .001"


def summary(rows: Sequence[Judged]) -> list[str]:
    """A line a method: how often it stands, and where."""
    cases = len(rows) // len(METHODS)
    lines = [
        f"| method | stands, of {cases} | hourly | daily | stands on | by K | by I | by C | by Z |",
        "|---|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    for method in METHODS:
        mine = [row for row in rows if row.method == method]
        stood = [row for row in mine if row.passed]
        by_step = [f"{sum(r.step == step for r in stood)} of {sum(r.step == step for r in mine)}" for step in WINDOWS]
        where = "; ".join(f"{r.market} {r.step} {r.level:.0%}" for r in stood) or "none"
        by = [str(sum(name in r.found.rejected_by() for r in mine)) for name in SHORT]
        lines.append(f"| {' | '.join((f'`{method}`', str(len(stood)), *by_step, where, *by))} |")
    return lines


def verdict(rows: Sequence[Judged]) -> str:
    """In words: which methods are refused everywhere, where all are, and which are right in number and size."""
    said = []
    for step in WINDOWS:
        mine = [row for row in rows if row.step == step]
        stood = [row for row in mine if row.passed]
        methods, places = {row.method for row in stood}, {(row.market, row.level) for row in stood}
        never = [f"`{method}`" for method in METHODS if method not in methods]
        cases = dict.fromkeys((row.market, row.level) for row in mine)
        lost = [f"{market} {level:.0%}" for market, level in cases if (market, level) not in places]
        said.append(f"{step.capitalize()} returns: refused on every market and level: {', '.join(never) or 'none'};")
        said.append(f"markets and levels on which every method is refused: {', '.join(lost) or 'none'}.")
    missized = {row.method for row in rows if {"kupiec", "acerbi_szekely"} & set(row.found.rejected_by())}
    sized = [f"`{method}`" for method in METHODS if method not in missized]
    said.append("Never refused for the number of violations (K) or for what they lose (Z):")
    said.append(f"{', '.join(sized) or 'none'}.")
    return _prose(" ".join(said))


def _prose(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def page(markets: dict[str, Floats]) -> str:
    """`markets`: name → hourly bars (n, 8)."""
    rows = [row for market, bars in markets.items() for row in judged(market, bars)]
    lines = [
        "# Value at risk and expected shortfall, held to what came",
        "",
        _prose("Written by `python -m benchmarks.tail_risk`; nothing here was typed or chosen by hand."),
        "",
        _prose(f"""Each hour's or day's loss of a holder is forecast from the {WINDOWS["hourly"]:,} hourly or
        {WINDOWS["daily"]} daily simple returns before it and nothing else. No setting was fitted to these figures: EWMA
        decay {DECAY:g} (which RiskMetrics chose for days), {BURN_IN} returns of burn-in. Closed hours and gaps make one
        return from the last price to the next. A day is a UTC day with at least {HOURS_OF_A_DAY} hours; the move of a
        shorter one falls to the next. The currency and the metal are middle prices."""),
        "",
        _prose(f"""Refused: a p under {SIZE:g}. K, Kupiec: too many or too few violations. I, Christoffersen: a
        violation is likelier (or less likely) right after another. C: both at once. Z, Acerbi and Székely's Z2:
        violations lose more than the ES said; nought if right, and under it if losses are underestimated; p of
        {DRAWS:,} draws of a bootstrap under the null. – : no violation, nothing to see. With many rows a test sees
        small faults: read violations beside expected. Four tests at {SIZE:.0%} refuse even a right forecast more than
        one time in twenty; and where few violations are expected (99 % of days) they let much pass."""),
        "",
        "## What stands",
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
    write(PAGE, __doc__, MARKETS.values(), lambda: page(_recorded(datetime.now(UTC))))


def _recorded(now: datetime) -> dict[str, Floats]:
    return {
        market: schemas.to_matrix(assess(read(recording(name), now, "1h"), "1h", now).clean)
        for market, name in MARKETS.items()
    }


if __name__ == "__main__":
    main()
