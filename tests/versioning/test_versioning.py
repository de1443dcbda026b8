"""The private workspace and its DVC versions: real DVC, a remote in a folder, the repository untouched."""

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines import versioning
from pipelines.bootstrap import GIVES_MEMORY_BACK
from pipelines.errors import BellwetherError, NotEnoughData, StateError
from pipelines.settings import ROOT, load_params


@pytest.fixture
def workspace(tmp_path):
    folder = tmp_path / "home" / "workspace"
    versioning.prepare(folder, ROOT, ROOT / "params.yaml", str(tmp_path / "remote"))
    return folder


def write(workspace, text):
    (workspace / "data").mkdir(exist_ok=True)
    (workspace / "data" / "bars.csv").write_text(text)
    return versioning.snapshot(workspace)


def test_the_hash_names_the_content_and_an_old_version_is_restored_from_the_remote(workspace, tmp_path):
    first = write(workspace, "a\n1\n")
    folder = versioning.keep_version(workspace, tmp_path / "versions")
    second = write(workspace, "a\n2\n")
    assert first != second
    assert write(workspace, "a\n1\n") == first
    write(workspace, "a\n2\n")
    subprocess.run(["rm", "-rf", str(workspace.parent / "dvc-cache")], check=True)  # only the remote is left
    assert versioning.restore(workspace, folder / "data.dvc") == first
    assert (workspace / "data" / "bars.csv").read_text() == "a\n1\n"


def test_a_workspace_without_data_names_the_command(workspace):
    with pytest.raises(StateError, match="bellwether run --once"):
        versioning.data_hash(workspace)


def test_the_repository_is_left_as_it_was(workspace):
    before = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    write(workspace, "a\n1\n")
    after = subprocess.run(
        ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert before == after


def test_the_commit_on_a_run_is_the_one_checked_out(tmp_path):
    assert len(versioning.git_state(ROOT).commit) == 40
    assert versioning.git_state(tmp_path).commit == "unversioned"


GRAPH = """
stages:
  train:
    foreach: [calm, wild]
    do: {cmd: "python copy_in.py ${item}", deps: [in.txt], outs: ["out/${item}"]}
"""
COPY_IN = """
import sys
from pathlib import Path
print("[1/2]", sys.argv[1])
if Path("break-" + sys.argv[1]).exists():
    sys.exit(3)
Path("out", sys.argv[1]).mkdir(parents=True)
Path("out", sys.argv[1], "w").write_text(Path("in.txt").read_text())
"""


@pytest.fixture
def graph(workspace):
    """Return a workspace with two stages that can run in parallel: each copies its input; one fails while a file
    `break-<name>` exists."""
    (workspace / "dvc.yaml").write_text(GRAPH)
    (workspace / "copy_in.py").write_text(COPY_IN)
    (workspace / "in.txt").write_text("1")
    return workspace


BOTH = ["train@calm", "train@wild"]


def test_stages_run_in_parallel_are_not_stale_once_recorded_until_their_input_changes(graph):
    assert versioning.stale(graph, BOTH) == BOTH
    lines = []
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda name: versioning.run_stage(graph, name, 60.0, lines.append), BOTH))
    versioning.record(graph, BOTH)
    assert sorted(lines) == ["[1/2] calm", "[1/2] wild"]
    assert versioning.stale(graph, BOTH) == []
    (graph / "in.txt").write_text("2")
    assert versioning.stale(graph, BOTH) == BOTH
    assert versioning.reproduce(graph, BOTH) == BOTH  # DVC's own run agrees with what was recorded
    assert (graph / "out" / "calm" / "w").read_text() == "2"


