"""The files that DVC writes in place: its settings, written once, and what a killed process left of others, repaired.

DVC truncates a file and writes it again. A process killed in between leaves it empty, and every later command of DVC
fails on it. Only what the next run writes again by itself is removed here.
"""

import json
import logging
import os
from itertools import chain
from pathlib import Path

import psutil

from pipelines.errors import UnreadableFile
from pipelines.settings import read_yaml

_log = logging.getLogger(__name__)


def configure() -> None:
    """Override what DVC sets when it is imported.

    Its log level: our own progress covers its routine messages. The mode of cached files, 0444 whatever the umask. And
    the mode of its site cache, a folder that all users may write unless it exists already.
    """
    from dvc_data.hashfile.db.local import LocalHashFileDB

    logging.getLogger("dvc").setLevel(logging.WARNING)
    LocalHashFileDB.CACHE_MODE = 0o400
    if site := os.environ.get("DVC_SITE_CACHE_DIR"):
        Path(site).mkdir(mode=0o700, parents=True, exist_ok=True)
        (Path(site) / "repo").mkdir(mode=0o700, exist_ok=True)


def make_project(folder: Path, cache: Path, remote: str) -> None:
    """Make `folder` a DVC project without SCM, with our cache and remote. It is written only where it differs."""
    from dvc.repo import Repo

    configure()
    wanted: dict[str, dict[str, object]] = {
        "core": {"analytics": False, "remote": "store", "autostage": False, "check_update": False},
        # one copy on disk of what workspace and cache hold; outputs are replaced, never written in place
        "cache": {"dir": str(cache), "type": "hardlink,copy"},
    }
    found = _settings(folder / ".dvc")
    if "no_scm" not in found.get("core", {}):  # none yet, or cut off: `.dvc` holds nothing else to keep
        Repo.init(str(folder), no_scm=True, force=True).close()
    same = [found.get(name, {}).get(key) == str(value) for name, keys in wanted.items() for key, value in keys.items()]
    if all(same) and found.get("remote") == {"store": {"url": remote}}:
        return
    with Repo(str(folder)) as repo, repo.config.edit() as config:
        for name, keys in wanted.items():
            config[name].update(keys)
        config["remote"] = {"store": {"url": remote}}


def _settings(dvc_folder: Path) -> dict[str, dict[str, object]]:
    """Return section → key → text of a project's settings; empty without them or where they cannot be read."""
    from dvc.config import Config, ConfigError

    try:
        return dict(Config(str(dvc_folder)).read("repo")) if dvc_folder.is_dir() else {}
    except ConfigError as error:
        _log.warning("%s: cut off, written again (%s)", dvc_folder / "config", error)
        return {}


def repair(workspace: Path) -> None:
    """Remove what a killed process left of DVC's files, so that the next run goes on by itself.

    Called by the only writer. `dvc.lock` and `data.dvc` are removed if they are cut off: stages without an entry run
    again, and a run that ingests writes the pointer. Of the list of files in use (`rwlock`), an entry of a process that
    is gone is DVC's to remove; one whose number another process has by now would block every run.
    """
    for name in ("dvc.lock", "data.dvc"):
        file = workspace / name
        if file.is_file() and not _is_mapping(file):
            _remove(file)
    _repair_files_in_use(workspace / ".dvc" / "tmp")


def _is_mapping(file: Path) -> bool:
    """Return whether a YAML file holds what DVC writes into it."""
    try:
        return isinstance(read_yaml(file), dict)
    except UnreadableFile:
        return False


def _repair_files_in_use(folder: Path) -> None:
    """Remove DVC's list of files in use if it is cut off, or if a process in it began after the list was written."""
    from dvc.lock import make_lock

    file = folder / "rwlock"
    if not file.is_file():
        return
    with make_lock(str(folder / "rwlock.lock"), tmp_dir=str(folder)):  # DVC's own: a person may run it here
        try:
            in_use = json.loads(file.read_text())
            entries = [*in_use.get("write", {}).values(), *chain.from_iterable(in_use.get("read", {}).values())]
            holders = {int(each["pid"]) for each in entries}
        except (ValueError, TypeError, KeyError, AttributeError):
            _remove(file)
            return
        if any(_began_after(holder, file.stat().st_mtime) for holder in holders):
            _remove(file)


def _began_after(process_id: int, moment_s: float) -> bool:
    """Return whether the process of this number began after a moment; False if there is none."""
    try:
        return bool(psutil.Process(process_id).create_time() > moment_s)
    except psutil.NoSuchProcess:
        return False


def _remove(file: Path) -> None:
    """Remove a file and say so."""
    file.unlink()
    _log.warning("%s was left by a process that was killed: removed, the next run writes it again", file)
