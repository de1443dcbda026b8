"""The decision core: fuse → judge → size → limits, one compiled pure function of one row (U3, R1, R2, R10, L7).

`decide_row(row, params, out) -> code` is the only place a trade is allowed or refused. The service drives one row
through it (`policy.decide`), the backtest loops it; nothing else decides. Code 0 emits; otherwise every refusal that
applies is a bit (see `risk.codes`). All layouts are flat float64; prices in quote currency, `*_bps` in basis points of
the price, everything else that is a fraction is of equity or of price, as named.
"""

from math import erf, sqrt

import numpy as np

from pipelines.compiled import kernel
from serving.policy.fusion import N_SCORES, NO_REGIME, SCORE_NAMES, TRADITIONAL, TRADITIONAL_ONLY, WEIGHT_ROWS, fuse
from serving.risk.codes import (
    CANNOT_COMPUTE,
    CONFIDENCE_BELOW,
    CONFLICT,
    KELLY_ZERO,
    MODEL_ABSTAINED,
    NO_EDGE_AFTER_COST,
    NO_EVENT,
    NO_VOICE,
    NOT_VALIDATED,
    STOP_EXCEEDS_REGIME,
    TARGET_UNDER_COST,
    TIER_CLOSED,
)
from serving.risk.exposure import EXPOSURES
from serving.risk.limits import BUDGETS, N_BUDGETS, STAGES, account_refusals, budget_refusals, stage_of
from serving.risk.sizing import N_CAPS, kelly, level, limit_row, smallest_cap, wanted_size

# ---- row: what is known at the close of one decision bar ---------------------------------------------------------
# N_SCORES each of: directions, confidences, factors, independence (order of fusion.SCORE_NAMES), then:
_STATE = (
    "regime",  # code in the order of contracts.REGIMES; NaN = unknown: base weights, smallest caps
    "trend",  # −1, 0, 1; NaN = unknown
    "unicorn",  # S14 stars of the leading side, signed; NaN = not known: no lower confidence will do
    "event",  # direction of the event, −1, 0 (none), 1
    "tier",  # 1 full, 2 simple model, 3 traditional only, 4 emergency
    "age_bars",  # decision bars between the last closed bar and as_of
    "breakers",  # bitmask of latched breakers, 0 = none
    *EXPOSURES[:N_BUDGETS],  # what is used of each budget, fraction of equity; see risk.exposure
    "open_count",  # open positions
    "trades_today",  # entries since 00:00 UTC
    "daily_pnl",  # fraction of equity at 00:00 UTC
    "drawdown",  # fraction under the highest equity so far, in [0, 1]
    "es_unit",  # expected shortfall of one unit on the event's side; this and all below only with an event
    "volatility",  # standard deviation of one decision bar's return
    "atr",  # fraction of price
    "price",  # close of the decision bar
    "p",  # P(target before stop) of the acting model; NaN = it abstained
    "p_low",  # its lower 95 % bound
)
ROW_FIELDS = (
    *(f"{voice}.{part}" for part in ("direction", "confidence", "factor", "independence") for voice in SCORE_NAMES),
    *_STATE,
)
ROW_WIDTH = len(ROW_FIELDS)
CONFIDENCES_AT, FACTORS_AT, INDEPENDENCE_AT, STATE_AT = N_SCORES, 2 * N_SCORES, 3 * N_SCORES, 4 * N_SCORES
(REGIME, TREND, UNICORN, EVENT, TIER, AGE_BARS, BREAKERS, GROSS, STRATEGY, MARKET, ASSET, CORRELATED, ES, STRESS,
 OPEN_COUNT, TRADES_TODAY, DAILY_PNL, DRAWDOWN, ES_UNIT, VOLATILITY, ATR, PRICE, P,
 P_LOW) = range(STATE_AT, ROW_WIDTH)  # fmt: skip
# What a backtest fills in as it goes: `exposure.EXPOSURES`, then the account's counts and results.
ACCOUNT = (GROSS, STRATEGY, MARKET, ASSET, CORRELATED, ES, STRESS, ES_UNIT, OPEN_COUNT, TRADES_TODAY, DAILY_PNL,
           DRAWDOWN)  # fmt: skip

