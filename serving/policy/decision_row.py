"""Decide one row with the compiled kernel and return the decision with its reasons; pure, times and ids are inputs."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from hashlib import sha256
from math import isfinite
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from pipelines.contracts import (
    REGIMES,
    SCORE_NAMES,
    Decision,
    Floats,
    ModelAnswers,
    ThresholdCheck,
    finite_or_none,
)
from pipelines.data.embargo import Window
from pipelines.errors import BadShape, BadTimes, BadValues, UnknownName
from pipelines.params import Params
from pipelines.signals.events import EVENT_SIGNALS
from serving.policy import kernel as decision_kernel
from serving.policy.fusion import N_SCORES, weight_table
from serving.policy.thresholds import PHASES, THRESHOLDS, threshold_table
from serving.risk.codes import (
    CANNOT_COMPUTE,
    CONFLUENCE_BELOW,
    NOT_VALIDATED,
    PHASE_DIFFERS,
    REFUSALS,
    STRENGTH_BELOW,
    UNICORN_BELOW,
    bits_of,
    trail,
)
from serving.risk.limits import STAGES, TIERS
from serving.risk.sizing import CAPS, LIMIT_ROWS, SIZINGS

ACTIONS: dict[float, Literal["BUY", "SELL", "NO_TRADE"]] = {1.0: "BUY", -1.0: "SELL", 0.0: "NO_TRADE"}
ONES: Floats = np.ones(N_SCORES)  # factors of the stated weights; independence of categories that never agree
ONES.setflags(write=False)
_OF_VALUES = STRENGTH_BELOW | CONFLUENCE_BELOW | UNICORN_BELOW | PHASE_DIFFERS


@dataclass(frozen=True, slots=True)
class ExposureSnapshot:
    """Hold the account at as_of, as a new position on the event's side is measured; fractions are of equity.

    Fields as in the kernel's row and in risk.exposure. NaN = not known, so nothing is opened; es_unit is NaN without an
    event.
    """

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
        """Return the snapshot that `to_dict` wrote; a field that was not recorded is not known."""
        values = {part.name: record.get(part.name) for part in fields(cls)}
        return cls(**{name: np.nan if value is None else value for name, value in values.items()})

    def to_dict(self) -> dict[str, float | None]:
        """Return the snapshot as plain JSON; a value that is not known is null."""
        return {name: finite_or_none(getattr(self, name)) for name in self.__slots__}


NOTHING_OPEN: Mapping[str, float] = dict.fromkeys(
    (part.name for part in fields(ExposureSnapshot) if part.name != "es_unit"), 0.0
)


@dataclass(frozen=True, slots=True)
class DecisionInputs:
    """Hold the inputs of one decision, known at the close of its bar; NaN and units as in kernel.ROW_FIELDS.

    In tier 3 (no champion) the event is the traditional consensus, p and p_low are its measured hit rate with the lower
    bound, miss_bps what its misses returned, and the traditional score alone gives the confidence.
    """

    direction: Floats  # (N_SCORES,) CategoryScores.score
    confidence: Floats  # (N_SCORES,)
    factor: Floats  # (N_SCORES,) on the stated weights; ONES = as stated
    independence: Floats  # (N_SCORES,) CategoryScores.independence
    regime: str | None
    trend: float
    unicorn: float
    confluence: float
    phase: float
    event: str | None  # name of the signal that raised the event
    event_direction: float  # −1, 0 (no event), 1
    volatility: float
    atr: float
    price: float
    cost_bps: float
    stop_cost_bps: float
    p: float
    p_low: float
    miss_bps: float
    abstained: str | None  # reason of the deciding model where p is NaN
    tier: int
    age_bars: float
    breakers: tuple[str, ...]  # names of those that tripped
    portfolio: ExposureSnapshot
    embargo: Window | None = None  # of the calendar of events, that the bar closed in
    is_disabled: bool = False  # whether the event's signal is among `signals.disabled`


def flatten(params: Params) -> Floats:
    """Return the parameters of the kernel as its flat array (PARAM_WIDTH,) float64; make it once per configuration.

    Raises UnknownName for a missing regime or limit row, and for a disabled signal that raises no event; BadValues for
    a value that is negative or not finite, and for an exit plan that no live venue follows.
    """
    if params.exits.plan != "plain":
        raise BadValues(
            f"params.yaml exits.plan {params.exits.plan}: measured in docs/results/exits.md, but no venue follows "
            "it live yet; set it to plain"
        )
    if unknown := [name for name in params.signals.disabled if name not in EVENT_SIGNALS]:
        raise UnknownName(
            f"params.yaml signals.disabled: {', '.join(unknown)} raises no event; known: {', '.join(EVENT_SIGNALS)}"
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
    named |= {f"require_{name}": float(name in params.thresholds.require) for name in THRESHOLDS}
    named["phase_wanted"] = float(PHASES.index(params.thresholds.base.phase))
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
    flat[decision_kernel.STAGE_SIZE_AT : decision_kernel.THRESHOLDS_AT] = [1.0, *(stage.size for stage in stages)]
    flat[decision_kernel.TIER_SIZE_AT : decision_kernel.STAGE_FROM_AT] = [params.tiers.size[tier] for tier in TIERS]
    flat[decision_kernel.THRESHOLDS_AT :] = threshold_table(params.thresholds).ravel()
    if not np.isfinite(flat).all() or (flat < 0.0).any():
        bad = [
            name for name, value in zip(decision_kernel.PARAM_FIELDS, flat, strict=False) if not 0.0 <= value < np.inf
        ]
        raise BadValues(f"params.yaml: {bad or 'risk tables'} must be finite and not negative. Fix them and rerun.")
    return flat


def policy_digest(params: Params, flat: Floats) -> str:
    """Return the sha256 of every parameter that `decide` rests on; `flat` is `flatten(params)`."""
    rest = [params.learning.use, params.costs.model_dump_json(), params.risk.tail.model_dump_json()]
    if params.risk.account_currency != "USD":  # the currency of every release that had none to state
        rest.append(params.risk.account_currency)
    if params.signals.disabled:  # none was, in every release that could disable none
        rest.append(f"signals.disabled {sorted(params.signals.disabled)}")
    if params.fusion.disabled:
        rest.append(f"fusion.disabled {sorted(params.fusion.disabled)}")
    if params.account.source != "ledger":
        rest.append(f"account.source {params.account.source}")
    return sha256(flat.tobytes() + "".join(rest).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Policy:
    """Hold what decisions are made by: params.yaml as it was read, and the row the kernel reads.

    content   the parameters as JSON, from which `policy_of_content` makes the same policy again
    digest    sha256 of the content; rules: of the part of it that `decide` rests on
    """

    params: Params
    flat: Floats
    content: str
    digest: str
    rules: str


def policy_of(params: Params, content: str | None = None) -> Policy:
    """Return the policy of parameters. Raises BadValues as `flatten`.

    content  what they were read from, where that is stored: a release that has more of them would write another
    """
    flat, content = flatten(params), content or params.model_dump_json()
    return Policy(params, flat, content, sha256(content.encode()).hexdigest(), policy_digest(params, flat))


def policy_of_content(content: str) -> Policy:
    """Return the policy of stored parameters. Raises BadValues for parameters this release cannot read."""
    try:
        return policy_of(Params.model_validate_json(content), content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadValues(f"stored parameters: {where}: {first['msg']}; another release decided by them") from error


def to_rows(
    direction: Floats,
    confidence: Floats,
    factor: Floats | None = None,
    independence: Floats | None = None,
    **fields: npt.ArrayLike,
) -> Floats:
    """Return (n, ROW_WIDTH) rows for `decide_rows` and the backtest, which fills in the account columns.

    direction, confidence  (n, N_SCORES)
    factor, independence   (N_SCORES,) or (n, N_SCORES) of all scores; None = ONES
    fields                 scalars or (n,) arrays named as in kernel.ROW_FIELDS; one left out is NaN, which the kernel
                           refuses where it needs it, and `disabled` 0: it is of the parameters, no fact of a bar
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
    rows[:, decision_kernel.DISABLED] = 0.0
    for name, values in fields.items():
        if name not in decision_kernel.ROW_FIELDS[decision_kernel.STATE_AT :]:
            raise UnknownName(
                f"no row field {name!r}; known: {', '.join(decision_kernel.ROW_FIELDS[decision_kernel.STATE_AT :])}"
            )
        rows[:, decision_kernel.ROW_FIELDS.index(name)] = values
    return rows


