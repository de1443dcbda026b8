"""Account and data limits (R5, L7): each one says no on its own, and none hides another."""

from pipelines.compiled import kernel
from serving.risk.codes import (
    BREAKER_LATCHED,
    DAILY_LOSS_AT_LIMIT,
    DRAWDOWN_AT_LIMIT,
    GROSS_EXCEEDS_LIMIT,
    OPEN_COUNT_AT_LIMIT,
    STALE_DATA,
    TRADES_TODAY_AT_LIMIT,
)


@kernel
def account_refusals(  # type: ignore[no-untyped-def]
    gross, max_gross, open_count, max_open, trades_today, max_trades, daily_pnl, max_daily_loss, drawdown, max_drawdown,
    age_bars, max_age_bars, breakers,
):  # fmt: skip
    """Bits of every limit that is reached. Fractions are of equity; a limit that is met exactly is reached.

    NaN reaches no limit here: the core has already refused it as CANNOT_COMPUTE, with the input's name.
    """
    refused = 0
    if breakers > 0.0:
        refused |= BREAKER_LATCHED
    if age_bars > max_age_bars:
        refused |= STALE_DATA
    if drawdown >= max_drawdown:
        refused |= DRAWDOWN_AT_LIMIT
    if daily_pnl <= -max_daily_loss:
        refused |= DAILY_LOSS_AT_LIMIT
    if gross >= max_gross:
        refused |= GROSS_EXCEEDS_LIMIT
    if open_count >= max_open:
        refused |= OPEN_COUNT_AT_LIMIT
    if trades_today >= max_trades:
        refused |= TRADES_TODAY_AT_LIMIT
    return refused
