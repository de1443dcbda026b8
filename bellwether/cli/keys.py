"""`bellwether key`: the key of this installation, and those of its clients."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from bellwether.cli.connection import connect
from bellwether.cli.options import AsJson, new_group
from bellwether.cli.output import emit, line, progress_of, table
from bellwether.cli.services import show_services
from flows.support import processes
from pipelines.errors import BadValues, WouldOverwrite
from pipelines.settings import settings
from serving.service import client_keys, keys
from serving.service.client_keys import ClientKey
from serving.service.scopes import SCOPES

app = new_group()
key = new_group("Manage the keys of this installation and its clients.")
app.add_typer(key, name="key")
Client = Annotated[str, typer.Argument(help="Name of the client: a-z, 0-9, _ and -, such as desk-1.")]
Granted = Annotated[list[str], typer.Option("--scope", help=f"{' | '.join(SCOPES)}; may be repeated.")]
Lifetime = Annotated[int | None, typer.Option(help="Days until the key ends; without, it does not end.")]
Into = Annotated[Path | None, typer.Option("--to", help="A new file for the key, which is not shown then.")]


@key.command("path")
def path() -> None:
    """Print the path of the key file."""
    if keys.configured_key(settings()) is not None:
        raise BadValues("the key comes from BELLWETHER_WRITE_KEY, not from a file. Unset it to use the file's key.")
    typer.echo(keys.key_file(settings()))


@key.command("rotate")
def rotate(as_json: AsJson = False) -> None:
    """Replace the key and restart what is running.

    Keys of clients stay as they are; their browser sessions end.
    """
    from bellwether.operations import start_stop

    running = [name for name, state in processes.services(settings()).items() if state["pid"] is not None]
    keys.rotate_key(settings())
    start_stop.down(settings())
    connect()
    if running:
        start_stop.up(settings(), running, progress=progress_of(as_json))
    show_services(as_json)


@key.command("list")
def key_list(as_json: AsJson = False) -> None:
    """List clients, their scopes and when keys end."""
    now = client_keys.now_utc()
    clients = [shown(client, now) for client in client_keys.client_keys(settings())]
    if as_json:
        emit({"clients": clients})
        return
    if not clients:
        line("no client has a key: `bellwether key add NAME --scope SCOPE` makes one")
        return
    rows = [[c["name"], c["state"], c["scopes"], c["created"], c["ends"]] for c in clients]
    cells = [[" ".join(cell) if isinstance(cell, list) else cell for cell in row] for row in rows]
    table("keys of clients", ["name", "state", "scopes", "created (UTC)", "ends (UTC)"], cells)


def shown(client: ClientKey, now: datetime) -> dict[str, object]:
    """Return what is shown of a key: name, state (valid | expired), scopes, and times to the minute, UTC."""
    return {
        "name": client.name,
        "state": "expired" if client.has_ended(now) else "valid",
        "scopes": list(client.scopes),
        "created": f"{client.created:%F %H:%M}",
        "ends": None if client.ends is None else f"{client.ends:%F %H:%M}",
    }


@key.command("add")
def key_add(name: Client, scope: Granted, days: Lifetime = None, to: Into = None, as_json: AsJson = False) -> None:
    """Make a key for a client, shown once.

    It counts within two seconds, without a restart. docs/security.md says what each scope opens.
    """
    now = client_keys.now_utc()
    if to is None:
        client, secret = client_keys.add_client(settings(), name, scope, now, days)
    else:
        client, secret = add_into(to, name, scope, now, days), None
    if as_json:
        emit(shown(client, now) | ({"file": str(to)} if secret is None else {"key": secret}))
        return
    until = "" if client.ends is None else f" until {client.ends:%F %H:%M} UTC"
    where = f"in {to}" if secret is None else "shown this once"
    line(f"{client.name} may {'; '.join(SCOPES[one] for one in client.scopes)}{until}. Its key, {where}:")
    line(str(to) if secret is None else secret)


def add_into(file: Path, name: str, scopes: list[str], now: datetime, days: int | None) -> ClientKey:
    """Make a key and write it to a new file, mode 0600; return its client.

    Raises as `add_client`, and for `file` WouldOverwrite if it exists, BadValues if it cannot be written; no key is
    left without its file.
    """
    try:
        file.touch(0o600, exist_ok=False)
    except FileExistsError as error:
        raise WouldOverwrite(f"--to {file}: exists. Name a new file, or remove this one.") from error
    except OSError as error:
        raise BadValues(
            f"--to {file}: cannot be written: {error.strerror}. Name a file in a folder of yours."
        ) from error
    try:
        client, secret = client_keys.add_client(settings(), name, scopes, now, days)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    try:
        file.write_text(secret + "\n")
    except OSError as error:
        client_keys.revoke_client(settings(), name)
        file.unlink(missing_ok=True)
        raise BadValues(f"--to {file}: cannot be written: {error.strerror}. {name} has no key.") from error
    return client


@key.command("revoke")
def key_revoke(name: Client, as_json: AsJson = False) -> None:
    """End the key of a client, and its sessions.

    It counts within two seconds, without a restart; streams and WebSockets of the client end.
    """
    client_keys.revoke_client(settings(), name)
    key_list(as_json)
