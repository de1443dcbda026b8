"""Odd input is refused in our shape: never a 5xx, never stored, never echoed whole."""

import base64
import json
import random

import numpy as np
import pytest
from pydantic import ValidationError
from support.decision_service import KEY, as_json, running_service
from support.serving_fixture import SYMBOL, slot_entry

from benchmarks import inputs
from pipelines.errors import BadShape
from serving.inference.model_client import unpacked
from serving.service.schemas import ObserveRequest, Packed, PredictBatchRequest, PredictRequest

JSON = KEY | {"Content-Type": "application/json"}
CALLS = ("/observe", "/decide", "/outcome", "/fill", "/features", "/models", "/status", "/risk", "/account", "/ready")
READS = (
    "/features",
    "/models",
    "/status",
    "/risk",
    "/account",
    "/ready",
    "/readyz",
    "/livez",
    "/healthz",
    "/docs.json",
    "/schema.json",
)


@pytest.fixture(scope="module")
def served(stand, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "bundles").mkdir()
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        yield client


def refused(answer, status=400):
    """The answer is an error in our shape."""
    assert answer.status_code == status, answer.text[:500]
    assert answer.json().keys() >= {"error", "kind", "fields"}
    return answer.json()


# ---- what the content type says


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=b",
        "application/x-www-form-urlencoded", "application/vnd.bentoml+pickle", "application/json; charset=utf-16", ";",
    ],
)  # fmt: skip
def test_no_content_type_reaches_bentomls_forms_files_and_pickles(served, kind):
    many = b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' * 1001 + b"--b--"
    headers = KEY | {"Content-Type": kind}
    for path in CALLS:
        for body in (b"", b"--b\r\nbad header\r\n\r\nx\r\n--b--", many):
            answer = served.http.post(path, content=body, headers=headers)
            assert answer.status_code < 500, (path, answer.text[:300])
    for path in READS:
        for method in ("GET", "HEAD"):
            answer = served.http.request(method, path, content=many, headers=headers)
            assert answer.status_code < 500, (method, path, answer.text[:300])


# ---- times


TIMES = (
    "9999-12-31T23:59-23:59", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00+23:59", "0001-01-01T00:00:00Z",
    "1969-12-31T23:59:59Z", "2200-01-01T00:00:01Z", "2262-04-11T23:47:17Z", "1970-01-01T00:00:00+00:01",
    "1704787200", "-1", "soon", "", 0, 1704787200, 1e400, -1, True, None, [], {},
)  # fmt: skip


@pytest.mark.parametrize("when", TIMES)
def test_a_time_out_of_range_or_without_text_is_a_400_wherever_a_time_is_taken(served, when):
    bar = as_json(served.stand.live[0])
    record = {"known_at": when}
    outcome = {"decision_id": "a", "label": 1, "barrier": "time", "gross_bps": 0, "net_bps": 0, "cost_bps": 0}
    for path, body in (
        ("/observe", {"symbol": SYMBOL, "bars": [bar | {"open_time": when}]}),
        ("/observe", {"symbol": SYMBOL, "books": [record | {"bids": [[1, 1]], "asks": [[2, 1]]}]}),
        ("/observe", {"symbol": SYMBOL, "context": [record | {"field": "open_interest", "value": 1}]}),
        ("/outcome", outcome | {"resolved_at": when}),
        ("/fill", {"id": "a", "decision_id": "a", "status": "rejected", "at": when}),
    ):
        error = refused(served.http.post(path, content=json.dumps(body), headers=JSON))
        if isinstance(when, str):
            assert "time" in error["error"] or "datetime" in error["error"]


@pytest.mark.parametrize("when", ["1970-01-01T00:00:00Z", "2200-01-01T00:00:00Z", "2024-01-09T08:00:00+05:30"])
def test_a_time_within_the_range_is_taken(served, when):
    served.call("/decide", {"symbol": SYMBOL})
    body = {"id": "a", "decision_id": "unknown", "status": "rejected", "at": when}
    assert served.call("/fill", body).status_code == 404  # as far as the ledger


# ---- numbers and names


@pytest.mark.parametrize(
    "value",
    ["NaN", "Infinity", "1e400", "-1e400", "1" + "0" * 400, "1e19", "5e-324", "true", '"1.5"', "[]", "{}", '"x"'],
)
@pytest.mark.parametrize("field", ["open", "high", "volume"])
def test_a_number_that_is_none_or_out_of_range_is_a_400_naming_its_field(served, field, value):
    bar = as_json(served.stand.live[0])
    text = json.dumps({"symbol": SYMBOL, "bars": [bar | {field: "HERE"}]}).replace('"HERE"', value)
    before = len(served.store().bars(SYMBOL))
    assert f"bars.0.{field}" in refused(served.http.post("/observe", content=text, headers=JSON))["error"]
    assert len(served.store().bars(SYMBOL)) == before


