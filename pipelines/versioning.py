"""The only doorway to DVC, and to the git state that is recorded with a run.

Runs never touch the repository: `prepare` lays out a private workspace (a DVC project without SCM) with copies of the
build graph, the parameters and the sources whose hashes decide what is stale. The code that runs is the installed one.
The hash of `data` is the authority; everything else refers to it. One writer at a time: callers hold a lease.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines import dvc_files
from pipelines.bootstrap import of_a_job
from pipelines.errors import NOT_ENOUGH_DATA, BellwetherError, NotEnoughData, StateError, UnreadableFile
from pipelines.settings import read_yaml

_ONE_FOLDER = threading.RLock()
LOG_LINES = 15  # of a failed stage, quoted in the error
STAGE_LOG = "BELLWETHER_STAGE_LOG"  # a stage that DVC runs writes its output to the file named here
MANIFEST = "manifest.json"  # of a data version, inside its data
PROVENANCE = ("data.dvc", "dvc.lock", "params.yaml")


@dataclass(frozen=True, slots=True)
class GitState:
    """Commit of a checkout, and whether files differ from it."""

    commit: str  # "unversioned" outside a git checkout
    dirty: bool


def git_state(root: Path) -> GitState:
    """Return the commit of the code that runs, and whether it was changed since."""

    def git(*arguments: str) -> str:
        """Return the output of a git command."""
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return GitState(git("rev-parse", "HEAD"), bool(git("status", "--porcelain")))
    except (subprocess.CalledProcessError, FileNotFoundError):
        return GitState("unversioned", True)


def prepare(workspace: Path, root: Path, params_file: Path, remote: str) -> None:
    """Lay out or refresh the private workspace; data, outputs and the lock of earlier runs stay, repaired if cut off.

    Every copy has the mode of a new file of this process, whatever the clone's: nothing of it is open to others.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(root / "dvc.yaml", workspace / "dvc.yaml")
    shutil.copyfile(params_file, workspace / "params.yaml")
    code = workspace / "pipelines"
    if code.exists():
        shutil.rmtree(code)
    _copy_code(root / "pipelines", code)
    dvc_files.make_project(workspace, workspace.parent / "dvc-cache", remote)
    dvc_files.repair(workspace)


def _copy_code(source: Path, target: Path) -> None:
    """Copy a folder of code without its bytecode, contents only.

    `shutil.copytree` copies modes as well: those of the clone are open to others, and so would each file be a while.
    """
    for folder, inner, names in os.walk(source):
        inner[:] = [name for name in inner if name != "__pycache__"]
        copied = target / Path(folder).relative_to(source)
        copied.mkdir()
        for name in names:
            shutil.copyfile(Path(folder) / name, copied / name)


def set_left_out(workspace: Path, left_out: Mapping[str, Sequence[str]]) -> None:
    """Add family → columns its next fit leaves out to those in the workspace's `params.yaml`; `prepare` undoes it.

    So the build graph sees a changed recipe, and the file kept with the version names it.
    """
    from dvc.utils.serialize import modify_yaml

    if left_out:
        with modify_yaml(str(workspace / "params.yaml")) as params:
            for family, columns in left_out.items():
                params[family]["left_out"] = list(dict.fromkeys([*(params[family].get("left_out") or ()), *columns]))


def command(arguments: Sequence[str]) -> int:
    """Run a command line of DVC as its own program does; return the exit code."""
    from dvc.cli import main

    return int(main(list(arguments)))


@contextlib.contextmanager
def _repo_in(workspace: Path) -> Iterator[Any]:
    """Yield the workspace's DVC repo with the workspace as current folder. DVC resolves a stage's outputs from there,
    and a process has only one current folder: threads take turns."""
    from dvc.repo import Repo

    dvc_files.configure()
    with _ONE_FOLDER, contextlib.chdir(workspace), Repo() as repo:
        yield repo


def snapshot(workspace: Path) -> str:
    """Version `data/` as it is now, push it, and return its hash."""
    from dvc.repo import Repo

    with Repo(str(workspace)) as repo:
        stage = repo.add([str(workspace / "data")])[0]  # absolute: DVC resolves names from the current folder
        repo.push([str(workspace / "data.dvc")])
        return str(stage.outs[0].hash_info.value)


def restore(workspace: Path, pointer: Path) -> str:
    """Restore the data a `data.dvc` describes, from cache or remote, and return its hash.

    Raises  BellwetherError if neither has all of it
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    shutil.copyfile(pointer, workspace / "data.dvc")
    try:
        with Repo(str(workspace)) as repo:
            repo.pull([str(workspace / "data.dvc")], force=True)
    except DvcException as error:
        raise BellwetherError(
            f"data version {data_hash(workspace)} is not complete in cache or remote: {error}"
        ) from error
    return data_hash(workspace)


def keep_only_newest(workspace: Path) -> None:
    """Remove from the cache what the workspace's data version does not need; the remote keeps all of it."""
    with _repo_in(workspace) as repo:
        repo.gc(workspace=True, force=True)


