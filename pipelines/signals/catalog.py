"""SIGNALS: every rule-based signal, one fold. PRODUCERS: who speaks for which category. AWAITING: who does not yet."""

from pipelines.features.fold import Fold
from pipelines.signals import amt, confluence, crt, cvd, fvg, ofi, strategies, sweep

SIGNALS = Fold(
    "signals",
    (
        fvg.FAMILY, sweep.FAMILY, cvd.FAMILY, ofi.FAMILY, amt.FAMILY, crt.FAMILY, confluence.FAMILY, strategies.FAMILY,
    ),
)  # fmt: skip

PRODUCERS: dict[str, tuple[str, ...]] = {
    "cmt": ("amt_accumulation", "amt_distribution", "crt", "confluence"),
    "ict": ("fvg", "sweep"),
    "order_flow": ("cvd", "cvd_divergence", "ofi"),
    "fpdom": (),
    "sentiment": (),
    "traditional": ("ma_cross", "rsi", "macd", "regime_ma", "market_imbalance", "consensus"),
}

# rows of the specification a category will also hear once they exist
AWAITING: dict[str, tuple[str, ...]] = {
    "cmt": ("S14",),
    "ict": ("S1", "S4", "S5"),
    "order_flow": ("S6 absorption", "S8", "S11"),
    "fpdom": ("S7", "S9", "S10"),
    "sentiment": ("D7 funding", "D7 fear and greed"),
    "traditional": ("F3",),
}
