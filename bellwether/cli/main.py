"""`bellwether`: the whole life of a trading model, from the command line.

Most commands take --json; an error is one line on standard error and exit code 1.
"""

import importlib
import sys
import traceback
from collections import UserDict
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

COMMANDS = {  # name → (module, help). `bellwether --help` reads this and loads none of the modules
    "up": ("services", "Start all services and wait until they work"),
    "down": ("services", "Stop everything `up` started, workers before servers"),
    "restart": ("services", "Restart services that run"),
    "status": ("services", "Show health, live models, services and alarms"),
    "watch": ("watch", "Show market time, bars, decisions, trades, alarms and champions"),
    "feed": ("feed", "Start, stop and show the feed of bars"),
    "doctor": ("services", "Check this installation and show what to fix"),
    "open": ("services", "Open a tool in the browser, by one-time link"),
    "run": ("run", "Run the whole loop once, then serve until Ctrl-C"),
    "symbols": ("symbols", "List, add and remove symbols of this home"),
    "check": ("data", "Check a data file without starting anything"),
    "data": ("market_data", "Restore and compare data versions, correct bars"),
    "decide": ("decisions", "Request a decision now and show it"),
    "features": ("decisions", "Show what the models see at the newest close"),
    "risk": ("decisions", "Show what is used of every risk limit"),
    "account": ("decisions", "Show equity, drawdown and open positions"),
    "limits": ("decisions", "List every limit of params.yaml"),
    "weights": ("decisions", "Show stated and learned weights of the categories"),
    "decisions": ("history", "List the newest decisions with their outcomes"),
    "context": ("history", "List context values and when they came"),
    "replay": ("decisions", "Recompute stored decisions and compare every bit"),
    "verify": ("store", "Verify that the ledger is as it was written"),
    "audit": ("store", "Prove a day of decisions to somebody else"),
    "lineage": ("decisions", "Trace a decision to its models, code and data"),
    "ab": ("ab", "Compare challengers with champions: list, show, start, stop"),
    "promote": ("models", "Make a version champion of its family"),
    "rollback": ("models", "Restore the previous champion of a family"),
    "retrain": ("models", "Train new challengers on everything observed so far"),
    "drift": ("models", "Detect drift and request retraining where needed"),
    "freeze": ("learning", "Stop retrains or promotions from starting by themselves"),
    "unfreeze": ("learning", "Let retrains or promotions start by themselves again"),
    "report": ("learning", "Write the report of a market day"),
    "chart": ("reports", "Draw a market with signals and decisions"),
    "heatmap": ("reports", "Draw the heatmap of a recorded order book"),
    "signals": ("reports", "List signals with their inputs and scores"),
    "stars": ("reports", "Measure the stars of the unicorn rating"),
    "stress": ("reports", "Stress the largest portfolio the limits allow"),
    "portfolio": ("reports", "Allocate among the symbols of the universe"),
    "alarms": ("breakers", "List open alarms and tripped breakers"),
    "breaker": ("breakers", "List, trip and reset circuit breakers"),
    "backup": ("store", "Back up the store and the serving state"),
    "restore": ("store", "Restore a backup into an empty store"),
    "migrate": ("migrate", "Move this home to the other profile"),
    "prune": ("store", "Remove old records that nothing refers to"),
    "schedules": ("schedules", "List and reset the schedules of the flows"),
    "key": ("keys", "Manage the keys of this installation and its clients"),
}
WITHOUT_SETTINGS: tuple[list[str], ...] = ([], ["--help"], ["--version"])  # what is answered before a setting is read

WITHOUT_SERVICES = (["check"],)  # reads a file: no server's library is imported


class LazyCommands(UserDict[str, Any]):
    """Map the name of each command to the command, importing its module at the first access."""

    def __init__(self) -> None:
        """Start with every name and no module imported."""
        super().__init__(dict.fromkeys(COMMANDS))

    def __getitem__(self, name: str) -> Any:
        """Return a command, loading every command of its module."""
        if self.data[name] is None:
            module, _ = COMMANDS[name]
            self.data |= typer.main.get_group(importlib.import_module(f"bellwether.cli.{module}").app).commands
        return self.data[name]


class LazyGroup(TyperGroup):
    """Hold every command without importing its module."""

    def __init__(self, **attributes: Any) -> None:
        """Take what Typer passes, with our commands in place of its own."""
        super().__init__(**attributes)
        self.commands = LazyCommands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands for `bellwether --help`."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])


app = typer.Typer(
    cls=LazyGroup, help=__doc__, no_args_is_help=True, add_completion=False, rich_markup_mode=None,
    pretty_exceptions_enable=False,
)  # fmt: skip


def _print_version(wanted: bool) -> None:
    """Print the version and exit, if --version was given."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"bellwether {version('bellwether')}")
        raise typer.Exit


@app.callback()
def _options_of_all(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options before the command's name; --version has exited by now."""


def main() -> None:
    """Run one command; every error is one sentence with its remedy, a bug's traceback is in a file."""
    if sys.argv[1:] in WITHOUT_SETTINGS:
        app()
    from pipelines import permissions
    from pipelines.bootstrap import bootstrap, end_at_once, expect_one_answer
    from pipelines.errors import BellwetherError

    bootstrap()  # before anything imports numpy
    reads_files = sys.argv[1:2] in WITHOUT_SERVICES
    if reads_files:
        expect_one_answer()
    permissions.restrict()
    try:
        if sys.argv[1:2] in (["up"], ["run"]):  # a home of a release that left it open, before its key is read
            close_home()
        if not reads_files:
            from bellwether.cli.connection import connect

            connect()
        app()
    except SystemExit as ended:
        if reads_files:
            end_at_once(ended)
        raise
    except BellwetherError as error:
        fail(error, str(error))
    except Exception as error:  # noqa: BLE001 - whatever third parties raise: tracebacks are shown on request only
        from bellwether.error_messages import describe_known_error, describe_unexpected_error

        fail(error, describe_known_error(error) or describe_unexpected_error(error))


def close_home() -> None:
    """Remove other users' access to the home, and print what was open."""
    from bellwether.cli.output import err
    from pipelines import permissions
    from pipelines.settings import settings

    if closed := permissions.tighten(settings().home):
        err.print(f"{settings().home}: {closed}", highlight=False, soft_wrap=True)


def fail(error: Exception, message: str) -> None:
    """Print the message on standard error, with the traceback if BELLWETHER_DEBUG is set, and exit with code 1."""
    from rich.markup import escape

    from bellwether.cli.output import err
    from bellwether.error_messages import debugging
    from pipelines.errors import ServiceDown
    from pipelines.settings import settings

    if debugging():
        err.print("".join(traceback.format_exception(error)), markup=False, highlight=False, soft_wrap=True)
    # one line however long, and brackets in it are the message's own
    err.print(f"[bold red]{type(error).__name__}[/]: {escape(message)}", highlight=False, soft_wrap=True)
    if isinstance(error, ServiceDown):
        where = escape(str(settings().home / "logs"))
        err.print(f"`bellwether status` shows what is up; logs are in {where}.", highlight=False, soft_wrap=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
