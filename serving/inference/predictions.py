"""Predict with every served model at a close, in this process or from the answers of the model service.

An arm that fails abstains by name and the others go on: `MODEL_FAULT:` where its own code raised or gave no number,
`MODEL_SERVICE_…:` where the model service did (see serving.inference.model_client).
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipelines.contracts import (
    EnsembleVote,
    Floats,
    Model,
    ModelAnswer,
    ModelAnswers,
    Predictions,
    Probabilities,
    finite_or_none,
)
from pipelines.data.series import names_of
from pipelines.families import DECISION_FAMILY
from pipelines.models.directional_ensemble import directional
from pipelines.models.views import VIEWS, select
from pipelines.signals.events import Events, event_row, events
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from serving.inference.model_slots import ARMS, Slot, Snapshot
from serving.state.symbols import Symbol

log = logging.getLogger("bellwether.models")
FAULTS = ("MODEL_FAULT:", "MODEL_SERVICE_")  # reasons that are a failure, not a reasoned abstention

PredictionOrFault = Predictions | str  # predictions of one row, or the fault as text
Answers = Mapping[tuple[str, str], PredictionOrFault]  # by (family, arm)


@dataclass(frozen=True, slots=True)
class InferenceRequest:
    """Hold one row for all arms of a family.

    rows       (1, …, len(columns)) float64, NaN = missing
    event      signal that raised the event the row is about; None for families that read the market itself
    direction  of that event: -1, 1, or 0 without one
    """

    family: str
    arms: tuple[str, ...]
    rows: Floats
    columns: tuple[str, ...]
    event: str | None
    direction: int


def market_mismatch(slot: Slot, symbol: Symbol) -> str | None:
    """Return `TRAINED_ON:…` where a model was trained on another market than this symbol's; None where it fits."""
    schema, series = slot.model.schema, names_of(symbol.warm.series)
    trained_on = schema.get("symbol"), schema.get("decision_timeframe")
    if trained_on == (symbol.name, symbol.grid.timeframe):
        if (theirs := schema.get("series") or {}) != series:
            return f"TRAINED_ON:series {', '.join(theirs.values()) or 'none'}"
        return None
    return "TRAINED_ON:" + " ".join(str(part) for part in trained_on)


def events_at_close(symbol: Symbol) -> Events | None:
    """Return the ICT events of the last closed bar, the validator's input; None while the symbol warms up."""
    if symbol.reason is not None:
        return None
    return events(symbol.closed.features[np.newaxis], symbol.closed.signals[np.newaxis])


def inference_requests(snapshot: Snapshot, symbol: Symbol, raised: Events | None) -> list[InferenceRequest]:
    """Return one request for each served family at this close; arms that have to abstain are left out.

    raised  what `events_at_close` returned
    """
    requests: list[InferenceRequest] = []
    if raised is None:
        return requests
    for family in dict.fromkeys(family for family, _ in snapshot.slots):
        arms = tuple(
            arm
            for arm in ARMS
            if (slot := snapshot.slot(family, arm)) and _not_applicable(slot, symbol, raised) is None
        )
        if arms:
            requests.append(_request(family, arms, symbol, raised))
    return requests


def predict_local(snapshot: Snapshot, requests: Iterable[InferenceRequest]) -> dict[tuple[str, str], PredictionOrFault]:
    """Return the predictions of the models in this process by (family, arm), a fault where one failed."""
    answers: dict[tuple[str, str], PredictionOrFault] = {}
    for request in requests:
        for arm in request.arms:
            model = snapshot.slots[request.family, arm].model
            rows = select(request.rows, request.columns, model.columns)
            answers[request.family, arm] = predict(model, rows, f"{request.family} {arm}")
    return answers


def predict(model: Model, rows: Floats, name: str) -> PredictionOrFault:
    """Return the predictions of one model, or its fault as text; `name` stands in the log line of a fault."""
    try:
        return model.predict(rows)
    except Exception as error:  # a model's code may raise anything; its arm abstains and an alarm names it
        log.exception("%s failed", name)
        return f"MODEL_FAULT:{type(error).__name__}: {error}"[:300]


