"""What must be seen within seconds and is rarely there to be seen; beside the deployments, it starts a run when needed.

An alias moved by hand in MLflow, a generation file behind the ledger (a crash between the two), a retrain whose worker
died, a registry that does not answer. Each look is cheap: one request to MLflow and a few rows of the store.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from prefect.deployments import run_deployment

from flows import promotion, supervisor
from flows.site import Site, is_gone, now, open_site, repeating
from pipelines.errors import LeaseHeld, StateError
from pipelines.families import FAMILIES
from pipelines.store import ATTEMPTS, RetrainRequest
from serving.generation import read_generation

log = logging.getLogger("bellwether.watch")
LOOK_SECONDS = 2.0
REGISTRY_DOWN = "registry_down"
FAULT = "watch_fault"
REST = timedelta(minutes=1)  # between two looks at a family with a fault: each may ask the registry for its bundle
PATIENCE = timedelta(minutes=2)  # a run that was asked for may take so long to claim its request
NEVER = datetime.min.replace(tzinfo=UTC)

Begun = dict[tuple[int, int], datetime]  # (request, attempt) → when it was begun again
Tried = dict[str, datetime]  # family with a fault → when it was looked at last


def look(site: Site, begun: Begun, tried: Tried | None = None) -> list[str]:
    """One look; what was done about what it saw, in words.

    begun  remembers which retrains were begun once more
    tried  remembers when a family with a fault was looked at: again after REST only, the others each time
    """
    tried = {} if tried is None else tried
    done = fallen_retrains(site, begun)
    if registry_answers(site):
        resting = {family for family, at in tried.items() if now() - at < REST}
        doubtful = promotion.faulty(site) - resting
        if doubtful or behind(site, resting):
            before, generation = generation_of(site), promotion.publish(site)
            if generation != before:
                done.append(f"generation {generation} published: the file was behind the ledger")
        asked = [family for family in FAMILIES if family in (doubtful | moved(site)) - resting]
        done += promotion.reconcile(site, asked) if asked else []
        still = promotion.faulty(site)
        for family in (still - resting) | (tried.keys() - still):
            tried.pop(family, None)
            if family in still:
                tried[family] = now()
    return done


def registry_answers(site: Site) -> bool:
    """Whether MLflow answers; raises the alarm when it does not and clears it when it does again."""
    if not supervisor.answers(site.settings, "mlflow"):
        told = f"MLflow does not answer at {site.settings.mlflow_url}; what is served goes on, nothing can be promoted"
        site.store.raise_alarm(REGISTRY_DOWN, "high", told, now())
        return False
    for alarm in site.store.alarms():
        if alarm.kind == REGISTRY_DOWN:
            site.store.clear_alarm(alarm.id, now())
    return True


def moved(site: Site) -> set[str]:
    """The families whose champion alias is not where the ledger says."""
    asked = site.tracking.aliases("champion")
    return {family for family, (version, _) in held(site).items() if asked.get(family) != version}


def behind(site: Site, besides: Collection[str] = ()) -> bool:
    """Whether the generation file names another champion than the ledger, or none though there is one; or is broken.

    besides  families that are not looked at
    """
    try:
        content = read_generation(site.settings.serving_dir)
    except StateError:
        return True
    named = {} if content is None else content["families"]
    served = {family: (named.get(family) or {}).get("champion") or {} for family in FAMILIES}
    return any(
        (served[family].get("version"), served[family].get("digest")) != fact
        for family, fact in held(site).items()
        if family not in besides
    )


def generation_of(site: Site) -> int | None:
    """Number of the published generation; None where there is none, or where it cannot be read."""
    try:
        content = read_generation(site.settings.serving_dir)
    except StateError:
        return None
    return int(content["generation"]) if content else None


def held(site: Site) -> dict[str, tuple[str | None, str | None]]:
    """family → (version, digest) of its champion on the ledger, (None, None) without one."""
    slots = {family: promotion.slots_of(site.store, family).champion for family in FAMILIES}
    return {family: (line.to_version, line.digest) if line else (None, None) for family, line in slots.items()}


def fallen_retrains(site: Site, begun: Begun) -> list[str]:
    """A retrain whose worker died is begun once more; the second time it ends as failed, with an alarm."""
    again: dict[str, list[RetrainRequest]] = defaultdict(list)
    done = []
    for request in site.store.retrain_requests(last=20):
        if request.state != "running" or request.lease_until is None or request.holder is None:
            continue
        if request.lease_until > now():
            if not is_gone(request.holder):
                continue
            site.store.keep_retrain(request.id, request.holder, now())  # it will not come back for the rest of it
        if request.attempts < ATTEMPTS:
            if now() - begun.get((request.id, request.attempts), NEVER) > PATIENCE:
                again[request.holder].append(request)
            continue
        told = f"retrain of {request.family} (request {request.id}): its worker died twice; nothing was promoted"
        site.store.finish_retrain(request.id, request.holder, now(), False, "its worker died twice")
        site.store.raise_alarm("retrain_died", "high", told, now())
        done.append(told)
    for dead, requests in again.items():
        families = ",".join(request.family for request in requests)
        parameters = {"family": families, "reason": requests[0].reason}
        run_deployment("retrain/retrain", parameters=parameters, timeout=0, as_subflow=False)
        begun |= {(request.id, request.attempts): now() for request in requests}
        done.append(f"retrain of {families}: its worker {dead} died, begun once more")
    return done


@contextmanager
def watching() -> Iterator[None]:
    """Look every LOOK_SECONDS in a thread of its own until the block ends."""
    site = open_site()
    begun: Begun = {}
    tried: Tried = {}

    def watch() -> None:
        try:
            for line in look(site, begun, tried):
                log.warning(line)
            for alarm in site.store.alarms():
                if alarm.kind == FAULT:
                    site.store.clear_alarm(alarm.id, now())
        except LeaseHeld:  # somebody is moving a champion right now
            return
        except Exception as error:
            told = f"{type(error).__name__}: {error}"[:300]
            site.store.raise_alarm(FAULT, "high", f"aliases and retrains are not watched: {told}", now())
            raise  # `repeating` logs it and goes on

    with repeating(watch, LOOK_SECONDS, "watch"):
        yield
