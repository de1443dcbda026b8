"""Options that several commands share, and how moments are written."""

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from pipelines.errors import BadTimes

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen, change nothing.")]
Reason = Annotated[str, typer.Option(help="Why; it is recorded.")]
NewestMarket = Annotated[str | None, typer.Argument(help="Such as BTC/USDT; the newest snapshot's by default.")]
Venue = Annotated[str | None, typer.Option(help="Where a file was recorded, such as binance: its costs are paid.")]
MarketKind = Annotated[str | None, typer.Option(help="spot | perpetual | future | forex | metal | stock, of a file.")]
Sessions = Annotated[
    str | None, typer.Option(help="When a file's market is open: 24x7 | forex | us-equity | us-futures | FILE.")
]
Page = Annotated[Path | None, typer.Option(help="The page to write; one under <home>/reports by default.")]


def new_group(help: str | None = None) -> typer.Typer:
    """Return a group of commands with plain help, as git and mlflow print it."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"max_content_width": 100},
    )


def user() -> str:
    """Return the name under which a person's decisions are recorded."""
    return os.environ.get("USER", "operator")


def moment(text: str | None, option: str) -> datetime | None:
    """Return an ISO 8601 moment; None for None. Raises BadTimes without a time zone."""
    if text is None:
        return None
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise BadTimes(f"{option} {text} has no time zone; write {text}+00:00 for UTC")
    return found


def day_or_moment(text: str | None) -> datetime | None:
    """Return the moment given with --since: `2024-01-31` is midnight UTC of that day; a time of day needs its zone."""
    if text is None:
        return None
    try:
        return moment(f"{text}T00:00+00:00" if len(text) == len("2024-01-31") else text, "--since")
    except ValueError as error:
        raise BadTimes(f"--since {text} is no day or moment ({error}); write 2024-01-31") from error
