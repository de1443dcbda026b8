"""`bellwether data`: bars that are held back, bars that a person corrects, and (of data_versions.py) data versions."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bellwether.cli.data_versions import versions
from bellwether.cli.options import AsJson, DryRun, Reason, moment, new_group, user
from bellwether.cli.output import emit, paragraph, table
from pipelines.errors import BadTimes, BadValues

if TYPE_CHECKING:
    from bellwether.operations.corrections import Decided
    from pipelines.contracts import JsonObject
    from pipelines.store import Signed

app = new_group()
data = new_group("Restore and compare data versions, correct bars.")
quarantine = new_group("List, release and drop held bars, set others aside.")
app.add_typer(data, name="data")
data.add_typer(quarantine, name="quarantine")
data.add_typer(versions)

By = Annotated[str | None, typer.Option(help="Whose decision it is; your user name by default.")]
Numbers = Annotated[list[int] | None, typer.Argument(help="Numbers of `bellwether data quarantine list`.")]
OfMarket = Annotated[str | None, typer.Option("--symbol", help="All held bars of this market.")]
Market = Annotated[str, typer.Argument(help="Such as BTC/USDT.")]


@quarantine.command("list")
def quarantine_list(
    symbol: Annotated[str | None, typer.Option(help="Only bars of this market.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also those released, dropped or withdrawn.")] = False,
    as_json: AsJson = False,
) -> None:
    """List bars that are held back.

    A held bar was stored, and counts for nothing until a person releases it.
    """
    from bellwether.operations.corrections import quarantined_json
    from flows.support.installation import open_installation

    found = [quarantined_json(one) for one in open_installation().store.quarantined(symbol, not everything)]
    if as_json:
        emit({"quarantined": found})
        return
    rows = [[one["id"], one["symbol"], _to_second(one["open_time"]), one["reason"], one["state"], one["detail"]]
            for one in found]  # fmt: skip
    table("quarantine", ["id", "symbol", "bar opens (UTC)", "rule", "state", "why"], rows)


@quarantine.command("show")
def quarantine_show(
    number: Annotated[int, typer.Argument(help="Number of `bellwether data quarantine list`.")], as_json: AsJson = False
) -> None:
    """Show one bar that is or was held back, with who decided what."""
    from bellwether.operations.corrections import quarantined_json
    from flows.support.installation import open_installation

    found = quarantined_json(open_installation().store.quarantined_bar(number))
    if as_json:
        emit(found)
        return
    bar = {name: value for name, value in found.pop("bar").items() if name != "open_time"}
    table(f"quarantined bar {number}", ["what", "value"], [[k.replace("_", " "), v] for k, v in (found | bar).items()])


@quarantine.command("release")
def quarantine_release(
    numbers: Numbers = None, symbol: OfMarket = None, reason: Reason = "", by: By = None, dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Release held bars: they count as they came.

    The market is folded again with them. Decisions already made keep the bars they were made on.
    """
    from bellwether.operations.corrections import held, release
    from flows.support.installation import open_installation

    installation = open_installation()
    bars = held(installation, numbers or [], symbol)
    signed = _signed(reason, by)
    _show(release(installation, bars, signed, dry_run), f"{len(bars)} bar(s)", "released", dry_run, as_json)


