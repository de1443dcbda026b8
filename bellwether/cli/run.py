"""`bellwether run`: the whole loop once, then live until Ctrl-C."""

import errno
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    day_or_moment,
    new_group,
)
from bellwether.cli.output import emit, err, line, number, out, table
from bellwether.cli.services import start_services
from flows.support import processes
from pipelines.settings import load_params, settings

if TYPE_CHECKING:
    from pipelines.data.readers.reading import FileOptions
    from pipelines.data.series import SeriesFile

app = new_group()
NO_FEED = "none"  # of --feed: no bar arrives after the turn


@app.command()
def run(
    source: Annotated[str, typer.Option(help="simulator | files | exchange")] = "simulator",
    path: Annotated[
        list[Path] | None, typer.Option(help="File, archive or folder for --source files; may be repeated.")
    ] = None,
    symbol: Annotated[
        str | None, typer.Option(help="Such as BTC/USDT; the simulator's own by default.", callback=canonical)
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days of bars for --source exchange.")] = None,
    since: Annotated[str | None, typer.Option(help="First day or moment for --source exchange.")] = None,
    context: Annotated[
        list[Path] | None,
        typer.Option(help="File of context (funding, fear and greed …) or folder of a recorded book; may be repeated."),
    ] = None,
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

    Starts the services that are down; if any was, all are stopped at the end.
    """
    home = settings().home
    if home.exists() and not home.is_dir():  # before Prefect is imported, whose message would be longer
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(home))
    from bellwether.cli.watch import printer
    from bellwether.operations import feed_live, start_stop

    if feed not in (None, NO_FEED):
        feed_live.check_source(feed)
    from pipelines.data.readers.reading import FileOptions
    from pipelines.data.series import named_files

    files, series = named_files(context or [], name or [], unit or [], lag or [], max_age or [])
    options = FileOptions(timeframe, timezone, stamp, day_first, no_bar)
    paths = path or []
    begin, hours = _checked_request(source, paths, symbol, days, since, context or [], venue, market, sessions, options)
    if events is not None:
        from pipelines.data.readers.events import read_events

        read_events(events, symbol or load_params(settings().params_file).simulator.symbol)
    once = once or os.environ.get("CI", "").lower() in ("1", "true")
    ordered = feed_live.pause(settings())  # the turn sends the bars of its live days itself
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a signal to stop also stops what we started
    began = time.monotonic()
    ours = any(s["state"] == "down" for s in processes.services(settings()).values())
    console, turned = err if as_json else out, False
    try:
        start_services(as_json, ready=False)  # a refused warm start is not ready until this turn has written a new one
        result = _turn(
            source, symbol, paths, begin, files, series, events, venue, market, hours, options, console_is_err=as_json
        )
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


def _checked_request(
    source: str, paths: list[Path], symbol: str | None, days: int | None, since: str | None, context: list[Path],
    venue: str | None, market: str | None, sessions: str | None, options: "FileOptions",
) -> tuple[datetime | None, str | None]:  # fmt: skip
    """Return first moment (None = the source's own) and sessions of a turn; refuse before a server starts."""
    from flows.support.market_access import check_offer, exchange_plan, requested_since, resolved_sessions
    from pipelines.data.sources import check_request

    params = load_params(settings().params_file)
    begin = requested_since(source, days, day_or_moment(since), params.data.live_days)
    plan = exchange_plan(params, settings(), begin) if source == "exchange" else None
    check_request(source, paths, symbol, params.simulator, plan, context, venue, market, options)
    hours = resolved_sessions(sessions)
    check_offer(settings().workspace, source, symbol or params.simulator.symbol, paths, hours, options)
    return begin, hours


def _turn(
    source: str,
    symbol: str | None,
    paths: list[Path],
    since: datetime | None,
    context: list[Path],
    series: list["SeriesFile"],
    events: Path | None,
    venue: str | None,
    market: str | None,
    sessions: str | None,
    options: "FileOptions",
    console_is_err: bool,
) -> dict[str, object]:
    """Run the lifecycle flow with its progress on the console; return its result and the status after it."""
    from bellwether.operations.status import stored_status
    from flows.lifecycle import lifecycle
    from flows.support.progress import progress_display

    with progress_display(err if console_is_err else out):
        turn = lifecycle(
            source=source,
            symbol=symbol,
            path=[str(path.resolve()) for path in paths] or None,
            since=since,
            context=[str(file.resolve()) for file in context],
            venue=venue,
            market=market,
            series=[replace(each, file=str(Path(each.file).resolve())) for each in series],
            events=str(events.resolve()) if events else None,
            sessions=sessions,
            options=options,
        )
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
    for family, score in result["figures"].items():
        table(
            f"{family} version {score['version']}, {score['gate']} by the gate: its score on {result['symbol']}",
            ["figure", "value", "95 % interval", "n"],
            [row for row in score["rows"] if ": " not in row[0]],  # figures of single classes are on the evidence page
        )
    _show_decisions(result)
    line(result["monitor"]["summary"].replace("; loss: ", "\nloss: "))
    for family, outcome in result["retrained"].items():
        line(f"retrain of {family}: {outcome}")
    table("open them", ["what", "where"], [[k, v["url"]] for k, v in result["services"].items() if v.get("url")])
    line(f"one turn in {result['seconds']} s")


def _show_models(result: Mapping[str, Any]) -> None:
    """Print the version in each slot of each family."""
    rows = [
        [family, slot["symbol"], arm, slot["version"], slot["digest"][:8], slot["data_hash"][:8], slot["verdict"]]
        for family, slots in result["families"].items()
        for arm, slot in slots.items()
        if slot
    ]
    if not any(row[:3] == ["validator", result["symbol"], "champion"] for row in rows):
        rows.insert(0, ["validator", result["symbol"], "champion", None, None, None, "none passed: tier 3"])
    table("live models", ["family", "market", "arm", "version", "digest", "data", "gate"], rows)


def _show_decisions(result: Mapping[str, Any]) -> None:
    """Print the last decisions of a turn, and how often each first reason refused a trade."""
    counts = ", ".join(f"{n:,} {action}" for action, n in result["actions"].items())
    table(
        f"decisions: {counts}",
        ["as of (UTC)", "action", "conf.", "p", "edge bps", "size", "tier", "first reason"],
        [
            [d["as_of"][2:16].replace("T", " "), d["action"], number(d["confidence"], 2), number(d["p"], 3),
             number(d["edge_bps"], 1), number(d["size"], 4),
             d["tier"], d["reasons"][0] if d["action"] == "NO_TRADE" else "emitted"]
            for d in result["last_decisions"]
        ],
    )  # fmt: skip
    if result["refusals"]:
        ranked = sorted(result["refusals"].items(), key=lambda refusal: -refusal[1])
        out.print("first reasons: " + ", ".join(f"{name} {n:,}" for name, n in ranked), highlight=False)