STARS = 21.0
_BIG = 1e15
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution: p_low is so many standard errors under p
# What a usable value lies in, from EVENT on; anything else, NaN and infinity included, cannot be computed with.
_RANGE = {
    "event": (-1.0, 1.0), "tier": (1.0, 4.0), "daily_pnl": (-_BIG, _BIG), "drawdown": (0.0, 1.0),
    "es_unit": (1e-9, 1.0), "volatility": (1e-9, 1.0),
    "atr": (1e-9, 1.0), "price": (1e-12, _BIG), "p": (0.0, 1.0), "p_low": (0.0, 1.0),
}  # fmt: skip
_LOW, _HIGH = np.array([_RANGE.get(name, (0.0, _BIG)) for name in ROW_FIELDS[EVENT:]]).T.copy()

# ---- params: `policy.flatten` writes it ---------------------------------------------------------------------------
PARAM_FIELDS = (
    "high_unicorn", "min_consensus", "round_trip_bps", "min_target_to_cost", "target_atr", "stop_atr", "horizon_bars",
    "sizing", "kelly_fraction", "kelly_cap", "volatility_target", "max_open", "max_trades_per_day", "max_daily_loss",
    "max_drawdown", "max_data_age_bars", "traditional", "ai", "correlation", "valid_above",
    *(f"max_{name}" for name in BUDGETS),
)  # fmt: skip
(HIGH_UNICORN, MIN_CONSENSUS, ROUND_TRIP_BPS, MIN_TARGET_TO_COST, TARGET_ATR, STOP_ATR, HORIZON_BARS, SIZING,
 KELLY_FRACTION, KELLY_CAP, VOLATILITY_TARGET, MAX_OPEN, MAX_TRADES_PER_DAY, MAX_DAILY_LOSS, MAX_DRAWDOWN,
 MAX_DATA_AGE_BARS, W_TRADITIONAL, W_AI, W_CORRELATION, VALID_ABOVE) = range(20)  # fmt: skip
BUDGETS_AT = 20  # N_BUDGETS limits, in the order of limits.BUDGETS
WEIGHTS_AT = len(PARAM_FIELDS)  # (WEIGHT_ROWS, N_SCORES) fusion.weight_table
MULTIPLIER_AT = WEIGHTS_AT + WEIGHT_ROWS * N_SCORES  # one a regime, then the smallest
MAX_POSITION_AT = MULTIPLIER_AT + NO_REGIME + 1  # sizing.LIMIT_ROWS, then the smallest
MAX_STOP_AT = MAX_POSITION_AT + 5  # the same rows
TIER_SIZE_AT = MAX_STOP_AT + 5  # what each of the four tiers leaves of a size
STAGE_FROM_AT = TIER_SIZE_AT + 4  # share of the drawdown limit from which each stage after the first holds
STAGE_SIZE_AT = STAGE_FROM_AT + len(STAGES) - 1  # what each of the five stages leaves of a size
MIN_CONFIDENCE_AT = STAGE_SIZE_AT + len(STAGES)  # thresholds.confidence_table: a row a regime, then no regime
PARAM_WIDTH = MIN_CONFIDENCE_AT + 2 * (NO_REGIME + 1)

