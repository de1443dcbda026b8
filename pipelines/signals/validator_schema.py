"""The validator's columns, in the one order that training, serving and configuration share (F2).

Three of them come from signals (S12–S14), the others are features; `signals.events` joins them. Sixteen, then those of
the named series a market has.
"""

from pipelines.features.series import SERIES_COLUMNS

VALIDATOR_COLUMNS = (
    "volume_ratio",
    "price_momentum",
    "order_flow_imbalance",
    "unicorn_rating_score",
    "amt_phase_score",
    "crt_level_score",
    "time_of_day_sin",
    "time_of_day_cos",
    "session_asia",
    "session_london",
    "session_newyork",
    "volatility_regime",
    "market_sentiment",
    "hft_oci_signal",
    "book_skew_strength",
    "liquidity_density",
    *SERIES_COLUMNS,
)

# for an event these are read in its own direction: positive = with the event, negative = against it
SIDED_COLUMNS = (
    "price_momentum", "order_flow_imbalance", "unicorn_rating_score", "amt_phase_score", "crt_level_score",
    "hft_oci_signal", "book_skew_strength",
)  # fmt: skip