def to_row(inputs: DecisionInputs) -> Floats:
    """Return the kernel's row (ROW_WIDTH,); raise UnknownName for a regime outside contracts.REGIMES."""
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
        inputs.confluence, inputs.phase, inputs.event_direction, inputs.tier, inputs.age_bars,
        float((1 << len(inputs.breakers)) - 1), account.gross, account.strategy, account.market, account.asset,
        account.correlated, account.es, account.stress, account.open_count, account.trades_today, account.daily_pnl,
        account.drawdown, account.es_unit, inputs.volatility, inputs.atr, inputs.price, inputs.cost_bps,
        inputs.stop_cost_bps, inputs.p, inputs.p_low, inputs.miss_bps,
        float(inputs.embargo is not None), float(inputs.is_disabled),
    )  # fmt: skip
    return row


def reasons(
    code: int,
    row: Floats,
    flat: Floats,
    out: Floats,
    abstained: str | None = None,
    breakers: tuple[str, ...] = (),
    embargo: Window | None = None,
    signal: str | None = None,
) -> tuple[str, ...]:
    """Return every refusal in `code` as text with its numbers, primary first; empty for an emitted decision.

    signal  that raised the event
    """
    if not code:
        return ()
    facts = _Facts(
        (flat, out, row),
        abstained=abstained or "no reason given",
        window="a calendar of events" if embargo is None else str(embargo),
        signal=signal or "the signal",
        latched=", ".join(breakers) or f"breakers={row[decision_kernel.BREAKERS]:.0f}",
    )
    if code & CANNOT_COMPUTE:
        mask = int(out[decision_kernel.UNUSABLE_MASK])
        facts["unusable"] = ",".join(name for i, name in enumerate(decision_kernel.ROW_FIELDS) if mask >> i & 1)
    if code & NOT_VALIDATED:
        facts["layers"] = ", ".join(f"{name} {value:.2f}" for name, value in layers_of(out).items())
    if code & _OF_VALUES:  # a value that is not known is shown as such
        facts |= {
            "strength": _shown(out.item(decision_kernel.STRENGTH)),
            "event_confluence": _shown(out.item(decision_kernel.EVENT_CONFLUENCE), 2),
            "event_stars": _shown(out.item(decision_kernel.EVENT_STARS), 0),
            "phase_now": _phase(row.item(decision_kernel.PHASE)) or "unknown",
            "phase_wanted": PHASES[int(flat.item(decision_kernel.PHASE_WANTED))],
        }
    return tuple(REFUSALS[bit].format_map(facts) for bit in bits_of(code))


