"""Alarms and circuit breakers: alarms, breaker list, breaker trip, breaker reset."""

from typing import Annotated

import typer

from bellwether.cli.options import AsJson, Reason, new_group, user
from bellwether.cli.output import emit, table
from pipelines.errors import UnknownName

app = new_group()
breaker = new_group("List, trip and reset circuit breakers.")
app.add_typer(breaker, name="breaker")
Breaker = Annotated[str, typer.Argument(help="One of `bellwether breaker list`.")]
By = Annotated[str | None, typer.Option(help="Whose decision it is; your user name by default.")]


@app.command()
def alarms(
    clear: Annotated[list[int] | None, typer.Option(help="Number of an alarm to clear; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """List open alarms and tripped breakers.

    --clear NUMBER clears an alarm that was dealt with; `bellwether breaker` trips and resets breakers.
    """
    from flows.support.installation import now, open_installation

    store = open_installation().store
    for alarm_id in clear or []:
        if not store.clear_alarm(alarm_id, now()):
            raise UnknownName(f"no alarm {alarm_id} is open; `bellwether alarms` shows the numbers of those that are")
    found = [{"id": a.id, "kind": a.kind, "severity": a.severity, "detail": a.detail, "at": a.at.isoformat()}
             for a in store.alarms()]  # fmt: skip
    tripped = [{"name": b.name, "reason": b.reason, "at": b.tripped_at.isoformat()} for b in store.breaker_trips()]
    if as_json:
        emit({"alarms": found, "breakers": tripped})
        return
    rows = [[a["id"], a["kind"], a["severity"], a["detail"], to_second(str(a["at"]))] for a in found]
    table("open alarms", ["id", "kind", "severity", "what", "since (UTC)"], rows)
    if tripped:
        trips = [[b["name"], b["reason"], to_second(b["at"])] for b in tripped]
        table("tripped breakers", ["name", "why", "since (UTC)"], trips)


def to_second(moment: str | None) -> str | None:
    """Return the ISO 8601 moment to the second, as tables show it; None for None."""
    return moment and moment[:19].replace("T", " ")


@breaker.command("list")
def breaker_list(
    everything: Annotated[bool, typer.Option("--all", help="Every trip ever, with who reset it and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """List every breaker and whether it is tripped.

    A tripped breaker refuses new positions until it is reset.
    """
    from bellwether.operations.breakers import breakers, history
    from flows.support.installation import open_installation

    store = open_installation().store
    if everything:
        trips = history(store)
        if as_json:
            emit({"trips": trips})
            return
        rows = [
            [
                t["name"],
                to_second(t["tripped_at"]),
                t["reason"],
                to_second(t["reset_at"]),
                t["reset_by"],
                t["reset_reason"],
            ]
            for t in trips
        ]
        table("trips", ["name", "tripped (UTC)", "why", "reset (UTC)", "by", "why reset"], rows)
        return
    found = breakers(store)
    if as_json:
        emit({"breakers": found})
        return
    states = [[b["name"], "tripped" if b["tripped"] else "armed", to_second(b["since"]), b["reason"]] for b in found]
    table("breakers", ["name", "state", "since (UTC)", "why"], states)


@breaker.command("trip")
def breaker_trip(name: Breaker, reason: Reason = "", by: By = None, as_json: AsJson = False) -> None:
    """Trip a breaker now.

    `emergency` puts every symbol into tier 4. Needs no server.
    """
    from bellwether.operations.breakers import trip
    from flows.support.installation import now, open_installation

    trip(open_installation().store, name, now(), by or user(), reason)
    breaker_list(as_json=as_json)


@breaker.command("reset")
def breaker_reset(name: Breaker, reason: Reason = "", by: By = None, as_json: AsJson = False) -> None:
    """Reset a tripped breaker.

    Resetting `daily_loss` or `drawdown` accepts the loss so far: counting starts again from here.
    """
    from bellwether.operations.breakers import reset
    from flows.support.installation import now, open_installation

    reset(open_installation().store, name, now(), by or user(), reason)
    breaker_list(as_json=as_json)
