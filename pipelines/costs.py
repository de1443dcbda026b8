"""What a trade costs: fees by venue, market and order type, spread, the slippage of stops, and funding.

One row of `params.yaml: costs` is in force for a market in its labels, its backtest, its account and its decisions.
Labels carry no cost (see `labels.barriers`): cost decides which events are eligible and what a trade earns net.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from pipelines.context_layout import CONTEXT_INDEX
from pipelines.contracts import CLOSE, HALF_SPREAD, Bools, ContextFeed, Floats, Ints
from pipelines.data.funding import HOUR_S, SETTLED_S, UNIT_HOURS, settlement_hours
from pipelines.data.symbols import kind_of
from pipelines.errors import BadShape
from pipelines.labels.barriers import STOP, TIME
from pipelines.market_params import CostParams, MarketCosts

FUNDING = CONTEXT_INDEX["funding_rate"]
SETTLED_SHARE = 0.9  # of the rates that have a period of their own, from which on they count as settled
NO_FUNDING: Floats = np.empty((0, 2))
NO_FUNDING.setflags(write=False)


@dataclass(frozen=True, slots=True)
class Costs:
    """Hold the costs of one market; basis points of price, of one side unless stated.

    fee_bps            of entry, and of an exit that is no stop
    half_spread_bps    assumed where the bars record no spread
    stop_slippage_bps  what an exit by a stop costs more: its slippage, and the taker's fee where others pay the maker's
    funding_hours      hours between funding payments; None = the market pays none
    funding_assumed    whether they are `perpetual_funding_hours`, as no row of the venue states them
    row                the row in words, such as "binance spot taker"
    """

    fee_bps: float
    half_spread_bps: float
    stop_slippage_bps: float
    funding_hours: int | None
    row: str
    funding_assumed: bool = False

    @property
    def round_trip_bps(self) -> float:
        """Return the cost of entry and exit at the assumed spread, without a stop."""
        return 2.0 * (self.fee_bps + self.half_spread_bps)

    def describe(self, spread_known: Bools | None = None, funded: bool = False) -> str:
        """Return the row, the fee and where the spread comes from, as every figure with a cost says it.

        spread_known  (m,) of the trades behind the figure; None or none of them = the spread is assumed
        funded        whether the history has funding rates; only markets that pay funding mention it
        """
        known = 0.0 if spread_known is None or len(spread_known) == 0 else float(np.mean(spread_known))
        assumed = f"half spread assumed {self.half_spread_bps:g} bps"
        spread = "spread as recorded" if known == 1.0 else assumed
        if 0.0 < known < 1.0:
            spread = f"spread as recorded of {known:.0%}, else {assumed}"
        text = f"{self.row} {self.fee_bps:g} bps a side, {spread}"
        if self.funding_hours is not None:
            assumed = " (assumed)" if self.funding_assumed else ""
            text += f", funding every {self.funding_hours} h{assumed} {'as recorded' if funded else 'not recorded'}"
        return text


def costs_of(params: CostParams, venue: str | None, market: str | None) -> Costs:
    """Return the costs of a market at a venue; `Costs.row` names the row, and why it is the default one.

    venue   name as in `costs.venues`, any case; None, or one that is not named there, has the default row
    market  spot, perpetual, …; None, or one the venue has no row of, has the dearest row of the venue
    Fees of another market's row are taken, its funding is not: a perpetual whose own row states no hours pays every
    `perpetual_funding_hours`, and a market that is stated and no perpetual pays none of a perpetual's.
    """
    name = None if venue is None else venue.strip().lower()
    markets = params.venues.get(name or "", {})
    chosen = None
    if markets:
        named = [each for each in markets if each == market]
        chosen = named[0] if named else max(markets, key=lambda each: _fee(params, markets[each]))
        row, words = markets[chosen], f"{name} {chosen}"
        if chosen != market:
            words += f" ({f'no row of {market}' if market else 'market not stated'}: the dearest)"
    else:
        row = params.default
        words = f"default row ({f'{name} has none' if name else 'venue not stated'})"
    fee, hours = _fee(params, row), row.funding_hours
    if chosen is not None and market not in (chosen, None):
        hours = None  # of another market
    assumed = hours is None and (market or chosen) == "perpetual"
    slippage = params.stop_slippage_bps if row.stop_slippage_bps is None else row.stop_slippage_bps
    return Costs(
        fee_bps=fee,
        half_spread_bps=params.half_spread_bps if row.half_spread_bps is None else row.half_spread_bps,
        stop_slippage_bps=slippage + (row.taker_bps - fee),
        funding_hours=params.perpetual_funding_hours if assumed else hours,
        row=f"{words} {params.order}",
        funding_assumed=assumed,
    )


def _fee(params: CostParams, row: MarketCosts) -> float:
    """Return the fee of one side that orders of the configured type pay, bps."""
    return row.taker_bps if params.order == "taker" else row.maker_bps


def venue_of(described: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return (venue, market) of a data version by its manifest; None where it does not say, also before 0.8.0.

    A simulated market is spot at `simulator`. Of bars from exchanges it is the venue of the newest stretch, perpetual
    where the venue's name of the market has a settlement currency.
    """
    if described.get("venue") or described.get("market"):
        return described.get("venue"), described.get("market")
    source = described.get("source") or {}
    if source.get("source") == "simulator":
        return "simulator", "spot"
    if segments := source.get("segments"):
        return segments[-1]["venue"], "perpetual" if ":" in segments[-1]["market"] else "spot"
    venue, market = source.get("venue"), source.get("market")
    symbol = described.get("symbol")
    return venue, market or (kind_of(str(symbol)) if symbol else None)