@pytest.mark.parametrize("name", ["", "a\x00b", "\x00", "a\nb", "\x1b[2J", "\x7f", "\x85", "x" * 65, "x" * 900_000])
def test_a_name_with_control_characters_or_too_long_is_a_400_and_not_echoed_whole(served, name):
    outcome = {
        "resolved_at": "2024-01-09T08:00:00Z",
        "label": 1,
        "barrier": "time",
        "gross_bps": 0,
        "net_bps": 0,
        "cost_bps": 0,
    }
    fill = {"id": "a", "decision_id": "a", "status": "rejected", "at": "2024-01-09T08:00:00Z"}
    for path, body in (
        ("/observe", {"symbol": name, "bars": [as_json(served.stand.live[0])]}),
        ("/decide", {"symbol": name}),
        ("/decide", {"symbols": [SYMBOL, name]}),
        ("/outcome", outcome | {"decision_id": name}),
        ("/fill", fill | {"id": name}),
        ("/fill", fill | {"decision_id": name}),
    ):
        answer = served.call(path, body)
        refused(answer)
        assert len(answer.content) < 2000
    if name:
        refused(served.call("/fill", fill | {"reason": (name * 301)[:2000]}))


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"symbol":' * 50_000, b"\xff\xfe", b"\xef\xbb\xbf{}",
        '{"symbol":"a"}'.encode("utf-16"), b'{"symbol":"\\ud800"}', b'{"symbol":"a","symbol":["a"]}', b"null", b"true",
        b"[]", b'""', b"1", b" ", b"\x00", b"{}{}", b'{"symbol":"a"', b"\x1f\x8b\x08\x00",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/observe", "/decide", "/outcome", "/fill", "/status"])
def test_what_is_not_a_json_object_of_ours_is_a_400(served, path, body):
    if body == b" " and path in ("/status",):
        pytest.skip("this call takes no fields")
    refused(served.http.post(path, content=body, headers=JSON))


def test_right_bodies_with_an_odd_value_somewhere_are_never_a_5xx_and_leave_the_service_as_it_was(served):
    rng = random.Random(7)
    outcome = {"decision_id": "a", "resolved_at": "2024-01-09T08:00:00Z", "label": 1, "barrier": "time"}
    right = {
        "/observe": {
            "symbol": SYMBOL, "bars": [as_json(row) for row in served.stand.live[:2]],
            "books": [{"known_at": "2024-01-09T08:00:00Z", "bids": [[1.0, 1.0, 2]], "asks": [[2.0, 1.0]],
                       "tape": {"vpin": 1}}],
        },
        "/decide": {"symbol": SYMBOL},
        "/outcome": outcome | {"gross_bps": 1.0, "net_bps": 1.0, "cost_bps": 0.0},
        "/fill": {"id": "a", "decision_id": "a", "status": "filled", "price": 1.0, "at": "2024-01-09T08:00:00Z"},
    }  # fmt: skip
    for i in range(400):
        path = rng.choice(tuple(right))
        body = inputs.body_of(rng, right[path])
        answer = served.http.post(path, content=body, headers=JSON)
        assert answer.status_code < 500, (i, path, body[:500], answer.text[:500])
        assert "x-request-id" in answer.headers
    assert served.http.get("/readyz").status_code == 200


@pytest.mark.parametrize(
    "path",
    ["//observe", "/observe/", "/%6fbserve", "/observe%00",
     "/" + "a" * 9000, "/static_content/%2e%2e/x", "/static_content/a%00b", "/%ff"]
)  # fmt: skip
def test_an_odd_path_is_answered_below_500(served, path):
    for method in ("GET", "POST", "HEAD", "DELETE", "OPTIONS", "PUT", "PATCH", "TRACE", "FOO"):
        assert served.http.request(method, path, headers=JSON, follow_redirects=False).status_code < 500


# ---- packed arrays


@pytest.mark.parametrize(
    "shape",
    [[2**32, 2**32], [2**62], [2**62, 4], [2**31, 2**33], [2**63, 2],
     [1, 2**64 + 1], [-1, -1], [0, 7], [], [1] * 4, [1.0], ["1"], [True]],
)  # fmt: skip
def test_a_shape_that_would_wrap_around_is_refused_with_the_request(shape):
    request = {"family": "validator", "digests": {}, "columns": ["a"], "rows": {"shape": shape, "f8": ""}}
    with pytest.raises(ValidationError):
        PredictBatchRequest.model_validate_json(json.dumps({"inference_requests": [request]}))


@pytest.mark.parametrize(
    ("shape", "values"), [([65_536, 65_536, 65_536], 0), ([65_536, 65_536], 1), ([2, 3], 5), ([1], 2)]
)
def test_a_shape_its_values_do_not_fill_is_refused_whatever_the_product(shape, values):
    f8 = base64.b64encode(np.zeros(values).tobytes()).decode()
    with pytest.raises(BadShape):
        unpacked(Packed(shape=shape, f8=f8))


def test_rows_by_name_and_by_order_take_numbers_and_nothing_else():
    for rows in ([["1"]], [[True]], [[1e19]], [["x" * 65]]):
        with pytest.raises(ValidationError):
            PredictRequest.model_validate_json(json.dumps({"family": "validator", "rows": rows}))
    with pytest.raises(ValidationError):
        PredictRequest.model_validate_json(json.dumps({"family": "validator", "features": [{"a\x00": 1.0}]}))


def test_a_bar_of_integers_and_one_of_floats_are_the_same():
    bar = {"open_time": "2024-01-09T08:00:00Z", "open": 1, "high": 2, "low": 1, "close": 2}
    request = ObserveRequest.model_validate_json(json.dumps({"symbol": "A", "bars": [bar]}))
    assert request.matrix()[0, 1:5].tolist() == [1.0, 2.0, 1.0, 2.0]
