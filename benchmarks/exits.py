"""Compare the exit plans; writes docs/results/exits.md.

Run: python -m benchmarks.exits [--to FILE]

The four plans of `serving/risk/exits.py` on the same raw ICT events, on a simulated year and on recorded markets, each
against `plain` (target, stop and horizon of the labels). The ladder, the trailing distance and the break-even are those
of params.yaml; none was chosen by these figures.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from benchmarks.fixture import SIMULATED, costs_of_file, recording, simulated
from benchmarks.pages import write
from benchmarks.signals import STEP_S, _line, _prose
from pipelines.contracts import CLOSE, HALF_SPREAD, OPEN_TIME, Estimate, Floats, Ints, utc
from pipelines.costs import Costs, costs_of, target_cost_bps, trade_cost_bps
from pipelines.data import schemas
from pipelines.data.quality import assess
from pipelines.data.readers.files import read
from pipelines.data.timeframes import resample
from pipelines.evaluation.metrics import mean_estimate
from pipelines.evaluation.signals import format_estimate
from pipelines.features import technical
from pipelines.features.catalog import FEATURES
from pipelines.features.fold import StreamingFold
from pipelines.labels.barriers import STOP, TARGET, TIME, UNRESOLVED
from pipelines.params import Params
from pipelines.settings import ROOT, load_params
from pipelines.signals import cisd, fvg, order_block, smt, sweep
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import Events, events
from serving.risk.exits import Exits, flatten, simulate_exits

PAGE = ROOT / "docs" / "results" / "exits.md"
PLANS = ("plain", "ladder", "trailing", "ladder_trailing")
LUCK = 0.025  # of a 95 % interval, beyond one end
BITCOIN = "binance_spot_btcusdt_1m_2024.parquet"
GOLD = "../forex/oanda_xauusd_1h_to_2015h1.parquet"
ICT_GROUPS = tuple(module.GROUP for module in (fvg, sweep, order_block, cisd, smt))  # feature groups of the ICT events


@dataclass(frozen=True)
class Market:
    """Describe one market.

    base (n, 9) are the bars a position is followed on; decision (m, 9) are bars of `step_s` seconds.
    """

    title: str
    about: str
    base: Floats
    decision: Floats
    step_s: int
    costs: Costs


@dataclass(frozen=True)
class PlanResult:
    """Hold the n outcomes of one plan, of events that every plan ended: arrays (n,), in bps and hours."""

    plan: str
    gross: Floats
    net: Floats
    hours: Floats
    barrier: Ints
    legs: Ints


# ---- markets and events -----------------------------------------------------------------------------------------


def recorded(name: str, timeframe: str) -> Floats:
    """Return the clean bars (n, 9) of a recorded file."""
    now = datetime.now(UTC)
    return schemas.to_matrix(assess(read(recording(name), now).frame, timeframe, now).clean)


def markets(params: Params) -> list[Market]:
    """Return the simulated year and the two recorded markets."""
    spec = params.simulator
    year, bitcoin, gold = simulated(params, spec.history_days), recorded(BITCOIN, "1m"), recorded(GOLD, "1h")
    minutes = "15-minute decisions, followed on 1-minute bars"
    title = f"{spec.symbol}, {spec.history_days} simulated days, edge {spec.edge:g}, seed {spec.seed}"
    return [
        Market(f"{title}, {minutes}", "", year, resample(year, 60, STEP_S), STEP_S,
               costs_of(params.costs, *SIMULATED)),
        Market(f"BTC/USDT, {_days(bitcoin)}, {minutes}", "", bitcoin, resample(bitcoin, 60, STEP_S), STEP_S,
               costs_of_file(BITCOIN, params)),
        Market(
            f"XAU/USD, {_days(gold)}, 1-hour decisions, followed on 1-hour bars",
            """Mid prices, and nothing finer was recorded: an hour that reaches both stop and target counts as the stop,
            and a trailing stop moves once an hour. An hour may follow a break of days.""",
            gold,
            gold,
            3600,
            costs_of_file(GOLD, params),
        ),
    ]  # fmt: skip


def _days(bars: Floats) -> str:
    """Return the first and the last day of bars (n, 9)."""
    return " to ".join(f"{utc(bars[i, OPEN_TIME]):%F}" for i in (0, -1))


def ict_events(decision: Floats) -> Events:
    """Return the raw ICT events of decision bars (m, 9): those that the validator scores, without context."""
    ict, measured = StreamingFold("ict", ICT_GROUPS), StreamingFold("technical", (technical.GROUP,))
    signals = np.full((len(decision), len(SIGNALS.columns)), np.nan)
    signals[:, [SIGNALS.index[name] for name in ict.columns]] = ict.run(decision)
    features = np.full((len(decision), len(FEATURES.columns)), np.nan)
    features[:, FEATURES.index["atr_14"]] = measured.run(decision)[:, measured.index["atr_14"]]
    return events(features, signals)


def compare_plans(market: Market, params: Params) -> tuple[list[PlanResult], int, int]:
    """Return every plan's outcomes on the same events, the number of events, and how many were too small to cover their
    cost.
    """
    raised, labels = ict_events(market.decision), params.labels
    least = labels.min_target_to_cost * target_cost_bps(market.costs, market.decision[raised.index])
    large_enough = labels.target_atr * raised.atr * 1e4 >= least
    at, side, atr = raised.index[large_enough], raised.direction[large_enough], raised.atr[large_enough]
    closes, horizon_s = market.decision[at, OPEN_TIME] + market.step_s, float(labels.horizon_bars * market.step_s)
    found: dict[str, Exits] = {}
    for plan in PLANS:
        flat = flatten(params.exits.model_copy(update={"plan": plan}), labels)
        found[plan] = simulate_exits(market.base, closes, market.decision[at, CLOSE], side, atr, horizon_s, flat)
    ended = np.all([one.barrier != UNRESOLVED for one in found.values()], axis=0)
    bar_s = float(np.diff(market.base[:, OPEN_TIME]).min())
    executed = np.full(len(at), np.isfinite(market.base[:, HALF_SPREAD]).all())
    results = [
        PlanResult(
            plan,
            one.gross_bps[ended],
            (one.gross_bps - trade_cost_bps(market.costs, one.barrier, executed))[ended],
            (one.exit_time[ended] + bar_s - one.start_time[ended]) / 3600.0,
            one.barrier[ended],
            one.legs[ended],
        )
        for plan, one in found.items()
    ]
    return results, len(raised), int((~large_enough).sum())


# ---- the page ---------------------------------------------------------------------------------------------------


def over_plain(found: Sequence[PlanResult], params: Params) -> dict[str, Estimate]:
    """Return plan → mean net bps less plain's on the same events."""
    plain = found[0]
    return {one.plan: mean_estimate(one.net - plain.net) for one in found[1:]}


