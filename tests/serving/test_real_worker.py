"""The decision service as BentoML really starts it: its connections, its lanes, its lines, on a real socket."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import bentoml
import httpx
import pytest
from bentoml.exceptions import BentoMLException
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr
from support.bentoml_process import wait_until_ready
from support.collector import collecting, spans_in
from support.decision_service import as_json
from support.serving_fixture import SYMBOL, make_bundle, publish, slot_entry

from benchmarks import fairness, inputs
from benchmarks.fixture import serve_arms
from benchmarks.ports import free_ports
from pipelines.errors import InputError, UnknownName
from pipelines.settings import ROOT, Settings
from serving.client import Client
from serving.inference.feature_client import FeatureClient
from serving.service import metrics
from serving.service.client_keys import LOOK_S, add_client, revoke_client
from serving.service.connection_limits import MAX_CONNECTIONS, TRANSFER_TIMEOUT_S

DECIDERS = 64


class Worker:
    def __init__(self, port, log, stand, traces, process):
        self.port, self.log, self.stand, self.traces, self.process = port, log, stand, traces, process
        self.url = f"http://127.0.0.1:{port}"

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=2 * TRANSFER_TIMEOUT_S)

    def lines(self):
        """What its log holds of the worker."""
        return [line for line in self.log.read_text().splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def worker(stand, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    (home / "bundles").mkdir()
    champion = make_bundle(home / "bundles", stand.columns, stand.rows)
    arms = {"validator": {"champion": slot_entry("1", champion), "challenger": None}}
    serve_arms(Settings(home=home), arms, publish(stand, home), datetime(2024, 1, 1, tzinfo=UTC))
    (port,) = free_ports(1)
    bentoml = Path(sys.executable).with_name("bentoml")
    command = [
        bentoml,
        "serve",
        "serving.service.decision_service:DecisionService",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    env = os.environ | {
        "BELLWETHER_HOME": str(home),
        "BELLWETHER_WRITE_KEY": "test-key",
        "BENTOML_DO_NOT_TRACK": "True",
    }
    with collecting() as (collector, traces), (home / "log").open("w") as log:
        env["BELLWETHER_OTLP_URL"] = collector
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        try:
            wait_until_ready(f"http://127.0.0.1:{port}", process, home / "log")
            yield Worker(port, home / "log", stand, traces, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.fixture(scope="module", autouse=True)
def half_sent(worker):
    """A request that is never whole, begun before the other tests; what its connection received and after how long."""
    received = {}

    def wait():
        with worker.connect() as connection:
            began = time.monotonic()
            head = f"POST /decide HTTP/1.1\r\nhost: 127.0.0.1:{worker.port}\r\nauthorization: Bearer test-key\r\n"
            kind = "content-type: application/json\r\ncontent-length: 100\r\n\r\nhalf"
            connection.sendall((head + kind).encode())
            received["answer"] = connection.recv(1 << 16)
            received["ended"] = connection.recv(1) == b""
            received["after"] = time.monotonic() - began

    waiting = threading.Thread(target=wait)
    waiting.start()
    yield lambda: (waiting.join(), received)[1]
    waiting.join()


def test_bentomls_own_client_decides_with_the_key_and_not_without(worker):
    """As the README shows it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the client leaves its folder to the end of the process
        with bentoml.SyncHTTPClient(worker.url, token="test-key") as client:
            decided, again = client.decide(symbol=SYMBOL), client.decide(SYMBOL, view="brief")
            many = client.decide(symbols=[SYMBOL, "ABC/USDT"], view="brief")["decisions"]
            seen = client.features(symbol=SYMBOL, family="validator")
            observed = client.observe(observations=[{"symbol": SYMBOL, "bars": [as_json(worker.stand.live[0])]}])
            outcome = {"decision_id": "never", "resolved_at": "2024-01-09T09:00:00Z", "label": 1, "barrier": "target",
                       "gross_bps": 60.0, "net_bps": 55.0, "cost_bps": 5.0}  # fmt: skip
            ended = client.outcome(outcomes=[outcome])["outcomes"]
            assert client.ready()["ready"]
            client._temp_dir.cleanup()
        assert ended[0]["kind"] == "UnknownName"
        assert (decided["symbol"], decided["arm"]) == (SYMBOL, "champion")
        assert (again["id"], again["reason"]) == (decided["id"], decided["reasons"][0])
        assert (many[0]["id"], many[1]["kind"]) == (decided["id"], "UnknownName")
        assert seen["families"]["validator"]["champion"]["version"] == "1"
        assert observed["observations"][0]["new"] == 1
        with bentoml.SyncHTTPClient(worker.url) as client:
            with pytest.raises(BentoMLException, match="Unauthorized"):
                client.decide(symbol=SYMBOL)
            client._temp_dir.cleanup()