# ---- of trades -------------------------------------------------------------------------------------------------------


def forward_cost_bps(costs: Costs, spread_bps: Floats) -> Floats:
    """Return (m,) what a trade over one horizon costs, of a return of mids, in bps: two fees and the spread.

    spread_bps  (m,) of `labels.horizon.Forward`; NaN = not recorded: the assumed one, twice half of it
    """
    return 2.0 * costs.fee_bps + np.where(np.isfinite(spread_bps), spread_bps, 2.0 * costs.half_spread_bps)


def target_cost_bps(costs: Costs, bars: Floats) -> Floats:
    """Return (m,) what a trade decided at the close of each bar (m, 9) pays if it reaches its target, in bps.

    Two fees, and the half spread of the fill where the bar records it: the exit is at the target itself, once the other
    side's quote touches it. Where it is not recorded prices are mids, and both half spreads are paid, as assumed.
    """
    recorded = bars[:, HALF_SPREAD] / bars[:, CLOSE] * 1e4
    return 2.0 * costs.fee_bps + np.where(np.isfinite(recorded), recorded, 2.0 * costs.half_spread_bps)


def target_cost_at(costs: Costs, half_spread: float, close: float) -> float:
    """Return what `target_cost_bps` returns of one bar, to the bit, without arrays; NaN half_spread = not recorded."""
    recorded = half_spread / close * 1e4
    return 2.0 * costs.fee_bps + (recorded if isfinite(recorded) else 2.0 * costs.half_spread_bps)


def stop_cost_bps(costs: Costs, bars: Floats) -> Floats:
    """Return (m,) what a trade decided at the close of each bar (m, 9) pays if it ends at its stop, in bps.

    What it pays at its target, and the slippage of the stop on top: both are left at a level that the other side's
    quote touched. A size must bear it, see `risk.sizing`.
    """
    return target_cost_bps(costs, bars) + costs.stop_slippage_bps


