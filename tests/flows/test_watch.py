"""What dies holding something gives it back, and a retrain is followed once; no server is needed for either."""

import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from flows import promotion
from flows import site as sites
from flows.site import Site, is_gone, leased, now
from flows.watch import behind, fallen_retrains, registry_answers
from pipelines.errors import LeaseHeld
from pipelines.settings import Settings, load_params
from pipelines.store import Promotion, Store
from serving.generation import GENERATION_FILE, read_generation, write_generation


@pytest.fixture
def site(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield Site(Settings(home=tmp_path, store_url=""), load_params(), store)
    store.close()


@pytest.fixture(scope="module")
def dead():
    """Who held something on this machine and has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return f"{socket.gethostname()}:{ended.pid}"


def test_only_a_process_of_this_machine_that_has_ended_is_gone(dead):
    assert is_gone(dead)
    assert not is_gone(sites.holder())
    assert not is_gone(f"elsewhere:{dead.rpartition(':')[2]}")
    assert not is_gone("somebody else")


def test_the_lease_of_the_dead_is_taken_at_once_and_that_of_the_living_is_not(site, dead):
    site.store.acquire_lease("workspace", dead, now(), timedelta(hours=1))
    with leased(site, "workspace", timedelta(minutes=1), patience_s=0.0):
        pass
    site.store.acquire_lease("workspace", "elsewhere:1", now(), timedelta(hours=1))
    with pytest.raises(LeaseHeld, match="elsewhere:1"), leased(site, "workspace", timedelta(minutes=1), patience_s=0.0):
        pass


def test_a_lease_outlives_its_length_while_its_holder_works(site):
    with leased(site, "workspace", timedelta(seconds=0.6), patience_s=0.0):
        time.sleep(1.2)
        with pytest.raises(LeaseHeld):
            site.store.acquire_lease("workspace", "elsewhere:1", now(), timedelta(minutes=1))
    site.store.acquire_lease("workspace", "elsewhere:1", now(), timedelta(minutes=1))


def test_a_retrain_whose_worker_died_twice_is_failed_with_an_alarm_and_a_new_one_may_be_asked_for(site, dead):
    asked = site.store.request_retrain("validator", "drift", now(), timedelta(0))
    for _ in range(2):
        assert site.store.claim_retrain(dead, now(), timedelta(0), "validator").id == asked.id
    assert site.store.claim_retrain("elsewhere:1", now(), timedelta(minutes=1), "validator") is None
    (told,) = fallen_retrains(site, {})
    assert "died twice" in told
    assert [(r.state, r.attempts) for r in site.store.retrain_requests("validator")] == [("failed", 2)]
    assert [alarm.kind for alarm in site.store.alarms()] == ["retrain_died"]
    assert site.store.request_retrain("validator", "drift", now(), timedelta(0)).state == "queued"


def test_a_retrain_that_was_begun_again_a_moment_ago_is_not_begun_a_third_time(site, dead):
    asked = site.store.request_retrain("validator", "drift", now(), timedelta(0))
    site.store.claim_retrain(dead, now(), timedelta(0), "validator")
    assert fallen_retrains(site, {(asked.id, 1): now()}) == []


def test_a_retrain_at_work_elsewhere_is_left_alone_until_its_lease_runs_out(site):
    site.store.request_retrain("validator", "drift", now(), timedelta(0))
    site.store.claim_retrain("elsewhere:1", now(), timedelta(minutes=1), "validator")
    assert fallen_retrains(site, {}) == []


def test_a_generation_file_is_behind_when_it_names_another_champion_than_the_ledger(site):
    assert not behind(site)
    line = Promotion(
        at=now(), actor="tests", action="promote", family="validator", arm="champion", from_version=None,
        to_version="1", digest="a" * 64, run_id="r", data_hash="d", git_commit="c", verdict_passed=True, reason="t",
    )  # fmt: skip
    site.store.add_promotion(line)
    assert behind(site)
    arm = {"version": "1", "digest": "a" * 64}
    write_generation(site.settings.serving_dir, {"validator": {"champion": arm}}, None, now())
    assert not behind(site)
    (site.settings.serving_dir / "generation.json").write_text("{")
    assert behind(site)


def test_a_broken_generation_file_is_behind_and_is_written_anew(site, monkeypatch):
    file = site.settings.serving_dir / GENERATION_FILE
    file.parent.mkdir()
    file.write_text('{"generation": 2')
    newest = {"data_hash": "h", "digest": "d" * 64, "path": str(file.parent / "warm" / ("d" * 64))}
    monkeypatch.setattr(promotion, "install_warm_start", lambda site: newest)  # no snapshot is there to publish from
    assert behind(site)
    assert promotion.publish(site) > 2
    assert read_generation(file.parent)["warm_start"] == newest
    assert not behind(site)


def test_a_registry_that_does_not_answer_is_one_alarm_until_it_answers(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    site = Site(Settings(home=tmp_path, store_url="", mlflow_port=port), load_params(), store)
    assert [registry_answers(site), registry_answers(site)] == [False, False]
    assert [(alarm.kind, alarm.severity) for alarm in store.alarms()] == [("registry_down", "high")]
    server = HTTPServer(("127.0.0.1", port), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert registry_answers(site)
    assert store.alarms() == []
    server.shutdown()
    server.server_close()
    store.close()


class Healthy(BaseHTTPRequestHandler):
    """As MLflow's health check answers."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Nobody reads it."""
