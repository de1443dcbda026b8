"""Typed answers of both services, and how an endpoint's content becomes one: JSON with the version of the API in it.

Our own refusals are 400 (bad input), 404 (unknown name), 409 (not now) or 503 (a service that is needed is down). Every
error body is {"error", "kind", "fields": [{"field", "problem", "remedy"}]}.
"""

import functools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypeVar, get_type_hints

import msgspec
from pydantic import AwareDatetime, BaseModel, create_model
from starlette.responses import Response

from pipelines.contracts import Decision, JsonObject
from pipelines.errors import BellwetherError, InputError, ServiceDown, UnknownName
from pipelines.record_codec import plain_number
from pipelines.store import decision_payload
from serving.service.http_guard import error_response, json_response
from serving.service.schemas import DecideRequest, Request, Unreadable

API: Literal[1] = 1  # version of requests and answers; it changes when a client has to
T = TypeVar("T")
# For decisions alone, at a sixth of json's time: the ledger refused every figure that is not finite, and msgspec would
# write one as null.
_FINITE = msgspec.json.Encoder(enc_hook=plain_number)


class Answer(BaseModel):
    """What every answer carries; errors are {"error", "kind", "fields"}."""

    api: Literal[1] = API


class QuarantinedBar(BaseModel):
    """A bar that was stored and is not folded; `reason` is COLLAR (far outside the range before it), SET_ASIDE or
    TAKEN_OUT (by a person)."""

    open_time: AwareDatetime
    reason: str


class RefusedSymbol(BaseModel):
    """What stands in a batch for a symbol that was refused: why, the kind of the error, and the fields that are wrong.
    symbol: as it was sent; null where that is no name."""

    symbol: str | None
    error: str
    kind: str
    fields: list[dict[str, str]]


class ObservedSymbol(BaseModel):
    """received, new: bars sent, and folded now; records: books and context values stored now; closed: open times of the
    decision bars they closed; quarantined: bars sent that are held back until a person acts; reason: why decisions must
    wait."""

    symbol: str
    received: int
    new: int
    records: int
    closed: list[AwareDatetime]
    quarantined: list[QuarantinedBar]
    reason: str | None


class ObserveResponse(ObservedSymbol, Answer):
    """The answer to one observation."""


class ObserveBatchResponse(Answer):
    """The answer to `observations`, in their order."""

    observations: list[ObservedSymbol | RefusedSymbol]


class ObserveCallResponse(ObserveResponse):
    """Both in one: BentoML's client reads the fields that it knows, and drops the others."""

    observations: list[JsonObject]


class BriefDecision(BaseModel):
    """What a trader needs of a decision. Prices in quote currency, size as a fraction of equity; `reason` is the first
    of the decision's reasons."""

    id: str
    symbol: str
    action: Literal["BUY", "SELL", "NO_TRADE"]
    size: float
    entry: float | None
    stop: float | None
    take_profits: list[float]
    expiry: datetime | None
    p: float | None
    arm: str
    tier: int
    reason: str | None


class BriefResponse(BriefDecision, Answer):
    """The answer to one `symbol` with `view` brief."""


class DecisionsResponse(Answer):
    """The answer to `symbols`, in their order: full decisions, or brief ones with `view` brief."""

    decisions: list[Decision | BriefDecision | RefusedSymbol]


_DECISION_FIELDS: dict[str, Any] = {name: (hint, ...) for name, hint in get_type_hints(Decision).items()}
# The answer to one `symbol`: every field of a Decision.
FullResponse: type[BaseModel] = create_model("FullResponse", __base__=Answer, **_DECISION_FIELDS)
# All in one: BentoML's client reads the fields that it knows, and drops the others.
DecideResponse: type[BaseModel] = create_model(
    "DecideResponse", __base__=Answer, decisions=(list[JsonObject], ...), reason=(str | None, ...), **_DECISION_FIELDS
)


class RefusedOutcome(BaseModel):
    """What stands in a batch for an outcome that was refused; decision_id: as it was sent, null where that is no name.
    The rest as of a RefusedSymbol."""

    decision_id: str | None
    error: str
    kind: str
    fields: list[dict[str, str]]


class ResolvedDecision(BaseModel):
    """What stands in a batch for an outcome that was taken; new: false where the same was stored before."""

    decision_id: str
    new: bool


class OutcomeResponse(ResolvedDecision, Answer):
    """The answer to one outcome."""


class OutcomeBatchResponse(Answer):
    """The answer to `outcomes`, in their order."""

    outcomes: list[ResolvedDecision | RefusedOutcome]


class OutcomeCallResponse(OutcomeResponse):
    """Both in one: BentoML's client reads the fields that it knows, and drops the others."""

    outcomes: list[JsonObject]


class FillResponse(Answer):
    """slippage_bps: how much worse than the decision's entry the price was; null where nothing was filled."""

    id: str
    new: bool
    slippage_bps: float | None
    breakers: list[str]


class ServedArm(BaseModel):
    """The model of an arm, the columns it reads, and why it is not asked at this close; reason null: it is."""

    version: str
    digest: str
    columns: list[str]
    reason: str | None


class FamilyFeatures(BaseModel):
    """What the models of a family see at a close. values: column → number, or the newest `steps` numbers, oldest first,
    of a family that looks back; null = missing; null as a whole where there is nothing to see, and `reason` says why.
    event, direction: the signal that the row is about, and its side, of the family that decides. An arm is null where
    none is served."""

    steps: int
    event: str | None
    direction: int
    reason: str | None
    values: dict[str, float | None] | dict[str, list[float | None]] | None
    champion: ServedArm | None
    challenger: ServedArm | None


