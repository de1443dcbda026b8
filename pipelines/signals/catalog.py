"""SIGNALS: every rule-based signal, one fold. PRODUCERS: who speaks for which category. AWAITING: who does not yet."""

from pipelines.features.fold import Fold
from pipelines.signals import cisd, cvd, fvg, ofi, order_block, smt, strategies, sweep

SIGNALS = Fold(
    "signals",
    (
        fvg.FAMILY,
        sweep.FAMILY,
        order_block.FAMILY,
        cisd.FAMILY,
        smt.FAMILY,
        cvd.FAMILY,
        ofi.FAMILY,
        strategies.FAMILY,
    ),
)

PRODUCERS: dict[str, tuple[str, ...]] = {
    "cmt": (),
    "ict": ("order_block", "fvg", "sweep", "cisd", "smt"),
    "order_flow": ("cvd", "cvd_divergence", "ofi"),
    "fpdom": (),
    "sentiment": (),
    "traditional": ("ma_cross", "rsi", "macd", "regime_ma", "market_imbalance", "consensus"),
}

# rows of the specification a category will also hear once they exist
AWAITING: dict[str, tuple[str, ...]] = {
    "cmt": ("S12", "S13", "S14", "S15"),
    "ict": (),
    "order_flow": ("S6 absorption", "S8", "S11"),
    "fpdom": ("S7", "S9", "S10"),
    "sentiment": ("D7 funding", "D7 fear and greed"),
    "traditional": ("F3",),
}
