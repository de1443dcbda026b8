"""Decide one row in a compiled pure function: fuse → judge → size → limits (U3, R1, R2, R10, L7).

`decide_row(row, params, out) -> code` is the only place a trade is allowed or refused. The service calls it for one row
(`policy.decision_row`), the backtest for many; nothing else decides. Code 0 emits; otherwise every refusal that applies
is a bit (see `risk.codes`). All layouts are flat float64, their indices derived from the tuples of names. Prices in
quote currency, `*_bps` in basis points of the price; every other fraction is of equity or of price, as named.

A trade has two expectations, and each has its use. The edge is what it earns on average: target with probability p, and
otherwise what such trades returned in training, as many run out of time between the barriers. The size is what it may
lose, and that is always the whole stop, with what its fill costs.
"""

from math import erf, sqrt

import numpy as np

from pipelines.compiled import kernel
from pipelines.contracts import SCORE_NAMES, Floats, Ints
from serving.policy.fusion import ICT, N_SCORES, NO_REGIME, TRADITIONAL, TRADITIONAL_ONLY, WEIGHT_ROWS, fuse
from serving.policy.thresholds import COLUMNS, N_COLUMNS, PHASES, THRESHOLDS
from serving.risk.codes import (
    CANNOT_COMPUTE,
    CONFIDENCE_BELOW,
    CONFLICT,
    CONFLUENCE_BELOW,
    EMBARGO,
    KELLY_ZERO,
    MODEL_ABSTAINED,
    NO_EDGE_AFTER_COST,
    NO_EVENT,
    NO_SIGNAL,
    NOT_VALIDATED,
    PHASE_DIFFERS,
    SIGNAL_DISABLED,
    STOP_EXCEEDS_REGIME,
    STRENGTH_BELOW,
    TARGET_UNDER_COST,
    TIER_CLOSED,
    UNICORN_BELOW,
)
from serving.risk.exposure import EXPOSURES
from serving.risk.limits import BUDGETS, N_BUDGETS, STAGES, TIERS, account_refusals, budget_refusals, stage_of
from serving.risk.sizing import (
    BUDGET_CAPS,
    KELLY_CAP_AT,
    N_CAPS,
    N_LIMIT_ROWS,
    REGIME_CAP,
    VOLATILITY_CAP,
    kelly,
    level,
    limit_row,
    smallest_cap,
    wanted_size,
)

REGIME_ROWS = NO_REGIME + 1  # one per regime, then no regime
VALIDATION_LAYERS = ("traditional", "ai", "correlation")  # U4
N_LAYERS = len(VALIDATION_LAYERS)