def data_is_there(root: Path) -> bool:
    """Return whether `data/` of the repository is what its `data.dvc` says; the cache may lack it."""
    with _repo_in(root) as repo:
        found = repo.status(["data.dvc"]).get("data.dvc", [])
    return all(how == "not in cache" for change in found for outs in change.values() for how in outs.values())


def pull_data(root: Path, remotes: Sequence[str | None]) -> str | None:
    """Bring `data/` of the repository from the first remote that has all of it; return which, None if none has.

    remotes  URLs; None = the repository's own, which is not asked for what is in its cache
    """
    from dvc.exceptions import DvcException

    for url in remotes:
        with _repo_in(root) as repo:
            for name in ("dvc", "dvc_data"):  # they warn of every file that a remote lacks
                logging.getLogger(name).setLevel(logging.ERROR)
            if url is not None:  # for this pull only
                repo.config["remote"]["home"] = {"url": url}
            try:
                repo.pull(["data.dvc"], remote=None if url is None else "home", force=True)
            except DvcException:  # not there, or not complete: the next one may be
                continue
            return url or "from the repository's cache or remote"
    return None


def cache_data(root: Path) -> None:
    """Keep `data/` of the repository, which is what its `data.dvc` says, in the repository's DVC cache."""
    with _repo_in(root) as repo, repo.lock:
        repo.stage.load_one("data.dvc").outs[0].commit(relink=False)


def data_hash(folder: Path) -> str:
    """Return the hash in the folder's `data.dvc`. Raises StateError if there is none, UnreadableFile if damaged."""
    pointer = folder / "data.dvc"
    if not pointer.is_file():
        raise StateError(f"{folder}: no data.dvc; run `bellwether run --once` to ingest and version market data")
    try:
        return str(read_yaml(pointer)["outs"][0]["md5"])
    except (UnreadableFile, KeyError, IndexError, TypeError) as error:
        raise UnreadableFile(f"{pointer} is cut off. Delete it; `bellwether run --once` writes it again.") from error


def reproduce(workspace: Path, targets: list[str] | None = None) -> list[str]:
    """Run the stale stages of the build graph; return those that ran. Raises BellwetherError with its output."""
    from dvc.exceptions import DvcException

    log = workspace / "stages.log"
    log.unlink(missing_ok=True)
    try:
        before = _locked(workspace)
        with _repo_in(workspace) as repo, _variables_of_stages(log):
            repo.reproduce(targets)
    except DvcException as error:
        lines = log.read_text().splitlines()[-LOG_LINES:] if log.is_file() else []
        raise BellwetherError("\n".join([f"build graph: {error}. End of {log}:", *lines])) from error
    after = _locked(workspace)
    return [name for name, entry in after.items() if before.get(name) != entry]


@contextlib.contextmanager
def _variables_of_stages(log: Path) -> Iterator[None]:
    """Give this process the variables that DVC's stages inherit from it, and take them back."""
    # stages call `python`: it has to be this one
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    not_theirs = dict.fromkeys(os.environ.keys() - of_a_job(os.environ).keys())
    theirs: dict[str, str | None] = {STAGE_LOG: str(log), "PATH": path, **not_theirs}
    before = {name: os.environ.get(name) for name in theirs}
    _set_variables(theirs)
    try:
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    """Set variables of this process; None removes one."""
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def settle(workspace: Path) -> None:
    """Freeze the stages that wait for a later retrain, so that `dvc status` names only what is wrong.

    A new data version alone makes every stage stale, and a retrain of one family those of the others: that is as it
    should be until they are due. DVC's own word for it is `frozen` in the workspace's dvc.yaml; of a `foreach` it
    stands for all of its stages. A stage that never ran here, as of a family with too few rows, is left out of that
    file. `prepare` writes the whole graph again.
    """
    from dvc.utils.serialize import modify_yaml

    with _repo_in(workspace) as repo:
        found = repo.status()
    ran = _locked(workspace)
    graph_stages = [name for name in found if name != "data.dvc"]
    never = [name for name in graph_stages if name not in ran]
    waiting = {name.partition("@")[0] for name in graph_stages if name in ran and _waits(found[name])}
    if not never and not waiting:
        return
    with modify_yaml(str(workspace / "dvc.yaml")) as graph:
        stages = graph["stages"]
        for name in sorted(waiting):
            stages[name].get("do", stages[name])["frozen"] = True
        for name, _, item in (each.partition("@") for each in never):
            if item:
                stages[name]["foreach"].remove(item)
            if not item or not stages[name]["foreach"]:
                del stages[name]