# name in a refusal's text → which array of (params, out, row) holds it, and where
_PLACES = {
    name: (array, at)
    for array, names in enumerate(
        (decision_kernel.PARAM_FIELDS, decision_kernel.OUT_FIELDS, decision_kernel.ROW_FIELDS)
    )
    for at, name in enumerate(names)
}


class _Facts(dict[str, float | str]):
    """Hold what the texts of refusals name; a number is read from params, out or row when a text names it."""

    def __init__(self, arrays: tuple[Floats, Floats, Floats], **words: str) -> None:
        """Start with `words`; arrays are (params, out, row) of the kernel."""
        super().__init__(words)
        self._arrays = arrays

    def __missing__(self, name: str) -> float:
        """Return the number of a field of the kernel's layouts; raise KeyError for a name that is in none."""
        array, at = _PLACES[name]
        return self._arrays[array].item(at)


def _shown(value: float, digits: int = 1) -> str:
    """Return a number as text, `unknown` for NaN."""
    return f"{value:.{digits}f}" if isfinite(value) else "unknown"


def _phase(code: float) -> str | None:
    """Return the name of a phase of the auction; None for NaN and a code that is none."""
    return PHASES[int(code)] if isfinite(code) and 0 <= code < len(PHASES) else None


def thresholds_of(row: Floats, flat: Floats, out: list[float]) -> dict[str, ThresholdCheck]:
    """Return threshold → its value on the event's side and what was wanted (S17); empty without an event."""
    if not row[decision_kernel.EVENT]:
        return {}
    found = {
        name: ThresholdCheck(
            finite_or_none(out[value]), out[minimum], out[value] >= out[minimum], flat.item(required) > 0.0
        )
        for name, value, minimum, required in _THRESHOLD_VALUES
    }
    now, wanted = row.item(decision_kernel.PHASE), flat.item(decision_kernel.PHASE_WANTED)
    required = flat.item(decision_kernel.REQUIRE_PHASE) > 0.0
    return found | {"phase": ThresholdCheck(_phase(now), PHASES[int(wanted)], now == wanted, required)}


_THRESHOLD_VALUES = (
    ("strength", decision_kernel.STRENGTH, decision_kernel.MIN_STRENGTH, decision_kernel.REQUIRE_STRENGTH),
    ("confidence", decision_kernel.CONFIDENCE, decision_kernel.MIN_CONFIDENCE, decision_kernel.REQUIRE_CONFIDENCE),
    (
        "confluence",
        decision_kernel.EVENT_CONFLUENCE,
        decision_kernel.MIN_CONFLUENCE,
        decision_kernel.REQUIRE_CONFLUENCE,
    ),
    ("unicorn", decision_kernel.EVENT_STARS, decision_kernel.MIN_UNICORN, decision_kernel.REQUIRE_UNICORN),
)


