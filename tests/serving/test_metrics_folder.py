"""Metrics' files lie in memory: a full disk may not end a process that counts its requests."""

import os
import stat
import subprocess
import sys

from serving.service import metrics_folder


def test_a_worker_gets_a_folder_of_its_own_in_memory_and_the_dead_leave_none(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_folder, "MEMORY", tmp_path)
    monkeypatch.setenv(metrics_folder.VARIABLE, "/on/the/disk")
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for pid in (gone.pid, os.getppid()):
        (tmp_path / f"{metrics_folder.PREFIX}{pid}-abc").mkdir()
    metrics_folder.keep_in_memory()
    made = os.environ[metrics_folder.VARIABLE]
    assert os.path.dirname(made) == str(tmp_path)
    assert stat.S_IMODE(os.stat(made).st_mode) == 0o700
    assert sorted(os.listdir(tmp_path)) == sorted(
        [os.path.basename(made), f"{metrics_folder.PREFIX}{os.getppid()}-abc"]
    )


def test_nothing_is_touched_outside_a_worker_or_without_memory_to_write_to(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_folder, "MEMORY", tmp_path)
    monkeypatch.delenv(metrics_folder.VARIABLE, raising=False)
    metrics_folder.keep_in_memory()
    assert list(tmp_path.iterdir()) == []
    assert metrics_folder.VARIABLE not in os.environ
    monkeypatch.setenv(metrics_folder.VARIABLE, "/on/the/disk")
    monkeypatch.setattr(metrics_folder, "MEMORY", tmp_path / "no such folder")
    metrics_folder.keep_in_memory()
    assert os.environ[metrics_folder.VARIABLE] == "/on/the/disk"
