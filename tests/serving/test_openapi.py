"""`docs.json` by the official validator, and against what the services really take and answer."""

import json

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate
from openapi_spec_validator.validation.exceptions import OpenAPIValidationError
from pydantic import ValidationError

from serving.service.endpoint_pages import PAGES, TAGS
from serving.service.openapi import CALLS, complete_spec

KEYED = ("/observe", "/decide", "/outcome", "/fill", "/predict", "/predict_batch")


@pytest.fixture(scope="module", params=["decision", "models"])
def written(request):
    """What BentoML writes of a service, as it goes over the wire."""
    from serving.service.decision_service import DecisionService
    from serving.service.model_service import ModelService

    service = DecisionService if request.param == "decision" else ModelService
    return json.loads(json.dumps(service.openapi_spec.asdict()))


def test_what_bentoml_writes_is_not_valid_and_what_we_make_of_it_is(written):
    with pytest.raises(OpenAPIValidationError):
        validate(written)
    before = json.dumps(written)
    spec = complete_spec(written, needs_key=KEYED)
    validate(spec, cls=OpenAPIV31SpecValidator)
    assert json.dumps(written) == before
    assert complete_spec(spec, needs_key=KEYED) == spec  # made again, it stays as it is
    assert spec["paths"].keys() == written["paths"].keys()


def test_schemathesis_reads_every_call(written):
    import schemathesis

    spec = complete_spec(written, needs_key=())
    labels = {found.ok().label for found in schemathesis.openapi.from_dict(spec).get_all_operations()}
    assert {f"POST {path}" for path in CALLS if path in written["paths"]} <= labels


def test_keyed_calls_declare_the_bearer_key_and_only_they(written):
    spec = complete_spec(written, needs_key=KEYED)
    assert spec["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    for path, item in spec["paths"].items():
        for operation in item.values():
            assert operation.get("security") == ([{"bearer": []}] if path in KEYED else None), path
            if path in PAGES:
                assert operation["description"].endswith("Needs the bearer key." if path in KEYED else "Needs no key.")


def test_every_call_declares_our_errors_in_their_one_shape(written):
    spec = complete_spec(written, needs_key=KEYED)
    for item in spec["paths"].values():
        for operation in item.values():
            for status in ("400", "401", "404", "409", "411", "413", "415", "429"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}


def test_fields_that_may_be_null_and_limits_are_declared(written):
    spec = complete_spec(written, needs_key=KEYED)
    if "/fill" not in spec["paths"]:
        return
    operation = spec["paths"]["/fill"]["post"]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert {"type": "null"} in answer["properties"]["slippage_bps"]["anyOf"]
    taken = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]
    assert (taken["id"]["maxLength"], taken["price"]["anyOf"][0]["exclusiveMinimum"]) == (64, 0)


def test_every_call_has_a_summary_a_description_a_group_and_examples(written):
    spec = complete_spec(written, needs_key=KEYED)
    assert [tag["name"] for tag in spec["tags"]] == [name for name in TAGS if name in {t["name"] for t in spec["tags"]}]
    for path, item in spec["paths"].items():
        for method, operation in item.items():
            assert (len(operation["tags"]), operation["tags"][0] in TAGS) == (1, True), path
            assert 10 < len(operation["summary"]) < 70
            assert len(operation["description"]) > len(operation["summary"])
            (answer,) = operation["responses"]["200"]["content"].values()
            assert "example" in answer
            assert method == "get" or "example" in operation["requestBody"]["content"]["application/json"]
            assert path not in PAGES or answer["example"]["api"] == 1


@pytest.mark.parametrize("path", CALLS)
def test_the_examples_are_valid_requests_and_answers(path):
    taken, answered = CALLS[path]
    taken[0].model_validate_json(json.dumps(PAGES[path].request))
    fitting = []
    for model in answered:
        try:
            model.model_validate_json(json.dumps(PAGES[path].answer))
            fitting.append(model)
        except ValidationError:
            continue
    assert fitting
    assert PAGES.keys() == CALLS.keys()
