"""SIGNALS: every rule-based signal, one fold. PRODUCERS: who speaks for which category. AWAITING: who does not yet."""

from pipelines.features.fold import Fold
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
    fvg.FAMILY,
    sweep.FAMILY,
    order_block.FAMILY,
    cisd.FAMILY,
    smt.FAMILY,
    cvd.FAMILY,
    ofi.FAMILY,
    absorption.FAMILY,
    hawkes.FAMILY,
    institutional.FAMILY,
    footprint.FAMILY,
    heatmap.FAMILY,
    smart_money.FAMILY,
    amt.FAMILY,
    crt.FAMILY,
    confluence.FAMILY,
    sentiment.FAMILY,
    strategies.FAMILY,
)
SIGNALS = Fold("signals", (*_BEFORE, stars.family(_BEFORE)))

PRODUCERS: dict[str, tuple[str, ...]] = {
    "cmt": ("amt_accumulation", "amt_distribution", "crt", "confluence", "unicorn"),
    "ict": ("order_block", "fvg", "sweep", "cisd", "smt"),
    "order_flow": ("cvd", "cvd_divergence", "ofi", "absorption", "hawkes", "institutional"),
    "fpdom": ("footprint", "heatmap", "smart_money"),
    "sentiment": ("funding", "fear_greed"),
    "traditional": ("ma_cross", "rsi", "macd", "regime_ma", "market_imbalance", "consensus"),
}

# rows of the specification a category will also hear once they exist
AWAITING: dict[str, tuple[str, ...]] = {
    "traditional": ("F3",),
}
