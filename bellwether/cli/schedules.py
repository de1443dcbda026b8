"""`bellwether schedules`: when the flows run by themselves."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from bellwether.cli.connection import require_services
from bellwether.cli.options import AsJson, DryRun, new_group
from bellwether.cli.output import emit, table
from pipelines.settings import load_params, settings

if TYPE_CHECKING:
    from flows.support.schedules import DeploymentStatus

app = new_group()
schedules = new_group("List and reset the schedules of the flows; edit them in the Prefect UI.")
app.add_typer(schedules, name="schedules", invoke_without_command=True, no_args_is_help=False)


@schedules.callback()
def list_by_default(context: typer.Context, as_json: AsJson = False) -> None:
    """List the schedules if no command is given."""
    if context.invoked_subcommand is None:
        list_schedules(as_json)


@schedules.command("list")
def list_schedules(as_json: AsJson = False) -> None:
    """List the schedules of each deployment.

    Active, paused or held, and what differs from the plan of this release. While a market runs at another speed than
    the time of day, the schedules of what follows it are held: its runs start in market time.
    """
    require_services("prefect")
    from flows.support.pacing import read_pacing
    from flows.support.schedules import deployment_statuses

    found = deployment_statuses(load_params(settings().params_file), read_pacing(settings()).held)
    show_schedules("schedules", found, as_json)


@schedules.command("reset")
def reset_schedules(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Reset schedules to the plan of this release.

    Schedules, default parameters and the drift trigger. Shows what differed.
    """
    require_services("prefect")
    from flows.support.pacing import read_pacing
    from flows.support.schedules import deployment_statuses, reset

    params, held = load_params(settings().params_file), read_pacing(settings()).held
    found = [s for s in deployment_statuses(params, held) if s.differences] if dry_run else reset(params, held)
    show_schedules("would be reset to the plan" if dry_run else "reset to the plan", found, as_json)


def show_schedules(title: str, found: Sequence["DeploymentStatus"], as_json: bool) -> None:
    """Print one row per deployment: its schedules and triggers, and what differs from the plan."""
    if as_json:
        emit([asdict(one) for one in found])
        return
    table(title, ["deployment", "schedules and triggers", "not as planned"], [
        [one.deployment, "\n".join(_schedule_lines(one)) or None,
         "\n".join(one.differences) or None]
        for one in found
    ])  # fmt: skip


def _schedule_lines(one: "DeploymentStatus") -> list[str]:
    """Return what starts a deployment, one line each."""
    held = ["held: runs start in market time, see `bellwether status`"] if one.held else []
    return [*(["paused as a whole"] if one.paused else []), *held, *one.schedules]