# ---- out: NaN where it could not be computed or was not asked -----------------------------------------------------
OUT_FIELDS = (
    "action",  # −1, 0, 1: what to do; 0 when refused
    "size",  # fraction of equity; 0 when refused
    "direction",  # −1, 0, 1: what the vote said
    "confidence", "consensus", "coverage",  # fusion.fuse
    "min_confidence",  # what was asked of it here
    "layer_traditional", "layer_ai", "layer_correlation",  # U4: how much each layer says for the event, in [0, 1]
    "validation",  # their weighted mean over those that speak
    "conviction",  # confidence as lowered by the model, sizing only
    "stop", "target",  # prices
    "stop_fraction",  # stop distance over price
    "target_bps", "min_target_bps",  # target distance, and the least one that is worth its cost
    "edge_bps",  # expected, after cost
    "break_even_p",  # p at which edge_bps is 0
    "kelly",  # raw Kelly fraction at p_low
    "cap",  # smallest of the caps that applied
    "cap_of",  # which one: index into sizing.CAPS
    "stage",  # of the drawdown: index into limits.STAGES
    "max_stop",  # of the regime, fraction of price
    "unusable_mask",  # bit i: ROW_FIELDS[i] could not be used
)  # fmt: skip
(ACTION, SIZE, DIRECTION, CONFIDENCE, CONSENSUS, COVERAGE, MIN_CONFIDENCE, LAYER_TRADITIONAL, LAYER_AI,
 LAYER_CORRELATION, VALIDATION, CONVICTION, STOP, TARGET, STOP_FRACTION, TARGET_BPS, MIN_TARGET_BPS, EDGE_BPS,
 BREAK_EVEN_P, KELLY, CAP, CAP_OF, STAGE, MAX_STOP, UNUSABLE_MASK) = range(len(OUT_FIELDS))  # fmt: skip
SHARES_AT = len(OUT_FIELDS)  # N_SCORES weights, then N_SCORES contributions, see fusion.fuse
CONTRIBUTIONS_AT = SHARES_AT + N_SCORES
OUT_WIDTH = CONTRIBUTIONS_AT + N_SCORES


@kernel
def _out_of_range(row, first, last):  # type: ignore[no-untyped-def]
    """Bits of the row fields first … last that are NaN, infinite or impossible."""
    mask = 0
    for i in range(first, last + 1):
        if not (_LOW[i - EVENT] <= row[i] <= _HIGH[i - EVENT]):
            mask |= 1 << i
    return mask


@kernel
def _unusable(row, weights):  # type: ignore[no-untyped-def]
    """Bits of the inputs that are needed whatever happens and cannot be used.

    NaN is meaningful, so allowed, in a direction (unavailable), the regime, the trend and the unicorn (unknown).
    A category that takes a side must say how strongly, and how far it counts.
    """
    mask = _out_of_range(row, EVENT, DRAWDOWN)
    if row[EVENT] != np.floor(row[EVENT]):
        mask |= 1 << EVENT
    if row[TIER] != np.floor(row[TIER]):
        mask |= 1 << TIER
    if abs(row[TREND]) > 1.0:
        mask |= 1 << TREND
    if abs(row[UNICORN]) > STARS:
        mask |= 1 << UNICORN
    regime = row[REGIME]
    if regime == regime and not (0.0 <= regime < NO_REGIME and regime == np.floor(regime)):
        mask |= 1 << REGIME
    for c in range(N_SCORES):
        side = row[c]
        if weights[c] > 0.0:
            if not (0.0 <= row[FACTORS_AT + c] <= _BIG):
                mask |= 1 << (FACTORS_AT + c)
            if not (0.0 < row[INDEPENDENCE_AT + c] <= 1.0):
                mask |= 1 << (INDEPENDENCE_AT + c)
        if (weights[c] > 0.0 or c == TRADITIONAL) and side == side and side != 0.0:
            if side != 1.0 and side != -1.0:
                mask |= 1 << c
            if not (0.0 <= row[CONFIDENCES_AT + c] <= 1.0):
                mask |= 1 << (CONFIDENCES_AT + c)
    return mask


