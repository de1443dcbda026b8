"""`bellwether run`: the whole loop once, then live until Ctrl-C."""

import errno
import os
import signal
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bellwether.cli.offers import Stated, offers_of
from bellwether.cli.options import (
    AsJson,
    ContextFiles,
    DayFirst,
    Days,
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
    canonical_each,
    new_group,
)
from bellwether.cli.output import emit, err, line, number, out, table
from bellwether.cli.services import start_services
from flows.support import processes
from pipelines.errors import BellwetherError
from pipelines.settings import settings

if TYPE_CHECKING:
    from rich.console import Console

    from flows.support.market_access import MarketOffer

app = new_group()
NO_FEED = "none"  # of --feed: no bar arrives after the turn


@app.command()
def run(
    source: Source = None,
    path: Paths = None,
    symbol: Annotated[
        list[str] | None,
        typer.Option(help="Such as BTC/USDT; may be repeated. The universe by default.", callback=canonical_each),
    ] = None,
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
    feed: Annotated[
        str | None,
        typer.Option(help="simulator | files | push | exchange | none; what brings bars after the turn."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="One turn, then stop everything this command started.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the whole loop once, then serve until Ctrl-C.

    Symbols that are given join the universe of this home. Starts the services that are down; if any was, all are
    stopped at the end.
    """
    home = settings().home
    if home.exists() and not home.is_dir():  # before Prefect is imported, whose message would be longer
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(home))
    from bellwether.cli.watch import printer
    from bellwether.operations import feed_live, restore_data, start_stop

    if feed not in (None, NO_FEED):
        feed_live.check_source(feed)
    from pipelines.data.readers.reading import FileOptions
    from pipelines.data.series import named_files

    files, series = named_files(context or [], name or [], unit or [], lag or [], max_age or [])
    options = FileOptions(timeframe, timezone, stamp, day_first, no_bar)
    offers = offers_of(
        Stated(source, symbol or [], path or [], options, days, since, files, series, events, venue, market, sessions)
    )
    once = once or os.environ.get("CI", "").lower() in ("1", "true")
    ordered = feed_live.pause(settings())  # the turn sends the bars of its live days itself
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a signal to stop also stops what we started
    began = time.monotonic()
    ours = any(s["state"] == "down" for s in processes.services(settings()).values())
    console, turned = err if as_json else out, False
    try:
        if not offers and restore_data.is_missing(settings()):
            bring_data(console)
        start_services(as_json, ready=False)  # a refused warm start is not ready until this turn has written a new one
        result = _turn(offers, console_is_err=as_json)
        result["seconds"] = round(time.monotonic() - began, 1)
        emit(result) if as_json else show_turn(result)
        turned = True
        if not once:
            console.print("Serving. Ctrl-C stops everything.")
            while feed == NO_FEED:
                time.sleep(1)
            feed_live.live(settings(), printer(console), feed)
    except KeyboardInterrupt:
        console.print("\nStopping.")
        if not turned:
            raise typer.Exit(130) from None
    finally:
        feed_live.restore(settings(), ordered)
        if ours:
            send_queued_events()
            start_stop.down(settings())


def bring_data(console: "Console") -> None:
    """Bring data/ of this clone, so that DVC's commands work in it; a run goes on where it cannot, and says why."""
    from bellwether.operations import restore_data

    console.print("restoring data/ of this clone, as data.dvc describes it: once, about half a minute")
    try:
        done = restore_data.restore(settings())
    except BellwetherError as error:
        result = f"data/ of this clone could not be restored, so DVC's commands do not work in it: {error}"
    else:
        result = f"data/ of this clone: {done.match}, {done.came_from}; DVC's commands work here"
    console.print(result, markup=False, highlight=False, soft_wrap=True)


def _turn(offers: "list[MarketOffer]", console_is_err: bool) -> dict[str, object]:
    """Run the lifecycle flow with its progress on the console; return its result and the status after it."""
    from bellwether.operations.status import stored_status
    from flows.lifecycle import lifecycle
    from flows.support.progress import progress_display

    with progress_display(err if console_is_err else out):
        turn = lifecycle(offers or None)
    return {**turn, **stored_status()}


def send_queued_events() -> None:
    """Send what is queued for the Prefect server while it runs: its client would retry for a minute at exit."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)


def show_turn(result: Mapping[str, Any]) -> None:
    """Print a turn: live models and their figures, decisions, drift, retrained families and links."""
    _show_models(result)
    markets = ", ".join(result["symbols"])
    for family, score in result["figures"].items():
        table(
            f"{family} version {score['version']}, {score['gate']} by the gate: its score on {markets}",
            ["figure", "value", "95 % interval", "n"],
            [row for row in score["rows"] if _shown(row[0], result["symbols"])],
        )
    _show_decisions(result)
    _show_markets(result)
    line(result["monitor"]["summary"].replace("; loss: ", "\nloss: "))
    for family, outcome in result["retrained"].items():
        line(f"retrain of {family}: {outcome}")
    table("open them", ["what", "where"], [[k, v["url"]] for k, v in result["services"].items() if v.get("url")])
    line(f"one turn in {result['seconds']} s")


def _shown(figure: str, symbols: Sequence[str]) -> bool:
    """Return whether a figure is shown: of all rows, or of one symbol; those of classes are on the evidence page."""
    part, colon, _ = figure.partition(": ")
    return not colon or part in symbols


def _show_models(result: Mapping[str, Any]) -> None:
    """Print the version in each slot of each family."""
    rows = [
        [family, slot["symbol"], arm, slot["version"], slot["digest"][:8], slot["data_hash"][:8], slot["verdict"]]
        for family, slots in result["families"].items()
        for arm, slot in slots.items()
        if slot
    ]
    if not any((row[0], row[2]) == ("validator", "champion") for row in rows):
        rows.insert(0, ["validator", ", ".join(result["symbols"]), "champion", None, None, None, "none passed: tier 3"])
    table("live models", ["family", "market", "arm", "version", "digest", "data", "gate"], rows)


def _show_markets(result: Mapping[str, Any]) -> None:
    """Print a line on each market of a universe of several, and on each that was left out."""
    if len(result["markets"]) > 1:
        table(
            "markets", ["symbol", "decisions", "first reasons"],
            [[symbol, _counts(found["actions"]), _counts(found["refusals"])]
             for symbol, found in result["markets"].items()],
        )  # fmt: skip
    for symbol, why in result["left_out"].items():
        line(f"{symbol} was left out: {why}")


def _counts(counts: Mapping[str, int]) -> str:
    """Return counts by name in words, the most first."""
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items(), key=lambda each: -each[1]))


def _show_decisions(result: Mapping[str, Any]) -> None:
    """Print the last decisions of a turn, and how often each first reason refused a trade."""
    counts = ", ".join(f"{n:,} {action}" for action, n in result["actions"].items())
    head = ["symbol"] if len(result["symbols"]) > 1 else []
    table(
        f"decisions: {counts}",
        [*head, "as of (UTC)", "action", "conf.", "p", "edge bps", "size", "tier", "first reason"],
        [[*(d[name] for name in head), *_decision_row(d)] for d in result["last_decisions"]],
    )
    if result["refusals"]:
        ranked = sorted(result["refusals"].items(), key=lambda refusal: -refusal[1])
        out.print("first reasons: " + ", ".join(f"{name} {n:,}" for name, n in ranked), highlight=False)


def _decision_row(d: Mapping[str, Any]) -> list[object]:
    """Return the cells of one decision."""
    return [
        d["as_of"][2:16].replace("T", " "), d["action"], number(d["confidence"], 2), number(d["p"], 3),
        number(d["edge_bps"], 1), number(d["size"], 4), d["tier"],
        d["reasons"][0] if d["action"] == "NO_TRADE" else "emitted",
    ]  # fmt: skip