def layers_of(out: Floats) -> dict[str, float]:
    """Return layer → its support for the event (U4), in [0, 1]; layers without a value are left out."""
    values = out[decision_kernel.LAYER_TRADITIONAL :].tolist()
    return {
        name: value for name, value in zip(decision_kernel.VALIDATION_LAYERS, values, strict=False) if isfinite(value)
    }


def _by_score(values: list[float]) -> dict[str, float]:
    """Return score name → value, of those that are finite."""
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
    expiry: datetime | None = None,
    generation: int = 0,
    models: ModelAnswers | None = None,
    lineage: Mapping[str, str] | None = None,
    tier_reason: str = "",
    learned: Mapping[str, float] | None = None,
    waiting: tuple[str, ...] = (),
    market: Mapping[str, float | None] | None = None,
) -> Decision:
    """Return one decision (U6).

    flat     `flatten(params)`, made once by the caller
    learned  category → learned weight, recorded only; the part of it in force is `inputs.factor`
    waiting  why the symbol must wait, ahead of all reasons; the reason of the tier comes after them
    market   state of the market, recorded only
    An event keeps its entry, stop and target on NO_TRADE too, so that its outcome can be scored; size is then 0.
    `weights` holds the available categories only; a neutral one has contribution 0.
    Raises BadTimes for a naive as_of, UnknownName for an unknown regime. Doubtful numbers are refusals, not errors.
    """
    if as_of.tzinfo is None:
        raise BadTimes(f"as_of {as_of} has no timezone; decisions are made in UTC")
    row, out = to_row(inputs), np.empty(decision_kernel.OUT_WIDTH)
    code = decision_kernel.decide_row(row, flat, out)
    result = out.tolist()
    has_event = inputs.event_direction in (-1, 1)
    levels = isfinite(result[decision_kernel.TARGET])
    return Decision(
        id=id,
        symbol=symbol,
        as_of=as_of,
        known_at=known_at,
        ingested_at=ingested_at,
        action=ACTIONS[result[decision_kernel.ACTION]],
        direction=int(finite_or_none(result[decision_kernel.DIRECTION]) or 0),
        confidence=finite_or_none(result[decision_kernel.CONFIDENCE]),
        entry=float(inputs.price) if levels else None,
        stop=finite_or_none(result[decision_kernel.STOP]),
        take_profits=(result[decision_kernel.TARGET],) if levels else (),
        size=result[decision_kernel.SIZE],
        expiry=expiry if has_event else None,
        edge_bps=finite_or_none(result[decision_kernel.EDGE_BPS]),
        p=finite_or_none(float(inputs.p)),
        regime=inputs.regime,
        tier=inputs.tier,
        arm=arm,
        event=inputs.event if has_event else None,
        weights=_by_score(result[decision_kernel.SHARES_AT : decision_kernel.CONTRIBUTIONS_AT]),
        contributions=_by_score(result[decision_kernel.CONTRIBUTIONS_AT : decision_kernel.OUT_WIDTH]),
        coverage=finite_or_none(result[decision_kernel.COVERAGE]) or 0.0,
        reasons=(
            *waiting,
            *reasons(code, row, flat, out, inputs.abstained, inputs.breakers, inputs.embargo, inputs.event),
            *((tier_reason,) if tier_reason else ()),
        ),
        generation=generation,
        models=models or {},
        lineage=dict(lineage or {}),
        account=inputs.portfolio.to_dict(),
        breakers=inputs.breakers,
        tier_reason=tier_reason,
        tier_multiplier=params.tiers.size.get(inputs.tier, 0.0),
        trail=trail(code),
        category_scores=_by_score(
            [
                side * (confidence if side else 0.0)
                for side, confidence in zip(inputs.direction.tolist(), inputs.confidence.tolist(), strict=True)
            ]
        ),
        validation={"combined": finite_or_none(result[decision_kernel.VALIDATION]), **layers_of(out)},
        stage=STAGES[int(result[decision_kernel.STAGE])],
        capped_by=CAPS[int(result[decision_kernel.CAP_OF])] if isfinite(result[decision_kernel.CAP_OF]) else None,
        learned=dict(learned or {}),
        thresholds=thresholds_of(row, flat, result),
        market=dict(market or {}),
    )
