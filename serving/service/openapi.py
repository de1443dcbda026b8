"""`docs.json` as OpenAPI 3.1 that says what is really taken and answered.

BentoML writes version 3.0.2 with schemas of 3.1 in it, leaves out that a field may be null, and knows nothing of our
errors, our key, or GET. Schemas are those of the requests themselves.
"""

from collections.abc import Collection
from typing import Any

from pydantic import BaseModel

from serving.service.schemas import (
    DecideRequest,
    DecideResponse,
    EmptyRequest,
    FillRequest,
    FillResponse,
    ObserveRequest,
    ObserveResponse,
    OutcomeRequest,
    OutcomeResponse,
    PredictBatchRequest,
    PredictBatchResponse,
    PredictRequest,
    PredictResponse,
)

# path → what is taken, what is answered (None = an object of any fields)
CALLS: dict[str, tuple[type[BaseModel], type[BaseModel] | None]] = {
    "/observe": (ObserveRequest, ObserveResponse),
    "/decide": (DecideRequest, DecideResponse),
    "/outcome": (OutcomeRequest, OutcomeResponse),
    "/fill": (FillRequest, FillResponse),
    "/predict": (PredictRequest, PredictResponse),
    "/answer": (PredictBatchRequest, PredictBatchResponse),
    "/models": (EmptyRequest, None),
    "/status": (EmptyRequest, None),
    "/risk": (EmptyRequest, None),
    "/ready": (EmptyRequest, None),
}
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
REFUSALS = {
    "400": "what was sent cannot be taken",
    "401": "the bearer key is missing or another",
    "403": "the page that asks is of another origin",
    "404": "no such symbol, decision, family or path",
    "405": "this path takes another method",
    "408": "the request was not whole in time",
    "409": "not now; the error says what has to come first",
    "411": "the body has no Content-Length",
    "413": "the body is too large",
    "415": "the body is not application/json",
    "429": "too many of this kind at once; ask again after Retry-After seconds",
    "500": "a fault of the service; the log has it under x-request-id",
    "503": "the store or the service is not ready; asking again is safe",
}


def complete_spec(spec: dict[str, Any], *, needs_key: Collection[str]) -> dict[str, Any]:
    """A valid OpenAPI 3.1 document out of the one that BentoML wrote; `spec` is left as it is.

    needs_key    paths whose calls need the bearer key
    """
    schemas: dict[str, Any] = {"Error": ERROR}
    paths = {
        path: {method: _operation(path, method, told, schemas, needs_key) for method, told in item.items()}
        for path, item in spec["paths"].items()
    }
    for path, item in paths.items():
        if path in CALLS and CALLS[path][0] is EmptyRequest:  # what only reads is GET too
            post = item["post"]
            named = f"{post['operationId']}_read"
            item["get"] = {k: v for k, v in post.items() if k != "requestBody"} | {"operationId": named}
    bearer = {"type": "http", "scheme": "bearer", "description": "BELLWETHER_WRITE_KEY, or the file write_key"}
    return {
        **spec,
        "openapi": "3.1.0",
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"bearer": bearer}},
    }


def _operation(
    path: str, method: str, told: dict[str, Any], schemas: dict[str, Any], needs_key: Collection[str]
) -> dict[str, Any]:
    kept = {name: value for name, value in told.items() if value is not None}
    kept.setdefault("operationId", f"{method}_{path.strip('/')}")
    responses = {"200": next(r for status, r in kept["responses"].items() if str(status) == "200")}
    if path in CALLS:
        taken, answered = CALLS[path]
        body = _of(taken, schemas, "validation")
        kept["requestBody"] = {"required": taken is not EmptyRequest, "content": {"application/json": {"schema": body}}}
        schema = {"type": "object"} if answered is None else _of(answered, schemas, "serialization")
        responses = {"200": _answer("what the call answers", schema)}
        if path == "/ready":
            responses["503"] = _answer("not ready; the checks say why", schema)
    for status, why in REFUSALS.items():
        responses.setdefault(status, _answer(why, {"$ref": REF.format(model="Error")}))
    kept["responses"] = responses
    if path in needs_key:
        kept["security"] = [{"bearer": []}]
    return kept


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _of(model: type[BaseModel], schemas: dict[str, Any], mode: Any) -> dict[str, Any]:
    """The model's own JSON Schema; what it refers to goes to `schemas`."""
    schema = model.model_json_schema(ref_template=REF, mode=mode)
    schemas |= schema.pop("$defs", {})
    return schema