# ---- row: facts at the close of one decision bar -----------------------------------------------------------------
# N_SCORES each of: directions, confidences, factors, independence (order of fusion.SCORE_NAMES), then:
_STATE = (
    "regime",  # code in the order of contracts.REGIMES; NaN = unknown: base weights, smallest caps
    "trend",  # −1, 0, 1; NaN = unknown
    "unicorn",  # S14 stars of the leading side, signed; NaN = not known: no lower confidence is enough
    "confluence",  # S15 weighted mean of the timeframes' trends, −1 … 1; NaN = not known
    "phase",  # S12 phase of the auction, index into thresholds.PHASES; NaN = not known
    "event",  # direction of the event, −1, 0 (none), 1
    "tier",  # 1 full, 2 simple model, 3 traditional only, 4 emergency
    "age_bars",  # decision bars between the last closed bar and as_of
    "breakers",  # bitmask of tripped breakers, 0 = none
    *EXPOSURES[:N_BUDGETS],  # used part of each budget, fraction of equity; see risk.exposure
    "open_count",  # open positions
    "trades_today",  # entries since 00:00 UTC
    "daily_pnl",  # fraction of equity at 00:00 UTC
    "drawdown",  # fraction under the highest equity so far, in [0, 1]
    "es_unit",  # expected shortfall of one unit on the event's side; this and all below only with an event
    "volatility",  # standard deviation of one decision bar's return
    "atr",  # fraction of price
    "price",  # close of the decision bar
    "cost_bps",  # round trip expected at this close of a trade that reaches its target
    "stop_cost_bps",  # of one that ends at its stop: with the stop's slippage
    "p",  # P(target before stop) of the deciding model; NaN = it abstained
    "p_low",  # its lower 95 % bound
    "miss_bps",  # expected gross return where the target is not touched, negative as a rule; needed with p
    "embargoed",  # 0 = the bar closed outside every window of the calendar of events; all else embargoes, NaN too
    "disabled",  # 0 = the signal of the event may open positions; all else refuses, NaN too
)
ROW_FIELDS = (
    *(f"{name}.{part}" for part in ("direction", "confidence", "factor", "independence") for name in SCORE_NAMES),
    *_STATE,
)
ROW_WIDTH = len(ROW_FIELDS)
CONFIDENCES_AT, FACTORS_AT, INDEPENDENCE_AT, STATE_AT = N_SCORES, 2 * N_SCORES, 3 * N_SCORES, 4 * N_SCORES
REGIME = ROW_FIELDS.index("regime")
TREND = ROW_FIELDS.index("trend")
UNICORN = ROW_FIELDS.index("unicorn")
CONFLUENCE = ROW_FIELDS.index("confluence")
PHASE = ROW_FIELDS.index("phase")
EVENT = ROW_FIELDS.index("event")
TIER = ROW_FIELDS.index("tier")
AGE_BARS = ROW_FIELDS.index("age_bars")
BREAKERS = ROW_FIELDS.index("breakers")
GROSS = ROW_FIELDS.index("gross")
STRATEGY = ROW_FIELDS.index("strategy")
MARKET = ROW_FIELDS.index("market")
ASSET = ROW_FIELDS.index("asset")
CORRELATED = ROW_FIELDS.index("correlated")
ES = ROW_FIELDS.index("es")
STRESS = ROW_FIELDS.index("stress")
OPEN_COUNT = ROW_FIELDS.index("open_count")
TRADES_TODAY = ROW_FIELDS.index("trades_today")
DAILY_PNL = ROW_FIELDS.index("daily_pnl")
DRAWDOWN = ROW_FIELDS.index("drawdown")
ES_UNIT = ROW_FIELDS.index("es_unit")
VOLATILITY = ROW_FIELDS.index("volatility")
ATR = ROW_FIELDS.index("atr")
PRICE = ROW_FIELDS.index("price")
COST_BPS = ROW_FIELDS.index("cost_bps")
STOP_COST_BPS = ROW_FIELDS.index("stop_cost_bps")
P = ROW_FIELDS.index("p")
P_LOW = ROW_FIELDS.index("p_low")
MISS_BPS = ROW_FIELDS.index("miss_bps")
EMBARGOED = ROW_FIELDS.index("embargoed")
DISABLED = ROW_FIELDS.index("disabled")
# Filled in by a backtest as it goes: `exposure.EXPOSURES`, then the account's counts and results.
ACCOUNT = tuple(map(ROW_FIELDS.index, (*EXPOSURES, "open_count", "trades_today", "daily_pnl", "drawdown")))

STARS = 21.0
TRADITIONAL_TIER = 3.0  # the last tier that opens positions
N_PHASES = len(PHASES)
_BIG = 1e15
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution: p_low lies so many standard errors below p
# Range of usable values, from EVENT on; anything else, NaN and infinity included, is refused.
_RANGE = {
    "event": (-1.0, 1.0), "tier": (1.0, 4.0), "daily_pnl": (-_BIG, _BIG), "drawdown": (0.0, 1.0),
    "es_unit": (1e-9, 1.0), "volatility": (1e-9, 1.0),
    "atr": (1e-9, 1.0), "price": (1e-12, _BIG), "p": (0.0, 1.0), "p_low": (0.0, 1.0),
    "miss_bps": (-1e4, 1e4),
}  # fmt: skip
_LOW, _HIGH = np.array([_RANGE.get(name, (0.0, _BIG)) for name in ROW_FIELDS[EVENT:]]).T.copy()

