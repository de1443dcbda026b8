"""Promote: by policy, or by a person who resumes the suspended run in the Prefect UI. Reconcile: aliases and ledger."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

from prefect import flow, get_client, suspend_flow_run, task
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from pydantic import Field

from flows.support import aliases, experiments, promotion
from flows.support.frozen import frozen
from flows.support.installation import Installation, now, open_installation
from flows.support.progress import report_progress, step
from flows.support.run_names import run_name
from pipelines.errors import BundleError, GateRefused
from pipelines.families import Family
from pipelines.store import Alarm

WAITS = "approval_waits"
LAPSED = "approval_lapsed"
NOT_BLANK = r"\S"  # Prefect refuses to resume without it, and the run stays suspended


class Approval(RunInput):
    """Ask a person for the decision, who makes it and why; filled in when resuming the flow."""

    approve: bool = Field(default=False, description="Make it champion; otherwise it is declined")
    name: str = Field(pattern=NOT_BLANK, description="Who decides; it goes on the ledger")
    reason: str = Field(pattern=NOT_BLANK, description="Why; it goes on the ledger")


@task(retries=2, retry_delay_seconds=[2, 10])
def move_champion(family: str, version: str, actor: str, reason: str) -> None:
    """Make the version champion on the ledger, in MLflow and in the generation file. Raises as `promotion.promote`."""
    promotion.promote(open_installation(), family, version, actor, reason)


def await_approval(installation: Installation, family: str, version: str, wait_hours: float) -> Approval:
    """Return the decision of a person, once there is one; until then this process ends here, the run suspended."""
    run_id = str(flow_run.id)
    if not any(run_id in alarm.detail for alarm in installation.store.alarms(open_only=False)):
        until = now() + timedelta(hours=wait_hours)
        detail = (
            f"{family} version {version} waits for a person until {until:%F %T} UTC, then nothing is promoted: resume "
            f"{installation.settings.prefect_url}/runs/flow-run/{run_id}"
        )
        installation.store.raise_alarm(WAITS, "warning", detail, now())
    form = Approval.with_initial_data(description=evidence_text(installation, family, version))
    decision: Approval = suspend_flow_run(wait_for_input=form, timeout=round(3600 * wait_hours), key="approval")
    for alarm in open_approvals(installation):
        if run_id in alarm.detail:
            installation.store.clear_alarm(alarm.id, now())
    return decision


def evidence_text(installation: Installation, family: str, version: str) -> str:
    """Return what a person decides on, as Markdown: the gate's evidence with the gain over the champion, interval and
    n, and what the experiment found."""
    wanted = installation.tracking.version(family, version)
    champion = installation.store.slots(family).champion
    verdict = installation.store.verdict(family, version, wanted.digest)
    lines = [
        f"Promote **{family}** version **{version}** to champion, in place of "
        f"{f'version {champion.to_version}' if champion else 'none'}?",
        f"Evidence: {installation.tracking.run_link(wanted.run_id)}",
        f"Gate: {verdict.reason}" if verdict else "Gate: it never judged these bytes; the promotion will be refused.",
    ]
    checks = {check["name"]: check for check in verdict.evidence.get("checks", [])} if verdict else {}
    lines.append(describe_gain(checks.get("gain_over_champion")))
    lines.append(describe_experiment(installation, family, wanted.digest, champion is not None))
    return "\n\n".join(lines)


def describe_gain(check: Mapping[str, Any] | None) -> str:
    """Return the gate's check of the gain over the champion in words: value, 95 % interval, n, threshold."""
    if check is None:
        return "Gain over the champion: not judged, for there was none."
    if check["value"] is None:
        return f"Gain over the champion: unknown ({check['detail']}), n = {check['n']:,}."
    return (
        f"Gain over the champion: {check['value']:+.4f} {check['detail']}, 95 % interval "
        f"{check['low']:+.4f} to {check['high']:+.4f}, n = {check['n']:,} (wanted: {check['threshold']})."
    )


