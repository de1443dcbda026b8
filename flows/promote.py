"""Promote: by policy, or by a person who resumes the paused flow in the Prefect UI. Reconcile: aliases and ledger."""

from prefect import flow, pause_flow_run, task
from prefect.deployments import run_deployment
from prefect.input import RunInput

from flows import promotion
from flows.progress import say, step
from flows.site import now, open_site
from pipelines.errors import ServiceDown

REGISTRY_DOWN = "MLflow does not answer: nothing can be trained or promoted; what is served goes on without it"


class Approval(RunInput):
    """What a person fills in when resuming the flow."""

    approve: bool
    name: str
    reason: str


@task(retries=2, retry_delay_seconds=[2, 10])
def move_champion(family: str, version: str, actor: str, reason: str) -> None:
    promotion.promote(open_site(), family, version, actor, reason)


@flow(name="promote", log_prints=True)
def promote(
    family: str, version: str, approval: str | None = None, actor: str = "policy", reason: str = "passed the gate"
) -> bool:
    """Make a version champion. approval: auto | manual (waits for a person); None = retrain.approval of params.yaml."""
    site = open_site()
    if (approval or site.params.retrain.approval) == "manual":
        answer = pause_flow_run(wait_for_input=Approval.with_initial_data(
            description=f"Promote **{family}** version **{version}** to champion? Its evidence is in MLflow.",
            approve=False, name="", reason="",
        ), timeout=7 * 86400)  # fmt: skip
        actor, reason = answer.name or "unnamed", answer.reason or "no reason given"
        if not answer.approve:
            say(f"{family} version {version}: declined by {actor}: {reason}")
            return False
    with step(f"promote: {family} version {version}"):
        move_champion(family, version, actor, reason)
    say(f"{family} version {version} is champion ({actor}: {reason})")
    return True


def propose(family: str, version: str, reason: str) -> None:
    """After a passing verdict: promote by policy, or start the flow that waits for a person, and go on without it."""
    if open_site().params.retrain.approval == "auto":
        promote(family, version, reason=reason)
        return
    wanted = {"family": family, "version": version, "approval": "manual", "reason": reason}
    run = run_deployment("promote/promote", parameters=wanted, timeout=0, as_subflow=False)
    say(f"{family} version {version} waits for approval in the Prefect UI, flow run {run.name}")


@flow(name="reconcile", log_prints=True)
def reconcile() -> list[str]:
    """A champion alias moved by hand is a request: taken over with a passing verdict, put back and alarmed without.
    While MLflow does not answer, the alarm `registry_down` stands."""
    site = open_site()
    try:
        done = promotion.reconcile(site)
    except ServiceDown:
        site.store.raise_alarm("registry_down", "high", REGISTRY_DOWN, now())
        raise
    for alarm in site.store.alarms():
        if alarm.kind == "registry_down":
            site.store.clear_alarm(alarm.id, now())
    for line in done:
        say(line)
    return done