# ---- params: written by `decision_row.flatten` -----------------------------------------------------------------------
PARAM_FIELDS = (
    "high_unicorn", "min_consensus", "min_target_to_cost", "target_atr", "stop_atr", "horizon_bars",
    "sizing", "kelly_fraction", "kelly_cap", "volatility_target", "max_open", "max_trades_per_day", "max_daily_loss",
    "max_drawdown", "max_data_age_bars", *VALIDATION_LAYERS, "valid_above", "phase_wanted",
    *(f"require_{name}" for name in THRESHOLDS), *(f"max_{name}" for name in BUDGETS),
)  # fmt: skip
HIGH_UNICORN = PARAM_FIELDS.index("high_unicorn")
MIN_CONSENSUS = PARAM_FIELDS.index("min_consensus")
MIN_TARGET_TO_COST = PARAM_FIELDS.index("min_target_to_cost")
TARGET_ATR = PARAM_FIELDS.index("target_atr")
STOP_ATR = PARAM_FIELDS.index("stop_atr")
HORIZON_BARS = PARAM_FIELDS.index("horizon_bars")
SIZING = PARAM_FIELDS.index("sizing")
KELLY_FRACTION = PARAM_FIELDS.index("kelly_fraction")
KELLY_CAP = PARAM_FIELDS.index("kelly_cap")
VOLATILITY_TARGET = PARAM_FIELDS.index("volatility_target")
MAX_OPEN = PARAM_FIELDS.index("max_open")
MAX_TRADES_PER_DAY = PARAM_FIELDS.index("max_trades_per_day")
MAX_DAILY_LOSS = PARAM_FIELDS.index("max_daily_loss")
MAX_DRAWDOWN = PARAM_FIELDS.index("max_drawdown")
MAX_DATA_AGE_BARS = PARAM_FIELDS.index("max_data_age_bars")
W_LAYERS = PARAM_FIELDS.index(VALIDATION_LAYERS[0])  # weights, one per layer of VALIDATION_LAYERS
VALID_ABOVE = PARAM_FIELDS.index("valid_above")
PHASE_WANTED = PARAM_FIELDS.index("phase_wanted")
REQUIRE_STRENGTH, REQUIRE_CONFIDENCE, REQUIRE_CONFLUENCE, REQUIRE_UNICORN, REQUIRE_PHASE = (
    PARAM_FIELDS.index(f"require_{name}") for name in THRESHOLDS
)  # 1 = a value under it refuses, 0 = it is recorded
BUDGETS_AT = PARAM_FIELDS.index(f"max_{next(iter(BUDGETS))}")  # N_BUDGETS limits, in the order of limits.BUDGETS
WEIGHTS_AT = len(PARAM_FIELDS)  # (WEIGHT_ROWS, N_SCORES) fusion.weight_table
MULTIPLIER_AT = WEIGHTS_AT + WEIGHT_ROWS * N_SCORES  # one per regime, then the smallest
MAX_POSITION_AT = MULTIPLIER_AT + REGIME_ROWS  # sizing.LIMIT_ROWS, then the smallest
MAX_STOP_AT = MAX_POSITION_AT + N_LIMIT_ROWS  # the same rows
TIER_SIZE_AT = MAX_STOP_AT + N_LIMIT_ROWS  # factor of each tier on a size, in the order of limits.TIERS
STAGE_FROM_AT = TIER_SIZE_AT + len(TIERS)  # share of the drawdown limit from which each stage after the first holds
STAGE_SIZE_AT = STAGE_FROM_AT + len(STAGES) - 1  # factor of each stage on a size
THRESHOLDS_AT = STAGE_SIZE_AT + len(STAGES)  # thresholds.threshold_table: (REGIME_ROWS, N_COLUMNS)
PARAM_WIDTH = THRESHOLDS_AT + N_COLUMNS * REGIME_ROWS
_CONFIDENCE, _RELIEVED, _STRENGTH, _CONFLUENCE, _UNICORN = map(
    COLUMNS.index, ("min_confidence", "relieved_confidence", "min_strength", "min_confluence", "min_unicorn")
)

