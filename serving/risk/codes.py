"""List every refusal of a decision: one bit each, most fundamental first, and the text that carries its numbers.

A refusal is an answer, not an exception. The decision kernel collects all that apply in one int64; the lowest bit is
the primary one.
"""

from functools import lru_cache

CANNOT_COMPUTE = 1 << 0
BREAKER_LATCHED = 1 << 1
STALE_DATA = 1 << 2
DRAWDOWN_AT_LIMIT = 1 << 3
DRAWDOWN_EXIT_ONLY = 1 << 4
DAILY_LOSS_AT_LIMIT = 1 << 5
TIER_CLOSED = 1 << 6
NO_EVENT = 1 << 7
MODEL_ABSTAINED = 1 << 8
NO_SIGNAL = 1 << 9
CONFLICT = 1 << 10
CONFIDENCE_BELOW = 1 << 11
STRENGTH_BELOW = 1 << 12
CONFLUENCE_BELOW = 1 << 13
UNICORN_BELOW = 1 << 14
PHASE_DIFFERS = 1 << 15
TARGET_UNDER_COST = 1 << 16
NO_EDGE_AFTER_COST = 1 << 17
NOT_VALIDATED = 1 << 18
KELLY_ZERO = 1 << 19
STOP_EXCEEDS_REGIME = 1 << 20
GROSS_EXCEEDS_LIMIT = 1 << 21
STRATEGY_AT_LIMIT = 1 << 22
MARKET_AT_LIMIT = 1 << 23
ASSET_AT_LIMIT = 1 << 24
CORRELATED_AT_LIMIT = 1 << 25
ES_AT_LIMIT = 1 << 26
STRESS_AT_LIMIT = 1 << 27
OPEN_COUNT_AT_LIMIT = 1 << 28
TRADES_TODAY_AT_LIMIT = 1 << 29
EMBARGO = 1 << 30
SIGNAL_DISABLED = 1 << 31

# Fields in braces: kernel.ROW_FIELDS, OUT_FIELDS and PARAM_FIELDS, and those that decision_row.reasons adds.
REFUSALS: dict[int, str] = {
    CANNOT_COMPUTE: "CANNOT_COMPUTE: input={unusable}",
    BREAKER_LATCHED: "BREAKER_LATCHED: {latched}",
    STALE_DATA: "STALE_DATA: age_bars={age_bars:.2f}, limit={max_data_age_bars:.2f}",
    DRAWDOWN_AT_LIMIT: "DRAWDOWN_AT_LIMIT: drawdown={drawdown:.4f}, limit={max_drawdown:.4f}, stay flat",
    DRAWDOWN_EXIT_ONLY: "DRAWDOWN_EXIT_ONLY: drawdown={drawdown:.4f}, limit={max_drawdown:.4f}, nothing new is opened",
    DAILY_LOSS_AT_LIMIT: "DAILY_LOSS_AT_LIMIT: daily_pnl={daily_pnl:.4f}, limit=-{max_daily_loss:.4f}",
    TIER_CLOSED: "TIER_CLOSED: tier={tier:.0f}, last tier that opens positions=3",
    NO_EVENT: "NO_EVENT",
    MODEL_ABSTAINED: "MODEL_ABSTAINED:{abstained}",
    NO_SIGNAL: "NO_SIGNAL: coverage={coverage:.2f}, no weighted category speaks now",
    CONFLICT: "CONFLICT: consensus={consensus:.2f}, limit={min_consensus:.2f}, vote={direction:.0f}, event={event:.0f}",
    CONFIDENCE_BELOW: "CONFIDENCE_BELOW: confidence={confidence:.3f}, minimum={min_confidence:.3f}",
    STRENGTH_BELOW: "STRENGTH_BELOW: strength={strength}, minimum={min_strength:.1f} of 100",
    CONFLUENCE_BELOW: "CONFLUENCE_BELOW: confluence={event_confluence}, minimum={min_confluence:.2f}",
    UNICORN_BELOW: "UNICORN_BELOW: stars={event_stars}, minimum={min_unicorn:.1f} of 21",
    PHASE_DIFFERS: "PHASE_DIFFERS: phase={phase_now}, wanted={phase_wanted}",
    TARGET_UNDER_COST: "TARGET_UNDER_COST: target_bps={target_bps:.1f}, minimum={min_target_bps:.1f}",
    NO_EDGE_AFTER_COST: "NO_EDGE_AFTER_COST: edge_bps={edge_bps:.1f}, p={p:.3f}, break_even_p={break_even_p:.3f}, "
    "miss_bps={miss_bps:.1f}",
    NOT_VALIDATED: "NOT_VALIDATED: validation={validation:.3f}, above={valid_above:.2f} ({layers})",
    KELLY_ZERO: "KELLY_ZERO: kelly={kelly:.4f}, p_low={p_low:.3f}, net_break_even_p={net_break_even_p:.3f}, "
    "cap={cap:.4f}",
    STOP_EXCEEDS_REGIME: "STOP_EXCEEDS_REGIME: stop={stop_fraction:.4f}, limit={max_stop:.4f}",
    GROSS_EXCEEDS_LIMIT: "GROSS_EXCEEDS_LIMIT: gross={gross:.2f}, limit={max_gross:.2f}",
    STRATEGY_AT_LIMIT: "STRATEGY_AT_LIMIT: strategy={strategy:.2f}, limit={max_strategy:.2f}",
    MARKET_AT_LIMIT: "MARKET_AT_LIMIT: market={market:.2f}, limit={max_market:.2f}",
    ASSET_AT_LIMIT: "ASSET_AT_LIMIT: asset={asset:.2f}, limit={max_asset:.2f}",
    CORRELATED_AT_LIMIT: "CORRELATED_AT_LIMIT: correlated={correlated:.2f}, limit={max_correlated:.2f}",
    ES_AT_LIMIT: "ES_AT_LIMIT: es={es:.4f}, limit={max_es:.4f}",
    STRESS_AT_LIMIT: "STRESS_AT_LIMIT: stress={stress:.4f}, limit={max_stress:.4f}, were all to fall together",
    OPEN_COUNT_AT_LIMIT: "OPEN_COUNT_AT_LIMIT: open={open_count:.0f}, limit={max_open:.0f}",
    TRADES_TODAY_AT_LIMIT: "TRADES_TODAY_AT_LIMIT: trades={trades_today:.0f}, limit={max_trades_per_day:.0f}",
    EMBARGO: "EMBARGO: {window}, nothing new is opened",
    SIGNAL_DISABLED: "SIGNAL_DISABLED: {signal} is in params.yaml signals.disabled, its events open nothing",
}

