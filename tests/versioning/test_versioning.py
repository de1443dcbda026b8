"""The private workspace and its DVC versions: real DVC, a remote in a folder, the repository left alone."""

import subprocess

import pytest

from pipelines import versioning
from pipelines.errors import StateError
from pipelines.settings import ROOT


@pytest.fixture
def workspace(tmp_path):
    folder = tmp_path / "home" / "workspace"
    versioning.prepare(folder, ROOT, ROOT / "params.yaml", str(tmp_path / "remote"))
    return folder


def write(workspace, text):
    (workspace / "data").mkdir(exist_ok=True)
    (workspace / "data" / "bars.csv").write_text(text)
    return versioning.snapshot(workspace)


def test_the_hash_names_the_content_and_an_old_version_comes_back_from_the_remote(workspace, tmp_path):
    first = write(workspace, "a\n1\n")
    kept = versioning.keep_version(workspace, tmp_path / "versions")
    second = write(workspace, "a\n2\n")
    assert first != second
    assert write(workspace, "a\n1\n") == first
    write(workspace, "a\n2\n")
    subprocess.run(["rm", "-rf", str(workspace.parent / "dvc-cache")], check=True)  # only the remote is left
    assert versioning.restore(workspace, kept / "data.dvc") == first
    assert (workspace / "data" / "bars.csv").read_text() == "a\n1\n"


def test_collecting_never_lets_go_of_a_version_a_registered_model_was_trained_on(workspace, tmp_path):
    versions = tmp_path / "versions"
    hashes = []
    for k in range(3):
        hashes.append(write(workspace, f"a\n{k}\n"))
        versioning.keep_version(workspace, versions)
    assert versioning.collect(workspace, versions, {hashes[0]}) == [hashes[1]]
    assert versioning.restore(workspace, versions / hashes[0] / "data.dvc") == hashes[0]
    assert (workspace / "data" / "bars.csv").read_text() == "a\n0\n"
    assert not (versions / hashes[1]).exists()


def test_a_workspace_without_data_says_what_to_do(workspace):
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
