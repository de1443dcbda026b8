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
    """Hold the prediction of one row as plain numbers, None = none; fields as in ModelAnswer."""

    p: Probabilities
    p_low: Probabilities
    status: str
    reason: str | None
    novelty: float
    label: str | None
    members: dict[str, Probabilities] | None
    device: str = "cpu"
    fallback: str | None = None  # as in Predictions


# Models of a batch run two at a time: most of their time is in code that lets other threads run. A few rows are
# answered sooner than a thread is woken.
THREADS_FROM = 16  # requests: a row of one symbol and family
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="models")

RowOrFault = Row | str
Identity = tuple[str, str, str, str, str]  # family, version, digest, verdict and role, as in ModelAnswer
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
    batch      rows of all requests of this family that were made together, of which `rows` is number `place`
    """

    family: str
    arms: tuple[str, ...]
    rows: Floats
    columns: tuple[str, ...]
    event: str | None
    direction: int
    batch: Floats | None = None
    place: int = 0


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
    snapshot: Snapshot, symbols: Sequence[Symbol], raised: Sequence[Events | None], unseen: Unseen = "refuse"
) -> list[CloseRequests]:
    """Return, for each symbol, one request for each served family at this close; arms that have to abstain are left
    out, with the reason.

    raised  what `events_at_close` returned of each
    """
    closes = [CloseRequests([], {}) for _ in symbols]
    arms: dict[str, dict[int, list[str]]] = {}  # family → number of the symbol → arms that answer
    for i, (symbol, events) in enumerate(zip(symbols, raised, strict=True)):
        for (family, arm), slot in snapshot.slots.items():
            if (why := not_applicable(slot, symbol, events, unseen)) is None:
                arms.setdefault(family, {}).setdefault(i, []).append(arm)
            else:
                closes[i].abstaining[family, arm] = why
    for family, answering in arms.items():
        of = [(symbols[i], events, tuple(some)) for i, some in answering.items() if (events := raised[i]) is not None]
        for i, request in zip(answering, requests_of(family, of), strict=True):
            closes[i].requests.append(request)
    return closes


def predict_local(snapshot: Snapshot, requests: Sequence[InferenceRequest], timed: Timed = not_timed) -> list[Answers]:
    """Return each request's predictions by (family, arm), of the models in this process; a fault where one failed.

    A model is called once, with the rows of every request of its family and arm; `timed` takes how long a row took.
    """
    found: list[dict[tuple[str, str], RowOrFault]] = [{} for _ in requests]
    places: dict[tuple[str, str], list[int]] = {}
    for i, request in enumerate(requests):
        for arm in request.arms:
            places.setdefault((request.family, arm), []).append(i)
    together = _rows_together(snapshot, requests, places)
    run = _THREADS.map if len(requests) >= THREADS_FROM else map
    answered = run(lambda at: _timed(snapshot.slots[at].model, together[at], " ".join(at)), places)
    for (at, of), (answers, ms) in zip(places.items(), answered, strict=True):
        for i, answer in zip(of, answers, strict=True):
            found[i][at] = answer
        timed(*at, ms / len(of))
    return list(found)


def _rows_together(
    snapshot: Snapshot, requests: Sequence[InferenceRequest], places: Mapping[tuple[str, str], Sequence[int]]
) -> dict[tuple[str, str], Floats]:
    """Return (family, arm) → the rows of its requests, as its model reads them; arms that read the same share them."""
    found: dict[tuple[str, str], Floats] = {}
    made: dict[tuple[str, tuple[str, ...], tuple[int, ...]], Floats] = {}
    for (family, arm), of in places.items():
        columns = snapshot.slots[family, arm].model.columns
        key = family, columns, tuple(of)
        if key not in made:
            made[key] = _selected([requests[i] for i in of], columns)
        found[family, arm] = made[key]
    return found


def _selected(requests: Sequence[InferenceRequest], columns: tuple[str, ...]) -> Floats:
    """Return these columns of the rows of all these requests."""
    first = requests[0]
    if first.batch is not None and [one.place for one in requests if one.batch is first.batch] == [
        *range(len(first.batch))
    ]:
        return select(first.batch, first.columns, columns)
    return np.concatenate([select(request.rows, request.columns, columns) for request in requests])


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
        return list(rows_of(answer, model.classes))
    if len(rows) == 1:
        return [answer]
    alone = [predict(model, rows[i : i + 1], name) for i in range(len(rows))]
    return [one if isinstance(one, str) else rows_of(one, model.classes)[0] for one in alone]


def rows_of(answer: Predictions, classes: tuple[str, ...]) -> list[Row]:
    """Return the predictions of each row as plain numbers; `classes` are those of the model."""
    n = len(answer.status)
    members: Sequence[dict[str, Probabilities] | None] = [None] * n
    if answer.members is not None:
        each = [_by_class(p, classes) for p in answer.members.values()]
        members = [dict(zip(answer.members, row, strict=True)) for row in zip(*each, strict=True)]
    label = answer.label or [None] * n
    where = [answer.device] * n, [answer.fallback] * n
    numbers = _by_class(answer.p, classes), _by_class(answer.p_low, classes)
    columns = *numbers, answer.status, answer.reason, answer.novelty.tolist(), label, members, *where
    return [Row(*row) for row in zip(*columns, strict=True)]


def _by_class(values: Floats, classes: tuple[str, ...]) -> list[Probabilities]:
    """Return the numbers of each row of (n,) as they are, of (n, classes) as class → number; None = not finite."""
    plain = _plain(values)
    if values.ndim == 1:
        return plain
    # a member may have classes of its own (the hidden states): those are named by their number
    names = classes if values.shape[1] == len(classes) else tuple(map(str, range(values.shape[1])))
    return [dict(zip(names, row, strict=True)) for row in plain]


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


def prediction_records(
    snapshot: Snapshot, closes: Sequence[CloseRequests], answers: Iterable[Answers]
) -> list[ModelAnswers]:
    """Return, for each close, the answer of every served model: its numbers, or None and the reason for it.

    answers  of the requests of all closes, in their order
    """
    about = {at: _identity(slot) for at, slot in snapshot.slots.items()}
    abstained: dict[tuple[tuple[str, str], str], ModelAnswer] = {}  # the same of every symbol it is given to
    found, made = iter(answers), list[ModelAnswers]()
    for close in closes:
        records: ModelAnswers = {}
        for at, why in close.abstaining.items():
            if (answer := abstained.get((at, why))) is None:
                answer = abstained[at, why] = ModelAnswer(*about[at], reason=why)
            records.setdefault(at[0], {})[at[1]] = answer
        for request in close.requests:
            answered, arms = next(found), records.setdefault(request.family, {})
            for arm in request.arms:
                at = request.family, arm
                arms[arm] = _answer(about[at], request, answered[at])
        made.append(records)
    return made


def faulty(answer: ModelAnswer) -> str | None:
    """Return the fault of one arm; None if it predicted, or abstained for a reason of its own."""
    return answer.reason if answer.reason is not None and answer.reason.startswith(FAULTS) else None


def with_ensemble_votes(models: ModelAnswers, snapshot: Snapshot, phase: str | None) -> ModelAnswers:
    """Return the answers with the vote of the directional ensemble (M5) where the bundle registers its weights.

    phase  regime whose weights are used; None = unknown
    """
    return {
        family: {arm: _with_vote(answer, snapshot.slots[family, arm], phase) for arm, answer in arms.items()}
        if any(snapshot.slots[family, arm].model.schema.get("ensemble") for arm in arms)
        else arms
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


def requests_of(family: str, closes: Sequence[tuple[Symbol, Events, tuple[str, ...]]]) -> list[InferenceRequest]:
    """Return the row of each last closed bar for the models of one family.

    closes  symbols with their events there and the arms that answer
    """
    if family == DECISION_FAMILY:
        sides = [int(raised.direction[0]) for _, raised, _ in closes]
        rows = np.stack(
            [
                event_row(symbol.closed.features, symbol.closed.signals, side)
                for (symbol, _, _), side in zip(closes, sides, strict=True)
            ]
        )
        return [
            InferenceRequest(family, arms, rows[i : i + 1], VALIDATOR_COLUMNS, str(raised.kind[0]), sides[i], rows, i)
            for i, (_, raised, arms) in enumerate(closes)
        ]
    view = VIEWS[family]
    rows = view.newest([symbol.history for symbol, _, _ in closes])
    rows = rows if view.steps > 1 else rows[:, 0]
    return [
        InferenceRequest(family, arms, rows[i : i + 1], view.columns, None, 0, rows, i)
        for i, (_, _, arms) in enumerate(closes)
    ]


def _identity(slot: Slot) -> Identity:
    """Return the first fields of the answer of a slot's model."""
    return slot.family, slot.version, slot.digest, slot.verdict, "active" if slot.arm == "champion" else "shadow"


def _answer(about: Identity, request: InferenceRequest, row: RowOrFault) -> ModelAnswer:
    """Return the answer of one arm to a request; OK without a finite p is a fault of the model."""
    if isinstance(row, str):
        return ModelAnswer(*about, request.event, request.direction, reason=row)
    p, p_low, status, reason, novelty, label, members, device, fallback = row
    if status != "OK":
        p = p_low = None
    elif p is None or (isinstance(p, dict) and None in p.values()):
        why = f"{MODEL_FAULT}NaN: the model says OK and gives no number"
        return ModelAnswer(
            *about, request.event, request.direction, reason=why, members=members, device=device, fallback=fallback
        )
    return ModelAnswer(  # by place: a thousand of them a close
        *about, request.event, request.direction, p, p_low, label, status, reason, finite_or_none(novelty), members,
        None, device, fallback,
    )  # fmt: skip
