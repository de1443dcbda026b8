"""Backtest: the live decision kernel over history, with the account it would have had.

One compiled, chronological loop over decision bars calls the same kernel as the service. This layer receives it as a
function and knows only where the account goes in and the decision comes out. A trade is filled at the open of the first
base bar after the decision and ends at its first barrier: both come from `labels.barriers`, so there is one definition
of an outcome. The account has realised profit only: an open position counts at its entry size.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import DAY_S, Estimate, Floats, Ints
from pipelines.errors import BadShape, BadTimes, BadValues
from pipelines.evaluation.deflation import probabilistic_sharpe, sharpe_of
from pipelines.evaluation.intervals import ratio_of
from pipelines.evaluation.metrics import mean_estimate

DAYS_A_YEAR = 365.0  # these markets do not close

TRADE_FIELDS = ("row", "direction", "size", "fill_time", "exit_time", "gross_bps", "net_bps", "pnl")
# row number of the decision; fraction of equity; epoch seconds of fill and `costs.left_at`; bps of the fill; pnl as a
# fraction of starting equity
T_ROW, T_DIRECTION, T_SIZE, T_FILL, T_EXIT, T_GROSS, T_NET, T_PNL = range(len(TRADE_FIELDS))


@dataclass(frozen=True, slots=True)
class DecisionKernel:
    """Hold the decision kernel and its layout; `flows` fills it from `serving.policy.kernel`.

    step     compiled (row, params, out) → 0 to emit, otherwise refusal bits
    event    row index of the event's side
    account  row indices: what `exposure` writes, then open count, trades today, daily profit and loss, drawdown
    action, size  indices in `out`
    exposure compiled (positions, count, side, asset, strategy, volatility, *scenarios, out): the share of every budget
             that open positions use; positions (k, 3) signed size in equity, asset, strategy. One market: asset 0
    scenarios  the arrays from which it computes tail losses, of a time before the backtest
    """

    step: Any
    params: Floats
    row_width: int
    out_width: int
    event: int
    account: tuple[int, ...]
    action: int
    size: int
    exposure: Any
    scenarios: tuple[Floats, Floats, Floats, Floats, Floats]


@dataclass(frozen=True, slots=True)
class Backtest:
    """Hold trades and figures (law L9: each with n, cost and a 95 % interval; NaN bounds with too few rows).

    trades    (k, 8) TRADE_FIELDS, in order of decision
    codes     (n,) refusal bits of each row, 0 = emitted
    equity    (n,) realised equity after each row's settlements, starting at 1; of several markets at each moment
    decided_at  (n,) epoch seconds of the rows, ascending
    unresolved  emissions whose outcome lies beyond the data: not traded, not scored
    net_bps, gross_bps, win_rate, duration_hours  per trade; win = net above 0
    profit_factor  gains over losses, by profit in equity
    max_drawdown   of realised equity, fraction; NaN bounds: one history has one largest fall, and re-drawn trades have
                   others, not its error
    turnover       traded notional over equity a day, both sides
    sharpe         of daily realised returns, mean / deviation × √365; psr = P(true Sharpe > 0)
    emissions_per_week  7 × the daily mean of emitted rows
    """

    trades: Floats
    codes: Ints
    equity: Floats
    decided_at: Floats
    unresolved: int
    net_bps: Estimate
    gross_bps: Estimate
    win_rate: Estimate
    profit_factor: Estimate
    max_drawdown: Estimate
    turnover: Estimate
    sharpe: Estimate
    psr: float
    duration_hours: Estimate
    emissions_per_week: Estimate


@kernel
def _run(
    step: Any, exposure: Any, params: Floats, filtered: Floats, plain: Floats, unit_es: Floats, correlation: Floats,
    markets: Floats, volatility: Floats, rows: Floats, event: int, account: Ints, action: int, size: int, out: Floats,
    decided: Floats, fill: Floats, exits: Floats, gross_bps: Floats, strategy: Floats, cost_bps: Floats, trades: Floats,
    codes: Ints, equity: Floats,
) -> tuple[int, int]:  # fmt: skip
    """Run the loop and return (trades, unresolved); fills trades, codes (int64) and equity; T_EXIT is the open of the
    exit bar, by which the loop knows what has ended.

    Each row: settle what ended before this close, start a new UTC day, decide, open. All arrays float64 except
    `account` and `codes` (int64); step and exposure are one-tuples of the two functions.
    """
    n = rows.shape[0]
    row = np.empty(rows.shape[1])
    opened = np.empty(n, dtype=np.int64)  # trade numbers still open
    notional = np.empty(n)
    positions = np.zeros((n, 3))
    used = account.shape[0] - 4  # the first account fields are what `exposure` writes
    used_now, volatility_now = np.empty(used), np.empty(1)
    n_open, n_trades, unresolved, today = 0, 0, 0, 0
    cash, peak = 1.0, 1.0
    day, day_start = np.floor(decided[0] / DAY_S), 1.0
    for i in range(n):
        still_open = 0
        for j in range(n_open):
            k = opened[j]
            if trades[k, T_EXIT] < decided[i]:
                cash += trades[k, T_PNL]
            else:
                opened[still_open] = k
                still_open += 1
        n_open = still_open
        peak = max(peak, cash)
        equity[i] = cash
        if np.floor(decided[i] / DAY_S) != day:
            day, day_start, today = np.floor(decided[i] / DAY_S), cash, 0
        row[:] = rows[i]
        for j in range(n_open):
            k = opened[j]
            positions[j, 0] = trades[k, T_DIRECTION] * notional[k] / cash
            positions[j, 2] = strategy[int(trades[k, T_ROW])]
        volatility_now[0] = volatility[i]
        exposure[0](
            positions,
            n_open,
            row[event],
            0,
            strategy[i],
            volatility_now,
            filtered,
            plain,
            unit_es,
            correlation,
            markets,
            used_now,
        )
        for j in range(used):
            row[account[j]] = used_now[j]
        row[account[used]] = n_open
        row[account[used + 1]] = today
        row[account[used + 2]] = cash / day_start - 1.0
        row[account[used + 3]] = 1.0 - cash / peak
        codes[i] = step[0](row, params, out)
        if codes[i] != 0:
            continue
        if not np.isfinite(gross_bps[i]):
            unresolved += 1
            continue
        net = gross_bps[i] - cost_bps[i]
        notional[n_trades] = out[size] * cash
        trades[n_trades, T_ROW] = i
        trades[n_trades, T_DIRECTION] = out[action]
        trades[n_trades, T_SIZE] = out[size]
        trades[n_trades, T_FILL] = fill[i]
        trades[n_trades, T_EXIT] = exits[i]
        trades[n_trades, T_GROSS] = gross_bps[i]
        trades[n_trades, T_NET] = net
        trades[n_trades, T_PNL] = notional[n_trades] * net * 1e-4
        opened[n_open] = n_trades
        n_open += 1
        n_trades += 1
        today += 1
    return n_trades, unresolved


@contextmanager
def _callable(core: DecisionKernel) -> Iterator[tuple[tuple[Any], tuple[Any]]]:
    """Yield the kernel and its exposure function as function pointers, so the loop's machine code can be cached.

    numba types a compiled function by its identity, which differs in every process, and would compile the loop again
    each time. In a tuple, with further compilation disabled, it is typed by its signature. numba calls that
    experimental; here it could only be slower, never give another result.
    """
    from numba.core.errors import NumbaExperimentalFeatureWarning

    core.step(np.full(core.row_width, np.nan), core.params, np.empty(core.out_width))
    core.exposure(np.zeros((1, 3)), 0, 0.0, 0, 0.0, np.ones(1), *core.scenarios, np.empty(len(core.account) - 4))
    core.step.compiled.disable_compile()
    core.exposure.compiled.disable_compile()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaExperimentalFeatureWarning)
            yield (core.step.compiled,), (core.exposure.compiled,)
    finally:
        core.step.compiled.disable_compile(False)
        core.exposure.compiled.disable_compile(False)


def backtest(
    core: DecisionKernel,
    rows: Floats,
    decided_at: Floats,
    fill_time: Floats,
    exit_time: Floats,
    held_to: Floats,
    gross_bps: Floats,
    strategy: Floats,
    volatility: Floats,
    cost_bps: Floats,
) -> Backtest:
    """Run the decision kernel over n decision bars and return its trades and figures.

    rows        (n, row width) in the kernel's layout; the account fields are overwritten in a copy
    decided_at  (n,) epoch seconds, close of each decision bar, ascending
    fill_time, exit_time, gross_bps  (n,) from labels.barriers, of the event on that row; NaN where there is none or it
                is unresolved. The exit bar opens at exit_time and must close with or before a decision bar
    held_to     (n,) of the same event, `costs.left_at`: what the trade's duration and its day count to
    strategy    (n,) code of the signal behind the event on that row; any number where there is none
    volatility  (n,) of the market, known at each close, as `core.exposure` scales its scenarios by; NaN = not known
    cost_bps    (n,) of the trade on that row, as `costs.trade_cost_bps`
    Raises      BadShape if lengths differ, BadValues for a resolved row without a cost, BadTimes on a fill before its
                decision or an exit before its fill
    """
    n = len(rows)
    by_row = (decided_at, fill_time, exit_time, held_to, gross_bps, strategy, volatility, cost_bps)
    if n == 0 or any(len(a) != n for a in by_row):
        raise BadShape(
            "rows, decided_at, fill_time, exit_time, held_to, gross_bps, strategy, volatility, cost_bps have lengths "
            f"{[n, *map(len, by_row)]}; pass arrays of one length, not 0"
        )
    known = np.isfinite(gross_bps)
    if not np.isfinite(cost_bps[known]).all():
        raise BadValues(f"{int((~np.isfinite(cost_bps[known])).sum())} resolved rows have no cost; pass one for each")
    if not (np.diff(decided_at) > 0).all():
        raise BadTimes("decided_at is not ascending; sort the decision bars and drop duplicates")
    if not ((fill_time[known] >= decided_at[known]) & (exit_time[known] >= fill_time[known])).all():
        early = int(np.flatnonzero(known & ~((fill_time >= decided_at) & (exit_time >= fill_time)))[0])
        raise BadTimes(
            f"row {early}: decided {decided_at[early]:.0f}, filled {fill_time[early]:.0f}, "
            f"exit {exit_time[early]:.0f}; a trade is filled at the next bar's open, never in the bar that decided it"
        )
    if not (held_to[known] >= exit_time[known]).all():
        raise BadTimes("a trade is held to a time before its exit bar opens, or to none; pass `costs.left_at`")
    trades, codes, equity = np.empty((n, len(TRADE_FIELDS))), np.empty(n, dtype=np.int64), np.empty(n)
    with _callable(core) as (step, exposure):
        count, unresolved = _run(
            step, exposure, core.params, *core.scenarios, volatility, rows, core.event, np.array(core.account),
            core.action, core.size, np.empty(core.out_width), decided_at, fill_time, exit_time, gross_bps, strategy,
            cost_bps, trades, codes, equity,
        )  # fmt: skip
    trades = trades[:count].copy()
    taken = trades[:, T_ROW].astype(np.int64)
    trades[:, T_EXIT] = held_to[taken]
    paid = cost_bps[taken] if count else cost_bps[known]
    mean_cost = float(paid.mean()) if len(paid) else float("nan")
    return _with_figures(trades, codes, equity, unresolved, decided_at, mean_cost)


def pooled(results: Sequence[Backtest]) -> Backtest:
    """Return the backtests of several markets as one account that is split among them in equal parts.

    Each market has decided by itself: budgets across markets, which only the live account has, refused nothing here.
    Sizes and profits are fractions of the whole account; the row of a trade counts within its market. One market alone
    is returned as it is.
    """
    if len(results) == 1:
        return results[0]
    parts = len(results)
    trades = np.concatenate([each.trades for each in results])
    trades[:, [T_SIZE, T_PNL]] /= parts
    opened = np.concatenate([each.decided_at[each.trades[:, T_ROW].astype(np.int64)] for each in results])
    times = np.concatenate([each.decided_at for each in results])
    order, rows, moments = np.argsort(opened, kind="stable"), np.argsort(times, kind="stable"), np.unique(times)
    equity = np.zeros(len(moments))
    for each in results:
        held = np.concatenate([[1.0], each.equity])
        equity += held[np.searchsorted(each.decided_at, moments, side="right")] / parts
    paid = trades[:, T_GROSS] - trades[:, T_NET]
    cost = float(paid.mean()) if len(paid) else float(np.mean([each.turnover.cost_bps or 0.0 for each in results]))
    return _with_figures(
        trades[order], np.concatenate([each.codes for each in results])[rows], equity,
        sum(each.unresolved for each in results), times[rows], cost, opened[order],
    )  # fmt: skip


def _drawdown(pnl: Floats) -> float:
    """Return the largest fall of equity below its peak, a fraction."""
    path = 1.0 + np.concatenate([[0.0], np.cumsum(pnl)])
    return float((1.0 - path / np.maximum.accumulate(path)).max())


def _profit_factor(pnl: Floats, cost_bps: float, known: Floats | None = None) -> Estimate:
    """Return gains over losses of (k,) trades; NaN without a loss, and never below zero."""
    found = ratio_of(np.maximum(pnl, 0.0), np.maximum(-pnl, 0.0), known=known).estimate(cost_bps)
    return replace(found, low=max(found.low, 0.0) if np.isfinite(found.low) else found.low)


def _sharpe(returns: Floats, cost_bps: float) -> Estimate:
    """Return the annualised Sharpe ratio of daily returns (× √365); NaN without variance."""
    daily, year = sharpe_of(returns).estimate(), np.sqrt(DAYS_A_YEAR)
    return Estimate(year * daily.value, year * daily.low, year * daily.high, len(returns), cost_bps)


def _with_figures(
    trades: Floats,
    codes: Ints,
    equity: Floats,
    unresolved: int,
    decided_at: Floats,
    cost_bps: float,
    opened_at: Floats | None = None,
) -> Backtest:
    """Return the Backtest with its estimates; daily ones over all UTC days from the first to the last decision.

    opened_at  (k,) when each trade was decided, where several markets share moments
    """
    emitted = codes == 0
    ended = trades[np.argsort(trades[:, T_EXIT], kind="stable")]
    left_at = None if opened_at is None else ended[:, T_EXIT]
    pnl, first = ended[:, T_PNL], int(decided_at[0] // DAY_S)
    days = max(int(decided_at[-1] // DAY_S), int(ended[-1, T_EXIT] // DAY_S) if len(ended) else 0) - first + 1

    def daily(times: Floats, values: Floats) -> Floats:
        """Return (days,) sums of values by UTC day."""
        at = (times // DAY_S).astype(np.int64) - first
        return np.asarray(np.bincount(at, weights=values, minlength=days), dtype=np.float64)

    earned = daily(ended[:, T_EXIT], pnl)
    returns = earned / (1.0 + np.concatenate([[0.0], np.cumsum(earned)[:-1]]))
    traded = daily(trades[:, T_FILL], trades[:, T_SIZE]) + daily(trades[:, T_EXIT], trades[:, T_SIZE])
    emissions = daily(decided_at[emitted], np.ones(int(emitted.sum())))

    def mean(values: Floats, known: Floats | None = None) -> Estimate:
        """Return the mean of values with its interval."""
        return mean_estimate(values, cost_bps, known)

    per_day = mean(emissions)
    return Backtest(
        trades=trades,
        codes=codes,
        equity=equity,
        decided_at=decided_at,
        unresolved=unresolved,
        net_bps=mean(trades[:, T_NET], opened_at),
        gross_bps=replace(mean(trades[:, T_GROSS], opened_at), cost_bps=0.0),
        win_rate=mean((trades[:, T_NET] > 0).astype(np.float64), opened_at),
        profit_factor=_profit_factor(pnl, cost_bps, left_at),
        max_drawdown=Estimate(_drawdown(pnl), np.nan, np.nan, len(pnl), cost_bps),
        turnover=mean(traded),
        sharpe=_sharpe(returns, cost_bps),
        psr=probabilistic_sharpe(returns),
        duration_hours=mean((trades[:, T_EXIT] - trades[:, T_FILL]) / 3600.0, opened_at),
        emissions_per_week=replace(per_day, value=7 * per_day.value, low=7 * per_day.low, high=7 * per_day.high),
    )
