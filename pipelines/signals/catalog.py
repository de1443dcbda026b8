"""SIGNALS: every rule-based signal, one fold. PRODUCERS: who speaks for which category. AWAITING: who does not yet."""

from pipelines.features.fold import Fold
from pipelines.signals import amt, cisd, confluence, crt, cvd, fvg, ofi, order_block, smt, strategies, sweep

BEFORE = (  # the order they stand in; the stars come last, since they read the rest
    fvg.FAMILY,
    sweep.FAMILY,
    order_block.FAMILY,
    cisd.FAMILY,
    smt.FAMILY,
    cvd.FAMILY,
    ofi.FAMILY,
    amt.FAMILY,
    crt.FAMILY,
    confluence.FAMILY,
    strategies.FAMILY,
)
SIGNALS = Fold("signals", BEFORE)

PRODUCERS: dict[str, tuple[str, ...]] = {
    "cmt": ("amt_accumulation", "amt_distribution", "crt", "confluence"),
    "ict": ("order_block", "fvg", "sweep", "cisd", "smt"),
    "order_flow": ("cvd", "cvd_divergence", "ofi"),
    "fpdom": (),
    "sentiment": (),
    "traditional": ("ma_cross", "rsi", "macd", "regime_ma", "market_imbalance", "consensus"),
}

# rows of the specification a category will also hear once they exist
AWAITING: dict[str, tuple[str, ...]] = {
    "cmt": ("S14",),
    "ict": (),
    "order_flow": ("S6 absorption", "S8", "S11"),
    "fpdom": ("S7", "S9", "S10"),
    "sentiment": ("D7 funding", "D7 fear and greed"),
    "traditional": ("F3",),
}
