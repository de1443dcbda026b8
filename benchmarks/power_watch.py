"""Power of every alarm of the watch, before any result is seen: `python -m benchmarks.power_watch` prints the rows.

Each row says what a watch will see, what it must find, how often it is wrong and how often right at the thresholds of
params.yaml. Markets are made here, not recorded: columns and outcomes that overlap as ours do. Seeds are fixed; about
three minutes on one slow core.
"""

if __name__ == "__main__":  # before numpy is imported: BLAS reads its number of threads once
    from pipelines.bootstrap import bootstrap

    bootstrap()

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from pipelines.contracts import DAY_S, Floats
from pipelines.data.timeframes import seconds
from pipelines.experiments.eprocess import LEAST_BLOCKS, BlockScores, anytime_p, block_means, e_process
from pipelines.families import FAMILIES
from pipelines.models.edge import Edge, measure_edge, paired_gains
from pipelines.models.reference import DriftReference, fit_reference
from pipelines.monitoring.drift import DAYS_A_MONTH, AlarmRates, alarm_rates, detect
from pipelines.monitoring.loss import loss_alpha
from pipelines.params import Params
from pipelines.settings import load_params

TEXT = """\
Each alarm of the watch at the thresholds of `params.yaml`: what it sees, what it must find, how often it is wrong and
how often right, on markets and outcomes made here. The budgets add up to less than one false alarm a month."""
HEADS = ("alarm", "sees", "must find", "false alarms", "power", "threshold")
COLUMNS = 23  # with values on the simulator's market without a book
EVENTS_A_DAY = 20  # resolved events of the validator, simulator and BTC/USDT
BASE_RATE = 0.45
# per-outcome gain over the base rate, nats: the simulator's edge of 0.7 and earlier, an AUC of .57, recorded gold
GAINS = {"0.018 nats (simulator to 0.7)": 0.018, "0.0075 nats (AUC .57)": 0.0075, "0.0009 nats (gold)": 0.0009}
YEAR_DAYS = 365


def rows(loss_runs: int = 200, markets: int = 12) -> list[list[str]]:
    """Return the rows of the table, cells as of HEADS.

    loss_runs  years of outcomes a row; markets: histories of a year with 120 live days each
    """
    params = load_params()
    return [*drift_rows(params, markets), *loss_rows(params, loss_runs), *breaker_rows(params), *clock_rows(params)]


# ---- inputs ----------------------------------------------------------------------------------------------------------


