"""`bellwether key`: the key of this installation."""

import typer

from bellwether.cli.connection import connect
from bellwether.cli.options import AsJson, new_group
from bellwether.cli.output import progress_of
from bellwether.cli.services import show_services
from flows.support import processes
from pipelines.errors import BadValues
from pipelines.settings import settings
from serving.service import keys

app = new_group()
key = new_group("Manage the key of this installation.")
app.add_typer(key, name="key")


@key.command("path")
def path() -> None:
    """Print the path of the key file."""
    if keys.configured_key(settings()) is not None:
        raise BadValues("the key comes from BELLWETHER_WRITE_KEY, not from a file. Unset it to use the file's key.")
    typer.echo(keys.key_file(settings()))


@key.command("rotate")
def rotate(as_json: AsJson = False) -> None:
    """Replace the key and restart what is running."""
    from bellwether.operations import start_stop

    running = [name for name, state in processes.services(settings()).items() if state["pid"] is not None]
    keys.rotate_key(settings())
    start_stop.down(settings())
    connect()
    if running:
        start_stop.up(settings(), running, progress=progress_of(as_json))
    show_services(as_json)
