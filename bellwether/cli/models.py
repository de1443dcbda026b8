"""Versions of the model families: promote, rollback, retrain, drift."""

from typing import TYPE_CHECKING, Annotated

import typer

from bellwether.cli.connection import require_services
from bellwether.cli.options import AsJson, DryRun, Reason, canonical, new_group, user
from bellwether.cli.output import emit, err, line
from pipelines.bootstrap import step_back
from pipelines.errors import UnknownName
from pipelines.families import FAMILIES
from pipelines.settings import settings

if TYPE_CHECKING:
    from flows.support.installation import Installation
    from pipelines.store import Promotion

app = new_group()
Family = Annotated[str, typer.Argument(help=" | ".join(FAMILIES))]


@app.command()
def promote(
    family: Family,
    version: Annotated[str, typer.Argument(help="Its number in MLflow.")],
    reason: Reason = "requested",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make a version champion of its family.

    Refused unless the gate passed it. Works as an alias moved in MLflow does.
    """
    from flows.support import promotion
    from flows.support.installation import open_installation

    require_services("mlflow")
    installation = open_installation()
    if dry_run:
        wanted = installation.tracking.version(family, version)
        verdict = installation.store.verdict(family, version, wanted.digest)
        expected = "would be promoted" if verdict and verdict.verdict_passed else "would be refused"
        message = f"{expected}: {verdict.reason if verdict else 'the gate never evaluated this digest'}"
        message += _experiment_of(installation, family, wanted.digest) if verdict and verdict.verdict_passed else ""
        found = {"family": family, "version": version, "message": message}
        emit(found) if as_json else line(f"{family} version {version} {message}")
        return
    moved = promotion.promote(installation, family, version, actor=user(), reason=reason)
    if as_json:
        emit(_champion(moved))
    else:
        line(f"{family}: version {moved.to_version} is champion (was {moved.from_version})")


@app.command()
def rollback(family: Family, reason: Reason = "requested", as_json: AsJson = False) -> None:
    """Restore the previous champion of a family.

    It is loaded and tested before serving switches to it.
    """
    from flows.support import promotion
    from flows.support.installation import open_installation

    moved = promotion.rollback(open_installation(), family, actor=user(), reason=reason)
    if as_json:
        emit(_champion(moved))
    else:
        line(f"{family}: back to version {moved.to_version} (was {moved.from_version})")


def _experiment_of(installation: "Installation", family: str, digest: str) -> str:
    """Return what a promotion by hand would say of experiments; nothing where no other champion serves."""
    from flows.support import experiments, promotion

    champion = installation.store.slots(family).champion
    if champion is None or champion.digest == digest:
        return ""
    if (won := experiments.won(installation, family, digest)) is not None:
        return f"; it has won experiment {won.number} against version {champion.to_version}"
    other = experiments.running(installation, family)
    closed = f" and close {experiments.title_of(other)}" if other else ""
    return f"; it has won no experiment: this would raise the alarm {promotion.WITHOUT_EXPERIMENT}{closed}"


def _champion(moved: "Promotion") -> dict[str, object]:
    """Return a move of the champion, JSON-ready."""
    return {"family": moved.family, "champion": moved.to_version, "was": moved.from_version, "digest": moved.digest}


@app.command()
def retrain(
    family: Annotated[str, typer.Argument(help="One family, or several with commas.")] = "validator",
    reason: Reason = "requested by a person",
    force: Annotated[bool, typer.Option("--force", help="Do not wait for the cool-down.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train new challengers on everything observed so far.

    The gate decides whether one may replace the champion.
    """
    from flows.support.progress import progress_display

    families = [name.strip() for name in family.split(",")]
    if unknown := [name for name in families if name not in FAMILIES]:
        raise UnknownName(f"no model family {', '.join(map(repr, unknown))} to train; use one of {', '.join(FAMILIES)}")
    require_services("mlflow", "prefect")
    from flows.retrain import retrain as retrain_flow

    step_back(settings().job_niceness)
    with progress_display(err):
        versions = retrain_flow(families, reason, force)
    if as_json:
        emit({"versions": versions})
        return
    for name in families:
        line(f"{name}: {'version ' + versions[name] if name in versions else 'no new version'}")


@app.command()
def drift(
    symbol: Annotated[
        str | None, typer.Option(help="Such as BTC/USDT; the whole universe by default.", callback=canonical)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Detect drift and request retraining where needed; show the live loss of each model.

    Resolves outcomes first and writes the Evidently report.
    """
    from flows.support.installation import open_installation
    from flows.support.progress import progress_display

    open_installation().manifest(symbol)  # before the first ingest, or of no such market: refused without the servers
    require_services("mlflow", "prefect")
    from flows.monitor import monitor

    with progress_display(err):
        found = monitor(symbol)
    if as_json:
        emit(found)
        return
    line(f"{found['summary']}\nreport: {found['report']}")
    for loss in found["losses"]:
        line(f"live loss: {loss['text']}")
