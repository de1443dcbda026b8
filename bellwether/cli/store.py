"""The store of an installation: backup, restore, prune, verify, audit."""

from collections.abc import Collection, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bellwether.cli.options import AsJson, DryRun, Reason, new_group, user
from bellwether.cli.output import emit, err, line, paragraph, table
from pipelines.errors import BadValues
from pipelines.settings import settings

if TYPE_CHECKING:
    from bellwether.operations.audit import Audit
    from flows.support.installation import Installation
    from pipelines.store import Verified

SHOWN_FAULTS = 10

app = new_group()


@app.command()
def backup(
    to: Annotated[Path | None, typer.Option(help="The file to write; one under <home>/backups by default.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Back up the store and the serving state.

    Writes one file while everything runs. It holds every table of the store but leases, the generation file with its
    warm start, and the pointers of the stored data versions. Models and data are in stores of their own, with backups
    of their own: MLflow's database and artifacts (<home>/mlflow, or where your server puts them) and DVC's remote
    (<home>/dvc-remote, or BELLWETHER_REMOTE_URL).
    """
    from bellwether.operations import backup as backups
    from flows.support.installation import now

    at = now()
    file = to or backups.default_file(settings(), at)
    rows = backups.preview(settings(), file) if dry_run else None
    made = None if dry_run else backups.make(settings(), file, at)
    counts = made.rows() if made is not None else rows or {}
    if as_json:
        emit({
            "file": str(file),
            "written": not dry_run,
            "rows": counts,
            "schema": made and made.schema,
            "files": made and sorted(made.files),
            "bytes": made and file.stat().st_size,
            "sha256": made and backups.file_sha256(file),
            "not_included": backups.NOT_INCLUDED,
        })  # fmt: skip
        return
    show_backup("backup", counts, None if made is None else made.files)
    line(f"{'would be written to' if dry_run else 'written to'} {file}")
    line("Not included:")
    for name, text in backups.NOT_INCLUDED.items():
        paragraph(f"{name}: {text}")


def show_backup(title: str, rows: Mapping[str, int], files: Collection[str] | None) -> None:
    """Print how many rows of each table a backup holds, and how many files if it is known."""
    counted = [[name, f"{n:,}"] for name, n in rows.items()]
    table(title, ["table", "rows"], counted if files is None else [*counted, ["files", len(files)]])


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file that `bellwether backup` wrote.")],
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Restore a backup into an empty store.

    Into SQLite or PostgreSQL: all of it, checked digest by digest, or nothing. Services must be down. A backup of an
    earlier release is migrated to this one. MLflow's and DVC's own stores are restored with their own means;
    `bellwether run --once` then fetches the bundles the ledger names.
    """
    from bellwether.operations import backup as backups

    made, placed = (backups.verify(settings(), file), []) if dry_run else backups.restore_installation(settings(), file)
    if as_json:
        emit({"file": str(file), "restored": not dry_run, "schema": made.schema, "made_at": made.made_at.isoformat(),
              "rows": made.rows(), "files": sorted(made.files),
              "placed": [{"path": p.path, "moved_to": p.moved_to} for p in placed]})  # fmt: skip
        return
    show_backup("restore", made.rows(), made.files)
    word = "checked; would be restored" if dry_run else "restored"
    line(f"{word}: {file} of {made.made_at:%F %T} UTC")
    for one in placed:
        line(f"wrote {one.path}{f'; the file before it is {one.moved_to}' if one.moved_to else ''}")


@app.command()
def prune(
    days: Annotated[
        int | None, typer.Option(min=30, help="Retain so many days; BELLWETHER_KEEP_DAYS by default.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without this it only shows what would go.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Remove old records that nothing refers to.

    Shows what would go; --yes removes it. Promotions, trials, observed bars, emitted or resolved decisions, and bundles
    that anything names are never removed.
    """
    from flows.support import records_retention as retention
    from flows.support.installation import open_installation
    from flows.support.market_time import learning_now

    installation = open_installation()
    before = retention.cutoff(installation, days or installation.settings.keep_days, learning_now(installation))
    removing = yes and not dry_run
    versions = _versions(installation, before, removing)
    found = retention.prune(installation, before) if removing else retention.plan(installation, before)
    if as_json:
        removals = {
            r.what: {"n": r.n, "oldest": r.oldest and r.oldest.isoformat(), "bytes": r.bytes, "rule": r.rule}
            for r in found
        }
        emit({"before": before.isoformat(), "removed": removing, "removals": removals, "versions": versions})
        return
    title = f"{'removed' if removing else 'would remove'} what is older than {before:%F %T} UTC"
    table(title, ["what", "n", "oldest (UTC)", "bytes", "which"], [
        [r.what, f"{r.n:,}", r.oldest and f"{r.oldest:%F %T}", None if r.bytes is None else f"{r.bytes:,}", r.rule]
        for r in found
    ])  # fmt: skip
    if "not_judged" in versions:
        paragraph(f"Data versions stay: {versions['not_judged']}")
    else:
        word = "removed" if removing else "would be removed"
        line(f"{len(versions['gone'])} data versions {word}, {len(versions['kept'])} kept")
    if not removing and any(r.n for r in found):
        line("Nothing was removed. `bellwether prune --yes` removes it.")


def _versions(installation: "Installation", since: datetime, removing: bool) -> dict[str, Any]:
    """Return the data versions that go and those that stay with their reason, or why none was judged; remove them."""
    from flows.support import processes

    if not processes.is_responding(installation.settings, "mlflow"):
        return {"not_judged": "MLflow does not answer, so it is not known which ones models were trained on"}
    from flows import retention  # with Prefect, which takes seconds

    plan = retention.plan_versions(installation, since)
    freed = retention.remove_versions.fn(plan) if removing else 0
    return {"gone": plan.gone, "kept": plan.kept, "freed_bytes": freed}


@app.command()
def verify(
    everything: Annotated[bool, typer.Option("--all", help="From the first line, not from the newest anchor.")] = False,
    accept: Annotated[bool, typer.Option("--accept", help="Let it count as it is now; needs --reason.")] = False,
    reason: Reason = "",
    by: Annotated[str | None, typer.Option(help="Who accepts; your user name by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Verify that the ledger is as it was written.

    Compares verdicts, promotions, outcomes, corrections and decisions with the chain under the key of this home, and
    the chain with its anchors here and in MLflow. Exit code 1 if a row was edited, deleted, inserted or moved, or the
    end is missing: then nothing is promoted until a person accepts it. What is served stays.
    """
    from flows.support import ledger_chain
    from flows.support.installation import open_installation
    from flows.support.promotion import promotion_lease

    if accept and not reason.strip():
        raise BadValues("--accept needs --reason: why the ledger may stay as it is; nothing was accepted")
    installation = open_installation()
    with promotion_lease(installation):
        if accept:
            before, found = ledger_chain.accept(installation, by or user(), reason)
        else:
            before = found = ledger_chain.verify(installation, everything)
        anchored = None if found.faults else ledger_chain.anchor(installation)
    if as_json:
        emit({
            "intact": not found.faults, "lines": found.lines, "since_line": found.since, "rows": found.rows,
            "decisions": found.decisions, "faults": [asdict(fault) for fault in found.faults],
            "accepted": found.accepted, "anchored_line": None if anchored is None else anchored.seq,
        })  # fmt: skip
    else:
        _show_verified(found, len(before.faults) - len(found.faults), None if anchored is None else anchored.seq)
    if found.faults:
        raise typer.Exit(1)


def _show_verified(found: "Verified", accepted_now: int, anchored_line: int | None) -> None:
    """Print what was compared and what is wrong."""
    rows = [
        ["lines of the chain", f"{found.lines:,}"],
        ["rows compared", f"{found.rows:,}, of lines after {found.since:,} and all promotions"],
        ["decisions under roots computed again", f"{found.decisions:,}"],
        ["faults a person accepted", f"{found.accepted:,}"],
        ["faults", f"{len(found.faults):,}"],
    ]
    table("the ledger and its chain", ["what", "found"], rows)
    for fault in found.faults[:SHOWN_FAULTS]:
        paragraph(fault.describe(), lead="FAULT")
    if len(found.faults) > SHOWN_FAULTS:
        line(f"and {len(found.faults) - SHOWN_FAULTS:,} more; --json has all")
    if accepted_now:
        paragraph(
            f"{accepted_now:,} faults accepted; what the ledger holds counts from here on, by whom and why is in it."
        )
    if anchored_line is not None:
        line(f"intact; anchored at line {anchored_line}")
    else:
        paragraph("no champion moves, what is served stays; docs/runbook.md says what to do.", lead="NOT intact:")


@app.command()
def audit(
    day: Annotated[str, typer.Argument(help="A day of decisions, UTC, such as 2024-01-31.")],
    to: Annotated[Path | None, typer.Option(help="The file to write; <home>/audits/DAY.zip by default.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Prove a day of decisions to somebody else.

    Writes one zip with the decisions of the day, their outcomes, the verdicts and promotions up to its end, the chain
    with its anchors, parameters and model cards, and a verifier that needs Python alone. The key of the chain stays
    here. `bellwether verify` first seals what came in. Exit code 1 if the verifier finds a fault in what was written.
    """
    from bellwether.operations import audit as audits
    from flows.support.installation import now, open_installation
    from flows.support.progress import progress_display

    installation, of = open_installation(), audits.day_of(day)
    file = to or audits.default_file(installation.settings, of)
    if dry_run:
        counts = audits.preview(installation, of, file)
        if as_json:
            emit({"file": str(file), "written": False, "day": str(of), "counts": counts})
        else:
            table(f"audit of {of}", ["what", "n"], [[name, f"{n:,}"] for name, n in counts.items()])
            line(f"would be written to {file}")
        return
    with progress_display(err):
        made = audits.make(installation, of, file, now())
    if as_json:
        emit({"file": str(file), "written": True, "day": str(of), "over": made.over, "counts": made.counts,
              "missing": made.missing, "intact": made.intact, "checks": made.checks,
              "bytes": file.stat().st_size})  # fmt: skip
    else:
        _show_audit(of, made)
    if not made.intact:
        raise typer.Exit(1)


def _show_audit(day: object, made: "Audit") -> None:
    """Print what an audit has, what it lacks, and what its verifier found."""
    table(f"audit of {day}", ["what", "n"], [[name, f"{n:,}"] for name, n in made.counts.items()])
    for text in made.missing:
        paragraph(text, lead="missing:")
    if not made.over:
        line("The day is not over: a later audit has more.")
    if unsealed := made.counts["not sealed"]:
        line(f"{unsealed:,} decisions are not sealed yet; `bellwether verify` seals them.")
    for text in made.checks:
        if not text.startswith("ok "):
            paragraph(text)
    verified = "its verifier found no fault" if made.intact else "its verifier found FAULTS"
    line(f"written to {made.file}; {verified}")
