"""Stress the largest portfolio the limits allow; writes docs/results/stress.md.

Run: python -m benchmarks.stress [--to FILE]

Every scenario of `pipelines/evaluation/stress.py` on recorded markets: one market through the crises, pairs otherwise.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

import dataclasses
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from benchmarks.fixture import costs_of_file, recording
from benchmarks.pages import write
from pipelines.contracts import OPEN_TIME, Floats, utc
from pipelines.costs import Costs
from pipelines.data import schemas
from pipelines.data.quality import assess
from pipelines.data.readers.files import micros, numbers, read, read_table
from pipelines.evaluation.crises import CRISES, RESTING, bars_in_window, moves
from pipelines.evaluation.stress import SCENARIOS, stress
from pipelines.evaluation.stress_limits import Case, largest, largest_allowed, stress_of_limits, verdict
from pipelines.evaluation.stress_report import format_percent
from pipelines.evaluation.stressed import MarketHistory, Portfolio, StressResult
from pipelines.params import Params
from pipelines.settings import ROOT, load_params

PAGE = ROOT / "docs" / "results" / "stress.md"
HOUR_S = 3600.0
CRISES_OF = "BTC/USDT"
MARKETS = {
    "BTC/USDT": "binance_spot_btcusdt_1h_2017_2025h1.parquet",
    "ETH/USDT": "binance_spot_ethusdt_1h_to_2025h1.parquet",
    "XAU/USD": "../forex/oanda_xauusd_1h_to_2015h1.parquet",
    "EUR/USD": "../forex/oanda_eurusd_1h_to_2015h1.parquet",
}
PAIRS = (("BTC/USDT", "ETH/USDT"), ("XAU/USD", "EUR/USD"))
EQUITIES = (1e5, 1e6, 1e7, 1e8)  # an axis of the table, in quote currency
STATISTICAL = tuple(name for name in SCENARIOS if not name.startswith("crisis:"))


def hourly(name: str, now: datetime) -> tuple[Floats, Floats]:
    """Return the clean bars (n, 9) of a recorded file, and the spread (n,) at their close as a fraction of the mid
    price.
    """
    path = recording(name)
    bars = schemas.to_matrix(assess(read(path, now).frame, "1h", now).clean)
    table = read_table(path)
    if "ask_close" not in table.column_names:
        return bars, np.full(len(bars), np.nan)
    bid, ask = (numbers(table, f"{side}_close", path) for side in ("bid", "ask"))
    at = dict(zip(micros(table, "open_time", path).astype(np.int64) // 1_000_000, (ask - bid) / ((ask + bid) / 2.0),
                  strict=True))  # fmt: skip
    return bars, np.array([at[int(time)] for time in bars[:, OPEN_TIME]])


def together(names: Sequence[str], markets: dict[str, tuple[Floats, Floats]]) -> MarketHistory:
    """Return the history of the hours that all of these markets have."""
    time = markets[names[0]][0][:, OPEN_TIME]
    for name in names[1:]:
        time = np.intersect1d(time, markets[name][0][:, OPEN_TIME])
    common = [np.isin(markets[name][0][:, OPEN_TIME], time) for name in names]
    bars = np.stack([markets[name][0][rows] for name, rows in zip(names, common, strict=True)], axis=1)
    spread = np.stack([markets[name][1][rows] for name, rows in zip(names, common, strict=True)], axis=1)
    return MarketHistory(tuple(names), HOUR_S, bars, spread)


# ---- the page -----------------------------------------------------------------------------------------------------


def _prose(text: str) -> str:
    """Return text as one paragraph wrapped at 118 columns."""
    return textwrap.fill(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'--:|' * (len(head) - 1)}"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def recorded_moves(data: MarketHistory) -> list[str]:
    """Return the table of the fall and rise of each window."""
    rows = []
    for name, window in CRISES.items():
        bars = bars_in_window(data, window)
        if isinstance(bars, str):
            rows.append([name, window.description, bars, *["–"] * 5])
            continue
        moved = moves(bars[:, 0])
        rows.append([name, window.description, f"{window.since:%F %H:%M} to {window.until:%F %H:%M}", f"{len(bars):,}",
                     f"{moved['fall']:.1%}", f"{moved['fall_hours']:.0f}", f"{moved['rise']:+.1%}",
                     f"{moved['rise_hours']:.0f}"])  # fmt: skip
    head = ("crisis", "what", "UTC, the end exclusive", "bars", "fall", "in hours", "rise", "in hours")
    return _table(head, rows)


def crises(cases: Sequence[Case], limit: float) -> list[str]:
    """Return a line a crisis: worst loss and drawdown of the largest portfolio; bold above the limit."""
    most = largest(cases)
    rows = []
    for i, name in enumerate(CRISES):
        results = [case.results[i] for case in most]
        resting = [result.figures.get(RESTING) for result in results]
        resting_losses = ", ".join(f"{each.value:.2%}" for each in resting if each is not None) or "–"
        slipped = [result.figures.get("furthest filled beyond a stop, of price") for result in results]
        furthest = max((each.value for each in slipped if each is not None), default=float("nan"))
        rows.append([name, *(_both(result, limit) for result in results), resting_losses, f"{furthest:.2%}"])
    head = ("crisis", *(case.name for case in most), "loss if stops rest at the venue: long, short",
            "furthest filled beyond a stop, of price")  # fmt: skip
    return _table(head, rows)


def again(cases: Sequence[Case], limit: float) -> list[str]:
    """Return a line a crisis, reopened after every stop, long and short."""
    most = [case for case in largest(cases) if case.stopped]
    at = {result.scenario: i for i, result in enumerate(most[0].results)}
    rows = []
    for name in CRISES:
        results = [case.results[at[f"reopened:{name}"]] for case in most]
        opened = [f"{r.figures['times opened'].value:.0f}" if r.figures else "–" for r in results]
        rows.append([name, *(cell for r, n in zip(results, opened, strict=True) for cell in (_both(r, limit), n))])
    return _table(("crisis", *(head for case in most for head in (case.name, "opened"))), rows)


def _both(result: StressResult, limit: float) -> str:
    """Return loss and drawdown in words, bold above the limit; the reason where there are none."""
    if result.loss is None or result.drawdown is None:
        return str(result.absent)
    text = f"{result.loss.value:.2%} / {result.drawdown.value:.2%}"
    return f"**{text}**" if result.loss.value > limit else text


def by_row(cases: Sequence[Case], limit: float) -> list[str]:
    """Return the losses by row of limits and crisis."""
    rows = []
    for case in cases:
        losses = [result.loss for result in case.results[: len(CRISES)]]
        cells = ["–" if each is None else f"{each.value:.2%}" for each in losses]
        marked = [f"**{c}**" if each is not None and each.value > limit else c
                  for c, each in zip(cells, losses, strict=True)]  # fmt: skip
        rows.append([f"{case.allowed.row}: {case.name}", *marked])
    return _table(("limits", *CRISES), rows)


def pair(data: MarketHistory, params: Params) -> list[str]:
    """Return the table of the largest portfolio, half in each, both ways and one against the other, resampled and with
    broken correlations.
    """
    gross, stop = largest_allowed(params.risk, 1).gross, largest_allowed(params.risk, 1).stop
    first, second = data.symbols
    lines = []
    positions = (((1, 1), "long both"), ((-1, -1), "short both"), ((1, -1), f"long {first}, short {second}"))
    for sides, description in positions:
        for distance, stopped in ((stop, f"stop {stop:.1%}"), (np.nan, "no stop")):
            portfolio = Portfolio(gross / 2.0 * np.array(sides, float), np.full(2, distance), _side_bps(params))
            found = {
                name: stress(name, portfolio, data, params.gate.bootstrap, params.seed)
                for name in ("bootstrap", "correlation_breakdown")
            }
            if any(result.absent for result in found.values()):
                why = "; ".join(f"{name}: {r.absent}" for name, r in found.items() if r.absent)
                lines.append([f"{description}, {stopped}", why, *["–"] * 5])
                continue
            drawn, broken = (result.figures for result in found.values())
            lines.append([
                f"{description}, {stopped}", *(format_percent(drawn[f"{what} {level}"]) for what in ("loss", "drawdown")
                                        for level in ("95%", "99%")),
                format_percent(found["correlation_breakdown"].loss) if stopped == "no stop" else "as without",
                f"{broken['loss if independent'].value:.2%}, {broken['loss at the correlations recorded'].value:.2%}",
            ])  # fmt: skip
    head = (f"{gross:.0%} gross", "10-day loss 95 %", "loss 99 %", "drawdown 95 %", "drawdown 99 %",
            "breakdown, a day, 99 %", "if independent, as recorded")  # fmt: skip
    return _table(head, lines)


def droughts(pairs: Sequence[MarketHistory], params: Params) -> list[str]:
    """Return the cost of closing everything in a thin market, by the size of the account."""
    gross, rows = largest_allowed(params.risk, 2).gross, []
    for data in pairs:
        for equity in EQUITIES:
            given = dataclasses.replace(data, equity=equity)
            portfolio = Portfolio(np.full(2, gross / 2.0), np.full(2, np.nan), _side_bps(params))
            result = stress("liquidity_drought", portfolio, given, params.gate.bootstrap, params.seed)
            name = " + ".join(data.symbols)
            if result.loss is None:
                rows.append([name, "any", str(result.absent), "–", "–", "–"])
                break
            part, thin = (each.value for each in result.figures.values())
            rows.append(
                [name, f"{equity:,.0f}", format_percent(result.loss), f"{part:.2%}", f"{thin:.1%}", f"{result.n:,}"]
            )
    return _table(("markets", "equity", "loss", "a position, of the thinnest 1 % of days' volume",
                   "that volume, of the median day's", "days"), rows)  # fmt: skip


def _dearest(params: Params) -> Costs:
    """Return the dearest costs of the markets: every portfolio of this page pays them, on each side."""
    return max((costs_of_file(name, params) for name in MARKETS.values()), key=lambda costs: costs.round_trip_bps)


def _side_bps(params: Params) -> float:
    """Return the cost of one side in bps: fee and half spread."""
    return _dearest(params).round_trip_bps / 2.0


def page(markets: dict[str, tuple[Floats, Floats]], params: Params) -> str:
    """Return the whole page. `markets`: name → hourly bars (n, 9) and spreads (n,)."""
    limit, most = params.risk.max_drawdown, largest_allowed(params.risk, 1)
    single = together([CRISES_OF], markets)
    single = dataclasses.replace(single, crises=single.bars)
    pairs = [together(names, markets) for names in PAIRS]
    cases = stress_of_limits(single, params.risk, _side_bps(params), params.gate.bootstrap, params.seed)
    lines = [
        "# Stress: the worst loss of the largest portfolio",
        "",
        _prose("Written by `python -m benchmarks.stress`; nothing here was typed or chosen by hand."),
        "",
        _prose(f"""The largest portfolio that the limits of `params.yaml` let through holds {most.gross:.0%} of equity
        in one market ({largest_allowed(params.risk, 2).gross:.0%} in two), each position with a stop up to
        {most.stop:.1%} away. It is compared with the drawdown limit of {limit:.0%} (bold: broken), which stops opening;
        it closes nothing. Costs {_side_bps(params):g} bps a side, fee and half spread of the dearest market
        ({_dearest(params).describe()}). Per cent are of equity unless stated otherwise; in
        brackets 95 %; without brackets it is what happened."""),
        "",
        f"## Crises, {CRISES_OF} hourly",
        "",
        _prose("""Windows are whole calendar months. Fall and rise: from an earlier extreme, or an hour's open, to a
        later one."""),
        "",
        *recorded_moves(single),
        "",
        _prose("""Opened once, at the worst hour's open of all: largest loss against equity at entry / drawdown.
        A stop that is reached is filled at its price or the next open, whichever is worse, and at the open where an
        hour opens beyond it; nothing is opened again after it. So a stop is up to an hour late, which is most of what
        is beyond it: orders that rest at the venue would have been filled between that and the column next to it.
        Drawdown here is from the highest mark, so it counts profit that was never taken; the account's own, which the
        limit is about, counts what was booked and is the loss."""),
        "",
        *crises(cases, limit),
        "",
        _prose(f"""Opened again at the next open after every stop, from the window's first bar on, until the account
        limits forbid it (a UTC day that lost {params.risk.max_daily_loss:.0%}, a drawdown of {limit:.0%}):"""),
        "",
        *again(cases, limit),
        "",
        "Each row of limits with its widest stop, opened once: largest loss.",
        "",
        *by_row(cases, limit),
        "",
        "What breaks the limit, of all scenarios with this market alone:",
        "",
        *[f"- {line}" for line in verdict(cases, limit)],
        "",
        "## Resampled times and broken correlations, pairs hourly",
        "",
        _prose("""Largest loss and drawdown on the way of ten days (240 hours of an open market) drawn
        from the history in blocks as long, so that falls which last for days stay whole (a stop closes at the end of
        the hour that went beyond it). Breakdown: a day's loss where correlations are at their harmful
        extreme and volatility at its 99 % quantile; stops do not count on it. Next to it: if the two were independent,
        and at the correlation that was recorded."""),
        "",
    ]
    for data in pairs:
        time = data.bars[:, 0, OPEN_TIME]
        correlation = np.atleast_2d(np.corrcoef(data.returns.T))[0, 1]
        lines += [
            f"### {' + '.join(data.symbols)}, {len(time):,} common hours, {utc(time[0]):%F} to {utc(time[-1]):%F}, "
            f"hourly correlation {correlation:.2f}",
            "",
            *pair(data, params),
            "",
        ]
    lines += [
        "## Thin markets",
        "",
        _prose("""Everything is sold within one day as thin and wild as one in a hundred: ordinary cost, widened spread
        where it was recorded, square-root impact with a coefficient of one (of order one in every market measured:
        Tóth et al. 2011; Donier & Bonart 2015 for Bitcoin). That is one venue's volume. Figures far above a tenth of
        a day's volume are beyond what the law was measured on."""),
        "",
        *droughts(pairs, params),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the page."""
    now = datetime.now(UTC)
    write(
        PAGE,
        __doc__,
        MARKETS.values(),
        lambda: page({market: hourly(name, now) for market, name in MARKETS.items()}, load_params()),
    )


if __name__ == "__main__":
    main()
