"""The only doorway to DVC, and to the git state that goes on a run.

Runs never touch the repository: `prepare` lays out a private workspace (a DVC project without SCM) holding copies of
the build graph, the parameters and the sources whose hashes decide what is stale. The code that runs is the installed
one. The hash of `data` is the authority; everything else points to it. One writer at a time: callers hold a lease.
"""

import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import BellwetherError, StateError, UnreadableFile
from pipelines.permissions import tighten
from pipelines.settings import read_yaml

_ONE_FOLDER = threading.RLock()
STAGE_LOG = "BELLWETHER_STAGE_LOG"  # a stage that DVC runs writes what it says there
PROVENANCE = ("data.dvc", "dvc.lock", "params.yaml")


@dataclass(frozen=True, slots=True)
class GitState:
    commit: str  # "unversioned" outside a git checkout
    dirty: bool


def git_state(root: Path) -> GitState:
    """Commit of the code that runs, and whether it was changed since."""

    def ask(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return GitState(ask("rev-parse", "HEAD"), bool(ask("status", "--porcelain")))
    except (subprocess.CalledProcessError, FileNotFoundError):
        return GitState("unversioned", True)


def prepare(workspace: Path, root: Path, params_file: Path, remote: str) -> None:
    """Lay out or refresh the private workspace; data, outputs and the lock of earlier runs stay."""
    workspace.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / "dvc.yaml", workspace / "dvc.yaml")
    shutil.copyfile(params_file, workspace / "params.yaml")
    code = workspace / "pipelines"
    if code.exists():
        shutil.rmtree(code)
    shutil.copytree(root / "pipelines", code, ignore=shutil.ignore_patterns("__pycache__"))
    tighten(code)  # the clone is open to others, its copy need not be
    _project(workspace, workspace.parent / "dvc-cache", remote)


def _tame() -> None:
    """What DVC decides for itself when it is imported.

    Its log level: its everyday news is in our own progress. The mode of what it keeps, which ignores the umask: 0444.
    And that of its site cache, a folder that all may write unless it is there already.
    """
    from dvc_data.hashfile.db.local import LocalHashFileDB

    logging.getLogger("dvc").setLevel(logging.WARNING)
    LocalHashFileDB.CACHE_MODE = 0o400
    if site := os.environ.get("DVC_SITE_CACHE_DIR"):
        Path(site).mkdir(mode=0o700, parents=True, exist_ok=True)
        (Path(site) / "repo").mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def _standing_in(workspace: Path) -> Iterator[Any]:
    """The workspace's DVC repo. DVC resolves what a stage writes from the current folder, and a process has only one of
    those: threads take turns."""
    from dvc.repo import Repo

    _tame()
    with _ONE_FOLDER, contextlib.chdir(workspace), Repo() as repo:
        yield repo


def _project(folder: Path, cache: Path, remote: str) -> None:
    """Make `folder` a DVC project without SCM, on our cache and remote."""
    from dvc.repo import Repo

    _tame()
    if not (folder / ".dvc").exists():
        Repo.init(str(folder), no_scm=True).close()
    with Repo(str(folder)) as repo, repo.config.edit() as config:
        config["core"].update({"analytics": False, "remote": "store", "autostage": False, "check_update": False})
        config["remote"] = {"store": {"url": remote}}
        config["cache"].update({"dir": str(cache), "type": "reflink,copy"})


def snapshot(workspace: Path) -> str:
    """Version `data/` as it is now, push it, and return its hash."""
    from dvc.repo import Repo

    with Repo(str(workspace)) as repo:
        stage = repo.add([str(workspace / "data")])[0]  # absolute: DVC reads names from where we stand
        repo.push([str(workspace / "data.dvc")])
        return str(stage.outs[0].hash_info.value)


def restore(workspace: Path, pointer: Path) -> str:
    """Bring back the data a `data.dvc` describes, from cache or remote. Returns its hash."""
    from dvc.repo import Repo

    shutil.copyfile(pointer, workspace / "data.dvc")
    with Repo(str(workspace)) as repo:
        repo.pull([str(workspace / "data.dvc")], force=True)
    return data_hash(workspace)


def data_hash(folder: Path) -> str:
    """Hash in the folder's `data.dvc`. Raises StateError if there is none."""
    pointer = folder / "data.dvc"
    if not pointer.is_file():
        raise StateError(f"{folder}: no data.dvc; run `bellwether run --once` to ingest and version market data")
    try:
        return str(read_yaml(pointer)["outs"][0]["md5"])
    except (UnreadableFile, KeyError, IndexError, TypeError) as error:
        raise UnreadableFile(f"{pointer} is cut off. Delete it; `bellwether run --once` writes it again.") from error