def trade_cost_bps(
    costs: Costs, barrier: Ints, spread_known: Bools | None = None, funding_bps: Floats | None = None
) -> Floats:
    """Return (m,) what each trade cost in bps: two fees, both half spreads where not recorded, slippage of a stop.

    barrier       (m,) STOP | TARGET | TIME, from labels.barriers
    spread_known  (m,) whether gross is of executed prices, which have paid the spread; None = nowhere
    funding_bps   (m,) received, negative where paid, from `funding_received_bps`; None = none
    """
    known = np.zeros(len(barrier), dtype=bool) if spread_known is None else spread_known
    cost = 2.0 * costs.fee_bps + np.where(known, 0.0, 2.0 * costs.half_spread_bps)
    cost = cost + np.where(barrier == STOP, costs.stop_slippage_bps, 0.0)
    return np.asarray(cost if funding_bps is None else cost - funding_bps)


# ---- funding ---------------------------------------------------------------------------------------------------------


def funding_rates(feed: ContextFeed | None) -> Floats:
    """Return (k, 2) of the funding rates of a feed: when known (epoch seconds), and the fraction of eight hours."""
    if feed is None:
        return NO_FUNDING
    at = feed.field == FUNDING
    return np.column_stack([feed.known[at], feed.value[at]])


def funding_payments(rates: Floats, costs: Costs) -> Floats:
    """Return (k, 2) funding times (epoch seconds) with the rate that longs pay shorts there, as a fraction.

    rates  (n, 2) of `funding_rates`, ascending
    Rates that came settled show their funding times, and by the spacing of these what part of eight hours each is for.
    Announced ones do not: then funding times are those of the venue's row, and a rate belongs to the first of them that
    is not more than SETTLED_S before it became known. The last one known by then holds. A funding time without a rate
    of its own is left out, and pays nothing. Empty for a market that pays no funding.
    """
    if costs.funding_hours is None or len(rates) == 0:
        return NO_FUNDING
    hours = settlement_hours(rates[:, 0])
    if np.isfinite(hours).mean() >= SETTLED_SHARE:  # Binance stamps a settled rate some milliseconds after its time
        times = np.rint(rates[:, 0] / HOUR_S) * HOUR_S
        share = np.where(np.isnan(hours), UNIT_HOURS, hours) / UNIT_HOURS
    else:
        period = costs.funding_hours * HOUR_S
        times = np.ceil((rates[:, 0] - SETTLED_S) / period) * period
        share = np.full(len(rates), costs.funding_hours / UNIT_HOURS)
    last = np.append(np.diff(times) > 0.0, True)
    return np.column_stack([times[last], (rates[:, 1] * share)[last]])


def left_at(exit_open: Floats, exit_close: Floats, barrier: Ints) -> Floats:
    """Return (m,) epoch seconds up to which positions were held, for their funding and their time in the market.

    exit_open, exit_close  (m,) of the base bar of the exit, the former `Barriers.exit_time`; barrier (m,)
    A position that ran out of time is left at the close of that bar. One that touched a barrier was left somewhere in
    it, and counts to its open.
    """
    return np.asarray(np.where(barrier == TIME, exit_close, exit_open))


def funding_received_bps(payments: Floats, direction: Floats | Ints, start: Floats, end: Floats) -> Floats:
    """Return (m,) the funding that positions received over their life, in bps; negative where they paid.

    payments   (k, 2) from `funding_payments`; direction (m,) 1 long, -1 short
    start, end (m,) epoch seconds of fill and of `left_at`: a position pays at the funding times in (start, end]
    Raises     BadShape if lengths differ
    """
    if not len(direction) == len(start) == len(end):
        raise BadShape(f"directions {len(direction)}, starts {len(start)}, ends {len(end)}; pass one of each a trade")
    paid = np.concatenate([[0.0], np.cumsum(payments[:, 1])])
    from_, to = (np.searchsorted(payments[:, 0], moments, side="right") for moments in (start, end))
    return np.asarray(-direction * (paid[to] - paid[from_]) * 1e4)