@kernel
def _validate(row, params, out):  # type: ignore[no-untyped-def]
    """U4, three layers that each look at the event for themselves; fills `out`, True if they bear it out together.

    traditional  the technical strategies' side and percentile: 1 = wholly for the event, 0 = wholly against it
    ai           chance that the edge after cost is above 0, from p and its standard error
    correlation  agreement of the categories' vote, those that say the same counted once
    A layer that does not speak leaves the mean, it is not counted as half.
    """
    said = row[TRADITIONAL]
    if said == said and said != 0.0:
        out[LAYER_TRADITIONAL] = 0.5 + 0.5 * said * row[EVENT] * row[CONFIDENCES_AT + TRADITIONAL]
    if out[BREAK_EVEN_P] == out[BREAK_EVEN_P]:
        above = row[P] - out[BREAK_EVEN_P]
        error = (row[P] - row[P_LOW]) / _Z
        out[LAYER_AI] = 1.0 if above > 0.0 else 0.0
        if error > 0.0:
            out[LAYER_AI] = 0.5 * (1.0 + erf(above / (error * sqrt(2.0))))
    if out[CONFIDENCE] == out[CONFIDENCE]:
        out[LAYER_CORRELATION] = 0.5 + 0.5 * out[DIRECTION] * row[EVENT] * out[CONSENSUS]
    weight, total = 0.0, 0.0
    for i in range(3):
        if out[LAYER_TRADITIONAL + i] == out[LAYER_TRADITIONAL + i]:
            weight += params[W_TRADITIONAL + i]
            total += params[W_TRADITIONAL + i] * out[LAYER_TRADITIONAL + i]
    if weight > 0.0:
        out[VALIDATION] = total / weight
    return out[VALIDATION] > params[VALID_ABOVE]


@kernel
def _judge(row, params, out, multiplier, max_position):  # type: ignore[no-untyped-def]
    """Is this event worth its cost, and how much of it: fills `out`, returns the bits that refuse it."""
    refused = 0
    target_bps = params[TARGET_ATR] * row[ATR] * 1e4
    stop_bps = params[STOP_ATR] * row[ATR] * 1e4
    out[TARGET_BPS] = target_bps
    out[MIN_TARGET_BPS] = params[MIN_TARGET_TO_COST] * params[ROUND_TRIP_BPS]
    out[STOP_FRACTION] = params[STOP_ATR] * row[ATR]
    out[STOP] = level(row[PRICE], -row[EVENT], params[STOP_ATR], row[ATR])
    out[TARGET] = level(row[PRICE], row[EVENT], params[TARGET_ATR], row[ATR])
    if not target_bps >= out[MIN_TARGET_BPS]:
        refused |= TARGET_UNDER_COST
    if not out[STOP_FRACTION] <= out[MAX_STOP]:
        refused |= STOP_EXCEEDS_REGIME
    if row[P] != row[P]:
        return refused | MODEL_ABSTAINED

    odds = params[TARGET_ATR] / params[STOP_ATR]
    edge_bps = (row[P] * odds - (1.0 - row[P])) * stop_bps - params[ROUND_TRIP_BPS]
    out[EDGE_BPS] = edge_bps
    out[BREAK_EVEN_P] = (stop_bps + params[ROUND_TRIP_BPS]) / (target_bps + stop_bps)
    if not edge_bps > 0.0:
        refused |= NO_EDGE_AFTER_COST
    if out[CONFIDENCE] == out[CONFIDENCE]:
        if not _validate(row, params, out):
            refused |= NOT_VALIDATED
        # The model may lower conviction, never raise it: in proportion as its lower bound misses break-even after cost.
        out[CONVICTION] = out[CONFIDENCE] * min(1.0, row[P_LOW] / out[BREAK_EVEN_P])
        out[KELLY] = kelly(row[P_LOW], odds)
        caps = np.empty(N_CAPS)
        caps[0] = params[KELLY_CAP]
        caps[1] = max_position
        caps[2] = params[VOLATILITY_TARGET] / (row[VOLATILITY] * sqrt(params[HORIZON_BARS]))
        for i in range(N_BUDGETS):  # what is left of each; a unit of position uses one unit, but of the tails es_unit
            caps[3 + i] = params[BUDGETS_AT + i] - row[GROSS + i]
            if GROSS + i == ES or GROSS + i == STRESS:
                caps[3 + i] /= row[ES_UNIT]
        out[CAP], which = smallest_cap(caps)
        wanted = wanted_size(row[P_LOW], odds, out[CONVICTION], params[KELLY_FRACTION], multiplier, params[SIZING])
        if wanted > out[CAP]:
            out[CAP_OF] = which
        if not wanted > 0.0:
            refused |= KELLY_ZERO
        # after the caps: a lower tier and a deeper drawdown leave less than they allow
        left = params[TIER_SIZE_AT + int(row[TIER]) - 1] * params[STAGE_SIZE_AT + int(out[STAGE])]
        out[SIZE] = min(wanted, out[CAP]) * left
    return refused


