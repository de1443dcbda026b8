"""Predict with every served model at a close, in this process or from the answers of the model service.

Where several symbols close together, a model is called once with a row of each; one symbol is a batch of one. An arm
that fails abstains by name and the others go on: `MODEL_FAULT:` where its own code raised or gave no number,
`MODEL_SERVICE_…:` where the model service did (see serving.inference.model_client).
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np

from pipelines.contracts import (
    Floats,
    Model,
    ModelAnswer,
    ModelAnswers,
    Predictions,
    Probabilities,
    finite_or_none,
)
from pipelines.data.series import names_of
from pipelines.errors import BadShape
from pipelines.families import DECISION_FAMILY
from pipelines.models.directional_ensemble import vote
from pipelines.models.trained_on import symbols_of
from pipelines.models.views import VIEWS, select
from pipelines.signals.events import Events, event_row
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from serving.inference.model_slots import Slot, Snapshot
from serving.state.symbols import Symbol

log = logging.getLogger("bellwether.models")
MODEL_FAULT = "MODEL_FAULT:"
FAULTS = (MODEL_FAULT, "MODEL_SERVICE_")  # reasons that are a failure, not a reasoned abstention
UNSEEN_SYMBOL = "UNSEEN_SYMBOL:"  # the reason of a model that was not trained on the symbol
NOT_ASKED = ("WARMING_UP", "NO_EVENT", "TRAINED_ON:", UNSEEN_SYMBOL)  # reasons of models that were not called

Unseen = Literal["refuse", "allow"]  # whether a model answers for a symbol that it was not trained on

PredictionsOrFault = Predictions | str  # of the rows of one call, or the fault as text


class Row(NamedTuple):
    """Hold the prediction of one row as plain numbers; p, p_low and members have a number a class, None = none.

    A model with one class has a number in place of the list.
    """

    p: Any
    p_low: Any
    status: str
    reason: str | None
    novelty: float
    label: str | None
    members: dict[str, Any] | None
    device: str = "cpu"
    fallback: str | None = None  # as in Predictions


# Models of a batch run two at a time: most of their time is in code that lets other threads run. A few rows are
# answered sooner than a thread is woken.
THREADS_FROM = 16  # requests: a row of one symbol and family
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="models")

RowOrFault = Row | str
Answers = Mapping[tuple[str, str], RowOrFault]  # by (family, arm)
Timed = Callable[[str, str, float], object]  # family, arm, ms of its answer


def not_timed(family: str, arm: str, ms: float) -> None:
    """Take the time of an answer where nobody watches it."""


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


class CloseRequests(NamedTuple):
    """Hold the requests of one symbol's close, one a family, and the reasons of the arms that have to abstain."""

    requests: list[InferenceRequest]
    abstaining: dict[tuple[str, str], str]  # (family, arm) → reason


def market_mismatch(slot: Slot, symbol: Symbol, unseen: Unseen = "refuse") -> str | None:
    """Return why a model does not answer for this symbol's market; None where it does.

    UNSEEN_SYMBOL:<symbols>  it was trained on these only; with `unseen` allow it answers all the same
    TRAINED_ON:…             on other bars, or with other named series
    """
    schema, series = slot.model.schema, names_of(symbol.warm.series)
    trained_on, timeframe = symbols_of(schema), schema.get("decision_timeframe")
    if timeframe != symbol.grid.timeframe:
        return f"TRAINED_ON:{', '.join(trained_on)} {timeframe}"
    if symbol.name not in trained_on and unseen == "refuse":
        return UNSEEN_SYMBOL + ", ".join(trained_on)
    theirs = schema.get("series") or {}
    # a pooled model reads the series that all its symbols have; one of a single market knows what it lacked too
    is_same = theirs == series if "symbols" not in schema else theirs.items() <= series.items()
    return None if is_same else f"TRAINED_ON:series {', '.join(theirs.values()) or 'none'}"


def kept_mismatch(slot: Slot, symbol: Symbol, unseen: Unseen) -> str | None:
    """Return `market_mismatch`, found once a bundle and symbol: neither changes while both serve."""
    at, about = (slot.family, slot.arm), (slot.digest, unseen)
    kept = symbol.mismatches.get(at)
    if kept is None or kept[0] != about:
        kept = symbol.mismatches[at] = about, market_mismatch(slot, symbol, unseen)
    return kept[1]


def events_at_close(symbol: Symbol) -> Events | None:
    """Return the ICT events of the last closed bar, the validator's input; None while the symbol warms up."""
    if symbol.reason is not None:
        return None
    return symbol.ict_events


