"""The reconciler: threads next to the deployments that check every two seconds what must be noticed within seconds.

An alias moved by hand in MLflow, a generation file behind the ledger (a crash between the two), a retrain whose worker
died, an experiment whose guardrail tripped in the service, a registry that does not answer; next to it, what is due in
market time (flows.support.market_runs) and which symbols Prefect's forms offer. Each poll is cheap: one request to
MLflow, a few rows of the store, and a small file.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from prefect.deployments import run_deployment

from flows.support import aliases, experiment_guardrails, home_copy, market_runs, processes, promotion
from flows.support.frozen import freezes, frozen
from flows.support.installation import Installation, is_gone, now, open_installation, run_periodically
from flows.support.market_time import learning_now
from flows.support.started_by import BY_ITSELF
from flows.support.symbol_choices import SymbolForms
from pipelines.errors import LeaseHeld, StateError
from pipelines.families import FAMILIES
from pipelines.store import ATTEMPTS, RetrainRequest
from serving.inference.generation import read_generation

log = logging.getLogger("bellwether.reconciler")
POLL_INTERVAL_S = 2.0
FILES_INTERVAL_S = 3.0  # within which workers of the pool have what a person chose, and the home their data versions
FORMS_INTERVAL_S = 10.0  # within which a symbol that was added appears in Prefect's forms
REGISTRY_DOWN = "registry_down"
FAULT = "watch_fault"
DUE_FAULT = "due_fault"
FAULT_COOLDOWN = timedelta(minutes=1)  # between two polls of a family with a fault: each may request its bundle
CLAIM_PATIENCE = timedelta(minutes=2)  # how long a restarted run may take to claim its request
NEVER = datetime.min.replace(tzinfo=UTC)

Restarted = dict[tuple[int, int], datetime]  # (request, attempt) → when its run was started again
Tried = dict[str, datetime]  # family with a fault → when it was polled last


def poll(installation: Installation, restarted: Restarted, tried: Tried | None = None) -> list[str]:
    """Check everything once. Return what was done, one line each.

    restarted  remembers which retrains were started again
    tried      remembers when a family with a fault was polled: again after FAULT_COOLDOWN only, the others each time
    """
    tried = {} if tried is None else tried
    done = recover_dead_retrains(installation, restarted)
    for experiment, why in experiment_guardrails.alarmed(installation):
        with promotion.isolate_fault(installation, experiment.family, promotion.EXPERIMENT):
            done.append(promotion.stop_by_guardrail(installation, experiment, why))
    if processes.is_responding(installation.settings, "mlflow"):
        cooling = {family for family, at in tried.items() if now() - at < FAULT_COOLDOWN}
        doubtful = promotion.faulty(installation) - cooling
        if doubtful or is_behind_ledger(installation, cooling):
            before, generation = generation_of(installation), promotion.publish(installation)
            if generation != before:
                done.append(f"generation {generation} published: the file was behind the ledger")
        to_reconcile = (doubtful | moved(installation)) - cooling  # once: moved asks MLflow and reads the ledger
        due = [family for family in FAMILIES if family in to_reconcile]
        done += aliases.reconcile(installation, due) if due else []
        still = promotion.faulty(installation)
        for family in (still - cooling) | (tried.keys() - still):
            tried.pop(family, None)
            if family in still:
                tried[family] = now()
    return done


def registry_answers(installation: Installation) -> bool:
    """Return whether MLflow answers; raise the alarm when it does not and clear it when it does again."""
    if not processes.is_responding(installation.settings, "mlflow"):
        url = installation.settings.mlflow_url
        detail = f"MLflow does not answer at {url}; what is served goes on, nothing can be promoted"
        installation.store.raise_alarm(REGISTRY_DOWN, "high", detail, now())
        return False
    for alarm in installation.store.alarms():
        if alarm.kind == REGISTRY_DOWN:
            installation.store.clear_alarm(alarm.id, now())
    return True


def moved(installation: Installation) -> set[str]:
    """Return the families whose alias champion is not where the ledger says, or whose alias challenger is elsewhere."""
    aliases = installation.tracking.aliases()
    found = set()
    for family, slots in installation.store.slots_of(FAMILIES).items():
        named = aliases.get(family, {})
        champion, challenger = (line.to_version if line else None for line in (slots.champion, slots.challenger))
        if named.get("champion") != champion or named.get("challenger") not in (None, challenger):
            found.add(family)
    return found


def is_behind_ledger(installation: Installation, skipped: Collection[str] = ()) -> bool:
    """Return whether the generation file is broken, or names another version than the ledger (or none) in an arm, or
    another arm that decides. A challenger whose bundle was refused is rightly not named.

    skipped  families that are not compared
    """
    try:
        content = read_generation(installation.settings.serving_dir)
    except StateError:
        return True
    named = {} if content is None else content["families"]
    stated = {} if content is None else content.get("assignments", {})
    if {k: v for k, v in stated.items() if k not in skipped} != {
        k: v for k, v in promotion.assignments(installation, named).items() if k not in skipped
    }:
        return True
    refused = {
        alarm.detail.partition(" ")[0] for alarm in installation.store.alarms() if alarm.kind == "bundle_refused"
    }
    for family, slots in installation.store.slots_of(FAMILIES).items():
        if family in skipped:
            continue
        for arm, line in (("champion", slots.champion), ("challenger", slots.challenger)):
            served = (named.get(family) or {}).get(arm) or {}
            fact = (line.to_version, line.digest) if line else (None, None)
            if (served.get("version"), served.get("digest")) != fact and not (
                arm == "challenger" and family in refused
            ):
                return True
    return False


def generation_of(installation: Installation) -> int | None:
    """Return the number of the published generation; None where there is none, or where it cannot be read."""
    try:
        content = read_generation(installation.settings.serving_dir)
    except StateError:
        return None
    return int(content["generation"]) if content else None


def recover_dead_retrains(installation: Installation, restarted: Restarted) -> list[str]:
    """Restart a retrain whose worker died; when that happens a second time, end it as failed, with an alarm.

    While retrains are frozen it is ended without a restart. Return what was done, one line each.
    """
    orphans, done = orphaned_retrains(installation), []
    stop = frozen(installation.settings, "retrain") if orphans else None
    to_restart: dict[str, list[RetrainRequest]] = defaultdict(list)
    for worker, request in orphans:
        if stop is not None:
            why = f"its worker died and is not started again: {stop.describe()}"
            installation.store.finish_retrain(request.id, worker, learning_now(installation), False, why)
            done.append(f"retrain of {request.family} (request {request.id}): {why}")
            continue
        if request.attempts < ATTEMPTS:
            if now() - restarted.get((request.id, request.attempts), NEVER) > CLAIM_PATIENCE:
                to_restart[worker].append(request)
            continue
        line = f"retrain of {request.family} (request {request.id}): its worker died twice; nothing was promoted"
        installation.store.finish_retrain(
            request.id, worker, learning_now(installation), False, "its worker died twice"
        )
        installation.store.raise_alarm("retrain_died", "high", line, now())
        done.append(line)
    return done + restart(to_restart, restarted)


def orphaned_retrains(installation: Installation) -> list[tuple[str, RetrainRequest]]:
    """Return (worker, request) of the running retrains whose worker is gone or whose lease ran out.

    The lease of a worker that is gone ends now: it will not return for the rest of it.
    """
    orphans = []
    for request in installation.store.retrain_requests(last=20):
        if request.state != "running" or request.lease_until is None or request.holder is None:
            continue
        if request.lease_until > now():
            if not is_gone(request.holder):
                continue
            installation.store.renew_retrain_lease(request.id, request.holder, now())
        orphans.append((request.holder, request))
    return orphans


def restart(to_restart: Mapping[str, list[RetrainRequest]], restarted: Restarted) -> list[str]:
    """Start one run for the requests of each dead worker and remember when. Return a line for each run."""
    done = []
    for worker, requests in to_restart.items():
        families = [request.family for request in requests]
        parameters = {"families": families, "reason": requests[0].reason}
        run_deployment("retrain/retrain", parameters=parameters, timeout=0, as_subflow=False, tags=[BY_ITSELF])
        restarted |= {(request.id, request.attempts): now() for request in requests}
        done.append(f"retrain of {', '.join(families)}: its worker {worker} died, started once more")
    return done


@contextmanager
def watch_in_background() -> Iterator[None]:
    """Poll every POLL_INTERVAL_S in a thread of its own until the block ends."""
    installation = open_installation()
    forms = SymbolForms(installation)
    restarted: Restarted = {}
    tried: Tried = {}
    exchanged = home_copy.Exchanged()

    def watch() -> None:
        """Poll once; an unknown error is an alarm until a poll succeeds."""
        try:
            for line in poll(installation, restarted, tried):
                log.warning(line)
            for alarm in installation.store.alarms():
                if alarm.kind == FAULT:
                    installation.store.clear_alarm(alarm.id, now())
        except LeaseHeld:  # a champion is being moved right now
            return
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"[:300]
            installation.store.raise_alarm(FAULT, "high", f"aliases and retrains are not watched: {fault}", now())
            raise  # `run_periodically` logs it and goes on

    def start_due() -> None:
        """Start what is due in market time; an error is an alarm until it succeeds."""
        try:
            freezes(installation.settings)  # notes since when params.yaml freezes something
            for line in market_runs.poll(installation, now()):
                log.warning(line)
            for alarm in installation.store.alarms():
                if alarm.kind == DUE_FAULT:
                    installation.store.clear_alarm(alarm.id, now())
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"[:300]
            installation.store.raise_alarm(DUE_FAULT, "high", f"nothing is started in market time: {fault}", now())
            raise

    with (
        run_periodically(lambda: registry_answers(installation), POLL_INTERVAL_S, "registry"),  # `watch` may be long
        run_periodically(watch, POLL_INTERVAL_S, "watch"),
        run_periodically(start_due, POLL_INTERVAL_S, "due"),
        run_periodically(forms.follow, FORMS_INTERVAL_S, "forms"),
        run_periodically(lambda: home_copy.exchange(installation, exchanged), FILES_INTERVAL_S, "files"),
    ):
        yield
