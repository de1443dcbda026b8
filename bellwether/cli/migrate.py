"""The home as a whole: move it between the profiles."""

from typing import Annotated, Any, Literal

import typer

from bellwether.cli.options import AsJson, DryRun, new_group
from bellwether.cli.output import emit, line, paragraph, progress_of, table
from pipelines.settings import settings

app = new_group()


@app.command()
def migrate(
    to: Annotated[Literal["machine", "cluster"], typer.Option(help="The profile to move to.")],
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Move this home to the other profile.

    machine: SQLite and folders under the home. cluster: PostgreSQL and an S3 store, those of the home or those that
    BELLWETHER_*_URL name. Moves the ledger with its chain, MLflow's and Prefect's databases, MLflow's artifacts and
    the data versions; each is compared with its source afterwards. Services must be down; the stores start by
    themselves. The old side is only read, and stays. What was cut short continues with the same command.
    """
    from bellwether.operations import migrate as migrations

    if dry_run:
        planned = migrations.plan(settings(), to)
        emit(planned) if as_json else _show_plan(planned)
        return
    record = migrations.migrate(settings(), to, progress_of(as_json))
    following, old = migrations.next_step(settings(), to), migrations.old_side(settings(), to)
    file = migrations.record_file(settings(), to)
    if as_json:
        emit({**record, "record": str(file), "next": following, "old": old})
        return
    moved = [[name, _amount(part), part["to"]] for name, part in record["parts"].items()]
    if moved:
        table(f"moved to {to}", ["part", "verified", "where"], moved)
    else:
        line("This home held nothing that moves.")
    if elsewhere := record["addresses_elsewhere"]:
        counts = ", ".join(f"{n:,} of {scheme}" for scheme, n in elsewhere.items())
        paragraph(f"MLflow names artifacts that its server does not keep ({counts}): they stay where they are.")
    line(f"written to {file}")
    paragraph(old)
    paragraph(following, lead="Next:")


def _show_plan(planned: dict[str, Any]) -> None:
    """Print what would move, and what has to stop first."""
    from bellwether.operations.migrate import NOT_COUNTED

    rows = []
    for part in planned["parts"]:
        holds = part["holds"]
        amount = NOT_COUNTED if holds is None else _amount({"rows": holds} if "files" not in holds else holds)
        rows.append([part["part"], amount, part["from"], part["to"]])
    table(f"would move to {planned['to']}", ["part", "holds", "from", "to"], rows)
    if planned["running"]:
        paragraph(f"First stop {', '.join(planned['running'])}: `bellwether down`.")
    line("Nothing was started or moved.")


def _amount(part: dict[str, Any]) -> str:
    """Return how much a part holds, in words."""
    if "files" in part:
        return f"{part['files']:,} files, {part['bytes'] / 1e6:,.1f} MB"
    rows = part["rows"]
    chain = f", chain of {part['chain_lines']:,} lines intact" if "chain_lines" in part else ""
    return f"{sum(rows.values()):,} rows in {len(rows)} tables{chain}" if rows else "nothing"
