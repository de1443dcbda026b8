"""`decide`: one row through the compiled core, and its answer in words. Pure: every time and id is handed in."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from hashlib import sha256
from math import isfinite
from typing import Any, Literal

import numpy as np

from pipelines.contracts import REGIMES, TIMEFRAME_SECONDS, Decision, Floats
from pipelines.errors import BadShape, BadTimes, BadValues, UnknownName
from pipelines.settings import Params
from serving.policy import kernel as decision_kernel
from serving.policy.fusion import N_SCORES, SCORE_NAMES, weight_table
from serving.policy.thresholds import confidence_table
from serving.risk.codes import REFUSALS, bits_of, trail
from serving.risk.limits import STAGES
from serving.risk.sizing import CAPS, LIMIT_ROWS, SIZINGS

ACTIONS: dict[float, Literal["BUY", "SELL", "NO_TRADE"]] = {1.0: "BUY", -1.0: "SELL", 0.0: "NO_TRADE"}


ONES: Floats = np.ones(N_SCORES)  # factors of the stated weights; independence of categories that never agree
ONES.setflags(write=False)


@dataclass(frozen=True, slots=True)
class ExposureSnapshot:
    """The account at as_of, as a new position on the event's side would find it; fractions are of equity. Meanings in
    core._STATE and risk.exposure. NaN = not known, so nothing is opened; es_unit is NaN where there is no event."""

    gross: float
    strategy: float
    market: float
    asset: float
    correlated: float
    es: float
    stress: float
    es_unit: float
    open_count: float
    trades_today: float
    daily_pnl: float
    drawdown: float

    @classmethod
    def from_dict(cls, record: Mapping[str, float | None]) -> "ExposureSnapshot":
        """Back from `to_dict`; a field that was not recorded is not known."""
        told = {part.name: record.get(part.name) for part in fields(cls)}
        return cls(**{name: np.nan if value is None else value for name, value in told.items()})

    def to_dict(self) -> dict[str, float | None]:
        """As plain JSON: what is not known is null."""
        return {name: _known(value) for name, value in asdict(self).items()}


NOTHING_OPEN: Mapping[str, float] = dict.fromkeys(
    (part.name for part in fields(ExposureSnapshot) if part.name != "es_unit"), 0.0
)


@dataclass(frozen=True, slots=True)
class DecisionInputs:
    """What one decision rests on, known at the close of its bar. NaN and units: see core.ROW_FIELDS.

    In tier 3 (no champion) the caller hands in the traditional consensus as the event, and the measured hit rate of
    that consensus with its lower bound as p and p_low; the traditional voice alone then gives the confidence.
    """

    direction: Floats  # (N_SCORES,) CategoryScores.score
    confidence: Floats  # (N_SCORES,)
    factor: Floats  # (N_SCORES,) on the stated weights; ONES = as stated
    independence: Floats  # (N_SCORES,) CategoryScores.independence
    regime: str | None
    trend: float
    unicorn: float
    event: str | None  # name of the signal that raised the event
    event_direction: float  # −1, 0 (no event), 1
    volatility: float
    atr: float
    price: float
    p: float
    p_low: float
    abstained: str | None  # the acting model's reason where p is NaN
    tier: int
    age_bars: float
    breakers: tuple[str, ...]  # names of those that are latched
    portfolio: ExposureSnapshot


def flatten(params: Params) -> Floats:
    """Everything the core reads of `params.yaml` as its flat array (PARAM_WIDTH,); make it once a configuration.

    Raises UnknownName for a missing regime or limit row, BadValues for a value that is not finite or not of this world,
    or for an exit plan that nobody would follow.
    """
    if params.exits.plan != "plain":
        raise BadValues(
            f"params.yaml exits.plan {params.exits.plan}: measured in docs/results/exits.md, but no venue follows it live "
            "yet; set it to plain"
        )
    fusion, risk, labels = params.fusion, params.risk, params.labels
    for key, table, names in (
        ("regime_multiplier", risk.regime_multiplier, REGIMES),
        ("regime_limits", risk.regime_limits, LIMIT_ROWS),
    ):
        if set(table) != set(names):
            raise UnknownName(f"params.yaml risk.{key} has {sorted(table)}, expected exactly {sorted(names)}")
    flat = np.full(decision_kernel.PARAM_WIDTH, np.nan)
    named = {**dict(fusion), **dict(labels), **dict(risk), **dict(risk.budgets), **dict(params.thresholds)}
    named |= dict(fusion.validation) | {"sizing": float(SIZINGS.index(risk.sizing))}
    named["round_trip_bps"] = params.costs.round_trip_bps
    flat[: decision_kernel.WEIGHTS_AT] = [named[name] for name in decision_kernel.PARAM_FIELDS]
    flat[decision_kernel.WEIGHTS_AT : decision_kernel.MULTIPLIER_AT] = weight_table(fusion).ravel()
    for start, values in (
        (decision_kernel.MULTIPLIER_AT, [risk.regime_multiplier[name] for name in REGIMES]),
        (decision_kernel.MAX_POSITION_AT, [risk.regime_limits[name].max_position for name in LIMIT_ROWS]),
        (decision_kernel.MAX_STOP_AT, [risk.regime_limits[name].max_stop for name in LIMIT_ROWS]),
    ):
        flat[start : start + len(values) + 1] = [*values, min(values)]  # an unknown regime gets the least
    stages = [getattr(risk.stages, name) for name in STAGES[1:]]
    flat[decision_kernel.STAGE_FROM_AT : decision_kernel.STAGE_SIZE_AT] = [stage.at for stage in stages]
    flat[decision_kernel.STAGE_SIZE_AT : decision_kernel.MIN_CONFIDENCE_AT] = [1.0, *(stage.size for stage in stages)]
    flat[decision_kernel.TIER_SIZE_AT : decision_kernel.STAGE_FROM_AT] = [
        params.tiers.size[tier] for tier in (1, 2, 3, 4)
    ]
    flat[decision_kernel.MIN_CONFIDENCE_AT :] = confidence_table(params.thresholds).ravel()
    if not np.isfinite(flat).all() or (flat < 0.0).any():
        bad = [
            name for name, value in zip(decision_kernel.PARAM_FIELDS, flat, strict=False) if not 0.0 <= value < np.inf
        ]
        raise BadValues(f"params.yaml: {bad or 'risk tables'} must be finite and not negative; mend and rerun")
    return flat


def policy_digest(params: Params, flat: Floats) -> str:
    """sha256 of everything of `params.yaml` that `decide` rests on; `flat` is `flatten(params)`."""
    return sha256(flat.tobytes() + params.learning.use.encode()).hexdigest()


def to_rows(
    direction: Floats,
    confidence: Floats,
    factor: Floats | None = None,
    independence: Floats | None = None,
    **fields: Any,
) -> Floats:
    """(n, ROW_WIDTH) rows for `decide_rows` and the backtest.

    direction, confidence  (n, N_SCORES); fields are scalars or (n,) arrays named as in core.ROW_FIELDS. A field left
    out is NaN, which the core refuses where it needs it; the account columns are the backtest's to fill. `factor` and
    `independence` are of all voices, (N_SCORES,) or (n, N_SCORES); left out they are ONES.
    """
    if direction.shape != confidence.shape or direction.shape[1:] != (N_SCORES,):
        raise BadShape(
            f"directions {direction.shape} and confidences {confidence.shape}, expected (n, {N_SCORES}) both"
        )
    rows = np.full((len(direction), decision_kernel.ROW_WIDTH), np.nan)
    rows[:, : decision_kernel.CONFIDENCES_AT], rows[:, decision_kernel.CONFIDENCES_AT : decision_kernel.FACTORS_AT] = (
        direction,
        confidence,
    )
    rows[:, decision_kernel.FACTORS_AT : decision_kernel.INDEPENDENCE_AT] = ONES if factor is None else factor
    rows[:, decision_kernel.INDEPENDENCE_AT : decision_kernel.STATE_AT] = ONES if independence is None else independence
    for name, values in fields.items():
        if name not in decision_kernel.ROW_FIELDS[decision_kernel.STATE_AT :]:
            raise UnknownName(
                f"no row field {name!r}; known: {', '.join(decision_kernel.ROW_FIELDS[decision_kernel.STATE_AT :])}"
            )
        rows[:, decision_kernel.ROW_FIELDS.index(name)] = values
    return rows


def to_row(inputs: DecisionInputs) -> Floats:
    """One row (ROW_WIDTH,) of the core. Raises UnknownName for a regime outside contracts.REGIMES."""
    if inputs.regime is not None and inputs.regime not in REGIMES:
        raise UnknownName(f"no regime {inputs.regime!r}; known: {', '.join(REGIMES)}")
    account = inputs.portfolio
    row = np.empty(decision_kernel.ROW_WIDTH)
    row[: decision_kernel.CONFIDENCES_AT] = inputs.direction
    row[decision_kernel.CONFIDENCES_AT : decision_kernel.FACTORS_AT] = inputs.confidence
    row[decision_kernel.FACTORS_AT : decision_kernel.INDEPENDENCE_AT] = inputs.factor
    row[decision_kernel.INDEPENDENCE_AT : decision_kernel.STATE_AT] = inputs.independence
    row[decision_kernel.STATE_AT :] = (
        np.nan if inputs.regime is None else REGIMES.index(inputs.regime), inputs.trend, inputs.unicorn,
        inputs.event_direction, inputs.tier, inputs.age_bars, float((1 << len(inputs.breakers)) - 1), account.gross,
        account.strategy, account.market, account.asset, account.correlated, account.es, account.stress,
        account.open_count, account.trades_today, account.daily_pnl, account.drawdown, account.es_unit,
        inputs.volatility, inputs.atr, inputs.price, inputs.p, inputs.p_low,
    )  # fmt: skip
    return row


def reasons(
    code: int, row: Floats, flat: Floats, out: Floats, abstained: str | None = None, breakers: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Every refusal in `code` in words with its numbers, primary first; empty when the core emitted."""
    if not code:
        return ()
    mask = int(out[decision_kernel.UNUSABLE_MASK])
    facts: dict[str, Any] = {
        **dict(zip(decision_kernel.PARAM_FIELDS, flat.tolist(), strict=False)),
        **dict(zip(decision_kernel.OUT_FIELDS, out.tolist(), strict=False)),
        **dict(
            zip(
                decision_kernel.ROW_FIELDS[decision_kernel.STATE_AT :],
                row[decision_kernel.STATE_AT :].tolist(),
                strict=True,
            )
        ),
        "unusable": ",".join(name for i, name in enumerate(decision_kernel.ROW_FIELDS) if mask >> i & 1),
        "abstained": abstained or "no reason given",
        "latched": ", ".join(breakers) or f"breakers={row[decision_kernel.BREAKERS]:.0f}",
        "layers": ", ".join(f"{name} {value:.2f}" for name, value in layers_of(out).items()),
    }
    return tuple(REFUSALS[bit].format_map(facts) for bit in bits_of(code))


