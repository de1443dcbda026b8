"""One JSON line a refused request, an id on every answer, and no line that a caller could write."""

import asyncio
import json
import logging
import time

import pytest
from support.decision_service import KEY, running_service

from serving.service import json_logs
from serving.service.json_logs import JsonLines, RateLimitFilter, RequestLog, is_server_fault, request_id
from serving.service.readiness import Readiness


@pytest.fixture(scope="module")
def client(stand, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "bundles").mkdir()
    with running_service(stand, home) as client:
        yield client


@pytest.fixture
def lines(monkeypatch):
    """What the service writes, as a worker would: every logger into one place, JSON lines."""
    written = []

    class Keep(logging.Handler):
        def emit(self, record):
            written.append(self.format(record))

    handler = Keep()
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(json_logs._AT_MOST, "_passed", 0)  # each test has a second of its own
    yield written
    logging.getLogger().removeHandler(handler)


def test_a_refused_request_is_one_line_with_its_id_and_no_traceback(client, lines):
    answer = client.call("/observe", {"symbol": 1}, KEY | {"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    (line,) = map(json.loads, lines)
    assert (line["request_id"], line["path"], line["status"], line["kind"]) == ("mine-1", "/observe", 400, "BadRequest")
    assert (line["method"], line["client"], line["level"], "traceback" in line) == (
        "POST",
        "testclient",
        "WARNING",
        False,
    )


def test_what_is_answered_with_200_is_no_line_but_has_an_id(client, lines):
    answer = client.http.get("/status")
    assert (answer.status_code, len(answer.headers["x-request-id"]), lines) == (200, 32, [])


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, "a\tb", "é", "a;b", 'a"b', "../x", "a,b"])
def test_an_id_that_is_not_sane_is_replaced(client, given):
    sent = [(b"x-request-id", given.encode("latin-1"))]
    shown = client.http.get("/livez", headers=sent).headers["x-request-id"]
    assert shown != given
    assert json_logs.SANE_ID.fullmatch(shown)


FORGED = '\n{"level":"CRITICAL","message":"forged"}\r\n\x1b[2J\u2028'


def test_no_key_path_or_value_of_a_caller_begins_or_ends_a_line(client, lines):
    client.call("/decide", {FORGED: FORGED})
    client.call("/decide", {"symbol": "a", "symbols": [FORGED]})
    client.http.get("/%0a%7b%22level%22%3a%22CRITICAL%22%7d%1b%5b2J")
    client.call("/status", {"a\nb": 1})
    assert len(lines) == 4
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line)["level"] == "WARNING"


def test_neither_key_nor_body_nor_query_is_written(client, lines):
    secret = "5ecre7" * 6
    headers = {"Authorization": f"Bearer {secret}", "Cookie": f"session={secret}"}
    client.call("/observe", {"symbol": secret * 3}, headers)
    client.call("/status", {"field": secret}, headers)
    client.http.get(f"/nothing?key={secret}", headers=headers)
    assert len(lines) >= 2
    assert not any(secret in line for line in lines)


def test_too_many_requests_fill_no_disk(client, lines):
    began = time.monotonic()
    for _ in range(200):
        client.call("/decide", {})
    assert len(lines) <= json_logs.REFUSALS_A_SECOND * (2 + time.monotonic() - began) < 200


def test_at_most_so_many_lines_a_second_and_the_next_one_carries_how_many_were_dropped():
    now = [0.0]
    filtered = RateLimitFilter(3, lambda: now[0])
    records = [logging.makeLogRecord({"levelno": logging.WARNING, "fields": {"status": 400}}) for _ in range(9)]
    assert [filtered.filter(record) for record in records[:7]] == [True] * 3 + [False] * 4
    fault = logging.makeLogRecord({"levelno": logging.ERROR})
    assert filtered.filter(fault)  # never dropped
    now[0] = 1.0
    assert filtered.filter(records[7])
    assert records[7].fields == {"status": 400, "dropped_before": 4}
    assert filtered.filter(records[8])
    assert "dropped_before" not in records[8].fields


# ---- faults of ours


async def answer_of(app):
    messages = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": [(b"x-request-id", b"mine-2")], "client": None}
    await RequestLog(app)(scope, receive, send)
    return messages[0]["status"], dict(messages[0]["headers"]), json.loads(messages[1]["body"])


def test_an_unforeseen_error_is_a_500_in_our_format_and_once_in_the_log_with_its_traceback(lines):
    async def broken(scope, receive, send):
        raise ZeroDivisionError("a secret of ours\nand more")

    status, headers, content = asyncio.run(answer_of(broken))
    assert (status, content["kind"], content["fields"], headers[b"x-request-id"]) == (500, "ServerFault", [], b"mine-2")
    assert "secret" not in json.dumps(content)
    faults = [line for line in map(json.loads, lines) if "traceback" in line]
    assert len(faults) == 1
    assert (faults[0]["request_id"], faults[0]["level"]) == ("mine-2", "ERROR")
    assert "ZeroDivisionError" in faults[0]["traceback"]


def test_a_fault_in_an_endpoint_is_logged_whole_and_answered_in_our_format(client, lines, monkeypatch):
    def broken(self):
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(Readiness, "worst_tier", broken)
    answer = client.call("/status", {}, KEY | {"x-request-id": "mine-3"})
    assert (answer.status_code, answer.json()["kind"], answer.json()["fields"]) == (500, "ServerFault", [])
    assert answer.headers["x-request-id"] == "mine-3"
    faults = [line for line in map(json.loads, lines) if "ZeroDivisionError: of ours" in line.get("traceback", "")]
    assert [fault["request_id"] for fault in faults] == ["mine-3"]


def test_only_what_a_caller_got_wrong_is_kept_out_of_bentomls_log():
    from bentoml.exceptions import BadInput, BentoMLException
    from pydantic import BaseModel, ValidationError

    def record(error):
        return logging.makeLogRecord({"exc_info": (type(error), error, None), "levelno": logging.ERROR})

    class Sent(BaseModel):
        name: str

    with pytest.raises(ValidationError) as wrong:
        Sent.model_validate({})
    assert not is_server_fault(record(wrong.value))
    assert not is_server_fault(record(BadInput("x")))
    for error in (ZeroDivisionError(), BentoMLException("x"), RuntimeError(), OSError(28, "full")):
        assert is_server_fault(record(error))
    assert is_server_fault(logging.makeLogRecord({"levelno": logging.ERROR}))


def test_a_path_or_method_that_is_not_ours_is_refused_in_our_format(client):
    for path, status in (("/nothing", 404), ("/observe", 405)):
        answer = client.http.get(path, headers=KEY)
        assert (answer.status_code, answer.json().keys() == {"error", "kind", "fields"}) == (status, True)


def test_our_own_lines_carry_the_id_of_the_request_they_belong_to(lines):
    async def speaking(scope, receive, send):
        logging.getLogger("bellwether.decision").error("a line")
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"plain"})

    asyncio.run(answer_of(speaking))
    assert [json.loads(line)["request_id"] for line in lines] == ["mine-2"] * 2
    assert request_id.get() is None