# The seven layers a decision passes (R6), in order; every refusal belongs to one of them.
LAYERS: dict[str, tuple[int, ...]] = {
    "data": (CANNOT_COMPUTE, STALE_DATA, EMBARGO),
    "model": (TIER_CLOSED, MODEL_ABSTAINED),
    "signal": (
        NO_EVENT,
        SIGNAL_DISABLED,
        NO_SIGNAL,
        CONFLICT,
        CONFIDENCE_BELOW,
        STRENGTH_BELOW,
        CONFLUENCE_BELOW,
        UNICORN_BELOW,
        PHASE_DIFFERS,
        TARGET_UNDER_COST,
        NO_EDGE_AFTER_COST,
        NOT_VALIDATED,
    ),
    "position": (KELLY_ZERO, STOP_EXCEEDS_REGIME),
    "portfolio": (
        GROSS_EXCEEDS_LIMIT,
        STRATEGY_AT_LIMIT,
        MARKET_AT_LIMIT,
        ASSET_AT_LIMIT,
        CORRELATED_AT_LIMIT,
        ES_AT_LIMIT,
        STRESS_AT_LIMIT,
        OPEN_COUNT_AT_LIMIT,
        TRADES_TODAY_AT_LIMIT,
    ),
    "drawdown": (DRAWDOWN_AT_LIMIT, DRAWDOWN_EXIT_ONLY, DAILY_LOSS_AT_LIMIT),
    "system": (BREAKER_LATCHED,),
}


def name_of(bit: int) -> str:
    """Return the code without its numbers: the name to count and plot by."""
    return REFUSALS[bit].split(":", 1)[0]


def bits_of(code: int) -> list[int]:
    """Return the refusal bits of one decision code, primary first; empty = emitted."""
    return [bit for bit in REFUSALS if code & bit]


def trail(code: int) -> dict[str, str]:
    """Return layer → `passed`, `refused: <codes>` or `not reached: <why>` for one decision code (R6).

    Without an event no model predicts and nothing is sized; with an unusable input, or a model that abstains, no size
    is computed, so `position` is not reached.
    """
    return dict(_trail(code))


@lru_cache(maxsize=4096)  # few of the possible codes come up, and a decision waits for its words
def _trail(code: int) -> tuple[tuple[str, str], ...]:
    """Return the items of `trail`."""
    stopped = next((bit for bit in (NO_EVENT, CANNOT_COMPUTE, MODEL_ABSTAINED) if code & bit), 0)
    results: dict[str, str] = {}
    for layer, bits in LAYERS.items():
        refused = [name_of(bit) for bit in bits if code & bit]
        if refused:
            results[layer] = f"refused: {', '.join(refused)}"
        elif stopped and (layer == "position" or (layer == "model" and stopped == NO_EVENT)):
            results[layer] = f"not reached: {name_of(stopped)}"
        else:
            results[layer] = "passed"
    return tuple(results.items())
