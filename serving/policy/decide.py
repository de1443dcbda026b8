"""Decide on the last closed bar of a symbol: events, category scores, predictions of both arms, then the policy.

Pure: no clock, no disk. In tiers 1 and 2 the validator champion judges the ICT event of the bar. In tier 3 the event is
the traditional consensus and its measured hit rate the probability; tier 4 does the same and opens nothing. A regime
champion chooses the regime's weights and caps; without one, or while it abstains, the rule does. In a canary or a split
the challenger does so in the units of (symbol, block) that are assigned to it. Every other served model predicts in
shadow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from importlib.metadata import version
from math import isnan

import numpy as np
import numpy.typing as npt

from pipelines.compiled import cpu_type
from pipelines.contracts import (
    CATEGORIES,
    CLOSE,
    REGIMES,
    Decision,
    Floats,
    ModelAnswer,
    ModelAnswers,
    finite_or_none,
    utc,
)
from pipelines.costs import Costs
from pipelines.data.embargo import window_at
from pipelines.errors import BadTimes
from pipelines.experiments.assignment import Arm, Assigned, read_assigned
from pipelines.families import DECISION_FAMILY, FAMILIES
from pipelines.features.catalog import FEATURES
from pipelines.params import Params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import Events, traditional_events
from pipelines.signals.regimes import market_state
from serving.inference.model_slots import Snapshot
from serving.inference.predictions import (
    NOT_ASKED,
    Timed,
    Unseen,
    events_at_close,
    faulty,
    inference_requests,
    kept_mismatch,
    not_timed,
    predict_local,
    prediction_records,
    with_ensemble_votes,
)
from serving.policy import decision_row
from serving.policy.fusion import N_SCORES, RULE_REGIME
from serving.state import tiers
from serving.state.online_weights_store import factor_of
from serving.state.symbols import Symbol

REGIME = "regime"  # the family that chooses weights and caps
ASSIGNED = "arm of "  # and the family: in the lineage, the arm that decided
UNASSIGNED: Mapping[str, Assigned] = {}
TRADITIONAL = "traditional"  # the arm that decides in tier 3
UNICORN = SIGNALS.index["unicorn_rating_score"]  # stars of the leading side, signed; the backtest reads the same three
CONFLUENCE = SIGNALS.index["confluence.score"]
PHASE = SIGNALS.index["amt_phase"]
VOLATILITY = FEATURES.index["volatility_20"]
# what every decision states of its market → the column it is read from
MARKET_COLUMNS = {
    "volatility": "volatility_20",  # level: log price a bar
    "momentum": "price_momentum",  # strength: ATR over ten bars
    "volume": "volume_ratio",  # profile: of the mean of 20 bars
    "book_skew": "book_skew_strength",  # -1 … 1, of the size in the book
    "liquidity": "liquidity_density",  # of the mean of 20 bars
}
_MARKET = tuple((name, FEATURES.index[column]) for name, column in MARKET_COLUMNS.items())


def predict_all(
    symbol: Symbol, snapshot: Snapshot, unseen: Unseen = "refuse", timed: Timed = not_timed
) -> ModelAnswers:
    """Return the answers of the models in this process at this close. `unseen`: params.models.unseen_symbols."""
    return predict_together([symbol], snapshot, unseen, timed)[0]


def predict_together(
    symbols: Sequence[Symbol], snapshot: Snapshot, unseen: Unseen = "refuse", timed: Timed = not_timed
) -> list[ModelAnswers]:
    """Return, for each symbol, the answers of the models in this process; each model is called once for all."""
    raised = [events_at_close(symbol) for symbol in symbols]
    closes = inference_requests(snapshot, symbols, raised, unseen)
    answers = predict_local(snapshot, [request for close in closes for request in close.requests], timed)
    return prediction_records(snapshot, closes, answers)


def market_of(symbol: Symbol) -> dict[str, float | None]:
    """Return the state of the market at the newest close by MARKET_COLUMNS; None = not recorded, or warming up."""
    if symbol.reason is not None:
        return {name: None for name, _ in _MARKET}
    row = symbol.closed.features
    return {name: finite_or_none(row.item(place)) for name, place in _MARKET}


def age_in_bars(symbol: Symbol, known_at: datetime) -> float:
    """Return the decision bars from the last close to `known_at`; raise BadTimes if that bar had not closed by then."""
    age_bars = symbol.grid.age_bars(symbol.closed.close_time, known_at.timestamp())
    if age_bars < 0:
        raise BadTimes(
            f"{known_at:%F %T %Z} is before {utc(symbol.closed.close_time):%F %T} UTC, the close of the last bar of "
            f"{symbol.name}: nothing could be decided on it then."
        )
    return age_bars


def tier_at(state: tiers.State, age_bars: float, limit_bars: float) -> tiers.Tier:
    """Return the tier of one decision: the symbol's, or emergency where its data are older than the limit."""
    if age_bars <= limit_bars or state.tier == tiers.EMERGENCY:
        return state.current_tier()
    return tiers.Tier(tiers.EMERGENCY, f"TIER_4: data are {age_bars:.2f} bars old, limit {limit_bars:g}")


