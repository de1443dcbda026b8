"""The shape of the repository: nothing may hide a library, and nothing may appear at the top unseen."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"pipelines", "flows", "serving", "mlflow", "tests", "benchmarks", "docs"}
FIXED = {
    "dvc.yaml",
    "pyproject.toml",
    "params.yaml",
    "Makefile",
    "Procfile",
    "LICENSE",
    "requirements.in",
    "requirements.lock",
}


def test_mlflow_is_the_library_also_from_the_root_of_the_repository():
    code = "from importlib.util import find_spec; print(find_spec('mlflow').origin)"
    origin = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert Path(origin.strip()).is_relative_to(sysconfig.get_path("purelib"))


def test_the_folder_of_the_tracking_server_holds_no_python():
    assert list((ROOT / "mlflow").rglob("*.py*")) == []


def test_the_top_level_is_what_the_architecture_says():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")}
    assert folders <= FOLDERS
    assert {name for name in FIXED if not (ROOT / name).is_file()} == set()


def test_the_same_services_stand_in_the_procfile_and_in_the_supervisor():
    from flows.support.processes import SERVICES, parse_procfile

    assert set(parse_procfile(ROOT / "Procfile")) == set(SERVICES)


def test_tests_and_benchmarks_are_as_silent_as_the_services():
    from flows.support.processes import TELEMETRY_OFF

    makefile = (ROOT / "Makefile").read_text()
    assert [n for n, value in TELEMETRY_OFF.items() if f"export {n} := {value}\n" not in makefile] == []


def test_no_other_command_hides_in_the_makefile():
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert phony.split()[1:] == ["setup", "run", "test", "check", "bench", "evidence"]


def test_the_compose_file_is_bound_to_loopback_and_names_exact_images():
    services = yaml.safe_load((ROOT / "mlflow" / "compose.yaml").read_text())["services"]
    assert {"postgres", "storage", "mlflow"} <= set(services)
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "image" not in service or service["image"].partition(":")[2] not in ("", "latest")
