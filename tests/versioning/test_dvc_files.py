"""What a process killed while DVC wrote one of its files leaves, and that the next run goes on by itself."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from dvc.exceptions import DvcException

from pipelines import dvc_files, versioning
from pipelines.settings import ROOT

IN_USE, SETTINGS = ".dvc/tmp/rwlock", ".dvc/config"
LEFT = {
    "an empty list of files in use": (IN_USE, ""),
    "half a list of files in use": (IN_USE, '{"read": {"data": [{"pi'),
    "a list of another form": (IN_USE, '{"write": [1]}'),
    "a list without a process": (IN_USE, '{"write": {"data": {"cmd": "x"}}}'),
    "empty settings": (SETTINGS, ""),
    "settings cut in a line": (SETTINGS, "[core]\n    no_scm = True\n    ana"),
    "settings cut after a line": (SETTINGS, "[core]\n    no_scm = True\n"),
    "an empty pointer": ("data.dvc", ""),
    "half a pointer": ("data.dvc", "outs:\n- md5: ab\n  siz"),
    "an empty lock": ("dvc.lock", ""),
}
FATAL = [name for name, (file, _) in LEFT.items() if file == IN_USE or (file == SETTINGS and "after" not in name)]


def prepare(home):
    versioning.prepare(home / "workspace", ROOT, ROOT / "params.yaml", str(home / "remote"))
    return home / "workspace"


@pytest.fixture
def workspace(tmp_path):
    folder = prepare(tmp_path)
    (folder / "data").mkdir()
    (folder / "data" / "bars.csv").write_text("a\n1\n")
    versioning.snapshot(folder)
    return folder


@pytest.mark.parametrize("left", LEFT)
def test_the_next_run_goes_on_after_a_file_was_cut_off(workspace, left):
    name, text = LEFT[left]
    before = versioning.data_hash(workspace)
    settings = (workspace / SETTINGS).read_bytes()
    (workspace / name).write_text(text)
    if left in FATAL:
        with pytest.raises(DvcException):
            versioning.snapshot(workspace)
    prepare(workspace.parent)
    assert versioning.snapshot(workspace) == before == versioning.data_hash(workspace)
    assert (workspace / SETTINGS).read_bytes() == settings


def test_a_number_that_another_process_has_by_now_blocks_nobody_and_one_at_work_is_waited_for(workspace):
    """In a container that starts again the numbers of processes come back."""
    file = workspace / IN_USE
    entry = {"write": {str(workspace / "data"): {"pid": 0, "cmd": "dvc add data"}}, "read": {}}
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        entry["write"][str(workspace / "data")]["pid"] = other.pid
        file.write_text(json.dumps(entry))
        prepare(workspace.parent)
        assert file.read_text() == json.dumps(entry)  # it began before the list was written: it is at work
        with pytest.raises(DvcException, match="is busy"):
            versioning.snapshot(workspace)
        began = psutil.Process(other.pid).create_time()
        os.utime(file, (began - 5.0, began - 5.0))
        prepare(workspace.parent)
        versioning.snapshot(workspace)
        other.communicate(b"\n")


def test_the_settings_are_written_once(workspace):
    file = workspace / SETTINGS
    os.utime(file, (1.0, 1.0))
    prepare(workspace.parent)
    assert file.stat().st_mtime == 1.0
    dvc_files.make_project(workspace, workspace.parent / "dvc-cache", "/another/remote")
    assert file.stat().st_mtime > time.time() - 60
    assert "/another/remote" in file.read_text()