def decide(
    symbol: Symbol,
    snapshot: Snapshot,
    policy: decision_row.Policy,
    portfolio: Callable[[str, float], decision_row.ExposureSnapshot],
    breakers: tuple[str, ...],
    *,
    tier: tiers.Tier,
    assigned: Mapping[str, Assigned] = UNASSIGNED,
    learned: Mapping[str, float] | None = None,
    predictions: ModelAnswers | None = None,
    id: str,
    known_at: datetime,
    now: datetime,
) -> Decision:
    """Return the decision on the last closed bar of `symbol`.

    policy       what it is made by; its digests go into the lineage
    portfolio    (signal, side) → the account that a new position is measured against; ("", 0) where there is no event
    tier         tier to decide in: serving.state.tiers in live service, the record in a replay
    assigned     family → arm that decides in the unit of this close, of a family in a canary or split; the record in a
                 replay. Of any other family the champion decides
    learned      category → weight learned from outcomes so far, recorded; in force only with `learning.use: act`
    predictions  answers of the models at this close, as `predict_all` returns them; None = use those in this process
    known_at     now by the clock of this market, `known_at` of the decision; BadTimes if the bar had not closed by then
    now          becomes `ingested_at`
    """
    closed, warm, params = symbol.closed, symbol.warm, policy.params
    if tier.number > tiers.SIMPLE:
        assigned = {family: one for family, one in assigned.items() if family != DECISION_FAMILY}  # no model decides
    age_bars = age_in_bars(symbol, known_at)
    waits = symbol.reason
    ready = waits is None
    answers = predictions if predictions is not None else predict_all(symbol, snapshot, params.models.unseen_symbols)
    decider = _decider(symbol, snapshot, answers, tier, _arm(assigned, DECISION_FAMILY))
    acting = decider.events
    has_event = ready and len(acting) > 0
    costs = symbol.costs(params.costs)
    target_cost_bps = symbol.target_cost_bps(params.costs)
    direction, confidence = warm.category_scores.score(closed.signals) if ready else (np.full(N_SCORES, np.nan),) * 2
    regime, regime_source, trend = regime_now(symbol, answers, _arm(assigned, REGIME))
    event, side = (str(acting.kind[0]), float(acting.direction[0])) if has_event else ("", 0.0)
    atr = float(acting.atr[0]) if has_event else np.nan
    return decision_row.decide(
        decision_row.DecisionInputs(
            direction=direction,
            confidence=confidence,
            factor=factor_of([learned[name] for name in CATEGORIES], params) if learned else decision_row.ONES,
            independence=warm.category_scores.independence,
            regime=regime,
            trend=trend,
            unicorn=float(closed.signals[UNICORN]) if ready else np.nan,
            confluence=float(closed.signals[CONFLUENCE]) if ready else np.nan,
            phase=float(closed.signals[PHASE]) if ready else np.nan,
            event=event or None,
            event_direction=side,
            volatility=float(closed.features[VOLATILITY]) if has_event else np.nan,
            atr=atr,
            price=float(closed.bar[CLOSE]),
            cost_bps=target_cost_bps,
            stop_cost_bps=target_cost_bps + costs.stop_slippage_bps,
            p=np.nan if decider.p is None else decider.p,
            p_low=np.nan if decider.p_low is None else decider.p_low,
            miss_bps=missed_bps_at(decider.miss_atr, atr, costs, params),
            abstained=decider.abstained,
            tier=tier.number,
            age_bars=age_bars,
            breakers=breakers,
            portfolio=portfolio(event, side),
            embargo=window_at(closed.close_time, warm.events),
            is_disabled=event in params.signals.disabled,
        ),
        params,
        policy.flat,
        id=id,
        symbol=symbol.name,
        as_of=utc(closed.close_time),
        known_at=known_at,
        ingested_at=now,
        arm=decider.arm,
        expiry=utc(symbol.grid.deadline(np.array([closed.close_time]), params.labels.horizon_bars)[0])
        if has_event
        else None,
        generation=snapshot.generation,
        tier_reason=tier.reason,
        learned=learned,
        models=with_ensemble_votes(_with_roles(answers, assigned), snapshot, regime),
        lineage={
            **decider.lineage,
            "catalogue_hash": FEATURES.catalogue_hash,
            "signal_catalogue_hash": SIGNALS.catalogue_hash,
            "warm_start": warm.digest,
            "regime": regime_source,
            "costs": costs.row,
            "policy": policy.rules,
            "params": policy.digest,
            "release": _release(),
            "cpu": cpu_type(),
            "tail": params.risk.tail.method(symbol.grid.timeframe),
            **({"account": params.account.source} if params.account.source != "ledger" else {}),
            **({"reading": symbol.reading} if symbol.reading else {}),
            **{ASSIGNED + family: str(one) for family, one in assigned.items()},
        },
        waiting=() if waits is None else (waits,),
        market=market_of(symbol),
    )