def reproduce(workspace: Path, targets: list[str] | None = None) -> list[str]:
    """Run what is stale of the build graph. Returns the stages that ran; BellwetherError holds the stage's output."""
    from dvc.exceptions import DvcException

    log = workspace / "stages.log"
    log.unlink(missing_ok=True)
    os.environ[STAGE_LOG] = str(log)
    # stages call `python`: it has to be this one
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    try:
        before = _locked(workspace)
        with _standing_in(workspace) as repo:
            repo.reproduce(targets)
    except DvcException as error:
        said = log.read_text().splitlines()[-15:] if log.is_file() else []
        raise BellwetherError("\n".join([f"build graph: {error}. End of {log}:", *said])) from error
    after = _locked(workspace)
    return [name for name, entry in after.items() if before.get(name) != entry]


def stale(workspace: Path, targets: list[str]) -> list[str]:
    """Those of the stages `targets` that would run: never run, or something they rest on has changed."""
    with _standing_in(workspace) as repo:
        changed = repo.status(targets)
    return [name for name in targets if name in changed]


def run_stage(workspace: Path, name: str, timeout_s: float, tell: Callable[[str], None]) -> None:
    """Run one stage's command as the build graph states it, without DVC, so that several can run side by side.

    Its outputs are removed first; `record` makes it known to DVC afterwards. `tell` gets every line it prints.
    Raises BellwetherError with the end of what it said when it fails or takes longer than `timeout_s`.
    """
    command, outs = _stated(workspace, name)
    for out in outs:
        shutil.rmtree(workspace / out, ignore_errors=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != STAGE_LOG}
    threads = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PATH": path}  # one core a stage: they share few
    said: deque[str] = deque(maxlen=15)
    with subprocess.Popen(
        shlex.split(command), cwd=workspace, env=environment | threads, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        timer = threading.Timer(timeout_s, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line.rstrip())
                tell(line.rstrip())
            code = process.wait()
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
            if process.poll() is None:  # we were interrupted: what we started does not go on without us
                os.killpg(process.pid, signal.SIGKILL)
    if code:
        why = f"took longer than {timeout_s:.0f} s and was stopped" if timed_out else f"ended with {code}"
        raise BellwetherError("\n".join([f"stage {name} {why}. It said last:", *said]))


def record(workspace: Path, names: list[str]) -> None:
    """Write into `dvc.lock` that these stages ran on what is there now, and keep their outputs in the cache."""
    with _standing_in(workspace) as repo:
        for name in names:
            repo.commit(name, force=True)


def _stated(workspace: Path, name: str) -> tuple[str, list[str]]:
    """(command, outputs) of a stage, of a `foreach` too, as DVC reads the graph."""
    with _standing_in(workspace) as repo:
        stage = repo.stage.load_one(name=name)
        cached = [out.def_path for out in stage.outs if out.use_cache]
        return str(stage.cmd), cached


def _locked(workspace: Path) -> dict[str, object]:
    lock = workspace / "dvc.lock"
    try:
        return dict(read_yaml(lock)["stages"]) if lock.is_file() else {}
    except (UnreadableFile, KeyError, TypeError, ValueError) as error:
        raise UnreadableFile(f"{lock} is cut off. Delete it; the next run writes it again.") from error


def keep_version(workspace: Path, versions: Path) -> Path:
    """Keep the three files that name this version (`data.dvc`, `dvc.lock`, `params.yaml`) under its data hash."""
    folder = versions / data_hash(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROVENANCE:
        if (workspace / name).is_file():
            shutil.copyfile(workspace / name, folder / name)
    return folder


def collect_garbage(workspace: Path, versions: Path, protected: set[str]) -> list[str]:
    """Let DVC remove cached data of versions no registered model was trained on. Returns the hashes let go.

    protected  data hashes of registered versions; the workspace's own is always kept
    """
    from dvc.repo import Repo

    kept = protected | {data_hash(workspace)}
    gone = [folder for folder in sorted(versions.iterdir()) if folder.name not in kept]
    with Repo(str(workspace)) as repo, tempfile.TemporaryDirectory() as scratch:
        remote, cache = repo.config["remote"]["store"]["url"], Path(repo.cache.local.path)
        projects = []
        for name in sorted(kept & {folder.name for folder in versions.iterdir()}):
            # a project that holds nothing but the pointer tells DVC's own collector that this data is in use
            project = Path(scratch) / name
            project.mkdir()
            _project(project, cache, remote)
            shutil.copyfile(versions / name / "data.dvc", project / "data.dvc")
            projects.append(str(project))
        repo.gc(workspace=True, cloud=True, repos=projects, force=True)
    for folder in gone:
        shutil.rmtree(folder)
    return [folder.name for folder in gone]
