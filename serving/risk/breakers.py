"""Evaluate the circuit breakers (R7): eight conditions, each a reason with its numbers or None. Pure.

A breaker stays tripped, whatever becomes of its cause, until a named person resets it for a reason; `breaker_monitor`
trips them. An unknown input (NaN or None) trips nothing: the decision kernel and the tiers refuse on doubt.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan

from pipelines.contracts import Estimate
from pipelines.costs import costs_of
from pipelines.params import Params
from serving.state.tiers import EMERGENCY_BREAKER

ACCOUNT_MISMATCH = "account_mismatch"  # a venue's reports differ from the ledger
REBASED = ("daily_loss", "drawdown")  # after their reset the account counts losses from there


@dataclass(frozen=True, slots=True)
class BreakerInputs:
    """Hold the inputs of one evaluation; those that are not known stay NaN or None.

    about           subject and time, for the reason: "BTC/USDT, bar closed 2024-03-05 19:15 UTC"
    daily_pnl       fraction of the equity at the start of the day
    drawdown        fraction under the highest equity, in [0, 1]
    venue, market   where the symbol trades, for the spread its `costs` assume
    true_range      of the newest closed decision bar over the ATR 14 before it
    spread_bps      of the newest book; usual_spread_bps: median of the books before it
    depth           size resting in the newest book, base asset; usual_depth: median of the books before it
    missing_bars    decision bars that should have closed since the last one; NaN unless the symbol was fed live
    faults          of the deciding champion, in a row
    loss_drift      whether the champion's gain over the base rate is proven to be under the tested share of the gate's
    traded          mean net bps of its newest trades, with the interval of their block means
    rejected        rejected orders among the newest fills; fills: number of these
    slippage_bps    mean of the newest filled, positive = worse than decided; NaN until there are enough
    mismatch        in what a venue's reports differ from the ledger
    """

    about: str = ""
    venue: str | None = None
    market: str | None = None
    daily_pnl: float = nan
    drawdown: float = nan
    true_range: float = nan
    spread_bps: float = nan
    usual_spread_bps: float = nan
    depth: float = nan
    usual_depth: float = nan
    missing_bars: float = nan
    faults: float = nan
    loss_drift: bool = False
    traded: Estimate | None = None
    rejected: float = nan
    fills: float = nan
    slippage_bps: float = nan
    mismatch: str | None = None


NOTHING_OBSERVED = BreakerInputs()  # trips nothing


def _daily_loss(inputs: BreakerInputs, params: Params) -> str | None:
    """Return why the loss of the day trips, None if it does not."""
    limit = params.risk.max_daily_loss
    if not inputs.daily_pnl <= -limit:
        return None
    return f"{inputs.about}: {inputs.daily_pnl:+.2%} of the equity at 00:00 UTC, limit -{limit:.2%}"


def _drawdown(inputs: BreakerInputs, params: Params) -> str | None:
    """Return why the drawdown trips, None if it does not."""
    limit = params.risk.max_drawdown
    if not inputs.drawdown >= limit:
        return None
    return f"{inputs.about}: {inputs.drawdown:.2%} under the highest equity, limit {limit:.2%}"


def _volatility_spike(inputs: BreakerInputs, params: Params) -> str | None:
    """Return why the true range of a bar trips, None if it does not."""
    limit = params.breakers.spike_atr
    if not inputs.true_range >= limit:
        return None
    return f"{inputs.about}: true range {inputs.true_range:.1f} times the ATR before it, limit {limit:g}"


def _liquidity(inputs: BreakerInputs, params: Params) -> str | None:
    """Return why the spread or the depth of the newest book trips, None if neither does."""
    limits = params.breakers
    if inputs.spread_bps >= limits.spread_multiple * inputs.usual_spread_bps:
        costs = costs_of(params.costs, inputs.venue, inputs.market)
        if inputs.spread_bps > 2.0 * costs.half_spread_bps:  # where a tick is the spread, ten may still cost little
            return (
                f"{inputs.about}: spread {inputs.spread_bps:.2f} bps, {limits.spread_multiple:g} times or more its "
                f"median of {inputs.usual_spread_bps:.2f}"
            )
    if inputs.depth <= limits.depth_share * inputs.usual_depth:
        return (
            f"{inputs.about}: {inputs.depth:.4g} rest in the book, {limits.depth_share:.0%} or less of their median of "
            f"{inputs.usual_depth:.4g}"
        )
    return None


def _stale_data(inputs: BreakerInputs, params: Params) -> str | None:
    """Return why missing bars trip, None if they do not."""
    limit = params.breakers.stale_bars
    if not inputs.missing_bars > limit:
        return None
    return f"{inputs.about}: more than {limit} decision bars are missing since"  # one reason per outage


def _model(inputs: BreakerInputs, params: Params) -> str | None:
    """Return why the deciding champion's faults or its losses after drift trip, None if they do not."""
    limit = params.breakers.fault_multiple * params.tiers.faults_in_row
    if inputs.faults >= limit:
        return f"{inputs.about}: failed {inputs.faults:.0f} times in a row, limit {limit}"
    traded = inputs.traded
    if inputs.loss_drift and traded is not None and traded.n >= params.breakers.trades and traded.high < 0.0:
        return (
            f"{inputs.about}: its edge over the base rate is gone, and its last {traded.n} trades brought "
            f"{traded.value:+.1f} bps each [{traded.low:+.1f}, {traded.high:+.1f}]"
        )
    return None


def _execution(inputs: BreakerInputs, params: Params) -> str | None:
    """Return why rejected orders or slippage trip, None if they do not."""
    limits = params.breakers
    if inputs.rejected >= limits.max_rejected:
        return (
            f"{inputs.about}: {inputs.rejected:.0f} of the last {inputs.fills:.0f} orders were rejected, limit "
            f"{limits.max_rejected}"
        )
    if inputs.slippage_bps >= limits.max_slippage_bps:
        return (
            f"{inputs.about}: mean slippage of the last {limits.fills} fills {inputs.slippage_bps:.1f} bps, limit "
            f"{limits.max_slippage_bps:g}"
        )
    return None


def _account_mismatch(inputs: BreakerInputs, params: Params) -> str | None:
    """Return in what a venue's reports differ from the ledger, None if in nothing."""
    del params
    return inputs.mismatch


BREAKERS: dict[str, Callable[[BreakerInputs, Params], str | None]] = {
    "daily_loss": _daily_loss,
    "drawdown": _drawdown,
    "volatility_spike": _volatility_spike,
    "liquidity": _liquidity,
    "stale_data": _stale_data,
    "model": _model,
    "execution": _execution,
    ACCOUNT_MISMATCH: _account_mismatch,
}
BREAKER_NAMES = (*BREAKERS, EMERGENCY_BREAKER)  # the last one trips by hand only


def triggered(inputs: BreakerInputs, params: Params) -> dict[str, str]:
    """Return breaker → why it has to trip, of those whose condition holds."""
    if inputs is NOTHING_OBSERVED:
        return {}
    return {name: why for name, holds in BREAKERS.items() if (why := holds(inputs, params)) is not None}
