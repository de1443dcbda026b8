"""`bellwether symbols`: the universe of this installation."""

from typing import Annotated, Any

import typer

from bellwether.cli.offers import Stated, offers_of
from bellwether.cli.options import (
    AsJson,
    ContextFiles,
    DayFirst,
    Days,
    DryRun,
    Events,
    MarketKind,
    NoBar,
    Paths,
    SeriesAge,
    SeriesLag,
    SeriesName,
    SeriesUnit,
    Sessions,
    Since,
    Source,
    Stamp,
    Timeframe,
    TimeZone,
    Venue,
    canonical,
    new_group,
)
from bellwether.cli.output import emit, paragraph, table

app = new_group()
symbols = new_group("List, add and remove symbols of this home.")
app.add_typer(symbols, name="symbols")

Symbol = Annotated[str, typer.Argument(help="Such as BTC/USDT.", callback=canonical)]


@symbols.command("list")
def symbols_list(as_json: AsJson = False) -> None:
    """List the symbols of this home."""
    from bellwether.operations.symbols import listing
    from flows.support.installation import open_installation

    found = listing(open_installation())
    if as_json:
        emit({"symbols": found})
        return
    table("universe", ["symbol", "source", "bars", "to (UTC)", "models", "state"], [_row(one) for one in found])


def _row(one: dict[str, Any]) -> list[object]:
    """Return the cells of one symbol."""
    return [
        one["symbol"], one["source"], one["bars"] and f"{one['bars']:,} of {one['timeframe']}",
        one["last"] and one["last"][:16].replace("T", " "), ", ".join(one["models"]) or None, one["state"],
    ]  # fmt: skip


@symbols.command("add")
def symbols_add(
    symbol: Symbol,
    source: Source = None,
    path: Paths = None,
    days: Days = None,
    since: Since = None,
    context: ContextFiles = None,
    name: SeriesName = None,
    unit: SeriesUnit = None,
    lag: SeriesLag = None,
    max_age: SeriesAge = None,
    events: Events = None,
    venue: Venue = None,
    market: MarketKind = None,
    sessions: Sessions = None,
    timeframe: Timeframe = None,
    timezone: TimeZone = None,
    stamp: Stamp = "start",
    day_first: DayFirst = None,
    no_bar: NoBar = None,
    as_json: AsJson = False,
) -> None:
    """Add a symbol to this home.

    The next data version takes it in. Models abstain on it (UNSEEN_SYMBOL) until a retrain.
    """
    from flows import universe
    from flows.support.installation import open_installation
    from pipelines.data.readers.reading import FileOptions
    from pipelines.data.series import named_files

    files, series = named_files(context or [], name or [], unit or [], lag or [], max_age or [])
    options = FileOptions(timeframe, timezone, stamp, day_first, no_bar)
    offers = offers_of(
        Stated(source, [symbol], path or [], options, days, since, files, series, events, venue, market, sessions)
    )
    installation = open_installation()
    known = symbol in universe.symbols(installation)
    present = universe.add(installation, offers)
    if as_json:
        emit({"added": symbol, "known": known, "symbols": [offer.symbol for offer in present]})
        return
    paragraph(
        f"{symbol} was in the universe; its data now come as stated here."
        if known
        else f"{symbol} is in the universe of {len(present)}. The next data version takes it in: `bellwether run`, or "
        "the next retrain. Until a retrain on it passes the gate, models abstain on it (UNSEEN_SYMBOL)."
    )


@symbols.command("remove")
def symbols_remove(symbol: Symbol, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Remove a symbol from this home.

    Refused while a position in it is open, or a retrain or an approval waits on this universe. Its bars and decisions
    stay in the store; the next data version goes without it.
    """
    from flows import universe
    from flows.support.installation import open_installation

    installation = open_installation()
    left = universe.without(installation, symbol) if dry_run else universe.remove(installation, symbol)
    names = [offer.symbol for offer in left]
    if as_json:
        emit({"dry_run": dry_run, "removed": symbol, "symbols": names})
    elif dry_run:
        paragraph(f"{symbol} would be removed; {', '.join(names)} would stay. Nothing was changed.", lead="dry run:")
    else:
        paragraph(
            f"{symbol} is removed; {', '.join(names)} stay. The next data version goes without it; its bars and "
            "decisions stay in the store."
        )