@pytest.mark.parametrize("how", ["by DVC", "by us"])
def test_a_stage_keeps_its_memory_where_the_service_that_starts_it_gives_it_back(graph, monkeypatch, how):
    for name, value in GIVES_MEMORY_BACK.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "7")  # a person's own choice stays
    given = "import os, pathlib; pathlib.Path('given').write_text(str({n for n in os.environ if 'MALLOC' in n}))"
    (graph / "dvc.yaml").write_text(json.dumps({"stages": {"see": {"cmd": f'python -c "{given}"', "outs": ["given"]}}}))
    before = dict(os.environ)
    if how == "by DVC":
        versioning.reproduce(graph, ["see"])
    else:
        versioning.run_stage(graph, "see", 60.0, lambda line: None)
    assert (graph / "given").read_text() == "{'MALLOC_ARENA_MAX'}"
    assert dict(os.environ) == before


def status(workspace):
    """Return what `dvc status` finds in a workspace."""
    with versioning._repo_in(workspace) as repo:
        return dict(repo.status())


def test_stages_that_wait_are_frozen_those_that_never_ran_left_out_and_what_is_lost_is_named(graph):
    whole = (graph / "dvc.yaml").read_text()
    versioning.run_stage(graph, "train@calm", 60.0, lambda line: None)
    versioning.record(graph, ["train@calm"])
    (graph / "in.txt").write_text("2")
    versioning.settle(graph)
    assert status(graph) == {}
    (graph / "dvc.yaml").write_text(whole)  # as `prepare` writes it
    assert versioning.stale(graph, BOTH) == BOTH
    shutil.rmtree(graph / "out")
    versioning.settle(graph)
    assert status(graph) == {"train@calm": [{"changed outs": {"out/calm": "deleted"}}]}


def test_a_stage_that_fails_quotes_its_output_and_leaves_the_other_to_be_recorded(graph):
    (graph / "break-wild").touch()
    versioning.run_stage(graph, "train@calm", 60.0, lambda line: None)
    with pytest.raises(BellwetherError, match=r"train@wild ended with 3(.|\n)*\[1/2\] wild"):
        versioning.run_stage(graph, "train@wild", 60.0, lambda line: None)
    versioning.record(graph, ["train@calm"])
    assert versioning.stale(graph, BOTH) == ["train@wild"]


def test_a_stage_with_too_few_rows_says_why_in_one_line(graph):
    quit_early = "import sys; print('fold 1'); print('40 rows, bring 900 bars'); sys.exit(65)"
    stage = {"cmd": f'python -c "{quit_early}"', "outs": ["never"]}
    (graph / "dvc.yaml").write_text(json.dumps({"stages": {"short": stage}}))
    with pytest.raises(NotEnoughData, match=r"^40 rows, bring 900 bars$"):
        versioning.run_stage(graph, "short", 60.0, lambda line: None)


def test_a_stage_that_takes_too_long_is_stopped(graph):
    (graph / "dvc.yaml").write_text("stages: {slow: {cmd: sleep 60, outs: [never]}}")
    with pytest.raises(BellwetherError, match="took longer than 1 s"):
        versioning.run_stage(graph, "slow", 1.0, lambda line: None)


def test_columns_left_out_are_added_to_those_a_person_wrote(workspace):
    path = workspace / "params.yaml"
    path.write_text(path.read_text().replace("left_out: []", "left_out: [atr_14, session_asia]"))
    versioning.set_left_out(workspace, {"validator": ["session_asia", "session_london"]})
    assert load_params(path).validator.left_out == ["atr_14", "session_asia", "session_london"]


def test_columns_left_out_are_in_the_workspaces_params_until_it_is_prepared_again(workspace, tmp_path):
    versioning.set_left_out(workspace, {"validator": ["session_asia", "session_london"]})
    assert load_params(workspace / "params.yaml").validator.left_out == ["session_asia", "session_london"]
    assert "# events a leaf holds" in (workspace / "params.yaml").read_text()
    versioning.prepare(workspace, ROOT, ROOT / "params.yaml", str(tmp_path / "remote"))
    assert load_params(workspace / "params.yaml").validator.left_out == []