# ---- out: NaN where it could not be computed or is not needed -----------------------------------------------------
OUT_FIELDS = (
    "action",  # −1, 0, 1; 0 when refused
    "size",  # fraction of equity; 0 when refused
    "direction",  # −1, 0, 1: sign of the vote
    "confidence", "consensus", "coverage",  # fusion.fuse
    "strength", "event_confluence", "event_stars",  # S17, on the event's side: points of 100, −1 … 1, stars of 21
    "min_confidence", "min_strength", "min_confluence", "min_unicorn",  # thresholds that hold here
    *(f"layer_{name}" for name in VALIDATION_LAYERS),  # U4: support of each layer for the event, in [0, 1]
    "validation",  # their weighted mean over those with a value
    "stop", "target",  # prices
    "stop_fraction",  # stop distance over price
    "target_bps", "min_target_bps",  # target distance, and the least that covers its cost
    "edge_bps",  # expected, after cost
    "break_even_p",  # p at which edge_bps is 0
    "net_break_even_p",  # p from which a bet of target against whole stop pays after cost; below it nothing is sized
    "kelly",  # raw Kelly fraction at p_low: equity at risk
    "cap",  # smallest of the caps that applied
    "cap_of",  # which one: index into sizing.CAPS
    "stage",  # of the drawdown: index into limits.STAGES
    "max_stop",  # of the regime, fraction of price
    "unusable_mask",  # bit i: ROW_FIELDS[i] could not be used
)  # fmt: skip
ACTION = OUT_FIELDS.index("action")
SIZE = OUT_FIELDS.index("size")
DIRECTION = OUT_FIELDS.index("direction")
CONFIDENCE = OUT_FIELDS.index("confidence")
CONSENSUS = OUT_FIELDS.index("consensus")
COVERAGE = OUT_FIELDS.index("coverage")
STRENGTH = OUT_FIELDS.index("strength")
EVENT_CONFLUENCE = OUT_FIELDS.index("event_confluence")
EVENT_STARS = OUT_FIELDS.index("event_stars")
MIN_CONFIDENCE = OUT_FIELDS.index("min_confidence")
MIN_STRENGTH = OUT_FIELDS.index("min_strength")
MIN_CONFLUENCE = OUT_FIELDS.index("min_confluence")
MIN_UNICORN = OUT_FIELDS.index("min_unicorn")
LAYER_TRADITIONAL = OUT_FIELDS.index("layer_traditional")
LAYER_AI = OUT_FIELDS.index("layer_ai")
LAYER_CORRELATION = OUT_FIELDS.index("layer_correlation")
VALIDATION = OUT_FIELDS.index("validation")
STOP = OUT_FIELDS.index("stop")
TARGET = OUT_FIELDS.index("target")
STOP_FRACTION = OUT_FIELDS.index("stop_fraction")
TARGET_BPS = OUT_FIELDS.index("target_bps")
MIN_TARGET_BPS = OUT_FIELDS.index("min_target_bps")
EDGE_BPS = OUT_FIELDS.index("edge_bps")
BREAK_EVEN_P = OUT_FIELDS.index("break_even_p")
NET_BREAK_EVEN_P = OUT_FIELDS.index("net_break_even_p")
KELLY = OUT_FIELDS.index("kelly")
CAP = OUT_FIELDS.index("cap")
CAP_OF = OUT_FIELDS.index("cap_of")
STAGE = OUT_FIELDS.index("stage")
MAX_STOP = OUT_FIELDS.index("max_stop")
UNUSABLE_MASK = OUT_FIELDS.index("unusable_mask")
SHARES_AT = len(OUT_FIELDS)  # N_SCORES weights, then N_SCORES contributions, see fusion.fuse
CONTRIBUTIONS_AT = SHARES_AT + N_SCORES
OUT_WIDTH = CONTRIBUTIONS_AT + N_SCORES


@kernel
def _out_of_range(row: Floats, first: int, last: int) -> int:
    """Return the bits of the row fields first … last that are NaN, infinite or impossible."""
    mask = 0
    for i in range(first, last + 1):
        if not (_LOW[i - EVENT] <= row[i] <= _HIGH[i - EVENT]):
            mask |= 1 << i
    return mask


