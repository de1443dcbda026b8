"""An installation is for its own user only: files an earlier release left open are closed, new files are not open."""

import contextlib
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bellwether.cli import main as cli
from bellwether.operations import doctor, start_stop
from pipelines import permissions, versioning
from pipelines.settings import ROOT, settings

COMMAND = Path(sys.executable).with_name("bellwether")


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


def loose(home):
    return [path for path in (home, *home.rglob("*")) if not path.is_symlink() and mode(path) & 0o077]


@pytest.fixture
def open_home(tmp_path):
    """Return a home as release 0.5.0 leaves it under the usual umask, with a link that leads outside."""
    home = tmp_path / "home"
    folders = ("mlflow/artifacts/1", "dvc/site/repo", "logs", "dvc-cache/files")
    files = {"store.db": 0o644, "logs/flows.log": 0o644, "write_key": 0o600, "mlflow/artifacts/1/model.onnx": 0o664,
             "dvc-cache/files/ab": 0o444}  # fmt: skip
    for name in folders:
        (home / name).mkdir(parents=True)
    for name, bits in files.items():
        (home / name).write_text(name)
        (home / name).chmod(bits)
    for folder in (home, *(path for path in home.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    for folder in (home / "dvc" / "site", home / "dvc" / "site" / "repo"):
        folder.chmod(0o777)
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.chmod(0o755)
    (home / "link").symlink_to(outside)
    return home


def test_an_open_home_is_closed_and_what_was_open_is_counted_links_are_not_followed(open_home):
    tightened = permissions.tighten(open_home)
    assert (tightened.files, tightened.folders, tightened.foreign) == (4, 10, ())
    assert loose(open_home) == []
    assert mode(open_home / "store.db") == 0o600
    assert mode(open_home / "dvc-cache" / "files" / "ab") == 0o400  # what was read-only still is
    assert mode((open_home / "link").readlink()) == 0o755
    assert permissions.tighten(open_home) is None


def test_what_lies_open_in_a_closed_home_is_closed_and_not_counted_as_open_to_others(open_home):
    open_home.chmod(0o700)
    assert permissions.tighten(open_home) is None
    assert loose(open_home) == []


def test_the_seals_of_a_kernel_cache_others_could_write_are_removed(open_home):
    for name, bits in (("kernels", 0o755), ("shared", 0o775)):
        (open_home / name).mkdir()
        (open_home / name / permissions.SEALS).write_text("")
        (open_home / name).chmod(bits)
    permissions.tighten(open_home)
    assert (open_home / "kernels" / permissions.SEALS).exists()
    assert not (open_home / "shared" / permissions.SEALS).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_of_another_user_are_named_and_left(open_home):
    theirs = open_home / "dvc" / "site" / "repo" / "planted"
    theirs.write_text("")
    os.chown(theirs, 65534, 65534)
    tightened = permissions.tighten(open_home)
    assert tightened.foreign == (theirs,)
    assert f"{theirs} first" in str(tightened)


def run_command(home, *words):
    def set_usual_umask():
        os.umask(0o022)

    mine = {"BELLWETHER_HOME": str(home)} | {
        f"BELLWETHER_{n}_PORT": "9" for n in ("MLFLOW", "PREFECT", "DECISION", "MODEL", "EVIDENTLY")
    }
    return subprocess.run([COMMAND, *words], cwd=ROOT, env=os.environ | mine, capture_output=True, text=True,
                          timeout=60, check=True, preexec_fn=set_usual_umask)  # fmt: skip


def test_up_closes_an_open_home_before_it_starts_anything_and_prints_one_line(open_home, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(start_stop, "up", lambda settings, **_: started.append(loose(settings.home)))
    monkeypatch.setenv("BELLWETHER_HOME", str(open_home))
    settings.cache_clear()
    monkeypatch.setattr(sys, "argv", ["bellwether", "up"])
    assert doctor.home_permissions(open_home).remedy == "bellwether up"
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
    settings.cache_clear()
    assert started == [[], []]
    assert capsys.readouterr().err.splitlines() == [
        f"{open_home}: 4 files and 10 folders were open to other users and are closed now"
    ]
    assert doctor.home_permissions(open_home).state == "ok"


def test_a_new_home_has_nothing_others_can_open(tmp_path):
    run_command(tmp_path / "home", "status", "--json")
    assert (tmp_path / "home" / "store.db").is_file()
    assert loose(tmp_path / "home") == []


VERSIONED = """
import sys
from pathlib import Path
from pipelines import dvc_files, permissions, versioning
permissions.restrict()  # before DVC is imported: it reads the umask once
at = Path(sys.argv[1])
dvc_files.make_project(at / "workspace", at / "dvc-cache", str(at / "remote"))
with versioning._repo_in(at / "workspace") as repo:
    (at / "workspace" / "data").mkdir()
    (at / "workspace" / "data" / "bars").write_text("1")
    repo.add(["data"])
    assert repo.site_cache_dir
    repo.push()
"""


def test_files_of_dvc_are_closed_too(tmp_path):
    own = {
        "DVC_SITE_CACHE_DIR": str(tmp_path / "dvc" / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(tmp_path / "dvc" / "config"),
    }
    subprocess.run([sys.executable, "-c", VERSIONED, tmp_path], cwd=ROOT, env=os.environ | own, check=True)
    assert list((tmp_path / "dvc-cache").rglob("*"))
    assert list((tmp_path / "remote").rglob("*"))
    assert loose(tmp_path) == []


@pytest.fixture
def usual_clone(tmp_path):
    """Return a clone as git leaves it under the usual umask, with 1,000 files of code: copying them takes a while."""
    clone = tmp_path / "clone"
    for folder in (clone / "pipelines" / f"p{i}" for i in range(20)):
        folder.mkdir(parents=True)
        for i in range(50):
            (folder / f"m{i}.py").write_text("")
    (clone / "pipelines" / "__pycache__").mkdir()
    (clone / "pipelines" / "__pycache__" / "m.pyc").write_text("")
    (clone / "dvc.yaml").write_text("stages: {}")
    for path in (clone, *clone.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return clone


def test_the_copy_of_the_code_in_a_workspace_is_open_to_others_at_no_moment(usual_clone, tmp_path, monkeypatch):
    """Every command names the files it finds open, so that one that starts during a copy would name these."""
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "dvc" / "site"))
    home, seen, rounds = tmp_path / "home", set(), 0
    before = os.umask(0o077)
    try:
        with ThreadPoolExecutor(1) as pool:
            copying = pool.submit(
                versioning.prepare, home / "workspace", usual_clone, ROOT / "params.yaml", str(tmp_path / "remote")
            )
            while not copying.done():
                seen |= set(seen_loose(home / "workspace" / "pipelines"))
                rounds += 1
            copying.result()
    finally:
        os.umask(before)
    copied = [path.relative_to(home / "workspace") for path in (home / "workspace" / "pipelines").rglob("*.py*")]
    assert (len(copied), rounds > 3, seen, loose(home)) == (1_000, True, set(), [])


def seen_loose(folder):
    """Return what is open under a folder that another thread is filling."""
    with contextlib.suppress(FileNotFoundError):
        return loose(folder)
    return []
