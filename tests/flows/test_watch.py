"""Leases of dead processes are released, dead retrains restarted, faults isolated; without a server."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest

from bellwether.operations.feed import learning
from flows import reconciler
from flows.reconciler import is_behind_ledger, recover_dead_retrains, registry_answers
from flows.support import promotion
from flows.support.installation import Installation, hold_lease, holder, is_gone, now, run_periodically
from pipelines.errors import LeaseHeld
from pipelines.settings import Settings, load_params
from pipelines.store import Promotion, Store
from serving.inference.generation import GENERATION_FILE, read_generation, write_generation


@pytest.fixture
def installation(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    yield Installation(Settings(home=tmp_path, store_url=""), load_params(), store)
    store.close()


@pytest.fixture(scope="module")
def dead():
    """Return the holder name of a process of this machine that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return f"{socket.gethostname()}:{ended.pid}"


def test_only_a_process_of_this_machine_that_has_ended_is_gone(dead):
    assert is_gone(dead)
    assert not is_gone(holder())
    assert not is_gone(f"elsewhere:{dead.rpartition(':')[2]}")
    assert not is_gone("somebody else")


def test_a_killed_process_is_gone_before_its_parent_takes_note(installation):
    killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    name = f"{socket.gethostname()}:{killed.pid}"
    installation.store.acquire_lease("promotion", name, now(), timedelta(hours=1))
    assert not is_gone(name)
    assert learning(installation.store) == "a promotion runs"
    killed.kill()
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still listed
    assert psutil.pid_exists(killed.pid)
    assert is_gone(name)
    assert learning(installation.store) is None
    with hold_lease(installation, "promotion", timedelta(minutes=1), timeout_s=0.0):
        killed.wait()


def test_the_lease_of_the_dead_is_taken_at_once_and_that_of_the_living_is_not(installation, dead):
    installation.store.acquire_lease("workspace", dead, now(), timedelta(hours=1))
    with hold_lease(installation, "workspace", timedelta(minutes=1), timeout_s=0.0):
        pass
    installation.store.acquire_lease("workspace", "elsewhere:1", now(), timedelta(hours=1))
    with (
        pytest.raises(LeaseHeld, match="elsewhere:1"),
        hold_lease(installation, "workspace", timedelta(minutes=1), timeout_s=0.0),
    ):
        pass


def test_a_lease_outlives_its_length_while_its_holder_works(installation):
    with hold_lease(installation, "workspace", timedelta(seconds=0.6), timeout_s=0.0):
        time.sleep(1.2)
        with pytest.raises(LeaseHeld):
            installation.store.acquire_lease("workspace", "elsewhere:1", now(), timedelta(minutes=1))
    installation.store.acquire_lease("workspace", "elsewhere:1", now(), timedelta(minutes=1))


def test_a_retrain_whose_worker_died_twice_is_failed_with_an_alarm_and_a_new_one_may_be_requested(installation, dead):
    request = installation.store.request_retrain("validator", "drift", now(), timedelta(0))
    for _ in range(2):
        assert installation.store.claim_retrain(dead, now(), timedelta(0), "validator").id == request.id
    assert installation.store.claim_retrain("elsewhere:1", now(), timedelta(minutes=1), "validator") is None
    (line,) = recover_dead_retrains(installation, {})
    assert "died twice" in line
    assert [(r.state, r.attempts) for r in installation.store.retrain_requests("validator")] == [("failed", 2)]
    assert [alarm.kind for alarm in installation.store.alarms()] == ["retrain_died"]
    assert installation.store.request_retrain("validator", "drift", now(), timedelta(0)).state == "queued"


def test_a_retrain_that_was_restarted_a_moment_ago_is_not_started_a_third_time(installation, dead):
    request = installation.store.request_retrain("validator", "drift", now(), timedelta(0))
    installation.store.claim_retrain(dead, now(), timedelta(0), "validator")
    assert recover_dead_retrains(installation, {(request.id, 1): now()}) == []


def test_a_retrain_at_work_elsewhere_is_left_alone_until_its_lease_runs_out(installation):
    installation.store.request_retrain("validator", "drift", now(), timedelta(0))
    installation.store.claim_retrain("elsewhere:1", now(), timedelta(minutes=1), "validator")
    assert recover_dead_retrains(installation, {}) == []