def test_the_model_service_reads_a_row_here_and_is_refused_in_the_same_words(worker):
    async def asked(*names):
        client = FeatureClient(worker.url)
        try:
            return await client.features(*names)
        finally:
            await client.close()

    found = asyncio.run(asked(SYMBOL, "validator"))
    assert (found["symbol"], list(found["families"])) == (SYMBOL, ["validator"])
    with pytest.raises(UnknownName, match="no live state for 'ABC/USDT'; known: SIM/USDT"):
        asyncio.run(asked("ABC/USDT", "validator"))


def test_a_scrape_of_the_worker_has_every_metric_that_its_decisions_feed(worker):
    """Bars that close twice, a decision on each: counted once, in time; what is not known has no series."""
    headers = {"Authorization": "Bearer test-key"}
    with httpx.Client(base_url=worker.url, headers=headers) as client:
        client.post("/decide", json={"symbol": SYMBOL}).raise_for_status()  # from here on its closes count
        for part in (worker.stand.live[:8], worker.stand.live[8:23]):
            observed = client.post("/observe", json={"symbol": SYMBOL, "bars": [as_json(row) for row in part]}).json()
            assert len(observed["closed"]) == 1
            for _ in range(2):
                client.post("/decide", json={"symbol": SYMBOL}).raise_for_status()
        text = httpx.get(f"{worker.url}/metrics").text  # without the key
        level = client.get("/status").json()["service_level"]["windows"]["day"]
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    unknown = {metrics.DRIFT, metrics.DRIFT_THRESHOLD, metrics.E_VALUE, metrics.E_VALUE_WINS, metrics.CHAMPION_AGE}
    unknown |= {metrics.ALARMS}  # none was raised
    missing = [
        name for name, one in metrics.METRICS.items()
        if one not in unknown and name + ("_count" if one.kind == "histogram" else "") not in found
    ]  # fmt: skip
    assert missing == []
    closes = {labels["result"]: value for labels, value in found["bellwether_closes_total"]}
    assert (closes, level["met"], level["due"]) == ({"met": 2.0, "late": 0.0, "missed": 0.0}, 2, 2)
    stages = {labels["stage"]: value for labels, value in found["bellwether_stage_seconds_count"]}
    decided = sum(value for _, value in found["bellwether_decisions_total"])
    assert decided == stages["ledger"] == stages["fusion"] == stages["risk"]
    assert {name: count > 0 for name, count in stages.items()} == dict.fromkeys(metrics.STAGES, True)
    assert found["bellwether_close_to_decision_seconds_count"] == [({}, 2.0)]
    assert {labels["symbol"] for labels, _ in found["bellwether_data_age_seconds"]} == {SYMBOL}
    for name, one in metrics.METRICS.items():
        if one.kind == "histogram":
            assert sum(len(found[name + part]) for part in ("_bucket", "_sum", "_count")) <= metrics.MOST_SERIES


def test_a_client_decides_with_a_key_of_its_own_and_its_name_is_in_the_lines_of_what_was_refused(worker):
    home = Settings(home=worker.log.parent)
    _, key = add_client(home, "desk", ["decide"], datetime.now(UTC))
    at = home.model_copy(update={"write_key": SecretStr(key), "decision_port": worker.port})
    with Client(at) as client:
        assert client.decide(SYMBOL)["symbol"] == SYMBOL
        with pytest.raises(InputError, match=r"403.*needs scope bars"):
            client.observe(SYMBOL, worker.stand.live[:1])
        revoke_client(home, "desk")
        time.sleep(LOOK_S + 0.1)
        with pytest.raises(InputError, match=r"401.*revoked"):
            client.decide(SYMBOL)
    found = [line for line in map(json.loads, worker.lines()) if line.get("key_name") == "desk"]
    assert [(line["path"], line["kind"]) for line in found] == [("/observe", "ScopeMissing")]
    assert key not in worker.log.read_text()


def test_a_trace_has_the_request_and_the_stages_of_its_decision_and_none_is_of_a_probe(worker):
    def traced():
        """Name of the span → those below it, of each trace."""
        spans = spans_in(worker.traces)
        names = {span["spanId"]: span["name"] for span in spans}
        return {(names.get(span.get("parentSpanId")), span["name"]) for span in spans}

    httpx.get(f"{worker.url}/ready")
    deadline = time.monotonic() + 30  # sent every five seconds
    wanted = {("decision", name) for name in ("family", "policy", "ledger")} | {("POST /observe", "features")}
    wanted |= {("POST /decide", "decision"), (None, "POST /decide")}
    while not wanted <= traced() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert wanted <= traced(), traced()
    assert {name for _, name in traced() if "ready" in name or "metrics" in name} == set()


