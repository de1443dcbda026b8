"""`docs.json` as OpenAPI 3.1 that describes what is really taken and answered.

BentoML writes version 3.0.2 with schemas of 3.1 in it, leaves out that a field may be null, and knows nothing of our
errors, our key, GET, or examples. Schemas are those of the requests and answers themselves; texts and examples are
those of `endpoint_pages`.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from pipelines.contracts import JsonObject
from serving.service.answers import (
    Answer,
    BriefResponse,
    DecisionsResponse,
    FeaturesResponse,
    FillResponse,
    FullResponse,
    ObserveBatchResponse,
    ObserveResponse,
    OutcomeBatchResponse,
    OutcomeResponse,
    PredictBatchResponse,
    PredictResponse,
    SymbolPredictResponse,
)
from serving.service.endpoint_pages import PAGES, PROBE_PAGES, TAGS
from serving.service.schemas import (
    DecideRequest,
    EmptyRequest,
    FeaturesRequest,
    FillRequest,
    ObserveBatchRequest,
    ObserveRequest,
    OutcomeBatchRequest,
    OutcomeRequest,
    PredictBatchRequest,
    PredictRequest,
)

READ = (EmptyRequest,)  # what a call takes that only reads
QUERIES: dict[str, type[BaseModel]] = {"/features": FeaturesRequest}  # reads whose fields a GET has in its query
# path → what may be taken, what may be answered (Answer = an object of any fields)
CALLS: dict[str, tuple[tuple[type[BaseModel], ...], tuple[type[BaseModel], ...]]] = {
    "/observe": ((ObserveRequest, ObserveBatchRequest), (ObserveResponse, ObserveBatchResponse)),
    "/decide": ((DecideRequest,), (FullResponse, BriefResponse, DecisionsResponse)),
    "/outcome": ((OutcomeRequest, OutcomeBatchRequest), (OutcomeResponse, OutcomeBatchResponse)),
    "/fill": ((FillRequest,), (FillResponse,)),
    "/predict": ((PredictRequest,), (PredictResponse, SymbolPredictResponse)),
    "/predict_batch": ((PredictBatchRequest,), (PredictBatchResponse,)),
    "/features": ((FeaturesRequest,), (FeaturesResponse,)),
    "/models": (READ, (Answer,)),
    "/status": (READ, (Answer,)),
    "/risk": (READ, (Answer,)),
    "/account": (READ, (Answer,)),
    "/ready": (READ, (Answer,)),
}
NOTHING_ADDED: Mapping[str, JsonObject] = {}
REF = "#/components/schemas/{model}"
ERROR = {
    "type": "object",
    "title": "Error",
    "description": "What was refused and why, the fields that are wrong, and what to do about each.",
    "required": ["error", "kind", "fields"],
    "properties": {
        "error": {"type": "string"},
        "kind": {"type": "string"},
        "fields": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "problem", "remedy"],
                "properties": {name: {"type": "string"} for name in ("field", "problem", "remedy")},
            },
        },
    },
}
ERRORS_BY_STATUS = {
    "400": "what was sent cannot be taken",
    "401": "the bearer key is missing or another",
    "403": "the page that sent it is of another origin",
    "404": "no such symbol, decision, family or path",
    "405": "this path takes another method",
    "408": "the request was not whole in time",
    "409": "not now; the error says what has to happen first",
    "411": "the body has no Content-Length",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "429": "too many of this kind at once; retry after Retry-After seconds",
    "500": "a fault of the service; the log has it under x-request-id",
    "503": "the store or the service is not ready; a retry is safe",
}


WHICH_KEY = "BELLWETHER_WRITE_KEY, the file write_key, or the key of a client that has the scope"


def complete_spec(
    spec: JsonObject, *, needs_key: Collection[str], added: Mapping[str, JsonObject] = NOTHING_ADDED
) -> JsonObject:
    """Return a valid OpenAPI 3.1 document built from BentoML's own `spec`, which is not changed.

    needs_key    paths whose calls need the bearer key
    added        path → its operations, of calls that BentoML does not know
    """
    schemas: JsonObject = {"Error": ERROR}
    paths = {
        path: {method: _operation(path, method, written, schemas, needs_key) for method, written in item.items()}
        for path, item in {**spec["paths"], **added}.items()
    }
    for path, item in paths.items():
        if path in QUERIES or (path in CALLS and CALLS[path][0] is READ):  # what only reads is GET too
            post = item["post"]
            read = {"operationId": f"{post['operationId']}_read"}
            item["get"] = {k: v for k, v in post.items() if k != "requestBody"} | read | _parameters(path)
    bearer = {"type": "http", "scheme": "bearer", "description": WHICH_KEY}
    used = {tag for item in paths.values() for operation in item.values() for tag in operation.get("tags", ())}
    return {
        **spec,
        "openapi": "3.1.0",
        "tags": [{"name": name, "description": text} for name, text in TAGS.items() if name in used],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"bearer": bearer}},
    }


def _operation(
    path: str, method: str, written: Mapping[str, Any], schemas: JsonObject, needs_key: Collection[str]
) -> JsonObject:
    """Return one operation with its texts, examples, schemas, errors and key; adds what it refers to to `schemas`."""
    operation = {name: value for name, value in written.items() if value is not None}
    operation.setdefault("operationId", f"{method}_{path.strip('/')}")
    responses = {"200": next(r for status, r in operation["responses"].items() if str(status) == "200")}
    if path in CALLS:
        taken, answered = CALLS[path]
        schema = _schema_of(answered, schemas, "serialization")
        operation["requestBody"] = {
            "required": taken is not READ,
            "content": {"application/json": {"schema": _schema_of(taken, schemas, "validation")}},
        }
        responses = {"200": _response("the answer", schema)}
        if path == "/ready":
            responses["503"] = _response("not ready; the checks say why", schema)
        _add_page(operation, responses["200"], path, path in needs_key)
    elif path in PROBE_PAGES:
        summary, description, example = PROBE_PAGES[path]
        operation |= {"summary": summary, "description": f"{description} Needs no key.", "tags": ["State"]}
        media = "text/plain" if isinstance(example, str) else "application/json"
        responses = {"200": {"description": "the answer", "content": {media: {"example": example}}}}
    for status, reason in ERRORS_BY_STATUS.items():
        responses.setdefault(status, _response(reason, {"$ref": REF.format(model="Error")}))
    operation["responses"] = responses
    if path in needs_key:
        operation["security"] = [{"bearer": []}]
    return operation


def _parameters(path: str) -> JsonObject:
    """Return {"parameters"} of a GET that has its fields in the query; {} of one that has none."""
    if path not in QUERIES:
        return {}
    schema = QUERIES[path].model_json_schema(ref_template=REF)
    required, example = schema.get("required", ()), PAGES[path].request
    return {
        "parameters": [
            {"name": name, "in": "query", "required": name in required, "schema": field}
            | ({"example": example[name]} if name in example else {})
            for name, field in schema["properties"].items()
        ]
    }


def _add_page(operation: JsonObject, response: JsonObject, path: str, needs_key: bool) -> None:
    """Add summary, description, tag and examples of a path to its operation and to its answer."""
    page = PAGES[path]
    key = "Needs the bearer key." if needs_key else "Needs no key."
    operation |= {"summary": page.summary, "description": f"{page.description} {key}", "tags": [page.tag]}
    operation["requestBody"]["content"]["application/json"]["example"] = page.request
    response["content"]["application/json"]["example"] = page.answer


def _response(description: str, schema: JsonObject) -> JsonObject:
    """Return a JSON response of OpenAPI."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _schema_of(
    models: tuple[type[BaseModel], ...], schemas: JsonObject, mode: Literal["validation", "serialization"]
) -> JsonObject:
    """Return the JSON Schema of a model, or of any of several; adds the models it refers to to `schemas`."""
    whole = [TypeAdapter(model).json_schema(ref_template=REF, mode=mode) for model in models]
    for schema in whole:
        schemas |= schema.pop("$defs", {})
    return whole[0] if len(whole) == 1 else {"anyOf": whole}