def assigned_in(lineage: Mapping[str, str]) -> dict[str, Assigned]:
    """Return family → arm that decided, as the lineage of a decision has it; of families in a canary or split."""
    return {
        name.removeprefix(ASSIGNED): read_assigned(text) for name, text in lineage.items() if name.startswith(ASSIGNED)
    }


def _arm(assigned: Mapping[str, Assigned], family: str) -> Arm:
    """Return the arm of a family that decides."""
    return assigned[family].arm if family in assigned else "champion"


def _with_roles(answers: ModelAnswers, assigned: Mapping[str, Assigned]) -> ModelAnswers:
    """Return the answers with the roles of families in a canary or split: the assigned arm is active."""
    if not assigned:
        return answers
    return {
        family: arms
        if family not in assigned
        else {
            arm: replace(answer, role="active" if arm == assigned[family].arm else "shadow")
            for arm, answer in arms.items()
        }
        for family, arms in answers.items()
    }


@cache
def _release() -> str:
    """Return the release of this code, as it is installed."""
    return version("bellwether")


@dataclass(frozen=True, slots=True)
class _Decider:
    """Hold the part of a decision that depends on the tier: the events, the probability of the first, and its misses.

    miss_atr  what an event returns whose target is not touched, in ATR before cost; NaN = there is no estimate
    """

    events: Events
    arm: str
    p: float | None
    p_low: float | None
    abstained: str | None
    miss_atr: float
    lineage: dict[str, str]


def missed_bps(miss_atr: npt.ArrayLike, atr: npt.ArrayLike, costs: Costs, params: Params) -> Floats:
    """Return what trades return that miss their target, in bps before the cost of one that reaches it.

    The backtest reads it here, the service its twin of one event, so that both fall back alike.

    miss_atr  expected, in ATR; NaN = no estimate: the whole stop, filled with its slippage, as estimates count it too
    atr       fraction of price; NaN = no event, and no return
    """
    expected, reach = np.asarray(miss_atr, dtype=np.float64), np.asarray(atr, dtype=np.float64) * 1e4
    whole_stop = -params.labels.stop_atr * reach - costs.stop_slippage_bps
    return np.where(np.isnan(expected), whole_stop, expected * reach)


