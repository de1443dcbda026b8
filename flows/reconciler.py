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

from flows.support import processes, promotion
from flows.support.installation import Installation, is_gone, now, open_installation, run_periodically
from pipelines.errors import LeaseHeld, StateError
from pipelines.families import FAMILIES
from pipelines.store import ATTEMPTS, RetrainRequest
from serving.inference.generation import read_generation

log = logging.getLogger("bellwether.watch")
POLL_INTERVAL_S = 2.0
REGISTRY_DOWN = "registry_down"
FAULT = "watch_fault"
FAULT_COOLDOWN = timedelta(
    minutes=1
)  # between two looks at a family with a fault: each may ask the registry for its bundle
PATIENCE = timedelta(minutes=2)  # a run that was asked for may take so long to claim its request
NEVER = datetime.min.replace(tzinfo=UTC)

Begun = dict[tuple[int, int], datetime]  # (request, attempt) → when it was begun again
Tried = dict[str, datetime]  # family with a fault → when it was looked at last


def poll(installation: Installation, begun: Begun, tried: Tried | None = None) -> list[str]:
    """One look; what was done about what it saw, in words.

    begun  remembers which retrains were begun once more
    tried  remembers when a family with a fault was looked at: again after FAULT_COOLDOWN only, the others each time
    """
    tried = {} if tried is None else tried
    done = recover_dead_retrains(installation, begun)
    if registry_answers(installation):
        resting = {family for family, at in tried.items() if now() - at < FAULT_COOLDOWN}
        doubtful = promotion.faulty(installation) - resting
        if doubtful or is_behind_ledger(installation, resting):
            before, generation = generation_of(installation), promotion.publish(installation)
            if generation != before:
                done.append(f"generation {generation} published: the file was behind the ledger")
        asked = [family for family in FAMILIES if family in (doubtful | moved(installation)) - resting]
        done += promotion.reconcile(installation, asked) if asked else []
        still = promotion.faulty(installation)
        for family in (still - resting) | (tried.keys() - still):
            tried.pop(family, None)
            if family in still:
                tried[family] = now()
    return done


def registry_answers(installation: Installation) -> bool:
    """Whether MLflow answers; raises the alarm when it does not and clears it when it does again."""
    if not processes.is_responding(installation.settings, "mlflow"):
        told = f"MLflow does not answer at {installation.settings.mlflow_url}; what is served goes on, nothing can be promoted"
        installation.store.raise_alarm(REGISTRY_DOWN, "high", told, now())
        return False
    for alarm in installation.store.alarms():
        if alarm.kind == REGISTRY_DOWN:
            installation.store.clear_alarm(alarm.id, now())
    return True


def moved(installation: Installation) -> set[str]:
    """The families whose champion alias is not where the ledger says."""
    asked = installation.tracking.aliases("champion")
    return {family for family, (version, _) in held(installation).items() if asked.get(family) != version}


def is_behind_ledger(installation: Installation, besides: Collection[str] = ()) -> bool:
    """Whether the generation file names another champion than the ledger, or none though there is one; or is broken.

    besides  families that are not looked at
    """
    try:
        content = read_generation(installation.settings.serving_dir)
    except StateError:
        return True
    named = {} if content is None else content["families"]
    served = {family: (named.get(family) or {}).get("champion") or {} for family in FAMILIES}
    return any(
        (served[family].get("version"), served[family].get("digest")) != fact
        for family, fact in held(installation).items()
        if family not in besides
    )


def generation_of(installation: Installation) -> int | None:
    """Number of the published generation; None where there is none, or where it cannot be read."""
    try:
        content = read_generation(installation.settings.serving_dir)
    except StateError:
        return None
    return int(content["generation"]) if content else None


def held(installation: Installation) -> dict[str, tuple[str | None, str | None]]:
    """family → (version, digest) of its champion on the ledger, (None, None) without one."""
    slots = {family: promotion.slots_of(installation.store, family).champion for family in FAMILIES}
    return {family: (line.to_version, line.digest) if line else (None, None) for family, line in slots.items()}


def recover_dead_retrains(installation: Installation, begun: Begun) -> list[str]:
    """A retrain whose worker died is begun once more; the second time it ends as failed, with an alarm."""
    again: dict[str, list[RetrainRequest]] = defaultdict(list)
    done = []
    for request in installation.store.retrain_requests(last=20):
        if request.state != "running" or request.lease_until is None or request.holder is None:
            continue
        if request.lease_until > now():
            if not is_gone(request.holder):
                continue
            installation.store.renew_retrain_lease(
                request.id, request.holder, now()
            )  # it will not come back for the rest of it
        if request.attempts < ATTEMPTS:
            if now() - begun.get((request.id, request.attempts), NEVER) > PATIENCE:
                again[request.holder].append(request)
            continue
        told = f"retrain of {request.family} (request {request.id}): its worker died twice; nothing was promoted"
        installation.store.finish_retrain(request.id, request.holder, now(), False, "its worker died twice")
        installation.store.raise_alarm("retrain_died", "high", told, now())
        done.append(told)
    for dead, requests in again.items():
        families = ",".join(request.family for request in requests)
        parameters = {"family": families, "reason": requests[0].reason}
        run_deployment("retrain/retrain", parameters=parameters, timeout=0, as_subflow=False)
        begun |= {(request.id, request.attempts): now() for request in requests}
        done.append(f"retrain of {families}: its worker {dead} died, begun once more")
    return done


@contextmanager
def watch_in_background() -> Iterator[None]:
    """Look every POLL_INTERVAL_S in a thread of its own until the block ends."""
    installation = open_installation()
    begun: Begun = {}
    tried: Tried = {}

    def watch() -> None:
        try:
            for line in poll(installation, begun, tried):
                log.warning(line)
            for alarm in installation.store.alarms():
                if alarm.kind == FAULT:
                    installation.store.clear_alarm(alarm.id, now())
        except LeaseHeld:  # somebody is moving a champion right now
            return
        except Exception as error:
            told = f"{type(error).__name__}: {error}"[:300]
            installation.store.raise_alarm(FAULT, "high", f"aliases and retrains are not watched: {told}", now())
            raise  # `run_periodically` logs it and goes on

    with run_periodically(watch, POLL_INTERVAL_S, "watch"):
        yield
