"""Retention: remove old data versions, records, bundles and reports that nothing names any more."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_table_artifact

from flows.support import drift_reports, records_retention
from flows.support.home_copy import bring_pointers, forget_versions
from flows.support.installation import Installation, open_installation, workspace_lease
from flows.support.market_time import learning_now
from flows.support.progress import report_progress, step
from flows.support.run_names import run_name
from pipelines import disk, versioning
from pipelines.families import FAMILIES
from pipelines.monitoring.report import remove_oldest_runs

VERSIONS = 30  # data versions kept beyond those that are named
REPORTS = 30  # folders of reports of a kind kept, the newest; of drift as many a family
RUNS = 120  # of Evidently, of each project, the newest: some 0.7 MB each
# of stress, and of drift in releases up to 0.10; of market days; of allocations
DATED = ("[0-9]*T[0-9]*", "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]", "portfolio-[0-9]*T[0-9]*")


@dataclass(frozen=True, slots=True)
class VersionPlan:
    """Hold which data versions stay, with the reason of each, and which go, oldest first."""

    kept: dict[str, str]
    gone: list[str]


def plan_versions(installation: Installation, since: datetime) -> VersionPlan:
    """Return which data versions stay: the newest VERSIONS, and those that anything names.

    since   decisions from then on name the version they rest on
    Raises  what MLflow raises where it does not answer: then it is unknown what is named, and nothing may go
    """
    found = versioning.kept_versions(installation.versions)
    kept: dict[str, str] = dict.fromkeys(found[-VERSIONS:], f"one of the newest {VERSIONS}")
    for name, why in named_versions(installation, since):
        if name in found:
            kept.setdefault(name, why)
    return VersionPlan(kept, [name for name in found if name not in kept])


def named_versions(installation: Installation, since: datetime) -> Iterable[tuple[str, str]]:
    """Yield (data hash, who names it): registered models, champions and challengers, decisions since then."""
    for family in FAMILIES:
        for version in installation.tracking.versions(family):
            yield str(version.data_hash), f"{family} version {version.version} was trained on it"
        slots = installation.store.slots(family)
        for line in (slots.champion, slots.challenger):
            if line is not None:
                yield str(line.data_hash), f"{family} version {line.to_version} serves"
    for data_hash in installation.store.data_hashes(since):
        yield data_hash, "a decision rests on it"


@task
def remove_versions(plan: VersionPlan) -> int:
    """Delete the data versions that go, from cache and remote too. Return bytes freed.

    Also where no version goes: older versions that the remote has leave the cache, and what stages made up to release
    0.11, which cached it.
    """
    installation = open_installation()
    with workspace_lease(installation):
        bring_pointers(installation)  # the remote keeps what they name, also of a version that a worker made just now
        freed = versioning.forget_versions(installation.workspace, installation.versions, plan.gone)
        forget_versions(installation, plan.gone)
        return freed


@task
def remove_records(days: int) -> dict[str, int]:
    """Delete the records, alarms, requests and bundles of `bellwether prune`. Return kind → how many."""
    installation = open_installation()
    before = records_retention.cutoff(installation, days, learning_now(installation))
    return {one.what: one.n for one in records_retention.prune(installation, before)}


def old_reports(installation: Installation) -> list[Path]:
    """Return the folders of reports beyond the newest REPORTS of a kind; their names are moments, or market days."""
    folder = installation.settings.home / "reports"
    drift = sorted((folder / drift_reports.REPORTS).glob("*/[0-9]*"), key=lambda one: one.name)
    dated = [old for pattern in DATED for old in beyond_newest(folder, pattern)]
    return dated + drift[: -REPORTS * len(FAMILIES)]


def beyond_newest(folder: Path, pattern: str) -> list[Path]:
    """Return the folders of this pattern but the newest REPORTS."""
    dated = sorted(one for one in folder.glob(pattern) if one.is_dir())
    return dated[:-REPORTS]


def remove_evidently_runs(installation: Installation) -> int:
    """Remove the runs of each of Evidently's projects beyond the newest RUNS. Return how many."""
    return remove_oldest_runs(installation.settings.home / "evidently", RUNS)


@flow(name="retention", flow_run_name=run_name("retention"), log_prints=True)
def retention(days: int | None = None, dry_run: bool = False) -> dict[str, Any]:
    """Remove what is old and unnamed. Return what was removed, or with `dry_run` what would be.

    Args:
        days: Records older than this, in market time, may go; empty = BELLWETHER_KEEP_DAYS.
        dry_run: Change nothing; return what would be removed.
    """
    installation = open_installation()
    wanted = days or installation.settings.keep_days
    since = records_retention.cutoff(installation, wanted, learning_now(installation))
    plan, reports = plan_versions(installation, since), old_reports(installation)
    if dry_run:
        rows = {one.what: one.n for one in records_retention.plan(installation, since)}
        return {"versions": plan.gone, "kept": plan.kept, "records": rows, "reports": len(reports), "removed": False}
    with step("retention: data versions"):
        freed = remove_versions(plan)
    with step("retention: records"):
        rows = remove_records(wanted)
    for folder in reports:
        shutil.rmtree(folder, ignore_errors=True)
    runs = remove_evidently_runs(installation)
    report_progress(
        f"retention: {len(plan.gone)} data versions removed, {len(plan.kept)} kept, {disk.format_bytes(freed)} freed; "
        f"{sum(rows.values())} records and bundles, {len(reports)} reports, "
        f"{runs} runs of Evidently"
    )
    create_table_artifact(
        key="retention",
        table=[{"data version": name[:12], "kept because": why} for name, why in plan.kept.items()],
        description=f"{len(plan.gone)} data versions removed, {disk.format_bytes(freed)} freed",
    )
    return {
        "versions": plan.gone, "kept": plan.kept, "records": rows, "reports": len(reports), "evidently": runs,
        "freed_bytes": freed, "removed": True,
    }  # fmt: skip