def inference_requests(
    snapshot: Snapshot, symbol: Symbol, raised: Events | None, unseen: Unseen = "refuse"
) -> CloseRequests:
    """Return one request for each served family at this close; arms that have to abstain are left out, with the reason.

    raised  what `events_at_close` returned
    """
    arms: dict[str, list[str]] = {}
    reasons = {}
    for (family, arm), slot in snapshot.slots.items():
        if (why := not_applicable(slot, symbol, raised, unseen)) is None:
            arms.setdefault(family, []).append(arm)
        else:
            reasons[family, arm] = why
    if raised is None:
        return CloseRequests([], reasons)
    return CloseRequests([request_of(family, tuple(some), symbol, raised) for family, some in arms.items()], reasons)


def predict_local(snapshot: Snapshot, requests: Sequence[InferenceRequest], timed: Timed = not_timed) -> list[Answers]:
    """Return each request's predictions by (family, arm), of the models in this process; a fault where one failed.

    A model is called once, with the rows of every request of its family and arm; `timed` takes how long a row took.
    """
    found: list[dict[tuple[str, str], RowOrFault]] = [{} for _ in requests]
    places: dict[tuple[str, str], list[int]] = {}
    for i, request in enumerate(requests):
        for arm in request.arms:
            places.setdefault((request.family, arm), []).append(i)
    together = {at: _rows_together([requests[i] for i in of], snapshot.slots[at].model) for at, of in places.items()}
    run = _THREADS.map if len(requests) >= THREADS_FROM else map
    answered = run(lambda at: _timed(snapshot.slots[at].model, together[at], " ".join(at)), places)
    for (at, of), (answers, ms) in zip(places.items(), answered, strict=True):
        for i, answer in zip(of, answers, strict=True):
            found[i][at] = answer
        timed(*at, ms / len(of))
    return list(found)


def _rows_together(requests: Sequence[InferenceRequest], model: Model) -> Floats:
    """Return the rows of all these requests, of one family, as its model reads them."""
    first = requests[0]
    if all(request.columns == first.columns for request in requests):
        return select(np.concatenate([request.rows for request in requests]), first.columns, model.columns)
    return np.concatenate([select(request.rows, request.columns, model.columns) for request in requests])


def _timed(model: Model, rows: Floats, name: str) -> tuple[list[RowOrFault], float]:
    """Return the prediction of each row, and how many ms they took."""
    begin = perf_counter()
    answers = predict_each(model, rows, name)
    return answers, 1e3 * (perf_counter() - begin)


def answered_here(
    snapshot: Snapshot, requests: Sequence[InferenceRequest], answers: Sequence[Answers]
) -> list[Answers]:
    """Return the answers with those of the models in this process where the model service had a fault.

    The bundles are the same by digest; `fallback` of each such answer is the fault.
    """
    faults = [
        {arm: fault for arm in request.arms if isinstance(fault := answered[request.family, arm], str)}
        for request, answered in zip(requests, answers, strict=True)
    ]
    wanted = [
        replace(request, arms=tuple(missing)) for request, missing in zip(requests, faults, strict=True) if missing
    ]
    here = iter(predict_local(snapshot, wanted))
    return [
        answered
        if not missing
        else {**answered, **{key: _instead(one, missing[key[1]]) for key, one in next(here).items()}}
        for answered, missing in zip(answers, faults, strict=True)
    ]


def _instead(row: RowOrFault, fault: str) -> RowOrFault:
    """Return the row of this process with the fault that it stands in for; a fault of its own stays one."""
    return row if isinstance(row, str) else row._replace(fallback=fault)


def predict_each(model: Model, rows: Floats, name: str) -> list[RowOrFault]:
    """Return the prediction of each row, from one call of the model.

    Where that call fails, each row is tried alone: one symbol's row never costs another its answer.
    """
    answer = predict(model, rows, name)
    if isinstance(answer, Predictions):
        return list(rows_of(answer))
    if len(rows) == 1:
        return [answer]
    alone = [predict(model, rows[i : i + 1], name) for i in range(len(rows))]
    return [one if isinstance(one, str) else rows_of(one)[0] for one in alone]


def rows_of(answer: Predictions) -> list[Row]:
    """Return the predictions of each row as plain numbers."""
    n = len(answer.status)
    members: Sequence[dict[str, Any] | None] = [None] * n
    if answer.members is not None:
        each = [_plain(p) for p in answer.members.values()]
        members = [dict(zip(answer.members, row, strict=True)) for row in zip(*each, strict=True)]
    label = answer.label or [None] * n
    where = [answer.device] * n, [answer.fallback] * n
    numbers = _plain(answer.p), _plain(answer.p_low)
    columns = *numbers, answer.status, answer.reason, answer.novelty.tolist(), label, members, *where
    return [Row(*row) for row in zip(*columns, strict=True)]


