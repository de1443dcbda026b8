import json
import os
import re
import socket
import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import UTC, datetime

import pytest

from bellwether.operations import doctor
from flows.support import processes, service_table
from pipelines.settings import ROOT, Settings
from pipelines.store import Store


def by_name(findings):
    return {finding.name: finding for finding in findings}


@pytest.fixture
def here(tmp_path):
    return Settings(home=tmp_path / "home")


def test_every_finding_that_is_not_ok_has_a_remedy(here):
    findings = doctor.examine(here)
    assert {
        "python",
        "packages",
        "git",
        "mlflow library",
        "write access",
        "disk",
        "memory",
        "kernels",
        "old runs",
    } <= set(by_name(findings))
    assert all((finding.state == "ok") == (finding.remedy == "") for finding in findings)
    assert not here.home.exists()


def test_this_installation_has_the_locked_packages():
    assert doctor.packages(ROOT / "requirements.lock").state == "ok"


def test_another_version_or_a_missing_package_is_named(tmp_path):
    (tmp_path / "requirements.lock").write_text("numpy==1.0\nno-such-thing==2.0\n")
    finding = doctor.packages(tmp_path / "requirements.lock")
    assert finding.state == "fail"
    assert "locked 1.0" in finding.detail
    assert "no-such-thing missing, locked 2.0" in finding.detail


def test_python_outside_the_supported_range_fails():
    assert [doctor.python_version(v).state for v in ((3, 10), (3, 11), (3, 13), (3, 14))] == [
        "fail",
        "ok",
        "ok",
        "fail",
    ]


def test_a_module_in_the_server_folder_is_found(tmp_path):
    (tmp_path / "mlflow").mkdir()
    assert doctor.mlflow_library(tmp_path).state == "ok"
    (tmp_path / "mlflow" / "__init__.py").touch()
    assert "mlflow/__init__.py" in doctor.mlflow_library(tmp_path).detail


def test_a_folder_without_history_is_a_warning(tmp_path):
    assert doctor.git(tmp_path).state == "warn"


def test_a_port_used_by_another_process_fails_and_names_the_setting(here):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        finding = by_name(doctor.open_ports(here.model_copy(update={"mlflow_port": port})))[f"port {port}"]
    assert finding.state == "fail"
    assert "BELLWETHER_MLFLOW_PORT" in finding.remedy


def test_the_state_of_a_crashed_run_is_a_warning(here):
    (here.home / "run").mkdir(parents=True)
    assert doctor.old_runs(here).state == "ok"
    (here.home / "run" / "0123456789ab.json").write_text("{}")
    assert doctor.old_runs(here).state == "warn"


def test_room_is_judged_by_the_limits_of_the_settings_and_forecast_from_samples(here, monkeypatch):
    monkeypatch.setattr(doctor.disk, "free", lambda _: 3 * 2**30)
    assert doctor.disk_space(here).state == "ok"
    assert doctor.disk_space(here.model_copy(update={"disk_warn_mb": 4096})).state == "warn"
    assert doctor.disk_space(here.model_copy(update={"disk_warn_mb": 9999, "disk_stop_mb": 4096})).state == "fail"
    now = time.time()
    file = processes.disk_file(here)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps([[now - 43_200, 5 * 2**30]]))
    found = doctor.disk_space(here)
    assert found.state == "warn"
    assert re.search(r"at the pace of the last day, 1\d\d MB an hour, full in 0\.", found.detail)
    file.write_text('[["damaged", ')
    assert doctor.disk_space(here).state == "ok"


def test_the_data_versions_are_counted_with_their_size(here):
    assert doctor.data_versions(here).detail == "0 kept, 0 MB in cache and remote"
    (here.home / "versions" / "abc").mkdir(parents=True)
    (here.home / "versions" / "abc" / "data.dvc").write_text("outs: []")
    (here.home / "dvc-cache" / "ab").mkdir(parents=True)
    (here.home / "dvc-cache" / "ab" / "c").write_bytes(bytes(3 * 2**20))
    assert doctor.data_versions(here).detail == "1 kept, 3 MB in cache and remote"


