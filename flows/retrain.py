"""Retrain: one request at a time, deduplicated and cooled down; a new challenger, promoted only by the gate."""

from datetime import timedelta

from prefect import flow

from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.progress import say
from flows.promote import propose
from flows.site import holder, now, open_site
from flows.train import train


@flow(name="retrain", log_prints=True)
def retrain(family: str = "validator", reason: str = "asked for", force: bool = False) -> str | None:
    """Data seen so far → snapshot → candidate → gate → shadow or champion. Returns the new version, None if not due.

    force  a person's wish: no cool-down. An open request of the same family is still never doubled.
    """
    site = open_site()
    wait = timedelta(0) if force else timedelta(hours=site.params.retrain.cooldown_hours)
    answer = site.store.request_retrain(family, reason, now(), wait)
    if answer.state != "queued":
        say(f"retrain of {family} not started ({answer.state}): {answer.detail}")
        if answer.state == "cooling_down":
            return None
    lease = timedelta(minutes=site.params.retrain.lease_minutes)
    request = site.store.claim_retrain(holder(), now(), lease, family)
    if request is None:
        return None
    done, told = False, "interrupted"
    try:
        symbol = site.manifest()["symbol"]
        ingest(source="observed", symbol=symbol)
        version: str = train([family])[family]
        passed = evaluate(family, version)
        if passed:
            propose(family, version, reason=f"retrain: {request.reason}")
        done, told = True, f"version {version} {'passed' if passed else 'was refused by'} the gate"
    finally:
        # whatever happened, the request does not stay open: the next trigger may ask again
        site.store.finish_retrain(request.id, holder(), now(), done, told)
    say(f"retrain of {family} ({request.reason}): {told}")
    return version
