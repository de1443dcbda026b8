"""The README names only what exists: its commands, targets, settings, files and links."""

import json
import re
import shlex

import yaml
from prefect.utilities.schema_tools.validation import validate
from typer.main import get_command

from bellwether.cli.main import app
from flows.deployments import deployments
from pipelines.settings import ROOT, Settings

README = (ROOT / "README.md").read_text()


def test_every_command_it_shows_exists_with_its_options():
    known = get_command(app).commands
    for name, rest in re.findall(r"(?<!from )bellwether (\w+)([^\n`|]*)", README):
        assert name in known, name
        inner = getattr(known[name], "commands", {}).get("".join(rest.split()[:1]), known[name])
        options = {o for p in inner.params for o in p.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, rest


def test_every_deployment_it_runs_exists_and_takes_the_parameters():
    every = deployments(Settings(_env_file=None))
    forms = {made.full_name: made._parameter_openapi_schema.model_dump(exclude_unset=True) for made in every}
    lines = re.findall(r"^\.venv/bin/prefect deployment run (.*)$", README, re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        name, *rest = shlex.split(line)
        given = dict(word.split("=", 1) for word in rest if word != "-p")
        validate({key: read_value(text) for key, text in given.items()}, forms[name], raise_on_error=True)
        assert given.keys() <= forms[name]["properties"].keys(), line


def read_value(text):
    """A value on Prefect's command line: JSON, else a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def test_every_make_target_it_shows_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"make (\w+)", README))
    assert targets == {"setup", "run", "test", "check", "bench", "lock"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_every_setting_and_default_port_it_names_is_real():
    for name in re.findall(r"`BELLWETHER_([A-Z_]+)`", README):
        assert name.lower() in Settings.model_fields, name
    ports = [
        Settings.model_fields[f"{n}_port"].default for n in ("mlflow", "prefect", "decision", "model", "evidently")
    ]
    assert ", ".join(map(str, ports)) in README


def test_every_file_and_link_it_names_exists():
    for path in re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(
        r"`((?:pipelines|flows|serving|docs)/[\w/.]+)`", README
    ):
        assert (ROOT / path).exists(), path


def test_the_hash_in_its_output_is_the_committed_one():
    pointer = yaml.safe_load((ROOT / "data.dvc").read_text())["outs"][0]["md5"]
    assert f"data {pointer[:12]}:" in README


def test_ci_runs_the_test_command_it_shows():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "make test" in README


def test_the_python_it_shows_imports_what_exists():
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    for line in re.findall(r"^(?:from|import) .*$", "\n".join(blocks), re.MULTILINE):
        exec(line, {})


def test_what_is_said_of_a_card_is_measured_with_card_driver_and_commit_or_says_not_measured():
    page = (ROOT / "docs" / "results" / "gpu.md").read_text().partition("## Figures\n")[2].strip()
    status = page.splitlines()[0]
    measured = re.fullmatch(r"Measured on \S.*, driver [\d.]+, torch .*, commit [0-9a-f]{7,40}\.", status)
    assert measured or status.startswith("Not measured on a card"), status
    assert measured or "cuda" not in page
    word = "GPU: measured" if measured else "GPU: not measured"
    for name in ("README.md", "docs/specification.md"):
        assert re.findall(r"GPU: \w+(?: measured)?", (ROOT / name).read_text()) == [word], name
