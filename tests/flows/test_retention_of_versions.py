"""Retention of data versions: what is named stays, complete; what is not goes from folder, cache and remote."""

import os
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from flows import retention
from pipelines import versioning
from pipelines.errors import BellwetherError
from pipelines.settings import ROOT, Settings


@pytest.fixture
def workspace(tmp_path):
    """Return a workspace, as runs have it, under a home."""
    folder = tmp_path / "home" / "workspace"
    versioning.prepare(folder, ROOT, ROOT / "params.yaml", str(tmp_path / "home" / "dvc-remote"))
    return folder


def version_of(workspace, text, shared="the same in all"):
    """Write a data version of two files and return its hash."""
    data = workspace / "data"
    data.mkdir(exist_ok=True)
    for name, content in (("changes.txt", text), ("stays.txt", shared)):
        draft = data / f".{name}"
        draft.write_text(content)
        draft.replace(data / name)
    found = versioning.snapshot(workspace)
    versioning.keep_version(workspace, workspace.parent / "versions")
    return found


def objects(folder):
    """Return how many objects a cache or remote holds."""
    return sum(1 for file in folder.rglob("*") if file.is_file() and len(file.parent.name) == 2)


def test_workspace_and_cache_share_one_copy_on_disk(workspace):
    version_of(workspace, "one")
    assert os.stat(workspace / "data" / "stays.txt").st_nlink > 1


def test_forgotten_versions_go_and_every_other_can_be_restored_from_cache_and_from_remote(workspace, tmp_path):
    home = workspace.parent
    versions = [version_of(workspace, text) for text in ("one", "two", "three", "four")]
    before = objects(home / "dvc-cache"), objects(home / "dvc-remote")
    freed = versioning.forget_versions(workspace, home / "versions", [versions[0], versions[2]])
    assert freed > 0
    assert versioning.kept_versions(home / "versions") == [versions[1], versions[3]]
    # of each that went: its folder object and the file of its own; of the older one that stays the remote has all
    assert (objects(home / "dvc-cache"), objects(home / "dvc-remote")) == (before[0] - 6, before[1] - 4)
    for folder, gone in (("other", None), ("far", home / "dvc-cache")):
        if gone is not None:
            gone.rename(gone.with_name("moved-away"))
        scratch = tmp_path / folder / "workspace"
        versioning.prepare(scratch, ROOT, ROOT / "params.yaml", str(home / "dvc-remote"))
        assert versioning.restore(scratch, home / "versions" / versions[1] / "data.dvc") == versions[1]
        assert (scratch / "data" / "changes.txt").read_text() == "two"
    assert (workspace / "data" / "changes.txt").read_text() == "four"
    assert not (home / "retained-versions").exists()


def test_what_the_remote_lacks_stays_in_the_cache(workspace):
    home = workspace.parent
    versions = [version_of(workspace, text) for text in ("one", "two")]
    before = objects(home / "dvc-cache")
    (home / "dvc-remote").rename(home / "lost")
    versioning.forget_versions(workspace, home / "versions", [])
    assert objects(home / "dvc-cache") == before
    (home / "lost").rename(home / "dvc-remote")
    versioning.forget_versions(workspace, home / "versions", [])
    assert objects(home / "dvc-cache") == before - 2
    assert versioning.restore(workspace, home / "versions" / versions[0] / "data.dvc") == versions[0]
    assert (workspace / "data" / "changes.txt").read_text() == "one"


def test_what_earlier_runs_computed_goes_although_no_version_does(workspace, monkeypatch):
    home = workspace.parent
    kept = version_of(workspace, "one")
    cache = home / "dvc-cache" / "files" / "md5" / "ab"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / ("0" * 30)).write_bytes(b"columns of an earlier retrain")
    installation = SimpleNamespace(
        workspace=workspace, versions=home / "versions", settings=Settings(home=home, _env_file=None)
    )
    monkeypatch.setattr(retention, "open_installation", lambda: installation)
    monkeypatch.setattr(retention, "workspace_lease", lambda _: nullcontext())
    freed = retention.remove_versions.fn(retention.VersionPlan({kept: "one of the newest 30"}, []))
    assert freed == len(b"columns of an earlier retrain")
    assert versioning.kept_versions(home / "versions") == [kept]
    assert versioning.restore(workspace, home / "versions" / kept / "data.dvc") == kept


def test_a_forgotten_version_cannot_be_restored_and_the_error_says_so(workspace, tmp_path):
    home = workspace.parent
    first = version_of(workspace, "one")
    pointer = tmp_path / "data.dvc"
    pointer.write_bytes((home / "versions" / first / "data.dvc").read_bytes())
    version_of(workspace, "two")
    versioning.forget_versions(workspace, home / "versions", [first])
    scratch = tmp_path / "other" / "workspace"
    versioning.prepare(scratch, ROOT, ROOT / "params.yaml", str(home / "dvc-remote"))
    with pytest.raises(BellwetherError, match="not complete in cache or remote"):
        versioning.restore(scratch, pointer)


def test_the_newest_and_the_named_versions_stay_with_their_reason(monkeypatch, tmp_path):
    class Home:
        versions = tmp_path

    monkeypatch.setattr(retention, "VERSIONS", 2)
    monkeypatch.setattr(
        retention, "named_versions", lambda *_: [("v1", "validator version 1 was trained on it"), ("gone", "…")]
    )
    for i in range(5):
        (tmp_path / f"v{i}").mkdir()
        pointer = tmp_path / f"v{i}" / "data.dvc"
        pointer.write_text("")
        os.utime(pointer, (i, i))
    plan = retention.plan_versions(Home, None)
    assert plan.gone == ["v0", "v2"]
    assert plan.kept["v1"] == "validator version 1 was trained on it"
    assert set(plan.kept) == {"v1", "v3", "v4"}


def test_old_folders_of_reports_go_and_pages_made_by_hand_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(retention, "REPORTS", 1)
    reports = tmp_path / "reports"
    for name in ("20240101T000000", "20240102T000000", "2024-01-01", "2024-01-02", "by-hand"):
        (reports / name).mkdir(parents=True)
    home = SimpleNamespace(settings=SimpleNamespace(home=tmp_path))
    assert sorted(folder.name for folder in retention.old_reports(home)) == ["2024-01-01", "20240101T000000"]