def describe_experiment(installation: Installation, family: str, digest: str, is_needed: bool) -> str:
    """Return in words what the experiment of these bytes against the champion found, or that none was won."""
    experiment = experiments.won(installation, family, digest)
    if experiment is None:
        return "Experiment: none was won against this champion." if is_needed else "Experiment: there was no champion."
    found = experiments.view_of(installation, experiment).figures
    return (
        f"Experiment {experiment.number}: won after {found['blocks']} blocks, {found['outcomes']:,} outcomes; "
        f"gain {found['gain']:+.4f} {experiment.unit}, 95 % confidence sequence {found['low']:+.4f} to "
        f"{found['high']:+.4f}, e-value {found['e_value']:.3g} of {1 / experiment.alpha:.3g}."
    )


def request_approval(family: str, version: str, reason: str, wait_hours: float = 168.0) -> None:
    """Start the run that waits for a person, and return without waiting for it."""
    wanted = {"family": family, "version": version, "approval": "manual", "reason": reason, "wait_hours": wait_hours}
    run = run_deployment("promote/promote", parameters=wanted, timeout=0, as_subflow=False)
    report_progress(f"{family} version {version} waits for approval in the Prefect UI, flow run {run.name}")


def propose(family: str, version: str, reason: str) -> None:
    """Propose a version that passed the gate: where a champion serves it begins an experiment, or waits for the one
    that runs; else it is promoted.
    """
    installation = open_installation()
    champion = installation.store.slots(family).champion
    if champion is None:
        make_champion(installation, family, version, reason)
    elif champion.to_version != version:
        compare(installation, family, version, reason)


def compare(installation: Installation, family: str, version: str, reason: str) -> None:
    """Begin the experiment of a version that passed the gate, or say what it waits for."""
    if (other := experiments.running(installation, family)) is not None:
        report_progress(f"{family} version {version} passed the gate and waits for {experiments.title_of(other)}")
        return
    try:
        begun = promotion.begin_experiment(installation, family, version, promotion.POLICY, reason)
    except GateRefused as refusal:
        report_progress(str(refusal))
        return
    report_progress(
        f"{experiments.title_of(begun)} begins; it spends {begun.alpha:.2g} of the year's budget of false promotions, "
        f"{experiments.budget_left(installation):.2g} are left"
    )


def begin_queued(installation: Installation, family: str) -> None:
    """Begin the experiment of a family's newest candidate that waited for the one before."""
    if experiments.running(installation, family) is None and (line := experiments.queued(installation, family)):
        compare(installation, family, str(line.to_version), "it waited for the experiment before")


def promote_winner(installation: Installation, family: str) -> None:
    """Promote the challenger of a family that has won its experiment, once; one that waits for a person waits on."""
    challenger = installation.store.slots(family).challenger
    experiment = challenger and experiments.won(installation, family, str(challenger.digest))
    if not experiment:
        return
    waits = f"{family} version {experiment.challenger} waits "  # as `await_approval` writes it
    if any(alarm.detail.startswith(waits) for alarm in open_approvals(installation)):
        return
    try:
        make_champion(installation, family, experiment.challenger, f"won experiment {experiment.number}")
    except (GateRefused, BundleError) as refusal:  # it will not pass the next time either
        experiments.end(installation, experiment, "refused", promotion.POLICY, str(refusal))
        report_progress(f"{experiments.title_of(experiment)} is not promoted: {refusal}")


def decline(installation: Installation, family: str, version: str, actor: str, reason: str) -> None:
    """End the experiment that a declined version has won, so that nobody is asked again."""
    digest = installation.tracking.version(family, version).digest
    if (experiment := experiments.won(installation, family, digest)) is not None:
        experiments.end(installation, experiment, "refused", actor, f"declined: {reason}")