def missed_bps_at(miss_atr: float, atr: float, costs: Costs, params: Params) -> float:
    """Return what `missed_bps` returns of one event, to the bit, without arrays."""
    reach = atr * 1e4
    return -params.labels.stop_atr * reach - costs.stop_slippage_bps if isnan(miss_atr) else miss_atr * reach


def _missed(estimate: float | None, where: str) -> tuple[float, dict[str, str]]:
    """Return what a missed target returns, in ATR, NaN without an estimate, and its origin for the lineage.

    estimate  of the training fold; where: the record that holds it, or should
    """
    if estimate is None:
        return np.nan, {"miss": f"the whole stop: the {where} has no estimate"}
    return float(estimate), {"miss": f"estimate of the {where}"}


def _decider(symbol: Symbol, snapshot: Snapshot, answers: ModelAnswers, tier: tiers.Tier, arm: Arm) -> _Decider:
    """Return this arm of the validator in tiers 1 and 2, the traditional consensus in tiers 3 and 4."""
    closed, warm = symbol.closed, symbol.warm
    if tier.number <= tiers.SIMPLE:
        answer, slot = answers[DECISION_FAMILY][arm], snapshot.slots[DECISION_FAMILY, arm]
        lineage = {name: getattr(slot, name) for name in ("data_hash", "git_commit", "run_id")}
        miss, origin = _missed(slot.model.schema.get("miss_atr"), "bundle")
        return _Decider(symbol.ict_events, arm, *answer.chance, answer.reason, miss, lineage | origin)
    raised = traditional_events(closed.features[np.newaxis], closed.signals[np.newaxis])
    record = warm.traditional
    miss, origin = _missed(warm.traditional_miss_atr, "warm start")
    lineage = {"data_hash": warm.data_hash or "none", "git_commit": "none: no model acted"} | origin
    if record is None:
        return _Decider(raised, TRADITIONAL, None, None, "NO_TRACK_RECORD", miss, lineage)
    return _Decider(raised, TRADITIONAL, record.value, record.low, None, miss, lineage)


def regime_now(
    symbol: Symbol, answers: Mapping[str, Mapping[str, ModelAnswer]], arm: Arm = "champion"
) -> tuple[str | None, str, float]:
    """Return (regime, its source, trend sign); regime None = unknown, which gets the smallest caps.

    The source is the digest of the bundle of the regime's arm that decides, or the name of the rule.
    """
    code, trend = market_state(symbol.closed.features, symbol.closed.signals)
    model = answers.get(REGIME, {}).get(arm)
    if model is not None and model.label is not None:
        return model.label, model.digest, float(trend)
    return None if np.isnan(code) else REGIMES[int(code)], RULE_REGIME, float(trend)


def tier_inputs(
    symbol: Symbol,
    snapshot: Snapshot,
    models: ModelAnswers | None,
    service: str | None = None,
    emergency: str | None = None,
    unseen: Unseen = "refuse",
) -> tiers.TierInputs:
    """Return the inputs of the tier state machine for one symbol.

    models     answers at a decision; None at a poll
    unseen     params.models.unseen_symbols
    service    why the model service is out; emergency why nothing may be opened; None = no fault
    """
    champions, absent = {}, {}
    for family in FAMILIES:
        slot = snapshot.slot(family, "champion")
        why = None if slot is None else kept_mismatch(slot, symbol, unseen)
        if slot is not None and why is None:
            champions[family] = slot.digest
        else:
            absent[family] = (
                f"no {family} champion serves" if slot is None else f"{family} champion {slot.version} abstains ({why})"
            )
    failed, answered = {}, set()
    for family, arms in (models or {}).items():
        if (answer := arms.get("champion")) is None:
            continue
        if (fault := faulty(answer)) is not None:
            failed[family] = fault
        elif answer.reason is None or not answer.reason.startswith(NOT_ASKED):
            answered.add(family)
    return tiers.TierInputs(
        bar=None if models is None or symbol.reason is not None else symbol.closed.close_time,
        champions=champions,
        absent=absent,
        failed=failed,
        answered=answered,
        service=service,
        emergency=emergency,
        fallback=symbol.warm.traditional is not None,
    )
