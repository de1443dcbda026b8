"""`bellwether check`: what a data file is good for."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bellwether.cli.options import (
    AsJson,
    Events,
    MarketKind,
    SeriesAge,
    SeriesLag,
    SeriesName,
    SeriesUnit,
    Venue,
    canonical,
    new_group,
)
from bellwether.cli.output import emit, line, table
from pipelines.settings import load_params, settings

if TYPE_CHECKING:
    from bellwether.operations.check import Checked

app = new_group()


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or zip file, as for `run --source files --path`.")],
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
    as_json: AsJson = False,
) -> None:
    """Check a data file without starting anything.

    Reads it as a run would: bars, quality, and which families it can train. Exit code 1 if a run would refuse it.
    """
    from bellwether.operations.check import check as check_file
    from flows.support.installation import now
    from pipelines.data.series import named_files

    files, series = named_files(context or [], name or [], unit or [], lag or [], max_age or [])
    params = load_params(settings().params_file)
    found = check_file(file, symbol, files, params, now(), against, venue, market, series, events)
    emit({**asdict(found), "passed": found.passed}) if as_json else show_checked(found)
    if not found.passed:
        raise typer.Exit(1)


def show_checked(found: "Checked") -> None:
    """Print what a file holds, what it can train and the verdict on its quality."""
    table(
        f"{found.file}{f', read as {found.symbol}' if found.symbol else ''}",
        ["what", "found"],
        [
            ["rows", f"{found.rows:,} of {found.timeframe}"],
            ["from, to (UTC)", f"{found.first} … {found.last}"],
            ["recorded", ", ".join(["prices", *found.recorded])],
            *(["context", text] for text in found.context_read_as),
            *([["events", found.events]] if found.events else []),
            ["costs", found.costs],
            ["spread", _spread(found)],
            [
                "history",
                f"{found.history_bars:,} {found.decision_timeframe} bars before the days set aside for serving",
            ],
            *([f"gap from {gap['from']}", f"{gap['bars']:,} bars, until {gap['until']}"] for gap in found.gaps),
            *([name, f"{n:,}"] for name, n in found.flagged.items() if n),
            *([f"quarantined {reason}", f"{n:,}"] for reason, n in found.quarantined.items()),
            *([f"share {name}", f"{part:.4f}"] for name, part in found.parts.items()),
        ],
    )
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
    verdict = "passed" if found.passed else "refused: fix the file, or lower data.quality_floor in params.yaml"
    line(f"quality {found.score:.3f}, floor {found.floor}: {verdict}")


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