@quarantine.command("drop")
def quarantine_drop(
    numbers: Numbers = None, symbol: OfMarket = None, reason: Reason = "", by: By = None, dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Drop held bars: the gap they leave stays."""
    from bellwether.operations.corrections import drop, held
    from flows.support.installation import open_installation

    installation = open_installation()
    bars = held(installation, numbers or [], symbol)
    _show(drop(installation, bars, _signed(reason, by), dry_run), f"{len(bars)} bar(s)", "dropped", dry_run, as_json)


@quarantine.command("set-aside")
def quarantine_set_aside(
    symbol: Market,
    time: Annotated[str, typer.Argument(help="When the bar opens, such as 2024-01-31T09:15Z.")],
    reason: Reason = "",
    by: By = None,
    as_json: AsJson = False,
) -> None:
    """Set an accepted bar aside, into quarantine.

    It counts no more for live features, the next data version and outcomes that are not resolved yet.
    """
    from bellwether.operations.corrections import set_aside
    from flows.support.installation import open_installation

    decided = set_aside(open_installation(), symbol, _opened(time), _signed(reason, by))
    _show(decided, f"{len(decided.corrections)} bar(s)", "set aside", False, as_json)


@data.command("correct")
def data_correct(
    symbol: Market,
    file: Annotated[Path | None, typer.Option(help="File with the right bars, as `check` reads it.")] = None,
    bar: Annotated[
        list[str] | None,
        typer.Option(help="One bar, 'open_time=2024-01-31T09:15Z open=1 high=2 low=1 close=2'; repeatable."),
    ] = None,
    reason: Reason = "",
    by: By = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Correct observed bars of a market.

    What was observed is kept. The market is folded again from its warm start; decisions already made keep the bars
    they were made on, and `bellwether replay --reading` makes them again on either.
    """
    import numpy as np

    from bellwether.operations.corrections import correct, row_of_text, rows_of_file
    from flows.support.installation import now, open_installation

    if (file is None) == (not bar):
        raise BadValues("give the right bars with --file FILE, or one by one with --bar; one of the two")
    installation = open_installation()
    signed = _signed(reason, by)
    if file is not None:
        rows = rows_of_file(installation, file, symbol, now())
    else:
        rows = np.concatenate([row_of_text(text, symbol) for text in bar or []])
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
    decided = correct(installation, symbol, rows, signed, dry_run)
    what = f"{len(rows)} bar(s)" if dry_run else f"{len(decided.corrections)} of {len(rows)} bar(s)"
    _show(decided, what, "corrected", dry_run, as_json)


@data.command("corrections")
def data_corrections(symbol: Market, as_json: AsJson = False) -> None:
    """List every correction of a market, oldest first."""
    from bellwether.operations.corrections import correction_json
    from flows.support.installation import open_installation

    found = [correction_json(one) for one in open_installation().store.corrections(symbol)]
    if as_json:
        emit({"corrections": found})
    else:
        _show_corrections(found)


def _signed(reason: str, by: str | None) -> "Signed":
    """Return who decides now and why. Raises BadValues without a reason."""
    from flows.support.installation import now
    from pipelines.store import Signed

    return Signed(by or user(), now(), reason)


def _opened(time: str) -> datetime:
    """Return the moment a bar opens. Raises BadTimes for text that is none, or has no zone."""
    found = moment(time, "TIME")
    if found is None:
        raise BadTimes("TIME is missing; write 2024-01-31T09:15Z")
    return found


def _show(decided: "Decided", what: str, done: str, dry_run: bool, as_json: bool) -> None:
    """Print what was decided or would be, and whether the running service follows."""
    if as_json:
        emit({"dry_run": dry_run, **decided.to_dict()})
        return
    if dry_run:
        paragraph(f"{what} would be {done}; nothing was changed.", lead="dry run:")
        return
    found = decided.to_dict()
    if found["corrections"]:
        _show_corrections(found["corrections"])
    follows = {
        True: "The running service has folded the market again with it.",
        False: "The running service has not followed yet; `bellwether status` shows why.",
        None: "No service runs; the next one to start reads it.",
    }
    paragraph(f"{what} {done}. {follows[decided.follows] if decided.corrections else ''}".strip())


def _show_corrections(found: Sequence["JsonObject"]) -> None:
    """Print corrections: what was changed of each bar, by whom and why."""
    rows = [[one["id"], _to_second(one["open_time"]), _change(one), one["by"], one["reason"]] for one in found]
    table("corrections", ["id", "bar opens (UTC)", "change", "by", "why"], rows)


def _change(one: "JsonObject") -> str:
    """Return what a correction changed, in words."""
    before, after = one["before"], one["after"]
    if after is None:
        return "taken out"
    if before is None:
        return "put in"
    changed = [name for name in before if before[name] != after[name]]
    return ", ".join(f"{name} {_value(before[name])} to {_value(after[name])}" for name in changed)


def _value(value: float | None) -> str:
    """Return a value of a bar as tables show it; --json has every digit."""
    return "none" if value is None else f"{value:.8g}"


def _to_second(time: str) -> str:
    """Return an ISO 8601 moment to the second, as tables show it."""
    return time[:19].replace("T", " ")
