"""`bellwether ab`: experiments of a challenger against its champion, and the standing arms."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from bellwether.cli.connection import require_services
from bellwether.cli.options import AsJson, DryRun, Reason, new_group, user
from bellwether.cli.output import emit, line, paragraph, table
from pipelines.contracts import JsonObject
from pipelines.errors import StateError, UnknownName
from pipelines.families import FAMILIES

if TYPE_CHECKING:
    from flows.support.installation import Installation

app = new_group()
ab = new_group("Compare challengers with champions: list, show, start, stop.")
app.add_typer(ab, name="ab")
Number = Annotated[int, typer.Argument(help="Of the experiment, as `bellwether ab list` shows it.")]
Family = Annotated[str, typer.Argument(help=" | ".join(FAMILIES))]


@ab.command("list")
def list_experiments(
    family: Annotated[str | None, typer.Option(help="Of this family only.")] = None, as_json: AsJson = False
) -> None:
    """List experiments and standing arms, newest first.

    A gain is the champion's loss less the challenger's. Between looks the chance of a false promotion does not grow.
    """
    from flows.support import experiments
    from flows.support.installation import open_installation

    installation = open_installation()
    found = [experiments.view_of(installation, e).summary() for e in reversed(installation.store.experiments(family))]
    waiting = _waiting(installation)
    left, waits = experiments.budget_left(installation), experiments.standing_waits(installation)
    if as_json:
        emit({"experiments": found, "queued": waiting, "alpha_left": left, "standing_arms_wait": waits})
        return
    table(
        "experiments",
        ["id", "family", "champion", "challenger", "state", "blocks", "gain", "95 % sequence", "e-value", "wins at"],
        [
            [e["id"], e["family"], e["champion"], e["challenger"], e["state"], e["blocks"], _signed(e["gain"]),
             _interval(e), _short(e["e_value"]) if e["alpha"] else None, _short(1 / e["alpha"]) if e["alpha"] else None]
            for e in found
        ],
    )  # fmt: skip
    for each in waiting:
        paragraph(f"{each['family']} version {each['version']} waits for the next experiment of its family")
    if waits:
        paragraph(waits)
    paragraph(f"{left:.3g} of this market year's budget of false promotions are left")


def _waiting(installation: "Installation") -> list[JsonObject]:
    """Return the candidates that wait for an experiment, JSON-ready."""
    from flows.support import experiments

    lines = [experiments.queued(installation, family) for family in FAMILIES]
    return [{"family": each.family, "version": each.to_version} for each in lines if each is not None]


@ab.command()
def show(number: Number, as_json: AsJson = False) -> None:
    """Show an experiment: rules, evidence, states, next step."""
    from flows.support import experiments
    from flows.support.installation import open_installation

    installation = open_installation()
    experiment = installation.store.experiment(number)
    view = experiments.view_of(installation, experiment, with_trades=True)
    page = experiments.page_of(installation, experiment)
    if as_json:
        emit({
            **view.summary(), "evidence": experiment.evidence, "page": str(page) if page.is_file() else None,
            "guardrails": view.guardrails, "stages": view.stages, "trades": view.trades,
            "transitions": [asdict(each) for each in view.transitions],
            "block_scores": [asdict(each) for each in view.blocks],
        })  # fmt: skip
        return
    figures = view.figures
    title = experiments.title_of(experiment)
    rows = [
        ["state", view.state],
        ["blocks", f"{figures['blocks']} count, {figures['void']} void, {figures['outcomes']:,} outcomes"],
        [
            "gain",
            f"{_signed(figures['gain']) or '–'} {experiment.unit}, confidence sequence {_interval(figures) or '–'}",
        ],
        ["clipped", f"{figures['clipped_share']:.1%} of the blocks, to ±{experiment.bound:g}"],
    ]
    if experiment.alpha:
        rows.append(["e-value", f"{_short(figures['e_value']) or '–'}, wins at {1 / experiment.alpha:.4g}"])
        rows.append(["alpha", f"{experiment.alpha:.3g} spent, {view.alpha_left:.3g} of the market year left"])
    table(title, ["", ""], rows)
    table(
        "states",
        ["market time, UTC", "state", "by", "why"],
        [[f"{_moment(each.as_of_s)}", each.state, each.actor, each.reason] for each in view.transitions],
    )
    if experiment.alpha:
        table(
            "guardrails",
            ["of the version watched", "limit", "now", "e-value", "tripped"],
            [[g["metric"], f"{g['limit']:g}", _signed(g["value"]) or "in the service", _short(g["e_value"]),
              "yes" if g["tripped"] else "no"] for g in view.guardrails],
        )  # fmt: skip
    if view.trades:
        table(
            "traded since it began; described, not tested",
            ["decided by", "trades", "mean net bps"],
            [[each["arm"], each["trades"], _signed(each["net_bps"])] for each in view.trades],
        )
    void = [[each.number, _moment(each.start_s), each.void] for each in view.blocks if each.mean is None]
    if void:
        table("void blocks", ["block", "from, UTC", "why"], void)
    paragraph(view.next_step())
    if page.is_file():
        line(f"drawn in {page}")


@ab.command()
def start(
    family: Family,
    version: Annotated[str, typer.Argument(help="Its number in MLflow; it passed the gate.")],
    reason: Reason = "requested",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Begin the experiment of a version against the champion.

    Works as the alias `challenger` moved in MLflow does. What it spends of the year's budget is never given back.
    """
    from flows.support import experiments, promotion
    from flows.support.installation import open_installation

    if family not in FAMILIES:
        raise UnknownName(f"no model family {family!r}; use one of {', '.join(FAMILIES)}")
    require_services("mlflow")
    installation = open_installation()
    if dry_run:
        wanted = installation.tracking.version(family, version)
        verdict = installation.store.verdict(family, version, wanted.digest)
        why = experiments.obstacle(installation, verdict, installation.store.slots(family).champion)
        other = experiments.running(installation, family)
        if why is None and other is not None:
            why = f"{experiments.title_of(other)} still runs"
        share = installation.params.experiment.budget_share
        message = f"would be refused: {why}" if why else (
            f"would begin and spend {share * experiments.budget_left(installation):.3g} of this market year's budget"
        )  # fmt: skip
        found = {"family": family, "version": version, "message": message}
        emit(found) if as_json else line(f"{family} version {version} {message}")
        return
    begun = promotion.begin_experiment(installation, family, version, user(), reason)
    if as_json:
        emit(experiments.view_of(installation, begun).summary())
        return
    paragraph(f"{experiments.title_of(begun)} begins; it spends {begun.alpha:.3g} of this market year's budget")


