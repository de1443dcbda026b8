"""Aliases in MLflow are requests of people: one that was moved is compared with the ledger, done or put back.

A moved `champion` asks for a promotion, a moved `challenger` for an experiment; the same checks as for any other.
"""

from collections.abc import Iterable
from contextlib import ExitStack

from flows.support import experiments
from flows.support.installation import Installation, now
from flows.support.promotion import begin_under_lease, isolate_fault, promote_under_lease, promotion_lease
from flows.support.version_tags import PROMOTED, QUEUED, REFUSED, REQUEST, answer, asked_by
from pipelines.errors import BundleError, ChainBroken, GateRefused, LeaseHeld, StateError
from pipelines.families import FAMILIES
from pipelines.store import Promotion
from pipelines.tracking import Version

DELETED = "version_deleted"
BUNDLE = "its bundle in this home"
REMOVED = "the alias champion is moved, not removed; `bellwether rollback` goes back to the version before"


def reconcile(installation: Installation, families: Iterable[str] = FAMILIES) -> list[str]:
    """Compare the aliases with the ledger. A moved `champion` is a request to promote, a moved `challenger` one to
    begin an experiment.

    With a passing verdict it is done, by whom the version's tags name, else by `mlflow-ui`; without one the alias is
    put back, with an alarm. Either way the version says so in its tags. Return what was done, one line each.
    """
    with ExitStack() as lease:  # an alias that another process is moving right now is not a request
        try:
            lease.enter_context(promotion_lease(installation, 0.0))
        except LeaseHeld:
            for family in families:
                if alias := _request(installation, family):
                    answer(installation, alias, QUEUED)
            lease.enter_context(promotion_lease(installation))
        done = []
        for family in families:
            with isolate_fault(installation, family, "alias"):
                if line := _reconcile(installation, family):
                    done.append(line)
                if line := _reconcile_challenger(installation, family):
                    done.append(line)
        return done


def _request(installation: Installation, family: str) -> Version | None:
    """Return the version that the `champion` alias of a family names and the ledger does not."""
    alias = installation.tracking.version_by_alias(family, "champion")
    champion = installation.store.slots(family).champion
    return alias if alias and (champion is None or alias.version != champion.to_version) else None


def _reconcile(installation: Installation, family: str) -> str | None:
    """Compare one family's alias with the ledger; return what was done, None if they agree."""
    alias = installation.tracking.version_by_alias(family, "champion")
    champion = installation.store.slots(family).champion
    fact = champion.to_version if champion else None
    if (alias.version if alias else None) == fact:
        if alias and alias.tags.get(REQUEST) == QUEUED:  # another process has promoted it meanwhile
            answer(installation, alias, PROMOTED)
        return None
    if alias is not None:
        by, why = asked_by(alias)
        try:
            promote_under_lease(
                installation, family, alias.version, by, why, {"asked_in": "MLflow", "asked_because": why}
            )
            answer(installation, alias, PROMOTED)
            return f"{family}: version {alias.version} promoted on request of the MLflow UI"
        except (GateRefused, ChainBroken, BundleError) as refusal:
            installation.store.raise_alarm("alias_refused", "warning", str(refusal), now())
            line, to, why_not = f"{family}: alias put back to {fact or 'nothing'}: {refusal}", alias, str(refusal)
    else:
        line, to, why_not = f"{family}: alias was removed by hand, put back to version {fact}", None, REMOVED
    deleted = champion is not None and _deleted(installation, champion)
    if not deleted:
        installation.tracking.set_alias(family, "champion", fact)
    if to or not deleted:
        answer(installation, to or installation.tracking.version(family, str(fact)), f"{REFUSED}: {why_not}")
    return None if deleted else line  # there is nothing to point at; the alarm names it


def _reconcile_challenger(installation: Installation, family: str) -> str | None:
    """Compare one family's `challenger` alias with the ledger; return what was done, None if they agree.

    An alias that was removed asks for nothing: it comes back with the next challenger.
    """
    alias = installation.tracking.version_by_alias(family, "challenger")
    challenger = installation.store.slots(family).challenger
    fact = challenger.to_version if challenger else None
    if alias is None or alias.version == fact:
        return None
    by, why = asked_by(alias)
    try:
        begun = begin_under_lease(installation, family, alias.version, by, why)
        answer(installation, alias, f"{PROMOTED} to challenger, experiment {begun.number}")
        return f"{family}: {experiments.title_of(begun)} begun on request of the MLflow UI"
    except (GateRefused, StateError, ChainBroken, BundleError) as refusal:
        installation.store.raise_alarm("alias_refused", "warning", str(refusal), now())
        answer(installation, alias, f"{REFUSED}: {refusal}")
        there = {version.version for version in installation.tracking.versions(family)}
        installation.tracking.set_alias(family, "challenger", fact if fact in there else None)
        return f"{family}: alias challenger put back to {fact or 'nothing'}: {refusal}"


def _deleted(installation: Installation, champion: Promotion) -> bool:
    """Return whether MLflow no longer has the champion's version; raise an alarm then. Its bundle here serves on."""
    family = champion.family
    if any(version.version == champion.to_version for version in installation.tracking.versions(family)):
        return False
    detail = f"{family} version {champion.to_version} is champion and was deleted in MLflow; it serves on from {BUNDLE}"
    installation.store.raise_alarm(DELETED, "high", detail, now())
    return True
