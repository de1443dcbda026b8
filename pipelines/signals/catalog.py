"""SIGNALS: every rule-based signal, one fold. PRODUCERS: who speaks for which category. AWAITING: who does not yet."""

from pipelines.features.fold import Fold
from pipelines.signals import (
    absorption,
    cvd,
    footprint,
    fvg,
    hawkes,
    heatmap,
    institutional,
    ofi,
    sentiment,
    smart_money,
    strategies,
    sweep,
)

SIGNALS = Fold(
    "signals",
    (
        fvg.FAMILY,
        sweep.FAMILY,
        cvd.FAMILY,
        ofi.FAMILY,
        absorption.FAMILY,
        hawkes.FAMILY,
        institutional.FAMILY,
        footprint.FAMILY,
        heatmap.FAMILY,
        smart_money.FAMILY,
        sentiment.FAMILY,
        strategies.FAMILY,
    ),
)

PRODUCERS: dict[str, tuple[str, ...]] = {
    "cmt": (),
    "ict": ("fvg", "sweep"),
    "order_flow": ("cvd", "cvd_divergence", "ofi", "absorption", "hawkes", "institutional"),
    "fpdom": ("footprint", "heatmap", "smart_money"),
    "sentiment": ("funding", "fear_greed"),
    "traditional": ("ma_cross", "rsi", "macd", "regime_ma", "market_imbalance", "consensus"),
}

# rows of the specification a category will also hear once they exist
AWAITING: dict[str, tuple[str, ...]] = {
    "cmt": ("S12", "S13", "S14", "S15"),
    "ict": ("S1", "S4", "S5"),
    "traditional": ("F3",),
}
