import socket

import pytest

from flows import doctor
from pipelines.settings import ROOT, Settings


def by_name(findings):
    return {finding.name: finding for finding in findings}


@pytest.fixture
def here(tmp_path):
    return Settings(home=tmp_path / "home")


def test_every_finding_that_is_not_ok_says_what_to_do(here):
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
    assert [doctor.python_version(v).state for v in ((3, 10), (3, 11), (3, 12), (3, 13))] == [
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


def test_a_port_held_by_somebody_else_fails_and_names_the_setting(here):
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
