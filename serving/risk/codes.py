"""Every way a decision can be refused: one bit each, most fundamental first, and the words that carry its numbers.

A refusal is an answer, not an exception. The core collects all that apply in one int64; the lowest bit is the primary.
"""

CANNOT_COMPUTE = 1 << 0
BREAKER_LATCHED = 1 << 1
STALE_DATA = 1 << 2
DRAWDOWN_AT_LIMIT = 1 << 3
DAILY_LOSS_AT_LIMIT = 1 << 4
TIER_CLOSED = 1 << 5
NO_EVENT = 1 << 6
MODEL_ABSTAINED = 1 << 7
NO_VOICE = 1 << 8
CONFLICT = 1 << 9
CONFIDENCE_BELOW = 1 << 10
TARGET_UNDER_COST = 1 << 11
NO_EDGE_AFTER_COST = 1 << 12
KELLY_ZERO = 1 << 13
STOP_EXCEEDS_REGIME = 1 << 14
GROSS_EXCEEDS_LIMIT = 1 << 15
OPEN_COUNT_AT_LIMIT = 1 << 16
TRADES_TODAY_AT_LIMIT = 1 << 17

# The fields in braces are core.ROW_FIELDS, core.OUT_FIELDS and core.PARAM_FIELDS, plus what policy.reasons adds.
REFUSALS: dict[int, str] = {
    CANNOT_COMPUTE: "CANNOT_COMPUTE: input={unusable}",
    BREAKER_LATCHED: "BREAKER_LATCHED: breakers={breakers:.0f}",
    STALE_DATA: "STALE_DATA: age_bars={age_bars:.2f}, limit={max_data_age_bars:.2f}",
    DRAWDOWN_AT_LIMIT: "DRAWDOWN_AT_LIMIT: drawdown={drawdown:.4f}, limit={max_drawdown:.4f}, stay flat",
    DAILY_LOSS_AT_LIMIT: "DAILY_LOSS_AT_LIMIT: daily_pnl={daily_pnl:.4f}, limit=-{max_daily_loss:.4f}",
    TIER_CLOSED: "TIER_CLOSED: tier={tier:.0f}, last tier that opens positions=3",
    NO_EVENT: "NO_EVENT",
    MODEL_ABSTAINED: "MODEL_ABSTAINED:{abstained}",
    NO_VOICE: "NO_VOICE: coverage={coverage:.2f}, no weighted category speaks now",
    CONFLICT: "CONFLICT: consensus={consensus:.2f}, limit={min_consensus:.2f}, vote={direction:.0f}, event={event:.0f}",
    CONFIDENCE_BELOW: "CONFIDENCE_BELOW: confidence={confidence:.3f}, minimum={min_confidence:.3f}",
    TARGET_UNDER_COST: "TARGET_UNDER_COST: target_bps={target_bps:.1f}, minimum={min_target_bps:.1f}",
    NO_EDGE_AFTER_COST: "NO_EDGE_AFTER_COST: edge_bps={edge_bps:.1f}, p={p:.3f}, break_even_p={break_even_p:.3f}",
    KELLY_ZERO: "KELLY_ZERO: kelly={kelly:.4f}, p_low={p_low:.3f}, conviction={conviction:.3f}, cap={cap:.4f}",
    STOP_EXCEEDS_REGIME: "STOP_EXCEEDS_REGIME: stop={stop_fraction:.4f}, limit={max_stop:.4f}",
    GROSS_EXCEEDS_LIMIT: "GROSS_EXCEEDS_LIMIT: gross={gross:.2f}, limit={max_gross:.2f}",
    OPEN_COUNT_AT_LIMIT: "OPEN_COUNT_AT_LIMIT: open={open_count:.0f}, limit={max_open:.0f}",
    TRADES_TODAY_AT_LIMIT: "TRADES_TODAY_AT_LIMIT: trades={trades_today:.0f}, limit={max_trades_per_day:.0f}",
}


def name_of(bit: int) -> str:
    """The code alone, without its numbers: what is counted and plotted."""
    return REFUSALS[bit].split(":", 1)[0]


def bits_of(code: int) -> list[int]:
    """The refusals inside one core answer, primary first; empty means emitted."""
    return [bit for bit in REFUSALS if code & bit]
