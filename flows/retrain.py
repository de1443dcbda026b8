"""Retrain: one request a family at a time, deduplicated and cooled down; new challengers, promoted only by the gate."""

from datetime import timedelta

from prefect import flow

from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.promote import propose
from flows.support.installation import Installation, holder, now, open_installation, renew_periodically
from flows.support.progress import report_progress
from flows.train import train
from pipelines.store import RetrainRequest


def claim(installation: Installation, family: str, reason: str, force: bool) -> RetrainRequest | None:
    """This family's request, leased to us; None while it cools down or somebody else works on it."""
    wait = timedelta(0) if force else timedelta(hours=installation.params.retrain.cooldown_hours)
    answer = installation.store.request_retrain(family, reason, now(), wait)
    lease = timedelta(minutes=installation.params.retrain.lease_minutes)
    mine = None if answer.state == "cooling_down" else installation.store.claim_retrain(holder(), now(), lease, family)
    if mine is None:
        report_progress(f"retrain of {family} not started ({answer.state}): {answer.detail}")
    return mine


def keep(installation: Installation, requests: dict[str, RetrainRequest]) -> None:
    """Move the leases of these requests on."""
    until = now() + timedelta(minutes=installation.params.retrain.lease_minutes)
    for request in requests.values():
        installation.store.renew_retrain_lease(request.id, holder(), until)


@flow(name="retrain", log_prints=True)
def retrain(family: str = "validator", reason: str = "asked for", force: bool = False) -> dict[str, str]:
    """Data seen so far → snapshot → candidates → gate → shadow or champion. Returns family → new version.

    family  one, or several with commas: they share the snapshot and are fitted side by side
    force   a person's wish: no cool-down. An open request of the same family is still never doubled.
    """
    installation = open_installation()
    claimed = {name: claim(installation, name, reason, force) for name in family.split(",")}
    requests = {name: request for name, request in claimed.items() if request is not None}
    told = dict.fromkeys(requests, "interrupted")
    versions: dict[str, str] = {}
    try:
        with renew_periodically(
            lambda: keep(installation, requests), timedelta(minutes=installation.params.retrain.lease_minutes)
        ):
            if requests:
                ingest(source="observed", symbol=installation.manifest()["symbol"])
                told = dict.fromkeys(requests, "could not be trained")
                versions = train(list(requests))
            for name, version in versions.items():
                passed = evaluate(name, version)
                if passed:
                    propose(name, version, reason=f"retrain: {requests[name].reason}")
                told[name] = f"version {version} {'passed' if passed else 'was refused by'} the gate"
    finally:
        # whatever happened, no request stays open: the next trigger may ask again
        for name, request in requests.items():
            installation.store.finish_retrain(request.id, holder(), now(), name in versions, told[name])
            report_progress(f"retrain of {name} ({request.reason}): {told[name]}")
    return versions