def test_services_without_their_supervisor_are_a_failure(here, monkeypatch):
    assert doctor.supervisor_running(here).state == "ok"
    env = {**os.environ, "BELLWETHER_HOME": str(here.home.resolve()), processes.RUN_MARK: "x"}
    with subprocess.Popen(["sleep", "60"], env=env) as orphan:
        try:
            found = doctor.supervisor_running(here)
        finally:
            orphan.kill()
    assert (found.state, found.remedy) == ("fail", "bellwether up")


def test_a_store_that_is_locked_damaged_or_away_is_found(here, monkeypatch):
    monkeypatch.setattr(doctor, "WRITE_SECONDS", 0.2)
    assert [f.state for f in doctor.store(here)] == ["ok"]
    assert not here.home.exists()
    Store.open(here.store).close()
    assert {f.name: f.state for f in doctor.store(here)} == {"store": "ok", "alarms": "ok", "breakers": "ok"}
    with closing(sqlite3.connect(here.home / "store.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        found = by_name(doctor.store(here))["store"]
    assert (found.state, "another process holds the lock" in found.detail) == ("fail", True)
    (here.home / "store.db").write_bytes(b"nothing" * 1000)
    found = by_name(doctor.store(here))["store"]
    assert (found.state, "not a database" in found.detail) == ("fail", True)
    away = here.model_copy(update={"store_url": "postgresql://me:secret@127.0.0.1:9/x"})
    (found,) = doctor.store(away)
    assert found.state == "fail"
    assert "secret" not in found.detail


def test_alarms_and_tripped_breakers_are_found_without_a_service(here):
    with closing(Store.open(here.store)) as store:
        store.raise_alarm("service_gave_up", "critical", "mlflow: gave up", datetime.now(UTC))
        store.trip("drawdown", datetime.now(UTC), "lost too much")
    found = by_name(doctor.store(here))
    assert (found["alarms"].state, "mlflow: gave up" in found["alarms"].detail) == ("warn", True)
    assert (found["breakers"].state, "lost too much" in found["breakers"].detail) == ("warn", True)


@pytest.mark.parametrize(
    ("state", "detail", "level"),
    [("not ready", "store: locked", "fail"), ("key refused", "another key", "fail"), ("starting", None, "warn"),
     ("down", "gave up after 8 deaths", "fail"), ("up", processes.UNWATCHED, None), ("down", None, None),
     ("up", None, None)],
)  # fmt: skip
def test_a_service_that_does_not_work_is_found_with_its_reason(here, monkeypatch, state, detail, level):
    quiet = {"state": "down", "url": None, "port": None, "pid": None, "since": None, "detail": None}
    states = {name: dict(quiet) for name in service_table.SERVICES} | {
        "mlflow": quiet | {"state": state, "detail": detail}
    }
    monkeypatch.setattr(processes, "services", lambda _: states)
    found = list(doctor.services(here))
    assert [f.state for f in found] == ([] if level is None else [level])
    assert all(str(detail or state) in f.detail and "mlflow.log" in f.remedy for f in found)


def test_the_status_of_the_decision_service_becomes_findings():
    symbol = {"reason": None, "tier": 1, "tier_reason": "all well"}
    well = {"tier": 1, "health": "HEALTHY", "tier_reason": "all well", "symbols": {"A/B": symbol}, "refused": []}
    assert [f.state for f in doctor._status_findings(well)] == ["ok"]
    silent = symbol | {"tier": 4, "tier_reason": "no bar for 12 bars"}
    refused = {"family": "validator", "arm": "champion", "version": "3", "reason": "bytes differ"}
    bad = well | {"tier": 4, "health": "UNHEALTHY", "tier_reason": "no bar for 12 bars", "refused": [refused],
                  "symbols": {"A/B": silent, "C/D": symbol | {"reason": "30 bars missing"}}}  # fmt: skip
    found = by_name(doctor._status_findings(bad))
    assert {name: f.state for name, f in found.items()} == {
        "decisions": "fail", "symbol A/B": "fail", "symbol C/D": "warn", "model refused": "warn"
    }  # fmt: skip
    assert all(f.remedy for f in found.values())
    assert [f.remedy for f in doctor._status_findings({"tier": 3, "symbols": {}})] == ["bellwether run --once"]
