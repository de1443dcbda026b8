"""Size a position by Kelly on the lower bound, under the smallest of all caps (R1, R2); compute ATR levels (R10).

Kelly's fraction is the equity at risk, not the position: a trade that loses at its stop costs the stop's distance, the
round trip and the stop's slippage, so the position is the fraction over that loss. Odds are net for the same reason.
"""

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import REGIMES, Floats
from serving.risk.limits import BUDGETS

# Rows of the regime limit table (R2), then one for an unknown regime, which holds the minimum of all.
LIMIT_ROWS = ("bull", "bear", "high_vol", "low_vol")
N_LIMIT_ROWS = len(LIMIT_ROWS) + 1
BULL, BEAR, HIGH_VOL, LOW_VOL, UNKNOWN_LIMIT = range(N_LIMIT_ROWS)
_TRENDING, _RANGING, _VOLATILE, _QUIET = (
    float(REGIMES.index(name)) for name in ("TRENDING", "RANGING", "VOLATILE", "QUIET")
)


@kernel
def limit_row(regime: float, trend: float) -> int:
    """Return the row of the limit table for a regime code (order of contracts.REGIMES; NaN = none) and a trend sign.

    TRENDING up is bull and down is bear, VOLATILE is high_vol, RANGING and QUIET are low_vol; anything else, a trend
    without a sign included, gets the minimum of all.
    """
    if regime == _TRENDING:
        return BULL if trend > 0.0 else BEAR if trend < 0.0 else UNKNOWN_LIMIT
    if regime == _VOLATILE:
        return HIGH_VOL
    if regime in (_RANGING, _QUIET):
        return LOW_VOL
    return UNKNOWN_LIMIT


@kernel
def kelly(p: float, gain: float, loss: float) -> float:
    """Return Kelly's fraction of equity to put at risk, p − (1 − p)·loss/gain, never below 0; 0 for NaN.

    gain, loss  of the position where it wins and where it loses, fractions of price after cost: T − c and S + c',
                where c' is the cost of a trade that ends at its stop. Their ratio is the net odds b of (p·b − q)/b.
                Without a gain there is nothing to bet on: 0
    Source      Kelly 1956; Thorp 2006, Handbook of Asset and Liability Management, ch. 9
    """
    if not (gain > 0.0 and loss > 0.0):
        return 0.0
    fraction = p - (1.0 - p) * loss / gain
    return fraction if fraction > 0.0 else 0.0


# How the confidence of the fused signal scales Kelly's fraction (R1): squared, or the documents' min(1.5 c, 2.0).
SIZINGS = ("kelly", "confidence")


@kernel
def wanted_size(
    p_low: float, gain: float, loss: float, confidence: float, kelly_fraction: float, multiplier: float, sizing: float
) -> float:
    """Return the position before any cap, as a fraction of equity.

    Equity at risk = Kelly(p_low) × fraction × regime multiplier × confidence factor; the position is that over `loss`.
    gain, loss  as in `kelly`; sizing: index into SIZINGS. NaN in any input gives 0 (law L7).
    """
    factor = confidence * confidence if sizing == 0.0 else min(1.5 * confidence, 2.0)
    at_risk = kelly(p_low, gain, loss) * kelly_fraction * multiplier * factor
    total = p_low + gain + loss + confidence + kelly_fraction + multiplier
    return at_risk / loss if at_risk > 0.0 and total == total else 0.0


# Every cap on a size, in the order of comparison; the smallest one holds.
CAPS = ("kelly_cap", "regime", "volatility", *BUDGETS)
N_CAPS = len(CAPS)
KELLY_CAP_AT, REGIME_CAP, VOLATILITY_CAP = range(N_CAPS - len(BUDGETS))
BUDGET_CAPS = VOLATILITY_CAP + 1  # one per budget, in the order of limits.BUDGETS


@kernel
def smallest_cap(caps: Floats) -> tuple[float, int]:
    """Return the smallest of caps (N_CAPS,) float64, never below 0, and its index in CAPS; (0, -1) if any is NaN."""
    cap, which = np.inf, -1
    for i in range(caps.shape[0]):
        if caps[i] != caps[i]:
            return 0.0, -1
        if caps[i] < cap:
            cap, which = caps[i], i
    return max(cap, 0.0), which


@kernel
def level(price: float, direction: float, distance_atr: float, atr: float) -> float:
    """Return the price `distance_atr` ATR away in `direction`; atr as a fraction of price. The labels' formula."""
    return price * (1.0 + direction * distance_atr * atr)