def prediction_records(
    snapshot: Snapshot,
    symbol: Symbol,
    raised: Events | None,
    requests: Iterable[InferenceRequest],
    answers: Answers,
) -> ModelAnswers:
    """Return the answer of every served model at this close: its numbers, or None and the reason for it."""
    records: ModelAnswers = {}
    for (family, arm), slot in snapshot.slots.items():
        if (why := _not_applicable(slot, symbol, raised)) is not None:
            records.setdefault(family, {})[arm] = replace(_abstention(slot), reason=why)
    for request in requests:
        for arm in request.arms:
            blank = replace(
                _abstention(snapshot.slots[request.family, arm]), event=request.event, direction=request.direction
            )
            classes = snapshot.slots[request.family, arm].model.classes
            answer = answers[request.family, arm]
            records.setdefault(request.family, {})[arm] = (
                _filled(blank, answer, classes) if isinstance(answer, Predictions) else replace(blank, reason=answer)
            )
    return records


def faulty(answer: ModelAnswer) -> str | None:
    """Return the fault of one arm; None if it predicted, or abstained for a reason of its own."""
    return answer.reason if answer.reason is not None and answer.reason.startswith(FAULTS) else None


def with_ensemble_votes(
    models: Mapping[str, Mapping[str, ModelAnswer]], snapshot: Snapshot, phase: str | None
) -> ModelAnswers:
    """Return the answers with the vote of the directional ensemble (M5) where the bundle registers its weights.

    phase  regime whose weights are used; None = unknown
    """
    return {
        family: {arm: _with_vote(answer, snapshot.slots[family, arm], phase) for arm, answer in arms.items()}
        for family, arms in models.items()
    }


def _with_vote(answer: ModelAnswer, slot: Slot, phase: str | None) -> ModelAnswer:
    """Return one answer with the ensemble's vote, unchanged where there is nothing to vote on."""
    weights = slot.model.schema.get("ensemble")
    if weights is None or answer.members is None:
        return answer
    members = {name: np.array([np.nan if p is None else p]) for name, p in answer.members.items()}
    vote = directional(members, weights, phase)
    shares = {name: float(share[0]) for name, share in vote.weights.items()}
    return replace(answer, ensemble=EnsembleVote(finite_or_none(vote.p[0]), phase, shares, tuple(vote.missing[0])))


def _not_applicable(slot: Slot, symbol: Symbol, raised: Events | None) -> str | None:
    """Return why this model is not used at this close; None if it is."""
    if raised is None or symbol.waits_of(slot.family) is not None:
        return "WARMING_UP"
    return market_mismatch(slot, symbol) or (
        "NO_EVENT" if slot.family == DECISION_FAMILY and len(raised) == 0 else None
    )


def _request(family: str, arms: tuple[str, ...], symbol: Symbol, raised: Events) -> InferenceRequest:
    """Return the row of the last closed bar for the models of one family."""
    if family == DECISION_FAMILY:
        side = int(raised.direction[0])
        row = event_row(symbol.closed.features, symbol.closed.signals, side)[np.newaxis]
        return InferenceRequest(family, arms, row, VALIDATOR_COLUMNS, str(raised.kind[0]), side)
    view, history = VIEWS[family], symbol.history
    rows = view.build(history, np.array([len(history) - 1]))
    return InferenceRequest(family, arms, rows if view.steps > 1 else rows[:, 0], view.columns, None, 0)


def _abstention(slot: Slot) -> ModelAnswer:
    """Return an answer without numbers that names the model of a slot."""
    role = "active" if slot.arm == "champion" else "shadow"
    return ModelAnswer(slot.family, slot.version, slot.digest, slot.verdict, role)


def _filled(blank: ModelAnswer, predictions: Predictions, classes: tuple[str, ...]) -> ModelAnswer:
    """Return the answer with the only row of these predictions; OK without a finite p is a fault of the model."""
    members = (
        None
        if predictions.members is None
        else {name: _first_row(p, classes) for name, p in predictions.members.items()}
    )
    ok = predictions.status[0] == "OK"
    if ok and not np.isfinite(predictions.p[0]).all():
        return replace(blank, members=members, reason="MODEL_FAULT:NaN: the model says OK and gives no number")
    return replace(
        blank,
        members=members,
        p=_first_row(predictions.p, classes) if ok else None,
        p_low=_first_row(predictions.p_low, classes) if ok else None,
        label=None if predictions.label is None else predictions.label[0],
        status=predictions.status[0],
        reason=predictions.reason[0],
        novelty=finite_or_none(predictions.novelty[0]),
    )


def _first_row(values: Floats, classes: tuple[str, ...]) -> Probabilities:
    """Return the first row of (n,) as a number, of (n, classes) as class → number; None = not finite."""
    row = values[0]
    if values.ndim == 1:
        return finite_or_none(row)
    # a member may have classes of its own (the hidden states): those are named by their number
    names = classes if len(row) == len(classes) else map(str, range(len(row)))
    return dict(zip(names, map(finite_or_none, row), strict=True))