@kernel
def _unusable(row: Floats, weights: Floats) -> int:
    """Return the bits of the inputs that every decision needs and that cannot be used.

    NaN has a meaning, so it is allowed, in a direction (unavailable), and in regime, trend, unicorn, confluence and
    phase (unknown). A category with a direction needs a confidence, a factor and an independence.
    """
    mask: int = _out_of_range(row, EVENT, DRAWDOWN)
    if row[EVENT] != np.floor(row[EVENT]):
        mask |= 1 << EVENT
    if row[TIER] != np.floor(row[TIER]):
        mask |= 1 << TIER
    if abs(row[TREND]) > 1.0:
        mask |= 1 << TREND
    if abs(row[UNICORN]) > STARS:
        mask |= 1 << UNICORN
    if abs(row[CONFLUENCE]) > 1.0:
        mask |= 1 << CONFLUENCE
    phase = row[PHASE]
    if phase == phase and not (0.0 <= phase < N_PHASES and phase == np.floor(phase)):
        mask |= 1 << PHASE
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
def _validate(row: Floats, params: Floats, out: Floats) -> bool:
    """Validate the event in three independent layers (U4); fill `out`, return whether their mean supports it.

    traditional  direction and percentile of the technical strategies: 1 = wholly for the event, 0 = wholly against it
    ai           chance that the edge after cost is above 0, from p and its standard error
    correlation  agreement of the categories' vote, those that agree with each other counted once
    A layer without a value leaves the mean; it does not count as one half.
    """
    side = row[TRADITIONAL]
    if side == side and side != 0.0:
        out[LAYER_TRADITIONAL] = 0.5 + 0.5 * side * row[EVENT] * row[CONFIDENCES_AT + TRADITIONAL]
    if out[BREAK_EVEN_P] == out[BREAK_EVEN_P]:
        above = row[P] - out[BREAK_EVEN_P]
        error = (row[P] - row[P_LOW]) / _Z
        out[LAYER_AI] = 1.0 if above > 0.0 else 0.0
        if error > 0.0:
            out[LAYER_AI] = 0.5 * (1.0 + erf(above / (error * sqrt(2.0))))
    if out[CONFIDENCE] == out[CONFIDENCE]:
        out[LAYER_CORRELATION] = 0.5 + 0.5 * out[DIRECTION] * row[EVENT] * out[CONSENSUS]
    weight, total = 0.0, 0.0
    for i in range(N_LAYERS):
        if out[LAYER_TRADITIONAL + i] == out[LAYER_TRADITIONAL + i]:
            weight += params[W_LAYERS + i]
            total += params[W_LAYERS + i] * out[LAYER_TRADITIONAL + i]
    if weight > 0.0:
        out[VALIDATION] = total / weight
    return bool(out[VALIDATION] > params[VALID_ABOVE])


@kernel
def _below_thresholds(row: Floats, params: Floats, out: Floats, regime: int) -> int:
    """Compare the event with its adaptive thresholds (S17); fill `out`, return the bits of those that refuse.

    All on the event's own side: strength is the percentile, in points of 100, of the category that raised the event;
    confluence the agreement of the timeframes' trends; stars those of the unicorn; phase that of the auction. A value
    that is not known reaches no threshold.
    """
    minimum = THRESHOLDS_AT + N_COLUMNS * regime
    own = TRADITIONAL if row[TIER] >= TRADITIONAL_TIER else ICT
    if row[own] == row[own]:
        out[STRENGTH] = 100.0 * row[CONFIDENCES_AT + own] if row[own] == row[EVENT] else 0.0
    out[EVENT_CONFLUENCE] = row[CONFLUENCE] * row[EVENT]
    out[EVENT_STARS] = row[UNICORN] * row[EVENT]
    out[MIN_STRENGTH] = params[minimum + _STRENGTH]
    out[MIN_CONFLUENCE] = params[minimum + _CONFLUENCE]
    out[MIN_UNICORN] = params[minimum + _UNICORN]
    relieved = out[EVENT_STARS] >= params[HIGH_UNICORN]
    out[MIN_CONFIDENCE] = params[minimum + (_RELIEVED if relieved else _CONFIDENCE)]
    refused = 0
    confidence = out[CONFIDENCE]  # NaN is NO_SIGNAL
    if params[REQUIRE_CONFIDENCE] > 0.0 and confidence == confidence and not confidence >= out[MIN_CONFIDENCE]:
        refused |= CONFIDENCE_BELOW
    if params[REQUIRE_STRENGTH] > 0.0 and not out[STRENGTH] >= out[MIN_STRENGTH]:
        refused |= STRENGTH_BELOW
    if params[REQUIRE_CONFLUENCE] > 0.0 and not out[EVENT_CONFLUENCE] >= out[MIN_CONFLUENCE]:
        refused |= CONFLUENCE_BELOW
    if params[REQUIRE_UNICORN] > 0.0 and not out[EVENT_STARS] >= out[MIN_UNICORN]:
        refused |= UNICORN_BELOW
    if params[REQUIRE_PHASE] > 0.0 and row[PHASE] != params[PHASE_WANTED]:
        refused |= PHASE_DIFFERS
    return refused