def market(bars: int, seed: int) -> Floats:
    """Return (bars, COLUMNS) autocorrelated columns with a common spread that switches between two regimes."""
    rng = np.random.default_rng(seed)
    calm = np.repeat(rng.choice([0.8, 1.3], bars // 48 + 1), 48)[:bars, None]
    values = calm * rng.standard_normal((bars, COLUMNS))
    for i in range(1, bars):
        values[i] += 0.7 * values[i - 1]
    return values


def drift_rows(params: Params, markets: int) -> list[list[str]]:
    """Return the rows on values and on the share missing: false alarms a month, and power within two blocks."""
    bar_s, length = seconds(params.data.decision_timeframe), params.drift.block_bars
    history, live = int(YEAR_DAYS * DAY_S / bar_s), 40 * length
    names = tuple(f"c{i}" for i in range(COLUMNS))
    changes = {
        "a shift of 0.5 sd": lambda x: _moved(x, 0.5, 1.0, 0.0),
        "a shift of 1 sd": lambda x: _moved(x, 1.0, 1.0, 0.0),
        "1.5 times the spread": lambda x: _moved(x, 0.0, 1.5, 0.0),
        "twice the spread": lambda x: _moved(x, 0.0, 2.0, 0.0),
    }
    losses = {
        "10 % missing": lambda x: _moved(x, 0.0, 1.0, 0.1), "25 % missing": lambda x: _moved(x, 0.0, 1.0, 0.25),
        "wholly missing": lambda x: _moved(x, 0.0, 1.0, 1.0),
    }  # fmt: skip
    false, found = {"values": 0, "missing": 0}, dict.fromkeys([*changes, *losses], 0)
    seen, tries = 0, 0
    for seed in range(markets):
        values = market(history + live, seed)
        reference = fit_reference(values[:history], names, params.drift, seed)
        rates = alarm_rates(params.drift.false_alarms_a_month, length, bar_s, 1)
        quiet = detect(reference, values[history:], rates)
        false["values"] += sum(block.alarm for block in quiet.blocks)
        false["missing"] += sum(block.missing_alarm for block in quiet.blocks)
        seen += len(quiet.blocks)
        strict = alarm_rates(params.drift.false_alarms_a_month, length, bar_s, len(FAMILIES))
        for start in range(history, history + live, 4 * length):
            part = values[start : start + 2 * length]
            tries += 1
            for name, change in changes.items():
                found[name] += any(block.alarm for block in detect(reference, change(part), strict).blocks)
            for name, change in losses.items():
                found[name] += any(block.missing_alarm for block in detect(reference, change(part), strict).blocks)
    months = seen * length * bar_s / DAY_S / DAYS_A_MONTH
    budget = params.drift.false_alarms_a_month
    table = []
    for kind, of, wanted in (("values", changes, budget.values), ("missing", losses, budget.missing)):
        rate = f"{false[kind] / months:.2f} a month in {months:.0f} months, budget {wanted:g}"
        for name in of:
            table.append([
                "drift: values" if kind == "values" else "drift: share missing",
                f"blocks of {length} bars, {COLUMNS} columns, {len(FAMILIES)} champions", f"{name} in one column", rate,
                f"{found[name] / tries:.0%} within 2 blocks, n={tries}", _level(reference, kind, strict),
            ])  # fmt: skip
    return table


def _level(reference: DriftReference, kind: str, rates: AlarmRates) -> str:
    """Return the threshold of the last reference in its own unit."""
    if kind == "values":
        level = reference.values.level(rates.values)
        return f"{level:.1f} times a block's usual effect"
    level = reference.missing.level(rates.missing) * float(np.nanmin(reference.missing_scale))
    return f"{level:.0%} of a block's rows"


def _moved(block: Floats, shift: float, spread: float, missing: float) -> Floats:
    """Return rows whose first column is shifted and spread, in standard deviations, with a share of it missing."""
    rng, changed = np.random.default_rng(1), block.copy()
    changed[:, 0] = changed[:, 0] * spread + shift * 1.5
    changed[rng.random(len(changed)) < missing, 0] = np.nan
    return changed


# ---- loss ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Hold a run of resolved events: epoch seconds, probabilities and outcomes (n,)."""

    at_s: Floats
    p: Floats
    y: Floats


def outcomes(params: Params, gain: float, slope: float, days: int, seed: int) -> Outcomes:
    """Return events whose outcomes overlap as those of the labels do.

    gain   that a calibrated forecast of this spread would have, nats an outcome
    slope  of the truth on the forecast, log-odds: 1 calibrated, 0 the base rate alone, whatever the forecast says
    """
    rng, bar_s = np.random.default_rng(seed), seconds(params.data.decision_timeframe)
    horizon, n = params.labels.horizon_bars, int(days * DAY_S / bar_s)
    spread = np.sqrt(2.0 * gain / (BASE_RATE * (1.0 - BASE_RATE)))
    shocks = np.cumsum(rng.standard_normal(n + horizon))
    fate = norm.cdf((shocks[horizon:] - shocks[:-horizon]) / np.sqrt(horizon))  # neighbours share their shocks
    at = np.flatnonzero(rng.random(n) < EVENTS_A_DAY / (DAY_S / bar_s))
    score = spread * rng.standard_normal(len(at))
    middle = np.log(BASE_RATE / (1.0 - BASE_RATE))
    truth = 1.0 / (1.0 + np.exp(-(middle + slope * score)))
    return Outcomes(at * float(bar_s), 1.0 / (1.0 + np.exp(-(middle + score))), (fate[at] < truth).astype(float))


def live_p(params: Params, edge: Edge, found: Outcomes) -> tuple[BlockScores, Floats]:
    """Return the blocks of a run and the anytime p after each, as the watch computes them."""
    gains = paired_gains(found.p, found.y, edge.base_rate, edge.log_odds)
    blocks = block_means(
        found.at_s, gains, origin_s=0.0, until_s=float(found.at_s[-1]) + edge.horizon_s, horizon_s=edge.horizon_s,
        horizons=edge.block_horizons,
    )  # fmt: skip
    least = params.drift.edge_share * edge.gain
    return blocks, anytime_p(e_process(least - blocks.mean, edge.bound - least))


def edge_of(params: Params, gain: float) -> Edge:
    """Return the edge that the gate would measure on many years of calibrated forecasts."""
    bar_s = seconds(params.data.decision_timeframe)
    found = outcomes(params, gain, 1.0, 20 * YEAR_DAYS, seed=10_000)
    return Edge(**measure_edge(
        found.at_s, found.p, found.y, np.full(len(found.p), BASE_RATE), base_rate=BASE_RATE,
        horizon_s=float(params.labels.horizon_bars * bar_s), params=params.drift,
    ))  # fmt: skip


def loss_rows(params: Params, runs: int) -> list[list[str]]:
    """Return the rows on a vanished edge: the forecast stays as it was, the outcomes no longer follow it."""
    alpha, table = loss_alpha(params), []
    whole, bound = 1.0, (1.0 + params.drift.edge_share) / 2.0  # slopes with all the gain, and with the share tested
    for name, gain in GAINS.items():
        edge = edge_of(params, gain)
        rejected: dict[float, list[float]] = {}
        for slope in (whole, bound, 0.0):
            days = []
            for run in range(runs):
                blocks, p = live_p(params, edge, outcomes(params, gain, slope, YEAR_DAYS, run))
                hit = np.flatnonzero(p <= alpha)
                days.append(float(blocks.start_s[hit[0]] / DAY_S) if len(hit) else np.inf)
            rejected[slope] = days
        year = {slope: float(np.isfinite(days).mean()) for slope, days in rejected.items()}
        gone = rejected[0.0]
        middle = float(np.median(gone))
        table.append([
            "loss", f"a block a day of {EVENTS_A_DAY * params.drift.edge_block_horizons // 6} outcomes",
            f"a vanished edge of {name}",
            f"{year[whole]:.1%} of a year's champions with all of it, {year[bound]:.1%} with "
            f"{params.drift.edge_share:.0%} of it; at most {alpha:.1%}",
            f"{np.mean(np.array(gone) <= 30):.0%} in 30 days, {np.mean(np.array(gone) <= 90):.0%} in 90, "
            f"{year[0.0]:.0%} in a year; median " + (f"{middle:.0f} days" if np.isfinite(middle) else "over a year")
            + f", n={runs}",
            f"anytime p ≤ {alpha:.3f} of a gain ≥ {params.drift.edge_share:g} × the gate's",
        ])  # fmt: skip
    return table


# ---- the breaker, and alarms by the clock ----------------------------------------------------------------------------


def breaker_rows(params: Params, runs: int = 4000) -> list[list[str]]:
    """Return the rows on the breaker `model`: given an alarm of the loss, do the newest trades lose money?"""
    rng, trades, spread_bps = np.random.default_rng(0), params.breakers.trades, 45.0
    found = {}
    for mean in (0.0, -5.0, -12.0, -25.0):
        hits = 0
        per_block = max(1, trades // LEAST_BLOCKS)
        for _ in range(runs):
            means = rng.normal(mean, spread_bps / np.sqrt(per_block), max(LEAST_BLOCKS, trades // per_block))
            hits += BlockScores(np.arange(len(means)) * 1.0, means, np.ones(len(means), np.int64)).interval().high < 0.0
        found[mean] = hits / runs
    budget = params.drift.false_alarms_a_month.loss
    return [
        [
            "breaker model", f"{trades} trades of sd {spread_bps:g} bps in {LEAST_BLOCKS} blocks or more",
            f"{mean:g} bps a trade, after an alarm of the loss",
            f"{found[0.0]:.1%} of the loss's false alarms: {found[0.0] * budget:.3f} a month",
            f"{found[mean]:.0%}, n={runs}",
            "95 % t interval of the blocks' mean under 0",
        ]
        for mean in (-5.0, -12.0, -25.0)
    ]  # fmt: skip


def clock_rows(params: Params) -> list[list[str]]:
    """Return the rows of the alarms that compare two times: they measure nothing, so they cannot be wrong by chance."""
    rules = params.retrain
    late = rules.overdue_intervals * rules.interval_days
    certain = "certain, at the next monitor"
    return [
        ["overdue", "the newest finished retrain", f"none for {late:g} days", "none: a clock", certain,
         f"{late:g} days"],
        ["age", "the champion's newest training bar", f"older than {2 * rules.interval_days} days of market time",
         "none: a clock", certain, f"{2 * rules.interval_days} days"],
    ]  # fmt: skip


def main() -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*HEADS)
    for row in rows():
        table.add_row(*row)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