def test_a_generation_file_is_behind_when_it_names_another_champion_than_the_ledger(installation):
    assert not is_behind_ledger(installation)
    line = Promotion(
        at=now(), actor="tests", action="promote", family="validator", arm="champion", from_version=None,
        to_version="1", digest="a" * 64, run_id="r", data_hash="d", git_commit="c", verdict_passed=True, reason="t",
    )  # fmt: skip
    installation.store.add_promotion(line)
    assert is_behind_ledger(installation)
    arm = {"version": "1", "digest": "a" * 64}
    write_generation(installation.settings.serving_dir, {"validator": {"champion": arm}}, {}, now())
    assert not is_behind_ledger(installation)
    (installation.settings.serving_dir / "generation.json").write_text("{")
    assert is_behind_ledger(installation)


def test_a_broken_generation_file_is_behind_and_is_rewritten(installation, monkeypatch):
    file = installation.settings.serving_dir / GENERATION_FILE
    file.parent.mkdir()
    file.write_text('{"generation": 2')
    newest = {"data_hash": "h", "digest": "d" * 64, "path": str(file.parent / "warm" / ("d" * 64))}
    monkeypatch.setattr(
        promotion, "install_warm_starts", lambda installation: {"SIM/USDT": newest}
    )  # no snapshot is there to publish from
    assert is_behind_ledger(installation)
    assert promotion.publish(installation) > 2
    assert read_generation(file.parent)["warm_starts"] == {"SIM/USDT": newest}
    assert not is_behind_ledger(installation)


