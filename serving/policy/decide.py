"""From live state to one decision: events, voices, both arms' opinions, then the policy. Pure; no clock, no disk.

In tiers 1 and 2 the validator champion judges the ICT event of the bar. In tier 3 the traditional consensus is the
event and its measured hit rate the probability; in tier 4 too, and nothing is opened. A regime champion
says which regime weights and caps apply; without one, or while it abstains, the rule does. Whoever does not act still
scores, in shadow.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np

from pipelines.contracts import CATEGORIES, CLOSE, REGIMES, Decision, Floats, utc
from pipelines.errors import BadTimes
from pipelines.families import FAMILIES
from pipelines.features.catalog import FEATURES
from pipelines.params import Params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import events, traditional_events
from pipelines.signals.regimes import market_state
from serving.inference.model_slots import Slot, Snapshot
from serving.inference.predictions import (
    add_votes,
    events_at_close,
    faulty,
    inference_requests,
    market_mismatch,
    predict_local,
    prediction_records,
)
from serving.policy import decision_row
from serving.policy.fusion import N_SCORES, RULE_REGIME
from serving.state import tiers
from serving.state.online_weights_store import factor_of
from serving.state.symbols import Symbol

DECISION_FAMILY = "validator"  # whose probability decides a trade
REGIME = "regime"  # whose word chooses weights and caps
TRADITIONAL = "traditional"  # who acts in tier 3
UNICORN = SIGNALS.index["unicorn_rating_score"]  # stars of the leading side, signed: the backtest reads the same
VOLATILITY = FEATURES.index["volatility_20"]


def predict_all(symbol: Symbol, snapshot: Snapshot) -> dict[str, Any]:
    """What the models in this process say at this close."""
    raised = events_at_close(symbol)
    asked = inference_requests(snapshot, symbol, raised)
    return prediction_records(snapshot, symbol, raised, asked, predict_local(snapshot, asked))


def age_in_bars(symbol: Symbol, known_at: datetime) -> float:
    """Decision bars between the last close and `known_at`. Raises BadTimes if that bar had not closed by then."""
    age_bars = (known_at.timestamp() - symbol.closed.close_time) / symbol.step_s
    if age_bars < 0:
        raise BadTimes(
            f"{known_at:%F %T %Z} is before {utc(symbol.closed.close_time):%F %T} UTC, the close of the last bar of "
            f"{symbol.name}: nothing could be decided on it then."
        )
    return age_bars


def tier_at(state: tiers.State, age_bars: float, limit_bars: float) -> tiers.Tier:
    """The tier of one answer: the symbol's, or emergency where the data are too old for now."""
    if age_bars <= limit_bars or state.tier == tiers.EMERGENCY:
        return state.current_tier()
    return tiers.Tier(tiers.EMERGENCY, f"TIER_4: data are {age_bars:.2f} bars old, limit {limit_bars:g}")


