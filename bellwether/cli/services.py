"""Start, stop and watch the services: up, down, restart, status, doctor, open."""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from bellwether.cli.connection import connect, require_services
from bellwether.cli.options import AsJson, new_group
from bellwether.cli.output import emit, line, number, paragraph, progress_of, table
from flows.support import processes, service_table
from pipelines.errors import UnknownName
from pipelines.settings import settings

app = new_group()


@app.command()
def up(as_json: AsJson = False) -> None:
    """Start all services and wait until they work.

    The services are MLflow, Prefect, the flows, the feed, the two BentoML services and the Evidently UI.
    """
    start_services(as_json)
    show_services(as_json)


def start_services(quiet: bool, ready: bool = True) -> None:
    """Rebuild a refused warm start, start what is not running, and give this process the key of a new home."""
    from bellwether.operations import start_stop, warm_starts

    progress = progress_of(quiet)
    if own := [name for name in service_table.services_of(settings()) if name in service_table.STORES]:
        start_stop.up(settings(), own, progress=progress)  # a warm start is checked against the ledger
    warm_starts.before_start(settings(), progress)
    start_stop.up(settings(), progress=progress, ready=ready)
    connect()  # the first start created the key


@app.command()
def down(as_json: AsJson = False) -> None:
    """Stop everything `up` started, workers before servers."""
    from bellwether.operations import start_stop

    start_stop.down(settings(), progress=progress_of(as_json))
    show_services(as_json)


