"""What the store holds, as it was known at a moment: decisions, context."""

import json
from typing import Annotated

import typer

from bellwether.cli.options import AsJson, AsOf, canonical, day_or_moment, new_group, past_moment
from bellwether.cli.output import as_known, emit, line, number, table
from pipelines.errors import BadValues
from pipelines.settings import settings

app = new_group()


@app.command()
def decisions(
    symbol: Annotated[str | None, typer.Option(help="Only decisions on this market.", callback=canonical)] = None,
    since: Annotated[str | None, typer.Option(help="Only decisions from this day or moment on, UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Only decisions before this day or moment, UTC.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Only the newest so many.")] = 20,
    as_of: AsOf = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show each decision as it becomes durable.")] = False,
    after: Annotated[int | None, typer.Option(min=0, help="With --follow: resume behind this number.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the newest decisions with their outcomes.

    --as-of leaves out decisions and outcomes that were stored later. --json has ids, for `bellwether lineage`, and when
    each was stored. --follow reads the stream of the decision service until Ctrl-C; with --json a line each, whose
    `seq` is the number that --after resumes behind.
    """
    if follow:
        if since or until or as_of:
            raise BadValues("--follow shows what comes: --since, --until and --as-of look back. Leave one side out")
        _follow(symbol, after, as_json)
        return
    if after is not None:
        raise BadValues("--after is the number that --follow resumes behind. Add --follow")
    from bellwether.operations.history import decisions_known
    from flows.support.installation import open_installation

    known_by = past_moment(as_of)
    found = decisions_known(
        open_installation().store, symbol, day_or_moment(since), day_or_moment(until, "--until"), last, known_by
    )
    moment = known_by.isoformat() if known_by else None
    if as_json:
        emit({"known_by": moment, "decisions": found})
        return
    rows = []
    for one in found:
        outcome = one["outcome"] or {"barrier": None, "net_bps": None}
        rows.append([
            _to_minute(one["as_of"]), one["symbol"], one["action"], one["event"], number(one["p"], 3),
            number(one["size"], 4), outcome["barrier"], number(outcome["net_bps"], 1),
        ])  # fmt: skip
    columns = ["as of (UTC)", "symbol", "action", "event", "p", "size", "outcome", "net bps"]
    table(f"{len(found)} newest decisions{as_known(moment)}", columns, rows)


def _follow(symbol: str | None, after: int | None, as_json: bool) -> None:
    """Print decisions of one market or all as they become durable, a line each, until Ctrl-C."""
    from serving.client import Client

    try:
        with Client(settings()) as client:
            for seq, decision in client.stream(after):
                if symbol not in (None, decision["symbol"]):
                    continue
                if as_json:
                    typer.echo(json.dumps({"seq": seq, **decision}))
                    continue
                size = number(decision["size"], 4)
                line(f"{seq}  {_to_minute(decision['as_of'])}  {decision['symbol']}  {decision['action']}  {size}")
    except KeyboardInterrupt:
        pass  # how it is ended


@app.command()
def context(
    symbol: Annotated[str, typer.Argument(help="Such as BTC/USDT.", callback=canonical)],
    as_of: AsOf = None,
    last: Annotated[int, typer.Option(min=1, help="Only the newest so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List context values and when they came.

    "known at" is when a value could be known, by its source; "received" is when it was stored here. --as-of leaves out
    what was received later.
    """
    from bellwether.operations.history import context_known
    from flows.support.installation import open_installation

    known_by = past_moment(as_of)
    found = context_known(open_installation().store, symbol, last, known_by)
    moment = known_by.isoformat() if known_by else None
    if as_json:
        emit({"symbol": symbol, "known_by": moment, "context": found})
        return
    rows = [
        [one["kind"], None if one["value"] is None else f"{one['value']:.8g}", _to_second(one["known_at"]),
         _to_second(one["ingested_at"])]
        for one in found
    ]  # fmt: skip
    title = f"{len(found)} newest context values of {symbol}{as_known(moment)}"
    table(title, ["kind", "value", "known at (UTC)", "received (UTC)"], rows)


def _to_minute(time: str) -> str:
    """Return an ISO 8601 moment to the minute, as tables show it: decisions are made on bars of a minute or more."""
    return time[:16].replace("T", " ")


def _to_second(time: str) -> str:
    """Return an ISO 8601 moment to the second, as tables show it."""
    return time[:19].replace("T", " ")