def table(found: Sequence[PlanResult], params: Params) -> list[str]:
    """Return the lines of the table of plans."""
    heads = ("plan", "n", "net bps", "net less plain's, bps", "gross bps", "won, % after cost", "hours open")
    less = over_plain(found, params)
    lines = [
        _line((*heads, "worst, net bps", "to target / stop / time, %", "a leg filled, %")),
        _line(("---", *["--:"] * (len(heads) + 2))),
    ]
    for one in found:
        won = mean_estimate(100.0 * (one.net > 0))
        ways = " / ".join(f"{100.0 * (one.barrier == way).mean():.0f}" for way in (TARGET, STOP, TIME))
        lines.append(
            _line((
                f"`{one.plan}`",
                f"{len(one.net):,}",
                format_estimate(mean_estimate(one.net, float((one.gross - one.net).mean())), 2),
                format_estimate(less[one.plan], 2) if one.plan in less else "–",
                format_estimate(mean_estimate(one.gross), 2),
                format_estimate(won),
                format_estimate(mean_estimate(one.hours), 2),
                f"{one.net.min():.0f}",
                ways,
                f"{100.0 * (one.legs > 0).mean():.0f}",
            ))
        )  # fmt: skip
    return lines


def verdict(found: Sequence[PlanResult], params: Params) -> str:
    """Describe which plans differ from plain with their whole interval, and whether any pays its costs."""
    less = over_plain(found, params)
    better = [f"`{plan}`" for plan, one in less.items() if one.low > 0.0]
    worse = [f"`{plan}`" for plan, one in less.items() if one.high < 0.0]
    paying = [f"`{one.plan}`" for one in found if mean_estimate(one.net).low > 0.0]
    return _prose(f"""**Better than plain with the whole interval: {", ".join(better) or "none"}; worse:
    {", ".join(worse) or "none"}.** By luck alone {LUCK * len(less):.2f} of {len(less)} on either side. Net return above
    zero with the whole interval: {", ".join(paying) or "none"}.""")


def section(market: Market, params: Params) -> list[str]:
    """Return the lines of one market's section."""
    found, raised, small = compare_plans(market, params)
    n = len(found[0].net)
    executed = np.isfinite(market.base[:, HALF_SPREAD])
    about = f"""{market.about} Costs: {market.costs.describe(executed)}. {raised:,} events; {small:,} whose target is
    under {params.labels.min_target_to_cost:g} times the cost were left out, and {raised - small - n:,} without an
    outcome: no bar opened inside their horizon, or the bars end before they do."""
    return [f"## {market.title}", "", _prose(about), "", *table(found, params), "", verdict(found, params), ""]


def page(params: Params) -> str:
    """Return the whole page."""
    labels, exits = params.labels, params.exits
    ladder = ", then ".join(f"{100 * share:g} % at {distance:g} ATR" for distance, share in exits.legs)
    lines = [
        "# Exit plans, compared",
        "",
        _prose("""Written by `python -m benchmarks.exits`; nothing here was typed or chosen by hand. The plans are those
        that `params.yaml` stated before the first run; no other distance was tried."""),
        "",
        _prose(f"""Every plan follows the same raw ICT events (gaps, sweeps, order blocks, changes of delivery; without
        a second market, so divergences give no signal), each independently, from the open of the first bar after the
        decision; the stop begins {labels.stop_atr:g} ATR away and time runs out after {labels.horizon_bars} decision
        bars. `plain` takes the whole position at {labels.target_atr:g} ATR and is the labels' definition of an outcome.
        `ladder` takes {ladder}; after leg {exits.break_even_after_leg} the stop is the fill or better (0: never).
        `trailing` is plain with a stop {exits.trailing_atr:g} ATR behind the best price of the closed bars.
        `ladder_trailing` is both. Where prices have no drift no plan can change the mean of its trades (optional
        stopping), only their spread."""),
        "",
        _prose("""A bar that reaches both stop and target counts as the stop; a bar that opens beyond the stop is
        closed at its open, a target is never better than its price; a bar moves the stop of the bars after it. *Net* is
        gross less the costs of a round trip, named with each market, whatever the number of parts: costs are shares of
        what is traded. *Hours open*: until the last part is closed. In brackets 95 % intervals, t on long
        averages over the events in time order; many events overlap."""),
        "",
    ]
    for market in markets(params):
        lines += section(market, params)
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    write(PAGE, __doc__, (BITCOIN, GOLD), lambda: page(load_params()))


if __name__ == "__main__":
    main()
