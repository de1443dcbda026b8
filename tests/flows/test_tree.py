"""The shape of the repository: nothing may hide a library, and each folder holds what its name says."""

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"bellwether", "flows", "pipelines", "serving", "mlflow", "tests", "benchmarks", "deploy", "docs"}
FILES = {
    "data.dvc", "dvc.yaml", "params.yaml", "pyproject.toml", "requirements.in", "requirements.lock",
    "requirements-cluster.txt", "requirements-gpu.lock",
    "Makefile", "Procfile", "LICENSE", "README.md", "ARCHITECTURE.md", "CHANGELOG.md",
}  # fmt: skip
DOTTED = {
    ".ci",
    ".devcontainer",
    ".dockerignore",
    ".dvc",
    ".dvcignore",
    ".env.example",
    ".gitattributes",
    ".github",
    ".gitignore",
    ".importlinter",
}
NO_FLOW = {"__init__.py", "deployments.py", "reconciler.py", "universe.py"}  # of the files in flows/


def tracked() -> list[str]:
    """Return the paths of all files in git."""
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


def has_flow(file: Path) -> bool:
    """Return whether a module defines a function decorated with `@flow(…)`."""
    return any(
        isinstance(decorator, ast.Call) and isinstance(decorator.func, ast.Name) and decorator.func.id == "flow"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
    )


def imported(file: Path) -> set[str]:
    """Return the top-level packages a module imports, at its top or inside its functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def test_mlflow_is_the_library_also_from_the_root_of_the_repository():
    code = "from importlib.util import find_spec; print(find_spec('mlflow').origin)"
    origin = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert Path(origin.strip()).is_relative_to(sysconfig.get_path("purelib"))


def test_the_folder_of_the_tracking_server_holds_no_python():
    assert list((ROOT / "mlflow").rglob("*.py*")) == []


def test_only_the_fixed_names_stand_at_the_top_level():
    paths = tracked()
    folders = {path.split("/")[0] for path in paths if "/" in path and not path.startswith(".")}
    files = {path for path in paths if "/" not in path and not path.startswith(".")} - {"dvc.lock"}  # of a release
    dotted = {path.split("/")[0] for path in paths if path.startswith(".")}
    assert (folders, files) == (FOLDERS, FILES)
    assert dotted <= DOTTED


def test_flows_holds_flows_and_their_support_only():
    inside = [Path(path).relative_to("flows") for path in tracked() if path.startswith("flows/")]
    assert {path.parts[0] for path in inside if len(path.parts) > 1} == {"support"}
    files = {path.name for path in inside if len(path.parts) == 1}
    assert {name for name in files if not has_flow(ROOT / "flows" / name)} == NO_FLOW
    assert [path for path in inside if path.parts[0] == "support" and has_flow(ROOT / "flows" / path)] == []


def test_no_module_is_over_500_lines():
    modules = [ROOT / path for path in tracked() if path.endswith(".py") and not path.startswith("tests/")]
    lines = {str(module.relative_to(ROOT)): len(module.read_text().splitlines()) for module in modules}
    assert {name: n for name, n in lines.items() if n > 500} == {}


def test_no_layer_imports_what_people_type_and_import():
    for layer in ("flows", "serving", "pipelines"):
        assert [str(file) for file in (ROOT / layer).rglob("*.py") if "bellwether" in imported(file)] == []


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "flows").glob("*.py")))
def test_the_body_of_a_flow_reads_like_a_table_of_contents(name):
    for function in ast.walk(ast.parse((ROOT / "flows" / name).read_text())):
        if isinstance(function, ast.FunctionDef) and "flow" in {
            getattr(getattr(decorator, "func", None), "id", None) for decorator in function.decorator_list
        }:
            inside = [node for statement in function.body for node in ast.walk(statement)]
            assert [ast.unparse(node) for node in inside if isinstance(node, ast.Try | ast.BinOp)] == []
            assert function.end_lineno - function.lineno < 60, f"{function.name} is too long to read at a glance"


def test_procfile_and_process_table_name_the_same_services():
    from flows.support.processes import parse_procfile
    from flows.support.service_table import DASK, FRONT, POOL, SERVICES, STORES

    assert set(parse_procfile(ROOT / "Procfile")) == {*STORES, *SERVICES, *POOL, *DASK, *FRONT}


def test_the_makefile_turns_telemetry_off_as_the_services_do():
    from flows.support.processes import TELEMETRY_OFF

    makefile = (ROOT / "Makefile").read_text()
    assert [n for n, value in TELEMETRY_OFF.items() if f"export {n} := {value}\n" not in makefile] == []


def test_no_other_command_hides_in_the_makefile():
    phony = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    assert phony.split()[1:] == [
        "setup", "run", "test", "check", "bench", "evidence", "lock", "cluster", "cluster-test"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "named"),
    [("mlflow/compose.yaml", {"postgres", "storage", "mlflow"}), ("deploy/gpu/compose.yaml", {"bellwether"})],
)
def test_a_compose_file_is_bound_to_loopback_and_names_exact_images(file, named):
    services = yaml.safe_load((ROOT / file).read_text())["services"]
    assert named <= set(services)
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        assert "image" not in service or service["image"].partition(":")[2] not in ("", "latest")
