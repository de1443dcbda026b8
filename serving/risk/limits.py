"""Check the account and data limits (R4, R5, R8, L7): each refuses on its own, and none hides another."""

from pipelines.compiled import kernel
from pipelines.contracts import Floats
from serving.risk.codes import (
    ASSET_AT_LIMIT,
    BREAKER_LATCHED,
    CORRELATED_AT_LIMIT,
    DAILY_LOSS_AT_LIMIT,
    DRAWDOWN_AT_LIMIT,
    DRAWDOWN_EXIT_ONLY,
    ES_AT_LIMIT,
    GROSS_EXCEEDS_LIMIT,
    MARKET_AT_LIMIT,
    OPEN_COUNT_AT_LIMIT,
    STALE_DATA,
    STRATEGY_AT_LIMIT,
    STRESS_AT_LIMIT,
    TRADES_TODAY_AT_LIMIT,
)

# Budgets, in the order of `exposure.EXPOSURES`, and the refusal where the limit is reached.
BUDGETS = {
    "gross": GROSS_EXCEEDS_LIMIT, "strategy": STRATEGY_AT_LIMIT, "market": MARKET_AT_LIMIT, "asset": ASSET_AT_LIMIT,
    "correlated": CORRELATED_AT_LIMIT, "es": ES_AT_LIMIT, "stress": STRESS_AT_LIMIT,
}  # fmt: skip
BUDGET_CODES = tuple(BUDGETS.values())
N_BUDGETS = len(BUDGETS)

TIERS = (1, 2, 3, 4)  # serving.state.tiers names them

# Drawdown stages (R8), by the used share of the drawdown limit; `normal` before the first of them.
STAGES = ("normal", "reduce", "half", "exit_only", "flat")
NORMAL, REDUCE, HALF, EXIT_ONLY, FLAT = range(len(STAGES))


@kernel
def budget_refusals(used: Floats, limits: Floats) -> int:
    """Return the bits of every budget that is used up; met exactly is used up.

    used, limits  (N_BUDGETS,) float64; NaN refuses nothing here: the decision kernel refuses it as CANNOT_COMPUTE
    """
    refused = 0
    for i in range(N_BUDGETS):
        if used[i] >= limits[i]:
            refused |= BUDGET_CODES[i]
    return refused


@kernel
def account_refusals(
    open_count: float, max_open: float, trades_today: float, max_trades: float, daily_pnl: float, max_daily_loss: float,
    stage: int, age_bars: float, max_age_bars: float, breakers: float,
) -> int:  # fmt: skip
    """Return the bits of every other limit that is reached; met exactly is reached, NaN as in `budget_refusals`."""
    refused = 0
    if breakers > 0.0:
        refused |= BREAKER_LATCHED
    if age_bars > max_age_bars:
        refused |= STALE_DATA
    if stage == EXIT_ONLY:
        refused |= DRAWDOWN_EXIT_ONLY
    if stage == FLAT:
        refused |= DRAWDOWN_AT_LIMIT
    if daily_pnl <= -max_daily_loss:
        refused |= DAILY_LOSS_AT_LIMIT
    if open_count >= max_open:
        refused |= OPEN_COUNT_AT_LIMIT
    if trades_today >= max_trades:
        refused |= TRADES_TODAY_AT_LIMIT
    return refused


@kernel
def stage_of(drawdown: float, limit: float, starts: Floats) -> int:
    """Return the index into STAGES.

    starts  (4,) shares of `limit` from which reduce, half, exit only and flat hold, ascending; float64
    """
    stage = NORMAL
    for i in range(starts.shape[0]):
        if drawdown >= starts[i] * limit:
            stage = i + 1
    return stage
