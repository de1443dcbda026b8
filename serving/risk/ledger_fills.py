"""What an emitted decision counts as without a venue: filled at the next base bar's open, with `costs`. Pure."""

from datetime import datetime

from pipelines.contracts import HALF_SPREAD, OPEN, OPEN_TIME, Decision, Floats, Outcome, utc
from pipelines.costs import Costs
from pipelines.store import Fill
from serving.risk.breaker_monitor import slippage_bps


def entry_of(decision: Decision, bar: Floats, costs: Costs, ingested_at: datetime) -> Fill:
    """Return the fill of an emitted decision at the open of a base bar (9,), the first that opens at or after `as_of`.

    The price pays half the spread, as the bar records it or else as `costs` assume it; the fee is apart. Raises
    BadValues for a decision that opened nothing.
    """
    side = 1.0 if decision.action == "BUY" else -1.0
    opened, recorded = float(bar[OPEN]), float(bar[HALF_SPREAD])
    half_spread = recorded if recorded == recorded else opened * costs.half_spread_bps / 1e4
    price = opened + side * half_spread
    return Fill(
        f"{decision.id}-entry", decision.id, utc(bar[OPEN_TIME]), ingested_at, "filled", price,
        slippage_bps(decision, price), "open of the next bar", decision.size, costs.fee_bps, False, "ledger",
    )  # fmt: skip


def exit_of(decision: Decision, entry: Fill, outcome: Outcome, ingested_at: datetime) -> Fill:
    """Return the fill that closed a position, `entry` of it being `entry_of`, at the moment of the outcome.

    Its price is the one at which the position earns the outcome's net return, both fees paid: the half spread of the
    exit, the slippage of a stop and the funding are in it.
    """
    side, fee_bps = 1.0 if decision.action == "BUY" else -1.0, entry.fee_bps or 0.0
    price = (entry.price or 0.0) * (1.0 + side * (outcome.net_bps + 2.0 * fee_bps) / 1e4)
    return Fill(
        f"{decision.id}-exit", decision.id, outcome.resolved_at, ingested_at, "filled", price, None, outcome.barrier,
        entry.quantity, fee_bps, True, "ledger",
    )  # fmt: skip
