"""Move one home between the profiles: `machine` (SQLite, folders) and `cluster` (PostgreSQL, an S3 store).

Steps: refuse while services run, start the stores alone, refuse a target with other data, move each part and verify
it. The source is only read, so a move that was cut short leaves it usable; the next one compares what the target has
already and moves the rest.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from bellwether.operations import migrate_files, start_stop
from bellwether.operations.launch import postgres
from bellwether.operations.migrate_parts import Part, addresses_elsewhere, parts_of
from flows.support import processes, stores
from flows.support.installation import now
from flows.support.processes import Progress, write_atomic
from flows.support.service_table import SERVICES, STORES, services_of
from pipelines.errors import LeaseHeld
from pipelines.settings import BUCKET, POSTGRES_USER, Settings

Profile = Literal["machine", "cluster"]
URLS = ("store_url", "mlflow_store_url", "prefect_store_url", "remote_url", "mlflow_artifacts_url")
NOT_COUNTED = "not counted: the stores do not run, and a dry run starts nothing"


def side(settings: Settings, profile: Profile) -> Settings:
    """Return the settings as a profile has them: a URL counts for the profile whose kind of store it names."""
    fitting = {name: url if _profile_of(url) in (profile, None) else "" for name, url in _urls(settings).items()}
    return settings.model_copy(update={"profile": profile, **fitting})


def other(profile: Profile) -> Profile:
    """Return the profile that a home moves from."""
    return "machine" if profile == "cluster" else "cluster"


def record_file(settings: Settings, to: Profile) -> Path:
    """Return the path of the record of the last move to a profile. Files under `run` end with their services."""
    return settings.home / "migrations" / f"{to}.json"


def plan(settings: Settings, to: Profile) -> dict[str, Any]:
    """Return what a move would do, with sizes where they can be read without starting anything."""
    from_, into = side(settings, other(to)), side(settings, to)
    found = []
    with reaching(from_, into):
        for part in parts_of(from_, into):
            holds = None if _is_down(from_, part.source) else part.measure()
            found.append({"part": part.name, "from": part.source, "to": part.target, "holds": holds})
    return {"from": other(to), "to": to, "parts": found, "running": running_services(settings)}


def migrate(settings: Settings, to: Profile, progress: Progress) -> dict[str, Any]:
    """Move the home and return the record of it, which is also in `record_file`.

    Raises  LeaseHeld while a service other than a store runs, WouldOverwrite where the target holds other data,
            ServiceDown if a store does not work, StateError and ChainBroken for what cannot be moved as it is
    """
    from_, into = side(settings, other(to)), side(settings, to)
    cluster = into if to == "cluster" else from_
    refuse_running(settings)
    if any(part.source.startswith("s3:") or part.target.startswith("s3:") for part in parts_of(from_, into)):
        migrate_files.require_boto3()  # before anything starts
    with reaching(from_, into):
        own = [name for name in services_of(cluster) if name in STORES]
        started = start_stop.up(cluster, only=own, progress=progress) if own else []
        try:
            with start_stop.home_lock(settings, "migrate", progress):
                refuse_running(settings)
                return _move_all(settings, parts_of(from_, into), to, progress, addresses_elsewhere(from_.mlflow_store))
        finally:
            if started:
                start_stop.stop_stores(cluster, progress)


def _move_all(
    settings: Settings, parts: list[Part], to: Profile, progress: Progress, elsewhere: dict[str, int]
) -> dict[str, Any]:
    """Check all parts before the first moves, then move them one by one; each is in the record once it is verified."""
    record: dict[str, Any] = {
        "to": to, "started_at": _time(now()), "finished_at": None, "parts": {}, "addresses_elsewhere": elsewhere,
    }  # fmt: skip
    moving = [part for part in parts if part.measure()]
    for part in moving:
        progress(f"{part.name}: {'there already' if part.is_moved() else 'to move'}")
    for part in moving:
        moved = part.move(progress)
        record["parts"][part.name] = {"from": part.source, "to": part.target, **moved, "verified_at": _time(now())}
        _write(settings, to, record)
        progress(f"{part.name}: moved and verified")
    record["finished_at"] = _time(now())
    _write(settings, to, record)
    return record


def running_services(settings: Settings) -> list[str]:
    """Return the services of this home that run, without the stores."""
    return [name for name in SERVICES if processes.home_processes(settings, name)]


def refuse_running(settings: Settings) -> None:
    """Raise LeaseHeld while a service other than a store runs, since it would write into what is moved."""
    if running := running_services(settings):
        raise LeaseHeld(
            f"{', '.join(running)} of {settings.home} run and would write while the home moves; nothing was moved. "
            "Stop them with `bellwether down`, then repeat."
        )


def next_step(settings: Settings, to: Profile) -> str:
    """Return what a person does now: the command changes no configuration."""
    wrong = [
        f"BELLWETHER_{name.upper()}" for name, url in _urls(settings).items() if url and _profile_of(url) == other(to)
    ]
    without = f" and remove {', '.join(wrong)}, which name{'s' * (len(wrong) == 1)} the old place" if wrong else ""
    return (
        f"Set BELLWETHER_PROFILE={to} in the environment or in .env{without}, then run `bellwether up`. This command "
        "does not edit your files."
    )


def old_side(settings: Settings, to: Profile) -> str:
    """Return the sentence that says where the old data are and how they are deleted."""
    old = side(settings, other(to))
    if to == "machine":
        home = [str(postgres.data_folder(old))] * old.runs_postgres + [str(stores.folder(old))] * old.runs_s3
        yours = [shown for shown in _urls(old).values() if shown and _profile_of(shown) == "cluster"]
        also = f"; drop the databases and buckets that your URLs name ({len(yours)})" if yours else ""
    else:
        home = [f"{settings.home / 'store.db'}*", str(settings.home / "mlflow"), str(settings.home / "prefect")]
        home = [home[0], home[1], f"{home[2]}/prefect.db*", str(settings.home / "dvc-remote")]
        also = "; and what your BELLWETHER_*_URL name" if any(_urls(old).values()) else ""
    return (
        f"The old data stay as they are. Once `bellwether status` and `bellwether verify --all` are right, delete "
        f"{', '.join(home) or 'nothing of the home'}{also}."
    )


# ---- helpers --------------------------------------------------------------------------------------------------------


def _urls(settings: Settings) -> dict[str, str]:
    """Return field of Settings → URL that a person set."""
    return {name: str(getattr(settings, name)) for name in URLS}


def _profile_of(url: str) -> Profile | None:
    """Return the profile whose kind of store a URL names; None for another kind, which stays where it is."""
    scheme = urlsplit(url).scheme.partition("+")[0]
    if scheme in ("postgresql", "s3"):
        return "cluster"
    return "machine" if scheme in ("", "sqlite", "file") else None


def _is_down(settings: Settings, place: str) -> bool:
    """Return whether a place is in a store that this home runs itself, and which does not answer."""
    server = f"postgresql://{POSTGRES_USER}@{settings.host}:{settings.postgres_port}/"
    name = "postgres" if place.startswith(server) else "s3" if place.startswith(f"s3://{BUCKET}/") else ""
    store = services_of(settings).get(name)
    return store is not None and processes.services(settings, {name: store})[name]["state"] != "up"


@contextlib.contextmanager
def reaching(*sides: Settings) -> Iterator[None]:
    """Set the variables by which clients in this process reach the stores of the home; put back the old ones after."""
    before = dict(os.environ)
    for one in sides:
        os.environ.update(stores.environment(one))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _write(settings: Settings, to: Profile, record: dict[str, Any]) -> None:
    """Write the record, complete and for its user alone."""
    file = record_file(settings, to)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(record, indent=1))


def _time(at: datetime) -> str:
    """Return a moment in ISO 8601, to the second."""
    return at.isoformat(timespec="seconds")