def decide(
    symbol: Symbol,
    snapshot: Snapshot,
    params: Params,
    flat: Floats,
    portfolio: Callable[[str, float], decision_row.ExposureSnapshot],
    breakers: tuple[str, ...],
    *,
    tier: tiers.Tier,
    learned: Mapping[str, float] | None = None,
    predictions: Mapping[str, Any] | None = None,
    id: str,
    known_at: datetime,
    now: datetime,
) -> Decision:
    """The decision on the last closed bar of `symbol`.

    portfolio the account as a new position of (signal, side) finds it; ("", 0) where there is no event
    tier      who may act; serving.state.tiers says which in live service, the record in a replay
    learned   category → weight learnt from outcomes so far, recorded; it decides where `learning.use` says so
    predictions  what the models said at this close, as `predict_all` gives it; None = ask those in this process
    known_at  now by the clock of this market, `known_at` of the decision; BadTimes if that bar had not closed by then
    now       becomes `ingested_at`
    """
    closed, warm = symbol.closed, symbol.warm
    age_bars = age_in_bars(symbol, known_at)
    ready = symbol.reason is None
    features, signals = closed.features[np.newaxis], closed.signals[np.newaxis]
    models = _own(predictions) if predictions is not None else predict_all(symbol, snapshot)
    if tier.number <= tiers.SIMPLE:
        raised = events(features, signals)
        acting, told, arm = raised, models[DECISION_FAMILY]["champion"], "champion"
        p, p_low, abstained = told["p"], told["p_low"], told["reason"]
        lineage = _lineage(snapshot.slots[DECISION_FAMILY, "champion"])
    else:
        acting, record, arm = traditional_events(features, signals), warm.traditional, TRADITIONAL
        p, p_low, abstained = (record.value, record.low, None) if record else (None, None, "NO_TRACK_RECORD")
        lineage = {"data_hash": warm.data_hash or "none", "git_commit": "none: no model acted"}
    seen = ready and len(acting) > 0
    direction, confidence = warm.category_scores.score(closed.signals) if ready else (np.full(N_SCORES, np.nan),) * 2
    regime, regime_of, trend = regime_now(symbol, models)
    add_votes(models, snapshot, regime)
    event, side = (str(acting.kind[0]), float(acting.direction[0])) if seen else ("", 0.0)
    decision = decision_row.decide(
        decision_row.DecisionInputs(
            direction=direction,
            confidence=confidence,
            factor=factor_of([learned[name] for name in CATEGORIES], params) if learned else decision_row.ONES,
            independence=warm.category_scores.independence,
            regime=regime,
            trend=float(trend),
            unicorn=float(closed.signals[UNICORN]) if ready else np.nan,
            event=event or None,
            event_direction=side,
            volatility=float(closed.features[VOLATILITY]) if seen else np.nan,
            atr=float(acting.atr[0]) if seen else np.nan,
            price=float(closed.bar[CLOSE]),
            p=np.nan if p is None else p,
            p_low=np.nan if p_low is None else p_low,
            abstained=abstained,
            tier=tier.number,
            age_bars=age_bars,
            breakers=breakers,
            portfolio=portfolio(event, side),
        ),
        params,
        flat,
        id=id,
        symbol=symbol.name,
        as_of=utc(closed.close_time),
        known_at=known_at,
        ingested_at=now,
        arm=arm,
        bar_seconds=symbol.step_s,
        generation=snapshot.generation,
        tier_reason=tier.reason,
        learned=learned,
        models=models,
        lineage=lineage
        | {
            "catalogue_hash": FEATURES.catalogue_hash,
            "signal_catalogue_hash": SIGNALS.catalogue_hash,
            "warm_start": warm.digest,
            "regime": regime_of,
            "policy": decision_row.policy_digest(params, flat),
        },
    )
    waiting = () if symbol.reason is None else (symbol.reason,)
    return replace(decision, reasons=(*waiting, *decision.reasons, tier.reason))


def regime_now(symbol: Symbol, models: dict[str, Any]) -> tuple[str | None, str, float]:
    """(regime, who says so: a bundle's digest or the rule's name, trend sign). None = unknown: the smallest caps."""
    code, trend = market_state(symbol.closed.features, symbol.closed.signals)
    said = models.get(REGIME, {}).get("champion")
    if said is not None and said["label"] is not None:
        return said["label"], said["digest"], float(trend)
    return None if np.isnan(code) else REGIMES[int(code)], RULE_REGIME, float(trend)


def tier_inputs(
    symbol: Symbol,
    snapshot: Snapshot,
    models: Mapping[str, Any] | None,
    service: str | None = None,
    emergency: str | None = None,
) -> tiers.TierInputs:
    """What the tier machine is told of this symbol: at a decision with what the models said, at a look with None."""
    champions, absent = {}, {}
    for family in FAMILIES:
        slot = snapshot.slot(family, "champion")
        why = None if slot is None else market_mismatch(slot, symbol)
        if slot is not None and why is None:
            champions[family] = slot.digest
        else:
            absent[family] = (
                f"no {family} champion serves" if slot is None else f"{family} champion {slot.version} abstains ({why})"
            )
    predictions = {family: arms["champion"] for family, arms in (models or {}).items() if "champion" in arms}
    failed = {family: why for family, said in predictions.items() if (why := faulty(said)) is not None}
    silent = ("WARMING_UP", "NO_EVENT", "TRAINED_ON:")
    answered = {
        f for f, said in predictions.items() if f not in failed and not (said["reason"] or "").startswith(silent)
    }
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


def _own(predictions: Mapping[str, Any]) -> dict[str, Any]:
    return {family: {arm: dict(said) for arm, said in arms.items()} for family, arms in predictions.items()}


def _lineage(slot: Slot) -> dict[str, str]:
    return {name: getattr(slot, name) for name in ("data_hash", "git_commit", "run_id")}
