"""How much, and where it ends: Kelly on the lower bound, under the smallest of all caps (R1, R2); ATR levels (R10)."""

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


@kernel
def position_size(  # type: ignore[no-untyped-def]
    p_low, odds, conviction, kelly_fraction, multiplier, kelly_cap, max_position, room
):
    """Size as a fraction of equity: Kelly(p_low) × fraction × conviction² × regime multiplier, under every cap.

    room  what is left under the gross limit. NaN in any input gives 0 (law L7).
    """
    wanted = kelly(p_low, odds) * kelly_fraction * conviction * conviction * multiplier
    size = min(min(wanted, kelly_cap), min(max_position, room))
    total = p_low + odds + conviction + kelly_fraction + multiplier + kelly_cap + max_position + room
    return size if size > 0.0 and total == total else 0.0


@kernel
def level(price, direction, distance_atr, atr):  # type: ignore[no-untyped-def]
    """Price `distance_atr` ATR away in `direction`; atr as a fraction of price. The same formula the labels use."""
    return price * (1.0 + direction * distance_atr * atr)
