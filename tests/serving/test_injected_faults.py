"""Faults injected into the real decision service: what it answers, which tier it takes and shows, how it comes back."""

import json
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from support.decision_service import running_service
from support.service_probes import alarms, bar_with_event, eventually, next_decision, status
from support.serving_fixture import SYMBOL, make_bundle, slot_entry

from pipelines.models.runtime import load_bundle
from pipelines.models.views import select
from pipelines.settings import ROOT, load_params
from pipelines.signals.events import event_row
from pipelines.signals.validator_schema import VALIDATOR_COLUMNS
from serving.inference.model_client import run_inference
from serving.inference.model_slots import ModelSlots
from serving.service.schemas import PredictBatchRequest

RULES = load_params().tiers
AT = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def client(stand, home):
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), slot_entry("2", client.challenger, "refused"))
        yield client


def shown(client):
    """(tier, reason) as /status, /ready and /readyz show it: all the same."""
    found = [client.http.get(path).json() for path in ("/status", "/ready", "/readyz")]
    assert len({(f["tier"], f["tier_reason"], f["tier_multiplier"], f["health"]) for f in found}) == 1
    return found[0]["tier"], found[0]["tier_reason"]


def test_every_answer_shows_tier_reason_and_multiplier(client):
    decision = next_decision(client)
    assert decision["tier"] == 2
    assert decision["tier_reason"].startswith("TIER_2: validator champion decides; no regime champion serves")
    assert decision["tier_multiplier"] == RULES.size[2]
    assert decision["tier_reason"] in decision["reasons"]
    assert shown(client) == (2, decision["tier_reason"])
    stored = client.store().decision(decision["id"]).decision
    assert (stored.tier, stored.tier_reason) == (2, decision["tier_reason"])
    assert client.http.get("/readyz").json()["health"] == "HEALTHY"


def test_a_model_that_fails_abstains_alone_and_after_so_many_in_a_row_the_traditional_consensus_decides(client):
    stand = client.stand
    broken = make_bundle(client.home / "bundles", stand.columns, stand.rows, 0.4, broken=True)
    client.serve(slot_entry("3", broken), slot_entry("2", client.challenger, "refused"))
    tiers = []
    while len(tiers) < RULES.faults_in_row:
        decision = bar_with_event(client)
        answers = decision["models"]["validator"]
        assert answers["champion"]["reason"].startswith("MODEL_FAULT:")
        assert (answers["champion"]["status"], answers["champion"]["p"]) == ("ABSTAIN", None)
        assert not (answers["challenger"]["reason"] or "").startswith("MODEL_FAULT:")
        tiers.append(decision["tier"])
    assert tiers == [2] * (RULES.faults_in_row - 1) + [3]
    assert (decision["arm"], decision["tier_multiplier"]) == ("traditional", RULES.size[3])
    assert shown(client)[1].startswith("TIER_3: validator champion keeps failing")
    assert client.http.get("/readyz").json()["health"] == "DEGRADED"
    assert eventually(lambda: alarms(client, "tier_changed"))
    assert [a.detail[:35] for a in alarms(client, "model_fault")] == ["validator champion version 3: MODEL"]
    assert alarms(client, "tier_changed")[0].cleared_at is None
    client.serve(slot_entry("1", client.champion), None)  # the way out: roll back, then earn it
    back = [next_decision(client)["tier"] for _ in range(RULES.good_bars)]
    assert back == [3] * (RULES.good_bars - 1) + [2]
    assert eventually(lambda: all(a.cleared_at for a in alarms(client, "tier_changed")))


