"""Retrain: one request a family at a time, deduplicated and cooled down; new challengers, promoted only by the gate."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from prefect import flow
from prefect.artifacts import create_table_artifact

from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.promote import propose
from flows.support import checked_out
from flows.support.frozen import frozen
from flows.support.home_copy import bring
from flows.support.installation import Installation, holder, now, open_installation, renew_periodically
from flows.support.market_time import learning_now
from flows.support.progress import part_done, report_progress, run_progress
from flows.support.run_names import rename_run, run_name, with_versions
from flows.support.started_by import started_by_itself
from flows.train import prepare_rows, reselected, train
from pipelines.families import Family
from pipelines.store import RetrainRequest


@dataclass
class ClaimedRetrains:
    """Hold the requests this run has leased, the new versions, and the outcome to record for each family."""

    requests: dict[str, RetrainRequest]
    versions: dict[str, str] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)

    def set_all(self, outcome: str) -> None:
        """Record the same outcome for every family."""
        self.outcomes = dict.fromkeys(self.requests, outcome)


def claim(installation: Installation, family: str, reason: str, force: bool) -> RetrainRequest | None:
    """Request and lease the retrain of this family; None while it cools down or another worker has it.

    The cool-down is in time of learning, the lease in time of day.
    """
    wait = timedelta(0) if force else timedelta(hours=installation.params.retrain.cooldown_hours)
    answer = installation.store.request_retrain(family, reason, learning_now(installation), wait)
    lease = timedelta(minutes=installation.params.retrain.lease_minutes)
    claimed = (
        None if answer.state == "cooling_down" else installation.store.claim_retrain(holder(), now(), lease, family)
    )
    if claimed is None:
        report_progress(f"retrain of {family} not started ({answer.state}): {answer.detail}")
    return claimed


def renew_leases(installation: Installation, requests: Mapping[str, RetrainRequest]) -> None:
    """Extend the leases of these requests by `retrain.lease_minutes` from now."""
    until = now() + timedelta(minutes=installation.params.retrain.lease_minutes)
    for request in requests.values():
        installation.store.renew_retrain_lease(request.id, holder(), until)


@contextmanager
def claimed_retrains(
    installation: Installation, families: Sequence[str], reason: str, force: bool
) -> Iterator[ClaimedRetrains]:
    """Claim what can be claimed of these families, renew its leases, and finish every request at the end.

    Whatever happens inside, no request stays open, so that the next trigger may request one again. What ended it early
    is part of the outcome.
    """
    found = {name: claim(installation, name, reason, force) for name in families}
    claimed = ClaimedRetrains({name: request for name, request in found.items() if request is not None})
    claimed.set_all("interrupted")
    try:
        with renew_periodically(
            lambda: renew_leases(installation, claimed.requests),
            timedelta(minutes=installation.params.retrain.lease_minutes),
        ):
            yield claimed
    except Exception as error:
        why = next(iter(str(error).splitlines()), "")[:200]
        for name in claimed.requests.keys() - claimed.versions.keys():
            claimed.outcomes[name] += f": {type(error).__name__}: {why}"
        raise
    finally:
        for name, request in claimed.requests.items():
            outcome = claimed.outcomes[name]
            ended = learning_now(installation)
            installation.store.finish_retrain(request.id, holder(), ended, name in claimed.versions, outcome)
            report_progress(f"retrain of {name} ({request.reason}): {outcome}")


def reselections(installation: Installation, families: Iterable[str]) -> dict[str, list[str]]:
    """Return family → columns its challenger leaves out, of the families whose params.yaml can say so."""
    found = {}
    for family in families:
        if hasattr(getattr(installation.params, family), "left_out") and (columns := reselected(installation, family)):
            found[family] = columns
            report_progress(f"retrain of {family}: without {', '.join(columns)}, as its newest version proposes")
    return found


def train_and_judge(installation: Installation, claimed: ClaimedRetrains) -> None:
    """Train the claimed families on all data seen so far, or what is checked out; the gate judges each version."""
    families, older = list(claimed.requests), checked_out.checked_out(installation.settings)
    on = f", {older.describe()}" if older else ""
    with run_progress("retrain", [*([] if older else ["ingest"]), "train", *(f"gate {name}" for name in families)]):
        if older is None:
            ingest(observed=True)
        else:
            report_progress(f"retrain of {', '.join(families)} {older.describe()}")
        claimed.set_all("could not be trained")
        if not installation.features.is_dir():  # a worker's first: which columns go depends on the markets there are
            prepare_rows()
        claimed.versions = train(families, left_out=reselections(installation, families))
        checked_out.clear(installation.settings)  # the next one learns from the newest again
        rename_run(with_versions("retrain", claimed.versions), installation)
        for name, version in claimed.versions.items():
            passed = evaluate(name, version)
            if passed:
                propose(name, version, reason=f"retrain: {claimed.requests[name].reason}{on}")
            claimed.outcomes[name] = f"version {version} {'passed' if passed else 'was refused by'} the gate{on}"
            part_done(f"gate {name}")


def show_outcomes(families: Sequence[str], claimed: ClaimedRetrains) -> None:
    """Write what came of each family to the flow run's artifacts."""
    rows = [
        {
            "family": name,
            "requested": claimed.requests[name].reason if name in claimed.requests else "–",
            "version": claimed.versions.get(name, "–"),
            "outcome": claimed.outcomes.get(name, "not started: it cools down, or one is running"),
        }
        for name in families
    ]
    create_table_artifact(key="retrain-outcomes", table=rows, description="What the retrain brought, by family")


@flow(name="retrain", flow_run_name=run_name("retrain {families}"), log_prints=True)
def retrain(families: list[Family], reason: str = "requested", force: bool = False) -> dict[str, str]:
    """Train new challengers on all data seen so far; the gate decides what they become. Return family → new version.

    While retrains are frozen only a person's own run does anything. After `bellwether data checkout` it learns from
    that version as it is, and says so.

    Args:
        families: Which to train; they share the data version and are fitted side by side.
        reason: Why; it stands in the retrain queue and, if the version is promoted, on the ledger.
        force: Skip the cool-down, as a person may. An open request of the same family is still never doubled.
    """
    installation = open_installation()
    bring(installation)
    if installation.settings.worker and (older := checked_out.checked_out(installation.settings)) is not None:
        report_progress(f"not started {older.describe()}: a worker has the newest alone; `bellwether retrain` takes it")
        return {}
    if (why := frozen(installation.settings, "retrain")) is not None and started_by_itself():
        report_progress(f"retrain of {', '.join(families)} not started: {why.describe()}")
        return {}
    with claimed_retrains(installation, families, reason, force) as claimed:
        if claimed.requests:
            train_and_judge(installation, claimed)
    show_outcomes(families, claimed)
    return claimed.versions
