"""What every served model says at a close: who is asked what, the answers here, and all of it in words for the record.

An arm that fails abstains by name and the others go on: `MODEL_FAULT:` where its own code raised or gave no number,
`MODEL_SERVICE_…:` where the model service did (see serving.inference.model_client).
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.contracts import Floats, Model, Predictions
from pipelines.models.directional_ensemble import directional
from pipelines.models.views import VIEWS, select
from pipelines.signals.events import Events, event_row, events
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from serving.inference.model_slots import ARMS, Slot, Snapshot
from serving.state.symbols import Symbol

log = logging.getLogger("bellwether.models")
DECISION_FAMILY = "validator"  # judges the event of the bar; the others read the market itself
FAULTS = ("MODEL_FAULT:", "MODEL_SERVICE_")  # reasons that are a failure, not a reasoned abstention

PredictionOrFault = Predictions | str  # one row's predictions, or the fault in words
Answers = Mapping[tuple[str, str], PredictionOrFault]  # by (family, arm)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """One row for all arms of a family. rows (1, …, len(columns)) float64, NaN = missing."""

    family: str
    arms: tuple[str, ...]
    rows: Floats
    columns: tuple[str, ...]
    event: dict[str, Any]  # what it is asked about


def market_mismatch(slot: Slot, symbol: Symbol) -> str | None:
    """Why this model may not speak of this market: it was trained on another one. None if it may."""
    trained_on = slot.model.schema.get("symbol"), slot.model.schema.get("decision_timeframe")
    if trained_on == (symbol.name, symbol.warm.decision_timeframe):
        return None
    return "TRAINED_ON:" + " ".join(str(part) for part in trained_on)


def events_at_close(symbol: Symbol) -> Events | None:
    """The ICT events of the last closed bar, which the validator judges; None while the symbol warms up."""
    if symbol.reason is not None:
        return None
    return events(symbol.closed.features[np.newaxis], symbol.closed.signals[np.newaxis])


def inference_requests(snapshot: Snapshot, symbol: Symbol, raised: Events | None) -> list[InferenceRequest]:
    """What the served models are asked at this close; an arm that has to be silent is not asked."""
    found = []
    for family in dict.fromkeys(family for family, _ in snapshot.slots):
        arms = tuple(
            arm for arm in ARMS if (slot := snapshot.slot(family, arm)) and _silence(slot, symbol, raised) is None
        )
        if arms:
            found.append(InferenceRequest(family, arms, *_rows(family, symbol, raised)))
    return found


def predict_local(snapshot: Snapshot, asked: Iterable[InferenceRequest]) -> dict[tuple[str, str], PredictionOrFault]:
    """The arms' answers from the models in this process; one that fails leaves the others."""
    said: dict[tuple[str, str], PredictionOrFault] = {}
    for ask in asked:
        for arm in ask.arms:
            model = snapshot.slots[ask.family, arm].model
            said[ask.family, arm] = predict(model, select(ask.rows, ask.columns, model.columns), f"{ask.family} {arm}")
    return said


def predict(model: Model, rows: Floats, who: str) -> PredictionOrFault:
    """What one model says of its rows, or its fault."""
    try:
        return model.predict(rows)
    except Exception as error:  # a model's code may raise anything; its arm abstains and an alarm names it
        log.exception("%s failed", who)
        return f"MODEL_FAULT:{type(error).__name__}: {error}"[:300]


def prediction_records(
    snapshot: Snapshot, symbol: Symbol, raised: Events | None, asked: Iterable[InferenceRequest], said: Answers
) -> dict[str, Any]:
    """family → arm → what its model says at this close: numbers or null, and always why it is null."""
    told: dict[str, Any] = {}
    for (family, arm), slot in snapshot.slots.items():
        if (why := _silence(slot, symbol, raised)) is not None:
            told.setdefault(family, {})[arm] = _named(slot) | _SILENT | {"reason": why}
    for ask in asked:
        for arm in ask.arms:
            slot = snapshot.slots[ask.family, arm]
            one = said[ask.family, arm]
            words = _told(slot, one) if isinstance(one, Predictions) else _SPOILT | {"reason": one}
            told.setdefault(ask.family, {})[arm] = _named(slot) | ask.event | words
    return told


def faulty(said: Mapping[str, Any]) -> str | None:
    """The fault of one arm's entry in the record; None if it answered or abstained for a reason of its own."""
    reason = said["reason"]
    return reason if reason is not None and reason.startswith(FAULTS) else None


def add_votes(models: dict[str, Any], snapshot: Snapshot, phase: str | None) -> None:
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


def _silence(slot: Slot, symbol: Symbol, raised: Events | None) -> str | None:
    """Why this model is not asked at this close."""
    if raised is None:
        return "WARMING_UP"
    return market_mismatch(slot, symbol) or (
        "NO_EVENT" if slot.family == DECISION_FAMILY and len(raised) == 0 else None
    )


_SPOILT: dict[str, Any] = dict.fromkeys(("p", "p_low", "novelty", "label")) | {"status": "ABSTAIN"}
_SILENT: dict[str, Any] = {"event": None, "direction": 0} | _SPOILT


def _rows(family: str, symbol: Symbol, raised: Events | None) -> tuple[Floats, tuple[str, ...], dict[str, Any]]:
    """(one row for the family's models, its columns, what it is asked about)."""
    if family == DECISION_FAMILY:
        assert raised is not None
        side = int(raised.direction[0])
        row = event_row(symbol.closed.features, symbol.closed.signals, side)[np.newaxis]
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
    spoke = answer.status[0] == "OK"
    if spoke and not np.isfinite(answer.p[0]).all():
        return more | _SPOILT | {"reason": "MODEL_FAULT:NaN: the model says OK and gives no number"}
    return more | {
        "p": told(answer.p) if spoke else None,
        "p_low": told(answer.p_low) if spoke else None,
        "label": None if answer.label is None else answer.label[0],
        "status": answer.status[0],
        "reason": answer.reason[0],
        "novelty": _finite(answer.novelty[0]),
    }


def _named(slot: Slot) -> dict[str, Any]:
    told = {name: getattr(slot, name) for name in ("family", "version", "digest", "verdict")}
    return told | {"role": "acts" if slot.arm == "champion" else "shadow"}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