@kernel
def decide_row(row, params, out):  # type: ignore[no-untyped-def]
    """Decide one row (ROW_WIDTH,) under params (PARAM_WIDTH,) into out (OUT_WIDTH,); returns 0 or the refusal bits."""
    out[:] = np.nan
    out[ACTION] = 0.0
    out[SIZE] = 0.0
    regime = NO_REGIME
    if 0.0 <= row[REGIME] < NO_REGIME:
        regime = int(row[REGIME])
    table = TRADITIONAL_ONLY if row[TIER] == 3.0 else regime
    stated = params[WEIGHTS_AT + table * N_SCORES : WEIGHTS_AT + (table + 1) * N_SCORES]

    unusable = _unusable(row, stated)
    confidence, vote, consensus, coverage = fuse(
        row[:N_SCORES],
        row[CONFIDENCES_AT : CONFIDENCES_AT + N_SCORES],
        stated * row[FACTORS_AT : FACTORS_AT + N_SCORES],
        row[INDEPENDENCE_AT : INDEPENDENCE_AT + N_SCORES],
        out[SHARES_AT:CONTRIBUTIONS_AT],
        out[CONTRIBUTIONS_AT:OUT_WIDTH],
    )
    out[DIRECTION] = np.sign(vote)
    out[CONFIDENCE] = confidence
    out[CONSENSUS] = consensus
    out[COVERAGE] = coverage
    relieved = 1 if row[UNICORN] * row[EVENT] >= params[HIGH_UNICORN] else 0
    out[MIN_CONFIDENCE] = params[MIN_CONFIDENCE_AT + 2 * regime + relieved]
    limits = limit_row(row[REGIME], row[TREND])
    out[MAX_STOP] = params[MAX_STOP_AT + limits]
    stage = stage_of(row[DRAWDOWN], params[MAX_DRAWDOWN], params[STAGE_FROM_AT:STAGE_SIZE_AT])
    out[STAGE] = float(stage)

    refused = budget_refusals(row[GROSS : GROSS + N_BUDGETS], params[BUDGETS_AT : BUDGETS_AT + N_BUDGETS])
    refused |= account_refusals(
        row[OPEN_COUNT], params[MAX_OPEN], row[TRADES_TODAY], params[MAX_TRADES_PER_DAY], row[DAILY_PNL],
        params[MAX_DAILY_LOSS], stage, row[AGE_BARS], params[MAX_DATA_AGE_BARS], row[BREAKERS],
    )  # fmt: skip
    if row[TIER] > 3.0:
        refused |= TIER_CLOSED
    if row[EVENT] == 0.0:
        refused |= NO_EVENT
    else:
        unusable |= _out_of_range(row, ES_UNIT, PRICE)
        if row[P] == row[P]:
            unusable |= _out_of_range(row, P, P_LOW)
            if row[P_LOW] > row[P]:
                unusable |= 1 << P_LOW
        if confidence != confidence:
            refused |= NO_VOICE
        else:
            if not consensus >= params[MIN_CONSENSUS] or out[DIRECTION] != row[EVENT]:
                refused |= CONFLICT
            if not confidence >= out[MIN_CONFIDENCE]:
                refused |= CONFIDENCE_BELOW
        if unusable == 0:
            refused |= _judge(row, params, out, params[MULTIPLIER_AT + regime], params[MAX_POSITION_AT + limits])

    out[UNUSABLE_MASK] = float(unusable)
    if unusable != 0:
        refused |= CANNOT_COMPUTE
    if refused == 0 and not out[SIZE] > 0.0:
        refused = KELLY_ZERO  # every cap has room, and still nothing is left: of a regime or tier that is given nothing
    if refused == 0:
        out[ACTION] = row[EVENT]
    else:
        out[SIZE] = 0.0
    return refused


@kernel
def decide_rows(rows, params, outs, codes):  # type: ignore[no-untyped-def]
    """The same core over rows (n, ROW_WIDTH) into outs (n, OUT_WIDTH) and codes (n,) int64."""
    for i in range(rows.shape[0]):
        codes[i] = decide_row(rows[i], params, outs[i])
