"""What learns by itself, and what a day brought: freeze, unfreeze, report."""

from dataclasses import asdict
from datetime import date
from typing import Annotated

import typer

from bellwether.cli.options import AsJson, Reason, new_group, user
from bellwether.cli.output import emit, line, paragraph, table
from pipelines.contracts import JsonObject
from pipelines.errors import BadTimes
from pipelines.settings import settings

app = new_group()
What = Annotated[str, typer.Argument(help="retrain | promotion")]


@app.command()
def freeze(what: What, reason: Reason = "requested", as_json: AsJson = False) -> None:
    """Stop retrains or promotions from starting by themselves.

    A person's own `bellwether retrain` and `bellwether promote` still work. `bellwether status` shows who froze what.
    """
    from flows.support import frozen
    from flows.support.installation import now

    made = frozen.freeze(settings(), what, user(), reason, now())
    emit(asdict(made)) if as_json else paragraph(made.describe())


@app.command()
def unfreeze(what: What, as_json: AsJson = False) -> None:
    """Let retrains or promotions start by themselves again.

    Ends a freeze by command; one in params.yaml is ended there.
    """
    from flows.support import frozen

    ended = frozen.unfreeze(settings(), what)
    still = frozen.frozen(settings(), "retrain" if what == "retrain" else "promotion")
    if as_json:
        emit({"ended": ended and asdict(ended), "frozen": still and asdict(still)})
        return
    line(f"{what}: it was not frozen by command" if ended is None else f"{what}: frozen no more")
    if still is not None:
        paragraph(still.describe())


@app.command()
def report(
    day: Annotated[str | None, typer.Argument(help="Such as 2024-01-31; the newest that is over by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a market day.

    Decisions, trades, results, drift, retrains, promotions, alarms and data versions, as a page and as JSON.
    """
    from flows import report as flow
    from flows.support.installation import open_installation

    installation = open_installation()
    found = flow.gather(installation, _day(day) if day else flow.newest_day(installation))
    page = str(flow.write(installation, found))
    emit({**found, "page": page}) if as_json else show_report(found, page)


def _day(text: str) -> date:
    """Return a day in ISO 8601. Raises BadTimes."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise BadTimes(f"{text} is no day ({error}); write 2024-01-31") from error


def show_report(found: JsonObject, page: str) -> None:
    """Print a report: a row a symbol, all together, and how much else happened."""
    rows = [*found["symbols"].items(), ("all", found["all"])]
    table(
        f"{found['day']}, UTC of the market{'' if found['complete'] else ', not over yet'}",
        ["symbol", "decisions", "events", "emitted", "closed", "won", "net bps a trade", "bps of equity"],
        [
            [name, one["decisions"], one["events"], one["emitted"], one["trades_closed"], one["won"],
             _net(one["net_bps"]), f"{one['equity_bps']:+.2f}"]
            for name, one in rows
        ],
    )  # fmt: skip
    counts = ", ".join(f"{len(found[name])} {name.replace('_', ' ')}" for name in _COUNTED)
    paragraph(f"source of results: {found['all']['source']}; {counts}")
    line(f"drawn in {page}")


_COUNTED = ("drift", "retrains", "promotions", "experiments", "alarms", "data_versions")


def _net(estimate: JsonObject) -> str | None:
    """Return a mean with its interval; None without trades."""
    if estimate["value"] is None:
        return None
    if estimate["low"] is None:
        return f"{estimate['value']:+.2f} (n {estimate['n']})"
    return f"{estimate['value']:+.2f} [{estimate['low']:+.1f}, {estimate['high']:+.1f}]"