def test_a_registry_that_does_not_answer_is_one_alarm_until_it_answers(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = Store.open(f"sqlite:///{tmp_path / 'store.db'}")
    installation = Installation(Settings(home=tmp_path, store_url="", mlflow_port=port), load_params(), store)
    assert [registry_answers(installation), registry_answers(installation)] == [False, False]
    assert [(alarm.kind, alarm.severity) for alarm in store.alarms()] == [("registry_down", "high")]
    server = HTTPServer(("127.0.0.1", port), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    assert registry_answers(installation)
    assert store.alarms() == []
    server.shutdown()
    server.server_close()
    store.close()


class Healthy(BaseHTTPRequestHandler):
    """Answer as MLflow's health check."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Log nothing."""


# ---- one fault leaves the others alone


class Registry:
    """Stand in for MLflow: two moved aliases, and families that cannot be read."""

    def __init__(self, broken=()):
        self.broken, self.requested, self.listed = set(broken), [], 0

    def aliases(self):
        self.listed += 1
        return {"pattern": {"champion": "7"}, "regime": {"champion": "7"}}  # never promoted: moved by hand

    def version_by_alias(self, family, alias):
        self.requested.append(family)
        if family in self.broken:
            raise ConnectionError(f"500 from the registry\nfor {family}")

    def set_alias(self, family, alias, version):
        pass

    def version(self, family, version):
        self.requested.append(family)
        raise ConnectionError(f"{family} {version}: no answer")


@pytest.fixture
def registered(installation, monkeypatch):
    """An installation whose registry answers, and the registry."""
    registry = Registry()
    monkeypatch.setattr(reconciler.processes, "is_responding", lambda settings, name: True)
    monkeypatch.setattr(
        promotion,
        "install_warm_starts",
        lambda installation: {
            "SIM/USDT": {
                "data_hash": "h",
                "digest": "d" * 64,
                "path": str(installation.settings.serving_dir / "warm" / ("d" * 64)),
            }
        },
    )
    installation.__dict__["tracking"] = registry
    return installation, registry


def open_alarms(installation):
    return [(alarm.kind, alarm.detail.partition(":")[0]) for alarm in installation.store.alarms()]


def test_a_poll_asks_the_registry_once_whatever_the_number_of_families(registered):
    installation, registry = registered
    reconciler.poll(installation, {})
    assert registry.listed == 1


def test_a_fault_of_one_family_in_the_registry_is_its_own_alarm_and_the_others_go_on(registered, caplog):
    installation, registry = registered
    registry.broken = {"pattern"}
    tried = {}
    assert reconciler.poll(installation, {}, tried) == []
    assert {"pattern", "regime"} <= set(registry.requested)
    assert open_alarms(installation) == [("family_fault", "pattern alias")]
    assert "500 from the registry" in caplog.text
    assert "\n" not in installation.store.alarms()[0].detail
    registry.requested.clear()
    reconciler.poll(installation, {}, tried)
    assert "regime" in registry.requested  # polled each time
    assert "pattern" not in registry.requested  # cools down
    assert caplog.text.count("Traceback") == 1
    tried["pattern"] -= reconciler.FAULT_COOLDOWN
    registry.broken.clear()
    reconciler.poll(installation, {}, tried)
    assert open_alarms(installation) == []
    assert tried == {}


def promoted(installation, family, version, digest):
    line = Promotion(
        at=now(), actor="tests", action="promote", family=family, arm="champion", from_version=None,
        to_version=version, digest=digest, run_id="r", data_hash="d", git_commit="c", verdict_passed=True, reason="t",
    )  # fmt: skip
    installation.store.add_promotion(line)


def test_a_champion_that_cannot_be_fetched_keeps_its_predecessor_and_does_not_hold_up_another_family(registered):
    installation, _ = registered
    for digest in ("a" * 64, "b" * 64):
        (installation.settings.bundles / digest).mkdir(parents=True)
    promoted(installation, "validator", "1", "a" * 64)
    promotion.publish(installation)
    promoted(installation, "validator", "2", "c" * 64)  # whose bundle is nowhere
    promoted(installation, "predictor", "1", "b" * 64)
    tried = {}
    assert [line for line in reconciler.poll(installation, {}, tried) if "published" in line]
    families = read_generation(installation.settings.serving_dir)["families"]
    assert families["predictor"]["champion"]["version"] == "1"
    assert families["validator"]["champion"]["version"] == "1"
    assert ("family_fault", "validator bundle") in open_alarms(installation)
    before = read_generation(installation.settings.serving_dir)["generation"]
    for _ in range(3):  # nothing new: no new generation
        tried.clear()
        assert not any("published" in line for line in reconciler.poll(installation, {}, tried))
    assert read_generation(installation.settings.serving_dir)["generation"] == before
    (installation.settings.bundles / ("c" * 64)).mkdir()
    tried.clear()
    reconciler.poll(installation, {}, tried)
    assert read_generation(installation.settings.serving_dir)["families"]["validator"]["champion"]["version"] == "2"
    assert ("family_fault", "validator bundle") not in open_alarms(installation)


@pytest.mark.parametrize("spoil", [lambda content: content.pop("warm_starts"), lambda content: content.clear()])
def test_a_generation_file_that_was_edited_by_hand_is_rewritten_from_the_ledger(registered, spoil):
    installation, _ = registered
    (installation.settings.bundles / ("a" * 64)).mkdir(parents=True)
    promoted(installation, "validator", "1", "a" * 64)
    promotion.publish(installation)
    file = installation.settings.serving_dir / GENERATION_FILE
    content = json.loads(file.read_text())
    spoil(content)
    file.write_text(json.dumps(content))
    promotion.publish(installation)
    again = read_generation(file.parent)
    assert again["families"]["validator"]["champion"]["version"] == "1"
    assert again["warm_starts"]["SIM/USDT"]["digest"] == "d" * 64


def test_the_reconciler_survives_its_faults_logs_each_once_and_clears_the_alarm_when_they_are_gone(
    registered, monkeypatch, caplog
):
    installation, _ = registered
    faults = [OSError("disk full"), OSError("disk full"), KeyError("odd")]
    polls = []

    def poll(installation, restarted, tried):
        polls.append(1)
        if faults:
            raise faults.pop(0)
        return []

    monkeypatch.setattr(reconciler, "poll", poll)
    monkeypatch.setattr(reconciler.market_runs, "poll", lambda installation, at: [])
    monkeypatch.setattr(reconciler.SymbolForms, "follow", lambda forms: None)
    monkeypatch.setattr(reconciler, "POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(reconciler, "open_installation", lambda: installation)
    with reconciler.watch_in_background():
        deadline = time.monotonic() + 5.0
        while not (len(polls) > 5 and open_alarms(installation) == []) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert len(polls) > 5
    assert open_alarms(installation) == []
    assert [alarm.kind for alarm in installation.store.alarms(open_only=False)] == ["watch_fault", "watch_fault"]
    assert caplog.text.count("Traceback") == 2


def test_a_periodic_call_outlives_a_fault_that_cannot_even_be_alarmed():
    calls = []

    def act():
        calls.append(1)
        raise OSError("store locked")

    with run_periodically(act, 0.01, "tests"):
        time.sleep(0.2)
    assert len(calls) > 3