def _plain(values: Floats) -> list[Any]:
    """Return an array (n,) or (n, classes) as plain numbers; None = not finite."""
    finite = np.isfinite(values)
    if finite.all():
        return list(values.tolist())
    if not finite.any():  # a family without a bound, or rows that all abstain
        return [None if values.ndim == 1 else [None] * values.shape[1] for _ in range(len(values))]
    plain = values.astype(object)
    plain[~finite] = None
    return list(plain.tolist())


def predict(model: Model, rows: Floats, name: str) -> PredictionsOrFault:
    """Return the predictions of one model, or its fault as text; `name` stands in the log line of a fault."""
    try:
        answer = model.predict(rows)
        if len(answer.status) != len(rows):
            raise BadShape(f"{len(answer.status)} answers for {len(rows)} rows")
        return answer
    except Exception as error:  # a model's code may raise anything; its arm abstains and an alarm names it
        log.exception("%s failed", name)
        return f"{MODEL_FAULT}{type(error).__name__}: {error}"[:300]


def prediction_records(snapshot: Snapshot, close: CloseRequests, answers: Iterable[Answers]) -> ModelAnswers:
    """Return the answer of every served model at this close: its numbers, or None and the reason for it.

    answers  of `close.requests`, in the same order
    """
    records: ModelAnswers = {}
    for at, why in close.abstaining.items():
        records.setdefault(at[0], {})[at[1]] = ModelAnswer(*_identity(snapshot.slots[at]), reason=why)
    for request, answered in zip(close.requests, answers, strict=True):
        for arm in request.arms:
            slot = snapshot.slots[request.family, arm]
            records.setdefault(request.family, {})[arm] = _answer(slot, request, answered[request.family, arm])
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
        if any(answer.members is not None for answer in arms.values())
        else dict(arms)
        for family, arms in models.items()
    }


def _with_vote(answer: ModelAnswer, slot: Slot, phase: str | None) -> ModelAnswer:
    """Return one answer with the ensemble's vote, unchanged where there is nothing to vote on."""
    if answer.members is None or (weights := slot.model.schema.get("ensemble")) is None:
        return answer
    return answer.with_vote(vote(answer.members, weights, phase))


def not_applicable(slot: Slot, symbol: Symbol, raised: Events | None, unseen: Unseen) -> str | None:
    """Return why this model is not used at this close; None if it is."""
    if raised is None or symbol.waits_of(slot.family) is not None:
        return "WARMING_UP"
    return kept_mismatch(slot, symbol, unseen) or (
        "NO_EVENT" if slot.family == DECISION_FAMILY and len(raised) == 0 else None
    )


def request_of(family: str, arms: tuple[str, ...], symbol: Symbol, raised: Events) -> InferenceRequest:
    """Return the row of the last closed bar for the models of one family."""
    if family == DECISION_FAMILY:
        side = int(raised.direction[0])
        row = event_row(symbol.closed.features, symbol.closed.signals, side)[np.newaxis]
        return InferenceRequest(family, arms, row, VALIDATOR_COLUMNS, str(raised.kind[0]), side)
    view, history = VIEWS[family], symbol.history
    rows = view.build(history, np.array([len(history) - 1]))
    return InferenceRequest(family, arms, rows if view.steps > 1 else rows[:, 0], view.columns, None, 0)


def _identity(slot: Slot) -> tuple[str, str, str, str, str]:
    """Return the first fields of the answer of a slot's model: family, version, digest, verdict, role."""
    return slot.family, slot.version, slot.digest, slot.verdict, "active" if slot.arm == "champion" else "shadow"


def _answer(slot: Slot, request: InferenceRequest, row: RowOrFault) -> ModelAnswer:
    """Return the answer of one arm to a request; OK without a finite p is a fault of the model."""
    about = *_identity(slot), request.event, request.direction
    if isinstance(row, str):
        return ModelAnswer(*about, reason=row)
    classes = slot.model.classes
    members = None if row.members is None else {name: _by_class(p, classes) for name, p in row.members.items()}
    ok = row.status == "OK"
    if ok and (None in row.p if isinstance(row.p, list) else row.p is None):
        why = f"{MODEL_FAULT}NaN: the model says OK and gives no number"
        return ModelAnswer(*about, reason=why, members=members, device=row.device, fallback=row.fallback)
    return ModelAnswer(
        *about,
        p=_by_class(row.p, classes) if ok else None,
        p_low=_by_class(row.p_low, classes) if ok else None,
        label=row.label,
        status=row.status,
        reason=row.reason,
        novelty=finite_or_none(row.novelty),
        members=members,
        device=row.device,
        fallback=row.fallback,
    )


def _by_class(values: float | list[float | None] | None, classes: tuple[str, ...]) -> Probabilities:
    """Return a number as it is, a list as class → number."""
    if not isinstance(values, list):
        return values
    # a member may have classes of its own (the hidden states): those are named by their number
    names = classes if len(values) == len(classes) else map(str, range(len(values)))
    return dict(zip(names, values, strict=True))