def test_odd_requests_over_a_real_socket_are_never_a_5xx_and_their_log_is_one_short_json_line_each(worker):
    rng = random.Random(11)
    right = {"/observe": {"symbol": SYMBOL, "bars": [as_json(worker.stand.live[0])]}, "/decide": {"symbol": SYMBOL}}
    right |= {path: {} for path in ("/status", "/ready", "/risk", "/account", "/models")}
    for _ in range(200):
        path = rng.choice(tuple(right))
        request, ends = inputs.request_of(rng, path, right[path], f"127.0.0.1:{worker.port}".encode(), "test-key")
        status, answer = inputs.answer_to(worker.port, request, ends)
        assert not status.startswith("5"), (request[:500], answer[-500:])
        assert status != "none", request[:500]
    lines = [json.loads(line) for line in worker.lines()]
    refused = [line for line in lines if line["logger"] == "bellwether.requests"]
    assert refused
    assert all(line.keys() >= {"time", "request_id", "path", "status", "kind", "client"} for line in refused)
    assert [line for line in lines if "traceback" in line] == []
    assert max(len(line) for line in worker.lines()) < 2000
    assert "Traceback" not in worker.log.read_text()
    assert "test-key" not in worker.log.read_text()


def test_no_caller_can_pass_for_another(worker):
    request = b"GET /nowhere HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 9.9.9.9\r\nx-request-id: forged-1\r\n\r\n"
    inputs.answer_to(worker.port, request, ends=False)
    time.sleep(1.1)  # the second in which lines were dropped is over
    inputs.answer_to(worker.port, request, ends=False)
    lines = [line for line in map(json.loads, worker.lines()) if line.get("request_id") == "forged-1"]
    assert {line["client"] for line in lines} == {"127.0.0.1"}


def test_observe_does_not_starve_next_to_many_decide_and_what_is_too_much_is_refused(worker):
    bars = iter([as_json(row) for row in worker.stand.live])
    figures = asyncio.run(fairness.observe_among_deciders(worker.url, "test-key", SYMBOL, bars, DECIDERS, 2.0))
    assert {status.split()[1] for status in figures["answers"]} <= {"200", "429"}
    assert figures["answers"]["observe 200"] > 5
    assert figures["observe_p50_ms"] < figures["decide_p50_ms"], figures  # without lanes it waits longer than they do
    crowd = asyncio.run(fairness.observe_among_deciders(worker.url, "test-key", SYMBOL, iter(()), 200, 1.0))
    head, body = crowd["refused"]
    assert b"retry-after: 1" in head.lower()
    assert json.loads(body).keys() == {"error", "kind", "fields"}
    assert json.loads(body)["kind"] == "TooManyRequests"


def test_a_connection_over_the_limit_is_refused(worker):
    with ExitStack() as connections:
        for _ in range(MAX_CONNECTIONS):
            connections.enter_context(worker.connect())
        deadline = time.monotonic() + 5
        received = b""
        while not received.startswith(b"HTTP/1.1 503") and time.monotonic() < deadline:
            with worker.connect() as one_more:
                one_more.settimeout(1.0)
                try:
                    received = one_more.recv(1 << 16)
                except (TimeoutError, ConnectionResetError):
                    received = b""
        assert received.startswith(b"HTTP/1.1 503")
        assert b"TooManyConnections" in received
    deadline = time.monotonic() + 5
    status, request = "", f"GET /livez HTTP/1.1\r\nhost: 127.0.0.1:{worker.port}\r\n\r\n".encode()
    while status != "200" and time.monotonic() < deadline:
        status, _ = inputs.answer_to(worker.port, request, ends=False)
    assert status == "200"


def test_a_request_that_is_never_whole_ends_after_ten_seconds(half_sent):
    received = half_sent()
    assert (received["answer"][:12], received["ended"]) == (b"HTTP/1.1 408", True)
    assert TRANSFER_TIMEOUT_S - 0.5 < received["after"] < 2 * TRANSFER_TIMEOUT_S


def test_a_stream_of_decisions_is_read_like_any_answer_and_ends_when_the_service_stops(worker):
    """The last test: it stops the service."""
    http = httpx.Client(base_url=worker.url, headers={"Authorization": "Bearer test-key"}, timeout=20.0)
    with http, http.stream("GET", "/decisions/stream", headers={"Last-Event-ID": "0"}) as response:
        lines = response.iter_lines()
        assert list(islice(lines, 5)) == ["retry: 1000", "id: 0", "", "id: 1", "event: decision"]
        decision = json.loads(next(lines).removeprefix("data: "))
        assert (decision["symbol"], decision["api"]) == (SYMBOL, 1)
        worker.process.send_signal(signal.SIGTERM)
        assert "event: dropped" not in list(lines)
        worker.process.wait(30)  # a stream that goes on would hold it for ever