@app.command()
def restart(
    names: Annotated[list[str] | None, typer.Argument(help="Services; all that run by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Restart services that run."""
    from bellwether.operations import start_stop

    start_stop.restart(settings(), names or None, progress=progress_of(as_json))
    show_services(as_json)


def show_services(as_json: bool) -> None:
    """Print the state of every service now."""
    found = processes.services(settings())
    if as_json:
        emit(found)
    else:
        show_states(found)


def show_states(found: Mapping[str, processes.State]) -> None:
    """Print the states of services as a table."""
    rows = [[name, state["state"], state["url"], state["detail"]] for name, state in found.items()]
    table("services", ["service", "state", "url", "why"], rows)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show health, live models, services and alarms.

    With the universe, the feed, what is due in market time and what is frozen. Answers from stored state when services
    are down.
    """
    from bellwether.operations.status import stored_status

    found = stored_status()
    if as_json:
        emit(found)
    else:
        show_status(found)


def show_status(found: Mapping[str, Any]) -> None:
    """Print a status, health and its reason first."""
    paragraph(found["health_reason"], lead=found["health"])
    if found["waiting_for_first_turn"]:
        line("waiting for the first turn: `bellwether run`")
    rows = [
        [family, arm, slot["version"], slot["digest"][:12], slot["data_hash"][:12], slot["git_commit"][:9],
         slot["verdict"]]
        for family, slots in found["families"].items()
        for arm, slot in slots.items()
        if slot
    ]  # fmt: skip
    table("families", ["family", "arm", "version", "digest", "data", "commit", "gate"], rows)
    for each in found.get("experiments", []):
        paragraph(each)
    show_states(found["services"])
    line(f"tier {found['tier']}, data {found['data_hash']}")
    show_market(found)
    for alarm in found["alarms"]:
        paragraph(f"{alarm['kind']}: {alarm['detail']} ({alarm['at']})", lead=alarm["severity"])


def _minute(moment: str | None) -> str | None:
    """Return an ISO 8601 moment as date and minute, for a table; None for none."""
    return moment and moment[:16].replace("T", " ")


def level_text(level: Mapping[str, Any]) -> str:
    """Return the share of closes with a decision in time, today and of 30 days, with what is left of the budget."""
    shown = []
    for window, name in (("day", "today"), ("30d", "30 days")):
        one = level["windows"][window]
        if one["share"] is None:
            shown.append(f"{name} no close was due")
            continue
        missed = "" if one["met"] == one["due"] else f" ({one['late']} late, {one['missed']} missed)"
        shown.append(f"{name} {one['met']:,} of {one['due']:,} closes, {one['share']:.3%}{missed}")
    used = level["windows"]["30d"]["budget_used"]
    budget = "" if used is None else f"; budget used {used:.0%}"
    return f"{'; '.join(shown)}; decided within {level['limit_s']:g} s, target {level['target']:.1%}{budget}"


def show_market(found: Mapping[str, Any]) -> None:
    """Print the universe, the feed, what is due in market time, what is frozen and what is disabled."""
    if universe := found.get("universe"):
        table("universe", ["symbol", "newest bar (UTC)", "since, s", "age, bars", "tier", "why"], [
            [one["symbol"], _minute(one["newest_bar"]), number(one["age_s"], 0),
             number(one["age_bars"], 2), one["tier"], one["left_out"] or one["tier_reason"]]
            for one in universe
        ])  # fmt: skip
    if feed := found.get("feed"):
        lag = "" if feed["lag_bars"] is None else f", {feed['lag_bars']:g} bars behind"
        paragraph(f"{feed['condition']}; market time {_minute(feed['market_time']) or 'unknown'}{lag}", lead="feed")
    if level := found.get("service_level"):
        paragraph(level_text(level), lead="service level")
    due = found.get("due") or {"deployments": {}}
    if due["deployments"]:
        table(
            f"due in market time, speed {due['speed']:g}" if due["paced_by"] == "market" else "missed",
            ["deployment", "last", "next due", "waiting", "missed"],
            [[name, _minute(one.get("last")), _minute(one.get("next_due")), one.get("waiting"), one["missed"]]
             for name, one in due["deployments"].items()],
        )  # fmt: skip
    for one in found.get("frozen", []):
        paragraph(one["text"], lead="frozen")
    disabled = found.get("disabled", {})
    for what, names in disabled.items():
        if names:
            line(f"disabled by params.yaml: {what} {', '.join(names)}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this installation and show what to fix.

    Ports, disk, versions, permissions, store, services. Exit code 1 if anything would stop a run.
    """
    from bellwether.operations.doctor import examine

    findings = examine(settings())
    if as_json:
        emit([asdict(f) for f in findings])
    else:
        rows = [[f.name, f.state, f.detail, f.remedy] for f in findings]
        table("doctor", ["check", "state", "detail", "remedy"], rows)
    if any(f.state == "fail" for f in findings):
        raise typer.Exit(1)


@app.command("open")
def open_tool(
    tool: Annotated[str, typer.Argument(help="mlflow | prefect | decision | models | evidently")],
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the link.")] = False,
    as_json: AsJson = False,
) -> None:
    """Open a tool in the browser, by one-time link."""
    import webbrowser

    from serving.service import keys

    known = [name for name, service in service_table.SERVICES.items() if service.port_field]
    if tool not in known:
        raise UnknownName(f"no tool {tool!r}; known: {', '.join(known)}")
    require_services(tool, ready=False)  # a page that shows what is wrong is useful, too
    port = processes.services(settings(), {tool: service_table.SERVICES[tool]})[tool]["port"]
    host = "127.0.0.1" if settings().host == "0.0.0.0" else settings().host
    ticket = keys.create_ticket(settings(), tool)
    tls = {behind: front for front, behind in settings().tls_ports.items()} if settings().runs_tls else {}
    server = f"https://{settings().tls_name}:{tls[port]}" if port in tls else f"http://{host}:{port}"
    url = f"{server}/session?ticket={ticket}"
    if as_json:
        emit({"tool": tool, "url": url, "seconds": keys.TICKET_SECONDS})
        return
    line(url)
    has_screen = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if has_screen and not no_browser:
        webbrowser.open(url)
    else:
        line(f"Open the link in a browser within {keys.TICKET_SECONDS} s. It works once.")
