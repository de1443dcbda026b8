"""Size and power of what judges tails and losses: the tests of coverage, and the breakers that rest on returns.

`rows()` is the section of docs/results/power.md on them; run alone, it prints the section. Everything is simulated with
a known truth; no market is read. Seeds are fixed.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import t

from benchmarks.tail_budget import LEAST
from pipelines.contracts import Bools, Floats
from pipelines.evaluation.coverage import SIZE, acerbi_szekely, independence, kupiec
from pipelines.params import Params
from pipelines.settings import load_params
from serving.risk.exposure import ES_LEVEL

TEXT = """\
Coverage tests see one violation per forecast, so horizons that overlap count their losses several times: the last two
rows show what that does to a right forecast, and why `docs/results/tail-risk.md` tests horizons that do not overlap.
*12 tests*: the bound that Holm's correction sets for the smallest of a dozen. A dash: the effect is not what the test
is for. A volatility forecast a fifth too low makes VaR and ES four fifths of the true ones; returns have four degrees
of freedom. Breakers stop new trades until a person looks."""
HEADS = ("check", "sees", "threshold", "trips when all is well", "finds", "of the effect")

RUNS = 400  # a share of 5 % has a standard error of 1.1 points
DOZEN = SIZE / 12
NU = 4.0  # degrees of freedom of returns
TAIL = 1.0 - ES_LEVEL
TESTS = ("Kupiec", "Christoffersen", "Acerbi-Székely Z2")
AGAIN = 6.0  # times as likely is a violation right after one, where they cluster
TRADE_BPS, TRADES_A_DAY, SIZE_OF_TRADE = 45.0, 10, 0.05  # a trade's standard deviation; an account's usual day


def rows() -> list[list[str]]:
    """Return the rows of the table, in the order of HEADS."""
    return [*coverage_rows(), *overlap_rows(), *breaker_rows(load_params())]


# ---- tests of coverage --------------------------------------------------------------------------------------------


def p_values(n: int, tail: float, hits_of: Callable[[np.random.Generator], tuple[Bools, Floats]]) -> Floats:
    """Return (RUNS, 3) p of TESTS on n forecasts; `hits_of` draws violations (n,) and loss / ES of each of them."""
    found = np.empty((RUNS, 3))
    for run in range(RUNS):
        hits, severity = hits_of(np.random.default_rng([n, run]))
        found[run] = (
            kupiec(n, int(hits.sum()), tail).p,
            independence(hits[:-1], hits[1:]).p,
            acerbi_szekely(severity, n, tail, run).p,
        )
    return found


def scaled(n: int, tail: float, scale: float) -> Callable[[np.random.Generator], tuple[Bools, Floats]]:
    """Return a draw of violations where the true volatility is `scale` times the one that was forecast."""
    var = -t.ppf(tail, NU)
    es = t.pdf(var, NU) / tail * (NU + var**2) / (NU - 1.0)

    def draw(rng: np.random.Generator) -> tuple[Bools, Floats]:
        """Return violations and severities of independent returns."""
        losses = -scale * rng.standard_t(NU, n)
        hits = losses > var
        return hits, losses[hits] / es

    return draw


def clustered(n: int, tail: float, again: float) -> Callable[[np.random.Generator], tuple[Bools, Floats]]:
    """Return a draw of violations of the right number that follow each other `again` times as often as they should."""
    after, first = again * tail, tail * (1.0 - again * tail) / (1.0 - tail)

    def draw(rng: np.random.Generator) -> tuple[Bools, Floats]:
        """Return a Markov chain of violations, all of the expected size."""
        hits, before = np.empty(n, dtype=bool), rng.random() < tail
        for i, chance in enumerate(rng.random(n)):
            hits[i] = before = chance < (after if before else first)
        return hits, np.ones(int(hits.sum()))

    return draw


def coverage_rows() -> Iterator[list[str]]:
    """Return, by n and tail, how often each test refuses a right forecast and a wrong one."""
    for n, tail, why in (
        (150, TAIL, "a day's horizon of 16 days, 8 years"),
        (LEAST, TAIL, "the fewest that count"),
        (3000, TAIL, "15 minutes, 1.5 years"),
        (776, 0.01, "days, 2 years"),
        (2400, 0.01, "days, 6.5 years"),
        (30_000, 0.01, "hours, 3.5 years"),
    ):
        right, low, runs = (p_values(n, tail, draw) for draw in (
            scaled(n, tail, 1.0), scaled(n, tail, 1.25), clustered(n, tail, AGAIN)
        ))  # fmt: skip
        for i, test in enumerate(TESTS):
            ill, effect = (runs, f"violations {AGAIN:g} times as likely after one") if test == TESTS[1] else (
                low, "volatility forecast a fifth too low"
            )  # fmt: skip
            yield [
                test, f"{n:,} forecasts at {1 - tail:.1%} ({why})", f"p < {SIZE:g}; 12 tests p < {DOZEN:.4f}",
                f"{_share(right[:, i], SIZE)}; {_share(right[:, i], DOZEN)}",
                f"{_share(ill[:, i], SIZE)}; {_share(ill[:, i], DOZEN)}", effect,
            ]  # fmt: skip


def overlap_rows(n: int = LEAST, stride: int = 4) -> Iterator[list[str]]:
    """Return what the tests say of right forecasts of horizons that start `stride` times in each other."""
    horizon = 16
    step = horizon // stride
    wide = np.sort(_summed(np.random.default_rng(0).standard_t(NU, 4_000_000), horizon, 1))
    var = -wide[int(TAIL * len(wide))]
    found = np.empty((RUNS, 2))
    for run in range(RUNS):
        rng = np.random.default_rng([n, stride, run])
        hits = -_summed(rng.standard_t(NU, n * horizon), horizon, step) > var
        found[run] = kupiec(len(hits), int(hits.sum()), TAIL).p, independence(hits[:-1], hits[1:]).p
    for i, test in enumerate(TESTS[:2]):
        yield [
            f"{test}, overlapping", f"{n * stride:,} horizons, {stride} in each other", f"p < {SIZE:g}",
            _share(found[:, i], SIZE), "–", "none: the forecast is right",
        ]  # fmt: skip


def _summed(returns: Floats, horizon: int, step: int) -> Floats:
    """Return sums of `horizon` returns that start `step` apart."""
    total = np.concatenate([[0.0], np.cumsum(returns)])
    return np.asarray((total[horizon:] - total[:-horizon])[::step])


def _share(p: Floats, bound: float) -> str:
    """Return the share of p values under a bound; one that is not computable refuses nothing."""
    return f"{100 * float((p < bound).mean()):.0f} %"


# ---- breakers -----------------------------------------------------------------------------------------------------


def breaker_rows(params: Params) -> Iterator[list[str]]:
    """Return how often the breakers that rest on returns trip: on an ordinary market or account, and on an ill one."""
    limit = params.breakers.spike_atr
    calm, wild = true_ranges(1.0), true_ranges(6.0)
    bars_a_year = 35_040
    yield [
        "`volatility_spike`", "each bar, 15 minutes", f"{limit:g} ATR",
        f"{bars_a_year * float((calm >= limit).mean()):.1f} bars a year",
        f"{float((wild >= limit).mean()):.0%} of bars", "a bar six times as volatile as those before it",
    ]  # fmt: skip
    for factor in (10.0, 15.0):
        yield [
            "`volatility_spike`", "each bar, 15 minutes", f"{limit:g} ATR", "as above",
            f"{float((true_ranges(factor) >= limit).mean()):.0%} of bars", f"a bar {factor:g} times as volatile",
        ]  # fmt: skip
    day, fall = params.risk.max_daily_loss, params.risk.max_drawdown
    usual = account_days(0.0)
    lost = {mean: account_days(mean) for mean in (-10.0, -20.0)}
    worst, full = usual.min(axis=1), full_day(params)
    yield [
        "`daily_loss`", f"{TRADES_A_DAY} trades a day of {SIZE_OF_TRADE:.0%}, no edge", f"{day:.0%} of equity",
        f"{float((worst <= -day).mean()):.1%} of years", f"{float((full <= -day).mean()):.0%} of days",
        f"{params.risk.budgets.max_gross:.0%} gross held on the wrong side of a day of 3 % volatility",
    ]  # fmt: skip
    for mean, days in ((-10.0, 120), (-20.0, 120)):
        yield [
            "`drawdown`", f"{TRADES_A_DAY} trades a day of {SIZE_OF_TRADE:.0%}", f"{fall:.0%} of equity",
            f"{float((_fallen(usual) >= fall).mean()):.0%} of years without edge",
            f"{float((_fallen(lost[mean][:, :days]) >= fall).mean()):.0%} within {days} days", f"{mean:g} bps a trade",
        ]  # fmt: skip


def true_ranges(factor: float, bars: int = 4000, minutes: int = 15, atr_bars: int = 14) -> Floats:
    """Return true range over the ATR before it, of bars whose volatility is `factor` times that of the bars before.

    Each is the last of `atr_bars` + 1 bars of one-minute returns; the volatility of a bar is log-normal.
    """
    rng = np.random.default_rng(7)
    level = np.exp(0.35 * rng.standard_normal((bars * 8, atr_bars + 1)))
    level[:, -1] *= factor
    moves = level[:, :, None] * rng.standard_t(NU, (bars * 8, atr_bars + 1, minutes))
    path = np.cumsum(moves, axis=2)
    ranges = np.maximum(path.max(axis=2), 0.0) - np.minimum(path.min(axis=2), 0.0)
    return np.asarray(ranges[:, -1] / ranges[:, :-1].mean(axis=1))


def account_days(mean_bps: float, years: int = 400, days: int = 365) -> Floats:
    """Return (years, days) returns of an account on usual days whose trades earn `mean_bps` after costs."""
    rng = np.random.default_rng(11)
    net = mean_bps + TRADE_BPS * rng.standard_t(NU, (years, days, TRADES_A_DAY)) / np.sqrt(2.0)
    return np.asarray(SIZE_OF_TRADE * net.sum(axis=2) * 1e-4)


def full_day(params: Params, volatility: float = 0.03, draws: int = 100_000) -> Floats:
    """Return (draws,) losses of a day on which the whole budget is on the side that loses."""
    moves = volatility * np.random.default_rng(13).standard_t(NU, draws) / np.sqrt(2.0)
    return np.asarray(-params.risk.budgets.max_gross * np.abs(moves))


def _fallen(returns: Floats) -> Floats:
    """Return (years,) largest fall of equity under its highest."""
    equity = np.concatenate([np.ones((len(returns), 1)), np.cumprod(1.0 + returns, axis=1)], axis=1)
    return np.asarray((1.0 - equity / np.maximum.accumulate(equity, axis=1)).max(axis=1))


def main() -> None:
    """Print the section."""
    lines = [f"| {' | '.join(HEADS)} |", f"|{'---|' * len(HEADS)}", *(f"| {' | '.join(row)} |" for row in rows())]
    print("\n".join([TEXT, "", *lines]))


if __name__ == "__main__":
    main()