def test_a_store_that_cannot_be_written_is_an_emergency_and_nothing_is_decided(client):
    next_decision(client)
    file = client.home / "store.db"
    with closing(sqlite3.connect(file)) as other:
        other.execute("ALTER TABLE decisions RENAME TO taken_away")
    client.observe(15)
    answer = client.call("/decide", {"symbol": SYMBOL})
    assert (answer.status_code, answer.json()["tier"]) == (503, 4)
    assert "store not writable" in answer.json()["tier_reason"]
    with closing(sqlite3.connect(file)) as other:
        other.execute("ALTER TABLE taken_away RENAME TO decisions")
    assert eventually(lambda: client.http.get("/readyz").status_code == 200)
    back = [next_decision(client)["tier"] for _ in range(2 * RULES.good_bars)]
    assert back == [4] * (RULES.good_bars - 1) + [3] * RULES.good_bars + [2]


def test_an_emergency_tripped_by_a_person_lasts_until_a_person_resets_it(client):
    next_decision(client)
    client.store().trip("emergency", datetime.now(UTC), "exchange halted")
    assert eventually(lambda: status(client)["tier"] == 4)
    assert next_decision(client)["tier"] == 4
    client.store().reset("emergency", datetime.now(UTC), "an operator", "trading again")
    assert eventually(lambda: not status(client)["breakers"])
    assert next_decision(client)["tier"] == 4  # not yet: hysteresis


def test_a_restart_keeps_the_tier(stand, home):
    with running_service(stand, home) as client:
        client.serve(slot_entry("1", client.champion), None)
        client.store().trip("emergency", datetime.now(UTC), "drill")
        assert eventually(lambda: status(client)["tier"] == 4)
        client.store().reset("emergency", datetime.now(UTC), "an operator", "over")
    with running_service(stand, home) as client:
        assert shown(client)[0] == 4


# ---- models in another process


class Service:
    """A model service over real HTTP that does what a test wants: answer, sleep, say 503 or something else."""

    def __init__(self, home):
        self.slots = ModelSlots(home / "serving", home / "bundles", lambda *alarm: None)
        self.mood, self.calls = "answer", []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _handler(service):  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                request = PredictBatchRequest.model_validate_json(body)
                if service.mood == "gone":
                    self.close_connection = True
                    return
                service.calls.append(len(request.inference_requests))
                service.slots.refresh()
                content, status = run_inference(service.slots.snapshot, request), 200
                if service.mood == "sleep":
                    time.sleep(1.0)
                if service.mood == "overloaded":
                    content, status = {"error": "process is overloaded"}, 503
                if service.mood == "other":
                    content = {"hello": "world"}
                if service.mood == "liar":
                    for answer in content["predictions"]:
                        for arm in answer.values():
                            arm["digest"] = "f" * 64
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        return Handler


@contextmanager
def remote_service(stand, home, fallback):
    """A client of a decision service whose models run in another process; `fallback` of params.yaml."""
    service = Service(home)
    params = home / "params.yaml"
    params.write_text((ROOT / "params.yaml").read_text().replace("fallback: local ", f"fallback: {fallback} "))
    env = {"BELLWETHER_MODELS": "remote", "BELLWETHER_MODEL_PORT": str(service.port)}
    env |= {"BELLWETHER_PARAMS_FILE": str(params)}
    # time enough for a busy machine; the sleeper sleeps longer
    env |= {"BELLWETHER_MODEL_TIMEOUT_MS": "500", "BELLWETHER_MODEL_RETRY_SECONDS": "0.2"}
    with running_service(stand, home, **env) as client:
        client.service = service
        client.serve(slot_entry("1", client.champion), slot_entry("2", client.challenger, "refused"))
        # the small service has the same process id, so its acknowledgement alone says nothing of the symbol
        assert eventually(lambda: SYMBOL in status(client)["symbols"])
        yield client
    service.server.shutdown()
    service.server.server_close()


@pytest.fixture
def remote(stand, home):
    with remote_service(stand, home, "abstain") as client:
        yield client


