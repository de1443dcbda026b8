"""Circuit breakers (R7): seven conditions, each a sentence with its numbers or None. Pure; who trips is `guarding`.

A breaker that tripped stays tripped, whatever becomes of its cause, until a named person resets it for a reason. What
is not known (NaN or None) is not judged here: refusing on doubt is the core's and the tiers' business, every bar anew.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan

from pipelines.contracts import Estimate
from pipelines.params import Params
from serving.state.tiers import EMERGENCY_BREAKER

REBASED = ("daily_loss", "drawdown")  # whose reset makes the account count anew


@dataclass(frozen=True, slots=True)
class BreakerInputs:
    """What is looked at in one go; what nobody looked at stays NaN or None.

    about           whom and when it concerns, for the reason: "BTC/USDT, bar closed 2024-03-05 19:15 UTC"
    daily_pnl       fraction of the equity the day began with
    drawdown        fraction under the highest equity, in [0, 1]
    true_range      of the newest closed decision bar over the ATR 14 before it
    spread_bps      of the newest book; usual_spread_bps: median of those before it
    depth           size resting in the newest book, base asset; usual_depth: median of those before it
    missing_bars    decision bars that should have closed since the last one; NaN unless the symbol was fed live
    faults          of the acting champion, in a row
    loss_drift      the champion's live loss is confirmed to be worse than the one it was judged on
    traded          mean net bps of what it traded lately
    rejected        rejected orders among the newest fills; fills: how many those are
    slippage_bps    mean of the newest filled, positive = worse than decided; NaN until there are enough
    """

    about: str = ""
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


def _daily_loss(seen: BreakerInputs, params: Params) -> str | None:
    limit = params.risk.max_daily_loss
    if not seen.daily_pnl <= -limit:
        return None
    return f"{seen.about}: {seen.daily_pnl:+.2%} of the equity at 00:00 UTC, limit -{limit:.2%}"


def _drawdown(seen: BreakerInputs, params: Params) -> str | None:
    limit = params.risk.max_drawdown
    if not seen.drawdown >= limit:
        return None
    return f"{seen.about}: {seen.drawdown:.2%} under the highest equity, limit {limit:.2%}"


def _volatility_spike(seen: BreakerInputs, params: Params) -> str | None:
    limit = params.breakers.spike_atr
    if not seen.true_range >= limit:
        return None
    return f"{seen.about}: true range {seen.true_range:.1f} times the ATR before it, limit {limit:g}"


def _liquidity(seen: BreakerInputs, params: Params) -> str | None:
    limits = params.breakers
    counted = 2.0 * params.costs.half_spread_bps  # where a tick is the spread, ten ticks may still cost nothing
    if seen.spread_bps >= limits.spread_multiple * seen.usual_spread_bps and seen.spread_bps > counted:
        return (
            f"{seen.about}: spread {seen.spread_bps:.2f} bps, {limits.spread_multiple:g} times or more its median of "
            f"{seen.usual_spread_bps:.2f}"
        )
    if seen.depth <= limits.depth_share * seen.usual_depth:
        return (
            f"{seen.about}: {seen.depth:.4g} rest in the book, {limits.depth_share:.0%} or less of their median of "
            f"{seen.usual_depth:.4g}"
        )
    return None


def _stale_data(seen: BreakerInputs, params: Params) -> str | None:
    limit = params.breakers.stale_bars
    if not seen.missing_bars > limit:
        return None
    return f"{seen.about}: more than {limit} decision bars are missing since"  # one outage says one thing


def _model(seen: BreakerInputs, params: Params) -> str | None:
    limit = params.breakers.fault_multiple * params.tiers.faults_in_row
    if seen.faults >= limit:
        return f"{seen.about}: failed {seen.faults:.0f} times in a row, limit {limit}"
    traded = seen.traded
    if seen.loss_drift and traded is not None and traded.n >= params.breakers.trades and traded.high < 0.0:
        return (
            f"{seen.about}: its loss has drifted, and its last {traded.n} trades brought {traded.value:+.1f} bps each "
            f"[{traded.low:+.1f}, {traded.high:+.1f}]"
        )
    return None


def _execution(seen: BreakerInputs, params: Params) -> str | None:
    limits = params.breakers
    if seen.rejected >= limits.max_rejected:
        told = f"{seen.rejected:.0f} of the last {seen.fills:.0f} orders were rejected"
        return f"{seen.about}: {told}, limit {limits.max_rejected}"
    if seen.slippage_bps >= limits.max_slippage_bps:
        return (
            f"{seen.about}: mean slippage of the last {limits.fills} fills {seen.slippage_bps:.1f} bps, limit "
            f"{limits.max_slippage_bps:g}"
        )
    return None


BREAKERS: dict[str, Callable[[BreakerInputs, Params], str | None]] = {
    "daily_loss": _daily_loss,
    "drawdown": _drawdown,
    "volatility_spike": _volatility_spike,
    "liquidity": _liquidity,
    "stale_data": _stale_data,
    "model": _model,
    "execution": _execution,
}
BREAKER_NAMES = (*BREAKERS, EMERGENCY_BREAKER)  # the last by hand only


def triggered(seen: BreakerInputs, params: Params) -> dict[str, str]:
    """Breaker → why it has to trip, of those whose condition holds."""
    return {name: why for name, holds in BREAKERS.items() if (why := holds(seen, params)) is not None}
