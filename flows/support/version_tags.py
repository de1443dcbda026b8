"""What a version says in MLflow, for people who compare versions there: its gain, its state, the answer to a request.

All of it repeats the ledger and proves nothing: a tag edited in a web page changes no decision.
"""

from collections.abc import Mapping
from typing import Any

from flows.support.installation import Installation
from pipelines.contracts import Verdict
from pipelines.evaluation.verdicts import verdict_state
from pipelines.store import Promotion
from pipelines.tracking import Version

REQUEST, BY, REASON = "bellwether.request", "bellwether.by", "bellwether.reason"
PROMOTED, REFUSED, QUEUED = "promoted", "refused", "queued"  # answers; after "refused" why
NOBODY = "mlflow-ui"  # the actor of an alias moved without a name
OURS = ("policy", "gate")  # actors that no person is
LETTERS = 400  # of a reason or an answer
ACTOR_LETTERS = 64  # the ledger takes no more


def comparison(verdict: Verdict, figures: Mapping[str, Any]) -> dict[str, str]:
    """Return what versions of a family are compared by: their gain over its simplest baseline, on later rows.

    gain, gain_interval (95 %), n; mde: the smallest gain that so many rows could show; gain_over: the baseline.
    state  of the verdict. With a champion to beat also gain_over_champion, which names it by the gate's words
    """
    from pipelines.evaluation.report import SIMPLEST  # with the charts of a page, which no command waits for

    baseline = SIMPLEST[verdict.family]
    gain, least = figures["gain_over"][baseline], figures["detectable"]["loss"]["least"]
    champion = next((check for check in verdict.checks if check.name == "gain_over_champion"), None)
    tags = {
        "gain": number(gain["value"]),
        "gain_interval": interval(gain["low"], gain["high"]),
        "gain_over": baseline,
        "n": str(gain["n"]),
        "mde": number(least),
        "state": verdict_state(verdict),
    }
    if champion is not None:
        found = f"{number(champion.value)}, {interval(champion.low, champion.high)}, n {champion.n}"
        tags["gain_over_champion"] = found if champion.value is not None else f"unknown: {champion.detail}"[:LETTERS]
    return tags


def number(value: float | None) -> str:
    """Return a figure as a tag: four digits."""
    return "unknown" if value is None else f"{value:.4g}"


def interval(low: float | None, high: float | None) -> str:
    """Return an interval as a tag."""
    return "unknown" if low is None or high is None else f"[{low:.4g}, {high:.4g}]"


def mark_states(installation: Installation, family: str) -> None:
    """Set the tag `state` of each version of a family to what the ledger says of it now.

    A version that was promoted on request and is champion no more loses that answer: it could be taken for one to the
    next request.
    """
    lines = installation.store.proven_promotions(family)
    slots = installation.store.slots(family)
    for version in installation.tracking.versions(family):
        state = state_of(version, lines, slots.champion, slots.challenger)
        outdated = {REQUEST: None} if state != "champion" and version.tags.get(REQUEST) == PROMOTED else {}
        changed = {"state": state} if state is not None and state != version.tags.get("state") else {}
        installation.tracking.tag_version(version, {**changed, **outdated})


def state_of(
    version: Version, lines: list[Promotion], champion: Promotion | None, challenger: Promotion | None
) -> str | None:
    """Return champion, former champion, or what the gate found (passed, refused, too few); None before its verdict.

    One that serves in shadow is "challenger", with what the gate found.
    """
    if champion is not None and champion.to_version == version.version:
        return "champion"
    own = [line for line in lines if line.to_version == version.version]
    judged = next((line for line in reversed(own) if line.action == "challenge"), None)
    if judged is None:
        return None
    found = judged.evidence.get("state") or ("passed" if judged.verdict_passed else "refused")
    if challenger is not None and challenger.to_version == version.version:
        return f"challenger, {found}"
    was = any(line.action in ("promote", "rollback") for line in own)
    return "former champion" if was else str(found)


def asked_by(version: Version) -> tuple[str, str]:
    """Return who moved the alias to a version, and why, as its tags say; a name of ours is none of a person."""
    by = " ".join(version.tags.get(BY, "").split())[:ACTOR_LETTERS]
    why = " ".join(version.tags.get(REASON, "").split())[:LETTERS]
    return NOBODY if not by or by in OURS else by, why or "alias moved in MLflow"


def answer(installation: Installation, version: Version, text: str) -> None:
    """Answer a request on the version itself. Once it is decided, who and why are on the ledger and leave the tags.

    The next alias moved to this version is another request, and may be another person's.
    """
    decided = {} if text == QUEUED else {BY: None, REASON: None}
    installation.tracking.tag_version(version, {REQUEST: text[:LETTERS], **decided})