@kernel
def _judge(row: Floats, params: Floats, out: Floats, multiplier: float, max_position: float) -> int:
    """Compare the event's edge with its cost and size it; fill `out`, return the bits of the refusals."""
    refused = 0
    target_bps = params[TARGET_ATR] * row[ATR] * 1e4
    stop_bps = params[STOP_ATR] * row[ATR] * 1e4
    out[TARGET_BPS] = target_bps
    out[MIN_TARGET_BPS] = params[MIN_TARGET_TO_COST] * row[COST_BPS]
    out[STOP_FRACTION] = params[STOP_ATR] * row[ATR]
    out[STOP] = level(row[PRICE], -row[EVENT], params[STOP_ATR], row[ATR])
    out[TARGET] = level(row[PRICE], row[EVENT], params[TARGET_ATR], row[ATR])
    if not target_bps >= out[MIN_TARGET_BPS]:
        refused |= TARGET_UNDER_COST
    if not out[STOP_FRACTION] <= out[MAX_STOP]:
        refused |= STOP_EXCEEDS_REGIME
    if row[P] != row[P]:
        return refused | MODEL_ABSTAINED

    edge_bps = row[P] * target_bps + (1.0 - row[P]) * row[MISS_BPS] - row[COST_BPS]
    out[EDGE_BPS] = edge_bps
    out[BREAK_EVEN_P] = (row[COST_BPS] - row[MISS_BPS]) / (target_bps - row[MISS_BPS])
    out[NET_BREAK_EVEN_P] = (stop_bps + row[STOP_COST_BPS]) / (
        target_bps - row[COST_BPS] + stop_bps + row[STOP_COST_BPS]
    )
    if not edge_bps > 0.0:
        refused |= NO_EDGE_AFTER_COST
    if out[CONFIDENCE] == out[CONFIDENCE]:
        if not _validate(row, params, out):
            refused |= NOT_VALIDATED
        # The model lowers the size through p_low, down to 0 at the net break-even; it never changes the confidence.
        gain, loss = (target_bps - row[COST_BPS]) * 1e-4, (stop_bps + row[STOP_COST_BPS]) * 1e-4
        out[KELLY] = kelly(row[P_LOW], gain, loss)
        caps = np.empty(N_CAPS)
        caps[KELLY_CAP_AT] = params[KELLY_CAP]
        caps[REGIME_CAP] = max_position
        caps[VOLATILITY_CAP] = params[VOLATILITY_TARGET] / (row[VOLATILITY] * sqrt(params[HORIZON_BARS]))
        # what is left of each budget; a unit of position uses one unit of it, es_unit of the tail budgets
        for i in range(N_BUDGETS):
            caps[BUDGET_CAPS + i] = params[BUDGETS_AT + i] - row[GROSS + i]
            if GROSS + i == ES or GROSS + i == STRESS:
                caps[BUDGET_CAPS + i] /= row[ES_UNIT]
        out[CAP], which = smallest_cap(caps)
        wanted = wanted_size(
            row[P_LOW], gain, loss, out[CONFIDENCE], params[KELLY_FRACTION], multiplier, params[SIZING]
        )
        if wanted > out[CAP]:
            out[CAP_OF] = which
        if not wanted > 0.0:
            refused |= KELLY_ZERO
        # after the caps: a lower tier and a deeper drawdown reduce the size further
        left = params[TIER_SIZE_AT + int(row[TIER]) - 1] * params[STAGE_SIZE_AT + int(out[STAGE])]
        out[SIZE] = min(wanted, out[CAP]) * left
    return refused


