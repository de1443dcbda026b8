"""Options that several commands share, and how moments are written."""

import os
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.errors import BadTimes

DAY = "2024-01-31"  # how a day is written


def canonical(text: str | None) -> str | None:
    """Return the canonical name of the symbol that was typed; None for none. Raises UnknownName."""
    from pipelines.data.symbols import parse_symbol

    return None if text is None else parse_symbol(text)


def canonical_each(texts: list[str] | None) -> list[str] | None:
    """Return the canonical names of symbols that were typed. Raises UnknownName."""
    from pipelines.data.symbols import parse_symbol

    return None if texts is None else [parse_symbol(text) for text in texts]


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen, change nothing.")]
Reason = Annotated[str, typer.Option(help="Why; it is recorded.")]
NewestMarket = Annotated[
    str | None, typer.Argument(help="Such as BTC/USDT; the first of the universe by default.", callback=canonical)
]
OneMarket = Annotated[
    str | None, typer.Option("--symbol", help="Such as BTC/USDT; the first of the universe.", callback=canonical)
]
Source = Annotated[str | None, typer.Option(help="simulator | files | exchange | push; the simulator by default.")]
Paths = Annotated[
    list[str] | None,
    typer.Option(help="File, archive or folder for --source files; SYMBOL=FILE of several symbols; may be repeated."),
]
Days = Annotated[int | None, typer.Option(min=1, help="Days of bars for --source exchange.")]
Since = Annotated[str | None, typer.Option(help="First day or moment for --source exchange.")]
ContextFiles = Annotated[
    list[Path] | None,
    typer.Option(help="File of context (funding, fear and greed …) or folder of a recorded book; may be repeated."),
]
Venue = Annotated[str | None, typer.Option(help="Where a file was recorded, such as binance: its costs are paid.")]
MarketKind = Annotated[str | None, typer.Option(help="spot | perpetual | future | forex | metal | stock, of a file.")]
SeriesName = Annotated[
    list[str] | None, typer.Option("--name", help="Names the last --context as a series, such as options_flow.")
]
SeriesUnit = Annotated[list[str] | None, typer.Option("--unit", help="Unit of the named series, such as contracts.")]
SeriesLag = Annotated[
    list[str] | None, typer.Option("--lag", help="Time until its values could be known: 0s, 15m, 2h or 1d.")
]
SeriesAge = Annotated[
    list[str] | None, typer.Option("--max-age", help="Time for which its values count; 7d by default.")
]
Events = Annotated[
    Path | None, typer.Option(help="Calendar of events (from, until, kind): nothing is opened inside its windows.")
]
Sessions = Annotated[
    str | None, typer.Option(help="When a file's market is open: 24x7 | forex | us-equity | us-futures | FILE.")
]
Timeframe = Annotated[str | None, typer.Option(help="Of a file's bars, or of bars made of its trades: 1m, 1h, 1d …")]
TimeZone = Annotated[
    str | None, typer.Option(help="Of times without an offset: America/New_York, -05:00, America/New_York+07:00.")
]
Stamp = Annotated[
    Literal["start", "end"], typer.Option(help="Whether a file's bars are stamped at their open or their close.")
]
DayFirst = Annotated[
    bool | None,
    typer.Option("--day-first/--month-first", help="Of dates such as 01/02/2024, where a file shows neither."),
]
NoBar = Annotated[
    Literal["missing", "no-trade"] | None,
    typer.Option(help="Where a file has no bar: it is lost, or nothing traded."),
]
AsOf = Annotated[
    str | None, typer.Option("--as-of", help="Only what was known by this moment, such as 2024-01-31T09:15Z.")
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
    """Return an ISO 8601 moment; None for None. Raises BadTimes for text that is none, or has no time zone."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise BadTimes(f"{option} {text} is no moment ({error}); write 2024-01-31T09:15Z") from error
    if found.tzinfo is None:
        raise BadTimes(f"{option} {text} has no time zone; write {_with_zone(text)} for UTC")
    return found


def _with_zone(text: str) -> str:
    """Return a moment without a zone as it is written in UTC; a day begins at midnight."""
    return f"{text}T00:00+00:00" if len(text) == len(DAY) else f"{text}+00:00"


def past_moment(text: str | None) -> datetime | None:
    """Return the moment given with --as-of; None for None. Raises as `moment`, and for one that is still to come."""
    from flows.support.installation import now

    found = moment(text, "--as-of")
    if found is not None and found > (at := now()):
        raise BadTimes(
            f"--as-of {text} is still to come: it is {at:%F %T} UTC, and more may come until then. Leave the option "
            "out for all that is known now"
        )
    return found


def day_or_moment(text: str | None, option: str = "--since") -> datetime | None:
    """Return the moment given with an option: `2024-01-31` is midnight UTC of that day; a time needs its zone."""
    if text is None:
        return None
    try:
        datetime.fromisoformat(text)
    except ValueError as error:
        raise BadTimes(f"{option} {text} is no day or moment ({error}); write {DAY}") from error
    return moment(_with_zone(text) if len(text) == len(DAY) else text, option)
