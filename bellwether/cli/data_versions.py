"""`bellwether data`: the data versions of this installation, and the market data of a clone."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bellwether.cli.options import AsJson, Reason, new_group, user
from bellwether.cli.output import emit, line, progress_of, table
from pipelines.errors import BadValues

if TYPE_CHECKING:
    from pipelines.contracts import JsonObject

versions = new_group()
By = Annotated[str | None, typer.Option(help="Whose decision it is; your user name by default.")]
OneVersion = Annotated[str, typer.Argument(help="The beginning of a data hash of `bellwether data list`, or newest.")]


@versions.command("restore")
def data_restore(as_json: AsJson = False) -> None:
    """Bring data/ of this clone, as data.dvc describes it.

    From a remote, or simulated again. Then `dvc status`, `dvc repro` and every other command work in the clone.
    """
    from bellwether.operations.restore_data import restore
    from pipelines.settings import settings

    found = restore(settings(), progress=progress_of(as_json))
    if as_json:
        emit(asdict(found))
        return
    line(f"data {found.data_hash[:12]}: {found.match}, {found.came_from}")
    line("Next: `dvc repro` computes features, labels and models from them.")


@versions.command("list")
def data_list(as_json: AsJson = False) -> None:
    """List the data versions of this installation, newest last."""
    from bellwether.operations.data_versions import listed
    from flows.support.checked_out import checked_out
    from flows.support.installation import open_installation

    installation = open_installation()
    found, older = listed(installation), checked_out(installation.settings)
    if as_json:
        emit({"versions": found, "next_retrain": older and asdict(older)})
        return
    table(
        "data versions",
        ["version", "kept (UTC)", "markets", "bars", "first", "last", "MB", "workspace"],
        [_row(one) for one in found],
    )
    if older is not None:
        line(f"The next retrain is {older.describe()}.")


@versions.command("show")
def data_show(version: OneVersion = "newest", as_json: AsJson = False) -> None:
    """Show one data version, and what serves on it."""
    from bellwether.operations.data_versions import shown
    from flows.support.installation import open_installation

    found = shown(open_installation(), version)
    if as_json:
        emit(found)
        return
    table(
        f"data version {found['data_hash']}, {found['bytes'] / 1e6:,.1f} MB, {len(found['files'])} files",
        ["symbol", "bars of", "bars", "first", "last", "book", "context", "quality"],
        [[symbol, of["timeframe"], f"{of['rows']:,}" if of["rows"] else None, _minute(of["first"]), _minute(of["last"]),
          _yes(of["has_book"]), _yes(of["has_context"]), of["score"]] for symbol, of in found["facts"].items()],
    )  # fmt: skip
    for symbol, why in found["left_out"].items():
        line(f"{symbol} was left out: {why}")
    line(f"serves on it: {', '.join(found['serves']) or 'nothing'}")


@versions.command("diff")
def data_diff(first: OneVersion, second: OneVersion = "newest", as_json: AsJson = False) -> None:
    """Compare two data versions: markets, months, parameters."""
    from bellwether.operations.data_versions import compared
    from flows.support.installation import open_installation

    found = compared(open_installation(), first, second)
    if as_json:
        emit(found)
        return
    files = found["files"]
    rows = [[symbol, "market", None, "added"] for symbol in found["markets_added"]]
    rows += [[symbol, "market", "there", "gone"] for symbol in found["markets_gone"]]
    rows += [[symbol, name, *change] for symbol, of in found["facts"].items() for name, change in of.items()]
    rows += [["params.yaml", name, *change] for name, change in found["params"].items()]
    table(f"{found['first'][:12]} to {found['second'][:12]}", ["of", "what", "before", "after"], rows)
    for how, names in files.items():
        if names:
            line(f"{len(names)} files {how}: {', '.join(names)}")
    if not rows and not any(files.values()):
        line("They are the same.")


@versions.command("checkout")
def data_checkout(version: OneVersion, reason: Reason = "", by: By = None, as_json: AsJson = False) -> None:
    """Put a data version into the workspace.

    The next retrain learns from it as it is, and its versions say so; later ones learn from the newest again. Needs a
    stopped feed. `checkout newest` takes it back.
    """
    from bellwether.operations.data_versions import checkout
    from flows.support.checked_out import CheckedOut
    from flows.support.installation import open_installation

    if not reason.strip():
        raise BadValues("--reason is missing: the next retrain's versions carry it")
    found = checkout(open_installation(), version, by or user(), reason)
    if as_json:
        emit(found)
        return
    line(f"data {found['data_hash'][:12]} is in the workspace.")
    if found["next_retrain"] is not None:
        line(f"The next retrain is {CheckedOut(**found['next_retrain']).describe()}.")


@versions.command("export")
def data_export(
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet.")],
    version: OneVersion = "newest",
    csv: Annotated[bool, typer.Option("--csv", help="Also a CSV of the bars of each market.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy a data version to a folder."""
    from bellwether.operations.data_versions import export
    from flows.support.installation import open_installation

    found = export(open_installation(), version, folder, csv)
    if as_json:
        emit(found)
        return
    line(f"data {found['data_hash'][:12]}: {len(found['files'])} files in {found['folder']}")


def _row(one: "JsonObject") -> list[object]:
    """Return the cells of one data version in the list."""
    symbols = one["symbols"]
    return [
        one["data_hash"][:12], _minute(one["kept_at"]),
        "its data are gone" if symbols is None else ", ".join(symbols),
        None if one["bars"] is None else f"{one['bars']:,}",
        _minute(one["first"]), _minute(one["last"]), f"{one['bytes'] / 1e6:,.1f}", _yes(one["in_workspace"]),
    ]  # fmt: skip


def _minute(moment: str | None) -> str | None:
    """Return an ISO 8601 moment to the minute."""
    return None if moment is None else moment[:16].replace("T", " ")


def _yes(holds: bool | None) -> str | None:
    """Return yes, or a dash."""
    return "yes" if holds else None
