"""Where it runs: the versions of Python that every file names, and what the container files name exists."""

import json
import re
import tomllib

import yaml

from bellwether.operations.doctor import python_version
from pipelines.settings import ROOT, Settings

PYTHONS = ("3.11", "3.12", "3.13")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONTAINERS = ROOT / ".devcontainer"
PORTS = {Settings.model_fields[f"{n}_port"].default for n in ("mlflow", "prefect", "decision", "model", "evidently")}


def instructions():
    """(keyword, rest) of every instruction of the Containerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (CONTAINERS / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in lines if line.strip()]


def test_every_file_names_the_same_versions_of_python():
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
    named = [kind.rpartition(" ")[2] for kind in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", kind)]
    assert tuple(named) == PYTHONS
    makefile = (ROOT / "Makefile").read_text()
    assert " ".join(f"python{version}" for version in PYTHONS) in makefile
    assert "(3, 11) <= v < (3, 14)" in makefile
    states = {minor: python_version((3, minor)).state for minor in range(9, 16)}
    assert tuple(f"3.{minor}" for minor, state in states.items() if state == "ok") == PYTHONS
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert tuple(jobs["test"]["strategy"]["matrix"]["python"]) == PYTHONS
    assert "Python 3.11, 3.12 or 3.13" in (ROOT / "README.md").read_text()


def test_ci_is_the_script_that_everybody_can_run():
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_dev_container_builds_a_stage_that_exists_and_forwards_the_ports_of_the_servers():
    wanted = json.loads((CONTAINERS / "devcontainer.json").read_text())
    build = wanted["build"]
    stages = [rest.split(" AS ")[1] for keyword, rest in instructions() if keyword == "FROM"]
    assert (CONTAINERS / build["dockerfile"]).is_file()
    assert (CONTAINERS / build["context"]).resolve() == ROOT
    assert build["target"] in stages
    assert set(wanted["forwardPorts"]) == PORTS == {int(port) for port in wanted["portsAttributes"]}
    assert wanted["postCreateCommand"] == "make setup"
    assert any(
        f"target={rest.partition('=')[2]}," in mount
        for mount in wanted["mounts"]
        for keyword, rest in instructions()
        if keyword == "ENV" and rest.startswith("BELLWETHER_HOME=")
    )


def test_the_image_opens_the_ports_of_the_servers_and_runs_what_the_readme_shows():
    found = instructions()
    assert {int(port) for keyword, rest in found if keyword == "EXPOSE" for port in rest.split()} == PORTS
    assert next(rest for keyword, rest in found if keyword == "CMD") == '["make", "run"]'
    assert "RUN make setup" in [" ".join(each) for each in found]
    assert {
        rest.partition("=")[0].removeprefix("BELLWETHER_").lower() for keyword, rest in found if keyword == "ENV"
    } <= set(Settings.model_fields)
    users = [rest for keyword, rest in found if keyword == "USER"]
    assert users
    assert users[-1] not in ("root", "0")
    readme = (ROOT / "README.md").read_text()
    published = re.search(r"docker run [^\n]*", readme)
    assert {int(port) for port in re.findall(r"-p 127\.0\.0\.1:(\d+):\1", published[0])} == PORTS


def test_an_image_is_built_without_what_git_ignores_except_caches_of_tools():
    without = (ROOT / ".dockerignore").read_text().split()
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().split()]
    assert {name for name in ignored if name not in without and f"**/{name}" not in without} <= {"dvc.lock"}
    assert ".git" not in without  # a version names its commit
