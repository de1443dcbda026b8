"""Define the columns of the tape and of the context: what is known at a bar's close besides the bar and its book."""

import numpy as np
import numpy.typing as npt

# ---- tape in compiled code: measures of the events inside a bar; one row comes with each recorded book -------------
# Name → True = summed over the books of a bar, False = taken from the newest of them.
# Sizes and flows in base asset; NaN = not recorded.
TAPE: dict[str, bool] = {
    "order_flow": True,  # order-flow imbalance (Cont, Kukanov and Stoikov 2014)
    "order_flow_fast": False,  # the same over the last seconds before the book
    # S7, footprint and depth
    "stacked_buying": True,  # count: runs of price buckets, one above the other, where buyers outdid sellers
    "stacked_selling": True,
    "stacking_bid": True,  # added less pulled (trades apart) near the best bid
    "stacking_ask": True,
    # S8, arrivals of trades
    "hawkes_branching": False,  # trades that one trade causes, by maximum likelihood
    "hawkes_excess": False,  # intensity over its base rate, less one
    "hawkes_side": False,  # -1 sellers … 1 buyers: the side whose trades make up the excitement
    # S9, heatmap of 100 levels x 50 snapshots
    "heat_imbalance": False,  # (bid - ask) / both
    "heat_concentration": False,  # Herfindahl-Hirschman index of the levels, 1/levels … 1
    "heat_liquidity": False,  # score, 0 … 1
    "wall_bid": False,  # quote currency; the persistent wall nearest below, NaN = none
    "wall_ask": False,  # … above
    "wall_bid_size": False,  # in medians of the levels
    "wall_ask_size": False,
    # S10, smart money
    "large_buy": True,  # bought in trades beyond the trailing 99 % quantile of sizes
    "large_sell": True,
    "iceberg_bid": True,  # filled at levels that were refilled after fills
    "iceberg_ask": True,
    "spoof_bid": True,  # count: large orders that were withdrawn before they could trade
    "spoof_ask": True,
    "smart_price": False,  # quote currency; mean price, by size, of large trades and iceberg fills
    # S11, institutional flow
    "cvd_large": True,  # buys less sells, trades above the trailing median notional
    "cvd_small": True,
    "vpin": False,  # 0 … 1, volume-synchronised probability of informed trading
}
TAPE_FIELDS = tuple(TAPE)
TAPE_INDEX = {name: i for i, name in enumerate(TAPE_FIELDS)}
TAPE_WIDTH = len(TAPE_FIELDS)

# ---- context in compiled code: one row of float64 for each decision bar; NaN = not known at its close ------------
SERIES_FIELDS = ("series_1", "series_2", "series_3", "series_4")  # named series, by the manifest of a data version
CONTEXT_FIELDS = (
    *TAPE_FIELDS[:2],
    "funding_rate",  # fraction of eight hours, whatever the funding period: see pipelines.data.funding
    "fear_greed",  # 0 (fear) to 100 (greed)
    "open_interest",  # base asset
    "reference_close",  # quote currency; close of the reference symbol's bar (BTC for another market)
    *TAPE_FIELDS[2:],
    *SERIES_FIELDS,  # in the unit of the series
)
CONTEXT_INDEX = {name: i for i, name in enumerate(CONTEXT_FIELDS)}
CONTEXT_WIDTH = len(CONTEXT_FIELDS)
NO_CONTEXT: npt.NDArray[np.float64] = np.full(CONTEXT_WIDTH, np.nan)


def tape_of(n: int, **columns: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return an (n, TAPE_WIDTH) tape with the named columns filled and NaN (not recorded) in all others."""
    tape = np.full((n, TAPE_WIDTH), np.nan)
    for name, values in columns.items():
        tape[:, TAPE_INDEX[name]] = values
    return tape