class FeaturesResponse(Answer):
    """close: of the newest decision bar, by the clock of its market; families: by name."""

    symbol: str
    close: AwareDatetime
    generation: int
    families: dict[str, FamilyFeatures]


class PredictResponse(Answer):
    """One entry a row. p and p_low are numbers of a model with one class, class → number of one with several; null
    where the model abstains, and `reason` says why. `label` is its one word; `members` are the models it is made of."""

    family: str
    arm: str
    version: str
    digest: str
    device: str
    generation: int
    classes: list[str]
    p: list[float | dict[str, float | None] | None]
    p_low: list[float | dict[str, float | None] | None]
    status: list[str]
    reason: list[str | None]
    novelty: list[float | None]
    label: Any  # list[str | None] | None: BentoML's client cannot read a list that its schema knows and that is null
    members: dict[str, list[Any]] | None


class SymbolPredictResponse(PredictResponse):
    """The answer to a `symbol`: the same of its newest row, with the close that it is of, by the clock of its market,
    and the event that it is about."""

    symbol: str
    close: AwareDatetime
    event: str | None
    direction: int


class PredictBatchResponse(Answer):
    """One entry a request, in order: arm → predictions with their arrays packed, or {"fault": why}."""

    generation: int
    predictions: list[JsonObject]


# ---- from content to a response -------------------------------------------------------------------------------------


def answer(content: Mapping[str, object], status: int = 200) -> Response:
    """Return the content as JSON with the version of the API."""
    return json_response({"api": API, **content}, status)


def decisions_response(request: DecideRequest, decisions: Sequence[Decision | BellwetherError]) -> Response:
    """Return the response of `/decide` to durable decisions; arguments and errors as of `decisions_answer`."""
    content = {"api": API, **decisions_answer(request, decisions)}
    return Response(_FINITE.encode(content), media_type="application/json")


def decision_json(decision: Decision) -> bytes:
    """Return a durable decision as `/decide` answers it, on one line."""
    return _FINITE.encode({"api": API, **decision_payload(decision)})


def json_endpoint(
    request: type[Request],
) -> Callable[[Callable[[Any, Any], Awaitable[Any]]], Callable[..., Awaitable[Response]]]:
    """Answer an endpoint's plain content as JSON, and our own errors with their message.

    request  what the endpoint takes. BentoML's `input_spec` of the same type lets its client name the fields, and
             passes them here one by one; the endpoint gets them as one object
    """

    def decorate(endpoint: Callable[[Any, Any], Awaitable[Any]]) -> Callable[..., Awaitable[Response]]:
        """Wrap the endpoint."""

        @functools.wraps(endpoint)
        async def answered(service: Any, /, **fields: Any) -> Response:
            """Run the endpoint; a Response of its own passes through."""
            try:
                content = await endpoint(service, request.of_fields(fields))
            except BellwetherError as error:
                return error_response(_status_of(error), type(error).__name__, str(error))
            return content if isinstance(content, Response) else answer(content)

        return answered

    return decorate


def _status_of(error: BellwetherError) -> int:
    """Return the HTTP status of one of our errors."""
    if isinstance(error, UnknownName):
        return 404
    if isinstance(error, InputError):
        return 400
    return 503 if isinstance(error, ServiceDown) else 409


def decisions_answer(request: DecideRequest, decisions: Sequence[Decision | BellwetherError]) -> Mapping[str, object]:
    """Return the content of `/decide`: one decision for `symbol`, {"decisions"} for `symbols`; in its view.

    decisions  one for each symbol, in their order. Raises the error of a single one
    """
    view, made = brief if request.view == "brief" else decision_payload, iter(decisions)
    if request.symbols is None:
        (decision,) = made
        if isinstance(decision, BellwetherError):
            raise decision
        return view(decision)
    return {"decisions": [_entry("symbol", name, made, view) for name in request.symbols]}


def batch_answer(
    field: str, key: str, sent: Iterable[Any], answers: Iterable[Mapping[str, Any] | BellwetherError]
) -> Mapping[str, object]:
    """Return the content of an answer to a batch: an answer an entry, or why it was refused, in their order.

    field    of the batch, in request and answer; key: the field that names an entry of `sent`
    answers  one for each entry that could be read, in their order
    """
    found = iter(answers)
    return {
        field: [_entry(key, one if isinstance(one, Unreadable) else getattr(one, key), found, dict) for one in sent]
    }


def _entry(
    key: str, name: str | Unreadable, answers: Iterator[T | BellwetherError], view: Callable[[T], JsonObject]
) -> JsonObject:
    """Return what stands in a batch for one entry: the next answer in its view, or why it was refused.

    key  what the name is: of a symbol, or the id of a decision
    """
    if isinstance(name, Unreadable):
        return {key: name.name, "error": name.error, "kind": "BadRequest", "fields": name.fields[:50]}
    found = next(answers)
    if isinstance(found, BellwetherError):
        return {key: name, "error": str(found), "kind": type(found).__name__, "fields": []}
    return view(found)


def brief(decision: Decision) -> JsonObject:
    """Return the fields of BriefDecision as JSON."""
    full = decision_payload(decision)
    fields = {name: full[name] for name in BriefDecision.model_fields if name != "reason"}
    return fields | {"reason": next(iter(decision.reasons), None)}
