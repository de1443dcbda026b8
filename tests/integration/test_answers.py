"""What the commands answer about a turn: lineage without a gap, JSON to work on, and status with every server down."""

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import datetime

import pytest
from support.stack import environment

from bellwether.operations.lineage import trace
from pipelines.sealed_folder import sha256
from serving.client import Client

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def emitted(stack):
    return stack.store.decisions(emitted_only=True, last=1)[0]


def test_the_lineage_of_an_emitted_decision_is_whole(stack, emitted):
    chain = stack.json("lineage", emitted.decision.id)
    assert chain["broken"] == []
    links, line = chain["links"], stack.store.promotions("validator")[0]
    assert links["feature_bytes_sha256"] == sha256(emitted.features)
    assert links["validator.champion.digest"] == line.digest
    assert links["validator.champion.run_id"] == line.run_id
    assert links["validator.champion.git_commit"] == line.git_commit
    assert links["validator.champion.data_hash"] == line.data_hash
    assert stack.installation.tracking.metrics(line.run_id)


def test_a_lost_bundle_and_a_lost_data_version_are_named(stack, emitted):
    line = stack.store.promotions("validator")[0]
    for lost in (stack.settings.bundles / line.digest, stack.installation.versions / line.data_hash):
        aside = lost.with_name(f"{lost.name}.aside")
        lost.rename(aside)
        try:
            assert any(lost.name in gap for gap in trace(stack.installation, emitted.decision.id)["broken"])
        finally:
            aside.rename(lost)
    assert trace(stack.installation, emitted.decision.id)["broken"] == []


def test_decide_answers_json_with_reasons_and_lineage(stack):
    decision = stack.json("decide")
    assert decision["symbol"] == "SIM/USDT"
    assert decision["reasons"] or decision["action"] != "NO_TRADE"
    assert trace(stack.installation, decision["id"])["broken"] == []


def test_the_model_service_predicts_from_a_symbol_what_the_decision_at_the_same_close_holds(stack):
    seen = stack.json("features")
    with Client(stack.settings) as client:
        decision = client.decide("SIM/USDT")
        assert seen == client.features("SIM/USDT")
        assert datetime.fromisoformat(seen["close"]) == datetime.fromisoformat(decision["as_of"])
        for family, arms in decision["models"].items():
            for arm, answer in arms.items():
                found = client.predict("SIM/USDT", family, arm)
                assert (found["digest"], found["close"]) == (answer["digest"], seen["close"])
                assert (found["p"], found["reason"]) == ([answer["p"]], [answer["reason"]]), (family, arm)
    assert decision["models"]
    assert all(len(part["values"] or ()) > 0 for family, part in seen["families"].items() if family != "validator")
    shown = stack.cli("features", "--family", "predictor").stdout
    assert all(column in shown for column in seen["families"]["predictor"]["values"])
    assert all(family in stack.cli("features").stdout for family in seen["families"])


def test_the_chart_joins_the_snapshot_and_what_was_decided_since(stack):
    found = stack.json("chart", "--last", "400")
    assert found["bars"] == 400
    assert found["without_signals"] == 0
    assert found["signals"]
    assert (stack.settings.home / "reports" / "chart-SIM-USDT.html").is_file()


def test_drift_answers_json_and_requests_no_second_retrain(stack):
    before = stack.store.retrain_requests("validator")
    found = stack.json("drift")
    assert found.keys() >= {"resolved", "summary", "report", "reasons"}
    assert stack.store.retrain_requests("validator") == before


def test_doctor_answers_json_and_finds_this_installation_sound(stack):
    findings = {finding["name"]: finding for finding in stack.json("doctor")}
    assert findings[f"port {stack.settings.mlflow_port}"]["detail"] == "mlflow is up"
    assert all(finding["state"] != "fail" for finding in findings.values())


def test_status_answers_from_stored_state_when_every_server_is_down(stack, tmp_path):
    """The same stored state in another folder, with ports on which nothing listens."""
    with (
        closing(sqlite3.connect(stack.settings.home / "store.db")) as live,
        closing(sqlite3.connect(tmp_path / "store.db")) as copy,
    ):
        live.backup(copy)
    shutil.copy(stack.settings.home / "chain_key", tmp_path)  # it proves who is champion
    (tmp_path / "workspace" / "data").mkdir(parents=True)
    for name in ("data.dvc", "data/manifest.json"):
        shutil.copy(stack.settings.workspace / name, tmp_path / "workspace" / name)
    for name in ("learning", "serving"):
        shutil.copytree(stack.settings.home / name, tmp_path / name)
    done = stack.cli("status", "--json", env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    offline, live = json.loads(done.stdout), stack.json("status")
    differing = ("services", "health", "health_reason", "universe", "feed")  # of the processes themselves
    told = ("symbol", "clock", "timeframe", "newest_bar", "tier", "left_out")  # the service alone knows ages
    off, on = ([[one[n] for n in told] for one in status["universe"]] for status in (offline, live))
    assert off == on
    assert {n: offline[n] for n in offline if n not in differing} == {n: live[n] for n in live if n not in differing}
    assert (offline["health"], "does not answer" in offline["health_reason"]) == ("UNHEALTHY", True)
    assert {service["state"] for service in offline["services"].values()} == {"down"}
