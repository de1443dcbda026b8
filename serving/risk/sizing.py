"""How much, and where it ends: Kelly on the lower bound, under the smallest of all caps (R1, R2); ATR levels (R10)."""

import numpy as np

from pipelines.compiled import kernel

# Rows of the regime limit table (R2); UNKNOWN holds the minimum of all.
LIMIT_ROWS = ("bull", "bear", "high_vol", "low_vol")
BULL, BEAR, HIGH_VOL, LOW_VOL, UNKNOWN_LIMIT = range(5)


@kernel
def limit_row(regime, trend):  # type: ignore[no-untyped-def]
    """Row of the limit table for a regime code (order of contracts.REGIMES; NaN = none) and a trend sign.

    TRENDING up is bull and down is bear, VOLATILE is high_vol, RANGING and QUIET are low_vol; anything else, a trend
    without a sign included, gets the minimum of all.
    """
    if regime == 0.0:
        return BULL if trend > 0.0 else BEAR if trend < 0.0 else UNKNOWN_LIMIT
    if regime == 2.0:
        return HIGH_VOL
    if regime == 1.0 or regime == 3.0:
        return LOW_VOL
    return UNKNOWN_LIMIT


@kernel
def kelly(p, odds):  # type: ignore[no-untyped-def]
    """(p·b − q)/b, never below 0; a fraction of equity. NaN in, 0 out. Source: Kelly 1956."""
    fraction = (p * odds - (1.0 - p)) / odds
    return fraction if fraction > 0.0 else 0.0


# How conviction scales Kelly's fraction (R1): squared, or the documents' min(1.5 c, 2.0).
SIZINGS = ("kelly", "confidence")


@kernel
def wanted_size(p_low, odds, conviction, kelly_fraction, multiplier, sizing):  # type: ignore[no-untyped-def]
    """Fraction of equity before any cap: Kelly(p_low) × fraction × regime multiplier × what conviction leaves of it.

    sizing  index into SIZINGS. NaN in any input gives 0 (law L7).
    """
    by = conviction * conviction if sizing == 0.0 else min(1.5 * conviction, 2.0)
    wanted = kelly(p_low, odds) * kelly_fraction * multiplier * by
    total = p_low + odds + conviction + kelly_fraction + multiplier
    return wanted if wanted > 0.0 and total == total else 0.0


# Every cap on a size, in the order they are asked; the smallest one holds.
CAPS = ("kelly_cap", "regime", "volatility", "gross", "strategy", "market", "asset", "correlated", "es", "stress")
N_CAPS = len(CAPS)


@kernel
def smallest_cap(caps):  # type: ignore[no-untyped-def]
    """(cap, which): the smallest of caps (N_CAPS,), never under 0, and its index in CAPS. NaN in any gives (0, -1)."""
    cap, which = np.inf, -1
    for i in range(caps.shape[0]):
        if caps[i] != caps[i]:
            return 0.0, -1
        if caps[i] < cap:
            cap, which = caps[i], i
    return max(cap, 0.0), which


@kernel
def level(price, direction, distance_atr, atr):  # type: ignore[no-untyped-def]
    """Price `distance_atr` ATR away in `direction`; atr as a fraction of price. The same formula the labels use."""
    return price * (1.0 + direction * distance_atr * atr)
