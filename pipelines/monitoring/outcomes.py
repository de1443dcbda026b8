"""Outcomes of decisions, by the function that makes the training labels: one definition of an outcome."""

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np

from pipelines.contracts import BAR_WIDTH, OPEN_TIME, Decision, Floats, Outcome, utc
from pipelines.costs import NO_FUNDING, Costs, funding_payments, funding_received_bps, left_at, trade_cost_bps
from pipelines.data.timeframes import Grid
from pipelines.errors import BadShape, BadTimes
from pipelines.labels.barriers import BARRIERS, TARGET, UNRESOLVED, first_touch, gross_return_bps


def resolve(
    decisions: Sequence[Decision], bars: Floats, grid: Grid, costs: Costs, funding: Floats = NO_FUNDING
) -> list[Outcome]:
    """Return the outcomes of the decisions that `bars` resolve; the others wait for more bars.

    decisions     of one symbol, any order. Those without a stop, a target or an expiry cannot be scored and are left
                  out. The side is the event's own (target above stop: long), not the sign of the vote
    bars          (n, 9) closed base bars of that symbol, ascending, from the first `as_of` on
    grid          where base bars open and close
    costs         of the symbol's market; funding (r, 2) rates as of `costs.funding_rates`
    Returns       label 1 target first, 0 stop or time; gross_bps from the open of the first base bar at or after
                  `as_of`; cost_bps as `costs.trade_cost_bps`, funding included; resolved_at is the close of the bar
                  that decided, so a rerun gives the same record
    Raises        BadShape; BadTimes if the bars begin after a decision, whose path is then unknown
    """
    if bars.ndim != 2 or bars.shape[1] != BAR_WIDTH:
        raise BadShape(f"bars have shape {bars.shape}; pass (n, {BAR_WIDTH})")
    found, payments = [], funding_payments(funding, costs)
    for decision in decisions:
        if decision.stop is None or decision.expiry is None or not decision.take_profits:
            continue
        as_of, target = decision.as_of.timestamp(), decision.take_profits[0]
        start = int(np.searchsorted(bars[:, OPEN_TIME], as_of, side="left"))
        if start == len(bars):
            continue
        if start == 0 and bars[0, OPEN_TIME] > as_of:
            raise BadTimes(
                f"decision {decision.id} is of {decision.as_of:%F %T} UTC, the bars begin at "
                f"{utc(bars[0, OPEN_TIME]):%F %T}. Read bars from the oldest pending decision on."
            )
        side = 1 if target > decision.stop else -1
        last, barrier, price = first_touch(bars, start, side, target, decision.stop, decision.expiry.timestamp())
        if barrier == UNRESOLVED:
            continue
        way, ends = np.array([side]), (np.array([start]), np.array([last]))
        (gross,), executed = gross_return_bps(bars, *ends, way, np.array([price]))
        filled, left = (bars[at, OPEN_TIME] for at in ends)
        ended = np.array([barrier])
        received = funding_received_bps(payments, way, filled, left_at(left, grid.closes(left), ended))
        (cost_bps,) = trade_cost_bps(costs, ended, executed, received)
        found.append(
            Outcome(
                decision_id=decision.id,
                resolved_at=utc(grid.next_close(bars[last, OPEN_TIME])),
                label=int(barrier == TARGET),
                barrier=cast(Literal["target", "stop", "time"], BARRIERS[barrier]),
                gross_bps=float(gross),
                net_bps=float(gross - cost_bps),
                cost_bps=float(cost_bps),
            )
        )
    return found