@kernel
def decide_row(row: Floats, params: Floats, out: Floats) -> int:
    """Decide one row and return 0 or the refusal bits.

    row (ROW_WIDTH,), params (PARAM_WIDTH,), out (OUT_WIDTH,) written; float64
    """
    out[:] = np.nan
    out[ACTION] = 0.0
    out[SIZE] = 0.0
    regime = NO_REGIME
    if 0.0 <= row[REGIME] < NO_REGIME:
        regime = int(row[REGIME])
    table = TRADITIONAL_ONLY if row[TIER] == TRADITIONAL_TIER else regime
    stated = params[WEIGHTS_AT + table * N_SCORES : WEIGHTS_AT + (table + 1) * N_SCORES]

    unusable = _unusable(row, stated)
    weights = out[SHARES_AT:CONTRIBUTIONS_AT]  # in place: an array of its own would cost a tenth of the decision
    for c in range(N_SCORES):
        weights[c] = stated[c] * row[FACTORS_AT + c]
    confidence, vote, consensus, coverage = fuse(
        row[:N_SCORES],
        row[CONFIDENCES_AT : CONFIDENCES_AT + N_SCORES],
        weights,
        row[INDEPENDENCE_AT : INDEPENDENCE_AT + N_SCORES],
        weights,
        out[CONTRIBUTIONS_AT:OUT_WIDTH],
    )
    out[DIRECTION] = np.sign(vote)
    out[CONFIDENCE] = confidence
    out[CONSENSUS] = consensus
    out[COVERAGE] = coverage
    limits = limit_row(row[REGIME], row[TREND])
    out[MAX_STOP] = params[MAX_STOP_AT + limits]
    stage = stage_of(row[DRAWDOWN], params[MAX_DRAWDOWN], params[STAGE_FROM_AT:STAGE_SIZE_AT])
    out[STAGE] = float(stage)

    refused: int = budget_refusals(row[GROSS : GROSS + N_BUDGETS], params[BUDGETS_AT : BUDGETS_AT + N_BUDGETS])
    refused |= account_refusals(
        row[OPEN_COUNT], params[MAX_OPEN], row[TRADES_TODAY], params[MAX_TRADES_PER_DAY], row[DAILY_PNL],
        params[MAX_DAILY_LOSS], stage, row[AGE_BARS], params[MAX_DATA_AGE_BARS], row[BREAKERS],
    )  # fmt: skip
    if row[TIER] > TRADITIONAL_TIER:
        refused |= TIER_CLOSED
    if row[EMBARGOED] != 0.0:
        refused |= EMBARGO
    if row[EVENT] == 0.0:
        refused |= NO_EVENT
    else:
        if row[DISABLED] != 0.0:
            refused |= SIGNAL_DISABLED
        unusable |= _out_of_range(row, ES_UNIT, STOP_COST_BPS)
        if row[P] == row[P]:
            unusable |= _out_of_range(row, P, MISS_BPS)
            if row[P_LOW] > row[P]:
                unusable |= 1 << P_LOW
            if unusable == 0 and row[MISS_BPS] >= params[TARGET_ATR] * row[ATR] * 1e4:
                unusable |= 1 << MISS_BPS
        if confidence != confidence:
            refused |= NO_SIGNAL
        else:
            if not consensus >= params[MIN_CONSENSUS] or out[DIRECTION] != row[EVENT]:
                refused |= CONFLICT
        refused |= _below_thresholds(row, params, out, regime)
        if unusable == 0:
            refused |= _judge(row, params, out, params[MULTIPLIER_AT + regime], params[MAX_POSITION_AT + limits])

    out[UNUSABLE_MASK] = float(unusable)
    if unusable != 0:
        refused |= CANNOT_COMPUTE
    if refused == 0 and not out[SIZE] > 0.0:
        refused = KELLY_ZERO  # every cap has room, but the factor of the regime, tier or stage is 0
    if refused == 0:
        out[ACTION] = row[EVENT]
    else:
        out[SIZE] = 0.0
    return refused


@kernel
def decide_rows(rows: Floats, params: Floats, outs: Floats, codes: Ints) -> None:
    """Decide n rows: (n, ROW_WIDTH) float64 into outs (n, OUT_WIDTH) and codes (n,) int64."""
    for i in range(rows.shape[0]):
        codes[i] = decide_row(rows[i], params, outs[i])
