"""`bellwether`: every command a person types. Each has `--json`; each error is one clear line and exit code 1."""

import errno
import json
import logging
import os
import signal
import sys
import time
import traceback
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines import permissions
from pipelines.bootstrap import bootstrap
from pipelines.contracts import REGIMES
from pipelines.errors import BadTimes, BadValues, BellwetherError, ServiceDown, UnknownName
from pipelines.families import FAMILIES
from pipelines.settings import load_params, settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
out = Console()
err = Console(stderr=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen, change nothing.")]


def emit(value: Any) -> None:
    """JSON on standard output, nothing else there."""
    typer.echo(json.dumps(value, indent=1, default=str))


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    shown = Table(title=title, title_justify="left", header_style="bold")
    for name in columns:
        shown.add_column(name, overflow="fold")
    for row in rows:
        shown.add_row(*("–" if cell is None else escape(str(cell)) for cell in row))
    out.print(shown)


def connect() -> None:
    """Point this process at our own servers before it imports their libraries; flow logs go to the UI, not here."""
    from flows.support import processes

    os.environ.update(processes.environment(settings()))
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    for noisy in ("mlflow", "dvc", "alembic", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def need(*names: str, ready: bool = True) -> None:
    """Raise ServiceDown, with the way to start it, if one of these services does not answer."""
    from flows.support import processes

    found = processes.services(settings())
    for name in names:
        if found[name]["state"] == "key refused":
            raise ServiceDown(f"{name} at {found[name]['url']}: {found[name]['detail']}.")
        if found[name]["state"] != "up" and (ready or found[name]["state"] != "not ready"):
            why = found[name]["detail"] or f"does not answer at {found[name]['url']}"
            raise ServiceDown(f"{name} is {found[name]['state']}: {why}. Start it with `bellwether up`.")


@app.command()
def up(as_json: AsJson = False) -> None:
    """Start MLflow, Prefect, the flows, the two BentoML services and the Evidently UI."""
    start(as_json)
    show_services(as_json)


def start(quiet: bool, ready: bool = True) -> None:
    from bellwether.operations import warm_starts
    from flows.support import processes

    progress = processes.silent if quiet else out.print
    warm_starts.before_start(settings(), progress)
    processes.up(settings(), progress=progress, ready=ready)
    connect()  # the first start created the key


def tighten(console: Console) -> None:
    """Close the home to other users, and say what was open."""
    if told := permissions.tighten(settings().home):
        console.print(f"{settings().home}: {told}", highlight=False, soft_wrap=True)


@app.command()
def down(as_json: AsJson = False) -> None:
    """Stop everything `up` started, workers before servers."""
    from flows.support import processes

    processes.down(settings(), progress=processes.silent if as_json else out.print)
    show_services(as_json)


@app.command()
def restart(
    names: Annotated[list[str] | None, typer.Argument(help="Services; all that run by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Stop and start services that run."""
    from flows.support import processes

    processes.restart(settings(), names or None, progress=processes.silent if as_json else out.print)
    show_services(as_json)


def show_services(as_json: bool) -> None:
    from flows.support import processes

    found = processes.services(settings())
    if as_json:
        emit(found)
    else:
        show_states(found)


def show_states(found: Any) -> None:
    rows = [[name, state["state"], state["url"], state["detail"]] for name, state in found.items()]
    table("services", ["service", "state", "url", "why"], rows)


@app.command()
def run(
    source: Annotated[str, typer.Option(help="simulator | files | exchange")] = "simulator",
    path: Annotated[Path | None, typer.Option(help="Parquet, CSV or zip file for --source files.")] = None,
    symbol: Annotated[str | None, typer.Option(help="Such as BTC/USDT; the simulator's own by default.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days of bars for --source exchange.")] = None,
    since: Annotated[str | None, typer.Option(help="First day or moment for --source exchange.")] = None,
    context: Annotated[
        list[Path] | None,
        typer.Option(help="File of context (funding, fear and greed …) or folder of a recorded book; may be repeated."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="One turn, then stop everything this command started.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start what is not up, turn the loop once, show what is live, and keep serving until Ctrl-C."""
    home = settings().home
    if home.exists() and not home.is_dir():  # before Prefect is imported, which would say it at greater length
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(home))
    from flows.support import processes
    from flows.support.market_access import exchange_plan, requested_since
    from flows.support.progress import progress_display
    from pipelines.data.sources import check_request, normalise_symbol

    name = normalise_symbol(symbol) if symbol else None
    # a wrong path, name or venue is said now, not after the servers are up
    params = load_params(settings().params_file)
    begin = requested_since(source, days, day_or_moment(since), params.data.live_days)
    plan = exchange_plan(params, settings(), begin) if source == "exchange" else None
    check_request(source, path, name, params.simulator, plan, context or [])
    once = once or os.environ.get("CI", "").lower() in ("1", "true")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever stops us stops what we started
    began = time.monotonic()
    ours = any(s["state"] == "down" for s in processes.services(settings()).values())
    console, turned = err if as_json else out, False
    try:
        start(as_json, ready=False)  # a refused warm start is red until this turn has written a new one
        from flows.lifecycle import lifecycle

        with progress_display(console):
            turn = lifecycle(
                source=source,
                symbol=name,
                path=str(path.resolve()) if path else None,
                since=begin,
                context=[str(file.resolve()) for file in context or []],
            )
        result = {**turn, **stored_status(), "seconds": round(time.monotonic() - began, 1)}
        emit(result) if as_json else show_turn(result)
        turned = True
        if not once:
            console.print("Serving. Ctrl-C stops everything.")
            while True:
                time.sleep(1)
    except KeyboardInterrupt:
        console.print("Stopping.")
        if not turned:
            raise typer.Exit(130) from None
    finally:
        if ours:
            let_go_of_prefect()
            processes.down(settings())


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="Parquet, CSV or zip file, as for `run --source files --path`.")],
    symbol: Annotated[str | None, typer.Option(help="What the file holds; a run must know it.")] = None,
    context: Annotated[
        list[Path] | None, typer.Option(help="File of context or folder of a recorded book; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read a file as a run would, starting nothing: bars, quality, and what can be trained; exit code 1 if refused."""
    from dataclasses import asdict

    from bellwether.operations.check import check as look
    from flows.support.installation import now

    params = load_params(settings().params_file)
    found = look(file, symbol, context or [], params, now())
    emit({**asdict(found), "passed": found.passed}) if as_json else show_checked(found)
    if not found.passed:
        raise typer.Exit(1)


def show_checked(found: Any) -> None:
    table(
        f"{found.file}{f', read as {found.symbol}' if found.symbol else ''}",
        ["what", "found"],
        [
            ["rows", f"{found.rows:,} of {found.timeframe}"],
            ["from, to (UTC)", f"{found.first} … {found.last}"],
            ["recorded", ", ".join(["prices", *found.recorded])],
            ["decided on", f"{found.history_bars:,} {found.decision_timeframe} bars before the days kept for serving"],
            *([f"gap from {gap['from']}", f"{gap['bars']:,} bars, until {gap['until']}"] for gap in found.gaps),
            *([name, f"{n:,}"] for name, n in found.flagged.items() if n),
            *([f"quarantined {reason}", f"{n:,}"] for reason, n in found.quarantined.items()),
            *([f"share {name}", f"{part:.4f}"] for name, part in found.parts.items()),
        ],
    )
    table(
        "what can be trained from it",
        ["family", "trainable", "columns", "columns left out, and what they wait for"],
        [[family, told.told, told.reads, left_out(told.absent)] for family, told in found.families.items()],
    )
    verdict = "passed" if found.passed else "refused: mend the file, or lower data.quality_floor in params.yaml"
    out.print(f"quality {found.score:.3f}, floor {found.floor}: {verdict}")


def left_out(absent: dict[str, str]) -> str | None:
    """Column → input as one line an input."""
    waiting: dict[str, list[str]] = {}
    for column, wanted in absent.items():
        waiting.setdefault(wanted.replace("context:", ""), []).append(column)
    return "\n".join(f"{wanted}: {', '.join(columns)}" for wanted, columns in waiting.items()) or None


def let_go_of_prefect() -> None:
    """Send what is queued for the Prefect server while it is still there: its client retries for a minute at exit."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)


def show_turn(result: dict[str, Any]) -> None:
    rows = [
        [family, held["symbol"], arm, held["version"], held["digest"][:8], held["data_hash"][:8], held["verdict"]]
        for family, slots in result["families"].items()
        for arm, held in slots.items()
        if held
    ]
    if not any(row[:3] == ["validator", result["symbol"], "champion"] for row in rows):
        rows.insert(0, ["validator", result["symbol"], "champion", None, None, None, "none passed: tier 3"])
    table("what is live", ["family", "market", "arm", "version", "digest", "data", "gate"], rows)
    for family, told in result["figures"].items():
        table(
            f"{family} version {told['version']}, {told['gate']} by the gate: what it scored on {result['symbol']}",
            ["figure", "value", "95 % interval", "n"],
            [row for row in told["rows"] if ": " not in row[0]],  # figures of single classes are on the evidence page
        )
    table(
        f"decisions: {', '.join(f'{v:,} {k}' for k, v in result['actions'].items())}",
        ["as of (UTC)", "action", "conf.", "p", "edge bps", "size", "tier", "first reason"],
        [
            [d["as_of"][2:16].replace("T", " "), d["action"], number(d["confidence"], 2), number(d["p"], 3),
             number(d["edge_bps"], 1), number(d["size"], 4),
             d["tier"], d["reasons"][0] if d["action"] == "NO_TRADE" else "emitted"]
            for d in result["last_decisions"]
        ],
    )  # fmt: skip
    if result["refusals"]:
        out.print(
            "first reasons: "
            + ", ".join(f"{k} {v:,}" for k, v in sorted(result["refusals"].items(), key=lambda kv: -kv[1]))
        )
    watched = result["monitor"]
    out.print(f"drift: {watched['summary']}")
    for family, told in result["retrained"].items():
        out.print(f"retrain of {family}: {told}")
    table("open them", ["what", "where"], [[k, v["url"]] for k, v in result["services"].items() if v.get("url")])
    out.print(f"one turn in {result['seconds']} s")


def number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def stored_status() -> dict[str, Any]:
    """`status`: families, services, tier, data hash, alarms, from stored state where servers are down."""
    from flows.support import processes, promotion
    from flows.support.installation import open_installation
    from pipelines import versioning

    installation = open_installation()
    pointer = installation.workspace / "data.dvc"
    last = installation.store.decisions(last=1)
    families = promotion.live(installation)
    tier = last[0].decision.tier if last else None
    return {
        **decision_service_health(),
        "families": families,
        "services": processes.services(settings()),
        "tier": tier,
        "data_hash": versioning.data_hash(installation.workspace) if pointer.is_file() else None,
        "figures": scored(installation),
        "alarms": [
            {"kind": a.kind, "severity": a.severity, "detail": a.detail, "at": a.at.isoformat()}
            for a in installation.store.alarms()
        ],
    }


def decision_service_health() -> dict[str, Any]:
    """health and health_reason as the decision service says them; nobody to say it is UNHEALTHY."""
    from serving.client import Client

    try:
        with Client(settings()) as client:
            told = client.ready()
    except BellwetherError as error:
        return {"health": "UNHEALTHY", "health_reason": str(error), "waiting_for_first_turn": False}
    return {name: told[name] for name in ("health", "health_reason", "waiting_for_first_turn")}


def scored(installation: Any) -> dict[str, Any]:
    """family → what its champion on this market, or without one its newest candidate, scored when it was judged."""
    from flows.support import promotion

    market = (
        installation.manifest()["symbol"] if (installation.workspace / "data" / "manifest.json").is_file() else None
    )
    told: dict[str, Any] = {}
    for family in FAMILIES:
        slots = promotion.slots_of(installation.store, family)
        for arm, held in (("champion", slots.champion), ("challenger", slots.challenger)):
            evidence = promotion.gate_evidence(installation.store, held)
            if family not in told and held is not None and evidence.get("symbol") == market:
                gate = "passed" if evidence["passed"] else "refused"
                told[family] = {"version": held.to_version, "arm": arm, "gate": gate, "symbol": market,
                                "rows": evidence["figures"], "reasons": evidence["reasons"]}  # fmt: skip
    return told


@app.command()
def status(as_json: AsJson = False) -> None:
    """What is live, and since which evidence. Answers from stored state when services are down."""
    found = stored_status()
    if as_json:
        emit(found)
        return
    out.print(f"[bold]{found['health']}[/] {escape(found['health_reason'])}")
    if found["waiting_for_first_turn"]:
        out.print("waiting for the first turn: `bellwether run`")
    rows = []
    for family, slots in found["families"].items():
        for arm, held in slots.items():
            if held:
                rows.append(
                    [
                        family,
                        arm,
                        held["version"],
                        held["digest"][:12],
                        held["data_hash"][:12],
                        held["git_commit"][:9],
                        held["verdict"],
                    ]
                )
    table("families", ["family", "arm", "version", "digest", "data", "commit", "gate"], rows)
    show_states(found["services"])
    out.print(f"tier {found['tier']}, data {found['data_hash']}")
    for alarm in found["alarms"]:
        out.print(f"[bold]{alarm['severity']}[/] {alarm['kind']}: {escape(alarm['detail'])} ({alarm['at']})")


@app.command()
def alarms(
    clear: Annotated[list[int] | None, typer.Option(help="Number of an alarm that was dealt with; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Open alarms and latched breakers, after clearing those that are named; `breaker` trips and resets."""
    from flows.support.installation import now, open_installation

    store = open_installation().store
    for number in clear or []:
        if not store.clear_alarm(number, now()):
            raise UnknownName(f"no alarm {number} is open; `bellwether alarms` shows the numbers of those that are")
    found = [{"id": a.id, "kind": a.kind, "severity": a.severity, "detail": a.detail, "at": a.at.isoformat()}
             for a in store.alarms()]  # fmt: skip
    latched = [{"name": b.name, "reason": b.reason, "at": b.tripped_at.isoformat()} for b in store.breaker_trips()]
    if as_json:
        emit({"alarms": found, "breakers": latched})
        return
    table("open alarms", ["id", "kind", "severity", "what", "since (UTC)"],
          [[a["id"], a["kind"], a["severity"], a["detail"], a["at"]] for a in found])  # fmt: skip
    if latched:
        table("latched breakers", ["name", "why", "since (UTC)"], [[b["name"], b["reason"], b["at"]] for b in latched])


breaker = typer.Typer(no_args_is_help=True, help="Circuit breakers: what is latched and why; trip and reset by hand.")
app.add_typer(breaker, name="breaker")
Reason = Annotated[str, typer.Option(help="Why; it is kept.")]
By = Annotated[str | None, typer.Option(help="Whose decision it is; your user name if left out.")]


@breaker.command("list")
def breaker_list(
    everything: Annotated[bool, typer.Option("--all", help="Every latch there ever was, with who and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every breaker and whether it is latched; what is latched opens nothing until it is reset."""
    from bellwether.operations.breakers import breakers, history
    from flows.support.installation import open_installation

    store = open_installation().store
    found = history(store) if everything else breakers(store)
    if as_json:
        emit({"latches" if everything else "breakers": found})
    elif everything:
        columns = ["name", "tripped_at", "reason", "reset_at", "reset_by", "reset_reason"]
        table("latches", ["name", "tripped (UTC)", "why", "reset (UTC)", "by", "why it may trade"],
              [[latch[column] for column in columns] for latch in found])  # fmt: skip
    else:
        rows = [[b["name"], "latched" if b["latched"] else "armed", b["since"], b["reason"]] for b in found]
        table("breakers", ["name", "", "since (UTC)", "why"], rows)


@breaker.command("trip")
def breaker_trip(name: str, reason: Reason = "", by: By = None, as_json: AsJson = False) -> None:
    """Latch a breaker now: `emergency` puts every symbol into tier 4. Needs no server."""
    from bellwether.operations.breakers import trip
    from flows.support.installation import now, open_installation

    trip(open_installation().store, name, now(), by or os.environ.get("USER", "operator"), reason)
    breaker_list(as_json=as_json)


@breaker.command("reset")
def breaker_reset(name: str, reason: Reason = "", by: By = None, as_json: AsJson = False) -> None:
    """Let a latched breaker go. Of `daily_loss` and `drawdown` the loss so far is accepted and counted anew."""
    from bellwether.operations.breakers import reset
    from flows.support.installation import now, open_installation

    reset(open_installation().store, name, now(), by or os.environ.get("USER", "operator"), reason)
    breaker_list(as_json=as_json)


def moment(text: str | None, option: str) -> datetime | None:
    if text is None:
        return None
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise BadTimes(f"{option} {text} has no time zone; write {text}+00:00 for UTC")
    return found


def day_or_moment(text: str | None) -> datetime | None:
    """`2024-01-31` is midnight UTC of that day; a time of day needs its zone."""
    if text is None:
        return None
    try:
        return moment(f"{text}T00:00+00:00" if len(text) == len("2024-01-31") else text, "--since")
    except ValueError as error:
        raise BadTimes(f"--since {text} is no day or moment ({error}); write 2024-01-31") from error


@app.command()
def decide(
    symbol: Annotated[str | None, typer.Argument(help="Such as BTC/USDT; the newest snapshot's by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the decision service for a decision now, over HTTP, and show its reasons; `replay` makes old ones again."""
    from flows.support.installation import open_installation
    from serving.client import Client

    installation = open_installation()
    name = symbol or installation.manifest()["symbol"]
    with Client(installation.settings) as client:
        answer = client.decide(name)
    if as_json:
        emit(answer)
        return
    keys = [
        "id", "as_of", "action", "direction", "confidence", "p", "edge_bps", "size", "entry", "stop", "take_profits",
        "expiry", "regime", "tier", "arm", "event", "coverage", "generation",
    ]  # fmt: skip
    table(f"{name}", ["field", "value"], [[k, answer.get(k)] for k in keys])
    for reason in answer["reasons"] or ["emitted: nothing stood against it"]:
        out.print(f"· {escape(reason)}")


@app.command()
def risk(as_json: AsJson = False) -> None:
    """What is used of every limit now, breakers, drawdown stage, whose the tail is, and what would be refused."""
    from serving.client import Client

    with Client(settings()) as client:
        found = client.risk()
    if as_json:
        emit(found)
        return
    table(
        f"limits at {found['as_of']}", ["limit", "of", "used", "at most", "left", "used of it"],
        [[row["limit"], row["of"], number(row["used"], 4), number(row["at_most"], 4), number(row["left"], 4),
          None if row["share"] is None else f"{row['share']:.0%}"] for row in found["limits"]],
    )  # fmt: skip
    tail = found["tail"]
    if tail["by_asset"]:
        table(
            f"expected shortfall at {tail['level']:g} over {tail['hours']:g} h, {tail['scenarios']:,} scenarios, "
            f"concentration {tail['concentration']:.2f}",
            ["asset", "net", "its part"],
            [[name, number(part["net"], 4), number(part["es"], 5)] for name, part in tail["by_asset"].items()],
        )
    if found["positions"]:
        table(
            "open positions", ["symbol", "side", "size", "strategy", "entry", "stop", "until (UTC)"],
            [[p["symbol"], p["side"], number(p["size"], 4), p["strategy"], p["entry"], p["stop"], p["expiry"]]
             for p in found["positions"]],
        )  # fmt: skip
    table(
        "a new position, were its signal beyond doubt", ["symbol", "side", "largest", "held down by", "refused"],
        [[n["symbol"], n["side"], number(n["max_size"], 4), n["capped_by"], "; ".join(n["refused"]) or None]
         for n in found["next"]],
    )  # fmt: skip
    out.print(f"stage {found['stage']}: leaves {found['stage_size_multiplier']:g} of a size; "
              f"breakers: {', '.join(found['breakers']) or 'none latched'}")  # fmt: skip


@app.command()
def weights(as_json: AsJson = False) -> None:
    """Weights of the categories as stated and as learnt from outcomes so far, and how often each pattern paid."""
    from flows.support.installation import open_installation
    from serving.policy.fusion import regime_weights
    from serving.state.online_weights_store import ONLINE_WEIGHTS_FILE, OnlineWeightsStore

    installation = open_installation()
    experience = OnlineWeightsStore(installation.settings.serving_dir / ONLINE_WEIGHTS_FILE, installation.params)
    stated = {regime: regime_weights(installation.params.fusion, regime) for regime in (None, *REGIMES)}
    patterns: list[dict[str, Any]] = [
        {"pattern": kind, "regime": regime, "n": paid.n, "mean": paid.mean, "low": paid.low, "high": paid.high}
        for kind, regime, paid in experience.patterns()
    ]
    found = {
        "use": installation.params.learning.use, "outcomes": experience.count, "learned": experience.weights,
        "stated": {regime or "base": told for regime, told in stated.items()}, "patterns": patterns,
    }  # fmt: skip
    if as_json:
        emit(found)
        return
    table(
        f"weights, learnt from {experience.count:,} outcomes (learning.use: {installation.params.learning.use})",
        ["category", "stated", "learnt", *REGIMES],
        [[name, number(stated[None][name], 4), number(weight, 4), *(number(stated[r][name], 4) for r in REGIMES)]
         for name, weight in experience.weights.items()],
    )  # fmt: skip
    table(
        "patterns: chance that the target comes first", ["pattern", "regime", "chance", "95 %", "n, discounted"],
        [[p["pattern"], p["regime"], number(p["mean"], 3), f"{p['low']:.3f} to {p['high']:.3f}", number(p["n"], 1)]
         for p in patterns],
    )  # fmt: skip


@app.command()
def limits(as_json: AsJson = False) -> None:
    """Every limit of params.yaml, by the layer that asks it."""
    from serving.risk.utilisation import limits_of

    found = limits_of(load_params(settings().params_file))
    if as_json:
        emit(found)
    else:
        table("limits", ["layer", "limit", "value", "of"], [list(row.values()) for row in found])


@app.command()
def chart(
    symbol: Annotated[str | None, typer.Argument(help="The market of the newest snapshot by default.")] = None,
    last: Annotated[int, typer.Option(help="Decision bars to draw.", min=10)] = 300,
    to: Annotated[Path | None, typer.Option(help="The page to write; one under reports by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a market: candles, where each signal began to speak, decisions with stop and target, regimes."""
    from bellwether.reports.chart import gather, to_dict, write
    from flows.support.installation import open_installation

    installation = open_installation()
    drawn = gather(installation, symbol, last)
    file = write(drawn, to or installation.settings.home / "reports" / f"chart-{drawn.symbol.replace('/', '-')}.html")
    found = to_dict(drawn) | {"page": str(file)}
    if as_json:
        emit(found)
        return
    out.print(f"{drawn.symbol}: {found['bars']:,} bars, {len(found['signals']):,} signals, "
              f"{len(found['decisions'])} trades, drawn in {file}")  # fmt: skip


@app.command()
def signals(
    symbol: Annotated[str | None, typer.Argument(help="The market of the newest snapshot by default.")] = None,
    score: Annotated[bool, typer.Option("--score", help="What each was worth on the snapshot, as table and page.")] = (
        False
    ),
    to: Annotated[Path | None, typer.Option(help="The page of --score; one under reports by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every signal: which there are, what one that is silent waits for, when it last spoke; `--score`: its worth."""
    from bellwether.reports import signals as told
    from flows.support.installation import open_installation

    installation = open_installation()
    if not score:
        found = told.listing(installation, symbol)
        emit(found) if as_json else show_signals(found)
        return
    name, scored = told.score(installation, symbol)
    file = told.write(
        name, scored, to or installation.settings.home / "reports" / f"signals-{name.replace('/', '-')}.html"
    )
    if as_json:
        emit({"symbol": name, **scored.to_dict(), "page": str(file)})
        return
    table(
        f"{name}: {scored.tested} signals on {scored.bars:,} bars of {scored.weeks:.1f} weeks; buying at every bar: "
        f"{told.format_estimate(scored.market_bps)} bps over {scored.horizon_bars} bars",
        list(told.SCORE_COLUMNS),
        told.score_rows(scored),
    )
    above = ", ".join(scored.above()) or "none"
    out.print(f"above nought net with the whole interval: {above}; of {scored.tested} tried, "
              f"{scored.tested * 0.025:.1f} would be by luck. Drawn in {file}")  # fmt: skip


def show_signals(found: dict[str, Any]) -> None:
    of = found["symbol"]
    about = f"{of}: {found['bars']:,} bars to {found['to']} UTC" if of else "signals; nothing was ingested yet"
    table(
        about,
        ["row", "what", "signal", "category", "status", "spoke", "last (UTC)"],
        [
            [s["row"], s["told"], s["signal"], s["category"], s["status"], s["spoke"], s["last"]]
            for s in found["signals"]
        ],
    )


@app.command()
def heatmap(
    recording: Annotated[Path, typer.Argument(help="Folder of a recorded order book.", exists=True, file_okay=False)],
    to: Annotated[Path | None, typer.Option(help="The page to write; one under reports by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw the end of a recorded order book: 50 snapshots of 100 levels, with walls, clusters and depth."""
    from bellwether.reports.heatmap import to_dict, write
    from pipelines.data.orderbook.tape import latest_heatmap
    from pipelines.data.readers.recordings import replay_recording
    from pipelines.data.sources import BOOK_EVERY_S
    from pipelines.settings import settings

    drawn = latest_heatmap(replay_recording(recording, BOOK_EVERY_S).tape)
    file = write(drawn, recording.name, to or settings().home / "reports" / f"heatmap-{recording.name}.html")
    found = to_dict(drawn) | {"page": str(file)}
    if as_json:
        emit(found)
        return
    out.print(f"{recording.name}: {found['snapshots']} snapshots, imbalance {found['imbalance']:+.2f}, "
              f"{len(found['walls'])} walls, {len(found['clusters'])} clusters, drawn in {file}")  # fmt: skip


@app.command()
def stars(
    symbol: Annotated[str | None, typer.Argument(help="The market of the newest snapshot by default.")] = None,
    path: Annotated[Path | None, typer.Option(help="Measure on this Parquet, CSV or zip file instead.")] = None,
    context: Annotated[
        list[Path] | None, typer.Option(help="With --path: file of context or folder of a recorded book.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The 21 stars of the unicorn rating: how often each is true, and its measured lift with an interval."""
    from dataclasses import asdict

    from bellwether.reports import stars as measured
    from flows.support.installation import now, open_installation

    if path is None:
        found = measured.of_snapshot(open_installation(), symbol)
    else:
        found = measured.of_file(path, symbol, context or [], load_params(settings().params_file), now())
    if as_json:
        emit({**asdict(found), "worths": found.worths.to_dict()})
        return
    table(
        f"{found.symbol}: {found.worths.bars:,} bars of {found.timeframe}, {found.first} to {found.last} UTC; mean "
        f"return over {found.worths.horizon_bars} bars on the star's side, true less false",
        list(measured.COLUMNS),
        measured.rows(found.worths),
    )
    out.print(measured.verdict(found.worths))


@app.command()
def lineage(
    decision_id: Annotated[str | None, typer.Argument(help="A decision's id; the newest decision by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """From a decision back to its feature bytes, models, run, commit, data and promotion record."""
    from bellwether.operations.lineage import trace
    from flows.support.installation import open_installation

    chain = trace(open_installation(), decision_id)
    if as_json:
        emit(chain)
        return
    table(f"lineage of {chain['decision']['id']}", ["link", "value"], [[k, v] for k, v in chain["links"].items()])
    for gap in chain["broken"]:
        out.print(f"[bold red]broken[/] {escape(gap)}")


@app.command()
def replay(
    decision_id: Annotated[str | None, typer.Argument(help="One decision's id; all of them by default.")] = None,
    symbol: str | None = None,
    since: Annotated[str | None, typer.Option(help="Only decisions from this day or moment on, UTC.")] = None,
    last: Annotated[int | None, typer.Option(help="Only the newest so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """Decide again what was decided, from stored bars and bundles; exit code 1 unless all is the same to the bit."""
    from bellwether.operations.replay_decisions import replay_decisions
    from flows.support.installation import open_installation
    from flows.support.progress import progress_display

    installation = open_installation()
    if decision_id is not None:
        records = [installation.store.decision(decision_id)]
    else:
        records = installation.store.decisions(symbol, since=day_or_moment(since), last=last)
    with progress_display(err):
        found = replay_decisions(installation, records).to_dict()
    if as_json:
        emit(found)
    else:
        table(
            "replay", ["what", "found"], [[k.replace("_", " "), str(v)] for k, v in found.items() if v not in ({}, [])]
        )
    if not found["same"]:
        raise typer.Exit(1)


@app.command()
def promote(
    family: str, version: str,
    reason: Annotated[str, typer.Option(help="Why; it goes on the ledger.")] = "asked for",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Make a version champion; refused without a passing verdict, like an alias moved in MLflow."""
    from flows.support import promotion
    from flows.support.installation import open_installation

    need("mlflow")
    installation = open_installation()
    if dry_run:
        wanted = installation.tracking.version(family, version)
        line = promotion.verdict_line(installation.store, family, version, wanted.digest)
        word = "would be promoted" if line and line.verdict_passed else "would be refused"
        told = {
            "family": family,
            "version": version,
            "told": f"{word}: {line.reason if line else 'the gate never judged this digest'}",
        }
        emit(told) if as_json else out.print(f"{family} version {version} {told['told']}")
        return
    line = promotion.promote(installation, family, version, actor=os.environ.get("USER", "operator"), reason=reason)
    found = {"family": family, "champion": line.to_version, "was": line.from_version, "digest": line.digest}
    emit(found) if as_json else out.print(f"{family}: version {line.to_version} is champion (was {line.from_version})")


@app.command()
def rollback(
    family: str,
    reason: Annotated[str, typer.Option(help="Why; it goes on the ledger.")] = "asked for",
    as_json: AsJson = False,
) -> None:
    """The previous champion back: preloaded, smoke-tested, pointer moved."""
    from flows.support import promotion
    from flows.support.installation import open_installation

    line = promotion.rollback(open_installation(), family, actor=os.environ.get("USER", "operator"), reason=reason)
    found = {"family": family, "champion": line.to_version, "was": line.from_version, "digest": line.digest}
    emit(found) if as_json else out.print(f"{family}: back to version {line.to_version} (was {line.from_version})")


@app.command()
def drift(symbol: str | None = None, as_json: AsJson = False) -> None:
    """Resolve outcomes, look for drift, write the Evidently report, and ask for a retrain if there is reason."""
    from flows.support.installation import open_installation
    from flows.support.progress import progress_display

    name = symbol or open_installation().manifest()["symbol"]
    need("mlflow", "prefect")
    from flows.monitor import monitor

    with progress_display(err):
        found = monitor(name)
    emit(found) if as_json else out.print(f"drift: {found['summary']}\nreport: {found['report']}")


@app.command()
def stress(
    crises: Annotated[
        Path | None, typer.Option(help="Parquet, CSV or zip file of hourly or finer bars that hold the crises.")
    ] = None,
    equity: Annotated[
        float | None,
        typer.Option(min=1.0, help="In the market's quote currency: what getting out costs depends on it."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the table: no server, no page.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the largest portfolio the limits allow loses in crises, resampled times, breakdowns and thin markets."""
    from flows.support.installation import open_installation
    from flows.support.progress import progress_display
    from pipelines.data.readers.files import check_path

    installation = open_installation()
    installation.meta()  # before the first ingest it says what to run
    if crises is not None:
        check_path(crises)
    if not dry_run:
        need("mlflow", "prefect")
    from flows import stress as stressed

    with progress_display(err):
        found = (
            stressed.study(installation, crises, equity).to_dict()
            if dry_run
            else stressed.stress(str(crises.resolve()) if crises else None, equity)
        )
    if as_json:
        emit(found)
        return
    table(
        f"{found['about']}; drawdown limit {found['drawdown_limit']:.0%}", stressed.columns(found), stressed.rows(found)
    )
    for line in found["verdict"]:
        out.print(escape(line), highlight=False)
    if not dry_run:
        out.print(f"drawn in {found['page']}\nin MLflow: {found['mlflow']}", soft_wrap=True)


@app.command()
def retrain(
    family: Annotated[str, typer.Argument(help="One family, or several with commas.")] = "validator",
    reason: str = "asked for by a person",
    force: Annotated[bool, typer.Option("--force", help="Do not wait for the cool-down.")] = False,
    as_json: AsJson = False,
) -> None:
    """A new challenger from everything seen so far; the gate decides."""
    from flows.support.progress import progress_display

    need("mlflow", "prefect")
    from flows.retrain import retrain as retrain_flow

    with progress_display(err):
        versions = retrain_flow(family, reason, force)
    if as_json:
        emit({"versions": versions})
    else:
        for name in family.split(","):
            out.print(f"{name}: {'version ' + versions[name] if name in versions else 'no new version'}")


@app.command()
def backup(
    to: Annotated[Path | None, typer.Option(help="The file to write; one under <home>/backups by default.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """The store and what serving follows into one file, while everything runs.

    It holds every table of the store but leases, the generation file with its warm start, and the pointers of kept data
    versions. Models and data are in stores of their own, with backups of their own: MLflow's database and artifacts
    (<home>/mlflow, or where your server keeps them) and DVC's remote (<home>/dvc-remote, or BELLWETHER_REMOTE_URL).
    """
    from bellwether.operations import backup as backups
    from flows.support.installation import now

    at = now()
    file = to or backups.default_file(settings(), at)
    rows = backups.preview(settings(), file) if dry_run else None
    made = None if dry_run else backups.make(settings(), file, at)
    told = {
        "file": str(file),
        "written": not dry_run,
        "rows": rows if made is None else made.rows(),
        "schema": made and made.schema,
        "files": made and sorted(made.files),
        "bytes": made and file.stat().st_size,
        "sha256": made and backups.file_sha256(file),
        "not_in_it": backups.NOT_INCLUDED,
    }
    if as_json:
        emit(told)
        return
    show_backup("backup", told["rows"], made and made.files)
    out.print(f"{'would be written to' if dry_run else 'written to'} {file}", highlight=False, soft_wrap=True)
    for name, text in backups.NOT_INCLUDED.items():
        out.print(f"{name}: {text}", highlight=False)


def show_backup(title: str, rows: Any, files: Any) -> None:
    counted = [[name, f"{n:,}"] for name, n in rows.items()]
    table(title, ["table", "rows"], counted if files is None else [*counted, ["files beside them", len(files)]])


@app.command()
def restore(file: Path, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """A backup into an empty store, SQLite or PostgreSQL: all of it, checked digest by digest, or nothing.

    Services must be down. A backup of an earlier release is brought up to this one. MLflow's and DVC's own stores are
    restored with their own means; `bellwether run --once` then fetches the bundles the ledger names.
    """
    from bellwether.operations import backup as backups

    made, placed = (backups.verify(settings(), file), []) if dry_run else backups.restore_installation(settings(), file)
    if as_json:
        emit({"file": str(file), "restored": not dry_run, "schema": made.schema, "made_at": made.made_at.isoformat(),
              "rows": made.rows(), "files": sorted(made.files),
              "placed": [{"path": p.path, "kept": p.moved_to} for p in placed]})  # fmt: skip
        return
    show_backup("restore", made.rows(), made.files)
    word = "checked; would be restored" if dry_run else "restored"
    out.print(f"{word}: {file} of {made.made_at:%F %T} UTC", highlight=False, soft_wrap=True)
    for one in placed:
        out.print(f"wrote {one.path}{f'; what was there is {one.moved_to}' if one.moved_to else ''}", highlight=False)


@app.command()
def prune(
    days: Annotated[
        int | None, typer.Option(min=30, help="Keep so many days; BELLWETHER_KEEP_DAYS by default.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this it only shows what would go.")] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let go of what is old and nothing refers to; shows what would go, `--yes` does it.

    Never of promotions, trials, observed bars, emitted or resolved decisions, or a bundle that something names.
    """
    from bellwether.operations import retention as retention
    from flows.support.installation import now, open_installation

    installation = open_installation()
    before = retention.cutoff(installation, days or installation.settings.keep_days, now())
    really = yes and not dry_run
    found = retention.prune(installation, before) if really else retention.plan(installation, before)
    if as_json:
        removals = {
            r.what: {"n": r.n, "oldest": r.oldest and r.oldest.isoformat(), "bytes": r.bytes, "rule": r.rule}
            for r in found
        }
        emit({"before": before.isoformat(), "removed": really, "removals": removals})
        return
    title = f"{'removed' if really else 'would remove'} what is older than {before:%F %T} UTC"
    table(title, ["what", "n", "oldest (UTC)", "bytes", "which"], [
        [r.what, f"{r.n:,}", r.oldest and f"{r.oldest:%F %T}", None if r.bytes is None else f"{r.bytes:,}", r.rule]
        for r in found
    ])  # fmt: skip
    if not really and any(r.n for r in found):
        out.print("Nothing was removed. `bellwether prune --yes` does it.")


schedules = typer.Typer(help="When the flows run by themselves; edited in the Prefect UI, put back to the plan here.")
app.add_typer(schedules, name="schedules")


@schedules.callback(invoke_without_command=True)
def schedules_bare(context: typer.Context, as_json: AsJson = False) -> None:
    """What is scheduled, as `list` does, where no command is given."""
    if context.invoked_subcommand is None:
        schedules_list(as_json)


@schedules.command("list")
def schedules_list(as_json: AsJson = False) -> None:
    """Each deployment with its schedules, active or paused, and what differs from the plan of this release."""
    need("prefect")
    from flows.support.schedules import deployment_statuses

    show_schedules("schedules", deployment_statuses(load_params(settings().params_file)), as_json)


@schedules.command("reset")
def schedules_reset(dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Put schedules, default parameters and the drift trigger back to the plan; shows what was not as planned."""
    need("prefect")
    from flows.support.schedules import deployment_statuses, reset

    params = load_params(settings().params_file)
    found = [s for s in deployment_statuses(params) if s.differences] if dry_run else reset(params)
    show_schedules("would be put back to the plan" if dry_run else "put back to the plan", found, as_json)


def show_schedules(title: str, found: Any, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        emit([asdict(one) for one in found])
        return
    table(title, ["deployment", "schedules and triggers", "not as planned"], [
        [one.deployment, "\n".join(("paused as a whole", *one.schedules) if one.paused else one.schedules) or None,
         "\n".join(one.differences) or None]
        for one in found
    ])  # fmt: skip


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Ports, disk, versions, leftovers: what is wrong here, and what to do."""
    from dataclasses import asdict

    from bellwether.operations.doctor import examine

    findings = examine(settings())
    if as_json:
        emit([asdict(f) for f in findings])
    else:
        table(
            "doctor", ["what", "state", "detail", "remedy"], [[f.name, f.state, f.detail, f.remedy] for f in findings]
        )
    if any(f.state == "fail" for f in findings):
        raise typer.Exit(1)


@app.command("open")
def open_tool(
    tool: Annotated[str, typer.Argument(help="mlflow | prefect | decision | models | evidently")],
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Only print the link.")] = False,
    as_json: AsJson = False,
) -> None:
    """Open a tool in the browser, by a one-time link."""
    import webbrowser

    from flows.support import processes
    from serving.service import keys

    known = [name for name, service in processes.SERVICES.items() if service.port_field]
    if tool not in known:
        raise UnknownName(f"no tool {tool!r}; known: {', '.join(known)}")
    need(tool, ready=False)  # a page that says what is wrong is worth opening
    port = processes.services(settings(), {tool: processes.SERVICES[tool]})[tool]["port"]
    host = "127.0.0.1" if settings().host == "0.0.0.0" else settings().host
    ticket = keys.create_ticket(settings(), tool)
    url = f"http://{host}:{port}/session?ticket={ticket}"
    if as_json:
        emit({"tool": tool, "url": url, "seconds": keys.TICKET_SECONDS})
        return
    out.print(url, highlight=False, soft_wrap=True)
    has_screen = sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if has_screen and not no_browser:
        webbrowser.open(url)
    else:
        out.print(f"Open the link in a browser within {keys.TICKET_SECONDS} s. It works once.")


key_app = typer.Typer(no_args_is_help=True, help="Manage the key of this installation.")
app.add_typer(key_app, name="key")


@key_app.command("path")
def key_path() -> None:
    """Print the path of the key file."""
    from serving.service import keys

    if keys.configured_key(settings()) is not None:
        raise BadValues("the key comes from BELLWETHER_WRITE_KEY, not from a file")
    typer.echo(keys.key_file(settings()))


@key_app.command("rotate")
def key_rotate(as_json: AsJson = False) -> None:
    """Replace the key and restart what is running."""
    from flows.support import processes
    from serving.service import keys

    running = [name for name, state in processes.services(settings()).items() if state["pid"] is not None]
    keys.rotate_key(settings())
    processes.down(settings())
    connect()
    if running:
        processes.up(settings(), running, progress=processes.silent if as_json else out.print)
    show_services(as_json)


def main() -> None:
    """Entry point: every error is one sentence with its remedy; a bug's traceback is in a file."""
    bootstrap()
    permissions.restrict()
    try:
        if sys.argv[1:2] in (["up"], ["run"]):  # a home of a release that left it open, before its key is read
            tighten(err)
        connect()
        app()
    except BellwetherError as error:
        fail(error, str(error))
    except Exception as error:  # noqa: BLE001 - whatever third parties raise: nobody is shown a traceback unasked
        from bellwether.error_messages import describe_known_error, describe_unexpected_error

        fail(error, describe_known_error(error) or describe_unexpected_error(error))


def fail(error: Exception, told: str) -> None:
    """Say it on standard error, with the traceback where BELLWETHER_DEBUG asks for it, and end with exit code 1."""
    from bellwether.error_messages import debugging

    if debugging():
        err.print("".join(traceback.format_exception(error)), markup=False, highlight=False, soft_wrap=True)
    # one line however long, and brackets in it are the message's own
    err.print(f"[bold red]{type(error).__name__}[/]: {escape(told)}", highlight=False, soft_wrap=True)
    if isinstance(error, ServiceDown):
        where = escape(str(settings().home / "logs"))
        err.print(f"`bellwether status` shows what is up; logs are in {where}.", highlight=False, soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