@ab.command()
def stop(number: Number, reason: Reason = "requested", as_json: AsJson = False) -> None:
    """Stop an experiment.

    Its version serves on in shadow; what was spent stays spent.
    """
    from flows.support import experiments, promotion
    from flows.support.installation import open_installation

    installation = open_installation()
    stopped = experiments.stop(installation, number, user(), reason)
    promotion.publish(installation)  # a challenger that decided decides nothing from the next close on
    if as_json:
        emit(experiments.view_of(installation, stopped).summary())
        return
    paragraph(f"{experiments.title_of(stopped)} is stopped: {reason}")


@ab.command()
def verify(number: Number, as_json: AsJson = False) -> None:
    """Compute a verdict again from its stored blocks.

    Bit for bit on the CPU type that recorded it. The means of blocks are computed again where their outcomes are still
    stored. Exit code 1 if anything differs.
    """
    from flows.support import experiment_verify
    from flows.support.installation import open_installation

    found = experiment_verify.recompute(open_installation(), number)
    if as_json:
        emit({"id": number, **asdict(found), "same": found.same})
    else:
        verdict = f"{found.state} from {found.blocks} blocks, recorded as {found.recorded}"
        pruned = f"; the outcomes of {found.outcomes_gone} blocks were pruned" if found.outcomes_gone else ""
        others = f"; {found.misassigned} units were not decided by the assigned arm" if found.misassigned else ""
        paragraph(f"experiment {number}: {verdict}{pruned}{others}")
    if not found.same:
        names = [*found.differs, *(f"block {each}" for each in found.wrong)]
        raise StateError(
            f"experiment {number} is not what was recorded on {found.cpu}: {', '.join(names) or 'its verdict'} differ. "
            "`bellwether verify` names what was edited"
        )


def _moment(at_s: float) -> str:
    """Return a moment of market time."""
    from pipelines.contracts import utc

    return f"{utc(at_s):%Y-%m-%d %H:%M}"


def _signed(value: float | None) -> str | None:
    """Return a gain with its sign; None stays None."""
    return None if value is None else f"{value:+.4g}"


def _short(value: float | None) -> str | None:
    """Return a figure of three digits; None stays None."""
    return None if value is None else f"{value:.3g}"


def _interval(figures: JsonObject) -> str | None:
    """Return the confidence sequence in brackets; None before the first block."""
    return None if figures["low"] is None else f"[{figures['low']:+.3g}, {figures['high']:+.3g}]"
