"""What an installation serves and since which evidence, from stored state where services are down."""

from typing import TypedDict

from flows.support import processes, promotion
from flows.support.installation import Installation, open_installation
from pipelines import versioning
from pipelines.errors import BellwetherError
from pipelines.families import FAMILIES
from pipelines.models.trained_on import symbols_of
from pipelines.settings import settings
from serving.client import Client


class Health(TypedDict):
    """Report the health of the decision service and its reason."""

    health: str
    health_reason: str
    waiting_for_first_turn: bool


class Score(TypedDict):
    """Report what one version scored when the gate judged it; `rows` are figure, value, 95 % interval and n."""

    version: str
    arm: str
    gate: str
    symbol: str
    rows: list[list[str]]
    reasons: list[str]


def stored_status() -> dict[str, object]:
    """Return health, families, services, tier, data hash, figures and open alarms, JSON-ready."""
    installation = open_installation()
    pointer = installation.workspace / "data.dvc"
    last = installation.store.decisions(last=1)
    families = promotion.live(installation)
    return {
        **decision_service_health(),
        "families": families,
        "services": processes.services(settings()),
        "tier": last[0].decision.tier if last else None,
        "data_hash": versioning.data_hash(installation.workspace) if pointer.is_file() else None,
        "figures": latest_scores(installation),
        "alarms": [
            {"kind": a.kind, "severity": a.severity, "detail": a.detail, "at": a.at.isoformat()}
            for a in installation.store.alarms()
        ],
    }


def decision_service_health() -> Health:
    """Return health and its reason from the decision service; UNHEALTHY if it does not answer."""
    try:
        with Client(settings()) as client:
            answer = client.ready()
    except BellwetherError as error:
        return Health(health="UNHEALTHY", health_reason=str(error), waiting_for_first_turn=False)
    return Health(
        health=answer["health"],
        health_reason=answer["health_reason"],
        waiting_for_first_turn=answer["waiting_for_first_turn"],
    )


def latest_scores(installation: Installation) -> dict[str, Score]:
    """Return family → what its champion on this market scored, or without one its newest candidate."""
    manifest = installation.workspace / "data" / "manifest.json"
    market = installation.manifest()["symbol"] if manifest.is_file() else None
    scores: dict[str, Score] = {}
    for family in FAMILIES:
        slots = installation.store.slots(family)
        for arm, line in (("champion", slots.champion), ("challenger", slots.challenger)):
            evidence = promotion.gate_evidence(installation.store, line)
            if family in scores or line is None or market not in symbols_of(evidence):
                continue
            scores[family] = Score(
                version=str(line.to_version),
                arm=arm,
                gate="passed" if evidence["passed"] else "refused",
                symbol=str(market),
                rows=evidence["figures"],
                reasons=evidence["reasons"],
            )
    return scores