def test_while_the_model_service_is_out_the_same_bundles_answer_here_and_the_record_says_why(stand, home):
    with remote_service(stand, home, "local") as client:
        assert "fallback" not in bar_with_event(client)["models"]["validator"]["champion"]
        client.service.mood = "overloaded"
        assert eventually(lambda: alarms(client, "model_service_out"))
        assert "the same bundles answer here" in alarms(client, "model_service_out")[0].detail
        decision = bar_with_event(client)
        assert (decision["tier"], decision["arm"]) == (2, "champion")
        stored = client.store().decision(decision["id"]).decision.models["validator"]
        for arm, digest in (("champion", client.champion), ("challenger", client.challenger)):
            answer = stored[arm]
            assert (answer.digest, answer.device, answer.status) == (digest, "cpu", "OK")
            assert answer.fallback.startswith("MODEL_SERVICE_DOWN: HTTP 503")
        client.service.mood = "answer"
        assert eventually(lambda: all(a.cleared_at for a in alarms(client, "model_service_out")))
        assert bar_with_event(client)["models"]["validator"]["champion"].get("fallback") is None


def test_remote_answers_are_those_of_the_bundle_here_bit_for_bit_by_one_call_a_request(remote):
    remote.service.calls.clear()
    decision = bar_with_event(remote)
    assert decision["tier"] == 2
    record = remote.store().decision(decision["id"])
    features, signals = np.frombuffer(record.features), np.frombuffer(record.signals)
    for arm, digest in (("champion", remote.champion), ("challenger", remote.challenger)):
        answer, model = decision["models"]["validator"][arm], load_bundle(remote.home / "bundles" / digest, None)
        row = event_row(features, signals, answer["direction"])[np.newaxis]
        here = model.predict(select(row, VALIDATOR_COLUMNS, model.columns))
        assert (answer["p"], answer["p_low"], answer["digest"]) == (here.p[0], here.p_low[0], digest)
    assert sorted(remote.service.calls)[-1] == 1  # both arms in one request
    before = len([n for n in remote.service.calls if n])
    remote.decide()
    assert len([n for n in remote.service.calls if n]) == before  # the decision made is found, no request is sent


@pytest.mark.parametrize(
    ("mood", "says"),
    [("sleep", "MODEL_SERVICE_SLOW"), ("overloaded", "MODEL_SERVICE_DOWN: HTTP 503"), ("other", "MODEL_SERVICE_DOWN")],
)
def test_while_the_model_service_is_out_the_traditional_consensus_decides_without_waiting_for_it(remote, mood, says):
    assert next_decision(remote)["tier"] == 2
    remote.service.mood = mood
    assert eventually(lambda: status(remote)["tier"] == 3)
    assert says in shown(remote)[1]
    decision = bar_with_event(remote)
    assert (decision["tier"], decision["arm"]) == (3, "traditional")
    for arm in ("champion", "challenger"):
        assert decision["models"]["validator"][arm]["reason"].startswith(says.split(":")[0])
    assert eventually(lambda: alarms(remote, "model_service_out"))
    remote.service.mood = "answer"
    assert eventually(lambda: all(a.cleared_at for a in alarms(remote, "model_service_out")))
    back = [next_decision(remote)["tier"] for _ in range(RULES.good_bars)]
    assert back == [3] * (RULES.good_bars - 1) + [2]


def test_a_model_service_that_is_gone_is_refused_at_once(remote):
    assert next_decision(remote)["tier"] == 2
    remote.service.mood = "gone"  # it hangs up on the connection that is open, and listens no more
    remote.service.server.shutdown()
    remote.service.server.server_close()
    assert eventually(lambda: status(remote)["tier"] == 3)
    assert eventually(lambda: "MODEL_SERVICE_DOWN: ConnectError" in status(remote)["tier_reason"])
    assert next_decision(remote)["arm"] == "traditional"


def test_another_model_than_the_requested_one_never_answers(remote):
    remote.service.mood = "liar"
    decision = bar_with_event(remote)
    assert decision["models"]["validator"]["champion"]["reason"].startswith("MODEL_SERVICE_BEHIND: ffffffffffff")
    assert decision["models"]["validator"]["champion"]["p"] is None