def make_champion(installation: Installation, family: str, version: str, reason: str) -> None:
    """Promote a version by policy, or request a person's approval, as `retrain.approval` says.

    While promotions are frozen neither: the version stays challenger until a person promotes it.
    """
    if (why := frozen(installation.settings, "promotion")) is not None:
        report_progress(
            f"{family} version {version} ({reason}) is not promoted: {why.describe()}, or a person promotes it by "
            f"`bellwether promote {family} {version}`"
        )
    elif installation.params.retrain.approval == "auto":
        promote(family, version, reason=reason)
    else:
        request_approval(family, version, reason)


def open_approvals(installation: Installation) -> list[Alarm]:
    """Return the open alarms of runs that wait for a person."""
    return [alarm for alarm in installation.store.alarms() if alarm.kind == WAITS]


def clear_lapsed_approvals(installation: Installation) -> list[str]:
    """Clear the alarms of runs that wait no more, and raise one where a run ended without a decision.

    Return a line for each of those; nothing was promoted.
    """
    lapsed = []
    for alarm in open_approvals(installation):
        run_id = re.search(r"[0-9a-f-]{36}$", alarm.detail)
        state = run_id and state_of(run_id[0])
        if state in ("SCHEDULED", "PENDING", "RUNNING", "PAUSED"):
            continue
        installation.store.clear_alarm(alarm.id, now())
        candidate = alarm.detail.partition(" waits ")[0]  # as `await_approval` writes it
        if state != "COMPLETED":
            ended = str(state or "its run is gone").lower()
            line = f"{candidate} was not decided by anybody ({ended}) and is not promoted"
            installation.store.raise_alarm(LAPSED, "warning", f"{line}: {run_id[0] if run_id else alarm.id}", now())
            lapsed.append(line)
    return lapsed


def state_of(run_id: str) -> str | None:
    """Return the type of the state a flow run is in; None if Prefect no longer knows the run."""
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run_id).state
        except ObjectNotFound:
            return None
    return state.type.value if state else None


@flow(name="promote", flow_run_name=run_name("promote {family} {version}"), log_prints=True, persist_result=True)
def promote(
    family: Family,
    version: str,
    approval: Literal["auto", "manual"] | None = None,
    actor: str = promotion.POLICY,
    reason: str = "passed the gate",
    wait_hours: float = 168.0,
) -> bool:
    """Make a version champion. Return False if a person declined it or has still to decide.

    While it waits the run is suspended: no process is held, and nothing is lost when flows or Prefect are killed. The
    process that resumes it runs this function from the start, now with the decision.

    Args:
        family: The model family of the version.
        version: Its number in MLflow.
        approval: "manual" waits for a person, "auto" for nobody; empty = retrain.approval of params.yaml.
        actor: Who promotes, for the ledger; a person's approval names its own.
        reason: Why, for the ledger; a person's approval states its own.
        wait_hours: How long a person may take; then the run fails and nothing is promoted.
    """
    installation = open_installation()
    if (approval or installation.params.retrain.approval) == "manual":
        if not deployment.id:  # only the run of a deployment can be resumed by another process
            request_approval(family, version, reason, wait_hours)
            return False
        decision = await_approval(installation, family, version, wait_hours)
        actor, reason = decision.name.strip(), decision.reason.strip()
        if not decision.approve:
            decline(installation, family, version, actor, reason)
            report_progress(f"{family} version {version}: declined by {actor}: {reason}")
            return False
    with step(f"promote: {family} version {version}"):
        move_champion(family, version, actor, reason)
    report_progress(f"{family} version {version} is champion ({actor}: {reason})")
    return True


@flow(name="reconcile", flow_run_name=run_name("reconcile"), log_prints=True)
def reconcile() -> list[str]:
    """Compare aliases with the ledger: a champion alias moved by hand is a request.

    With a passing verdict it becomes a promotion; without one it is put back, with an alarm. Return what was done.
    """
    installation = open_installation()
    done = [*aliases.reconcile(installation), *clear_lapsed_approvals(installation)]
    for line in done:
        report_progress(line)
    return done