def _waits(changes: Sequence[object]) -> bool:
    """Return whether a stage's inputs changed, as DVC's status lists its changes."""
    return any(isinstance(change, dict) and "changed deps" in change for change in changes)


def stale(workspace: Path, targets: list[str]) -> list[str]:
    """Return the stages of `targets` that would run: never run before, or a dependency has changed."""
    with _repo_in(workspace) as repo:
        changed = repo.status(targets)
    return [name for name in targets if name in changed]


def run_stage(
    workspace: Path,
    name: str,
    timeout_s: float,
    progress: Callable[[str], None],
    instead: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Run one stage's command of the build graph without DVC, so that several can run in parallel.

    Its outputs are removed first; `record` registers it with DVC afterwards. `progress` receives every line it prints.
    instead  word of the command → the word that replaces it in this run
    Raises  BellwetherError with its last lines if it fails or takes longer than `timeout_s` seconds
    """
    command, outs = _command_and_outputs(workspace, name)
    for out in outs:
        shutil.rmtree(workspace / out, ignore_errors=True)
        (workspace / out).unlink(missing_ok=True)
    words = [instead.get(word, word) for word in shlex.split(command)]
    run_command(workspace, name, words, timeout_s, progress)


def run_command(
    workspace: Path, name: str, command: list[str], timeout_s: float, progress: Callable[[str], None]
) -> None:
    """Run a command in the workspace on one core; `name` it in errors. `progress` receives every line it prints.

    Raises  NotEnoughData with the stage's reason; BellwetherError with its last lines if it fails otherwise or takes
            longer than `timeout_s` seconds
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in of_a_job(os.environ).items() if name != STAGE_LOG}
    threads = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PATH": path}  # one core a stage: they share few
    last_lines: deque[str] = deque(maxlen=LOG_LINES)
    with subprocess.Popen(
        command, cwd=workspace, env=environment | threads, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        timer = threading.Timer(timeout_s, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                last_lines.append(line.rstrip())
                progress(line.rstrip())
            code = process.wait()
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
            if process.poll() is None:  # we were interrupted: our child must not go on
                os.killpg(process.pid, signal.SIGKILL)
    if code == NOT_ENOUGH_DATA and last_lines:
        raise NotEnoughData(last_lines[-1])
    if code:
        why = f"took longer than {timeout_s:.0f} s and was stopped" if timed_out else f"ended with {code}"
        raise BellwetherError("\n".join([f"stage {name} {why}. Its last lines:", *last_lines]))


def record(workspace: Path, names: list[str]) -> None:
    """Record in `dvc.lock` that these stages ran on the present inputs, and the digests of their outputs.

    As `dvc commit --force` does for each, but the file is read and written once: that takes a third of a second.
    """
    with _repo_in(workspace) as repo, repo.lock:
        stages = [repo.stage.load_one(name=name) for name in names]
        for stage in stages:
            stage.save()
            stage.commit()
        if stages:
            stages[0].dvcfile.dump_stages(stages, update_pipeline=False)


def _command_and_outputs(workspace: Path, name: str) -> tuple[str, list[str]]:
    """Return (command, outputs but metrics and plots) of a stage, also of a `foreach`, as DVC reads the graph."""
    with _repo_in(workspace) as repo:
        stage = repo.stage.load_one(name=name)
        return str(stage.cmd), [out.def_path for out in stage.outs if not (out.metric or out.plot)]


def _locked(workspace: Path) -> dict[str, object]:
    """Return stage → entry of `dvc.lock`; empty without one. Raises UnreadableFile if it is damaged."""
    lock = workspace / "dvc.lock"
    try:
        return dict(read_yaml(lock)["stages"]) if lock.is_file() else {}
    except (UnreadableFile, KeyError, TypeError, ValueError) as error:
        raise UnreadableFile(f"{lock} is cut off. Delete it; the next run writes it again.") from error


def keep_version(workspace: Path, versions: Path, made_now: bool = False) -> Path:
    """Copy the three files that describe this version (`data.dvc`, `dvc.lock`, `params.yaml`) to a folder named by its
    data hash, and return that.

    made_now  it is the newest version from now on; else one that was kept before stays as old as it is
    """
    folder = versions / data_hash(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROVENANCE:
        kept_before = name == "data.dvc" and (folder / name).is_file()
        if (workspace / name).is_file() and (made_now or not kept_before):
            shutil.copyfile(workspace / name, folder / name)
    return folder


def kept_versions(versions: Path) -> list[str]:
    """Return the data hashes whose files are kept, the oldest first."""
    folders = [folder for folder in versions.glob("*") if (folder / "data.dvc").is_file()]
    return [folder.name for folder in sorted(folders, key=lambda one: (one / "data.dvc").stat().st_mtime)]


def forget_versions(workspace: Path, versions: Path, gone: Sequence[str]) -> int:
    """Delete data versions, from their folders, the cache and the remote; return the bytes freed in the cache.

    The data of every version that is left stay in the remote, and once they are complete there, only those of the
    workspace in the cache as well. DVC's own garbage collection decides, given the pointers of the versions that are
    left. Raises BellwetherError where DVC cannot say what is used.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    cache = workspace.parent / "dvc-cache"
    before = _bytes(cache)
    for name in gone:
        shutil.rmtree(versions / name, ignore_errors=True)
    try:
        with _repo_in(workspace) as repo:
            remote = str(repo.config["remote"]["store"]["url"])
            with _pointers(workspace, versions, kept_versions(versions), remote) as kept:
                repo.gc(workspace=True, cloud=True, repos=[str(kept)], force=True)
                with Repo(str(kept)) as pointers:
                    only_here = {"new", "missing"} & set(pointers.status(cloud=True).values())
            if not only_here:
                repo.gc(workspace=True, force=True)
    except DvcException as error:
        raise BellwetherError(f"nothing was removed from cache and remote: {error}") from error
    return before - _bytes(cache)


@contextlib.contextmanager
def _pointers(workspace: Path, versions: Path, names: Sequence[str], remote: str) -> Iterator[Path]:
    """Yield a DVC project of its own next to the workspace, which holds `<hash>/data.dvc` of these versions."""
    with tempfile.TemporaryDirectory(prefix="versions-", dir=workspace.parent) as folder:
        dvc_files.make_project(Path(folder), workspace.parent / "dvc-cache", remote)
        for name in names:
            (Path(folder) / name).mkdir(exist_ok=True)
            shutil.copyfile(versions / name / "data.dvc", Path(folder) / name / "data.dvc")
        yield Path(folder)


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """Hold what is known of a kept data version without bringing its data.

    kept_at   when its files were kept, the last time
    size      bytes of its files
    files     name → digest; manifest: its text. Empty and None where neither cache nor remote has them
    """

    data_hash: str
    kept_at: datetime
    size: int
    files: Mapping[str, str]
    manifest: str | None


def describe_versions(workspace: Path, versions: Path, names: Sequence[str], remote: str) -> list[KeptVersion]:
    """Return these kept versions, read from cache or remote. Raises UnreadableFile for a damaged pointer."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.index import DataIndexError

    found = []
    with _pointers(workspace, versions, names, remote) as kept, Repo(str(kept)) as repo:
        for name in names:
            pointer = versions / name / "data.dvc"
            data_hash(pointer.parent)
            size = int(read_yaml(pointer)["outs"][0].get("size", 0))
            try:
                manifest: str | None = repo.dvcfs.cat_file(f"{name}/data/{MANIFEST}").decode()
                paths = list(repo.dvcfs.find(f"{name}/data"))
                files = {path.split("/data/", 1)[1]: str(repo.dvcfs.info(path)["md5"]) for path in paths}
            except (DvcException, DataIndexError, OSError):  # gone from both
                manifest, files = None, {}
            kept_at = datetime.fromtimestamp(pointer.stat().st_mtime, UTC)
            found.append(KeptVersion(name, kept_at, size, files, manifest))
    return found


def export_version(workspace: Path, versions: Path, name: str, remote: str, into: Path) -> None:
    """Copy the data of a kept version to `into/data`, with the files that describe it next to them.

    Raises  BellwetherError if neither cache nor remote has all of it
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.index import DataIndexError

    try:
        with _pointers(workspace, versions, [name], remote) as kept, Repo(str(kept)) as repo:
            for path in repo.dvcfs.find(f"{name}/data"):
                copy = into / path.split(f"{name}/", 1)[1]
                copy.parent.mkdir(parents=True, exist_ok=True)
                with repo.dvcfs.open(path, "rb") as source, copy.open("wb") as target:
                    shutil.copyfileobj(source, target)  # DVC's own copy would be a hard link into the cache
    except (DvcException, DataIndexError, FileNotFoundError) as error:
        raise BellwetherError(f"data version {name} is not complete in cache or remote: {error}") from error
    for described in PROVENANCE:
        if (versions / name / described).is_file():
            shutil.copyfile(versions / name / described, into / described)


def _bytes(folder: Path) -> int:
    """Return the bytes of all files under a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
