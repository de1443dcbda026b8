"""`bellwether check`: what a data file is good for."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bellwether.cli.options import (
    AsJson,
    DayFirst,
    Events,
    MarketKind,
    NoBar,
    SeriesAge,
    SeriesLag,
    SeriesName,
    SeriesUnit,
    Sessions,
    Stamp,
    Timeframe,
    TimeZone,
    Venue,
    canonical,
    new_group,
)
from bellwether.cli.output import emit, line, out, paragraph, table
from pipelines.settings import load_params, settings

if TYPE_CHECKING:
    from bellwether.operations.check import Checked
    from pipelines.contracts import JsonObject

NAMED = 2  # places of a finding that the page names; --json has the first ten
app = new_group()


@app.command()
def check(
    file: Annotated[
        list[Path], typer.Argument(help="Files, archives or folders of one market, as for `run --source files --path`.")
    ],
    symbol: Annotated[
        str | None, typer.Option(help="What the file holds, such as BTC/USDT.", callback=canonical)
    ] = None,
    context: Annotated[
        list[Path] | None, typer.Option(help="File of context or folder of a recorded book; may be repeated.")
    ] = None,
    name: SeriesName = None,
    unit: SeriesUnit = None,
    lag: SeriesLag = None,
    max_age: SeriesAge = None,
    events: Events = None,
    venue: Venue = None,
    market: MarketKind = None,
    against: Annotated[
        Path | None, typer.Option(help="File of the same market from elsewhere, to compare closes with.")
    ] = None,
    sessions: Sessions = None,
    timeframe: Timeframe = None,
    timezone: TimeZone = None,
    stamp: Stamp = "start",
    day_first: DayFirst = None,
    no_bar: NoBar = None,
    home: Annotated[bool, typer.Option("--home", help="Compare with the market this installation holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a data file without starting anything.

    Reads it as a run would: bars, quality, and which families it can train. Exit code 1 if a run would refuse it.
    """
    from bellwether.operations.check import check as check_file
    from pipelines.data.readers.reading import FileOptions
    from pipelines.data.series import named_files

    files, series = named_files(context or [], name or [], unit or [], lag or [], max_age or [])
    params, workspace = load_params(settings().params_file), settings().workspace if home else None
    found = check_file(
        file, symbol, files, params, datetime.now(UTC), against, venue, market, series, events, sessions, workspace,
        FileOptions(timeframe, timezone, stamp, day_first, no_bar),
    )  # fmt: skip
    emit({**asdict(found), "passed": found.passed}) if as_json else show_checked(found)
    if not found.passed:
        raise typer.Exit(1)


def show_checked(found: "Checked") -> None:
    """Print what a file holds, what it can train and the verdict on its quality."""
    line(f"{found.file}{f', {found.symbol}' if found.symbol else ''}")
    line(found.read_as_text)
    out.print()
    table(
        "what it holds",
        ["what", "found"],
        [
            ["rows", f"{found.rows:,} of {found.timeframe}"],
            ["from, to (UTC)", f"{_minute(found.first)} … {_minute(found.last)}"],
            ["sessions", found.sessions],
            *([["no bar", "no trade: none is missing"]] if found.no_bar == "no-trade" else []),
            ["recorded", ", ".join(["prices", *found.recorded])],
            *(["context", text] for text in found.context_read_as),
            *([["events", found.events]] if found.events else []),
            ["costs", found.costs],
            ["spread", _spread(found)],
            [
                "history",
                f"{found.history_bars:,} {found.decision_timeframe} bars before the days set aside for serving",
            ],
            *([["this home", found.home]] if found.home else []),
            *([f"gap from {_minute(gap['from'])}", f"{gap['bars']:,} bars, until {_minute(gap['until'])}"]
              for gap in found.gaps),
            *([name, f"{n:,}"] for name, n in found.flagged.items() if n),
            *([f"quarantined {reason}", f"{n:,}"] for reason, n in found.quarantined.items()),
            *([f"share {name}", f"{part:.4f}"] for name, part in found.parts.items()),
        ],
    )  # fmt: skip
    for flag in found.flags:
        paragraph(_place(flag), lead=flag["code"])
    if found.flags:
        out.print()
    table(
        "what can be trained from it",
        ["family", "trainable", "columns", "input: columns left out without it"],
        [[name, family.explanation, family.reads, _absent_by_input(family.absent)]
         for name, family in found.families.items()],
    )  # fmt: skip
    if other := found.against:
        table(
            f"compared with {other['file']}, {other['timeframe']} closes",
            ["what", "found"],
            [
                ["bars in both", f"{other['shared']:,}"],
                ["usual distance", f"{other['median_bps']:+.2f} bps"],
                ["bars that differ otherwise", f"{other['divergent']:,}"],
                *([f"at {stamp}", f"{bps:+.1f} bps"] for stamp, bps in other["largest"].items()),
            ],
        )
    paragraph(f"quality {found.score:.3f}, floor {found.floor}: {_verdict(found)}")


def _verdict(found: "Checked") -> str:
    """Return in words whether a run would take the file, and if not what cures it."""
    if found.passed:
        return "passed"
    if found.blocked is not None:
        return f"refused: {found.blocked}"
    return "refused: correct the file; the findings above say where and why"


def _place(flag: "JsonObject") -> str:
    """Return how many, the first moments with their sizes, and the cause of a finding."""
    sizes = ["" if size is None else f" ({size:.4g} {flag['unit']})" for size in flag["sizes"]]
    first = [f"{_minute(moment)}{size}" for moment, size in zip(flag["moments"], sizes, strict=False)]
    places = f", first at {', '.join(first[:NAMED])}" if first else ""
    return f"{flag['rows']:,}{places}: {flag['cause']}."


def _minute(moment: str | None) -> str:
    """Return an ISO 8601 moment in UTC to the minute, with the seconds where there are any."""
    return "–" if moment is None else moment.replace("T", " ").removesuffix("+00:00").removesuffix(":00")


def _spread(found: "Checked") -> str:
    """Return in words whether a spread was recorded, and so at which prices trades are executed."""
    if found.spread_bps is None:
        return "not recorded: trades are executed at the bars' prices and pay the spread of `costs` in params.yaml"
    return (
        f"mean {found.spread_bps:.2f} bps, in {found.spread_share:.1%} of the bars: trades are executed at bid and ask"
    )


def _absent_by_input(absent: dict[str, str]) -> str | None:
    """Return one line for each missing input with the columns that need it; None if no column is absent."""
    by_input: dict[str, list[str]] = {}
    for column, needed in absent.items():
        by_input.setdefault(needed.replace("context:", ""), []).append(column)
    return "\n".join(f"{needed}: {', '.join(columns)}" for needed, columns in by_input.items()) or None
