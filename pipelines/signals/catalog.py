"""SIGNALS: every rule-based signal in one fold. PRODUCERS: the signals of each score category."""

from pipelines.features.fold import StreamingFold
from pipelines.signals import (
    absorption,
    amt,
    cisd,
    confluence,
    crt,
    cvd,
    footprint,
    fvg,
    hawkes,
    heatmap,
    institutional,
    ofi,
    order_block,
    sentiment,
    smart_money,
    smt,
    stars,
    strategies,
    sweep,
)

_BEFORE = (  # the stars come last: they read the rest
    fvg.GROUP,
    sweep.GROUP,
    order_block.GROUP,
    cisd.GROUP,
    smt.GROUP,
    cvd.GROUP,
    ofi.GROUP,
    absorption.GROUP,
    hawkes.GROUP,
    institutional.GROUP,
    footprint.GROUP,
    heatmap.GROUP,
    smart_money.GROUP,
    amt.GROUP,
    crt.GROUP,
    confluence.GROUP,
    sentiment.GROUP,
    strategies.GROUP,
)
SIGNALS = StreamingFold("signals", (*_BEFORE, stars.feature_group(_BEFORE)))

PRODUCERS: dict[str, tuple[str, ...]] = {
    "cmt": ("amt_accumulation", "amt_distribution", "crt", "confluence", "unicorn"),
    "ict": ("order_block", "fvg", "sweep", "cisd", "smt"),
    "order_flow": ("cvd", "cvd_divergence", "ofi", "absorption", "hawkes", "institutional"),
    "fpdom": ("footprint", "heatmap", "smart_money"),
    "sentiment": ("funding", "fear_greed"),
    "traditional": ("ma_cross", "rsi", "macd", "regime_ma", "market_imbalance", "consensus"),
}