def layers_of(out: Floats) -> dict[str, float]:
    """U4: layer → how much it says for the event, in [0, 1]; one that does not speak is not there."""
    at = {
        "traditional": decision_kernel.LAYER_TRADITIONAL,
        "ai": decision_kernel.LAYER_AI,
        "correlation": decision_kernel.LAYER_CORRELATION,
    }
    return {name: float(out[i]) for name, i in at.items() if isfinite(out[i])}


def _known(value: float) -> float | None:
    return value if isfinite(value) else None


def _named(values: list[float]) -> dict[str, float]:
    return {name: value for name, value in zip(SCORE_NAMES, values, strict=True) if isfinite(value)}


def decide(
    inputs: DecisionInputs,
    params: Params,
    flat: Floats,
    *,
    id: str,
    symbol: str,
    as_of: datetime,
    known_at: datetime,
    ingested_at: datetime,
    arm: str,
    bar_seconds: float | None = None,
    generation: int = 0,
    models: Mapping[str, Any] | None = None,
    lineage: Mapping[str, str] | None = None,
    tier_reason: str = "",
    learned: Mapping[str, float] | None = None,
) -> Decision:
    """One decision (U6). `flat` is `flatten(params)`, made once by the caller.

    An event keeps its entry, stop and target on NO_TRADE too, so that its outcome can be scored; size is then 0.
    weights holds only the available categories; a silent one has contribution 0. `learned` stands beside them in the
    record; what of it acts is in `inputs.factor`.
    Raises BadTimes for a naive as_of, UnknownName for an unknown regime. Doubtful numbers are refusals, not errors.
    """
    if as_of.tzinfo is None:
        raise BadTimes(f"as_of {as_of} has no timezone; decisions are made in UTC")
    row, out = to_row(inputs), np.empty(decision_kernel.OUT_WIDTH)
    code = decision_kernel.decide_row(row, flat, out)
    said = out.tolist()
    seen = inputs.event_direction in (-1, 1)
    levels = isfinite(said[decision_kernel.TARGET])
    bar_s = bar_seconds or TIMEFRAME_SECONDS[params.data.decision_timeframe]  # a source may be coarser than asked for
    horizon = timedelta(seconds=params.labels.horizon_bars * bar_s)
    return Decision(
        id=id,
        symbol=symbol,
        as_of=as_of,
        known_at=known_at,
        ingested_at=ingested_at,
        action=ACTIONS[said[decision_kernel.ACTION]],
        direction=int(_known(said[decision_kernel.DIRECTION]) or 0),
        confidence=_known(said[decision_kernel.CONFIDENCE]),
        entry=float(inputs.price) if levels else None,
        stop=_known(said[decision_kernel.STOP]),
        take_profits=(said[decision_kernel.TARGET],) if levels else (),
        size=said[decision_kernel.SIZE],
        expiry=as_of + horizon if seen else None,
        edge_bps=_known(said[decision_kernel.EDGE_BPS]),
        p=_known(float(inputs.p)),
        regime=inputs.regime,
        tier=inputs.tier,
        arm=arm,
        event=inputs.event if seen else None,
        weights=_named(said[decision_kernel.SHARES_AT : decision_kernel.CONTRIBUTIONS_AT]),
        contributions=_named(said[decision_kernel.CONTRIBUTIONS_AT : decision_kernel.OUT_WIDTH]),
        coverage=_known(said[decision_kernel.COVERAGE]) or 0.0,
        reasons=reasons(code, row, flat, out, inputs.abstained, inputs.breakers),
        generation=generation,
        models=dict(models or {}),
        lineage=dict(lineage or {}),
        account=inputs.portfolio.to_dict(),
        breakers=inputs.breakers,
        tier_reason=tier_reason,
        tier_multiplier=params.tiers.size.get(inputs.tier, 0.0),
        trail=trail(code),
        said=_named((inputs.direction * np.where(inputs.direction == 0.0, 0.0, inputs.confidence)).tolist()),
        validation={"of": _known(said[decision_kernel.VALIDATION]), **layers_of(out)},
        stage=STAGES[int(said[decision_kernel.STAGE])],
        capped_by=CAPS[int(said[decision_kernel.CAP_OF])] if isfinite(said[decision_kernel.CAP_OF]) else None,
        learned=dict(learned or {}),
    )
