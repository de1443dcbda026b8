"""From live state to one decision: events, voices, both arms' opinions, then the policy. Pure; no clock, no disk.

Tier 2 while a validator champion serves: it judges the ICT event of the bar. Tier 3 without one: the traditional
consensus is the event and its measured hit rate the probability. A regime champion says which regime weights and caps
apply; without one, or while it abstains, the rule does. Whoever does not act still scores, in shadow.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np

from pipelines.contracts import CLOSE, REGIMES, Decision, Floats, Predictions, utc
from pipelines.errors import BadTimes
from pipelines.features.catalog import FEATURES
from pipelines.features.validator_schema import VALIDATOR_COLUMNS
from pipelines.models.ensemble import directional
from pipelines.models.views import VIEWS
from pipelines.settings import Params
from pipelines.signals.catalog import SIGNALS
from pipelines.signals.events import Events, event_row, events, traditional_events
from serving import policy
from serving.fusion import N_VOICES, RULE_REGIME, rule_regime
from serving.slots import ARMS, Slot, Snapshot
from serving.symbols import Symbol

FAMILY = "validator"  # whose probability decides a trade
REGIME = "regime"  # whose word chooses weights and caps
TRADITIONAL = "traditional"  # who acts in tier 3
_VOLATILITY, _ADX = FEATURES.index["volatility_regime"], FEATURES.index["adx_14"]
_TREND = SIGNALS.index["ma_cross.direction"]


def market_state(features: Floats, signals: Floats) -> tuple[Floats, Floats]:
    """(regime codes, trend signs) of rows (n, kf), (n, ks) or of one row; NaN = unknown. Live and backtest share it."""
    trend = signals[..., _TREND]
    return rule_regime(features[..., _VOLATILITY], features[..., _ADX], trend), trend


def foreign(slot: Slot, symbol: Symbol) -> str | None:
    """Why this model may not speak of this market: it was trained on another one. None if it may."""
    trained_on = slot.model.schema.get("symbol"), slot.model.schema.get("decision_timeframe")
    if trained_on == (symbol.name, symbol.warm.decision_timeframe):
        return None
    return "TRAINED_ON:" + " ".join(str(part) for part in trained_on)


def tier_of(snapshot: Snapshot, symbol: Symbol) -> tuple[int, str]:
    """(tier, why)."""
    champion = snapshot.slot(FAMILY, "champion")
    if champion is None:
        return 3, f"TIER_3: no {FAMILY} champion serves; the traditional consensus decides"
    if reason := foreign(champion, symbol):
        return 3, f"TIER_3: {FAMILY} champion {champion.version} abstains ({reason}); the traditional consensus decides"
    return 2, f"TIER_2: {FAMILY} champion {champion.version} decides"


def decide(
    symbol: Symbol,
    snapshot: Snapshot,
    params: Params,
    flat: Floats,
    portfolio: policy.Portfolio,
    breakers: tuple[str, ...],
    *,
    id: str,
    asked_at: datetime,
    now: datetime,
) -> Decision:
    """The decision on the last closed bar of `symbol`.

    asked_at  the instant decided for, `known_at` of the decision; BadTimes if that bar had not closed by then
    now       becomes `ingested_at`
    """
    closed, warm = symbol.closed, symbol.warm
    age_bars = (asked_at.timestamp() - closed.close_time) / symbol.step_s
    if age_bars < 0:
        raise BadTimes(
            f"as_of: {asked_at:%F %T %Z} is before {utc(closed.close_time):%F %T} UTC, the close of the last bar of "
            f"{symbol.name}. Live state answers for now; past decisions are in the ledger (`bellwether lineage`)."
        )
    tier, tier_reason = tier_of(snapshot, symbol)
    ready = symbol.reason is None
    features, signals = closed.features[np.newaxis], closed.signals[np.newaxis]
    raised = events(features, signals)
    models = _opinions(snapshot, symbol, raised if ready else None)
    if tier == 2:
        acting, told, arm = raised, models[FAMILY]["champion"], "champion"
        p, p_low, abstained = told["p"], told["p_low"], told["reason"]
        lineage = _lineage(snapshot.slots[FAMILY, "champion"])
    else:
        acting, record, arm = traditional_events(features, signals), warm.traditional, TRADITIONAL
        p, p_low, abstained = (record.value, record.low, None) if record else (None, None, "NO_TRACK_RECORD")
        lineage = {"data_hash": warm.data_hash or "none", "git_commit": "none: no model acted"}
    seen = ready and len(acting) > 0
    direction, confidence = warm.voices.speak(closed.signals) if ready else (np.full(N_VOICES, np.nan),) * 2
    regime, regime_of, trend = regime_now(symbol, models)
    _vote(models, snapshot, regime)
    decision = policy.decide(
        policy.DecisionInputs(
            direction=direction,
            confidence=confidence,
            regime=regime,
            trend=float(trend),
            event=str(acting.kind[0]) if seen else None,
            event_direction=float(acting.direction[0]) if seen else 0.0,
            atr=float(acting.atr[0]) if seen else np.nan,
            price=float(closed.bar[CLOSE]),
            p=np.nan if p is None else p,
            p_low=np.nan if p_low is None else p_low,
            abstained=abstained,
            tier=tier,
            age_bars=age_bars,
            breakers=breakers,
            portfolio=portfolio,
        ),
        params,
        flat,
        id=id,
        symbol=symbol.name,
        as_of=utc(closed.close_time),
        known_at=asked_at,
        ingested_at=now,
        arm=arm,
        bar_seconds=symbol.step_s,
        generation=snapshot.generation,
        models=models,
        lineage=lineage
        | {
            "catalogue_hash": FEATURES.catalogue_hash,
            "signal_catalogue_hash": SIGNALS.catalogue_hash,
            "warm_start": warm.digest,
            "regime": regime_of,
            "policy": policy.policy_digest(params, flat),
        },
    )
    waiting = () if symbol.reason is None else (symbol.reason,)
    return replace(decision, reasons=(*waiting, *decision.reasons, tier_reason))


def regime_now(symbol: Symbol, models: dict[str, Any]) -> tuple[str | None, str, float]:
    """(regime, who says so: a bundle's digest or the rule's name, trend sign). None = unknown: the smallest caps."""
    code, trend = market_state(symbol.closed.features, symbol.closed.signals)
    said = models.get(REGIME, {}).get("champion")
    if said is not None and said["label"] is not None:
        return said["label"], said["digest"], float(trend)
    return None if np.isnan(code) else REGIMES[int(code)], RULE_REGIME, float(trend)


def _opinions(snapshot: Snapshot, symbol: Symbol, raised: Events | None) -> dict[str, Any]:
    """family → arm → what its model says at this close: numbers or null, and always why it is null.

    raised  the bar's ICT events, which the validator judges; None while the symbol warms up
    """
    said: dict[str, Any] = {}
    for family, arm in snapshot.slots:
        slot = snapshot.slots[family, arm]
        why = "WARMING_UP" if raised is None else foreign(slot, symbol)
        if why is None and family == FAMILY and raised is not None and len(raised) == 0:
            why = "NO_EVENT"
        if why is not None:
            said.setdefault(family, {})[arm] = _named(slot) | _SILENT | {"reason": why}
    for family in {family for family, _ in snapshot.slots}:
        waiting = [arm for arm in ARMS if snapshot.slot(family, arm) and arm not in said.get(family, {})]
        if waiting:
            rows, columns, event = _rows(family, symbol, raised)
            for arm, answer in snapshot.predict(family, rows, columns, waiting).items():
                slot = snapshot.slots[family, arm]
                said.setdefault(family, {})[arm] = _named(slot) | event | _told(slot, answer)
    return said


def _vote(models: dict[str, Any], snapshot: Snapshot, phase: str | None) -> None:
    """Add what the directional ensemble (M5) says in this phase to every answer whose model registered its weights."""
    for family, arms in models.items():
        for arm, said in arms.items():
            weights = snapshot.slots[family, arm].model.schema.get("ensemble")
            if weights is None or "members" not in said:
                continue
            heard = {name: np.array([np.nan if p is None else p]) for name, p in said["members"].items()}
            vote = directional(heard, weights, phase)
            said["ensemble"] = {
                "p": _finite(vote.p[0]),
                "phase": phase,
                "weights": {name: float(share[0]) for name, share in vote.weights.items()},
                "missing": list(vote.missing[0]),
            }


_SILENT: dict[str, Any] = dict.fromkeys(("event", "p", "p_low", "novelty", "label")) | {
    "direction": 0,
    "status": "ABSTAIN",
}


def _rows(family: str, symbol: Symbol, raised: Events | None) -> tuple[Floats, tuple[str, ...], dict[str, Any]]:
    """(one row for the family's models, its columns, what it is asked about)."""
    if family == FAMILY:
        assert raised is not None
        side = int(raised.direction[0])
        row = event_row(symbol.closed.features, side)[np.newaxis]
        return row, VALIDATOR_COLUMNS, {"event": str(raised.kind[0]), "direction": side}
    view, history = VIEWS[family], symbol.history
    rows = view.build(history, np.array([len(history) - 1]))
    return rows if view.steps > 1 else rows[:, 0], view.columns, {"event": None, "direction": 0}


def _told(slot: Slot, answer: Predictions) -> dict[str, Any]:
    """The only row of an answer, as JSON: p a number, or class → number for a model of several classes."""
    classes = slot.model.classes

    def told(values: Floats) -> Any:
        row = values[0]
        if values.ndim == 1:
            return _finite(row)
        # a voter may have words of its own (the hidden states): those go by their number
        names = classes if len(row) == len(classes) else map(str, range(len(row)))
        return dict(zip(names, map(_finite, row), strict=True))

    more = {} if answer.members is None else {"members": {name: told(p) for name, p in answer.members.items()}}
    return more | {
        "p": told(answer.p) if answer.status[0] == "OK" else None,
        "p_low": told(answer.p_low) if answer.status[0] == "OK" else None,
        "label": None if answer.label is None else answer.label[0],
        "status": answer.status[0],
        "reason": answer.reason[0],
        "novelty": _finite(answer.novelty[0]),
    }


def _named(slot: Slot) -> dict[str, Any]:
    told = {name: getattr(slot, name) for name in ("family", "version", "digest", "verdict")}
    return told | {"role": "acts" if slot.arm == "champion" else "shadow"}


def _lineage(slot: Slot) -> dict[str, str]:
    return {name: getattr(slot, name) for name in ("data_hash", "git_commit", "run_id")}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
