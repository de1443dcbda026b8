"""What a run needs of a home whose disk it does not share: workers of the pool bring it, the home and workers give it.

Data come by DVC and bundles by digest. The rest are small files, which the store keeps (pipelines/store/home_files.py):
the pointers of data versions, which every one of them may add, and what people chose and froze, which the home gives.
"""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from os import utime
from pathlib import Path

from prefect.runtime import flow_run

from flows import universe
from flows.support import checked_out, frozen
from flows.support.clock_check import require_clock
from flows.support.installation import Installation, now, workspace_lease
from flows.support.progress import report_progress
from pipelines import versioning
from pipelines.store import HomeFile

VERSIONS = "versions"
POINTER = "data.dvc"
# below the home; the home's own, which no worker changes
CHOSEN = (universe.FILE, frozen.FILE, checked_out.FILE)


@dataclass
class Exchanged:
    """Remember what the last `exchange` saw: path → time of change, in the home (ns) and in the store."""

    given: dict[str, int] = field(default_factory=dict)
    stored: dict[str, datetime] = field(default_factory=dict)


def exchange(installation: Installation, last: Exchanged) -> None:
    """Give what was chosen in the home, and write the pointers of what workers made; called every few seconds.

    last  what the call before saw; it is changed
    """
    if not installation.settings.runs_workers:
        return
    if not last.given:  # of a home that gave nothing yet, as before a move to profile `cluster`
        _give_versions(installation)
    _give_chosen(installation, last.given)
    stored = installation.store.home_file_times()
    if stored != last.stored:
        bring_pointers(installation)
        last.stored = stored


def _give_chosen(installation: Installation, given: dict[str, int]) -> None:
    """Store what people chose and froze, where it changed since it was given."""
    home = installation.settings.home
    found = {path: (home / path).stat().st_mtime_ns if (home / path).is_file() else 0 for path in CHOSEN}
    changed = [path for path in CHOSEN if given.get(path) != found[path]]
    there = {path: (home / path).read_text() for path in changed if found[path]}
    if changed:
        installation.store.put_home_files(there, now())
        installation.store.drop_home_files([path for path in changed if path not in there])
    given |= found


def _give_versions(installation: Installation) -> None:
    """Store the files of the data versions that the home keeps and the store lacks, as old as they are."""
    known = installation.store.home_file_times()
    for name in versioning.kept_versions(installation.versions):
        if f"{VERSIONS}/{name}/{POINTER}" not in known:
            kept_at = datetime.fromtimestamp((installation.versions / name / POINTER).stat().st_mtime, UTC)
            installation.store.put_home_files(_files_of(installation.versions / name), kept_at)


def keep_version(installation: Installation, made_now: bool = False) -> None:
    """Keep the files of the workspace's data version, and give them; `made_now` as of `versioning.keep_version`."""
    folder = versioning.keep_version(installation.workspace, installation.versions, made_now)
    if not installation.settings.runs_workers:
        return
    files = _files_of(folder)
    pointer = f"{VERSIONS}/{folder.name}/{POINTER}"
    if not made_now and pointer in installation.store.home_file_times():
        del files[pointer]  # it stays as old as it is
    installation.store.put_home_files(files, now())


def forget_versions(installation: Installation, gone: Iterable[str]) -> None:
    """Take the files of these data versions out of the store."""
    if not installation.settings.runs_workers:
        return
    folders = tuple(f"{VERSIONS}/{name}/" for name in gone)
    given = installation.store.home_file_times()
    installation.store.drop_home_files([path for path in given if path.startswith(folders)])


def bring(installation: Installation) -> None:
    """Bring what this run needs, at its start: pointers, what was chosen, and the newest data version.

    Without a pool, and in a flow that another one runs, there is nothing to bring.
    Raises  StateError where this machine's clock is not that of the database; LeaseHeld; BellwetherError if neither
            cache nor remote has the data
    """
    if not installation.settings.runs_workers or flow_run.parent_flow_run_id:
        return
    require_clock(installation)
    given = installation.store.home_files()
    bring_pointers(installation, given)
    if installation.settings.worker:
        _bring_chosen(installation, {one.path: one.content for one in given})
    newest = newest_version(given)
    if newest is None or newest == _data_hash(installation) or checked_out.checked_out(installation.settings):
        return
    with workspace_lease(installation):
        versioning.restore(installation.workspace, installation.versions / newest / POINTER)
        if installation.settings.worker:
            versioning.keep_only_newest(installation.workspace)
    report_progress(f"data version {newest[:12]} brought from {installation.settings.remote}")


def bring_pointers(installation: Installation, given: Iterable[HomeFile] | None = None) -> None:
    """Write the pointers of every data version that the store has; a worker removes those that are gone there.

    given  the files of the store, as `home_files` returns them; None reads them
    """
    if not installation.settings.runs_workers:
        return
    given = installation.store.home_files() if given is None else given
    names = set()
    for one in given:
        path = installation.settings.home / one.path
        if path.parent.parent != installation.versions:
            continue
        names.add(path.parent.name)
        if not path.is_file() or path.read_text() != one.content:
            _write(path, one)
    if installation.settings.worker:
        for name in versioning.kept_versions(installation.versions):
            if name not in names:
                shutil.rmtree(installation.versions / name)


def newest_version(given: Iterable[HomeFile]) -> str | None:
    """Return the data hash whose pointer was stored last; None where there is none."""
    pointers = [one for one in given if one.path.startswith(f"{VERSIONS}/") and one.path.endswith(f"/{POINTER}")]
    return max(pointers, key=lambda one: one.at).path.split("/")[1] if pointers else None


def _bring_chosen(installation: Installation, given: Mapping[str, str]) -> None:
    """Write what people chose and froze in the home, and remove what is so no longer."""
    for path in CHOSEN:
        file = installation.settings.home / path
        if path not in given:
            file.unlink(missing_ok=True)
        elif not file.is_file() or file.read_text() != given[path]:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(given[path])


def _write(path: Path, one: HomeFile) -> None:
    """Write a file of a data version; its time of change says when the version was kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(one.content)
    utime(draft, (one.at.timestamp(), one.at.timestamp()))
    draft.replace(path)


def _files_of(folder: Path) -> dict[str, str]:
    """Return path below the home → text of the files that describe a data version."""
    files = [folder / name for name in versioning.PROVENANCE]
    return {f"{VERSIONS}/{folder.name}/{file.name}": file.read_text() for file in files if file.is_file()}


def _data_hash(installation: Installation) -> str | None:
    """Return the hash of the workspace's data; None where there are none."""
    pointer, data = installation.workspace / POINTER, installation.data
    return versioning.data_hash(installation.workspace) if pointer.is_file() and data.is_dir() else None
